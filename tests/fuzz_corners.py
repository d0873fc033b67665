"""Hostile calls of the compiled corners: pairs of plans that are, or nearly are, two running maxima over one map."""

from __future__ import annotations

from collections import Counter
from typing import Any

from fuzz_plans import ELEMENTS, FLOATS, ITEM, MAX, SLIDING, Buffer, Draw, Fault, addressed, content, described, kept, running

POOL, KEEP, TAKE, GRADIENT = range(4)


def scan(rng: Draw, shape: tuple[int, int, int, int], kind: int, along: int, last: int) -> list[Any]:
    """Numbers of a running maximum, now and then of something else."""
    batch, channels, *plane = shape
    rng.batch = batch
    numbers: list[Any] = [
        batch,
        channels,
        kind,
        int(rng.random() < 0.05),
        MAX,
        0,
        0,
        0,
        last,
        0,
        0,
        0,
        1,
        int(rng.random() < 0.9),
        0,
    ]
    other = rng.random() < 0.05
    numbers += described(rng, 1, 1, SLIDING)
    for number, n in enumerate(plane):
        numbers += (running if number == along or other else kept)(rng, n)
    return numbers


def corner_case(module: Any, rng: Draw, counts: Counter[str]) -> None:
    """A call must equal itself over other memory, write what it must and nothing else, and refuse what it does not do."""
    batch, channels = rng.choice((1, 1, 2, 3)), rng.choice((1, 2, 3, 5, 8, 9))
    wide, high = rng.choice((1, 4, 7, 8, 9, 15, 16, 17, 33, 70)), rng.choice((1, 2, 7, 8, 9, 16, 31, 40))
    kind, last = rng.choice((0, 0, 1, 2, 3, 3, 4)), int(rng.random() < 0.5)
    plans, alive = [], []
    for number, along in enumerate(rng.choice(((0, 1), (0, 1), (1, 0), (0, 0)))):
        differs = number == 1 and rng.random() < 0.1
        shape = (batch + (differs and rng.random() < 0.3), channels, high, wide + (differs and rng.random() < 0.3))
        kind_here = rng.choice((0, 2, kind)) if differs else kind
        final, tables = addressed(rng, scan(rng, shape, kind_here, along, 1 - last if differs and rng.random() < 0.3 else last))
        alive.append(tables)
        try:
            plans.append(module.plan(final, (0.0, 1.0)))
        except ValueError as error:
            raise Fault(f"a plan of the Python side was refused: {error}") from error
    size = module.corner_bytes(*plans)
    elements = batch * channels * high * wide
    if size < 0 or elements > ELEMENTS:
        counts["corners refused"] += 1
        some = Buffer(bytes(64)).address
        try:
            if size < 0:
                module.corner(*plans, POOL, some, some, some, some, some)
                raise Fault("two plans that make no corner were run")
        except ValueError:
            return
        return
    if kind >= FLOATS:
        raise Fault("a corner of integers was accepted")
    bytes_of = elements * ITEM[kind]
    shift = rng.choice((0, 0, ITEM[kind]))
    maps = [Buffer(content(rng, kind, elements), shift) for _ in range(1 if rng.random() < 0.4 else 2)]
    grad = Buffer(content(rng, kind, elements), shift)
    counts["corners run"] += 1
    found = []
    for fill in (b"\x00", b"\xff"):
        aux, y, again, taken = Buffer(fill * size), *(Buffer(fill * bytes_of) for _ in range(3))
        grads = [Buffer(fill * bytes_of) for _ in maps]
        x, other = maps[0].address, maps[-1].address
        for what, result in ((POOL, y), (KEEP, again), (TAKE, taken)):
            if not module.corner(*plans, what, x, other, result.address, result.address, aux.address):
                raise Fault("a corner had no memory")
        held = aux.memory.tobytes()
        module.corner(*plans, GRADIENT, grad.address, grad.address, grads[0].address, grads[-1].address, aux.address)
        if aux.memory.tobytes() != held or not all(b.unchanged() for b in (*maps, grad)):
            raise Fault("what is only read was written to")
        results = [b.whole() for b in (y, again, taken, *grads)]
        aux.whole()
        found.append(results)
    if found[0] != found[1]:
        raise Fault("results differ from run to run: something was not written, or read before it was")
    try:
        module.corner(*plans, KEEP, maps[0].address, rng.choice((0, maps[0].address)), 0, 0, 0)
    except ValueError:
        return
    raise Fault("a call without a needed address was accepted")
