"""Max, average, Lp and adaptive pooling equal torch.nn over random windows, and are right where torch.nn is wrong."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cases import numbers
from torch import Tensor

import everypool

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
BATCHES, PER_BATCH = 7, 40  # of random windows for each number of axes and each of four operations: 3,360 in all


def torch_function(name: str, nd: int) -> Any:
    return getattr(F, f"{name}{nd}d")


def random_windows(rng: np.random.Generator, nd: int) -> dict[str, Any]:
    """Sizes that torch accepts: padding at most half the kernel, the window within the padded input."""
    while True:
        spatial = [int(n) for n in rng.integers(1, (40, 14, 8)[nd - 1], nd)]
        kernel = [int(n) for n in rng.integers(1, (12, 6, 4)[nd - 1], nd)]
        stride = [int(n) for n in rng.integers(1, 6, nd)]
        dilation = [int(n) for n in rng.integers(1, 4, nd)] if rng.random() < 0.4 else [1] * nd
        padding = [int(rng.integers(0, k // 2 + 1)) for k in kernel]
        reach = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
        if all(n + 2 * p >= r for n, p, r in zip(spatial, padding, reach, strict=True)):
            return {
                "spatial": spatial, "kernel": kernel, "stride": stride, "padding": padding, "dilation": dilation,
                "ceil_mode": bool(rng.integers(2)), "batch": int(rng.integers(0, 4)), "channels": int(rng.integers(1, 4)),
            }  # fmt: skip


def values(rng: np.random.Generator, case: dict[str, Any], dtype: torch.dtype = torch.float64) -> Tensor:
    """Few different values, so that ties are common; sometimes NaN and infinities."""
    x = rng.integers(-4, 5, (case["batch"], case["channels"], *case["spatial"])).astype(float)
    if rng.random() < 0.3:
        x[rng.random(x.shape) < 0.05] = np.nan
        x[rng.random(x.shape) < 0.05] = -np.inf
        x[rng.random(x.shape) < 0.05] = np.inf
    return torch.from_numpy(x).to(dtype)


def same_gradient(ours: Tensor, theirs: Tensor, leaf: Tensor) -> None:
    weights = torch.randn(ours.shape, dtype=ours.dtype)
    (first,) = torch.autograd.grad(ours, leaf, weights)
    (second,) = torch.autograd.grad(theirs, leaf, weights)
    torch.testing.assert_close(first, second, rtol=1e-11, atol=1e-12)


BATCH = [(nd, seed) for nd in (1, 2, 3) for seed in range(BATCHES)]


@pytest.mark.parametrize(("nd", "seed"), BATCH)
def test_max(nd: int, seed: int) -> None:
    """Values, indices, shapes, ties, NaN, infinities, empty batches, layouts and types; gradients too."""
    rng = np.random.default_rng([1, nd, seed])
    for number in range(PER_BATCH):
        case = random_windows(rng, nd)
        x = values(rng, case, DTYPES[number % 4])
        last = {1: torch.contiguous_format, 2: torch.channels_last, 3: torch.channels_last_3d}[nd]
        if number % 3 == 0:
            x = x.contiguous(memory_format=last)
        options = {key: case[key] for key in ("stride", "padding", "dilation", "ceil_mode")}
        y, indices = everypool.max_pool(x, case["kernel"], **options, return_indices=True)
        expected, places = torch_function("max_pool", nd)(x, case["kernel"], **options, return_indices=True)
        empty = indices < 0  # dilation over a small map: torch gives -inf and some index, here it is 0 and -1
        assert not y[empty].any(), case
        assert bool((expected[empty] == -torch.inf).all()), case
        torch.testing.assert_close(y[~empty], expected[~empty], rtol=0, atol=0, equal_nan=True, msg=str(case))
        assert torch.equal(indices[~empty], places[~empty]), case
        assert y.is_contiguous(memory_format=torch.contiguous_format if x.is_contiguous() else last), case
        assert torch.equal(everypool.max_pool(x, case["kernel"], **options).nan_to_num(), y.nan_to_num()), case
        if x.isfinite().all() and not empty.any():
            leaf = x.double().requires_grad_()
            theirs = torch_function("max_pool", nd)(leaf, case["kernel"], **options)
            same_gradient(everypool.max_pool(leaf, case["kernel"], **options), theirs, leaf)


@pytest.mark.parametrize(("nd", "seed"), BATCH)
def test_average(nd: int, seed: int) -> None:
    rng = np.random.default_rng([2, nd, seed])
    for _ in range(PER_BATCH):
        case = random_windows(rng, nd)
        x = values(rng, case)
        options = {key: case[key] for key in ("stride", "padding", "ceil_mode")} | {"count_include_pad": bool(rng.integers(2))}
        if nd > 1 and rng.random() < 0.3:
            options["divisor_override"] = int(rng.integers(1, 9))
        if nd == 3 and any(k > n for k, n in zip(case["kernel"], case["spatial"], strict=True)):
            options["padding"], case["kernel"] = 0, [1, 1, 1]  # torch refuses what fits the padded volume only
        leaf = x.clone().requires_grad_()
        y = everypool.avg_pool(leaf, case["kernel"], **options)
        expected = torch_function("avg_pool", nd)(leaf, case["kernel"], **options)
        torch.testing.assert_close(y, expected, rtol=1e-13, atol=1e-13, equal_nan=True, msg=f"{case} {options}")
        same_gradient(y.nan_to_num(0, 0, 0), expected.nan_to_num(0, 0, 0), leaf)


@pytest.mark.parametrize(("nd", "seed"), BATCH)
def test_power(nd: int, seed: int) -> None:
    """Where torch is right: non-negative input, and windows that do not run over the end."""
    rng = np.random.default_rng([3, nd, seed])
    done = 0
    while done < PER_BATCH:
        case = random_windows(rng, nd)
        short = [(n - k) % s for n, k, s in zip(case["spatial"], case["kernel"], case["stride"], strict=True)]
        if any(k > n for k, n in zip(case["kernel"], case["spatial"], strict=True)) or (case["ceil_mode"] and any(short)):
            continue
        done += 1
        p = float(rng.choice([0.5, 1.0, 1.5, 2.0, 3.0, 6.0, np.inf][: 6 + (nd < 3)]))
        x = torch.from_numpy(rng.random((case["batch"], case["channels"], *case["spatial"])) + 0.1)
        leaf = x.clone().requires_grad_()
        y = everypool.lp_pool(leaf, p, case["kernel"], case["stride"], case["ceil_mode"])
        if np.isinf(p):  # torch raises to the power of infinity; the limit is the maximum
            expected = torch_function("max_pool", nd)(leaf, case["kernel"], case["stride"], ceil_mode=case["ceil_mode"])
        else:
            kernel = case["kernel"][0] if nd == 1 else tuple(case["kernel"])
            expected = torch_function("lp_pool", nd)(leaf, p, kernel, case["stride"], case["ceil_mode"])
        torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-13, msg=f"{case} p={p}")
        same_gradient(y, expected, leaf)


@pytest.mark.parametrize(("nd", "seed"), BATCH)
def test_adaptive(nd: int, seed: int) -> None:
    """Maxima with their indices, and averages."""
    rng = np.random.default_rng([4, nd, seed])
    for number in range(PER_BATCH):
        case = random_windows(rng, nd)
        out: Any = [int(n) for n in rng.integers(1, (40, 14, 8)[nd - 1], nd)]
        if nd > 1 and rng.random() < 0.3:
            out[int(rng.integers(nd))] = None
        x = values(rng, case, DTYPES[number % 4])
        for function in ("adaptive_max_pool", "adaptive_avg_pool"):
            wide = x if "max" in function else x.double()
            y = getattr(everypool, function)(wide, out)
            if x.shape[0] == 0 and "max" in function:
                assert y.shape == (0, x.shape[1], *[o or n for o, n in zip(out, case["spatial"], strict=True)])
                continue
            expected = torch_function(function, nd)(wide, out)
            torch.testing.assert_close(y, expected, rtol=1e-13, atol=1e-13, equal_nan=True, msg=f"{case} {out} {function}")
        if x.shape[0]:
            _, indices = everypool.adaptive_max_pool(x, out, return_indices=True)
            assert torch.equal(indices, torch_function("adaptive_max_pool", nd)(x, out, return_indices=True)[1]), (case, out)


@pytest.mark.parametrize("nd", [1, 2, 3])
def test_layers_take_the_place_of_torchs(nd: int) -> None:
    """The same words in the same order, by position."""
    x = torch.from_numpy(numbers((2, 3, *(9, 8, 7)[:nd]), low=0.1))
    pairs = [
        ("MaxPool", (3, 2, 1, 1, False, True), {}),
        ("MaxPool", (3, 2, 1, 2, True), {}),
        ("AvgPool", (3, 2, 1, True, False), {}),
        ("AvgPool", (2,), {"ceil_mode": True}),
        ("LPPool", (2.5, 3, 2), {}),
        ("AdaptiveMaxPool", (3, True), {}),
        ("AdaptiveAvgPool", (3,), {}),
    ]
    for name, arguments, options in pairs:
        first = getattr(torch.nn, f"{name}{nd}d")(*arguments, **options)
        second = getattr(everypool, f"{name}{nd}d")(*arguments, **options)
        for data in (x, x[0]):
            for a, b in zip(as_list(first(data)), as_list(second(data)), strict=True):
                torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-13)


def as_list(item: Any) -> list[Tensor]:
    return list(item) if isinstance(item, tuple) else [item]


HALVES = [torch.float16, torch.bfloat16]


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_fault_adaptive_average_of_volumes_in_half_precision(dtype: torch.dtype) -> None:
    """torch has no such kernel on CPU, or adds up in half precision; the mean of 1000 equal numbers is that number."""
    x = torch.full((1, 1, 10, 10, 10), 0.1).to(dtype).requires_grad_()
    y = everypool.adaptive_avg_pool(x, 1)
    assert y.item() == x.flatten()[0].item()
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.dtype == dtype
    torch.testing.assert_close(x.grad.double(), torch.full(x.shape, 1e-3, dtype=torch.float64), rtol=1e-2, atol=0)
    ramp = torch.from_numpy(numbers((2, 3, 7, 5, 6))).to(dtype)
    expected = F.adaptive_avg_pool3d(ramp.double(), (3, 2, 4)).to(dtype)
    assert torch.equal(everypool.adaptive_avg_pool(ramp, (3, 2, 4)), expected)


@pytest.mark.parametrize("nd", [1, 2, 3])
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_fault_average_in_half_precision(dtype: torch.dtype, nd: int) -> None:
    """torch's sum of a large window stops growing in half precision, or overflows."""
    kernel = (4096, 64, 16)[nd - 1]
    for value in (1.0, 100.0, 6e4):
        x = torch.full((1, 1, *[kernel] * nd), value).to(dtype)
        assert everypool.avg_pool(x, kernel).item() == x.flatten()[0].item()
    x = torch.from_numpy(numbers((2, 2, *(40, 12, 8)[:nd]))).to(dtype)
    for count_include_pad, ceil_mode in itertools.product((False, True), repeat=2):
        options = {"count_include_pad": count_include_pad, "ceil_mode": ceil_mode}
        expected = torch_function("avg_pool", nd)(x.double(), 3, 2, 1, **options)
        y = everypool.avg_pool(x, 3, 2, 1, **options)
        assert torch.equal(y, expected.to(dtype))


@pytest.mark.parametrize("nd", [1, 2, 3])
def test_fault_power_of_negative_values(nd: int) -> None:
    """The p-norm is one of absolute values; torch adds x^p, and takes a root of what may be negative."""
    x = torch.from_numpy(numbers((2, 2, *(9, 6, 5)[:nd])))
    for p in (1.0, 3.0, 2.5):
        y = everypool.lp_pool(x, p, 2, 2)
        expected = torch_function("avg_pool", nd)(x.abs() ** p, 2, 2).mul(2**nd) ** (1 / p)
        torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("nd", [1, 2, 3])
def test_fault_power_in_windows_that_run_over_the_end(nd: int) -> None:
    """torch divides by the elements within and multiplies by the whole kernel; the norm of ones is a count's root."""
    x = torch.ones(1, 1, *[5] * nd, dtype=torch.float64)
    y = everypool.lp_pool(x, 2.0, 2, 2, True)
    counts = torch.tensor([2.0, 2.0, 1.0], dtype=torch.float64)
    expected = counts
    for _ in range(nd - 1):
        expected = expected.unsqueeze(-1) * counts
    torch.testing.assert_close(y[0, 0], expected.sqrt(), rtol=1e-14, atol=0)


def test_fault_gradient_of_power_at_zero() -> None:
    """torch gives NaN where a window is all zero."""
    x = torch.zeros(1, 1, 4, requires_grad=True)
    everypool.lp_pool(x, 2.0, 2).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [[[0.0] * 4]]


def test_fault_average_of_empty_windows() -> None:
    """Windows that lie in the padding alone give 0, not 0 / 0."""
    x = torch.ones(1, 1, 3, requires_grad=True)
    y = everypool.avg_pool(x, 4, 1, 6, count_include_pad=False, dilation=4)
    assert bool(y.isfinite().all())
