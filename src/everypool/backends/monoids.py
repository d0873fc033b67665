"""States that merge: what is kept of a part of a window so that parts can be joined.

A state is a tuple of tensors; `merge` joins an earlier part with a later one, `over` joins all parts along an axis, and
`identity` is the state of nothing at all: what masked and padded elements are.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["ArgMax", "Centred", "LogMean", "Maximum", "Monoid", "State", "Sum", "Weighted"]

State = tuple[Tensor, ...]
LOWEST = float("-inf")


class Monoid:
    """An associative merge with an identity; order is kept, so it need not commute."""

    identity: tuple[float, ...]

    def merge(self, first: State, second: State) -> State:
        raise NotImplementedError

    def over(self, state: State, dim: int) -> State:
        """Merge everything along `dim`, in order, and drop it."""
        raise NotImplementedError


def _lag(part: Tensor, whole: Tensor) -> Tensor:
    """part - whole, where equal infinities differ by nothing."""
    return torch.where(part == whole, torch.zeros((), dtype=part.dtype, device=part.device), part - whole)


def _scaled(value: Tensor, weight: Tensor) -> Tensor:
    """value * weight, where a weight of zero silences even an infinite value."""
    return torch.where(weight == 0, torch.zeros((), dtype=value.dtype, device=value.device), value * weight)


class Sum(Monoid):
    """Plain sum."""

    identity = (0.0,)

    def merge(self, first: State, second: State) -> State:
        return (first[0] + second[0],)

    def over(self, state: State, dim: int) -> State:
        return (state[0].sum(dim),)


class Maximum(Monoid):
    """Largest value; NaN wins."""

    identity = (LOWEST,)

    def merge(self, first: State, second: State) -> State:
        return (torch.maximum(first[0], second[0]),)

    def over(self, state: State, dim: int) -> State:
        return (state[0].amax(dim),)


@dataclass(frozen=True)
class ArgMax(Monoid):
    """(value, index) of the largest value; index -1 means nothing yet.

    The first of equal values wins, or the last with `last=True`; among NaN the last wins, as in torch.nn.
    """

    lowest: float
    last: bool = False

    @property
    def identity(self) -> tuple[float, ...]:  # type: ignore[override]
        return (self.lowest, -1)

    def merge(self, first: State, second: State) -> State:
        (value, index), (other, where) = first, second
        better = other >= value if self.last else other > value
        if other.is_floating_point():
            better = better | other.isnan()
        take = (where >= 0) & (better | (index < 0))
        return torch.where(take, other, value), torch.where(take, where, index)

    def over(self, state: State, dim: int) -> State:
        value, index = torch.broadcast_tensors(*state)
        exists = index >= 0
        top = value.amax(dim, keepdim=True)
        hit = exists & (value == top)
        late = torch.full_like(top, int(self.last), dtype=torch.bool)
        if value.is_floating_point():
            hit = hit | (exists & value.isnan())
            late = late | top.isnan()
        shape = [1] * value.dim()
        shape[dim] = value.shape[dim]
        place = torch.arange(value.shape[dim], device=value.device).reshape(shape)
        last = torch.where(hit, place, -1).amax(dim, keepdim=True)
        first = torch.where(hit, place, value.shape[dim]).amin(dim, keepdim=True)
        chosen = torch.where(late, last, first).clamp(min=0, max=value.shape[dim] - 1)
        found = index.gather(dim, chosen)
        return top.squeeze(dim), found.masked_fill(last < 0, -1).squeeze(dim)


class LogMean(Monoid):
    """(m, s, n): largest exponent m, s = sum of expm1(u - m), number n; log mean exp(u) = m + log1p(s / n).

    Carrying expm1 instead of exp keeps the result exact when all exponents are tiny (u about 1e-30) or nearly equal.
    """

    identity = (LOWEST, 0.0, 0.0)

    def merge(self, first: State, second: State) -> State:
        top = torch.maximum(first[0], second[0])
        total = _rescaled(first, top) + _rescaled(second, top)
        return top, total, first[2] + second[2]

    def over(self, state: State, dim: int) -> State:
        top = state[0].amax(dim, keepdim=True)
        return top.squeeze(dim), _rescaled(state, top).sum(dim), state[2].sum(dim)


def _rescaled(state: State, top: Tensor) -> Tensor:
    lag = _lag(state[0], top.detach())
    return state[1] * lag.exp() + state[2] * lag.expm1()


@dataclass(frozen=True)
class Weighted(Monoid):
    """(m, t): largest exponent m and t = sum of v * exp(u - m); with `hard`, the weight is 1 where u equals m, else 0."""

    hard: bool = False

    identity = (LOWEST, 0.0)

    def weight(self, part: Tensor, whole: Tensor) -> Tensor:
        if self.hard:
            return (part == whole).to(part.dtype)
        return _lag(part, whole).exp()

    def merge(self, first: State, second: State) -> State:
        top = torch.maximum(first[0], second[0])
        return top, _scaled(first[1], self.weight(first[0], top)) + _scaled(second[1], self.weight(second[0], top))

    def over(self, state: State, dim: int) -> State:
        top = state[0].amax(dim, keepdim=True)
        return top.squeeze(dim), _scaled(state[1], self.weight(state[0], top)).sum(dim)


class Centred(Monoid):
    """(m, c, t, d): largest exponent m, the x there c, t = sum of v * exp(u - m), d = sum of v * exp(u - m) * (x - c).

    The mean of x with these weights is c + d / t. Only differences from c are ever added up, so nothing is lost where all
    that counts is huge and nearly equal.
    """

    identity = (LOWEST, LOWEST, 0.0, 0.0)

    def merge(self, first: State, second: State) -> State:
        top = torch.maximum(first[0], second[0])
        centre = torch.maximum(_centre(first, top), _centre(second, top))
        (t, d), (u, e) = _recentred(first, top, centre), _recentred(second, top, centre)
        return top, centre, t + u, d + e

    def over(self, state: State, dim: int) -> State:
        top = state[0].amax(dim, keepdim=True)
        centre = _centre(state, top).amax(dim, keepdim=True)
        t, d = _recentred(state, top, centre)
        return top.squeeze(dim), centre.squeeze(dim), t.sum(dim), d.sum(dim)


def _centre(state: State, top: Tensor) -> Tensor:
    return torch.where(state[0] == top, state[1], LOWEST)


def _recentred(state: State, top: Tensor, centre: Tensor) -> tuple[Tensor, Tensor]:
    weight = _lag(state[0], top).exp()
    t = _scaled(state[2], weight)
    return t, _scaled(state[3], weight) + torch.where(t == 0, 0.0, t * _lag(state[1], centre))
