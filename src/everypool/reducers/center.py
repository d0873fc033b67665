"""Center pooling: the value in the middle of each window (CenterNet's operation of that name is `cross_max_pool`)."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from everypool import _check as check
from everypool._overrides import handle_overrides
from everypool.backends.eager import Folds, wide
from everypool.backends.recipe import Recipe
from everypool.backends.work import Work
from everypool.layer import Made
from everypool.pool import Operation, Reducer, call, register
from everypool.reducers._layer import AdaptiveLayer, GlobalLayer, Layer, SlidingLayer, average
from everypool.windows import Adaptive, Global, Sliding

__all__ = [
    "AdaptiveCenterPool1d",
    "AdaptiveCenterPool2d",
    "AdaptiveCenterPool3d",
    "Center",
    "CenterPool1d",
    "CenterPool2d",
    "CenterPool3d",
    "GlobalCenterPool",
    "adaptive_center_pool",
    "center_pool",
    "global_center_pool",
]


EVEN = ("lower", "upper", "mean")


@dataclass(frozen=True, eq=False)
class Center(Reducer):
    """The value in the middle of each window; a middle that falls into padding takes the nearest element of the input.

    Args:
        even: along axes with an even number of elements take the "lower" (earlier) or "upper" of the two middle
            elements, or the "mean" of both.

    >>> Center()
    Center(even='lower')
    """

    even: str = "lower"

    any_dtype: ClassVar[bool] = True
    selects: ClassVar[bool] = True

    def check(self, input: Tensor) -> None:
        super().check(input)
        check.choice("even", self.even, EVEN)
        if self.even == "mean" and not input.is_floating_point():
            raise check.wrong_type("input", "floating point where even='mean'", check.Shown(str(input.dtype)))

    def recipe(self) -> Recipe | str:
        return Recipe("centre", upper=self.even == "upper", both=self.even == "mean")

    def work(self, nd: int) -> Work:
        if self.even == "mean":
            return Work((0, 2**nd), (0, 2**nd + 1), picked=2**nd)
        return Work((0, 0), (0, 1), picked=1)

    def define(self, x: Tensor, folds: Folds) -> tuple[tuple[Tensor, ...], Tensor | None]:
        sides = {"lower": (False,), "upper": (True,), "mean": (False, True)}[self.even]
        corners = list(itertools.product(sides, repeat=folds.nd))
        exists = folds.exists()
        if folds.mask is not None and exists is not None:
            for corner in corners:
                exists = exists & folds.centre(folds.mask, upper=corner)
        if len(corners) == 1:
            return (folds.centre(x, upper=corners[0]),), exists
        parts = [folds.centre(wide(x), upper=corner) for corner in corners]
        return (average(parts),), exists


@handle_overrides
def center_pool(
    input: Any,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    *,
    even: str = "lower",
    nd: int | None = None,
    mask: Tensor | None = None,
    sizes: Any = None,
) -> Any:
    """Value in the middle of each window; for CenterNet's center pooling see `cross_max_pool`.

    y[i] = x[i * stride - padding + dilation * ((kernel_size - 1) // 2)], clipped to the input.

    Args:
        input: (N, C, *spatial), one to three spatial axes, any real type, bool too; (C, *spatial) where `nd` or a
            tuple as `kernel_size` says how many.
        kernel_size: window extent in elements, one int or one per axis.
        stride: step in elements. Default: kernel_size.
        padding: empty elements added on both sides, at most half the dilated kernel; (left, right) pairs, "same" and
            "valid" too. A middle in the padding takes the nearest element.
        dilation: distance in elements between window elements.
        ceil_mode: keep a last window that starts inside the input but runs over its end.
        even: which of two middle elements: "lower", "upper", or the "mean" of both.
        nd: number of spatial axes, which tells (C, *spatial) from a batch: the functions of `everypool.functional` with
            1d, 2d or 3d in their names have it. Default: with an int as `kernel_size` the input is a batch.
        mask: (N, 1 or C, *spatial), bool, True where an element counts.
        sizes: (N, nd), int: each sample's own extent.

    Returns:
        (N, C, *out), same type as the input; accumulated in a wider one.

    Raises:
        ValueError: a size or setting breaks its rule, or the window does not fit.
        TypeError: the input is complex, or not floating point where even='mean'.

    Source: the plain reading of the name; subsampling without a filter.

    >>> center_pool(torch.arange(9.0).reshape(1, 1, 3, 3), 3)
    tensor([[[[4.]]]])
    """
    windows = (kernel_size, stride, padding, dilation, ceil_mode)
    return call(input, Center, (even,), Sliding, windows, nd=check.axes(nd), mask=mask, sizes=sizes)


@handle_overrides
def adaptive_center_pool(
    input: Any, output_size: Any, *, even: str = "lower", nd: int | None = None, mask: Tensor | None = None, sizes: Any = None
) -> Any:
    """Value in the middle of each of a fixed number of bins; see `center_pool` and `Adaptive`.

    >>> adaptive_center_pool(torch.tensor([[[1.0, 2.0, 3.0]]]), 1)
    tensor([[[2.]]])
    """
    return call(input, Center, (even,), Adaptive, (output_size,), nd=check.axes(nd), mask=mask, sizes=sizes)


@handle_overrides
def global_center_pool(
    input: Any, *, even: str = "lower", keepdim: bool = False, mask: Tensor | None = None, sizes: Any = None
) -> Tensor:
    """Value in the middle of the whole map; see `center_pool`.

    >>> global_center_pool(torch.tensor([[[1.0, 2.0, 3.0]]]))
    tensor([[2.]])
    """
    return call(input, Center, (even,), Global, (keepdim,), mask=mask, sizes=sizes)


class _Center(Layer):
    def settle(self, *, even: str = "lower") -> None:
        self.even = check.choice("even", even, EVEN)

    def reduced(self) -> Made:
        return Center, (self.even,)

    def settings(self) -> str:
        return f"even={self.even!r}"


class CenterPool1d(_Center, SlidingLayer):
    """Middle value of each window over (N, C, W) or (C, W); see `center_pool`."""

    nd = 1


class CenterPool2d(_Center, SlidingLayer):
    """Middle value of each window over (N, C, H, W) or (C, H, W); see `center_pool`."""

    nd = 2


class CenterPool3d(_Center, SlidingLayer):
    """Middle value of each window over (N, C, D, H, W) or (C, D, H, W); see `center_pool`."""

    nd = 3


class AdaptiveCenterPool1d(_Center, AdaptiveLayer):
    """Middle value of each of a fixed number of bins over (N, C, W) or (C, W); see `adaptive_center_pool`."""

    nd = 1


class AdaptiveCenterPool2d(_Center, AdaptiveLayer):
    """Middle value of each of a fixed number of bins over (N, C, H, W) or (C, H, W); see `adaptive_center_pool`."""

    nd = 2


class AdaptiveCenterPool3d(_Center, AdaptiveLayer):
    """Middle value of each of a fixed number of bins over (N, C, D, H, W) or (C, D, H, W); see `adaptive_center_pool`."""

    nd = 3


class GlobalCenterPool(_Center, GlobalLayer):
    """Middle value of the whole map, (N, C, *spatial) to (N, C); see `global_center_pool`."""


def reference(values: Any, exists: Any, even: str = "lower") -> float:
    """One window by definition: values and which exist, float64 arrays of the window's shape."""
    there = np.argwhere(exists)
    found = []
    for upper in {"lower": (0,), "upper": (1,), "mean": (0, 1)}[even]:
        found.append([(n - 1 + upper) // 2 for n in exists.shape])
    cells = itertools.product(*zip(*found, strict=True))
    low, high = there.min(0), there.max(0)
    # the axes are independent: clip each coordinate of the middle to what lies in the input
    return float(np.mean([values[tuple(np.clip(cell, low, high))] for cell in cells]))


register(
    Operation(
        name="center",
        kind="reducer",
        summary="The value in the middle of each window.",
        formula="y = x[middle]",
        source="plain subsampling; the paper CenterNet means cross_max_pool",
        names=tuple(name for name in __all__ if name != "Center"),
        dtypes="any",
        reducer=Center,
        variants=({}, {"even": "upper"}, {"even": "mean"}),
        reference=reference,
        stem="Center",
        aliases=("centre",),
    )
)
