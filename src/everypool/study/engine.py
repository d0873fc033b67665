"""From planned trials to finished ones: what is there already is taken, the rest is run, and every outcome is kept at once."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

from everypool.study.executors import Event, Executor
from everypool.study.store import Store
from everypool.study.trial import Trial

__all__ = ["Deadline", "finished_before", "work_off"]


class Deadline:
    """When to stop: on demand, or when a budget is used up.

    Args:
        asked: says whether the user wants to stop.
        seconds: the budget; None for none.
    """

    def __init__(self, asked: Callable[[], bool], seconds: float | None) -> None:
        self.asked = asked
        self.end = None if seconds is None else time.monotonic() + seconds

    @property
    def passed(self) -> bool:
        return self.end is not None and time.monotonic() >= self.end

    def __call__(self) -> bool:
        return self.asked() or self.passed


def finished_before(trials: Sequence[Trial], store: Store | None) -> tuple[list[Event], list[Trial], int]:
    """Trials whose outcome is kept already, as events; those that wait; and how many files of the store could not be read."""
    rows, unread = store.load() if store is not None else ({}, [])
    known = []
    waiting = []
    for trial in trials:
        row = rows.get(trial.key())
        if row is None:
            waiting.append(trial)
        else:
            known.append(Event(trial, 1.0, row.outcome))
    return known, waiting, len(unread)


def work_off(trials: Sequence[Trial], executor: Executor, store: Store | None, stopped: Callable[[], bool]) -> Iterator[Event]:
    """Run the trials; an outcome is on the disk before anybody hears of it."""
    for event in executor.run(trials, stopped):
        if event.outcome is not None and store is not None:
            store.add(event.trial, event.outcome)
        yield event
