"""The same numbers in memory of many kinds, and the strides that torch gives their results."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch._prims_common import suggest_memory_format

__all__ = ["find_strides", "make_memories"]

CUTS = {  # first element, step, axes
    "whole": (0, 1, ()),
    "every second channel": (0, 2, (1,)),
    "channels from 1": (1, 1, (1,)),
    "every second sample": (0, 2, (0,)),
    "every second of the last axis": (0, 2, (-1,)),
    "last axis from 1": (1, 1, (-1,)),
    "every second of every axis": (0, 2, (0, 1, 2, -1)),
}


def make_memories(x: Tensor, is_single: bool = False) -> Iterator[tuple[str, Tensor]]:
    """Yield x, then its numbers in memory of other kinds; those that share memory, and no samples, after them."""
    if is_single:
        yield from ((kind, view.squeeze(0)) for kind, view in make_memories(x.unsqueeze(0)) if kind != "no sample")
        return
    back, shape = tuple(reversed(range(x.dim()))), tuple(x.shape)
    yield "as it is", x
    for cut, (begin, step, axes) in CUTS.items():
        slices = [slice(0, None, 1)] * x.dim()
        for axis in axes:
            slices[axis] = slice(begin, None, step)
        sizes = [n * part.step + part.start for n, part in zip(shape, slices, strict=True)]
        for kind, memory in (("contiguous", x.new_zeros(sizes)), ("channels last", make_channels_last(x, sizes))):
            yield f"{kind}, {cut}", memory[tuple(slices)].copy_(x)
    yield "axes in reverse", x.permute(back).contiguous().permute(back)
    yield "samples and channels in reverse", x.transpose(0, 1).contiguous().transpose(0, 1)
    for axis in range(x.dim()) if x.numel() else ():
        yield f"contiguous, expanded along {axis}", x.narrow(axis, 0, 1).expand(shape)
        yield f"channels last, expanded along {axis}", make_channels_last(x, shape).copy_(x).narrow(axis, 0, 1).expand(shape)
    yield "no sample", x[:0]


def make_channels_last(x: Tensor, sizes: Sequence[int]) -> Tensor:
    """Return zeros of that shape with channels side by side."""
    samples, channels, *spatial = sizes
    return x.new_zeros((samples, *spatial, channels)).movedim(-1, 1)


def find_strides(y: Tensor, x: Tensor, nd: int) -> tuple[int, ...]:
    """Return the strides that torch's rule gives a result of x; those of lone samples are contiguous."""
    if x.dim() == nd + 1 or y.dim() != x.dim():
        return torch.empty(y.shape).stride()
    if nd == 1:  # torch pools lines as planes of one row
        return torch.empty(y.unsqueeze(2).shape, memory_format=suggest_memory_format(x.unsqueeze(2))).squeeze(2).stride()
    return torch.empty(y.shape, memory_format=suggest_memory_format(x)).stride()
