"""From operators to launches: tiles, and what each kernel is told."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import triton
from torch import Tensor

from everypool.backends.layout import in_pixels
from everypool.backends.recipe import Recipe
from everypool.backends.triton import kernels, runs_kernels
from everypool.backends.triton.grid import RUN, TABLE, TABLES, Grid
from everypool.backends.triton.groups import GROUPS, SHARES, SLOPES, SPREADS, SWEEPS
from everypool.backends.triton.registry import there

__all__ = ["backward", "fold", "run", "slope", "strides", "unrun", "wide"]

LIMIT = (1 << 31) - 1  # beyond, indices are computed in 64 bits
UNROLLED = 32  # taps up to which a window is written out
AHEAD = 8  # elements of a line on their way at once, where windows run along it
BLOCK, TILE = 1024, 4096  # where lines lie along memory: elements of one that are looked at together, and of all


@dataclass(frozen=True)
class Tiles:
    """Lanes, taps looked at at once, and warps."""

    lanes: int
    taps: int
    warps: int


def tiles_of(taps: int, total: int) -> Tiles:
    """Short windows are written out, a lane each; of long ones many elements are loaded at once."""
    if taps <= UNROLLED:
        return Tiles(256 if total < 1 << 20 else 512, 1, 4)
    width = min(triton.next_power_of_2(taps), 512)
    return Tiles(max(1, 2048 // width), width, 4)


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
    return found | {f"axis{axis}": numbers for axis, numbers in enumerate(grid.axes)} | _values(recipe)


def _values(recipe: Recipe) -> dict[str, Any]:
    """What all kernels are told of the reducer."""
    parameter = recipe.parameter
    learned = isinstance(parameter, Tensor)
    return {
        "values": parameter if learned else None,
        "p": 1.0 if learned or parameter is None else float(parameter),
        "eps": recipe.eps,
        "SUM": recipe.sum,
        "LIFT": 0 if recipe.op != "power" else 1 if recipe.absolute else 2,
        "PER": 0 if not learned else 1 if parameter.numel() == 1 else 2,
    }


def _masked(mask: Tensor | None, grid: Grid) -> dict[str, Any]:
    if mask is None:
        return {"mask": None, "mask_strides": (0,) * 5, "MASKED": False}
    return {"mask": mask.view(torch.uint8), "mask_strides": strides(mask, grid.nd), "MASKED": True}


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


def fold(
    x: Tensor, mask: Tensor | None, recipe: Recipe, grid: Grid, parts: Sequence[Tensor | None], onto: Tensor | None = None
) -> None:
    """Write each window's value, and what else there is memory for, see `operators.parts_of`.

    Values of running windows are added to `onto`, which is laid out like them.
    """
    y, index, winners, value, first, second, number = parts
    op = _op(recipe)
    total = 0 if y is None else y.numel()
    if y is None or total == 0:
        return
    if grid.running is not None:
        run(x, mask, recipe, grid, parts, onto)
        return
    tiles = tiles_of(grid.most, total)
    start, push, over, finish = GROUPS[op]
    taps = grid.taps if tiles.taps == 1 else (1, 1, 1)
    kernels.fold[(triton.cdiv(total, tiles.lanes),)](
        x=x, y=y, exact=value, kept=winners, first=first, second=second, number=number, index=index,
        total=total, channels=x.shape[1], x_strides=strides(x, grid.nd),
        **_settings(recipe, grid), **_masked(mask, grid), **_spans(grid), **_divided(recipe, grid),
        k0=grid.taps[0], k1=grid.taps[1], k2=grid.taps[2],
        START=start, PUSH=push, OVER=over, FINISH=finish, FLAG=_flag(recipe, grid.most),
        TAPS0=taps[0], TAPS1=taps[1], TAPS2=taps[2],
        TAP=op == "max", KEEP_TAP=winners is not None, KEEP_STATE=first is not None,
        KEEP_EXACT=value is not None, KEEP_NUMBER=number is not None, INDEX=index is not None,
        LAST=in_pixels(y), ND=grid.nd, WIDE=wide(x, y) or _far(grid), R=tiles.lanes, T=tiles.taps,
        num_warps=tiles.warps, enable_fp_fusion=False,
    )  # fmt: skip


def _flag(recipe: Recipe, taps: int) -> bool:
    """The one choice that each group leaves open."""
    if recipe.op == "max":
        return recipe.last
    return recipe.plain_gradient if recipe.op == "soft" else taps > 4096


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
    grad: Tensor, x: Tensor | None, y: Tensor, kept: Sequence[Tensor | None],
    mask: Tensor | None, recipe: Recipe, grid: Grid, dx: Tensor,
) -> None:  # fmt: skip
    """Write the input's gradient."""
    winners, value, first, second, number = there(kept)
    total = dx.numel()
    if total == 0:
        return
    if grid.running is not None:
        unrun(grad, x, y, kept, mask, recipe, grid, dx)
        return
    lanes = 256
    tables = {f"{name}{axis}": grid.tables[TABLES * axis + 2 + at] for axis in range(3) for at, name in enumerate("lh")}
    kernels.share[(triton.cdiv(total, lanes),)](
        x=x, grad=grad, y=y if value is None else value, kept=winners, first=first, second=second, number=number, dx=dx,
        total=total, channels=dx.shape[1], x_strides=(0,) * 5 if x is None else strides(x, grid.nd),
        grad_strides=strides(grad, grid.nd), out_strides=strides(y, grid.nd),
        **_settings(recipe, grid), **_masked(mask, grid), **_spans(grid), **tables, **_divided(recipe, grid),
        k1=grid.taps[1], k2=grid.taps[2],
        SHARE=SHARES[_op(recipe)], FLAG=recipe.plain_gradient,
        TAP=recipe.op == "max", KEEP_STATE=first is not None, KEEP_NUMBER=number is not None,
        LAST=in_pixels(dx), ND=grid.nd, WIDE=wide(dx, grad, y) or _far(grid), R=lanes, num_warps=4, enable_fp_fusion=False,
    )  # fmt: skip


def slope(
    x: Tensor, y: Tensor, kept: Sequence[Tensor | None], mask: Tensor | None, recipe: Recipe, grid: Grid, result: Tensor
) -> None:
    """Write what each window's value gains with the parameter."""
    _, value, first, second, number = there(kept)
    total = result.numel()
    if total == 0:
        return
    tiles = Tiles(64, 16, 4)
    if grid.running is not None:  # a window at a time, like any other that a table lists
        grid = replace(grid, kinds=tuple(TABLE if kind == RUN else kind for kind in grid.kinds))
    kernels.slope[(triton.cdiv(total, tiles.lanes),)](
        x=x, y=y if value is None else value, first=first, second=second, number=number, result=result,
        total=total, channels=x.shape[1], x_strides=strides(x, grid.nd),
        **_settings(recipe, grid), **_masked(mask, grid), **_spans(grid),
        k0=grid.taps[0], k1=grid.taps[1], k2=grid.taps[2],
        SLOPE=SLOPES[recipe.op], KEEP_NUMBER=number is not None,
        LAST=in_pixels(y), ND=grid.nd, WIDE=wide(x, result) or _far(grid), R=tiles.lanes, T=tiles.taps,
        num_warps=tiles.warps, enable_fp_fusion=False,
    )  # fmt: skip


def _lines(grid: Grid, y: Tensor, *others: Tensor | None) -> dict[str, Any]:
    """The lines of a map that windows run along, and lanes: a line each, or along memory a tile of them."""
    axis = grid.running or 0
    spatial = [numbers[0] for numbers in grid.axes]
    n = spatial[axis]
    return {
        "total": y.numel() // n, "channels": y.shape[1], "n": n,
        "sides": tuple(1 if number == axis else side for number, side in enumerate(spatial)),
        "REVERSE": grid.axes[axis][2] < 0, "LAST": in_pixels(y), "ND": grid.nd,
        "WIDE": wide(y, *(other for other in others if other is not None)), "num_warps": 4, "enable_fp_fusion": False,
    }  # fmt: skip


def _stepped(name: str, t: Tensor | None, grid: Grid) -> dict[str, Any]:
    """Strides across lines, and along."""
    steps = (0,) * 5 if t is None else strides(t, grid.nd)
    return {f"{name}_strides": steps, f"{name}_step": steps[2 + (grid.running or 0)]}


def _along_memory(recipe: Recipe, grid: Grid, *tensors: Tensor | None) -> bool:
    """Whether a line's elements lie side by side, and the reducer can take a block of them at once."""
    axis = grid.running or 0
    return recipe.op in SWEEPS and all(t is None or strides(t, grid.nd)[2 + axis] == 1 for t in tensors)


def _walk(lines: int) -> dict[str, int]:
    """Lines that a program walks, two per thread where there are plenty, and elements of each ahead."""
    return {"R": 256 if lines >= 1 << 16 else 128, "T": AHEAD}


def _tile(n: int) -> dict[str, int]:
    """A block of lines, and of their elements."""
    width = min(triton.next_power_of_2(n), BLOCK)
    return {"R": max(1, TILE // width), "T": width}


def run(
    x: Tensor, mask: Tensor | None, recipe: Recipe, grid: Grid, parts: Sequence[Tensor | None], onto: Tensor | None
) -> None:
    """`fold` where windows run along an axis."""
    y, index, winners, value, first, second, number = parts
    if y is None:
        return
    axis = grid.running or 0
    spatial = [numbers[0] for numbers in grid.axes]
    found = _lines(grid, y, x) | _stepped("x", x, grid) | _stepped("mask", mask, grid)
    found |= {"mask": _masked(mask, grid)["mask"], "flat": tuple(spatial[1:]), "flat_step": math.prod(spatial[axis + 1 :])}
    found |= {
        "x": x, "onto": onto, "y": y, "kept": winners, "number": number, "index": index, "fixed": float(recipe.divisor or 1),
        "START": GROUPS[recipe.op][0], "FINISH": GROUPS[recipe.op][3], "FLAG": _flag(recipe, grid.most),
        "DIVISOR": -1 if recipe.op != "mean" else 0 if recipe.divisor is None else 1,
        "MASKED": mask is not None, "ONTO": onto is not None,
        "KEEP_TAP": winners is not None, "KEEP_NUMBER": number is not None, "INDEX": index is not None,
    }  # fmt: skip
    if _along_memory(recipe, grid, x, y):
        tile = _tile(grid.most)
        leaf, scan, join = SWEEPS[recipe.op]
        found |= {"y_strides": strides(y, grid.nd), "LEAF": leaf, "SCAN": scan, "JOIN": join}
        del found["x_step"]
        runs_kernels.sweep[(triton.cdiv(found["total"], tile["R"]),)](**found, **tile)
        return
    found |= _stepped("y", y, grid) | _values(recipe) | _walk(found["total"])
    found |= {
        "exact": value, "first": first, "second": second, "PUSH": GROUPS[recipe.op][1],
        "TAP": recipe.op == "max", "KEEP_STATE": first is not None, "KEEP_EXACT": value is not None,
    }  # fmt: skip
    runs_kernels.run[(triton.cdiv(found["total"], found["R"]),)](**found)


def unrun(
    grad: Tensor, x: Tensor | None, y: Tensor, kept: Sequence[Tensor | None],
    mask: Tensor | None, recipe: Recipe, grid: Grid, dx: Tensor,
) -> None:  # fmt: skip
    """`backward` where windows run along an axis."""
    winners, value, first, second, number = there(kept)
    found = _lines(grid, dx, grad, x) | _stepped("mask", mask, grid) | _stepped("grad", grad, grid)
    found |= {
        "mask": _masked(mask, grid)["mask"], "grad": grad, "kept": winners, "number": number, "dx": dx,
        "fixed": float(recipe.divisor or 1), "DIVISOR": 1 if recipe.divisor is not None else 0,
        "MASKED": mask is not None, "TAP": recipe.op == "max", "KEEP_NUMBER": number is not None,
    }  # fmt: skip
    if _along_memory(recipe, grid, dx):
        tile = _tile(grid.most)
        runs_kernels.unsweep[(triton.cdiv(found["total"], tile["R"]),)](**found, **tile, y_strides=strides(dx, grid.nd))
        return
    found |= _stepped("x", x, grid) | _stepped("y", dx, grid) | _values(recipe) | _walk(found["total"])
    found |= {
        "x": x, "y": y if value is None else value, "first": first, "second": second,
        "SPREAD": SPREADS[recipe.op], "FLAG": recipe.plain_gradient, "KEEP_STATE": first is not None,
    }  # fmt: skip
    runs_kernels.unrun[(triton.cdiv(found["total"], found["R"]),)](**found)
