"""Launches of the kernels that hold planes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import triton
from torch import Tensor

from everypool.backends.triton import planes_kernels
from everypool.backends.triton.launch import strides, wide

__all__ = ["backward", "forward"]

TILE = 4096  # elements of small planes that a program takes together


def _planes(x: Tensor, *others: Tensor | None) -> tuple[tuple[int], dict[str, Any]]:
    """The grid, and what all kernels are told of maps (N, C, H, W)."""
    n, c, high, across = x.shape
    h, w = triton.next_power_of_2(high), triton.next_power_of_2(across)
    r = max(1, TILE // (h * w))
    found = {
        "total": n * c, "channels": c, "high": high, "wide": across,
        "WIDE": wide(x, *(other for other in others if other is not None)), "R": r, "H": h, "W": w,
        "num_warps": max(4, min(16, r * h * w // 1024)), "enable_fp_fusion": False,
    }  # fmt: skip
    return (triton.cdiv(n * c, r),), found


def forward(
    x: Tensor, other: Tensor | None, kind: str, reverse: bool, last: bool, parts: Sequence[Tensor | None]
) -> None:  # fmt: skip
    """Write the sum, and where there is memory for them the winners."""
    y, first, second = parts
    if y is None or y.numel() == 0:
        return
    grid, found = _planes(y, x, other)
    second_map = x if other is None else other
    found |= {
        "x": x, "other": other, "y": y, "first": first, "second": second, "SAME": other is None, "KEEP": first is not None,
        "x_strides": _plain(x), "other_strides": _plain(second_map), "y_strides": _plain(y),
    }  # fmt: skip
    if kind == "corner":
        planes_kernels.corner[grid](**found, FLAG=last, REVERSE=reverse)
    else:
        planes_kernels.cross[grid](**found)


def backward(
    grad: Tensor, first: Tensor, second: Tensor, kind: str, reverse: bool, gradients: Sequence[Tensor]
) -> None:  # fmt: skip
    """Write the gradient of the map, or of both."""
    if grad.numel() == 0:
        return
    grid, found = _planes(gradients[0], grad)
    found |= {
        "grad": grad, "first": first, "second": second, "dx": gradients[0], "other": gradients[-1],
        "SAME": len(gradients) == 1, "grad_strides": _plain(grad), "y_strides": _plain(gradients[0]),
    }  # fmt: skip
    if kind == "corner":
        planes_kernels.corner_gradient[grid](**found, step_h=_plain(first)[2], step_w=_plain(first)[3], REVERSE=reverse)
    else:
        planes_kernels.cross_gradient[grid](**found)


def _plain(t: Tensor) -> tuple[int, ...]:
    """Steps per sample, channel, row and column."""
    n, c, _, h, w = strides(t, 2)
    return n, c, h, w
