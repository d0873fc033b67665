"""Which implementation runs, and why the others do not."""

from __future__ import annotations

import os
from dataclasses import dataclass

from everypool import _check as check

__all__ = ["IMPLEMENTATIONS", "Choice", "choose"]

IMPLEMENTATIONS = ("eager", "cpu", "triton")
VARIABLE = "EVERYPOOL_IMPL"


@dataclass(frozen=True)
class Choice:
    """The implementation that runs, why, and why each other does not."""

    name: str
    reason: str
    rejected: tuple[tuple[str, str], ...]


def choose() -> Choice:
    """Pick the implementation; one forced by the environment variable EVERYPOOL_IMPL never falls back.

    Raises:
        ValueError: EVERYPOOL_IMPL names no implementation.
        NotImplementedError: it names one that this installation does not have.
    """
    rejected = tuple((name, "not part of this version") for name in IMPLEMENTATIONS[1:])
    forced = os.environ.get(VARIABLE)
    if not forced:
        return Choice("eager", "the definition, and the only implementation installed", rejected)
    check.choice(VARIABLE, forced, IMPLEMENTATIONS)
    if forced != "eager":
        raise NotImplementedError(f"`{VARIABLE}` must be an implementation that is installed (eager), got {forced!r}")
    return Choice("eager", f"forced by {VARIABLE}", rejected)
