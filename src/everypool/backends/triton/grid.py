"""Windows in the numbers that the kernels compute with: made without Triton, so that a graph can be recorded anywhere."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from everypool.backends.axes import Axis, Bins, Keep, Run, Slide, Table
from everypool.backends.context import is_tracing
from everypool.backends.layout import Layout
from everypool.backends.recipe import Recipe

__all__ = ["BINS", "FULL", "KEEP", "LISTED", "RUN", "SLIDE", "TABLE", "WHOLE", "Grid", "Unsupported", "grid_of"]

# an axis that is not pooled; sliding windows, and such of which none is cut off; bins, and one bin alone; windows that a
# table lists; running windows
KEEP, SLIDE, FULL, BINS, WHOLE, TABLE, RUN = range(7)
NUMBERS, TABLES = 7, 5  # of an axis
LISTED = ("centre", "median")  # along running windows: looked at one by one


class Unsupported(Exception):
    """Why the fused kernels do not do something."""


@dataclass(frozen=True, eq=False)
class Grid:
    """The windows of one layout: a product of three axes, of which a line or a plane leaves the first ones empty.

    Along a running axis `stride` is -1 where it runs from the end, also where a table lists its windows.
    """

    kinds: tuple[int, ...]
    axes: tuple[tuple[int, ...], ...]  # (n, out, stride, left, kernel, step, rows) each
    taps: tuple[int, ...]  # bounds of what a window holds along each axis
    tables: tuple[Tensor | None, ...]  # per axis: start, count, first and last holder, cells
    nd: int
    own: bool  # a window exists only where its own place counts

    @property
    def out(self) -> tuple[int, ...]:
        return tuple(axis[1] for axis in self.axes[3 - self.nd :])

    @property
    def spatial(self) -> tuple[int, ...]:
        return tuple(axis[0] for axis in self.axes[3 - self.nd :])

    @property
    def most(self) -> int:
        """Taps of a window at most."""
        return self.taps[0] * self.taps[1] * self.taps[2]

    @property
    def running(self) -> int | None:
        """The axis that windows run along."""
        return self.kinds.index(RUN) if RUN in self.kinds else None


def grid_of(layout: Layout, recipe: Recipe, device: torch.device) -> Grid:
    """The windows of a layout for a reducer."""
    nd = len(layout.axes)
    kinds, taps = [KEEP] * (3 - nd), [1] * (3 - nd)
    axes: list[tuple[int, ...]] = [(1, 1, 1, 0, 1, 1, 0)] * (3 - nd)
    tables: list[Tensor | None] = [None] * (TABLES * (3 - nd))
    for number, axis in enumerate(layout.axes):
        kind, numbers, bound, found = _axis(layout, number, axis, recipe, device)
        kinds.append(kind)
        axes.append(numbers)
        taps.append(bound)
        tables += found
    return Grid(tuple(kinds), tuple(axes), tuple(taps), tuple(tables), nd, layout.own_position)


Described = tuple[int, tuple[int, ...], int, list[Tensor | None]]


def _axis(layout: Layout, number: int, axis: Axis, recipe: Recipe, device: torch.device) -> Described:
    """Kind, numbers, bound of the taps, and tables of one axis."""
    n, out = axis.n, axis.out
    cells = None
    if recipe.cells and layout.extents is not None:
        cells = layout.extents[number].count(device).reshape(-1, out).contiguous()
    nothing: list[Tensor | None] = [None] * (TABLES - 1)
    if layout.own_position and recipe.op not in LISTED:  # the mask says what exists
        if isinstance(axis, Run):
            spans = axis.spans(None)  # for the gradient of a parameter, which looks at each window by itself
            places = [t.to(device, torch.int64).contiguous() for t in (spans.start, spans.count)]
            return RUN, (n, n, -1 if axis.reverse else 1, 0, 1, 1, 0), n, [*places, None, None, cells]
        return KEEP, (n, n, 1, 0, 1, 1, 0), 1, [*nothing, cells]
    if layout.sizes is None and recipe.op != "centre" and not isinstance(axis, Run):
        if isinstance(axis, Keep):
            return KEEP, (n, n, 1, 0, 1, 1, 0), 1, [*nothing, cells]
        if isinstance(axis, Slide) and (is_tracing() or axis.stride <= n):
            axis = axis if is_tracing() else axis._trimmed()
            step = axis.dilation if axis.kernel > 1 else 1
            numbers = (n, out, axis.stride, axis.left, axis.kernel, step, 0)
            whole = not is_tracing() and axis.left == 0 and (out - 1) * axis.stride + (axis.kernel - 1) * step < n
            return FULL if whole else SLIDE, numbers, min(axis.kernel, n), [*nothing, cells]
        if isinstance(axis, Bins) and isinstance(out, int) and out == 1:
            return WHOLE, (n, 1, 1, 0, 1, 1, 0), n, [*nothing, cells]
        if isinstance(axis, Bins):
            if not is_tracing() and n % out == 0:
                return FULL, (n, out, n // out, 0, n // out, 1, 0), n // out, [*nothing, cells]
            bound = n // out if n % out == 0 else (n + out - 1) // out + 1
            return BINS, (n, out, 1, 0, 1, 1, 0), min(bound, n), [*nothing, cells]
    return _listed(layout, number, axis, recipe, device, cells)


def _listed(layout: Layout, number: int, axis: Axis, recipe: Recipe, device: torch.device, cells: Tensor | None) -> Described:
    """An axis whose windows are tables: those of samples that differ in size, and those that no formula gives."""
    n, out = axis.n, axis.out
    size = None if layout.sizes is None else layout.sizes[:, number]
    if size is not None and isinstance(axis, Table):
        size = size.to(axis.positions.device)
    with torch.device(device if size is None else size.device):
        spans = axis.spans(size)
    start, count, step = spans.start, spans.count, spans.step
    where = count.device
    if layout.out_sizes is not None:
        inside = torch.arange(out, device=where) < layout.out_sizes[:, number].to(where).reshape(-1, 1)
        count = torch.where(inside, count, 0)
    if recipe.op == "centre":
        start = axis.centre(where, recipe.upper, size).reshape(-1, out)
        count, step, bound = (count > 0).to(torch.int64), axis.dilation if isinstance(axis, Slide) else step, 1
        if recipe.both:  # two elements, or the same twice
            other, bound = axis.centre(where, True, size).reshape(-1, out), 2
            start, count = torch.minimum(start, other), count * (1 + (start != other).to(torch.int64))
    elif isinstance(axis, (Slide, Run)):
        bound = min(n, axis.kernel if isinstance(axis, Slide) else n)
    else:
        bound = min(n, axis.table(where)[0].shape[-1])
    start, count = torch.broadcast_tensors(start, count)
    start, count = start.to(device, torch.int64).contiguous(), count.to(device, torch.int64).contiguous()
    # whatever the order of the windows: those that may hold an element lie between these two
    end = torch.where(count > 0, start + (count - 1) * step + 1, 0).cummax(-1).values
    begin = torch.where(count > 0, start, n).flip(-1).cummin(-1).values.flip(-1).contiguous()
    element = torch.arange(n, device=device).expand(start.shape[0], n).contiguous()
    low = torch.searchsorted(end, element, right=True).clamp(max=out - 1)
    high = torch.searchsorted(begin, element, right=True) - 1
    rows = out if start.shape[0] > 1 else 0
    direction = -1 if isinstance(axis, Run) and axis.reverse else 1
    return TABLE, (n, out, direction, 0, 1, step, rows), bound, [start, count, low, high, cells]
