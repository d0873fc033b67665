"""Small networks, in which only the pooling under test changes."""

from __future__ import annotations

import torch
from torch import nn

from everypool import _check as check
from everypool.factory import create

__all__ = ["STRIDED", "UNPOOLED", "checked_pool", "convolution", "halving"]

STRIDED, UNPOOLED = "stride", "none"  # beside names of poolings: a convolution that steps by two; nothing in its place
CONVOLUTIONS = nn.Conv1d, nn.Conv2d, nn.Conv3d
NORMS = nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d


def convolution(
    inputs: int, outputs: int, *, nd: int = 2, kernel: int = 3, padding: int = 1, stride: int = 1
) -> list[nn.Module]:
    """A convolution, batch norm and ReLU."""
    made = CONVOLUTIONS[nd - 1](inputs, outputs, kernel, stride=stride, padding=padding)
    return [made, NORMS[nd - 1](outputs), nn.ReLU()]


def halving(inputs: int, outputs: int, pool: str, *, nd: int = 2, padding: int = 1) -> list[nn.Module]:
    """Convolution, batch norm, ReLU, and what halves the map.

    Args:
        inputs: channels.
        outputs: channels.
        pool: a reducer with its settings, for windows of 2 that step by 2; "stride" lets the convolution step by two
            instead; "none" leaves the map as large as it is.
        nd: spatial axes.
        padding: of the convolution.
    """
    layers = convolution(inputs, outputs, nd=nd, padding=padding, stride=2 if pool == STRIDED else 1)
    return layers if pool in (STRIDED, UNPOOLED) else [*layers, create(pool, nd=nd, kernel_size=2, stride=2)]


def checked_pool(pool: str, nd: int = 2) -> str:
    """The text as it is, if it names a reducer that a network can be trained with.

    Raises:
        ValueError: it does not.
    """
    with torch.random.fork_rng(devices=[]):
        layer = create(pool, nd=nd, kernel_size=2, stride=2)
        output = layer(torch.rand(2, 1, *(4,) * nd, requires_grad=True))
        if output.grad_fn is None:
            raise check.invalid("pool", "a reducer with a gradient", pool)
        output.sum().backward()
    return pool
