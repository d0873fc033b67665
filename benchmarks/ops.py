"""The few operations from which poolings are composed, in torch, in a form that exports to ONNX, and in JAX."""

from __future__ import annotations

import importlib
from typing import Any

import torch
import torch.nn.functional as F

__all__ = ["JaxOps", "PortableOps", "TorchOps", "bounds"]


def bounds(n: int, out: int) -> list[tuple[int, int]]:
    """Where each of `out` adaptive bins over n elements starts and ends."""
    return [(i * n // out, -(-(i + 1) * n // out)) for i in range(out)]


class TorchOps:
    """What one writes with torch's operators; spatial axes are all but the first two."""

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)  # exp, sqrt and other names that torch and JAX share

    def max(self, x: Any, k: int, s: int, p: int = 0) -> Any:
        return getattr(F, f"max_pool{x.dim() - 2}d")(x, k, s, p)

    def avg(self, x: Any, k: int, s: int, p: int = 0) -> Any:
        return getattr(F, f"avg_pool{x.dim() - 2}d")(x, k, s, p)

    def lp(self, x: Any, k: int, s: int) -> Any:
        return F.lp_pool2d(x, 2, k, s)

    def adaptive_max(self, x: Any, n: int) -> Any:
        return F.adaptive_max_pool2d(x, n)

    def adaptive_avg(self, x: Any, n: int) -> Any:
        return F.adaptive_avg_pool2d(x, n)

    def mean(self, x: Any, axes: tuple[int, ...], keep: bool = False) -> Any:
        return x.mean(axes, keep)

    def amax(self, x: Any, axes: tuple[int, ...], keep: bool = False) -> Any:
        return x.amax(axes, keep)

    def power(self, x: Any, p: Any) -> Any:
        return x.pow(p)

    def clamp(self, x: Any, least: float) -> Any:
        return x.clamp(min=least)

    def scan(self, x: Any, axis: int, reverse: bool) -> Any:
        """Running maximum."""
        return x.flip(axis).cummax(axis).values.flip(axis) if reverse else x.cummax(axis).values

    def vector(self, parts: list[Any]) -> Any:
        """Grids as one vector."""
        return torch.cat([part.flatten(1) for part in parts], 1)


class PortableOps(TorchOps):
    """The same in standard operators alone, where torch's own have no form in ONNX."""

    def adaptive_max(self, x: Any, n: int) -> Any:
        for axis in (2, 3):
            x = torch.cat([x.narrow(axis, a, b - a).amax(axis, True) for a, b in bounds(x.shape[axis], n)], axis)
        return x

    def adaptive_avg(self, x: Any, n: int) -> Any:
        for axis in (2, 3):
            x = torch.cat([x.narrow(axis, a, b - a).mean(axis, True) for a, b in bounds(x.shape[axis], n)], axis)
        return x

    def scan(self, x: Any, axis: int, reverse: bool) -> Any:
        """Running maximum by doubling: there is no cumulative maximum in ONNX."""
        n, reach = x.shape[axis], 1
        while reach < n:
            here, ahead = x.narrow(axis, 0, n - reach), x.narrow(axis, reach, n - reach)
            if reverse:
                x = torch.cat([torch.maximum(here, ahead), x.narrow(axis, n - reach, reach)], axis)
            else:
                x = torch.cat([x.narrow(axis, 0, reach), torch.maximum(here, ahead)], axis)
            reach *= 2
        return x


class JaxOps:
    """The same in JAX; `first` is the first spatial axis, 1 where channels lie last."""

    def __init__(self, first: int) -> None:
        self.first = first
        self.lax: Any = importlib.import_module("jax.lax")
        self.np: Any = importlib.import_module("jax.numpy")

    def __getattr__(self, name: str) -> Any:
        return getattr(self.np, name)

    def _windows(self, x: Any, start: float, merge: Any, k: int, s: int, p: int) -> Any:
        spatial = range(self.first, self.first + x.ndim - 2)
        sizes = tuple(k if axis in spatial else 1 for axis in range(x.ndim))
        steps = tuple(s if axis in spatial else 1 for axis in range(x.ndim))
        pads = tuple((p, p) if axis in spatial else (0, 0) for axis in range(x.ndim))
        return self.lax.reduce_window(x, start, merge, sizes, steps, pads)

    def max(self, x: Any, k: int, s: int, p: int = 0) -> Any:
        return self._windows(x, -float("inf"), self.lax.max, k, s, p)  # another start would lose the gradient

    def avg(self, x: Any, k: int, s: int, p: int = 0) -> Any:
        return self._windows(x, 0.0, self.lax.add, k, s, p) / k ** (x.ndim - 2)

    def lp(self, x: Any, k: int, s: int) -> Any:
        return self.np.sqrt(self._windows(x * x, 0.0, self.lax.add, k, s, 0))

    def _bins(self, x: Any, n: int, reduce: Any) -> Any:
        for axis in (2, 3):
            size = x.shape[axis]
            if size % n == 0:
                cells = x.reshape(*x.shape[:axis], n, size // n, *x.shape[axis + 1 :])
                x = reduce(cells, axis + 1)
            else:
                parts = [reduce(self.lax.slice_in_dim(x, a, b, axis=axis), axis, True) for a, b in bounds(size, n)]
                x = self.np.concatenate(parts, axis)
        return x

    def adaptive_max(self, x: Any, n: int) -> Any:
        return self._bins(x, n, lambda y, axis, keep=False: y.max(axis, keepdims=keep))

    def adaptive_avg(self, x: Any, n: int) -> Any:
        return self._bins(x, n, lambda y, axis, keep=False: y.mean(axis, keepdims=keep))

    def mean(self, x: Any, axes: tuple[int, ...], keep: bool = False) -> Any:
        return x.mean(self._own(axes), keepdims=keep)

    def amax(self, x: Any, axes: tuple[int, ...], keep: bool = False) -> Any:
        return x.max(self._own(axes), keepdims=keep)

    def _own(self, axes: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(axis - 2 + self.first for axis in axes)

    def power(self, x: Any, p: Any) -> Any:
        return x**p

    def clamp(self, x: Any, least: float) -> Any:
        return self.np.maximum(x, least)

    def scan(self, x: Any, axis: int, reverse: bool) -> Any:
        return self.lax.cummax(x, axis=axis, reverse=reverse)

    def vector(self, parts: list[Any]) -> Any:
        return self.np.concatenate([part.reshape(part.shape[0], -1) for part in parts], 1)
