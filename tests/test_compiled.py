"""The compiled loops run where they claim to, and equal the definition: cases drawn from every kind of window and type."""

from __future__ import annotations

import importlib.util
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from cases import ROWS, steps
from torch import Tensor

import everypool
from everypool import Boxes, Global, Max, Mean, Pyramid, Reducer, Scan, Sliding, Soft, Strips, Windows, pool
from everypool.backends import cpu
from everypool.backends.choose import forced
from everypool.pool import find_operation, parse

pytestmark = pytest.mark.skipif(cpu.library() is None, reason=f"no compiled loops are installed: {cpu.missing()}")

EPS = torch.finfo(torch.float32).eps
FLOATS = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
INTEGERS = [torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64, torch.bool]
KINDS = ["sliding", "adaptive", "global", "pyramid", "strips", "scan", "boxes"]
PER_KIND = 3  # drawn cases for every row and kind of window

# no recipe, or a parameter at a limit, where the definition has a formula of its own
DEFINED = {"center,even=mean", "max,ties=even", "median", "median,even=upper", "median,even=mean"}
DEFINED |= {"gem,p=3.0,signed=odd", "gem,p=2.0,signed=shift", "gem,p=0.0", "gem,p=inf", "lp,p=inf", "logsumexp,r=0.0"}
COMPILED = [row for row in ROWS if row.id not in DEFINED]
MORE: list[tuple[str, Callable[[], Reducer]]] = [
    ("avg,count_include_pad", lambda: Mean(count_include_pad=True)),
    ("avg,divisor=-7", lambda: Mean(divisor=-7)),
    ("max,indices", lambda: Max(indices=True)),
    ("max,indices,ties=last", lambda: Max("last", indices=True)),
    ("soft,grad=authors", lambda: Soft(2.0, grad="authors")),
]
MAXIMA = [("max", Max), *MORE[2:4], ("max,ties=last", lambda: Max("last"))]
REDUCERS = [(row.id, row.reducer) for row in COMPILED] + MORE


@dataclass
class Calls:
    """How often the loops have pooled, and how often they left it to the definition."""

    forward: int = 0
    backward: int = 0
    left: int = 0


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    counted = Calls()
    library: Any = cpu.library()

    def wrapped(name: str) -> Callable[..., bool]:
        original = getattr(library, name)

        def call(*arguments: Any) -> bool:
            done: bool = original(*arguments)
            counted.left += not done
            setattr(counted, name, getattr(counted, name) + done)
            return done

        return call

    for name in ("forward", "backward"):
        monkeypatch.setattr(library, name, wrapped(name))
    return counted


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


# ---- drawn cases ----------------------------------------------------------------------------------------------------------


def windows_of(rng: random.Random, kind: str, spatial: tuple[int, ...], batch: int) -> Windows:
    nd = len(spatial)
    if kind == "sliding":
        return slides(rng, spatial)
    if kind == "adaptive":
        return everypool.Adaptive(tuple(rng.choice((None, 1, 2, 3, n, n + 2)) for n in spatial))
    if kind == "pyramid":
        return Pyramid(tuple(rng.sample((1, 2, 3, 5), rng.randint(1, 3))))
    if kind == "scan":
        return Scan(rng.randrange(-nd, nd), rng.random() < 0.5)
    if kind == "boxes":
        boxes = []
        for _ in range(rng.randint(1, 5)):
            low = [rng.uniform(-1, n - 1.5) for n in reversed(spatial)]
            boxes.append([rng.randrange(batch), *low, *(at + rng.uniform(0.6, 6) for at in low)])
        return Boxes(torch.tensor(boxes, dtype=torch.float64), rng.randint(1, 3), sampling="pool")
    return Global(rng.random() < 0.5) if kind == "global" else Strips()


def slides(rng: random.Random, spatial: tuple[int, ...]) -> Sliding:
    """Overlapping and separate, padded, dilated, beyond the end; short kernels along all axes more often than long ones."""
    while True:
        kernel = tuple(rng.choice((1, 2, 2, 3, 3, 4, 5, 7, 11)) for _ in spatial)
        if rng.random() < 0.5:
            kernel = (kernel[0],) * len(spatial)
        dilation = tuple(rng.choice((1, 1, 1, 1, 2, 3)) for _ in spatial)
        stride = kernel if rng.random() < 0.3 else tuple(rng.choice((1, 1, 2, 2, 3, 4)) for _ in spatial)
        reach = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
        padding: Any = tuple(rng.choice((0, r // 2, rng.randint(0, r // 2))) for r in reach)
        if all(n + 2 * p >= r for n, p, r in zip(spatial, padding, reach, strict=True)):
            if rng.random() < 0.15:
                padding = "same"
            elif rng.random() < 0.15:
                padding = tuple((p, rng.randint(p, r // 2)) for p, r in zip(padding, reach, strict=True))
            return Sliding(kernel, stride, padding, dilation, rng.random() < 0.4)


def sizes_of(rng: random.Random, windows: Windows, spatial: tuple[int, ...], batch: int) -> Tensor:
    """Sizes in which the windows fit."""
    for _ in range(20):
        sizes = torch.tensor([[rng.randint(1, n) for n in spatial] for _ in range(batch)])
        try:
            pool(torch.zeros(batch, 1, *spatial), "max", windows, sizes=sizes)
        except ValueError:
            continue
        return sizes
    return torch.tensor(spatial).expand(batch, -1)


def values(rng: random.Random, shape: tuple[int, ...], dtype: torch.dtype, positive: bool) -> Tensor:
    made = np.random.default_rng(rng.randrange(2**32))
    if dtype.is_floating_point:
        low, high = (0.5, 2.3) if positive else (-2.0, 2.3)
        return torch.from_numpy(made.uniform(low, high, shape)).to(dtype)
    low, high = (0, 2) if dtype == torch.bool else (torch.iinfo(dtype).min, torch.iinfo(dtype).max)
    if rng.random() < 0.5:  # equal ones as well
        low, high = max(low, -3), min(high, 3)
    return torch.from_numpy(made.integers(low, high, shape)).to(dtype)


def laid_out(rng: random.Random, x: Tensor) -> Tensor:
    """The same values in another order in memory, or at an address that is no multiple of a vector."""
    way = rng.choice(("contiguous", "last", "last", "transposed", "every second", "offset"))
    if way == "last" and x.dim() > 3:
        return x.contiguous(memory_format=torch.channels_last if x.dim() == 4 else torch.channels_last_3d)
    if way == "transposed":
        return x.transpose(0, -1).contiguous().transpose(0, -1)
    if way == "every second":
        return torch.stack((x, x), -1)[..., 1]
    if way == "offset":
        return torch.cat((x.reshape(-1)[:1], x.reshape(-1)))[1:].view(x.shape)
    return x.contiguous()


@dataclass
class Drawn:
    x: Tensor
    windows: Windows
    options: dict[str, Tensor]
    label: str


def drawn(name: str, kind: str, number: int, dtypes: list[torch.dtype]) -> Drawn:
    rng = random.Random(f"{name} {kind} {number}")
    nd = rng.choice((1, 2, 2, 2, 3))
    most = (70, 25, 9)[nd - 1]
    spatial = tuple(rng.randint(1, most) for _ in range(nd))
    batch, channels = rng.choice((1, 2, 3)), rng.choice((1, 3, 8, 8, 16, 17))
    dtype = dtypes[number % len(dtypes)]
    x = laid_out(rng, values(rng, (batch, channels, *spatial), dtype, name.startswith(("gem", "lp"))))
    windows = windows_of(rng, kind, spatial, batch)
    options = {}
    way = rng.choice(("none", "none", "mask", "mask per channel", "sizes", "mask and sizes"))
    if name.startswith("center") and "mask" in way:
        way = "none"  # the definition says which middles count
    if "mask" in way:
        made = torch.Generator().manual_seed(rng.randrange(2**32))
        share = channels if "channel" in way else 1
        options["mask"] = torch.rand((batch, share, *spatial), generator=made) < rng.choice((0.2, 0.8))
    if "sizes" in way:
        options["sizes"] = sizes_of(rng, windows, spatial, batch)
    return Drawn(x, windows, options, f"{number}: {windows} of {tuple(x.shape)} {x.stride()} {dtype} {way}")


def flat(y: Any) -> list[Tensor]:
    """The tensors of a result: strips and indices give tuples."""
    return [y] if isinstance(y, Tensor) else [tensor for part in y for tensor in flat(part)]


def gradients(y: Any, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    """d(sum of all values, each with a weight of its own) / dx, and the values."""
    parts = [part for part in flat(y) if part.dtype.is_floating_point]
    rng = np.random.default_rng(5)
    weights = [torch.from_numpy(rng.integers(-8, 9, part.shape) / 8).to(part.dtype) for part in parts]
    (dx,) = torch.autograd.grad(parts, x, weights)
    return dx, [part.detach() for part in parts]


def close(actual: Tensor, wanted: Tensor, label: str, scale: float, parts: int = 1) -> None:
    """Within the contract of the type: half types a step of the rounded value, or of the largest of `parts` that were added.

    `scale` is the largest of what was added up.
    """
    eps = torch.finfo(actual.dtype).eps
    found, wanted = actual.double().numpy(), wanted.double()
    if eps > EPS:
        near = np.abs(found - wanted.numpy()) <= scale * (eps * (parts - 1) + 4 * EPS)
        assert steps(torch.where(torch.from_numpy(near), wanted.to(actual.dtype), actual), wanted.numpy()) <= 1, label
    else:
        rtol, atol = (64 * EPS, 4 * EPS) if eps == EPS else (1e-12, 1e-13)
        np.testing.assert_allclose(found, wanted.numpy(), rtol=rtol, atol=scale * atol * parts, err_msg=label)


def compare(reducer: Reducer, case: Drawn, calls: Calls) -> None:
    """Values and gradient by the loops, and by the definition in float64 of the same numbers."""
    x, floating = case.x, case.x.dtype.is_floating_point
    exact = x.detach().to(torch.float64) if floating else x
    before = calls.forward, calls.backward
    with forced("cpu"):
        leaf = x.detach().requires_grad_(floating)
        y = pool(leaf, reducer, case.windows, **case.options)
        dx, ys = gradients(y, leaf) if floating else (x, flat(y))
    assert calls.forward > before[0], case.label
    assert calls.backward > before[1] or not floating, case.label
    assert calls.left == 0, case.label
    with forced("eager"):
        ran = calls.forward, calls.backward
        leaf = exact.requires_grad_(floating)
        wanted = pool(leaf, reducer, case.windows, **case.options)
        wanted_dx, wanted_ys = gradients(wanted, leaf) if floating else (x, flat(wanted))
        assert (calls.forward, calls.backward) == ran
    for found, expected in zip(flat(y), flat(wanted), strict=True):
        assert found.shape == expected.shape, case.label
        if not found.dtype.is_floating_point:
            assert torch.equal(found, expected), case.label
    if not floating:
        assert all(part.dtype == x.dtype or part.dtype == torch.int64 for part in ys)
        return
    for found, expected in zip(ys, wanted_ys, strict=True):
        assert found.dtype == x.dtype
        if isinstance(reducer, Max):
            assert torch.equal(found.double(), expected), case.label
        close(found, expected, case.label, 2.3)
    # autograd adds up what the layouts and a box's samples give, in the type of the input
    parts = 8 if isinstance(case.windows, (Pyramid, Strips, Boxes)) else 1
    close(dx, wanted_dx, case.label, max(1.0, float(wanted_dx.abs().max())), parts)


# ---- values and gradients -------------------------------------------------------------------------------------------------


def test_what_is_left_to_the_definition(calls: Calls) -> None:
    """Every other setting of a reducer is compiled: the list of those that are not does not grow unseen."""
    x = torch.rand(1, 2, 6, 6) + 0.5
    for row in ROWS:
        calls.forward = 0
        pool(x, row.reducer(), Sliding(2))
        assert (calls.forward == 0) == (row.id in DEFINED), row.id


def pairs(reducers: list[tuple[str, Any]]) -> list[Any]:
    """Every reducer with every kind of windows that it has a meaning for: boxes have a mask, and samples of their own."""
    return [
        pytest.param(name, reducer, kind, id=f"{name}-{kind}")
        for name, reducer in reducers
        for kind in KINDS
        if kind != "boxes" or not ("center" in name or "indices" in name)
    ]


@pytest.mark.parametrize(("name", "reducer", "kind"), pairs(REDUCERS))
def test_equals_the_definition(name: str, reducer: Callable[[], Reducer], kind: str, calls: Calls) -> None:
    for number in range(PER_KIND):
        compare(reducer(), drawn(name, kind, number, FLOATS), calls)


@pytest.mark.parametrize(("name", "reducer", "kind"), pairs(MAXIMA))
def test_integers_equal_the_definition(name: str, reducer: Callable[[], Reducer], kind: str, calls: Calls) -> None:
    for number in range(len(INTEGERS)):
        compare(reducer(), drawn(name, kind, number, INTEGERS), calls)


# Large enough for threads, for maps cut into bands, and for rows that do not fit a tile: (spatial, channels, windows)
LARGE: list[tuple[tuple[int, ...], int, Windows]] = [
    ((97, 131), 5, Sliding(3, 2, 1)),
    ((97, 131), 5, Sliding(3, 1, 1)),
    ((112, 96), 8, Sliding(2)),
    ((64, 70), 16, Sliding((9, 4), (2, 1), (4, 2))),
    ((40, 43), 24, Sliding(25, 1, 12)),
    ((5, 4100), 3, Sliding((2, 5), (1, 2), (1, 2))),
    ((20_000,), 3, Sliding(7, 3, 3)),
    ((20_000,), 3, Sliding(300, 1, 150)),
    ((12, 40, 41), 3, Sliding(3, 2, 1, 1, True)),
    ((61, 67), 11, everypool.Adaptive((7, 5))),
    ((61, 67), 11, Global()),
    ((61, 67), 11, Pyramid((1, 2, 3, 6))),
    ((61, 67), 11, Strips()),
    ((61, 67), 11, Scan(-1)),
    ((61, 67), 11, Scan(-2, True)),
]
LARGE_REDUCERS = ["max", "max:ties=last", "avg", "gem", "lp:p=2.3", "soft", "logsumexp:r=2"]


def large(reducer: str, number: int, dtype: torch.dtype) -> Drawn:
    spatial, channels, windows = LARGE[number]
    rng = random.Random(number)
    x = values(rng, (2, channels, *spatial), dtype, reducer.startswith(("gem", "lp")))
    if number % 3 == 1 and len(spatial) == 2:
        x = x.contiguous(memory_format=torch.channels_last)
    return Drawn(x, windows, {}, f"{reducer} {windows} of {tuple(x.shape)} {dtype}")


@pytest.mark.parametrize("masked", [False, True], ids=["unmasked", "masked"])
@pytest.mark.parametrize("reducer", LARGE_REDUCERS)
def test_large_maps_equal_the_definition(reducer: str, masked: bool, calls: Calls) -> None:
    """One sample of each, in turn in each type."""
    for number in range(len(LARGE)):
        case = large(reducer, number, FLOATS[(number + len(reducer)) % len(FLOATS)])
        case.x = case.x[:1, :3]
        if masked:
            case.options["mask"] = torch.rand((1, 1, *case.x.shape[2:])) < 0.5
        compare(parse(reducer), case, calls)


# No gradient is asked for: blocks of prefixes and suffixes, whose edges these windows meet in every way
OVERLAPPING: list[tuple[tuple[int, ...], Windows]] = [
    ((20, 23), Sliding(5, 1, 2)),
    ((41, 30), Sliding(9, 2, 4, 1, True)),
    ((50, 47), Sliding(33, 1, 16)),
    ((64, 40), Sliding(65, 1, 32)),
    ((70, 33), Sliding((65, 5), (4, 1), (30, 0))),
    ((33, 90), Sliding((1, 65), (1, 3), (0, 32))),
    ((90, 9), Sliding((65, 1), (7, 1), (11, 0))),
    ((13, 2300), Sliding((7, 40), (1, 3), (3, 20))),
    ((3000,), Sliding(100, 1, 50)),
    ((57,), Sliding(20, 19, 3)),
]


@pytest.mark.parametrize("special", [False, True], ids=["finite", "special"])
@pytest.mark.parametrize("reducer", ["max", "avg", "soft"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_overlapping_windows_equal_the_definition(dtype: torch.dtype, reducer: str, special: bool, calls: Calls) -> None:
    for spatial, windows in OVERLAPPING:
        for shape in ((1, 2, *spatial), (3, 5, *spatial)):
            x = values(random.Random(len(spatial)), shape, dtype, False)
            if special:
                x.view(-1)[::971] = float("nan")
                x.view(-1)[::1013] = float("-inf")
            label = f"{reducer} {windows} of {shape} {dtype}"
            before = calls.forward + calls.left
            with forced("cpu"):
                y = pool(x, reducer, windows)
            assert calls.forward + calls.left > before, label
            with forced("eager"):
                wanted = pool(x.double(), reducer, windows)
            assert torch.equal(y.isnan(), wanted.isnan()), label
            assert torch.equal(y.isinf(), wanted.isinf()), label
            finite = wanted.isfinite()
            close(y[finite], wanted[finite], label, 2.3)
    assert special or calls.left == 0


@pytest.mark.parametrize("shared", [True, False], ids=["one map", "two maps"])
@pytest.mark.parametrize("ties", ["first", "last"])
@pytest.mark.parametrize("dtype", FLOATS)
def test_corners_equal_the_definition(dtype: torch.dtype, ties: str, shared: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both running maxima in one call: the sum, its gradients, and theirs."""
    library: Any = cpu.library()
    original, ran = library.corner, []
    monkeypatch.setattr(library, "corner", lambda *arguments: ran.append(arguments[2]) or original(*arguments))
    rng = random.Random(f"{dtype} {ties} {shared}")
    for corner, shape in (("top_left", (2, 3, 9, 8)), ("bottom_right", (1, 9, 40, 33)), ("top_left", (1, 2, 300, 210))):
        maps = [values(rng, shape, dtype, False).requires_grad_() for _ in range(1 if shared else 2)]
        flow = values(rng, shape, dtype, False).requires_grad_()
        weights = torch.arange(flow.numel()).view(shape) % 5 - 2.0
        found = []
        for impl in ("cpu", "eager"):
            exact = torch.float64 if impl == "eager" else dtype
            mine = [x.detach().to(exact).requires_grad_() for x in maps]
            grad = flow.detach().to(exact).requires_grad_()
            with forced(impl):
                y = everypool.corner_pool(mine[0], corner, other=None if shared else mine[1], ties=ties)
                first = torch.autograd.grad(y, mine, grad, create_graph=True)
                (second,) = torch.autograd.grad([(weights.to(exact) * dx).sum() for dx in first], grad)
                with torch.no_grad():
                    again = everypool.corner_pool(mine[0], corner, other=None if shared else mine[1], ties=ties)
            found.append([part.detach() for part in (y, again, *first, second)])
        assert ran == [1, 3, 2, 0]
        ran.clear()
        for actual, wanted in zip(*found, strict=True):
            close(actual, wanted, f"{corner} {shape}", max(4.6, float(wanted.abs().max())), 8)


@pytest.mark.parametrize("shared", [True, False], ids=["one map", "two maps"])
@pytest.mark.parametrize("dtype", FLOATS)
def test_crosses_equal_the_definition(dtype: torch.dtype, shared: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sum over the plane in one call; a channels_last map keeps its layout and goes the other way."""
    library: Any = cpu.library()
    original, ran = library.cross, []
    monkeypatch.setattr(library, "cross", lambda *arguments: ran.append(arguments) or original(*arguments))
    rng = random.Random(f"{dtype} {shared}")
    for shape in ((2, 3, 9, 8), (1, 9, 40, 33), (1, 2, 300, 210), (2, 8, 1, 5)):
        x, other, flow = (values(rng, shape, dtype, False) for _ in range(3))
        found = []
        for impl in ("cpu", "eager"):
            exact = torch.float64 if impl == "eager" else dtype
            maps = [m.detach().to(exact).requires_grad_() for m in ((x,) if shared else (x, other))]
            with forced(impl):
                y = everypool.cross_max_pool(maps[0], other=None if shared else maps[1])
                found.append([y.detach(), *torch.autograd.grad(y, maps, flow.to(exact))])
        assert len(ran) == 1
        ran.clear()
        for actual, wanted in zip(*found, strict=True):
            close(actual, wanted, f"{shape}", max(4.6, float(wanted.abs().max())), 8)
        last = x.contiguous(memory_format=torch.channels_last)
        assert torch.equal(everypool.cross_max_pool(last), everypool.cross_max_pool(x))
        assert everypool.cross_max_pool(last).is_contiguous(memory_format=torch.channels_last)
        ran.clear()


LEARNED = [("gem", "p", 2.7), ("lp", "p", 1.6), ("soft", "beta", 1.5), ("logsumexp", "r", 2.0)]


@pytest.mark.parametrize("kind", ["sliding", "adaptive", "global", "strips"])
@pytest.mark.parametrize(("name", "parameter", "value"), LEARNED)
def test_learned_parameters(name: str, parameter: str, value: float, kind: str, calls: Calls) -> None:
    """Values and both gradients, with one parameter for all channels and with one for each."""
    for number in range(4):
        case = drawn(name, kind, number, [torch.float32, torch.float64])
        found = []
        for impl, x in (("cpu", case.x), ("eager", case.x.double())):
            steps_of = 0.1 * torch.arange(1 if number < 2 else x.shape[1], dtype=x.dtype)
            setting, leaf = (value + steps_of).requires_grad_(), x.detach().requires_grad_()
            reducer: Any = find_operation(name).reducer
            with forced(impl):
                ys = flat(pool(leaf, reducer(**{parameter: setting}), case.windows, **case.options))
                found.append([*ys, *torch.autograd.grad([y.cos().sum() for y in ys], (leaf, setting))])
        assert calls.forward > 0
        assert calls.backward > 0
        for actual, wanted in zip(*found, strict=True):
            close(actual.detach(), wanted.detach(), case.label, max(2.3, float(wanted.detach().abs().max())), 8)
        calls.forward = calls.backward = 0


# ---- values that are none -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["max", "max:ties=last", "avg", "gem", "lp", "lp:p=2.3", "soft", "logsumexp"])
def test_nan_and_infinities(name: str, kind: str, calls: Calls) -> None:
    """The same values as the definition, which the loops may leave it to; a mask silences what it covers."""
    for number in range(4):
        case = drawn(name, kind, number, FLOATS)
        rng = torch.Generator().manual_seed(number)
        chance = torch.rand(case.x.shape, generator=rng)
        x = case.x.clone()
        for i, special in enumerate((float("nan"), float("inf"), float("-inf"))):
            x[(chance > 0.03 * i) & (chance < 0.03 * i + 0.02)] = special
        found = []
        for impl in ("cpu", "eager"):
            leaf = x.detach().requires_grad_()
            with forced(impl):
                found.append(gradients(pool(leaf, name, case.windows, **case.options), leaf))
        (dx, ys), (wanted_dx, wanted) = found
        for y, expected in zip(ys, wanted, strict=True):
            assert torch.equal(y.isnan(), expected.isnan()), case.label
            assert torch.equal(y.isinf(), expected.isinf()), case.label
            finite = expected.isfinite()
            close(y[finite], expected[finite].double(), case.label, 2.3)
        if name.startswith("max"):
            assert torch.equal(dx.isnan(), wanted_dx.isnan()), case.label
    assert calls.forward + calls.left > 0


# ---- same input, same bits ------------------------------------------------------------------------------------------------


def bits(reducer: str, number: int, dtype: torch.dtype) -> list[Tensor]:
    case = large(reducer, number, dtype)
    leaf = case.x.detach().requires_grad_()
    dx, ys = gradients(pool(leaf, reducer, case.windows), leaf)
    return [tensor.contiguous().view(torch.uint8) for tensor in (dx, *ys)]


@pytest.mark.parametrize("reducer", LARGE_REDUCERS)
def test_same_bits_from_run_to_run_and_with_any_number_of_threads(reducer: str, threads: None, calls: Calls) -> None:
    for number in range(len(LARGE)):
        dtype = FLOATS[(number + len(reducer)) % len(FLOATS)]
        results = []
        for count in (1, 1, 2, 3):
            torch.set_num_threads(count)
            results.append(bits(reducer, number, dtype))
        for other in results[1:]:
            assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True)), (LARGE[number], dtype)
    assert calls.forward >= 4 * len(LARGE)
    assert calls.left == 0


# ---- by environment -------------------------------------------------------------------------------------------------------


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True)


def test_eager_asked_for_by_the_environment_is_what_runs() -> None:
    code = """
import torch, everypool
from everypool.backends import cpu
from everypool.backends.choose import choose
def call(*arguments): raise SystemExit("compiled")
library = cpu.library()
library.forward = library.backward = call
x = torch.rand(1, 2, 6, 6, requires_grad=True)
everypool.max_pool(x, 2).sum().backward()
everypool.pool(x, "soft", everypool.Sliding(2), mask=torch.ones(1, 1, 6, 6, dtype=torch.bool)).sum().backward()
print(choose().name)
"""
    result = python(code, EVERYPOOL_IMPL="eager")
    assert (result.returncode, result.stdout) == (0, "eager\n"), result.stderr
    assert "compiled" in python(code, EVERYPOOL_IMPL="cpu").stderr


def test_named_loops_never_fall_back_silently(calls: Calls) -> None:
    x = torch.rand(1, 2, 6, 6)
    with forced("cpu"):
        with pytest.raises(NotImplementedError, match=r"`EVERYPOOL_IMPL` must be .* got 'cpu': .*"):
            everypool.median_pool(x, 3)
        assert everypool.max_pool(x[:0], 3).shape == (0, 2, 2, 2)
    assert everypool.median_pool(x, 3).shape == (1, 2, 2, 2)


def test_a_wrong_instruction_set_is_an_error() -> None:
    result = python("import everypool", EVERYPOOL_ISA="avx3")
    assert result.returncode == 1
    assert "InvalidValue: `EVERYPOOL_ISA` must be one of" in result.stderr
    assert "did you mean 'avx2'" in result.stderr


@pytest.mark.parametrize("name", [name for name in cpu.INSTRUCTIONS if name != "avx2"])
def test_other_instruction_sets_equals_the_definition(name: str) -> None:
    """Sliding windows and large maps again, in a process that uses that set."""
    if importlib.util.find_spec(f"everypool._cpu_{name}") is None or not supported(name):
        pytest.skip(f"{name}: {cpu.missing().get(name, 'in use')}")
    chosen = "(test_equals_the_definition and sliding) or (test_large_maps and unmasked)"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__, "-k", chosen]
    result = subprocess.run(command, env={**os.environ, "EVERYPOOL_ISA": name}, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-3000:]
    assert f"{len(REDUCERS) + len(LARGE_REDUCERS)} passed" in result.stdout


def supported(name: str) -> bool:
    library: Any = cpu.library()
    return bool(library.supports(name))


# ---- what a plan keeps ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["max", "avg,count_include_pad", "soft", "logsumexp", "center"])
@pytest.mark.parametrize(
    "windows",
    [
        Sliding(3, 1, 1),
        Sliding(3, 2, 1, 2, True),
        Sliding(3, 2, "same"),
        everypool.Adaptive(7),
        everypool.Adaptive((None, 5)),
        Global(),
        Pyramid((1, 2, 3)),
        Strips(),
        Scan(-1),
        Scan(0, True),
    ],
    ids=str,
)
def test_plans_do_not_grow_with_the_map(windows: Windows, name: str) -> None:
    reducer = Mean(count_include_pad=True) if name.startswith("avg,") else parse(name)
    sizes = []
    for spatial in ((20, 30), (2_000, 300)):
        shape = (1, 2, *spatial)
        plan = cpu.make_plan(reducer.recipe(), windows.layouts(spatial, None), shape, torch.float32, False)
        sizes.append(cpu.library().describe(plan.handle)[3])  # type: ignore[union-attr]
    assert sizes[0] == sizes[1] < 8192


def test_long_runs_stay_on_their_loops() -> None:
    """Running maxima hold no states, however long they are."""
    plan = cpu.make_plan(parse("max").recipe(), Scan(-1).layouts((3_000_000,), None), (1, 1, 3_000_000), torch.float32, False)
    assert plan.linear


@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
def test_maxima_of_whole_integer_maps_need_no_copy(dtype: torch.dtype) -> None:
    """Neither an index of the map nor a copy of it in another type."""
    program = f"""
import resource, torch, everypool
layer = everypool.GlobalMaxPool()
layer(torch.ones(1, 1, 64, 64, dtype={dtype}))
x = torch.zeros(1, 1, 4096, 4096, dtype={dtype})
x[0, 0, 4000, 17] = 1
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assert layer(x).item() == 1
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assert (after - before) * 1024 <= x.numel() * x.element_size(), (before, after)
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]
