"""`everypool report`: the report of finished trials, once more."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from everypool import _check as check
from everypool.cli.running import command_line, writable
from everypool.study.recall import recalled
from everypool.study.store import Store

__all__ = ["command"]

FILE = click.Path(path_type=Path)


@click.command()
@click.argument("runs", metavar="[RUNS]", default="runs", type=FILE)
@click.option("-o", "--output", default="report.html", show_default=True, callback=writable, type=FILE, help="The report.")
@click.option("--csv", callback=writable, type=FILE, help="Write every measure of every trial to this file.")
@click.option("--markdown", callback=writable, type=FILE, help="Write conclusions and tables to this file.")
def command(runs: Path, output: Path, csv: Path | None, markdown: Path | None) -> int:
    """Write the report of the finished trials in the folder RUNS."""
    if not runs.is_dir():
        raise check.invalid("RUNS", "a folder of finished trials", str(runs))
    from everypool.study import export, report

    rows, unread = Store(runs).load()
    studies, costs, foreign = recalled(rows.values())
    for number, what in ((len(unread), "unreadable file(s)"), (foreign, "trial(s) of other versions of their experiment")):
        if number:
            print(f"everypool report: {number} {what} of {str(runs)!r} are passed over", file=sys.stderr)
    if not studies:
        raise check.invalid("RUNS", "a folder with a finished trial in it", str(runs))
    ran = dict.fromkeys(row.command for row in rows.values() if row.command)
    page = report.Page(studies, costs, "\n".join([*ran, command_line()]))
    report.write(output, report.render(page))
    if csv is not None:
        report.write(csv, export.csv(studies, costs))
    if markdown is not None:
        report.write(markdown, export.markdown(page))
    for path in filter(None, (output, csv, markdown)):
        print(path)
    return 0
