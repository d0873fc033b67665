"""The network of the comparison: two convolutions, each followed by the pooling under test, and one linear layer."""

from __future__ import annotations

import torch
from torch import nn

from everypool import _check as check
from everypool.factory import create

__all__ = ["CLASSES", "SIDE", "build", "checked_pool"]

SIDE = 10  # of the images, margin included
WIDTH = 16
CLASSES = 10


def build(pool: str) -> nn.Module:
    """A network (N, 1, 10, 10) -> (N, 10) that halves its map twice with windows of 2 x 2.

    Args:
        pool: a reducer and its settings, such as "max" or "gem:p=4".

    Raises:
        ValueError: no such reducer or setting.

    >>> sum(p.numel() for p in build("max").parameters())
    6186
    """
    return nn.Sequential(
        nn.Conv2d(1, WIDTH, 3),
        nn.BatchNorm2d(WIDTH),
        nn.ReLU(),
        create(pool, nd=2, kernel_size=2, stride=2),
        nn.Conv2d(WIDTH, 2 * WIDTH, 3, padding=1),
        nn.BatchNorm2d(2 * WIDTH),
        nn.ReLU(),
        create(pool, nd=2, kernel_size=2, stride=2),
        nn.Flatten(),
        nn.Linear(2 * WIDTH * 4, CLASSES),
    )


def checked_pool(pool: str) -> str:
    """The text as it is, if it names a reducer that this network can be trained with.

    Raises:
        ValueError: it does not.
    """
    with torch.random.fork_rng(devices=[]):
        logits = build(pool)(torch.rand(2, 1, SIDE, SIDE))
        if logits.grad_fn is None:
            raise check.invalid("pool", "a reducer with a gradient", pool)
        logits.sum().backward()
    return pool
