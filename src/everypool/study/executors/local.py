"""Trials side by side on this machine: processes of one thread each that the parent feeds one trial at a time."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

import torch

from everypool.study.executors import Event
from everypool.study.trial import Context, Outcome, Trial, run

__all__ = ["Local", "device_of"]

PATIENCE = 0.1  # seconds until an interrupt is noticed


@dataclass
class Worker:
    process: BaseProcess
    connection: Connection
    trial: Trial | None = None


@dataclass(frozen=True)
class Local:
    """Processes of this machine.

    Args:
        jobs: how many.
        device: where each computes.
    """

    jobs: int
    device: str = "cpu"

    def run(self, trials: Iterable[Trial], stopped: Callable[[], bool] = lambda: False) -> Iterator[Event]:
        waiting = deque(trials)
        workers = []
        try:
            for number in range(min(self.jobs, len(waiting))):
                workers.append(started(self.device, number))
            for worker in workers:
                feed(worker, waiting)
            while any(worker.trial for worker in workers) and not stopped():
                for connection in wait([worker.connection for worker in workers if worker.trial], PATIENCE):
                    worker = next(worker for worker in workers if worker.connection is connection)
                    yield from heard(worker)
                    if worker.trial is None and worker.process.is_alive():
                        feed(worker, waiting)
            if not stopped():  # all workers died
                yield from (Event(trial, failure="no process was left to run it") for trial in waiting)
        finally:
            for worker in workers:
                worker.process.kill()
                worker.connection.close()
            for worker in workers:
                worker.process.join()

    def follow(self) -> bool:
        return False


def started(device: str, number: int) -> Worker:
    context = multiprocessing.get_context("spawn")  # a fork would copy torch's threads half
    ours, theirs = context.Pipe()
    process = context.Process(target=serve, args=(theirs, device, number), daemon=True)
    with interrupts_blocked():  # inherited: Ctrl-C reaches every process of the terminal, and is the parent's business alone
        process.start()
    theirs.close()
    return Worker(process, ours)


@contextlib.contextmanager
def interrupts_blocked() -> Iterator[None]:
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def feed(worker: Worker, waiting: deque[Trial]) -> None:
    if waiting:
        worker.trial = waiting.popleft()
        with contextlib.suppress(OSError):  # it died meanwhile: reading will tell
            worker.connection.send(worker.trial)


def heard(worker: Worker) -> Iterator[Event]:
    """What a worker says: how far it is, an outcome, or the text of an error."""
    trial = worker.trial
    if trial is None:
        return
    try:
        said: float | Outcome | str = worker.connection.recv()
    except (EOFError, OSError):
        worker.trial = None
        worker.process.join()
        yield Event(trial, failure=f"its process ended with code {worker.process.exitcode}")
        return
    if isinstance(said, float):
        yield Event(trial, done=said)
        return
    worker.trial = None
    yield Event(trial, outcome=said) if isinstance(said, Outcome) else Event(trial, failure=said)


def serve(connection: Connection, device: str, number: int) -> None:
    """A worker's life: a trial in, an outcome or the text of an error out."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=die_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    context = Context(tick=lambda done: connection.send(float(done)), device=device_of(device, number))
    while True:
        try:
            trial: Trial = connection.recv()
        except EOFError:
            return
        try:
            said: Outcome | str = run(trial, context)
        except Exception:
            said = traceback.format_exc()
        connection.send(said)


def device_of(name: str, number: int) -> torch.device:
    """The device of that name; of several GPUs the one whose turn it is."""
    device = torch.device(name)
    if device.type == "cuda" and device.index is None and torch.cuda.device_count() > 1:
        return torch.device("cuda", number % torch.cuda.device_count())
    return device


def die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
