"""Where labels stand in a figure, and which numbers on an axis."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeAlias

from matplotlib.ticker import MaxNLocator

__all__ = ["Box", "overlap", "placed", "ticks"]

Box: TypeAlias = tuple[float, float, float, float]  # left, bottom, right, top


def ticks(low: float, high: float) -> list[float]:
    """Round numbers on a logarithmic axis: some three to six.

    >>> ticks(3, 600), ticks(110, 190)
    ([10.0, 100.0], [120.0, 140.0, 160.0, 180.0])
    """
    if high / low < 8:
        return [float(v) for v in MaxNLocator(5).tick_values(low, high) if low <= v <= high]
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = (1, 2, 5) if high / low < 100 else (1,)
    return [float(f"{step}e{power}") for power in powers for step in steps if low <= step * 10.0**power <= high]


def placed(
    points: Sequence[tuple[float, float]], sizes: Sequence[tuple[float, float]], box: Box, others: Sequence[Box] = ()
) -> list[tuple[float, float]]:
    """Lower left corners of labels beside their points such that they cover each other and the points as little as can be.

    Args:
        points: x and y.
        sizes: width and height of the labels.
        box: what they should stay in.
        others: what they should not cover either.

    >>> placed([(50, 50)], [(20, 10)], (0, 0, 100, 100))
    [(58, 45.0)]
    """
    taken = [*((x - 5, y - 5, x + 5, y + 5) for x, y in points), *others]
    corners = []
    for (x, y), (width, height) in zip(points, sizes, strict=True):
        sides = [(x + 8, y - height / 2), (x - width - 8, y - height / 2)]
        for far in (6, 6 + height, 6 + 2 * height):
            for left in (x - width / 2, x + 3, x - width - 3):
                sides += [(left, y + far), (left, y - height - far)]
        covered = [sum(overlap((a, b, a + width, b + height), other) for other in taken) for a, b in sides]
        outside = [width * height - overlap((a, b, a + width, b + height), box) for a, b in sides]
        best = min(range(len(sides)), key=lambda i: covered[i] + 3 * outside[i] + 2 * i)
        a, b = sides[best]
        corners.append((a, b))
        taken.append((a, b, a + width, b + height))
    return corners


def overlap(one: Box, other: Box) -> float:
    """The area that two boxes share."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return width * height if width > 0 and height > 0 else 0.0
