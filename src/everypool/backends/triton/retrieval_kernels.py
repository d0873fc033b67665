"""Retrieval from stored patterns in one pass over them, forward and backward: the kernels and their launches.

A tile holds B * W whole patterns in C pieces of (B, W, E): element c * E + e of pattern b * W + w. Sizes are chosen so that
E lies over the threads that share a pattern, W over what threads there are, B inside each thread, as each piece does. So a
pattern comes from memory once, in whole lines, for all that is done with it: standardisation, scores, softmax and weighted
sums; and nothing crosses threads but the sums over a pattern's elements. Each of the W streams has a softmax of its own while
it runs. They meet when a program ends, and the programs of a sample in a second kernel, in a fixed order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["backward", "retrieve"]

LIMIT = (1 << 31) - 1  # beyond, places within a tile are computed in 64 bits
PROGRAMS = 1024  # that fill a GPU: samples are divided until there are so many in all
BLOCKED, ADDED = tl.constexpr(1), tl.constexpr(2)  # kinds of a mask over pairs of state and pattern


@triton.jit
def place(blocks, chunks, rows, S):
    """Sample, part, block of states, and the part's first and last pattern."""
    p = tl.program_id(0)
    part = p // blocks % chunks
    sample = (p // blocks // chunks).to(tl.int64)
    return sample, part, p % blocks, part * rows, tl.minimum(part * rows + rows, S)


@triton.jit
def within(B: tl.constexpr, W: tl.constexpr):
    """Which pattern of a tile."""
    return tl.arange(0, B)[:, None] * W + tl.arange(0, W)[None, :]


@triton.jit
def elements(c, V: tl.constexpr, E: tl.constexpr):
    """Elements of the c-th piece; V at a time whatever their type, or what is loaded would be laid out differently."""
    return c * E + tl.max_contiguous(tl.arange(0, E), V)[None, :]


@triton.jit
def copies(tile, n: tl.constexpr):
    """A tuple of n such tiles."""
    result = ()
    for _ in tl.static_range(n):
        result += (tile,)
    return result


@triton.jit
def across(z, C: tl.constexpr):
    """The sum over all elements of each pattern, (B, W)."""
    total = z[0]
    for c in tl.static_range(1, C):
        total += z[c]
    return tl.sum(total, 2)


@triton.jit
def products(z, q, C: tl.constexpr):
    """Each pattern times q, (B, W)."""
    total = z[0] * q[0]
    for c in tl.static_range(1, C):
        total += z[c] * q[c]
    return tl.sum(total, 2)


@triton.jit
def steps(x, sample, first, sizes, WIDE: tl.constexpr):
    """Where a tile starts, and the steps from pattern to pattern and from element to element."""
    xn, xs, xd = sizes
    start = x + sample * xn + tl.cast(first, tl.int64) * xs
    if WIDE:
        return start, tl.cast(xs, tl.int64), tl.cast(xd, tl.int64)
    else:
        return start, xs, xd


@triton.jit
def pattern(
    x, sample, first, stop, D, sizes, eps,
    NORM: tl.constexpr, WIDE: tl.constexpr, V: tl.constexpr, C: tl.constexpr, B: tl.constexpr, W: tl.constexpr, E: tl.constexpr,
):  # fmt: skip
    """A tile of patterns in float32, standardised or as they are, and 1 / deviation."""
    start, xs, xd = steps(x, sample, first, sizes, WIDE)
    row = tl.arange(0, B * W)[:, None]
    z = ()
    for c in tl.static_range(C):
        d = elements(c, V, E)
        loaded = tl.load(start + (row * xs + d * xd), mask=(row < stop - first) & (d < D), other=0)
        z += (tl.reshape(loaded, (B, W, E)).to(tl.float32),)
    scale = tl.full((B, W), 1.0, tl.float32)
    if NORM:
        mean = across(z, C) / D
        away = ()
        for c in tl.static_range(C):
            away += (tl.where(elements(c, V, E)[None] < D, z[c] - mean[:, :, None], 0.0),)
        scale = tl.rsqrt(products(away, away, C) / D + eps)
        z = ()
        for c in tl.static_range(C):
            z += (away[c] * scale[:, :, None],)
    return z, scale


@triton.jit
def vector(u, r, R, D, V: tl.constexpr, C: tl.constexpr, W: tl.constexpr, E: tl.constexpr):
    """Row r of (R, D) as it meets a tile: every stream has its own, or threads would have to exchange it."""
    q = ()
    for c in tl.static_range(C):
        d = tl.broadcast_to(elements(c, V, E), (W, E))
        q += (tl.load(u + r * D + d, mask=d < tl.where(r < R, D, 0), other=0)[None],)
    return q


@triton.jit
def allowed(
    scores, r, sample, first, stop, L, counts, counts_sizes, pairs, pairs_sizes,
    COUNTS: tl.constexpr, PAIRS: tl.constexpr, B: tl.constexpr, W: tl.constexpr,
):  # fmt: skip
    """The scores (B, W) of state r, -inf where nothing may be associated."""
    row = within(B, W)
    inside = row < stop - first
    if COUNTS:
        cn, cs = counts_sizes
        start = counts + sample * cn + tl.cast(first, tl.int64) * cs
        inside = inside & (tl.load(start + row * cs, mask=inside, other=0) != 0)
    if PAIRS > 0:
        pn, ph, pl, ps = pairs_sizes
        r = tl.cast(r, tl.int64)
        start = pairs + sample * pn + r // L * ph + r % L * pl + tl.cast(first, tl.int64) * ps
        given = tl.load(start + row * ps, mask=inside, other=0)
        if PAIRS == BLOCKED:
            inside = inside & (given == 0)
        else:
            scores = scores + given.to(tl.float32)
    return tl.where(inside, scores, float("-inf"))


@triton.jit
def put(to, total, i, factor, D, C: tl.constexpr, E: tl.constexpr):
    """Write what all streams have summed up for the i-th state, each times its factor."""
    for c in tl.static_range(C):
        d = c * E + tl.arange(0, E)
        tl.store(to + d, tl.sum(total[i * C + c] * factor[:, None], 0), mask=d < D)


@triton.jit
def finite(top):
    """What to subtract from scores: 0 where there are none."""
    return tl.where(top == float("-inf"), 0.0, top)


@triton.jit
def associate(
    x, u, counts, pairs, sums, tops, weights,
    S, D, R, L, rows, chunks, blocks, x_sizes, u_step, counts_sizes, pairs_sizes, eps,
    NORM: tl.constexpr, COUNTS: tl.constexpr, PAIRS: tl.constexpr, RB: tl.constexpr, STAGES: tl.constexpr,
    WIDE: tl.constexpr, V: tl.constexpr, C: tl.constexpr, B: tl.constexpr, W: tl.constexpr, E: tl.constexpr,
):  # fmt: skip
    """For some patterns and states: the largest score, the sum of w = exp(score - largest), and that of w times pattern."""
    sample, part, block, begin, stop = place(blocks, chunks, rows, S)
    q = ()
    for i in tl.static_range(RB):
        q += (vector(u + sample * u_step, block * RB + i, R, D, V, C, W, E),)
    top = copies(tl.full((W,), float("-inf"), tl.float32), RB)
    weight = copies(tl.zeros((W,), tl.float32), RB)
    total = copies(tl.zeros((W, E), tl.float32), RB * C)
    for first in tl.range(begin, stop, B * W, num_stages=STAGES):
        z, _ = pattern(x, sample, first, stop, D, x_sizes, eps, NORM, WIDE, V, C, B, W, E)
        higher = ()
        heavier = ()
        larger = ()
        for i in tl.static_range(RB):
            r = tl.minimum(block * RB + i, R - 1)
            scores = allowed(products(z, q[i], C), r, sample, first, stop, L, counts, counts_sizes, pairs, pairs_sizes,
                             COUNTS, PAIRS, B, W)  # fmt: skip
            new = tl.maximum(top[i], tl.max(scores, 0))
            shrink = tl.exp(top[i] - finite(new))
            w = tl.exp(scores - finite(new)[None, :])
            higher += (new,)
            heavier += (weight[i] * shrink + tl.sum(w, 0),)
            for c in tl.static_range(C):
                larger += (total[i * C + c] * shrink[:, None] + tl.sum(w[:, :, None] * z[c], 0),)
        top = higher
        weight = heavier
        total = larger
    for i in tl.static_range(RB):
        if block * RB + i < R:
            best = tl.max(top[i], 0)
            shrink = tl.exp(top[i] - finite(best))
            at = (sample * chunks + part) * R + block * RB + i
            tl.store(tops + at, best)
            tl.store(weights + at, tl.sum(weight[i] * shrink, 0))
            put(sums + at * D, total, i, shrink, D, C, E)


@triton.jit
def join(sums, tops, weights, mean, total, top_all, weight_all, D, R, chunks, K: tl.constexpr, E: tl.constexpr):
    """The parts of a sample joined: the mean pattern, the sum of its associations, and what they are made from scores with."""
    at = tl.program_id(0).to(tl.int64)
    first = at // R * chunks * R + at % R
    k = tl.arange(0, K)
    d = tl.program_id(1) * E + tl.arange(0, E)
    top = tl.full((K,), float("-inf"), tl.float32)
    for start in range(0, chunks, K):
        top = tl.maximum(top, tl.load(tops + first + (start + k) * R, mask=start + k < chunks, other=float("-inf")))
    best = tl.max(top, 0)
    weight = tl.zeros((K,), tl.float32)
    value = tl.zeros((K, E), tl.float32)
    for start in range(0, chunks, K):
        live = start + k < chunks
        place = first + (start + k) * R
        shrink = tl.exp(tl.load(tops + place, mask=live, other=float("-inf")) - finite(best))
        weight += shrink * tl.load(weights + place, mask=live, other=0)
        inside = live[:, None] & (d < D)[None, :]
        value += shrink[:, None] * tl.load(sums + place[:, None] * D + d[None, :], mask=inside, other=0)
    weight = tl.sum(weight, 0)
    none = weight == 0
    tl.store(mean + at * D + d, tl.where(none, 0.0, tl.sum(value, 0) / tl.where(none, 1.0, weight)), mask=d < D)
    if tl.program_id(1) == 0:
        tl.store(total + at, tl.where(none, 0.0, weight / weight))  # 1, unless the scores are not numbers
        tl.store(top_all + at, finite(best))
        tl.store(weight_all + at, tl.where(none, 1.0, weight))


@triton.jit
def felt(
    z, r, u, grad, mean, tops, weights, counts, pairs, sample, first, stop, D, R, L, u_step, counts_sizes, pairs_sizes,
    COUNTS: tl.constexpr, PAIRS: tl.constexpr,
    V: tl.constexpr, C: tl.constexpr, B: tl.constexpr, W: tl.constexpr, E: tl.constexpr,
):  # fmt: skip
    """State r, the gradient of its mean, its associations with a tile of patterns, and the gradient of its scores.

    That is the gradient times how far a pattern is from the mean: where an association is almost 1, so is the mean that
    pattern, and a difference of two products would be what rounding leaves.
    """
    q = vector(u + sample * u_step, r, R, D, V, C, W, E)
    g = vector(grad + sample * R * D, r, R, D, V, C, W, E)
    top = tl.load(tops + sample * R + r, mask=r < R, other=0)
    weight = tl.load(weights + sample * R + r, mask=r < R, other=1)
    m = vector(mean + sample * R * D, r, R, D, V, C, W, E)
    away = ()
    for c in tl.static_range(C):
        away += (z[c] - m[c],)
    scores = allowed(products(z, q, C), tl.minimum(r, R - 1), sample, first, stop, L, counts, counts_sizes, pairs, pairs_sizes,
                     COUNTS, PAIRS, B, W)  # fmt: skip
    xi = tl.exp(scores - top) / weight
    return q, g, xi, xi * products(away, g, C)


@triton.jit
def share(
    x, u, grad, mean, tops, weights, counts, pairs, dx, changes, sums,
    S, D, R, L, rows, chunks, x_sizes, dx_sizes, u_step, counts_sizes, pairs_sizes, eps,
    NORM: tl.constexpr, COUNTS: tl.constexpr, PAIRS: tl.constexpr,
    DX: tl.constexpr, CHANGES: tl.constexpr, SUMS: tl.constexpr, RB: tl.constexpr,
    WIDE: tl.constexpr, V: tl.constexpr, C: tl.constexpr, B: tl.constexpr, W: tl.constexpr, E: tl.constexpr,
):  # fmt: skip
    """The gradient of some patterns; that of their scores, or, for few states, what the states' gradient gets from them."""
    sample, part, _, begin, stop = place(1, chunks, rows, S)
    row = within(B, W)
    total = copies(tl.zeros((W, E), tl.float32), RB * C)
    for first in range(begin, stop, B * W):
        z, scale = pattern(x, sample, first, stop, D, x_sizes, eps, NORM, WIDE, V, C, B, W, E)
        dz = copies(tl.zeros((B, W, E), tl.float32), C)
        if SUMS:
            larger = ()
            for r in tl.static_range(RB):
                q, g, xi, change = felt(z, r, u, grad, mean, tops, weights, counts, pairs, sample, first, stop, D, R, L,
                                        u_step, counts_sizes, pairs_sizes, COUNTS, PAIRS, V, C, B, W, E)  # fmt: skip
                dz = pulled(dz, q, g, xi, change, C)
                for c in tl.static_range(C):
                    larger += (total[r * C + c] + tl.sum(change[:, :, None] * z[c], 0),)
            total = larger
        else:
            for r in range(0, R):
                q, g, xi, change = felt(z, r, u, grad, mean, tops, weights, counts, pairs, sample, first, stop, D, R, L,
                                        u_step, counts_sizes, pairs_sizes, COUNTS, PAIRS, V, C, B, W, E)  # fmt: skip
                dz = pulled(dz, q, g, xi, change, C)
                if CHANGES:
                    tl.store(changes + (sample * R + r) * S + first + row, change, mask=row < stop - first)
        if DX:
            level = across(dz, C) / D
            along = products(dz, z, C) / D
            start, xs, xd = steps(dx, sample, first, dx_sizes, WIDE)
            line = tl.arange(0, B * W)[:, None]
            for c in tl.static_range(C):
                slope = dz[c]
                if NORM:
                    slope = scale[:, :, None] * (slope - level[:, :, None] - z[c] * along[:, :, None])
                d = elements(c, V, E)
                slope = tl.reshape(slope.to(dx.dtype.element_ty), (B * W, E))
                tl.store(start + (line * xs + d * xd), slope, mask=(line < stop - first) & (d < D))
    if SUMS:
        for i in tl.static_range(RB):
            if i < R:
                put(sums + ((sample * chunks + part) * R + i) * D, total, i, tl.full((W,), 1.0, tl.float32), D, C, E)


@triton.jit
def pulled(dz, q, g, xi, change, C: tl.constexpr):
    """The gradient of standardised patterns with what one state adds to it."""
    result = ()
    for c in tl.static_range(C):
        result += (dz[c] + xi[:, :, None] * g[c] + change[:, :, None] * q[c],)
    return result


@triton.jit
def recollect(
    x, changes, sums,
    S, D, R, rows, chunks, blocks, x_sizes, eps,
    NORM: tl.constexpr, RB: tl.constexpr, STAGES: tl.constexpr,
    WIDE: tl.constexpr, V: tl.constexpr, C: tl.constexpr, B: tl.constexpr, W: tl.constexpr, E: tl.constexpr,
):  # fmt: skip
    """What the gradient of many states gets from some patterns."""
    sample, part, block, begin, stop = place(blocks, chunks, rows, S)
    row = within(B, W)
    total = copies(tl.zeros((W, E), tl.float32), RB * C)
    for first in tl.range(begin, stop, B * W, num_stages=STAGES):
        z, _ = pattern(x, sample, first, stop, D, x_sizes, eps, NORM, WIDE, V, C, B, W, E)
        larger = ()
        for i in tl.static_range(RB):
            r = tl.minimum(block * RB + i, R - 1)
            change = tl.load(changes + (sample * R + r) * S + first + row, mask=row < stop - first, other=0)
            for c in tl.static_range(C):
                larger += (total[i * C + c] + tl.sum(change[:, :, None] * z[c], 0),)
        total = larger
    for i in tl.static_range(RB):
        if block * RB + i < R:
            at = (sample * chunks + part) * R + block * RB + i
            put(sums + at * D, total, i, tl.full((W,), 1.0, tl.float32), D, C, E)


@dataclass(frozen=True)
class Tiles:
    """How patterns lie over threads, and how many states a program holds."""

    V: int
    C: int
    B: int
    W: int
    E: int
    states: int
    warps: int

    @property
    def patterns(self) -> int:
        return self.B * self.W

    def settings(self, *over: Tensor) -> dict[str, int]:
        """What kernels are told that go over these tensors of patterns."""
        far = any(abs(t.stride(1)) * self.patterns + abs(t.stride(2)) * t.shape[2] > LIMIT for t in over)
        sizes = {"V": self.V, "C": self.C, "B": self.B, "W": self.W, "E": self.E}
        return sizes | {"WIDE": far, "num_warps": self.warps}


def tiles_of(x: Tensor, states: int) -> Tiles:
    """Up to 16 elements of a pattern in a thread, so that its registers hold two patterns and four states."""
    width = max(16, triton.next_power_of_2(x.shape[2]))
    whole = x.shape[2] % 16 == 0 and x.stride(2) == 1 and all(step % 16 == 0 for step in (*x.stride()[:2], x.data_ptr()))
    vector = 4 if whole else 1
    own = min(16 if whole else 8, max(width // 32, vector))  # single elements need addresses of their own
    threads = width // own
    warps = max(4, threads // 32)
    return Tiles(
        V=vector, C=own // vector, B=min(8, 32 // own, 8192 // width), W=warps * 32 // threads, E=threads * vector,
        states=min(triton.next_power_of_2(states), 2 * vector, 64 // own), warps=warps,
    )  # fmt: skip


def parts_of(x: Tensor, blocks: int, tiles: Tiles) -> tuple[int, int]:
    """Patterns that a program sees, whole tiles, and the number of parts of a sample."""
    samples, count = x.shape[:2]
    parts = max(1, PROGRAMS // (samples * blocks))
    rows = triton.cdiv(triton.cdiv(count, parts), tiles.patterns) * tiles.patterns
    return rows, triton.cdiv(count, rows)


def masks(counts: Tensor | None, pairs: Tensor | None, shape: tuple[int, int, int, int]) -> dict[str, Any]:
    """What may be associated, for samples, heads, states and patterns of these numbers."""
    counts = None if counts is None else counts.expand(shape[0], shape[3])
    pairs = None if pairs is None else pairs.expand(shape)
    return {
        "counts": None if counts is None else counts.view(torch.uint8),
        "counts_sizes": (0, 0) if counts is None else counts.stride(),
        "COUNTS": counts is not None,
        "pairs": pairs.view(torch.uint8) if pairs is not None and pairs.dtype == torch.bool else pairs,
        "pairs_sizes": (0,) * 4 if pairs is None else pairs.stride(),
        "PAIRS": 0 if pairs is None else (BLOCKED if pairs.dtype == torch.bool else ADDED).value,
    }


def retrieve(
    x: Tensor, u: Tensor, counts: Tensor | None, pairs: Tensor | None, heads: int, eps: float | None,
    mean: Tensor, total: Tensor, top: Tensor, weight: Tensor,
) -> None:  # fmt: skip
    """Write means (N, R, D), sums of associations (N, R), and the score and weight that make associations of scores."""
    samples, count, width = x.shape
    states = u.shape[1]
    u = u.expand(samples, states, width)
    tiles = tiles_of(x, states)
    blocks = triton.cdiv(states, tiles.states)
    rows, chunks = parts_of(x, blocks, tiles)
    sums, tops, weights = (mean.new_empty((samples, chunks, states, n)) for n in (width, 1, 1))
    associate[(samples * chunks * blocks,)](
        x=x, u=u, sums=sums, tops=tops, weights=weights,
        S=count, D=width, R=states, L=states // heads, rows=rows, chunks=chunks, blocks=blocks,
        x_sizes=x.stride(), u_step=u.stride(0), eps=eps or 0.0, NORM=eps is not None,
        **masks(counts, pairs, (samples, heads, states // heads, count)), RB=tiles.states, STAGES=3, **tiles.settings(x),
        enable_fp_fusion=True,  # multiply-adds are all that it does
    )  # fmt: skip
    join[(samples * states, triton.cdiv(width, 128))](
        sums=sums, tops=tops, weights=weights, mean=mean, total=total, top_all=top, weight_all=weight,
        D=width, R=states, chunks=chunks, K=32, E=128, num_warps=4, enable_fp_fusion=True,
    )  # fmt: skip


def backward(
    grad: Tensor, x: Tensor, u: Tensor, mean: Tensor, top: Tensor, weight: Tensor,
    counts: Tensor | None, pairs: Tensor | None, heads: int, eps: float | None, dx: Tensor | None, learned: bool,
) -> Tensor | None:  # fmt: skip
    """Write the patterns' gradient, where there is memory for it, and return that of the states if they are `learned`."""
    samples, count, width = x.shape
    states, shared = u.shape[1], u.shape[0] == 1
    u = u.expand(samples, states, width)
    tiles = tiles_of(x, states)
    few = states <= tiles.states
    rows, chunks = parts_of(x, 1, tiles)
    sums = grad.new_empty((samples, chunks, states, width)) if learned and few else None
    changes = grad.new_empty((samples, states, count)) if learned and not few else None
    whole: dict[str, Any] = {"S": count, "D": width, "R": states, "x_sizes": x.stride(), "eps": eps or 0.0}
    share[(samples * chunks,)](
        x=x, u=u, grad=grad, mean=mean, tops=top, weights=weight, dx=dx, changes=changes, sums=sums,
        **whole, L=states // heads, rows=rows, chunks=chunks, dx_sizes=(0, 0, 0) if dx is None else dx.stride(),
        u_step=u.stride(0), NORM=eps is not None,
        **masks(counts, pairs, (samples, heads, states // heads, count)),
        DX=dx is not None, CHANGES=changes is not None, SUMS=sums is not None, RB=tiles.states if few else 1,
        **tiles.settings(x, x if dx is None else dx), enable_fp_fusion=True,
    )  # fmt: skip
    if changes is not None:
        blocks = triton.cdiv(states, tiles.states)
        rows, chunks = parts_of(x, blocks, tiles)
        sums = grad.new_empty((samples, chunks, states, width))
        recollect[(samples * chunks * blocks,)](
            x=x, changes=changes, sums=sums, **whole, rows=rows, chunks=chunks, blocks=blocks,
            NORM=eps is not None, RB=tiles.states, STAGES=3, **tiles.settings(x), enable_fp_fusion=True,
        )  # fmt: skip
    if sums is None:
        return None
    return sums.sum((0, 1)).unsqueeze(0) if shared else sums.sum(1)
