"""What the modules over one, two or three spatial axes have in common: checks, one sample or a batch, memory layout."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from everypool import _check as check
from everypool.pool import finished, prepared
from everypool.windows import Sliding

__all__ = ["SpatialBlock", "wide"]


class SpatialBlock(nn.Module):
    """A module over (N, C, *spatial), or (C, *spatial), with `nd` spatial axes; subclasses write `compute`."""

    nd: ClassVar[int]

    def compute(self, x: Tensor, mask: Tensor | None, sizes: Tensor | None) -> Tensor:
        """The result for a batch, all arguments checked."""
        raise NotImplementedError

    def forward(self, input: Tensor, mask: Tensor | None = None, sizes: Any = None) -> Tensor:
        """Pool (N, C, *spatial) or (C, *spatial); mask and sizes as in `everypool.pool`."""
        single = isinstance(input, Tensor) and input.dim() == self.nd + 1
        if single:
            input = input.unsqueeze(0)
            mask = mask.unsqueeze(0) if isinstance(mask, Tensor) else mask
            sizes = sizes.unsqueeze(0) if isinstance(sizes, Tensor) else sizes if sizes is None else [sizes]
        x, mask, sizes = prepared(input, Sliding(1), self.nd, mask, sizes)
        check.floating("input", x)
        y = finished(self.compute(x, mask, sizes).to(x.dtype), x)
        return y.squeeze(0) if single else y


def wide(x: Tensor) -> Tensor:
    """x in the type that is computed in: float32 at least."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
