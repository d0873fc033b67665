"""Measured series, of one length or of many, that lie as text inside the installed sktime."""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path

import torch
from torch import Tensor

from everypool import _check as check

__all__ = ["CREDIT", "NAMES", "equal", "load", "parse"]

NAMES = ("ArrowHead", "GunPoint", "ItalyPowerDemand", "JapaneseVowels", "OSULeaf", "PLAID")
CREDIT = "from the UCR and UEA archives, as they come with sktime"


@functools.cache
def load(name: str) -> tuple[tuple[Tensor, ...], Tensor]:
    """One of `NAMES`, its training and its test file together: series (C, T), each of its own length, and classes (N,).

    Raises:
        ValueError: there is no set of that name.
        ModuleNotFoundError: sktime is not installed.

    >>> voices, speakers = load("JapaneseVowels")
    >>> len(voices), voices[0].shape, min(v.shape[1] for v in voices), max(v.shape[1] for v in voices), len(speakers.unique())
    (640, torch.Size([12, 20]), 7, 29, 9)
    """
    check.choice("name", name, list(NAMES))
    found = importlib.util.find_spec("sktime")  # read as text: importing it takes seconds
    if found is None or not found.submodule_search_locations:
        raise ModuleNotFoundError("No module named 'sktime'", name="sktime")
    folder = Path(found.submodule_search_locations[0], "datasets", "data", name)
    parts = [parse((folder / f"{name}_{part}.ts").read_text(errors="replace")) for part in ("TRAIN", "TEST")]
    return tuple(series for samples, _ in parts for series in samples), torch.cat([labels for _, labels in parts])


def equal(name: str) -> tuple[Tensor, Tensor]:
    """A set whose series are all of one length: (N, C, T), and classes (N,)."""
    series, labels = load(name)
    return torch.stack(series), labels


def parse(text: str) -> tuple[list[Tensor], Tensor]:
    """The text of a .ts file: series (C, T) and the place of each one's class among those that the header names.

    >>> series, labels = parse("@classLabel true a b\\n@data\\n1,2,3:4,5,6:b\\n")
    >>> series[0].tolist(), labels.tolist()
    ([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], [1])
    """
    classes: list[str] = []
    series, labels = [], []
    lines = iter(text.splitlines())
    for line in lines:
        key, _, rest = line.strip().partition(" ")
        if key.lower() == "@classlabel":
            classes = rest.split()[1:]
        elif key.lower() == "@data":
            break
    for line in filter(None, map(str.strip, lines)):
        *channels, label = line.split(":")
        series.append(torch.tensor([[float(value) for value in channel.split(",")] for channel in channels]))
        labels.append(classes.index(label))
    return series, torch.tensor(labels)
