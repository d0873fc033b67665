"""Launches of the kernels over boxes, some boxes at a time where a gradient would need much memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import triton
from torch import Tensor

from everypool.backends.recipe import Recipe
from everypool.backends.triton import boxes_kernels
from everypool.backends.triton.boxes import Spots
from everypool.backends.triton.groups import GROUPS, SHARES, SLOPES
from everypool.backends.triton.launch import flag_of, given, strides, values_of, wide
from everypool.backends.triton.operators import WEIGHED
from everypool.backends.triton.registry import laid_out, there

__all__ = ["backward", "fold", "slope"]

UNROLLED = 16  # cells up to which a bin is written out
HELD = 1 << 28  # numbers that a gradient may keep at once
BOXES = 128  # looked at together


def _tables(spots: Spots) -> dict[str, Any]:
    """Counts, cells and shares per axis, of three axes."""
    nd = len(spots.out)
    per = len(spots.tables) // nd
    rows = [None] * (3 - nd)
    tables = [table.contiguous() for table in spots.tables]
    return {
        "counts": (*rows, *tables[::per]),
        "cells": (*rows, *tables[1::per]),
        "shares": (*rows, *tables[2::per]) if spots.between else (None,) * 3,
    }


def _three(numbers: Sequence[int]) -> tuple[int, ...]:
    return (*[1] * (3 - len(numbers)), *numbers)


def _settings(recipe: Recipe, spots: Spots, mask: Tensor | None, last: bool) -> dict[str, Any]:
    """What the kernels are told of reducer and boxes."""
    return _tables(spots) | values_of(recipe) | given(mask, recipe) | {
        "mask_strides": (0,) * 5 if mask is None else strides(mask, len(spots.out)),
        "out": _three(spots.out), "taps": _three(spots.taps),
        "fixed": float(recipe.divisor or 1), "DIVISOR": -1 if recipe.op != "mean" else 0 if recipe.divisor is None else 1,
        "BETWEEN": spots.between, "MASKED": 0 if mask is None else 1 if mask.shape[1] == 1 else 2,
        "LAST": last, "ND": len(spots.out), "num_warps": 4, "enable_fp_fusion": False,
    }  # fmt: skip


def _places(y: Tensor, x: Tensor, spots: Spots, last: bool) -> tuple[tuple[int], dict[str, Any]]:
    """The grid over bins and channels, and what the kernels are told of it and of the map."""
    channels, nd = y.shape[1], len(spots.out)
    total = y.numel() // channels
    # channels that lie side by side are read so; else few of them, and bins whose samples lie near one another
    places, block = ((16, 64) if channels > 16 else (64, 16)) if last else (64, 16) if channels > 4 else (256, 4)
    told = {
        "total": total, "samples": x.shape[0], "channels": channels, "sizes": _three(x.shape[2:]),
        "x": x, "x_strides": strides(x, nd), "sample": spots.sample.contiguous(), "Q": places, "C": block,
    }  # fmt: skip
    return (triton.cdiv(total, places) * triton.cdiv(channels, block),), told


def fold(x: Tensor, mask: Tensor | None, recipe: Recipe, spots: Spots, last: bool, parts: Sequence[Tensor | None]) -> None:
    """Write each bin's value, and what else there is memory for, see `boxes.parts_of`."""
    y, held, winners, value, first, second, number = parts
    if y is None or y.numel() == 0:
        return
    start, push, _, finish = GROUPS[recipe.op]
    written_out = mask is None and 0 < (2 * spots.ratio) ** len(spots.out) <= UNROLLED
    grid, told = _places(y, x, spots, last)
    boxes_kernels.fold_bins[grid](
        y=y, held=None if held is None else held.view(torch.uint8), exact=value, kept=winners, first=first, second=second,
        number=number, mask_channels=0 if mask is None else mask.shape[1], **told, **_settings(recipe, spots, mask, last),
        START=start, PUSH=push, FINISH=finish, FLAG=flag_of(recipe, spots.most),
        RATIO=spots.ratio, UNROLL=spots.ratio ** len(spots.out) if written_out else 0,
        KEEP_TAP=winners is not None, KEEP_STATE=first is not None, KEEP_EXACT=value is not None,
        KEEP_NUMBER=number is not None, WIDE=wide(x, y, *spots.tables),
    )  # fmt: skip


def _each(
    x: Tensor, grad: Tensor | None, y: Tensor, kept: Sequence[Tensor | None], mask: Tensor | None,
    recipe: Recipe, spots: Spots, last: bool, room: Sequence[int], gs: Tensor | None, gained: Tensor | None,
) -> None:  # fmt: skip
    """Write each sample's gradient, or what each bin's value gains with the parameter."""
    winners, value, first, second, number = kept
    grid, told = _places(y, x, spots, last)
    slope = gained is not None
    boxes_kernels.each_sample[grid](
        grad=grad, y=y if value is None else value, kept=winners, first=first, second=second, number=number, gs=gs,
        gained=gained, grad_strides=(0,) * 5 if grad is None else strides(grad, len(spots.out)), room=_three(room),
        **told, **_settings(recipe, spots, mask, last),
        SHARE=SHARES[recipe.op], SLOPE=SLOPES[recipe.op] if slope else None, FLAG=recipe.plain_gradient,
        TAP=recipe.op == "max", KEEP_STATE=first is not None, KEEP_NUMBER=number is not None, SLOPES=slope,
        WIDE=wide(x, y, *spots.tables, *(t for t in (grad, gs) if t is not None)),
    )  # fmt: skip


def slope(
    x: Tensor, y: Tensor, kept: Sequence[Tensor], mask: Tensor | None, recipe: Recipe, spots: Spots, last: bool, result: Tensor
) -> None:
    """Write what each bin's value gains with the parameter."""
    if result.numel() > 0:
        _each(x, None, y, there(kept), mask, recipe, spots, last, spots.taps, None, result)


def backward(
    grad: Tensor, x: Tensor | None, y: Tensor, kept: Sequence[Tensor], mask: Tensor | None,
    recipe: Recipe, spots: Spots, last: bool, dx: Tensor,
) -> None:  # fmt: skip
    """Write the map's gradient, some boxes at a time where there are many."""
    if dx.numel() == 0:
        return
    boxes, channels = y.shape[:2]
    # winners and means are found again without looking at samples; so is what whole cells get
    given = spots.between and (recipe.op in WEIGHED or mask is not None)
    room = spots.taps if given else [0] * len(spots.out)
    size = channels * math.prod(spots.out)
    if given and boxes * size * math.prod(room) > HELD:  # bounds may lie far above what is asked for
        room = [max(1, int(count.max())) for count in _tables(spots)["counts"] if count is not None]
    tables = 2 * sum(dx.shape[2:])
    step = max(1, HELD // max(size * math.prod(room), tables))
    total = dx if boxes <= step or dx.dtype == torch.float32 else torch.empty_like(dx, dtype=torch.float32)
    for start in range(0, max(boxes, 1), step):
        part = slice(start, start + step)
        own = replace(spots, sample=spots.sample[part], tables=tuple(table[part] for table in spots.tables))
        some = [None if t is None else t[part] for t in there(kept)]
        _backward(grad[part], x, y[part], some, mask, recipe, own, last, room if given else None, total, start > 0)
    if total is not dx:
        dx.copy_(total)


def _backward(
    grad: Tensor, x: Tensor | None, y: Tensor, kept: Sequence[Tensor | None], mask: Tensor | None,
    recipe: Recipe, spots: Spots, last: bool, room: Sequence[int] | None, dx: Tensor, more: bool,
) -> None:  # fmt: skip
    """Write, or with `more` add, what some boxes give the map."""
    gs = None
    if room is not None:
        shape = (y.shape[0], y.shape[1], *(out * k for out, k in zip(spots.out, room, strict=True)))
        gs = laid_out(y, shape, torch.float32, last)
        if gs.numel() > 0:
            source = dx if x is None else x  # of means, only the mask is looked at
            _each(source, grad, y, kept, mask, recipe, spots, last, room, gs, None)
    nd = len(spots.out)
    winners, value, first, second, number = kept if gs is None else [None] * 5
    settings = _settings(recipe, spots, mask, last)
    if gs is not None:
        settings["LIFT"] = 0
    ranges = _ranges(spots, dx.shape[2:])
    order, offsets = _by_sample(spots.sample, dx.shape[0])
    block = 16 if dx.shape[1] <= 16 else 64 if first is None else 32
    pixels = ((1, 1, 32), (1, 2, 16), (2, 2, 8))[nd - 1]
    sizes = _three(dx.shape[2:])
    tiles = math.prod(triton.cdiv(n, p) for n, p in zip(sizes, pixels, strict=True))
    boxes_kernels.gather[(dx.shape[0] * tiles * triton.cdiv(dx.shape[1], block),)](
        x=x, grad=grad, gs=gs, y=y if value is None else value, kept=winners, first=first, second=second, number=number,
        dx=dx, order=order, offsets=offsets, channels=dx.shape[1], room=_three(room or spots.taps), sizes=sizes,
        x_strides=(0,) * 5 if x is None else strides(x, nd), dx_strides=strides(dx, nd), grad_strides=strides(grad, nd),
        **settings, **ranges, SHARE=SHARES[recipe.op], FLAG=recipe.plain_gradient,
        TAP=recipe.op == "max" and gs is None, KEEP_STATE=first is not None, KEEP_NUMBER=number is not None,
        GIVEN=gs is not None, MORE=more,
        WIDE=wide(dx, grad, y, *spots.tables, *ranges["begins"][3 - nd :], *(t for t in (x, gs) if t is not None)),
        P0=pixels[0], P1=pixels[1], P2=pixels[2], C=block, B=BOXES,
    )  # fmt: skip


def _ranges(spots: Spots, spatial: Sequence[int]) -> dict[str, Any]:
    """Per axis: from which to which sample each box may touch each cell, the cells that it touches, the longest range."""
    boxes, device = spots.sample.shape[0], spots.sample.device
    nd = len(spots.out)
    names = ("begins", "ends", "lows", "highs", "longest")
    found: list[list[Any]] = [[None] * (3 - nd) for _ in names]
    tables = _tables(spots)
    for axis, n in enumerate(spatial, 3 - nd):
        made = [torch.empty(shape, dtype=torch.int32, device=device) for shape in ((boxes, n),) * 2 + ((boxes,),) * 3]
        for row, table in zip(found, made, strict=True):
            row.append(table)
        counts, cells = tables["counts"][axis], tables["cells"][axis]
        if boxes > 0:
            boxes_kernels.touching[(boxes,)](
                count=counts, cells=cells, begin=made[0], end=made[1], first=made[2], last=made[3], longest=made[4],
                n=n, out=counts.shape[1], k=cells.shape[2] if spots.between else 1, BETWEEN=spots.between,
                WIDE=wide(made[0], cells), S=16, CELLS=128, num_warps=4,
            )  # fmt: skip
    return dict(zip(names, map(tuple, found), strict=True))


def _by_sample(sample: Tensor, samples: int) -> tuple[Tensor, Tensor]:
    """The boxes in the order of their samples, and where each sample's begin."""
    ordered, order = torch.sort(sample, stable=True)
    offsets = torch.searchsorted(ordered, torch.arange(samples + 1, device=sample.device), out_int32=True)
    return order.to(torch.int32), offsets
