"""Pooling over boxes as operators."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from everypool.backends.context import is_tracing
from everypool.backends.gradients import by_definition
from everypool.backends.layout import in_pixels
from everypool.backends.recipe import Recipe
from everypool.backends.triton.grid import Unsupported
from everypool.backends.triton.operators import WEIGHED, WINNERS, of_values, recipe_of, told
from everypool.backends.triton.registry import define, laid_out, present

__all__ = ["OUTSIDE", "Pooled", "Spots", "spots_of"]

OUTSIDE = -2  # a sample's cell where it lies outside the map: next to no cell
LIMIT = (1 << 31) - 1  # cells of an axis and samples of a bin, which are counted in 32 bits

COMMON = (
    "Tensor sample, Tensor[] tables, SymInt[] out, SymInt[] taps, int ratio, Tensor? mask, Tensor? values, str op, "
    "float[] numbers, bool[] flags, bool bytes, bool last"
)
SCHEMAS = {
    "fused_boxes": f"(Tensor x, {COMMON}, bool keep) -> Tensor[]",
    "fused_boxes_backward": f"(Tensor grad, Tensor? x, Tensor y, Tensor[] kept, SymInt[] shape, {COMMON}) -> Tensor",
    "fused_boxes_slope": f"(Tensor x, Tensor y, Tensor[] kept, {COMMON}) -> Tensor",
}


@dataclass(frozen=True, eq=False)
class Spots:
    """Where the values of R boxes' bins are taken from, a product of axes.

    The tables of an axis: how many samples a bin has (R, out); the first of the two cells that a sample lies between
    (R, out, taps), or `OUTSIDE`; the second cell's share. Of whole cells: how many, and the first (R, out).
    """

    sample: Tensor  # (R,): of which map
    tables: tuple[Tensor, ...]
    out: tuple[int, ...]
    taps: tuple[int, ...]  # bounds of what a bin holds along each axis
    ratio: int  # what every bin holds along each axis; 0 where they differ

    @property
    def between(self) -> bool:
        """Samples lie between cells."""
        return len(self.tables) == 3 * len(self.out)

    @property
    def most(self) -> int:
        """Samples of a bin at most."""
        return math.prod(self.taps)

    def held(self) -> Tensor:
        """(R, 1, *out): a bin has a sample."""
        nd = len(self.out)
        counts = self.tables[:: len(self.tables) // nd]
        shapes = [[-1, *[1] * (axis + 1), counts[axis].shape[1], *[1] * (nd - 1 - axis)] for axis in range(nd)]
        return functools.reduce(torch.mul, [(n > 0).reshape(shape) for n, shape in zip(counts, shapes, strict=True)])


def spots_of(
    sample: Tensor, axes: Sequence[tuple[Any, Tensor]], spatial: Sequence[int], out: Sequence[int], ratio: int
) -> Spots:
    """From an axis' (first cell, second cell, share of the second, whether on the map) of each sample, and which exist.

    Raises:
        Unsupported: too many cells or samples to be counted in 32 bits.
    """
    tables: list[Tensor] = []
    for (first, _, share, inside), exists in axes:
        tables.append(exists.sum(2, dtype=torch.int32))
        if share is None:
            tables.append(first[:, :, 0].to(torch.int32))
        else:
            tables += [torch.where(inside & exists, first, OUTSIDE).to(torch.int32), share.to(torch.float32)]
    spots = Spots(sample, tuple(tables), tuple(out), tuple(exists.shape[2] for _, exists in axes), ratio)
    if spots.most > LIMIT or math.prod(spatial) > LIMIT:
        raise Unsupported(f"bins of more than {LIMIT} samples, or maps of more cells, have no fused kernel")
    return spots


def parts_of(
    x: Tensor, spots: Spots, recipe: Recipe, mask: Tensor | None, bytes: bool, last: bool, keep: bool
) -> list[Tensor | None]:
    """Memory for all that the forward pass writes: value, which bins hold something (where a mask may leave them empty),
    winners, value in float32, what weighs most, what all weigh, and number. `bytes`: a winner fits one."""
    shape = (spots.sample.shape[0], x.shape[1], *spots.out)
    weighed = keep and recipe.op in WEIGHED
    single = torch.float32
    wanted = [
        x.dtype,
        None,
        None if recipe.op != "max" or not keep else torch.uint8 if bytes else torch.int32,
        single if weighed and x.dtype != single else None,
        single if weighed else None,
        single if weighed else None,
        single if keep and mask is not None and recipe.op != "max" else None,
    ]
    parts = [None if dtype is None else laid_out(x, shape, dtype, last) for dtype in wanted]
    if mask is not None:
        parts[1] = torch.empty((shape[0], mask.shape[1], *spots.out), dtype=torch.bool, device=x.device)
    return parts


def _unpacked(common: Sequence[Any]) -> tuple[Tensor | None, Recipe, Spots, bool]:
    sample, tables, out, taps, ratio, mask, values, op, numbers, flags, _, last = common
    return mask, recipe_of(op, numbers, flags, values), Spots(sample, tuple(tables), tuple(out), tuple(taps), ratio), last


def _parts(x: Tensor, common: Sequence[Any]) -> list[Tensor | None]:
    *boxes, keep = common
    mask, recipe, spots, last = _unpacked(boxes)
    return parts_of(x, spots, recipe, mask, boxes[-2], last, keep)


def _fold(x: Tensor, *common: Any) -> list[Tensor]:
    from everypool.backends.triton import boxes_launch

    parts = _parts(x, common)
    mask, recipe, spots, last = _unpacked(common[:-1])
    boxes_launch.fold(x, mask, recipe, spots, last, parts)
    return present(parts, x)


def _fold_fake(x: Tensor, *common: Any) -> list[Tensor]:
    return present(_parts(x, common), x)


def _backward(grad: Tensor, x: Tensor | None, y: Tensor, kept: list[Tensor], shape: list[int], *common: Any) -> Tensor:
    from everypool.backends.triton import boxes_launch

    mask, recipe, spots, last = _unpacked(common)
    dx = _backward_fake(grad, x, y, kept, shape, *common)
    boxes_launch.backward(grad, x, y, kept, mask, recipe, spots, last, dx)
    return dx


def _backward_fake(grad: Tensor, x: Tensor | None, y: Tensor, kept: list[Tensor], shape: list[int], *common: Any) -> Tensor:
    return laid_out(grad, shape, y.dtype, common[-1])


def _slope(x: Tensor, y: Tensor, kept: list[Tensor], *common: Any) -> Tensor:
    from everypool.backends.triton import boxes_launch

    mask, recipe, spots, last = _unpacked(common)
    result = _slope_fake(x, y, kept, *common)
    boxes_launch.slope(x, y, kept, mask, recipe, spots, last, result)
    return result


def _slope_fake(x: Tensor, y: Tensor, kept: list[Tensor], *common: Any) -> Tensor:
    return laid_out(y, y.shape, torch.float32, common[-1])


for _name, _body, _fake in (
    ("fused_boxes", _fold, _fold_fake),
    ("fused_boxes_backward", _backward, _backward_fake),
    ("fused_boxes_slope", _slope, _slope_fake),
):
    define(_name, SCHEMAS[_name], _body, _fake)


@dataclass(frozen=True, eq=False)
class Pooled:
    """One call: a reducer over boxes. `define` computes the same by the definition, for gradients of gradients."""

    recipe: Recipe
    spots: Spots
    mask: Tensor | None
    last: bool  # channels of the map lie side by side
    define: Callable[[Tensor], Tensor] | None

    @classmethod
    def of(
        cls, recipe: Recipe, spots: Spots, x: Tensor, mask: Tensor | None, define: Callable[[Tensor], Tensor] | None
    ) -> Pooled:
        """The call for a map like x.

        Raises:
            Unsupported: no kernel does this.
        """
        if recipe.op == "centre":
            raise Unsupported("the sample in the middle of a bin has no fused kernel")
        if recipe.op == "median":
            raise Unsupported("no fused kernel puts the samples of a bin in order")
        return cls(recipe, spots, mask, in_pixels(x), define)

    def common(self) -> tuple[Any, ...]:
        spots = self.spots
        values, *recipe = told(self.recipe)
        boxes = spots.sample, list(spots.tables), list(spots.out), list(spots.taps), spots.ratio
        # whether a winner fits a byte is told, not found again: where sizes are symbols, both sides must find the same
        return *boxes, self.mask, values, *recipe, spots.most <= WINNERS, self.last

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The values (R, C, *out), and (R, 1 or C, *out) which bins hold something."""
        values = self.recipe.parameter if isinstance(self.recipe.parameter, Tensor) else None
        if torch.is_grad_enabled() and (x.requires_grad or (values is not None and values.requires_grad)):
            y, there = _Graph.apply(x, values, self)
        else:
            y, there, *_ = torch.ops.everypool.fused_boxes(x, *self.common(), False)
        return y, self.spots.held() if self.mask is None else there


class _Graph(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, values: Tensor | None, pooled: Pooled) -> Any:
        y, there, *kept = torch.ops.everypool.fused_boxes(x, *pooled.common(), True)
        ctx.pooled = pooled
        ctx.save_for_backward(x, values, y, *kept)
        ctx.mark_non_differentiable(there)
        return y, there

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *others: Any) -> Any:
        x, values, y, *kept = ctx.saved_tensors
        pooled: Pooled = ctx.pooled
        needs_x, needs_values = ctx.needs_input_grad[:2]
        if torch.is_grad_enabled() and not is_tracing():
            return *by_definition(pooled.define(x), (x, values), (needs_x, needs_values), grad), None  # type: ignore[misc]
        needed = x if pooled.recipe.op in WEIGHED else None
        common = pooled.common()
        dx = torch.ops.everypool.fused_boxes_backward(grad, needed, y, kept, list(x.shape), *common) if needs_x else None
        slope = None
        if needs_values and values is not None:
            slope = of_values(torch.ops.everypool.fused_boxes_slope(x, y, kept, *common) * grad, values)
        return dx, slope, None
