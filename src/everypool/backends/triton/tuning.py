"""Tiles found by trying, on request: EVERYPOOL_TUNE=1. What was found is kept on disk, for each GPU and version of Triton."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor

from everypool.backends.triton.launches import Choice, Made

__all__ = ["tuned"]

FOLDER = "EVERYPOOL_CACHE"
CHOICES = (Choice(256, 4), Choice(512, 4), Choice(1024, 4), Choice(1024, 8), Choice(2048, 8))


def tuned(make: Callable[[Choice | None], Made], run: Callable[[Made], Any], like: Tensor) -> Made:
    """The fastest of `make(choice)`; `run` launches one. The usual one, None, takes part."""
    usual = make(None)
    name = _name(usual, like)
    path = _path(like)
    known = _read(path)
    if name in known:
        choice = known[name]
        return usual if choice is None else make(Choice(*choice))
    times: dict[Choice | None, float] = {}
    for choice in (None, *CHOICES):
        made = make(choice)
        try:
            run(made)  # compiles
            times[choice] = _milliseconds(functools.partial(run, made), like)
        except triton.runtime.errors.OutOfResources:
            continue
    best = min(times, key=lambda choice: times[choice], default=None)
    _write(path, {**_read(path), name: best})
    return make(best)


def _milliseconds(call: Callable[[], Any], like: Tensor) -> float:
    if like.is_cuda:
        return float(triton.testing.do_bench(call, warmup=5, rep=20, return_mode="median"))
    start = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - start)


def _name(made: Made, like: Tensor) -> str:
    """What tells this launch from others: kernel, type, and all arguments but tensors."""
    kernel, _, constants = made
    plain = {name: getattr(value, "__name__", value) for name, value in constants.items() if not isinstance(value, Tensor)}
    text = json.dumps([str(like.dtype), sorted(plain.items())], default=str)
    return f"{kernel.fn.__name__} {hashlib.sha256(text.encode()).hexdigest()[:24]}"


def _path(like: Tensor) -> Path:
    device = torch.cuda.get_device_name(like.device) if like.is_cuda else "interpreter"
    folder = os.environ.get(FOLDER) or os.path.join(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "everypool")
    slug = re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")
    return Path(folder) / f"tiles-{slug}-triton-{triton.__version__}.json"


def _read(path: Path) -> dict[str, Any]:
    """What was found before; nothing, if the file is missing or broken."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _write(path: Path, found: dict[str, Any]) -> None:
    """Replace the file as a whole; a folder that cannot be written to costs only the memory."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".part", delete=False, encoding="utf-8") as part:
            json.dump(found, part, indent=1)
        os.replace(part.name, path)
    except OSError:
        return
