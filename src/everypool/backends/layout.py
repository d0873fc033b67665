"""Which elements belong to which windows, for one fold: an axis each, and each sample's own extent."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from everypool.backends.axes import Axis
from everypool.backends.context import has_transforms

__all__ = ["LAST", "Layout", "Native", "in_pixels", "prefix_mask"]

LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


@dataclass(frozen=True)
class Native:
    """Sliding windows that torch.nn's own kernels take as they are."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    ceil_mode: bool


@dataclass(frozen=True, eq=False)
class Layout:
    """One product of axes: which elements belong to which window, and which of both exist for each sample."""

    axes: tuple[Axis, ...]
    sizes: Tensor | None = None  # (N, nd): valid elements
    out_sizes: Tensor | None = None  # (N, nd): valid windows; None where all are
    extents: tuple[Tensor, ...] | None = None  # per axis ([N,] out): cells of each window with its explicit padding
    native: Native | None = None
    full: bool = False  # every window holds at least one element of the map
    own_position: bool = False  # a window exists only where its own position does (scans)

    @property
    def spatial(self) -> tuple[int, ...]:
        return tuple(axis.n for axis in self.axes)

    @property
    def out(self) -> tuple[int, ...]:
        return tuple(axis.out for axis in self.axes)


def prefix_mask(sizes: Tensor, spatial: tuple[int, ...]) -> Tensor:
    """(N, 1, *spatial), True inside each sample's own extent."""
    nd = len(spatial)
    inside = torch.ones((sizes.shape[0], 1, *spatial), dtype=torch.bool, device=sizes.device)
    for axis, n in enumerate(spatial):
        shape = [1] * (nd + 2)
        shape[2 + axis] = n
        own = sizes[:, axis].reshape(-1, *[1] * (nd + 1))
        inside = inside & (torch.arange(n, device=sizes.device).reshape(shape) < own)
    return inside


def in_pixels(x: Tensor) -> bool:
    """Whether channels lie side by side in memory."""
    last = LAST.get(x.dim())
    if last is None or x.is_contiguous() or has_transforms():
        return False
    return x.is_contiguous(memory_format=last)
