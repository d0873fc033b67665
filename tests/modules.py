"""Every public layer and block, with arguments for all that its constructor asks for."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

import everypool

REQUIRED: dict[str, Any] = {  # values of the parameters that have no default, whichever class they are of
    "kernel_size": 2,
    "output_size": 2,
    "norm_type": 2.0,
    "channels": 8,
    "classes": 3,
    "input_size": 8,
    "axis": -1,
    "first": "max",
    "second": "gem",
    "spatial": (4, 5),
    "scales": (0.5, 0.25),
}
SMALL: dict[str, dict[str, Any]] = {  # where the published sizes would be large
    "Hopfield": {"input_size": 8},
    "PANetBoxHead": {"channels": 8, "hidden": 64, "resolution": 2, "scales": (0.5, 0.25)},
    "PANetConvBoxHead": {"channels": 8, "hidden": 16, "resolution": 2, "scales": (0.5,), "width": 32, "convs": 2},
    "PANetMaskHead": {"channels": 8, "width": 32, "resolution": 2, "scales": (0.5,), "convs": 2},
    "TopLeftCornerPool": {"channels": 8, "middle": 4},
    "BottomRightCornerPool": {"channels": 8, "middle": 4},
    "CascadeTopLeftPool": {"channels": 8, "middle": 4},
    "CascadeBottomRightPool": {"channels": 8, "middle": 4},
    "CenterNetCenterPool": {"channels": 8, "middle": 4},
}
MORE: dict[str, list[dict[str, Any]]] = {  # settings that add parameters or buffers
    "Hopfield": [
        {"scaling": nn.Parameter(torch.tensor([0.5, 0.25])), "num_heads": 2},
        {"scaling": torch.tensor(0.125), "concat_bias_pattern": True, "normalize_hopfield_space": True,
         "normalize_hopfield_space_affine": True, "pattern_size": 3},
    ],
    "HopfieldLayer": [{"quantity": 5, "lookup_weights_as_separated": True}],
    "HopfieldPooling": [{"quantity": 3, "num_heads": 2, "scaling": torch.tensor([0.5, 2.0])}],
    "GeMHead": [{"descriptor": 5, "per_channel": True, "p": 2.5}],
    "SpatialPyramidHead": [{"levels": (1, 2), "hidden": (7,)}],
    "FullyConnectedHead": [{"hidden": (7,)}],
}  # fmt: skip


@dataclass(frozen=True)
class Made:
    """A class and the arguments of one instance."""

    kind: type[nn.Module]
    arguments: dict[str, Any]

    @property
    def id(self) -> str:
        own = {key: value for key, value in self.arguments.items() if key not in REQUIRED}
        return "-".join([self.kind.__name__, *(f"{key}={shown(value)}" for key, value in own.items())])

    def build(self) -> nn.Module:
        return self.kind(**self.arguments)


def shown(value: Any) -> str:
    return f"tensor{tuple(value.shape)}" if isinstance(value, torch.Tensor) else str(value).replace(" ", "")


def classes() -> list[type[nn.Module]]:
    """All public layers and blocks of the records, in their order."""
    items = [getattr(everypool, name) for op in everypool.operations().values() for name in op.names]
    return [item for item in items if isinstance(item, type) and issubclass(item, nn.Module)]


def required(kind: type[nn.Module]) -> dict[str, Any]:
    """The least that the constructor asks for."""
    parameters = inspect.signature(kind).parameters.values()
    missing = [p.name for p in parameters if p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    return {**{name: REQUIRED[name] for name in missing}, **SMALL.get(kind.__name__, {})}


def instances(kind: type[nn.Module]) -> Iterator[Made]:
    """With the least arguments; learned or not, for all channels or each; with settings that add parameters."""
    least = required(kind)
    names = inspect.signature(kind).parameters
    yield Made(kind, least)
    if "learnable" in names:
        setting = next(name for name in ("p", "beta", "r", "alpha") if name in names)
        yield Made(kind, {**least, "learnable": True, setting: 1.75})
        yield Made(kind, {**least, "learnable": False, setting: 1.75})
        for learnable in (True, False):
            yield Made(kind, {**least, "learnable": learnable, "channels": 8, setting: 0.1})
            yield Made(kind, {**least, "learnable": learnable, setting: torch.tensor([0.1, 0.25, 3.0])})
    for settings in MORE.get(kind.__name__, []):
        yield Made(kind, {**least, **settings})


CLASSES = classes()
MADE = [made for kind in CLASSES for made in instances(kind)]


def made_id(made: Made) -> str:
    return made.id
