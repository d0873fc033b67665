"""Which elements belong to which windows, for one fold: an axis each, and each sample's own extent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from everypool.backends.axes import Axis

__all__ = ["LAST", "Cells", "Layout", "Native", "in_pixels", "prefix_mask"]

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
class Cells:
    """The cells of sliding windows along one axis, their explicit padding with them: what an average may divide by."""

    out: int
    kernel: int
    stride: int
    dilation: int
    size: Any  # elements of the axis, or of each sample, (N,)
    left: Any  # padding, or each sample's
    right: Any

    def count(self, device: torch.device) -> Tensor:
        """Cells of each window, ([N,] out), int64."""
        own = isinstance(self.size, Tensor)
        size, left, right = (
            item.to(device).reshape(-1, 1) if isinstance(item, Tensor) else item for item in (self.size, self.left, self.right)
        )
        window = torch.arange(self.out, device=device)
        first = (window.unsqueeze(0) if own else window) * self.stride - left
        cells = torch.div(size + right - first + (self.dilation - 1), self.dilation, rounding_mode="floor")
        return cells.clamp(min=1, max=self.kernel)


@dataclass(frozen=True, eq=False)
class Layout:
    """One product of axes: which elements belong to which window, and which of both exist for each sample."""

    axes: tuple[Axis, ...]
    sizes: Tensor | None = None  # (N, nd): valid elements
    out_sizes: Tensor | None = None  # (N, nd): valid windows; None where all are
    extents: tuple[Cells, ...] | None = None  # per axis
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
    return last is not None and not x.is_contiguous() and x.is_contiguous(memory_format=last)
