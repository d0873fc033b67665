"""Running windows: a line of the map is read once, in one direction, and its state carried along.

`run` and `unrun` walk a line per lane: neighbouring lanes are neighbours in memory wherever the line itself is not. Along
memory, `sweep` and `unsweep` take a block of a line at once instead. A running maximum keeps one byte per place, whether it
was met there; its gradient is what all windows up to the next such place got.
"""

from __future__ import annotations

import triton
import triton.language as tl

from everypool.backends.triton.groups import none_spread
from everypool.backends.triton.kernels import lanes, lifted, parameter, start_of

__all__ = ["run", "sweep", "unrun", "unsweep"]


@triton.jit
def run(
    x, mask, onto, y, exact, kept, first, second, number, index,
    values, p, eps, fixed,
    total, channels, n, sides, flat, x_strides, mask_strides, y_strides, x_step, mask_step, y_step, flat_step,
    START: tl.constexpr, PUSH: tl.constexpr, FINISH: tl.constexpr,
    FLAG: tl.constexpr, SUM: tl.constexpr, LIFT: tl.constexpr, PER: tl.constexpr, DIVISOR: tl.constexpr,
    MASKED: tl.constexpr, ONTO: tl.constexpr, TAP: tl.constexpr, KEEP_TAP: tl.constexpr, KEEP_STATE: tl.constexpr,
    KEEP_EXACT: tl.constexpr, KEEP_NUMBER: tl.constexpr, INDEX: tl.constexpr, REVERSE: tl.constexpr,
    LAST: tl.constexpr, ND: tl.constexpr, WIDE: tl.constexpr, R: tl.constexpr, T: tl.constexpr,
):  # fmt: skip
    """Each place's running value, and what its gradient needs; T elements of a line are on their way at once."""
    _r, live, _there, sample, c, i0, i1, i2 = lanes(total, 1, channels, sides[0], sides[1], sides[2], LAST, ND, WIDE, R, 0)
    from_x = start_of(sample, c, i0, i1, i2, x_strides)
    from_mask = start_of(sample, c, i0, i1, i2, mask_strides)
    to_y = start_of(sample, c, i0, i1, i2, y_strides)
    across = (i0.to(tl.int64) * flat[0] + i1) * flat[1] + i2
    pv = parameter(p, values, c, tl.zeros((1, 1), tl.float32), PER)
    s = START(tl.zeros((R, 1), tl.float32), pv)
    met = tl.zeros((R, 1), tl.int32)
    none = tl.zeros((R, 1), tl.int32)  # places as tiles: the interpreter makes numbers of single truths
    for base in range(0, n, T):
        loaded = ()
        allowed = ()
        for u in tl.static_range(T):
            t = base + u + none
            i = n - 1 - t if REVERSE else t
            valid = live & (t < n)
            if MASKED:
                valid &= tl.load(mask + from_mask + i * mask_step, mask=valid, other=0) != 0
            allowed = allowed + (valid,)
            loaded = loaded + (tl.load(x + from_x + i * x_step, mask=valid, other=0),)
        for u in tl.static_range(T):
            t = base + u + none
            i = n - 1 - t if REVERSE else t
            valid = allowed[u]
            s = PUSH(s, lifted(loaded[u], eps, LIFT), valid, t, met, pv, FLAG)
            met += valid.to(tl.int32)
            value, a, b = FINISH(s, met, pv, SUM)
            divisor = tl.maximum(met, 1).to(tl.float32)
            if DIVISOR == 1:
                divisor = tl.zeros((R, 1), tl.float32) + fixed
            if DIVISOR >= 0:
                value = value / divisor
            value = tl.where(valid, value, 0.0)
            there = live & (t < n)
            to = to_y + i * y_step
            if ONTO:
                value += tl.load(onto + to, mask=there, other=0).to(tl.float32)
            tl.store(y + to, value.to(y.dtype.element_ty), mask=there)
            if KEEP_TAP:
                tl.store(kept + to, (valid & (s[1] == t)).to(kept.dtype.element_ty), mask=there)
            if INDEX:
                at = n - 1 - s[1] if REVERSE else s[1]
                tl.store(index + to, tl.where(valid, across + at.to(tl.int64) * flat_step, -1), mask=there)
            if KEEP_STATE:
                tl.store(first + to, a, mask=there)
                tl.store(second + to, b, mask=there)
            if KEEP_EXACT:
                tl.store(exact + to, value, mask=there)
            if KEEP_NUMBER:
                tl.store(number + to, divisor, mask=there)


@triton.jit
def unrun(
    x, mask, grad, y, kept, first, second, number, dx,
    values, p, eps, fixed,
    total, channels, n, sides, x_strides, mask_strides, grad_strides, y_strides, x_step, mask_step, grad_step, y_step,
    SPREAD: tl.constexpr,
    FLAG: tl.constexpr, SUM: tl.constexpr, LIFT: tl.constexpr, PER: tl.constexpr, DIVISOR: tl.constexpr,
    MASKED: tl.constexpr, TAP: tl.constexpr, KEEP_STATE: tl.constexpr, KEEP_NUMBER: tl.constexpr, REVERSE: tl.constexpr,
    LAST: tl.constexpr, ND: tl.constexpr, WIDE: tl.constexpr, R: tl.constexpr, T: tl.constexpr,
):  # fmt: skip
    """The input's gradient, from the last window of a line to its first: what later windows give is carried along."""
    _r, live, _there, sample, c, i0, i1, i2 = lanes(total, 1, channels, sides[0], sides[1], sides[2], LAST, ND, WIDE, R, 0)
    from_x = start_of(sample, c, i0, i1, i2, x_strides)
    from_mask = start_of(sample, c, i0, i1, i2, mask_strides)
    from_grad = start_of(sample, c, i0, i1, i2, grad_strides)
    to_y = start_of(sample, c, i0, i1, i2, y_strides)
    pv = parameter(p, values, c, tl.zeros((1, 1), tl.float32), PER)
    s = none_spread(tl.zeros((R, 1), tl.float32))
    none = tl.zeros((R, 1), tl.int32)
    for base in range(0, n, T):
        gains = ()
        places = ()
        for u in tl.static_range(T):
            t = n - 1 - base - u + none
            i = n - 1 - t if REVERSE else t
            valid = live & (t >= 0)
            if MASKED:
                valid &= tl.load(mask + from_mask + i * mask_step, mask=valid, other=0) != 0
            places = places + (valid,)
            gains = gains + (tl.load(grad + from_grad + i * grad_step, mask=valid, other=0).to(tl.float32),)
        for u in tl.static_range(T):
            t = n - 1 - base - u + none
            i = n - 1 - t if REVERSE else t
            valid = places[u]
            to = to_y + i * y_step
            if TAP:
                total_gain = s[0] + gains[u]
                won = tl.load(kept + to, mask=valid, other=0) != 0
                result = tl.where(won, total_gain, 0.0)
                s = (tl.where(won, 0.0, total_gain), s[1], s[2], s[3])
            else:
                if KEEP_NUMBER:
                    number_here = tl.load(number + to, mask=valid, other=1)
                elif DIVISOR == 1:
                    number_here = tl.zeros((R, 1), tl.float32) + fixed
                else:
                    number_here = tl.zeros((R, 1), tl.float32) + tl.maximum(t + 1, 1)
                v = tl.zeros((R, 1), tl.float32)
                value = v
                a = v
                b = v
                if KEEP_STATE:
                    v = tl.load(x + from_x + i * x_step, mask=valid, other=0).to(tl.float32)
                    value = tl.load(y + to, mask=valid, other=0)
                    a = tl.load(first + to, mask=valid, other=0)
                    b = tl.load(second + to, mask=valid, other=0)
                s, result = SPREAD(s, gains[u], lifted(v, eps, LIFT), value, a, b, number_here, valid, pv, FLAG, SUM)
                if LIFT == 1:
                    result = tl.where(v < 0, -result, tl.where(v == 0, 0.0, result))
                elif LIFT == 2:
                    result = tl.where(v < eps, 0.0, result)
                result = tl.where(valid, result, 0.0)
            tl.store(dx + to, result.to(dx.dtype.element_ty), mask=live & (t >= 0))


@triton.jit
def sweep(
    x, mask, onto, y, kept, number, index,
    fixed,
    total, channels, n, sides, flat, x_strides, mask_strides, y_strides, mask_step, flat_step,
    SCAN: tl.constexpr, JOIN: tl.constexpr, START: tl.constexpr, LEAF: tl.constexpr, FINISH: tl.constexpr,
    FLAG: tl.constexpr, DIVISOR: tl.constexpr,
    MASKED: tl.constexpr, ONTO: tl.constexpr, KEEP_TAP: tl.constexpr, KEEP_NUMBER: tl.constexpr, INDEX: tl.constexpr,
    REVERSE: tl.constexpr,
    LAST: tl.constexpr, ND: tl.constexpr, WIDE: tl.constexpr, R: tl.constexpr, T: tl.constexpr,
):  # fmt: skip
    """`run` along memory: a block of T elements of each line at once."""
    _r, live, _there, sample, c, i0, i1, i2 = lanes(total, 1, channels, sides[0], sides[1], sides[2], LAST, ND, WIDE, R, 0)
    from_x = start_of(sample, c, i0, i1, i2, x_strides)
    from_mask = start_of(sample, c, i0, i1, i2, mask_strides)
    to_y = start_of(sample, c, i0, i1, i2, y_strides)
    across = (i0.to(tl.int64) * flat[0] + i1) * flat[1] + i2
    nothing = tl.zeros((R, 1), tl.float32)
    carry = START(nothing, nothing)
    met = tl.zeros((R, 1), tl.int32)
    column = tl.arange(0, T)[None, :]
    blocks = tl.cdiv(n, T)
    for block in range(0, blocks):
        i = (blocks - 1 - block if REVERSE else block) * T + column
        there = live & (i < n)
        valid = there
        if MASKED:
            valid &= tl.load(mask + from_mask + i * mask_step, mask=valid, other=0) != 0
        v = tl.load(x + from_x + i, mask=valid, other=0).to(tl.float32)
        s = JOIN(carry, SCAN(LEAF(v, valid, i), REVERSE, FLAG), FLAG)
        count = met + tl.cumsum(valid.to(tl.int32), 1, reverse=REVERSE)
        value = FINISH(s, count, 1.0, False)[0]
        divisor = tl.maximum(count, 1).to(tl.float32)
        if DIVISOR == 1:
            divisor = tl.zeros((R, T), tl.float32) + fixed
        if DIVISOR >= 0:
            value = value / divisor
        value = tl.where(valid, value, 0.0)
        to = to_y + i
        if ONTO:
            value += tl.load(onto + to, mask=there, other=0).to(tl.float32)
        tl.store(y + to, value.to(y.dtype.element_ty), mask=there)
        if KEEP_TAP:
            tl.store(kept + to, (valid & (s[1] == i)).to(kept.dtype.element_ty), mask=there)
        if INDEX:
            tl.store(index + to, tl.where(valid, across + s[1].to(tl.int64) * flat_step, -1), mask=there)
        if KEEP_NUMBER:
            tl.store(number + to, divisor, mask=there)
        end = column == (0 if REVERSE else T - 1)
        carry = (
            tl.sum(tl.where(end, s[0], tl.zeros_like(s[0])), 1, keep_dims=True),
            tl.sum(tl.where(end, s[1], tl.zeros_like(s[1])), 1, keep_dims=True),
        )
        met = tl.sum(tl.where(end, count, 0), 1, keep_dims=True)


@triton.jit
def since(gain, fresh, more, reset):
    """Sums of segments: what `more` adds, from the start where it begins a segment."""
    return tl.where(reset, more, gain + more), fresh | reset


@triton.jit
def unsweep(
    mask, grad, kept, number, dx,
    fixed,
    total, channels, n, sides, mask_strides, grad_strides, y_strides, mask_step, grad_step,
    DIVISOR: tl.constexpr,
    MASKED: tl.constexpr, TAP: tl.constexpr, KEEP_NUMBER: tl.constexpr, REVERSE: tl.constexpr,
    LAST: tl.constexpr, ND: tl.constexpr, WIDE: tl.constexpr, R: tl.constexpr, T: tl.constexpr,
):  # fmt: skip
    """`unrun` along memory, for a maximum or a mean: sums from the end of a line, for a maximum from one winner to the next."""
    _r, live, _there, sample, c, i0, i1, i2 = lanes(total, 1, channels, sides[0], sides[1], sides[2], LAST, ND, WIDE, R, 0)
    from_mask = start_of(sample, c, i0, i1, i2, mask_strides)
    from_grad = start_of(sample, c, i0, i1, i2, grad_strides)
    to_y = start_of(sample, c, i0, i1, i2, y_strides)
    carry = tl.zeros((R, 1), tl.float32)
    column = tl.arange(0, T)[None, :]
    blocks = tl.cdiv(n, T)
    for block in range(0, blocks):
        i = (block if REVERSE else blocks - 1 - block) * T + column
        there = live & (i < n)
        valid = there
        if MASKED:
            valid &= tl.load(mask + from_mask + i * mask_step, mask=valid, other=0) != 0
        g = tl.load(grad + from_grad + i * grad_step, mask=valid, other=0).to(tl.float32)
        to = to_y + i
        if TAP:
            won = tl.load(kept + to, mask=there, other=0) != 0
            later = i - 1 if REVERSE else i + 1
            # the window after this place begins anew where a winner of its own stands
            reset = tl.load(kept + to_y + later, mask=live & (later >= 0) & (later < n), other=0) != 0
            gain, fresh = tl.associative_scan((g, reset), 1, since, reverse=not REVERSE)
            gain = tl.where(fresh, gain, gain + carry)
            result = tl.where(won, gain, 0.0)
        else:
            if KEEP_NUMBER:
                g = g / tl.load(number + to, mask=valid, other=1)
            elif DIVISOR == 1:
                g = g / fixed
            else:
                g = g / tl.maximum(n - i if REVERSE else i + 1, 1).to(tl.float32)
            gain = carry + tl.cumsum(g, 1, reverse=not REVERSE)
            result = tl.where(valid, gain, 0.0)
        tl.store(dx + to, result.to(dx.dtype.element_ty), mask=there)
        end = column == (T - 1 if REVERSE else 0)
        carry = tl.sum(tl.where(end, gain, 0.0), 1, keep_dims=True)
