"""What docstring examples find already imported."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import everypool


@pytest.fixture(autouse=True)
def examples(doctest_namespace: dict[str, Any]) -> None:
    """`torch`, `nn` and `everypool`, with one thread and a fixed seed."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    doctest_namespace.update(torch=torch, nn=torch.nn, everypool=everypool)
