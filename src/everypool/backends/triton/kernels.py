"""The skeleton of windows that are a product of axes: forward, the gradient of the input, the slope of the parameter.

A lane is an element of what is written, in the order of its memory, so that results of either memory format are written
side by side. The windows along an axis are arithmetic on a few numbers, or tables where samples differ in size. Gradients
are gathered: a lane asks each window that holds its element, so nothing is added to by two lanes, and the order of all
sums is fixed.
"""

from __future__ import annotations

import triton
import triton.language as tl

from everypool.backends.triton.grid import BINS, FULL, KEEP, SLIDE, WHOLE

__all__ = ["fold", "lanes", "lifted", "middle", "parameter", "share", "slope", "start_of"]

_KEEP, _SLIDE, _FULL = tl.constexpr(KEEP), tl.constexpr(SLIDE), tl.constexpr(FULL)
_BINS, _WHOLE = tl.constexpr(BINS), tl.constexpr(WHOLE)
ABSOLUTE, CLAMP = tl.constexpr(1), tl.constexpr(2)
CHANNEL = tl.constexpr(2)


@triton.jit
def span(o, row, axis, starts, counts, KIND: tl.constexpr):
    """The first element of window o along an axis (n, out, stride, left, kernel, step, rows), and how many it holds."""
    n, out, stride, left, kernel, step, rows = axis
    if KIND == _KEEP:
        return o, o * 0 + 1
    elif KIND == _WHOLE:
        return o * 0, o * 0 + n
    elif KIND == _FULL:
        return o * stride, o * 0 + kernel
    elif KIND == _SLIDE:
        at = o * stride - left
        skipped = tl.where(at < 0, (step - 1 - at) // step, 0)
        first = at + skipped * step
        fitting = tl.where(first < n, (n - 1 - first) // step + 1, 0)
        return first, tl.maximum(tl.minimum(kernel - skipped, fitting), 0)
    elif KIND == _BINS:
        first = o * n // out
        return first, ((o + 1) * n + out - 1) // out - first
    else:
        place = row * rows + tl.minimum(o, out - 1)
        return tl.load(starts + place).to(o.dtype), tl.load(counts + place).to(o.dtype)


@triton.jit
def holders(i, row, axis, lows, highs, KIND: tl.constexpr, STRIDE: tl.constexpr):
    """The first and the last window that may hold element i along an axis; STRIDE is that of sliding windows, if small."""
    n, out, stride, left, kernel, step, rows = axis
    if KIND == _KEEP:
        return i, i
    elif KIND == _WHOLE:
        return i * 0, i * 0
    elif KIND == _SLIDE or KIND == _FULL:  # noqa: SIM109 - Triton has no `in`
        late = tl.maximum(i + left - (kernel - 1) * step, 0)
        if STRIDE > 0:  # a division by what is known costs a tenth
            return (late + STRIDE - 1) // STRIDE, tl.minimum((i + left) // STRIDE, out - 1)
        else:
            return (late + stride - 1) // stride, tl.minimum((i + left) // stride, out - 1)
    elif KIND == _BINS:
        return i * out // n, ((i + 1) * out - 1) // n
    else:
        place = row * (rows // out) * n + tl.minimum(i, n - 1)
        return tl.load(lows + place).to(i.dtype), tl.load(highs + place).to(i.dtype)


@triton.jit
def lanes(
    rows, blocks, channels, n0, n1, n2,
    LAST: tl.constexpr, ND: tl.constexpr, WIDE: tl.constexpr, R: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """A tile of R rows by C of what lies along memory: place of each element, which there are, sample, channel, position.

    Whatever only a row or only a column decides is a tile of one column or one row: divisions are made once for many
    elements. With C = 0 every row is one element. Of rows beyond the last the sample is none that exists.
    """
    program = tl.program_id(0)
    row = (program // blocks).to(tl.int64) * R + tl.arange(0, R)[:, None]
    there = row < rows
    if not WIDE:
        row = row.to(tl.int32)
    rest = row
    none = row * 0
    c, i1, i0 = none, none, none
    if C > 0:
        column = (program % blocks) * C + tl.arange(0, C)[None, :]
        if WIDE:
            column = column.to(tl.int64)
        if LAST:
            c, inner = column, channels
            i2, rest = rest % n2, rest // n2
        else:
            i2, inner = column, n2
        live = there & (column < inner)
        place = row * inner + column
    else:
        if LAST:
            c, rest = rest % channels, rest // channels
        i2, rest = rest % n2, rest // n2
        live = there
        place = row
    if ND > 1:
        i1, rest = rest % n1, rest // n1
    if ND > 2:
        i0, rest = rest % n0, rest // n0
    if not LAST:
        c, rest = rest % channels, rest // channels
    return place, live, there, rest, c, i0, i1, i2


@triton.jit
def start_of(sample, c, i0, i1, i2, strides):
    """Where an element lies in memory."""
    return sample * strides[0] + c * strides[1] + i0 * strides[2] + i1 * strides[3] + i2 * strides[4]


@triton.jit
def opened(
    row, sample, c, o0, o1, o2, axis0, axis1, axis2, x_strides, mask_strides, s0, c0, s1, c1, s2, c2,
    KIND0: tl.constexpr, KIND1: tl.constexpr, KIND2: tl.constexpr,
):  # fmt: skip
    """A window's first element and how many it holds, along each axis; and where that element and its mask lie."""
    f0, m0 = span(o0, row, axis0, s0, c0, KIND0)
    f1, m1 = span(o1, row, axis1, s1, c1, KIND1)
    f2, m2 = span(o2, row, axis2, s2, c2, KIND2)
    return f0, m0, f1, m1, f2, m2, start_of(sample, c, f0, f1, f2, x_strides), start_of(sample, c, f0, f1, f2, mask_strides)


@triton.jit
def lifted(x, eps, LIFT: tl.constexpr):
    """The element as the reducer takes it."""
    x = x.to(tl.float32)
    if LIFT == ABSOLUTE:
        return tl.abs(x)
    elif LIFT == CLAMP:
        return tl.where(x < eps, eps, x)
    else:
        return x


@triton.jit
def parameter(p, values, c, like, PER: tl.constexpr):
    """The reducer's parameter, one for all or one for each of `c`; `like` is a tile of zeros that it may fill."""
    if PER == CHANNEL:
        return tl.load(values + c).to(tl.float32)
    elif PER == 1:
        return tl.load(values).to(tl.float32) + like
    else:
        return p + like


@triton.jit
def cells(row, o, extents, rows, out):
    """How many cells window o has along an axis, those of explicit padding too."""
    return tl.load(extents + row * rows + tl.minimum(o, out - 1)).to(tl.float32)


@triton.jit
def fold(
    x, mask, y, exact, kept, first, second, number, index,
    values, p, eps, fixed,
    rows, blocks, channels, axis0, axis1, axis2, x_strides, mask_strides,
    s0, c0, s1, c1, s2, c2, e0, e1, e2, e0_rows, e1_rows, e2_rows,
    k0, k1, k2,
    START: tl.constexpr, PUSH: tl.constexpr, OVER: tl.constexpr, FINISH: tl.constexpr,
    FLAG: tl.constexpr, SUM: tl.constexpr, LIFT: tl.constexpr, PER: tl.constexpr, DIVISOR: tl.constexpr,
    KIND0: tl.constexpr, KIND1: tl.constexpr, KIND2: tl.constexpr,
    TAPS0: tl.constexpr, TAPS1: tl.constexpr, TAPS2: tl.constexpr,
    MASKED: tl.constexpr, OWN: tl.constexpr, TAP: tl.constexpr, KEEP_TAP: tl.constexpr, KEEP_STATE: tl.constexpr,
    KEEP_EXACT: tl.constexpr, KEEP_NUMBER: tl.constexpr, INDEX: tl.constexpr,
    LAST: tl.constexpr, ND: tl.constexpr, WIDE: tl.constexpr, R: tl.constexpr, C: tl.constexpr, T: tl.constexpr,
):  # fmt: skip
    """Each window's value, and what its gradient needs."""
    _n0, out0, _, _, _, d0, _ = axis0
    n1, out1, _, _, _, d1, _ = axis1
    n2, out2, _, _, _, d2, _ = axis2
    r, live, there, sample, c, o0, o1, o2 = lanes(rows, blocks, channels, out0, out1, out2, LAST, ND, WIDE, R, C)
    row = tl.where(there, sample, 0)
    _xn, _xc, x0, x1, x2 = x_strides
    _mn, _mc, v0, v1, v2 = mask_strides
    f0, m0, f1, m1, f2, m2, at, seen = opened(
        row, sample, c, o0, o1, o2, axis0, axis1, axis2, x_strides, mask_strides, s0, c0, s1, c1, s2, c2, KIND0, KIND1, KIND2
    )
    pv = parameter(p, values, tl.minimum(c, channels - 1), tl.zeros((1, 1), tl.float32), PER)
    exists = live
    if OWN:
        exists &= tl.load(mask + start_of(sample, c, o0, o1, o2, mask_strides), mask=live, other=0) != 0
    if C > 0:
        s = START(tl.zeros((R, C), tl.float32), pv)
        n = tl.zeros((R, C), tl.int32)
        for t0 in tl.static_range(TAPS0):
            for t1 in tl.static_range(TAPS1):
                for t2 in tl.static_range(TAPS2):
                    valid = exists
                    if KIND0 == _SLIDE or KIND0 > _FULL:
                        valid &= t0 < m0
                    if KIND1 == _SLIDE or KIND1 > _FULL:
                        valid &= t1 < m1
                    if KIND2 == _SLIDE or KIND2 > _FULL:
                        valid &= t2 < m2
                    if MASKED:
                        valid &= tl.load(mask + seen + t0 * d0 * v0 + t1 * d1 * v1 + t2 * d2 * v2, mask=valid, other=0) != 0
                    v = tl.load(x + at + t0 * d0 * x0 + t1 * d1 * x1 + t2 * d2 * x2, mask=valid, other=0)
                    e = (t0 * TAPS1 + t1) * TAPS2 + t2
                    s = PUSH(s, lifted(v, eps, LIFT), valid, e, n, pv, FLAG)
                    n += valid.to(tl.int32)
    else:
        s = START(tl.zeros((R, T), tl.float32), pv)
        n = tl.zeros((R, T), tl.int32)
        for base in range(0, k0 * k1 * k2, T):
            e = base + tl.arange(0, T)[None, :]
            t2 = e % k2
            t1 = (e // k2) % k1
            t0 = e // (k2 * k1)
            valid = exists & (t0 < m0) & (t1 < m1) & (t2 < m2)
            if MASKED:
                away = t0 * (d0 * v0) + t1 * (d1 * v1) + t2 * (d2 * v2)
                valid &= tl.load(mask + seen + away, mask=valid, other=0) != 0
            away = t0 * (d0 * x0) + t1 * (d1 * x1) + t2 * (d2 * x2)
            v = tl.load(x + at + away, mask=valid, other=0)
            s = PUSH(s, lifted(v, eps, LIFT), valid, e, n, pv, FLAG)
            n += valid.to(tl.int32)
        s = OVER(s, n, pv, FLAG)
        n = tl.sum(n, 1, keep_dims=True)
    value, a, b = FINISH(s, n, pv, SUM)
    divisor = n.to(tl.float32)
    if DIVISOR == 1:
        divisor = divisor * 0 + fixed
    elif DIVISOR == 2:
        divisor = divisor * 0 + 1
        if ND > 2:
            divisor = divisor * cells(row, o0, e0, e0_rows, out0)
        if ND > 1:
            divisor = divisor * cells(row, o1, e1, e1_rows, out1)
        divisor = divisor * cells(row, o2, e2, e2_rows, out2)
        if MASKED:  # elements that the mask takes away are no cells
            divisor = divisor - (m0 * m1 * m2 - n).to(tl.float32)
    if DIVISOR >= 0:
        divisor = tl.where(divisor == 0, 1.0, divisor)
        value = value / divisor
    value = tl.where(n > 0, value, 0.0)
    tl.store(y + r, value.to(y.dtype.element_ty), mask=live)
    if TAP:
        e = tl.where(n > 0, s[1], -1)
        if KEEP_TAP:
            tl.store(kept + r, e.to(kept.dtype.element_ty), mask=live)
        if INDEX:
            t2 = e % k2
            t1 = (e // k2) % k1
            t0 = e // (k2 * k1)
            position = ((f0 + t0 * d0).to(tl.int64) * n1 + f1 + t1 * d1) * n2 + f2 + t2 * d2
            tl.store(index + r, tl.where(e < 0, -1, position), mask=live)
    if KEEP_STATE:
        tl.store(first + r, a, mask=live)
        tl.store(second + r, b, mask=live)
    if KEEP_EXACT:
        tl.store(exact + r, value, mask=live)
    if KEEP_NUMBER:
        tl.store(number + r, divisor, mask=live)


@triton.jit
def middle(
    x, mask, y, kept, first,
    rows, blocks, channels, axis0, axis1, axis2, x_strides, mask_strides,
    s0, c0, s1, c1, s2, c2,
    k0, k1, k2,
    UPPER: tl.constexpr, BOTH: tl.constexpr, BACKWARDS: tl.constexpr,
    KIND0: tl.constexpr, KIND1: tl.constexpr, KIND2: tl.constexpr,
    MASKED: tl.constexpr, OWN: tl.constexpr, KEEP_TAP: tl.constexpr,
    LAST: tl.constexpr, ND: tl.constexpr, WIDE: tl.constexpr, R: tl.constexpr, C: tl.constexpr, T: tl.constexpr,
):  # fmt: skip
    """Each window's value in the middle of the order, among equals the first met, and which element it is: of T at most.

    What is put in order is one number of the value's bits, whose order as an integer is that of the values with NaN last,
    and of the element's place in the window.
    """
    _n0, out0, _, _, _, d0, _ = axis0
    _n1, out1, _, _, _, d1, _ = axis1
    _n2, out2, _, _, _, d2, _ = axis2
    r, live, there, sample, c, o0, o1, o2 = lanes(rows, blocks, channels, out0, out1, out2, LAST, ND, WIDE, R, C)
    row = tl.where(there, sample, 0)
    _xn, _xc, x0, x1, x2 = x_strides
    _mn, _mc, v0, v1, v2 = mask_strides
    _, m0, _, m1, _, m2, at, seen = opened(
        row, sample, c, o0, o1, o2, axis0, axis1, axis2, x_strides, mask_strides, s0, c0, s1, c1, s2, c2, KIND0, KIND1, KIND2
    )
    exists = live
    if OWN:
        exists &= tl.load(mask + start_of(sample, c, o0, o1, o2, mask_strides), mask=live, other=0) != 0
    e = tl.arange(0, T)[None, :]
    t2 = e % k2
    t1 = (e // k2) % k1
    t0 = e // (k2 * k1)
    valid = exists & (t0 < m0) & (t1 < m1) & (t2 < m2)
    if MASKED:
        away = t0 * (d0 * v0) + t1 * (d1 * v1) + t2 * (d2 * v2)
        valid &= tl.load(mask + seen + away, mask=valid, other=0) != 0
    away = t0 * (d0 * x0) + t1 * (d1 * x1) + t2 * (d2 * x2)
    v = tl.load(x + at + away, mask=valid, other=0).to(tl.float32)
    bits = tl.where(v == 0, 0.0, v).to(tl.int32, bitcast=True)
    bits = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    odd = valid & (v != v)
    bits = tl.where(odd, 0x7FFFFFFE, bits)
    bits = tl.where(valid, bits, 0x7FFFFFFF)
    place = T - 1 - e if BACKWARDS else e
    order = tl.sort(bits.to(tl.int64) * 65536 + place, 1)
    n = tl.sum(valid.to(tl.int32), 1, keep_dims=True)
    strange = tl.max(odd.to(tl.int32), 1, keep_dims=True) > 0
    rank = tl.where(strange, n - 1, (n - 1 + UPPER) // 2)
    tap = (tl.sum(tl.where(e == rank, order, 0), 1, keep_dims=True) & 65535).to(tl.int32)
    tap = T - 1 - tap if BACKWARDS else tap
    value = tl.sum(tl.where(e == tap, v, 0.0), 1, keep_dims=True)
    tap = tl.where(n > 0, tap, -1)
    if BOTH:
        rank = tl.where(strange, n - 1, n // 2)
        above = (tl.sum(tl.where(e == rank, order, 0), 1, keep_dims=True) & 65535).to(tl.int32)
        above = T - 1 - above if BACKWARDS else above
        upper = tl.sum(tl.where(e == above, v, 0.0), 1, keep_dims=True)
        same = (upper == value) | (n == 0)
        value = tl.where(same, value, value / 2 + upper / 2)
        if KEEP_TAP:
            tl.store(first + r, tl.where(same, tap, above).to(first.dtype.element_ty), mask=live)
    tl.store(y + r, tl.where(n > 0, value, 0.0).to(y.dtype.element_ty), mask=live)
    if KEEP_TAP:
        tl.store(kept + r, tap.to(kept.dtype.element_ty), mask=live)


@triton.jit
def within(i, o, low, row, axis, starts, counts, KIND: tl.constexpr):
    """Whether window o holds element i along an axis, as which of its elements, and how many it holds."""
    step = axis[5]
    first, many = span(tl.maximum(o, low), row, axis, starts, counts, KIND)
    if KIND == _KEEP:
        return o >= low, i * 0, many
    away = i - first
    return (o >= low) & (away >= 0) & (away % step == 0) & (away // step < many), away // step, many


@triton.jit
def given(
    grad, y, kept, first, second, number,
    a, exists, row, sample, c, i0, i1, i2, o0, o1, o2, low0, low1, low2, pv, fixed,
    axis0, axis1, axis2, grad_strides, out_strides, s0, c0, s1, c1, s2, c2, e0, e1, e2, e0_rows, e1_rows, e2_rows, k1, k2,
    SHARE: tl.constexpr, FLAG: tl.constexpr, SUM: tl.constexpr, DIVISOR: tl.constexpr,
    KIND0: tl.constexpr, KIND1: tl.constexpr, KIND2: tl.constexpr,
    TAP: tl.constexpr, BOTH: tl.constexpr, KEEP_STATE: tl.constexpr, KEEP_NUMBER: tl.constexpr, ND: tl.constexpr,
):  # fmt: skip
    """What one window gives each element, if it holds it."""
    in0, t0, m0 = within(i0, o0, low0, row, axis0, s0, c0, KIND0)
    in1, t1, m1 = within(i1, o1, low1, row, axis1, s1, c1, KIND1)
    in2, t2, m2 = within(i2, o2, low2, row, axis2, s2, c2, KIND2)
    valid = exists & in0 & in1 & in2
    g = tl.load(grad + start_of(sample, c, o0, o1, o2, grad_strides), mask=valid, other=0).to(tl.float32)
    at = start_of(sample, c, o0, o1, o2, out_strides)
    if TAP:
        e = (t0 * k1 + t1) * k2 + t2
        won = tl.load(kept + at, mask=valid, other=0)
        part = tl.where(won == e.to(won.dtype), g, 0.0)
        if BOTH:
            other = tl.load(first + at, mask=valid, other=0)
            part = (part + tl.where(other == e.to(other.dtype), g, 0.0)) / 2
        return tl.where(valid, part, 0.0)
    if KEEP_NUMBER:
        n = tl.load(number + at, mask=valid, other=1)
    elif DIVISOR == 1:
        n = tl.zeros((1, 1), tl.float32) + fixed
    elif DIVISOR == 2:
        n = cells(row, tl.maximum(o2, 0), e2, e2_rows, axis2[1])
        if ND > 1:
            n = n * cells(row, tl.maximum(o1, 0), e1, e1_rows, axis1[1])
        if ND > 2:
            n = n * cells(row, tl.maximum(o0, 0), e0, e0_rows, axis0[1])
    else:
        n = (m0 * m1 * m2).to(tl.float32)
    n = tl.where(n == 0, 1.0, n)
    if KEEP_STATE:
        value = tl.load(y + at, mask=valid, other=0)
        heavy = tl.load(first + at, mask=valid, other=0)
        total = tl.load(second + at, mask=valid, other=0)
        got = SHARE(a, value, heavy, total, n, pv, FLAG, SUM)
    else:
        got = SHARE(a, a, a, a, n, pv, FLAG, SUM)
    return tl.where(valid, g * got, 0.0)


@triton.jit
def share(
    x, mask, grad, y, kept, first, second, number, dx,
    values, p, eps, fixed,
    rows, blocks, channels, axis0, axis1, axis2, x_strides, mask_strides, grad_strides, out_strides,
    s0, c0, s1, c1, s2, c2, l0, h0, l1, h1, l2, h2, e0, e1, e2, e0_rows, e1_rows, e2_rows,
    k1, k2,
    SHARE: tl.constexpr, HOLD0: tl.constexpr, HOLD1: tl.constexpr, HOLD2: tl.constexpr,
    STRIDE0: tl.constexpr, STRIDE1: tl.constexpr, STRIDE2: tl.constexpr,
    FLAG: tl.constexpr, SUM: tl.constexpr, LIFT: tl.constexpr, PER: tl.constexpr, DIVISOR: tl.constexpr,
    KIND0: tl.constexpr, KIND1: tl.constexpr, KIND2: tl.constexpr,
    MASKED: tl.constexpr, TAP: tl.constexpr, BOTH: tl.constexpr, KEEP_STATE: tl.constexpr, KEEP_NUMBER: tl.constexpr,
    LAST: tl.constexpr, ND: tl.constexpr, WIDE: tl.constexpr, R: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """The input's gradient: what each element gets from every window that holds it, at most HOLD along each axis.

    With HOLD = 0 that many are not known before, and the most of a tile decides.
    """
    n0, n1, n2 = axis0[0], axis1[0], axis2[0]
    r, live, there, sample, c, i0, i1, i2 = lanes(rows, blocks, channels, n0, n1, n2, LAST, ND, WIDE, R, C)
    row = tl.where(there, sample, 0)
    exists = live
    if MASKED:
        exists &= tl.load(mask + start_of(sample, c, i0, i1, i2, mask_strides), mask=live, other=0) != 0
    pv = parameter(p, values, tl.minimum(c, channels - 1), tl.zeros((1, 1), tl.float32), PER)
    result = tl.zeros((R, C), tl.float32)
    v = result
    if KEEP_STATE or LIFT > 0:
        v = tl.load(x + start_of(sample, c, i0, i1, i2, x_strides), mask=live, other=0).to(tl.float32)
    a = lifted(v, eps, LIFT)
    low0, high0 = holders(i0, row, axis0, l0, h0, KIND0, STRIDE0)
    low1, high1 = holders(i1, row, axis1, l1, h1, KIND1, STRIDE1)
    low2, high2 = holders(i2, row, axis2, l2, h2, KIND2, STRIDE2)
    if HOLD0 > 0:
        for t0 in tl.static_range(HOLD0):
            for t1 in tl.static_range(HOLD1):
                for t2 in tl.static_range(HOLD2):
                    result += given(
                        grad, y, kept, first, second, number,
                        a, exists, row, sample, c, i0, i1, i2, high0 - t0, high1 - t1, high2 - t2, low0, low1, low2, pv, fixed,
                        axis0, axis1, axis2, grad_strides, out_strides, s0, c0, s1, c1, s2, c2,
                        e0, e1, e2, e0_rows, e1_rows, e2_rows, k1, k2,
                        SHARE, FLAG, SUM, DIVISOR, KIND0, KIND1, KIND2, TAP, BOTH, KEEP_STATE, KEEP_NUMBER, ND,
                    )  # fmt: skip
    else:
        for t0 in range(0, tl.max(tl.max(high0 - low0, 1), 0) + 1):
            for t1 in range(0, tl.max(tl.max(high1 - low1, 1), 0) + 1):
                for t2 in range(0, tl.max(tl.max(high2 - low2, 1), 0) + 1):
                    result += given(
                        grad, y, kept, first, second, number,
                        a, exists, row, sample, c, i0, i1, i2, high0 - t0, high1 - t1, high2 - t2, low0, low1, low2, pv, fixed,
                        axis0, axis1, axis2, grad_strides, out_strides, s0, c0, s1, c1, s2, c2,
                        e0, e1, e2, e0_rows, e1_rows, e2_rows, k1, k2,
                        SHARE, FLAG, SUM, DIVISOR, KIND0, KIND1, KIND2, TAP, BOTH, KEEP_STATE, KEEP_NUMBER, ND,
                    )  # fmt: skip
    if LIFT == ABSOLUTE:
        result = tl.where(v < 0, -result, tl.where(v == 0, 0.0, result))
    elif LIFT == CLAMP:
        result = tl.where(v < eps, 0.0, result)
    tl.store(dx + r, result.to(dx.dtype.element_ty), mask=live)


@triton.jit
def slope(
    x, mask, y, first, second, number, result,
    values, p, eps,
    rows, blocks, channels, axis0, axis1, axis2, x_strides, mask_strides,
    s0, c0, s1, c1, s2, c2,
    k0, k1, k2,
    SLOPE: tl.constexpr,
    SUM: tl.constexpr, LIFT: tl.constexpr, PER: tl.constexpr,
    KIND0: tl.constexpr, KIND1: tl.constexpr, KIND2: tl.constexpr,
    MASKED: tl.constexpr, KEEP_NUMBER: tl.constexpr,
    LAST: tl.constexpr, ND: tl.constexpr, WIDE: tl.constexpr, R: tl.constexpr, C: tl.constexpr, T: tl.constexpr,
):  # fmt: skip
    """What each window's value gains with the parameter."""
    _n0, out0, _, _, _, d0, _ = axis0
    _n1, out1, _, _, _, d1, _ = axis1
    _n2, out2, _, _, _, d2, _ = axis2
    r, live, there, sample, c, o0, o1, o2 = lanes(rows, blocks, channels, out0, out1, out2, LAST, ND, WIDE, R, C)
    row = tl.where(there, sample, 0)
    _xn, _xc, x0, x1, x2 = x_strides
    _mn, _mc, v0, v1, v2 = mask_strides
    _, m0, _, m1, _, m2, at, seen = opened(
        row, sample, c, o0, o1, o2, axis0, axis1, axis2, x_strides, mask_strides, s0, c0, s1, c1, s2, c2, KIND0, KIND1, KIND2
    )
    pv = parameter(p, values, tl.minimum(c, channels - 1), tl.zeros((1, 1), tl.float32), PER)
    value = tl.load(y + r, mask=live, other=0)
    a = tl.load(first + r, mask=live, other=0)
    b = tl.load(second + r, mask=live, other=0)
    n = tl.load(number + r, mask=live, other=1) if KEEP_NUMBER else tl.maximum(m0 * m1 * m2, 1).to(tl.float32)
    gained = tl.zeros((R, T), tl.float32)
    for base in range(0, k0 * k1 * k2, T):
        e = base + tl.arange(0, T)[None, :]
        t2 = e % k2
        t1 = (e // k2) % k1
        t0 = e // (k2 * k1)
        valid = live & (t0 < m0) & (t1 < m1) & (t2 < m2)
        if MASKED:
            away = t0 * (d0 * v0) + t1 * (d1 * v1) + t2 * (d2 * v2)
            valid &= tl.load(mask + seen + away, mask=valid, other=0) != 0
        away = t0 * (d0 * x0) + t1 * (d1 * x1) + t2 * (d2 * x2)
        v = lifted(tl.load(x + at + away, mask=valid, other=0), eps, LIFT)
        gained += tl.where(valid, SLOPE(v, value, a, b, n, pv, SUM), 0.0)
    tl.store(result + r, tl.sum(gained, 1, keep_dims=True), mask=live)
