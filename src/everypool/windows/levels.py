"""Boxes on several levels: PANet's adaptive feature pooling."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from everypool import _check as check
from everypool.layer import Layer
from everypool.pool import Operation, Reducer, apply, parse, register
from everypool.windows.boxes import Boxes

__all__ = ["MultiLevelRoIPool", "multi_level_roi_pool"]

FUSIONS = ("max", "sum")


def multi_level_roi_pool(
    inputs: Sequence[Tensor],
    boxes: Any,
    output_size: Any,
    scales: Sequence[float],
    fuse: str | None = "max",
    *,
    sampling_ratio: int = 2,
    aligned: bool = False,
    reducer: str | Reducer = "mean",
    mask: Sequence[Tensor] | None = None,
    sizes: Sequence[Any] | None = None,
) -> Tensor:
    """Every box pooled on every level of a feature pyramid, then fused over the levels: PANet's adaptive feature pooling.

    y = max (or sum) over levels l of roi_align(inputs[l], boxes, spatial_scale=scales[l]).

    For windows that adapt to the map's size, the other meaning of the name, see `adaptive_avg_pool`.

    Args:
        inputs: one map (N, C, *spatial) per level.
        boxes: (R, 1 + 2 * nd) or a list of (R_i, 2 * nd), see `Boxes`.
        output_size: bins per axis.
        scales: map cells per unit of the boxes' coordinates, one per level.
        fuse: "max" (equal levels share the gradient), "sum", or None for the levels side by side.
        sampling_ratio: samples per bin and axis.
        aligned: shift by half a cell; False is the published operation.
        reducer: what becomes of a bin's samples.
        mask: one (N, 1 or C, *spatial) per level, bool: cells that count.
        sizes: one (N, nd) per level, int: each sample's own extent on that level.

    Returns:
        (R, C, *output_size); (L, R, C, *output_size) with fuse=None.

    Raises:
        ValueError: no levels, or a number of maps other than of scales, or boxes that break their rule.
        TypeError: maps or boxes that are not floating point.

    Source: Liu et al. 2018, PANet. Reference: github ShuLiu1993/PANet.

    >>> maps = [torch.ones(1, 3, 8, 8), torch.ones(1, 3, 4, 4)]
    >>> multi_level_roi_pool(maps, torch.tensor([[0.0, 0.0, 0.0, 9.0, 9.0]]), 2, (0.5, 0.25)).shape
    torch.Size([1, 3, 2, 2])
    """
    if fuse is not None:
        check.choice("fuse", fuse, FUSIONS)
    if not isinstance(scales, (list, tuple)):
        raise check.wrong_type("scales", "one number per level", scales)
    if not isinstance(inputs, (list, tuple)) or not inputs or len(inputs) != len(scales):
        got = f"{len(inputs)} maps" if isinstance(inputs, (list, tuple)) else check.shown(inputs)
        raise check.invalid("inputs", f"a list of one map per scale, {len(scales)}, at least one", check.Shown(got))
    for x, scale in zip(inputs, scales, strict=True):
        check.batched("inputs", x)
        check.number("scales", scale, "positive finite numbers", above=0, finite=True)
        if (x.shape[:2], x.dtype, x.device) != (inputs[0].shape[:2], inputs[0].dtype, inputs[0].device):
            raise check.invalid("inputs", "maps alike in samples, channels, type and device", x)
    windows = Boxes(boxes, output_size, tuple(scales), sampling_ratio, aligned)
    levels, exists = apply(list(inputs), reducer, windows, nd=None, mask=mask, sizes=sizes, return_mask=True)
    if fuse is None:
        result: Tensor = levels
    elif fuse == "sum":
        result = levels.sum(0)
    elif mask is None:
        result = levels.amax(0)
    else:  # a bin that holds nothing on one level takes no part in the maximum
        result = levels.masked_fill(~exists, float("-inf")).amax(0).masked_fill(~exists.any(0), 0)
    return result


class MultiLevelRoIPool(Layer):
    """Every box pooled on every level of a feature pyramid, then fused; see `multi_level_roi_pool`."""

    def __init__(
        self,
        output_size: Any,
        scales: Sequence[float],
        fuse: str | None = "max",
        *,
        sampling_ratio: int = 2,
        aligned: bool = False,
        reducer: str | Reducer = "mean",
    ) -> None:
        super().__init__()
        if not isinstance(scales, (list, tuple)):
            raise check.wrong_type("scales", "one number per level", scales)
        for scale in scales:
            check.number("scales", scale, "positive finite numbers", above=0, finite=True)
        self.output_size, self.scales, self.fuse = output_size, tuple(scales), fuse
        self.sampling_ratio, self.aligned, self.chosen = sampling_ratio, check.boolean("aligned", aligned), reducer
        if fuse is not None:
            check.choice("fuse", fuse, FUSIONS)
        parse(reducer)

    def forward(
        self, inputs: Sequence[Tensor], boxes: Any, mask: Sequence[Tensor] | None = None, sizes: Sequence[Any] | None = None
    ) -> Tensor:
        """Pool one map (N, C, *spatial) per level over boxes (R, 1 + 2 * nd)."""
        return multi_level_roi_pool(
            inputs,
            boxes,
            self.output_size,
            self.scales,
            self.fuse,
            sampling_ratio=self.sampling_ratio,
            aligned=self.aligned,
            reducer=self.chosen,
            mask=mask,
            sizes=sizes,
        )

    def extra_repr(self) -> str:
        return f"output_size={self.output_size}, scales={self.scales}, fuse={self.fuse!r}, sampling_ratio={self.sampling_ratio}"


register(
    Operation(
        name="multi_level_roi",
        kind="windows",
        summary="Every box pooled on every level of a feature pyramid, then fused over the levels.",
        formula="y = max over levels l of roi_align(x_l)",
        source="Liu et al. 2018, PANet's adaptive feature pooling",
        names=("MultiLevelRoIPool", "multi_level_roi_pool"),
        onnx=False,
        sample=lambda: (
            MultiLevelRoIPool(2, (0.5, 0.25)),
            ([torch.randn(1, 3, 8, 8), torch.randn(1, 3, 4, 4)], torch.tensor([[0.0, 1.0, 2.0, 9.0, 11.0]])),
        ),
    )
)
