"""Log-sum-exp pooling: a smooth maximum of each window."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from everypool import _check as check
from everypool._overrides import handle_overrides
from everypool.backends.context import can_read_values
from everypool.backends.eager import Folds, wide
from everypool.backends.recipe import Recipe
from everypool.backends.work import Work
from everypool.layer import Made
from everypool.module import describe_setting
from everypool.pool import Operation, Reducer, call, register
from everypool.reducers._layer import (
    AdaptiveLayer,
    GlobalLayer,
    Layer,
    SlidingLayer,
    any_of,
    checked_setting,
    parameter,
    per_channel,
    scaled,
)
from everypool.windows import Adaptive, Global, Sliding

__all__ = [
    "AdaptiveLogSumExpPool1d",
    "AdaptiveLogSumExpPool2d",
    "AdaptiveLogSumExpPool3d",
    "GlobalLogSumExpPool",
    "LogSumExp",
    "LogSumExpPool1d",
    "LogSumExpPool2d",
    "LogSumExpPool3d",
    "adaptive_logsumexp_pool",
    "global_logsumexp_pool",
    "logsumexp_pool",
]


NORMS = ("mean", "sum")


@dataclass(frozen=True, eq=False)
class LogSumExp(Reducer):
    """log(mean(exp(r x))) / r over each window; r -> 0 is the mean, r -> inf the maximum, r -> -inf the minimum.

    Args:
        r: sharpness; a finite number, or a tensor of 1 or C elements that may be learned.
        norm: "mean", or "sum" for log(sum(exp(r x))) / r, which needs r other than 0.

    >>> LogSumExp(r=10.0)
    LogSumExp(r=10.0, norm='mean')
    """

    r: Any = 1.0
    norm: str = "mean"

    def check(self, input: Tensor) -> None:
        super().check(input)
        checked_setting("r", self.r, infinite=False)
        check.choice("norm", self.norm, NORMS)
        if self.norm == "sum" and any_of(self.r, lambda r: r == 0):
            raise check.invalid("r", "other than 0 with norm='sum'", self.r)

    def recipe(self) -> Recipe | str:
        return Recipe("logsumexp", self.r, sum=self.norm == "sum")

    def work(self, nd: int) -> Work:
        number = None if isinstance(self.r, Tensor) else self.r
        if number == 0:
            return Work((1, 0), (1, 1))
        times, divides = int(number != 1), int(self.norm == "mean")
        # an exponential and a sum, then a logarithm; backward g / K * exp(r (x - y))
        return Work((2 + times, divides + times), (4 + times, divides), input=True, output=True)

    def define(self, x: Tensor, folds: Folds) -> tuple[tuple[Tensor, ...], Tensor | None]:
        kind, x = x.dtype, wide(x)
        r = per_channel("r", self.r, x)
        if not isinstance(r, Tensor):
            if abs(r) < torch.finfo(torch.float64).tiny:  # a denormal r has no digits left
                return (folds.mean(x, folds.number(x.dtype).clamp(min=1), wider=x.dtype != kind),), None
            return (self._smooth(x, r, folds),), None
        if self.norm == "sum" or not near_zero(r):
            return (self._smooth(x, r, folds),), None
        flat, start = series(x, r, folds)
        return (torch.where(flat, start, self._smooth(x, divisible(r), folds)),), None

    def _smooth(self, x: Tensor, r: Any, folds: Folds) -> Tensor:
        level = folds.log_mean_exp(scaled(r, x))
        if self.norm == "sum":
            level = level + folds.number(x.dtype).clamp(min=1).log()
        exists = folds.exists()
        return (level if exists is None else level.masked_fill(~exists, 0)) / r  # -inf / r would give r a slope of NaN


def near_zero(r: Tensor) -> bool:
    """Whether some r may be so small that `series` is needed; True where its values cannot be looked at."""
    return not can_read_values(r) or r.device.type != "cpu" or bool((r.detach().abs() < 1e-2).any())


def divisible(r: Tensor) -> Tensor:
    """r, or 1 where 1 / r^2 would overflow: there `series` holds whatever x is."""
    return torch.where(r.detach().abs() < torch.finfo(r.dtype).tiny ** (1 / 3), torch.ones_like(r), r)


def series(x: Tensor, r: Tensor, folds: Folds) -> tuple[Tensor, Tensor]:
    """The first two terms of log(mean(exp(r x))) / r for small r x, and where to take them.

    The quotient itself is 0 / 0 at r = 0, and its slope by r cancels nearby. x must be zero where masked.
    """
    info = torch.finfo(x.dtype)
    number = folds.number(x.dtype).clamp(min=1)
    small = r.detach().abs()
    flat = (small * folds.maximum(x.detach().abs()) < info.eps**0.5) | (small < info.tiny ** (1 / 3))
    # this is computed in all windows, wanted or not: a square that overflows would make all their slopes NaN
    part = torch.where(x.detach().abs() < info.max**0.4, x, torch.zeros_like(x))
    mean = folds.total(part) / number
    variance = (folds.total(part * part) / number - mean * mean).clamp(min=0)
    return flat, folds.mean(x, number) + r / 2 * variance


@handle_overrides
def logsumexp_pool(
    input: Any,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    *,
    r: Any = 1.0,
    norm: str = "mean",
    nd: int | None = None,
    mask: Tensor | None = None,
    sizes: Any = None,
) -> Any:
    """Smooth maximum of each window.

    y = log(mean(exp(r * x))) / r, over the elements of the window that lie in the input.

    Args:
        input: (N, C, *spatial), one to three spatial axes, floating point; (C, *spatial) where `nd` or a
            tuple as `kernel_size` says how many.
        kernel_size: window extent in elements, one int or one per axis.
        stride: step in elements. Default: kernel_size.
        padding: empty elements added on both sides, at most half the dilated kernel; (left, right) pairs, "same" and
            "valid" too. They never count.
        dilation: distance in elements between window elements.
        ceil_mode: keep a last window that starts inside the input but runs over its end.
        r: sharpness, a number or a tensor of 1 or C elements.
        norm: "mean" or "sum" of the exponentials.
        nd: number of spatial axes, which tells (C, *spatial) from a batch: the functions of `everypool.functional` with
            1d, 2d or 3d in their names have it. Default: with an int as `kernel_size` the input is a batch.
        mask: (N, 1 or C, *spatial), bool, True where an element counts.
        sizes: (N, nd), int: each sample's own extent.

    Returns:
        (N, C, *out), same type as the input; accumulated in a wider one.

    Raises:
        ValueError: a size or setting breaks its rule, or the window does not fit.
        TypeError: the input is not floating point.

    Source: Pinheiro and Collobert 2015; Sun et al. 2016. Reference: timm's LSE pooling, away from r = 0 and r < 0.

    >>> logsumexp_pool(torch.tensor([[[0.0, 0.0, 1.0, 3.0]]]), 2)
    tensor([[[0.0000, 2.4338]]])
    """
    windows = (kernel_size, stride, padding, dilation, ceil_mode)
    return call(input, LogSumExp, (r, norm), Sliding, windows, nd=check.axes(nd), mask=mask, sizes=sizes)


@handle_overrides
def adaptive_logsumexp_pool(
    input: Any,
    output_size: Any,
    *,
    r: Any = 1.0,
    norm: str = "mean",
    nd: int | None = None,
    mask: Tensor | None = None,
    sizes: Any = None,
) -> Any:
    """Smooth maximum of each of a fixed number of bins; see `logsumexp_pool` and `Adaptive`.

    >>> adaptive_logsumexp_pool(torch.tensor([[[1.0, 3.0]]]), 1)
    tensor([[[2.4338]]])
    """
    return call(input, LogSumExp, (r, norm), Adaptive, (output_size,), nd=check.axes(nd), mask=mask, sizes=sizes)


@handle_overrides
def global_logsumexp_pool(
    input: Any, *, r: Any = 1.0, norm: str = "mean", keepdim: bool = False, mask: Tensor | None = None, sizes: Any = None
) -> Tensor:
    """Smooth maximum of the whole map; see `logsumexp_pool`.

    >>> global_logsumexp_pool(torch.tensor([[[1.0, 3.0]]]))
    tensor([[2.4338]])
    """
    return call(input, LogSumExp, (r, norm), Global, (keepdim,), mask=mask, sizes=sizes)


class _LogSumExp(Layer):
    r: Any

    def settle(self, *, r: Any = 1.0, norm: str = "mean", learnable: bool = False, channels: int | None = None) -> None:
        checked_setting("r", r, infinite=False)
        parameter(self, "r", r, learnable, channels)
        self.norm = check.choice("norm", norm, NORMS)

    def reduced(self) -> Made:
        return LogSumExp, (self.r, self.norm)

    def settings(self) -> str:
        return f"r={describe_setting(self.r)}, norm={self.norm!r}"


class LogSumExpPool1d(_LogSumExp, SlidingLayer):
    """Smooth maximum of each window over (N, C, W) or (C, W); see `logsumexp_pool`."""

    nd = 1


class LogSumExpPool2d(_LogSumExp, SlidingLayer):
    """Smooth maximum of each window over (N, C, H, W) or (C, H, W); see `logsumexp_pool`."""

    nd = 2


class LogSumExpPool3d(_LogSumExp, SlidingLayer):
    """Smooth maximum of each window over (N, C, D, H, W) or (C, D, H, W); see `logsumexp_pool`."""

    nd = 3


class AdaptiveLogSumExpPool1d(_LogSumExp, AdaptiveLayer):
    """Smooth maximum of each of a fixed number of bins over (N, C, W) or (C, W); see `adaptive_logsumexp_pool`."""

    nd = 1


class AdaptiveLogSumExpPool2d(_LogSumExp, AdaptiveLayer):
    """Smooth maximum of each of a fixed number of bins over (N, C, H, W) or (C, H, W); see `adaptive_logsumexp_pool`."""

    nd = 2


class AdaptiveLogSumExpPool3d(_LogSumExp, AdaptiveLayer):
    """Smooth maximum of each of a fixed number of bins over (N, C, D, H, W) or (C, D, H, W); see `adaptive_logsumexp_pool`."""

    nd = 3


class GlobalLogSumExpPool(_LogSumExp, GlobalLayer):
    """Smooth maximum of the whole map, (N, C, *spatial) to (N, C); see `global_logsumexp_pool`."""


def reference(values: Any, exists: Any, r: float = 1.0, norm: str = "mean") -> float:
    """One window by definition: values and which exist, float64 arrays of the window's shape."""
    x = values[exists]
    if r == 0:
        return float(np.mean(x))
    top = np.max(r * x)
    scale = np.log(len(x)) if norm == "sum" else 0.0
    return float((top + np.log1p(np.mean(np.expm1(r * x - top))) + scale) / r)


register(
    Operation(
        name="logsumexp",
        kind="reducer",
        summary="A smooth maximum of each window.",
        formula="y = log(mean(exp(r x))) / r",
        source="Pinheiro and Collobert 2015",
        names=tuple(name for name in __all__ if name != "LogSumExp"),
        parameters="r (none, 1 or C)",
        reducer=LogSumExp,
        variants=({}, {"r": 10.0}, {"r": -2.0}, {"r": 0.5, "norm": "sum"}, {"r": 0.0}),
        reference=reference,
        stem="LogSumExp",
        aliases=("lse",),
    )
)
