"""Trials, where they run, and what is kept of them."""

from __future__ import annotations

import json
import math
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import kill_and_resume
import pytest
import torch

pytest.importorskip("scipy")
pytest.importorskip("pyarrow")

from everypool.study import store as store_module
from everypool.study.engine import Deadline, finished_before, work_off
from everypool.study.executors import Event, executor
from everypool.study.executors.local import Local, device_of
from everypool.study.experiment import Experiment, Measure, Scale, experiments, find, register
from everypool.study.recall import recalled
from everypool.study.store import Store
from everypool.study.train import fit
from everypool.study.trial import Context, Outcome, Trial, run

ONE_EPOCH = (("epochs", 1),)
OUTCOME = Outcome({"accuracy": 98.0, "loss": math.nan}, 1.0, "here")


def without_times(outcome: Outcome) -> dict[str, float]:
    return {name: value for name, value in outcome.measures.items() if name != "training"}


def environment() -> dict[str, str]:
    source = str(Path(__file__).resolve().parent.parent / "src")
    return {**os.environ, "PYTHONPATH": source, "OMP_NUM_THREADS": "1"}


# --- specs


def test_a_key_names_all_that_decides_the_outcome():
    trials = [
        Trial("digits", "max", 0, ONE_EPOCH),
        Trial("digits", "avg", 0, ONE_EPOCH),
        Trial("digits", "max", 1, ONE_EPOCH),
        Trial("digits", "max", 0, (("epochs", 2),)),
        Trial("costs", "max", 0, ONE_EPOCH),
    ]
    keys = [trial.key() for trial in trials]
    assert len(set(keys)) == len(keys)
    assert keys[0] == Trial("digits", "max", 0, ONE_EPOCH).key()
    assert re.fullmatch("[0-9a-f]{16}", keys[0])
    assert set(trials[0].spec()) == {"experiment", "recipe", "variant", "seed", "settings", "everypool", "torch"}


def test_trials_come_seed_by_seed():
    order = [(t.seed, t.variant) for t in find("digits").trials(Scale(2, {"epochs": 1}), ("max", "avg"))]
    assert order == [(0, "max"), (0, "avg"), (1, "max"), (1, "avg")]


def test_every_experiment_can_tell_a_difference_and_judges_what_it_measures():
    for experiment in experiments().values():
        assert experiment.quick.seeds >= 5, experiment.name
        assert set(experiment.judged) <= set(experiment.measures), experiment.name
        for measure in experiment.measures.values():
            assert measure.better in (-1, 0, 1), experiment.name


def test_a_name_belongs_to_one_experiment():
    other = Experiment("digits", "", "", {}, {}, lambda trial, context: {}, 1, Scale(1), Scale(1))
    with pytest.raises(ValueError, match=r"`name` must be a name that no other experiment has, got 'digits'"):
        register(other)
    with pytest.raises(ValueError, match="did you mean 'digits'"):
        find("digit")


def test_a_trial_must_measure_what_its_experiment_says(monkeypatch: pytest.MonkeyPatch):
    from everypool.study import experiment as module

    wrong = Experiment("wrong", "", "", {"a": ""}, {"x": Measure("x")}, lambda t, c: {"y": 1.0}, 1, Scale(1), Scale(1))
    monkeypatch.setitem(module.REGISTRY, "wrong", wrong)
    with pytest.raises(ValueError, match=r"`measures` must be those of wrong, \['x'\], got \['y'\]"):
        run(Trial("wrong", "a", 0))


# --- rows


def test_rows_come_back_as_they_were(tmp_path: Path):
    kept = Store(tmp_path / "runs", "everypool compare")
    trial = Trial("digits", "gem:p=4", 7, ONE_EPOCH)
    assert kept.load() == ({}, [])
    kept.add(trial, OUTCOME)
    kept.add(trial, OUTCOME)  # a second time makes no second row
    rows, unread = kept.load()
    (row,) = rows.values()
    assert (row.trial, row.command, unread, row.key) == (trial, "everypool compare", [], trial.key())
    assert (row.outcome.measures["accuracy"], math.isnan(row.outcome.measures["loss"])) == (98.0, True)
    assert [path.name for path in kept.folder.iterdir()] == [f"digits-{trial.key()}.parquet"]


def test_any_parquet_reader_reads_all_rows(tmp_path: Path):
    import pyarrow.dataset as dataset

    kept = Store(tmp_path)
    for seed in range(3):
        kept.add(Trial("digits", "max", seed, ONE_EPOCH), OUTCOME)
    assert sorted(dataset.dataset(str(tmp_path)).to_table()["seed"].to_pylist()) == [0, 1, 2]


def test_damaged_and_foreign_files_are_passed_over(tmp_path: Path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    kept = Store(tmp_path)
    kept.add(Trial("digits", "max", 0, ONE_EPOCH), OUTCOME)
    (whole,) = tmp_path.glob("*.parquet")
    (tmp_path / "cut.parquet").write_bytes(whole.read_bytes()[:-30])
    (tmp_path / "empty.parquet").write_bytes(b"")
    pq.write_table(pa.table({"x": [1, 2]}), tmp_path / "other.parquet")
    (tmp_path / "notes.txt").write_text("not a row")
    rows, unread = kept.load()
    assert len(rows) == 1
    assert {path.name for path in unread} == {"cut.parquet", "empty.parquet", "other.parquet"}


def test_what_a_killed_process_left_half_written_is_no_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    half = tmp_path / ".digits-0.parquet.1.tmp"
    half.write_bytes(b"PAR1")
    assert Store(tmp_path).load() == ({}, [])
    assert half.exists()  # somebody may be at it
    monkeypatch.setattr(store_module, "STALE", -1)
    Store(tmp_path).load()
    assert not half.exists()


def test_a_row_that_cannot_be_written_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(source: object, target: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store_module.os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        Store(tmp_path).add(Trial("digits", "max", 0, ONE_EPOCH), OUTCOME)
    assert list(tmp_path.iterdir()) == []


def test_results_are_a_folder(tmp_path: Path):
    path = tmp_path / "notes.txt"
    path.write_text("not results")
    with pytest.raises(ValueError, match="`results` must be a folder"):
        Store(path)


def test_studies_are_recalled_from_rows_alone(tmp_path: Path):
    kept = Store(tmp_path)
    measures = {name: 1.0 for name in find("digits").measures}
    for epochs, variant, seed in ((1, "soft", 0), (1, "max", 0), (1, "max", 1), (2, "max", 0)):
        kept.add(Trial("digits", variant, seed, (("epochs", epochs),)), Outcome(measures, 1.0, ""))
    kept.add(Trial("digits", "max", 5, ONE_EPOCH), OUTCOME)  # of a recipe with other measures
    first, second = recalled(kept.load()[0].values())[0]
    assert recalled(kept.load()[0].values())[2] == 1
    assert (first.variants, first.finished, first.scale.seeds) == (["max", "soft"], 3, 2)
    assert dict(first.scale.settings) == {"epochs": 1}
    assert (second.variants, dict(second.scale.settings)) == (["max"], {"epochs": 2})


# --- runs


def test_a_trial_repeats_itself_in_any_process():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        trials = [Trial("digits", "max", 3, ONE_EPOCH), Trial("digits", "gem:p=4", 3, ONE_EPOCH)]
        here = {trial: run(trial) for trial in trials}
    finally:
        torch.set_num_threads(threads)
    events = list(Local(2).run(trials))
    there = {event.trial: event.outcome for event in events if event.outcome}
    for trial in trials:
        assert without_times(there[trial]) == without_times(here[trial])
    assert here[trials[0]].measures["accuracy"] > 30  # chance is 10
    assert any(event.done > 0 and event.outcome is None for event in events)


def test_a_trial_that_fails_does_not_stop_the_others():
    events = list(Local(1).run([Trial("digits", "nonsense", 0, ONE_EPOCH), Trial("digits", "center", 0, ONE_EPOCH)]))
    assert any(event.failure is not None and "nonsense" in event.failure for event in events)
    assert any(event.outcome is not None and event.trial.variant == "center" for event in events)


class Counting:
    """Runs in this process, and counts."""

    def __init__(self) -> None:
        self.ran: list[Trial] = []

    def run(self, trials, stopped):
        for trial in trials:
            if stopped():
                return
            self.ran.append(trial)
            yield Event(trial, outcome=OUTCOME)


def test_what_is_kept_is_not_run_again(tmp_path: Path):
    kept = Store(tmp_path)
    trials = [Trial("digits", "max", seed, ONE_EPOCH) for seed in range(4)]
    kept.add(trials[2], OUTCOME)
    known, waiting, unread = finished_before(trials, kept)
    assert ([event.trial for event in known], unread) == ([trials[2]], 0)
    counting = Counting()
    for event in work_off(waiting, counting, kept, lambda: False):
        assert event.trial.key() in kept.load()[0]  # on the disk before anybody hears of it
    assert counting.ran == [trials[0], trials[1], trials[3]]
    assert finished_before(trials, kept)[1] == []


class Steps(torch.nn.Module):
    """Its loss is what it is told, step by step; its weight becomes what it is told in the end."""

    def __init__(self, losses: list[float], weight: float) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.losses, self.last = iter(losses), weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return next(self.losses) + 0 * self.weight * x

    def eval(self) -> Steps:
        with torch.no_grad():
            self.weight.fill_(self.last)
        return super().eval()


@pytest.mark.parametrize(
    ("losses", "weight", "diverged"),
    [
        ([1.0, 2.0, 3.0], 1.0, False),
        ([1e30, 1.0, 1.0], 1e30, False),
        ([1.0, math.nan, 1.0], 1.0, True),
        ([math.inf, 1.0, 1.0], 1.0, True),
        ([1.0, 1.0, -math.inf], 1.0, True),
        ([1.0, 1.0, 1.0], math.nan, True),
        ([1.0, 1.0, 1.0], math.inf, True),
    ],
)
def test_what_is_not_finite_is_told(losses: list[float], weight: float, diverged: bool):
    """In any step, or in the weights at the end."""
    marks: list[bool] = []
    fit(
        Steps(losses, weight), torch.ones(3, 1), torch.zeros(3), epochs=1, generator=torch.Generator(), batch=1,
        context=Context(mark_diverged=lambda: marks.append(True)), loss=lambda output, target: output.sum(),
    )  # fmt: skip
    assert bool(marks) == diverged


def test_a_diverged_trial_is_kept_as_one(tmp_path: Path):
    kept = Store(tmp_path / "runs")
    trials = [Trial("digits", "max", seed, ONE_EPOCH) for seed in range(2)]
    for trial, diverged in zip(trials, (True, False), strict=True):
        kept.add(trial, Outcome({"accuracy": 10.0, "loss": 1.0}, 1.0, "here", diverged))
    rows, _ = kept.load()
    assert [rows[trial.key()].outcome.diverged for trial in trials] == [True, False]
    path = tmp_path / "runs" / f"digits-{trials[0].key()}.parquet"
    pq = pytest.importorskip("pyarrow.parquet")
    table = pq.read_table(path)
    pq.write_table(table.drop_columns("diverged"), path)  # as it was before the flag
    assert not kept.load()[0][trials[0].key()].outcome.diverged


def test_a_budget_ends_a_run():
    assert not Deadline(lambda: False, None)()
    assert Deadline(lambda: True, None)()
    over = Deadline(lambda: False, 0.0)
    assert (over.passed, over()) == (True, True)
    assert list(work_off([Trial("digits", "max", 0, ONE_EPOCH)], Counting(), None, over)) == []
    assert not Deadline(lambda: False, 1000.0)()


@pytest.mark.parametrize("text", ["", "somewhere", "dask://", "fabric:devices", "fabric:colour=red"])
def test_unknown_executors_are_refused(text: str):
    with pytest.raises(ValueError, match="`executor` must be"):
        executor(text, jobs=1)


def test_local_processes_take_turns_on_gpus(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [str(device_of("cuda", number)) for number in range(3)] == ["cuda:0", "cuda:1", "cuda:0"]
    assert str(device_of("cuda:1", 0)) == "cuda:1"
    assert str(device_of("cpu", 5)) == "cpu"


@pytest.mark.skipif(sys.platform == "win32", reason="processes are killed as POSIX does it")
def test_killed_at_any_moment_no_finished_trial_is_lost(tmp_path: Path):
    assert "12 rows, none twice, equal to an uninterrupted run" in kill_and_resume.check(3, tmp_path, seeds=2)


# --- clusters


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def cluster(tmp_path: Path):
    """A scheduler and two workers on loopback, as processes; yields the port and the workers."""
    pytest.importorskip("distributed")
    port = free_port()
    python = [sys.executable, "-m", "dask"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "env": environment(), "cwd": tmp_path}
    scheduler = [*python, "scheduler", "--host", "127.0.0.1", "--port", str(port), "--no-dashboard"]
    worker = [*python, "worker", f"tcp://127.0.0.1:{port}", "--nthreads", "2", "--no-nanny", "--no-dashboard"]
    processes = [subprocess.Popen(scheduler, **quiet), *(subprocess.Popen(worker, **quiet) for _ in range(2))]
    try:
        yield port, processes[1:]
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            process.wait()


@pytest.mark.filterwarnings("ignore")  # those of distributed when a connection is cut
def test_a_cluster_gives_the_same_rows_though_it_loses_a_worker(cluster, tmp_path: Path):
    port, workers = cluster
    trials = list(find("digits").trials(Scale(4, {"epochs": 1}), ("max", "center")))
    kept = Store(tmp_path / "runs")
    finished = 0
    for event in work_off(trials, executor(f"dask://127.0.0.1:{port}", jobs=1), kept, lambda: False):
        assert event.failure is None
        finished += event.outcome is not None
        if finished == 2:
            workers[0].kill()
    rows, _ = kept.load()
    assert finished == len(rows) == len(trials)
    here = {event.trial: event.outcome for event in Local(2).run(trials) if event.outcome}
    for row in rows.values():
        assert without_times(row.outcome) == without_times(here[row.trial])


def test_a_cluster_that_does_not_answer_is_an_error(monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("distributed")
    from everypool.study.executors import dask

    monkeypatch.setattr(dask, "CONNECT", 0.2)
    with pytest.raises(ValueError, match="`executor` must be a Dask scheduler that answers"):
        list(executor(f"dask://127.0.0.1:{free_port()}", jobs=1).run([Trial("digits", "max", 0, ONE_EPOCH)], lambda: False))


SPREAD = """
import sys
from everypool.study.executors import executor
from everypool.study.trial import Trial

if __name__ == "__main__":
    trial = Trial("digits", "avg", 0, (("epochs", 2),))
    for event in executor("fabric:devices=2,accelerator=cpu", jobs=1).run([trial], lambda: False):
        print("failure", event.failure) if event.failure else print("accuracy", event.outcome.measures["accuracy"])
"""


def test_one_trial_is_spread_over_two_processes(tmp_path: Path):
    pytest.importorskip("lightning_fabric")
    script = tmp_path / "spread.py"
    script.write_text(SPREAD)
    done = subprocess.run([sys.executable, str(script)], env=environment(), capture_output=True, text=True, timeout=300)
    assert "Starting with 2 processes" in done.stdout + done.stderr
    (accuracy,) = re.findall(r"^accuracy ([\d.]+)$", done.stdout, re.MULTILINE)
    assert float(accuracy) > 80  # as one process reaches, with its own order of rounding


def test_what_would_start_the_program_over_again_is_refused():
    with pytest.raises(ValueError, match=r"`executor` must be started by torchrun, .* got 'ddp'"):
        executor("fabric:devices=2,strategy=ddp", jobs=1)


def on_two_nodes(folder: Path) -> str:
    """Compare under two torchruns that believe to be on machines of their own; what they print."""
    compare = [
        "compare",
        "--pool",
        "max,avg",
        "--seeds",
        "2",
        "--epochs",
        "1",
        "--json",
        "--executor",
        "fabric:accelerator=cpu",
    ]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--master-port", str(free_port())]
    nodes = [
        subprocess.Popen(
            [*torchrun, "--node-rank", rank, "-m", "everypool.cli", *compare],
            env=environment(), cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT if rank == "1" else None, text=True,
        )
        for rank in "01"
    ]  # fmt: skip
    try:
        said, silent = (node.communicate(timeout=300)[0] for node in nodes)
    finally:
        for node in nodes:
            node.kill()
    assert [node.returncode for node in nodes] == [0, 0], silent
    assert "results" not in silent
    return said


@pytest.mark.skipif(sys.platform == "win32", reason="torchrun there needs a build of its own")
def test_of_processes_that_torchrun_started_the_first_one_keeps_and_reports(tmp_path: Path):
    pytest.importorskip("lightning_fabric")
    record = json.loads(on_two_nodes(tmp_path))
    rows = sorted((tmp_path / "runs").glob("digits-*.parquet"))
    assert (record["finished"], len(rows)) == (4, 4)
    assert (tmp_path / "report.html").stat().st_size > 10_000
    assert json.loads(on_two_nodes(tmp_path))["results"] == record["results"]  # taken from the rows
    assert sorted((tmp_path / "runs").glob("digits-*.parquet")) == rows
