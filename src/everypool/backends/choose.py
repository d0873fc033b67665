"""Which implementation runs, and why the others do not."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from everypool import _check as check
from everypool.backends import triton
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


def choose(device: str = "cpu") -> Choice:
    """The implementation that runs on that type of device; one that was forced never falls back."""
    forced = _FORCED[-1]
    if forced is not None:
        return forced
    return _CPU if device == "cpu" else _ANYWHERE


@contextmanager
def forced(name: str) -> Iterator[Choice]:
    """Force an implementation for a while, as the environment variable EVERYPOOL_IMPL does from the import on.

    Raises:
        ValueError: there is no implementation of that name.
        NotImplementedError: this installation does not have it.
    """
    choice = _forced(name, "forced by the caller")
    _FORCED.append(choice)
    try:
        yield choice
    finally:
        _FORCED.pop()


def _forced(name: str, reason: str) -> Choice:
    check.choice(VARIABLE, name, IMPLEMENTATIONS)
    missing = _missing()
    if name in missing:
        raise NotImplementedError(f"`{VARIABLE}` must be an implementation that is installed, got {name!r}: {missing[name]}")
    return Choice(name, reason, tuple((other, reason) for other in IMPLEMENTATIONS if other != name), True)


def _missing() -> dict[str, str]:
    """Why each implementation that is not installed is not."""
    found = {} if library() is not None else {"cpu": "the compiled loops are not installed"}
    return found if triton.installed() else found | {"triton": "Triton is not installed"}


def _default() -> Choice:
    missing = _missing()
    if "cpu" in missing:
        return Choice("eager", "the definition, and the only implementation installed", tuple(_ELSEWHERE.items()))
    return Choice("cpu", "compiled loops are installed", (("eager", "slower"), ("triton", _ELSEWHERE["triton"])))


_ELSEWHERE = {
    "cpu": "the compiled loops are for the CPU",
    "triton": f"the fused kernels have not run on a GPU yet: only on request, {VARIABLE}=triton",
} | _missing()
_name = os.environ.get(VARIABLE)
_FORCED: list[Choice | None] = [_forced(_name, f"forced by {VARIABLE}={_name}") if _name else None]
_CPU = _default()
_ANYWHERE = Choice("eager", "the definition runs on every device", tuple(_ELSEWHERE.items()))
