"""`everypool doctor`: what is installed, what runs, and what is missing."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
from dataclasses import dataclass

import click
import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from everypool import __version__
from everypool.backends import choose, cpu

__all__ = ["command"]

VARIABLES = (choose.VARIABLE, cpu.VARIABLE)
COMPILERS = ("g++", "clang++", "c++")
MARKS = {True: "[green]ok[/green]", False: "[yellow]no[/yellow]", None: "-"}


@dataclass(frozen=True)
class Finding:
    name: str
    good: bool | None  # None: nothing is wrong with it either way
    what: str


@click.command("doctor")
def command() -> None:
    """What is installed, which implementation runs and why, and what is missing.

    Ends with 1 if the compiled loops are missing: all works without them, slower.
    """
    found = findings()
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column()
    for finding in found:
        table.add_row(escape(finding.name), MARKS[finding.good], escape(finding.what))
    console = Console(highlight=False)
    console.print(table)
    if cpu.library() is None:
        console.print(f"\n{escape(remedy())}", soft_wrap=True)
        raise click.exceptions.Exit(1)


def findings() -> list[Finding]:
    """One line for everything that decides what runs."""
    choice = choose.choose()
    found = [
        Finding("everypool", None, f"{__version__}, Python {platform.python_version()}, {platform.machine()}"),
        Finding("torch", None, f"{torch.__version__}, {threads()}"),
        Finding("implementation", None, f"{choice.name}: {choice.reason}"),
    ]
    found += [Finding(f"  {name}", None, reason) for name, reason in choice.rejected]
    missing = cpu.missing()
    for name in cpu.INSTRUCTIONS:
        built = not missing.get(name, "").startswith("not built")
        found.append(Finding(f"loops for {name}", built, missing.get(name, "in use")))
    for variable in VARIABLES:
        found.append(Finding(variable, None, os.environ.get(variable, "not set")))
    return found + [Finding(f"everypool[{extra}]", not lacking, said(lacking)) for extra, lacking in extras().items()]


def threads() -> str:
    number = torch.get_num_threads()
    return f"{number} thread{'s' if number > 1 else ''}, GPU {'found' if torch.cuda.is_available() else 'not found'}"


def extras() -> dict[str, list[str]]:
    """Packages of each extra that are not installed."""
    result: dict[str, list[str]] = {}
    for line in importlib.metadata.requires("everypool") or []:
        name = re.match(r"[\w.-]+", line)
        extra = re.search(r"extra == ['\"](\w+)['\"]", line)
        if name is None or extra is None or extra[1] == "all":
            continue
        lacking = result.setdefault(extra[1], [])
        try:
            importlib.metadata.version(name[0])
        except importlib.metadata.PackageNotFoundError:
            lacking.append(name[0])
    return result


def said(lacking: list[str]) -> str:
    return f"not installed: {', '.join(lacking)}" if lacking else "complete"


def remedy() -> str:
    compiler = next((name for name in COMPILERS if shutil.which(name)), None)
    if os.environ.get("EVERYPOOL_BUILD") == "none":
        return "EVERYPOOL_BUILD=none: unset it and install again to build the compiled loops."
    if compiler is None:
        return f"No C++ compiler ({', '.join(COMPILERS)}) was found: install one, then everypool again."
    return f"{compiler} is here: install everypool again, with --verbose to see why the compiled loops were not built."
