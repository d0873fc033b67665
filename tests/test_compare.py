"""`everypool compare`, `claims` and `report` as processes; the data, transforms and measures behind the digits."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import os
import re
import signal
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("scipy")
pytest.importorskip("pyarrow")

from everypool.study.data import digits
from everypool.study.experiments.digits import build
from everypool.study.measures import accuracy, agreement, multiply_adds, parameters, peak_memory, training_time
from everypool.study.transforms import noisy, rotated, shifted, split

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


# --- data, transforms and measures


def test_digits_are_whole_and_stay_whole_when_shifted():
    images, labels = digits.load()
    assert images.shape == (1797, 1, 10, 10)
    assert torch.equal(labels.bincount() > 170, torch.ones(10, dtype=torch.bool))
    for move in ((0, 1), (0, -1), (1, 0), (-1, 0)):
        torch.testing.assert_close(shifted(images, *move).sum((1, 2, 3)), images.sum((1, 2, 3)))
    assert torch.equal(shifted(images, 0, 1)[..., 1:], images[..., :-1])
    assert torch.equal(shifted(images, -2, 0)[..., :-2, :], images[..., 2:, :])
    assert torch.equal(shifted(images[0], 3)[..., :3], torch.zeros(1, 10, 3))  # one spatial axis


def test_a_quarter_turn_is_exact_and_a_full_one_changes_nothing():
    image = torch.rand(1, 2, 5, 5)
    torch.testing.assert_close(rotated(image, 90), image.rot90(1, (2, 3)), atol=1e-5, rtol=0)
    wide = torch.zeros(1, 1, 5, 9)
    wide[0, 0, 2, 1:8] = 1.0  # a bar along the longer side stands upright after the turn, cut at the edges
    upright = torch.zeros(1, 1, 5, 9)
    upright[0, 0, :, 4] = 1.0
    torch.testing.assert_close(rotated(wide, 90), upright, atol=1e-5, rtol=0)
    torch.testing.assert_close(rotated(wide, 360), wide, atol=1e-5, rtol=0)


def test_noise_has_the_strength_asked_for():
    generator = torch.Generator().manual_seed(0)
    noise = noisy(torch.zeros(10000), 0.3, generator)
    assert noise.std().item() == pytest.approx(0.3, rel=0.05)


def test_a_split_parts_the_samples_and_follows_the_seed():
    parts = [split(1797, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    for train, test in parts:
        assert sorted([*train.tolist(), *test.tolist()]) == list(range(1797))
        assert len(test) == 359
    assert torch.equal(parts[0][1], parts[1][1])
    assert not torch.equal(parts[0][1], parts[2][1])


class Corner(nn.Module):
    """Answers 1 where the pixel in row 1, column 1 is set."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        set_ = images[:, 0, 1, 1]
        return torch.stack([1 - set_, set_], 1)


def test_accuracy_and_agreement_by_hand():
    images = torch.zeros(2, 1, 4, 4)
    images[0, 0, 1, 1] = 1  # every move changes the answer
    images[1, 0, 1, 2] = 1  # the move to the left alone does
    moves = [(0, 1), (0, -1), (1, 0), (-1, 0)]
    assert accuracy(Corner(), images, torch.tensor([1, 1])) == 50
    assert agreement(Corner(), images, [shifted(images, *move) for move in moves]) == pytest.approx(37.5)


def test_size_and_arithmetic_by_hand():
    model = build("max").eval()
    assert parameters(model) == 16 * 10 + 32 + 32 * (16 * 9 + 1) + 64 + 10 * 129
    assert multiply_adds(model, torch.zeros(1, 1, 10, 10)) == 16 * 64 * 9 + 32 * 16 * 16 * 9 + 128 * 10
    assert parameters(build("gem")) == parameters(model) + 2
    assert parameters(build("stride")) == parameters(model)
    assert parameters(build("none")) == parameters(model) + 10 * 15 * 128  # 8 x 8 places instead of 2 x 2
    assert multiply_adds(build("none").eval(), torch.zeros(1, 1, 10, 10)) == 64 * (16 * 9 + 32 * 16 * 9 + 320)


def test_peak_memory_counts_what_is_held_at_once():
    x = torch.zeros(1000)
    assert peak_memory(lambda: x.neg().neg().neg()) == 8000
    assert peak_memory(lambda: [x.neg() for _ in range(3)]) == 12000


def test_a_training_step_is_timed_without_changing_the_network():
    model = build("max")
    before = [p.clone() for p in model.parameters()]
    assert training_time(model, torch.rand(8, 1, 10, 10), torch.zeros(8, dtype=torch.int64)) > 0
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


# --- the commands


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("compare", "--pool", "sof"), "did you mean 'soft'?"),
        (("compare", "--pool", "gem:q=3"), "--pool"),
        (("compare", "--pool", "gem:p=nan"), "--pool"),
        (("compare", "--pool", "max,max"), "--pool"),
        (("compare", "--pool", ""), "--pool"),
        (("compare", "detection", "--pool", "max"), "--pool"),
        (("compare", "--metric", "acuracy"), "did you mean 'accuracy'?"),
        (("compare", "--seeds", "0"), "--seeds"),
        (("compare", "--epochs", "x"), "--epochs"),
        (("compare", "patterns", "--epochs", "3"), "--epochs"),
        (("compare", "--jobs", "-1"), "--jobs"),
        (("compare", "--budget", "ten"), "--budget"),
        (("compare", "--budget", "0m"), "--budget"),
        (("compare", "--executor", "moon"), "`executor` must be"),
        (("compare", "--device", "cuda:99"), "`device` must be one that this machine has"),
        (("compare", "--device", "meta"), "`device` must be one that this machine has"),
        (("claims", "--device", "gpu"), "`device` must be one that this machine has"),
        (("compare", "--pool", "max,strip"), "gives a tuple of 2"),
        (("compare", "--pool", "hopfield_pooling"), "which gives (2, 8)"),
        (("compare", "--pool", "global_average_head"), "`classes` must be given"),
        (("compare", "--output", "missing/report.html"), "--output"),
        (("compare", "--results", "file.txt"), "`results` must be a folder"),
        (("compare", "--sedes", "3"), "--sedes"),
        (("compare", "nowhere/at/all"), "nowhere/at/all"),
        (("compare", "--model", "small", "--where", "nose"), "nose"),
        (("claims", "--claim", "C99"), "--claim"),
        (("report", "missing"), "`RUNS` must be"),
        (("report", "empty"), "`RUNS` must be"),
        (("list", "--experiments", "--nd", "2"), "--experiments"),
    ],
)
def test_bad_arguments_are_one_line_and_exit_code_2(
    arguments: tuple[str, ...], named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    from everypool.cli import main

    (tmp_path / "file.txt").write_text("")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as left:
        main(arguments)
    out, err = capfd.readouterr()
    assert (left.value.code, out, err.count("\n")) == (2, "", 1), err
    assert named in err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(("text", "seconds"), [("90", 90), ("90s", 90), ("1.5m", 90), ("1h30m", 5400), ("1H", 3600)])
def test_times_are_read_as_people_write_them(text: str, seconds: float):
    import click

    from everypool.cli.running import duration

    context = click.Context(click.Command("x"))
    assert duration(context, click.Option(["--budget"]), text) == seconds


def test_unknown_commands_suggest_the_nearest(capfd: pytest.CaptureFixture[str]):
    from everypool.cli import main

    with pytest.raises(SystemExit) as left:
        main(["comparr"])
    assert left.value.code == 2
    assert "did you mean 'compare'?" in capfd.readouterr().err


def test_a_missing_extra_says_what_to_install(tmp_path: Path):
    for module, extra in (("click", "cli"), ("sklearn", "cli"), ("timm", "timm"), ("distributed", "dask")):
        where = {"timm": ["digits", "--model", "timm:resnet18"], "dask": ["--executor", "dask://127.0.0.1:9"]}.get(extra, [])
        code = f"import sys; sys.modules[{module!r}] = None; from everypool.cli import main; main({['compare', *where]})"
        done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, env=environment())
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
        assert done.stderr == f"everypool: {module!r} is not installed; install it with: pip install 'everypool[{extra}]'\n"


def test_every_package_of_an_extra_is_known_by_its_modules():
    """Of the extras for users; the others are for who works on everypool."""
    tomllib = pytest.importorskip("tomllib")
    from everypool.cli.extras import MODULES, install_command

    path = Path(__file__).resolve().parent.parent / "pyproject.toml"
    extras = tomllib.loads(path.read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    assert set(MODULES) == set(extras) - {"docs", "dev", "all"}
    provided = importlib.metadata.packages_distributions()
    for extra, modules in MODULES.items():
        packages = {name for module in modules for name in provided.get(module, [module])}
        assert {name.lower().replace("_", "-") for name in packages} >= {name.lower() for name in extras[extra]}
        assert all(install_command(f"{module}.inner") == f"pip install 'everypool[{extra}]'" for module in modules)
    assert install_command("of_the_users.own") == "pip install of_the_users"


def test_compare_prints_a_table_writes_a_report_resumes_and_is_reported_again(tmp_path: Path):
    done = everypool("compare", *SMALL, folder=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "\x1b" not in done.stdout
    assert max(len(line) for line in done.stdout.splitlines()) <= 80
    assert re.search(r"^max +\d+\.\d .* 6,186 +84,224 +\d+ +\d+ +\d+", done.stdout, re.MULTILINE)
    assert "No conclusion" in done.stdout

    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    shown = re.sub('<script.*?</script>|data:image/png;base64,[^"]*', "", text, flags=re.DOTALL)
    assert not re.search(r"https?:|//[a-z]|@import|url\((?!#)", shown)
    others = [reference for reference in page.references if not reference.startswith("data:image/png;base64,")]
    assert all(reference.startswith("#") and reference[1:] in page.ids for reference in others)
    assert len(set(page.ids)) == len(page.ids)
    assert page.drawings
    assert "everypool compare --seeds 1 --epochs 1 --pool max,avg" in text

    runs = tmp_path / "runs"
    before = sorted(path.name for path in runs.iterdir())
    assert sum(name.startswith("digits-") for name in before) == 2
    again = everypool("compare", *SMALL, "--json", folder=tmp_path)
    assert (again.returncode, sorted(path.name for path in runs.iterdir())) == (0, before)  # nothing was run a second time
    record = json.loads(again.stdout)
    assert [row["variant"] for row in record["results"]] == ["max", "avg"]
    assert record["costs"]["results"][0]["measures"]["parameters"]["mean"] == 6186

    told = everypool("report", "--csv", "all.csv", "--markdown", "all.md", "-o", "again.html", folder=tmp_path)
    assert (told.returncode, told.stdout.split()) == (0, ["again.html", "all.csv", "all.md"])
    assert f"{record['results'][1]['measures']['accuracy']['mean']:.1f}" in (tmp_path / "all.md").read_text(encoding="utf-8")
    assert "digits,avg,0,accuracy" in (tmp_path / "all.csv").read_text(encoding="utf-8")
    assert "everypool compare --seeds 1" in (tmp_path / "again.html").read_text(encoding="utf-8")


def test_a_budget_is_obeyed_and_reported(tmp_path: Path):
    began = time.monotonic()
    done = everypool("compare", "--pool", "max,avg", "--seeds", "1000", "--epochs", "1", "--budget", "16s", folder=tmp_path)
    assert time.monotonic() - began < 120  # a thousand seeds would take a quarter of an hour
    if done.returncode == 0:
        assert re.search(r"Partial: \d+ of 2000 trials were finished\.", done.stdout)
    else:
        assert (done.returncode, "No trial was finished" in done.stdout) == (1, True), done.stderr


def test_diverged_training_is_no_result(tmp_path: Path):
    """Said first, in the table, the report and the JSON; the exit code says that nothing else remains."""
    numbers = np.random.default_rng(0)
    np.savez(tmp_path / "mine.npz", x=numbers.integers(0, 255, (40, 8, 8), dtype=np.uint8), y=np.arange(40) % 2)
    call = ("compare", "mine.npz", "--pool", "max,avg", "--seeds", "2", "--epochs", "2", "--rate", "1e30")
    done = everypool(*call, folder=tmp_path)
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert lines[:2] == [f"{v} diverged in 2 of 2 trials: its loss or weights were not finite." for v in ("max", "avg")]
    assert re.search(r"^max \(diverged\) ", done.stdout, re.MULTILINE)
    assert "no difference" not in done.stdout
    assert "No conclusion: every trial diverged" in done.stdout
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<li>max diverged in 2 of 2 trials" in page
    assert "max (diverged)" in page
    record = json.loads(everypool(*call, "--json", folder=tmp_path).stdout)
    assert record["diverged"] == {"max": [0, 1], "avg": [0, 1]}
    assert all(trial["diverged"] for result in record["results"] for trial in result["trials"])
    assert everypool("report", "--csv", "all.csv", folder=tmp_path).returncode == 0
    header, *rows = (tmp_path / "all.csv").read_text(encoding="utf-8").splitlines()
    assert header.endswith(",diverged")
    assert all(row.endswith(",yes") for row in rows if row.startswith("own,"))


@pytest.mark.parametrize("command", [("compare", "--pool", "max,avg"), ("claims", "--quick", "--claim", "C4")])
def test_a_budget_without_a_trial_is_an_error(command: tuple[str, ...], tmp_path: Path):
    report = tmp_path / f"{'report' if command[0] == 'compare' else 'claims'}.html"
    for text in (None, "of an earlier day"):
        if text is not None:
            report.write_text(text)
        done = everypool(*command, "--budget", "0.01s", folder=tmp_path)
        said = f"everypool {command[0]}: the budget was too short for a single trial; no report is written\n"
        assert (done.returncode, done.stderr) == (1, said)
        assert (report.read_text() if report.exists() else None) == text


def test_claims_are_judged_in_one_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]):
    from everypool.cli import main
    from everypool.study import experiment

    whole = experiment.find("digits")
    two = {name: whole.variants[name] for name in ("max", "none")}
    small = dataclasses.replace(whole, quick=experiment.Scale(2, {"epochs": 1}), variants=two)
    monkeypatch.setitem(experiment.REGISTRY, "digits", small)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as left:
        main(["claims", "--quick", "--claim", "c2,C1", "--json", "--markdown", "claims.md"])
    out, err = capfd.readouterr()
    assert left.value.code == 0, err
    counted, timed, held, stepped, last = json.loads(out)["verdicts"]
    assert (last["claim"], last["treatment"], last["control"], last["verdict"]) == ("C2", "max", "none", "supported")
    assert last["difference"]["mean"] == 6186 - 25386
    assert (counted["claim"], counted["verdict"], counted["difference"]["exact"]) == ("C1", "supported", True)
    assert {timed["difference"]["p"], held["difference"]["p"]} <= {0.5, 1.0}  # of two pairs, all that can be
    assert (stepped["control"], stepped["verdict"], stepped["difference"]) == ("stride", "not tested", None)
    for name in ("claims.html", "claims.md"):
        assert "not tested" in Path(name).read_text(encoding="utf-8")


def test_a_claim_whose_data_are_not_installed_is_not_tested(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    from everypool.cli import claims, main

    monkeypatch.setattr(claims, "missing", lambda experiment: ["mlxtend"])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as left:
        main(["claims", "--claim", "C10"])
    out, err = capfd.readouterr()
    assert (left.value.code, err) == (0, "")
    assert "mlxtend is not installed: pip install 'everypool[data]'" in " ".join(out.split())
    assert "0 supported" not in out
    assert not Path("runs").exists()


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
        command,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        start_new_session=True,
    )
    runs = tmp_path / "runs"
    deadline = time.monotonic() + 120
    while len(list(runs.glob("digits-*.parquet"))) < 3:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)  # the workers too, as Ctrl-C does
    out, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (130, "interrupted: reporting what is finished\n")
    wait_for_end(process.pid)
    finished = len(list(runs.glob("digits-*.parquet")))
    assert 3 <= finished < 200
    assert f"Partial: {finished} of 200 trials were finished." in out
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "it was interrupted" in text
