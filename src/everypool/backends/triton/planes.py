"""Sums of two maxima over planes as operators: running maxima that meet in a corner, and what rows and columns have found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from everypool.backends.context import is_tracing
from everypool.backends.gradients import by_definition
from everypool.backends.layout import in_pixels
from everypool.backends.triton.registry import define, present

__all__ = ["Planes", "held"]

HELD = 1 << 14  # elements of a plane that a program can hold, both sides rounded up to powers of two


@dataclass(frozen=True, eq=False)
class Planes:
    """One call over maps (N, C, H, W): the maximum down a column plus that along a row.

    Args:
        kind: "corner" for running maxima, "cross" for those of whole lines.
        reverse: running maxima run from the end.
        last: of equal maxima the last gets the gradient.
        define: the same by the definition, for gradients of gradients.
    """

    kind: str
    reverse: bool
    last: bool
    define: Callable[..., Tensor] | None

    def __call__(self, *maps: Tensor) -> Tensor:
        """The sum; `maps` is one for both maxima or one for each."""
        if torch.is_grad_enabled() and any(x.requires_grad for x in maps):
            result: Tensor = _Graph.apply(self, *maps)
            return result
        return self.run(maps, False)[0]

    def run(self, maps: tuple[Tensor, ...], keep: bool) -> list[Tensor]:
        other = maps[1] if len(maps) > 1 else None
        parts: list[Tensor] = torch.ops.everypool.fused_planes(maps[0], other, self.kind, self.reverse, self.last, keep)
        return parts


class _Graph(Function):
    @staticmethod
    def forward(ctx: Any, planes: Planes, *maps: Tensor) -> Tensor:
        y, *kept = planes.run(maps, True)
        ctx.planes, ctx.number = planes, len(maps)
        ctx.save_for_backward(*kept, *(() if planes.define is None else maps))
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        first, second, *maps = ctx.saved_tensors
        planes: Planes = ctx.planes
        if torch.is_grad_enabled() and not is_tracing() and planes.define is not None:
            return None, *by_definition(planes.define(*maps), maps, ctx.needs_input_grad[1:], grad)
        same = ctx.number == 1
        parts = torch.ops.everypool.fused_planes_backward(grad, first, second, planes.kind, planes.reverse, same)
        return None, *parts


def _planes(x: Tensor, other: Tensor | None, kind: str, reverse: bool, last: bool, keep: bool) -> list[Tensor]:
    from everypool.backends.triton import planes_launch

    parts = _parts(x, kind, keep)
    planes_launch.forward(x, other, kind, reverse, last, parts)
    return present(parts, x)


def _planes_fake(x: Tensor, other: Tensor | None, kind: str, reverse: bool, last: bool, keep: bool) -> list[Tensor]:
    return present(_parts(x, kind, keep), x)


def _parts(x: Tensor, kind: str, keep: bool) -> list[Tensor | None]:
    """Memory for the sum and for both maxima's winners: where they are met, or where they are in their line."""
    n, c, high, wide = x.shape
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    if not keep:
        return [y, None, None]
    if kind == "corner":
        return [y, torch.empty_like(y, dtype=torch.uint8), torch.empty_like(y, dtype=torch.uint8)]
    return [y, x.new_empty((n, c, 1, wide), dtype=torch.int32), x.new_empty((n, c, high, 1), dtype=torch.int32)]


def _backward(grad: Tensor, first: Tensor, second: Tensor, kind: str, reverse: bool, same: bool) -> list[Tensor]:
    from everypool.backends.triton import planes_launch

    gradients = _backward_fake(grad, first, second, kind, reverse, same)
    planes_launch.backward(grad, first, second, kind, reverse, gradients)
    return gradients


def _backward_fake(grad: Tensor, first: Tensor, second: Tensor, kind: str, reverse: bool, same: bool) -> list[Tensor]:
    return [torch.empty_like(grad, memory_format=torch.contiguous_format) for _ in range(1 if same else 2)]


define(
    "fused_planes",
    "(Tensor x, Tensor? other, str kind, bool reverse, bool last, bool keep) -> Tensor[]",
    _planes,
    _planes_fake,
)
define(
    "fused_planes_backward",
    "(Tensor grad, Tensor first, Tensor second, str kind, bool reverse, bool same) -> Tensor[]",
    _backward,
    _backward_fake,
)


def held(x: Tensor) -> bool:
    """Whether a program can hold a plane of x, read in the order of memory."""
    size = 1
    for side in x.shape[2:]:
        size <<= max(int(side) - 1, 0).bit_length()
    return size <= HELD and not in_pixels(x)
