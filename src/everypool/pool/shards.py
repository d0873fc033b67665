"""Distributed tensors: each process pools its own samples and channels."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from everypool import _check as check
from everypool.backends.layout import compute_strides, in_pixels
from everypool.pool.records import Reducer, Windows

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor, Placement

__all__ = ["is_distributed", "pool_shards", "refuse_shards"]


def is_distributed(x: Any) -> bool:
    """Return True for a DTensor."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(x, module.DTensor)


def refuse_shards(name: str, *tensors: Any) -> None:
    """Raise if one of the tensors is distributed, where only windows over whole maps are pooled shard by shard.

    Raises:
        NotImplementedError: it is; the message says the way out.
    """
    if any(map(is_distributed, tensors)):
        raise NotImplementedError(f"`{name}` must be a plain tensor here, as full_tensor() gives it, got a DTensor")


def pool_shards(
    apply: Callable[..., Any],
    input: DTensor,
    reducer: Reducer,
    windows: Windows,
    *,
    nd: int | None,
    mask: Any,
    sizes: Any,
    return_mask: bool,
) -> Any:
    """Pool a DTensor that is replicated, or sharded over samples or channels; the result is sharded in the same way.

    Raises:
        NotImplementedError: the input is sharded over an axis that is pooled or joined with others.
        TypeError: a parameter that learns is no DTensor, so that its gradient would be that of one process.
    """
    from torch.distributed.tensor import DTensor, Partial, Replicate, Shard

    single = nd is not None and input.dim() == nd + 1
    mesh = input.device_mesh
    pending = [Replicate() if isinstance(p, Partial) else p for p in input.placements]
    input = input.redistribute(mesh, pending)  # a sum that is still to be made is made first
    channel = 0 if single else 1
    free = {channel} if windows.keeps_channels else set()
    free |= {0} if windows.folds else set()
    placements = list(input.placements)
    for placement in placements:
        if isinstance(placement, Shard) and placement.dim % input.dim() not in free:
            rule = f"sharded over axes {sorted(free)} alone, or replicated; input.redistribute() makes it so"
            raise NotImplementedError(f"`input` must be {rule}, got placements {tuple(placements)}")

    def shard_like(x: Any, axes: dict[int, int], name: str) -> Tensor:
        """Return this process' part of a tensor whose axes {axis of the input: own axis} are sharded as the input's."""
        wanted: list[Placement] = []
        grads: list[Placement] = []
        for placement in placements:
            axis = axes.get(placement.dim % input.dim()) if isinstance(placement, Shard) else None
            wanted.append(Replicate() if axis is None else Shard(axis))
            # each process knows only what its own part of the input adds to a gradient
            grads.append(wanted[-1] if axis is not None or not isinstance(placement, Shard) else Partial())
        if not isinstance(x, DTensor):
            if x.requires_grad:
                raise check.wrong_type(name, "a DTensor like the input, which distribute_module makes it", x)
            x = DTensor.from_local(x, mesh, [Replicate()] * mesh.ndim, run_check=False)
        return x.redistribute(mesh, wanted).to_local(grad_placements=grads)

    if mask is not None:
        check.tensor("mask", mask, "like the input's", (input.dim(),))
        axes = {} if single else {0: 0}
        mask = shard_like(mask, axes | ({channel: channel} if mask.shape[channel] > 1 else {}), "mask")
    if sizes is not None:
        sizes = sizes if isinstance(sizes, Tensor) else torch.as_tensor(sizes, device=input.device)
        sizes = shard_like(sizes, {} if single else {0: 0}, "sizes")
    learned = {
        field.name: shard_like(value, {channel: 0} if value.dim() == 1 and len(value) > 1 else {}, field.name)
        for field in dataclasses.fields(reducer)  # type: ignore[arg-type]
        if isinstance(value := getattr(reducer, field.name), Tensor)
    }
    reducer = dataclasses.replace(reducer, **learned)  # type: ignore[type-var]
    local = input.to_local()
    options = {"nd": nd, "mask": mask, "sizes": sizes, "return_mask": return_mask}

    def gather(part: Tensor) -> DTensor:
        shape = tuple(input.shape[axis] if axis in free else n for axis, n in enumerate(part.shape))
        strides = compute_strides(shape, in_pixels(part))
        return DTensor.from_local(part, mesh, placements, run_check=False, shape=torch.Size(shape), stride=strides)

    return tree_map(gather, apply(local, reducer, windows, **options))
