"""Functions that reduce or normalise a map: only what belongs to the images counts."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from everypool.surgery.own import Extents, named
from everypool.surgery.rules.elements import merged
from everypool.surgery.rules.table import ALONG, IDENTITY, bound, dims, rule, source, unruled

if TYPE_CHECKING:
    from everypool.surgery.extents import Following

__all__ = []


@rule(*IDENTITY)
def reduced(mode: Following, func: Any, args: Any, kwargs: Any) -> Any:
    """Over spatial axes only what belongs to the images counts."""
    name = named(func)
    order = {"norm": "input p dim keepdim", "vector_norm": "input ord dim keepdim"}
    order["linalg_vector_norm"] = order["vector_norm"]
    if name in ("var", "std", "var_mean", "std_mean") and len(args) > 2:
        raise unruled(mode, func, args, kwargs, f"that names the settings of `{name}`")
    given = bound(order.get(name, "input dim keepdim"), args, kwargs)
    given["dim"] = given.pop("axis", given.get("dim"))
    x = given.pop("input", given.pop("self", None))
    extents = mode.of(x)
    if extents is None or given["dim"] is None or isinstance(given["dim"], Tensor) or "out" in given:
        if extents is not None and isinstance(given["dim"], Tensor):  # the larger of two maps
            return merged(mode, func, args, kwargs)
        raise unruled(mode, func, args, kwargs, "that joins no images")
    axes, keep = dims(given["dim"], x.dim()), given.get("keepdim", False)
    if extents.batch in axes:
        raise unruled(mode, func, args, kwargs, "that joins no images")
    if any(axis in axes for axis in extents.axes):
        result = statistic(mode, func, name, x, extents, axes, given)
    else:
        result = func(x, **given)
    left = [axis for axis in extents.axes if axis not in axes]
    place = {axis: axis if keep else axis - sum(a < axis for a in axes) for axis in range(x.dim())}
    own = tuple(zip(*(extents.column(axis) for axis in left), strict=True)) if left else ()
    after = Extents(own, tuple(place[axis] for axis in left), place[extents.batch]) if left else None
    if isinstance(result, tuple):
        return type(result)([mode.settle(item, after) for item in result])
    return mode.settle(result, after)


def statistic(
    mode: Following, func: Any, name: str, x: Tensor, extents: Extents, axes: tuple[int, ...], given: dict[str, Any]
) -> Any:
    if not mode.values:
        return func(x, **given)
    if name in ("norm", "vector_norm", "linalg_vector_norm") and given.get("p", given.get("ord", 2)) in (-math.inf, 0):
        raise unruled(mode, func, (x,), {}, "whose norms are those of finite order")
    value: Any = IDENTITY[name]
    if not x.is_floating_point() and abs(value) == math.inf:
        value = torch.iinfo(x.dtype).min if value < 0 else torch.iinfo(x.dtype).max
    if name not in ("mean", "var", "std", "var_mean", "std_mean"):
        return func(mode.masked(x, extents, value), **given)
    inside = mode.inside(x, extents)
    number = (inside.expand(x.shape) if inside.dim() else inside).sum(axes, keepdim=True).to(x.dtype)
    keep, kind = given.get("keepdim", False), given.get("dtype")
    centre = mode.masked(x, extents).sum(axes, keepdim=True, dtype=kind) / number
    squeezed = (lambda y: y) if keep else (lambda y: y.squeeze(axes))
    if name == "mean":
        return squeezed(centre)
    correction = given.get("correction", int(given.get("unbiased", True)))
    correction = 1 if correction is None else correction
    spread = mode.masked(x - centre, extents).square().sum(axes, keepdim=True) / (number - correction).clamp(min=0)
    spread = spread.sqrt() if name.startswith("std") else spread
    return (squeezed(spread), squeezed(centre)) if name.endswith("_mean") else squeezed(spread)


@rule(*ALONG)
def along(mode: Following, func: Any, args: Any, kwargs: Any) -> Any:
    """Along an axis; outside the images stands what changes nothing inside."""
    name = named(func)
    given = bound("input p dim" if name == "normalize" else "input dim", args, kwargs)
    x, extents = given["input"], mode.of(given["input"])
    default = {"normalize": 1, "glu": -1}.get(name)
    dim = given.get("dim", default)
    if extents is None or dim is None or extents.batch in dims(dim, x.dim()):
        raise unruled(mode, func, args, kwargs, f"that says along which axis `{name}` goes")
    if any(axis in dims(dim, x.dim()) for axis in extents.axes):
        value = ALONG[name]
        if value is None:
            raise unruled(mode, func, args, kwargs, "whose gates lie in the channels")
        given["input"] = mode.masked(x, extents, value)
        if name in ("softmax", "log_softmax"):  # places beyond an image have no value at all
            inside = mode.inside(x, extents) if mode.values else None
            result = func(given.pop("input"), **given)
            return mode.settle(result if inside is None else result.masked_fill(~inside, 0), extents)
        return mode.settle(func(given.pop("input"), **given), extents)
    return mode.note(func(given.pop("input"), **given), extents)


@rule("batch_norm")
def batch_norm(mode: Following, func: Any, args: Any, kwargs: Any) -> Any:
    given = bound("input running_mean running_var weight bias training momentum eps", args, kwargs)
    x, extents = given["input"], mode.of(given["input"])
    if extents is None or 1 in (extents.batch, *extents.axes):
        raise unruled(mode, func, args, kwargs, "whose channels come second")
    if not given.get("training", False) or not mode.values:
        return mode.note(func(*args, **kwargs), extents)
    axes = tuple(axis for axis in range(x.dim()) if axis != 1)
    number = mode.inside(x, extents).expand(x.shape[0], 1, *x.shape[2:]).sum()
    mean, spread = moments(mode, x, extents, axes, number)
    momentum, eps = given.get("momentum", 0.1), given.get("eps", 1e-5)
    with torch.no_grad():
        unbiased = spread * (number / (number - 1))
        for running, now in ((given["running_mean"], mean), (given["running_var"], unbiased)):
            if running is not None:
                running.lerp_(now.reshape(-1).to(running.dtype), momentum)
    y = (x - mean) * torch.rsqrt(spread + eps)
    return mode.note(affine(y, given).to(x.dtype), extents)


@rule("local_response_norm", "channel_shuffle", "native_channel_shuffle")
def channels(mode: Following, func: Any, args: Any, kwargs: Any) -> Any:
    """Over the channels of a place."""
    extents = mode.standard(source(args, kwargs), mode.of(source(args, kwargs)), named(func))
    return mode.note(func(*args, **kwargs), extents)


@rule("group_norm", "instance_norm")
def group_norm(mode: Following, func: Any, args: Any, kwargs: Any) -> Any:
    names = "input running_mean running_var weight bias use_input_stats momentum eps"
    whole = named(func) == "group_norm"
    given = bound("input num_groups weight bias eps" if whole else names, args, kwargs)
    x = given["input"]
    extents = mode.standard(x, mode.of(x), named(func))
    if not whole and not given.get("use_input_stats", True):
        return mode.note(func(*args, **kwargs), extents)
    if given.get("running_mean") is not None:
        raise unruled(mode, func, args, kwargs, "whose instance norms keep no statistics in training")
    if not mode.values:
        return mode.note(func(*args, **kwargs), extents)
    groups = given["num_groups"] if whole else x.shape[1]
    folded = x.unflatten(1, (groups, -1))
    apart = extents.moved(lambda axis: axis + 1 if axis else 0)
    number = mode.inside(folded, apart).sum(tuple(range(2, folded.dim())), keepdim=True) * folded.shape[2]
    mean, spread = moments(mode, folded, apart, tuple(range(2, folded.dim())), number)
    y = ((folded - mean) * torch.rsqrt(spread + given.get("eps", 1e-5))).flatten(1, 2)
    return mode.note(affine(y, given).to(x.dtype), extents)


def moments(mode: Following, x: Tensor, extents: Extents, axes: tuple[int, ...], number: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of what belongs to the images."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    mean = mode.masked(wide, extents).sum(axes, keepdim=True) / number
    return mean, mode.masked(wide - mean, extents).square().sum(axes, keepdim=True) / number


def affine(y: Tensor, given: dict[str, Any]) -> Tensor:
    shape = (1, -1, *[1] * (y.dim() - 2))
    y = y if given.get("weight") is None else y * given["weight"].reshape(shape)
    return y if given.get("bias") is None else y + given["bias"].reshape(shape)


@rule("layer_norm", "rms_norm")
def layer_norm(mode: Following, func: Any, args: Any, kwargs: Any) -> Any:
    x, extents = source(args, kwargs), mode.of(source(args, kwargs))
    shape = bound("input normalized_shape", args, kwargs)["normalized_shape"]
    first = x.dim() - (len(shape) if isinstance(shape, (list, tuple)) else 1)
    if extents is None or max(*extents.axes, extents.batch) >= first:
        raise unruled(mode, func, args, kwargs, "whose layer norms are over channels")
    return mode.note(func(*args, **kwargs), extents)


@rule("linear", "matmul", "__matmul__")
def linear(mode: Following, func: Any, args: Any, kwargs: Any) -> Any:
    given = list(bound("input weight bias", args, kwargs).values())
    x, weight = given[:2]
    extents = mode.of(x)
    last = x.dim() - 1
    if extents is None or mode.of(weight) is not None or weight.dim() > 2 or last in (*extents.axes, extents.batch):
        raise unruled(mode, func, args, kwargs, "whose linear layers are over channels")
    result = func(*args, **kwargs)
    return mode.note(result, extents if result.dim() == x.dim() else None)
