"""Gradients of the verbs of `Folds`, of every order: what they save is input and output, never something per tap.

The derivative of a sum over windows is the sum over the windows of each element, and that of `weighted` is `spread` and the
other way round, so these functions are closed under differentiation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd import Function

from everypool.backends.context import resolve_batch

if TYPE_CHECKING:
    from everypool.backends.eager import Folds

__all__ = ["LogMeanExp", "Mean", "SoftMean", "Spread", "Total", "Weighted", "by_definition", "mean_of"]


def by_definition(
    y: Any, tensors: Sequence[Tensor | None], needs: Sequence[bool], grads: Any, *, again: bool = True
) -> list[Tensor | None]:
    """Gradients of the `tensors` that need one, from what the definition has computed of them; with `again` they have a graph
    of their own."""
    wanted = [t for t, needed in zip(tensors, needs, strict=True) if needed and t is not None]
    found = iter(torch.autograd.grad(y, wanted, grads, create_graph=again, allow_unused=True))
    return [next(found) if needed and t is not None else None for t, needed in zip(tensors, needs, strict=True)]


def mean_of(centre: Tensor, total: Tensor, rest: Tensor) -> Tensor:
    """What a `Centred` state stands for; 0 for nothing at all."""
    nothing = total == 0
    return torch.where(nothing, 0.0, centre + rest / torch.where(nothing, 1.0, total))


class Total(Function):
    """Sum over each window, or with `back` over the windows of each element."""

    @staticmethod
    def forward(ctx: Any, v: Tensor, folds: Folds, back: bool) -> Tensor:
        ctx.folds, ctx.back = folds, back
        result: Tensor = folds._blocked(lambda part, v: part._total(v, back), v)
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        with resolve_batch(grad):
            return ctx.folds.total(grad, back=not ctx.back), None, None


class Mean(Function):
    """Sum over each window, divided: the gradient is divided first, so it overflows no sooner than it must."""

    @staticmethod
    def forward(ctx: Any, v: Tensor, number: Any, folds: Folds, wider: bool) -> Tensor:
        ctx.folds, ctx.number = folds, number
        return folds._mean(v, number, wider)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        with resolve_batch(grad):
            return ctx.folds.total(grad / ctx.number, back=True), None, None, None


class LogMeanExp(Function):
    @staticmethod
    def forward(ctx: Any, u: Tensor, folds: Folds) -> Tensor:
        top, mean = folds._blocked(type(folds)._log_mean_exp, u)
        ctx.folds = folds
        ctx.save_for_backward(u, top, mean)
        return top + mean.log1p()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        u, top, mean = ctx.saved_tensors
        folds = ctx.folds
        with resolve_batch(grad):
            if torch.is_grad_enabled():  # the weights' sum has a derivative of its own
                total = folds.weighted(u, top, folds.ones(u.dtype).expand(u.shape))
            else:
                total = (mean + 1) * folds.number(u.dtype)
            return folds.spread(u, top, grad / torch.where(total > 0, total, 1.0)), None


class SoftMean(Function):
    @staticmethod
    def forward(ctx: Any, u: Tensor, x: Tensor, folds: Folds) -> Tensor:
        top, centre, total, rest = folds._blocked(type(folds)._soft_mean, u, x)
        y = mean_of(centre, total, rest)
        ctx.folds = folds
        ctx.save_for_backward(u, x, top, total, y)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        u, x, top, total, y = ctx.saved_tensors
        folds = ctx.folds
        with resolve_batch(grad):
            if not torch.is_grad_enabled():
                a = grad / torch.where(total > 0, total, 1.0)
                return *folds._blocked(type(folds)._soft_spread, u, x, top, y, a), None
            total = folds.weighted(u, top, folds.ones(u.dtype).expand(u.shape))
            a = grad / torch.where(total > 0, total, 1.0)
            y = folds.weighted(u, top, x) / torch.where(total > 0, total, 1.0)
            share = folds.spread(u, top, a)
            return x * share - folds.spread(u, top, a * y), share, None


class Weighted(Function):
    @staticmethod
    def forward(ctx: Any, u: Tensor, level: Tensor, v: Tensor, folds: Folds, hard: bool) -> Tensor:
        result = folds._blocked(lambda part, *tensors: part._weighted(*tensors, hard), u, level, v)
        ctx.folds, ctx.hard = folds, hard
        ctx.save_for_backward(u, level, v, result)
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        u, level, v, result = ctx.saved_tensors
        with resolve_batch(grad):
            share = ctx.folds.spread(u, level, grad, hard=ctx.hard)
        if ctx.hard:
            return None, None, share, None, None
        return v * share, -grad * result, share, None, None


class Spread(Function):
    @staticmethod
    def forward(ctx: Any, u: Tensor, level: Tensor, a: Tensor, folds: Folds, hard: bool) -> Tensor:
        result = folds._blocked(lambda part, *tensors: part._spread(*tensors, hard), u, level, a)
        ctx.folds, ctx.hard = folds, hard
        ctx.save_for_backward(u, level, a, result)
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        u, level, a, result = ctx.saved_tensors
        with resolve_batch(grad):
            share = ctx.folds.weighted(u, level, grad, hard=ctx.hard)
        if ctx.hard:
            return None, None, share, None, None
        return grad * result, -a * share, share, None, None
