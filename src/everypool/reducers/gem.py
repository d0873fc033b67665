"""GeM: generalised mean pooling, between average and maximum."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from everypool import _check as check
from everypool._overrides import handle_overrides
from everypool.layer import Made
from everypool.module import describe_setting
from everypool.pool import Operation, call, register
from everypool.reducers._layer import AdaptiveLayer, GlobalLayer, Layer, SlidingLayer, checked_setting, parameter
from everypool.reducers.power import SIGNED, Power, reference
from everypool.windows import Adaptive, Global, Sliding

__all__ = [
    "AdaptiveGeMPool1d",
    "AdaptiveGeMPool2d",
    "AdaptiveGeMPool3d",
    "GeMPool1d",
    "GeMPool2d",
    "GeMPool3d",
    "GlobalGeMPool",
    "adaptive_gem_pool",
    "gem_pool",
    "global_gem_pool",
]


@handle_overrides
def gem_pool(
    input: Any,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    *,
    p: Any = 3.0,
    eps: float = 1e-6,
    signed: str = "clamp",
    nd: int | None = None,
    mask: Tensor | None = None,
    sizes: Any = None,
) -> Any:
    """Generalised mean of each window.

    y = (mean(max(x, eps)^p))^(1/p), over the elements of the window that lie in the input.

    Args:
        input: (N, C, *spatial), one to three spatial axes, floating point; (C, *spatial) where `nd` or a
            tuple as `kernel_size` says how many.
        kernel_size: window extent in elements, one int or one per axis.
        stride: step in elements. Default: kernel_size.
        padding: empty elements added on both sides, at most half the dilated kernel; (left, right) pairs, "same" and
            "valid" too. They never count.
        dilation: distance in elements between window elements.
        ceil_mode: keep a last window that starts inside the input but runs over its end.
        p: exponent, a number or a tensor of 1 or C elements; 1 is the average, inf the maximum.
        eps: least value, with signed="clamp".
        signed: "clamp", "abs", "shift" or "odd": what becomes of negative values, see `Power`.
        nd: number of spatial axes, which tells (C, *spatial) from a batch: the functions of `everypool.functional` with
            1d, 2d or 3d in their names have it. Default: with an int as `kernel_size` the input is a batch.
        mask: (N, 1 or C, *spatial), bool, True where an element counts.
        sizes: (N, nd), int: each sample's own extent.

    Returns:
        (N, C, *out), same type as the input; accumulated in a wider one.

    Raises:
        ValueError: a size or setting breaks its rule, or the window does not fit.
        TypeError: the input is not floating point.

    Source: Radenovic et al. 2018, eq. 3. Reference: github filipradenovic/cnnimageretrieval-pytorch, for moderate values.

    >>> gem_pool(torch.tensor([[[1.0, 2.0, 2.0, 2.0]]]), 2)
    tensor([[[1.6510, 2.0000]]])
    """
    windows = (kernel_size, stride, padding, dilation, ceil_mode)
    return call(input, Power, (p, "mean", signed, eps), Sliding, windows, nd=check.axes(nd), mask=mask, sizes=sizes)


@handle_overrides
def adaptive_gem_pool(
    input: Any,
    output_size: Any,
    *,
    p: Any = 3.0,
    eps: float = 1e-6,
    signed: str = "clamp",
    nd: int | None = None,
    mask: Tensor | None = None,
    sizes: Any = None,
) -> Any:
    """Generalised mean of each of a fixed number of bins; see `gem_pool` and `Adaptive`.

    >>> adaptive_gem_pool(torch.tensor([[[1.0, 2.0]]]), 1)
    tensor([[[1.6510]]])
    """
    return call(input, Power, (p, "mean", signed, eps), Adaptive, (output_size,), nd=check.axes(nd), mask=mask, sizes=sizes)


@handle_overrides
def global_gem_pool(
    input: Any,
    *,
    p: Any = 3.0,
    eps: float = 1e-6,
    signed: str = "clamp",
    keepdim: bool = False,
    mask: Tensor | None = None,
    sizes: Any = None,
) -> Tensor:
    """Generalised mean of the whole map; see `gem_pool`.

    >>> global_gem_pool(torch.tensor([[[1.0, 2.0]]]))
    tensor([[1.6510]])
    """
    result = call(input, Power, (p, "mean", signed, eps), Global, (keepdim,), mask=mask, sizes=sizes)
    return result


class _GeM(Layer):
    p: Any

    def settle(
        self,
        *,
        p: Any = 3.0,
        learnable: bool = True,
        channels: int | None = None,
        eps: float = 1e-6,
        signed: str = "clamp",
    ) -> None:
        checked_setting("p", p, infinite=not check.boolean("learnable", learnable) and channels is None)
        parameter(self, "p", p, learnable, channels)
        self.eps = check.number("eps", eps, "a positive finite number", above=0, finite=True)
        self.signed = check.choice("signed", signed, SIGNED)

    def reduced(self) -> Made:
        return Power, (self.p, "mean", self.signed, self.eps)

    def settings(self) -> str:
        return f"p={describe_setting(self.p)}, eps={self.eps}, signed={self.signed!r}"


class GeMPool1d(_GeM, SlidingLayer):
    """Generalised mean of each window over (N, C, W) or (C, W); see `gem_pool`."""

    nd = 1


class GeMPool2d(_GeM, SlidingLayer):
    """Generalised mean of each window over (N, C, H, W) or (C, H, W); see `gem_pool`."""

    nd = 2


class GeMPool3d(_GeM, SlidingLayer):
    """Generalised mean of each window over (N, C, D, H, W) or (C, D, H, W); see `gem_pool`."""

    nd = 3


class AdaptiveGeMPool1d(_GeM, AdaptiveLayer):
    """Generalised mean of each of a fixed number of bins over (N, C, W) or (C, W); see `adaptive_gem_pool`."""

    nd = 1


class AdaptiveGeMPool2d(_GeM, AdaptiveLayer):
    """Generalised mean of each of a fixed number of bins over (N, C, H, W) or (C, H, W); see `adaptive_gem_pool`."""

    nd = 2


class AdaptiveGeMPool3d(_GeM, AdaptiveLayer):
    """Generalised mean of each of a fixed number of bins over (N, C, D, H, W) or (C, D, H, W); see `adaptive_gem_pool`."""

    nd = 3


class GlobalGeMPool(_GeM, GlobalLayer):
    """Generalised mean of the whole map, (N, C, *spatial) to (N, C); see `global_gem_pool`."""


register(
    Operation(
        name="gem",
        kind="reducer",
        summary="The generalised mean of each window, between average (p = 1) and maximum (p = inf).",
        formula="y = (mean(max(x, eps)^p))^(1/p)",
        source="Radenovic et al. 2018",
        names=tuple(__all__),
        parameters="p (1 or C; none when fixed)",
        reducer=Power,
        variants=(
            {},
            {"p": 1.0},
            {"p": -2.0},
            {"p": 0.0},
            {"p": 30.5},
            {"p": 2.5, "signed": "abs"},
            {"p": 3.0, "signed": "odd"},
            {"p": 2.0, "signed": "shift"},
            {"p": float("inf")},
        ),
        reference=reference,
        stem="GeM",
    )
)
