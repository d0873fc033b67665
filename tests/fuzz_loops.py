"""Hostile plans and awkward memory for the compiled loops: `python tests/fuzz_loops.py --cases 1000000 --seed 0`.

A case is drawn from the seed and its number alone. It is a plan as the Python side makes them, mostly with some numbers or
table entries replaced. The loops must refuse it with a ValueError, or run it on memory of the exact size without touching
anything else, without writing to what they only read, and with results that depend on nothing but what they were given.
Addresses of tables are trusted by design, so they are always valid, as long as the plan says and hostile in content alone.

The cases run in processes of their own: the one that was at work when a process crashes or hangs is named. Under
AddressSanitizer, which sees reads as well, memory has no guards around it; Python must then use malloc (PYTHONMALLOC).
With --library the cases run in this process on loops from a file, without torch, for valgrind (`make valgrind`).
"""

from __future__ import annotations

import argparse
import ast
import importlib.util
import mmap
import os
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter
from importlib.machinery import ExtensionFileLoader
from itertools import product
from math import prod
from typing import Any

from fuzz_corners import corner_case
from fuzz_plans import (
    ELEMENTS,
    FLOATS,
    ITEM,
    LISTED,
    MAX,
    MEAN,
    NAMES,
    PARAMETERS,
    POSITION,
    POWER,
    SANITIZED,
    WATCHED,
    Buffer,
    Draw,
    Fault,
    addressed,
    axes_of,
    content,
    elements_of,
    legal,
    plan_of,
    spoilt,
)

PATIENCE = 60  # seconds without a finished case that count as hanging
MEMORY = 12 << 30  # bytes of addresses that one process may have: a plan must not bring down the machine
WORK = 1_000_000
CORNERS = 0.02  # of the cases
OUTCOMES = ("refused", "accepted, too large to run", "run", "corners refused", "corners run")


# ---- a case ---------------------------------------------------------------------------------------------------------------


def attempt(module: Any, seed: int, case: int, counts: Counter[str]) -> None:
    rng = Draw((seed << 48) + case)
    if rng.random() < CORNERS:
        corner_case(module, rng, counts)
        return
    numbers, reals = plan_of(rng)
    honest = rng.random() < 0.4
    if not honest:
        spoilt(rng, numbers, reals)
    final, alive = addressed(rng, numbers)
    try:
        plan = module.plan(final, tuple(reals))
    except ValueError as error:
        if honest:
            raise Fault(f"a plan of the Python side was refused: {error}") from error
        counts["refused"] += 1
        return
    if not honest and not legal(numbers, final):
        raise Fault("a plan was accepted that is not legal")
    del alive  # a plan has its own copy
    if too_large(numbers, final):
        counts["accepted, too large to run"] += 1
        return
    counts["run"] += 1
    Case(module, rng, plan, final, counts).run()


def too_large(numbers: list[Any], final: tuple[int, ...]) -> bool:
    planes = final[0] * final[1]
    work = 0
    axes = axes_of(final)
    if final[1] > ELEMENTS:  # without samples
        return True
    for fold in range(0, len(axes), 3):
        n, out = ([final[at + i] for at in axes[fold : fold + 3]] for i in (0, 1))
        if prod(n) * max(planes, 1) > ELEMENTS or prod(out) * max(planes, 1) > ELEMENTS:
            return True
        work = max(work, *(prod(pair) for pair in product(*zip(n, out, strict=True))))  # states between two axes
        inside = [elements_of(list(final) if final[at + 2] != LISTED else numbers, at) for at in axes[fold : fold + 3]]
        work = max(work, prod(inside) * max(planes, 1))
    return work > WORK


class Case:
    """One plan with its memory."""

    def __init__(self, module: Any, rng: Draw, plan: Any, final: tuple[int, ...], counts: Counter[str]) -> None:
        self.module, self.rng, self.plan, self.counts = module, rng, plan, counts
        self.n, self.c, self.kind, _, self.op, index = final[:6]
        self.positions = self.op == MAX and index == POSITION
        axes = axes_of(final)
        self.inside = prod(final[at] for at in axes[:3])
        self.outs = [prod(final[at + 1] for at in axes[i : i + 3]) for i in range(0, len(axes), 3)]
        self.planes = self.n * self.c
        self.kept, self.bands, _, _ = module.describe(plan)
        self.x = Buffer(content(rng, self.kind, self.planes * self.inside), rng.choice((0, 0, 1, 3)) * ITEM[self.kind])
        density = rng.choice((0.0, 0.3, 0.7, 0.97, 1.0))
        size = (self.n * self.inside if self.planes else 1) * final[NAMES.index("mask")]  # what is needed must have an address
        self.mask = Buffer(bytes(rng.random() < density for _ in range(size)), rng.choice((0, 1, 5)))
        self.parameters = rng.choice((1, self.c)) if self.c else 1
        usual = rng.random() < 0.6
        values = [rng.choice(PARAMETERS[: 7 if usual else None]) for _ in range(self.parameters)]
        self.parameter = Buffer(struct.pack(f"{self.parameters}d", *values))

    def run(self) -> None:
        rng, learns = self.rng, self.kind < FLOATS and self.rng.random() < 0.7
        if self.planes and rng.random() < 0.02:
            self.forgotten()
        if rng.random() < 0.25:
            return self.repeat(learns)
        self.results(0xA5, learns, [content(rng, self.kind, self.planes * out) for out in self.outs])

    def repeat(self, learns: bool) -> None:
        """The same from other memory: results, scratch and stack hold other things before they are written."""
        grads = [content(self.rng, self.kind, self.planes * out) for out in self.outs]
        found = [self.results(fill, learns, grads) for fill in (0x00, 0xFF, 0x7F)]  # zeros, NaN, and a large number
        self.module.poison(-1)
        if found[1:] != found[:-1]:
            raise Fault("results differ from run to run: something was not written, or read before it was")

    def results(self, fill: int, learns: bool, grads: list[bytes]) -> list[bytes]:
        """Everything that the calls have made, where they did not leave it to the definition."""
        if not WATCHED:
            self.module.poison(fill)
        found: list[bytes] = []
        self.forward(0, [Buffer(b"")] * len(self.outs), fill, found)
        if not learns:
            return found
        aux = [Buffer(bytes([fill]) * (size or self.op != MEAN)) for size in self.kept]
        if self.op != MEAN and not self.forward(1, aux, fill, found):
            return found
        if self.op == MAX:
            self.forward(2, aux, fill, found)
        self.backward(aux, fill, grads, found)
        return found

    def forward(self, what: int, aux: list[Buffer], fill: int, found: list[bytes]) -> bool:
        byte, item = bytes([fill]), ITEM[self.kind]
        before = [a.memory.tobytes() for a in aux]
        ys = [Buffer(byte * (self.planes * out * item)) for out in self.outs]
        positions = [Buffer(byte * (self.planes * out * 8) if self.positions and what == 0 else b"") for out in self.outs]
        addresses = [b.address for group in zip(ys, aux, positions, strict=True) for b in group]
        done = self.call(self.module.forward, what, 0, addresses)
        results = [b.whole() for b in (*ys, *positions)]
        if what == 1:
            for a in aux:
                a.whole()
        elif [a.memory.tobytes() for a in aux] != before:
            raise Fault("what was kept was written to")
        if done:
            found += results
        return done

    def backward(self, aux: list[Buffer], fill: int, grads: list[bytes], found: list[bytes]) -> None:
        dx = Buffer(bytes([fill]) * (self.planes * self.inside * ITEM[self.kind]))
        wanted = self.op not in (MAX, MEAN) and len(grads[0]) % 3 != 0
        slopes = Buffer(bytes(self.bands * self.planes * 8) if wanted else b"")
        given = [Buffer(grad, ITEM[self.kind] * (len(grad) % 2)) for grad in grads]
        before = [a.memory.tobytes() for a in aux]
        addresses = [address for g, a in zip(given, aux, strict=True) for address in (g.address, a.address, 0)]
        done = self.call(self.module.backward, dx.address, slopes.address, addresses)
        results = [dx.whole(), slopes.whole()]
        if not all(g.unchanged() for g in given) or [a.memory.tobytes() for a in aux] != before:
            raise Fault("a gradient of a result, or what was kept, was written to")
        if done:
            found += results

    def call(self, function: Any, first: int, second: int, addresses: list[int]) -> bool:
        parameter = self.parameter.address if self.op >= POWER else 0
        x, mask = self.x.address, self.mask.address
        done = function(self.plan, x, mask, parameter, self.parameters if parameter else 0, first, second, *addresses)
        if not (self.x.unchanged() and self.mask.unchanged() and self.parameter.unchanged()):
            raise Fault("what is only read was written to")
        self.counts["calls" if done else "calls left to the definition"] += 1
        return bool(done)

    def forgotten(self) -> None:
        """A call without an address that it needs."""
        function, dx = self.rng.choice(((self.module.forward, 0), (self.module.backward, self.x.address)))
        ys = [self.x.address, 0, 0] * len(self.outs)
        x = self.x.address
        if self.rng.random() < 0.5:
            x = 0
        else:
            ys[3 * int(self.rng.random() * len(self.outs))] = 0
        try:
            function(self.plan, x, self.mask.address, self.parameter.address, self.parameters, dx, 0, *ys)
        except ValueError:
            return
        raise Fault("a call without a needed address was accepted")


# ---- processes ------------------------------------------------------------------------------------------------------------


def loaded(library: str) -> Any:
    """The compiled loops in a file, by which no torch is needed, or those that the package has chosen."""
    if not library:
        from everypool.backends import cpu

        return cpu.library()
    name = os.path.basename(library).partition(".")[0]
    spec = importlib.util.spec_from_file_location(name, library, loader=ExtensionFileLoader(name, library))
    if spec is None:
        raise ValueError(f"`library` must be an extension module, got {library}")
    return importlib.util.module_from_spec(spec)


def work(seed: int, first: int, cases: int, progress: str, library: str = "") -> int:
    """The cases in this process; the number of the one at hand is in the file `progress`."""
    import resource  # no system without it has compiled loops

    module = loaded(library)
    if module is None:
        print("no compiled loops are installed")
        return 3
    if not (SANITIZED or WATCHED):
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    counts: Counter[str] = Counter()
    with open(progress, "r+b") as file, mmap.mmap(file.fileno(), 8) as place:
        for case in range(first, first + cases):
            struct.pack_into("q", place, 0, case)
            try:
                attempt(module, seed, case, counts)
            except Fault as fault:
                print(f"fault: {fault}")
                return 1
        struct.pack_into("q", place, 0, -1)
    print(repr(dict(counts)))
    return 0


def spread(cases: int, seed: int, first: int, jobs: int) -> int:
    """The cases over some processes; prints what came of them."""
    begin, counts, ended = time.monotonic(), Counter[str](), 0
    print(f"{cases} cases from {first} on, seed {seed}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        borders = [first + cases * j // jobs for j in range(jobs + 1)]
        workers = [Worker(seed, borders[j], borders[j + 1], f"{folder}/{j}") for j in range(jobs)]
        for worker in workers:
            result = worker.wait()
            if result is None:
                ended = 1
                print(f"again: python {sys.argv[0]} --seed {seed} --first {worker.case()} --cases 1", flush=True)
            else:
                counts.update(result)
    seconds = time.monotonic() - begin
    print(f"{sum(counts[k] for k in OUTCOMES)} cases in {seconds:.1f} s")
    for outcome, number in sorted(counts.items()):
        print(f"{number:10}  {outcome}")
    return ended


class Worker:
    """A process with some of the cases."""

    def __init__(self, seed: int, first: int, end: int, progress: str) -> None:
        with open(progress, "wb") as file:
            file.write(struct.pack("q", first))
        self.progress = progress
        numbers = ("--seed", seed, "--first", first, "--cases", end - first, "--progress", progress)
        command = [sys.executable, "-X", "faulthandler", __file__, *map(str, numbers)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    def case(self) -> int:
        with open(self.progress, "rb") as file:
            return int(struct.unpack("q", file.read(8))[0])

    def wait(self) -> dict[str, int] | None:
        """What came of the cases; None where one of them failed."""
        seen, since = self.case(), time.monotonic()
        while True:
            try:
                output, _ = self.process.communicate(timeout=1)
                break
            except subprocess.TimeoutExpired:
                if self.case() != seen:
                    seen, since = self.case(), time.monotonic()
                elif time.monotonic() - since > PATIENCE:
                    self.process.kill()
                    output, _ = self.process.communicate()
                    output += f"fault: no end after {PATIENCE} s\n"
                    break
        if self.process.returncode == 0:
            return dict(ast.literal_eval(output))
        print(output, f"ended with {self.process.returncode}", sep="", flush=True)
        return None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--library", default="", help="file of the compiled loops: in this process, without torch")
    parser.add_argument("--progress", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.library:
        with tempfile.NamedTemporaryFile() as file:
            file.write(bytes(8))
            file.flush()
            return work(given.seed, given.first, given.cases, file.name, given.library)
    if given.progress:
        return work(given.seed, given.first, given.cases, given.progress)
    return spread(given.cases, given.seed, given.first, min(given.jobs, given.cases))


if __name__ == "__main__":
    sys.exit(main())
