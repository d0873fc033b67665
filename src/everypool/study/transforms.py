"""What is done to test images to see whether a network minds."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["noisy", "rotated", "shifted", "split"]


def split(count: int, generator: torch.Generator, share: float = 0.2) -> tuple[Tensor, Tensor]:
    """Which samples train and which test (`share` of all), drawn anew for every seed and the same for every variant."""
    order = torch.randperm(count, generator=generator)
    test = int(count * share)
    return order[test:], order[:test]


def shifted(samples: Tensor, *steps: int) -> Tensor:
    """The samples (N, C, *spatial) moved by whole pixels, one step for each spatial axis; what comes in is 0.

    >>> shifted(torch.tensor([[[[0.0, 0.0, 0.0], [0.0, 1.0, 2.0], [0.0, 0.0, 0.0]]]]), 0, -1)[0, 0, 1]
    tensor([1., 2., 0.])
    """
    pads = [amount for step in reversed(steps) for amount in (step, -step)]
    return F.pad(samples, pads)


def rotated(images: Tensor, degrees: float) -> Tensor:
    """The images (N, C, H, W) turned counterclockwise around their middle, bilinear; what comes in from outside is 0."""
    angle = math.radians(degrees)
    height, width = images.shape[-2:]
    cos, sin = math.cos(angle), math.sin(angle)
    # in the units of affine_grid, which are half a side each
    turn = torch.tensor([[cos, -sin * height / width, 0.0], [sin * width / height, cos, 0.0]])
    theta = turn.to(images).expand(len(images), 2, 3)
    return F.grid_sample(images, F.affine_grid(theta, list(images.shape), align_corners=False), align_corners=False)


def noisy(samples: Tensor, deviation: float, generator: torch.Generator) -> Tensor:
    """With Gaussian noise of that standard deviation."""
    return samples + deviation * torch.randn(samples.shape, generator=generator)
