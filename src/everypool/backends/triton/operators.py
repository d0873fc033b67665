"""Folds over windows as operators."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from everypool.backends.axes import traced
from everypool.backends.recipe import Recipe
from everypool.backends.triton.grid import NUMBERS, Grid
from everypool.backends.triton.registry import define, laid_out, present

__all__ = ["Fused"]

FLAGS = ("last", "index", "cells", "absolute", "sum", "plain_gradient", "upper")
WEIGHED = ("power", "soft", "logsumexp")
WINNERS = 255  # taps that fit a byte, of which 255 means none

SCHEMAS = {
    "fused_fold": "(Tensor x, Tensor? onto, {common}, bool keep) -> Tensor[]",
    "fused_fold_backward": "(Tensor grad, Tensor? x, Tensor y, Tensor?[] kept, {common}) -> Tensor",
    "fused_fold_slope": "(Tensor x, Tensor y, Tensor?[] kept, {common}) -> Tensor",
}
COMMON = (
    "Tensor? mask, Tensor? values, Tensor?[] tables, SymInt[] axes, SymInt[] taps, int[] kinds, int nd, str op, "
    "float[] numbers, bool[] flags, bool bytes"
)


def parts_of(x: Tensor, grid: Grid, recipe: Recipe, masked: bool, bytes: bool, keep: bool) -> list[Tensor | None]:
    """Memory for all that the forward pass writes: value, position, winners, value in float32, what weighs most, what all
    weigh, and number. `bytes`: a winner fits one."""
    shape = (*x.shape[:2], *grid.out)
    weighed = keep and recipe.op in WEIGHED
    single = torch.float32
    wanted = [
        x.dtype,
        torch.int64 if recipe.index else None,
        None if recipe.op != "max" or not keep else torch.uint8 if bytes else torch.int32,
        single if weighed and x.dtype != single else None,
        single if weighed else None,
        single if weighed else None,
        single if keep and masked and recipe.op != "max" else None,
    ]
    return [None if dtype is None else laid_out(x, shape, dtype) for dtype in wanted]


def recipe_of(op: str, numbers: Sequence[float], flags: Sequence[bool], values: Tensor | None) -> Recipe:
    parameter, eps, divisor = numbers
    settings = dict(zip(FLAGS, flags, strict=True))
    whole = None if divisor == 0 else int(divisor)
    return Recipe(op, parameter if values is None else values, divisor=whole, eps=eps, **settings)


def grid_again(
    axes: Sequence[int], taps: Sequence[int], kinds: Sequence[int], nd: int, tables: Sequence[Tensor | None]
) -> Grid:
    rows = tuple(tuple(axes[i : i + NUMBERS]) for i in range(0, 3 * NUMBERS, NUMBERS))
    return Grid(tuple(kinds), rows, tuple(taps), tuple(tables), nd)


def _unpacked(common: Sequence[Any]) -> tuple[Tensor | None, Recipe, Grid]:
    mask, values, tables, axes, taps, kinds, nd, op, numbers, flags, _ = common
    return mask, recipe_of(op, numbers, flags, values), grid_again(axes, taps, kinds, nd, tables)


def _fold(x: Tensor, onto: Tensor | None, *common: Any) -> list[Tensor]:
    from everypool.backends.triton import launch

    parts = _parts(x, common)
    mask, recipe, grid = _unpacked(common[:-1])
    launch.fold(x, mask, recipe, grid, parts, onto)
    return present(parts, x)


def _fold_fake(x: Tensor, onto: Tensor | None, *common: Any) -> list[Tensor]:
    return present(_parts(x, common), x)


def _parts(x: Tensor, common: Sequence[Any]) -> list[Tensor | None]:
    *windows, keep = common
    mask, recipe, grid = _unpacked(windows)
    return parts_of(x, grid, recipe, mask is not None, windows[-1], keep)


def _backward(grad: Tensor, x: Tensor | None, y: Tensor, kept: list[Tensor | None], *common: Any) -> Tensor:
    from everypool.backends.triton import launch

    mask, recipe, grid = _unpacked(common)
    dx = _backward_fake(grad, x, y, kept, *common)
    launch.backward(grad, x, y, kept, mask, recipe, grid, dx)
    return dx


def _backward_fake(grad: Tensor, x: Tensor | None, y: Tensor, kept: Any, *common: Any) -> Tensor:
    _, _, grid = _unpacked(common)
    return laid_out(y, (*y.shape[:2], *grid.spatial), grad.dtype)


def _slope(x: Tensor, y: Tensor, kept: list[Tensor | None], *common: Any) -> Tensor:
    from everypool.backends.triton import launch

    mask, recipe, grid = _unpacked(common)
    result = _slope_fake(x, y, kept)
    launch.slope(x, y, kept, mask, recipe, grid, result)
    return result


def _slope_fake(x: Tensor, y: Tensor, kept: Any, *common: Any) -> Tensor:
    return laid_out(y, y.shape, torch.float32)


for _name, _body, _fake in (
    ("fused_fold", _fold, _fold_fake),
    ("fused_fold_backward", _backward, _backward_fake),
    ("fused_fold_slope", _slope, _slope_fake),
):
    define(_name, SCHEMAS[_name].format(common=COMMON), _body, _fake)


@dataclass(frozen=True, eq=False)
class Fused:
    """One call: a reducer over a grid. `define` computes the same by the definition, for gradients of gradients."""

    recipe: Recipe
    grid: Grid
    mask: Tensor | None
    define: Callable[[Tensor], Tensor] | None

    def common(self) -> tuple[Any, ...]:
        recipe, grid = self.recipe, self.grid
        learned = isinstance(recipe.parameter, Tensor)
        number = 1.0 if learned or recipe.parameter is None else float(recipe.parameter)
        return (
            self.mask,
            recipe.parameter.detach() if learned else None,
            list(grid.tables),
            [number for axis in grid.axes for number in axis],
            list(grid.taps),
            list(grid.kinds),
            grid.nd,
            recipe.op,
            [number, float(recipe.eps), float(recipe.divisor or 0)],
            [getattr(recipe, flag) for flag in FLAGS],
            # told, not found again: where sizes are symbols, both sides must find the same
            grid.running is not None or grid.most <= WINNERS,
        )

    def __call__(self, x: Tensor, onto: Tensor | None = None) -> tuple[Tensor, ...]:
        """The values, and their positions where the recipe asks for them; running values are added to `onto`."""
        values = self.recipe.parameter if isinstance(self.recipe.parameter, Tensor) else None
        if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, values, onto)):
            results = _Graph.apply(x, values, onto, self)
            return results if isinstance(results, tuple) else (results,)
        parts = torch.ops.everypool.fused_fold(x, onto, *self.common(), False)
        return tuple(parts[: 1 + int(self.recipe.index)])


class _Graph(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, values: Tensor | None, onto: Tensor | None, fused: Fused) -> Any:
        parts = torch.ops.everypool.fused_fold(x, onto, *fused.common(), True)
        y, index, *kept = parts
        ctx.fused = fused
        ctx.save_for_backward(x, values, y, *kept)
        if fused.recipe.index:
            ctx.mark_non_differentiable(index)
            return y, index
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *others: Any) -> Any:
        x, values, y, *kept = ctx.saved_tensors
        fused: Fused = ctx.fused
        needs_x, needs_values, needs_onto, _ = ctx.needs_input_grad
        passed = grad if needs_onto else None
        if torch.is_grad_enabled() and not traced():
            return *_defined(fused, x, values, (needs_x, needs_values), grad), passed, None
        needed = x if fused.recipe.op in WEIGHED else None
        common = fused.common()
        dx = torch.ops.everypool.fused_fold_backward(grad, needed, y, kept, *common) if needs_x else None
        slope = None
        if needs_values and values is not None:
            if fused.grid.running is not None and fused.mask is not None:
                grad = grad.masked_fill(~fused.mask, 0)  # no window where its own place does not count
            gained = torch.ops.everypool.fused_fold_slope(x, y, kept, *common) * grad
            slope = gained.sum().reshape(values.shape) if values.numel() == 1 else gained.sum([0, *range(2, gained.dim())])
            slope = slope.to(values.dtype)
        return dx, slope, passed, None


def _defined(fused: Fused, x: Tensor, values: Tensor | None, needs: Sequence[bool], grad: Tensor) -> list[Any]:
    """The gradients by the definition, with a graph of their own."""
    y = fused.define(x)  # type: ignore[misc]
    wanted = [(i, t) for i, t in enumerate((x, values)) if needs[i] and t is not None]
    found = torch.autograd.grad(y, [t for _, t in wanted], grad, create_graph=True, allow_unused=True)
    result: list[Any] = [None, None]
    for (i, _), g in zip(wanted, found, strict=True):
        result[i] = g
    return result
