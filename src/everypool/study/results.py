"""A file of results, from which a study goes on where it stopped: one finished trial per line, named by a hash of its spec."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from everypool import _check as check
from everypool.study.trial import Outcome, Trial

__all__ = ["append", "load"]

BEGIN = b'{"key": '  # of every line


def load(path: Path) -> tuple[dict[str, Outcome], int]:
    """The outcomes by key, and how many lines could not be read (a line cut short by a crash, say).

    Raises:
        ValueError: it is a file of something else, to which nothing must be added.
    """
    outcomes: dict[str, Outcome] = {}
    unread = 0
    text = path.read_bytes() if path.exists() else b""
    if not text.startswith(BEGIN[: len(text)]):
        raise check.invalid("results", "a file of earlier results, or a new one", str(path))
    for line in text.splitlines():
        if not line.strip():
            continue
        outcome = parsed(line)
        if outcome is None:
            unread += 1
        else:
            outcomes[outcome[0]] = outcome[1]
    return outcomes, unread


def parsed(line: bytes) -> tuple[str, Outcome] | None:
    try:
        record: Any = json.loads(line)
        measures = {name: float(value) for name, value in record["measures"].items()}
        return str(record["key"]), Outcome(**measures)
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


def append(path: Path, trial: Trial, outcome: Outcome) -> None:
    """Add one line and see it to the disk."""
    record = {"key": trial.key(), "spec": trial.spec(), "measures": asdict(outcome)}
    line = json.dumps(record, sort_keys=True).encode() + b"\n"
    with path.open("ab+") as file:
        if file.tell() > 0:
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":  # the line before was cut short: it must not take this one with it
                line = b"\n" + line
        file.write(line)
        file.flush()
        os.fsync(file.fileno())
