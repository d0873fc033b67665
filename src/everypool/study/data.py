"""The data of the comparison: 1,797 real scans of handwritten digits that come with scikit-learn."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["MARGIN", "SHIFTS", "TEST_SHARE", "Digits", "load_digits", "shifted", "split"]

MARGIN = 1  # empty pixels around every scan: a shift by one pixel moves the digit and cuts nothing off
TEST_SHARE = 0.2
SHIFTS = ((0, 1), (0, -1), (1, 0), (-1, 0))  # rows, columns


@dataclass(frozen=True)
class Digits:
    """Images (N, 1, 10, 10) between 0 and 1, and their labels (N,)."""

    images: Tensor
    labels: Tensor


def load_digits() -> Digits:
    """The scans of `sklearn.datasets.load_digits` (8 x 8 pixels), each with an empty margin."""
    from sklearn import datasets  # type: ignore[import-untyped]

    scans = datasets.load_digits()
    images = torch.from_numpy(scans.images).to(torch.float32).unsqueeze(1) / 16
    return Digits(torch.nn.functional.pad(images, (MARGIN,) * 4), torch.from_numpy(scans.target).to(torch.int64))


def split(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Which images train and which test, drawn anew for every seed and the same for every pooling."""
    order = torch.randperm(count, generator=generator)
    test = int(count * TEST_SHARE)
    return order[test:], order[:test]


def shifted(images: Tensor, rows: int, columns: int) -> Tensor:
    """The images moved by at most `MARGIN` pixels; what leaves on one side is empty margin.

    >>> shifted(torch.tensor([[[[0.0, 0.0, 0.0], [0.0, 1.0, 2.0], [0.0, 0.0, 0.0]]]]), 0, -1)[0, 0, 1]
    tensor([1., 2., 0.])
    """
    return images.roll((rows, columns), (-2, -1))
