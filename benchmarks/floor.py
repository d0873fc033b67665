"""The floor: reading every input byte once and writing as many bytes as the output has."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch

__all__ = ["floor", "how"]


def _compiled() -> Callable[[int, int, int, int], None] | None:
    for name in ("avx512", "avx2", "baseline"):
        try:
            module: Any = importlib.import_module(f"everypool._cpu_{name}")
        except ImportError:
            continue
        if not hasattr(module, "stream") or (hasattr(module, "supports") and not module.supports(name)):
            continue
        stream: Callable[[int, int, int, int], None] = module.stream
        return stream
    return None


_STREAM = _compiled()


def how() -> str:
    """How the floor is measured, in words."""
    return "a compiled loop, one thread" if _STREAM else "torch's sum of the input and fill of the output"


def floor(read: int, write: int) -> Callable[[], Any]:
    """A loop over warm buffers that reads and writes so many bytes."""
    source, target = (torch.ones(max(1, -(-size // 4))) for size in (read, write))
    if _STREAM is None:

        def copied() -> float:
            target.fill_(1.0)
            return float(source.sum())

        return copied
    stream = _STREAM

    def streamed(source: torch.Tensor = source, target: torch.Tensor = target) -> None:
        stream(source.data_ptr(), read, target.data_ptr(), write)

    return streamed
