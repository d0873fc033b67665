"""Finished trials on disk: a folder of Parquet files, one row each, named by the hash of the trial's spec.

A row is written beside its place and moved there at once, so that a process killed at any moment leaves whole rows alone,
and a trial that is run twice has one row. Any tool reads them all: `SELECT * FROM 'runs/*.parquet'`.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from everypool import _check as check
from everypool.study.trial import Outcome, Trial

__all__ = ["Row", "Store"]

STALE = 3600  # seconds after which a row half written is one that nobody writes any more


@dataclass(frozen=True)
class Row:
    """A finished trial, with which versions, and the command that ran it."""

    key: str
    trial: Trial
    outcome: Outcome
    everypool: str
    torch: str
    recipe: int
    command: str


class Store:
    """The folder; it is made when the first row is added.

    Args:
        folder: where the rows are.
        command: what is noted in every row as the command that ran it.

    Raises:
        ValueError: there is something else than a folder.
    """

    def __init__(self, folder: Path, command: str = "") -> None:
        if folder.exists() and not folder.is_dir():
            raise check.invalid("results", "a folder, or a path where one can be made", str(folder))
        self.folder = folder
        self.command = command

    def load(self) -> tuple[dict[str, Row], list[Path]]:
        """The rows by key, and the files that could not be read."""
        rows: dict[str, Row] = {}
        unread = []
        self.clean()
        for path in sorted(self.folder.glob("[!.]*.parquet")):
            row = read(path)
            if row is None:
                unread.append(path)
            else:
                rows[row.key] = row
        return rows, unread

    def clean(self) -> None:
        for path in self.folder.glob(".*.tmp"):
            try:
                if time.time() - path.stat().st_mtime > STALE:
                    path.unlink()
            except FileNotFoundError:  # another process was faster
                continue

    def add(self, trial: Trial, outcome: Outcome) -> None:
        """Write the row and see it to the disk."""
        import pyarrow as pa  # type: ignore[import-untyped]
        import pyarrow.parquet as pq  # type: ignore[import-untyped]

        spec = trial.spec()
        values = {
            "key": trial.key(),
            "experiment": trial.experiment,
            "variant": trial.variant,
            "seed": trial.seed,
            "settings": json.dumps(dict(trial.settings), sort_keys=True),
            "measures": list(outcome.measures.items()),
            "seconds": outcome.seconds,
            "machine": outcome.machine,
            "diverged": outcome.diverged,
            "everypool": spec["everypool"],
            "torch": spec["torch"],
            "recipe": spec["recipe"],
            "command": self.command,
            "finished": datetime.now(timezone.utc),
        }
        kinds = {"seed": pa.int64(), "recipe": pa.int64(), "seconds": pa.float64(), "finished": pa.timestamp("us", tz="UTC")}
        kinds["diverged"] = pa.bool_()
        kinds["measures"] = pa.map_(pa.string(), pa.float64())
        schema = pa.schema([(name, kinds.get(name, pa.string())) for name in values])
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{trial.experiment}-{trial.key()}.parquet"
        half = self.folder / f".{path.name}.{os.getpid()}.tmp"
        try:
            with half.open("wb") as file:
                pq.write_table(pa.Table.from_pylist([values], schema), file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(half, path)
        except BaseException:
            half.unlink(missing_ok=True)
            raise
        if hasattr(os, "O_DIRECTORY"):  # the name is on the disk only when the folder is
            folder = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)


def read(path: Path) -> Row | None:
    """The row, or None if the file is not one of ours or is damaged."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        (values,) = pq.read_table(path, memory_map=False).to_pylist()
        settings: dict[str, Any] = json.loads(values["settings"])
        trial = Trial(values["experiment"], values["variant"], values["seed"], tuple(sorted(settings.items())))
        outcome = Outcome(dict(values["measures"]), values["seconds"], values["machine"], bool(values.get("diverged")))
        return Row(values["key"], trial, outcome, values["everypool"], values["torch"], values["recipe"], values["command"])
    except (pa.ArrowException, OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
