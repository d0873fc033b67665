"""SoftPool: the mean of each window, weighted by the exponentials of its values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from everypool import _check as check
from everypool._overrides import handle_overrides
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
    checked_setting,
    parameter,
    per_channel,
    scaled,
)
from everypool.windows import Adaptive, Global, Sliding

__all__ = [
    "AdaptiveSoftPool1d",
    "AdaptiveSoftPool2d",
    "AdaptiveSoftPool3d",
    "GlobalSoftPool",
    "Soft",
    "SoftPool1d",
    "SoftPool2d",
    "SoftPool3d",
    "adaptive_soft_pool",
    "global_soft_pool",
    "soft_pool",
]


@dataclass(frozen=True, eq=False)
class Soft(Reducer):
    """The softmax-weighted mean of each window; beta = 0 is the mean, beta -> inf the maximum.

    Args:
        beta: sharpness; a finite number, or a tensor of 1 or C elements that may be learned.
        grad: "exact", or "authors" for the published kernel's gradient, which treats the weights as constants.

    >>> Soft(beta=2.0)
    Soft(beta=2.0, grad='exact')
    """

    beta: Any = 1.0
    grad: str = "exact"

    def check(self, input: Tensor) -> None:
        super().check(input)
        checked_setting("beta", self.beta, infinite=False)
        check.choice("grad", self.grad, ("exact", "authors"))

    def recipe(self) -> Recipe | str:
        return Recipe("soft", self.beta, plain_gradient=self.grad == "authors")

    def work(self, nd: int) -> Work:
        times = int(isinstance(self.beta, Tensor) or self.beta != 1)  # multiplications with beta
        # an exponential, its product with x, and two sums; backward g / sum(w) * w * (1 + beta (x - y)), w made again
        return Work((4 + times, -1), (3 + times, 1) if self.grad == "authors" else (6 + 2 * times, 1), input=True)

    def define(self, x: Tensor, folds: Folds) -> tuple[tuple[Tensor, ...], Tensor | None]:
        kind, x = x.dtype, wide(x)
        beta = per_channel("beta", self.beta, x)
        if not isinstance(beta, Tensor) and beta == 0:
            return (folds.mean(x, folds.number(x.dtype).clamp(min=1), wider=x.dtype != kind),), None
        u = x if not isinstance(beta, Tensor) and beta == 1 else scaled(beta, x)
        if self.grad == "authors":
            u = u.detach()
        return (folds.soft_mean(u, x),), None


@handle_overrides
def soft_pool(
    input: Any,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    *,
    beta: Any = 1.0,
    grad: str = "exact",
    nd: int | None = None,
    mask: Tensor | None = None,
    sizes: Any = None,
) -> Any:
    """Exponentially weighted mean of each window.

    y = sum(x * exp(beta * x)) / sum(exp(beta * x)), over the elements of the window that lie in the input.

    Args:
        input: (N, C, *spatial), one to three spatial axes, floating point; (C, *spatial) where `nd` or a
            tuple as `kernel_size` says how many.
        kernel_size: window extent in elements, one int or one per axis.
        stride: step in elements. Default: kernel_size.
        padding: empty elements added on both sides, at most half the dilated kernel; (left, right) pairs, "same" and
            "valid" too. They never count.
        dilation: distance in elements between window elements.
        ceil_mode: keep a last window that starts inside the input but runs over its end.
        beta: sharpness, a number or a tensor of 1 or C elements.
        grad: "exact", or "authors" for the published kernel's gradient (weights as constants).
        nd: number of spatial axes, which tells (C, *spatial) from a batch: the functions of `everypool.functional` with
            1d, 2d or 3d in their names have it. Default: with an int as `kernel_size` the input is a batch.
        mask: (N, 1 or C, *spatial), bool, True where an element counts.
        sizes: (N, nd), int: each sample's own extent.

    Returns:
        (N, C, *out), same type as the input; accumulated in a wider one.

    Raises:
        ValueError: a size or setting breaks its rule, or the window does not fit.
        TypeError: the input is not floating point.

    Source: Stergiou et al., ICCV 2021, eq. 2. Reference: github alexandrosstergiou/SoftPool (whose CPU path sums the
    exponentials over channels, which is another operation).

    >>> soft_pool(torch.tensor([[[0.0, 1.0, 2.0, 3.0]]]), 2)
    tensor([[[0.7311, 2.7311]]])
    """
    windows = (kernel_size, stride, padding, dilation, ceil_mode)
    return call(input, Soft, (beta, grad), Sliding, windows, nd=check.axes(nd), mask=mask, sizes=sizes)


@handle_overrides
def adaptive_soft_pool(
    input: Any,
    output_size: Any,
    *,
    beta: Any = 1.0,
    grad: str = "exact",
    nd: int | None = None,
    mask: Tensor | None = None,
    sizes: Any = None,
) -> Any:
    """Exponentially weighted mean of each of a fixed number of bins; see `soft_pool` and `Adaptive`.

    >>> adaptive_soft_pool(torch.tensor([[[0.0, 1.0]]]), 1)
    tensor([[[0.7311]]])
    """
    return call(input, Soft, (beta, grad), Adaptive, (output_size,), nd=check.axes(nd), mask=mask, sizes=sizes)


@handle_overrides
def global_soft_pool(
    input: Any,
    *,
    beta: Any = 1.0,
    grad: str = "exact",
    keepdim: bool = False,
    mask: Tensor | None = None,
    sizes: Any = None,
) -> Tensor:
    """Exponentially weighted mean of the whole map; see `soft_pool`.

    >>> global_soft_pool(torch.tensor([[[0.0, 1.0]]]))
    tensor([[0.7311]])
    """
    return call(input, Soft, (beta, grad), Global, (keepdim,), mask=mask, sizes=sizes)


class _Soft(Layer):
    beta: Any

    def settle(self, *, beta: Any = 1.0, learnable: bool = False, channels: int | None = None, grad: str = "exact") -> None:
        checked_setting("beta", beta, infinite=False)
        parameter(self, "beta", beta, learnable, channels)
        self.grad = check.choice("grad", grad, ("exact", "authors"))

    def reduced(self) -> Made:
        return Soft, (self.beta, self.grad)

    def settings(self) -> str:
        grad = "" if self.grad == "exact" else f", grad={self.grad!r}"
        return f"beta={describe_setting(self.beta)}{grad}"


class SoftPool1d(_Soft, SlidingLayer):
    """Exponentially weighted mean of each window over (N, C, W) or (C, W); see `soft_pool`."""

    nd = 1


class SoftPool2d(_Soft, SlidingLayer):
    """Exponentially weighted mean of each window over (N, C, H, W) or (C, H, W); see `soft_pool`."""

    nd = 2


class SoftPool3d(_Soft, SlidingLayer):
    """Exponentially weighted mean of each window over (N, C, D, H, W) or (C, D, H, W); see `soft_pool`."""

    nd = 3


class AdaptiveSoftPool1d(_Soft, AdaptiveLayer):
    """Exponentially weighted mean of a fixed number of bins over (N, C, W) or (C, W); see `adaptive_soft_pool`."""

    nd = 1


class AdaptiveSoftPool2d(_Soft, AdaptiveLayer):
    """Exponentially weighted mean of a fixed number of bins over (N, C, H, W) or (C, H, W); see `adaptive_soft_pool`."""

    nd = 2


class AdaptiveSoftPool3d(_Soft, AdaptiveLayer):
    """Exponentially weighted mean of a number of bins over (N, C, D, H, W) or (C, D, H, W); see `adaptive_soft_pool`."""

    nd = 3


class GlobalSoftPool(_Soft, GlobalLayer):
    """Exponentially weighted mean of the whole map, (N, C, *spatial) to (N, C); see `global_soft_pool`."""


def reference(values: Any, exists: Any, beta: float = 1.0, grad: str = "exact") -> float:
    """One window by definition: values and which exist, float64 arrays of the window's shape."""
    x = values[exists]
    weight = np.exp(beta * x - np.max(beta * x))
    return float(np.sum(weight * x) / np.sum(weight))


register(
    Operation(
        name="soft",
        kind="reducer",
        summary="The mean of each window, weighted by the exponentials of its values.",
        formula="y = sum(x exp(beta x)) / sum(exp(beta x))",
        source="Stergiou et al. 2021, SoftPool",
        names=tuple(name for name in __all__ if name != "Soft"),
        parameters="beta (none, 1 or C)",
        reducer=Soft,
        variants=({}, {"beta": 3.0}, {"beta": -1.0}, {"beta": 0.0}),
        reference=reference,
        stem="Soft",
        aliases=("softpool",),
    )
)
