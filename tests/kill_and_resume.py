"""Kill a study with SIGKILL at random moments, resume it each time, and compare what is kept with an uninterrupted run.

    python tests/kill_and_resume.py --kills 20

Exits with 0 if every trial is there, once, with the outcome of the uninterrupted run.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

POOLS = "max,avg,lp,soft,gem,center"


def command(runs: Path, seeds: int) -> list[str]:
    study = ["compare", "--pool", POOLS, "--seeds", str(seeds), "--epochs", "1", "--json"]
    return [sys.executable, "-m", "everypool.cli", *study, "--results", str(runs), "-o", str(runs.with_suffix(".html"))]


def environment() -> dict[str, str]:
    source = str(Path(__file__).resolve().parent.parent / "src")
    return {**os.environ, "PYTHONPATH": source, "OMP_NUM_THREADS": "1"}


def finish(runs: Path, seeds: int) -> None:
    """Run the study to its end."""
    subprocess.run(command(runs, seeds), env=environment(), check=True, stdout=subprocess.DEVNULL, timeout=600)


def kill(runs: Path, seeds: int, generator: random.Random) -> bool:
    """Start it, wait until it has added a row or two, kill it at a random moment; whether it was still running then."""
    before = len(list(runs.glob("*.parquet")))
    process = subprocess.Popen(
        command(runs, seeds), env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    while len(list(runs.glob("*.parquet"))) <= before and process.poll() is None:
        time.sleep(0.005)
    time.sleep(generator.uniform(0, 0.6))
    running = process.poll() is None
    if running and generator.random() < 0.5:
        os.kill(process.pid, signal.SIGKILL)  # the parent alone: its workers must notice
        process.wait()
        time.sleep(0.3)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return running


def outcomes(runs: Path) -> dict[tuple[str, int], dict[str, float]]:
    """By variant and seed, what a trial gave, without the times, which no run shares with another.

    Raises:
        ValueError: a trial is there twice, or a row is damaged.
    """
    import pyarrow.parquet as pq

    found: dict[tuple[str, int], dict[str, float]] = {}
    for path in sorted(runs.glob("digits-*.parquet")):
        for row in pq.read_table(path).to_pylist():
            name = row["variant"], row["seed"]
            if name in found:
                raise ValueError(f"{name} is there twice")
            found[name] = {measure: value for measure, value in row["measures"] if measure != "training"}
    return found


def check(kills: int, folder: Path, *, seeds: int = 10, seed: int = 0) -> str:
    """A sentence of what was seen.

    Raises:
        ValueError: the two runs are not equal.
    """
    generator = random.Random(seed)
    killed, whole = folder / "killed", folder / "whole"
    hits, kept = 0, []
    for _ in range(kills):
        hits += kill(killed, seeds, generator)
        kept.append(len(list(killed.glob("digits-*.parquet"))))
        if kept != sorted(kept):
            raise ValueError(f"finished trials were lost: {kept}")
    finish(killed, seeds)
    finish(whole, seeds)
    ours, theirs = outcomes(killed), outcomes(whole)
    if len(ours) != len(POOLS.split(",")) * seeds or ours != theirs:
        raise ValueError(f"{len(ours)} rows after {kills} kills, {len(theirs)} without; equal: {ours == theirs}")
    seen = f"{hits} kills while it ran, rows kept after each {kept}"
    return f"{seen}; then {len(ours)} rows, none twice, equal to an uninterrupted run"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(check(arguments.kills, Path(folder), seed=arguments.seed))


if __name__ == "__main__":
    main()
