"""What commands that train have in common: stopping, progress, and the run itself."""

from __future__ import annotations

import os
import re
import shlex
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import click
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from everypool.study.engine import finished_before, work_off
from everypool.study.executors import Event, Executor
from everypool.study.store import Store
from everypool.study.summary import Study
from everypool.study.trial import Trial

__all__ = ["NOTHING", "Stop", "command_line", "cores", "duration", "print_divergences", "run_studies", "writable"]

NOTHING = "the budget was too short for a single trial; no report is written"
UNITS = {"s": 1, "m": 60, "h": 3600}


class Stop:
    """Ctrl-C as a flag that is looked at where it is safe to stop, so that nothing is left half done."""

    def __init__(self) -> None:
        self.asked = False

    def __call__(self) -> bool:
        return self.asked

    def hear(self, number: int, frame: FrameType | None) -> None:
        self.asked = True

    @contextmanager
    def listening(self) -> Iterator[None]:
        before = signal.signal(signal.SIGINT, self.hear)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)


def writable(ctx: click.Context, option: click.Parameter, value: Path | None) -> Path | None:
    """Found out before the work and not after it."""
    if value is not None:
        folder = value.absolute().parent
        if value.is_dir() or not folder.is_dir() or not os.access(value if value.exists() else folder, os.W_OK):
            raise click.BadParameter(f"must be a file that can be written, in a folder that exists, got {str(value)!r}.")
    return value


def duration(ctx: click.Context, option: click.Parameter, value: str | None) -> float | None:
    """90s, 10m, 1h30m or 90 -> seconds."""
    if value is None:
        return None
    text = value.strip().lower()
    parts = re.findall(r"(\d+(?:\.\d+)?)([smh])", text)
    if text.isdecimal():
        parts = [(text, "s")]
    elif not parts or "".join(n + u for n, u in parts) != text:
        raise click.BadParameter(f"must be a time such as 90s, 10m or 1h30m, got {value!r}.")
    seconds = sum(float(number) * UNITS[unit] for number, unit in parts)
    if not seconds > 0:
        raise click.BadParameter(f"must be longer than nothing, got {value!r}.")
    return seconds


def command_line() -> str:
    """The command as it was typed, to be repeated."""
    return shlex.join(["everypool", *sys.argv[1:]])


def cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_studies(
    studies: Sequence[Study],
    executor: Executor,
    store: Store | None,
    stopped: Callable[[], bool],
    console: Console,
    shown: Callable[[], RenderableType],
) -> None:
    """Run what the store does not have yet, study by study, and show how far it is.

    Args:
        studies: filled as trials finish.
        executor: where trials run.
        store: where outcomes are kept.
        stopped: when to give up what is under way.
        console: of the progress; nothing is shown unless it is a terminal.
        shown: what stands above the progress.
    """
    by_name = {study.experiment.name: study for study in studies}
    known, waiting, unread = finished_before([trial for study in studies for trial in study.trials()], store)
    if unread:
        print(f"everypool: {unread} unreadable file(s) of {str(store and store.folder)!r} are passed over", file=sys.stderr)
    for event in known:
        take(event, by_name[event.trial.experiment])
    with progress(len(waiting), console, shown) as advance:
        for event in work_off(waiting, executor, store, stopped):
            take(event, by_name[event.trial.experiment])
            advance(event)


def print_divergences(console: Console, study: Study) -> None:
    """Say before all results which variants have diverged."""
    for text in study.divergences():
        console.print(text, style="bold red", highlight=False, markup=False)


def take(event: Event, study: Study) -> None:
    if event.outcome is not None:
        study.add(event.trial, event.outcome)
    elif event.failure is not None:
        study.failures.append((event.trial, event.failure))


@contextmanager
def progress(total: int, console: Console, shown: Callable[[], RenderableType]) -> Iterator[Callable[[Event], None]]:
    """A bar with the time left, and what is known so far; on a terminal alone. Yields what to call with every event."""
    if not console.is_terminal or not total:
        yield lambda event: None
        return
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("trials"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
    )
    task = bar.add_task("training", total=total)
    under_way: dict[Trial, float] = {}
    ended = 0
    with Live(Group(shown(), bar), console=console, transient=True, refresh_per_second=5) as live:

        def advance(event: Event) -> None:
            nonlocal ended
            if event.outcome is None and event.failure is None:
                under_way[event.trial] = event.done
            else:
                under_way.pop(event.trial, None)
                ended += 1
                live.update(Group(shown(), bar))
            bar.update(task, completed=ended + sum(under_way.values()), description=event.trial.experiment)

        yield advance
