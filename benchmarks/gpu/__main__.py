"""Time everypool's fused kernels on a GPU against torch: `make bench-gpu`, or `PYTHONPATH=src python -m benchmarks.gpu`.

It needs Python, torch with CUDA, Triton and numpy, no network, and nothing that is built or installed. Every case is
checked first, outputs and gradients, against the definition in float64 on the GPU, with fresh memory full of NaN and in
two runs that must give the same bits; one that is wrong shows no figure, and the program ends with 1. The contenders of a
case run in shuffled turn in one process; times are medians over the rounds, ratios are medians of the ratios within each
round. What a time is says `timing.py`, which bytes count says `cases.py`; the share is of the bandwidth of a copy between
two large tensors, bytes read and written, in the same run. Torch eager and torch.compile get the fastest of the ways in
`composed.py` to write a case. Where no kernel does a case, everypool's default is measured, and marked.

Results are written after each case: whole runs to benchmarks/results/GPU.json, and in the end the chart beside it.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import logging
import os
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent.parent / "results"
ABSENT = "no CUDA device: there is nothing to time here (--check runs all cases in Triton's interpreter, without figures)"


def parsed(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="tiny cases in Triton's interpreter on the CPU: are they right")
    parser.add_argument("--quick", action="store_true", help="few cases, small, torch eager alone: does all run")
    parser.add_argument("--only", default="", metavar="SUBSTRING", help="only cases whose names contain this")
    parser.add_argument("--rounds", type=int, metavar="N", help="default: 7, with --quick 3")
    parser.add_argument(
        "--budget", type=float, metavar="SECONDS", default=460.0, help="for all; default: 460, and some for the last case"
    )
    parser.add_argument("--skip", type=int, metavar="N", default=0, help="go on after the first N cases of those in --json")
    parser.add_argument("--json", type=Path, metavar="PATH", help="default for a whole run: benchmarks/results/GPU.json")
    parser.add_argument("--chart", type=Path, metavar="PATH", help="only draw the results in --json; .svg or .png")
    options = parser.parse_args(arguments)
    for name, least in (("rounds", 1), ("budget", 0), ("skip", 0)):
        value = getattr(options, name)
        if value is not None and not value >= least:
            parser.error(f"--{name} must be at least {least}, got {value}")
    return options


def drawn(content: dict[str, Any], path: Path) -> None:
    from benchmarks.gpu.chart import chart

    if importlib.util.find_spec("matplotlib") is None:
        print("no chart: matplotlib is not installed")
        return
    chart(content, path)
    print(f"wrote {path}")


def main(arguments: list[str] | None = None) -> int:
    options = parsed(arguments)
    if options.check:
        os.environ["TRITON_INTERPRET"] = "1"  # before anything imports Triton
    if importlib.util.find_spec("torch") is None:
        print("this Python has no torch; name one that has: make bench-gpu PYTHON=.venv/bin/python", file=sys.stderr)
        return 2
    import torch

    from benchmarks.gpu.facts import slug

    there = torch.cuda.is_available()
    if options.chart:
        if options.json is None and not there:
            print("--json must be a file of results where there is no CUDA device, got none", file=sys.stderr)
            return 2
        drawn(json.loads((options.json or RESULTS / f"{slug()}.json").read_text(encoding="utf-8")), options.chart)
        return 0
    if not there and not options.check:
        print(ABSENT, file=sys.stderr)
        return 2
    if importlib.util.find_spec("triton") is None:
        print("no Triton: there are no fused kernels to run", file=sys.stderr)
        return 2
    if not options.check and os.environ.get("TRITON_INTERPRET", "0") not in ("", "0"):
        print("TRITON_INTERPRET must be unset where times are measured", file=sys.stderr)
        return 2
    return run(options, sys.argv[1:] if arguments is None else arguments)


def run(options: argparse.Namespace, arguments: list[str]) -> int:
    """Check, or check and time, the chosen cases."""
    from benchmarks.gpu.cases import CASES
    from benchmarks.gpu.facts import facts, slug
    from benchmarks.gpu.measure import Allotment
    from benchmarks.gpu.report import clipped, header, summary
    from benchmarks.gpu.run import run_cases
    from benchmarks.gpu.timing import Clock
    from benchmarks.report import write

    start = time.monotonic()
    for noisy in ("torch._dynamo", "torch._inductor"):
        logging.getLogger(noisy).setLevel(logging.CRITICAL)  # what fails is told in a line
    warnings.simplefilter("ignore")  # the interpreter's of what `where` leaves out, torch.compile's advice
    cases = [case for case in CASES if options.only.lower() in case.name.lower()]
    if options.check:
        cases = [case.small() for case in cases]
    elif options.quick:
        cases = [case.small(8, 32, (4096, 64, 32)) for case in cases if case.quick]
    if not cases:
        print(f"--only must be part of the name of a case, got {options.only!r}", file=sys.stderr)
        return 2
    clock = None if options.check else Clock()
    about = facts(clock)
    copy = None if clock is None else about["device"]["copy_gb_per_second"]
    path: Path | None = options.json
    if path is None and not (options.check or options.quick or options.only):
        path = RESULTS / f"{slug()}.json"
    earlier: list[dict[str, Any]] = []
    if options.skip and path is not None and path.exists():
        earlier = json.loads(path.read_text(encoding="utf-8"))["cases"]
    rounds: int = options.rounds or (3 if options.quick else 7)
    content = {**about, "date": time.strftime("%Y-%m-%d"), "rounds": rounds, "budget": options.budget, "cases": earlier}
    for part in (about["device"], about["versions"]):
        print(clipped(", ".join(f"{key} {value}" for key, value in part.items() if key != "copies")))
    print(header() if clock else "case, pass, right, by, what was checked")
    allotment = Allotment(start + options.budget)
    rivals = () if options.check or options.quick else ("compile",)

    def save(records: list[dict[str, Any]]) -> None:
        content["cases"] = earlier + records
        if path is not None:
            write(path, content)

    records, lost = run_cases(cases[options.skip :], clock, copy, rounds, allotment, rivals, save)
    done = options.skip + len({record["name"] for record in records})
    if lost and done < len(cases):
        if path is None:
            path = Path(tempfile.mkdtemp()) / "results.json"
            save(records)
        left = max(0.0, allotment.deadline - time.monotonic())
        anew(arguments, "--skip", str(done), "--json", str(path), "--budget", f"{left:.0f}")
    found = earlier + records
    print(f"\n{summary(found)}" if clock else f"{len(found)} checked")
    if path is not None:
        print(f"wrote {path}")
        if path.parent == RESULTS and any(record["share_of_copy"] is not None for record in found):
            drawn(content, path.with_suffix(".svg"))
    if all(record["correct"] for record in found):
        return 0
    print("wrong results: no figures for these", file=sys.stderr)
    return 1


def anew(arguments: list[str], *more: str) -> None:
    """Replace this process, to which the GPU is lost, by one that does the rest."""
    print("the GPU is lost to this process; the rest runs in a fresh one", flush=True)
    sys.stderr.flush()
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))  # the driver's files among them, so that it takes back what it gave
    os.execv(sys.executable, [sys.executable, "-m", "benchmarks.gpu", *arguments, *more])


if __name__ == "__main__":
    sys.exit(main())
