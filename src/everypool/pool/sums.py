"""Sums of two poolings over one map or two, computed in one call where there is one."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from everypool._memo import MOST, token
from everypool.backends import cpu, triton
from everypool.backends.axes import Bins, Run
from everypool.backends.choose import choose
from everypool.backends.context import is_tracing
from everypool.backends.corners import Corner, make_corner
from everypool.backends.eager import Folds
from everypool.backends.layout import in_pixels
from everypool.backends.recipe import Recipe
from everypool.pool import Reducer, Windows, apply, defined, finished, single_definition

__all__ = ["added", "onto"]


def added(reducer: Reducer, windows: tuple[Windows, Windows], x: Tensor, other: Tensor) -> Tensor | None:
    """The sum of `reducer` over two windows, of (N, C, *spatial) each; None where only one after the other gives it.

    By the compiled loops the sums that `make_corner` takes; by the fused kernels those of maxima over planes that they can
    hold, and of any running windows.
    """
    choice = choose(x.device.type)
    if choice.name == "triton":
        found = _held(reducer, windows, x, other)
        if found is None and _running(windows[1], other):
            found = onto(apply(x, reducer, windows[0], nd=None), reducer, windows[1], other)
        return found
    if choice.name != "cpu" or cpu.unsupported_reason(x) or cpu.unsupported_reason(other) or in_pixels(x) or in_pixels(other):
        return None
    tokens = (token(reducer), *map(token, windows))
    key = (tokens, x.shape, x.dtype)
    if key not in ADDED:
        if None in tokens:
            return None
        if len(ADDED) >= MOST:
            ADDED.clear()
        first, second = (w.layouts(tuple(x.shape[2:]), None)[0] for w in windows)
        try:
            corner = make_corner(reducer.recipe(), (first, second), tuple(x.shape), x.dtype)
        except cpu.Unsupported:
            corner = None
        ADDED[key] = (reducer, windows, corner)
    corner = ADDED[key][-1]
    return corner if corner is None else corner(x) if other is x else corner(x, other)


# reducer and windows are held: their addresses may be in the key
ADDED: dict[tuple[Any, ...], tuple[Reducer, tuple[Windows, Windows], Corner | None]] = {}


def onto(base: Tensor, reducer: Reducer, windows: Windows, x: Tensor) -> Tensor | None:
    """base plus `reducer` over running windows of (N, C, *spatial), where the fused kernels add it in the same pass."""
    recipe = reducer.recipe()
    if choose(x.device.type).name != "triton" or not _suits(recipe, x, base) or not _running(windows, x):
        return None
    layout = windows.layouts(tuple(x.shape[2:]), None)[0]
    try:
        call = triton.make_fused(recipe, layout, x, None, None if is_tracing() else single_definition(reducer, layout))
    except triton.Unsupported:
        return None
    return call(x, finished(base, x))[0]


def _suits(recipe: Recipe | str, *maps: Tensor) -> bool:
    """Whether the fused kernels may have maps that are alike, for a reducer they know, of values alone."""
    first = maps[0]
    return (
        all(triton.suits(x) and x.shape == first.shape and x.dtype == first.dtype for x in maps)
        and first.numel() > 0
        and first.dtype in triton.TYPES
        and not isinstance(recipe, str)
        and not recipe.index
    )


def _running(windows: Windows, x: Tensor) -> bool:
    return windows.layouts(tuple(x.shape[2:]), None)[0].own_position


def _held(reducer: Reducer, windows: tuple[Windows, Windows], x: Tensor, other: Tensor) -> Tensor | None:
    """`added` for maxima over planes that a program can hold: running ones, or those of whole rows and columns."""
    recipe = reducer.recipe()
    maps = (x,) if other is x else (x, other)
    if isinstance(recipe, str) or recipe.op != "max" or not _suits(recipe, *maps) or not all(map(triton.held, maps)):
        return None
    folds = [Folds(w.layouts(tuple(x.shape[2:]), None)[0], None, x.device) for w in windows]
    (down, _), (_, along) = (f.layout.axes for f in folds)
    if isinstance(down, Run) and isinstance(along, Run) and down.reverse == along.reverse:
        kind, reverse = "corner", down.reverse
    elif isinstance(down, Bins) and isinstance(along, Bins) and down.out == along.out == 1 and recipe.last:
        kind, reverse = "cross", False
    else:
        return None

    def define(*maps: Tensor) -> Tensor:
        first, second = (defined(reducer, m, f)[0][0] for m, f in zip((maps[0], maps[-1]), folds, strict=True))
        return first + second

    return triton.Planes(kind, reverse, recipe.last, None if is_tracing() else define)(*maps)
