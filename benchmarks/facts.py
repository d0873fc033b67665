"""The machine and the versions that figures belong to."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
from pathlib import Path
from typing import Any

import torch

import everypool
from benchmarks.floor import how

__all__ = ["facts", "slug"]

PACKAGES = ("torch", "numpy", "onnxruntime", "onnxscript", "openvino", "jax", "jaxlib")


def processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or platform.machine()
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found.group(1).strip() if found else platform.machine()


def slug() -> str:
    """The processor's name as the name of a file."""
    return re.sub(r"[^a-z0-9]+", "-", re.sub(r"\((r|tm)\)", "", processor().lower())).strip("-")


def memory() -> float | None:
    """Gigabytes of memory, where the system tells."""
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, ValueError, OSError):
        return None


def versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "everypool": everypool.__version__}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def implementation() -> str:
    """Which implementation of everypool runs, and with which instructions."""
    from everypool.backends.choose import choose

    name = choose().name
    try:
        from everypool.backends.cpu import library
    except ImportError:
        return name
    module = library()
    return f"{name} ({module.__name__.rpartition('_cpu_')[2]})" if name == "cpu" and module is not None else name


def facts(threads: int) -> dict[str, Any]:
    return {
        "processor": processor(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "memory_gb": memory(),
        "system": platform.system(),
        "threads": threads,
        "implementation": implementation(),
        "floor": how(),
        "versions": versions(),
    }
