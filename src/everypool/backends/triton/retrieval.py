"""Retrieval from stored patterns as operators: u z^T, its softmax over the patterns, and the mean pattern so weighted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from everypool.backends.context import is_tracing
from everypool.backends.gradients import by_definition
from everypool.backends.triton.registry import TYPES, define

__all__ = ["Retrieval"]

WIDEST = 4096  # elements of a pattern that fit the registers of the threads that share it
MASKS = "Tensor? counts, Tensor? pairs, int heads, float? eps"


def _retrieve(x: Tensor, u: Tensor, *masks: Any) -> tuple[Tensor, ...]:
    from everypool.backends.triton import retrieval_kernels

    parts = _retrieve_fake(x, u)
    retrieval_kernels.retrieve(x, u.contiguous(), *masks, *parts)
    return parts


def _retrieve_fake(x: Tensor, u: Tensor, *masks: Any) -> tuple[Tensor, ...]:
    samples, states = x.shape[0], u.shape[1]
    return (u.new_empty((samples, states, x.shape[2])), *(u.new_empty((samples, states)) for _ in range(3)))


def _backward(
    grad: Tensor, x: Tensor, u: Tensor, mean: Tensor, top: Tensor, weight: Tensor,
    counts: Tensor | None, pairs: Tensor | None, heads: int, eps: float | None, needs: list[bool],
) -> list[Tensor]:  # fmt: skip
    from everypool.backends.triton import retrieval_kernels

    dx = torch.empty_like(x) if needs[0] else None
    rows = grad.contiguous(), x, u.contiguous(), mean, top, weight
    du = retrieval_kernels.backward(*rows, counts, pairs, heads, eps, dx, needs[1])
    return [found for found in (dx, du) if found is not None]


def _backward_fake(grad: Tensor, x: Tensor, u: Tensor, *rest: Any) -> list[Tensor]:
    like = (torch.empty_like(x), u.new_empty(u.shape))
    return [part for part, needed in zip(like, rest[-1], strict=True) if needed]


define("fused_retrieve", f"(Tensor x, Tensor u, {MASKS}) -> (Tensor, Tensor, Tensor, Tensor)", _retrieve, _retrieve_fake)
define(
    "fused_retrieve_backward",
    f"(Tensor grad, Tensor x, Tensor u, Tensor mean, Tensor top, Tensor weight, {MASKS}, bool[] needs) -> Tensor[]",
    _backward,
    _backward_fake,
)


@dataclass(frozen=True, eq=False)
class Retrieval:
    """What states u (1 or N, heads * L, D) retrieve from patterns x (N, S, D): the mean pattern, and the sum of associations.

    Args:
        heads: number of heads.
        eps: of the standardisation of patterns, None for none.
        counts: (N, S), True where a pattern counts; the others must be finite all the same.
        pairs: the association mask, (N or 1, heads or 1, L, S), bool (True: not associated) or added to the scores.
        define: the mean patterns by the definition, for gradients of gradients.
    """

    heads: int
    eps: float | None
    counts: Tensor | None
    pairs: Tensor | None
    define: Callable[[Tensor, Tensor], Tensor] | None

    def refusal(self, x: Tensor) -> str | None:
        """Why the kernels do not do this for patterns x."""
        if x.dtype not in TYPES:
            return f"{x.dtype} has no fused kernel: sums are made in float32"
        if x.shape[2] > WIDEST:
            return f"patterns of more than {WIDEST} elements have no fused kernel: they do not fit the registers"
        if self.pairs is not None and self.pairs.requires_grad:
            return "an association mask that is learned has no fused kernel"
        return None

    def common(self) -> tuple[Any, ...]:
        pairs = None if self.pairs is None else self.pairs.detach()
        return self.counts, pairs, self.heads, self.eps

    def __call__(self, x: Tensor, u: Tensor, *idle: Tensor) -> tuple[Tensor, Tensor]:
        """(N, heads * L, D) and (N, heads * L), in float32; `idle` is what they do not depend on: its gradient is zero."""
        if torch.is_grad_enabled() and any(part.requires_grad for part in (x, u, *idle)):
            mean, total = _Graph.apply(x, u, self, *idle)
        else:
            mean, total, *_ = torch.ops.everypool.fused_retrieve(x, u, *self.common())
        return mean, total


class _Graph(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, u: Tensor, retrieval: Retrieval, *idle: Tensor) -> Any:
        mean, total, top, weight = torch.ops.everypool.fused_retrieve(x, u, *retrieval.common())
        ctx.retrieval = retrieval
        ctx.save_for_backward(x, u, mean, top, weight, *idle)
        ctx.mark_non_differentiable(total)  # it is 1 or 0 wherever there is a slope
        return mean, total

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Any) -> Any:
        x, u, mean, top, weight, *idle = ctx.saved_tensors
        retrieval: Retrieval = ctx.retrieval
        needs = list(ctx.needs_input_grad[:2])
        dx = du = None
        if any(needs) and torch.is_grad_enabled() and not is_tracing():
            dx, du = by_definition(retrieval.define(x, u), (x, u), needs, grad)  # type: ignore[misc]
        elif any(needs):
            made = (grad, x, u, mean, top, weight)
            found = iter(torch.ops.everypool.fused_retrieve_backward(*made, *retrieval.common(), needs))
            dx, du = (next(found) if needed else None for needed in needs)
        return dx, du, None, *(torch.zeros_like(part) for part in idle)
