"""Time several contenders in shuffled turn, and check what they give."""

from __future__ import annotations

import gc
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from benchmarks.cases import Case, Data
from benchmarks.floor import floor
from benchmarks.rivals import BUILDERS, Unsuited, missing

__all__ = ["Effort", "Row", "measured", "paired", "turns"]

Times = dict[str, list[float]]

EPSILONS = {torch.float32: 64, torch.bfloat16: 2}  # how far everypool may be off, in units of the type's precision
MERCY = 16  # rivals may be off so many times as far
SLICE = 0.05  # seconds of one measurement, where a call is shorter
DISTURBED = 1.2  # wall time over processor time above which a measurement is taken again


@dataclass(frozen=True)
class Effort:
    """How many rounds, and about how many seconds, go into one pass of a case."""

    rounds: int = 7
    budget: float = 4.0


@dataclass
class Row:
    """What was found for one pass of one case."""

    case: Case
    train: bool
    problem: str | None = None  # of everypool
    milliseconds: dict[str, float] = field(default_factory=dict)
    ratios: dict[str, float] = field(default_factory=dict)  # everypool's time over the other's
    skipped: dict[str, str] = field(default_factory=dict)  # has nothing to run here
    dropped: dict[str, str] = field(default_factory=dict)  # failed, or is wrong

    @property
    def direction(self) -> str:
        return "forward+backward" if self.train else "forward"

    @property
    def best(self) -> str | None:
        """The fastest rival."""
        return max((name for name in self.ratios if name != "floor"), key=lambda name: self.ratios[name], default=None)


def once(call: Callable[[], Any], calls: int) -> float:
    """Seconds per call."""
    start = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - start) / calls


def undisturbed(call: Callable[[], Any], calls: int) -> float:
    """Seconds per call, taken again (twice at most) where the processor was given to someone else meanwhile."""
    best = float("inf")
    for _ in range(3):
        wall, busy = time.perf_counter(), time.process_time()
        taken = once(call, calls)
        wall, busy = time.perf_counter() - wall, time.process_time() - busy
        best = min(best, taken)
        if wall <= DISTURBED * busy + 1e-4:
            break
    return best


def turns(calls: dict[str, Callable[[], Any]], effort: Effort, seed: int = 0) -> Times:
    """Seconds per call of each contender in each round; each round has an order of its own."""
    shuffle = random.Random(seed).shuffle
    usual = {name: min(once(call, 1), once(call, 1)) for name, call in calls.items()}
    share = min(SLICE, effort.budget / (effort.rounds * len(calls)))
    number = {name: max(1, int(share / max(seconds, 1e-9))) for name, seconds in usual.items()}
    whole = sum(number[name] * usual[name] for name in calls)
    rounds = max(min(3, effort.rounds), min(effort.rounds, int(2 * effort.budget / max(whole, 1e-9))))
    times: Times = {name: [] for name in calls}
    gc.collect()
    gc.disable()
    try:
        for _ in range(rounds):
            names = list(calls)
            shuffle(names)
            for name in names:
                if usual[name] < SLICE / 2:
                    calls[name]()  # with its own memory in cache
                times[name].append(undisturbed(calls[name], number[name]))
    finally:
        gc.enable()
    return times


def paired(times: Times, name: str, other: str) -> float:
    """Median over the rounds of the time of one over that of the other."""
    return statistics.median(a / b for a, b in zip(times[name], times[other], strict=True))


def fault(got: list[Tensor], right: list[Tensor], epsilons: float) -> str | None:
    """What is wrong with outputs and gradients; None if nothing."""
    if len(got) != len(right):
        return f"gives {len(got)} tensors instead of {len(right)}"
    for number, (y, expected) in enumerate(zip(got, right, strict=True)):
        if y.shape != expected.shape:
            return f"tensor {number} has shape {tuple(y.shape)} instead of {tuple(expected.shape)}"
        scale = float(expected.abs().max())
        error = float((y.double() - expected).abs().max()) / max(scale, 1e-30)
        allowed = epsilons * torch.finfo(y.dtype).eps
        if not error <= allowed:
            return f"tensor {number} is off by {error:.1e} of its largest value, allowed is {allowed:.1e}"
    return None


def measured(data: Data, train: bool, effort: Effort, allowed: tuple[str, ...]) -> Row:
    """Check, then time, everypool and all its rivals in one case."""
    case = data.case
    row = Row(case, train)
    right = data.results + (data.gradients if train else [])
    calls: dict[str, Callable[[], Any]] = {}
    with torch.set_grad_enabled(train):
        for name in ("everypool", *(rival for rival in case.rivals if rival in allowed)):
            problem = prepare(name, data, train, right, calls, row)
            if problem is None:
                continue
            if name == "everypool":
                row.problem = problem
                return row
            row.dropped[name] = problem
        calls["floor"] = floor(*data.least(train))
        times = turns(calls, effort)
    row.milliseconds = {name: 1e3 * statistics.median(taken) for name, taken in times.items()}
    row.ratios = {name: paired(times, "everypool", name) for name in times if name != "everypool"}
    return row


def prepare(
    name: str, data: Data, train: bool, right: list[Tensor], calls: dict[str, Callable[[], Any]], row: Row
) -> str | None:
    """Add a contender to the calls if it is right; what is wrong with it otherwise."""
    reason = missing(name)
    if reason is not None:
        row.skipped[name] = reason
        return None
    try:
        contender = BUILDERS[name](data, train)
        got = contender.read(contender.call())
        mercy = 1 if name == "everypool" else MERCY
        problem = fault(got, right, mercy * EPSILONS[data.case.dtype])
        if problem is None and name == "everypool" and data.case.check is not None:
            problem = data.case.check(got[0], data.maps[0])
    except Unsuited as reason_given:
        row.skipped[name] = str(reason_given)
        return None
    except Exception as error:  # a rival may fail in any way; the others go on
        first = (str(error).strip() or "no message").splitlines()[0]
        return f"{type(error).__name__}: {first[:200]}"
    if problem is None:
        calls[name] = contender.call
    return problem
