"""Which implementation runs, and why the others do not."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from everypool import _check as check
from everypool.backends.cpu import library

__all__ = ["IMPLEMENTATIONS", "Choice", "choose", "forced"]

IMPLEMENTATIONS = ("eager", "cpu", "triton")
VARIABLE = "EVERYPOOL_IMPL"


@dataclass(frozen=True)
class Choice:
    """The implementation that runs, why, and why each other does not."""

    name: str
    reason: str
    rejected: tuple[tuple[str, str], ...]
    named: bool = False  # by the caller or the environment: what it cannot do is an error


def choose() -> Choice:
    """The implementation that runs; one that was forced never falls back."""
    return _STATE[-1]


@contextmanager
def forced(name: str) -> Iterator[Choice]:
    """Force an implementation for a while, as the environment variable EVERYPOOL_IMPL does from the import on.

    Raises:
        ValueError: there is no implementation of that name.
        NotImplementedError: this installation does not have it.
    """
    _STATE.append(_forced(name, "forced by the caller"))
    try:
        yield _STATE[-1]
    finally:
        _STATE.pop()


def _forced(name: str, reason: str) -> Choice:
    check.choice(VARIABLE, name, IMPLEMENTATIONS)
    if name == "triton" or (name == "cpu" and library() is None):
        raise NotImplementedError(f"`{VARIABLE}` must be an implementation that is installed, got {name!r}: {_WHY[name]}")
    return Choice(name, reason, tuple((other, reason) for other in IMPLEMENTATIONS if other != name), True)


def _default() -> Choice:
    name = os.environ.get(VARIABLE)
    if name:
        return _forced(name, f"forced by {VARIABLE}={name}")
    if library() is None:
        return Choice("eager", "the definition, and the only implementation installed", tuple(_WHY.items()))
    return Choice("cpu", "compiled loops are installed", (("eager", "slower"), ("triton", _WHY["triton"])))


_WHY = {"cpu": "the compiled loops are not installed", "triton": "not part of this version"}
_STATE = [_default()]
