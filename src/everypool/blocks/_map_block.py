"""What the modules that take a map (N, C, H, W) have in common: checks, and samples of different sizes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from everypool import _check as check
from everypool.backends.context import can_compare_sizes, fixed_shape, is_tracing
from everypool.module import PoolingModule
from everypool.pool import checked_sizes, finished

__all__ = ["MapBlock", "conv_norm", "features", "of_channels", "refused"]

BATCH_NORM = nn.modules.batchnorm._BatchNorm


def refused(name: str, rule: str, value: object) -> NotImplementedError:
    """The error for what a module cannot do; the rule says the way out."""
    return NotImplementedError(f"`{name}` must be {rule}, got {check.shown(value)}")


def features(name: str, value: Any, channels: int, nd: int | None = None) -> Tensor:
    """A batch of floating-point maps of that many channels."""
    return check.floating(name, of_channels(name, check.batched(name, value, nd), channels))


def of_channels(name: str, value: Tensor, channels: int) -> Tensor:
    """A map of that many channels."""
    if fixed_shape(value)[1] != channels:
        raise check.invalid(name, f"of {channels} channels", value)
    return value


def conv_norm(inputs: int, outputs: int, kernel_size: Any, *, act: bool = True) -> nn.Sequential:
    """A convolution without bias that keeps the size, batch normalisation, and ReLU if `act`."""
    height, width = (kernel_size, kernel_size) if isinstance(kernel_size, int) else kernel_size
    conv = nn.Conv2d(inputs, outputs, (height, width), padding=(height // 2, width // 2), bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), *([nn.ReLU()] if act else []))


class MapBlock(PoolingModule):
    """A module from (N, `channels`, H, W) to (N, ..., H, W); subclasses write `compute`."""

    channels: int

    def compute(self, input: Tensor) -> Tensor:
        raise NotImplementedError

    def places(self, height: int, width: int) -> int:
        """Places per sample in the smallest map that is normalised."""
        return height * width

    def forward(self, input: Tensor, sizes: Any = None, mask: None = None) -> Tensor:
        """Map (N, C, H, W); with `sizes` (N, 2) each sample is computed alone on its own extent, zeros outside."""
        features("input", input, self.channels, 2)
        if mask is not None:
            raise refused("mask", "None, since convolutions need whole maps; `sizes` takes maps of different sizes", mask)
        joined = any(norm.training or norm.running_mean is None for norm in self.modules() if isinstance(norm, BATCH_NORM))
        if can_compare_sizes():
            if 0 in input.shape[2:]:
                raise check.invalid("input", "non-empty in every spatial axis", input)
            if joined and input.shape[0] * self.places(*input.shape[2:]) == 1:
                raise check.invalid("input", "more than one value per channel wherever batches are normalised", input)
        if sizes is None:
            return finished(self.compute(input), input)
        if joined:
            rule = "None in training, where batch statistics join the samples; eval() of the batch normalisations parts them"
            raise refused("sizes", rule, sizes)
        whole = "None in a recorded graph, which cannot depend on their values; call it outside of one"
        if is_tracing() and not torch.compiler.is_dynamo_compiling():
            raise refused("sizes", whole, sizes)
        if torch.compiler.is_dynamo_compiling():  # breaks the graph, or says so where it may not be broken
            torch._dynamo.graph_break(f"`sizes` must be {whole}")
        extents = checked_sizes(sizes, input).tolist()
        if not extents:
            return self.compute(input)
        alone = [self.compute(x[None, :, :height, :width]) for x, (height, width) in zip(input, extents, strict=True)]
        height, width = input.shape[2:]
        padded = [nn.functional.pad(y, (0, width - y.shape[3], 0, height - y.shape[2])) for y in alone]
        return finished(torch.cat(padded), input)
