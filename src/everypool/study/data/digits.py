"""1,797 real scans of handwritten digits, 8 x 8 pixels, that come with scikit-learn."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

__all__ = ["MARGIN", "SIDE", "load"]

MARGIN = 1  # empty pixels around every scan: a shift by one pixel moves the digit and cuts nothing off
SIDE = 8 + 2 * MARGIN


@functools.cache
def load() -> tuple[Tensor, Tensor]:
    """Images (1797, 1, 10, 10) between 0 and 1, margin included, and their labels (1797,)."""
    from sklearn import datasets  # type: ignore[import-untyped]

    scans = datasets.load_digits()
    images = torch.from_numpy(scans.images).to(torch.float32).unsqueeze(1) / 16
    return torch.nn.functional.pad(images, (MARGIN,) * 4), torch.from_numpy(scans.target).to(torch.int64)
