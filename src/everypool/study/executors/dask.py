"""Trials on a Dask cluster: a trial whose worker is lost runs again on another."""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from everypool import _check as check
from everypool.study.executors import Event
from everypool.study.trial import Context, Outcome, Trial, run

__all__ = ["Dask"]

PATIENCE = 0.2  # seconds until an interrupt is noticed
CONNECT = 20  # seconds
LOSSES = 10  # workers that may be lost under one trial before it counts as the trial's fault
ONE_AT_A_TIME = threading.Lock()  # a worker may have several threads, and torch's seed belongs to the process


@dataclass(frozen=True)
class Dask:
    """A cluster that runs already, with the same everypool and torch on every worker.

    Args:
        address: of its scheduler, such as "tcp://10.0.0.1:8786".
        device: where a trial computes on its worker.
    """

    address: str
    device: str = "cpu"

    def run(self, trials: Iterable[Trial], stopped: Callable[[], bool] = lambda: False) -> Iterator[Event]:
        from distributed import Client, wait  # type: ignore[import-not-found, unused-ignore]

        trials = list(trials)
        if not trials:  # nobody needs a cluster to read what is finished
            return
        try:
            client = Client(self.address, timeout=CONNECT)
        except (OSError, ValueError) as error:
            raise check.invalid("executor", "a Dask scheduler that answers", self.address) from error
        futures: dict[Any, Trial] = {}
        with client:
            try:
                for trial in trials:
                    future = client.submit(
                        work, trial, trial.key(), self.device, key=f"everypool-{trial.key()}", retries=LOSSES, pure=True
                    )
                    futures[future] = trial
                while futures and not stopped():
                    try:
                        finished = wait(list(futures), timeout=PATIENCE, return_when="FIRST_COMPLETED").done
                    except TimeoutError:
                        continue
                    for future in finished:
                        yield ended(futures.pop(future), future)
            finally:
                client.cancel(list(futures))

    def follow(self) -> bool:
        return False


def ended(trial: Trial, future: Any) -> Event:
    """What has come of a future that is done."""
    if future.status != "finished":
        error = future.exception() if future.status == "error" else None
        return Event(trial, failure=f"{type(error).__name__}: {error}" if error else f"it was {future.status}")
    said: Outcome | str = future.result()
    return Event(trial, outcome=said) if isinstance(said, Outcome) else Event(trial, failure=said)


def work(trial: Trial, key: str, device: str) -> Outcome | str:
    """Run one trial on a worker: its outcome, or the text of an error, which is no reason to try again."""
    import torch

    with ONE_AT_A_TIME:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            if trial.key() != key:
                return f"the worker has another everypool or torch: {trial.spec()}"
            return run(trial, Context(device=torch.device(device)))
        except Exception:
            return traceback.format_exc()
        finally:
            torch.set_num_threads(threads)
