"""Time everypool against its rivals: `python -m benchmarks [--quick]`.

Every case is checked first, outputs and gradients, against float64; one that is wrong shows no figure, and the program
ends with 1. All contenders run in one process on pinned threads, in shuffled turn; times are medians over the rounds,
ratios are medians of the ratios within each round. What each rival is and how it is called stands in `rivals.py`.

    table       the poolings of well known networks, forward and forward+backward
    reducers    every registered reducer over windows of a few sizes
    large       how time grows with the window
    small       what one call costs
    memory      what max pooling adds to memory in training
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks import extra
from benchmarks.cases import CASES, Case, Data
from benchmarks.chart import chart
from benchmarks.facts import facts, slug
from benchmarks.measure import Effort, Row, measured
from benchmarks.reducers import reducer_cases
from benchmarks.report import header, line, record, summary, write
from benchmarks.rivals import BUILDERS, missing, set_threads

SECTIONS = ("table", "reducers", "large", "small", "memory")
RIVALS = tuple(name for name in BUILDERS if name != "everypool")
RESULTS = Path(__file__).parent / "results"


def parsed(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--quick", action="store_true", help="small maps, few rounds, torch eager alone: does all run and is it right"
    )
    parser.add_argument("--section", action="append", choices=SECTIONS, help="only this one; may be given more than once")
    parser.add_argument("--only", default="", metavar="SUBSTRING", help="only cases whose names contain this")
    parser.add_argument("--rivals", default=",".join(RIVALS), metavar="NAMES", help="default: %(default)s")
    parser.add_argument("--rounds", type=int, metavar="N", help="default: 7, with --quick 2")
    parser.add_argument("--budget", type=float, metavar="SECONDS", help="per case and pass; default: 4, with --quick 0.1")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="default: 1; the floor always has one")
    parser.add_argument("--json", type=Path, metavar="PATH", help="default for a whole run: benchmarks/results/PROCESSOR.json")
    parser.add_argument("--chart", type=Path, metavar="PATH", help="only draw the results in --json; .svg or .png")
    options = parser.parse_args(arguments)
    unknown = set(filter(None, options.rivals.split(","))) - set(RIVALS)
    if unknown:
        parser.error(f"--rivals must be of {', '.join(RIVALS)}, got {', '.join(sorted(unknown))}")
    if options.rounds is not None and options.rounds < 1:
        parser.error(f"--rounds must be at least 1, got {options.rounds}")
    return options


def chosen_cases(sections: tuple[str, ...], only: str, quick: bool) -> list[Case]:
    cases = [*CASES, *reducer_cases()]
    if quick:
        cases = [case.small() for case in cases if case.quick]
    return [case for case in cases if case.section in sections and only.lower() in case.name.lower()]


def run_cases(cases: list[Case], effort: Effort, allowed: tuple[str, ...], save: Any) -> list[Row]:
    """Measure and print all cases; `save` is told the rows after each."""
    rows: list[Row] = []
    if cases:
        print(header())
    for case in cases:
        try:
            data = Data.make(case)
        except Exception as error:  # the definition itself fails: wrong, and the others go on
            rows.append(Row(case, False, f"{type(error).__name__}: {error}"))
            print(line(rows[-1]), flush=True)
            continue
        for train in (False, True):
            rows.append(measured(data, train, effort, allowed))
            print(line(rows[-1]), flush=True)
        save(rows)
    return rows


def main(arguments: list[str] | None = None) -> int:
    options = parsed(arguments)
    path: Path | None = options.json
    if options.chart:
        path = path or RESULTS / f"{slug()}.json"
        chart(json.loads(path.read_text(encoding="utf-8")), options.chart)
        print(f"wrote {options.chart}")
        return 0
    set_threads(options.threads)
    torch.manual_seed(0)
    quick: bool = options.quick
    sections = tuple(options.section or (("table", "reducers", "large", "small") if quick else SECTIONS))
    allowed = ("eager",) if quick else tuple(filter(None, options.rivals.split(",")))
    whole = not quick and set(sections) == set(SECTIONS) and not options.only and set(allowed) == set(RIVALS)
    if path is None and whole:
        path = RESULTS / f"{slug()}.json"
    rounds, budget = (2, 0.1) if quick else (7, 4.0)
    effort = Effort(options.rounds or rounds, options.budget or budget)
    about = facts(options.threads)
    absent = {name: why for name in allowed if (why := missing(name))}
    print(f"{about['processor']}, {about['instructions']}, {options.threads} thread(s), torch {torch.__version__}")
    print(f"everypool {about['versions']['everypool']}: {about['implementation']}; floor: {about['floor']}")
    for name, why in absent.items():
        print(f"without {name}: {why}")
    content: dict[str, Any] = {**about, "date": time.strftime("%Y-%m-%d"), "rounds": effort.rounds, "absent": absent}

    def save(rows: list[Row]) -> None:
        content["cases"] = [record(row) for row in rows]
        if path is not None:
            write(path, content)

    rows = run_cases(chosen_cases(sections, options.only, quick), effort, allowed, save)
    good = all(row.problem is None for row in rows)
    sections_run = {
        "large": lambda: extra.large(effort, quick),
        "small": lambda: extra.small(effort),
        "memory": extra.memory,
    }
    for name, run in sections_run.items():
        if name in sections and not options.only:
            content[name], right = run()
            good = good and right
    save(rows)
    if rows:
        print(f"\n{summary(rows)}")
    if path is not None:
        print(f"wrote {path}")
    if not good:
        print("wrong results: no figures for these", file=sys.stderr)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
