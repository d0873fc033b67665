"""The network that data are tried with where no other is named."""

from __future__ import annotations

from torch import nn

from everypool.factory import create
from everypool.study.nets import convolution

__all__ = ["build"]

WIDTHS = 16, 32, 64


def build(classes: int, channels: int, nd: int, size: tuple[int, ...]) -> nn.Module:
    """Three convolutions; maxima halve the map after the first ("stem") and the second ("stage"), the mean of the map ("head")
    goes to a linear layer.

    >>> [type(layer).__name__ for layer in build(10, 1, 2, (8, 8)) if "Pool" in type(layer).__name__]
    ['MaxPool2d', 'MaxPool2d', 'GlobalAvgPool']
    """
    layers: list[nn.Module] = []
    for step, (inputs, outputs) in enumerate(zip((channels, *WIDTHS), WIDTHS, strict=False)):
        layers += convolution(inputs, outputs, nd=nd)
        if step < len(WIDTHS) - 1:
            layers.append(create("max", nd=nd, kernel_size=tuple(min(2, max(1, n >> step)) for n in size)))
    return nn.Sequential(*layers, create("avg", nd=nd), nn.Linear(WIDTHS[-1], classes))
