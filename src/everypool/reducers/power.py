"""The generalised mean, shared by GeM pooling (`gem`) and Lp pooling (`lp`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from everypool import _check as check
from everypool.backends.axes import Bins, Keep
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
            return (self._odd(folds.masked(x), p, folds),), None
        a = folds.masked(x.clamp(min=self.eps) if self.signed == "clamp" else x.abs())
        return (self._mean(a, p, folds),), None

    def _mean(self, a: Tensor, p: Any, folds: Folds) -> Tensor:
        number = folds.number(a.dtype).clamp(min=1)
        if not isinstance(p, Tensor):
            if p == 1:
                return folds.total(a) / (number if self.norm == "mean" else 1)
            if p in (float("inf"), float("-inf")):
                return even_maximum(a, folds) if p > 0 else -even_maximum(-a, folds)
            if abs(p) < torch.finfo(torch.float64).tiny and self.norm == "mean":  # a denormal p has no digits left
                return (folds.total(folds.masked(exponent(a, 1))) / number).exp()
            return self._root(a, p, number, folds)
        if self.norm == "sum" or not near_zero(p):
            return self._root(a, p, number, folds)
        flat, start = series(folds.masked(exponent(a, 1)), p, folds)
        y = self._root(a, divisible(p), number, folds)
        return torch.where(flat, torch.where(flat, start, torch.zeros_like(start)).exp(), y)

    def _root(self, a: Tensor, p: Any, number: Tensor, folds: Folds) -> Tensor:
        level = folds.log_mean_exp(exponent(a, p))
        return self._rooted(level if self.norm == "mean" else level + number.log(), p)

    @staticmethod
    def _rooted(level: Tensor, p: Any) -> Tensor:
        """exp(level / p), where an infinite level (all zero, or something infinite) has no slope."""
        end = level.isinf()
        finite = torch.where(end, torch.zeros_like(level), level)
        limit = torch.where((level > 0) == (torch.as_tensor(p, device=level.device) > 0), float("inf"), 0.0).to(level.dtype)
        return torch.where(end, limit, (finite / p).exp())

    def _odd(self, x: Tensor, p: Any, folds: Folds) -> Tensor:
        u = exponent(x.abs(), p)
        level = folds.log_mean_exp(u)
        share = folds.weighted(u, level, x.sign())  # in [-n, n]: the signed sum in units of the mean power
        number = folds.number(x.dtype).clamp(min=1)
        share = share / number if self.norm == "mean" else share
        nothing = (share == 0) | (level == float("-inf"))
        size = self._rooted(
            torch.where(nothing, float("-inf"), level + torch.where(nothing, torch.ones_like(share), share.abs()).log()), p
        )
        return share.detach().sign() * torch.where(nothing, torch.zeros_like(size), size)

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


def exponent(a: Tensor, p: Any) -> Tensor:
    """p log(a) for a >= 0, with slope 0 at a = 0 and a = inf, for p too, instead of an infinite one."""
    some = (a > 0) & (a < float("inf"))
    rising = torch.as_tensor(p, device=a.device) > 0
    end = torch.where(rising == (a.detach() == 0), float("-inf"), float("inf")).to(a.dtype)
    return torch.where(some, p * torch.where(some, a, torch.ones_like(a)).log(), torch.where(a.isnan(), a, end))


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
