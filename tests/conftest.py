"""One thread, a fixed seed, and fresh memory full of NaN: a result that reads what nobody wrote shows it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from everypool.backends import triton

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def fresh_memory() -> Iterator[None]:
    """Fill what `torch.empty` gives with NaN (the largest integer), and start every test from the same seed."""
    torch.manual_seed(0)
    before = torch.utils.deterministic.fill_uninitialized_memory, torch.are_deterministic_algorithms_enabled()
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True, warn_only=False)
    yield
    torch.use_deterministic_algorithms(before[1])
    torch.utils.deterministic.fill_uninitialized_memory = before[0]


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of interpreted kernels, which scan a tile element by element, but sort one at once; a line then has several blocks."""
    if triton.installed() and triton.interpreted():
        from everypool.backends.triton import launch, planes_launch

        monkeypatch.setattr(launch, "ORDERED", 1 << 14)
        monkeypatch.setattr(launch, "BLOCK", 8)
        monkeypatch.setattr(launch, "TILE", 32)
        monkeypatch.setattr(planes_launch, "TILE", 32)
