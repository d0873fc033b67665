"""The generalised mean, shared by GeM pooling (`gem`) and Lp pooling (`lp`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.autograd import Function
from torch.utils.checkpoint import checkpoint

from everypool import _check as check
from everypool.backends.axes import Bins, Keep
from everypool.backends.context import needs_differentiable_ops, resolve_batch
from everypool.backends.eager import Folds, wide
from everypool.backends.layout import Layout
from everypool.backends.recipe import Recipe
from everypool.backends.work import Work
from everypool.pool import Reducer
from everypool.reducers._layer import any_of, checked_setting, per_channel
from everypool.reducers.logsumexp import divisible, near_zero, series
from everypool.reducers.max import even_maximum

__all__ = ["Power"]

NORMS = ("mean", "sum")
HELD = 16  # tensors of windows laid out that exist at once, gradient included
SIGNED = ("clamp", "abs", "shift", "odd")


@dataclass(frozen=True, eq=False)
class Power(Reducer):
    """(mean of a^p)^(1/p) over each window, a being the values made positive.

    p = 1 is the mean, p = inf the maximum, p = 0 the geometric mean, p = -1 the harmonic mean, p = -inf the minimum.
    It is computed as exp(log(mean(exp(p log a))) / p), so no power of a value is ever formed and nothing overflows.

    Args:
        p: the exponent; a number (infinite too), or a finite tensor of 1 or C elements that may be learned.
        norm: "mean", or "sum" for the p-norm.
        signed: what becomes of negative values: "clamp" to eps, "abs" for |x|, "shift" for the excess over the window's
            minimum, which is added again (such windows are laid out element by element), or "odd" for the signed
            power sign(x)|x|^p and the signed root.
        eps: the least value after "clamp".

    >>> Power(p=2.0, norm="sum", signed="abs")
    Power(p=2.0, norm='sum', signed='abs', eps=1e-06)
    """

    p: Any = 3.0
    norm: str = "mean"
    signed: str = "clamp"
    eps: float = 1e-6

    exponent: ClassVar[str] = "p"  # what the caller knows it by

    def check(self, input: Tensor) -> None:
        super().check(input)
        checked_setting(self.exponent, self.p, infinite=True)
        check.choice("norm", self.norm, NORMS)
        check.choice("signed", self.signed, SIGNED)
        if self.signed == "clamp":
            check.number("eps", self.eps, "a positive finite number", above=0, finite=True)
        if self.norm == "sum" and any_of(self.p, lambda p: p == 0):
            raise check.invalid(self.exponent, "other than 0 with norm='sum'", self.p)
        if self.signed == "odd" and any_of(self.p, lambda p: (p <= 0) | (p == float("inf"))):
            raise check.invalid(self.exponent, "positive and finite with signed='odd'", self.p)

    def recipe(self) -> Recipe | str:
        if self.signed not in ("clamp", "abs"):
            return f"signed={self.signed!r} has no compiled loop"
        return Recipe("power", self.p, absolute=self.signed == "abs", eps=self.eps, sum=self.norm == "sum")

    def work(self, nd: int) -> Work:
        p, divides = None if isinstance(self.p, Tensor) else self.p, int(self.norm == "mean")
        # a positive number of each element, and what "shift" and "odd" need besides
        element, window, back, shared = {"shift": (2, 0, 2, 1), "odd": (2, 2, 1, 0)}.get(self.signed, (1, 0, 1, 0))
        if p in (float("inf"), float("-inf")):
            return Work((element + 1, window - 1), (back + 3, shared), input=True, output=True)
        if p == 1:  # neither powers nor a root
            back = 1 if self.signed == "odd" else 2
            return Work((element + 1, window - 1 + divides), (back, shared + divides), input=self.signed != "odd")
        # a power and a sum, then a root; backward g / K * y^(1 - p) * a^(p - 1)
        return Work((element + 2, window + divides), (back + 3, shared + 2 + divides), input=True, output=True)

    def define(self, x: Tensor, folds: Folds) -> tuple[tuple[Tensor, ...], Tensor | None]:
        x = wide(x)
        p = per_channel(self.exponent, self.p, x)
        if self.signed == "shift":
            return (self._shifted(x, p, folds),), None
        if self.signed == "odd":
            return (self._mean(x, p, folds),), None
        return (self._mean(folds.masked(x.clamp(min=self.eps) if self.signed == "clamp" else x.abs()), p, folds),), None

    def _mean(self, a: Tensor, p: Any, folds: Folds) -> Tensor:
        if not isinstance(p, Tensor):
            if p == 1:
                return folds.mean(a, self._number(a, folds)) if self.norm == "mean" else folds.total(a)
            if p in (float("inf"), float("-inf")):
                return even_maximum(a, folds) if p > 0 else -even_maximum(-a, folds)
        if needs_differentiable_ops():
            logarithm, sign = self._logarithm(a, p, folds)
            end = logarithm.isinf()  # and then has no slope
            finite = torch.where(end, torch.zeros_like(logarithm), logarithm)
            return sign * torch.where(end, logarithm.detach().exp(), finite.exp())
        y: Tensor = Root.apply(a, p, self, folds)
        return y

    def _number(self, a: Tensor, folds: Folds) -> Tensor:
        return folds.number(a.dtype).clamp(min=1)

    def _logarithm(self, a: Tensor, p: Any, folds: Folds) -> tuple[Tensor, Any]:
        """log |y|, and the sign of y."""
        number = self._number(a, folds)
        if self.signed == "odd":
            u = exponent(a.abs(), p)
            level = folds.log_mean_exp(u)
            share = folds.weighted(u, level, a.sign())  # in [-n, n]: the signed sum in units of the mean power
            share = share / number if self.norm == "mean" else share
            nothing = (share == 0) | (level == float("-inf"))
            level = level + torch.where(nothing, torch.ones_like(share), share.abs()).log()
            return _divided(torch.where(nothing, float("-inf"), level), p), share.detach().sign()
        if not isinstance(p, Tensor) and abs(p) < torch.finfo(torch.float64).tiny and self.norm == "mean":
            return folds.total(folds.masked(exponent(a, 1))) / number, 1  # a denormal p has no digits left
        if not isinstance(p, Tensor) or self.norm == "sum" or not near_zero(p):
            level = folds.log_mean_exp(exponent(a, p))
            return _divided(level if self.norm == "mean" else level + number.log(), p), 1
        flat, start = series(folds.masked(exponent(a, 1)), p, folds)
        p = divisible(p)
        level = _divided(folds.log_mean_exp(exponent(a, p)), p)
        return torch.where(flat, torch.where(flat, start, torch.zeros_like(start)), level), 1

    def _shifted(self, x: Tensor, p: Any, folds: Folds) -> Tensor:
        """Such a state does not merge: windows are laid out, a part at a time, and again for the gradient."""
        whole = folds.rows(HELD * x.shape[0] * x.shape[1])
        if len(whole) == 1:
            return self._shifted_rows(x, p, folds, whole[0])
        channels = []
        for channel in range(x.shape[1]):
            block = slice(channel, channel + 1)
            own = p[block] if isinstance(p, Tensor) and p.dim() else p
            part = folds.channels(block)
            rows = [
                checkpoint(self._shifted_rows, x[:, block], own, part, rows, use_reentrant=False, preserve_rng_state=False)
                for rows in folds.rows(HELD * x.shape[0])
            ]
            channels.append(torch.cat(rows, 2))
        return torch.cat(channels, 1)

    def _shifted_rows(self, x: Tensor, p: Any, folds: Folds, rows: slice) -> Tensor:
        taps, exists = folds.taps(x, rows)
        top = torch.finfo(x.dtype).max
        least = taps.masked_fill(~exists, top).amin(-1, keepdim=True)
        a = (taps - least).masked_fill(~exists, 0)
        if isinstance(p, Tensor) and p.dim():
            p = p.reshape(-1, 1, 1)
        a, exists = a.flatten(2, -2), exists.flatten(2, -2)
        side_by_side = Layout((Keep(a.shape[2]), Bins(a.shape[3], 1)), full=True)
        y = self._mean(a, p, Folds(side_by_side, exists, x.device))
        return y.reshape(least.shape[:-1]) + least.squeeze(-1)


class Root(Function):
    """The root of a mean of powers, whose gradient (a / y)^(p - 1) / n is formed as such.

    That of the logarithm times y would lose its digits where y is next to the smallest number, and overflow next to the
    largest.
    """

    @staticmethod
    def forward(ctx: Any, a: Tensor, p: Any, power: Power, folds: Folds) -> Tensor:
        logarithm, sign = power._logarithm(a, p, folds)
        ctx.power, ctx.folds, ctx.p = power, folds, None if isinstance(p, Tensor) else p
        ctx.save_for_backward(a, p if isinstance(p, Tensor) else None, logarithm)
        return sign * logarithm.exp()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        a, p, logarithm = ctx.saved_tensors
        with resolve_batch(grad):
            return *Root.slopes(ctx, a, ctx.p if p is None else p, logarithm, grad), None, None

    @staticmethod
    def slopes(ctx: Any, a: Tensor, p: Any, logarithm: Tensor, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Return the gradients of a and p."""
        power, folds, again, learns = ctx.power, ctx.folds, torch.is_grad_enabled(), ctx.needs_input_grad[1]
        slope: Tensor | None = None
        sign: Any = None
        if again or learns:
            p = p.detach().requires_grad_() if learns and not again else p
            with torch.enable_grad():
                logarithm, sign = power._logarithm(a if again else a.detach(), p, folds)
        end = logarithm.isinf()
        if learns:
            rise = torch.where(end, 0.0, grad * sign * logarithm.exp())
            (slope,) = torch.autograd.grad(logarithm, p, rise, create_graph=again)
        if not ctx.needs_input_grad[0]:
            return None, slope
        level = torch.where(end, logarithm, (p - 1) * torch.where(end, torch.zeros_like(logarithm), logarithm))
        size = a.abs()
        some = (size > 0) & (size < float("inf"))
        u = (p - 1) * torch.where(some, size, torch.ones_like(size)).log()
        u = torch.where(some, u, torch.where(size.isnan(), size, float("-inf")))
        return folds.spread(u, level, grad / power._number(a, folds) if power.norm == "mean" else grad), slope


def _divided(level: Tensor, p: Any) -> Tensor:
    """level / p, where an infinite level (all zero, or something infinite) has no slope."""
    end = level.isinf()
    limit = torch.where(_flip_unless_positive(level > 0, p), float("inf"), float("-inf"))
    return torch.where(end, limit.to(level.dtype), torch.where(end, torch.zeros_like(level), level) / p)


def exponent(a: Tensor, p: Any) -> Tensor:
    """p log(a) for a >= 0, with slope 0 at a = 0 and a = inf, for p too, instead of an infinite one."""
    some = (a > 0) & (a < float("inf"))
    end = torch.where(_flip_unless_positive(a.detach() == 0, p), float("-inf"), float("inf")).to(a.dtype)
    return torch.where(some, p * torch.where(some, a, torch.ones_like(a)).log(), torch.where(a.isnan(), a, end))


def _flip_unless_positive(condition: Tensor, p: Any) -> Tensor:
    """Return `condition` where p is positive, and its opposite elsewhere."""
    if isinstance(p, Tensor):
        return condition == (p > 0)
    return condition if p > 0 else ~condition


def reference(values: Any, exists: Any, p: float = 3.0, norm: str = "mean", signed: str = "clamp", eps: float = 1e-6) -> float:
    """One window by definition: values and which exist, float64 arrays of the window's shape."""
    x = values[exists]
    least = 0.0
    sign = np.ones_like(x)
    if signed == "clamp":
        x = np.maximum(x, eps)
    elif signed == "shift":
        least = float(np.min(x))
        x = x - least
    else:
        sign = np.sign(x) if signed == "odd" else sign
        x = np.abs(x)
    if p in (np.inf, -np.inf):
        return least + float(np.max(x) if p > 0 else np.min(x))
    if p == 0:
        return least + float(np.exp(np.mean(np.log(x))))
    scale = (np.max(x) if p > 0 else np.min(x)) or 1.0
    total = np.sum(sign * (x / scale) ** p) / (len(x) if norm == "mean" else 1)
    return least + float(scale * np.sign(total) * np.abs(total) ** (1 / p))
