"""Strips: long windows one element thin, each as long as the map."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from everypool.backends.axes import Axis, Bins, Keep
from everypool.backends.eager import Layout
from everypool.pool import Windows

__all__ = ["Strips"]


@dataclass(frozen=True)
class Strips(Windows):
    """One strip along every axis through every place of the others.

    The result is a tuple with one map per axis: first the strips along the last axis (rows), then along the one before.
    A 2-D map (N, C, H, W) gives (N, C, H, 1) and (N, C, 1, W).

    Source: Hou et al. 2020, Strip pooling.

    >>> row, column = everypool.pool(torch.arange(4.0).reshape(1, 1, 2, 2), "mean", Strips())
    >>> row.flatten().tolist(), column.flatten().tolist()
    ([0.5, 2.5], [1.0, 2.0])
    """

    def layouts(self, spatial: tuple[int, ...], sizes: Tensor | None) -> list[Layout]:
        layouts = []
        for along in reversed(range(len(spatial))):
            axes: tuple[Axis, ...] = tuple(Bins(n, 1) if axis == along else Keep(n) for axis, n in enumerate(spatial))
            out_sizes = None
            if sizes is not None:
                columns = [torch.ones_like(sizes[:, a]) if a == along else sizes[:, a] for a in range(len(spatial))]
                out_sizes = torch.stack(columns, dim=1)
            layouts.append(Layout(axes, sizes, out_sizes, full=True))
        return layouts

    def assemble(self, parts: list[Tensor]) -> Any:
        return tuple(parts)
