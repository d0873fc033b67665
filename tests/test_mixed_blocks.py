"""Mixed and gated pooling against torch.nn's poolings and loops; a closed mix is the first pooling in every bit."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import everypool
from everypool import GatedPool1d, GatedPool2d, MixedPool

BITS = {torch.float16: torch.int16, torch.bfloat16: torch.int16, torch.float32: torch.int32, torch.float64: torch.int64}


def same_bits(a: Tensor, b: Tensor) -> bool:
    """NaN may be any NaN: rounding to bfloat16 knows only one."""
    nowhere = a.isnan() & b.isnan()
    a, b = (x.masked_fill(nowhere, 0) for x in (a, b))
    return a.dtype == b.dtype and torch.equal(a.view(BITS[a.dtype]), b.view(BITS[b.dtype]))


# ---- mixed pooling -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [0.5, 0.25, 1.0, 2.0, -1.5])
def test_the_published_formula(alpha: float) -> None:
    """alpha' max + (1 - alpha') mean with alpha' = 1 - alpha, unbounded; names and torch's own modules alike."""
    x = torch.randn(2, 3, 9, 8, dtype=torch.float64)
    expected = (1 - alpha) * F.max_pool2d(x, 3, 2, 1) + alpha * F.avg_pool2d(x, 3, 2, 1)
    for first, second, windows in (
        ("max", "avg", {"kernel_size": 3, "stride": 2, "padding": 1}),
        (nn.MaxPool2d(3, 2, 1), nn.AvgPool2d(3, 2, 1), {}),
        (nn.MaxPool2d(3, 2, 1), "avg", {"kernel_size": 3, "stride": 2, "padding": 1}),
    ):
        for learnable in (True, False):
            module = MixedPool(first, second, alpha, learnable=learnable, **windows)
            torch.testing.assert_close(module(x), expected, rtol=1e-12, atol=1e-12)
            assert len(list(module.parameters())) == learnable


def test_other_windows_and_axes() -> None:
    x = torch.randn(2, 3, 7, 6, 5)
    for nd, part in ((1, x[:, :, 0, 0]), (2, x[:, :, 0]), (3, x)):
        whole = MixedPool("max", "avg", nd=nd)(part)
        torch.testing.assert_close(whole, (part.flatten(2).amax(2) + part.flatten(2).mean(2)) / 2)
        bins = MixedPool("max", "gem:p=1", 0.0, nd=nd, output_size=2)(part)
        assert same_bits(bins, everypool.adaptive_max_pool(part, 2))
    ragged = [torch.randn(3, 4, 5), torch.randn(3, 2, 7)]
    together = MixedPool("max", "avg", output_size=2)(ragged)
    for sample, y in zip(ragged, together, strict=True):
        torch.testing.assert_close(y, (F.adaptive_max_pool2d(sample, 2) + F.adaptive_avg_pool2d(sample, 2)) / 2)


@pytest.mark.parametrize("dtype", BITS)
@pytest.mark.parametrize("zero", [0.0, -0.0])
def test_closed_it_is_the_first_pooling_bit_for_bit(dtype: torch.dtype, zero: float) -> None:
    """Zeros of either sign, infinities, NaN and the ends of the type's range too; and alpha has its slope."""
    big = torch.finfo(dtype).max
    ends = [0.0, -0.0, math.inf, -math.inf, math.nan, big, -big, torch.finfo(dtype).tiny, 1.0, -1.0]
    pairs = torch.tensor([(a, b) for a in ends for b in ends], dtype=dtype).reshape(1, 1, -1)
    x = torch.cat([pairs, torch.randn(1, 1, 64).to(dtype), torch.full((1, 1, 2), -math.inf, dtype=dtype)], 2).unsqueeze(2)
    for channels in (None, 1):
        module = MixedPool("max", "avg", zero, channels=channels, kernel_size=(1, 2))
        assert same_bits(module(x), everypool.max_pool(x, (1, 2)))
    modules = MixedPool(nn.Identity(), nn.ReLU(), zero), MixedPool(nn.Identity(), Negated(), zero)
    for module in modules:
        assert same_bits(module(x), x)
    sample = torch.randn(2, 3, 4, 4, dtype=dtype)
    module = MixedPool("max", "avg", zero, kernel_size=2)
    module(sample).double().sum().backward()
    wanted = F.avg_pool2d(sample.double(), 2).sum() - F.max_pool2d(sample.double(), 2).sum()
    torch.testing.assert_close(module.alpha.grad.double(), wanted.reshape(1), rtol=0.02, atol=0.1)


class Negated(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return -x


def test_infinite_values_and_gaps_beyond_the_type() -> None:
    """inf - inf is no gap: what both give stays; 2e38 - (-2e38) is no float32, half of each is one."""
    x = torch.tensor([[[math.inf, math.inf, -math.inf, -math.inf, 3e38, -3e38]]])
    module = MixedPool("max", "avg", 0.5, nd=1, kernel_size=2)
    assert module(x).tolist() == [[[math.inf, -math.inf, torch.tensor(3e38).item() / 2]]]
    ends = torch.tensor([[[2e38, -2e38]]])
    assert MixedPool(nn.Identity(), Negated(), 0.5)(ends).tolist() == [[[0.0, 0.0]]]
    leaf = x.clone().requires_grad_()
    module(leaf).nan_to_num().sum().backward()
    assert bool(leaf.grad.isfinite().all())
    assert bool(module.alpha.grad.isfinite().all())


def test_one_number_per_channel() -> None:
    module = MixedPool("max", "avg", torch.tensor([0.0, 0.5, 1.0]), channels=3, kernel_size=2).double()
    x = torch.randn(2, 3, 6, 4, dtype=torch.float64)
    largest, mean = F.max_pool2d(x, 2), F.avg_pool2d(x, 2)
    expected = torch.stack([largest[:, 0], (largest[:, 1] + mean[:, 1]) / 2, mean[:, 2]], 1)
    torch.testing.assert_close(module(x), expected)
    torch.testing.assert_close(module(x[0]), expected[0])
    square = torch.randn(3, 6, 6, dtype=torch.float64)  # as many rows as channels once pooled
    torch.testing.assert_close(module(square), module(square[None])[0])
    assert sum(p.numel() for p in MixedPool("max", "avg", channels=64, kernel_size=2).parameters()) == 64
    with pytest.raises(ValueError, match=r"^`alpha` must be a number, or a tensor of 1 or C = 2 elements, got "):
        module(x[:, :2])


def test_masks_and_sizes_go_to_both() -> None:
    x = torch.randn(2, 3, 6, 5)
    module = MixedPool("max", "avg:count_include_pad=False", 0.3, kernel_size=3, stride=2, padding=1)
    mask, sizes = torch.rand(2, 1, 6, 5) < 0.5, [[6, 5], [3, 4]]
    for given in ({"mask": mask}, {"sizes": sizes}):
        largest = everypool.max_pool(x, 3, 2, 1, **given)
        mean = everypool.avg_pool(x, 3, 2, 1, count_include_pad=False, **given)
        torch.testing.assert_close(module(x, **given), 0.7 * largest + 0.3 * mean)
    torch.testing.assert_close(module(x, sizes=sizes)[1:, :, :2, :2], module(x[1:, :, :3, :4]))
    theirs = MixedPool("max", nn.AvgPool2d(2), kernel_size=2)
    for given in ({"mask": mask}, {"sizes": sizes}):
        with pytest.raises(NotImplementedError, match=rf"^`{next(iter(given))}` must be None where `second` .+, got "):
            theirs(x, **given)


def test_mixed_derivatives_layout_and_copies() -> None:
    for alpha in (0.0, 0.3):
        module = MixedPool("max", "avg", alpha, channels=2, kernel_size=2).double()
        x = torch.randn(2, 2, 4, 4, dtype=torch.float64, requires_grad=True)

        def call(x: Tensor, share: Tensor, module: Any = module) -> Any:
            return torch.func.functional_call(module, {"alpha": share}, (x,))

        share = module.alpha.detach().clone().requires_grad_()
        if alpha:  # around 0 the closed and the open formula meet, exactly there each has the slopes of both
            assert torch.autograd.gradcheck(call, (x, share))
            assert torch.autograd.gradgradcheck(call, (x, share), fast_mode=True)
        largest, mean = F.max_pool2d(x, 2), F.avg_pool2d(x, 2)
        plain = largest + share.reshape(2, 1, 1) * (mean - largest)
        slopes = [torch.autograd.grad(y.sin().sum(), (x, share), create_graph=True) for y in (call(x, share), plain)]
        second = [torch.autograd.grad(a.sin().sum() + b.sin().sum(), (x, share)) for a, b in slopes]
        for a, b in (*zip(*slopes, strict=True), *zip(*second, strict=True)):
            torch.testing.assert_close(a, b)
        for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
            assert torch.equal(twin(x), module(x))
    last = torch.randn(2, 2, 6, 5, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
    assert module(last).is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(module(last), module(last.contiguous()))


# ---- gated pooling -------------------------------------------------------------------------------------------------------


def looped(
    x: np.ndarray, weight: np.ndarray, stride: int, padding: int, dilation: int, out: Any, exists: np.ndarray
) -> np.ndarray:
    """One window at a time: what is outside or masked adds nothing to w.x, and is neither largest nor in the mean."""
    y = np.zeros((*x.shape[:2], *out))
    for sample, channel, *place in np.ndindex(*y.shape):
        values, score = [], 0.0
        for tap in np.ndindex(*weight.shape):
            at = tuple(i * stride - padding + t * dilation for i, t in zip(place, tap, strict=True))
            inside = all(0 <= p < n for p, n in zip(at, x.shape[2:], strict=True))
            if inside and exists[(sample, 0, *at)]:
                values.append(x[(sample, channel, *at)])
                score += weight[tap] * values[-1]
        if values:
            gate = 1 / (1 + math.exp(-score))
            y[(sample, channel, *place)] = gate * max(values) + (1 - gate) * np.mean(values)
    return y


def gated(nd: int, *arguments: Any, **settings: Any) -> Any:
    module = getattr(everypool, f"GatedPool{nd}d")(*arguments, **settings).double()
    nn.init.normal_(module.weight)
    return module


@pytest.mark.parametrize("nd", [1, 2, 3])
@pytest.mark.parametrize("ceil", [False, True])
@pytest.mark.parametrize(("kernel", "stride", "padding", "dilation"), [(2, 2, 0, 1), (3, 2, 1, 1), (2, 3, 1, 2)])
def test_gate_against_loops(nd: int, ceil: bool, kernel: int, stride: int, padding: int, dilation: int) -> None:
    module = gated(nd, kernel, stride, padding, dilation, ceil_mode=ceil)
    x = torch.randn(2, 2, *(7, 6, 5)[:nd], dtype=torch.float64)
    theirs = getattr(nn, f"MaxPool{nd}d")(kernel, stride, padding, dilation, ceil_mode=ceil)(x)
    weight = module.weight.detach().numpy()[0, 0]
    for mask in (None, torch.rand(2, 1, *x.shape[2:]) < 0.4):
        exists = np.ones_like(x[:, :1].numpy(), dtype=bool) if mask is None else mask.numpy()
        expected = looped(x.numpy(), weight, stride, padding, dilation, theirs.shape[2:], exists)
        given = x if mask is None else x.masked_fill(~mask, math.nan)
        np.testing.assert_allclose(module(given, mask=mask).detach(), expected, rtol=1e-11, atol=1e-13)


def test_gate_with_sizes() -> None:
    """Each sample gives what it gives alone, forward and backward, whatever lies around it."""
    for ceil in (False, True):
        module = gated(2, 3, 2, 1, ceil_mode=ceil)
        x = torch.randn(2, 3, 6, 5, dtype=torch.float64)
        inside = torch.ones(2, 1, 6, 5, dtype=torch.bool)
        inside[1, :, 3:] = inside[1, :, :, 4:] = False
        leaf = x.masked_fill(~inside, math.nan).requires_grad_()
        y = module(leaf, sizes=[[6, 5], [3, 4]])
        (grad,) = torch.autograd.grad(y.sin().sum(), leaf)
        for i, (height, width) in enumerate(((6, 5), (3, 4))):
            alone = x[i : i + 1, :, :height, :width].clone().requires_grad_()
            part = module(alone)
            torch.testing.assert_close(y[i : i + 1, :, : part.shape[2], : part.shape[3]], part)
            wanted = torch.autograd.grad(part.sin().sum(), alone)[0]
            torch.testing.assert_close(grad[i : i + 1, :, :height, :width], wanted)
        assert not grad.masked_fill(inside, 0).any()


def test_gate_starts_half_open_and_learns() -> None:
    module = GatedPool2d(3)
    assert sum(p.numel() for p in module.parameters()) == 9
    x = torch.randn(2, 3, 6, 6)
    torch.testing.assert_close(module(x), (F.max_pool2d(x, 3) + F.avg_pool2d(x, 3)) / 2)
    module(x).sum().backward()
    assert bool((module.weight.grad != 0).all())
    nn.init.normal_(module.weight)
    module.reset_parameters()
    assert not module.weight.any()


def test_gate_derivatives_layout_and_copies() -> None:
    module = gated(2, 2)
    x = torch.randn(2, 2, 4, 5, dtype=torch.float64, requires_grad=True)

    def call(x: Tensor, weight: Tensor) -> Any:
        return torch.func.functional_call(module, {"weight": weight}, (x,))

    weight = module.weight.detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(call, (x, weight))
    assert torch.autograd.gradgradcheck(call, (x, weight), fast_mode=True)
    y = module(x)
    torch.testing.assert_close(module(x[0]), y[0])
    torch.testing.assert_close(torch.func.vmap(module)(x.unsqueeze(1))[:, 0], y)
    assert module(x[:0]).shape == (0, *y.shape[1:])
    last = x.detach().contiguous(memory_format=torch.channels_last)
    assert module(last).is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(module(last), y)
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(twin(x), y)
    half = module.half()(x.half())
    assert half.dtype == torch.float16
    torch.testing.assert_close(half.double(), y, rtol=5e-3, atol=5e-3)


def test_bad_input() -> None:
    x = torch.ones(1, 2, 5, 4)
    cases: list[tuple[Any, type[Exception], str]] = [
        (lambda: MixedPool("mxa", "avg", kernel_size=2), ValueError, "first"),
        (lambda: MixedPool(2, "avg", kernel_size=2), TypeError, "first"),
        (lambda: MixedPool("max", None, kernel_size=2), TypeError, "second"),
        (lambda: MixedPool(nn.MaxPool2d(2), nn.AvgPool2d(2), kernel_size=2), ValueError, "windows"),
        (lambda: MixedPool("max", "avg", math.nan, kernel_size=2), ValueError, "alpha"),
        (lambda: MixedPool("max", "avg", "half", kernel_size=2), TypeError, "alpha"),
        (lambda: MixedPool("max", "avg", channels=0, kernel_size=2), ValueError, "channels"),
        (lambda: MixedPool("max", "avg", kernel=2), ValueError, "kernel"),
        (lambda: MixedPool(nn.MaxPool2d(2), nn.AvgPool2d(2, 1))(x), ValueError, "second"),
        (lambda: MixedPool("max", nn.AdaptiveAvgPool2d(1))(x), ValueError, "second"),
        (lambda: MixedPool(nn.MaxPool2d(2, return_indices=True), "avg", kernel_size=2)(x), TypeError, "first"),
        (lambda: MixedPool("max", "avg", kernel_size=2)(x.int()), TypeError, "input"),
        (lambda: GatedPool2d(0), ValueError, "kernel_size"),
        (lambda: GatedPool2d(2, padding="same"), TypeError, "padding"),
        (lambda: GatedPool2d(2, 2, 2), ValueError, "padding"),
        (lambda: GatedPool2d(6)(x), ValueError, "kernel_size"),
        (lambda: GatedPool1d(2)(x), ValueError, "input"),
        (lambda: GatedPool2d(2)(x.int()), TypeError, "input"),
        (lambda: GatedPool2d(2)(x, mask=torch.ones(1, 1, 5, 4)), TypeError, "mask"),
    ]
    for made, error, name in cases:
        with pytest.raises(error, match=f"^`{name}` must be .+, got "):
            made()
