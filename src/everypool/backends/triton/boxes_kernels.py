"""Pooling over boxes: forward, the gradient of each sample, and from these the gradient of the map.

A tile is places (a bin of a box) times channels, the ones that lie side by side in memory along its second axis: what the
tables say of a place is read once for many channels. Gradients are gathered: a tile of the map asks each box that touches
it for the samples next to its cells, boxes in their order, so nothing is added to by two programs and the order of all
sums is fixed.
"""

from __future__ import annotations

import triton
import triton.language as tl

from everypool.backends.triton.boxes import OUTSIDE
from everypool.backends.triton.groups import FAR
from everypool.backends.triton.kernels import ABSOLUTE, CLAMP, lifted, parameter

__all__ = ["each_sample", "fold_bins", "gather", "touching"]

_OUTSIDE = tl.constexpr(OUTSIDE)
SHARED, OWN = tl.constexpr(1), tl.constexpr(2)  # a mask, of all channels or of each


@triton.jit
def along(v, LAST: tl.constexpr):
    """What each place has, over a tile."""
    if LAST:
        return v[:, None]
    else:
        return v[None, :]


@triton.jit
def across(v, LAST: tl.constexpr):
    """What each channel has, over a tile."""
    if LAST:
        return v[None, :]
    else:
        return v[:, None]


@triton.jit
def bin_of(q, out, ND: tl.constexpr):
    """Box, and bin along each axis, of the q-th place."""
    o2, r = q % out[2], q // out[2]
    o1 = o2 * 0
    o0 = o2 * 0
    if ND > 1:
        o1, r = r % out[1], r // out[1]
    if ND > 2:
        o0, r = r % out[0], r // out[0]
    return r, o0, o1, o2


@triton.jit
def numbers(r, o0, o1, o2, counts, out, live, ND: tl.constexpr):
    """How many samples bins have along each axis."""
    n2 = tl.load(counts[2] + r * out[2] + o2, mask=live, other=0)
    n1 = n2 * 0 + 1
    n0 = n2 * 0 + 1
    if ND > 1:
        n1 = tl.load(counts[1] + r * out[1] + o1, mask=live, other=0)
    if ND > 2:
        n0 = tl.load(counts[0] + r * out[0] + o0, mask=live, other=0)
    return n0, n1, n2


@triton.jit
def spot(row, t, n, cells, shares, k, size, live, BETWEEN: tl.constexpr):
    """Along an axis, sample t of n in a bin: whether it exists, and lies on the map; its cell, and the next one's share."""
    exists = live & (t < n)
    if BETWEEN:
        i = tl.load(cells + row * k + t, mask=exists, other=_OUTSIDE)
        share = tl.load(shares + row * k + t, mask=exists, other=0)
    else:
        i = tl.load(cells + row, mask=exists, other=0) + t
        share = tl.zeros(i.shape, tl.float32)
    return exists, exists & (i >= 0) & (i < size), i.to(row.dtype), share


@triton.jit
def sampled(
    x, mask, at, seen, r, o0, o1, o2, n0, n1, n2, t0, t1, t2, live, here,
    out, taps, sizes, x_strides, mask_strides, cells, shares,
    BETWEEN: tl.constexpr, MASKED: tl.constexpr, LAST: tl.constexpr, ND: tl.constexpr,
):  # fmt: skip
    """A sample of each bin: whether it exists, counts, and lies on the map; its value, and what its cells' weights add up to.

    Whether it exists is said by place, all else over the tile.
    """
    exists, inside, i2, h2 = spot(r * out[2] + o2, t2, n2, cells[2], shares[2], taps[2], sizes[2], live, BETWEEN)
    i1 = i2 * 0
    i0 = i2 * 0
    h1 = h2 * 0
    h0 = h2 * 0
    if ND > 1:
        found, within, i1, h1 = spot(r * out[1] + o1, t1, n1, cells[1], shares[1], taps[1], sizes[1], live, BETWEEN)
        exists &= found
        inside &= within
    if ND > 2:
        found, within, i0, h0 = spot(r * out[0] + o0, t0, n0, cells[0], shares[0], taps[0], sizes[0], live, BETWEEN)
        exists &= found
        inside &= within
    # what a mask takes from a place it takes there from all channels, or from each its own
    total = tl.zeros(here.shape if MASKED == OWN else h2.shape, tl.float32)
    SIDES0: tl.constexpr = 2 if BETWEEN and ND > 2 else 1
    SIDES1: tl.constexpr = 2 if BETWEEN and ND > 1 else 1
    SIDES2: tl.constexpr = 2 if BETWEEN else 1
    value = tl.zeros(here.shape, tl.float32)
    for f0 in tl.static_range(SIDES0):
        w0 = h0 if f0 == 1 else 1 - h0
        for f1 in tl.static_range(SIDES1):
            w1 = h1 if f1 == 1 else 1 - h1
            for f2 in tl.static_range(SIDES2):
                w2 = h2 if f2 == 1 else 1 - h2
                w = w0 * w1 * w2
                there = inside & (w > 0)
                away = (i0 + f0) * mask_strides[2] + (i1 + f1) * mask_strides[3] + (i2 + f2) * mask_strides[4]
                if MASKED == SHARED:
                    there &= tl.load(mask + seen + away, mask=there, other=0) != 0
                    total += tl.where(there, w, 0.0)
                weight = along(w, LAST)
                valid = here & along(there, LAST)
                if MASKED == OWN:
                    valid &= tl.load(mask + seen + along(away, LAST), mask=valid, other=0) != 0
                    total += tl.where(valid, weight, 0.0)
                away = (i0 + f0) * x_strides[2] + (i1 + f1) * x_strides[3] + (i2 + f2) * x_strides[4]
                value += tl.load(x + at + along(away, LAST), mask=valid, other=0).to(tl.float32) * weight
    if MASKED == SHARED:  # between the cells that count; a sample among none is none
        exists &= (total > 0) | ~inside
        total = along(total, LAST)
    valid = here & along(exists, LAST)
    inside = here & along(inside, LAST)
    if MASKED == OWN:
        valid &= (total > 0) | ~inside
    total = tl.where(total > 0, total, 1.0)
    if MASKED > 0:
        value = value / total
    return exists, valid, inside, value, total


@triton.jit
def over(n, MASKED: tl.constexpr, LAST: tl.constexpr):
    """How many samples counted, over a tile: those of a place do so for all channels unless each has its own mask."""
    if MASKED == OWN:
        return n
    else:
        return along(n, LAST)


@triton.jit
def placed(r, f, c, cells, channels, LAST: tl.constexpr):
    """Where (R, channels, cells) has element f of box r."""
    if LAST:
        return along((r * cells + f) * channels, LAST) + across(c, LAST)
    else:
        return along(r * channels * cells + f, LAST) + across(c * cells, LAST)


@triton.jit
def opened(
    sample, values, p, total, samples, channels, out, x_strides, mask_strides, counts,
    PER: tl.constexpr, MASKED: tl.constexpr,
    LAST: tl.constexpr, ND: tl.constexpr, WIDE: tl.constexpr, Q: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """A program's places and channels: what there is, where its maps begin, the bins' samples, and the parameter."""
    blocks = tl.cdiv(channels, C)
    program = tl.program_id(0)
    q = (program // blocks).to(tl.int64) * Q + tl.arange(0, Q)
    live = q < total
    if not WIDE:
        q = q.to(tl.int32)
    q = tl.where(live, q, 0)
    c = (program % blocks * C + tl.arange(0, C)).to(q.dtype)
    here = along(live, LAST) & across(c < channels, LAST)
    r, o0, o1, o2 = bin_of(q, out, ND)
    own = tl.load(sample + r, mask=live, other=-1)
    known = live & (own >= 0) & (own < samples)
    own = own.to(q.dtype)
    at = along(own * x_strides[0], LAST) + across(c * x_strides[1], LAST)
    seen = own * mask_strides[0]
    if MASKED == OWN:
        seen = along(seen, LAST) + across(c * mask_strides[1], LAST)
    n0, n1, n2 = numbers(r, o0, o1, o2, counts, out, known, ND)
    pv = parameter(p, values, tl.where(c < channels, c, 0), tl.zeros((C,), tl.float32), PER)
    return r, o0, o1, o2, c, known, here, at, seen, n0, n1, n2, across(pv, LAST)


@triton.jit
def fold_bins(
    x, mask, y, held, exact, kept, first, second, number, sample,
    values, p, eps, fixed,
    total, samples, channels, mask_channels, out, taps, sizes, x_strides, mask_strides, counts, cells, shares,
    START: tl.constexpr, PUSH: tl.constexpr, FINISH: tl.constexpr,
    FLAG: tl.constexpr, SUM: tl.constexpr, LIFT: tl.constexpr, PER: tl.constexpr, DIVISOR: tl.constexpr,
    RATIO: tl.constexpr, UNROLL: tl.constexpr, BETWEEN: tl.constexpr, MASKED: tl.constexpr,
    KEEP_TAP: tl.constexpr, KEEP_STATE: tl.constexpr, KEEP_EXACT: tl.constexpr, KEEP_NUMBER: tl.constexpr,
    LAST: tl.constexpr, ND: tl.constexpr, WIDE: tl.constexpr, Q: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """Each bin's value, and what its gradient needs."""
    r, o0, o1, o2, c, known, here, at, seen, n0, n1, n2, pv = opened(
        sample, values, p, total, samples, channels, out, x_strides, mask_strides, counts, PER, MASKED, LAST, ND, WIDE, Q, C
    )
    inside = here & along(known, LAST)
    s = START(tl.zeros(here.shape, tl.float32), pv)
    n = tl.zeros(here.shape if MASKED == OWN else known.shape, tl.int32)
    if UNROLL > 0:
        for e in tl.static_range(UNROLL):
            exists, valid, _, v, _ = sampled(
                x, mask, at, seen, r, o0, o1, o2, n0, n1, n2,
                e // (RATIO * RATIO), (e // RATIO) % RATIO, e % RATIO, known, inside,
                out, taps, sizes, x_strides, mask_strides, cells, shares, BETWEEN, MASKED, LAST, ND,
            )  # fmt: skip
            s = PUSH(s, lifted(v, eps, LIFT), valid, e, over(n, MASKED, LAST), pv, FLAG)
            n += (valid if MASKED == OWN else exists).to(tl.int32)
    else:
        m1 = tl.max(n1)
        m2 = tl.max(n2)
        for step in range(0, tl.max(n0) * m1 * m2):
            t2 = step % m2
            t1 = (step // m2) % m1
            t0 = step // (m2 * m1)
            exists, valid, _, v, _ = sampled(
                x, mask, at, seen, r, o0, o1, o2, n0, n1, n2, t0, t1, t2, known, inside,
                out, taps, sizes, x_strides, mask_strides, cells, shares, BETWEEN, MASKED, LAST, ND,
            )  # fmt: skip
            e = (t0 * taps[1] + t1) * taps[2] + t2
            s = PUSH(s, lifted(v, eps, LIFT), valid, e, over(n, MASKED, LAST), pv, FLAG)
            n += (valid if MASKED == OWN else exists).to(tl.int32)
    n = over(n, MASKED, LAST)
    value, a, b = FINISH(s, n, pv, SUM)
    divisor = n.to(tl.float32)
    if DIVISOR == 1:
        divisor = tl.zeros((1, 1), tl.float32) + fixed
    if DIVISOR >= 0:
        divisor = tl.where(divisor == 0, 1.0, divisor)
        value = value / divisor
    value = tl.where(n > 0, value, 0.0)
    bins = out[0] * out[1] * out[2]
    f = (o0 * out[1] + o1) * out[2] + o2
    to = placed(r, f, c, bins, channels, LAST)
    tl.store(y + to, value.to(y.dtype.element_ty), mask=here)
    if MASKED > 0:
        own = along(r * mask_channels * bins + f, LAST) + across(c * bins, LAST)
        tl.store(held + own, (n > 0).to(tl.uint8), mask=here & across(c < mask_channels, LAST))
    if KEEP_TAP:
        tl.store(kept + to, tl.where(n > 0, s[1], -1).to(kept.dtype.element_ty), mask=here)
    if KEEP_STATE:
        tl.store(first + to, a, mask=here)
        tl.store(second + to, b, mask=here)
    if KEEP_EXACT:
        tl.store(exact + to, value, mask=here)
    if KEEP_NUMBER:
        tl.store(number + to, divisor, mask=here)


@triton.jit
def each_sample(
    x, mask, grad, y, kept, first, second, number, gs, gained, sample,
    values, p, eps, fixed,
    total, samples, channels, out, taps, room, sizes, x_strides, mask_strides, grad_strides, counts, cells, shares,
    SHARE: tl.constexpr, SLOPE: tl.constexpr,
    FLAG: tl.constexpr, SUM: tl.constexpr, LIFT: tl.constexpr, PER: tl.constexpr, DIVISOR: tl.constexpr,
    BETWEEN: tl.constexpr, MASKED: tl.constexpr, TAP: tl.constexpr, KEEP_STATE: tl.constexpr, KEEP_NUMBER: tl.constexpr,
    SLOPES: tl.constexpr, LAST: tl.constexpr, ND: tl.constexpr, WIDE: tl.constexpr, Q: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """What each sample gets of its bin's gradient; or what each bin's value gains with the parameter."""
    r, o0, o1, o2, c, known, here, at, seen, n0, n1, n2, pv = opened(
        sample, values, p, total, samples, channels, out, x_strides, mask_strides, counts, PER, MASKED, LAST, ND, WIDE, Q, C
    )
    to = placed(r, (o0 * out[1] + o1) * out[2] + o2, c, out[0] * out[1] * out[2], channels, LAST)
    value = tl.zeros(here.shape, tl.float32)
    a = tl.zeros(here.shape, tl.float32)
    b = tl.zeros(here.shape, tl.float32)
    if KEEP_STATE:
        value = tl.load(y + to, mask=here, other=0)
        a = tl.load(first + to, mask=here, other=0)
        b = tl.load(second + to, mask=here, other=0)
    if KEEP_NUMBER:
        n = tl.load(number + to, mask=here, other=1)
    elif DIVISOR == 1:
        n = tl.zeros((1, 1), tl.float32) + fixed
    else:
        n = along(tl.maximum(n0 * n1 * n2, 1).to(tl.float32), LAST)
    if TAP:
        won = tl.load(kept + to, mask=here, other=0)
    if not SLOPES:
        away = r * grad_strides[0] + o0 * grad_strides[2] + o1 * grad_strides[3] + o2 * grad_strides[4]
        g = tl.load(grad + along(away, LAST) + across(c * grad_strides[1], LAST), mask=here, other=0).to(tl.float32)
        s1 = out[1] * room[1]
        s2 = out[2] * room[2]
    result = tl.zeros(here.shape, tl.float32)
    m1 = tl.max(n1)
    m2 = tl.max(n2)
    for step in range(0, tl.max(n0) * m1 * m2):
        t2 = step % m2
        t1 = (step // m2) % m1
        t0 = step // (m2 * m1)
        _, valid, inside, v, weight = sampled(
            x, mask, at, seen, r, o0, o1, o2, n0, n1, n2, t0, t1, t2, known, here & along(known, LAST),
            out, taps, sizes, x_strides, mask_strides, cells, shares, BETWEEN, MASKED, LAST, ND,
        )  # fmt: skip
        if SLOPES:
            result += tl.where(valid, SLOPE(lifted(v, eps, LIFT), value, a, b, n, pv, SUM), 0.0)
        else:
            if TAP:
                e = (t0 * taps[1] + t1) * taps[2] + t2
                got = tl.where(won == e.to(won.dtype), g, 0.0)
            else:
                got = g * SHARE(lifted(v, eps, LIFT), value, a, b, n, pv, FLAG, SUM)
            if LIFT == ABSOLUTE:
                got = tl.where(v < 0, -got, tl.where(v == 0, 0.0, got))
            elif LIFT == CLAMP:
                got = tl.where(v < eps, 0.0, got)
            if MASKED > 0:
                got = got / weight
            got = tl.where(valid & inside, got, 0.0)
            f = ((o0 * room[0] + t0) * s1 + o1 * room[1] + t1) * s2 + o2 * room[2] + t2
            asked = here & along(known & (t0 < n0) & (t1 < n1) & (t2 < n2), LAST)
            tl.store(gs + placed(r, f, c, out[0] * room[0] * s1 * s2, channels, LAST), got, mask=asked)
    if SLOPES:
        tl.store(gained + to, result, mask=here)


@triton.jit
def touching(
    count, cells, begin, end, first, last, longest, n, out, k,
    BETWEEN: tl.constexpr, WIDE: tl.constexpr, S: tl.constexpr, CELLS: tl.constexpr,
):  # fmt: skip
    """Along an axis, for a box: which of its samples, or bins of whole cells, may touch each cell; and the cells touched.

    The samples of a box are numbered from bin to bin; those that touch a cell follow one another.
    """
    r = tl.program_id(0)
    if WIDE:
        r = r.to(tl.int64)
    number = out * k if BETWEEN else out
    low = n
    high = -1
    most = 0
    for start in range(0, n, CELLS):
        i = start + tl.arange(0, CELLS)
        before = tl.full((CELLS,), FAR, tl.int32)
        after = tl.zeros((CELLS,), tl.int32)
        for base in range(0, number, S):
            e = base + tl.arange(0, S)
            o = e // k if BETWEEN else e
            t = e - o * k if BETWEEN else e * 0
            m = tl.load(count + r * out + o, mask=e < number, other=0)
            exists = t < m
            if BETWEEN:
                cell = tl.load(cells + (r * out + o) * k + t, mask=exists, other=_OUTSIDE)[:, None]
                hit = (cell == i[None, :]) | (cell + 1 == i[None, :])
                place = (o * m + t)[:, None]
            else:
                cell = tl.load(cells + r * out + o, mask=exists, other=0)[:, None]
                hit = exists[:, None] & (cell <= i[None, :]) & (i[None, :] < cell + m[:, None])
                place = o[:, None]
            before = tl.minimum(before, tl.min(tl.where(hit, place, FAR), 0))
            after = tl.maximum(after, tl.max(tl.where(hit, place + 1, 0), 0))
        before = tl.minimum(before, after)
        tl.store(begin + r * n + i, before, mask=i < n)
        tl.store(end + r * n + i, after, mask=i < n)
        touched = (before < after) & (i < n)
        low = tl.minimum(low, tl.min(tl.where(touched, i, FAR)))
        high = tl.maximum(high, tl.max(tl.where(touched, i, -1)))
        most = tl.maximum(most, tl.max(after - before))
    tl.store(first + r, low)
    tl.store(last + r, high)
    tl.store(longest + r, most)


@triton.jit
def touch(r, i, e, stop, counts, cells, shares, out, k, live, BETWEEN: tl.constexpr):
    """Along an axis, sample e of box r over cell i: its bin, which of the bin's samples, how many it has, and the weight."""
    valid = live & (e < stop)
    e = e.to(r.dtype)
    if BETWEEN:
        m = tl.load(counts + r * out) + e * 0  # every bin of a box has as many
        o = e // tl.maximum(m, 1)
        t = e - o * m
        row = (r * out + o) * k + t
        cell = tl.load(cells + row, mask=valid, other=_OUTSIDE)
        share = tl.load(shares + row, mask=valid, other=0)
        w = tl.where(cell == i, 1 - share, tl.where(cell + 1 == i, share, 0.0))
    else:
        o = e
        m = tl.load(counts + r * out + o, mask=valid, other=0)
        t = i - tl.load(cells + r * out + o, mask=valid, other=0)
        w = tl.where((t >= 0) & (t < m), 1.0, 0.0)
    return o, t, m, tl.where(valid, w, 0.0)


@triton.jit
def gather(
    x, mask, grad, gs, y, kept, first, second, number, dx, order, offsets,
    values, p, eps, fixed,
    channels, out, taps, room, sizes, x_strides, mask_strides, dx_strides, grad_strides,
    counts, cells, shares, begins, ends, lows, highs, longest,
    SHARE: tl.constexpr,
    FLAG: tl.constexpr, SUM: tl.constexpr, LIFT: tl.constexpr, PER: tl.constexpr, DIVISOR: tl.constexpr,
    BETWEEN: tl.constexpr, MASKED: tl.constexpr, TAP: tl.constexpr, KEEP_STATE: tl.constexpr, KEEP_NUMBER: tl.constexpr,
    GIVEN: tl.constexpr, MORE: tl.constexpr, LAST: tl.constexpr, ND: tl.constexpr, WIDE: tl.constexpr,
    P0: tl.constexpr, P1: tl.constexpr, P2: tl.constexpr, C: tl.constexpr, B: tl.constexpr,
):  # fmt: skip
    """The map's gradient: what each element gets from the samples next to it."""
    blocks = tl.cdiv(channels, C)
    program = tl.program_id(0)
    c = program % blocks * C + tl.arange(0, C)
    tile = program // blocks
    tiles2 = tl.cdiv(sizes[2], P2)
    from2, tile = tile % tiles2 * P2, tile // tiles2
    tiles1 = tl.cdiv(sizes[1], P1)
    from1, tile = tile % tiles1 * P1, tile // tiles1
    tiles0 = tl.cdiv(sizes[0], P0)
    from0, sample = tile % tiles0 * P0, tile // tiles0
    place = tl.arange(0, P0 * P1 * P2)
    i2 = from2 + place % P2
    i1 = from1 + (place // P2) % P1
    i0 = from0 + place // (P2 * P1)
    on = (i0 < sizes[0]) & (i1 < sizes[1]) & (i2 < sizes[2])
    if not LAST:  # neighbours that the compiler knows nothing of: a thread has one of them, with many channels
        i2 = tl.minimum(i2, sizes[2] - 1)
    here = along(on, LAST) & across(c < channels, LAST)
    start = tl.load(offsets + sample)
    stop = tl.load(offsets + sample + 1)
    pv = parameter(p, values, tl.where(c < channels, c, 0), tl.zeros((C,), tl.float32), PER)
    pv = across(pv, LAST)
    if WIDE:
        c = c.to(tl.int64)
        sample = sample.to(tl.int64)
    w0 = i0.to(c.dtype)
    w1 = i1.to(c.dtype)
    w2 = i2.to(c.dtype)
    v = tl.zeros(here.shape, tl.float32)
    if KEEP_STATE:
        away = sample * x_strides[0] + w0 * x_strides[2] + w1 * x_strides[3] + w2 * x_strides[4]
        v = tl.load(x + along(away, LAST) + across(c * x_strides[1], LAST), mask=here, other=0).to(tl.float32)
    lift = lifted(v, eps, LIFT)
    bins = out[0] * out[1] * out[2]
    result = tl.zeros(here.shape, tl.float32)
    for base in range(start, stop, B):
        at = base + tl.arange(0, B)
        hit = at < stop
        box = tl.load(order + at, mask=hit, other=0)
        hit &= tl.load(lows[2] + box) < from2 + P2
        hit &= tl.load(highs[2] + box) >= from2
        if ND > 1:
            hit &= tl.load(lows[1] + box) < from1 + P1
            hit &= tl.load(highs[1] + box) >= from1
        if ND > 2:
            hit &= tl.load(lows[0] + box) < from0 + P0
            hit &= tl.load(highs[0] + box) >= from0
        turn = tl.min(tl.where(hit, at, FAR))
        while turn < FAR:
            r = tl.load(order + turn)
            if WIDE:
                r = r.to(tl.int64)
            long2 = tl.load(longest[2] + r)
            begin2 = tl.load(begins[2] + r * sizes[2] + i2, mask=on, other=0)
            end2 = tl.load(ends[2] + r * sizes[2] + i2, mask=on, other=0)
            long1 = 1
            if ND > 1:
                long1 = tl.load(longest[1] + r)
                begin1 = tl.load(begins[1] + r * sizes[1] + i1, mask=on, other=0)
                end1 = tl.load(ends[1] + r * sizes[1] + i1, mask=on, other=0)
            long0 = 1
            if ND > 2:
                long0 = tl.load(longest[0] + r)
                begin0 = tl.load(begins[0] + r * sizes[0] + i0, mask=on, other=0)
                end0 = tl.load(ends[0] + r * sizes[0] + i0, mask=on, other=0)
            for e0 in range(0, long0):
                o0 = i2 * 0
                t0 = i2 * 0
                n0 = i2 * 0 + 1
                weight0 = on.to(tl.float32)
                if ND > 2:
                    o0, t0, n0, weight0 = touch(
                        r, i0, begin0 + e0, end0, counts[0], cells[0], shares[0], out[0], taps[0], on, BETWEEN
                    )
                for e1 in range(0, long1):
                    o1 = i2 * 0
                    t1 = i2 * 0
                    n1 = i2 * 0 + 1
                    weight1 = weight0
                    if ND > 1:
                        o1, t1, n1, weight1 = touch(
                            r, i1, begin1 + e1, end1, counts[1], cells[1], shares[1], out[1], taps[1], on, BETWEEN
                        )
                        weight1 = weight0 * weight1
                    for e2 in range(0, long2):
                        o2, t2, n2, weight2 = touch(
                            r, i2, begin2 + e2, end2, counts[2], cells[2], shares[2], out[2], taps[2], on, BETWEEN
                        )
                        weight = weight1 * weight2
                        valid = here & along(weight > 0, LAST)
                        if GIVEN:
                            s1 = out[1] * room[1]
                            s2 = out[2] * room[2]
                            f = ((o0 * room[0] + t0) * s1 + o1 * room[1] + t1) * s2 + o2 * room[2] + t2
                            from_sample = placed(r, f, c, out[0] * room[0] * s1 * s2, channels, LAST)
                            got = tl.load(gs + from_sample, mask=valid, other=0)
                        else:
                            skipped = r * grad_strides[0] + o0 * grad_strides[2] + o1 * grad_strides[3] + o2 * grad_strides[4]
                            own = along(skipped, LAST) + across(c * grad_strides[1], LAST)
                            g = tl.load(grad + own, mask=valid, other=0).to(tl.float32)
                            bin_at = placed(r, (o0 * out[1] + o1) * out[2] + o2, c, bins, channels, LAST)
                            if TAP:
                                e = (t0 * taps[1] + t1) * taps[2] + t2
                                won = tl.load(kept + bin_at, mask=valid, other=0)
                                got = tl.where(won == along(e.to(won.dtype), LAST), g, 0.0)
                            else:
                                if KEEP_NUMBER:
                                    n = tl.load(number + bin_at, mask=valid, other=1)
                                elif DIVISOR == 1:
                                    n = tl.zeros((1, 1), tl.float32) + fixed
                                else:
                                    n = along(tl.maximum(n0 * n1 * n2, 1).to(tl.float32), LAST)
                                if KEEP_STATE:
                                    value = tl.load(y + bin_at, mask=valid, other=0)
                                    a = tl.load(first + bin_at, mask=valid, other=0)
                                    b = tl.load(second + bin_at, mask=valid, other=0)
                                    got = g * SHARE(lift, value, a, b, n, pv, FLAG, SUM)
                                else:
                                    got = g * SHARE(lift, lift, lift, lift, n, pv, FLAG, SUM)
                        result += tl.where(valid, got * along(weight, LAST), 0.0)
            turn = tl.min(tl.where(hit & (at > turn), at, FAR))
    if LIFT == ABSOLUTE:
        result = tl.where(v < 0, -result, tl.where(v == 0, 0.0, result))
    elif LIFT == CLAMP:
        result = tl.where(v < eps, 0.0, result)
    away = sample * mask_strides[0] + w0 * mask_strides[2] + w1 * mask_strides[3] + w2 * mask_strides[4]
    if MASKED == SHARED:
        result = tl.where(along(tl.load(mask + away, mask=on, other=0) != 0, LAST), result, 0.0)
    elif MASKED == OWN:
        seen = along(away, LAST) + across(c * mask_strides[1], LAST)
        result = tl.where(tl.load(mask + seen, mask=here, other=0) != 0, result, 0.0)
    away = sample * dx_strides[0] + w0 * dx_strides[2] + w1 * dx_strides[3] + w2 * dx_strides[4]
    to = along(away, LAST) + across(c * dx_strides[1], LAST)
    if MORE:
        result += tl.load(dx + to, mask=here, other=0)
    tl.store(dx + to, result.to(dx.dtype.element_ty), mask=here)
