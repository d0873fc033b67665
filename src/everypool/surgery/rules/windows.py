"""Convolutions, poolings, padding and resampling."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from everypool import _check as check
from everypool import reducers
from everypool.pool import pool
from everypool.surgery.own import Extents, Own, Rows, named
from everypool.surgery.rules.table import bound, rule, unruled
from everypool.windows import Global
from everypool.windows.sliding import convolved, deconvolved

if TYPE_CHECKING:
    from everypool.surgery.extents import Following

__all__ = ["each"]


def several(value: Any, nd: int) -> tuple[Any, ...]:
    items = tuple(value) if isinstance(value, (list, tuple)) else (value,)
    return items * nd if len(items) == 1 else items


def each(mode: Following, rows: Rows, count: Callable[[int, int], int]) -> Rows:
    """The sizes behind windows, counted along every axis."""
    found = tuple(tuple(count(n, axis) for axis, n in enumerate(row)) for row in rows)
    for before, after in zip(rows, found, strict=True):
        if min(after) < 1:
            raise check.invalid("sizes", f"large enough for the windows in {mode.where()}", check.Shown(f"a map {before}"))
    return found


@rule("conv1d", "conv2d", "conv3d")
def convolution(mode: Following, func: Any, args: Any, kwargs: Any) -> Any:
    given = bound("input weight bias stride padding dilation groups", args, kwargs)
    x = given.pop("input")
    if mode.of(x) is None:
        raise unruled(mode, func, args, kwargs, "whose filters are no maps")
    extents, nd = mode.standard(x, mode.of(x), named(func)), x.dim() - 2
    stride, dilation = several(given.get("stride", 1), nd), several(given.get("dilation", 1), nd)
    kernel, padding = given["weight"].shape[2:], given.get("padding", 0)
    pads = several(padding, nd) if not isinstance(padding, str) else (None if padding == "same" else 0,) * nd
    sizes = each(mode, extents.sizes, lambda n, a: convolved(n, kernel[a], stride[a], pads[a], dilation[a]))
    result = func(mode.masked(x, extents if mode.zero else None), **given)
    return mode.settle(result, Extents(sizes, extents.axes))


@rule("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def transposed(mode: Following, func: Any, args: Any, kwargs: Any) -> Any:
    given = bound("input weight bias stride padding output_padding groups dilation", args, kwargs)
    x = given.pop("input")
    extents, nd = mode.standard(x, mode.of(x), named(func)), x.dim() - 2
    names = {"stride": 1, "padding": 0, "output_padding": 0, "dilation": 1}
    stride, padding, over, dilation = (several(given.get(name, default), nd) for name, default in names.items())
    if any(isinstance(n, Own) for n in over):
        raise unruled(mode, func, args, kwargs, "whose transposed convolutions do not depend on the size of a map")
    kernel = given["weight"].shape[2:]
    sizes = each(mode, extents.sizes, lambda n, a: deconvolved(n, kernel[a], stride[a], padding[a], over[a], dilation[a]))
    result = func(mode.masked(x, extents if mode.zero else None), **given)
    return mode.settle(result, Extents(sizes, extents.axes))


WINDOWS: dict[str, tuple[str, Callable[..., Any]]] = {  # what torch's functions take, and everypool's function in their place
    "max_pool": ("input kernel_size stride padding dilation ceil_mode return_indices", reducers.max_pool),
    "avg_pool": ("input kernel_size stride padding ceil_mode count_include_pad divisor_override", reducers.avg_pool),
    "lp_pool": ("input norm_type kernel_size stride ceil_mode", reducers.lp_pool),
}


@rule(*(f"{stem}{nd}d" for stem in WINDOWS for nd in (1, 2, 3)))
def sliding(mode: Following, func: Any, args: Any, kwargs: Any) -> Any:
    names, pooled = WINDOWS[named(func)[:-2]]
    given = bound(names, args, kwargs)
    x = given.pop("input")
    extents, nd = mode.standard(x, mode.of(x), named(func)), x.dim() - 2
    if given.pop("return_indices", False):
        raise unruled(mode, func, args, kwargs, "whose poolings give no indices of places")
    kernel = several(given["kernel_size"], nd)
    stride = several(given.get("stride") or kernel, nd)
    padding, dilation = several(given.get("padding", 0), nd), several(given.get("dilation", 1), nd)
    if any(isinstance(n, Own) for n in (*kernel, *stride)):  # windows as large as the map
        whole = all(n.own == extents.column(2 + a) if isinstance(n, Own) else n == x.shape[2 + a] for a, n in enumerate(kernel))
        if not whole or any(padding) or pooled is reducers.lp_pool or given.get("divisor_override"):
            raise unruled(mode, func, args, kwargs, "whose windows do not depend on the size of a map")
        if not mode.values:
            return mode.note(func(*args, **kwargs), None)
        reducer = "max" if pooled is reducers.max_pool else "mean"
        return mode.note(pool(x, reducer, Global(keepdim=True), sizes=rows(x, extents)), None)
    ceil = bool(given.get("ceil_mode", False))
    sizes = each(mode, extents.sizes, lambda n, a: convolved(n, kernel[a], stride[a], padding[a], dilation[a], ceil))
    given["stride"] = stride
    result = pooled(x, **given, sizes=rows(x, extents)) if mode.values else func(*args, **kwargs)
    return mode.settle(result, Extents(sizes, extents.axes))


def rows(x: Tensor, extents: Extents) -> Tensor:
    return torch.tensor(extents.sizes, device=x.device)


@rule(*(f"adaptive_{name}_pool{nd}d" for name in ("avg", "max") for nd in (1, 2, 3)))
def adaptive(mode: Following, func: Any, args: Any, kwargs: Any) -> Any:
    given = bound("input output_size return_indices", args, kwargs)
    x, nd = given["input"], given["input"].dim() - 2
    extents = mode.standard(x, mode.of(x), named(func))
    wanted = several(given["output_size"], nd)
    if given.get("return_indices", False) or any(isinstance(n, Own) for n in wanted):
        raise unruled(mode, func, args, kwargs, "whose adaptive poolings give a fixed number of values")
    pooled: Callable[..., Any] = reducers.adaptive_avg_pool if "avg" in named(func) else reducers.adaptive_max_pool
    result = pooled(x, wanted, sizes=rows(x, extents)) if mode.values else func(*args, **kwargs)
    sizes = tuple(tuple(n if w is None else w for n, w in zip(row, wanted, strict=True)) for row in extents.sizes)
    return mode.settle(result, Extents(sizes, extents.axes))


def alike(numbers: Sequence[Any], rows: list[int]) -> list[Any]:
    """The numbers of one of the images, all of which have the same."""
    return [n.own[rows[0]] if isinstance(n, Own) else n for n in numbers]


@rule("pad")
def padded(mode: Following, func: Any, args: Any, kwargs: Any) -> Any:
    given = bound("input pad mode value", args, kwargs)
    x, amounts = given["input"], list(given["pad"])
    extents = mode.of(x)
    pairs = {x.dim() - 1 - i // 2: (amounts[i], amounts[i + 1]) for i in range(0, len(amounts), 2)}
    if extents is None or any(pairs.get(extents.batch, ())):
        raise unruled(mode, func, args, kwargs, "that adds no images")
    owned, kind, value = any(isinstance(n, Own) for n in amounts), given.get("mode", "constant"), given.get("value")
    if not owned and not any(any(pairs.get(axis, ())) for axis in extents.axes):
        return mode.note(func(*args, **kwargs), extents)
    if kind != "constant" or (owned and mode.zero):
        return mode.apart(x, extents, lambda piece, rows: func(piece, alike(amounts, rows), kind, value), amounts)
    added = [[sum(alike(pairs.get(axis, (0, 0)), [i])) for axis in extents.axes] for i in range(mode.number)]
    sizes = tuple(tuple(map(sum, zip(row, more, strict=True))) for row, more in zip(extents.sizes, added, strict=True))
    each(mode, sizes, lambda n, _: n)
    result = func(mode.masked(x, extents if mode.zero else None, value or 0), amounts, value=value)
    return mode.settle(result, Extents(sizes, extents.axes, extents.batch))


@rule("interpolate", "upsample")
def resampled(mode: Following, func: Any, args: Any, kwargs: Any) -> Any:
    given = bound("input size scale_factor mode align_corners recompute_scale_factor antialias", args, kwargs)
    x, size = given.pop("input"), given.pop("size", None)
    extents = mode.of(x)
    if extents is None:  # the same for all, and to become as large as another map
        extents = Extents((tuple(x.shape[2:]),) * x.shape[0], tuple(range(2, x.dim())))
    extents, wanted = mode.standard(x, extents, named(func)), None if size is None else several(size, x.dim() - 2)
    if x.shape[0] != mode.number:
        raise unruled(mode, func, args, kwargs, "whose batch comes first")
    wanted = wanted or ()
    return mode.apart(x, extents, lambda piece, rows: func(piece, alike(wanted, rows) or None, **given), wanted)


@rule("pixel_shuffle")
def shuffled(mode: Following, func: Any, args: Any, kwargs: Any) -> Any:
    given = bound("input upscale_factor", args, kwargs)
    extents = mode.standard(given["input"], mode.of(given["input"]), named(func))
    sizes = tuple(tuple(n * given["upscale_factor"] for n in row) for row in extents.sizes)
    return mode.note(func(*args, **kwargs), Extents(sizes, extents.axes))
