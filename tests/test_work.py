"""Operations and bytes: against definitions that are run with numbers which count, and against torch's own counter."""

from __future__ import annotations

import itertools
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import pytest
import torch
from cases import CASES, ROWS, Case, Row, as_tuple, row_id
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import everypool
from everypool import Adaptive, Boxes, Center, Global, LogSumExp, Max, Mean, Power, Pyramid, Scan, Sliding, Soft, Strips, pool
from everypool.backends import cpu
from everypool.backends.axes import Axis, Bins, Run, Slide
from everypool.backends.choose import forced
from everypool.backends.work import filled, most, operations_of, order, total, traffic
from everypool.pool import parse

# ---- definitions, run with numbers that count what is done with them ------------------------------------------------------


class Number:
    """A number of which every operation is one more."""

    done = 0

    def count(self, *_: Any) -> Number:
        Number.done += 1
        return self

    __add__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __pow__ = __abs__ = exp = log = sign = count

    def larger(self, other: Any) -> Number:
        return self.count()

    same = smaller = larger


def total_of(xs: Sequence[Number]) -> Number:
    result = xs[0]
    for x in xs[1:]:
        result = result + x
    return result


def largest(xs: Sequence[Number]) -> Number:
    result = xs[0]
    for x in xs[1:]:
        result = result.larger(x)
    return result


def over(value: Number, divides: bool) -> Number:
    return value / 1 if divides else value


def power(xs: Sequence[Number], p: float = 3.0, norm: str = "mean", signed: str = "clamp") -> None:
    mean = norm == "mean"
    if signed == "shift":
        least = largest(xs)
        a = [x - least for x in xs]
    else:
        a = [abs(x) if signed in ("abs", "odd") else x.larger(1e-6) for x in xs]
    if math.isinf(p):
        y = largest(a)
    else:
        powers = a if p == 1 else [v**p for v in a]
        if signed == "odd":
            powers = [v * 1 for v in powers]
        y = over(total_of(powers), mean)
        if signed == "odd":
            y = abs(y) * 1
        y = y if p == 1 else y**p
    if signed == "shift":
        y = y + least


def soft(xs: Sequence[Number], beta: float = 1.0, grad: str = "exact") -> None:
    w = [(x if beta == 1 else x * beta).exp() for x in xs]
    total_of([x * v for x, v in zip(xs, w, strict=True)]) / total_of(w)


def logsumexp(xs: Sequence[Number], r: float = 1.0, norm: str = "mean") -> None:
    if r == 0:
        over(total_of(xs), True)
        return
    level = over(total_of([(x if r == 1 else x * r).exp() for x in xs]), norm == "mean").log()
    if r != 1:
        level / r


def median(xs: Sequence[Number], even: str = "lower") -> None:
    if even == "mean":
        (xs[0] + xs[-1]) / 2


def powers_back(xs: Sequence[Number], p: float = 3.0, norm: str = "mean", signed: str = "clamp") -> None:
    g, y = Number(), Number()
    if norm == "mean" and not math.isinf(p):
        g = g / 1
    if math.isinf(p):
        assert signed in ("clamp", "abs")
        same = [x.larger(0).same(y) for x in xs]
        g = g / total_of(same)
        for x in xs:
            x + g
        return
    if p != 1:
        g = g * y**p
    shares = []
    for x in xs:
        positive = x.larger(0) if signed in ("clamp", "abs") else x
        if p != 1:
            positive = abs(x) if signed == "odd" else x - y if signed == "shift" else positive
            shares.append(g * positive**p)
        else:
            shares.append(g)
        x + shares[-1]
    if signed == "shift":  # what is left goes to the least
        xs[0] + (g - total_of(shares))


def soft_back(xs: Sequence[Number], beta: float = 1.0, grad: str = "exact") -> None:
    y, share = Number(), Number() / 1
    for x in xs:
        w = (x if beta == 1 else x * beta).exp()
        if grad == "exact":
            away = x - y
            w = w * ((away if beta == 1 else away * beta) + 1)
        x + w * share


def logsumexp_back(xs: Sequence[Number], r: float = 1.0, norm: str = "mean") -> None:
    if r == 0:
        mean_back(xs)
        return
    g, y = over(Number(), norm == "mean"), Number()
    for x in xs:
        away = x - y
        x + (away if r == 1 else away * r).exp() * g


def mean_back(xs: Sequence[Number]) -> None:
    share = Number() / 1
    for x in xs:
        x + share


def max_back(xs: Sequence[Number], ties: str = "first") -> None:
    if ties == "even":
        share = Number() / total_of([x.same(xs[0]) for x in xs])
        for x in xs:
            x + share
    else:
        xs[0] + 1


def median_back(xs: Sequence[Number], even: str = "lower") -> None:
    g = Number() / 2 if even == "mean" else Number()
    for _ in range(2 if even == "mean" else 1):
        xs[0] + g


FORWARD: dict[str, Callable[..., None]] = {
    "avg": lambda xs: over(total_of(xs), True),
    "max": lambda xs, ties="first": largest(xs),
    "gem": power,
    "lp": lambda xs, p=2.0, norm="sum": power(xs, p, norm, "abs"),
    "soft": soft,
    "logsumexp": logsumexp,
    "median": median,
}
BACKWARD: dict[str, Callable[..., None]] = {
    "avg": mean_back,
    "max": max_back,
    "gem": powers_back,
    "lp": lambda xs, p=2.0, norm="sum": powers_back(xs, p, norm, "abs"),
    "soft": soft_back,
    "logsumexp": logsumexp_back,
    "median": median_back,
}


def counted(definition: Callable[..., None], k: int, settings: dict[str, Any]) -> int:
    Number.done = 0
    definition([Number() for _ in range(k)], **settings)
    return Number.done


@cache
def windows_of(case: Case) -> list[list[int]]:
    """Elements of every window inside the map, layout by layout, by the oracle's counting."""
    found = []
    for layout in case.layouts(case.spatial):
        counts = [[sum(0 <= j < n for j in taps) for taps in axis] for axis, n in zip(layout, case.spatial, strict=True)]
        found.append([math.prod(cell) for cell in itertools.product(*counts)])
    return found


def expected(row: Row, case: Case) -> tuple[int, int]:
    """Operations in one plane."""
    forward = backward = 0
    name, settings = row.operation.name, row.settings
    costs: dict[int, tuple[int, int]] = {}
    for layout in windows_of(case):
        for k in filter(None, layout):
            if name == "center":  # the mean of 2^nd corners, or one element
                corners = 2**case.nd if settings.get("even") == "mean" else 0
                cost = (corners, corners + 1 if corners else 1)
            else:
                if k not in costs:
                    costs[k] = tuple(counted(way[name], k, settings) for way in (FORWARD, BACKWARD))  # type: ignore[assignment]
                cost = costs[k]
            forward, backward = forward + cost[0], backward + cost[1]
        if name == "median":
            forward += round(sum(k * math.log2(k) for k in layout if k))
    return forward, backward


@pytest.mark.parametrize("row", ROWS, ids=row_id)
def test_operations_of_every_reducer_over_all_windows(row: Row) -> None:
    for case in CASES:
        taps = case.windows.taps([(2, 3, *case.spatial)])
        assert taps is not None
        work = row.reducer().work(case.nd)
        assert work is not None
        forward, backward = expected(row, case)
        assert operations_of(work, taps) == (6 * forward, 6 * backward), case.id


@pytest.mark.parametrize(
    ("reducer", "forward", "backward"),
    [
        (Power(2.0, signed="odd"), lambda xs: power(xs, 2.0, signed="odd"), lambda xs: powers_back(xs, 2.0, signed="odd")),
        (Power(1.0, signed="abs"), lambda xs: power(xs, 1.0, signed="abs"), lambda xs: powers_back(xs, 1.0, signed="abs")),
        (Power(-1.0), lambda xs: power(xs, -1.0), lambda xs: powers_back(xs, -1.0)),
        (Power(torch.tensor([1.0])), power, powers_back),
        (Soft(2.0, "authors"), lambda xs: soft(xs, 2.0), lambda xs: soft_back(xs, 2.0, "authors")),
        (Soft(torch.tensor([1.0])), lambda xs: soft(xs, 2.0), lambda xs: soft_back(xs, 2.0)),
        (
            LogSumExp(torch.tensor([1.0]), "sum"),
            lambda xs: logsumexp(xs, 2.0, "sum"),
            lambda xs: logsumexp_back(xs, 2.0, "sum"),
        ),
    ],
    ids=["odd", "abs", "inverse", "p per channel", "the authors' gradient", "beta per channel", "r per channel"],
)  # fmt: skip
def test_settings_that_records_do_not_list(reducer: Any, forward: Any, backward: Any) -> None:
    """The values of a parameter that is a tensor are not looked at."""
    for k in (1, 2, 7):
        taps = Global().taps([(1, 1, k)])
        assert taps is not None
        assert operations_of(reducer.work(1), taps) == (counted(forward, k, {}), counted(backward, k, {}))


def test_axes_of_any_size_cost_no_memory() -> None:
    n = 1 << 40
    assert total(Slide(n, n, 3, 1, 1, 1, 1)) == 3 * n - 2
    assert total(Bins(n, 7)) == n + 7 - 1  # 7 does not divide 2^40
    assert total(Run(n)) == n * (n + 1) // 2
    assert filled(Slide(n, n // 2, 2, 2, 1, 0, 0)) == n // 2
    assert most(Slide(n, n, 3, 1, 1, 1, 1)) == 3
    assert order(Bins(n, 1)) == 40 * n
    many = 1_500_000  # beyond what is added up one by one
    exact = math.fsum(k * math.log2(k) for k in range(1, many + 1))
    assert math.isclose(order(Run(many)), exact, rel_tol=1e-13)


def test_edges_are_counted_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("everypool.backends.work.BLOCK", 7)
    for axis in (Slide(50, 50, 41, 1, 1, 20, 20), Slide(30, 40, 60, 1, 1, 25, 60)):
        counts = [sum(0 <= i - axis.left + t < axis.n for t in range(axis.kernel)) for i in range(axis.out)]
        assert (total(axis), most(axis)) == (sum(counts), max(counts))
        assert math.isclose(order(axis), sum(k * math.log2(k) for k in counts if k))


def test_axes_like_nothing_that_is_known() -> None:
    """A new kind of axis tells by its spans."""

    class Other(Axis):
        n, out = 5, 2

        def spans(self, size: Tensor | None) -> Any:
            return Bins(5, 2).spans(size)

    axis = Other()
    assert (total(axis), filled(axis), most(axis)) == (6, 2, 3)
    assert math.isclose(order(axis), 2 * 3 * math.log2(3))


# ---- boxes ---------------------------------------------------------------------------------------------------------------

BOXES = torch.tensor([[0.0, 0.0, 0.0, 6.0, 3.0], [1.0, 2.0, 1.0, 2.5, 7.0], [1.0, 4.0, 4.0, 4.0, 4.0]])


@pytest.mark.parametrize("ratio", [2, 0])
def test_boxes_by_bilinear_samples(ratio: int) -> None:
    elements = []
    for _, left, top, right, bottom in BOXES.tolist():
        sides = [max(bottom - top, 1.0), max(right - left, 1.0)]
        taps = [ratio or math.ceil(side / bins) for side, bins in zip(sides, (2, 3), strict=True)]
        elements += [math.prod(taps)] * 6
    taps = Boxes(BOXES, (2, 3), sampling_ratio=ratio).taps([(2, 5, 8, 8)])
    # a sample is four products and three sums; a mean of k is k operations, a maximum k - 1
    assert operations_of(Mean().work(2), taps)[0] == 5 * sum(7 * k + k for k in elements)
    assert operations_of(Max().work(2), taps) == (5 * sum(8 * k - 1 for k in elements), 5 * sum(8 * k + 1 for k in elements))
    median = parse("median").work(2)
    assert median is not None
    assert operations_of(median, taps)[0] == 5 * (sum(7 * k for k in elements) + round(sum(k * math.log2(k) for k in elements)))
    assert taps[0].most == max(elements)


def test_boxes_of_cells() -> None:
    elements = []
    for _, left, top, right, bottom in BOXES.tolist():
        axes = []
        for low, high, bins in ((top, bottom, 2), (left, right, 3)):
            first, cells = math.floor(low + 0.5), math.floor(high + 0.5) - math.floor(low + 0.5) + 1
            ends = [(math.floor(i * cells / bins), math.ceil((i + 1) * cells / bins)) for i in range(bins)]
            axes.append([max(0, min(first + b, 8) - min(first + a, 8)) for a, b in ends])
        elements += [h * w for h in axes[0] for w in axes[1]]
    taps = Boxes(BOXES, (2, 3), sampling="pool").taps([(2, 5, 8, 8)])
    there = [k for k in elements if k]
    assert operations_of(Max().work(2), taps) == (5 * sum(k - 1 for k in there), 5 * len(there))


# ---- torch's counter -----------------------------------------------------------------------------------------------------


def heard(call: Callable[[Tensor], Any], x: Tensor, *, counting: bool = True) -> tuple[list[Tensor], dict[str, dict[str, int]]]:
    """Results and gradient of a call, and what a counter heard, by module and operator."""
    x = x.detach().clone().requires_grad_()
    counter = FlopCounterMode(display=False)
    with counter if counting else torch.enable_grad():
        results = as_tuple(call(x * 1))
        learning = [y for y in results if y.requires_grad]
        sum((y * y).sum() for y in learning).backward()
    counts = {module: {str(name): n for name, n in by.items()} for module, by in counter.get_flop_counts().items()}
    return [*results, x.grad], counts


def fold(forward: int, backward: int) -> dict[str, int]:
    return {"everypool.fold": forward, "everypool.fold_backward": backward}


CALLS: list[tuple[str, Callable[[Tensor], Any], int, int]] = [
    ("function", lambda x: everypool.soft_pool(x, 2), 4 * 4 * 4 - 4, 6 * 16 + 4),
    ("layer", everypool.GeMPool2d(2), 3 * 16 + 4, 4 * 16 + 12),
    ("learned", everypool.GeMPool2d(2, learnable=True), 3 * 16 + 4, 4 * 16 + 12),
    ("indices", everypool.MaxPool2d(2, return_indices=True), 3 * 4, 4),
    ("median", lambda x: everypool.median_pool(x, 2), 8 * 4, 4),
    ("pyramid", lambda x: pool(x, "max", Pyramid((1, 2))), 15 + 12, 1 + 4),
    ("strips", lambda x: pool(x, "mean", Strips()), 32, 2 * (16 + 4)),
    ("scan", lambda x: pool(x, "max", Scan()), 4 * (0 + 1 + 2 + 3), 16),
    ("corner", everypool.TopLeftPool(), 2 * 24, 2 * 16),
    ("cross", everypool.CrossMaxPool(), 2 * 12, 2 * 4),
    ("global", lambda x: pool(x, "lse:r=2", Global()), 3 * 16 + 2, 5 * 16 + 1),
    ("masked", lambda x: pool(x, "max", Global(), mask=x[:, :1] > 0, return_mask=True), 15, 1),
    ("sizes", lambda x: pool(x, "max", Global(), sizes=[[2, 2]] * 2), 15, 1),
    ("checkpointed", lambda x: pool(x, "gem:signed=shift", Sliding(2)), 4 * 16 + 4, 5 * 16 + 4 * 4),
    ("even", lambda x: pool(x, "max:ties=even", Sliding(2)), 3 * 4, 3 * 16),
]


@pytest.mark.parametrize(("call", "forward", "backward"), [c[1:] for c in CALLS], ids=[c[0] for c in CALLS])
def test_counter_hears_of_each_call_once_and_changes_nothing(call: Any, forward: int, backward: int) -> None:
    for x in (torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)):
        plain, nothing = heard(call, x, counting=False)
        results, counts = heard(call, x)
        assert nothing == {}
        assert counts["Global"] == fold(6 * forward, 6 * backward)
        for y, same in zip(plain, results, strict=True):
            torch.testing.assert_close(y, same, rtol=0, atol=0)
            assert y.stride() == same.stride()


def test_counter_hears_of_boxes_once_though_their_samples_are_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    windows = Boxes(BOXES, (2, 3), sampling_ratio=2)
    x = torch.randn(2, 5, 8, 8)
    plain, _ = heard(lambda x: pool(x, "mean", windows), x, counting=False)
    monkeypatch.setattr(sys.modules[Boxes.__module__], "CHUNK", 1)
    parts, _ = heard(lambda x: pool(x, "mean", windows), x, counting=False)
    results, counts = heard(lambda x: pool(x, "mean", windows), x)
    assert counts["Global"] == fold(5 * 18 * (8 * 4), 5 * 18 * (9 * 4 + 1))
    torch.testing.assert_close(plain[0], results[0], rtol=0, atol=0)
    torch.testing.assert_close(parts[1], results[1], rtol=0, atol=0)
    maps = everypool.MultiLevelRoIPool((2, 3), (1.0, 0.5))
    _, counts = heard(lambda x: maps([x, x[..., ::2, ::2]], BOXES), x)
    assert counts["Global"] == fold(2 * 5 * 18 * 32, 2 * 5 * 18 * 37)


def test_samples_of_different_sizes_cost_what_each_does_alone() -> None:
    _, counts = heard(lambda x: pool([x[0], x[1, :, :2, :3]], "max", Adaptive(1)), torch.randn(2, 3, 4, 4))
    assert counts["Global"] == fold(3 * (15 + 5), 3 * 2)


def test_modules_have_what_is_theirs_and_convolutions_what_torch_counts() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3, padding=1)
            self.down = everypool.SoftPool2d(2)
            self.head = nn.Sequential(nn.ReLU(inplace=True), everypool.GlobalGeMPool(learnable=True))

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.head(self.down(self.conv(x)))
            return y.relu_()

    x, net = torch.randn(2, 3, 6, 6), Net()
    _, alone = heard(net.conv, x)
    (plain, slope), _ = heard(net, x, counting=False)
    (result, same), counts = heard(net, x)
    assert torch.equal(plain, result)
    assert torch.equal(slope, same)
    assert counts["Net.conv"] == alone["Conv2d"]
    assert alone["Conv2d"]["aten.convolution"] == 2 * 2 * 4 * 36 * 27
    assert counts["Net.down"] == fold(8 * (4 * 36 - 9), 8 * (6 * 36 + 9))
    assert counts["Net.head"] == counts["Net.head.1"] == fold(8 * (3 * 9 + 1), 8 * (4 * 9 + 3))
    assert counts["Net"] == counts["Global"]
    assert sum(counts["Net"].values()) == sum(sum(counts[f"Net.{name}"].values()) for name in ("conv", "down", "head"))


def test_two_counters_both_hear() -> None:
    with FlopCounterMode(display=False) as outer, FlopCounterMode(display=False) as inner:
        everypool.max_pool(torch.ones(1, 1, 4), 2)
    assert outer.get_total_flops() == inner.get_total_flops() == 2


def test_a_counter_with_formulas_of_its_own() -> None:
    everypool.max_pool(torch.ones(1, 1, 4), 2)
    with FlopCounterMode(display=False):  # from here on there are operators
        everypool.max_pool(torch.ones(1, 1, 4), 2)
    mine = {torch.ops.everypool.fold: lambda *args, **kwargs: 7}
    with FlopCounterMode(display=False, custom_mapping=mine) as counter:
        everypool.max_pool(torch.ones(1, 1, 4), 2)
    assert counter.get_total_flops() == 7


def test_second_derivatives_are_unharmed() -> None:
    x = torch.randn(1, 1, 5, dtype=torch.float64, requires_grad=True)
    with FlopCounterMode(display=False):
        assert torch.autograd.gradgradcheck(lambda x: everypool.soft_pool(x * 1, 2), x)
        assert torch.autograd.gradcheck(lambda x: pool(x[..., None] * 1, "max", Strips()), x)  # of two results


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_transforms_count_all_they_run() -> None:
    x = torch.randn(5, 2, 3, 4, 4)
    for call in (torch.func.vmap, lambda f: torch.func.vmap(torch.func.grad(lambda x: f(x).square().sum()))):
        plain = call(lambda x: everypool.soft_pool(x, 2))(x)
        with FlopCounterMode(display=False) as counter:
            same = call(lambda x: everypool.soft_pool(x, 2))(x)
        torch.testing.assert_close(plain, same, rtol=0, atol=0)
    assert {str(k): v for k, v in counter.get_flop_counts()["Global"].items()} == fold(5 * 6 * 60, 5 * 6 * 100)
    with FlopCounterMode(display=False) as counter:
        torch.func.jvp(lambda x: everypool.soft_pool(x, 2), (x[0],), (x[0],))
    assert counter.get_total_flops() == 6 * 60


def test_inputs_without_values_and_beyond_64_bits() -> None:
    x = torch.empty(2, 3, 1 << 40, device="meta", requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        y = pool(x, "mean", Global())
        y.sum().backward()
        pool(torch.empty(1, 1, 1 << 20, device="meta"), "mean", Sliding(4))
    n = 6 << 40
    assert counter.get_total_flops() == n + n + 6 + (1 << 20)
    taps = Scan().taps([(1, 1, 1 << 40)])
    assert taps is not None
    forward, _ = operations_of(Mean().work(1), taps)
    assert forward == (1 << 40) * ((1 << 40) + 1) // 2


def test_unknown_costs_are_not_counted() -> None:
    class Least(everypool.Reducer):
        def define(self, x: Tensor, folds: Any) -> Any:
            return (-folds.maximum(-x),), None

    _, counts = heard(lambda x: pool(x, Least(), Sliding(2)), torch.randn(1, 1, 4))
    assert set(counts.get("Global", {}).values()) <= {0}
    assert everypool.explain(Least(), Sliding(2), (1, 1, 4)).operations is None


def test_recorded_graphs_hold_no_markers() -> None:
    from torch.fx.experimental.proxy_tensor import make_fx

    layer = everypool.SoftPool2d(2)
    x = torch.randn(1, 2, 4, 4)
    with FlopCounterMode(display=False):
        layer(x)
        assert "everypool" not in make_fx(layer)(x).code
    exported = torch.export.export(layer, (x,), strict=False)
    assert not [node for node in exported.graph.nodes if "everypool" in str(node.target)]
    torch.testing.assert_close(exported.module()(x), layer(x))


def test_importing_everypool_does_not_import_the_counter() -> None:
    code = "import sys, everypool; print('torch.utils.flop_counter' in sys.modules, 'triton' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


# ---- bytes ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reducer", "windows", "shape", "forward", "backward"),
    [
        # of 4-byte elements, N = 64 and M = 16: a quarter of the windows, as in the table of the traffic per element
        (Mean(), Sliding(2), (1, 1, 8, 8), 4 * 80, 4 * 80),
        (Max(), Sliding(2), (1, 1, 8, 8), 4 * 80, 4 * 80 + 16),  # one byte says where the maximum lay
        (Max(), Sliding(20, 1, 10), (1, 1, 64, 64), 4 * (4096 + 4225), 4 * (4096 + 4225) + 2 * 4225),
        (Max(indices=True), Sliding(2), (1, 1, 8, 8), 4 * 80 + 8 * 16, 4 * 80 + 8 * 16),
        (Max("even"), Sliding(2), (1, 1, 8, 8), 4 * 80, 4 * 160),
        (Power(), Sliding(2), (1, 1, 8, 8), 4 * 80, 4 * 160),
        (LogSumExp(), Sliding(2), (1, 1, 8, 8), 4 * 80, 4 * 160),
        (Soft(), Sliding(2), (1, 1, 8, 8), 4 * 80, 4 * (2 * 64 + 16)),
        (Center(), Sliding(2), (1, 1, 8, 8), 4 * 2 * 16, 4 * 80),
        (Center("mean"), Sliding(2), (1, 1, 8, 8), 4 * (64 + 16), 4 * 80),
        (Mean(), Global(), (2, 3, 8, 8), 4 * 6 * 65, 4 * 6 * 65),
        (Mean(), Strips(), (1, 1, 8, 8), 4 * (64 + 16), 4 * (64 + 16)),  # the map is read once for both
        (Max(), Scan(), (1, 1, 8, 8), 4 * 128, 4 * 128 + 8),  # a bit says where a new maximum begins
        (Max(), Pyramid((1, 2)), (1, 1, 8, 8), 4 * 69, 4 * 69 + 5),
    ],
    ids=repr,
)
def test_bytes(reducer: Any, windows: Any, shape: tuple[int, ...], forward: int, backward: int) -> None:
    found = everypool.explain(reducer, windows, shape)
    assert found.traffic == (forward, backward)
    masked = everypool.explain(reducer, windows, shape, torch.float16, mask=True)
    mask = shape[0] * math.prod(shape[2:])
    assert masked.traffic is not None
    extra = [b - 2 * n for b, n in zip(masked.traffic, (forward // 2 // 2, backward // 2 // 2), strict=True)]
    if not isinstance(reducer, Max):  # whose positions are as large whatever the type
        assert extra == [mask, mask]


def test_bytes_of_boxes() -> None:
    taps = Boxes(BOXES, (2, 3), sampling_ratio=2).taps([(2, 5, 100, 100)])
    looked = 5 * 18 * 4 * 4  # four cells for each of four samples
    assert traffic(Mean().work(2), taps, 2 * 5 * 10000, 4) == (4 * (looked + 5 * 18), 4 * (100000 + 5 * 18))


# ---- explain -------------------------------------------------------------------------------------------------------------

WINDOWS = {
    "sliding": Sliding(3, 2, 1),
    "dilated": Sliding(2, 1, 0, 3, True),
    "adaptive": Adaptive(3),
    "global": Global(),
    "pyramid": Pyramid((1, 2)),
    "strips": Strips(),
    "scan": Scan(),
}
EXTREME = [Power(1e-4), Power(torch.tensor([3.0, 2.0])), LogSumExp(0.0), Max(indices=True), Soft(torch.tensor(0.0))]


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """What has run: the compiled loops, the definition."""
    found: set[str] = set()
    module: Any = sys.modules["everypool.pool.folding"]
    library = cpu.library()
    original = module.defined

    def defined(*arguments: Any) -> Any:
        found.add("eager")
        return original(*arguments)

    monkeypatch.setattr(module, "defined", defined)
    if library is not None:
        forward = library.forward

        def loops(*arguments: Any) -> Any:
            done = forward(*arguments)
            found.update({f"cpu {library.__name__.rpartition('_')[2]}"} if done else ())
            return done

        monkeypatch.setattr(library, "forward", loops)
    return found


@pytest.mark.parametrize("windows", WINDOWS)
def test_explain_tells_what_runs(windows: str, ran: set[str]) -> None:
    for reducer in [row.reducer() for row in ROWS] + EXTREME:
        for dtype in (torch.float32, torch.float16, torch.int32, torch.bool):
            if dtype in (torch.int32, torch.bool) and not isinstance(reducer, (Max, Center)):
                continue
            for mask in (False, True):
                x = torch.ones(1, 2, 7, 6).to(dtype)
                try:
                    found = everypool.explain(reducer, WINDOWS[windows], x.shape, dtype, mask=mask)
                except TypeError:
                    with pytest.raises(TypeError):
                        pool(x, reducer, WINDOWS[windows])
                    continue
                ran.clear()
                result = pool(x, reducer, WINDOWS[windows], mask=torch.ones(1, 1, 7, 6, dtype=torch.bool) if mask else None)
                assert ran == {found.implementation}, (reducer, dtype, mask)
                if not isinstance(reducer, Max) or not reducer.indices:
                    assert found.output == tuple(tuple(y.shape) for y in as_tuple(result))
                assert (("eager" in dict(found.rejected)), ("cpu" in dict(found.rejected))) == (
                    (False, True) if found.implementation == "eager" and cpu.library() else (cpu.library() is not None, False)
                )


def test_explain_where_an_implementation_is_forced() -> None:
    with forced("eager"):
        found = everypool.explain("max", Sliding(2), (1, 1, 4))
        assert (found.implementation, found.reason) == ("eager", "forced by the caller")
    if cpu.library() is None:
        return
    with forced("cpu"):
        assert everypool.explain("max", Sliding(2), (1, 1, 4)).implementation.startswith("cpu ")
        found = everypool.explain("median", Sliding(2), (1, 1, 4))
        assert found.implementation == "none"
        with pytest.raises(NotImplementedError) as caught:
            pool(torch.ones(1, 1, 4), "median", Sliding(2))
        assert str(caught.value).endswith(found.rejected[0][1])


def test_explain_on_another_device_and_beyond_memory() -> None:
    found = everypool.explain("max", Sliding(2), (1, 1, 4), device="cuda")
    assert found.implementation == "eager"
    size = (1 << 10,) * 4
    found = everypool.explain("soft", Sliding(2), size)
    assert found.output == ((1024, 1024, 512, 512),)
    n = 1 << 40
    assert found.operations == (4 * n - n // 4, 6 * n + n // 4)
    assert found.traffic == (5 * n, 9 * n)
    line = everypool.explain("max", Sliding(3, 1, 1), (1, 1, n))
    assert line.operations == (3 * n - 2 - n, n)
    assert (line.elements, line.output) == (3, ((1, 1, n),))
    if cpu.library() is not None:
        assert line.implementation == "eager"
        assert everypool.explain("max", Sliding(3, 1, 1), (1, 1, 1 << 30)).implementation == "unknown"


def test_explain_elements_in_windows() -> None:
    found = everypool.explain("max", Sliding(3, 2, 1), (1, 1, 5, 5))
    assert found.elements == 9
    assert found.mean_elements == (2 + 3 + 2) ** 2 / 9
    assert everypool.explain("max", Sliding(2), (1, 1, 4), torch.int8).operations == (2, 0)


@pytest.mark.parametrize(
    ("arguments", "error", "name"),
    [
        (("max", Sliding(2), (1, 1)), ValueError, "shape"),
        (("max", Sliding(2), 4), TypeError, "shape"),
        (("max", Sliding(2), (1, 1, -4)), ValueError, "shape"),
        (("max", Sliding(2), (1 << 20, 1 << 20, 1 << 30)), ValueError, "shape"),
        (("max", Sliding(9), (1, 1, 4)), ValueError, "kernel_size"),
        (("max", 2, (1, 1, 4)), TypeError, "windows"),
        (("max", Boxes(BOXES, 2), (1, 1, 4, 4)), NotImplementedError, "windows"),
        (("soft", Sliding(2), (1, 1, 4), torch.int8), TypeError, "input"),
        (("soft", Sliding(2), (1, 1, 4), "float32"), TypeError, "dtype"),
        (("soft", Sliding(2), (1, 1, 4), torch.float32, "nowhere"), ValueError, "device"),
        (("soft", Sliding(2), (1, 1, 4), torch.float32, "cpu", 1), TypeError, "mask"),
    ],
)
def test_explain_refuses(arguments: Any, error: type[Exception], name: str) -> None:
    with pytest.raises(error, match=f"^`{name}` must be .+, got "):
        everypool.explain(*arguments)


# ---- the command ---------------------------------------------------------------------------------------------------------


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("EVERYPOOL_")}
    return subprocess.run(
        [sys.executable, "-m", "everypool.cli", "explain", *arguments],
        env=environment,
        capture_output=True,
        text=True,
    )


def test_command_prints_what_explain_found() -> None:
    done = command("gem:p=3", "--shape", "2x3x8x9", "--kernel", "3x2", "--stride", "2", "--padding", "1x0", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    found = everypool.explain("gem:p=3", Sliding((3, 2), 2, (1, 0)), (2, 3, 8, 9))
    assert told["operations"] == list(found.operations or ())
    assert told["traffic"] == list(found.traffic or ())
    assert told["output"] == [list(found.output[0])]


def run_here(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    from everypool.cli import run

    code = run(["explain", *arguments])
    return code, *capsys.readouterr()


def test_command_fits_a_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with forced("eager"):
        code, out, _ = run_here(capsys, "gem:p=3", "--shape", "32x64x112x112", "--kernel", "3")
    assert code == 0
    assert "eager: forced by the caller" in out
    assert max(map(len, out.splitlines())) <= 80
    # 37 x 37 windows of 9 elements in 2048 planes: 3 K + 1 forward, 4 K + 3 backward
    assert "78.5 M operations" in out
    assert "109.3 M operations" in out


def test_command_counts_modules(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run_here(capsys, "yolo_spp", "--json")
    assert code == 0
    told = json.loads(out)
    _, counts = heard(everypool.SPPF(8), torch.randn(2, 8, 6, 5))
    assert told["operators"] == counts["Global"]
    assert sum(told["operations"]) == sum(counts["Global"].values())


@pytest.mark.parametrize(
    ("arguments", "windows"),
    [
        (["max"], Global()),
        (["max", "--output", "2x3"], Adaptive((2, 3))),
        (["max", "--windows", "strips"], Strips()),
        (["max", "--windows", "scan:-2:reverse"], Scan(-2, True)),
        (["max", "--windows", "pyramid:1,2"], Pyramid((1, 2))),
        (["max", "--kernel", "2", "--padding", "same", "--dilation", "2"], Sliding(2, None, "same", 2)),
        (["spp"], Pyramid((1, 2))),
    ],
)
def test_command_takes_windows(capsys: pytest.CaptureFixture[str], arguments: list[str], windows: Any) -> None:
    code, out, _ = run_here(capsys, *arguments, "--shape", "1x2x7x6", "--json")
    assert code == 0
    told = json.loads(out)
    assert told["windows"] == repr(windows)
    assert told["operations"] == list(everypool.explain("max", windows, (1, 2, 7, 6)).operations or ())


@pytest.mark.parametrize("name", list(everypool.operations()))
def test_command_knows_every_operation(capsys: pytest.CaptureFixture[str], name: str) -> None:
    shape = ["--shape", "1x2x6x5"] if everypool.operations()[name].kind == "reducer" else []
    code, out, err = run_here(capsys, name, *shape)
    assert code == 0, err
    assert "forward" in out


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (["maxx", "--shape", "1x1x4"], "name"),
        (["max"], "shape"),
        (["max", "--shape", "1xx4"], "shape"),
        (["max", "--shape", "1x1x4", "--kernel", "two"], "kernel"),
        (["max", "--shape", "1x1x4", "--kernel", "2", "--output", "2"], "output"),
        (["max", "--shape", "1x1x4", "--stride", "2"], "stride"),
        (["max", "--shape", "1x1x4", "--windows", "stripes"], "windows"),
        (["max", "--shape", "1x1x4", "--windows", "scan:up"], "windows"),
        (["max", "--shape", "1x1x4", "--windows", "global:2"], "windows"),
        (["max", "--shape", "1x1x4", "--dtype", "float"], "dtype"),
        (["soft", "--shape", "1x1x4", "--dtype", "int8"], "input"),
        (["strip", "--kernel", "2"], "kernel"),
        (["corner", "--mask"], "OP"),
        (["max_unpool", "--shape", "1x1x4"], "shape"),
        (["yolo_spp", "--shape", "1x9x5x5"], "input"),
    ],
)
def test_command_refuses(capsys: pytest.CaptureFixture[str], arguments: list[str], name: str) -> None:
    code, out, err = run_here(capsys, *arguments)
    assert (code, out) == (2, "")
    assert err.startswith(f"everypool: `{name}` must be "), err


# ---- the page ------------------------------------------------------------------------------------------------------------


def test_page_gives_every_reducers_formula(pytestconfig: pytest.Config) -> None:
    text = (pytestconfig.rootpath / "docs" / "costs.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("| `")]
    assert {row[0].strip("`").partition(":")[0] for row in rows} == {row.operation.name for row in ROWS}

    def formula(a: int, b: int) -> str:
        first = {0: "", 1: "K"}.get(a, f"{a} K")
        return f"{first} {'+' if b > 0 else '−'} {abs(b)}" if first and b else first or str(b)

    for name, forward, backward, *_ in rows:
        work = parse(name.strip("`")).work(2)
        assert work is not None
        sorting = "K log2 K" + (f" + {work.forward[1]}" if work.forward[1] else "")
        assert forward == (sorting if work.sorts else formula(*work.forward)), name
        assert backward == formula(*work.backward), name


def test_blurs_are_counted_by_their_whole_filter() -> None:
    """Nine products and eight sums an output, as many again and one sum more for each backward; the maximum before it too."""
    x = torch.randn(2, 3, 8, 10, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        y = everypool.BlurPool2d()(x)
        assert counter.get_total_flops() == y.numel() * 17 == 2 * 3 * 4 * 5 * 17
        y.sum().backward()
    assert counter.get_total_flops() == y.numel() * (17 + 18)
    with FlopCounterMode(display=False) as counter:
        z = everypool.MaxBlurPool2d(2)(x.detach())
    assert counter.get_total_flops() == 2 * 3 * 7 * 9 * 3 + z.numel() * 17
