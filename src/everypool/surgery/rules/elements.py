"""Functions that treat every element by itself."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from everypool import _check as check
from everypool.surgery.own import Extents, named, parts
from everypool.surgery.rules.table import RULES, Rule, source, unruled

if TYPE_CHECKING:
    from everypool.surgery.extents import Following

__all__ = ["merged", "rule_of"]

KEEP = {  # every element by itself, or together with others of its place
    *("to", "type", "type_as", "float", "half", "double", "bfloat16", "bool", "int", "long", "cpu", "cuda", "contiguous"),
    *("clone", "detach", "detach_", ".data", "alias", "dropout", "dropout1d", "dropout2d", "dropout3d", "feature_dropout"),
    *("alpha_dropout", "feature_alpha_dropout", "prelu", "rrelu", "rrelu_", "log_sigmoid"),
    *("zeros_like", "ones_like", "full_like", "empty_like", "rand_like", "randn_like", "bernoulli", "logsigmoid", "softsign"),
    *("tanhshrink", "hardswish", "zero_", "fill_", "bernoulli_", "uniform_", "normal_", "threshold", "positive"),
}
POINTWISE = {"subtract", "multiply", "divide", "true_divide", "negative", "absolute", "floor_divide", "copy_", "expand_as"}


@functools.cache
def rule_of(name: str) -> Rule | None:
    """The rule for a function of that name, if there is one."""
    found = RULES.get(name)
    if found is None and name in KEEP:
        return kept
    base = name.strip("_") if name.startswith("__") else name.removesuffix("_")
    if found is None and (base in POINTWISE or name in POINTWISE or pointwise(base)):
        return merged
    return found


@functools.cache
def pointwise(name: str) -> bool:
    """Whether torch says that it treats each element by itself; `radd` and `iadd` are `add`."""
    for base in (name, name[1:] if name[:1] in "ri" else name, {"truediv": "div", "floordiv": "floor_divide"}.get(name, name)):
        packet = getattr(torch.ops.aten, base, None)
        if packet is not None and any(torch.Tag.pointwise in getattr(packet, o).tags for o in packet.overloads()):
            return True
    return name in ("rtruediv", "itruediv", "and", "or", "xor", "invert")


def kept(mode: Following, func: Any, args: Any, kwargs: Any) -> Any:
    """What changes no shape."""
    extents = mode.of(source(args, kwargs))
    if extents is None and named(func) not in ("to", "type_as"):
        raise unruled(mode, func, args, kwargs, f"in which the map is what `{named(func)}` takes first")
    return mode.note(func(*args, **kwargs), extents)


def merged(mode: Following, func: Any, args: Any, kwargs: Any) -> Any:
    """Maps joined element by element: each image must have one size in all of them."""
    tensors = [item for item in parts([*args, *kwargs.values()]) if isinstance(item, Tensor)]
    known = [(x, extents) for x in tensors if (extents := mode.of(x)) is not None]
    first = known[0][1].moved(lambda axis: axis - known[0][0].dim())  # counted from the end, as shapes are joined
    axes = sorted({axis - x.dim() for x, extents in known for axis in extents.axes})
    if any(extents.batch - x.dim() != first.batch for x, extents in known):
        raise unruled(mode, func, args, kwargs, "whose maps have one axis of images")
    columns = []
    for axis in axes:
        found = []
        for x in tensors:
            if x.dim() < -axis or x.shape[axis] == 1:
                continue
            extents = mode.of(x)
            if extents is None or axis + x.dim() not in extents.axes:
                found.append((x.shape[axis],) * mode.number)
            else:
                found.append(extents.column(axis + x.dim()))
        if len(set(found)) > 1:
            if all(mode.of(x) is not None for x in tensors if x.dim() >= -axis and x.shape[axis] > 1):
                rule = f"such that the maps joined by `{named(func)}` in {mode.where()} agree for each image alone"
                raise check.invalid("sizes", rule, check.Shown(" and ".join(str(list(column)) for column in found)[:80]))
            raise unruled(mode, func, args, kwargs, "in which no map meets a tensor of one size for all images")
        columns.append(found[0] if found else (1,) * mode.number)
    result = func(*args, **kwargs)
    extents = Extents(tuple(zip(*columns, strict=True)), tuple(axes), first.batch)
    return mode.note(result, extents.moved(lambda axis: axis + result.dim()))
