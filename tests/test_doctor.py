"""`everypool doctor` as a process: what runs, and what is said where the compiled loops are missing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from everypool.backends import cpu

HIDDEN = """
import sys
for name in ("avx2", "baseline", "avx512"):
    sys.modules["everypool._cpu_" + name] = None
from everypool.cli import main
main(["doctor"])
"""


def doctor(folder: Path, program: str | None = None, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("EVERYPOOL_")}
    call = ["-m", "everypool.cli", "doctor"] if program is None else ["-c", program]
    return subprocess.run(
        [sys.executable, *call], cwd=folder, env=environment | variables | {"COLUMNS": "100"}, capture_output=True, text=True
    )


@pytest.mark.skipif(cpu.library() is None, reason="the compiled loops are not installed")
def test_says_which_loops_are_in_use(tmp_path: Path):
    done = doctor(tmp_path)
    assert done.returncode == 0, done.stderr
    lines = {line.split("  ")[0].strip(): line for line in done.stdout.splitlines() if line.strip()}
    assert "cpu: compiled loops are installed" in lines["implementation"]
    assert sum(line.split("ok")[-1].strip() == "in use" for line in lines.values()) == 1
    assert {"torch", "loops for avx2", "loops for baseline", "EVERYPOOL_ISA", "everypool[onnx]"} <= set(lines)


BARE = """
import sys
for name in ("click", "rich", "PIL", "matplotlib", "sklearn", "scipy", "pyarrow"):
    sys.modules[name] = None
from everypool.cli import main
main(["doctor"])
"""


def test_needs_no_extra(tmp_path: Path):
    assert doctor(tmp_path, BARE).stdout == doctor(tmp_path).stdout


def test_other_commands_say_once_that_the_loops_are_missing(tmp_path: Path):
    listed = HIDDEN.replace('["doctor"]', '["list", "--json"]')
    done = doctor(tmp_path, listed)
    said = "everypool: the compiled loops are not installed, so all runs slower; see: everypool doctor\n"
    assert (done.returncode, done.stderr) == (0, said)
    assert doctor(tmp_path, listed.replace("_cpu_", "_gpu_")).stderr == ("" if cpu.library() is not None else said)


def test_says_what_was_forced(tmp_path: Path):
    done = doctor(tmp_path, EVERYPOOL_IMPL="eager")
    assert "eager: forced by EVERYPOOL_IMPL=eager" in done.stdout
    done = doctor(tmp_path, EVERYPOOL_IMPL="cuda")
    assert done.returncode != 0
    assert "EVERYPOOL_IMPL" in done.stderr


def test_without_the_loops_it_says_how_to_get_them(tmp_path: Path):
    done = doctor(tmp_path, HIDDEN)
    assert done.returncode == 1
    assert "eager: the definition, and the only implementation installed" in done.stdout
    assert "install" in done.stdout.splitlines()[-1]
    assert "Traceback" not in done.stderr
