"""`everypool list`: all operations from the records."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from typing import Any

import click
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from everypool.pool import Operation, operations

__all__ = ["command"]

KINDS = {"reducer": "reducers: what becomes of the values", "windows": "windows: which values belong together",
         "block": "modules: trainable, from papers"}  # fmt: skip
SHOWN = ("name", "kind", "summary", "formula", "source", "names", "nd", "parameters", "dtypes", "mask", "onnx", "aliases")


@click.command("list")
@click.option("--kind", type=click.Choice(list(KINDS)), help="One kind only.")
@click.option("--nd", type=click.IntRange(1, 3), help="Only what pools this many spatial axes.")
@click.option("--experiments", "of_experiments", is_flag=True, help="The experiments of compare and claims instead.")
@click.option("--json", "as_json", is_flag=True, help="Print the records as JSON instead of a table.")
def command(kind: str | None, nd: int | None, of_experiments: bool, as_json: bool) -> None:
    """All operations: what they give, their formula, parameters and names.

    Any reducer works with any windows: everypool.pool(x, "soft:beta=2", everypool.Pyramid((1, 2, 4))).
    """
    if of_experiments:
        if kind is not None or nd is not None:
            raise click.UsageError("--experiments stands alone.")
        print_experiments(as_json)
        return
    chosen = [op for op in operations().values() if kind in (None, op.kind) and (nd is None or nd in op.nd)]
    chosen.sort(key=lambda op: (list(KINDS).index(op.kind), op.name))
    if as_json:
        print(json.dumps([record(op) for op in chosen], ensure_ascii=False, indent=1))
        return
    console = Console()
    for key, heading in KINDS.items():
        rows = [op for op in chosen if op.kind == key]
        if rows:
            console.print(f"\n[bold]{heading}[/bold]", highlight=False)
            console.print(table(rows))
    console.print(f"\n{len(chosen)} operations; everypool show NAME draws one, --json lists every function and layer.")


def print_experiments(as_json: bool) -> None:
    """What `compare` and `claims` can run."""
    from everypool.study.experiment import experiments

    own = ("name", "summary", "data", "variants", "recipe", "needs")
    records = [{name: getattr(experiment, name) for name in own} for experiment in experiments().values()]
    records.sort(key=lambda record: record["name"])
    if as_json:
        measures = {name: list(experiment.measures) for name, experiment in experiments().items()}
        print(json.dumps([{**r, "measures": measures[r["name"]]} for r in records], ensure_ascii=False, indent=1))
        return
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1), collapse_padding=True, show_edge=False)
    made.add_column("name", no_wrap=True)
    made.add_column("what it does, and compares", ratio=1)
    for r in records:
        made.add_row(r["name"], escape(f"{r['summary']} [{', '.join(r['variants'])}]"))
    Console().print(made)


def record(operation: Operation) -> dict[str, Any]:
    return {field.name: getattr(operation, field.name) for field in dataclasses.fields(operation) if field.name in SHOWN}


def table(rows: Iterable[Operation]) -> Table:
    """A line or two each, within 80 columns and more."""
    result = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1), collapse_padding=True, show_edge=False)
    result.add_column("name", no_wrap=True)
    result.add_column("formula and names", ratio=1)
    result.add_column("axes")
    result.add_column("parameters")
    for op in rows:
        axes = str(op.nd[0]) if len(op.nd) == 1 else f"{op.nd[0]}-{op.nd[-1]}"
        shown = f"{escape(op.formula)}\n[dim]{', '.join(short(op))}[/dim]"
        result.add_row(op.name, shown, axes, op.parameters)
    return result


def short(operation: Operation) -> list[str]:
    """Names with 1d, 2d and 3d folded into one."""
    names: list[str] = []
    for name in operation.names:
        folded = name
        if name[-2:] in ("1d", "2d", "3d") and all(f"{name[:-2]}{n}d" in operation.names for n in operation.nd):
            folded = f"{name[:-2]}Nd"
        if folded not in names:
            names.append(folded)
    return names
