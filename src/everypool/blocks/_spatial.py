"""What the modules over one, two or three spatial axes have in common: checks, one sample or a batch, memory layout."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from everypool import _check as check
from everypool.backends.layout import add_batch_axis
from everypool.module import PoolingModule
from everypool.pool import finished, prepared
from everypool.windows import Sliding

__all__ = ["SlidingBlock", "SpatialBlock", "wide"]


class SpatialBlock(PoolingModule):
    """A module over (N, C, *spatial), or (C, *spatial), with `nd` spatial axes; subclasses write `compute`."""

    nd: ClassVar[int]

    def compute(self, x: Tensor, mask: Tensor | None, sizes: Tensor | None) -> Tensor:
        """The result for a batch, all arguments checked."""
        raise NotImplementedError

    def forward(self, input: Tensor, mask: Tensor | None = None, sizes: Any = None) -> Tensor:
        """Pool (N, C, *spatial) or (C, *spatial); mask and sizes as in `everypool.pool`."""
        single = isinstance(input, Tensor) and input.dim() == self.nd + 1
        if single:
            input = add_batch_axis(input)
            mask = mask.unsqueeze(0) if isinstance(mask, Tensor) else mask
            sizes = sizes.unsqueeze(0) if isinstance(sizes, Tensor) else sizes if sizes is None else [sizes]
        x, mask, sizes = prepared(input, Sliding(1), self.nd, mask, sizes)
        check.floating("input", x)
        y = finished(self.compute(x, mask, sizes).to(x.dtype), x)
        return y.squeeze(0) if single else y


class SlidingBlock(SpatialBlock):
    """One with windows of one size at regular steps, under torch.nn's words."""

    def place(self, kernel_size: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: bool) -> None:
        """Keep the windows' arguments."""
        kernel_size, stride, padding, dilation = map(check.plain, (kernel_size, stride, padding, dilation))
        self.kernel_size = kernel_size
        self.stride = kernel_size if stride is None else stride
        self.padding = padding
        self.dilation = dilation
        self.ceil_mode = ceil_mode
        self.windows.checked(self.nd)

    @property
    def windows(self) -> Sliding:
        return Sliding(self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode)

    def extra_repr(self) -> str:
        text = f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}"
        return f"{text}, dilation={self.dilation}, ceil_mode={self.ceil_mode}"


def wide(x: Tensor) -> Tensor:
    """x in the type that is computed in: float32 at least."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
