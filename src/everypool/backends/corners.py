"""Sums of two maxima by the compiled loops: running maxima in one call, each over a map of its own or both over one; and what
rows and columns have found, over the plane."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from everypool.backends import cpu
from everypool.backends.context import has_address
from everypool.backends.layout import Layout
from everypool.backends.linear import LinearMap
from everypool.backends.recipe import Recipe

__all__ = ["Corner", "cross_sum", "make_corner"]

POOL, KEEP, TAKE, GRADIENT = range(4)


@dataclass(frozen=True, eq=False)
class Corner:
    """The plans of both maxima, of one shape and type."""

    first: cpu.Plan
    second: cpu.Plan
    kept: int  # bytes to keep for the gradient

    def __call__(self, *maps: Tensor) -> Tensor:
        """The sum; `maps` is one for both maxima or one for each, (N, C, H, W)."""
        if torch.is_grad_enabled() and any(x.requires_grad for x in maps):
            return _Sum.apply(self, *maps)
        return self.run(POOL, maps, None)

    def run(self, what: int, maps: Sequence[Tensor], kept: Tensor | None) -> Tensor:
        x, other = maps[0].contiguous(), maps[-1].contiguous()
        y = self.first.empty(x, self.first.place)
        self._call(what, x, other, y, y, kept)
        return y

    def gradients(self, grad: Tensor, kept: Tensor, maps: int) -> tuple[Tensor, ...]:
        """Of each of the maps."""
        found = tuple(self.first.empty(grad, self.first.place) for _ in range(maps))
        grad = grad.contiguous()
        self._call(GRADIENT, grad, grad, found[0], found[-1], kept)
        return found

    def linear_map(self, kept: Tensor, maps: int) -> LinearMap:
        """Return the map once its maxima are known, for gradients without an address."""
        shape = self.first.shape
        back: Callable[..., Sequence[Tensor]] = lambda grad: self.gradients(grad, kept, maps)  # noqa: E731
        return LinearMap(lambda *xs: (self.run(TAKE, xs, kept),), back, [shape] * maps, [shape])

    def _call(self, what: int, x: Tensor, other: Tensor, y: Tensor, second: Tensor, kept: Tensor | None) -> None:
        addresses = (x.data_ptr(), other.data_ptr(), y.data_ptr(), second.data_ptr(), 0 if kept is None else kept.data_ptr())
        if not self.first.library.corner(self.first.handle, self.second.handle, what, *addresses):
            raise MemoryError("two running maxima need nothing but memory, and there was none")


def make_corner(recipe: Recipe | str, layouts: tuple[Layout, Layout], shape: tuple[int, ...], dtype: torch.dtype) -> Corner:
    """A corner for maps of that shape.

    Raises:
        Unsupported: no compiled loop does this, with the reason.
    """
    first, second = (cpu.make_plan(recipe, [layout], shape, dtype, False) for layout in layouts)
    kept = first.library.corner_bytes(first.handle, second.handle)
    if kept < 0:
        raise cpu.Unsupported("these running maxima are not added in one call")
    return Corner(first, second, kept)


class _Sum(Function):
    @staticmethod
    def forward(ctx: Any, corner: Corner, *maps: Tensor) -> Tensor:
        kept = corner.first.keep(maps[0], corner.kept)
        ctx.corner, ctx.maps = corner, len(maps)
        ctx.save_for_backward(kept)
        return corner.run(KEEP, maps, kept)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        (kept,) = ctx.saved_tensors
        if not has_address(grad):
            return None, *ctx.corner.linear_map(kept, ctx.maps).apply_transpose(grad)
        if torch.is_grad_enabled():
            return None, *_Back.apply(ctx.corner, kept, ctx.maps, grad)
        return None, *ctx.corner.gradients(grad, kept, ctx.maps)


class _Back(Function):
    """The gradients; they are linear in `grad`, and their own gradient adds up what won."""

    @staticmethod
    def forward(ctx: Any, corner: Corner, kept: Tensor, maps: int, grad: Tensor) -> tuple[Tensor, ...]:
        ctx.corner, ctx.kept = corner, kept
        return corner.gradients(grad, kept, maps)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        if not has_address(*grads):
            return None, None, None, *ctx.corner.linear_map(ctx.kept, len(grads))(*grads)
        return None, None, None, _Forth.apply(ctx.corner, ctx.kept, *grads)


class _Forth(Function):
    @staticmethod
    def forward(ctx: Any, corner: Corner, kept: Tensor, *maps: Tensor) -> Tensor:
        ctx.corner, ctx.kept, ctx.maps = corner, kept, len(maps)
        return corner.run(TAKE, maps, kept)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        if not has_address(grad):
            return None, None, *ctx.corner.linear_map(ctx.kept, ctx.maps).apply_transpose(grad)
        return None, None, *_Back.apply(ctx.corner, ctx.kept, ctx.maps, grad)


def cross_sum(columns: Tensor, rows: Tensor) -> Tensor | None:
    """columns (N, C, 1, W) + rows (N, C, H, 1), into memory that is written once; None where the loops do not do it."""
    if cpu.unsupported_reason(columns) or cpu.unsupported_reason(rows):
        return None
    if not columns.is_floating_point() or columns.dtype not in cpu.TYPES:
        return None
    if columns.numel() * rows.numel() == 0 or not (columns.is_contiguous() and rows.is_contiguous()):
        return None
    return _Cross.apply(columns, rows)


class _Cross(Function):
    @staticmethod
    def forward(ctx: Any, columns: Tensor, rows: Tensor) -> Tensor:
        n, c, _, wide = columns.shape
        y = columns.new_empty((n, c, rows.shape[2], wide))
        library: Any = cpu.library()
        addresses = (columns.data_ptr(), rows.data_ptr(), y.data_ptr())
        if not library.cross(cpu.TYPES[columns.dtype], n * c, rows.shape[2], wide, *addresses):
            raise MemoryError("a sum over a plane needs nothing but memory, and there was none")
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        return grad.sum(2, keepdim=True), grad.sum(3, keepdim=True)
