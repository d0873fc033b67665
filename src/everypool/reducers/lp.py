"""Lp pooling: the p-norm of each window."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn

from everypool import _check as check
from everypool._overrides import handle_overrides
from everypool.layer import Made
from everypool.module import describe_setting, keep_start
from everypool.pool import Operation, call, register
from everypool.reducers._layer import AdaptiveLayer, GlobalLayer, Layer, SlidingLayer, checked_setting
from everypool.reducers.power import NORMS, Power, reference
from everypool.windows import Adaptive, Global, Sliding

__all__ = [
    "AdaptiveLPPool1d",
    "AdaptiveLPPool2d",
    "AdaptiveLPPool3d",
    "GlobalLPPool",
    "LPPool1d",
    "LPPool2d",
    "LPPool3d",
    "adaptive_lp_pool",
    "global_lp_pool",
    "lp_pool",
]


class PNorm(Power):
    """The p-norm under torch.nn's words, in which the exponent is `norm_type`."""

    exponent: ClassVar[str] = "norm_type"


@handle_overrides
def lp_pool(
    input: Any,
    norm_type: Any,
    kernel_size: Any,
    stride: Any = None,
    ceil_mode: bool = False,
    *,
    padding: Any = 0,
    dilation: Any = 1,
    norm: str = "sum",
    nd: int | None = None,
    mask: Tensor | None = None,
    sizes: Any = None,
) -> Any:
    """p-norm of each window.

    y = (sum(|x|^p))^(1/p), over the elements of the window that lie in the input.

    Unlike torch.nn it takes the magnitude (odd and fractional p of negative values are defined), sums only what lies in
    the input where a ceil_mode window runs over the end, and never overflows before its result does.

    Args:
        norm_type: p, a number other than 0, or inf; or a tensor of 1 or C elements.
        input: (N, C, *spatial), one to three spatial axes, floating point; (C, *spatial) where `nd` or a
            tuple as `kernel_size` says how many.
        kernel_size: window extent in elements, one int or one per axis.
        stride: step in elements. Default: kernel_size.
        padding: empty elements added on both sides, at most half the dilated kernel; (left, right) pairs, "same" and
            "valid" too. They never count.
        dilation: distance in elements between window elements.
        ceil_mode: keep a last window that starts inside the input but runs over its end.
        norm: "sum", or "mean" for the power mean.
        nd: number of spatial axes, which tells (C, *spatial) from a batch: the functions of `everypool.functional` with
            1d, 2d or 3d in their names have it. Default: with an int as `kernel_size` the input is a batch.
        mask: (N, 1 or C, *spatial), bool, True where an element counts.
        sizes: (N, nd), int: each sample's own extent.

    Returns:
        (N, C, *out), same type as the input; accumulated in a wider one.

    Raises:
        ValueError: a size or setting breaks its rule, or the window does not fit.
        TypeError: the input is not floating point.

    Source: Boureau et al. 2010; Sermanet et al. 2012. Reference: torch.nn.functional.lp_pool2d, for x >= 0.

    >>> lp_pool(torch.tensor([[[3.0, -4.0]]]), 2, 2)
    tensor([[[5.]]])
    """
    windows = (kernel_size, stride, padding, dilation, ceil_mode)
    return call(input, PNorm, (norm_type, norm, "abs"), Sliding, windows, nd=check.axes(nd), mask=mask, sizes=sizes)


@handle_overrides
def adaptive_lp_pool(
    input: Any,
    norm_type: Any,
    output_size: Any,
    *,
    norm: str = "sum",
    nd: int | None = None,
    mask: Tensor | None = None,
    sizes: Any = None,
) -> Any:
    """p-norm of each of a fixed number of bins; see `lp_pool` and `Adaptive`.

    >>> adaptive_lp_pool(torch.tensor([[[3.0, -4.0]]]), 2, 1)
    tensor([[[5.]]])
    """
    return call(input, PNorm, (norm_type, norm, "abs"), Adaptive, (output_size,), nd=check.axes(nd), mask=mask, sizes=sizes)


@handle_overrides
def global_lp_pool(
    input: Any, norm_type: Any, *, norm: str = "sum", keepdim: bool = False, mask: Tensor | None = None, sizes: Any = None
) -> Tensor:
    """p-norm of the whole map; see `lp_pool`.

    >>> global_lp_pool(torch.tensor([[[3.0, -4.0]]]), 2)
    tensor([[5.]])
    """
    result = call(input, PNorm, (norm_type, norm, "abs"), Global, (keepdim,), mask=mask, sizes=sizes)
    return result


class _LP(Layer):
    norm_type: Any

    def settle(self, *, norm_type: Any = 2.0, norm: str = "sum") -> None:
        checked_setting("norm_type", norm_type, infinite=True)
        self.norm_type = norm_type
        if isinstance(norm_type, nn.Parameter):
            keep_start(self, "norm_type", norm_type)
        self.norm = check.choice("norm", norm, NORMS)

    def reduced(self) -> Made:
        return PNorm, (self.norm_type, self.norm, "abs")

    def settings(self) -> str:
        return f"norm_type={describe_setting(self.norm_type)}, norm={self.norm!r}"


class _LPPool(_LP, SlidingLayer):
    def __init__(
        self,
        norm_type: Any,
        kernel_size: Any,
        stride: Any = None,
        ceil_mode: bool = False,
        *,
        padding: Any = 0,
        dilation: Any = 1,
        norm: str = "sum",
    ) -> None:
        super().__init__(kernel_size, stride, padding, dilation, ceil_mode, norm_type=norm_type, norm=norm)


class _AdaptiveLPPool(_LP, AdaptiveLayer):
    def __init__(self, norm_type: Any, output_size: Any, *, norm: str = "sum") -> None:
        super().__init__(output_size, norm_type=norm_type, norm=norm)


class LPPool1d(_LPPool):
    """p-norm of each window over (N, C, W) or (C, W); see `lp_pool`."""

    nd = 1


class LPPool2d(_LPPool):
    """p-norm of each window over (N, C, H, W) or (C, H, W); see `lp_pool`."""

    nd = 2


class LPPool3d(_LPPool):
    """p-norm of each window over (N, C, D, H, W) or (C, D, H, W); see `lp_pool`."""

    nd = 3


class AdaptiveLPPool1d(_AdaptiveLPPool):
    """p-norm of each of a fixed number of bins over (N, C, W) or (C, W); see `adaptive_lp_pool`."""

    nd = 1


class AdaptiveLPPool2d(_AdaptiveLPPool):
    """p-norm of each of a fixed number of bins over (N, C, H, W) or (C, H, W); see `adaptive_lp_pool`."""

    nd = 2


class AdaptiveLPPool3d(_AdaptiveLPPool):
    """p-norm of each of a fixed number of bins over (N, C, D, H, W) or (C, D, H, W); see `adaptive_lp_pool`."""

    nd = 3


class GlobalLPPool(_LP, GlobalLayer):
    """p-norm of the whole map, (N, C, *spatial) to (N, C); see `global_lp_pool`."""


def lp(p: Any = 2.0, norm: str = "sum") -> Power:
    """The reducer of Lp pooling."""
    return Power(p, norm, "abs")


def lp_reference(values: Any, exists: Any, p: float = 2.0, norm: str = "sum") -> float:
    """One window by definition: values and which exist, float64 arrays of the window's shape."""
    return reference(values, exists, p, norm, "abs")


register(
    Operation(
        name="lp",
        kind="reducer",
        summary="The p-norm of each window.",
        formula="y = (sum(|x|^p))^(1/p)",
        source="Boureau et al. 2010",
        names=tuple(__all__),
        reducer=lp,
        variants=({}, {"p": 1.0}, {"p": 3.0}, {"p": 2.3}, {"p": 0.5}, {"p": 2.0, "norm": "mean"}, {"p": float("inf")}),
        reference=lp_reference,
        stem="LP",
    )
)
