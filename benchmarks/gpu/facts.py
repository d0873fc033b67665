"""The GPU and the versions that figures belong to."""

from __future__ import annotations

import importlib.metadata
import platform
import re
import shutil
import subprocess
from typing import Any

import torch

import everypool
from benchmarks.gpu.timing import Clock

__all__ = ["facts", "slug"]


def slug() -> str:
    """The GPU's name as the name of a file."""
    return re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name().lower()).strip("-")


def driver() -> str:
    """The driver's version, where the system tells."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return "unknown"
    asked = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(asked, capture_output=True, text=True, timeout=30, check=True).stdout.split()
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return answer[0] if answer else "unknown"


def facts(clock: Clock | None) -> dict[str, Any]:
    """The device, with the bandwidth of its copies where there is a clock, and the versions."""
    versions = {"python": platform.python_version(), "everypool": everypool.__version__}
    versions |= {name: importlib.metadata.version(name) for name in ("torch", "triton", "numpy")}
    if clock is None:
        return {"device": {"name": "Triton's interpreter"}, "versions": versions}
    about = torch.cuda.get_device_properties(torch.cuda.current_device())
    copies = clock.bandwidth()
    device = {
        "name": about.name,
        "capability": f"{about.major}.{about.minor}",
        "multiprocessors": about.multi_processor_count,
        "memory_bytes": about.total_memory,
        "l2_bytes": clock.l2,
        "driver": driver(),
        "cuda": torch.version.cuda,
        "copy_gb_per_second": round(max(copies.values()), 1),
        "copies": {str(size): round(rate, 1) for size, rate in copies.items()},
        "float32_matmul": torch.get_float32_matmul_precision(),
    }
    return {"device": device, "versions": versions}
