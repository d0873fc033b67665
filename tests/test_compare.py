"""`everypool compare`: the statistics against scipy and hand-made numbers, the trials, and the command as a process."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from everypool.study import results, statistics
from everypool.study.data import load_digits, shifted, split
from everypool.study.measures import accuracy, multiply_adds, parameters, peak_memory, shift_agreement
from everypool.study.model import build
from everypool.study.summary import Study
from everypool.study.trial import Outcome, Trial, run
from everypool.study.workers import run_all

stats = pytest.importorskip("scipy.stats")

SMALL = ("--seeds", "1", "--epochs", "1", "--pool", "max,avg")


def everypool(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "everypool.cli", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        env=environment(),
    )


def environment() -> dict[str, str]:
    source = str(Path(__file__).resolve().parent.parent / "src")
    return {**os.environ, "PYTHONPATH": source, "OMP_NUM_THREADS": "1", "COLUMNS": "80", "PYTHONIOENCODING": "utf-8"}


class Page(HTMLParser):
    """Checks that elements nest, and keeps what a page refers to."""

    VOID = frozenset({"meta", "link", "br", "img", "hr", "input"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.references: list[str] = []
        self.drawings: list[dict[str, str | None]] = []
        self.record: dict[str, Any] = {}
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        values = dict(attrs)
        self.ids += [values["id"]] if values.get("id") else []
        self.references += [value for name, value in attrs if name in ("href", "src", "xlink:href", "action") and value]
        if tag == "svg":
            self.drawings.append(values)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.record = json.loads(data)


# --- statistics


def test_an_interval_without_overlap_is_students():
    values = [98.1, 99.3, 97.7, 98.8, 99.0]
    low, high = stats.t.interval(0.95, len(values) - 1, loc=np.mean(values), scale=stats.sem(values))
    found = statistics.interval(values)
    assert (found.low, found.high, found.count) == (pytest.approx(low), pytest.approx(high), 5)


def test_overlap_widens_as_nadeau_and_bengio_say():
    values = [1.0, 2.0, 4.0]
    # by hand: mean 7/3, s^2 = 7/3, t(0.975, 2) = 4.302653; 1/3 + 1/4 = 7/12
    assert statistics.interval(values, overlap=0.25).half == pytest.approx(4.302653 * math.sqrt(7 / 3 * 7 / 12), rel=1e-6)


def test_equal_differences_are_no_certainty():
    found = statistics.interval([0.5, 0.5, 0.5], resolution=0.5)
    assert found.half == pytest.approx(4.302653 * 0.5 / math.sqrt(12) * math.sqrt(1 / 3), rel=1e-6)


def test_one_seed_has_no_interval():
    found = statistics.interval([3.0])
    assert (found.mean, found.count, found.excludes_zero) == (3.0, 1, False)
    assert math.isnan(found.low)


def made(*columns: tuple[str, list[float]]) -> dict[str, dict[int, dict[str, float]]]:
    return {pool: {seed: {"accuracy": 99.0, "shift": v} for seed, v in enumerate(values)} for pool, values in columns}


def test_differences_are_paired_and_corrected():
    noise = [0.0, 5.0, -3.0, 8.0]
    results_ = made(("max", noise), ("a", [v + 1 + 0.1 * i for i, v in enumerate(noise)]), ("b", [0.0, 1.0, 2.0]))
    a, b = statistics.compare(results_, {"shift": 0.0})
    differences = [1.0, 1.1, 1.2, 1.3]  # the noise that a pair shares is gone
    low, high = stats.t.interval(1 - 0.05 / 2, 3, loc=np.mean(differences), scale=stats.sem(differences))
    assert (a.interval.low, a.interval.high, a.found) == (pytest.approx(low), pytest.approx(high), True)
    assert (b.interval.count, b.found) == (3, False)  # the seeds that both have


NAMES = {"shift": "shift agreement"}


def concluded(*columns: tuple[str, list[float]]) -> str:
    return statistics.conclude(statistics.compare(made(*columns), {"shift": 0.1}), NAMES)


def test_the_conclusion_claims_what_is_found_and_nothing_else():
    reference = [80.0, 82.0, 84.0, 81.0]
    lower = [v - 20 - 0.1 * i for i, v in enumerate(reference)]
    sentence = concluded(("max", reference), ("center", lower), ("avg", [83.0, 81.0, 85.0, 79.0]))
    assert re.search(r"lower for center \(−20\.1 points, −20\.\d to −19\.\d\) and shows no difference for avg", sentence)
    assert "corrected for 2 comparisons" in sentence
    assert "avg shows no difference in shift agreement" in concluded(("max", reference), ("avg", [83.0, 81.0, 85.0, 79.0]))
    assert "no other pooling shows a difference" in concluded(("max", reference), ("a", reference), ("b", reference))
    assert "higher for max" in concluded(("center", lower), ("max", reference))


def test_too_little_gives_no_conclusion():
    assert concluded(("max", [1.0])) == "There is only one pooling, so there is nothing to compare."
    assert concluded(("max", [1.0]), ("avg", [50.0])).startswith("No conclusion")
    assert Study(("max", "avg"), 2, 1, 1797).conclusion() == "No trial was finished, so there is nothing to conclude."


def test_chance_alone_is_seldom_taken_for_a_difference():
    generator = np.random.default_rng(0)
    wrong = 0
    for _ in range(400):
        columns = [(name, list(generator.normal(80, 3, 6))) for name in ("max", "a", "b", "c", "d")]
        wrong += any(d.found for d in statistics.compare(made(*columns), {"shift": 0.07}))
    assert wrong <= 32  # 20 of 400 expected at most; 32 is 2.75 standard deviations above


# --- data and measures


def test_digits_are_whole_and_stay_whole_when_shifted():
    digits = load_digits()
    assert digits.images.shape == (1797, 1, 10, 10)
    assert torch.equal(digits.labels.bincount() > 170, torch.ones(10, dtype=torch.bool))
    for move in ((0, 1), (0, -1), (1, 0), (-1, 0)):
        torch.testing.assert_close(shifted(digits.images, *move).sum((1, 2, 3)), digits.images.sum((1, 2, 3)))
    right = shifted(digits.images, 0, 1)
    assert torch.equal(right[..., 1:], digits.images[..., :-1])


def test_a_split_parts_the_images_and_follows_the_seed():
    parts = [split(1797, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    for train, test in parts:
        assert sorted([*train.tolist(), *test.tolist()]) == list(range(1797))
    assert torch.equal(parts[0][1], parts[1][1])
    assert not torch.equal(parts[0][1], parts[2][1])


class Corner(nn.Module):
    """Answers 1 where the pixel in row 1, column 1 is set."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        set_ = images[:, 0, 1, 1]
        return torch.stack([1 - set_, set_], 1)


def test_accuracy_and_shift_agreement_by_hand():
    images = torch.zeros(2, 1, 4, 4)
    images[0, 0, 1, 1] = 1  # every move changes the answer
    images[1, 0, 1, 2] = 1  # the move to the left alone does
    assert accuracy(Corner(), images, torch.tensor([1, 1])) == 0.5
    assert shift_agreement(Corner(), images) == pytest.approx(3 / 8)


def test_size_and_arithmetic_by_hand():
    model = build("max").eval()
    assert parameters(model) == 16 * 10 + 32 + 32 * (16 * 9 + 1) + 64 + 10 * 129
    assert multiply_adds(model, torch.zeros(1, 1, 10, 10)) == 16 * 64 * 9 + 32 * 16 * 16 * 9 + 128 * 10
    assert parameters(build("gem")) == parameters(model) + 2


def test_peak_memory_counts_what_is_held_at_once():
    x = torch.zeros(1000)
    assert peak_memory(lambda: x.neg().neg().neg()) == 8000
    assert peak_memory(lambda: [x.neg() for _ in range(3)]) == 12000


# --- trials


def test_a_trial_repeats_itself_in_any_process():
    torch.use_deterministic_algorithms(False)
    digits = load_digits()
    trials = [Trial("max", 3, 1), Trial("gem:p=4", 3, 1)]
    here = {trial: run(trial, digits) for trial in trials}
    there = {event.trial: event.outcome for event in run_all(trials, digits, 2) if event.outcome}
    for trial in trials:
        outcome = there[trial]
        assert (outcome.accuracy, outcome.shift, outcome.loss) == (here[trial].accuracy, here[trial].shift, here[trial].loss)
    assert here[trials[0]].accuracy > 30  # chance is 10


def test_a_trial_that_fails_does_not_stop_the_others():
    events = list(run_all([Trial("nonsense", 0, 1), Trial("center", 0, 1)], load_digits(), 1))
    assert any(event.failure is not None and "nonsense" in event.failure for event in events)
    assert any(event.outcome is not None and event.trial.pool == "center" for event in events)


def test_results_survive_a_line_cut_short(tmp_path: Path):
    path = tmp_path / "runs.jsonl"
    first, second = Trial("max", 0, 1), Trial("max", 1, 1)
    outcome = Outcome(98.0, 80.0, 0.1, 1.0)
    assert results.load(path) == ({}, 0)
    results.append(path, first, outcome)
    path.write_bytes(path.read_bytes() + path.read_bytes()[:40])
    results.append(path, second, outcome)
    assert results.load(path) == ({first.key(): outcome, second.key(): outcome}, 1)
    assert len({first.key(), second.key(), Trial("avg", 0, 1).key(), Trial("max", 0, 2).key()}) == 4


def test_a_file_of_something_else_is_not_added_to(tmp_path: Path):
    path = tmp_path / "notes.txt"
    path.write_text("not results")
    with pytest.raises(ValueError, match=r"`results` must be a file of earlier results"):
        results.load(path)


# --- the command


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--pool", "sof"), "did you mean 'soft'?"),
        (("--pool", "gem:q=3"), "--pool"),
        (("--pool", "gem:p=nan"), "--pool"),
        (("--pool", "max,max"), "--pool"),
        (("--pool", ""), "--pool"),
        (("--seeds", "0"), "--seeds"),
        (("--epochs", "x"), "--epochs"),
        (("--jobs", "-1"), "--jobs"),
        (("--output", "missing/report.html"), "--output"),
        (("--results", "."), "--results"),
        (("--sedes", "3"), "--sedes"),
        (("extra",), "extra"),
    ],
)
def test_bad_arguments_are_one_line_and_exit_code_2(
    arguments: tuple[str, ...], named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    from everypool.cli import main

    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as left:
        main(["compare", *arguments])
    out, err = capfd.readouterr()
    assert (left.value.code, out, err.count("\n")) == (2, "", 1)
    assert named in err


def test_unknown_commands_suggest_the_nearest(capfd: pytest.CaptureFixture[str]):
    from everypool.cli import main

    with pytest.raises(SystemExit) as left:
        main(["comparr"])
    assert left.value.code == 2
    assert "did you mean 'compare'?" in capfd.readouterr().err


def test_a_missing_extra_says_what_to_install(tmp_path: Path):
    for module in ("click", "sklearn"):
        code = f"import sys; sys.modules[{module!r}] = None; from everypool.cli import main; main(['compare'])"
        done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, env=environment())
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert "pip install 'everypool[cli]'" in done.stderr


def test_compare_prints_a_table_writes_a_report_and_resumes(tmp_path: Path):
    done = everypool("compare", *SMALL, "--results", "runs.jsonl", folder=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "\x1b" not in done.stdout
    assert max(len(line) for line in done.stdout.splitlines()) <= 80
    assert re.search(r"^max +\d+\.\d .* 6,186 +84,224 +\d+ +\d+ +\d+", done.stdout, re.MULTILINE)
    assert "No conclusion" in done.stdout

    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert not re.search(r"https?:|//[a-z]|@import|url\((?!#)", text)
    assert all(reference.startswith("#") and reference[1:] in page.ids for reference in page.references)
    assert len(set(page.ids)) == len(page.ids)
    assert page.drawings
    assert all(drawing["role"] == "img" and drawing["aria-label"] for drawing in page.drawings)
    assert "prefers-color-scheme: dark" in text
    assert 'name="viewport"' in text

    before = (tmp_path / "runs.jsonl").read_text()
    assert len(before.splitlines()) == 2
    again = everypool("compare", *SMALL[:2], *SMALL[2:], "--results", "runs.jsonl", "--json", folder=tmp_path)
    assert (again.returncode, (tmp_path / "runs.jsonl").read_text()) == (0, before)  # nothing was run a second time
    record = json.loads(again.stdout)
    assert [r["trials"] for r in record["results"]] == [r["trials"] for r in page.record["results"]]
    assert record["results"][0]["cost"]["parameters"] == 6186


def wait_for_end(group: int) -> None:
    """No worker is left; the tracker that multiprocessing starts beside them takes a moment to notice."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    raise AssertionError("a process outlived the command")


@pytest.mark.skipif(sys.platform == "win32", reason="a group of processes is interrupted as POSIX terminals do it")
def test_an_interrupt_leaves_the_finished_trials(tmp_path: Path):
    command = [sys.executable, "-m", "everypool.cli", "compare", "--pool", "max,center", "--seeds", "100", "--epochs", "1"]
    process = subprocess.Popen(
        [*command, "--results", "runs.jsonl"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        start_new_session=True,
    )
    runs = tmp_path / "runs.jsonl"
    deadline = time.monotonic() + 120
    while not (runs.exists() and runs.read_bytes().count(b"\n") >= 3):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)  # the workers too, as Ctrl-C does
    out, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (130, "interrupted: reporting what is finished\n")
    wait_for_end(process.pid)
    finished = len(runs.read_text().splitlines())
    assert 3 <= finished < 200
    assert f"Partial: {finished} of 200 trials were finished." in out
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert f"Partial: {finished} of 200 trials were finished when it was interrupted." in text
    assert sum(len(r["trials"]) for r in Page(text).record["results"]) == finished
