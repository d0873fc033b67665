"""From operators to launches: tiles, and what each kernel is told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from everypool.backends.layout import in_pixels
from everypool.backends.recipe import Recipe
from everypool.backends.triton import kernels
from everypool.backends.triton.grid import TABLES, Grid
from everypool.backends.triton.groups import GROUPS, SHARES, SLOPES
from everypool.backends.triton.registry import there

__all__ = ["backward", "fold", "slope"]

LIMIT = (1 << 31) - 1  # beyond, indices are computed in 64 bits
UNROLLED = 32  # taps up to which a window is written out


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


def _wide(*tensors: Tensor) -> bool:
    """Whether some index or place does not fit 32 bits."""
    return any(1 + sum((n - 1) * abs(step) for n, step in zip(t.shape, t.stride(), strict=True)) > LIMIT for t in tensors)


def _op(recipe: Recipe) -> str:
    """A value in the middle is the mean of windows of one element."""
    return "mean" if recipe.op == "centre" else recipe.op


def _settings(recipe: Recipe, grid: Grid) -> dict[str, Any]:
    """What all three kernels are told of reducer and windows."""
    parameter = recipe.parameter
    learned = isinstance(parameter, Tensor)
    found: dict[str, Any] = {f"KIND{axis}": kind for axis, kind in enumerate(grid.kinds)}
    found |= {f"axis{axis}": numbers for axis, numbers in enumerate(grid.axes)}
    return found | {
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


def fold(x: Tensor, mask: Tensor | None, recipe: Recipe, grid: Grid, parts: Sequence[Tensor | None]) -> None:
    """Write each window's value, and what else there is memory for, see `operators.parts_of`."""
    y, index, winners, value, first, second, number = parts
    op = _op(recipe)
    total = 0 if y is None else y.numel()
    if y is None or total == 0:
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
        LAST=in_pixels(y), ND=grid.nd, WIDE=_wide(x, y) or _far(grid), R=tiles.lanes, T=tiles.taps,
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
        LAST=in_pixels(dx), ND=grid.nd, WIDE=_wide(dx, grad, y) or _far(grid), R=lanes, num_warps=4, enable_fp_fusion=False,
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
    kernels.slope[(triton.cdiv(total, tiles.lanes),)](
        x=x, y=y if value is None else value, first=first, second=second, number=number, result=result,
        total=total, channels=x.shape[1], x_strides=strides(x, grid.nd),
        **_settings(recipe, grid), **_masked(mask, grid), **_spans(grid),
        k0=grid.taps[0], k1=grid.taps[1], k2=grid.taps[2],
        SLOPE=SLOPES[recipe.op], KEEP_NUMBER=number is not None,
        LAST=in_pixels(y), ND=grid.nd, WIDE=_wide(x, result) or _far(grid), R=tiles.lanes, T=tiles.taps,
        num_warps=tiles.warps, enable_fp_fusion=False,
    )  # fmt: skip
