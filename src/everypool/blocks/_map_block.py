"""What the modules that take a map (N, C, H, W) have in common: checks, and samples of different sizes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from everypool import _check as check
from everypool.pool import checked_sizes

__all__ = ["MapBlock", "conv_norm", "of_channels"]


def of_channels(name: str, value: Tensor, channels: int) -> Tensor:
    """A map of that many channels."""
    if value.shape[1] != channels:
        raise check.invalid(name, f"of {channels} channels", value)
    return value


def conv_norm(inputs: int, outputs: int, kernel_size: Any, *, act: bool = True) -> nn.Sequential:
    """A convolution without bias that keeps the size, batch normalisation, and ReLU if `act`."""
    height, width = (kernel_size, kernel_size) if isinstance(kernel_size, int) else kernel_size
    conv = nn.Conv2d(inputs, outputs, (height, width), padding=(height // 2, width // 2), bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), *([nn.ReLU()] if act else []))


class MapBlock(nn.Module):
    """A module from (N, `channels`, H, W) to (N, ..., H, W); subclasses write `compute`."""

    channels: int

    def compute(self, input: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, input: Tensor, sizes: Any = None) -> Tensor:
        """Map (N, C, H, W); with `sizes` (N, 2) each sample is computed alone on its own extent, zeros outside."""
        of_channels("input", check.batched("input", input, 2), self.channels)
        if sizes is None:
            return self.compute(input)
        if self.training and any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in self.modules()):
            raise NotImplementedError("`sizes` must be None in training, where batch statistics join the samples")
        extents = checked_sizes(sizes, input).tolist()
        if not extents:
            return self.compute(input)
        alone = [self.compute(x[None, :, :height, :width]) for x, (height, width) in zip(input, extents, strict=True)]
        height, width = input.shape[2:]
        return torch.cat([nn.functional.pad(y, (0, width - y.shape[3], 0, height - y.shape[2])) for y in alone])
