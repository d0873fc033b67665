"""Reducers for the kernels: a few small functions each, passed to a skeleton as constants.

    START(tile, p)                         the state of nothing at all
    PUSH(s, x, valid, e, n, p, FLAG)       the state once element x, the window's e-th, has been met after n others
    OVER(s, n, p, FLAG)                    the states along the tile's second axis, joined to one column
    FINISH(s, n, p, SUM)                   value, and two numbers that the gradient needs

Of gradients:

    SHARE(x, y, a, b, n, p, FLAG, SUM)     what element x gets of a window's gradient; y, a and b are FINISH's
    SLOPE(x, y, a, b, n, p, SUM)           what the window's value gains with p, for x
    SPREAD(s, g, x, y, a, b, n, valid, p, FLAG, SUM)
                                           running windows, met from the last: the state after this place and its window,
                                           and what x gets from this window and all later ones

A state is a tuple of float32 tiles of one shape; p is the reducer's parameter. What is scaled is scaled by the element of
the window that weighs most, and only differences from it are added up: nothing overflows, and nothing is lost where all
values are huge and nearly equal.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

__all__ = ["GROUPS", "SHARES", "SLOPES", "SPREADS", "SWEEPS", "expm1", "log1p"]

NOTHING = tl.constexpr(-1)  # as a tap: no element met
FAR = tl.constexpr(2**31 - 1)


@triton.jit
def expm1(x):
    """exp(x) - 1 without loss for small x."""
    small = tl.where(tl.abs(x) < 0.35, x, 0.0)
    near = small * (1 + small / 2 * (1 + small / 3 * (1 + small / 4 * (1 + small / 5 * (1 + small / 6 * (1 + small / 7))))))
    return tl.where(tl.abs(x) < 0.35, near, tl.exp(x) - 1)


@triton.jit
def log1p(z):
    """log(1 + z) without loss for small z."""
    small = tl.where(tl.abs(z) < 0.3, z, 0.0)
    s = small / (2 + small)
    q = s * s
    near = 2 * s * (1 + q * (1 / 3 + q * (1 / 5 + q * (1 / 7 + q / 9))))
    return tl.where(tl.abs(z) < 0.3, near, tl.log(tl.where(z <= -1, 1.0, 1 + z)))


@triton.jit
def lag(x, top):
    """x - top, where equal infinities differ by nothing."""
    return tl.where(x == top, 0.0, x - top)


@triton.jit
def heavier(x, top, p):
    """Whether x outweighs `top` where weights grow with p."""
    return tl.where(p > 0, x > top, x < top)


@triton.jit
def heaviest(x, p):
    """The one that weighs most along the second axis, kept as an axis of one."""
    return tl.where(p > 0, tl.max(x, 1, keep_dims=True), tl.min(x, 1, keep_dims=True))


@triton.jit
def lightest(p, like):
    """What everything outweighs."""
    return tl.where(p > 0, float("-inf"), float("inf")) + tl.zeros_like(like)


# -- maximum: (value, tap); among equals the first or, with FLAG, the last; among NaN the last ----------------------------


@triton.jit
def max_start(tile, p):
    return tl.full(tile.shape, float("-inf"), tl.float32), tl.full(tile.shape, NOTHING, tl.int32)


@triton.jit
def max_push(s, x, valid, e, n, p, FLAG: tl.constexpr):
    m, at = s
    better = (x >= m) if FLAG else (x > m)
    better = valid & (better | (x != x) | (at < 0))
    return tl.where(better, x, m), tl.where(better, e, at)


@triton.jit
def max_over(s, n, p, FLAG: tl.constexpr):
    m, at = s
    odd = (m != m) & (at >= 0)
    strange = tl.max(odd.to(tl.int32), 1, keep_dims=True) > 0
    top = tl.max(tl.where(odd | (at < 0), float("-inf"), m), 1, keep_dims=True)
    hit = (at >= 0) & tl.where(strange, odd, m == top)
    last = tl.max(tl.where(hit, at, NOTHING), 1, keep_dims=True)
    first = tl.min(tl.where(hit, at, FAR), 1, keep_dims=True)
    at = last if FLAG else tl.where(strange | (last < 0), last, first)
    return tl.where(strange, float("nan"), top), at


@triton.jit
def max_finish(s, n, p, SUM: tl.constexpr):
    return s[0], s[0], s[0]


# -- maximum that all equals share: (value, how many equal it) -----------------------------------------------------------


@triton.jit
def even_start(tile, p):
    return tl.full(tile.shape, float("-inf"), tl.float32), tl.zeros_like(tile)


@triton.jit
def even_push(s, x, valid, e, n, p, FLAG: tl.constexpr):
    m, number = s
    above = (x > m) | (x != x)
    raised = tl.where(above, 1.0, number + tl.where(x == m, 1.0, 0.0))
    return tl.where(valid & above, x, m), tl.where(valid, raised, number)


@triton.jit
def even_over(s, n, p, FLAG: tl.constexpr):
    m, number = s
    strange = tl.max((m != m).to(tl.int32), 1, keep_dims=True) > 0
    top = tl.where(strange, float("nan"), tl.max(tl.where(m != m, float("-inf"), m), 1, keep_dims=True))
    return top, tl.sum(tl.where(m == top, number, 0.0), 1, keep_dims=True)


@triton.jit
def even_finish(s, n, p, SUM: tl.constexpr):
    return s[0], s[0], s[1]


# -- sum: (sum, what rounding took from it); the mean's divisor is the skeleton's affair ----------------------------------


@triton.jit
def sum_start(tile, p):
    return tl.zeros_like(tile), tl.zeros_like(tile)


@triton.jit
def sum_push(s, x, valid, e, n, p, FLAG: tl.constexpr):
    total, lost = s
    x = tl.where(valid, x, 0.0)
    if FLAG:  # long windows: Kahan's sum
        term = x - lost
        raised = total + term
        away = (raised - total) - term
        # what an infinite sum has lost is NaN, and would spoil it
        return raised, tl.where(tl.abs(raised) == float("inf"), 0.0, away)
    return total + x, lost


@triton.jit
def sum_over(s, n, p, FLAG: tl.constexpr):
    total = tl.sum(s[0] - s[1], 1, keep_dims=True)
    return total, tl.zeros_like(total)


@triton.jit
def sum_finish(s, n, p, SUM: tl.constexpr):
    return s[0] - s[1], s[0], s[0]


# -- power mean: (m, s): the element that weighs most, and s = sum of (x / m)^p ------------------------------------------


@triton.jit
def powered(a, b, p):
    """(a / b)^p or (b / a)^p for a, b >= 0, whichever is at most 1."""
    low, high = tl.minimum(a, b), tl.maximum(a, b)
    low, high = tl.where((a != a) | (b != b), a + b, low), tl.where(high == 0, 1.0, high)
    ratio = tl.where(a == b, 1.0, tl.where(high == float("inf"), 0.0, low / high))
    power = tl.exp2(tl.abs(p) * tl.log2(tl.where(ratio == 0, 1.0, ratio)))
    return tl.where(ratio == 0, 0.0, power)


@triton.jit
def power_start(tile, p):
    return tl.where(p > 0, 0.0, float("inf")) + tl.zeros_like(tile), tl.zeros_like(tile)


@triton.jit
def power_push(s, x, valid, e, n, p, FLAG: tl.constexpr):
    m, total = s
    share = powered(x, m, p)
    new = heavier(x, m, p)
    raised = tl.where(new, total * share + 1, total + share)
    return tl.where(valid & new, x, m), tl.where(valid, raised, total)


@triton.jit
def power_over(s, n, p, FLAG: tl.constexpr):
    m, total = s
    top = heaviest(m, p)
    return top, tl.sum(tl.where(total == 0, 0.0, total * powered(m, top, p)), 1, keep_dims=True)


@triton.jit
def power_finish(s, n, p, SUM: tl.constexpr):
    m, total = s
    mean = tl.where(n > 0, total, 1.0) if SUM else tl.where(n > 0, total / n, 1.0)
    return m * tl.exp2(tl.log2(mean) / p), m, total


# -- soft: (c, t, d): the element that weighs most, t = sum of w, d = sum of w (x - c), w = exp(p (x - c)) ---------------


@triton.jit
def soft_start(tile, p):
    return lightest(p, tile), tl.zeros_like(tile), tl.zeros_like(tile)


@triton.jit
def soft_push(s, x, valid, e, n, p, FLAG: tl.constexpr):
    c, t, d = s
    gap = lag(x, c)
    new = heavier(x, c, p) | (n == 0)
    gap = tl.where(n == 0, 0.0, gap)
    w = tl.exp(-tl.abs(p * gap))
    moved = tl.where(w == 0, 0.0, w * (d - t * gap))  # what is there, seen from x
    added = tl.where(w == 0, 0.0, w * gap)
    c, t_, d_ = tl.where(new, x, c), tl.where(new, w * t + 1, t + w), tl.where(new, moved, d + added)
    return tl.where(valid, c, s[0]), tl.where(valid, t_, t), tl.where(valid, d_, d)


@triton.jit
def soft_over(s, n, p, FLAG: tl.constexpr):
    c, t, d = s
    top = heaviest(tl.where(n > 0, c, lightest(p, c)), p)
    gap = tl.where(n > 0, lag(c, top), 0.0)
    w = tl.where(n > 0, tl.exp(-tl.abs(p * gap)), 0.0)
    d = tl.where(w == 0, 0.0, w * (d + t * gap))
    return top, tl.sum(tl.where(w == 0, 0.0, w * t), 1, keep_dims=True), tl.sum(d, 1, keep_dims=True)


@triton.jit
def soft_finish(s, n, p, SUM: tl.constexpr):
    c, t, d = s
    return c + d / tl.where(t == 0, 1.0, t), c, t


# -- log-sum-exp: (c, q): the element that weighs most, and q = sum of expm1(p (x - c)) / p ------------------------------


@triton.jit
def above(gap, p):
    """expm1(p gap) / p, which is gap where p is 0."""
    none = p == 0
    return tl.where(none, gap, expm1(p * gap) / tl.where(none, 1.0, p))


@triton.jit
def lse_start(tile, p):
    return lightest(p, tile), tl.zeros_like(tile)


@triton.jit
def lse_push(s, x, valid, e, n, p, FLAG: tl.constexpr):
    c, q = s
    new = heavier(x, c, p) | (n == 0)
    gap = tl.where(n == 0, 0.0, lag(x, c))
    gap = tl.where(new, -gap, gap)  # always towards less weight
    step = above(gap, p)
    # once x is the one that weighs most: expm1(p (b + g)) = expm1(p b) exp(p g) + expm1(p g), for each of n
    moved = tl.where(n == 0, 0.0, q * tl.exp(p * gap) + n * step)
    return tl.where(valid & new, x, c), tl.where(valid, tl.where(new, moved, q + step), q)


@triton.jit
def lse_over(s, n, p, FLAG: tl.constexpr):
    c, q = s
    top = heaviest(tl.where(n > 0, c, lightest(p, c)), p)
    gap = tl.where(n > 0, lag(c, top), 0.0)
    return top, tl.sum(tl.where(n > 0, q * tl.exp(p * gap) + n * above(gap, p), 0.0), 1, keep_dims=True)


@triton.jit
def lse_finish(s, n, p, SUM: tl.constexpr):
    c, q = s
    number = tl.where(n > 0, n, 1).to(tl.float32)
    none = p == 0
    r = tl.where(none, 1.0, p)
    mean = q / number
    y = c + tl.where(none, mean, log1p(p * mean) / r)
    if SUM:
        y = y + tl.log(number) / r
    return y, c, number + p * q


# -- gradients: what an element gets from a window, g times its share; and what the window's value gains with p ----------


@triton.jit
def sum_share(x, y, a, b, n, p, FLAG: tl.constexpr, SUM: tl.constexpr):
    return 1 / n


@triton.jit
def even_share(x, y, a, b, n, p, FLAG: tl.constexpr, SUM: tl.constexpr):
    return tl.where((x == a) & (tl.abs(x) < float("inf")) & (b > 0), 1 / tl.where(b == 0, 1.0, b), 0.0)


@triton.jit
def power_weight(x, y, q):
    """(x / y)^q, 0 where there is no slope."""
    none = (x == 0) | (y == 0) | (tl.abs(x) == float("inf")) | (tl.abs(y) == float("inf"))
    ratio = tl.where(none, 1.0, x / tl.where(none, 1.0, y))
    return tl.where(none, 0.0, tl.exp2(q * tl.log2(ratio)))


@triton.jit
def power_share(x, y, a, b, n, p, FLAG: tl.constexpr, SUM: tl.constexpr):
    share = power_weight(x, y, p - 1)
    return share if SUM else share / n


@triton.jit
def power_slope(x, y, a, b, n, p, SUM: tl.constexpr):
    weight = power_weight(x, y, p)
    weight = weight if SUM else weight / n
    none = weight == 0
    return tl.where(none, 0.0, weight * tl.log(tl.where(none, 1.0, x / tl.where(none, 1.0, y))) * y / p)


@triton.jit
def soft_share(x, y, a, b, n, p, FLAG: tl.constexpr, SUM: tl.constexpr):
    w = tl.exp(-tl.abs(p * lag(x, a))) / tl.where(b == 0, 1.0, b)
    w = tl.where((tl.abs(x) == float("inf")) | (tl.abs(a) == float("inf")), 0.0, w)
    if FLAG:
        return w
    return tl.where(w == 0, 0.0, w * (1 + p * (x - y)))


@triton.jit
def soft_slope(x, y, a, b, n, p, SUM: tl.constexpr):
    w = soft_share(x, y, a, b, n, p, True, SUM)
    return tl.where(w == 0, 0.0, w * (x - y) * (x - y))


@triton.jit
def lse_share(x, y, a, b, n, p, FLAG: tl.constexpr, SUM: tl.constexpr):
    w = tl.exp(p * lag(x, a)) / tl.where(b == 0, 1.0, b)
    return tl.where((tl.abs(x) == float("inf")) | (tl.abs(a) == float("inf")), 0.0, w)


@triton.jit
def lse_slope(x, y, a, b, n, p, SUM: tl.constexpr):
    w = lse_share(x, y, a, b, n, p, False, SUM)
    gap = tl.where(w == 0, 0.0, x - y)
    none = p == 0
    return w * tl.where(none, gap * gap / 2, gap / tl.where(none, 1.0, p))


# -- running windows -------------------------------------------------------------------------------------------------------


@triton.jit
def later(m, at, x, e):
    """Two maxima, one met after the other; among equals the first stays."""
    better = (e >= 0) & ((x > m) | (x != x) | (at < 0))
    return tl.where(better, x, m), tl.where(better, e, at)


@triton.jit
def later_last(m, at, x, e):
    """The same, the last stays."""
    better = (e >= 0) & ((x >= m) | (x != x) | (at < 0))
    return tl.where(better, x, m), tl.where(better, e, at)


@triton.jit
def max_leaf(x, valid, e):
    return tl.where(valid, x, float("-inf")), tl.where(valid, e, NOTHING)


@triton.jit
def max_scan(s, REVERSE: tl.constexpr, FLAG: tl.constexpr):
    if FLAG:
        return tl.associative_scan(s, 1, later_last, reverse=REVERSE)
    return tl.associative_scan(s, 1, later, reverse=REVERSE)


@triton.jit
def max_join(s, t, FLAG: tl.constexpr):
    if FLAG:
        return later_last(s[0], s[1], t[0], t[1])
    return later(s[0], s[1], t[0], t[1])


@triton.jit
def sum_leaf(x, valid, e):
    x = tl.where(valid, x, 0.0)
    return x, tl.zeros_like(x)


@triton.jit
def sum_scan(s, REVERSE: tl.constexpr, FLAG: tl.constexpr):
    return tl.cumsum(s[0], 1, reverse=REVERSE), s[1]


@triton.jit
def sum_join(s, t, FLAG: tl.constexpr):
    return s[0] + t[0], s[1] + t[1]


@triton.jit
def none_spread(like):
    return like, like, like, like


@triton.jit
def sum_spread(s, g, x, y, a, b, n, valid, p, FLAG: tl.constexpr, SUM: tl.constexpr):
    gain = s[0] + tl.where(valid, g / n, 0.0)
    return (gain, s[1], s[2], s[3]), gain


@triton.jit
def even_spread(s, g, x, y, a, b, n, valid, p, FLAG: tl.constexpr, SUM: tl.constexpr):
    share = g / tl.where(b == 0, 1.0, b)
    gain = tl.where(a == s[1], s[0] + share, share)  # windows of another maximum give nothing to what is met before
    return (tl.where(valid, gain, s[0]), tl.where(valid, a, s[1]), s[2], s[3]), tl.where(
        (x == a) & (tl.abs(x) < float("inf")), gain, 0.0
    )


@triton.jit
def power_spread(s, g, x, y, a, b, n, valid, p, FLAG: tl.constexpr, SUM: tl.constexpr):
    g = g if SUM else g / n
    gain = g + s[0] * power_weight(y, s[1], p - 1)
    return (tl.where(valid, gain, s[0]), tl.where(valid, y, s[1]), s[2], s[3]), gain * power_weight(x, y, p - 1)


@triton.jit
def fading(gap, p):
    """exp(-|p gap|), nothing over an infinite gap."""
    far = tl.abs(gap) == float("inf")
    return tl.where(far, 0.0, tl.exp(-tl.abs(p * tl.where(far, 0.0, gap))))


@triton.jit
def soft_spread(s, g, x, y, a, b, n, valid, p, FLAG: tl.constexpr, SUM: tl.constexpr):
    gain, rest, y1, a1 = s
    odd = (tl.abs(a) == float("inf")) | (b == 0)
    kept = fading(lag(a, a1), p)
    away = lag(y1, y)
    # rest: the later windows' gains times how much their values are above this one's
    rest_here = tl.where(kept == 0, 0.0, kept * (rest + gain * away))
    gain_here = kept * gain + tl.where(odd, 0.0, g / tl.where(odd, 1.0, b))
    w = tl.where((tl.abs(x) == float("inf")) | odd, 0.0, fading(lag(x, a), p))
    got = gain_here if FLAG else gain_here * (1 + p * lag(x, y)) - p * rest_here
    after = (
        tl.where(valid, gain_here, gain),
        tl.where(valid, rest_here, rest),
        tl.where(valid, y, y1),
        tl.where(valid, a, a1),
    )
    return after, tl.where(w == 0, 0.0, w * got)


@triton.jit
def lse_spread(s, g, x, y, a, b, n, valid, p, FLAG: tl.constexpr, SUM: tl.constexpr):
    gain, _, _, a1 = s
    odd = (tl.abs(a) == float("inf")) | (b == 0)
    here = fading(lag(a, a1), p) * gain + tl.where(odd, 0.0, g / tl.where(odd, 1.0, b))
    w = tl.where((tl.abs(x) == float("inf")) | odd, 0.0, fading(lag(x, a), p))
    return (tl.where(valid, here, gain), s[1], s[2], tl.where(valid, a, a1)), w * here


# by name: the four functions of the forward pass
GROUPS: dict[str, tuple[Any, Any, Any, Any]] = {
    "max": (max_start, max_push, max_over, max_finish),
    "even_max": (even_start, even_push, even_over, even_finish),
    "mean": (sum_start, sum_push, sum_over, sum_finish),
    "power": (power_start, power_push, power_over, power_finish),
    "soft": (soft_start, soft_push, soft_over, soft_finish),
    "logsumexp": (lse_start, lse_push, lse_over, lse_finish),
}
SHARES: dict[str, Any] = {
    "max": sum_share,  # not asked
    "median": sum_share,  # nor this
    "even_max": even_share,
    "mean": sum_share,
    "power": power_share,
    "soft": soft_share,
    "logsumexp": lse_share,
}
SLOPES: dict[str, Any] = {"power": power_slope, "soft": soft_slope, "logsumexp": lse_slope}
# along memory, blocks at once: element to state, states of a block, a state before a block's
SWEEPS: dict[str, tuple[Any, Any, Any]] = {
    "max": (max_leaf, max_scan, max_join),
    "mean": (sum_leaf, sum_scan, sum_join),
}
SPREADS: dict[str, Any] = {
    "max": sum_spread,  # not asked
    "even_max": even_spread,
    "mean": sum_spread,
    "power": power_spread,
    "soft": soft_spread,
    "logsumexp": lse_spread,
}
