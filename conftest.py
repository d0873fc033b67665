"""What docstring examples find already imported."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import everypool
from everypool.backends import triton

# what needs Triton itself has no examples, and cannot be imported without it
collect_ignore = (
    [] if triton.installed() else [f"src/everypool/backends/triton/{name}.py" for name in ("groups", "kernels", "launch")]
)


@pytest.fixture(autouse=True)
def examples(doctest_namespace: dict[str, Any]) -> None:
    """`torch`, `nn` and `everypool`, with one thread and a fixed seed."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    doctest_namespace.update(torch=torch, nn=torch.nn, everypool=everypool)
