"""Two poolings at once: mixed in one proportion, or by a gate that looks at each window."""

from __future__ import annotations

import inspect
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from everypool import _check as check
from everypool.backends.context import can_compare_sizes
from everypool.backends.layout import prefix_mask
from everypool.blocks._map_block import refused
from everypool.blocks._spatial import SlidingBlock, wide
from everypool.factory import create, find_named
from everypool.module import PoolingModule, describe_setting
from everypool.pool import Operation, apply, finished, register, split_settings
from everypool.reducers import Max, Mean
from everypool.reducers._layer import checked_setting, parameter, per_channel

__all__ = ["GatedPool1d", "GatedPool2d", "GatedPool3d", "MixedPool"]


class MixedPool(PoolingModule):
    """Two poolings in a proportion that is learned.

    y = first(x) + alpha * (second(x) - first(x)); alpha is not bounded. With alpha = 0 the result is the first one bit for
    bit, and alpha has its gradient: a network keeps its function and learns from there.

    Args:
        first: a module, or a name for `create` such as "max" or "gem:p=4".
        second: the same. "avg" counts explicit padding as torch.nn does, "avg:count_include_pad=False" does not.
        alpha: share of the second one.
        channels: C of the input, for an alpha per channel; None for one number.
        learnable: alpha is a parameter.
        nd: spatial axes, for names.
        windows: for names, what `create` takes: `kernel_size` and the rest, `output_size`, or nothing for global pooling.

    Shape: (N, C, *spatial) to what both poolings give; (C, *spatial) too where `first` is a layer of everypool with 1d,
        2d or 3d in its name. Parameters: 1 or C. `mask` and `sizes` go to both poolings.

    Returns:
        The type and memory layout of the first result.

    Raises:
        ValueError: results of different shapes, an input of other channels, or windows where no name needs them.
        TypeError: an input that is not floating point.
        NotImplementedError: a mask or sizes for a module that takes none.

    Source: Lee et al. 2016, Generalizing pooling functions in convolutional neural networks.

    >>> pool = MixedPool("max", "avg", 0.25, kernel_size=2)
    >>> pool(torch.tensor([[[[0.0, 4.0], [4.0, 0.0]]]])).item()
    3.5
    >>> MixedPool(nn.MaxPool2d(3, 2, 1), nn.AvgPool2d(3, 2, 1), channels=64)(torch.ones(1, 64, 8, 8)).shape
    torch.Size([1, 64, 4, 4])
    """

    def __init__(
        self,
        first: nn.Module | str,
        second: nn.Module | str,
        alpha: Any = 0.5,
        *,
        channels: int | None = None,
        learnable: bool = True,
        nd: int = 2,
        **windows: Any,
    ) -> None:
        super().__init__()
        if windows and not isinstance(first, str) and not isinstance(second, str):
            rule = "left out where both poolings are modules"
            raise check.invalid("windows", rule, check.Shown(", ".join(map(str, windows))))
        self.first = pooling("first", first, nd, windows)
        self.second = pooling("second", second, nd, windows)
        checked_setting("alpha", alpha, infinite=False)
        self.channels = channels
        parameter(self, "alpha", alpha, learnable, channels)

    def forward(self, input: Any, mask: Tensor | None = None, sizes: Any = None) -> Tensor:
        """Pool by both, and mix."""
        if isinstance(input, Tensor):
            check.floating("input", input)
        x, y = (self.pooled(name, input, mask, sizes) for name in ("first", "second"))
        if can_compare_sizes() and x.shape != y.shape:
            raise check.invalid("second", f"a pooling to the shape that `first` gives, {tuple(x.shape)}", y)
        nd = getattr(self.first, "nd", None)
        single = isinstance(nd, int) and isinstance(input, Tensor) and input.dim() == nd + 1
        result = mixed(x.unsqueeze(0), y.unsqueeze(0), self.alpha).squeeze(0) if single else mixed(x, y, self.alpha)
        return result if single else finished(result, x)

    def pooled(self, name: str, input: Any, mask: Tensor | None, sizes: Any) -> Tensor:
        """What one of the poolings gives."""
        module = getattr(self, name)
        given = {key: value for key, value in (("mask", mask), ("sizes", sizes)) if value is not None}
        for key, value in given.items():
            if key not in inspect.signature(module.forward).parameters:
                rule = f"None where `{name}` is a module that takes none, {type(module).__name__}; everypool's layers do"
                raise refused(key, rule, value)
        result = module(input, **given)
        if not isinstance(result, Tensor):
            raise check.wrong_type(name, "a module that gives one tensor", check.Shown(type(result).__name__))
        return check.floating(name, result)

    def extra_repr(self) -> str:
        return f"alpha={describe_setting(self.alpha)}"


def pooling(name: str, given: Any, nd: int, windows: dict[str, Any]) -> nn.Module:
    """The module, or the layer of that name."""
    if isinstance(given, nn.Module):
        return given
    if not isinstance(given, str):
        raise check.wrong_type(name, "a module or the name of a pooling", given)
    try:
        find_named(split_settings(name, given)[0])
    except check.InvalidValue as error:
        raise check.invalid(name, "a module or the name of a pooling", check.Shown(f"{given!r}: {error}")) from error
    return create(given, nd=nd, **windows)


def mixed(first: Tensor, second: Tensor, alpha: Any) -> Tensor:
    """first + alpha * (second - first), in the type of the first; where alpha is 0 the first itself, -0, NaN and all."""
    x, y = wide(first), wide(second)
    gap = y - x
    finite = gap.isfinite()
    share = alpha if isinstance(alpha, Tensor) else torch.full((), float(alpha), device=x.device)
    share = per_channel("alpha", share, x)
    step = share * torch.where(finite, gap, 0)
    fixed = share.detach()
    # inf - inf is not 0, and a gap too large for the type is no infinite value; alpha has no slope there
    open = torch.where(finite, x + step, (1 - fixed) * x + fixed * y)
    # x - (+0.0) is x in every bit, that of -0.0 too, which x + 0.0 is not; the difference is +0.0 with the slope of -step
    closed = x - (step.detach() - step)
    return torch.where(fixed == 0, closed, open).to(first.dtype)


class _GatedPool(SlidingBlock):
    def __init__(
        self, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1, *, ceil_mode: bool = False
    ) -> None:
        super().__init__()
        if isinstance(padding, str):
            raise check.wrong_type("padding", "an int, one per axis, or (left, right) pairs", padding)
        self.place(kernel_size, stride, padding, dilation, ceil_mode)
        window = self.windows.checked(self.nd)[0]
        if math.prod(window) > check.LARGEST:
            raise check.invalid("kernel_size", "of at most 2**40 elements in all", kernel_size)
        self.weight = nn.Parameter(torch.zeros(1, 1, *window))

    def reset_parameters(self) -> None:
        """Zeros: half of each, from which the gate learns at once."""
        nn.init.zeros_(self.weight)

    def compute(self, x: Tensor, mask: Tensor | None, sizes: Tensor | None) -> Tensor:
        largest = wide(apply(x, Max(), self.windows, nd=self.nd, mask=mask, sizes=sizes))
        mean = wide(apply(x, Mean(), self.windows, nd=self.nd, mask=mask, sizes=sizes))
        gate = self.scores(x, mask, sizes, tuple(mean.shape[2:])).sigmoid()
        return gate * largest + (1 - gate) * mean

    def scores(self, x: Tensor, mask: Tensor | None, sizes: Tensor | None, out: tuple[int, ...]) -> Tensor:
        """w.x of every window, (N, C, *out); what lies outside or is masked adds nothing."""
        if mask is not None:
            x = x.masked_fill(~mask, 0)
        if sizes is not None:
            x = x.masked_fill(~prefix_mask(sizes, tuple(x.shape[2:])), 0)
        _, stride, dilation, ceil, pairs = self.windows.checked(self.nd)
        over = [s - 1 if ceil else 0 for s in stride]  # as far as a last window may run over the end
        borders = [(left, right + more) for (left, right), more in zip((p or (0, 0) for p in pairs), over, strict=True)]
        x = F.pad(x, [width for pair in reversed(borders) for width in pair])
        conv = (F.conv1d, F.conv2d, F.conv3d)[self.nd - 1]
        y = conv(wide(x).flatten(0, 1).unsqueeze(1), wide(self.weight).to(wide(x).dtype), None, stride, 0, dilation)
        inside: tuple[Any, ...] = (..., *(slice(n) for n in out))
        return y[inside].squeeze(1).unflatten(0, (x.shape[0], x.shape[1]))


class GatedPool1d(_GatedPool):
    """Maximum and mean of each window of (N, C, W) or (C, W), mixed by a gate; see `GatedPool2d`.

    >>> GatedPool1d(2)(torch.tensor([[[0.0, 4.0, 2.0, 2.0]]])).tolist()
    [[[3.0, 2.0]]]
    """

    nd = 1


class GatedPool2d(_GatedPool):
    """Maximum and mean of each window, mixed by a gate that looks at the window.

    y = g * max(x) + (1 - g) * mean(x), g = sigmoid(sum(w * x)), one w of the window's shape for all channels, no bias.

    The mean is that of the elements in the input; in w.x those outside are zero. w starts as zeros: half of each.

    Args:
        kernel_size: window extent in elements, one int or one per axis.
        stride: step in elements. Default: kernel_size.
        padding: empty elements added on both sides, at most half the dilated kernel, or (left, right) pairs.
        dilation: distance in elements between window elements.
        ceil_mode: keep a last window that starts inside the input but runs over its end, as the published code does.

    Shape: (N, C, H, W) or (C, H, W), to what `max_pool` gives. Parameters: those of one window, kernel_size^2. With `mask`
        or `sizes` what is masked adds nothing; a window of nothing else gives 0.

    Returns:
        The same type and memory layout as the input.

    Raises:
        ValueError: a size breaks its rule, or the window does not fit.
        TypeError: an input that is not floating point.

    Source: Lee et al. 2016, Generalizing pooling functions in convolutional neural networks.

    >>> GatedPool2d(3, 2, 1)(torch.ones(1, 8, 7, 6)).shape
    torch.Size([1, 8, 4, 3])
    """

    nd = 2


class GatedPool3d(_GatedPool):
    """Maximum and mean of each window of (N, C, D, H, W) or (C, D, H, W), mixed by a gate; see `GatedPool2d`.

    >>> GatedPool3d(2)(torch.ones(1, 2, 5, 6, 7)).shape
    torch.Size([1, 2, 2, 3, 3])
    """

    nd = 3


register(
    Operation(
        name="mixed_pool",
        kind="block",
        summary="Two poolings in a proportion that is learned, one number or one per channel.",
        formula="y = first(x) + alpha (second(x) - first(x))",
        source="Lee et al. 2016",
        names=("MixedPool",),
        parameters="1 or C",
        sample=lambda: (MixedPool("max", "avg", channels=8, kernel_size=2), (torch.randn(2, 8, 6, 5),)),
    )
)
register(
    Operation(
        name="gated_pool",
        kind="block",
        summary="Maximum and mean of each window, mixed by a gate that looks at the window.",
        formula="y = g max(x) + (1 - g) mean(x), g = sigmoid(w.x)",
        source="Lee et al. 2016",
        names=("GatedPool1d", "GatedPool2d", "GatedPool3d"),
        parameters="k^nd",
        sample=lambda: (GatedPool2d(3, 2, 1), (torch.randn(2, 8, 6, 5),)),
    )
)
