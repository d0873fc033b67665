"""The benchmark on a GPU: what it prints, counts and refuses, without a GPU."""

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F

import everypool
from benchmarks.gpu import measure, run
from benchmarks.gpu.cases import CASES, Case, Inputs, traffic
from benchmarks.gpu.measure import Allotment
from benchmarks.gpu.report import WIDTH, header, summary
from everypool.backends import triton

ROOT = Path(__file__).resolve().parent.parent
here = pytest.mark.skipif(not triton.installed(), reason="Triton is not installed")
nowhere = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")

# the interpreter's NumPy warns of what `where` leaves out
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


def started(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The program, as `make bench-gpu` starts it."""
    path = os.pathsep.join(["src", *filter(None, [os.environ.get("PYTHONPATH")])])
    settings = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "benchmarks.gpu", *arguments]
    return subprocess.run(command, cwd=ROOT, env=settings, capture_output=True, text=True, timeout=300)


@nowhere
def test_without_a_gpu_it_says_so() -> None:
    done = started()
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("no CUDA device")


@here
@pytest.mark.parametrize("only", ["k2s2 CL", "strip"])
def test_checks_in_the_interpreter(only: str) -> None:
    done = started("--check", "--only", only)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = done.stdout.splitlines()[3:-1]
    cases = [case for case in CASES if only in case.name]
    assert len(rows) == 2 * len(cases) > 0
    assert all(" yes " in row and " triton " in row for row in rows)  # and no note that a rival was dropped


def case_of(name: str) -> Case:
    return next(case for case in CASES if case.name == name)


def without_values(case: Case, *more: torch.Tensor) -> Inputs:
    return Inputs([torch.empty(shape, dtype=case.dtype, device="meta") for shape in case.shapes], [], list(more))


def test_bytes_of_a_maximum() -> None:
    case = case_of("max k2s2")
    inward, outward = 64 * 64 * 112 * 112, 64 * 64 * 56 * 56
    forward, both = traffic(case, without_values(case), [torch.empty(64, 64, 56, 56, device="meta")])
    assert forward == 4 * inward + 4 * outward
    assert both == 2 * forward + 2 * outward  # a byte per winner, written and read


def test_bytes_of_what_depends_on_values() -> None:
    case = case_of("SoftPool k2s2 BF16")
    inward, outward = 128 * 64 * 112 * 112, 128 * 64 * 56 * 56
    y = torch.empty(128, 64, 56, 56, dtype=torch.bfloat16, device="meta")
    assert traffic(case, without_values(case), [y]) == (2 * (inward + outward), 2 * (3 * inward + 2 * outward))


def test_bytes_of_running_maxima_a_pyramid_and_a_mask() -> None:
    case, plane = case_of("TopLeft top(x)+left(y)"), 8 * 256 * 128 * 128
    y = torch.empty(8, 256, 128, 128, device="meta")
    assert traffic(case, without_values(case), [y]) == (4 * 3 * plane, 4 * 6 * plane + 2 * 2 * plane // 8)
    case, cells = case_of("SPP max 1,2,4 of 40x40"), 128 * 256 * 21
    inward = 128 * 256 * 1600
    # bins of 1600, 400 and 100 elements: two bytes for the winner, two, and one
    kept = 128 * 256 * (2 * 1 + 2 * 4 + 1 * 16)
    y = torch.empty(128, 256 * 21, device="meta")
    assert traffic(case, without_values(case), [y]) == (4 * (inward + cells), 8 * (inward + cells) + 2 * kept)
    case, mask = case_of("masked avg k2s2"), torch.empty(64, 1, 112, 112, dtype=torch.bool, device="meta")
    inward, outward = 64 * 64 * 112 * 112, 64 * 64 * 56 * 56
    once = 4 * (inward + outward) + 64 * 112 * 112
    y = torch.empty(64, 64, 56, 56, device="meta")
    assert traffic(case, without_values(case, mask), [y]) == (once, 2 * once)


def test_bytes_of_samples_of_different_sizes() -> None:
    case = case_of("global avg, sizes 1k to 4k")
    sizes = torch.tensor([3, 1])
    inputs = Inputs([torch.empty(2, 5, 4)], [], [sizes])
    assert traffic(case, inputs, [torch.empty(2, 5)]) == (
        4 * 5 * 4 + 16 + 4 * 10,
        4 * 5 * 4 + 16 + 4 * 10 + 4 * 10 + 4 * 40 + 16,
    )


class Standing:
    """A clock by which every call takes 2 milliseconds and 3 MiB, and the host 1."""

    device: ClassVar[str] = "cpu"
    fill, fills = 1.0, 1
    gone = False

    def spans(self, call: Callable[[], Any], number: int) -> list[float]:
        call()
        return [2.0] * number

    def host(self, call: Callable[[], Any]) -> float:
        return 1.0

    def keep_ahead(self, host: float) -> None:
        pass

    def peak(self, call: Callable[[], Any]) -> int:
        return 3 << 20

    def lost(self) -> bool:
        return self.gone


def ran(cases: list[Case], clock: Any = None, rivals: tuple[str, ...] = ()) -> tuple[list[dict[str, Any]], bool]:
    saved: list[int] = []
    found, lost = run.run_cases(
        cases, clock, None if clock is None else 100.0, 2, Allotment(float("inf")), rivals, lambda r: saved.append(len(r))
    )
    assert saved[-1] == len(found)
    return found, lost


@here
def test_figures(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(measure, "compiled", lambda function: function)
    case = dataclasses.replace(case_of("max k2s2"), shapes=((2, 3, 4, 6),))
    records, lost = ran([case], Standing(), ("compile",))
    printed = capsys.readouterr().out
    assert not lost
    assert [r["bytes"] for r in records] == [4 * 144 + 4 * 36, 2 * (4 * 144 + 4 * 36) + 2 * 36]
    for r in records:
        assert (r["correct"], r["fused"], r["problem"], r["dropped"]) == (True, True, None, {})
        assert r["milliseconds"] == {"everypool": 2.0, "eager": 2.0, "compile": 2.0}
        assert r["everypool_over"] == {"eager": 1.0, "compile": 1.0}
        assert r["peak_bytes"]["eager"] == 3 << 20
        assert r["gb_per_second"] == pytest.approx(r["bytes"] / 2e6, rel=1e-3)
        assert r["share_of_copy"] == pytest.approx(r["bytes"] / 2e8, rel=1e-3)
    assert json.loads(json.dumps(records)) == records
    assert max(len(line) for line in (header() + "\n" + printed).splitlines()) <= WIDTH
    assert "2 cases" not in summary(records)
    assert "1 cases with fused kernels" in summary(records)


@here
def test_wrong_results_have_no_figures(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    case = dataclasses.replace(case_of("max k2s2"), shapes=((2, 3, 4, 6),))

    def wrong(x: torch.Tensor) -> torch.Tensor:
        y = everypool.max_pool(x, 2)
        return y if x.dtype == torch.float64 else y + 1e-4

    records, _ = ran([dataclasses.replace(case, ours=wrong)], Standing())
    assert [(r["correct"], r["milliseconds"]) for r in records] == [(False, {})] * 2
    assert "WRONG: tensor 0 is off by" in capsys.readouterr().out
    # a gradient alone
    double = lambda x: everypool.max_pool(x + x.detach() if x.dtype != torch.float64 else 2 * x, 2)  # noqa: E731
    records, _ = ran([dataclasses.replace(case, ours=double)], Standing())
    assert [r["correct"] for r in records] == [True, False]
    assert records[1]["problem"].startswith("gradient: tensor 0")
    # a rival that is wrong, and one that fails, are dropped
    records, _ = ran([dataclasses.replace(case, rivals=(lambda x: F.avg_pool2d(x, 2), lambda x: x.nonsense))], Standing())
    assert all(r["correct"] and "eager" in r["dropped"] and "eager" not in r["milliseconds"] for r in records)
    # what is not deterministic
    torch.manual_seed(0)
    noise = lambda x: everypool.max_pool(x, 2) * (1 + 1e-6 * torch.rand(()).to(x))  # noqa: E731
    records, _ = ran([dataclasses.replace(case, ours=noise)], Standing())
    assert records[0]["problem"] == "two runs differ"


@here
def test_without_a_kernel_the_default_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    case = Case("median", ((1, 2, 40, 40),), lambda x: everypool.median_pool(x, 40), (lambda x: x.nonsense,))
    records, _ = ran([case], Standing())
    assert all(r["correct"] and not r["fused"] and r["milliseconds"] for r in records)
    assert "no fused kernel: " in capsys.readouterr().out
    assert "no fused kernel: median (forward), median (forward+backward)" in summary(records)


@here
def test_a_lost_gpu_ends_the_run(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Standing()
    clock.gone = True

    def lost(x: torch.Tensor) -> torch.Tensor:
        if x.dtype != torch.float64:
            raise RuntimeError("an illegal memory access was encountered")
        return everypool.max_pool(x, 2)

    case = dataclasses.replace(case_of("max k2s2"), shapes=((2, 3, 4, 6),))
    records, ended = ran([dataclasses.replace(case, ours=lost), case], clock)
    assert ended
    assert [r["correct"] for r in records] == [False]
    assert "the GPU is lost" in capsys.readouterr().out


@here
def test_a_chart(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from benchmarks.gpu.__main__ import main

    records, _ = ran([case_of("max k2s2").small(), case_of("strip means 64x64").small()], Standing())
    device = {"name": "a GPU", "copy_gb_per_second": 100.0}
    content = {"device": device, "versions": {"torch": "2", "triton": "3"}, "cases": records}
    (tmp_path / "results.json").write_text(json.dumps(content), encoding="utf-8")
    assert main(["--json", str(tmp_path / "results.json"), "--chart", str(tmp_path / "chart.svg")]) == 0
    text = (tmp_path / "chart.svg").read_text(encoding="utf-8")
    assert text.startswith("<?xml")


def test_time_is_shared_among_the_passes_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure.time, "monotonic", lambda: 90.0)
    allotment = Allotment(100.0, 4)
    assert allotment.share() == 2.5
    assert allotment.compiles(0.1)
    allotment.compiling += [1.0, 9.0, 2.0]
    assert not allotment.compiles(2.0)
    assert allotment.compiles(2.1)
