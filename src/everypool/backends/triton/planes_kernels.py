"""Sums of two maxima over a plane that is held whole: what meets in a corner, and what a row and a column have found.

Every map is read once and the sum written once. A program holds R planes of H by W, both rounded up to powers of two.
"""

from __future__ import annotations

import triton
import triton.language as tl

from everypool.backends.triton.groups import later, later_last
from everypool.backends.triton.runs_kernels import since

__all__ = ["corner", "corner_gradient", "cross", "cross_gradient"]


@triton.jit
def cells_of(total, channels, high, wide, strides, WIDE: tl.constexpr, R: tl.constexpr, H: tl.constexpr, W: tl.constexpr):
    """Offsets (R, H, W) into a map, and which of these places there are."""
    r = tl.program_id(0).to(tl.int64) * R + tl.arange(0, R)
    if not WIDE:
        r = r.to(tl.int32)
    r = r[:, None, None]
    h = tl.arange(0, H)[None, :, None]
    w = tl.arange(0, W)[None, None, :]
    at = (r // channels) * strides[0] + (r % channels) * strides[1] + h * strides[2] + w * strides[3]
    return at, (r < total) & (h < high) & (w < wide), h, w


@triton.jit
def above(m, x):
    """The larger of two, NaN above all."""
    return tl.where((x > m) | (x != x), x, m)


@triton.jit
def met(v, there, e, AXIS: tl.constexpr, REVERSE: tl.constexpr, FLAG: tl.constexpr, KEEP: tl.constexpr):
    """Running maxima along an axis, and with KEEP which places hold their own."""
    v = tl.where(there, v, float("-inf"))
    if KEEP:
        at = tl.where(there, e + tl.zeros_like(v).to(tl.int32), -1)
        if FLAG:
            m, at = tl.associative_scan((v, at), AXIS, later_last, reverse=REVERSE)
        else:
            m, at = tl.associative_scan((v, at), AXIS, later, reverse=REVERSE)
        return m, at == e
    return tl.associative_scan(v, AXIS, above, reverse=REVERSE), there


@triton.jit
def corner(
    x, other, y, first, second,
    total, channels, high, wide, x_strides, other_strides, y_strides,
    SAME: tl.constexpr, KEEP: tl.constexpr, FLAG: tl.constexpr, REVERSE: tl.constexpr,
    WIDE: tl.constexpr, R: tl.constexpr, H: tl.constexpr, W: tl.constexpr,
):  # fmt: skip
    """The running maximum of a column plus that of a row."""
    at, there, h, w = cells_of(total, channels, high, wide, x_strides, WIDE, R, H, W)
    to, _, _, _ = cells_of(total, channels, high, wide, y_strides, WIDE, R, H, W)
    v = tl.load(x + at, mask=there, other=0).to(tl.float32)
    down, won = met(v, there, h, 1, REVERSE, FLAG, KEEP)
    if KEEP:
        tl.store(first + to, won.to(first.dtype.element_ty), mask=there)
    if not SAME:
        at, _, _, _ = cells_of(total, channels, high, wide, other_strides, WIDE, R, H, W)
        v = tl.load(other + at, mask=there, other=0).to(tl.float32)
    along, won = met(v, there, w, 2, REVERSE, FLAG, KEEP)
    if KEEP:
        tl.store(second + to, won.to(second.dtype.element_ty), mask=there)
    tl.store(y + to, (down + along).to(y.dtype.element_ty), mask=there)


@triton.jit
def corner_gradient(
    grad, first, second, dx, other,
    total, channels, high, wide, grad_strides, y_strides, step_h, step_w,
    SAME: tl.constexpr, REVERSE: tl.constexpr,
    WIDE: tl.constexpr, R: tl.constexpr, H: tl.constexpr, W: tl.constexpr,
):  # fmt: skip
    """What every winner gets from all windows up to the next one."""
    at, there, h, w = cells_of(total, channels, high, wide, grad_strides, WIDE, R, H, W)
    to, _, _, _ = cells_of(total, channels, high, wide, y_strides, WIDE, R, H, W)
    g = tl.load(grad + at, mask=there, other=0).to(tl.float32)
    # against the direction of the run; the next window begins anew where a winner of its own stands
    away = -1 if REVERSE else 1
    in_h = there & (h + away >= 0) & (h + away < high)
    reset = tl.load(first + to + away * step_h, mask=in_h, other=0) != 0
    down, _ = tl.associative_scan((g, reset), 1, since, reverse=not REVERSE)
    won = tl.load(first + to, mask=there, other=0) != 0
    down = tl.where(won, down, 0.0)
    in_w = there & (w + away >= 0) & (w + away < wide)
    reset = tl.load(second + to + away * step_w, mask=in_w, other=0) != 0
    along, _ = tl.associative_scan((g, reset), 2, since, reverse=not REVERSE)
    won = tl.load(second + to, mask=there, other=0) != 0
    along = tl.where(won, along, 0.0)
    if SAME:
        tl.store(dx + to, (down + along).to(dx.dtype.element_ty), mask=there)
    else:
        tl.store(dx + to, down.to(dx.dtype.element_ty), mask=there)
        tl.store(other + to, along.to(other.dtype.element_ty), mask=there)


@triton.jit
def largest(v, there, e, AXIS: tl.constexpr):
    """The largest value along an axis, kept as one of one element, and the last place that holds it, or NaN."""
    odd = there & (v != v)
    strange = tl.max(odd.to(tl.int32), AXIS, keep_dims=True) > 0
    top = tl.max(tl.where(there & (v == v), v, float("-inf")), AXIS, keep_dims=True)
    hit = tl.where(strange, odd, there & (v == top))
    at = tl.max(tl.where(hit, e + tl.zeros_like(v).to(tl.int32), -1), AXIS, keep_dims=True)
    return tl.where(strange, float("nan"), top), at


@triton.jit
def cross(
    x, other, y, first, second,
    total, channels, high, wide, x_strides, other_strides, y_strides,
    SAME: tl.constexpr, KEEP: tl.constexpr,
    WIDE: tl.constexpr, R: tl.constexpr, H: tl.constexpr, W: tl.constexpr,
):  # fmt: skip
    """The largest value of each column plus that of each row."""
    at, there, h, w = cells_of(total, channels, high, wide, x_strides, WIDE, R, H, W)
    to, _, _, _ = cells_of(total, channels, high, wide, y_strides, WIDE, R, H, W)
    r = tl.program_id(0).to(tl.int64) * R + tl.arange(0, R)[:, None, None]
    v = tl.load(x + at, mask=there, other=0).to(tl.float32)
    down, e = largest(v, there, h, 1)
    if KEEP:
        tl.store(first + r * wide + w, e, mask=(r < total) & (w < wide))
    if not SAME:
        at, _, _, _ = cells_of(total, channels, high, wide, other_strides, WIDE, R, H, W)
        v = tl.load(other + at, mask=there, other=0).to(tl.float32)
    along, e = largest(v, there, w, 2)
    if KEEP:
        tl.store(second + r * high + h, e, mask=(r < total) & (h < high))
    tl.store(y + to, (down + along).to(y.dtype.element_ty), mask=there)


@triton.jit
def cross_gradient(
    grad, first, second, dx, other,
    total, channels, high, wide, grad_strides, y_strides,
    SAME: tl.constexpr,
    WIDE: tl.constexpr, R: tl.constexpr, H: tl.constexpr, W: tl.constexpr,
):  # fmt: skip
    """What the winners of a column and of a row get: the sum of its gradients."""
    at, there, h, w = cells_of(total, channels, high, wide, grad_strides, WIDE, R, H, W)
    to, _, _, _ = cells_of(total, channels, high, wide, y_strides, WIDE, R, H, W)
    r = tl.program_id(0).to(tl.int64) * R + tl.arange(0, R)[:, None, None]
    g = tl.load(grad + at, mask=there, other=0).to(tl.float32)
    e = tl.load(first + r * wide + w, mask=(r < total) & (w < wide), other=-1)
    down = tl.where(h == e, tl.sum(g, 1, keep_dims=True), 0.0)
    e = tl.load(second + r * high + h, mask=(r < total) & (h < high), other=-1)
    along = tl.where(w == e, tl.sum(g, 2, keep_dims=True), 0.0)
    if SAME:
        tl.store(dx + to, (down + along).to(dx.dtype.element_ty), mask=there)
    else:
        tl.store(dx + to, down.to(dx.dtype.element_ty), mask=there)
        tl.store(other + to, along.to(other.dtype.element_ty), mask=there)
