"""A model as an ONNX file that has been run, at sizes it was not exported at, before it is there."""

from __future__ import annotations

import copy
import os
import tempfile
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from everypool._check import invalid, number, one_int, wrong_type
from everypool.surgery.inputs import Inputs
from everypool.surgery.onnx import Comparison, compared, installed, versions, written
from everypool.surgery.trace import looking

__all__ = ["OPSET", "TOLERANCE", "Comparison", "Exported", "export"]

OPSET = 18  # what the exporter writes without a conversion
TOLERANCE = 1e-4, 2e-2


@dataclass(frozen=True)
class Exported:
    """What `export` has found.

    Args:
        files: what was written: those files that agree with the model.
        refused: files that do not, and are not written.
        opset: of the operators.
        versions: of the exporter and of the runtime.
        inputs: name, free axes and type of each.
        outputs: their names.
        replaced: adaptive poolings of torch that are written as those of everypool, and where they stand.
        comparisons: one for every type and size.

    It is true if a file was written.
    """

    files: tuple[Path, ...]
    refused: tuple[Path, ...]
    opset: int
    versions: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    replaced: tuple[str, ...]
    comparisons: tuple[Comparison, ...]

    @property
    def ok(self) -> bool:
        """All that was asked for has run and agrees."""
        return all(comparison.ok for comparison in self.comparisons)

    def __bool__(self) -> bool:
        return bool(self.files)

    def __str__(self) -> str:
        lines = [
            f"opset {self.opset}, {self.versions}",
            f"inputs: {', '.join(self.inputs)}",
            f"outputs: {', '.join(self.outputs)}",
            *(f"written as everypool's: {text}" for text in self.replaced),
        ]
        table = [("type", "size", "batches", "max error", "relative", "")]
        for c in self.comparisons:
            batches = ", ".join(map(str, c.batches))
            error = ("-", "-") if c.why else (f"{c.absolute:.2g}", f"{c.relative:.2g}")
            said = "ok" if c.ok else f"did not run: {c.why}" if c.why else "OFF"
            table.append((c.dtype, c.size, batches, *error, said + (f", in {c.layer}" if c.layer else "")))
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines += ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]
        lines += [f"{path}: written" for path in self.files]
        layers = list(dict.fromkeys(c.layer for c in self.comparisons if c.layer))
        blamed = f"; at fault: {', '.join(layers)}" if layers else ""
        lines += [f"{path}: not written, it does not do what the model does{blamed}" for path in self.refused]
        return "\n".join(lines)


def export(
    model: nn.Module,
    path: str | os.PathLike[str],
    example: Any,
    *,
    dynamic: str | Collection[int] | None = None,
    check: Sequence[Any] | None = None,
    opset: int = OPSET,
    float16: bool = False,
    tolerance: tuple[float, float] = TOLERANCE,
) -> Exported:
    """Write a model as ONNX, if ONNX Runtime gives what the model gives at sizes that were not there at the export.

    The model is exported in evaluation mode by torch's current exporter, and the file is run, with 1 and with 3 samples, at
    each of the sizes. Where it is off, no file is written. torch's own adaptive poolings, modules or functions, of which the
    exporter would fix the bins to the example's, are written as everypool's, which are the same numbers at every size.

    Args:
        model: it stays as it is.
        path: the file. With `float16` there is another beside it: model.onnx and model.float16.onnx. What is larger than
            ONNX's limit of 2 GB gets a file of weights, too.
        example: an input (N, C, *spatial); a tuple of what `forward` takes, or a dict of it by name. It tells the shapes.
        dynamic: the axes that are free: letters of (N, C, D, H, W) such as "nhw", numbers such as {0, 1}, or "none". An
            input that lacks some of them has the others free. Default: the batch and all spatial axes.
        check: sizes of the free axes that are not the batch, such as [(301, 199), (64, 97)], with values drawn from those
            of the example; or whole inputs like the example. Default: three sizes near the example's that the model takes, and
            those at which it is known to begin to do something else.
        opset: version of ONNX's operators.
        float16: also export the model in half precision, and compare it with its rounded weights in float32.
        tolerance: largest error that agrees, as a share of the largest value, in float32 and in half precision.

    Returns:
        The report: `ok`, `comparisons`, `files`; `print` shows it all.

    Raises:
        ValueError: an argument breaks its rule, the model does not take a size, or it cannot be exported at all (the
            exporter's error is the cause).
        TypeError: inputs or outputs that are no tensors.
        NotImplementedError: onnx, onnxscript or onnxruntime is not installed.

    >>> import tempfile, pathlib
    >>> model = nn.Sequential(nn.Conv1d(3, 4, 3), nn.AdaptiveAvgPool1d(2))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     report = everypool.export(model, pathlib.Path(folder) / "model.onnx", torch.rand(1, 3, 12), check=[17])
    >>> report.ok, report.replaced
    (True, ('1: adaptive_avg_pool1d to 2',))
    """
    installed()
    if not isinstance(model, nn.Module):
        raise wrong_type("model", "a torch.nn.Module", model)
    target = writable(path)
    one_int("opset", opset, 1)
    if not isinstance(tolerance, (tuple, list)) or len(tolerance) != 2:
        raise invalid("tolerance", "two numbers, for float32 and for half precision", tolerance)
    for limit in tolerance:
        number("tolerance", limit, "two positive numbers", above=0)
    inputs = Inputs(model, example, dynamic)
    with looking(model), tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as folder:
        native = any(x.dtype == torch.float16 for x in inputs.tensors)
        reference = copy.deepcopy(model).float() if native else model
        cases = inputs.cases(reference, check)
        outputs = tuple(
            name if name not in inputs.names else f"{name}_output" for name in inputs.run(reference, inputs.first())
        )
        draft = Path(folder) / target.name
        program = written(model, inputs, outputs, draft, opset)
        if check is None:
            cases += inputs.beyond(reference, program.bounds)
        found = {target: compared(draft, reference, inputs, cases, tolerance, program)}
        drafts = {target: draft}
        if float16:
            half = copy.deepcopy(model).half()
            beside = target.with_name(f"{target.stem}.float16{target.suffix}")
            drafts[beside] = Path(folder) / beside.name
            halves = written(half, inputs.half(), outputs, drafts[beside], opset)
            cases = [case.half() for case in cases]
            found[beside] = compared(drafts[beside], half.float(), inputs.half(), cases, tolerance, halves)
        good = [place for place, comparisons in found.items() if all(c.ok for c in comparisons)]
        for place in good:
            parts = [file for file in Path(folder).iterdir() if file.name.startswith(drafts[place].name)]
            for file in sorted(parts, key=lambda file: file == drafts[place]):
                os.replace(file, place.with_name(file.name))  # the weights, if they are apart, before what refers to them
    return Exported(
        tuple(good),
        tuple(place for place in found if place not in good),
        opset,
        versions(),
        tuple(f"{name} {inputs.described(i)}" for i, name in enumerate(inputs.names)),
        outputs,
        program.replaced,
        tuple(c for comparisons in found.values() for c in comparisons),
    )


def writable(path: Any) -> Path:
    if not isinstance(path, (str, os.PathLike)):
        raise wrong_type("path", "the name of a file", path)
    target = Path(path)
    if not target.name or target.is_dir() or not target.absolute().parent.is_dir():
        raise invalid("path", "a file in a folder that exists", str(path))
    return target.absolute()
