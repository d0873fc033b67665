"""`everypool compare`: which pooling, and what does it cost?"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import FrameType
from typing import Any

import click
from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from everypool.study.model import checked_pool
from everypool.study.statistics import Interval
from everypool.study.summary import Study

__all__ = ["command"]

DEFAULT = "max,avg,lp,soft,gem,center"


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


def pools_of(ctx: click.Context, option: click.Parameter, value: str) -> tuple[str, ...]:
    """max,gem:p=4,eps=1e-3,soft -> max | gem:p=4,eps=1e-3 | soft."""
    pools: list[str] = []
    for piece in value.split(","):
        if "=" in piece and ":" not in piece and pools:
            pools[-1] += f",{piece.strip()}"
        else:
            pools.append(piece.strip())
    for pool in pools:
        try:
            checked_pool(pool)
        except (ValueError, TypeError, NotImplementedError, RuntimeError) as error:
            rule, _, got = str(error).partition(" must be ")
            raise click.BadParameter(f"in {pool!r}, {rule} must be {got}" if got else f"{pool!r}: {error}") from error
        if pools.count(pool) > 1:
            raise click.BadParameter(f"{pool!r} is named twice.")
    return tuple(pools)


def writable(ctx: click.Context, option: click.Parameter, value: Path | None) -> Path | None:
    """Found out before the work and not after it."""
    if value is not None:
        folder = value.absolute().parent
        if value.is_dir() or not folder.is_dir() or not os.access(value if value.exists() else folder, os.W_OK):
            raise click.BadParameter(f"must be a file that can be written, in a folder that exists, got {str(value)!r}.")
    return value


@click.command()
@click.option("--pool", default=DEFAULT, show_default=True, callback=pools_of, metavar="NAME[:SETTING=VALUE],...",
              help="Poolings to compare, such as max,gem:p=4,soft. The others are compared with the first.")  # fmt: skip
@click.option("--seeds", default=8, show_default=True, type=click.IntRange(1, 1000), help="Networks trained per pooling.")
@click.option("--epochs", default=5, show_default=True, type=click.IntRange(1, 1000), help="Passes over the training images.")
@click.option("-o", "--output", default="report.html", show_default=True, callback=writable,
              type=click.Path(path_type=Path), help="The report.")  # fmt: skip
@click.option("--results", callback=writable, type=click.Path(path_type=Path), metavar="FILE",
              help="Keep every finished trial in FILE (JSON lines); trials that it has already are not run again.")  # fmt: skip
@click.option("--jobs", type=click.IntRange(1, 256), help="Processes that train side by side.  [default: one per core]")
@click.option("--json", "as_json", is_flag=True, help="Print the results as JSON instead of a table.")
def command(
    pool: tuple[str, ...], seeds: int, epochs: int, output: Path, results: Path | None, jobs: int | None, as_json: bool
) -> int:
    """Which pooling should I use, and what does it cost?

    Trains a small network on real digits with each pooling and several seeds; prints a table and writes a report with
    plots and a conclusion. Ctrl-C stops early and reports what is finished.
    """
    stop = Stop()
    with stop.listening():
        from everypool.study.data import load_digits

        digits = load_digits()
        study = Study(pool, seeds, epochs, len(digits.images))
        console = Console(stderr=True)
        train(study, digits, results, jobs or cores(), stop, console)
        if not stop() and study.finished:
            measure(study, digits, stop, console)
        study.interrupted = stop()
        if stop():
            print("interrupted: reporting what is finished", file=sys.stderr)
        from everypool.study import report

        if study.finished or not output.exists():  # an earlier report is worth more than one of nothing
            report.write(output, report.render(study, digits))
        print_study(study, output, as_json)
        for trial, message in study.failures:
            print(f"everypool compare: {trial.pool}, seed {trial.seed}, failed: {message.strip()}", file=sys.stderr)
        return 130 if stop() else 1 if study.failures else 0


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def train(study: Study, digits: Any, results: Path | None, jobs: int, stop: Callable[[], bool], console: Console) -> None:
    """Run the trials that are not in the file of results, and show how far they are."""
    from everypool.study.results import append, load
    from everypool.study.workers import run_all

    known, unread = load(results) if results is not None else ({}, 0)
    if unread:
        print(f"everypool compare: {unread} unreadable line(s) of {str(results)!r} are passed over", file=sys.stderr)
    waiting = []
    for trial in study.trials():
        if trial.key() in known:
            study.add(trial, known[trial.key()])
        else:
            waiting.append(trial)
    with progress(study, len(waiting) * study.epochs, console) as advance:
        for event in run_all(waiting, digits, jobs, stop):
            if event.outcome is not None:
                if results is not None:
                    append(results, event.trial, event.outcome)
                study.add(event.trial, event.outcome)
            elif event.failure is not None:
                study.failures.append((event.trial, event.failure))
            advance(event.outcome is None and event.failure is None)


@contextmanager
def progress(study: Study, epochs: int, console: Console) -> Iterator[Callable[[bool], None]]:
    """A bar and the table so far, on a terminal; elsewhere nothing. Yields what to call when something has happened."""
    if not console.is_terminal or not epochs:
        yield lambda epoch: None
        return
    bar = Progress(
        TextColumn("training"), BarColumn(), MofNCompleteColumn(), TextColumn("epochs"), TimeElapsedColumn(), console=console
    )
    task: TaskID = bar.add_task("training", total=epochs)
    with Live(Group(results_table(study), bar), console=console, transient=True, refresh_per_second=5) as live:

        def advance(epoch: bool) -> None:
            if epoch:
                bar.advance(task)
            else:
                live.update(Group(results_table(study), bar))

        yield advance


def measure(study: Study, digits: Any, stop: Callable[[], bool], console: Console) -> None:
    """Costs, now that no trial is running."""
    import torch

    from everypool.study.measures import measure_costs
    from everypool.study.model import build

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        torch.manual_seed(0)
        models = {pool: build(pool) for pool in study.pools}
        with console.status("measuring time and memory") if console.is_terminal else nullcontext():
            study.costs = measure_costs(models, digits.images[:64], digits.labels[:64], stopped=stop)
    finally:
        torch.set_num_threads(threads)


def results_table(study: Study) -> Table:
    """At most 80 columns wide as long as the names are short."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1), collapse_padding=True, show_edge=False)
    table.add_column("pooling", no_wrap=True, overflow="fold")
    for heading in (
        "accuracy\n%",
        "shift\nagreement %",
        "para-\nmeters",
        "mult-\nadds",
        "answer\nµs",
        "train\nµs",
        "memory\nKiB",
    ):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in study.rows():
        cells = [row.pool]
        for name, spread in row.intervals.items():
            cells.append(f"{shown(spread)} {row.mark(name) or ' '}")
        if row.cost is not None:
            memory = row.cost.training_bytes
            cells += [f"{row.cost.parameters:,}", f"{row.cost.multiply_adds:,}", f"{row.cost.inference_us:.0f}"]
            cells += [f"{row.cost.training_us:.0f}", "—" if memory is None else f"{memory / 1024:.0f}"]
        else:
            cells += ["—"] * 5
        table.add_row(*cells)
    return table


def shown(spread: Interval) -> str:
    """98.9 ± 0.4, or as much of it as is known."""
    if spread.count == 0:
        return "—"
    return f"{spread.mean:.1f}" if spread.count == 1 else f"{spread.mean:.1f} ± {spread.half:.1f}"


def print_study(study: Study, output: Path, as_json: bool) -> None:
    if as_json:
        print(json.dumps(study.record(), allow_nan=False, indent=1))
        return
    console = Console()
    console.print(results_table(study))
    if study.finished < study.planned:
        console.print(f"Partial: {study.finished} of {study.planned} trials were finished.", highlight=False)
    for pool in study.diverged():
        console.print(f"{pool} did not learn in every trial: its loss was not finite.", highlight=False, markup=False)
    console.print(study.conclusion(), highlight=False, markup=False)
    console.print(f"Report: {output}", highlight=False, markup=False)
