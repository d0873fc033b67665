"""Which elements belong to which windows, for one fold: an axis each, and each sample's own extent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from everypool.backends.axes import Axis
from everypool.backends.context import fixed_shape

__all__ = [
    "LAST",
    "Cells",
    "Layout",
    "Native",
    "add_batch_axis",
    "compute_strides",
    "in_pixels",
    "lay_out",
    "make_format_key",
    "prefix_mask",
]

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
    """Return whether results of the batch x have their channels side by side in memory, as torch decides it.

    torch's poolings ask the input's `suggest_memory_format`, which reads strides alone: slices of channels_last tensors keep
    the format, and where one channel or one position makes both formats alike, the strides still say which it is. A line
    (N, C, L) is a plane (N, C, 1, L) to torch.
    """
    strides = x.stride()
    axis = len(strides) - 1
    if not 2 <= axis <= 4 or strides[1] > strides[axis]:
        return False
    shape = fixed_shape(x)
    least = strides[1] * shape[1]
    while axis > 1:
        if strides[axis] < least:
            return False
        least = strides[axis] * shape[axis]
        axis -= 1
    return least <= strides[0] and least != strides[1] and strides[1] != 0 and 0 not in shape


def make_format_key(x: Tensor) -> Any:
    """Return what tells batches of one shape and of different `in_pixels` apart, sooner than it is known itself."""
    strides = x.stride()
    return len(strides) > 2 and strides[1] <= strides[-1] and strides


def compute_strides(shape: Sequence[int], pixels: bool) -> tuple[int, ...]:
    """Return the strides of a fresh tensor, with its channels side by side or contiguous."""
    strides, step = [1] * len(shape), 1
    for axis in (1, *range(len(shape) - 1, 1, -1), 0) if pixels else reversed(range(len(shape))):
        strides[axis] = step
        step *= max(shape[axis], 1)
    return tuple(strides)


def lay_out(x: Tensor, pixels: bool) -> Tensor:
    """Return x, or a copy of it that is dense in memory, with its channels side by side or contiguous."""
    if not pixels:
        return x.contiguous()
    if x.dim() == 3:  # torch has no name for that format
        return x.transpose(1, 2).contiguous().transpose(1, 2)
    return x.contiguous(memory_format=LAST[x.dim()])


def add_batch_axis(x: Tensor) -> Tensor:
    """Return x as a batch of one whose results are contiguous, as torch's are for a lone sample of any strides."""
    batch = x.unsqueeze(0)
    return batch.flatten(1).view(batch.shape) if in_pixels(batch) else batch
