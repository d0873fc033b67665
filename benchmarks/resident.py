"""Memory of one pooling, in a process of its own: `python -m benchmarks.resident everypool|torch`.

Prints what stays between forward and backward and the highest point of both, in multiples of the pooled map, over what
the process held before. Resident memory is what counts, so that memory which a kernel takes beside torch counts too.
"""

from __future__ import annotations

import re
import resource
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

import everypool

SHAPE = (16, 64, 256, 256)  # far larger than all else that the process holds
STATUS = Path("/proc/self/status")


def resident(peak: bool) -> int:
    """Bytes held now, or at most since `forget`."""
    if not STATUS.exists():  # only the highest point is known
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    found = re.search(rf"Vm{'HWM' if peak else 'RSS'}:\s+(\d+) kB", STATUS.read_text(encoding="utf-8"))
    assert found is not None
    return int(found.group(1)) * 1024


def forget() -> None:
    """Let the highest point begin again."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    except OSError:
        return  # then the highest point includes the start of the process, which is lower


def run(pool: Callable[[Tensor], Tensor]) -> tuple[int, int]:
    """Bytes kept between forward and backward, and at most."""
    pool(torch.ones(1, 1, 8, 8, requires_grad=True) * 1.0).sum().backward()  # what is loaded once
    leaf = torch.rand(SHAPE, requires_grad=True)
    before = resident(peak=False)
    forget()
    y = pool(leaf * 1.0)  # the product keeps nothing for its own gradient
    kept = resident(peak=False) - before
    y.backward(torch.ones_like(y))
    return kept, resident(peak=True) - before


def main() -> None:
    torch.set_num_threads(1)
    pools: dict[str, Callable[[Tensor], Tensor]] = {
        "everypool": lambda x: everypool.max_pool(x, 2, 2),
        "torch": lambda x: F.max_pool2d(x, 2, 2),
    }
    kept, peak = run(pools[sys.argv[1]])
    size = 4 * torch.Size(SHAPE).numel()
    print(f"{kept / size:.3f} {peak / size:.3f}")


if __name__ == "__main__":
    main()
