"""A launch that is repeated tells the kernel what Triton's own way tells it: shown with a driver that only writes down."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from everypool import Global, Scan, Sliding, pool
from everypool.backends import triton
from everypool.backends.choose import forced

CASES = (
    ("max", Sliding(2)),
    ("avg", Global()),
    ("soft", Sliding(3, 2, 1)),
    ("median", Sliding(3, 2, 1)),
    ("max", Scan(-1)),
    ("gem", Scan(-2)),
)


def told() -> None:
    """Compare three calls of each case; the first is Triton's, which compiles."""
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver

    launched: list[Any] = []

    class Utils:
        def load_binary(self, *args: Any) -> Any:
            return object(), 1, 32, 0, 1024

        def unload_module(self, module: Any) -> None:
            pass

        def get_device_properties(self, device: int) -> Any:
            return {"max_shared_mem": 1 << 17}

    class Absent:
        utils = Utils()

        def get_current_device(self) -> int:
            return 0

        def get_current_stream(self, device: int) -> int:
            return 0

        def get_current_target(self) -> GPUTarget:
            return GPUTarget("cuda", 90, 32)

        def launcher_cls(self, source: Any, metadata: Any) -> Any:
            return lambda *args: launched.append((metadata.name, [plain(argument) for argument in args]))

    def plain(argument: Any) -> Any:
        if isinstance(argument, torch.Tensor):
            return argument.dtype, argument.shape, argument.stride()
        if type(argument).__name__ == "LazyDict":  # what a profiler is told, made anew for each launch
            return None
        return tuple(map(plain, argument)) if isinstance(argument, tuple) else argument

    driver.set_active(Absent())
    triton.interpreted = lambda: True  # tensors of the CPU stand for those of the GPU
    calls: list[str] = []
    body = triton_launch().__call__
    triton_launch().__call__ = lambda self, tensors: (calls.append(str(self.compiled is not None)), body(self, tensors))[1]
    x = torch.zeros(4, 8, 32, 32, requires_grad=True)
    for reducer, windows in CASES:
        rounds = []
        for _ in range(3):
            launched.clear()
            with forced("triton"):
                pool(x, reducer, windows).sum().backward()
            rounds.append(list(launched))
        assert len(rounds[0]) == 2, reducer
        assert rounds[0] == rounds[1] == rounds[2], (reducer, windows)
    assert calls == (["False"] * 2 + ["True"] * 4) * len(CASES), calls


def triton_launch() -> Any:
    from everypool.backends.triton.launches import Launch

    return Launch


@pytest.mark.skipif(not triton.installed(), reason="Triton is not installed")
def test_repeated_launches_are_told_the_same(tmp_path: Path) -> None:
    settings = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path)}
    for name in ("TRITON_INTERPRET", "EVERYPOOL_IMPL"):
        settings.pop(name, None)
    done = subprocess.run([sys.executable, __file__], env=settings, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]


if __name__ == "__main__":
    told()
