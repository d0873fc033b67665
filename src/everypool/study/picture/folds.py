"""Scenes of the reducers: the same sliding windows on the same photo, only the function differs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from everypool import _check as check
from everypool.study.picture.scene import (
    ACCENT,
    SECOND,
    Box,
    Canvas,
    Grid,
    Mark,
    Scene,
    Values,
    canvas_of,
    gradient,
    number_format,
    plain,
    whole,
)

__all__ = ["Zoom", "reducer_scene", "zoom"]

Function = Callable[[Tensor], Tensor]
WINDOWS_SHOWN = {1: 8, 2: 4, 3: 3, 4: 2, 5: 2}  # windows along each side of the enlarged crop, by kernel
MOST_NUMBERS = 10  # cells along a side that still have room for a number


@dataclass(frozen=True, eq=False)
class Zoom:
    """A crop whose numbers are written out, and where it lies."""

    top: int
    left: int
    input: Values
    output: Values
    gradient: Values
    marked: tuple[int, int]  # the window that is followed


def zoom(function: Function, x: Tensor, kernel: int) -> Zoom:
    """The liveliest crop of x that starts on a window's border, what the function makes of it, and its gradient."""
    height, width = x.shape[-2:]
    if check.positive_int("kernel", kernel) > min(height, width):
        raise check.invalid("kernel", f"at most {min(height, width)}, the photo's shorter side in cells", kernel)
    number = min(WINDOWS_SHOWN.get(kernel, 1), height // kernel, width // kernel)
    top, left = liveliest(x, kernel * number, kernel)
    crop = x[..., top : top + kernel * number, left : left + kernel * number]
    windows = plain(crop).reshape(number, kernel, number, kernel).transpose(0, 2, 1, 3).reshape(number, number, -1)
    row, column = np.unravel_index(int(windows.std(-1).argmax()), (number, number))
    return Zoom(top, left, plain(crop), plain(function(crop)), plain(gradient(function, crop)), (int(row), int(column)))


def liveliest(x: Tensor, side: int, step: int) -> tuple[int, int]:
    """Corner, a multiple of `step`, of the square whose windows vary most within themselves."""
    windows = x[0, 0].unfold(0, step, step).unfold(1, step, step).flatten(2)
    spread = windows.std(-1, correction=0) if step > 1 else windows[..., 0]
    crops = spread.unfold(0, side // step, 1).unfold(1, side // step, 1).flatten(2)
    spread = crops.mean(-1) if step > 1 else crops.std(-1, correction=0)
    best = int(spread.argmax())
    return best // spread.shape[1] * step, best % spread.shape[1] * step


def window_lines(shape: tuple[int, ...], kernel: int, colour: str = ACCENT, width: float = 1.0, strength: float = 1.0) -> Grid:
    """Borders of the windows that tile a map."""
    height, width_cells = (n // kernel * kernel for n in shape)
    columns = tuple(float(c) for c in range(0, width_cells + 1, kernel))
    rows = tuple(float(r) for r in range(0, height + 1, kernel))
    return Grid(columns, rows, (0, 0, width_cells, height), colour, width, strength)


def reducer_scene(title: str, formula: str, summary: str, source: str, function: Function, x: Tensor, kernel: int) -> Scene:
    """A reducer over windows of `kernel` x `kernel` that tile the photo."""
    near = zoom(function, x, kernel)
    y, slope = plain(function(x)), plain(gradient(function, x))
    height, width = x.shape[-2:]
    n, m = near.input.shape[0], near.output.shape[0]
    crop = Box(near.left, near.top, near.left + n, near.top + n, SECOND, 3.5)
    left, top, right, bottom = (edge / kernel for edge in (near.left, near.top, near.left + n, near.top + n))
    small = Box(left, top, right, bottom, SECOND, 3.5)
    windows = f"{kernel} × {kernel}"
    limits = (0.0, max(10.0, float(y.max())))
    main = (
        canvas_of(
            whole(plain(x), limits=(0, 10)),
            "Input",
            f"{height} × {width} values, windows of {windows}",
            (window_lines((height, width), kernel, strength=0.5, width=0.35), crop),
        ),
        canvas_of(whole(y, limits=limits), "Output", f"{y.shape[0]} × {y.shape[1]} values, one per window", (small,)),
        canvas_of(whole(slope, look="signed"), "Gradient", "of the output's sum, by the input", (crop,), bar=True),
    )
    row, column = near.marked
    followed = Box(column * kernel, row * kernel, (column + 1) * kernel, (row + 1) * kernel, ACCENT, 5)
    lines = window_lines((n, n), kernel, SECOND, 2.0)
    said = n <= MOST_NUMBERS
    detail = (
        numbered(near.input, said, (0, 10), (lines, followed)),
        numbered(
            near.output, True, limits, (window_lines((m, m), 1, SECOND, 2.0), Box(column, row, column + 1, row + 1, ACCENT, 5))
        ),
        numbered(near.gradient, said, None, (lines, followed), look="signed"),
    )
    caption = ""
    if kernel * kernel <= 9:
        cells = near.input[row * kernel : (row + 1) * kernel, column * kernel : (column + 1) * kernel].ravel()
        result = number_format(near.output).format(near.output[row, column])
        caption = f"Marked window: {', '.join(f'{v:.1f}' for v in cells)}  →  {result}"
    area = (near.left, near.top, near.left + n, near.top + n)
    return Scene(title, formula, summary, source, main, detail, caption, ("→", ""), area)


def numbered(
    values: Values, said: bool, limits: tuple[float, float] | None, marks: tuple[Mark, ...] = (), look: str = "grey"
) -> Canvas:
    """A grid of cells with their numbers."""
    return canvas_of(whole(values, look=look, limits=limits, numbers=number_format(values) if said else ""), marks=marks)


def tiling(function: Callable[..., Tensor], kernel: int) -> Function:
    """A pooling function over windows that tile the input."""

    def pooled(x: Tensor) -> Tensor:
        return function(x, kernel, kernel)

    return pooled
