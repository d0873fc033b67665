"""Every registered reducer over windows of a few sizes, checked against its record's own definition."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

import everypool
from benchmarks.cases import Case
from everypool.pool import Operation

__all__ = ["reducer_cases"]

EPSILONS = 64  # how far a float32 result may be from the float64 one, in units of its precision
CHECKED = 200  # windows per case
Window = tuple[int, int] | None  # (kernel, stride); None is the whole map
WINDOWS: tuple[Window, ...] = ((2, 2), (3, 2), (7, 1), None)


def mean(o: Any, x: Any, window: Window) -> Any:
    return o.mean(x, (2, 3), True) if window is None else o.avg(x, *window)


def largest(o: Any, x: Any, window: Window) -> Any:
    return o.amax(x, (2, 3), True) if window is None else o.max(x, *window)


def norm(o: Any, x: Any, window: Window) -> Any:
    cells = x.shape[2] * x.shape[3] if window is None else window[0] ** 2
    return o.sqrt(mean(o, x * x, window) * cells)


def middle(o: Any, x: Any, window: Window) -> Any:
    k, s = window or (0, 1)
    places = [((n - (k or n)) // s + 1, ((k or n) - 1) // 2) for n in x.shape[2:]]
    (rows, top), (columns, left) = places
    return x[:, :, top : top + rows * s : s, left : left + columns * s : s].clone()


def ranked(o: Any, x: Any, window: Window) -> Any:
    if window is None:
        return x.flatten(2).median(-1).values[:, :, None, None]
    return x.unfold(2, *window).unfold(3, *window).flatten(-2).median(-1).values


# what one writes without this package
BY_HAND: dict[str, Callable[[Any, Any, Window], Any]] = {
    "max": largest,
    "avg": mean,
    "lp": norm,
    "gem": lambda o, x, window: o.power(mean(o, o.power(o.clamp(x, 1e-6), 3.0), window), 1 / 3),
    "soft": lambda o, x, window: mean(o, x * o.exp(x), window) / mean(o, o.exp(x), window),
    "logsumexp": lambda o, x, window: o.log(mean(o, o.exp(x), window)),
    "center": middle,
    "median": ranked,
}


def layer(operation: Operation, window: Window) -> torch.nn.Module:
    """The operation as a layer with its default settings, and nothing to train."""
    if window is None:
        made = everypool.create(operation.name, keepdim=True)
    else:
        made = everypool.create(operation.name, kernel_size=window[0], stride=window[1])
    return made.requires_grad_(False)


def fault(operation: Operation, window: Window, y: Tensor, x: Tensor) -> str | None:
    """What is wrong with y, by the record's definition of one window in float64; None if nothing."""
    kernel, stride = ((x.shape[2], x.shape[3]), 1) if window is None else ((window[0], window[0]), window[1])
    out = tuple((n - k) // stride + 1 for n, k in zip(x.shape[2:], kernel, strict=True))
    if tuple(y.shape) != (*x.shape[:2], *out):
        return f"has shape {tuple(y.shape)} instead of {(*x.shape[:2], *out)}"
    if operation.reference is None:
        return "has no definition to compare with"
    places = list(itertools.product(*(range(n) for n in y.shape)))
    for place in np.random.default_rng(0).permutation(len(places))[:CHECKED]:
        n, c, i, j = places[place]
        cell = (slice(i * stride, i * stride + kernel[0]), slice(j * stride, j * stride + kernel[1]))
        values = x[n, c].double().numpy()[cell]
        expected = operation.reference(values, np.ones(values.shape, dtype=bool))
        allowed = EPSILONS * torch.finfo(x.dtype).eps * max(abs(expected), float(np.abs(values).max()))
        if not abs(float(y[n, c, i, j]) - expected) <= allowed:
            return f"gives {float(y[n, c, i, j])!r} instead of {expected!r}"
    return None


def reducer_cases() -> list[Case]:
    """All of them, one after the other."""
    cases = []
    for operation in everypool.operations().values():
        if operation.kind != "reducer":
            continue
        by_hand = BY_HAND.get(operation.name)
        for window in WINDOWS:
            case = Case(
                f"{operation.name} {'global' if window is None else f'k{window[0]}s{window[1]}'}",
                (8, 64, 56, 56),
                layer(operation, window),
                None if by_hand is None else partial(_composed, by_hand, window),
                section="reducers",
                quick=window in ((3, 2), None),
                rivals=("eager", "compile"),
                check=partial(fault, operation, window),
            )
            cases.append(case)
    return cases


def _composed(by_hand: Callable[[Any, Any, Window], Any], window: Window, o: Any, x: Any) -> Any:
    return by_hand(o, x, window)
