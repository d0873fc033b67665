"""Large windows, small calls and memory: what the table of cases does not show."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import everypool
from benchmarks.measure import Effort, fault, paired, turns

__all__ = ["large", "memory", "small"]

KERNELS = (3, 5, 9, 17, 33, 65)
PATIENCE = 17  # torch's own time grows with the window's area


def soft(x: Tensor, k: int, s: int, p: int) -> Tensor:
    """SoftPool as one composes it."""
    return F.avg_pool2d(x * x.exp(), k, s, p) / F.avg_pool2d(x.exp(), k, s, p)


def large(effort: Effort, quick: bool) -> tuple[dict[str, Any], bool]:
    """How time grows with the window: stride 1, as many windows as elements, forward."""
    x = torch.randn((1, 8, 64, 64) if quick else (4, 64, 128, 128), generator=torch.Generator().manual_seed(0))
    kernels = KERNELS[:4] if quick else KERNELS
    ours: dict[str, Callable[..., Tensor]] = {
        "max": everypool.max_pool,
        "avg": everypool.avg_pool,
        "soft": everypool.soft_pool,
    }
    torchs: dict[str, Callable[..., Tensor]] = {"max": F.max_pool2d, "avg": F.avg_pool2d, "soft": soft}
    found: dict[str, Any] = {}
    good = True
    print(f"\nlarge windows, {tuple(x.shape)}, stride 1, forward: milliseconds (times that of the smallest window)")
    print(f"{'':<20}" + "".join(f"{f'k={k}':>16}" for k in kernels))
    with torch.no_grad():
        for name in ours:
            part = x[:1, :2]
            for k in kernels:
                right = torchs[name](part.double(), k, 1, k // 2)
                problem = fault([ours[name](x, k, 1, k // 2)[:1, :2]], [right], 64)
                if problem:
                    print(f"{name} k={k}  WRONG: {problem}")
                    good = False
            for who, function, most in (("everypool", ours[name], 65), ("torch eager", torchs[name], PATIENCE)):
                calls: dict[str, Callable[[], Any]] = {str(k): partial(function, x, k, 1, k // 2) for k in kernels if k <= most}
                times = turns(calls, Effort(min(effort.rounds, 5), effort.budget))
                middle = {k: 1e3 * sorted(taken)[len(taken) // 2] for k, taken in times.items()}
                relative = {k: paired(times, k, str(kernels[0])) for k in times}
                found[f"{name} {who}"] = {"milliseconds": middle, "relative": relative}
                print(f"{f'{name} {who}':<20}" + "".join(f"{f'{middle[k]:.1f} ({relative[k]:.2f})':>16}" for k in middle))
    return found, good


def small(effort: Effort) -> tuple[dict[str, Any], bool]:
    """What one call costs on a map so small that nothing else counts."""
    x = torch.randn(1, 64, 7, 7, generator=torch.Generator().manual_seed(0))
    leaf = x.clone().requires_grad_()
    forms: dict[str, Callable[[Tensor], Tensor]] = {
        "everypool.max_pool": lambda x: everypool.max_pool(x, 3, 2, 1),
        "everypool.MaxPool2d": everypool.MaxPool2d(3, 2, 1),
        "F.max_pool2d": lambda x: F.max_pool2d(x, 3, 2, 1),
        "torch.nn.MaxPool2d": torch.nn.MaxPool2d(3, 2, 1),
    }
    right = F.max_pool2d(x, 3, 2, 1)
    good = all(torch.equal(form(x), right) for form in forms.values())
    if not good:
        print("\nsmall calls  WRONG: everypool differs from torch")
        return {}, False
    flow = torch.ones_like(right)

    def trained(form: Callable[[Tensor], Tensor]) -> Any:
        return torch.autograd.grad(form(leaf), leaf, flow)

    columns: dict[str, dict[str, Callable[[], Any]]] = {
        "no_grad": {name: partial(form, x) for name, form in forms.items()},
        "requires grad": {name: partial(form, leaf) for name, form in forms.items()},
        "forward+backward": {name: partial(trained, form) for name, form in forms.items()},
    }
    found: dict[str, Any] = {name: {} for name in forms}
    print("\nsmall calls, (1, 64, 7, 7), k3s2p1: microseconds per call")
    for column, calls in columns.items():
        with torch.set_grad_enabled(column != "no_grad"):
            times = turns(calls, effort)
        for name, taken in times.items():
            found[name][column] = 1e6 * sorted(taken)[len(taken) // 2]
    print(f"{'':<22}" + "".join(f"{column:>20}" for column in columns))
    for name, cells in found.items():
        print(f"{name:<22}" + "".join(f"{cells[column]:>20.1f}" for column in columns))
    return found, good


WHO = {"everypool": "everypool.max_pool", "torch": "torch.nn.functional.max_pool2d"}


def memory() -> tuple[dict[str, Any], bool]:
    """What a pooling whose input nobody else keeps adds to memory, each measured in a process of its own."""
    found = {}
    print("\nmemory of k2s2 maxima over an intermediate result, in multiples of its size")
    print(f"{'':<34}{'kept for backward':>20}{'peak':>10}")
    for who in WHO:
        ran = subprocess.run(
            [sys.executable, "-m", "benchmarks.resident", who],
            cwd=Path(__file__).parent.parent,
            capture_output=True,
            text=True,
            check=False,
        )
        if ran.returncode != 0:
            print(f"{WHO[who]:<34}  failed: {ran.stderr.strip().splitlines()[-1:]}")
            return {}, False
        kept, peak = (float(value) for value in ran.stdout.split())
        found[who] = {"kept": kept, "peak": peak}
        print(f"{WHO[who]:<34}{kept:>20.2f}{peak:>10.2f}")
    return found, True
