"""Distributed tensors over two processes: values and gradients are those of the whole tensor in one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from cases import DEFAULTS, as_tuple
from torch import Tensor, nn

import everypool
from everypool import Adaptive, Global, Pyramid, Scan, Sliding, Strips

WINDOWS = [Sliding(3, 2, 1), Adaptive(2), Global(), Scan(), Strips(), Pyramid((1, 2))]
LAYERS = [
    lambda: everypool.AvgPool2d(2),
    lambda: everypool.SoftPool2d(2),
    lambda: everypool.MaxPool2d(2, return_indices=True),
    lambda: everypool.GlobalMaxPool(),
    lambda: everypool.TopLeftPool(),
    lambda: everypool.CrossMaxPool(),
    lambda: everypool.GeMPool2d(2, p=2.5, channels=5),
    lambda: everypool.GlobalLogSumExpPool(r=2.0, learnable=True),
]


def full(result: Any) -> list[Tensor]:
    return [part.full_tensor() for part in as_tuple(result)]


def weigh(parts: list[Tensor]) -> Tensor:
    return sum(((p * torch.arange(p.numel()).reshape(p.shape)).sum() for p in parts if p.is_floating_point()), torch.zeros(()))


def compare(call: Any, sharded: Any, x: Tensor, placements: list[Any], mesh: Any, parameters: Any = ()) -> None:
    from torch.distributed.tensor import distribute_tensor

    leaf = x.clone().requires_grad_()
    expected = as_tuple(call(leaf))
    wanted = torch.autograd.grad(weigh(list(expected)), [leaf, *(p for p, _ in parameters)])
    spread = distribute_tensor(x, mesh, placements).requires_grad_()
    parts = full(sharded(spread))
    for a, b in zip(parts, expected, strict=True):
        torch.testing.assert_close(a, b)
    found = torch.autograd.grad(weigh(parts), [spread, *(p for _, p in parameters)])
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a.full_tensor(), b)


def check_process(rank: int, store: str) -> None:
    from torch.distributed.tensor import Replicate, Shard, distribute_module, init_device_mesh

    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2, init_method=f"file://{store}")
    mesh = init_device_mesh("cpu", (2,))
    torch.manual_seed(0)
    x = torch.rand(3, 5, 7, 6, dtype=torch.float64) + 0.3  # neither samples nor channels are shared evenly
    mask = torch.rand(3, 1, 7, 6) < 0.7
    sizes = torch.tensor([[7, 6], [4, 2], [3, 5]])
    for placement in (Replicate(), Shard(0), Shard(1)):
        for row in DEFAULTS:
            for windows in WINDOWS:
                for options in ({}, {"mask": mask}, {"sizes": sizes}):

                    def call(x: Tensor, row: Any = row, windows: Any = windows, options: Any = options) -> Any:
                        return everypool.pool(x, row.reducer(), windows, **options)

                    if isinstance(windows, Pyramid) and placement == Shard(1):
                        with pytest.raises(NotImplementedError, match="sharded over axes"):
                            compare(call, call, x, [placement], mesh)
                    else:
                        compare(call, call, x, [placement], mesh)
        for make in LAYERS:
            layer = make().double()
            spread = make().double()
            spread.load_state_dict(layer.state_dict())
            distribute_module(spread, mesh)
            compare(layer, spread, x, [placement], mesh, list(zip(layer.parameters(), spread.parameters(), strict=True)))
    pool = everypool.AvgPool2d(2)
    with pytest.raises(NotImplementedError, match=r"`input` must be sharded over axes \[0, 1\] alone"):
        compare(pool, pool, x, [Shard(2)], mesh)
    gem: nn.Module = everypool.GeMPool2d(2).double()
    with pytest.raises(TypeError, match="`p` must be a DTensor"):
        compare(gem, gem, x, [Shard(0)], mesh)
    dist.destroy_process_group()


@pytest.mark.filterwarnings("ignore")
def test_two_processes(tmp_path: Path) -> None:
    environment = dict(os.environ)
    try:
        os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
        mp.spawn(check_process, (str(tmp_path / "store"),), nprocs=2)
    finally:
        os.environ.clear()
        os.environ.update(environment)
