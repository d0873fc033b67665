"""From operators to launches: tiles, and what each kernel is told."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import triton
from torch import Tensor

from everypool.backends.layout import in_pixels
from everypool.backends.recipe import Recipe
from everypool.backends.triton import kernels, runs_kernels
from everypool.backends.triton.grid import BINS, FULL, KEEP, RUN, SLIDE, TABLE, TABLES, WHOLE, Grid
from everypool.backends.triton.groups import GROUPS, SHARES, SLOPES, SPREADS, SWEEPS
from everypool.backends.triton.launches import Choice, Known, Made, repeated
from everypool.backends.triton.operators import CHOSEN
from everypool.backends.triton.registry import there

__all__ = ["backward", "flag_of", "fold", "given", "slope", "strides", "values_of", "wide"]

LIMIT = (1 << 31) - 1  # beyond, indices are computed in 64 bits
UNROLLED = 32  # taps up to which a window is written out
STRIDES = 8  # of which kernels are compiled for one each
AHEAD = 8  # elements of a line on their way at once, where windows run along it
KAHAN = 4096  # taps beyond which a sum keeps what rounding took
ORDERED = 1024  # elements that are put in order together
BLOCK, TILE = 1024, 4096  # where lines lie along memory: elements of one that are looked at together, and of all


def tile_of(y: Tensor, lanes: int) -> dict[str, int]:
    """A tile of rows and of what lies along memory, channels or the last axis: as wide as it can be without much waste."""
    along = y.shape[1] if in_pixels(y) else y.shape[-1]
    wide = next((c for c in (128, 64, 32, 16) if -(-along // c) * c <= 1.25 * along), min(8, triton.next_power_of_2(along)))
    return {"rows": y.numel() // along, "blocks": triton.cdiv(along, wide), "R": max(1, lanes // wide), "C": wide}


def lanes_of(y: Tensor, choice: Choice | None) -> int:
    """Elements that a program writes: the more, the fewer instructions for each."""
    if choice is not None:
        return choice.lanes
    return 256 if y.numel() < 1 << 18 else 512 if y.numel() < 1 << 20 else 1024


def row_of(taps: int, total: int, choice: Choice | None) -> dict[str, int]:
    """Rows of one long window each, of which many elements are loaded at once."""
    width = min(triton.next_power_of_2(taps), 512)
    held = 2048 if choice is None else 2 * choice.lanes
    return {"rows": total, "blocks": 1, "R": max(1, held // width), "C": 0, "T": width}


def _compiled(choice: Choice | None) -> dict[str, Any]:
    """How to compile; differences are exact only if no product joins them."""
    return {"num_warps": 4 if choice is None else choice.warps, "enable_fp_fusion": False}


def programs(tile: dict[str, int]) -> int:
    return triton.cdiv(tile["rows"], tile["R"]) * tile["blocks"]


def strides(t: Tensor, nd: int) -> tuple[int, ...]:
    """Steps in memory per sample, channel and each of three spatial axes; none along axes of one element."""
    own = [0 if n == 1 else step for n, step in zip(t.shape, t.stride(), strict=True)]
    return (*own[:2], *[0] * (3 - nd), *own[2:])


def wide(*tensors: Tensor) -> bool:
    """Whether some index or place does not fit 32 bits."""
    return any(1 + sum((n - 1) * abs(step) for n, step in zip(t.shape, t.stride(), strict=True)) > LIMIT for t in tensors)


def _op(recipe: Recipe) -> str:
    """A value in the middle is the mean of windows of one element."""
    return "mean" if recipe.op == "centre" else recipe.op


def _settings(recipe: Recipe, grid: Grid) -> dict[str, Any]:
    """What all three kernels are told of reducer and windows."""
    found: dict[str, Any] = {f"KIND{axis}": kind for axis, kind in enumerate(grid.kinds)}
    return found | {f"axis{axis}": numbers for axis, numbers in enumerate(grid.axes)} | values_of(recipe)


def values_of(recipe: Recipe) -> dict[str, Any]:
    """What all kernels are told of the reducer."""
    parameter = recipe.parameter
    learned = isinstance(parameter, Tensor)
    return {
        "p": 1.0 if learned or parameter is None else float(parameter),
        "eps": recipe.eps,
        "SUM": recipe.sum,
        "LIFT": 0 if recipe.op != "power" else 1 if recipe.absolute else 2,
        "PER": 0 if not learned else 1 if parameter.numel() == 1 else 2,
    }


def _steps(t: Tensor | None, grid: Grid) -> tuple[int, ...]:
    return (0,) * 5 if t is None else strides(t, grid.nd)


def given(mask: Tensor | None, recipe: Recipe) -> dict[str, Tensor | None]:
    """The tensors that all kernels read."""
    values = recipe.parameter if isinstance(recipe.parameter, Tensor) else None
    return {"mask": None if mask is None else mask.view(torch.uint8), "values": values}


def _key(*tensors: Tensor | None) -> tuple[Any, ...]:
    """What tells calls of one reducer over one grid apart."""
    return tuple([None if t is None else (t.shape, t.stride(), t.dtype) for t in tensors])


def _masked(mask: Tensor | None, grid: Grid) -> dict[str, Any]:
    return {"mask_strides": _steps(mask, grid), "MASKED": mask is not None}


def _divided(recipe: Recipe, grid: Grid) -> dict[str, Any]:
    """How a sum becomes a mean: by the number of elements, by a number, by cells; or it does not."""
    found: dict[str, Any] = {"DIVISOR": -1, "fixed": float(recipe.divisor or 1)}
    if recipe.op in ("mean", "centre"):
        cells = recipe.cells and all(grid.tables[TABLES * axis + 4] is not None for axis in range(3 - grid.nd, 3))
        found["DIVISOR"] = 1 if recipe.divisor is not None else 2 if cells else 0
    for axis in range(3):
        table = grid.tables[TABLES * axis + 4]
        found |= {f"e{axis}": table, f"e{axis}_rows": 0 if table is None or table.shape[0] == 1 else table.shape[1]}
    return found


def _spans(grid: Grid) -> dict[str, Any]:
    return {f"{name}{axis}": grid.tables[TABLES * axis + at] for axis in range(3) for at, name in enumerate("sc")}


def _looked_at(x: Tensor, grid: Grid) -> dict[str, Any]:
    """What kernels are told that look at a window's elements."""
    taps = {f"k{axis}": taps for axis, taps in enumerate(grid.taps)}
    return taps | _spans(grid) | {"channels": x.shape[1], "x_strides": strides(x, grid.nd)}


def fold(
    x: Tensor,
    mask: Tensor | None,
    recipe: Recipe,
    grid: Grid,
    parts: Sequence[Tensor | None],
    onto: Tensor | None = None,
    known: Known | None = None,
) -> None:
    """Write each window's value, and what else there is memory for, see `operators.parts_of`.

    Values of running windows are added to `onto`, which is laid out like them. `known` keeps launches for calls to come.
    """
    y = parts[0]
    if y is None or y.numel() == 0:
        return
    names = ("y", "index", "kept", "exact", "first", "second", "number")
    tensors = {"x": x, "onto": onto, **given(mask, recipe), **dict(zip(names, parts, strict=True))}
    make = _middle if recipe.op == "median" else _fold if grid.running is None else _run
    key = (make, _key(x, mask, tensors["values"]), *[part is None for part in (onto, *parts)])
    known = {} if known is None else known
    repeated(known, key, tensors, lambda choice: make(x, y, mask, recipe, grid, tensors, choice), x)


Tensors = dict[str, Tensor | None]


def _fold(
    x: Tensor, y: Tensor, mask: Tensor | None, recipe: Recipe, grid: Grid, tensors: Tensors, choice: Choice | None
) -> Made:
    op = _op(recipe)
    short = grid.most <= UNROLLED
    lanes = lanes_of(y, choice) if choice is not None else min(lanes_of(y, None), 512)
    tile = {**tile_of(y, lanes), "T": 1} if short else row_of(grid.most, y.numel(), choice)
    start, push, over, finish = GROUPS[op]
    taps = grid.taps if short else (1, 1, 1)
    found = _settings(recipe, grid) | _masked(mask, grid) | _looked_at(x, grid) | _divided(recipe, grid) | _kept(tensors)
    found |= {
        "START": start, "PUSH": push, "OVER": over, "FINISH": finish, "FLAG": flag_of(recipe, grid.most),
        "TAPS0": taps[0], "TAPS1": taps[1], "TAPS2": taps[2], "TAP": op == "max", "OWN": grid.own and mask is not None,
        "LAST": in_pixels(y), "ND": grid.nd, "WIDE": wide(x, y) or _far(grid),
        **_compiled(choice), **tile,
    }  # fmt: skip
    return kernels.fold, programs(tile), found


def _middle(
    x: Tensor, y: Tensor, mask: Tensor | None, recipe: Recipe, grid: Grid, tensors: Tensors, choice: Choice | None
) -> Made:
    """`_fold` for the value in the middle of the order."""
    width = max(2, triton.next_power_of_2(grid.most))
    tile = {"rows": y.numel(), "blocks": 1, "R": max(1, ORDERED // width), "C": 0, "T": width}
    found = _settings(recipe, grid) | _masked(mask, grid) | _looked_at(x, grid)
    for name in ("p", "eps", "SUM", "LIFT", "PER"):
        del found[name]
    found |= {
        "UPPER": int(recipe.upper), "BOTH": recipe.both, "BACKWARDS": any(axis[2] < 0 for axis in grid.axes),
        "OWN": grid.own and mask is not None,
        "KEEP_TAP": tensors["kept"] is not None, "LAST": in_pixels(y), "ND": grid.nd, "WIDE": wide(x, y) or _far(grid),
        **_compiled(choice), **tile,
    }  # fmt: skip
    return kernels.middle, programs(tile), found


def _kept(tensors: Tensors) -> dict[str, bool]:
    """What is written beside the values."""
    names = {"KEEP_TAP": "kept", "KEEP_STATE": "first", "KEEP_EXACT": "exact", "KEEP_NUMBER": "number", "INDEX": "index"}
    return {flag: tensors[name] is not None for flag, name in names.items()}


def flag_of(recipe: Recipe, taps: int) -> bool:
    """The one choice that each group leaves open."""
    if recipe.op == "max":
        return recipe.last
    return recipe.plain_gradient if recipe.op == "soft" else taps > KAHAN


def _far(grid: Grid) -> bool:
    """Whether arithmetic on windows needs 64 bits."""
    return (
        any(
            (n + 1) * (out + 1) > LIMIT or out * stride + abs(left) + kernel * step > LIMIT
            for n, out, stride, left, kernel, step, _ in grid.axes
        )
        or grid.most > LIMIT
    )


def backward(
    grad: Tensor,
    x: Tensor | None,
    y: Tensor,
    kept: Sequence[Tensor | None],
    mask: Tensor | None,
    recipe: Recipe,
    grid: Grid,
    dx: Tensor,
    known: Known | None = None,
) -> None:
    """Write the input's gradient."""
    if dx.numel() == 0:
        return
    winners, value, first, second, number = there(kept)
    tensors = {
        "x": x, "grad": grad, "y": y if value is None else value, "kept": winners, "first": first, "second": second,
        "number": number, "dx": dx, **given(mask, recipe),
    }  # fmt: skip
    make = _share if grid.running is None else _unrun
    known = {} if known is None else known
    key = (make, _key(x, grad, mask, tensors["values"]))
    repeated(known, key, tensors, lambda choice: make(grad, x, dx, mask, recipe, grid, tensors, choice), dx)


def _share(
    grad: Tensor,
    x: Tensor | None,
    dx: Tensor,
    mask: Tensor | None,
    recipe: Recipe,
    grid: Grid,
    tensors: Tensors,
    choice: Choice | None,
) -> Made:
    tile, chosen = tile_of(dx, lanes_of(dx, choice)), recipe.op in CHOSEN
    holds = [_holds(kind, axis) for kind, axis in zip(grid.kinds, grid.axes, strict=True)]
    if 0 in holds or math.prod(holds) > UNROLLED:
        holds = [0, 0, 0]
    tables = {f"{name}{axis}": grid.tables[TABLES * axis + 2 + at] for axis in range(3) for at, name in enumerate("lh")}
    found = _settings(recipe, grid) | _masked(mask, grid) | _spans(grid) | tables | _divided(recipe, grid)
    found |= {
        "channels": dx.shape[1], "HOLD0": holds[0], "HOLD1": holds[1], "HOLD2": holds[2],
        **{f"STRIDE{axis}": numbers[2] if 0 < numbers[2] <= STRIDES else 0 for axis, numbers in enumerate(grid.axes)},
        "x_strides": _steps(x, grid),
        "grad_strides": strides(grad, grid.nd), "out_strides": _steps(tensors["y"], grid),
        "k1": grid.taps[1], "k2": grid.taps[2], "SHARE": SHARES[_op(recipe)], "FLAG": recipe.plain_gradient,
        "TAP": chosen, "BOTH": chosen and recipe.both, "KEEP_STATE": not chosen and tensors["first"] is not None,
        "KEEP_NUMBER": tensors["number"] is not None,
        "LAST": in_pixels(dx), "ND": grid.nd, "WIDE": wide(dx, grad) or _far(grid),
        **_compiled(choice), **tile,
    }  # fmt: skip
    return kernels.share, programs(tile), found


def _holds(kind: int, axis: tuple[int, ...]) -> int:
    """How many windows hold an element at most along an axis; 0 where only a table tells."""
    n, out, stride, _, kernel, step, _ = axis
    if kind in (KEEP, WHOLE):
        return 1
    if kind in (SLIDE, FULL):
        return min(((kernel - 1) * step) // stride + 1, out)
    if kind == BINS:
        return 1 if n % out == 0 else min(out, out // n + 2)
    return 0


def slope(
    x: Tensor,
    y: Tensor,
    kept: Sequence[Tensor | None],
    mask: Tensor | None,
    recipe: Recipe,
    grid: Grid,
    result: Tensor,
    known: Known | None = None,
) -> None:
    """Write what each window's value gains with the parameter."""
    if result.numel() == 0:
        return
    _, value, first, second, number = there(kept)
    tensors = {
        "x": x, "y": y if value is None else value, "first": first, "second": second, "number": number, "result": result,
        **given(mask, recipe),
    }  # fmt: skip
    known = {} if known is None else known
    key = (_slope, _key(x, mask, tensors["values"]))
    repeated(known, key, tensors, lambda choice: _slope(x, result, mask, recipe, grid, tensors, choice), x)


def _slope(
    x: Tensor, result: Tensor, mask: Tensor | None, recipe: Recipe, grid: Grid, tensors: Tensors, choice: Choice | None
) -> Made:
    tile = row_of(grid.most, result.numel(), choice)
    if grid.running is not None:  # a window at a time, like any other that a table lists
        grid = replace(grid, kinds=tuple(TABLE if kind == RUN else kind for kind in grid.kinds))
    found = _settings(recipe, grid) | _masked(mask, grid) | _looked_at(x, grid)
    found |= {
        "SLOPE": SLOPES[recipe.op], "KEEP_NUMBER": tensors["number"] is not None,
        "LAST": in_pixels(result), "ND": grid.nd, "WIDE": wide(x, result) or _far(grid),
        **_compiled(choice), **tile,
    }  # fmt: skip
    return kernels.slope, programs(tile), found


def _lines(grid: Grid, y: Tensor, *others: Tensor | None) -> dict[str, Any]:
    """The lines of a map that windows run along, and lanes: a line each, or along memory a tile of them."""
    axis = grid.running or 0
    spatial = [numbers[0] for numbers in grid.axes]
    n = spatial[axis]
    return {
        "total": y.numel() // n, "channels": y.shape[1], "n": n,
        "sides": tuple(1 if number == axis else side for number, side in enumerate(spatial)),
        "REVERSE": grid.axes[axis][2] < 0, "LAST": in_pixels(y), "ND": grid.nd,
        "WIDE": wide(y, *(other for other in others if other is not None)),
    }  # fmt: skip


def _stepped(name: str, t: Tensor | None, grid: Grid) -> dict[str, Any]:
    """Strides across lines, and along."""
    steps = _steps(t, grid)
    return {f"{name}_strides": steps, f"{name}_step": steps[2 + (grid.running or 0)]}


def _along_memory(recipe: Recipe, grid: Grid, *tensors: Tensor | None) -> bool:
    """Whether a line's elements lie side by side, and the reducer can take a block of them at once."""
    axis = grid.running or 0
    return recipe.op in SWEEPS and all(t is None or strides(t, grid.nd)[2 + axis] == 1 for t in tensors)


def _walk(lines: int, choice: Choice | None) -> dict[str, Any]:
    """Lines that a program walks, two per thread where there are plenty, and elements of each ahead."""
    lanes = (256 if lines >= 1 << 16 else 128) if choice is None else choice.lanes // 4
    return {"R": lanes, "T": AHEAD, **_compiled(choice and choice._replace(warps=min(choice.warps, lanes // 32)))}


def _tile(n: int, choice: Choice | None) -> dict[str, Any]:
    """A block of lines, and of their elements."""
    width = min(triton.next_power_of_2(n), BLOCK)
    held = TILE if choice is None else 4 * choice.lanes
    return {"R": max(1, held // width), "T": width, **_compiled(choice)}


def _run(
    x: Tensor, y: Tensor, mask: Tensor | None, recipe: Recipe, grid: Grid, tensors: Tensors, choice: Choice | None
) -> Made:
    """`_fold` where windows run along an axis."""
    axis = grid.running or 0
    spatial = [numbers[0] for numbers in grid.axes]
    found = _lines(grid, y, x) | _stepped("x", x, grid) | _stepped("mask", mask, grid) | _kept(tensors)
    found |= {
        "flat": tuple(spatial[1:]), "flat_step": math.prod(spatial[axis + 1 :]), "fixed": float(recipe.divisor or 1),
        "START": GROUPS[recipe.op][0], "FINISH": GROUPS[recipe.op][3], "FLAG": flag_of(recipe, grid.most),
        "DIVISOR": -1 if recipe.op != "mean" else 0 if recipe.divisor is None else 1,
        "MASKED": mask is not None, "ONTO": tensors["onto"] is not None,
    }  # fmt: skip
    if _along_memory(recipe, grid, x, y):
        leaf, scan, join = SWEEPS[recipe.op]
        found |= {"y_strides": strides(y, grid.nd), "LEAF": leaf, "SCAN": scan, "JOIN": join, **_tile(grid.most, choice)}
        for name in ("x_step", "KEEP_STATE", "KEEP_EXACT"):
            del found[name]
        return runs_kernels.sweep, triton.cdiv(found["total"], found["R"]), found
    found |= _stepped("y", y, grid) | values_of(recipe) | _walk(found["total"], choice)
    found |= {"PUSH": GROUPS[recipe.op][1], "TAP": recipe.op == "max"}
    return runs_kernels.run, triton.cdiv(found["total"], found["R"]), found


def _unrun(
    grad: Tensor,
    x: Tensor | None,
    dx: Tensor,
    mask: Tensor | None,
    recipe: Recipe,
    grid: Grid,
    tensors: Tensors,
    choice: Choice | None,
) -> Made:
    """`_share` where windows run along an axis."""
    found = _lines(grid, dx, grad, x) | _stepped("mask", mask, grid) | _stepped("grad", grad, grid)
    found |= {
        "fixed": float(recipe.divisor or 1), "DIVISOR": 1 if recipe.divisor is not None else 0,
        "MASKED": mask is not None, "TAP": recipe.op == "max", "KEEP_NUMBER": tensors["number"] is not None,
    }  # fmt: skip
    if _along_memory(recipe, grid, dx):
        found |= {"y_strides": strides(dx, grid.nd), **_tile(grid.most, choice)}
        return runs_kernels.unsweep, triton.cdiv(found["total"], found["R"]), found
    found |= _stepped("x", x, grid) | _stepped("y", dx, grid) | values_of(recipe) | _walk(found["total"], choice)
    found |= {"SPREAD": SPREADS[recipe.op], "FLAG": recipe.plain_gradient, "KEEP_STATE": tensors["first"] is not None}
    return runs_kernels.unrun, triton.cdiv(found["total"], found["R"]), found
