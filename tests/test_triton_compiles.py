"""The fused kernels compile for a GPU that is not there: real machine code of an H100, of which nothing is launched.

Run as a program, this file makes a list of calls with every launch replaced by a compilation, and prints what came of it.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import everypool
from everypool import Adaptive, Global, Sliding, pool
from everypool.backends import triton
from everypool.backends.choose import forced
from everypool.windows.scan import Scan
from everypool.windows.strips import Strips

LIMIT = 300  # seconds
VECTOR = re.compile(r"(ld|st)\.global(\.\w+)*\.v[248]\.")


def folded(
    reducer: str, windows: Any, shape: tuple[int, ...], dtype: torch.dtype = torch.float32, **options: Any
) -> Callable[[], Any]:
    """A call of `pool`, which keeps what its gradient needs."""
    return lambda: pool(torch.zeros(shape, dtype=dtype, requires_grad=True), reducer, windows, **options)


def called(function: Callable[..., Any], *shapes: tuple[int, ...], **options: Any) -> Callable[[], Any]:
    """A call of any function of maps."""
    return lambda: function(*(torch.zeros(shape, requires_grad=True) for shape in shapes), **options)


def last(reducer: str) -> Any:
    x = torch.zeros(MAP).contiguous(memory_format=torch.channels_last).requires_grad_()
    return pool(x, reducer, Sliding(2))


MAP = 4, 8, 32, 32
MASK = torch.ones(4, 1, 32, 32, dtype=torch.bool)
BOXES = torch.tensor([[0.0, 1.0, 2.0, 20.0, 30.0], [3.0, 4.0, 4.0, 9.0, 9.0]])

# what is compiled, forward and backward: by name, so that a failure says which
CALLS: dict[str, Callable[[], Any]] = {
    "max": folded("max", Sliding(2), MAP),
    "last of equal maxima": folded("max:ties=last", Sliding(3, 2, 1), MAP),
    "mean": folded("avg:count_include_pad=True", Sliding(3, 2, 1), MAP),
    "power": folded("gem:p=3", Sliding(3, 2, 1), MAP),
    "soft": folded("soft", Sliding(3, 2, 1), MAP),
    "logsumexp": folded("logsumexp", Sliding(3, 2, 1), MAP),
    "centre": folded("center", Sliding(3, 2, 1), MAP),
    "median": folded("median:even=mean", Sliding(3, 2, 1), MAP, mask=MASK),
    "maximum that equals share": folded("max:ties=even", Sliding(3, 2, 1), MAP),
    "line": folded("max", Sliding(4), (4, 8, 64)),
    "volume": folded("max", Sliding(2), (1, 8, 8, 8, 8)),
    "long": folded("max", Sliding(9, 1, 4), MAP),
    "bins": folded("max", Adaptive((3, 2)), (4, 8, 30, 31)),
    "global mean": folded("avg", Global(), (4, 8, 7, 7)),
    "strips": folded("avg", Strips((0,)), MAP),
    "masked": folded("soft", Sliding(3, 2, 1), MAP, mask=MASK),
    "of different sizes": folded("avg", Sliding(3, 2, 1), MAP, sizes=torch.tensor([[32, 32], [20, 9], [1, 1], [7, 30]])),
    "bfloat16": folded("max", Sliding(3, 2, 1), MAP, torch.bfloat16),
    "float16": folded("soft", Sliding(2), MAP, torch.float16),
    "channels_last": lambda: last("max"),
    "learned power": called(everypool.GlobalGeMPool(learnable=True, channels=8), MAP),
    "learned sharpness": called(everypool.GlobalSoftPool(learnable=True), MAP),
    "running maximum": called(everypool.top_pool, MAP),
    "running mean": folded("avg", Scan(), MAP),
    "corner": called(lambda x, y: everypool.corner_pool(x, other=y), MAP, MAP),
    "rows and columns": called(lambda x, y: everypool.cross_max_pool(x, other=y), MAP, MAP),
    "boxes": called(lambda x: everypool.roi_align(x, BOXES, 7, sampling_ratio=2), MAP),
    "rounded boxes": called(lambda x: everypool.roi_pool(x, BOXES, 7), MAP),
    "levels": called(lambda *x: everypool.multi_level_roi_pool(x, BOXES, 7, (1.0, 0.5)), MAP, (4, 8, 16, 16)),
    "retrieval": called(everypool.HopfieldPooling(64, num_heads=2), (4, 50, 64)),
}


def compiled() -> dict[str, Any]:
    """The machine code of each call's kernels, or what went wrong."""
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    class Absent:
        """As much of a driver as a compilation asks for."""

        def get_current_device(self) -> int:
            return 0

        def get_current_stream(self, device: int) -> int:
            return 0

        def get_current_target(self) -> GPUTarget:
            return GPUTarget("cuda", 90, 32)

    found: dict[str, Any] = {}
    launch = JITFunction.run

    def compiling(self: Any, *args: Any, grid: Any, warmup: bool, **settings: Any) -> Any:
        binary = launch(self, *args, grid=grid, warmup=True, **settings)
        code, text = binary.asm["cubin"], binary.asm["ptx"]
        module = self.fn.__module__.rpartition(".")[2]
        rows.append({"kernel": self.__name__, "module": module, "bytes": len(code), "wide": bool(VECTOR.search(text))})
        return binary

    driver.set_active(Absent())
    JITFunction.run = compiling
    triton.interpreted = lambda: True  # tensors of the CPU stand for those of the GPU
    for name, call in CALLS.items():
        rows: list[dict[str, Any]] = []
        try:
            with forced("triton"):
                y = call()
                sum(part.sum() for part in (y if isinstance(y, tuple) else (y,))).backward()
        except Exception as error:
            found[name] = f"{type(error).__name__}: {error}"
        else:
            found[name] = rows
    return found


@pytest.mark.skipif(not triton.installed(), reason="Triton is not installed")
def test_kernels_compile_for_a_gpu(tmp_path: Path) -> None:
    import triton as package

    own = Path(package.__file__).parent / "backends" / "nvidia" / "bin" / "ptxas"
    if not own.exists() and shutil.which("ptxas") is None and "TRITON_PTXAS_PATH" not in os.environ:
        pytest.skip("this Triton comes without ptxas, which makes machine code of PTX")
    settings = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path)}
    for name in ("TRITON_INTERPRET", "EVERYPOOL_IMPL"):
        settings.pop(name, None)
    done = subprocess.run([sys.executable, __file__], env=settings, capture_output=True, text=True, timeout=LIMIT)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    assert {name: rows for name, rows in found.items() if isinstance(rows, str)} == {}
    for name, rows in found.items():
        assert len(rows) >= 2, name  # a kernel forward, and one backward
        assert all(row["bytes"] > 0 for row in rows), name
    launched = [row for rows in found.values() for row in rows]
    assert {row["kernel"] for row in launched if row["module"] == "kernels"} == {"fold", "middle", "share", "slope"}
    files = Path(triton.__file__).parent.glob("*kernels.py")
    assert {row["module"] for row in launched} == {file.stem for file in files}  # a file of kernels has a line above
    assert all(row["wide"] for row in found["max"])


if __name__ == "__main__":
    print(json.dumps(compiled()))
