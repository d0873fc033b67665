"""Functions that move, take and join axes, and the shape itself."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from everypool import _check as check
from everypool.surgery.own import Extents, Own, named, parts
from everypool.surgery.rules.table import CREATED, bound, rule, source, unruled
from everypool.surgery.rules.windows import each

if TYPE_CHECKING:
    from everypool.surgery.extents import Following

__all__ = []


@rule("permute", "transpose", "transpose_", "swapaxes", "swapdims", "movedim", "moveaxis", ".T", ".mT", "t", "unsqueeze")
def moved(mode: Following, func: Any, args: Any, kwargs: Any) -> Any:
    x = source(args, kwargs)
    extents = mode.of(x)
    if extents is None:
        raise unruled(mode, func, args, kwargs, "whose axes are named by numbers")
    given = {key: value for key, value in kwargs.items() if key not in ("input", "self")}
    shape = list(func(torch.empty(tuple(range(2, 2 + x.dim())), device="meta"), *args[1:], **given).shape)
    return mode.note(func(*args, **kwargs), extents.moved(lambda axis: shape.index(2 + axis)))


@rule("squeeze", "squeeze_", "flatten", "reshape", "view", "unflatten", "view_as", "reshape_as")
def reshaped(mode: Following, func: Any, args: Any, kwargs: Any) -> Any:
    x = source(args, kwargs)
    extents, before = mode.of(x), list(x.shape)
    if extents is None or (args[1:] and isinstance(args[1], torch.dtype)):
        raise unruled(mode, func, args, kwargs, "whose views are of one map")
    aim = func(torch.empty(before, device="meta"), *(a.to("meta") if isinstance(a, Tensor) else a for a in args[1:]), **kwargs)
    after = list(aim.shape)

    def place(axis: int) -> int | None:
        """Where an axis lies afterwards, as long as it was and with as many elements behind it."""
        behind = math.prod(before[axis + 1 :])
        return next((i for i, n in enumerate(after) if n == before[axis] and math.prod(after[i + 1 :]) == behind), None)

    # an axis that is the same for all images may go
    places = {axis: place(axis) for axis in (extents.batch, *extents.axes)}
    if any(places[axis] is None for axis in places if axis == extents.batch or set(extents.column(axis)) != {before[axis]}):
        raise unruled(mode, func, args, kwargs, "whose maps keep their axes until they are pooled")
    left = [axis for axis in extents.axes if places[axis] is not None and before[axis] > 1]
    sizes = tuple(zip(*(extents.column(axis) for axis in left), strict=True))
    found = Extents(sizes, tuple(places[axis] or 0 for axis in left), places[extents.batch] or 0)
    return mode.note(func(*args, **kwargs), found)


@rule("expand")
def expanded(mode: Following, func: Any, args: Any, kwargs: Any) -> Any:
    x, extents = source(args, kwargs), mode.of(source(args, kwargs))
    sizes = list(parts([*args[1:], *kwargs.values()]))
    shift = len(sizes) - x.dim()
    if extents is None:  # one place for all, and to become as large as another map
        axes = tuple(
            axis for axis, n in enumerate(sizes) if isinstance(n, Own) and (axis < shift or x.shape[axis - shift] == 1)
        )
        if len(axes) != sum(isinstance(n, Own) for n in sizes) or 0 in axes:
            raise unruled(mode, func, args, kwargs, "in which no map meets a tensor of one size for all images")
        return mode.note(func(*args, **kwargs), Extents(tuple(zip(*(sizes[axis].own for axis in axes), strict=True)), axes))
    result = func(*args, **kwargs)
    if any(result.shape[axis + shift] != x.shape[axis] for axis in (*extents.axes, extents.batch)):
        raise unruled(mode, func, args, kwargs, "in which no map is repeated")
    return mode.note(result, extents.moved(lambda axis: axis + shift))


@rule(*CREATED, "new_full")
def created(mode: Following, func: Any, args: Any, kwargs: Any) -> Any:
    """A new tensor, perhaps as large as a map."""
    method = named(func).startswith("new_")
    sizes = list(parts([*args[method:], *(value for key, value in kwargs.items() if key == "size")]))
    axes = tuple(axis for axis, n in enumerate(sizes) if isinstance(n, Own))
    if axes and sizes[0] != mode.number:
        mode.lost(f"`{named(func)}` of the size of a map, for all images the same")
    rows = tuple(zip(*(sizes[axis].own for axis in axes), strict=True))
    return mode.note(func(*args, **kwargs), Extents(rows, axes) if axes else None)


@rule("numel", "nelement", ".nbytes")
def counted(mode: Following, func: Any, args: Any, kwargs: Any) -> Any:
    mode.lost(f"`{named(func)}` of a map")
    return func(*args, **kwargs)


@rule("__len__")
def length(mode: Following, func: Any, args: Any, kwargs: Any) -> Any:
    extents = mode.of(args[0])
    if extents is None or extents.batch != 0:
        mode.lost("the length of a map")
    return func(*args, **kwargs)


@rule("chunk", "split", "unbind", "tensor_split", "split_with_sizes", "narrow", "select", "index_select", "unsafe_chunk")
def taken(mode: Following, func: Any, args: Any, kwargs: Any) -> Any:
    name, x, extents = named(func), source(args, kwargs), mode.of(source(args, kwargs))
    order = {"unbind": "input dim", "narrow": "input dim", "select": "input dim", "index_select": "input dim"}
    given = bound(order.get(name, "input number dim"), args, kwargs)
    dim = given.get("dim", 0)
    if extents is None or not isinstance(dim, int) or dim % x.dim() in (*extents.axes, extents.batch):
        raise unruled(mode, func, args, kwargs, "that takes no map apart")
    dim %= x.dim()
    gone = name in ("unbind", "select")
    result = func(*args, **kwargs)
    for item in parts([result]):
        mode.note(item, extents.moved(lambda axis: axis - (gone and axis > dim)))
    return result


@rule("__getitem__")
def indexed(mode: Following, func: Any, args: Any, kwargs: Any) -> Any:
    x, index = args
    extents = mode.of(x)
    items = list(index) if isinstance(index, tuple) else [index]
    if extents is None or any(not (isinstance(i, (int, slice)) or i is None or i is Ellipsis) for i in items):
        raise unruled(mode, func, args, kwargs, "that takes slices of maps")
    if Ellipsis in items:
        at, used = items.index(Ellipsis), sum(i is not None and i is not Ellipsis for i in items)
        items[at : at + 1] = [slice(None)] * (x.dim() - used)
    items += [slice(None)] * (x.dim() - sum(i is not None for i in items))
    axis, out = 0, 0
    place: dict[int, int] = {}
    columns: dict[int, tuple[int, ...]] = {}
    for item in items:
        if item is None:
            out += 1
            continue
        if axis in (*extents.axes, extents.batch):
            if axis == extents.batch and item != slice(None):
                raise unruled(mode, func, args, kwargs, "that takes all images")
            if isinstance(item, int):
                if isinstance(item, Own) or item < 0 or item >= min(extents.column(axis)):
                    raise unruled(mode, func, args, kwargs, "that takes places counted from the start")
            elif axis != extents.batch:
                columns[axis] = sliced(mode, func, args, extents.column(axis), item)
        place[axis] = out
        out += not isinstance(item, int)
        axis += 1
    result = func(*args, **kwargs)
    sizes = tuple(zip(*(columns[a] for a in extents.axes if a in columns), strict=True))
    after = Extents(sizes, tuple(place[a] for a in extents.axes if a in columns), place[extents.batch])
    return mode.note(result, after if columns else None)


def sliced(mode: Following, func: Any, args: Any, own: tuple[int, ...], item: slice) -> tuple[int, ...]:
    """Every image's extent in a slice of an axis."""
    start, stop, step = item.start or 0, item.stop, item.step or 1
    if isinstance(start, Own) or isinstance(step, Own) or start < 0:
        raise unruled(mode, func, args, {}, "that takes places counted from the start")
    ends = stop.own if isinstance(stop, Own) else (stop,) * len(own)
    left = tuple(len(range(*slice(start, end, step).indices(n))) for n, end in zip(own, ends, strict=True))
    each(mode, tuple((n,) for n in left), lambda n, _: n)
    return left


@rule("cat", "concat", "concatenate", "stack")
def joined(mode: Following, func: Any, args: Any, kwargs: Any) -> Any:
    given = bound("tensors dim", args, kwargs)
    tensors, new = list(given["tensors"]), named(func) == "stack"
    dim = given.get("dim", given.get("axis", 0)) % (tensors[0].dim() + new)
    known = [mode.of(x) for x in tensors]
    first = next(extents for extents in known if extents is not None)
    if not new and dim in (*first.axes, first.batch):
        raise unruled(mode, func, args, kwargs, "that joins maps along channels")
    if any(extents is None for extents in known):
        raise unruled(mode, func, args, kwargs, "in which no map meets a tensor of one size for all images")
    if any(extents != first for extents in known):
        rule = f"such that the maps joined by `{named(func)}` in {mode.where()} agree for each image alone"
        shown = " and ".join(str(extents.sizes) for extents in known if extents is not None)
        raise check.invalid("sizes", rule, check.Shown(shown[:80]))
    return mode.note(func(*args, **kwargs), first.moved(lambda axis: axis + (new and axis >= dim)))


@rule(".shape", "size")
def shape(mode: Following, func: Any, args: Any, kwargs: Any) -> Any:
    x, extents = args[0], mode.of(args[0])
    result = func(*args, **kwargs)
    if extents is None:
        return result
    columns = {axis: extents.column(axis) for axis in extents.axes}
    own = {axis: Own(x.shape[axis], column, mode.lost) for axis, column in columns.items() if set(column) != {x.shape[axis]}}
    if isinstance(result, int):
        return own.get(bound("self dim", args, kwargs)["dim"] % x.dim(), result)
    return torch.Size([own.get(axis, n) for axis, n in enumerate(result)])
