"""Median pooling: the middle value of each window when its values are put in order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
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
    "AdaptiveMedianPool1d",
    "AdaptiveMedianPool2d",
    "AdaptiveMedianPool3d",
    "GlobalMedianPool",
    "Median",
    "MedianPool1d",
    "MedianPool2d",
    "MedianPool3d",
    "adaptive_median_pool",
    "global_median_pool",
    "median_pool",
]


EVEN = ("lower", "upper", "mean")


@dataclass(frozen=True, eq=False)
class Median(Reducer):
    """The middle one of each window's values in order; NaN wins.

    Args:
        even: in windows with an even number of elements take the "lower" (torch.median's rule) or "upper" of the two in
            the middle, or the "mean" of both.

    >>> Median()
    Median(even='lower')
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
        return Recipe("median", upper=self.even == "upper", both=self.even == "mean")

    def work(self, nd: int) -> Work:
        if self.even == "mean":
            return Work((0, 2), (0, 3), sorts=1, winners=2)
        return Work((0, 0), (0, 1), sorts=1, winners=1)

    def define(self, x: Tensor, folds: Folds) -> tuple[tuple[Tensor, ...], Tensor | None]:
        if x.dtype == torch.bool:
            parts, exists = self.define(x.to(torch.uint8), folds)
            return (parts[0].to(torch.bool),), exists
        if self.even != "mean":
            return (folds.take(x, folds.choose(x, ranked(upper=self.even == "upper"))),), None
        both = [folds.take(wide(x), folds.choose(x, ranked(upper=upper))) for upper in (False, True)]
        return (average(both),), None


class ranked:
    """Chooses the tap in the middle of the order; of equal values the earlier one comes first."""

    def __init__(self, *, upper: bool) -> None:
        self.upper = upper

    def __call__(self, values: Tensor, exists: Tensor) -> Tensor:
        exists = exists.expand(values.shape)
        order = ordered(values)
        # what does not exist goes behind, whatever it holds
        taps = torch.arange(values.shape[-1], device=values.device)
        order = order.gather(-1, ordered(torch.where(exists.gather(-1, order), taps, taps + values.shape[-1])))
        number = exists.sum(-1, keepdim=True)
        rank = (number - 1 + int(self.upper)) // 2
        if values.is_floating_point():  # in order NaN comes last
            rank = torch.where((values.isnan() & exists).any(-1, keepdim=True), number - 1, rank)
        return order.gather(-1, rank.clamp(min=0)).squeeze(-1)


def ordered(values: Tensor) -> Tensor:
    """Tap numbers from the smallest value to the largest, the earlier of equals first."""
    if torch.compiler.is_exporting():  # ONNX has no stable sorting; nor are there gradients, which ask for the order of equals
        return torch.sort(values, dim=-1)[1]
    return torch.sort(values, dim=-1, stable=True)[1]


@handle_overrides
def median_pool(
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
    """Middle one of each window's values in order.

    y = the element of rank ceil(n / 2) among the n elements of the window that lie in the input.

    The gradient goes to that element. The state does not merge, so windows are laid out one by one: memory grows with the
    window, in blocks of bounded size where no graph is traced.

    Args:
        input: (N, C, *spatial), one to three spatial axes, any real type, bool too; (C, *spatial) where `nd` or a
            tuple as `kernel_size` says how many.
        kernel_size: window extent in elements, one int or one per axis.
        stride: step in elements. Default: kernel_size.
        padding: empty elements added on both sides, at most half the dilated kernel; (left, right) pairs, "same" and
            "valid" too. They never count.
        dilation: distance in elements between window elements.
        ceil_mode: keep a last window that starts inside the input but runs over its end.
        even: which of two middle elements: "lower", "upper", or the "mean" of both.
        nd: number of spatial axes, which tells (C, *spatial) from a batch: the functions of `everypool.functional` with
            1d, 2d or 3d in their names have it. Default: with an int as `kernel_size` the input is a batch.
        mask: (N, 1 or C, *spatial), bool, True where an element counts.
        sizes: (N, nd), int: each sample's own extent.

    Returns:
        (N, C, *out), same type as the input.

    Raises:
        ValueError: a size or setting breaks its rule, or the window does not fit.
        TypeError: the input is complex, or not floating point where even='mean'.

    Source: Tukey 1977, running medians. timm's MedianPool2d reflects at the borders; here they never count.

    >>> median_pool(torch.tensor([[[1.0, 9.0, 2.0, 4.0, 3.0, 8.0]]]), 3)
    tensor([[[2., 4.]]])
    """
    windows = (kernel_size, stride, padding, dilation, ceil_mode)
    return call(input, Median, (even,), Sliding, windows, nd=check.axes(nd), mask=mask, sizes=sizes)


@handle_overrides
def adaptive_median_pool(
    input: Any, output_size: Any, *, even: str = "lower", nd: int | None = None, mask: Tensor | None = None, sizes: Any = None
) -> Any:
    """Median of each of a fixed number of bins; see `median_pool` and `Adaptive`.

    >>> adaptive_median_pool(torch.tensor([[[1.0, 9.0, 2.0]]]), 1)
    tensor([[[2.]]])
    """
    return call(input, Median, (even,), Adaptive, (output_size,), nd=check.axes(nd), mask=mask, sizes=sizes)


@handle_overrides
def global_median_pool(
    input: Any, *, even: str = "lower", keepdim: bool = False, mask: Tensor | None = None, sizes: Any = None
) -> Tensor:
    """Median of the whole map; see `median_pool`.

    >>> global_median_pool(torch.tensor([[[1.0, 9.0, 2.0, 4.0]]]), even="mean")
    tensor([[3.]])
    """
    return call(input, Median, (even,), Global, (keepdim,), mask=mask, sizes=sizes)


class _Median(Layer):
    def settle(self, *, even: str = "lower") -> None:
        self.even = check.choice("even", even, EVEN)

    def reduced(self) -> Made:
        return Median, (self.even,)

    def settings(self) -> str:
        return f"even={self.even!r}"


class MedianPool1d(_Median, SlidingLayer):
    """Median of each window over (N, C, W) or (C, W); see `median_pool`."""

    nd = 1


class MedianPool2d(_Median, SlidingLayer):
    """Median of each window over (N, C, H, W) or (C, H, W); see `median_pool`."""

    nd = 2


class MedianPool3d(_Median, SlidingLayer):
    """Median of each window over (N, C, D, H, W) or (C, D, H, W); see `median_pool`."""

    nd = 3


class AdaptiveMedianPool1d(_Median, AdaptiveLayer):
    """Median of each of a fixed number of bins over (N, C, W) or (C, W); see `adaptive_median_pool`."""

    nd = 1


class AdaptiveMedianPool2d(_Median, AdaptiveLayer):
    """Median of each of a fixed number of bins over (N, C, H, W) or (C, H, W); see `adaptive_median_pool`."""

    nd = 2


class AdaptiveMedianPool3d(_Median, AdaptiveLayer):
    """Median of each of a fixed number of bins over (N, C, D, H, W) or (C, D, H, W); see `adaptive_median_pool`."""

    nd = 3


class GlobalMedianPool(_Median, GlobalLayer):
    """Median of the whole map, (N, C, *spatial) to (N, C); see `global_median_pool`."""


def reference(values: Any, exists: Any, even: str = "lower") -> float:
    """One window by definition: values and which exist, float64 arrays of the window's shape."""
    ordered = np.sort(values[exists])
    if np.isnan(ordered).any():
        return float("nan")
    lower, upper = ordered[(len(ordered) - 1) // 2], ordered[len(ordered) // 2]
    return float({"lower": lower, "upper": upper, "mean": (lower + upper) / 2}[even])


register(
    Operation(
        name="median",
        kind="reducer",
        summary="The middle one of each window's values in order.",
        formula="y = median(x)",
        source="Tukey 1977, running medians",
        names=tuple(name for name in __all__ if name != "Median"),
        dtypes="any",
        reducer=Median,
        variants=({}, {"even": "upper"}, {"even": "mean"}),
        reference=reference,
        stem="Median",
    )
)
