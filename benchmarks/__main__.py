"""Time every registered reducer: `python -m benchmarks [--quick]`.

Each row is checked first, against the record's own definition in float64 on windows picked at random; a row that is
wrong shows no figure, and the program ends with 1. Times are the best of several rounds, in milliseconds, one thread:

    everypool   forward; forward and backward
    torch       forward of what one would write with torch's operators, where there is such a thing
    floor       reading the input once and writing the output once, at the speed of a plain copy
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import everypool
from everypool.pool import Operation

EPSILONS = 64  # how far a float32 result may be from the float64 one, in units of its precision
CHECKED = 200  # windows per row
WINDOWS: tuple[tuple[int, int] | None, ...] = ((2, 2), (3, 2), (7, 1), None)  # (kernel, stride); None is the whole map

# what one writes without this package; `mean` pools in the windows of the row
BY_HAND: dict[str, Callable[[Tensor, Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]], Tensor]] = {
    "max": lambda x, mean, largest: largest(x),
    "avg": lambda x, mean, largest: mean(x),
    "lp": lambda x, mean, largest: mean(x.square()).sqrt(),
    "gem": lambda x, mean, largest: mean(x.clamp(min=1e-6).pow(3.0)).pow(1 / 3.0),
    "soft": lambda x, mean, largest: mean(x * x.exp()) / mean(x.exp()),
    "logsumexp": lambda x, mean, largest: mean(x.exp()).log(),
}


def layer(operation: Operation, window: tuple[int, int] | None) -> torch.nn.Module:
    """The operation as a layer with its default settings."""
    if window is None:
        return everypool.create(operation.name, keepdim=True)
    return everypool.create(operation.name, kernel_size=window[0], stride=window[1])


def by_hand(operation: Operation, window: tuple[int, int] | None) -> Callable[[Tensor], Tensor] | None:
    """The same in torch's operators, up to a constant factor."""
    write = BY_HAND.get(operation.name)
    if write is None:
        return None
    if window is None:
        return lambda x: write(x, lambda y: y.mean((2, 3), keepdim=True), lambda y: y.amax((2, 3), keepdim=True))
    return lambda x: write(x, lambda y: F.avg_pool2d(y, *window), lambda y: F.max_pool2d(y, *window))


def fault(operation: Operation, y: Tensor, x: Tensor, window: tuple[int, int] | None) -> str | None:
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


def best(call: Callable[[], Any], rounds: int) -> float:
    """Milliseconds of the fastest round, of two calls or more each."""
    call()
    start = time.perf_counter()
    call()
    calls = max(2, int(0.01 / max(time.perf_counter() - start, 1e-9)))
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        for _ in range(calls):
            call()
        times.append((time.perf_counter() - start) / calls)
    return 1e3 * min(times)


def trained(module: torch.nn.Module, x: Tensor) -> None:
    module(x).sum().backward()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Time every registered reducer.")
    parser.add_argument("--quick", action="store_true", help="a small map and few rounds: does everything run and is it right")
    quick = parser.parse_args(arguments).quick
    torch.set_num_threads(1)
    torch.manual_seed(0)
    shape, rounds = ((2, 8, 32, 32), 2) if quick else ((8, 64, 56, 56), 7)
    x = torch.randn(shape)
    copy = torch.empty_like(x)
    per_element = best(lambda: copy.copy_(x), rounds) / (2 * x.numel())
    print(f"torch {torch.__version__}, float32, input {tuple(shape)}, {torch.get_num_threads()} thread, milliseconds")
    print(f"{'operation':<14}{'windows':<10}{'forward':>10}{'with grad':>10}{'torch':>10}{'floor':>10}")
    wrong = 0
    for operation in everypool.operations().values():
        if operation.kind != "reducer":
            continue
        for window in WINDOWS:
            name = "global" if window is None else f"{window[0]}x{window[0]}/{window[1]}"
            module = layer(operation, window)
            with torch.no_grad():
                y = module(x)
                problem = fault(operation, y, x, window)
                if problem:
                    wrong += 1
                    print(f"{operation.name:<14}{name:<10}  WRONG: {problem}")
                    continue
                forward = best(lambda module=module: module(x), rounds)  # type: ignore[misc]
                hand = by_hand(operation, window)
                rival = f"{best(lambda hand=hand: hand(x), rounds):10.3f}" if hand else f"{'-':>10}"  # type: ignore[misc]
            leaf = x.clone().requires_grad_()
            both = best(lambda module=module, leaf=leaf: trained(module, leaf), rounds)  # type: ignore[misc]
            floor = per_element * (x.numel() + y.numel())
            print(f"{operation.name:<14}{name:<10}{forward:10.3f}{both:10.3f}{rival}{floor:10.3f}")
    if wrong:
        print(f"{wrong} wrong; no figure for these", file=sys.stderr)
    return min(wrong, 1)


if __name__ == "__main__":
    sys.exit(main())
