"""Boxes: a grid of bins over regions of interest."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from everypool import _check as check
from everypool._overrides import handle_overrides
from everypool.backends import triton
from everypool.backends.axes import Bins, Keep
from everypool.backends.choose import choose
from everypool.backends.context import can_read_values, is_tracing
from everypool.backends.eager import Folds, wide
from everypool.backends.layout import Layout
from everypool.backends.work import Taps
from everypool.layer import Layer
from everypool.pool import Operation, Reduced, Reducer, Windows, apply, defined, existing, parse, refuse, register, run
from everypool.pool.shards import refuse_shards

__all__ = ["Boxes", "RoIAlign", "RoIPool", "roi_align", "roi_pool"]

MOST = 1 << 27  # samples per box and channel; bounds what a mistyped size can allocate
CHUNK = 1 << 22  # sampled values that are laid out at once


@dataclass(frozen=True, eq=False)
class Boxes(Windows):
    """A grid of bins over each box, the values of a bin being samples of the map.

    Args:
        boxes: (R, 1 + 2 * nd), floating point: sample number, then the corner nearest the origin and the opposite one,
            in the order x, y, z; or a list with one (R_i, 2 * nd) for each sample.
        output_size: bins per axis.
        spatial_scale: map cells per unit of the boxes' coordinates; one number, or one for each level, in which case
            the input is a list with one map per level and the result gains a first axis for the levels.
        sampling_ratio: bilinear samples per bin and axis; 0 or less for ceil(box / bins).
        aligned: shift by half a cell, so that cell centres lie at integers, and allow boxes smaller than a cell; the
            published operation does neither.
        sampling: "align" for bilinear samples (a sample further than a cell outside the map is 0), or "pool" for the
            cells of bins whose borders are rounded, as Fast R-CNN does.

    Raises:
        ValueError: boxes of wrong shape, inverted, NaN or of no sample; sizes that break their rule.
        TypeError: boxes that are not floating point; integer maps with sampling="align".

    Source: He et al. 2017, Mask R-CNN (align); Girshick 2015, Fast R-CNN (pool). Reference: torchvision.ops.

    >>> box = torch.tensor([[0.0, 0.0, 0.0, 3.0, 3.0]])
    >>> everypool.pool(torch.arange(16.0).reshape(1, 1, 4, 4), "max", Boxes(box, 2, sampling="pool"))
    tensor([[[[ 5.,  7.],
              [13., 15.]]]])
    """

    boxes: Any
    output_size: Any
    spatial_scale: Any = 1.0
    sampling_ratio: int = 0
    aligned: bool = False
    sampling: str = "align"

    fixed: ClassVar[bool] = True
    folds: ClassVar[bool] = False

    @property
    def many(self) -> bool:
        return isinstance(self.spatial_scale, (list, tuple))

    def reduce(self, reducer: Reducer, input: Any, mask: Any, sizes: Any) -> list[Reduced]:
        if not self.many:
            return [self._level(reducer, input, mask, sizes)]
        if not isinstance(input, (list, tuple)) or len(input) != len(self.spatial_scale) or not input:
            got = f"{len(input)} maps" if isinstance(input, (list, tuple)) else check.shown(input)
            raise check.invalid("input", f"a list of one map per scale, {len(self.spatial_scale)}", check.Shown(got))
        for x in input:
            if x.shape[:2] != input[0].shape[:2] or x.dtype != input[0].dtype or x.device != input[0].device:
                raise check.invalid("input", "maps alike in samples, channels, type and device", x)
        nothing = [None] * len(input)
        levels = zip(self.spatial_scale, input, mask or nothing, sizes or nothing, strict=True)
        return [replace(self, spatial_scale=scale)._level(reducer, *level) for scale, *level in levels]

    def assemble(self, parts: list[Tensor]) -> Tensor:
        return torch.stack(parts) if self.many else parts[0]

    def taps(self, shapes: Sequence[tuple[int, ...]]) -> list[Taps]:
        scales = self.spatial_scale if self.many else [self.spatial_scale]
        return [replace(self, spatial_scale=scale)._taps(shape) for scale, shape in zip(scales, shapes, strict=True)]

    def _taps(self, shape: tuple[int, ...]) -> Taps:
        nd, aligned = len(shape) - 2, self.sampling == "align"
        bins = check.ints("output_size", self.output_size, nd, 1)
        first = self.boxes[0] if isinstance(self.boxes, (list, tuple)) and self.boxes else self.boxes
        sample, low, high = self._corners(torch.empty((shape[0], 0), device=getattr(first, "device", None)), nd)
        counts = []  # (R, bins) per axis
        for axis, (n, out) in enumerate(zip(shape[2:], bins, strict=True)):
            borders = low[:, nd - 1 - axis], high[:, nd - 1 - axis], torch.full_like(sample, n)
            _, exists = (self._aligned if aligned else self._rounded)(*borders, n, out)
            counts.append(exists.sum(2))
        held = [count.sum(1) for count in counts]
        order = 0.0
        for axis, count in enumerate(counts):
            k = count.clamp(min=1).to(torch.float64)
            order += float(_product([(k * k.log2()).sum(1), *held[:axis], *held[axis + 1 :]]).sum())
        return Taps(
            total=int(_product(held).sum()),
            windows=int(_product([(count > 0).sum(1) for count in counts]).sum()),
            order=order,
            most=int(_product([count.amax(1) for count in counts]).max()) if len(sample) else 0,
            outputs=len(sample) * math.prod(bins),
            planes=shape[1],
            cells=2**nd if aligned else 1,
            # the share of each corner, and their sum; backward the gradient's share, added to each corner
            forward=2 * 2**nd - 1 if aligned else 0,
            backward=2 * 2**nd if aligned else 0,
        )

    def _level(self, reducer: Reducer, x: Tensor, mask: Tensor | None, sizes: Tensor | None) -> Reduced:
        nd = x.dim() - 2
        out = check.ints("output_size", self.output_size, nd, 1)
        check.number("spatial_scale", self.spatial_scale, "a positive finite number", above=0, finite=True)
        check.boolean("aligned", self.aligned)
        check.choice("sampling", self.sampling, ("align", "pool"))
        if not check.is_int(self.sampling_ratio):
            raise check.wrong_type("sampling_ratio", "an int", self.sampling_ratio)
        if getattr(reducer, "indices", False):
            raise NotImplementedError("`return_indices` must be False over boxes: samples lie between cells")
        bins, ratio = math.prod(out), max(int(self.sampling_ratio), 1) if self.sampling == "align" else 1
        if bins > MOST:
            raise check.invalid("output_size", f"at most {MOST} bins in all", self.output_size)
        if bins * ratio**nd > MOST:
            raise check.invalid("sampling_ratio", f"at most {MOST} samples in all bins", self.sampling_ratio)
        if self.sampling == "align":
            check.floating("input", x)
        sample, low, high = self._corners(x, nd)
        table = self._aligned if self.sampling == "align" else self._rounded
        # a product, for a recorded graph would keep a tensor of sizes as it is
        ones = torch.ones_like(sample)
        extent = torch.stack([ones * n for n in x.shape[2:]], 1) if sizes is None else sizes[sample]
        axes = [table(low[:, nd - 1 - a], high[:, nd - 1 - a], extent[:, a], x.shape[2 + a], out[a]) for a in range(nd)]
        found = self._fused(reducer, x, mask, sample, axes, out)
        return self._sampled(run, reducer, x, mask, sample, axes, out) if found is None else found

    def _fused(
        self, reducer: Reducer, x: Tensor, mask: Tensor | None, sample: Tensor, axes: list[Any], out: tuple[int, ...]
    ) -> Reduced | None:
        """By the fused kernels, where they can."""
        choice = choose(x.device.type)
        if choice.name != "triton" or not triton.suits(x) or x.numel() == 0:
            return None
        ratio = self.sampling_ratio if self.sampling == "align" else 0
        define = None if is_tracing() else lambda x: self._sampled(defined, reducer, x, mask, sample, axes, out)[0][0]
        try:
            call = triton.make_boxes(reducer.recipe(), x, mask, sample, axes, out, max(int(ratio), 0), define)
        except triton.Unsupported as error:
            refuse(choice, x, error)
            return None
        y, exists = call(x)
        return (y,), exists

    def _sampled(
        self,
        fold: Callable[[Reducer, Tensor, Folds], Reduced],
        reducer: Reducer,
        x: Tensor,
        mask: Tensor | None,
        sample: Tensor,
        axes: list[Any],
        out: tuple[int, ...],
    ) -> Reduced:
        """By the definition, a chunk of boxes at a time."""
        taps = 1
        for cells, _ in axes:
            taps *= cells[0].shape[1] * cells[0].shape[2]
        step = max(1, CHUNK // max(taps * x.shape[1], 1))
        if sample.shape[0] <= step or torch.compiler.is_compiling():
            y, exists = self._chunk(fold, reducer, x, mask, sample, axes, 0, sample.shape[0], out)
            return (y,), exists
        parts = []
        for start in range(0, sample.shape[0], step):  # one chunk's samples at a time, made again for the gradient
            arguments = (fold, reducer, x, mask, sample, axes, start, start + step, out)
            remade = torch.is_grad_enabled() and x.requires_grad
            parts.append(checkpoint(self._chunk, *arguments, use_reentrant=False) if remade else self._chunk(*arguments))
        return (torch.cat([y for y, _ in parts]),), torch.cat([exists for _, exists in parts])

    def _corners(self, x: Tensor, nd: int) -> tuple[Tensor, Tensor, Tensor]:
        """Sample numbers (R,) and scaled corners (R, nd) in the boxes' order of axes."""
        boxes = self.boxes
        refuse_shards("input", x)
        refuse_shards("boxes", *(boxes if isinstance(boxes, (list, tuple)) else [boxes]))
        rule = f"(R, {1 + 2 * nd}): sample number and two corners; or a list of N = {x.shape[0]} tensors (R_i, {2 * nd})"
        if isinstance(boxes, (list, tuple)):
            if len(boxes) != x.shape[0]:
                raise check.invalid("boxes", rule, check.Shown(f"a list of {len(boxes)}"))
            for item in boxes:
                if not isinstance(item, Tensor) or item.dim() != 2 or item.shape[1] != 2 * nd:
                    raise check.invalid("boxes", rule, item)
                check.floating("boxes", item)
                if item.device != x.device:
                    raise check.invalid("boxes", f"on the device of the input, {x.device}", item)
            # a narrow type holds no large sample number
            wider = [item if item.dtype == torch.float64 else item.to(torch.float32) for item in boxes]
            rows = [torch.cat([item.new_full((item.shape[0], 1), i), item], 1) for i, item in enumerate(wider)]
            boxes = torch.cat(rows) if rows else x.new_zeros((0, 1 + 2 * nd), dtype=torch.float32)
        if not isinstance(boxes, Tensor):
            raise check.wrong_type("boxes", rule, boxes)
        if boxes.dim() != 2 or boxes.shape[1] != 1 + 2 * nd:
            raise check.invalid("boxes", rule, boxes)
        check.floating("boxes", boxes)
        if boxes.device != x.device:
            raise check.invalid("boxes", f"on the device of the input, {x.device}", check.Shown(str(boxes.device)))
        boxes = boxes.detach().to(torch.float64 if boxes.dtype == torch.float64 else torch.float32)
        if can_read_values(boxes) and boxes.shape[0]:
            if not bool(boxes.isfinite().all()):
                raise check.invalid("boxes", "finite", check.Shown("NaN or infinity"))
            number = boxes[:, 0]
            if bool(((number < 0) | (number >= x.shape[0]) | (number != number.floor())).any()):
                raise check.invalid(
                    "boxes", f"of samples 0 to {x.shape[0] - 1}", check.Shown(f"sample numbers {number.tolist()[:8]}")
                )
            wrong = (boxes[:, 1 + nd :] < boxes[:, 1 : 1 + nd]).any(1)
            if bool(wrong.any()):
                first = boxes[wrong][0].tolist()
                raise check.invalid("boxes", "corners in order, the one nearest the origin first", check.Shown(str(first)))
        corners = boxes[:, 1:] * float(self.spatial_scale)
        if can_read_values(boxes) and bool((~(corners.abs() <= check.LARGEST)).any()):
            raise check.invalid("boxes", "within 2**40 cells of the map, once scaled", check.Shown(f"{corners.tolist()}"[:80]))
        return boxes[:, 0].to(torch.int64), corners[:, :nd], corners[:, nd:]

    def _aligned(self, low: Tensor, high: Tensor, extent: Tensor, n: int, out: int) -> tuple[Any, Tensor]:
        """Along one axis: the two cells of every sample and the share of the second; and which samples are asked for."""
        if self.aligned:
            low, high = low - 0.5, high - 0.5
            length = high - low
        else:
            length = (high - low).clamp(min=1)
        size = length / out
        # as published, a box without extent has no sample
        ratio = torch.full_like(size, self.sampling_ratio) if self.sampling_ratio > 0 else size.ceil()
        most = self.sampling_ratio if self.sampling_ratio > 0 else 4 * ((n + out - 1) // out) + 1
        if self.sampling_ratio <= 0 and can_read_values(low):
            needed = max(int(ratio.max()), 1) if ratio.numel() else 1
            if needed > max(most, 16):  # boxes may well leave a map of few cells
                rule = "at most four times as long as the map, or 16 cells a bin, where sampling_ratio is 0"
                raise check.invalid("boxes", rule, check.Shown(f"{float(length.max()):.6g} cells over a map of {n}"))
            most = needed
        number = torch.arange(most, device=low.device)
        bin_number = torch.arange(out, device=low.device).reshape(1, -1, 1)
        size, ratio = size.reshape(-1, 1, 1), ratio.reshape(-1, 1, 1)
        place = low.reshape(-1, 1, 1) + bin_number * size + (number + 0.5) * size / ratio.clamp(min=1)
        limit = extent.reshape(-1, 1, 1)
        inside = (place >= -1) & (place <= limit)
        place = torch.minimum(place.clamp(min=0), (limit - 1).to(place.dtype))
        first = place.floor().to(torch.int64)
        second = torch.minimum(first + 1, limit - 1)
        share = place - first
        return (first, second, share, inside), (number < ratio).expand(place.shape)

    def _rounded(self, low: Tensor, high: Tensor, extent: Tensor, n: int, out: int) -> tuple[Any, Tensor]:
        """Along one axis: the cells of every bin, borders rounded half away from zero as the published kernel does."""
        start, end = _rounded_away(low), _rounded_away(high)
        size = (end - start + 1).clamp(min=1) / out
        bin_number = torch.arange(out, device=low.device).reshape(1, -1, 1)
        limit = extent.reshape(-1, 1, 1)
        first = (bin_number * size.reshape(-1, 1, 1)).floor() + start.reshape(-1, 1, 1)
        after = ((bin_number + 1) * size.reshape(-1, 1, 1)).ceil() + start.reshape(-1, 1, 1)
        first = torch.minimum(first.clamp(min=0), limit.to(first.dtype)).to(torch.int64)
        after = torch.minimum(after.clamp(min=0), limit.to(after.dtype)).to(torch.int64)
        most = n if not can_read_values(low) else int((after - first).max().clamp(min=1)) if first.numel() else 1
        cell = first + torch.arange(most, device=low.device)
        exists = cell < after
        cell = torch.minimum(cell, limit - 1)
        return (cell, None, None, None), exists

    @staticmethod
    def _chunk(
        fold: Callable[[Reducer, Tensor, Folds], Reduced],
        reducer: Reducer,
        x: Tensor,
        mask: Tensor | None,
        sample: Tensor,
        axes: list[Any],
        start: int,
        stop: int,
        out: tuple[int, ...],
    ) -> tuple[Tensor, Tensor]:
        """Boxes start to stop: samples (R, C, bins, taps), reduced over their last axis."""
        nd, sample = x.dim() - 2, sample[start:stop]
        spread: list[list[Any]] = []
        for axis, (cells, exists) in enumerate(axes):
            shape = [sample.shape[0]] + [1] * (2 * nd)
            shape[1 + axis], shape[1 + nd + axis] = exists.shape[1:]
            spread.append([None if item is None else item[start:stop].reshape(shape) for item in (*cells, exists)])
        exists = spread[0][4]
        for row in spread[1:]:
            exists = exists & row[4]
        flat = x.transpose(0, 1).flatten(1)  # (C, N * cells)
        flat_mask = None if mask is None else mask.transpose(0, 1).flatten(1)
        value: Any = 0.0
        weight_sum: Any = 0.0
        sides = (False,) if spread[0][1] is None else (False, True)  # bilinear samples lie between two cells per axis
        for corner in itertools.product(sides, repeat=nd):
            index: Any = sample.reshape(-1, *[1] * (2 * nd))
            weight: Any = None
            for axis, (far, row) in enumerate(zip(corner, spread, strict=True)):
                index = index * x.shape[2 + axis] + (row[1] if far else row[0])
                if row[1] is not None:
                    part = row[2] if far else 1 - row[2]
                    weight = part if weight is None else weight * part
            index = index.expand(exists.shape)
            picked = flat.index_select(1, index.reshape(-1)).unflatten(1, index.shape).movedim(0, 1)
            if weight is None:
                value = picked
                weight_sum = (
                    None if flat_mask is None else flat_mask.index_select(1, index.reshape(-1)).unflatten(1, index.shape)
                )
            else:
                weight = weight.unsqueeze(1).to(wide(picked[:0]).dtype)
                if flat_mask is not None:
                    there = flat_mask.index_select(1, index.reshape(-1)).unflatten(1, index.shape).movedim(0, 1)
                    weight = weight * there
                    weight_sum = weight_sum + weight
                value = value + torch.where(weight > 0, wide(picked), 0) * weight
        exists = exists.unsqueeze(1)
        if spread[0][1] is not None:
            inside: Any = spread[0][3]
            for row in spread[1:]:
                inside = inside & row[3]
            inside = inside.unsqueeze(1)
            if flat_mask is not None:  # interpolate between the cells that count; a sample among none is none
                exists = exists & ((weight_sum > 0) | ~inside)
                value = value / torch.where(weight_sum > 0, weight_sum, 1.0)
            value = value.masked_fill(~inside, 0)
        elif weight_sum is not None:
            exists = exists & weight_sum.movedim(0, 1)
        bins, taps = 1, 1
        for axis in range(nd):
            bins, taps = bins * exists.shape[2 + axis], taps * exists.shape[2 + nd + axis]
        value = value.reshape(value.shape[0], value.shape[1], bins, taps)
        exists = exists.reshape(exists.shape[0], exists.shape[1], bins, taps)
        rows = Layout((Keep(bins), Bins(taps, 1)), full=True)
        (y, *_), there = fold(reducer, value, Folds(rows, exists, x.device))
        there = existing(there)
        if there is None:
            there = torch.ones((y.shape[0], 1, bins, 1), dtype=torch.bool, device=x.device)
        return y.reshape(*y.shape[:2], *out).to(x.dtype), there.reshape(*there.shape[:2], *out)


def _product(factors: list[Tensor]) -> Tensor:
    return functools.reduce(torch.mul, factors)


def _rounded_away(x: Tensor) -> Tensor:
    return (x.abs() + 0.5).floor() * x.sign()


@handle_overrides
def roi_align(
    input: Tensor,
    boxes: Any,
    output_size: Any,
    spatial_scale: float = 1.0,
    sampling_ratio: int = -1,
    aligned: bool = False,
    *,
    reducer: str | Reducer = "mean",
    mask: Tensor | None = None,
    sizes: Any = None,
) -> Tensor:
    """Mean of bilinear samples in each bin of a grid over every box.

    y[r, i, j] = mean of the map at sampling_ratio^2 regular places of bin (i, j) of box r.

    Args:
        input: (N, C, *spatial), floating point, one to three spatial axes.
        boxes: (R, 1 + 2 * nd) or a list of (R_i, 2 * nd), see `Boxes`.
        output_size: bins per axis.
        spatial_scale: map cells per unit of the boxes' coordinates.
        sampling_ratio: samples per bin and axis; 0 or less for ceil(box / bins).
        aligned: shift by half a cell; False is the published operation.
        reducer: what becomes of a bin's samples.
        mask: (N, 1 or C, *spatial), bool: cells that count; samples interpolate between those.
        sizes: (N, nd), int: each sample's own extent.

    Returns:
        (R, C, *output_size).

    Raises:
        ValueError: boxes or sizes that break their rule.
        TypeError: input or boxes that are not floating point.

    Source: He et al. 2017, Mask R-CNN. Reference: torchvision.ops.roi_align.

    >>> roi_align(torch.ones(1, 1, 4, 4), torch.tensor([[0.0, 0.0, 0.0, 2.0, 2.0]]), 1)
    tensor([[[[1.]]]])
    """
    windows = Boxes(boxes, output_size, spatial_scale, sampling_ratio, aligned)
    return apply(input, reducer, windows, nd=None, mask=mask, sizes=sizes)


@handle_overrides
def roi_pool(
    input: Tensor,
    boxes: Any,
    output_size: Any,
    spatial_scale: float = 1.0,
    *,
    reducer: str | Reducer = "max",
    mask: Tensor | None = None,
    sizes: Any = None,
) -> Tensor:
    """Largest cell in each bin of a grid over every box, borders rounded to cells.

    y[r, i, j] = max of the cells of bin (i, j) of box r; 0 for a bin without a cell.

    Args:
        input: (N, C, *spatial), one to three spatial axes.
        boxes: (R, 1 + 2 * nd) or a list of (R_i, 2 * nd), see `Boxes`.
        output_size: bins per axis.
        spatial_scale: map cells per unit of the boxes' coordinates.
        reducer: what becomes of a bin's cells.
        mask: (N, 1 or C, *spatial), bool, True where a cell counts.
        sizes: (N, nd), int: each sample's own extent.

    Returns:
        (R, C, *output_size).

    Raises:
        ValueError: boxes or sizes that break their rule.
        TypeError: boxes that are not floating point.

    Source: Girshick 2015, Fast R-CNN. Reference: torchvision.ops.roi_pool.

    >>> roi_pool(torch.arange(16.0).reshape(1, 1, 4, 4), torch.tensor([[0.0, 0.0, 0.0, 1.0, 1.0]]), 1)
    tensor([[[[5.]]]])
    """
    windows = Boxes(boxes, output_size, spatial_scale, sampling="pool")
    return apply(input, reducer, windows, nd=None, mask=mask, sizes=sizes)


class _RoI(Layer):
    """A grid of bins over boxes that are given with every call."""

    def __init__(self, output_size: Any, spatial_scale: float, reducer: str | Reducer) -> None:
        super().__init__()
        nd = len(output_size) if isinstance(output_size, (list, tuple)) else 1
        check.ints("output_size", output_size, nd, 1)
        self.output_size = check.plain(output_size)
        self.spatial_scale = check.number("spatial_scale", spatial_scale, "a positive finite number", above=0, finite=True)
        self.chosen = reducer
        parse(reducer)

    def extra_repr(self) -> str:
        return f"output_size={self.output_size}, spatial_scale={self.spatial_scale}, reducer={self.chosen!r}"


class RoIAlign(_RoI):
    """Mean of bilinear samples in each bin of a grid over every box; see `roi_align`.

    >>> RoIAlign(1)(torch.ones(1, 1, 4, 4), torch.tensor([[0.0, 0.0, 0.0, 2.0, 2.0]]))
    tensor([[[[1.]]]])
    """

    def __init__(
        self,
        output_size: Any,
        spatial_scale: float = 1.0,
        sampling_ratio: int = -1,
        aligned: bool = False,
        *,
        reducer: str | Reducer = "mean",
    ) -> None:
        super().__init__(output_size, spatial_scale, reducer)
        if not check.is_int(sampling_ratio):
            raise check.wrong_type("sampling_ratio", "an int", sampling_ratio)
        self.sampling_ratio, self.aligned = int(sampling_ratio), check.boolean("aligned", aligned)

    def forward(self, input: Tensor, boxes: Any, mask: Tensor | None = None, sizes: Any = None) -> Tensor:
        """Pool (N, C, *spatial) over boxes (R, 1 + 2 * nd)."""
        settings = (self.output_size, self.spatial_scale, self.sampling_ratio, self.aligned)
        return roi_align(input, boxes, *settings, reducer=self.chosen, mask=mask, sizes=sizes)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, sampling_ratio={self.sampling_ratio}, aligned={self.aligned}"


class RoIPool(_RoI):
    """Largest cell in each bin of a grid over every box, borders rounded to cells; see `roi_pool`.

    >>> RoIPool(1)(torch.arange(16.0).reshape(1, 1, 4, 4), torch.tensor([[0.0, 0.0, 0.0, 1.0, 1.0]]))
    tensor([[[[5.]]]])
    """

    def __init__(self, output_size: Any, spatial_scale: float = 1.0, *, reducer: str | Reducer = "max") -> None:
        super().__init__(output_size, spatial_scale, reducer)

    def forward(self, input: Tensor, boxes: Any, mask: Tensor | None = None, sizes: Any = None) -> Tensor:
        """Pool (N, C, *spatial) over boxes (R, 1 + 2 * nd)."""
        return roi_pool(input, boxes, self.output_size, self.spatial_scale, reducer=self.chosen, mask=mask, sizes=sizes)


register(
    Operation(
        name="roi",
        kind="windows",
        summary="A grid of bins over boxes, by bilinear samples (align) or rounded cells (pool).",
        formula="y[r, i, j] = reducer(samples of bin (i, j) of box r)",
        source="Girshick 2015; He et al. 2017",
        names=("RoIAlign", "RoIPool", "Boxes", "roi_align", "roi_pool"),
        onnx=False,
        sample=lambda: (RoIAlign(2, 0.5, 2), (torch.randn(1, 3, 8, 8), torch.tensor([[0.0, 1.0, 2.0, 9.0, 11.0]]))),
    )
)
