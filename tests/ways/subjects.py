"""What is called: every record with its settings, as a module in float64 and arguments of three sizes."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from cases import DEFAULTS, ROWS, Row, numbers
from torch import Tensor, nn

import everypool
from everypool import Adaptive, Global, Pyramid, Scan, Sliding, Strips

from .modules import BoxFunction, Function, InBoxes, Masked, Pooling, Sized, SizedLayer

BASE, OTHER, TALLER = range(3)  # what is traced; every spatial axis longer; the first spatial axis longer
# all sizes differ: equal ones would be taken for one symbol
SPATIAL = {1: ((9,), (13,), (13,)), 2: ((9, 5), (12, 8), (12, 5)), 3: ((8, 5, 4), (9, 6, 7), (9, 5, 4))}
CHANNELS = 3
# settings that differ from another in nothing that a recorded graph would see
UNUSUAL = {"adaptive1d", "adaptive3d", "global3d", "function-adaptive", "function-global", "same", "wide", "scan2d"}
UNUSUAL |= {"masked-scan", "masked-global", "sized-adaptive"}


@dataclass(frozen=True, eq=False)
class Subject:
    """One record with one setting."""

    record: str
    setting: str
    build: Callable[[], nn.Module]
    make_arguments: Callable[[int], tuple[Any, ...]]
    is_learning: bool = False  # in training mode, where that differs
    has_convolutions: bool = False

    @property
    def id(self) -> str:
        return f"{self.record}-{self.setting}"

    @property
    def is_main(self) -> bool:
        """The one setting of its record for ways that take a second."""
        return self.setting in ("2d", "sample")

    @property
    def is_usual(self) -> bool:
        """One of those for ways that take a tenth of a second."""
        return self.setting not in UNUSUAL and "=" not in self.setting

    def module(self) -> nn.Module:
        """Copy the module, so that what a call does to it is not seen by another."""
        return deepcopy(_built(self))

    def arguments(self, size: int = BASE) -> tuple[Any, ...]:
        return self.make_arguments(size)


@cache
def _built(subject: Subject) -> nn.Module:
    torch.manual_seed(0)
    return subject.build().double().train(subject.is_learning)


def make_map(nd: int, size: int = BASE) -> Tensor:
    return torch.from_numpy(numbers((2, CHANNELS, *SPATIAL[nd][size]), nd + 10 * size))


def make_mask(nd: int, size: int = BASE) -> Tensor:
    shape = (2, 1, *SPATIAL[nd][size])
    return torch.from_numpy(np.random.default_rng(nd + 10 * size).random(shape) < 0.6)


def make_sizes(nd: int, size: int = BASE) -> Tensor:
    whole = SPATIAL[nd][size]
    return torch.tensor([whole, [n - 2 for n in whole]])


def of_map(nd: int) -> Callable[[int], tuple[Any, ...]]:
    return lambda size: (make_map(nd, size),)


def of_masked_map(nd: int) -> Callable[[int], tuple[Any, ...]]:
    return lambda size: (make_map(nd, size), make_mask(nd, size))


def of_sized_map(nd: int) -> Callable[[int], tuple[Any, ...]]:
    return lambda size: (make_map(nd, size), make_sizes(nd, size))


def make_layer(name: str, **settings: Any) -> Callable[[], nn.Module]:
    kind = getattr(everypool, name)
    if "LP" in name:
        settings = {"norm_type": 2.0, **settings}
    return lambda: kind(**settings)


SLIDING2 = {"kernel_size": (3, 2), "stride": (2, 1), "padding": (1, 1), "dilation": (1, 2)}


def _of_reducer(row: Row) -> list[Subject]:
    """Every kind of windows with the reducer's default setting."""
    name, stem = row.operation.name, row.operation.stem
    norm = (2.0,) if name == "lp" else ()
    layers = [
        ("1d", f"{stem}Pool1d", {"kernel_size": 3, "stride": 2, "padding": 1}, 1),
        ("2d", f"{stem}Pool2d", SLIDING2, 2),
        ("3d", f"{stem}Pool3d", {"kernel_size": 2}, 3),
        ("ceil", f"{stem}Pool1d", {"kernel_size": 2, "ceil_mode": True}, 1),
        ("adaptive1d", f"Adaptive{stem}Pool1d", {"output_size": 4}, 1),
        ("adaptive2d", f"Adaptive{stem}Pool2d", {"output_size": (2, 3)}, 2),
        ("adaptive3d", f"Adaptive{stem}Pool3d", {"output_size": 2}, 3),
        ("global", f"Global{stem}Pool", {}, 2),
        ("global3d", f"Global{stem}Pool", {"keepdim": True}, 3),
    ]
    windows = [
        ("same", Sliding(3, 2, "same"), 2),
        ("wide", Sliding(7, 1, 3), 1),
        ("pyramid", Pyramid((1, 2)), 2),
        ("strips", Strips(), 2),
        ("scan1d", Scan(-1, True), 1),
        ("scan2d", Scan(0), 2),
    ]
    masked = [("masked2d", Sliding(3, 2, 1), 2), ("masked-scan", Scan(-1), 1), ("masked-global", Global(), 3)]
    sized = [("sized2d", Sliding(3, 2, 1), 2), ("sized-adaptive", Adaptive(2), 1)]
    found = [Subject(name, setting, make_layer(kind, **options), of_map(nd)) for setting, kind, options, nd in layers]
    functions = [
        ("function", f"{name}_pool", (*norm, 3, 2), 2),
        ("function-adaptive", f"adaptive_{name}_pool", (*norm, (3, None)), 2),
        ("function-global", f"global_{name}_pool", norm, 1),
    ]
    found += [
        Subject(name, setting, lambda item=(kind, *settings): Function(*item), of_map(nd))
        for setting, kind, settings, nd in functions
    ]
    kinds = (Pooling, of_map, windows), (Masked, of_masked_map, masked), (Sized, of_sized_map, sized)
    for kind, arguments, places in kinds:
        found += [
            Subject(name, setting, lambda kind=kind, place=place: kind(row.reducer(), place), arguments(nd))
            for setting, place, nd in places
        ]
    return found


def _of_variants() -> list[Subject]:
    """Every other setting of a reducer, learned ones and those with indices, over sliding windows."""
    found = [
        Subject(
            row.operation.name, row.id.partition(",")[2], lambda row=row: Pooling(row.reducer(), Sliding(3, 2, 1)), of_map(2)
        )
        for row in ROWS
        if row.settings
    ]
    learned = {
        "gem": ("GeMPool2d", {"p": 3.0}),
        "soft": ("SoftPool2d", {"beta": 1.5}),
        "logsumexp": ("LogSumExpPool2d", {"r": 2.0}),
    }
    for name, (kind, start) in learned.items():
        for channels in (None, CHANNELS):
            settings = {**SLIDING2, **start, "learnable": True, "channels": channels}
            setting = f"learned{channels or ''}"
            layer = make_layer(kind, **settings)
            found.append(Subject(name, setting, layer, of_map(2)))
            found.append(Subject(name, f"{setting}-masked", layer, of_masked_map(2)))
            found.append(Subject(name, f"{setting}-sized", lambda layer=layer: SizedLayer(layer()), of_sized_map(2)))
    found.append(Subject("max", "indices2d", make_layer("MaxPool2d", **SLIDING2, return_indices=True), of_map(2)))
    adaptive = make_layer("AdaptiveMaxPool1d", output_size=4, return_indices=True)
    found.append(Subject("max", "indices-adaptive", adaptive, of_map(1)))
    return found


def _resized(shape: tuple[int, ...], size: int) -> tuple[int, ...]:
    """The shape of a sample's map at one of the three sizes."""
    if len(shape) == 3:  # (N, length, D) of the associative memories
        return (shape[0], (9, 13, 13)[size], shape[2])
    return (*shape[:2], (10, 12, 12)[size], (6, 8, 6)[size], *shape[4:])


def _of_sample(operation: Any) -> list[Subject]:
    """A windows record or a block by its sample, in training too where that differs."""
    torch.manual_seed(0)
    module, given = operation.sample()

    def make_arguments(size: int) -> tuple[Any, ...]:
        first = given[0]
        if isinstance(first, list):  # levels of a pyramid of maps
            growth = (0, 4, 4)[size], (0, 4, 0)[size]
            shapes = [
                (*x.shape[:2], *(n + g // 2**i for n, g in zip(x.shape[2:], growth, strict=True))) for i, x in enumerate(first)
            ]
            maps = [torch.from_numpy(numbers(shape, i + 10 * size)) for i, shape in enumerate(shapes)]
            return (maps, *(boxes.double() for boxes in given[1:]))
        x = torch.from_numpy(numbers(_resized(tuple(first.shape), size), 10 * size))
        return (x, *(boxes.double() for boxes in given[1:]))

    modes = [False]
    if any(isinstance(part, (nn.modules.batchnorm._BatchNorm, nn.Dropout)) for part in module.modules()):
        modes.append(True)
    has_parameters = next(module.parameters(), None) is not None
    return [
        Subject(
            operation.name,
            "train" if learns else "sample",
            lambda: operation.sample()[0],
            make_arguments,
            learns,
            operation.kind == "block" and has_parameters,
        )
        for learns in modes
    ]


def _of_boxes() -> list[Subject]:
    boxes = torch.tensor([[0.0, 0.5, 0.2, 4.1, 6.3], [1.0, 1.2, 2.0, 4.6, 7.9], [0.0, 0.0, 0.0, 2.2, 3.1]], dtype=torch.float64)

    def make_arguments(size: int) -> tuple[Any, ...]:
        return make_map(2, size), boxes.clone()

    return [
        Subject("roi", "align", lambda: BoxFunction("roi_align", 2, 1.0, 2), make_arguments),
        Subject("roi", "pool", lambda: BoxFunction("roi_pool", 2), make_arguments),
        Subject("roi", "soft", lambda: InBoxes("soft"), make_arguments),
    ]


def _of_unpooling() -> list[Subject]:
    def make_arguments(size: int) -> tuple[Any, ...]:
        n = SPATIAL[1][size][0]
        return make_map(1, size), (2 * torch.arange(n) + torch.arange(n) % 2).expand(2, CHANNELS, n).clone()

    return [Subject("max_unpool", "sample", make_layer("MaxUnpool1d", kernel_size=2), make_arguments)]


def list_subjects() -> list[Subject]:
    found = [subject for row in DEFAULTS for subject in _of_reducer(row)] + _of_variants()
    for operation in everypool.operations().values():
        if operation.kind == "reducer":
            continue
        assert operation.sample is not None
        found += _of_unpooling() if operation.name == "max_unpool" else _of_sample(operation)
    return found + _of_boxes()


SUBJECTS = list_subjects()
RECORDS = sorted({subject.record for subject in SUBJECTS})
