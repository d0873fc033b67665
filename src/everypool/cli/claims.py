"""`everypool claims`: what the source article says of poolings, put to the test."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import click
from rich.console import Console, RenderableType
from rich.text import Text

from everypool import _check as check
from everypool.cli.extras import install_command
from everypool.cli.running import NOTHING, Stop, command_line, cores, duration, print_divergences, run_studies, writable
from everypool.study.checks import CHECKS, CLAIMS, UNTESTED
from everypool.study.claims import NOT_SUPPORTED, NOT_TESTED, SUPPORTED, Check, Verdict, judge
from everypool.study.engine import Deadline
from everypool.study.executors import executor as executor_of
from everypool.study.experiment import experiments, missing
from everypool.study.store import Store
from everypool.study.summary import Study, known, written
from everypool.study.tables import counted, ways

__all__ = ["command"]

FILE = click.Path(path_type=Path)
COLORS = {SUPPORTED: "green", NOT_SUPPORTED: "red", NOT_TESTED: "yellow"}


def chosen_claims(ctx: click.Context, option: click.Parameter, value: str | None) -> tuple[str, ...]:
    """C4,c13 -> C4 and C13, all of them if none is named."""
    if value is None:
        return tuple(CLAIMS)
    names = [piece.strip().upper() for piece in value.split(",")]
    for name in names:
        check.choice("--claim", name, list(CLAIMS))
    return tuple(dict.fromkeys(names))


@click.command()
@click.option("--quick", is_flag=True, help="Fewer seeds and epochs: a first look in less than ten minutes on two cores.")
@click.option("--claim", "claims", callback=chosen_claims, metavar="NAME,...", help="Only these, such as C4,C13.")
@click.option("--budget", callback=duration, metavar="TIME", help="Stop after this time, such as 90s, 10m or 1h30m.")
@click.option("-o", "--output", default="claims.html", show_default=True, callback=writable, type=FILE, help="The report.")
@click.option("--markdown", callback=writable, type=FILE, help="Write the table to this file, too.")
@click.option("--results", default="runs", show_default=True, type=FILE, metavar="FOLDER",
              help="Finished trials are kept here; those that it has already are not run again.")  # fmt: skip
@click.option(
    "--executor", default="local", show_default=True, metavar="WHERE", help="Where trials run: local or dask://HOST:PORT."
)
@click.option("--device", default="cpu", show_default=True, help="Where a trial computes: cpu, cuda, ...")
@click.option("--jobs", type=click.IntRange(1, 256), help="Local processes that train side by side.  [default: one per core]")
@click.option("--json", "as_json", is_flag=True, help="Print the verdicts as JSON instead of a table.")
def command(
    quick: bool,
    claims: tuple[str, ...],
    budget: float | None,
    output: Path,
    markdown: Path | None,
    results: Path,
    executor: str,
    device: str,
    jobs: int | None,
    as_json: bool,
) -> int:
    """What do real data say of the article's claims?

    Runs the experiments behind each claim and prints claim, measure, effect with its 95 % interval, number of pairs and
    verdict. A verdict needs paired tests, corrected over the whole table. Ctrl-C stops early; the same command goes on.
    """
    stop = Stop()
    with stop.listening():
        from everypool.study import export, report

        place = executor_of(executor, jobs=jobs or cores(), device=device)
        if place.follow():
            return 0
        store = Store(results, command_line())
        checks = [c for c in CHECKS if c.claim in claims]
        studies, absent = planned(checks, quick)
        console = Console(stderr=True)
        deadline = Deadline(stop, budget)

        def shown() -> RenderableType:
            return Text(ways(judge(checks, studies)))

        run_studies(list(studies.values()), place, store, deadline, console, shown)
        if stop():
            print("interrupted: reporting what is finished", file=sys.stderr)
        failures = [failure for study in studies.values() for failure in study.failures]
        if studies and not failures and not any(study.finished for study in studies.values()) and not stop():
            print(f"everypool claims: {NOTHING}", file=sys.stderr)
            return 1
        verdicts = judge(checks, studies)
        verdicts = [with_reason(v, absent) for v in verdicts]
        page = report.Page([s for s in studies.values() if s.finished], [], store.command, verdicts, UNTESTED)
        page.interrupted = "it was interrupted" if stop() else "the budget was used up" if deadline.passed else ""
        report.write(output, report.render(page))
        if markdown is not None:
            report.write(markdown, export.markdown(page))
        if as_json:
            print(json.dumps({"verdicts": [record(v) for v in verdicts], "untested": UNTESTED}, allow_nan=False, indent=1))
        else:
            wide = Console()
            for study in studies.values():
                print_divergences(wide, study)
            print_verdicts(wide, verdicts, studies)
            wide.print(counted(verdicts), highlight=False)
            wide.print(f"Report: {output}", highlight=False, markup=False)
        for trial, message in failures:
            print(
                f"everypool claims: {trial.experiment}, {trial.variant}, seed {trial.seed}, failed: {message.strip()}",
                file=sys.stderr,
            )
        finished = [study for study in studies.values() if study.finished]
        nothing_left = bool(finished) and all(study.has_only_diverged for study in finished)
        return 130 if stop() else 1 if failures or nothing_left else 0


def planned(checks: Sequence[Check], quick: bool) -> tuple[dict[str, Study], dict[str, list[str]]]:
    """The studies by experiment, with the variants that the checks speak of, and the modules that others lack to run here."""
    studies = {}
    absent = {}
    for name in dict.fromkeys(c.experiment for c in checks):
        experiment = experiments()[name]
        lacking = missing(experiment)
        if lacking:
            absent[name] = lacking
            continue
        own = [c for c in checks if c.experiment == name]
        asked = {variant for c in own for variant in (c.treatment, c.control)}
        variants = tuple(variant for variant in experiment.variants if variant in asked)
        judged = tuple(measure for measure in experiment.measures if any(c.measure == measure for c in own))
        studies[name] = Study(experiment, experiment.quick if quick else experiment.full, variants, judged)
    return studies, absent


def with_reason(verdict: Verdict, absent: dict[str, list[str]]) -> Verdict:
    """Not tested, since something is not installed."""
    lacking = absent.get(verdict.check.experiment)
    if not lacking:
        return verdict
    return Verdict(verdict.check, None, NOT_TESTED, f"{', '.join(lacking)} is not installed: {install_command(lacking[0])}")


def print_verdicts(console: Console, verdicts: Sequence[Verdict], studies: dict[str, Study]) -> None:
    """Each claim, then its checks: what is said, and below it what was measured and found."""
    last = ""
    for verdict in verdicts:
        own = verdict.check
        if own.claim != last:
            console.print(Text(f"\n{own.claim}  {CLAIMS[own.claim]}", style="bold"))
            last = own.claim
        color = COLORS.get(verdict.verdict, "")
        console.print(Text.assemble("  ", (verdict.verdict, color), f": {own.text}"))
        study = studies.get(own.experiment)
        if study is None or verdict.difference is None:
            console.print(Text(f"    {verdict.why}", style="dim"))
            continue
        title = study.measure(own.measure).title
        effect = f"{effect_of(verdict, study)}, n = {verdict.difference.interval.count}"
        console.print(Text(f"    {title}, {own.treatment} against {own.control} ({own.experiment}): {effect}", style="dim"))
    console.print(Text("\nNot tested", style="bold"))
    for text in UNTESTED:
        console.print(Text(f"  {text}"))
    console.print()


def effect_of(verdict: Verdict, study: Study) -> str:
    """−20.1 points, −20.4 to −19.8."""
    if verdict.difference is None:
        return "—"
    _, _, inner = written(verdict.difference, study.measure(verdict.check.measure)).partition(" (")
    return inner[:-1]


def record(verdict: Verdict) -> dict[str, object]:
    found = verdict.difference
    numbers = None
    if found is not None:
        numbers = known({"p": found.p, "adjusted": found.adjusted, "exact": found.exact, **asdict(found.interval)})
    return {**asdict(verdict.check), "difference": numbers, "verdict": verdict.verdict, "why": verdict.why}
