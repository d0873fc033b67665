"""What the fuzzers of the compiled loops are made of: plans as numbers, and memory that shows what was written to."""

from __future__ import annotations

import os
import random
import struct
from array import array
from math import inf, nan, prod
from typing import Any

SANITIZED = "asan" in os.environ.get("LD_PRELOAD", "")
WATCHED = "vgpreload" in os.environ.get("LD_PRELOAD", "")  # by valgrind, which knows what was written

MAX, MEAN, POWER = 0, 1, 2
POSITION = 2
FLOATS = 4  # the first types
ITEM = (4, 8, 2, 2, 1, 1, 2, 4, 8)  # bytes by type
NAMES = ("N", "C", "type", "pixels", "op", "index", "divisor", "sign", "last", "sum", "plain", "mask", "folds")
AXIS_NAMES = ("n", "out", "kind", "step", "kernel", "stride", "left", "right", "cells", "middle", "run", "rows")
HEADER, FOLD, AXIS = len(NAMES), 2, len(AXIS_NAMES) + 3
TABLES = (12, 13, 14)  # start, count and extent within the numbers of an axis
SLIDING, BINS, UP_TO, FROM, LISTED = range(5)  # kinds of windows
LARGEST = 1 << 46

ENTRIES = 4096  # most entries of a table that has an address
ELEMENTS = 60_000  # larger plans are made, but not run
EDGES = (-1, 0, 1, 2, 3, 7, 255, 256, 2**15, 2**31 - 1, 2**31, 2**32, 2**32 + 1, LARGEST, LARGEST + 1, 2**62, 2**63 - 1)
EDGES += (-2, -(2**31), -(2**46), -(2**63) + 1, -(2**63))
PARAMETERS = (1.0, 2.0, 3.0, 0.5, 4.7, 0.01, 60.0, -1.0, -2.5, 0.0, -0.0, inf, -inf, nan, 1e300, 1e-300, 5e-324)
SPECIALS = (nan, inf, -inf, 0.0, -0.0, 1.0, -1.0, 65504.0, 6e-8)


Windows = list[tuple[int, int]]  # first element and number of them


class Fault(Exception):
    """What the loops must not do."""


class Draw(random.Random):
    """What a case is drawn from."""

    batch = 1  # samples of the plan at hand
    middles = False  # of every window only its middle

    def random(self) -> float:
        """Make whole numbers of floats, too: those that CPython makes of bits look unwritten to valgrind."""
        return super().random()


# ---- plans ----------------------------------------------------------------------------------------------------------------


def sliding(rng: Draw, n: int) -> list[Any]:
    if n > 1 and rng.random() < 0.2:  # side by side, none clipped: loops of their own
        kernel = rng.randint(2, min(n, 4))
        return described(rng, n, n // kernel, SLIDING, 1, kernel, kernel)
    kernel = 1 + int(rng.random() * (rng.choice((3, n, 2 * n + 3))))
    stride, step = rng.choice((1, 1, 2, 3, kernel, 2 * n)), rng.choice((1, 1, 1, 2, n))
    left = rng.choice((0, 0, kernel // 2, rng.randint(-n, 2 * kernel)))
    out = max((n + 2 * left - (kernel - 1) * step - 1) // stride + 1, 1) if rng.random() < 0.8 else rng.randint(1, n + 3)
    out = min(out, 3 * n + 3)
    if rng.random() < 0.8:
        right = rng.choice((left, left, 0, rng.randint(-n, 2 * kernel)))
        return described(rng, n, out, SLIDING, step, kernel, stride, left, right)
    windows: Windows = []
    for o in range(out):
        inside = [e for e in range(o * stride - left, o * stride - left + kernel * step, step) if 0 <= e < n]
        windows.append((inside[0] if inside else rng.choice(EDGES), len(inside)))
    return axis(rng, n, [windows], step)


def bins(rng: Draw, n: int) -> list[Any]:
    out = rng.choice((1, 1, n, rng.randint(1, n + 2)))
    ends = [(o * n // out, -(-(o + 1) * n // out)) for o in range(out)]
    found = sizes(rng, n)
    rows = [[(start, max(min(end, size) - start, 0)) for start, end in ends] for size in found]
    return described(rng, n, out, BINS) if found == [n] else axis(rng, n, rows)


def running(rng: Draw, n: int) -> list[Any]:
    forward = rng.random() < 0.5
    rows, found = [], sizes(rng, n)
    for size in found:
        windows = [(0, o + 1) if forward else (o, size - o) for o in range(size)]
        rows.append(windows + [(0, 0)] * (n - size))
    return described(rng, n, n, UP_TO if forward else FROM) if found == [n] else axis(rng, n, rows, 1, 1 if forward else 2)


def listed(rng: Draw, n: int) -> list[Any]:
    out, step = rng.randint(1, n + 3), rng.choice((1, 1, 2, n + 1))
    rows = []
    for _ in sizes(rng, n):
        starts = [int(rng.random() * n) for _ in range(out)]
        rows.append([(start, int(rng.random() * ((n - 1 - start) // step + 2))) for start in starts])
    return axis(rng, n, rows, step)


def kept(rng: Draw, n: int) -> list[Any]:
    found = sizes(rng, n)
    if found == [n]:
        return described(rng, n, n, SLIDING)
    return axis(rng, n, [[(o, 1 if o < size else 0) for o in range(n)] for size in found])


def sizes(rng: Draw, n: int) -> list[int]:
    """One size for all samples, or one for each: `rng.batch` samples."""
    return [n] if rng.random() < 0.8 else [rng.randint(1, n) for _ in range(rng.batch)]


def described(
    rng: Draw, n: int, out: int, kind: int, step: int = 1, kernel: int = 1, stride: int = 1, left: int = 0, right: int = 0
) -> list[Any]:
    """The numbers of an axis whose windows are alike for all samples."""
    middle = rng.choice((1, 2)) if rng.middles and n > 1 else 0
    return [n, out, kind, step, kernel, stride, left, right, int(rng.random() < 0.9), middle, 0, 1, None, None, None]


def axis(rng: Draw, n: int, rows: list[Windows], step: int = 1, run: int = 0) -> list[Any]:
    """The numbers of an axis whose windows are listed, those of each sample or of all."""
    if rng.middles:
        rows, step, run = [[(start + count // 2 * step, min(count, 1)) for start, count in row] for row in rows], 1, 0
    starts, counts = ([window[i] for row in rows for window in row] for i in (0, 1))
    out = len(rows[0]) if rows else n
    extents = None if rng.random() < 0.1 else [rng.choice((1, 2, n, *EDGES)) if rng.random() < 0.2 else c + 1 for c in counts]
    return [n, out, LISTED, step, 1, 1, 0, 0, int(extents is not None), 0, run, len(rows), starts, counts, extents]


def plan_of(rng: Draw, width: int | None = None, type_: int | None = None) -> tuple[list[Any], list[float]]:
    """Numbers that must be accepted, of a map of some width and type; a table is a list in them, None if it is missing."""
    batch, channels = rng.choice((0, 1, 1, 2, 2, 3)), rng.choice((0, 1, 1, 2, 3, 4, 5, 7, 8, 8, 9, 16, 17))
    rng.batch = batch
    kind = rng.choice((0, 0, 0, 1, 1, 2, 2, 3, 3, 4, 5, 6, 7, 8)) if type_ is None else type_
    op = rng.choice((0, 0, 1, 1, 2, 3, 4)) if kind < FLOATS else MAX
    most = rng.choice((2, 5, 5, 9, 9, 20)) if rng.random() < 0.97 else 60
    shape = [rng.randint(1, most) for _ in range(3)]
    for missing in range(rng.choice((0, 0, 1, 1, 1, 1, 2, 2))):
        shape[missing] = 1
    shape = shape if prod(shape) < 4000 else [1, *shape[1:]]
    shape[2] = width or shape[2]
    rng.middles = op == MAX and rng.random() < 0.1
    flag = lambda: int(rng.random() < 0.3)  # noqa: E731
    mask = rng.choice((0, 0, 0, 1, channels))
    number = 1 if rng.random() < 0.8 else rng.randint(2, 4)
    numbers: list[Any] = [batch, channels, kind, flag(), op, rng.choice((0, 0, 1, 2)), rng.choice((0, 0, 1, 2))]
    numbers += [flag(), flag(), flag(), flag(), mask, number]
    common = rng.choice((sliding, sliding, bins, running, listed, None))
    for _ in range(number):
        axes = []
        for n in shape:
            draw = common or rng.choice((sliding, bins, running, listed, kept))
            axes.append(draw(rng, n) if n > 1 or rng.random() < 0.1 else described(rng, 1, 1, SLIDING))
        places = prod(a[0] for a in axes) == prod(a[1] for a in axes)
        numbers += [int(places and rng.random() < 0.5), flag(), *axes[0], *axes[1], *axes[2]]
    return numbers, [rng.choice((0.0, 1e-6, 1.0)), float(rng.choice((1, 2, 9, -3)))]


def grouped_plan(rng: Draw, width: int, type_: int) -> tuple[list[Any], list[float]]:
    """A plan of few planes whose windows lie side by side along the rows, which loops of their own take."""
    rng.batch, channels, high = rng.choice((1, 1, 2)), rng.choice((1, 1, 2, 3)), rng.randint(1, 9)
    op = rng.choice((1, 1, 1, 2, 2, 3, 4, 0)) if type_ < FLOATS else MAX
    kernel = rng.randint(2, 4)
    width = width if rng.random() < 0.3 else kernel * rng.randint(1, 7)  # mostly less than a register
    along = described(rng, width, max(width // kernel, 1), SLIDING, 1, kernel, kernel)
    rows = sliding(rng, high) if rng.random() < 0.5 else described(rng, high, high, SLIDING)
    settings = [rng.choice((0, 0, 1, 2)), rng.choice((0, 1)), 0, rng.choice((0, 1)), 0, 0]
    return [rng.batch, channels, type_, 0, op, 0, *settings, 1, 0, 0, *described(rng, 1, 1, SLIDING), *rows, *along], [0.0, 9.0]


def spoilt(rng: Draw, numbers: list[Any], reals: list[float]) -> None:
    """Replace, drop or add numbers and table entries in place."""
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        at = int(rng.random() * len(numbers))
        item, way = numbers[at], rng.random()
        if way < 0.04:
            del numbers[at:]
            numbers += [rng.choice(EDGES) for _ in range(rng.choice((0, 0, 1, 40)))]
        elif way < 0.08:
            numbers.insert(at, rng.choice(EDGES))
        elif way < 0.12:
            del numbers[at]
        elif way < 0.15:
            reals[:] = [rng.choice(PARAMETERS) for _ in range(rng.choice((0, 1, 2, 2, 2, 3)))]
        elif isinstance(item, list) and item and way < 0.95:
            entry = int(rng.random() * len(item))
            item[entry] = rng.choice((rng.choice(EDGES), item[entry] + 1, item[entry] - 1, -item[entry]))
        elif isinstance(item, int):
            numbers[at] = rng.choice((rng.choice(EDGES), item + 1, item - 1, -item, item + 2**32, item * 2**31))
        else:
            numbers[at] = None
        if not numbers:
            numbers.append(0)


def addressed(rng: Draw, numbers: list[Any]) -> tuple[tuple[int, ...], list[array[int]]]:
    """The numbers as the loops get them, and what must stay alive meanwhile.

    A table gets an address only where a table is read, and is as long as the plan says there; its neighbours were moved by
    what `spoilt` has added or dropped.
    """
    alive: list[array[int]] = []
    final: list[int] = []
    for at, item in enumerate(numbers):
        within = (at - HEADER) % (FOLD + 3 * AXIS) - FOLD
        table = at >= HEADER and within >= 0 and within % AXIS in TABLES
        if not table:
            final.append(min(max(len(item) if isinstance(item, list) else item or 0, -(2**63)), 2**63 - 1))
            continue
        out, kind, rows = (final[at - within % AXIS + AXIS_NAMES.index(name)] for name in ("out", "kind", "rows"))
        entries = out * rows
        if kind != LISTED or not isinstance(item, list) or not 0 < entries <= ENTRIES or rows < 0:
            numbers[at] = ()
            final.append(0)
            continue
        entry = [min(max(value, -(2**63)), 2**63 - 1) for value in item] or [0]
        while len(entry) < entries:
            entry.append(rng.choice(entry))
        alive.append(array("q", entry[:entries]))
        numbers[at] = alive[-1]
        final.append(alive[-1].buffer_info()[0])
    return tuple(final), alive


def legal(numbers: list[Any], final: tuple[int, ...]) -> bool:
    """Whether a plan's windows lie within its axes and are what they claim to be, by counting."""
    header = dict(zip(NAMES, final, strict=False))
    if not (0 <= header["type"] < len(ITEM) and 0 <= header["op"] < 5 and 0 <= header["index"] < 3):
        return False
    if not (0 <= header["divisor"] < 3 and 0 <= header["sign"] < 2 and header["mask"] in (0, 1, header["C"])):
        return False
    for at in axes_of(final):
        if len(final) < at + AXIS:
            return False
        found = dict(zip(AXIS_NAMES, final[at : at + TABLES[0]], strict=True))
        if min(found["kind"], found["cells"], found["middle"], found["run"]) < 0 or max(found["kind"], found["cells"]) > LISTED:
            return False
        if max(found["middle"], found["run"]) > 2 or found["rows"] not in (1, header["N"]):
            return False
        n, out, kind, step, run, rows = (found[name] for name in ("n", "out", "kind", "step", "run", "rows"))
        if min(n, out, step) < 1 or (n != out and (run or kind in (UP_TO, FROM))):
            return False
        if kind != LISTED:
            kernel, stride = found["kernel"], found["stride"]
            numbered = kernel >= 1 and stride >= 1 and max((out - 1) * stride, (kernel - 1) * step, kernel, stride) <= LARGEST
            numbered = numbered and max(abs(found["left"]), abs(found["right"])) <= LARGEST
            if rows != 1 or run or not (numbered if kind == SLIDING else step == 1 and max(n, out) < 2**31):
                return False
            continue
        if found["middle"]:
            return False
        starts, counts = (numbers[at + t] for t in TABLES[:2])
        if not (starts and counts) and rows * out:
            return False
        for e in range(rows * out):
            start, count, o = starts[e], counts[e], e % out
            if count and not (0 <= start < n and 0 < count <= n and start + (count - 1) * step < n):
                return False
            if run and count and not (start == 0 and count == o + 1 if run == 1 else start == o):
                return False
    return True


def elements_of(numbers: list[Any], at: int) -> int:
    """Elements in all windows of an axis, at most."""
    n, out, kind, _, kernel = numbers[at : at + 5]
    if kind == LISTED:
        return sum(numbers[at + TABLES[1]])
    return out * min(kernel if kind == SLIDING else n, n)


def axes_of(final: tuple[int, ...]) -> list[int]:
    """Where the numbers of each axis begin."""
    return [HEADER + f * (FOLD + 3 * AXIS) + FOLD + a * AXIS for f in range(final[HEADER - 1]) for a in range(3)]


# ---- memory ---------------------------------------------------------------------------------------------------------------

GUARD = b"" if SANITIZED else bytes(range(0xA0, 0xC0))
BYTE = array("B", b"\0")


class Buffer:
    """Memory of an exact size between two guards."""

    __slots__ = ("address", "given", "memory")

    def __init__(self, content: bytes, shift: int = 0) -> None:
        self.given = b"".join((GUARD, bytes(shift), content, GUARD))
        self.memory = BYTE * len(self.given)
        memoryview(self.memory)[:] = self.given
        self.address = self.memory.buffer_info()[0] + len(GUARD) + shift if content else 0

    def unchanged(self) -> bool:
        return self.memory.tobytes() == self.given

    def whole(self) -> bytes:
        """Everything with its guards, which must be as they were."""
        found = self.memory.tobytes()
        if not (found.startswith(GUARD) and found.endswith(GUARD)):
            raise Fault("memory outside of a result was written to")
        return found


def pools() -> list[list[bytes]]:
    """Contents to draw from by type: ordinary values, special ones, any bits."""
    rng = random.Random(0)
    number = 2048
    found = []
    for kind, item in enumerate(ITEM):
        made = [rng.randbytes(number * item)]
        if kind < FLOATS:
            for draw in (lambda: rng.gauss(0, 2), lambda: rng.choice(SPECIALS)):
                values = [draw() for _ in range(number)]
                if kind == 2:  # bfloat16 is the upper half of float32
                    made.append(b"".join(struct.pack("<f", value)[2:] for value in values))
                else:
                    made.append(struct.pack(f"<{number}{'fd?e'[kind]}", *values))
        found.append([made[i] for i in ((1, 1, 1, 2, 0) if kind < FLOATS else (0,))])
    return found


POOLS = pools()


def content(rng: Draw, kind: int, number: int) -> bytes:
    pool, item = rng.choice(POOLS[kind]), ITEM[kind]
    part = pool[int(rng.random() * (len(pool) // item // 2)) * item :]
    while len(part) < number * item:
        part *= 2
    return part[: number * item]
