"""What a fold costs by its definition: operations, and the bytes that cannot but move.

An operation is an addition, subtraction, multiplication, division, comparison, absolute value, exponential, logarithm,
power or root: each counts as one. Counted is what the definition does with every window, not what a fold axis by axis
saves: a maximum of K elements is K - 1 comparisons, a mean K - 1 additions and a division, a sum of K powers K powers and
K - 1 additions, the middle of K values in order K log2 K comparisons (rounded for all windows of a plane together). What
keeps a formula from overflowing is no part of it. A multiplication with beta = 1 is none, and a window without elements
costs nothing. The gradient is that of the input: what each window hands to each of its elements, and one addition there.

A count follows from shapes alone: elements are those that lie in the map, whether a mask or `sizes` lets them count or not.
So do bytes: every tensor is read or written once, whatever is read from cache in between.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from everypool.backends.axes import Axis, Bins, Keep, Run, Slide
from everypool.backends.layout import Layout

__all__ = ["Taps", "Work", "measured", "operations_of", "traffic"]

BLOCK = 1 << 20  # windows whose elements are counted at once, where nothing shorter does it


@dataclass(frozen=True)
class Work:
    """What a reducer does with a window of K elements, and what its gradient must know.

    Args:
        forward: (a, b) for a K + b operations.
        backward: the same for the gradient of the input.
        sorts: how often K log2 K comparisons are made besides, forward.
        picked: how many elements of each window are read at all; 0 for all of them.
        input: the gradient reads the input.
        output: the gradient reads the output.
        winners: how many elements of each window the gradient must know by their place.
    """

    forward: tuple[int, int]
    backward: tuple[int, int]
    sorts: int = 0
    picked: int = 0
    input: bool = False
    output: bool = False
    winners: int = 0


@dataclass(frozen=True)
class Taps:
    """How many elements the windows of one plane hold, and how many planes there are.

    Args:
        total: elements of all windows, those in several windows several times.
        windows: how many windows hold anything.
        order: sum of K log2 K over all windows of K elements.
        most: elements of the largest window.
        outputs: windows, those that hold nothing too.
        planes: how often all that is there.
        running: a window is the one before and one element more.
        cells: cells of the input that are looked at for one element; 0 where the whole map is read.
        forward: operations that make one element of them.
        backward: operations that hand its gradient to them.
    """

    total: int
    windows: int
    order: float
    most: int
    outputs: int
    planes: int = 1
    running: bool = False
    cells: int = 0
    forward: int = 0
    backward: int = 0


def operations_of(work: Work, taps: Iterable[Taps]) -> tuple[int, int]:
    """Operations of a fold and of its gradient, in Python's unbounded ints."""
    forward = backward = 0
    for t in taps:
        sorting = round(work.sorts * t.order)
        forward += t.planes * ((work.forward[0] + t.forward) * t.total + work.forward[1] * t.windows + sorting)
        backward += t.planes * ((work.backward[0] + t.backward) * t.total + work.backward[1] * t.windows)
    return forward, backward


def traffic(
    work: Work, taps: Sequence[Taps], elements: int, itemsize: int, *, mask: int = 0, index: bool = False
) -> tuple[int, int]:
    """Bytes of a fold over `elements` elements of `itemsize` bytes and of its gradient.

    Forward: input read, output written; backward: gradient of the output read, that of the input written, and of what was
    kept whatever the reducer's gradient reads. Where a maximum lay is one bit in a running window, else the fewest whole
    bytes that number a window's elements.

    Args:
        mask: elements of the mask.
        index: positions are returned, 8 bytes each.
    """
    outputs = sum(t.planes * t.outputs for t in taps)
    read = elements
    if work.picked or any(t.cells for t in taps):
        seen = sum(t.planes * max(t.cells, 1) * (work.picked * t.windows if work.picked else t.total) for t in taps)
        read = min(read, seen)
    kept = 0  # bits
    if work.winners:
        kept = work.winners * sum(t.planes * t.outputs * (64 if index else _bits(t)) for t in taps)
    forward = read * itemsize + outputs * itemsize + (8 * outputs if index else 0) + mask
    backward = elements * itemsize * (1 + work.input) + outputs * itemsize * (1 + work.output) + (kept + 7) // 8 + mask
    return forward, backward


def _bits(taps: Taps) -> int:
    """Bits that say which element of a window it was."""
    if taps.running:
        return 1
    return next((bits for bits in (8, 16, 32) if taps.most <= 1 << bits), 64)


def measured(layout: Layout, planes: int) -> Taps:
    """A layout's windows, without a list of them: axes are independent, so sums over all windows are products."""
    axes = layout.axes
    totals = [total(axis) for axis in axes]
    product = math.prod(totals)
    return Taps(
        total=product,
        windows=math.prod(filled(axis) for axis in axes),
        order=math.fsum(order(axis) * (product // t) for axis, t in zip(axes, totals, strict=True) if t),
        most=math.prod(most(axis) for axis in axes),
        outputs=math.prod(layout.out),
        planes=planes,
        running=any(isinstance(axis, Run) for axis in axes),
    )


def total(axis: Axis) -> int:
    """Elements of all windows together."""
    match axis:
        case Keep():
            return axis.n
        case Run():
            return axis.n * (axis.n + 1) // 2
        case Bins():
            return axis.n + axis.out - math.gcd(axis.n, axis.out)
        case Slide():
            return _up_to(axis, axis.n - 1 + axis.left) - _up_to(axis, axis.left - 1)
    return int(_counts(axis).sum())


def filled(axis: Axis) -> int:
    """Windows with an element."""
    match axis:
        case Keep() | Run() | Bins():
            return axis.out
        case Slide() if axis.dilation > axis.n:  # a window has one element at most
            return total(axis)
        case Slide():
            reach = (axis.kernel - 1) * axis.dilation
            first = max(-((reach - axis.left) // axis.stride), 0)
            return max(min((axis.n - 1 + axis.left) // axis.stride, axis.out - 1) - first + 1, 0)
    return int((_counts(axis) > 0).sum())


def most(axis: Axis) -> int:
    """Elements of the largest window."""
    match axis:
        case Keep():
            return 1
        case Run():
            return axis.n
        case Bins():
            return max(_bins(axis))
        case Slide() if len(_inside(axis)):
            return axis.kernel
        case Slide():
            return max(int(counts.max()) for counts in _pieces(axis, range(axis.out)))
    return int(_counts(axis).max())


def order(axis: Axis) -> float:
    """Sum of k log2 k over all windows of k elements."""
    match axis:
        case Keep():
            return 0.0
        case Run():
            return _triangle(axis.n)
        case Bins():
            return math.fsum(number * _log(count) for count, number in _bins(axis).items())
        case Slide():
            inside = _inside(axis)
            edges = [range(inside.start), range(inside.stop, axis.out)] if len(inside) else [range(axis.out)]
            return len(inside) * _log(axis.kernel) + math.fsum(_logs(c) for edge in edges for c in _pieces(axis, edge))
    return _logs(_counts(axis))


def _log(k: int) -> float:
    return k * math.log2(k)


def _logs(counts: np.ndarray) -> float:
    k = np.maximum(counts, 1).astype(np.float64)
    return float((k * np.log2(k)).sum())


def _triangle(n: int) -> float:
    """Sum of k log2 k for k up to n; of many by the series of the logarithm of their hyperfactorial."""
    if n <= BLOCK:
        return _logs(np.arange(1, n + 1))
    return (0.2487544770337843 + (n / 2 * (n + 1) + 1 / 12) * math.log(n) - n / 4 * n) / math.log(2)


def _bins(axis: Bins) -> dict[int, int]:
    """How many bins have how many elements: there are two sizes at most."""
    least, rest = divmod(axis.n, axis.out)
    if rest == 0:
        return {least: axis.out}
    larger = rest - math.gcd(axis.n, axis.out)
    return {least + 1: axis.out - larger} | ({least + 2: larger} if larger else {})


def _inside(axis: Slide) -> range:
    """The windows that hold their whole kernel."""
    first = max(-(-axis.left // axis.stride), 0)
    last = (axis.n - 1 + axis.left - (axis.kernel - 1) * axis.dilation) // axis.stride
    return range(first, max(min(last + 1, axis.out), first))


def _pieces(axis: Slide, numbers: range) -> Iterable[np.ndarray]:
    """Elements of those windows, a part of them at a time."""
    for at in range(numbers.start, numbers.stop, BLOCK):
        start = np.arange(at, min(at + BLOCK, numbers.stop)) * axis.stride - axis.left
        first = np.maximum(-(start // axis.dilation), 0)
        last = np.minimum((axis.n - 1 - start) // axis.dilation, axis.kernel - 1)
        yield np.maximum(last - first + 1, 0)


def _up_to(axis: Slide, place: int) -> int:
    """Pairs of a window and a tap that lie at most so far from the first window's first tap."""
    k, s, d = axis.kernel, axis.stride, axis.dilation
    if place < 0:
        return 0
    begun = min(place // s + 1, axis.out)
    whole = min(max((place - (k - 1) * d) // s + 1, 0), axis.out)
    number = begun - whole
    return whole * k + number + _floors(number, d, s, place - (begun - 1) * s)


def _floors(number: int, divisor: int, step: int, start: int) -> int:
    """Sum of (start + step * i) // divisor for i < number, in as many rounds as Euclid's algorithm takes."""
    result = 0
    while number > 0:
        result += number * (number - 1) // 2 * (step // divisor) + number * (start // divisor)
        step, start = step % divisor, start % divisor
        end = step * number + start
        number, start = divmod(end, divisor)
        divisor, step = step, divisor
    return result


def _counts(axis: Axis) -> np.ndarray:
    """Elements of every window of some other kind of axis."""
    counts: np.ndarray = axis.spans(None).count.numpy()
    return counts
