"""Every operation exported once, and how far ONNX Runtime is from it: the page docs/onnx.md."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from everypool.factory import create
from everypool.pool import Operation, operations
from everypool.reducers import max_pool, max_unpool
from everypool.surgery.export import Exported, export
from everypool.surgery.onnx import versions
from everypool.windows import roi_align, roi_pool

__all__ = ["Entry", "Line", "entries", "line", "page"]

SIZES = [(13, 8), (9, 21), (30, 17)]  # of maps of 11 x 9
SMALL = [(9, 7), (12, 16), (21, 5)]  # of the modules' samples
TOKENS = [(3,), (9,), (14,)]
BOXES = torch.tensor([[0.0, 1.0, 2.0, 9.0, 11.0], [1.0, 3.5, 0.0, 20.0, 30.0], [0.0, 6.0, 4.0, 7.0, 14.5]])


@dataclass(frozen=True)
class Entry:
    """One export of the page.

    Args:
        operation: its record.
        windows: which windows, or what is exported, in words.
        module: it computes the operation.
        example: its inputs.
        dynamic: free axes, as `export` takes them.
        check: sizes or inputs that were not there at the export.
    """

    operation: Operation
    windows: str
    module: nn.Module
    example: tuple[Any, ...]
    dynamic: Any
    check: Sequence[Any]


@dataclass(frozen=True)
class Line:
    """One row of the page: the report, or why there is none."""

    entry: Entry
    report: Exported | None
    why: str = ""

    @property
    def ok(self) -> bool:
        """It is exported, and agrees in float32; and in float16, if that runs."""
        return self.report is not None and all(c.ok or (c.dtype == "float16" and bool(c.why)) for c in self.report.comparisons)


class Lambda(nn.Module):
    """A function as a module."""

    def __init__(self, call: Any) -> None:
        super().__init__()
        self.call = call

    def forward(self, *inputs: Any) -> Any:
        return self.call(*inputs)


def there_and_back(x: Tensor) -> Tensor:
    y, indices = max_pool(x, 2, return_indices=True)
    result: Tensor = max_unpool(y, indices, 2, output_size=x.shape[2:])
    return result


def entries() -> Iterator[Entry]:
    """What is exported: every reducer over three kinds of windows, everything else as its record shows it."""
    for operation in operations().values():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            yield from entries_of(operation)


def entries_of(operation: Operation) -> Iterator[Entry]:
    name, maps = operation.name, (torch.rand(2, 3, 11, 9) + 0.1,)
    if operation.kind == "reducer":
        kinds: dict[str, dict[str, Any]] = {
            "sliding, 3 × 3, stride 2": {"kernel_size": 3, "stride": 2, "padding": 1},
            "adaptive, 3 × 3": {"output_size": 3},
            "global": {},
        }
        for windows, arguments in kinds.items():
            yield Entry(operation, windows, create(name, **arguments), maps, "nhw", SIZES)
    elif name == "max_unpool":
        yield Entry(operation, "of max_pool's indices, 2 × 2", Lambda(there_and_back), maps, "nhw", SIZES)
    elif name == "roi":
        for call in (roi_align, roi_pool):
            boxed = Lambda(lambda x, boxes, call=call: call(x, boxes, 2, 0.5))
            yield Entry(
                operation, call.__name__, boxed, (maps[0], BOXES), "nhw", [(torch.rand(2, 3, *n), BOXES) for n in SIZES]
            )
    else:
        made = operation.sample
        if made is None:
            raise NotImplementedError(f"`{name}` must be an operation with a sample, got none in its record")
        module, example = made()
        shuffle(module)
        windows = type(module).__name__
        if len(example) > 1:  # maps of several levels, and boxes
            levels, _ = example
            check = [([torch.rand(2, x.shape[1], a // 2**i, b // 2**i) for i, x in enumerate(levels)], BOXES)
                     for a, b in ((19, 22), (26, 9), (30, 31))]  # fmt: skip
            yield Entry(operation, windows, module, example, "nhw", check)
        elif example[0].dim() == 3:
            yield Entry(operation, windows, module, example, {0, 1}, TOKENS)
        else:
            yield Entry(operation, windows, module, example, "nhw", SMALL)


def shuffle(module: nn.Module) -> None:
    """Parameters and statistics at random: nothing hides behind a one or a zero."""
    with torch.no_grad():
        for key, value in module.state_dict().items():
            if value.is_floating_point():
                value.copy_(torch.rand_like(value) + 0.5 if "var" in key else torch.rand_like(value) - 0.4)


def line(entry: Entry) -> Line:
    """Export it in both types, and keep what was found alone."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            path = Path(folder) / "model.onnx"
            report = export(entry.module, path, entry.example, dynamic=entry.dynamic, check=entry.check, float16=True)
        except (ValueError, TypeError, NotImplementedError) as error:
            return Line(entry, None, str(error))
    return Line(entry, report)


INTRODUCTION = """\
# Every operation in ONNX

`everypool.export` has exported every operation once with free axes, and has run the file in ONNX Runtime at three sizes that
were not there at the export, each with 1 and with 3 samples (with 2 where there are boxes).

- Opset {opset}; {versions}; CPU.
- Free axes are letters: samples n, height h and width w, or samples n and tokens l; of boxes, their number.
- The error is the largest of any element at any size, and in brackets its share of the output's largest value. The reference
  is the operation in eager mode. For float16 it is the operation in float32 with parameters rounded to float16, and rounding
  the result alone costs up to {half:.1e} of a value.
- Parameters are random; those of the modules' examples in `everypool.operations()`, with all values shuffled.
- A running window is exported with 16 doubling steps, so it takes up to 65,536 elements per axis.

The command for a model of your own is `everypool export MODEL -o model.onnx`; it ends with 1, and writes nothing, where the
file is off. This page is written by

```
everypool export --all --markdown docs/onnx.md
```
"""
HEAD = "| operation | exported | input | sizes | float32 | float16 |\n|---|---|---|---|---|---|\n"


def page(lines: Sequence[Line]) -> str:
    """The page in Markdown."""
    opset = next((item.report.opset for item in lines if item.report is not None), 0)
    rows = [row(item) for item in lines]
    reasons = [f"- {item.entry.operation.name}, {item.entry.windows}: {why}" for item in lines for why in whys(item)]
    parts = [INTRODUCTION.format(opset=opset, versions=versions(), half=2.0**-11), HEAD + "\n".join(rows) + "\n"]
    if reasons:
        parts.append("## What is missing, or off\n\n" + "\n".join(reasons) + "\n")
    return "\n".join(parts)


def row(item: Line) -> str:
    entry, report = item.entry, item.report
    first = f"| {entry.operation.name} | {entry.windows} |"
    if report is None:
        return f"{first} | | not exported | |"
    sizes = ", ".join(dict.fromkeys(c.size.replace("x", "×") for c in report.comparisons if "," not in c.size)) or "three"
    inputs = ", ".join(text.partition(" ")[2].replace(", c,", ", l,") for text in report.inputs)
    return f"{first} {inputs} | {sizes} | {errors(report, 'float32')} | {errors(report, 'float16')} |"


def errors(report: Exported, dtype: str) -> str:
    """The largest error of a type."""
    own = [c for c in report.comparisons if c.dtype == dtype]
    if any(c.why for c in own):
        return "does not run"
    worst = max(own, key=lambda c: c.relative)
    text = f"{max(c.absolute for c in own):.1e} ({worst.relative:.1e})" if worst.absolute else "0"
    return text if all(c.ok for c in own) else f"**off**: {text}"


def whys(item: Line) -> list[str]:
    """What went wrong, in the exporter's or the runtime's words."""
    if item.report is None:
        return [item.why]
    return list(dict.fromkeys(f"{c.dtype}: {c.why}" for c in item.report.comparisons if c.why))
