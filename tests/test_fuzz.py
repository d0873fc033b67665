"""A smoke of the fuzzer of the compiled loops; `make fuzz` runs a million cases."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from collections import Counter
from types import SimpleNamespace
from typing import Any

import fuzz_loops
import fuzz_plans
import pytest

from everypool.backends import cpu

ENTRIES = ("plan", "describe", "forward", "backward", "corner", "corner_bytes", "poison")

pytestmark = pytest.mark.skipif(cpu.library() is None, reason=f"no compiled loops are installed: {cpu.missing()}")


def test_hostile_plans_are_refused_or_run_within_their_memory() -> None:
    cases = 2_000 if fuzz_plans.SANITIZED else 20_000
    command = [sys.executable, fuzz_loops.__file__, "--cases", str(cases), "--jobs", "1"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr[-3000:]
    assert f"{cases} cases in" in result.stdout
    for outcome in fuzz_loops.OUTCOMES:
        assert outcome in result.stdout


@pytest.mark.parametrize("kind", range(len(fuzz_plans.ITEM)))
def test_results_do_not_depend_on_what_memory_held(kind: int) -> None:
    """Same bits, whatever results, scratch and stack held before: plans of every kind, forward and backward, 1 to 40 wide."""
    library: Any = cpu.library()
    run = 0
    for case in range(80 if fuzz_plans.SANITIZED else 800):
        rng = fuzz_plans.Draw(f"{kind} {case}")
        draw = (fuzz_plans.plan_of, fuzz_plans.grouped_plan)[case // 40 % 2]
        numbers, reals = draw(rng, 1 + case % 40, kind)
        final, _alive = fuzz_plans.addressed(rng, numbers)
        if final[0] * final[1] == 0 or fuzz_loops.too_large(numbers, final):
            continue
        fuzz_loops.Case(library, rng, library.plan(final, tuple(reals)), final, Counter()).repeat(kind < fuzz_plans.FLOATS)
        run += 1
    assert run > (40 if fuzz_plans.SANITIZED else 400)


def test_faults_are_seen_and_come_again() -> None:
    """Loops that accept or refuse everything, write to what they read, or leave results as they were."""
    good: Any = cpu.library()

    def accept(*arguments: Any) -> Any:
        try:
            return good.plan(*arguments)
        except ValueError:
            return None

    def refuse(*arguments: Any) -> Any:
        raise ValueError

    def scribble(plan: Any, x: int, *rest: Any) -> Any:
        if x:
            ctypes.memset(x, 0x77, 1)
        return good.forward(plan, x, *rest)

    faults: dict[str, dict[str, Any]] = {
        "not legal": {"plan": accept},
        "was refused": {"plan": refuse},
        "only read": {"forward": scribble},
        "differ from run to run": {"forward": lambda *arguments: True, "backward": lambda *arguments: True},
    }
    for fault, functions in faults.items():
        bad = SimpleNamespace(**{name: getattr(good, name) for name in ENTRIES} | functions)
        found = [first_fault(bad, start) for start in (0, 0)]
        assert fault in found[0][1]
        assert found[0] == found[1] == first_fault(bad, found[0][0])


def first_fault(library: Any, start: int) -> tuple[int, str]:
    for case in range(start, start + 1000):
        try:
            fuzz_loops.attempt(library, 3, case, Counter())
        except fuzz_plans.Fault as fault:
            return case, str(fault)
        except ValueError:  # a plan that was refused for what `legal` does not look at
            continue
    raise AssertionError("no fault")
