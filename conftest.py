"""What docstring examples find already imported."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

# without a GPU the fused kernels run in Triton's interpreter, which must be said before anything imports Triton
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

import everypool
from everypool.backends import triton

# what imports Triton itself has no examples, and cannot be imported without it
KERNELS = Path(__file__).parent / "src/everypool/backends/triton"
collect_ignore = [] if triton.installed() else [path for path in KERNELS.glob("*.py") if "\nimport triton" in path.read_text()]


@pytest.fixture(autouse=True)
def examples(doctest_namespace: dict[str, Any]) -> None:
    """`torch`, `nn` and `everypool`, with one thread and a fixed seed."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    doctest_namespace.update(torch=torch, nn=torch.nn, everypool=everypool)
