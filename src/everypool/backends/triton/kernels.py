"""The skeleton of windows that are a product of axes: forward, the gradient of the input, the slope of the parameter.

A lane is an element of what is written, in the order of its memory, so that results of either memory format are written
side by side. The windows along an axis are arithmetic on a few numbers, or tables where samples differ in size. Gradients
are gathered: a lane asks each window that holds its element, so nothing is added to by two lanes, and the order of all
sums is fixed.
"""

from __future__ import annotations

import triton
import triton.language as tl

from everypool.backends.triton.grid import BINS, KEEP, SLIDE

__all__ = ["fold", "lanes", "lifted", "parameter", "share", "slope", "start_of"]

_KEEP, _SLIDE, _BINS = tl.constexpr(KEEP), tl.constexpr(SLIDE), tl.constexpr(BINS)
ABSOLUTE, CLAMP = tl.constexpr(1), tl.constexpr(2)
CHANNEL = tl.constexpr(2)


@triton.jit
def span(o, row, axis, starts, counts, KIND: tl.constexpr):
    """The first element of window o along an axis (n, out, stride, left, kernel, step, rows), and how many it holds."""
    n, out, stride, left, kernel, step, rows = axis
    if KIND == _KEEP:
        return o, o * 0 + 1
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
        place = row * rows + o
        return tl.load(starts + place).to(o.dtype), tl.load(counts + place).to(o.dtype)


@triton.jit
def holders(i, row, axis, lows, highs, KIND: tl.constexpr):
    """The first and the last window that may hold element i along an axis."""
    n, out, stride, left, kernel, step, rows = axis
    if KIND == _KEEP:
        return i, i
    elif KIND == _SLIDE:
        late = i + left - (kernel - 1) * step
        return tl.where(late > 0, (late + stride - 1) // stride, 0), tl.minimum((i + left) // stride, out - 1)
    elif KIND == _BINS:
        return i * out // n, ((i + 1) * out - 1) // n
    else:
        place = row * (rows // out) * n + i
        return tl.load(lows + place).to(i.dtype), tl.load(highs + place).to(i.dtype)


@triton.jit
def lanes(
    total, channels, n0, n1, n2, LAST: tl.constexpr, ND: tl.constexpr, WIDE: tl.constexpr, R: tl.constexpr
):  # fmt: skip
    """Number of each lane's element in memory, whether there is one, its sample, channel and position.

    Of lanes beyond the last the sample is none that exists: a table of samples is asked with the mask, or with `sample_in`.
    """
    r = tl.program_id(0).to(tl.int64) * R + tl.arange(0, R)
    live = r < total
    if not WIDE:
        r = r.to(tl.int32)
    rest = r
    c = r * 0
    if LAST:
        c, rest = rest % channels, rest // channels
    i2, rest = rest % n2, rest // n2
    i1 = r * 0
    i0 = r * 0
    if ND > 1:
        i1, rest = rest % n1, rest // n1
    if ND > 2:
        i0, rest = rest % n0, rest // n0
    if not LAST:
        c, rest = rest % channels, rest // channels
    return r, live, rest, c, i0, i1, i2


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
    """The reducer's parameter for each lane."""
    if PER == CHANNEL:
        return tl.load(values + c).to(tl.float32)
    elif PER == 1:
        return tl.load(values).to(tl.float32) + like
    else:
        return p + like


@triton.jit
def cells(row, o, extents, rows):
    """How many cells window o has along an axis, those of explicit padding too."""
    return tl.load(extents + row * rows + o).to(tl.float32)


@triton.jit
def fold(
    x, mask, y, exact, kept, first, second, number, index,
    values, p, eps, fixed,
    total, channels, axis0, axis1, axis2, x_strides, mask_strides,
    s0, c0, s1, c1, s2, c2, e0, e1, e2, e0_rows, e1_rows, e2_rows,
    k0, k1, k2,
    START: tl.constexpr, PUSH: tl.constexpr, OVER: tl.constexpr, FINISH: tl.constexpr,
    FLAG: tl.constexpr, SUM: tl.constexpr, LIFT: tl.constexpr, PER: tl.constexpr, DIVISOR: tl.constexpr,
    KIND0: tl.constexpr, KIND1: tl.constexpr, KIND2: tl.constexpr,
    TAPS0: tl.constexpr, TAPS1: tl.constexpr, TAPS2: tl.constexpr,
    MASKED: tl.constexpr, TAP: tl.constexpr, KEEP_TAP: tl.constexpr, KEEP_STATE: tl.constexpr,
    KEEP_EXACT: tl.constexpr, KEEP_NUMBER: tl.constexpr, INDEX: tl.constexpr,
    LAST: tl.constexpr, ND: tl.constexpr, WIDE: tl.constexpr, R: tl.constexpr, T: tl.constexpr,
):  # fmt: skip
    """Each window's value, and what its gradient needs."""
    _n0, out0, _, _, _, d0, _ = axis0
    n1, out1, _, _, _, d1, _ = axis1
    n2, out2, _, _, _, d2, _ = axis2
    r, live, sample, c, o0, o1, o2 = lanes(total, channels, out0, out1, out2, LAST, ND, WIDE, R)
    row = tl.where(live, sample, 0)
    _xn, _xc, x0, x1, x2 = x_strides
    _mn, _mc, v0, v1, v2 = mask_strides
    f0, m0, f1, m1, f2, m2, at, seen = opened(
        row, sample, c, o0, o1, o2, axis0, axis1, axis2, x_strides, mask_strides, s0, c0, s1, c1, s2, c2, KIND0, KIND1, KIND2
    )
    pv = parameter(p, values, c, tl.zeros((R,), tl.float32), PER)
    if T == 1:
        s = START(tl.zeros((R,), tl.float32), pv)
        n = tl.zeros((R,), tl.int32)
        for t0 in tl.static_range(TAPS0):
            for t1 in tl.static_range(TAPS1):
                for t2 in tl.static_range(TAPS2):
                    valid = live & (t0 < m0) & (t1 < m1) & (t2 < m2)
                    if MASKED:
                        valid &= tl.load(mask + seen + t0 * d0 * v0 + t1 * d1 * v1 + t2 * d2 * v2, mask=valid, other=0) != 0
                    v = tl.load(x + at + t0 * d0 * x0 + t1 * d1 * x1 + t2 * d2 * x2, mask=valid, other=0)
                    e = (t0 * TAPS1 + t1) * TAPS2 + t2
                    s = PUSH(s, lifted(v, eps, LIFT), valid, e, n, pv, FLAG)
                    n += valid.to(tl.int32)
    else:
        s = START(tl.zeros((R, T), tl.float32), pv[:, None])
        n = tl.zeros((R, T), tl.int32)
        for base in range(0, k0 * k1 * k2, T):
            e = base + tl.arange(0, T)
            t2 = e % k2
            t1 = (e // k2) % k1
            t0 = e // (k2 * k1)
            valid = live[:, None] & (t0[None, :] < m0[:, None]) & (t1[None, :] < m1[:, None]) & (t2[None, :] < m2[:, None])
            if MASKED:
                away = t0 * (d0 * v0) + t1 * (d1 * v1) + t2 * (d2 * v2)
                valid &= tl.load(mask + seen[:, None] + away[None, :], mask=valid, other=0) != 0
            away = t0 * (d0 * x0) + t1 * (d1 * x1) + t2 * (d2 * x2)
            v = tl.load(x + at[:, None] + away[None, :], mask=valid, other=0)
            s = PUSH(s, lifted(v, eps, LIFT), valid, e[None, :], n, pv[:, None], FLAG)
            n += valid.to(tl.int32)
        s = OVER(s, n, pv[:, None], FLAG)
        n = tl.sum(n, 1)
    value, a, b = FINISH(s, n, pv, SUM)
    divisor = n.to(tl.float32)
    if DIVISOR == 1:
        divisor = tl.zeros((R,), tl.float32) + fixed
    elif DIVISOR == 2:
        divisor = tl.zeros((R,), tl.float32) + 1
        if ND > 2:
            divisor = divisor * cells(row, o0, e0, e0_rows)
        if ND > 1:
            divisor = divisor * cells(row, o1, e1, e1_rows)
        divisor = divisor * cells(row, o2, e2, e2_rows)
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
def share(
    x, mask, grad, y, kept, first, second, number, dx,
    values, p, eps, fixed,
    total, channels, axis0, axis1, axis2, x_strides, mask_strides, grad_strides, out_strides,
    s0, c0, s1, c1, s2, c2, l0, h0, l1, h1, l2, h2, e0, e1, e2, e0_rows, e1_rows, e2_rows,
    k1, k2,
    SHARE: tl.constexpr,
    FLAG: tl.constexpr, SUM: tl.constexpr, LIFT: tl.constexpr, PER: tl.constexpr, DIVISOR: tl.constexpr,
    KIND0: tl.constexpr, KIND1: tl.constexpr, KIND2: tl.constexpr,
    MASKED: tl.constexpr, TAP: tl.constexpr, KEEP_STATE: tl.constexpr, KEEP_NUMBER: tl.constexpr,
    LAST: tl.constexpr, ND: tl.constexpr, WIDE: tl.constexpr, R: tl.constexpr,
):  # fmt: skip
    """The input's gradient: what each element gets from every window that holds it."""
    n0, _out0, _, _, _, d0, _ = axis0
    n1, _out1, _, _, _, d1, _ = axis1
    n2, _out2, _, _, _, d2, _ = axis2
    r, live, sample, c, i0, i1, i2 = lanes(total, channels, n0, n1, n2, LAST, ND, WIDE, R)
    row = tl.where(live, sample, 0)
    exists = live
    if MASKED:
        exists &= tl.load(mask + start_of(sample, c, i0, i1, i2, mask_strides), mask=live, other=0) != 0
    pv = parameter(p, values, c, tl.zeros((R,), tl.float32), PER)
    v = tl.zeros((R,), tl.float32)
    if KEEP_STATE or LIFT > 0:
        v = tl.load(x + start_of(sample, c, i0, i1, i2, x_strides), mask=live, other=0).to(tl.float32)
    a = lifted(v, eps, LIFT)
    low0, high0 = holders(i0, row, axis0, l0, h0, KIND0)
    low1, high1 = holders(i1, row, axis1, l1, h1, KIND1)
    low2, high2 = holders(i2, row, axis2, l2, h2, KIND2)
    result = tl.zeros((R,), tl.float32)
    for t0 in range(0, tl.max(high0 - low0) + 1):
        o0 = high0 - t0
        f0, m0 = span(tl.where(o0 < low0, low0, o0), row, axis0, s0, c0, KIND0)
        in0 = exists & (o0 >= low0) & (i0 >= f0) & ((i0 - f0) % d0 == 0) & ((i0 - f0) // d0 < m0)
        for t1 in range(0, tl.max(high1 - low1) + 1):
            o1 = high1 - t1
            f1, m1 = span(tl.where(o1 < low1, low1, o1), row, axis1, s1, c1, KIND1)
            in1 = in0 & (o1 >= low1) & (i1 >= f1) & ((i1 - f1) % d1 == 0) & ((i1 - f1) // d1 < m1)
            for t2 in range(0, tl.max(high2 - low2) + 1):
                o2 = high2 - t2
                f2, m2 = span(tl.where(o2 < low2, low2, o2), row, axis2, s2, c2, KIND2)
                valid = in1 & (o2 >= low2) & (i2 >= f2) & ((i2 - f2) % d2 == 0) & ((i2 - f2) // d2 < m2)
                g = tl.load(grad + start_of(sample, c, o0, o1, o2, grad_strides), mask=valid, other=0).to(tl.float32)
                at = start_of(sample, c, o0, o1, o2, out_strides)
                if TAP:
                    e = (((i0 - f0) // d0) * k1 + (i1 - f1) // d1) * k2 + (i2 - f2) // d2
                    won = tl.load(kept + at, mask=valid, other=0)
                    result += tl.where(valid & (won == e.to(won.dtype)), g, 0.0)
                else:
                    if KEEP_NUMBER:
                        n = tl.load(number + at, mask=valid, other=1)
                    elif DIVISOR == 1:
                        n = tl.zeros((R,), tl.float32) + fixed
                    elif DIVISOR == 2:
                        n = cells(row, tl.where(valid, o2, 0), e2, e2_rows)
                        if ND > 1:
                            n = n * cells(row, tl.where(valid, o1, 0), e1, e1_rows)
                        if ND > 2:
                            n = n * cells(row, tl.where(valid, o0, 0), e0, e0_rows)
                    else:
                        n = (m0 * m1 * m2).to(tl.float32)
                    n = tl.where(n == 0, 1.0, n)
                    if KEEP_STATE:
                        value = tl.load(y + at, mask=valid, other=0)
                        fa = tl.load(first + at, mask=valid, other=0)
                        fb = tl.load(second + at, mask=valid, other=0)
                        got = SHARE(a, value, fa, fb, n, pv, FLAG, SUM)
                    else:
                        got = SHARE(a, a, a, a, n, pv, FLAG, SUM)
                    result += tl.where(valid, g * got, 0.0)
    if LIFT == ABSOLUTE:
        result = tl.where(v < 0, -result, tl.where(v == 0, 0.0, result))
    elif LIFT == CLAMP:
        result = tl.where(v < eps, 0.0, result)
    tl.store(dx + r, result.to(dx.dtype.element_ty), mask=live)


@triton.jit
def slope(
    x, mask, y, first, second, number, result,
    values, p, eps,
    total, channels, axis0, axis1, axis2, x_strides, mask_strides,
    s0, c0, s1, c1, s2, c2,
    k0, k1, k2,
    SLOPE: tl.constexpr,
    SUM: tl.constexpr, LIFT: tl.constexpr, PER: tl.constexpr,
    KIND0: tl.constexpr, KIND1: tl.constexpr, KIND2: tl.constexpr,
    MASKED: tl.constexpr, KEEP_NUMBER: tl.constexpr,
    LAST: tl.constexpr, ND: tl.constexpr, WIDE: tl.constexpr, R: tl.constexpr, T: tl.constexpr,
):  # fmt: skip
    """What each window's value gains with the parameter."""
    _n0, out0, _, _, _, d0, _ = axis0
    _n1, out1, _, _, _, d1, _ = axis1
    _n2, out2, _, _, _, d2, _ = axis2
    r, live, sample, c, o0, o1, o2 = lanes(total, channels, out0, out1, out2, LAST, ND, WIDE, R)
    row = tl.where(live, sample, 0)
    _xn, _xc, x0, x1, x2 = x_strides
    _mn, _mc, v0, v1, v2 = mask_strides
    _, m0, _, m1, _, m2, at, seen = opened(
        row, sample, c, o0, o1, o2, axis0, axis1, axis2, x_strides, mask_strides, s0, c0, s1, c1, s2, c2, KIND0, KIND1, KIND2
    )
    pv = parameter(p, values, c, tl.zeros((R,), tl.float32), PER)[:, None]
    value = tl.load(y + r, mask=live, other=0)[:, None]
    a = tl.load(first + r, mask=live, other=0)[:, None]
    b = tl.load(second + r, mask=live, other=0)[:, None]
    n = tl.load(number + r, mask=live, other=1)[:, None] if KEEP_NUMBER else tl.maximum(m0 * m1 * m2, 1).to(tl.float32)[:, None]
    gained = tl.zeros((R, T), tl.float32)
    for base in range(0, k0 * k1 * k2, T):
        e = base + tl.arange(0, T)
        t2 = e % k2
        t1 = (e // k2) % k1
        t0 = e // (k2 * k1)
        valid = live[:, None] & (t0[None, :] < m0[:, None]) & (t1[None, :] < m1[:, None]) & (t2[None, :] < m2[:, None])
        if MASKED:
            away = t0 * (d0 * v0) + t1 * (d1 * v1) + t2 * (d2 * v2)
            valid &= tl.load(mask + seen[:, None] + away[None, :], mask=valid, other=0) != 0
        away = t0 * (d0 * x0) + t1 * (d1 * x1) + t2 * (d2 * x2)
        v = lifted(tl.load(x + at[:, None] + away[None, :], mask=valid, other=0), eps, LIFT)
        gained += tl.where(valid, SLOPE(v, value, a, b, n, pv, SUM), 0.0)
    tl.store(result + r, tl.sum(gained, 1), mask=live)
