"""What a model is called with: the tensors in nested containers, their free axes, and inputs of other sizes like them."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

from everypool._check import LARGEST, Shown, invalid, shown, wrong_type

__all__ = ["Case", "Inputs", "outputs_of"]

LETTERS = {2: "nc", 3: "ncw", 4: "nchw", 5: "ncdhw"}  # of the axes of a tensor
BATCHES = 1, 3
FACTORS = (0.75, 1.25), (1.35, 0.9), (1.15, 1.6), (0.6, 0.85), (1.9, 1.45), (0.9, 0.5)  # of sizes that are tried, by turns
MULTIPLES = 1, 2, 4, 8, 16, 32, 64  # some models take no other sizes


def leaves(value: Any, name: str, found: str) -> Iterator[tuple[str, Tensor]]:
    """The tensors in nested containers, with names made of keys and numbers."""
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from leaves(item, f"{name}_{key}" if name else str(key), found)
    elif is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            yield from leaves(getattr(value, field.name), f"{name}_{field.name}" if name else field.name, found)
    elif isinstance(value, (tuple, list)):
        for key, item in zip(getattr(value, "_fields", range(len(value))), value, strict=True):
            yield from leaves(item, f"{name}_{key}" if name else str(key), found)
    elif value is not None:
        raise wrong_type(found, "made of tensors, alone or in tuples, lists, dicts and dataclasses", Shown(
            f"{type(value).__name__}{f' at {name}' if name else ''}"))  # fmt: skip


def mapped(value: Any, tensors: Iterator[Tensor]) -> Any:
    """The same containers around other tensors, in the order of `leaves`."""
    if isinstance(value, Tensor):
        return next(tensors)
    if isinstance(value, Mapping):
        return {key: mapped(item, tensors) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        items = [mapped(item, tensors) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return value


def outputs_of(value: Any) -> dict[str, Tensor]:
    return dict(leaves(value, "" if isinstance(value, Mapping) or is_dataclass(value) else "output", "output"))


@dataclass(frozen=True)
class Case:
    """Inputs that the file is tried with: one call for every number of samples."""

    size: str
    batches: tuple[int, ...]
    calls: tuple[tuple[Tensor, ...], ...]

    def half(self) -> Case:
        return Case(self.size, self.batches, tuple(tuple(map(halved, call)) for call in self.calls))


def halved(x: Tensor) -> Tensor:
    return x.half() if x.dtype in (torch.float32, torch.float64) else x


class Inputs:
    """What the model is called with: names, shapes and free axes of all tensors in the example."""

    def __init__(self, model: nn.Module, example: Any, dynamic: Any) -> None:
        self.args: tuple[Any, ...] = ()
        self.kwargs: dict[str, Any] = {}
        if isinstance(example, Mapping):
            self.kwargs = dict(example)
        else:
            self.args = tuple(example) if isinstance(example, (tuple, list)) else (example,)
        taken = [p.name for p in inspect.signature(model.forward).parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
        known = {taken[i] if i < len(taken) else f"input_{i}": item for i, item in enumerate(self.args)} | self.kwargs
        found = list(leaves(known, "", "example"))
        if not found:
            raise wrong_type("example", "a tensor, or a tuple or dict of tensors", example)
        self.names = tuple(name for name, _ in found)
        self.tensors = tuple(tensor for _, tensor in found)
        if any(0 in tensor.shape for tensor in self.tensors):
            raise invalid("example", "of tensors that hold something", next(t for t in self.tensors if 0 in t.shape))
        if any(x.dtype == torch.bfloat16 or x.is_complex() for x in self.tensors):
            raise invalid("example", "of types that ONNX Runtime takes from numpy, such as float32", found[0][1])
        self.free = free_axes(self.tensors, dynamic)
        self.batch = any(0 in axes for axes in self.free)

    def half(self) -> Inputs:
        other = copy.copy(self)
        other.tensors = tuple(map(halved, self.tensors))
        return other

    def described(self, number: int) -> str:
        """(n, 3, h, w)."""
        x, free = self.tensors[number], self.free[number]
        named = self.axis_names(number)
        return f"({', '.join(named[axis] if axis in free else str(n) for axis, n in enumerate(x.shape))})"

    def axis_names(self, number: int) -> list[str]:
        """Return a name for every axis of an input, such as n, c, h and w of a map."""
        dims = self.tensors[number].dim()
        letters = LETTERS.get(dims, "n")
        return [letters[axis] if axis < len(letters) else f"axis{axis}" for axis in range(dims)]

    def call(self, tensors: Sequence[Tensor]) -> tuple[list[Any], dict[str, Any]]:
        """Positional arguments and those by name."""
        queue = iter(tensors)
        return [mapped(item, queue) for item in self.args], {key: mapped(item, queue) for key, item in self.kwargs.items()}

    def first(self) -> tuple[Tensor, ...]:
        """The example for the exporter, which would fix a batch of one sample to one."""
        return tuple(
            torch.cat([x, x]) if 0 in free and x.shape[0] == 1 else x for x, free in zip(self.tensors, self.free, strict=True)
        )

    def dims(self) -> tuple[list[Any], dict[str, Any]]:
        """The free axes, in the containers of `call`."""
        queue: Any = iter([{axis: torch.export.Dim.DYNAMIC for axis in axes} for axes in self.free])
        return [mapped(item, queue) for item in self.args], {key: mapped(item, queue) for key, item in self.kwargs.items()}

    @property
    def leading(self) -> int:
        """The number of the input that tells what a size is: the first with free axes other than the batch."""
        return next((i for i, axes in enumerate(self.free) if any(axes)), 0)

    def axes(self) -> tuple[int, ...]:
        """The free axes of the leading input, without the batch."""
        return tuple(axis for axis in self.free[self.leading] if axis)

    def own(self) -> list[int]:
        """The example's size."""
        return [self.tensors[self.leading].shape[axis] for axis in self.axes()]

    def drawn(self, size: Sequence[int], batch: int | None) -> tuple[Tensor, ...]:
        """Inputs of that size and number of samples, with values of the example's."""
        generator = torch.Generator().manual_seed(0)
        leading = self.tensors[self.leading]
        new = dict(zip(self.axes(), size, strict=True))
        made = []
        for x, free in zip(self.tensors, self.free, strict=True):
            shape = list(x.shape)
            for axis in free:
                if axis == 0:
                    shape[0] = shape[0] if batch is None else batch
                elif x.shape[axis] != leading.shape[axis]:
                    rule = "whole inputs like the example where several inputs differ in size"
                    raise invalid("check", rule, Shown("x".join(map(str, size))))
                else:
                    shape[axis] = new[axis]
            values = x.detach().reshape(-1).cpu()
            places = torch.randint(len(values), tuple(shape), generator=generator)
            other = values[places]
            if x.is_floating_point() and bool((values == values[0]).all()):  # a constant would hide most errors
                other = torch.randn(shape, generator=generator).to(x.dtype)
            made.append(other.to(x.device))
        return tuple(made)

    def cases(self, model: nn.Module, check: Any) -> list[Case]:
        """What the file is tried with; every size is one that the model takes."""
        if check is not None and (isinstance(check, (str, Tensor, Mapping)) or not isinstance(check, Sequence) or not check):
            raise wrong_type("check", "a sequence of sizes, or of inputs like the example", check)
        if check is None:
            return self.near(model)
        made = []
        for item in check:
            case = self.case_of(item)
            for call in case.calls:
                try:
                    self.run(model, call)
                except Exception as error:
                    text = Shown(f"{case.size}: {type(error).__name__}: {error}")
                    raise invalid("check", "of sizes that the model takes", text) from error
            made.append(case)
        return made

    def run(self, model: nn.Module, call: Sequence[Tensor]) -> dict[str, Tensor]:
        """What a model in float32 makes of it."""
        args, kwargs = self.call([x.float() if x.dtype == torch.float16 else x for x in call])
        return outputs_of(model(*args, **kwargs))

    def case_of(self, item: Any) -> Case:
        axes = self.axes()
        if isinstance(item, int) and not isinstance(item, bool):
            item = (item,) * len(axes)
        if isinstance(item, (tuple, list)) and all(isinstance(n, int) and not isinstance(n, bool) for n in item):
            if len(item) != len(axes) or any(n < 1 for n in item):
                raise invalid("check", f"of {len(axes)} positive sizes each, one for every free axis but the batch", item)
            batches = BATCHES if self.batch else (self.tensors[0].shape[0],)
            calls = tuple(self.drawn(item, batch if self.batch else None) for batch in batches)
            return Case("x".join(map(str, item)) or "as the example", batches, calls)
        mine = item if isinstance(item, (tuple, list, Mapping)) else (item,)
        found = tuple(tensor for _, tensor in leaves(mine, "", "check"))
        same = len(found) == len(self.tensors) and isinstance(mine, Mapping) == bool(self.kwargs)
        for x, own, free in zip(found, self.tensors, self.free, strict=False):
            fixed = [n for axis, n in enumerate(own.shape) if axis not in free]
            same = same and x.dim() == own.dim() and [n for axis, n in enumerate(x.shape) if axis not in free] == fixed
        if not same:
            shapes = " and ".join(str(tuple(x.shape)) for x in found)
            raise invalid("check", "of inputs that differ from the example in free axes alone", Shown(shapes or shown(item)))
        return Case(", ".join("x".join(map(str, x.shape)) for x in found), (found[0].shape[0],), (found,))

    def near(self, model: nn.Module) -> list[Case]:
        """Three sizes around the example's that the model takes."""
        if not self.axes():
            return [self.case_of(())]
        own = self.own()
        found: dict[tuple[int, ...], Case] = {}
        last: Exception | None = None
        for multiple in MULTIPLES:
            for factors in FACTORS:
                size = tuple(rounded(n * factors[i % 2], multiple) for i, n in enumerate(own))
                if size in found or list(size) == own:
                    continue
                try:
                    found[size] = self.taken(model, size)
                except Exception as error:
                    last = error
                if len(found) == 3:
                    return list(found.values())
        if found:
            return list(found.values())
        text = Shown(f"{type(last).__name__}: {last}" if last is not None else "x".join(map(str, own)))
        raise invalid(
            "dynamic", "axes that the model takes in more than one size, such as 'n' for the batch alone", text
        ) from last

    def taken(self, model: nn.Module, size: Sequence[int]) -> Case:
        """That size, if the model does not raise."""
        case = self.case_of(tuple(size))
        for call in case.calls:
            self.run(model, call)
        return case

    def beyond(self, model: nn.Module, bounds: Sequence[tuple[int, int]]) -> list[Case]:
        """The example with one axis just outside of what was recorded, where the model takes that."""
        found = []
        for i, limits in enumerate(bounds):
            for n in (limits[0] - 1, limits[1] + 1):
                if 1 < n < LARGEST:
                    with suppress(Exception):
                        found.append(self.taken(model, [n if i == j else own for j, own in enumerate(self.own())]))
        return found


def rounded(size: float, multiple: int) -> int:
    """Near the size: odd, or the multiple."""
    return max(int(size) // multiple, 1) * multiple if multiple > 1 else max(int(size), 1) | 1


def free_axes(tensors: Sequence[Tensor], dynamic: Any) -> tuple[tuple[int, ...], ...]:
    """The free axes of each tensor."""
    rule = 'letters of "ncdhw" ("ncl" of a line), numbers of axes, or "none"'
    if dynamic is None:
        return tuple((0, *range(2, x.dim())) if x.dim() else () for x in tensors)
    if isinstance(dynamic, str):
        wanted = "" if dynamic == "none" else dynamic.lower().replace("l", "w")  # of a line
        if not set(wanted) <= set("ncdhw") or len(set(wanted)) != len(wanted) or (not wanted and dynamic != "none"):
            raise invalid("dynamic", rule, dynamic)
        named = [LETTERS.get(x.dim(), "n"[: x.dim()]) for x in tensors]
        lacking = sorted(set(wanted) - set("".join(named)))
        if lacking:
            raise invalid("dynamic", f"axes that an input has ({', '.join(map(repr, named))})", dynamic)
        return tuple(tuple(axis for axis, letter in enumerate(letters) if letter in wanted) for letters in named)
    if not isinstance(dynamic, Collection) or not all(isinstance(a, int) and not isinstance(a, bool) for a in dynamic):
        raise wrong_type("dynamic", rule, dynamic)
    most = max(x.dim() for x in tensors)
    if any(not 0 <= axis < most for axis in dynamic):
        raise invalid("dynamic", f"numbers of axes from 0 to {most - 1}", dynamic)
    return tuple(tuple(axis for axis in sorted(set(dynamic)) if axis < x.dim()) for x in tensors)
