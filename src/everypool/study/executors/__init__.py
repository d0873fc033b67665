"""Where trials run: one file per kind of executor. All have one method, `run`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from everypool import _check as check
from everypool.study.trial import Outcome, Trial

__all__ = ["Event", "Executor", "executor"]


@dataclass(frozen=True)
class Event:
    """A trial has come as far as `done`, from 0 to 1; or it is finished; or it failed."""

    trial: Trial
    done: float = 0.0
    outcome: Outcome | None = None
    failure: str | None = None


class Executor(Protocol):
    """Runs trials somewhere."""

    def run(self, trials: Iterable[Trial], stopped: Callable[[], bool]) -> Iterator[Event]:
        """Report on the trials as they go; what is under way when `stopped` says yes is given up.

        The outcome of a trial does not depend on where and beside what it runs.
        """
        ...

    def follow(self) -> bool:
        """In a process that was started to help another one: do so until that one is done, and say True."""
        ...


def executor(text: str, *, jobs: int, device: str = "cpu") -> Executor:
    """An executor by its name.

    Args:
        text: "local", processes of this machine; "dask://host:port", a Dask cluster; "fabric:devices=2", one trial at a
            time spread over devices or nodes by Lightning Fabric.
        jobs: trials side by side, for "local".
        device: where a trial computes, such as "cpu" or "cuda"; with several GPUs the local processes take turns.

    Raises:
        ValueError: it is none of these, or the device is none of this machine's.
    """
    if text == "local":
        from everypool.study.executors.local import Local

        check_device(device)
        return Local(jobs, device)
    if text.startswith("dask://") and len(text) > len("dask://"):
        from everypool.study.executors.dask import Dask

        return Dask(f"tcp://{text.removeprefix('dask://')}", device)
    name, _, rest = text.partition(":")
    if name == "fabric":
        from everypool.study.executors.fabric import Fabric

        return Fabric(settings(rest))
    raise check.invalid("executor", "'local', 'dask://HOST:PORT' or 'fabric[:SETTING=VALUE,...]'", text)


def check_device(device: str) -> None:
    """Raise if this machine does not have the device, or nothing can be computed on it.

    Raises:
        ValueError: it is none.
    """
    try:
        there = torch.empty(1, device=device).fill_(1).is_meta
    except (RuntimeError, AssertionError, ValueError, TypeError) as error:
        there, why = True, " ".join(str(error).split())[:120]
    else:
        why = "it holds no values"
    if there:
        raise check.invalid("device", "one that this machine has, such as cpu", check.Shown(f"{device!r}: {why}"))


def settings(text: str) -> dict[str, Any]:
    """devices=2,precision=bf16-mixed -> {"devices": 2, "precision": "bf16-mixed"}."""
    found: dict[str, Any] = {}
    for piece in filter(None, text.split(",")):
        name, equals, value = piece.partition("=")
        if not equals or not value:
            raise check.invalid("executor", "'fabric:SETTING=VALUE,...'", f"fabric:{text}")
        found[name.strip()] = int(value) if value.strip().isdecimal() else value.strip()
    return found
