"""Pooling by brute force: every window is a list of positions found by counting, every value a Python loop in float64.

Nothing here is taken from the package but what a record says of its own operation, `reference(values, exists, ...)` for
one window. A layout is one list per axis; each holds one list of positions per window, in order, and positions outside
the map stand for padding.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Axis = list[list[int]]
Layout = list[Axis]


def slide(n: int, kernel: int, stride: int | None = None, padding: Any = 0, dilation: int = 1, ceil_mode: bool = False) -> Axis:
    """Sliding windows over n elements; `padding` is an int, a (left, right) pair, "same" or "valid"."""
    stride = kernel if stride is None else stride
    if padding == "same":
        starts = list(range(0, n, stride))
        missing = max(starts[-1] + dilation * (kernel - 1) - (n - 1), 0)
        left = missing // 2
        return [[start - left + dilation * tap for tap in range(kernel)] for start in starts]
    left, right = (0, 0) if padding == "valid" else padding if isinstance(padding, tuple) else (padding, padding)
    last_cell = n - 1 + right
    windows: Axis = []
    start = -left
    while True:
        window = [start + dilation * tap for tap in range(kernel)]
        if window[-1] > last_cell:
            reached = bool(windows) and windows[-1][-1] >= last_cell  # the window before already meets the end
            if not ceil_mode or reached or start >= n:
                return windows
        windows.append(window)
        start += stride


def adaptive(n: int, out: int) -> Axis:
    """Bins that share the map evenly: an element belongs to every bin that it overlaps."""
    return [[j for j in range(n) if (j + 1) * out > i * n and j * out < (i + 1) * n] for i in range(out)]


def keep(n: int) -> Axis:
    return [[j] for j in range(n)]


def whole(n: int) -> Axis:
    return [list(range(n))]


def running(n: int, reverse: bool = False) -> Axis:
    """Everything met so far, in the order in which it is met."""
    return [list(range(n - 1, i - 1, -1)) if reverse else list(range(i + 1)) for i in range(n)]


def grid(n: int, level: int, bins: str) -> Axis:
    """A pyramid's bins along one axis."""
    if bins == "adaptive":
        return adaptive(n, level)
    size = -(-n // level)
    if bins == "sppnet":
        return slide(n, size, n // level)
    left = (size * level - n + 1) // 2
    return [[size * i - left + tap for tap in range(size)] for i in range(level)]


def strips(spatial: Sequence[int]) -> list[Layout]:
    """One layout per axis, the last axis first."""
    return [
        [whole(n) if axis == along else keep(n) for axis, n in enumerate(spatial)] for along in reversed(range(len(spatial)))
    ]


def window(plane: np.ndarray, mask: np.ndarray, cell: Sequence[list[int]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(values, inside the map, counted by the mask) of one window; values outside are NaN."""
    inside = np.ones([len(taps) for taps in cell], dtype=bool)
    for axis, (taps, n) in enumerate(zip(cell, plane.shape, strict=True)):
        there = np.array([0 <= j < n for j in taps])
        inside &= there.reshape([-1 if a == axis else 1 for a in range(len(cell))])
    index = np.ix_(*[np.clip(np.array(taps, dtype=int), 0, n - 1) for taps, n in zip(cell, plane.shape, strict=True)])
    values = np.where(inside, plane[index], np.nan)
    return values, inside, inside & mask[index]


def fold(
    x: np.ndarray,
    layout: Layout,
    reference: Callable[..., float],
    settings: dict[str, Any],
    mask: np.ndarray | None = None,
    *,
    by_place: bool = False,
    own_place: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """(values, which exist), each (N, C, *out); 0 where a window has no valid element.

    With `by_place` the reducer picks elements by where they are, not by what they hold: what the mask excludes keeps its
    place, and the window exists if all that is picked counts. With `own_place` a window exists only where the element of
    its own number does.
    """
    out = [len(axis) for axis in layout]
    y = np.zeros((*x.shape[:2], *out))
    exists = np.zeros(y.shape, dtype=bool)
    with np.errstate(all="ignore"):
        for row, channel in itertools.product(range(x.shape[0]), range(x.shape[1])):
            plane = x[row, channel]
            counts = np.ones(plane.shape, dtype=bool) if mask is None else mask[row, channel % mask.shape[1]]
            for place in itertools.product(*map(range, out)):
                values, inside, valid = window(plane, counts, [axis[i] for axis, i in zip(layout, place, strict=True)])
                if not valid.any() or (own_place and not counts[place]):
                    continue
                if by_place:
                    if reference(np.where(inside, valid, np.nan).astype(float), inside, **settings) != 1:
                        continue
                    valid = inside
                y[row, channel][place] = reference(values, valid, **settings)
                exists[row, channel][place] = True
    return y, exists
