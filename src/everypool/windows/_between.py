"""Sliding windows at every position, for what takes every so many of them later."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from everypool.backends.axes import Slide
from everypool.backends.context import is_tracing
from everypool.backends.layout import Layout
from everypool.windows.sliding import Sliding

__all__ = ["Between"]


@dataclass(frozen=True)
class Between(Sliding):
    """The windows of `Sliding`, and those between them: from the first to the last one, at every position.

    m = n + left + right - dilation * (kernel_size - 1), per axis; with `ceil_mode` as many more as it takes to reach the
    last window of `Sliding`, those over the end too. So every `stride`-th of them is a window of `Sliding`, and
    ceil(m / stride) is the number of those. With "same" padding m = n, and the first one is centred on the first element.
    """

    def layouts(self, spatial: tuple[int, ...], sizes: Tensor | None) -> list[Layout]:
        nd = len(spatial)
        kernel, stride, dilation, ceil, pairs = self.checked(nd)
        if not ceil or None in pairs:
            return Sliding(self.kernel_size, 1, self.padding, self.dilation).layouts(spatial, sizes)
        layout = Sliding(self.kernel_size, self.stride, self.padding, self.dilation, True).layouts(spatial, sizes)[0]
        axes, owns = [], []
        for i, (n, k, s, d, pair) in enumerate(zip(spatial, kernel, stride, dilation, pairs, strict=True)):
            left, right = pair or (0, 0)
            reach = d * (k - 1)
            inside, last = n + left + right - reach, (layout.axes[i].out - 1) * s + 1
            out = torch.sym_max(inside, last) if is_tracing() else max(inside, last)
            # the last window begins inside the input or its left padding
            axes.append(Slide(n, out, k, 1, d, left, max(right, min(right + s - 1, reach))))
            if sizes is not None and layout.out_sizes is not None:
                own = sizes[:, i] + (left + right - reach)
                owns.append(torch.maximum(own, (layout.out_sizes[:, i] - 1) * s + 1))
        out_sizes = torch.stack(owns, dim=1) if owns else None
        return [replace(layout, axes=tuple(axes), out_sizes=out_sizes, extents=None, native=None)]
