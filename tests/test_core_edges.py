"""Where values and arguments end: ties at the largest number, exponents next to zero, windows and boxes without measure."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from test_bad_input import rejected
from torch import Tensor

import everypool
from everypool import Adaptive, Global, LogSumExp, Max, Power, Pyramid, Scan, Sliding, Soft, Strips, pool

X = torch.arange(72.0).reshape(1, 2, 6, 6)
INF = float("inf")


# -- values ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_equal_maxima_are_no_sum(dtype: torch.dtype) -> None:
    """The maximum of equal values is that value to the last bit, however many there are and however large."""
    for value in (torch.finfo(dtype).max, 1.001, -0.3):
        for count in (7, 70000):
            x = torch.full((1, 1, count), value, dtype=dtype, requires_grad=True)
            y = pool(x, Max("even"), Global())
            assert torch.equal(y, x.detach()[..., 0])
            (grad,) = torch.autograd.grad(y.sum(), x)
            assert torch.equal(grad, torch.full_like(grad, 1 / count))
            if value > 0:
                assert torch.equal(pool(x, Power(INF), Global()), x.detach()[..., 0])


@pytest.mark.parametrize("magnitude", [1e-20, 1.0, 1e20, 1e100])
def test_a_learned_sharpness_next_to_zero(magnitude: float) -> None:
    """A tensor gives what the same number gives, and the slope that the series of the definition has."""
    x = torch.tensor([[[1.0, 3.0, 2.0]]], dtype=torch.float64) * magnitude
    for exponent in (-2, -7, -9, -12, -16, -40):
        r = torch.tensor(10.0**exponent / magnitude, dtype=torch.float64, requires_grad=True)
        y = pool(x, LogSumExp(r), Global())
        assert y.item() == pytest.approx(pool(x, LogSumExp(r.item()), Global()).item(), rel=1e-14)
        assert y.item() == pytest.approx(magnitude * (2 + 10.0**exponent / 3), rel=1e-14 + 10.0 ** (2 * exponent))
        (slope,) = torch.autograd.grad(y.sum(), r)
        # log(mean(exp(r x))) / r = mean + r / 2 variance + ..., with no term in r^2 for values this symmetric
        assert slope.item() == pytest.approx(magnitude**2 / 3, rel=1e-6 + 10.0 ** (2 * exponent))


def test_a_learned_exponent_next_to_zero() -> None:
    """Over 600 decades, with a zero among the values, and at denormal exponents."""
    wide = torch.tensor([[[1e-300, 1e300]]], dtype=torch.float64)
    for p in (1e-4, 2e-7, 0.9e-7, 1e-9, 0.0):
        # ((a^-p + a^p) / 2)^(1/p) = exp(log(cosh(p log(a))) / p), and cosh(z) = 1 + 2 sinh(z / 2)^2
        expected = math.exp(math.log1p(2 * math.sinh(p * 150 * math.log(10)) ** 2) / p) if p else 1.0
        for setting in (p, torch.tensor(p, dtype=torch.float64)):
            assert pool(wide, Power(setting, eps=1e-307), Global()).item() == pytest.approx(expected, rel=1e-10)
    some = torch.ones(1, 1, 1000, dtype=torch.float64)
    some[..., 7] = 0
    for setting in (0.0, torch.tensor(0.0, dtype=torch.float64)):
        assert pool(some, Power(setting, "mean", "abs"), Global()).item() == 0
    x = torch.tensor([[[1.0, 3.0, 2.0]]])
    for p in (1e-310, 5e-324, -5e-324):
        assert pool(x, Power(p), Global()).item() == pytest.approx(6 ** (1 / 3), rel=1e-6)


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("case", ["lowest", "huge"])
def test_slopes_beside_an_infinite_or_huge_value(learned: bool, case: str) -> None:
    """exp(-inf) is nothing: it neither counts nor spoils the gradient of the others, nor that of the sharpness."""
    x = torch.tensor([[[1.0, -INF if case == "lowest" else -1e200, 2.0]]], dtype=torch.float64, requires_grad=True)
    r = torch.tensor(1.0, dtype=torch.float64, requires_grad=True) if learned else 1.0
    y = pool(x, LogSumExp(r), Global())
    assert y.item() == pytest.approx(math.log((math.e + math.e**2) / 3), rel=1e-14)
    grads = torch.autograd.grad(y.sum(), (x, r) if learned else x)
    share = 1 / (1 + math.e)
    torch.testing.assert_close(grads[0].flatten(), torch.tensor([share, 0.0, 1 - share], dtype=torch.float64))
    if learned:
        assert grads[1].item() == pytest.approx(share + 2 * (1 - share) - y.item(), rel=1e-12)
        beta = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
        y = pool(x, Soft(beta), Global())
        assert y.item() == pytest.approx(share + 2 * (1 - share), rel=1e-14)
        (slope,) = torch.autograd.grad(y.sum(), beta)
        assert slope.item() == pytest.approx(share * (1 - share), rel=1e-12)  # the variance of 1 and 2


def test_a_learned_exponent_beside_an_infinite_value() -> None:
    """The finite values of such a window have a gradient of 0, not NaN."""
    x = torch.tensor([[[1.0, INF, 2.0]]], requires_grad=True)
    p = torch.tensor(3.0, requires_grad=True)
    y = pool(x, Power(p), Global())
    assert y.item() == INF
    (grad,) = torch.autograd.grad(y.sum(), x)
    assert grad.flatten()[[0, 2]].tolist() == [0, 0]
    p = torch.tensor(-2.0, dtype=torch.float64, requires_grad=True)
    y = pool(x.detach().double(), Power(p), Global())
    assert y.item() == pytest.approx((1.25 / 3) ** -0.5, rel=1e-14)
    (slope,) = torch.autograd.grad(y.sum(), p)  # y / p (sum(w log(x)) - log(y)), w = 0.8 and 0.2 of 1 and 2
    assert slope.item() == pytest.approx(y.item() / -2 * (0.2 * math.log(2) - math.log(y.item())), rel=1e-12)


@pytest.mark.parametrize("center", ["lower", "mean"])
@pytest.mark.parametrize("nd", [1, 2, 3])
def test_no_samples_with_sizes(nd: int, center: str) -> None:
    """An empty batch has a table of sizes of no rows."""
    x = torch.ones(0, 2, *(6, 5, 4)[:nd])
    for windows in (Sliding(2), Sliding(3, 2, "same"), Adaptive(2), Global(True), Scan(), Strips()):
        for sizes in ([], torch.zeros(0, nd, dtype=torch.int64)):
            for reducer in (everypool.Center(center), "max", "soft", "gem"):
                y = pool(x, reducer, windows, sizes=sizes)
                assert len(y[0] if isinstance(y, tuple) else y) == 0


def test_one_map_without_a_batch() -> None:
    """Every operation that knows its number of axes takes (C, H, W)."""
    mask = torch.rand(1, 6, 6) > 0.3
    for name in ("top_pool", "bottom_pool", "left_pool", "right_pool", "corner_pool"):
        function = getattr(everypool, name)
        for options in ({}, {"mask": mask}, {"sizes": [4, 5]}):
            batched = {key: value[None] if isinstance(value, Tensor) else [value] for key, value in options.items()}
            assert torch.equal(function(X[0], **options), function(X, **batched)[0])
    for layer in (everypool.TopLeftPool(), everypool.BottomRightPool()):
        assert torch.equal(layer(X[0], X[0].flip(-1)), layer(X, X.flip(-1))[0])


def test_the_rule_for_ties_follows_the_reducer_however_it_is_written() -> None:
    x = torch.ones(1, 1, 3, requires_grad=True)
    for reducer in ("max", "MAX", " max "):
        (grad,) = torch.autograd.grad(everypool.directional_pool(x, 0, reducer=reducer, ties="last").sum(), x)
        assert grad.flatten().tolist() == [1, 1, 1]


def test_unpooling_keeps_the_layout() -> None:
    for nd, form in ((2, torch.channels_last), (3, torch.channels_last_3d)):
        x = torch.randn(2, 3, *[6] * nd)
        y, index = everypool.max_pool(x, 2, return_indices=True)
        expected = everypool.max_unpool(y, index, 2)
        result = everypool.max_unpool(y.to(memory_format=form), index.to(memory_format=form), 2)
        assert torch.equal(result, expected)
        assert result.is_contiguous(memory_format=form)


# -- windows and boxes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dilation", [1, 2, 3])
@pytest.mark.parametrize("kernel", [2, 3, 4, 7, 13, 2**34])
def test_same_steps_of_a_ragged_batch_cost_no_more_than_the_map(kernel: int, dilation: int) -> None:
    """A kernel far larger than the map is clipped with sizes as it is without."""
    x = torch.randn(2, 2, 9, 5, dtype=torch.float64)
    sizes = [[9, 3], [4, 5]]
    for reducer in ("max", "mean", "soft", "center", Power(3.0, signed="shift")):
        windows = Sliding(kernel, (2, 3), "same", dilation)
        leaf = x.clone().requires_grad_()
        y = pool(leaf, reducer, windows, sizes=sizes)
        y.square().sum().backward()
        for n, (height, width) in enumerate(sizes):
            single = x[n : n + 1, :, :height, :width].clone().requires_grad_()
            alone = pool(single, reducer, windows)
            alone.square().sum().backward()
            inside = (n, slice(None), slice(alone.shape[2]), slice(alone.shape[3]))
            torch.testing.assert_close(y[inside], alone[0])
            assert not y[n, :, alone.shape[2] :].any()
            torch.testing.assert_close(leaf.grad[n, :, :height, :width], single.grad[0])


@pytest.mark.parametrize("nd", [1, 2, 3])
def test_a_window_larger_than_the_map_in_ceil_mode(nd: int) -> None:
    """As torch.nn: the only window is cut off at the end of the map if it runs over by less than a step."""
    for n, kernel, stride, padding in itertools.product((1, 2, 3, 5), (2, 3, 4, 7), (1, 2, 3, 6), (0, 1)):
        x = torch.randn(2, 3, *[n] * nd, dtype=torch.float64)
        fits = kernel <= n + 2 * padding + stride - 1
        for name, options in (("Max", {"return_indices": True}), ("Avg", {}), ("Avg", {"count_include_pad": False})):
            if name == "Avg" and nd == 3:
                continue  # torch's asks for a whole window here
            arguments = {"kernel_size": kernel, "stride": stride, "padding": padding, "ceil_mode": True, **options}
            ours, theirs = (getattr(place, f"{name}Pool{nd}d")(**arguments) for place in (everypool, torch.nn))
            if fits:
                torch.testing.assert_close(ours(x), theirs(x))
            else:
                rejected(lambda ours=ours, x=x: ours(x), ValueError, "kernel_size")
        if fits:  # the fold without torch's kernel
            y = pool(x, Max("last"), Sliding(kernel, stride, padding, ceil_mode=True))
            assert torch.equal(y, getattr(torch.nn, f"MaxPool{nd}d")(kernel, stride, padding, ceil_mode=True)(x))


def test_numpy_integers_are_integers() -> None:
    """As torch.nn takes them; a narrow one does not wrap."""
    two, large = np.int64(2), np.uint8(200)
    expected = torch.nn.functional.max_pool2d(X, 2)
    assert torch.equal(everypool.max_pool(X, two), expected)
    assert torch.equal(everypool.MaxPool2d(two, np.int32(2), np.int8(0))(X), expected)
    assert torch.equal(everypool.max_pool(X, (two, np.int16(2))), expected)
    assert torch.equal(everypool.adaptive_max_pool(X, np.int64(3)), expected)
    assert torch.equal(everypool.avg_pool(X, 2, divisor_override=two), torch.nn.functional.avg_pool2d(X, 2, divisor_override=2))
    assert everypool.max_pool(torch.ones(1, 1, 1000), large, np.uint8(100), np.uint8(100)).shape == (1, 1, 11)
    assert everypool.gem_pool(X, 2, p=np.float32(2)).shape == expected.shape
    assert pool(X, "max", Scan(np.int64(-1))).shape == X.shape
    for layer in (everypool.MaxPool2d((two, two), two), everypool.AdaptiveMaxPool2d(np.int64(3))):
        assert torch.equal(torch.compile(layer, fullgraph=True, backend="eager")(X), expected)
    rejected(lambda: everypool.max_pool(X, np.float64(2)), TypeError, "kernel_size")
    rejected(lambda: everypool.max_pool(X, np.bool_(True)), TypeError, "kernel_size")
    rejected(lambda: everypool.max_pool(X, np.array([2, 2])), TypeError, "kernel_size")


ZERO = torch.tensor(0.0)
GRID = torch.tensor([[0.0, 0.0, 0.0, 2.0, 2.0]])
WIDE = torch.tensor([[0.0, -3e38, -3e38, 3e38, 3e38]])
BAD: list[tuple[str, Callable[[], Any], type[Exception], str]] = [
    ("p beyond floats", lambda: pool(X, Power(10**400), Global()), ValueError, "p"),
    ("beta beyond floats", lambda: pool(X, Soft(-(10**5000)), Global()), ValueError, "beta"),
    ("eps beyond floats", lambda: pool(X, Power(eps=10**400), Global()), ValueError, "eps"),
    ("learned p beyond floats", lambda: everypool.GeMPool2d(2, p=1e39), ValueError, "p"),
    ("p of other channels", lambda: everypool.GeMPool2d(2, p=torch.ones(3), channels=5), ValueError, "channels"),
    ("p elsewhere", lambda: pool(X, Power(torch.ones(2, device="meta")), Global()), ValueError, "p"),
    ("learned sum at 0", lambda: pool(X, Power(ZERO, "sum", "abs"), Global()), ValueError, "p"),
    ("one channel's sum at 0", lambda: everypool.lp_pool(X, torch.tensor([2.0, 0.0]), 2), ValueError, "norm_type"),
    ("learned log-sum at 0", lambda: pool(X, LogSumExp(ZERO, "sum"), Global()), ValueError, "r"),
    ("learned odd at 0", lambda: pool(X, Power(ZERO, signed="odd"), Global()), ValueError, "p"),
    ("learned odd below", lambda: pool(X, Power(torch.tensor([-1.0, 2.0]), signed="odd"), Global()), ValueError, "p"),
    ("strips along a number", lambda: pool(X, "mean", Strips(0)), TypeError, "along"),  # type: ignore[arg-type]
    ("strips along nothing", lambda: pool(X, "mean", Strips(())), ValueError, "along"),
    ("dilated beyond ints", lambda: pool(X, "max", Sliding(2**40, 1, "same", 2**40)), ValueError, "kernel_size"),
    ("so with sizes", lambda: pool(X, "max", Sliding(2**40, 1, 0, 2**40), sizes=[[3, 3]]), ValueError, "kernel_size"),
    ("scaled to infinity", lambda: everypool.roi_align(X, GRID * 1e38, 2, 10.0, 2), ValueError, "boxes"),
    ("scale beyond floats", lambda: everypool.roi_align(X, GRID, 2, 1e300, 2), ValueError, "boxes"),
    ("boxes too wide for floats", lambda: everypool.roi_align(X, WIDE, 2, 1.0, 2), ValueError, "boxes"),
    ("so rounded", lambda: everypool.roi_pool(X, WIDE, 2), ValueError, "boxes"),
    ("bins without bound", lambda: everypool.roi_align(X, GRID, 2**30), ValueError, "output_size"),
    ("cells without bound", lambda: everypool.roi_pool(X, GRID, 2**30), ValueError, "output_size"),
    ("samples without bound", lambda: everypool.roi_align(X, GRID, 2, 1.0, 10**9), ValueError, "sampling_ratio"),
    ("samples beyond ints", lambda: everypool.roi_align(X, GRID, 2, 1.0, 10**30), ValueError, "sampling_ratio"),
    ("boxes elsewhere", lambda: everypool.roi_align(X, [GRID[:, 1:].to("meta")], 2), ValueError, "boxes"),
    ("one scale", lambda: everypool.MultiLevelRoIPool(2, 0.5), TypeError, "scales"),  # type: ignore[arg-type]
    ("text as scales", lambda: everypool.MultiLevelRoIPool(2, "ab"), TypeError, "scales"),  # type: ignore[arg-type]
    ("nested", lambda: pool(_nested(), "max", Global()), TypeError, "input"),
    ("an empty sample", lambda: everypool.global_max_pool([X[0], X[0, :, :0]]), ValueError, "input"),
    ("a corner of two devices", lambda: everypool.corner_pool(X, other=X.to("meta")), ValueError, "other"),
    ("a cross of two devices", lambda: everypool.cross_max_pool(X, other=X.to("meta")), ValueError, "other"),
    ("unpooling nothing", lambda: everypool.max_unpool(X[..., :0], X[..., :0].long(), 2), ValueError, "input"),
    ("sparse indices", lambda: everypool.max_unpool(X, X.long().to_sparse(), 2), TypeError, "indices"),
]


def _nested() -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls them a prototype, once
        return torch.nested.nested_tensor([X[0], X[0]])


@pytest.mark.parametrize(("call", "error", "name"), [row[1:] for row in BAD], ids=[row[0] for row in BAD])
def test_arguments_at_their_ends(call: Callable[[], Any], error: type[Exception], name: str) -> None:
    rejected(call, error, name)


def test_tensors_without_values() -> None:
    """Shapes can be asked for without data; rules on values wait until there are some."""
    x, sizes = X.to("meta"), torch.tensor([[3, 3]], device="meta")
    for windows in (Sliding(2), Sliding(3, 2, "same"), Adaptive(4), Global(), Pyramid((1, 2)), Scan()):
        for reducer in ("max", "soft", "gem", "center"):
            shape = pool(X, reducer, windows, sizes=[[3, 3]]).shape
            assert pool(x, reducer, windows, sizes=sizes).shape == shape
    for function in (everypool.roi_align, everypool.roi_pool):
        assert function(x, GRID.to("meta"), 2).shape == (1, 2, 2, 2)
    assert everypool.max_unpool(x, x.long(), 2).shape == (1, 2, 12, 12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_boxes_in_narrow_types_know_their_sample(dtype: torch.dtype) -> None:
    """bfloat16 has no 257: boxes listed by sample must not turn to a neighbour."""
    x = torch.arange(2100.0).reshape(2100, 1, 1, 1).expand(2100, 1, 2, 2)
    boxes = [torch.tensor([[0.0, 0.0, 1.0, 1.0]], dtype=dtype)] * 2100
    for function in (everypool.roi_align, everypool.roi_pool):
        assert torch.equal(function(x, boxes, 1).flatten(), torch.arange(2100.0))
    assert everypool.roi_pool(X[:0].int(), [], 2).shape == (0, 2, 2, 2)


def test_boxes_far_larger_than_a_map_of_few_cells() -> None:
    """The coarsest level of a pyramid may be a single cell: samples up to a cell outside count, others are 0."""
    x = torch.full((1, 1, 1, 1), 3.0)
    box = torch.tensor([[0.0, -4.0, -4.0, 8.0, 8.0]])
    inside = sum(-1 <= -4 + i + 0.5 <= 1 for i in range(12)) / 12  # one sample per cell: places -3.5, -2.5, ...
    assert everypool.roi_align(x, box, 1).item() == pytest.approx(3 * inside**2, rel=1e-6)
    rejected(lambda: everypool.roi_align(x, box * 2, 1), ValueError, "boxes")


def test_a_level_without_cells_takes_no_part_in_the_maximum() -> None:
    """Its 0 would win over negative values, or take half of the gradient of a real 0."""
    maps = [torch.full((1, 1, 4, 4), -2.0), torch.full((1, 1, 4, 4), -3.0)]
    nothing, all_there = torch.zeros(1, 1, 4, 4, dtype=torch.bool), torch.ones(1, 1, 4, 4, dtype=torch.bool)
    box = torch.tensor([[0.0, 0.0, 0.0, 3.0, 3.0]])
    for masks, expected in (
        ([all_there, all_there], -2.0),
        ([nothing, all_there], -3.0),
        ([all_there, nothing], -2.0),
        ([nothing, nothing], 0.0),
    ):
        leaves = [x.clone().requires_grad_() for x in maps]
        y = everypool.multi_level_roi_pool(leaves, box, 1, (1.0, 1.0), "max", mask=masks)
        assert y.item() == expected
        grads = torch.autograd.grad(y.sum(), leaves)
        assert [round(float(grad.sum()), 5) for grad in grads] == [float(x[0, 0, 0, 0] == expected) for x in maps]


@pytest.mark.parametrize("reducer", [Power(3.0, "sum", "abs"), Power(3.0, signed="odd"), LogSumExp(2.0, "sum")], ids=str)
def test_rules_on_settings_are_kept_while_a_graph_is_recorded(reducer: everypool.Reducer) -> None:
    """Without a break in it: a number is looked at as a number."""
    recorded = torch.compile(lambda x: pool(x, reducer, Sliding(2)), fullgraph=True, backend="eager")
    torch.testing.assert_close(recorded(X), pool(X, reducer, Sliding(2)))
