"""The poolings of a model: which there are, where they stand, and another one put in their places."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from everypool import _check as check
from everypool.factory import create
from everypool.pool import parse_settings
from everypool.surgery.trace import channels_last, kind, located, looking, traced

__all__ = ["PLACES", "Place", "chosen", "places", "replaced"]

PLACES = {
    "stem": "sliding windows before the first residual stage",
    "stage": "all other sliding windows",
    "head": "what pools the last map",
    "inside": "the whole map pooled within the network, to gate a block for example",
}
AVERAGES = ("count_include_pad", "divisor_override")


@dataclass(frozen=True)
class Place:
    """One pooling of a model.

    Args:
        name: of the module in the model.
        module: the module itself.
        kind: "sliding", "adaptive" (a fixed number of bins) or "global" (one bin).
        place: "stem", "stage", "head" or "inside", see `PLACES`.
        input: shape of what it was given first.
        output: shape of what it made of that.
        calls: how often it runs in one forward pass.
    """

    name: str
    module: nn.Module
    kind: str
    place: str
    input: torch.Size
    output: torch.Size
    calls: int


class ChannelsFirst(nn.Module):
    """Lets a pooling of (N, C, *spatial) take (N, *spatial, C)."""

    def __init__(self, pool: nn.Module) -> None:
        super().__init__()
        self.pool = pool

    def forward(self, input: Tensor) -> Tensor:
        output: Tensor = self.pool(input.movedim(-1, 1))
        return output.movedim(1, -1)


def places(model: nn.Module, example: Tensor) -> tuple[Place, ...]:
    """The pooling modules that run, in the order in which they run first.

    They are modules of torch.nn and of everypool, and others with "pool" in the name of their class that take one map and
    keep its channels; a wrapper around a pooling is passed over for what is in it. What is pooled by a function, by a module
    that also gives indices, or by attention is not found.

    Args:
        model: it is run once, in evaluation mode, and left as it is.
        example: an input (N, C, *spatial).

    >>> [(p.name, p.place) for p in places(nn.Sequential(nn.MaxPool1d(2), nn.AdaptiveAvgPool1d(1)), torch.rand(1, 2, 8))]
    [('0', 'stem'), ('1', 'head')]
    """
    runs = traced(model, example)
    first: dict[nn.Module, int] = {}
    for number, run in enumerate(runs):
        if run.module is not None and kind(run) is not None:
            first.setdefault(run.module, number)
    names = {module: name for name, module in model.named_modules()}
    stands = located(runs, list(first.values()), example.dim() - 2)
    return tuple(
        Place(names[module], module, str(kind(runs[n])), stands[n], runs[n].input, runs[n].output,
              sum(run.module is module for run in runs))
        for module, n in first.items()
    )  # fmt: skip


def chosen(found: Sequence[Place], where: str | Sequence[str]) -> tuple[Place, ...]:
    """Those of the poolings that `where` names.

    Args:
        found: what `places` gives.
        where: "stem", "stage", "head" or "inside"; names of poolings or of modules around them, with wildcards (`*`, `?`,
            `[...]`) if need be. Several are a sequence, or have commas between them.

    Raises:
        ValueError: a part of `where` names no pooling.
    """
    parts = [part.strip() for part in where.split(",")] if isinstance(where, str) else list(where)
    picked: set[str] = set()
    for part in parts:
        here = [p.name for p in found if (p.place == part if part in PLACES else named(p.name, part))]
        if not here:
            by_place = [f"{place}: {', '.join(p.name for p in found if p.place == place)}" for place in PLACES]
            there = "; ".join(text for text in by_place if not text.endswith(": ")) or "it has none that are modules"
            raise check.invalid("where", f"places where the model pools ({there})", part)
        picked.update(here)
    return tuple(p for p in found if p.name in picked)


def replaced(model: nn.Module, where: str | Sequence[str], pool: str, example: Tensor) -> nn.Module:
    """A copy of the model with another pooling in the places named; windows and the shape of the output stay.

    Args:
        model: it stays as it is.
        where: which poolings, see `chosen`.
        pool: a reducer with its settings if any, such as "gem:p=3".
        example: an input (N, C, *spatial).

    Raises:
        ValueError: no such place or reducer, or the output would have another shape.

    >>> replaced(nn.Sequential(nn.MaxPool1d(2, ceil_mode=True)), "stem", "soft", torch.rand(1, 2, 7))
    Sequential(
      (0): SoftPool1d(kernel_size=2, stride=2, padding=0, dilation=1, ceil_mode=True, beta=1.0)
    )
    """
    selected = chosen(places(model, example), where)
    result = copy.deepcopy(model)
    modules = dict(result.named_modules())
    new = {modules[p.name]: made(p, pool, example) for p in selected}
    for parent in list(result.modules()):
        for key, child in list(parent._modules.items()):
            if child in new:
                setattr(parent, key, new[child])  # every name that the same module has
    result = new.get(result, result)

    def compare(place: Place, module: nn.Module, inputs: Any, output: Any) -> None:
        if tuple(output.shape) != tuple(place.output):
            rule = f"one that keeps the shape {tuple(place.output)} at {place.name}"
            raise check.invalid("pool", rule, check.Shown(f"{tuple(output.shape)} from {pool!r}"))

    with looking(result):
        hooks = [new[modules[p.name]].register_forward_hook(once(partial(compare, p))) for p in selected]
        try:
            result(example)
        finally:
            for hook in hooks:
                hook.remove()
    return result


def once(call: Callable[..., None]) -> Callable[..., None]:
    """Only the first of all calls: a module that runs again is given another map."""
    waiting = [call]
    return lambda *arguments: waiting.pop()(*arguments) if waiting else None


def named(name: str, pattern: str) -> bool:
    """Whether the pattern fits the name or that of a module around it."""
    parts = name.split(".")
    return any(fnmatchcase(".".join(parts[:end]), pattern) for end in range(1, len(parts) + 1))


def made(place: Place, pool: str, example: Tensor) -> nn.Module:
    """The layer that takes the pooling's place."""
    old = place.module
    last = channels_last(old)
    nd = axes(old) or len(place.input) - 2
    if place.kind == "sliding":
        arguments: dict[str, Any] = {"padding": 0, "dilation": 1, "ceil_mode": False}
        arguments = {name: getattr(old, name, value) for name, value in arguments.items()}
        if type(old).__name__.endswith("Same"):  # timm's, which pad as TensorFlow does
            arguments["padding"] = "same"
        operation, settings = parse_settings(pool)
        if operation.name == "avg":
            kept = {name: getattr(old, name, None) for name in AVERAGES}
            arguments |= {name: value for name, value in kept.items() if value is not None and name not in settings}
        layer = create(pool, nd=nd, kernel_size=old.kernel_size, stride=old.stride, **arguments)
    elif place.kind == "adaptive":
        layer = create(pool, nd=nd, output_size=getattr(old, "output_size", tuple(place.output[2:])))
    else:
        layer = create(pool, nd=nd, keepdim=len(place.output) == len(place.input))
    layer = ChannelsFirst(layer) if last else layer
    return layer.to(example.device, example.dtype).train(old.training)


def axes(module: nn.Module) -> int | None:
    """1 to 3 as the name of the class says, if it does."""
    text = re.search(r"([123])d", type(module).__name__)
    return int(text[1]) if text else None
