"""What all sources give, and what must hold of it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from everypool import _check as check

__all__ = ["MOST", "Samples", "encoded", "error", "fingerprint", "is_hidden", "samples", "scaled"]

MOST = 2**30  # numbers of a whole set, 4 GiB of them; larger ones are refused rather than begun


@dataclass(frozen=True, eq=False)
class Samples:
    """Labelled samples, all of one shape.

    Args:
        inputs: (N, C, *spatial), float32.
        labels: (N,), int64, numbers of classes.
        classes: their names.
        skipped: what could not be read, and why.
        fingerprint: of the content of the files.
        nd: spatial axes.
        source: the path or name.
    """

    inputs: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...]
    fingerprint: str
    nd: int
    source: str


def is_hidden(name: str) -> bool:
    """Return whether a folder of that name is kept out of sight, such as .ipynb_checkpoints or __MACOSX."""
    return name.startswith((".", "__"))


def error(rule: str, got: str, source: object) -> check.InvalidValue:
    """The error for data that break a rule; it names the path."""
    return check.invalid("data", rule, check.Shown(f"{got} in {str(source)!r}"))


def fingerprint(files: Iterable[Path], names: Sequence[str] = ()) -> str:
    """Of the content of the files, and of names that say something too."""
    total = hashlib.sha256()
    for name in names:
        total.update(hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest())
    for path in files:
        own = hashlib.sha256()
        with path.open("rb") as file:
            while part := file.read(2**20):
                own.update(part)
        total.update(own.digest())
    return total.hexdigest()[:16]


def encoded(labels: Any, names: Sequence[str], source: object) -> tuple[Tensor, tuple[str, ...]]:
    """Numbers of classes (N,), and the classes by name, in the order of the labels.

    Args:
        labels: (N,) or (N, 1): integers, strings, truth values, or floats that are whole.
        names: of the classes that integers stand for, if they are known.
        source: for errors.
    """
    rule = "labelled by an integer or a string per sample"
    if isinstance(labels, list) and all(isinstance(item, (str, bytes)) for item in labels):
        texts = [item if isinstance(item, str) else item.decode("utf-8", "replace") for item in labels]
        labels = np.array(texts, dtype=object)  # as NumPy's own text they would lose zeros at their end
    try:
        labels = np.asarray(labels)
    except ValueError as problem:  # lists of several lengths
        raise error(rule, "lists", source) from problem
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1:
        raise error(rule, f"labels of shape {labels.shape}", source)
    if labels.dtype.kind == "S":
        labels = np.char.decode(labels, "utf-8", "replace")
    if labels.dtype.kind == "f":
        if not np.isfinite(labels).all() or (labels != np.round(labels)).any() or (abs(labels) > 2.0**53).any():
            raise error(rule, "labels that are not whole numbers, or too large to be told apart", source)
        labels = labels.astype(np.int64)
    if labels.dtype.kind not in "iubU" and not all(isinstance(item, str) for item in labels):
        raise error(rule, f"labels of type {labels.dtype}", source)
    found, numbers = np.unique(labels, return_inverse=True)
    classes = [str(item) for item in found]
    if names and labels.dtype.kind in "iu" and len(found) and found[0] >= 0 and found[-1] < len(names):
        classes = [names[int(item)] for item in found]
    return torch.from_numpy(numbers.astype(np.int64).reshape(-1)), tuple(classes)


def scaled(values: np.ndarray, source: object) -> Tensor:
    """As float32: integers of 8 and 16 bits by the largest that the type holds, wider ones by the largest that there is."""
    if values.dtype.kind not in "iubf":
        raise error("numbers", f"an array of type {values.dtype}", source)
    if values.size > MOST:
        raise error(f"at most {MOST:,} numbers", f"{values.size:,}", source)
    with np.errstate(over="ignore"):  # what becomes infinite is told afterwards
        result = values.astype(np.float32)
    if values.dtype.kind in "iu" and values.size:
        largest = np.iinfo(values.dtype).max if values.dtype.itemsize <= 2 else max(abs(int(values.min())), int(values.max()))
        result /= np.float32(max(largest, 1))
    return torch.from_numpy(np.ascontiguousarray(result))


def samples(
    inputs: Tensor,
    labels: Tensor,
    classes: tuple[str, ...],
    *,
    source: object,
    fingerprint: str,
    skipped: Sequence[tuple[str, str]] = (),
) -> Samples:
    """Checked: one label per sample, two classes, every class with samples, and finite numbers."""
    if len(inputs) != len(labels):
        raise error("one label per sample", f"{len(inputs)} samples and {len(labels)} labels", source)
    if inputs.numel() == 0:
        raise error("of samples that are not empty", f"shape {tuple(inputs.shape)}", source)
    if len(classes) < 2:
        raise error("of two classes at least", f"{len(classes)}", source)
    counts = torch.bincount(labels, minlength=len(classes))
    if (counts == 0).any():
        raise error("of classes that have samples", f"none of {classes[int(counts.argmin())]!r}", source)
    if not torch.isfinite(inputs).all():
        number = int((~torch.isfinite(inputs).flatten(1).all(1)).nonzero()[0, 0])
        raise error("finite in float32", f"NaN or infinity in sample {number}", source)
    return Samples(inputs, labels, classes, tuple(skipped), fingerprint, inputs.dim() - 2, str(source))
