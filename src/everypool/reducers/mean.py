"""Average pooling: the mean of each window."""

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
from everypool.reducers._layer import AdaptiveLayer, GlobalLayer, Layer, SlidingLayer
from everypool.windows import Adaptive, Global, Sliding

__all__ = [
    "AdaptiveAvgPool1d",
    "AdaptiveAvgPool2d",
    "AdaptiveAvgPool3d",
    "AvgPool1d",
    "AvgPool2d",
    "AvgPool3d",
    "GlobalAvgPool",
    "Mean",
    "adaptive_avg_pool",
    "avg_pool",
    "global_avg_pool",
]


@dataclass(frozen=True, eq=False)
class Mean(Reducer):
    """The mean of each window; of integers it is cut off towards zero, as torch.nn does.

    Args:
        count_include_pad: divide by the window's cells including explicit padding, not by its valid elements.
        divisor: divide by this instead.

    >>> Mean(divisor=2)
    Mean(count_include_pad=False, divisor=2)
    """

    count_include_pad: bool = False
    divisor: int | None = None

    any_dtype: ClassVar[bool] = True

    def check(self, input: Tensor) -> None:
        super().check(input)
        if input.dtype == torch.bool:
            raise check.wrong_type("input", "floating point or integer", check.Shown(str(input.dtype)))
        check.boolean("count_include_pad", self.count_include_pad)
        if self.divisor is None:
            return
        if not check.is_int(self.divisor):
            raise check.wrong_type("divisor_override", "None or an int other than zero", self.divisor)
        if self.divisor == 0 or abs(self.divisor) > check.LARGEST:
            raise check.invalid("divisor_override", "None or an int other than zero, at most 2**40", self.divisor)

    def recipe(self) -> Recipe | str:
        return Recipe("mean", divisor=self.divisor, cells=self.count_include_pad)

    def work(self, nd: int) -> Work:
        return Work((1, 0), (1, 1))

    def define(self, x: Tensor, folds: Folds) -> tuple[tuple[Tensor, ...], Tensor | None]:
        exact = x.is_floating_point()
        values = wide(x) if exact else x.to(torch.int64)
        number: Any = self.divisor
        if number is None:
            number = folds.padded_number(values.dtype) if self.count_include_pad else folds.number(values.dtype)
            number = number.clamp(min=1)
        if exact:
            return (folds.mean(values, number, wider=values.dtype != x.dtype),), None
        return (torch.div(folds.total(values), number, rounding_mode="trunc"),), None


@handle_overrides
def avg_pool(
    input: Any,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
    *,
    dilation: Any = 1,
    nd: int | None = None,
    mask: Tensor | None = None,
    sizes: Any = None,
) -> Any:
    """Mean of each window.

    y = sum(x) / n, n being the window's cells that lie in the padded input.

    Args:
        input: (N, C, *spatial), one to three spatial axes, floating point or integer; (C, *spatial) where `nd` or a
            tuple as `kernel_size` says how many.
        kernel_size: window extent in elements, one int or one per axis.
        stride: step in elements. Default: kernel_size.
        padding: empty elements added on both sides, at most half the dilated kernel; (left, right) pairs, "same" and
            "valid" too. Counted as zeros by default, as torch.nn does.
        dilation: distance in elements between window elements.
        ceil_mode: keep a last window that starts inside the input but runs over its end.
        count_include_pad: count explicit padding in n; if False, n is the number of valid elements.
        divisor_override: use this as n.
        nd: number of spatial axes, which tells (C, *spatial) from a batch: the functions of `everypool.functional` with
            1d, 2d or 3d in their names have it. Default: with an int as `kernel_size` the input is a batch.
        mask: (N, 1 or C, *spatial), bool, True where an element counts.
        sizes: (N, nd), int: each sample's own extent.

    Returns:
        (N, C, *out), same type as the input; accumulated in a wider one.

    Raises:
        ValueError: a size or setting breaks its rule, or the window does not fit.
        TypeError: the input is bool or complex.

    Source: LeCun et al. 1998. Reference: torch.nn.functional.avg_pool2d.

    >>> avg_pool(torch.tensor([[[0.0, 1.0, 2.0, 5.0]]]), 2)
    tensor([[[0.5000, 3.5000]]])
    """
    windows = (kernel_size, stride, padding, dilation, ceil_mode)
    return call(input, Mean, (count_include_pad, divisor_override), Sliding, windows, nd=check.axes(nd), mask=mask, sizes=sizes)


@handle_overrides
def adaptive_avg_pool(
    input: Any, output_size: Any, *, nd: int | None = None, mask: Tensor | None = None, sizes: Any = None
) -> Any:
    """Mean of each of a fixed number of bins; see `avg_pool` and `Adaptive`.

    >>> adaptive_avg_pool(torch.tensor([[[0.0, 1.0, 2.0]]]), 2)
    tensor([[[0.5000, 1.5000]]])
    """
    return call(input, Mean, (), Adaptive, (output_size,), nd=check.axes(nd), mask=mask, sizes=sizes)


@handle_overrides
def global_avg_pool(input: Any, *, keepdim: bool = False, mask: Tensor | None = None, sizes: Any = None) -> Tensor:
    """Mean of the whole map; see `avg_pool`.

    >>> global_avg_pool(torch.tensor([[[0.0, 1.0, 2.0]]]))
    tensor([[1.]])
    """
    return call(input, Mean, (), Global, (keepdim,), mask=mask, sizes=sizes)


class _Avg(Layer):
    def settle(self) -> None:
        """The mean has no settings of its own."""

    def reduced(self) -> Made:
        return Mean, ()


class _AvgPool(_Avg, SlidingLayer):
    def __init__(
        self,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
        *,
        dilation: Any = 1,
    ) -> None:
        super().__init__(kernel_size, stride, padding, dilation, ceil_mode)
        self.count_include_pad = check.boolean("count_include_pad", count_include_pad)
        self.divisor_override = check.plain(divisor_override)

    def reduced(self) -> Made:
        return Mean, (self.count_include_pad, self.divisor_override)

    def settings(self) -> str:
        return f"count_include_pad={self.count_include_pad}, divisor_override={self.divisor_override}"


class AvgPool1d(_AvgPool):
    """Mean of each window over (N, C, W) or (C, W); see `avg_pool`."""

    nd = 1


class AvgPool2d(_AvgPool):
    """Mean of each window over (N, C, H, W) or (C, H, W); see `avg_pool`."""

    nd = 2


class AvgPool3d(_AvgPool):
    """Mean of each window over (N, C, D, H, W) or (C, D, H, W); see `avg_pool`."""

    nd = 3


class AdaptiveAvgPool1d(_Avg, AdaptiveLayer):
    """Mean of each of a fixed number of bins over (N, C, W) or (C, W); see `adaptive_avg_pool`."""

    nd = 1


class AdaptiveAvgPool2d(_Avg, AdaptiveLayer):
    """Mean of each of a fixed number of bins over (N, C, H, W) or (C, H, W); see `adaptive_avg_pool`."""

    nd = 2


class AdaptiveAvgPool3d(_Avg, AdaptiveLayer):
    """Mean of each of a fixed number of bins over (N, C, D, H, W) or (C, D, H, W); see `adaptive_avg_pool`."""

    nd = 3


class GlobalAvgPool(_Avg, GlobalLayer):
    """Mean of the whole map, (N, C, *spatial) to (N, C); see `global_avg_pool`."""


def reference(values: Any, exists: Any) -> float:
    """One window by definition: values and which exist, float64 arrays of the window's shape."""
    return float(np.mean(values[exists]))


register(
    Operation(
        name="avg",
        kind="reducer",
        summary="The mean of each window.",
        formula="y = sum(x) / n",
        source="LeCun et al. 1998; Lin et al. 2013 for the global form",
        names=tuple(name for name in __all__ if name != "Mean"),
        dtypes="any but bool",
        reducer=Mean,
        reference=reference,
        stem="Avg",
        aliases=("mean", "average"),
    )
)
