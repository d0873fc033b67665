"""`everypool inspect`: the poolings of a model."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import click
import torch
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from everypool import _check as check
from everypool.cli.export import made, numbers
from everypool.surgery.find import PLACES, Pooling, Poolings, find

__all__ = ["command"]


@click.command("inspect")
@click.argument("model")
@click.option("--shape", default="1x3x224x224", show_default=True, help="Of the example, with samples and channels.")
@click.option("--classes", default=1000, show_default=True, type=click.IntRange(1), help="Of the classifier that is built.")
@click.option("--costs/--no-costs", default=True, show_default=True, help="Run the model some ten times to measure the shares.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def command(model: str, shape: str, classes: int, costs: bool, as_json: bool) -> None:
    """Every pooling of MODEL, module or function: windows, shapes, neighbours, and shares of time, memory and operations.

    MODEL is timm:NAME, FILE.py:FUNCTION or PACKAGE.MODULE:FUNCTION, as in `everypool compare`.
    """
    extents = numbers("--shape", shape)
    if not 3 <= len(extents) <= 5:
        raise check.invalid("--shape", "samples, channels and one to three spatial extents, such as 1x3x224x224", shape)
    torch.manual_seed(0)
    found = find(made(model, extents, classes).eval(), torch.randn(extents), costs=costs)
    if as_json:
        print(json.dumps([record(p) for p in found], indent=1))
    else:
        show(found)


def show(found: Poolings) -> None:
    console = Console(highlight=False)
    if not found:
        console.print(str(found))
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1), collapse_padding=True, show_edge=False)
    table.add_column("name, place and neighbours", overflow="fold")
    table.add_column("pooling", overflow="fold")
    table.add_column("input and output", overflow="fold")
    costs = ("time", "memory", "operations") if any(p.cost is not None for p in found) else ()
    for name in costs:
        table.add_column(name, justify="right")
    for p in found:
        times = f", {p.calls} times" if p.calls > 1 else ""
        what = f"{p.what}{times}\n{p.described()}" + (f"\n[dim]{escape(p.source)}[/dim]" if p.source else "")
        shapes = f"{sides(p.input)}\n{sides(p.output)}"
        shares = [] if p.cost is None else [f"{100 * share:.2g} %" for share in dataclasses.astuple(p.cost)]
        between = f"{p.place}: {p.before or 'input'} > {p.after or 'output'}"
        table.add_row(f"{escape(p.name)}\n[dim]{escape(between)}[/dim]", what, shapes, *shares)
    console.print(table)
    total = [sum(getattr(p.cost, name) for p in found if p.cost is not None) for name in costs]
    text = "".join(f", {100 * share:.2g} % of the {name}" for name, share in zip(costs, total, strict=True))
    console.print(f"\n{len(found)} poolings{text}", soft_wrap=True)
    for item in found.missed:
        console.print(f"possibly missed: {item}", soft_wrap=True, markup=False)
    console.print(
        "; ".join(f"{place}: {PLACES[place]}" for place in PLACES if any(p.place == place for p in found)), soft_wrap=True
    )


def sides(shape: torch.Size) -> str:
    return "x".join(map(str, shape))


def record(pooling: Pooling) -> dict[str, Any]:
    """Ready for JSON."""
    names = ("name", "what", "reducer", "kind", "place", "calls", "before", "after", "source")
    cost = None if pooling.cost is None else dataclasses.asdict(pooling.cost)
    shapes = {"window": pooling.described(), "input": list(pooling.input), "output": list(pooling.output)}
    return {name: getattr(pooling, name) for name in names} | shapes | {"cost": cost}
