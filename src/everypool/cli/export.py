"""`everypool export`: a model as ONNX, checked in ONNX Runtime."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import click
import torch
from torch import nn

from everypool import _check as check
from everypool.cli.running import writable
from everypool.factory import create
from everypool.pool import operations
from everypool.study.models import builder
from everypool.study.models.timm import read
from everypool.surgery.export import OPSET, Exported, export

__all__ = ["command"]

FILE = click.Path(path_type=Path)
RULE = "timm:NAME, FILE.py:FUNCTION, PACKAGE.MODULE:FUNCTION or a reducer such as gem:p=4"


@click.command("export")
@click.argument("model", metavar="[MODEL]", required=False)
@click.option("-o", "--output", default="model.onnx", show_default=True, callback=writable, type=FILE, help="The file.")
@click.option("--shape", default="1x3x224x224", show_default=True, help="Of the example, with samples and channels.")
@click.option("--dynamic", metavar="LETTERS", help='Free axes: of "ncdhw", or none.  [default: samples and all spatial axes]')
@click.option("--check", "sizes", multiple=True, metavar="SIZE",
              help="A size to compare at, such as 301x199; may be repeated.  [default: three near the example's]")  # fmt: skip
@click.option("--float16", is_flag=True, help="Another file in half precision, MODEL.float16.onnx, checked too.")
@click.option("--weights", type=FILE, help="A file of weights by name, .pt or .safetensors.")
@click.option("--classes", default=1000, show_default=True, type=click.IntRange(1), help="Of the classifier that is built.")
@click.option("--opset", default=OPSET, show_default=True, type=click.IntRange(1), help="Version of ONNX's operators.")
@click.option("--all", "everything", is_flag=True, help="Every operation once instead of a model; nothing is kept.")
@click.option("--markdown", callback=writable, type=FILE, help="With --all: write the page of the documentation.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def command(
    model: str | None,
    output: Path,
    shape: str,
    dynamic: str | None,
    sizes: tuple[str, ...],
    float16: bool,
    weights: Path | None,
    classes: int,
    opset: int,
    everything: bool,
    markdown: Path | None,
    as_json: bool,
) -> int:
    """Write MODEL as ONNX if it gives the same in ONNX Runtime, at sizes that were not there at the export.

    MODEL is timm:NAME, FILE.py:FUNCTION or PACKAGE.MODULE:FUNCTION, as in `everypool compare`, or a reducer over windows of 2.
    Ends with 1 if it is off, and writes nothing then. torch's adaptive poolings, which the exporter would write wrongly, are
    written as everypool's.
    """
    if everything == (model is not None):
        raise check.invalid("MODEL", f"{RULE}; or left out with --all", model)
    if markdown is not None and not everything:
        raise check.invalid("--markdown", "left out without --all", str(markdown))
    if everything:
        return catalogue(markdown)
    extents = numbers("--shape", shape)
    if not 3 <= len(extents) <= 5:
        raise check.invalid("--shape", "samples, channels and one to three spatial extents, such as 1x3x224x224", shape)
    torch.manual_seed(0)
    network = made(str(model), extents, classes)
    if weights is not None:
        load(network, weights)
    asked = [numbers("--check", size) for size in sizes] or None
    report = export(network, output, torch.randn(extents), dynamic=dynamic, check=asked, opset=opset, float16=float16)
    print(json.dumps(record(report), indent=1) if as_json else report)
    return 0 if report.ok else 1


def numbers(name: str, text: str) -> tuple[int, ...]:
    """301x199 -> 301, 199."""
    parts = text.lower().split("x")
    if not all(part.isascii() and part.isdecimal() and int(part) > 0 for part in parts):
        raise check.invalid(name, "positive ints with x between them, such as 301x199", text)
    return tuple(map(int, parts))


def made(spec: str, shape: tuple[int, ...], classes: int) -> nn.Module:
    """The model that is named, on the processor."""
    nd = len(shape) - 2
    operation = operations().get(spec.partition(":")[0])
    if operation is not None:
        return create(spec, nd=nd, **{"kernel_size": 2} if operation.kind == "reducer" else {})
    try:
        return builder(spec)(classes, shape[1], nd, shape[2:])
    except RuntimeError as error:  # of the user's code
        if str(error).startswith("`"):
            raise
        raise check.invalid("MODEL", "one that can be built", check.Shown(str(error))) from error


def load(model: nn.Module, path: Path) -> None:
    if not path.is_file():
        raise check.invalid("--weights", "a file that exists", str(path))
    try:
        model.load_state_dict(read(path))
    except RuntimeError as error:
        if str(error).startswith("`"):
            raise
        raise check.invalid("--weights", "of this model", check.Shown(" ".join(str(error).split()))) from error


def record(report: Exported) -> dict[str, Any]:
    """Ready for JSON, which has no infinity."""
    found = dataclasses.asdict(report)
    for name in ("files", "refused"):
        found[name] = [str(path) for path in found[name]]
    for comparison in found["comparisons"]:
        for name in ("absolute", "relative"):
            comparison[name] = None if comparison[name] == float("inf") else comparison[name]
    return {"ok": report.ok, **found}


def catalogue(markdown: Path | None) -> int:
    """Every operation: a line as soon as it is known."""
    from everypool.surgery.catalogue import entries, errors, line, page

    lines = []
    for entry in entries():
        found = line(entry)
        lines.append(found)
        what = f"{entry.operation.name}, {entry.windows}"
        if found.report is None:
            print(f"{what}: not exported: {found.why}", file=sys.stderr)
        else:
            print(f"{what}: float32 {errors(found.report, 'float32')}, float16 {errors(found.report, 'float16')}", flush=True)
    if markdown is not None:
        markdown.write_text(page(lines), encoding="utf-8")
    return 0 if all(found.ok for found in lines) else 1
