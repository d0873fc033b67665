"""What is installed, what runs, and what is missing; found without any of the extras."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
from dataclasses import dataclass

import torch

from everypool import __version__
from everypool.backends import choose, cpu

__all__ = ["print_findings"]

VARIABLES = (choose.VARIABLE, cpu.VARIABLE)
COMPILERS = ("g++", "clang++", "c++")
MARKS = {True: "ok", False: "no", None: "-"}


@dataclass(frozen=True)
class Finding:
    name: str
    good: bool | None  # None: nothing is wrong with it either way
    what: str


def print_findings() -> int:
    """Print one line for each finding, and return 1 if the compiled loops are missing, else 0."""
    found = findings()
    width = max(len(finding.name) for finding in found)
    for finding in found:
        print(f"{finding.name:{width}}  {MARKS[finding.good]:2}  {finding.what}")
    if cpu.library() is None:
        print(f"\nThe compiled loops are missing: all works without them, slower. {remedy()}")
        return 1
    return 0


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
