"""With what it was computed: versions, and the machine's model rather than its name."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from everypool import __version__
from everypool.study.experiments import costs
from everypool.study.summary import Study
from everypool.study.trial import Value

__all__ = ["failure", "hardware", "public", "seconds", "seeds", "versions"]


def versions() -> dict[str, str]:
    """Those that decide what a trial gives."""
    others = {name: importlib.metadata.version(name) for name in ("numpy", "scipy")}
    return {"everypool": __version__, "torch": torch.__version__, "Python": platform.python_version(), **others}


def hardware(studies: Sequence[Study] = ()) -> list[str]:
    """The model of the processor, cores, memory, graphics cards; and how many other machines ran trials."""
    parts = [processor(), f"{os.cpu_count()} cores"]
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        parts.append(f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.0f} GiB of memory")
    parts += sorted({torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())}) or ["no GPU"]
    parts.append(f"{platform.system()} on {platform.machine()}")
    machines = {o.machine for study in studies for by_seed in study.outcomes.values() for o in by_seed.values()}
    if machines - {f"{platform.node()}, {platform.machine()}"}:
        kinds = ", ".join(sorted({machine.rpartition(", ")[2] for machine in machines}))
        parts.append(f"trials ran on {len(machines)} machine{'' if len(machines) == 1 else 's'} ({kinds}), not all on this one")
    return parts


def processor() -> str:
    """Its model, as the system calls it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def public(settings: Mapping[str, Value]) -> dict[str, Value]:
    """Settings without the name of the machine, which costs have among theirs.

    >>> public({"epochs": 3, "machine": "host x86_64 cpu"})
    {'epochs': 3, 'machine': 'x86_64 cpu'}
    """
    return {name: str(value).partition(" ")[2] if name == costs.MACHINE else value for name, value in settings.items()}


def failure(message: str) -> str:
    """The last line of a traceback, without the user's own folder.

    >>> failure("Traceback ...\\nValueError: no")
    'ValueError: no'
    """
    lines = message.strip().splitlines() or ["unknown"]
    return lines[-1].strip().replace(str(Path.home()), "~")


def seeds(numbers: Sequence[int]) -> str:
    """As ranges.

    >>> seeds([0, 1, 2, 5])
    '0 to 2, 5'
    """
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{run[0]}" if len(run) == 1 else f"{run[0]} to {run[-1]}" for run in runs)


def seconds(value: float) -> str:
    """A time for people.

    >>> seconds(2.34), seconds(75), seconds(7300)
    ('2.3 s', '1 min 15 s', '2 h 1 min')
    """
    if value < 60:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
