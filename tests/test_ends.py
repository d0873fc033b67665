"""Where numbers end: gradients of the smallest and largest, means whose sums overflow, middles and maxima that equal."""

from __future__ import annotations

import itertools
import math
from contextlib import nullcontext
from decimal import Decimal, localcontext
from typing import Any

import numpy as np
import oracle
import pytest
import torch
from cases import CONTRACT, Case, Row, as_tuple, case_id, flat, numbers, pooled, row_id
from torch import Tensor

import everypool
from everypool import Global, Mean, Power, Sliding, pool
from everypool.backends.choose import forced

WAYS = ["chosen", "definition"]
PATTERN = torch.tensor([0.71, 1.0, 0.93, 0.127, 0.51, 0.999, 0.33, 0.25, 0.8], dtype=torch.float64)
SIGNS = torch.tensor([1.0, -1.0, 1.0] * 3, dtype=torch.float64)


def way(name: str) -> Any:
    return forced("eager") if name == "definition" else nullcontext()


# -- powers ----------------------------------------------------------------------------------------------------------------


def slopes(x: list[float], p: float, norm: str, signed: str) -> list[float]:
    """(|x| / |y|)^(p - 1) / n in 60 digits, with the sign of x unless that is odd."""
    with localcontext() as context:
        context.prec, context.Emax, context.Emin = 60, 10**15, -(10**15)
        values, exponent = [Decimal(v) for v in x], Decimal(p)
        number = len(x) if norm == "mean" else 1
        if p == 0:
            level = sum((abs(v).ln() for v in values), Decimal(0)) / len(x)
        else:
            powers = [(abs(v).ln() * exponent).exp() * (-1 if signed == "odd" and v < 0 else 1) for v in values]
            level = abs(sum(powers, Decimal(0)) / number).ln() / exponent
        sizes = [((exponent - 1) * (abs(v).ln() - level)).exp() / number for v in values]
        return [float(-s if signed == "abs" and v < 0 else s) for s, v in zip(sizes, values, strict=True)]


def magnitudes(dtype: torch.dtype) -> list[float]:
    info = torch.finfo(dtype)
    least = info.tiny * info.eps
    return [4 * least, 100 * least, info.tiny / 8, 2 * info.tiny, info.max**-0.5, 1.0, info.max**0.5, info.max / 20, info.max]


@pytest.mark.parametrize("name", WAYS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    ("norm", "signed"), [("sum", "abs"), ("mean", "abs"), ("mean", "clamp"), ("mean", "odd"), ("sum", "odd")]
)
def test_gradient_of_powers(norm: str, signed: str, dtype: torch.dtype, name: str) -> None:
    """It does not depend on the magnitude, though powers, roots and logarithms of such values have a narrower range."""
    info = torch.finfo(dtype)
    wrong = []
    for magnitude, p in itertools.product(
        magnitudes(dtype), (-50.0, -2.0, -1.0, 0.0, 1e-9, 0.5, 1.0, 2.0, 2.3, 3.0, 17.0, 100.0)
    ):
        if (p <= 0 and signed == "odd") or (p == 0 and norm == "sum"):
            continue
        values = PATTERN * magnitude * (1 if signed == "clamp" else SIGNS)
        x = values.clamp(min=-info.max, max=info.max).to(dtype)
        x = x[x != 0]
        expected = torch.tensor(slopes(x.tolist(), p, norm, signed), dtype=torch.float64)
        # a logarithm of such values has lost a few digits, which the exponent multiplies
        allowed = 64 * info.eps + (1 + abs(p)) * max(8 * info.eps, 2e-12)
        number = torch.tensor(p, dtype=torch.float64, requires_grad=True)
        for setting in (p, number) if norm == "mean" or p else (p,):
            leaf = x.reshape(1, 1, -1).clone().requires_grad_()
            with way(name):
                y = pool(leaf, Power(setting, norm, signed, eps=float(values.abs().min()) / 2 or 5e-324), Global())
                (grad,) = torch.autograd.grad(y, leaf, torch.full_like(y, 4.0))  # what follows may be steep
            error = (grad.flatten().double() / 4 - expected).abs()
            beyond = (expected.abs() < info.tiny) | (expected.abs() > info.max / 4) | bool(y.isinf())
            if not bool((beyond | (error <= allowed * expected.abs())).all()):
                wrong.append((magnitude, setting, float((error / expected.abs()).max())))
    assert not wrong


@pytest.mark.parametrize("name", WAYS)
@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("kernel", [(2, 2), (3, 5), (1, 20), (13, 13), (15, 24)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_gradient_of_subnormal_results(dtype: torch.dtype, kernel: tuple[int, int], channels_last: bool, name: str) -> None:
    """A result that has lost its digits tells nothing of the gradient, which is that of the same numbers made larger."""
    info = torch.finfo(dtype)
    draw = torch.Generator().manual_seed(sum(kernel))
    for magnitude, p, norm in itertools.product((0.1, 1e-3), (2.0, 3.0, -1.0, 2.5, 0.5), ("sum", "mean")):
        sizes = (torch.rand((2, 3, 15, 24), generator=draw, dtype=torch.float64) * 0.9 + 0.1) * info.tiny * magnitude
        x = (sizes * torch.rand(sizes.shape, generator=draw).sub(0.5).sign()).to(dtype)
        x = torch.where(x == 0, info.tiny * info.eps, x.double()).to(dtype)
        large = (x.double() * 2.0 ** round(-math.log2(info.tiny))).requires_grad_()
        powers = large.abs().pow(p).unfold(2, kernel[0], kernel[0]).unfold(3, kernel[1], kernel[1]).sum((-2, -1))
        expected_y = (powers if norm == "sum" else powers / math.prod(kernel)).pow(1 / p)
        g = torch.rand(expected_y.shape, generator=draw, dtype=torch.float64).to(dtype)
        (expected,) = torch.autograd.grad(expected_y, large, g.double())
        x = x.contiguous(memory_format=torch.channels_last) if channels_last else x
        x.requires_grad_()
        with way(name):
            (grad,) = torch.autograd.grad(pool(x, Power(p, norm, "abs"), Sliding(kernel, kernel)), x, g)
        error = (grad.double() - expected).abs() - 64 * info.eps * expected.abs()
        assert bool(((error <= info.tiny) | (expected.abs() > info.max)).all()), (magnitude, p, norm)


def test_gradient_of_the_smallest_numbers() -> None:
    for dtype in (torch.float64, torch.float32):
        info = torch.finfo(dtype)
        for value in (info.tiny * info.eps, info.tiny):
            with way("definition"):
                x = torch.full((1, 1, 4), value, dtype=dtype, requires_grad=True)
                (grad,) = torch.autograd.grad(everypool.lp_pool(x, 2.0, 4).sum(), x)
            assert grad.flatten().tolist() == pytest.approx([0.5] * 4, rel=1e-12)


def test_a_signed_mean_is_the_mean() -> None:
    """p = 1 needs neither logarithm nor root: the slope is 1 / n at zero too, and where the values cancel."""
    for values in ([0.0, 1.0, 2.0], [1.0, -1.0, 0.0], [0.0, 0.0, 0.0]):
        for norm, slope in (("mean", 1 / 3), ("sum", 1.0)):
            x = torch.tensor([[values]], dtype=torch.float64, requires_grad=True)
            (grad,) = torch.autograd.grad(pool(x, Power(1.0, norm, "odd"), Global()).sum(), x)
            assert grad.flatten().tolist() == [slope] * 3


# -- means -----------------------------------------------------------------------------------------------------------------

OPERATIONS = everypool.operations()
MEANS = [
    Row(OPERATIONS["avg"], {}),
    Row(OPERATIONS["gem"], {"p": 1.0}),
    Row(OPERATIONS["gem"], {"p": 1.0, "signed": "odd"}),
    Row(OPERATIONS["lp"], {"p": 1.0, "norm": "mean"}),
    Row(OPERATIONS["logsumexp"], {"r": 0.0}),
    Row(OPERATIONS["soft"], {"beta": 0.0}),
    Row(OPERATIONS["center"], {"even": "mean"}),
    Row(OPERATIONS["median"], {"even": "mean"}),
]
LARGEST = torch.finfo(torch.float64).max


def near_the_end(case: Case) -> list[np.ndarray]:
    shape = (2, 2, *case.spatial)
    return [np.full(shape, 0.95 * LARGEST), np.full(shape, -0.95 * LARGEST), numbers(shape, 3, -0.99, 0.97) * LARGEST]


@pytest.mark.parametrize("name", [*WAYS, "transforms"])
@pytest.mark.parametrize("case", CONTRACT, ids=case_id)
@pytest.mark.parametrize("row", MEANS, ids=row_id)
def test_means_near_the_largest_number(row: Row, case: Case, name: str) -> None:
    """The mean of finite values is finite, and has the gradient that it has elsewhere."""
    small = 2.0**-20
    mask = np.random.default_rng(0).random((2, 1, *case.spatial)) < 0.7
    for x, masked in itertools.product(near_the_end(case), (False, True)):
        options = {"mask": torch.from_numpy(mask)} if masked else {}

        def derive(x: Tensor, options: dict[str, Any] = options) -> list[Tensor]:
            def weighted(x: Tensor) -> Tensor:
                y = flat(pooled(row, case, x, **options))
                return torch.dot(y * small, torch.arange(1.0, 1 + y.numel(), dtype=y.dtype))

            if name == "transforms":
                return [flat(pooled(row, case, x, **options)), torch.func.grad(weighted)(x)]
            leaf = x.clone().requires_grad_()
            return [flat(pooled(row, case, leaf, **options)).detach(), *torch.autograd.grad(weighted(leaf), leaf)]

        with way("definition" if name == "transforms" else name):
            found, moderate = derive(torch.from_numpy(x)), derive(torch.from_numpy(x * small))
        expected = [y / small for y in as_tuple(case.expected(row, x * small, mask if masked else None)[0])]
        together = np.concatenate([y.reshape(-1) for y in expected])
        np.testing.assert_allclose(found[0].numpy(), together, rtol=1e-12, atol=1e-15 * LARGEST)
        torch.testing.assert_close(found[1], moderate[1], rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", WAYS)
def test_divisors_near_the_largest_number(name: str) -> None:
    x = torch.full((1, 1, 5), 0.9 * LARGEST, dtype=torch.float64)
    with way(name):
        for reducer, factors in (
            (Mean(), [1.0, 1.0, 1.0]),
            (Mean(count_include_pad=True), [2 / 3, 1.0, 2 / 3]),
            (Mean(divisor=-4), [-0.5, -0.75, -0.5]),
        ):
            y = pool(x, reducer, Sliding(3, 2, 1)).flatten() / (0.9 * LARGEST)
            assert y.tolist() == pytest.approx(factors, rel=1e-14)
        assert pool(x, Mean(divisor=2), Sliding(3, 2, 1)).flatten().isinf().tolist() == [False, True, False]
        leaf = torch.ones(1, 1, 5, dtype=torch.float64, requires_grad=True)
        y = pool(leaf, Mean(), Sliding(3, 1))
        (grad,) = torch.autograd.grad(y, leaf, torch.full_like(y, 0.9 * LARGEST))
        assert (grad / (0.9 * LARGEST)).flatten().tolist() == pytest.approx([1 / 3, 2 / 3, 1.0, 2 / 3, 1 / 3], rel=1e-14)


@pytest.mark.parametrize("name", WAYS)
def test_boxes_near_the_largest_number(name: str) -> None:
    x = torch.full((1, 2, 9, 9), -0.9 * LARGEST, dtype=torch.float64)
    boxes = torch.tensor([[0.0, 1.0, 1.0, 6.5, 7.0]], dtype=torch.float64)
    with way(name):
        for y in (everypool.roi_align(x, boxes, 2), everypool.roi_pool(x, boxes, 2, reducer="mean")):
            torch.testing.assert_close(y, torch.full_like(y, -0.9 * LARGEST), rtol=1e-14, atol=0)


# -- middles and maxima that equal -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "values", [[1.0, 1.0], [3.0, 1.0, 1.0, 0.0], [1.0] * 6, [2.0, 1.0, 2.0, 1.0, 2.0, 2.0], [math.inf] * 2]
)
def test_equal_middles_share_the_gradient(values: list[float]) -> None:
    """Each of the two in the middle of a stable order gets half."""
    order = sorted(range(len(values)), key=lambda i: values[i])
    half = len(values) // 2
    expected = [0.5 * (i in order[half - 1 : half + 1]) for i in range(len(values))]
    for dtype in (torch.float64, torch.float32, torch.float16):
        x = torch.tensor([[values]], dtype=dtype, requires_grad=True)
        y = everypool.global_median_pool(x, even="mean")
        assert y.item() == (values[order[half - 1]] + values[order[half]]) / 2
        (grad,) = torch.autograd.grad(y.sum(), x)
        assert grad.flatten().tolist() == expected


@pytest.mark.parametrize("even", ["median", "center"])
def test_means_of_two_at_both_ends(even: str) -> None:
    for dtype in (torch.float64, torch.float32):
        info = torch.finfo(dtype)
        least = info.tiny * info.eps
        for first, second, mean in ((info.max, info.max, info.max), (least, least, least), (least, 3 * least, 2 * least)):
            x = torch.tensor([[[first, second]]], dtype=dtype)
            function = everypool.global_median_pool if even == "median" else everypool.global_center_pool
            assert function(x, even="mean").item() == mean


@pytest.mark.parametrize("name", WAYS)
@pytest.mark.parametrize("form", ["contiguous", "last", "sliced"])
@pytest.mark.parametrize("nd", [1, 2, 3])
def test_indices_of_windows_of_minus_infinity(nd: int, form: str, name: str) -> None:
    """The first element of a window, whatever its memory layout; torch's own indices are wrong in channels_last_3d."""
    spatial = (5, 4, 6)[:nd]
    for channels in (1, 2, 9):
        x = torch.full((2, channels, *spatial), -math.inf)
        x[..., : spatial[-1] // 3] = 1.0
        if form != "contiguous" and nd > 1:
            x = x.repeat_interleave(2, 1) if form == "sliced" else x
            x = x.contiguous(memory_format=torch.channels_last if nd == 2 else torch.channels_last_3d)
            x = x[:, ::2] if form == "sliced" else x
        for kernel, stride, padding, dilation, ceil in (
            (2, 2, 0, 1, False),
            (3, 2, 1, 1, True),
            (3, 1, 1, 1, False),
            (2, 1, 0, 2, False),
        ):
            axes = [oracle.slide(n, kernel, stride, padding, dilation, ceil) for n in spatial]
            plane = x[0, 0].numpy()
            expected = []
            for taps in itertools.product(*axes):
                places = [p for p in itertools.product(*taps) if all(0 <= j < n for j, n in zip(p, spatial, strict=True))]
                best = max(places, key=lambda p: plane[p])  # the first of equals
                expected.append(int(np.ravel_multi_index(best, spatial)))
            with way(name):
                leaf = x.detach().requires_grad_()
                y, indices = everypool.max_pool(leaf, kernel, stride, padding, dilation, ceil, True)
                (grad,) = torch.autograd.grad(y.sum(), leaf)
            assert indices.flatten(2).tolist() == [[expected] * channels] * 2
            counts = np.bincount(expected, minlength=plane.size)
            assert grad.flatten(2).tolist() == [[counts.tolist()] * channels] * 2
