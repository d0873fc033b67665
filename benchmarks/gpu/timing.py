"""Times and memory of calls on a GPU, by its own clock.

One measurement is the time between two events around one call. Before the first event a buffer of several times the L2
cache is filled, as often as it takes until the host has queued the whole call: so nothing that the call reads is in the
cache, the cache is full of writes as behind any other operation (what the call pays for these, it leaves behind of its
own), and the gaps in which a GPU waits for the host are not in the time. What the host needs for a call is told besides:
where that is longer, it is what a caller sees who does nothing else.
"""

from __future__ import annotations

import gc
import math
import random
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import torch

__all__ = ["Clock", "turns"]

Call = Callable[[], Any]

MANY = 100  # measurements of one contender in a round at most
AHEAD = 1.3  # how much longer than the host needs the GPU is kept busy
FILLS = 100  # buffers filled before a call at most
LEAST = 3  # rounds, however long they take


class Clock:
    """The clock of the current GPU."""

    device: ClassVar[str] = "cuda"

    def __init__(self) -> None:
        about = torch.cuda.get_device_properties(torch.cuda.current_device())
        self.l2 = int(about.L2_cache_size)
        free, _ = torch.cuda.mem_get_info()
        self.scratch = torch.empty(min(max(4 * self.l2, 256 << 20), free // 8), dtype=torch.uint8, device=self.device)
        self.fills = 1
        self.scratch.fill_(1)
        self.fill = statistics.median(self.spans(lambda: self.scratch.fill_(1), 10))  # milliseconds

    def spans(self, call: Call, number: int) -> list[float]:
        """Milliseconds of each of so many calls."""
        events = []
        for _ in range(number):
            for _ in range(self.fills):
                self.scratch.fill_(1)
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            call()
            end.record()
            events.append((start, end))
        torch.cuda.synchronize()
        return [start.elapsed_time(end) for start, end in events]

    def host(self, call: Call) -> float:
        """Milliseconds in which the host queues a call."""
        taken = []
        for _ in range(5):
            torch.cuda.synchronize()
            start = time.perf_counter()
            call()
            taken.append(1e3 * (time.perf_counter() - start))
        torch.cuda.synchronize()
        return statistics.median(taken)

    def keep_ahead(self, host: float) -> None:
        """From now on give the host so many milliseconds before a call."""
        self.fills = min(1 + math.ceil(AHEAD * host / self.fill), FILLS)

    def peak(self, call: Call) -> int:
        """Bytes that a call takes at most, results included."""
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before

    def bandwidth(self) -> dict[int, float]:
        """GB/s of copies, bytes read and written, by the size of what is copied."""
        free, _ = torch.cuda.mem_get_info()
        found = {}
        for times in (4, 8, 16, 32):
            size = min(times * max(self.l2, 32 << 20), free // 4) // 4 * 4
            source = torch.randn(size // 4, device=self.device)
            target = torch.empty_like(source)
            copy = partial(target.copy_, source)
            self.spans(copy, 3)
            found[size] = 2 * size / statistics.median(self.spans(copy, 20)) / 1e6
        return found

    def lost(self) -> bool:
        """Whether the GPU answers this process no more."""
        try:
            torch.cuda.synchronize()
        except Exception:
            return True
        return False


def turns(clock: Clock, calls: dict[str, Call], rounds: int, seconds: float) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Milliseconds of each contender in each round, whose order is shuffled; and those of the host."""
    host = {name: clock.host(call) for name, call in calls.items()}
    usual = {}
    for name, call in calls.items():
        clock.keep_ahead(host[name])
        usual[name] = 1e-3 * max(statistics.median(clock.spans(call, 3)) + clock.fills * clock.fill, host[name])
    share = seconds / (rounds * len(calls))
    number = {name: max(1, min(MANY, int(share / usual[name]))) for name in calls}
    whole = sum(number[name] * usual[name] for name in calls)
    rounds = max(min(LEAST, rounds), min(rounds, int(2 * seconds / whole)))
    times: dict[str, list[float]] = {name: [] for name in calls}
    shuffle = random.Random(0).shuffle
    gc.collect()
    gc.disable()
    try:
        for _ in range(rounds):
            names = list(calls)
            shuffle(names)
            for name in names:
                clock.keep_ahead(host[name])
                times[name].append(statistics.median(clock.spans(calls[name], number[name])))
    finally:
        gc.enable()
    return times, host
