"""The three kinds of layer that every reducer has, and what they keep their settings with."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from everypool import _check as check
from everypool.backends.context import can_read_values, fixed_shape
from everypool.layer import Layer, Made, WindowLayer
from everypool.module import PoolingModule, keep_start
from everypool.pool import Reducer, Windows, call
from everypool.windows.bins import Adaptive, Global
from everypool.windows.sliding import Sliding

__all__ = ["AdaptiveLayer", "GlobalLayer", "Layer", "SlidingLayer", "parameter"]


class ReducerLayer(WindowLayer):
    """A reducer over windows, both of which are made of attributes that may change."""

    def reduced(self) -> Made:
        """The reducer's class and settings."""
        raise NotImplementedError

    def placed(self) -> tuple[type[Windows], tuple[Any, ...]]:
        """The windows' class and arguments."""
        raise NotImplementedError

    @property
    def reducer(self) -> Reducer:
        kind, settings = self.reduced()
        return kind(*settings)

    @property
    def windows(self) -> Windows:
        kind, arguments = self.placed()
        return kind(*arguments)

    def forward(self, input: Any, mask: Tensor | None = None, sizes: Any = None) -> Any:
        """Pool (N, C, *spatial), or (C, *spatial) where the number of axes is known; mask and sizes as in `everypool.pool`."""
        return call(input, *self.reduced(), *self.placed(), nd=self.nd, mask=mask, sizes=sizes)


class SlidingLayer(ReducerLayer):
    """Windows of one size at regular steps."""

    def __init__(
        self,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        dilation: Any = 1,
        ceil_mode: bool = False,
        **settings: Any,
    ) -> None:
        super().__init__()
        # a recorded graph would take NumPy's integers for tensors
        kernel_size, stride, padding, dilation = map(check.plain, (kernel_size, stride, padding, dilation))
        self.kernel_size = kernel_size
        self.stride = kernel_size if stride is None else stride
        self.padding = padding
        self.dilation = dilation
        self.ceil_mode = ceil_mode
        Sliding(kernel_size, stride, padding, dilation, ceil_mode).checked(self.nd or 1)
        self.settle(**settings)

    def placed(self) -> tuple[type[Windows], tuple[Any, ...]]:
        return Sliding, (self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode)

    def extra_repr(self) -> str:
        text = f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}"
        text += f", dilation={self.dilation}, ceil_mode={self.ceil_mode}"
        return ", ".join(filter(None, (text, self.settings())))


class AdaptiveLayer(ReducerLayer):
    """A fixed number of bins whatever the input's size."""

    def __init__(self, output_size: Any, **settings: Any) -> None:
        super().__init__()
        self.output_size = check.plain(output_size)
        Adaptive(output_size).checked(self.nd or 1)
        self.settle(**settings)

    def placed(self) -> tuple[type[Windows], tuple[Any, ...]]:
        return Adaptive, (self.output_size,)

    def extra_repr(self) -> str:
        return ", ".join(filter(None, (f"output_size={self.output_size}", self.settings())))


class GlobalLayer(ReducerLayer):
    """The whole map as one window."""

    def __init__(self, keepdim: bool = False, **settings: Any) -> None:
        super().__init__()
        self.keepdim = check.boolean("keepdim", keepdim)
        self.settle(**settings)

    def placed(self) -> tuple[type[Windows], tuple[Any, ...]]:
        return Global, (self.keepdim,)

    def extra_repr(self) -> str:
        return ", ".join(filter(None, (f"keepdim={self.keepdim}", self.settings())))


def parameter(module: PoolingModule, name: str, value: Any, learnable: bool, channels: int | None) -> None:
    """Keep a setting as a float, or as a parameter of one element or one per channel."""
    check.boolean("learnable", learnable)
    if channels is not None:
        check.positive_int("channels", channels)
    if not learnable and channels is None and not isinstance(value, Tensor):
        setattr(module, name, value if isinstance(value, (int, float)) else value.item())
        return
    start = value.detach().clone() if isinstance(value, Tensor) else torch.tensor([float(value)] * (channels or 1))
    if channels is not None and start.numel() not in (1, channels):
        raise check.invalid("channels", f"{start.numel()}, the number of elements of `{name}`", channels)
    if channels is not None and start.numel() == 1:
        start = start.reshape(1).repeat(channels)
    if any_of(start, lambda v: ~v.isfinite()):  # beyond the type that parameters have
        raise check.invalid(name, f"finite as {start.dtype}".replace("torch.", ""), value)
    keep_start(module, name, value)
    if learnable:
        setattr(module, name, nn.Parameter(start))
    else:
        module.register_buffer(name, start)


def per_channel(name: str, value: Any, x: Tensor) -> Any:
    """A float, or a tensor that broadcasts over (N, C, *spatial), in the type of x."""
    if not isinstance(value, Tensor):
        return float(value)
    shape = fixed_shape(value)
    single = math.prod(shape) == 1
    if value.device != x.device and not (single and value.device.type == "cpu"):
        raise check.invalid(name, f"on the device of the input, {x.device}", check.Shown(str(value.device)))
    if single:
        return value.to(x.dtype).reshape(())
    if len(shape) != 1 or shape[0] != fixed_shape(x)[1]:
        raise check.invalid(name, f"a number, or a tensor of 1 or C = {x.shape[1]} elements", value)
    return value.to(x.dtype).reshape(-1, *[1] * (x.dim() - 2))


def scaled(factor: Any, x: Tensor) -> Tensor:
    """factor * x for a float or what `per_channel` gives, to which an infinite x gives no slope rather than NaN."""
    if not isinstance(factor, Tensor):
        return factor * x
    end = x.detach().isinf()
    return torch.where(end, (factor * x).detach(), factor * torch.where(end, torch.zeros_like(x), x))


def average(parts: Sequence[Tensor]) -> Tensor:
    """Take the mean of tensors alike, finite where they are, though their sum may not be."""
    total = functools.reduce(torch.add, parts)
    apart = functools.reduce(torch.add, [part / len(parts) for part in parts])  # loses digits of the smallest numbers
    return torch.where(total.isfinite(), total / len(parts), apart)


def checked_setting(name: str, value: Any, *, infinite: bool) -> None:
    """A number or a floating-point tensor, never NaN."""
    rule = "a number or a floating-point tensor" + ("" if infinite else ", finite")
    if isinstance(value, Tensor):
        if not value.is_floating_point():
            raise check.wrong_type(name, rule, value)
        if any_of(value, lambda v: ~v.isfinite()):
            raise check.invalid(name, rule, check.Shown(str(value.detach().tolist())[:80]))
        return
    check.number(name, value, rule, finite=not infinite)


def any_of(value: Any, test: Callable[[Any], Any]) -> bool:
    """Whether the test holds for a number or an element of a tensor; False where looking is impossible or would stall."""
    if not isinstance(value, Tensor):
        return bool(test(float(value)))
    return value.device.type == "cpu" and can_read_values(value) and bool(test(value.detach()).any())
