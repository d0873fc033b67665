"""`everypool compare`: which pooling, and what does it cost?"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click
from rich import box
from rich.console import Console
from rich.table import Table

from everypool import _check as check
from everypool.cli.running import NOTHING, Stop, command_line, cores, duration, print_divergences, run_studies, writable
from everypool.study.engine import Deadline
from everypool.study.executors import Executor
from everypool.study.executors import executor as executor_of
from everypool.study.experiment import Experiment, Scale, experiments, missing
from everypool.study.experiments import costs
from everypool.study.nets import checked_pool
from everypool.study.statistics import Interval
from everypool.study.store import Store
from everypool.study.summary import Study
from everypool.study.trial import Value

__all__ = ["command", "results_table"]

POOLS = "max,avg,lp,soft,gem,center"
OWN_POOLS = "original,max,avg,soft,gem"
DEFAULT, OWN = "digits", "own"
RESERVE = 6.0  # seconds of a budget that costs and the report take
COLUMNS = {  # of the costs' experiment
    "parameters": "para-\nmeters",
    "multiply-adds": "mult-\nadds",
    "answer": "answer\nµs",
    "training": "train\nµs",
    "training memory": "memory\nKiB",
}


def split_pools(text: str) -> list[str]:
    """max,gem:p=4,eps=1e-3,soft -> max | gem:p=4,eps=1e-3 | soft."""
    pools: list[str] = []
    for piece in text.split(","):
        if "=" in piece and ":" not in piece and pools:
            pools[-1] += f",{piece.strip()}"
        else:
            pools.append(piece.strip())
    return pools


def chosen_variants(experiment: Experiment, text: str | None) -> tuple[str, ...]:
    """What is compared: variants of the experiment, or operations where it takes any."""
    if text is None:
        if experiment.name == OWN:
            return tuple(split_pools(OWN_POOLS))
        return tuple(split_pools(POOLS)) if experiment.nd else tuple(experiment.variants)
    pools = split_pools(text)
    for pool in pools:
        if pools.count(pool) > 1:
            raise click.BadParameter(f"{pool!r} is named twice.", param_hint="'--pool'")
        if pool in experiment.variants:
            continue
        try:
            if not experiment.nd:
                check.choice("--pool", pool, list(experiment.variants))
            if experiment.check_variant is not None:
                experiment.check_variant(pool)
            else:
                checked_pool(pool, experiment.nd)
        except (ValueError, TypeError, NotImplementedError, RuntimeError) as error:
            rule, _, got = str(error).partition(" must be ")
            text = f"in {pool!r}, {rule} must be {got}" if got else f"{pool!r}: {error}"
            raise click.BadParameter(text, param_hint="'--pool'") from error
    return tuple(pools)


def chosen_measures(experiment: Experiment, text: str | None) -> tuple[str, ...]:
    """Which measures are judged; "shift" stands for the first of its curve."""
    if text is None:
        return experiment.judged or tuple(experiment.measures)[:1]
    names = []
    for piece in text.split(","):
        name = piece.strip()
        of_curve = [n for n, measure in experiment.measures.items() if measure.curve == name]
        if name not in experiment.measures and of_curve:
            name = of_curve[0]
        check.choice("--metric", name, list(experiment.measures))
        names.append(name)
    return tuple(dict.fromkeys(names))


@click.command()
@click.argument("data", metavar="[DATA]", default=DEFAULT)
@click.option(
    "--model", metavar="SPEC", help="small, timm:NAME[@WEIGHTS] or FILE.py:FUNCTION; for data of your own.  [default: small]"
)
@click.option(
    "--where", metavar="PLACE,...", help="Which of the model's poolings: stem, stage, head, or names.  [default: all]"
)
@click.option("--pool", metavar="NAME[:SETTING=VALUE],...",
              help="Poolings to compare, such as max,gem:p=4,soft; the others are compared with the first. "
              '"original" is a model as it is.')  # fmt: skip
@click.option("--metric", metavar="NAME,...", help="Measures that are judged, such as accuracy,shift,rotation,noise.")
@click.option("--seeds", default=10, show_default=True, type=click.IntRange(1, 1000), help="Networks trained per pooling.")
@click.option("--epochs", type=click.IntRange(1, 100000), help="Passes over the training samples.  [default: the experiment's]")
@click.option("--batch", type=click.IntRange(2, 1 << 20), help="Samples per training step, for data of your own.")
@click.option("--rate", type=click.FloatRange(0, min_open=True), help="The highest learning rate, for data of your own.")
@click.option(
    "--size", type=click.IntRange(1, 1 << 16), help="Pixels per side that images are brought to.  [default: from the data]"
)
@click.option("--layout", metavar="LETTERS", help="Axes of arrays, such as NHW, NHWC or NCDHW.  [default: from their shape]")
@click.option("--budget", callback=duration, metavar="TIME", help="Stop after this time, such as 90s, 10m or 1h30m.")
@click.option("-o", "--output", default="report.html", show_default=True, callback=writable,
              type=click.Path(path_type=Path), help="The report.")  # fmt: skip
@click.option("--results", default="runs", show_default=True, type=click.Path(path_type=Path), metavar="FOLDER",
              help="Finished trials are kept here; those that it has already are not run again.")  # fmt: skip
@click.option("--executor", default="local", show_default=True, metavar="WHERE",
              help="Where trials run: local, dask://HOST:PORT, or fabric:devices=2.")  # fmt: skip
@click.option("--device", default="cpu", show_default=True, help="Where a trial computes: cpu, cuda, ...")
@click.option("--jobs", type=click.IntRange(1, 256), help="Local processes that train side by side.  [default: one per core]")
@click.option("--json", "as_json", is_flag=True, help="Print the results as JSON instead of a table.")
def command(
    data: str,
    model: str | None,
    where: str | None,
    pool: str | None,
    metric: str | None,
    seeds: int,
    epochs: int | None,
    batch: int | None,
    rate: float | None,
    size: int | None,
    layout: str | None,
    budget: float | None,
    output: Path,
    results: Path,
    executor: str,
    device: str,
    jobs: int | None,
    as_json: bool,
) -> int:
    """Which pooling should I use, and what does it cost?

    Trains a network with each pooling and several seeds; prints a table and writes a report with plots and a conclusion.
    Ctrl-C stops early and reports what is finished; the same command goes on from there.

    DATA: nothing, for a small network on real digits in a minute; the name of an experiment (`everypool list --experiments`);
    or data of your own: a folder with a folder of images for each class, an .npz with x and y, a NAME.npy beside
    NAME.labels.npy, or a Parquet file with columns label and image or values.
    """
    stop = Stop()
    with stop.listening():
        place = executor_of(executor, jobs=jobs or cores(), device=device)
        if place.follow():
            return 0
        of_own = {"model": model, "where": where, "batch": batch, "rate": rate, "size": size, "layout": layout}
        given = {name: value for name, value in of_own.items() if value is not None}
        if data in experiments() and data != OWN and not given:
            experiment, settings = built_in(data, epochs)
        else:
            experiment, settings = of_the_user(data, given if epochs is None else {**given, "epochs": epochs})
        study = Study(
            experiment, Scale(seeds, settings), chosen_variants(experiment, pool), chosen_measures(experiment, metric)
        )
        return carry_out(study, output, Store(results, command_line()), place, device, budget, stop, as_json)


def built_in(name: str, epochs: int | None) -> tuple[Experiment, dict[str, Value]]:
    """An experiment by its name, and its settings."""
    experiment = experiments()[name]
    for module in missing(experiment):
        raise ModuleNotFoundError(f"No module named {module!r}", name=module)
    settings = dict(experiment.quick.settings)
    if epochs is not None:
        if "epochs" not in settings:
            raise check.invalid("--epochs", f"left out: {name} has none", epochs)
        settings["epochs"] = epochs
    return experiment, settings


def of_the_user(data: str, given: dict[str, Any]) -> tuple[Experiment, dict[str, Value]]:
    """The experiment on data of the user's, found to fit together before anything is trained."""
    from everypool.study.experiments import own

    settings, samples = own.prepared(data, **given)
    if samples.skipped:
        print(f"everypool compare: {len(samples.skipped)} file(s) that cannot be read are left out:", file=sys.stderr)
        for path, why in samples.skipped:
            print(f"  {path}: {why}", file=sys.stderr)
    return own.described(settings, samples), settings


def carry_out(
    study: Study,
    output: Path,
    store: Store,
    place: Executor,
    device: str,
    budget: float | None,
    stop: Stop,
    as_json: bool,
) -> int:
    """Train, measure the costs, report."""
    from everypool.study import report

    console = Console(stderr=True)
    deadline = Deadline(stop, None if budget is None else max(budget - RESERVE, budget / 2))
    last = Deadline(stop, budget)
    run_studies([study], place, store, deadline, console, lambda: results_table(study))
    cost = None
    if study.finished and study.experiment.sample is not None and not stop():
        measures = ("training", "training memory")
        cost = Study(costs.EXPERIMENT, costs.scale(study.trials()[0], device), study.variants, measures)
        alone = executor_of("local", jobs=1, device=device)
        run_studies([cost], alone, store, last, console, lambda: results_table(study))
    if stop():
        print("interrupted: reporting what is finished", file=sys.stderr)
    short = study.finished < study.planned or (cost is not None and cost.finished < cost.planned)
    if study.finished:  # an earlier report is worth more than one of nothing
        page = report.Page([study], [cost] if cost is not None else [], store.command)
        page.interrupted = "it was interrupted" if stop() else "the budget was used up" if short and deadline.passed else ""
        report.write(output, report.render(page))
    print_study(study, cost, output if study.finished else None, as_json)
    if not study.finished and not study.failures and not stop():
        print(f"everypool compare: {NOTHING}", file=sys.stderr)
        return 1
    for trial, message in study.failures + (cost.failures if cost is not None else []):
        print(f"everypool compare: {trial.variant}, seed {trial.seed}, failed: {message.strip()}", file=sys.stderr)
    return 130 if stop() else 1 if study.failures or study.has_only_diverged else 0


def results_table(study: Study, cost: Study | None = None) -> Table:
    """At most 80 columns wide as long as the names are short."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1), collapse_padding=True, show_edge=False)
    table.add_column("pooling", no_wrap=True, overflow="fold")
    for name in study.judged:
        measure = study.measure(name)
        table.add_column(f"{name}\n{measure.unit}", justify="right", no_wrap=True)
    if study.experiment.sample is not None:
        for heading in COLUMNS.values():
            table.add_column(heading, justify="right", no_wrap=True)
    costs_of = {row.variant: row for row in cost.rows()} if cost is not None else {}
    for row in study.rows():
        cells = [row.label, *(f"{shown(row.intervals[name])} {row.mark(name) or ' '}" for name in study.judged)]
        if study.experiment.sample is not None:
            own = costs_of.get(row.variant)
            cells += ["—" if own is None else amount(own.intervals[name]) for name in COLUMNS]
        table.add_row(*cells)
    return table


def amount(spread: Interval) -> str:
    return f"{spread.mean:,.0f}" if spread.count else "—"


def shown(spread: Interval) -> str:
    """98.9 ± 0.4, or as much of it as is known."""
    if spread.count == 0:
        return "—"
    return f"{spread.mean:.1f}" if spread.count == 1 else f"{spread.mean:.1f} ± {spread.half:.1f}"


def print_study(study: Study, cost: Study | None, output: Path | None, as_json: bool) -> None:
    if as_json:
        record = {**study.record(), "costs": None if cost is None else cost.record()}
        print(json.dumps(record, allow_nan=False, indent=1))
        return
    console = Console()
    print_divergences(console, study)
    console.print(results_table(study, cost))
    if study.finished < study.planned:
        console.print(f"Partial: {study.finished} of {study.planned} trials were finished.", highlight=False)
    console.print(study.conclusion(), highlight=False, markup=False)
    if output is not None:
        console.print(f"Report: {output}", highlight=False, markup=False)
