"""Scenes of boxes: one region on one map, and on every level of a feature pyramid."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

import everypool
from everypool.pool import Operation
from everypool.study.picture.folds import numbered
from everypool.study.picture.scene import (
    ACCENT,
    SECOND,
    THIRD,
    Box,
    Dots,
    Grid,
    Scene,
    canvas_of,
    gradient,
    plain,
    whole,
)
from everypool.study.picture.shapes import BLANK, titled

__all__ = ["levels_scene", "region_scene"]

BINS = 5  # along each side of a box
SCALES = (1.0, 0.5, 0.25, 0.125)
Corners = tuple[float, float, float, float]  # left, top, right, bottom, in cells of the photo


def region(x: Tensor) -> Corners:
    """A box around the middle of the photo, its borders between cells."""
    height, width = x.shape[-2:]
    return 0.28 * width, 0.22 * height, 0.76 * width, 0.83 * height


def boxes(corners: Corners) -> Tensor:
    """One box of the first sample, as the operations take them."""
    return torch.tensor([[0.0, *corners]], dtype=torch.float64)


def bin_lines(corners: Corners) -> Grid:
    left, top, right, bottom = corners
    columns, rows = np.linspace(left, right, BINS + 1), np.linspace(top, bottom, BINS + 1)
    return Grid(tuple(columns.tolist()), tuple(rows.tolist()), corners, ACCENT, 1.5)


def region_scene(operation: Operation, x: Tensor) -> Scene:
    """One box with its bins and samples; how both samplings see it."""
    corners = region(x)
    left, top, right, bottom = corners

    def aligned(t: Tensor) -> Tensor:
        return everypool.roi_align(t, boxes(corners), BINS, sampling_ratio=2, aligned=True)

    def rounded(t: Tensor) -> Tensor:
        return everypool.roi_pool(t, boxes(corners), BINS)

    # two samples per bin and axis, a quarter and three quarters of the way
    steps = (np.arange(2 * BINS) + 0.5) / (2 * BINS)
    samples = tuple((left + (right - left) * u, top + (bottom - top) * v) for v in steps for u in steps)
    frame = Box(*corners, ACCENT, 4)
    lines = (bin_lines(corners), frame)
    main = (
        canvas_of(
            whole(plain(x), limits=BLANK),
            "Input",
            f"a box, {BINS} × {BINS} bins, 2 × 2 samples in each",
            (*lines, Dots(samples, SECOND, 4)),
        ),
        canvas_of(whole(plain(aligned(x)), limits=BLANK, numbers="{:.1f}"), "Output", "the mean of the samples of every bin"),
        canvas_of(
            whole(plain(gradient(aligned, x)), look="signed"),
            "Gradient",
            "the four cells around every sample",
            (frame,),
            bar=True,
        ),
    )
    detail = (
        numbered(plain(aligned(x)).round(1), True, BLANK).with_title("roi_align", "means of samples between cells"),
        numbered(plain(rounded(x)).round(1), True, BLANK).with_title("roi_pool", "maxima, borders rounded to cells"),
        canvas_of(
            whole(plain(gradient(rounded, x)), look="signed"), "Gradient of roi_pool", "the largest cell of every bin", (frame,)
        ),
    )
    return titled(operation, "RoI pooling", main, detail=detail, main_share=0.5)


def levels_scene(operation: Operation, x: Tensor) -> Scene:
    """One box on the photo at four sizes: pooled on each, then the largest."""
    height, width = x.shape[-2:]
    corners = region(x)
    levels = [x] + [everypool.adaptive_avg_pool(x, (max(1, height * n // 8), max(1, width * n // 8))) for n in (4, 2, 1)]

    def pooled(maps: list[Tensor], fuse: str | None) -> Tensor:
        return everypool.multi_level_roi_pool(maps, boxes(corners), BINS, SCALES, fuse)

    each = pooled(levels, None)
    fused = plain(pooled(levels, "max"))
    winner = np.stack([plain(part) for part in each]).argmax(0)
    colours = (ACCENT, SECOND, THIRD, "#CC79A7")
    frame = (Box(*corners, ACCENT, 4),)
    slope = plain(gradient(lambda t: pooled([t, *levels[1:]], "max"), x))
    won = tuple(
        Dots(tuple((float(c) + 0.85, float(r) + 0.17) for r, c in np.argwhere(winner == level)), colour, 9)
        for level, colour in enumerate(colours)
    )
    main = (
        canvas_of(whole(plain(x), limits=BLANK), "Input", "one box on four levels of a pyramid", frame),
        canvas_of(
            whole(fused, limits=BLANK, numbers="{:.1f}"), "Output", "the largest of the four levels; a dot says of which", won
        ),
        canvas_of(whole(slope, look="signed"), "Gradient", "on the first level, where it won", frame, bar=True),
    )
    detail = tuple(
        numbered(plain(part).round(1), True, BLANK, (Box(0, 0, BINS, BINS, colour, 5),)).with_title(f"Level {number}", size)
        for number, (part, colour, size) in enumerate(
            zip(each, colours, ("full size", "half the size", "a quarter", "an eighth"), strict=True), 1
        )
    )
    return titled(operation, "Multi-level RoI pooling", main, detail=detail, main_share=0.5)
