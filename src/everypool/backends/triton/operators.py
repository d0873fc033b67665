"""Folds over windows as operators."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from everypool.backends.context import is_tracing
from everypool.backends.gradients import by_definition
from everypool.backends.recipe import Recipe
from everypool.backends.triton.grid import NUMBERS, Grid
from everypool.backends.triton.registry import define, direct, laid_out, present

__all__ = ["Fused"]

FLAGS = ("last", "index", "cells", "absolute", "sum", "plain_gradient", "upper", "both")
WEIGHED = ("even_max", "power", "soft", "logsumexp")
CHOSEN = ("max", "median")  # keep which element it was
WINNERS = 255  # taps that fit a byte, of which 255 means none

SCHEMAS = {
    "fused_fold": "(Tensor x, Tensor? onto, {common}, bool keep) -> Tensor[]",
    "fused_fold_backward": "(Tensor grad, Tensor? x, Tensor y, Tensor?[] kept, {common}) -> Tensor",
    "fused_fold_slope": "(Tensor x, Tensor y, Tensor?[] kept, {common}) -> Tensor",
}
COMMON = (
    "Tensor? mask, Tensor? values, Tensor?[] tables, SymInt[] axes, SymInt[] taps, int[] kinds, int nd, bool own, str op, "
    "float[] numbers, bool[] flags, bool bytes"
)


def parts_of(x: Tensor, grid: Grid, recipe: Recipe, masked: bool, bytes: bool, keep: bool) -> list[Tensor | None]:
    """Memory for all that the forward pass writes: value, position, winners, value in float32, what weighs most (or the
    second of two winners), what all weigh, and number. `bytes`: a winner fits one."""
    shape = (*x.shape[:2], *grid.out)
    weighed = keep and recipe.op in WEIGHED
    single = torch.float32
    winner = None if recipe.op not in CHOSEN or not keep else torch.uint8 if bytes else torch.int32
    wanted = [
        x.dtype,
        torch.int64 if recipe.index else None,
        winner,
        single if weighed and x.dtype != single else None,
        single if weighed else winner if recipe.both else None,
        single if weighed else None,
        single if keep and masked and recipe.op not in CHOSEN else None,
    ]
    return [None if dtype is None else laid_out(x, shape, dtype) for dtype in wanted]


def told(recipe: Recipe) -> tuple[Any, ...]:
    """A recipe as an operator is told of it: the parameter's values if they are a tensor, and what `recipe_of` takes."""
    learned = isinstance(recipe.parameter, Tensor)
    number = 1.0 if learned or recipe.parameter is None else float(recipe.parameter)
    numbers = [number, float(recipe.eps), float(recipe.divisor or 0)]
    return recipe.parameter.detach() if learned else None, recipe.op, numbers, [getattr(recipe, flag) for flag in FLAGS]


def recipe_of(op: str, numbers: Sequence[float], flags: Sequence[bool], values: Tensor | None) -> Recipe:
    parameter, eps, divisor = numbers
    settings = dict(zip(FLAGS, flags, strict=True))
    whole = None if divisor == 0 else int(divisor)
    return Recipe(op, parameter if values is None else values, divisor=whole, eps=eps, **settings)


def grid_again(
    axes: Sequence[int], taps: Sequence[int], kinds: Sequence[int], nd: int, own: bool, tables: Sequence[Tensor | None]
) -> Grid:
    rows = tuple(tuple(axes[i : i + NUMBERS]) for i in range(0, 3 * NUMBERS, NUMBERS))
    return Grid(tuple(kinds), rows, tuple(taps), tuple(tables), nd, own)


def _unpacked(common: Sequence[Any]) -> tuple[Tensor | None, Recipe, Grid]:
    mask, values, tables, axes, taps, kinds, nd, own, op, numbers, flags, _ = common
    return mask, recipe_of(op, numbers, flags, values), grid_again(axes, taps, kinds, nd, own, tables)


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


def of_values(gained: Tensor, values: Tensor) -> Tensor:
    """The gradient of a parameter from what all values of the result gain with it."""
    slope = gained.sum().reshape(values.shape) if values.numel() == 1 else gained.sum([0, *range(2, gained.dim())])
    return slope.to(values.dtype)


@dataclass(frozen=True, eq=False)
class Fused:
    """One call: a reducer over a grid. `define` computes the same by the definition, for gradients of gradients."""

    recipe: Recipe
    grid: Grid
    mask: Tensor | None
    define: Callable[[Tensor], Tensor] | None
    known: dict[Any, Any] = field(default_factory=dict)  # launches of earlier calls

    @property
    def bytes(self) -> bool:
        """Whether a winner fits one; told to both passes, which would find different answers where sizes are symbols."""
        return self.grid.running is not None or self.grid.most <= WINNERS

    def common(self) -> tuple[Any, ...]:
        grid = self.grid
        values, *recipe = told(self.recipe)
        axes = [number for axis in grid.axes for number in axis]
        windows = list(grid.tables), axes, list(grid.taps), list(grid.kinds), grid.nd, grid.own
        return self.mask, values, *windows, *recipe, self.bytes

    def __call__(self, x: Tensor, onto: Tensor | None = None) -> tuple[Tensor, ...]:
        """The values, and their positions where the recipe asks for them; running values are added to `onto`."""
        values = self.recipe.parameter if isinstance(self.recipe.parameter, Tensor) else None
        if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, values, onto)):
            results = _Graph.apply(x, values, onto, self)
            return results if isinstance(results, tuple) else (results,)
        parts = self.forward(x, onto, False)
        return tuple(parts[: 1 + int(self.recipe.index)])

    def forward(self, x: Tensor, onto: Tensor | None, keep: bool) -> list[Any]:
        """Values, positions, and with `keep` what the gradient needs."""
        if not direct(x):
            return torch.ops.everypool.fused_fold(x, onto, *self.common(), keep)
        from everypool.backends.triton import launch

        parts = parts_of(x, self.grid, self.recipe, self.mask is not None, self.bytes, keep)
        launch.fold(x, self.mask, self.recipe, self.grid, parts, onto, self.known)
        return parts

    def backward(self, grad: Tensor, x: Tensor | None, y: Tensor, kept: list[Any]) -> Tensor:
        """The input's gradient."""
        if not direct(grad):
            return torch.ops.everypool.fused_fold_backward(grad, x, y, kept, *self.common())
        from everypool.backends.triton import launch

        dx = laid_out(y, (*y.shape[:2], *self.grid.spatial), grad.dtype)
        launch.backward(grad, x, y, kept, self.mask, self.recipe, self.grid, dx, self.known)
        return dx

    def slope(self, x: Tensor, y: Tensor, kept: list[Any]) -> Tensor:
        """What each window's value gains with the parameter."""
        if not direct(x):
            return torch.ops.everypool.fused_fold_slope(x, y, kept, *self.common())
        from everypool.backends.triton import launch

        result = laid_out(y, y.shape, torch.float32)
        launch.slope(x, y, kept, self.mask, self.recipe, self.grid, result, self.known)
        return result


class _Graph(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, values: Tensor | None, onto: Tensor | None, fused: Fused) -> Any:
        y, index, *kept = fused.forward(x, onto, True)
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
        if torch.is_grad_enabled() and not is_tracing():
            return *by_definition(fused.define(x), (x, values), (needs_x, needs_values), grad), passed, None  # type: ignore[misc]
        if fused.grid.own and fused.mask is not None and (needs_values or fused.grid.running is None):
            grad = grad.masked_fill(~fused.mask, 0)  # no window where its own place does not count
        needed = x if fused.recipe.op in WEIGHED else None
        dx = fused.backward(grad, needed, y, kept) if needs_x else None
        slope = None
        if needs_values and values is not None:
            slope = of_values(fused.slope(x, y, kept) * grad, values)
        return dx, slope, passed, None
