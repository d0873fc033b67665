"""LeNet's trainable subsampling against loops: any windows, any axes, masks, derivatives, initial values."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from everypool import LeNetSubsampling


def looped(
    x: np.ndarray, weight: np.ndarray, bias: np.ndarray, kernel: tuple[int, ...], stride: tuple[int, ...], f: Any
) -> Any:
    """f(weight * sum + bias), one window at a time."""
    out = tuple((n - k) // s + 1 for n, k, s in zip(x.shape[2:], kernel, stride, strict=True))
    y = np.zeros((*x.shape[:2], *out))
    for place in np.ndindex(*out):
        window = tuple(slice(i * s, i * s + k) for i, s, k in zip(place, stride, kernel, strict=True))
        total = x[(slice(None), slice(None), *window)].reshape(*x.shape[:2], -1).sum(-1)
        y[(slice(None), slice(None), *place)] = f(weight * total + bias)
    return y


FUNCTIONS: dict[Any, Any] = {
    "tanh": lambda a: 1.7159 * np.tanh(2 * a / 3),
    "sigmoid": lambda a: 1 / (1 + np.exp(-a)),
    None: lambda a: a,
}


@pytest.mark.parametrize("nd", [1, 2, 3])
@pytest.mark.parametrize("activation", [*FUNCTIONS])
@pytest.mark.parametrize(("kernel", "stride"), [(2, None), (3, 2), ((1, 3, 2), (2, 1, 2))])
def test_against_loops(nd: int, activation: str | None, kernel: Any, stride: Any) -> None:
    kernel = kernel[:nd] if isinstance(kernel, tuple) else kernel
    stride = stride[:nd] if isinstance(stride, tuple) else stride
    module = LeNetSubsampling(3, kernel, stride, activation=activation).double()
    x = torch.randn(2, 3, *(7, 6, 5)[:nd], dtype=torch.float64)
    windows = kernel if isinstance(kernel, tuple) else (kernel,) * nd
    steps = windows if stride is None else stride if isinstance(stride, tuple) else (stride,) * nd
    values = module.weight.detach().numpy(), module.bias.detach().numpy()
    expected = looped(x.numpy(), *values, windows, steps, FUNCTIONS[activation])
    np.testing.assert_allclose(module(x).detach().numpy(), expected, rtol=1e-12, atol=1e-13)


def test_lenet_s2() -> None:
    """S2 of LeNet-5: six maps of 28 x 28 to 14 x 14 with 12 parameters; f(1) is about 1, f'(1) about 1/2, as LeCun chose it."""
    module = LeNetSubsampling(6)
    assert module(torch.zeros(1, 6, 28, 28)).shape == (1, 6, 14, 14)
    assert sum(p.numel() for p in module.parameters()) == 12
    assert 1.7159 * math.tanh(2 / 3) == pytest.approx(1, abs=1e-4)
    bound = 2.4 / 4
    many = LeNetSubsampling(10_000)
    for values in (many.weight, many.bias):
        assert 0.99 * bound < values.max().item() <= bound
        assert -bound <= values.min().item() < -0.99 * bound


def test_masks() -> None:
    """What is masked adds nothing, whatever it holds; a window of nothing else gives 0, not f(bias)."""
    module = LeNetSubsampling(2).double()
    x = torch.randn(1, 2, 4, 4, dtype=torch.float64)
    mask = torch.ones(1, 1, 4, 4, dtype=torch.bool)
    mask[..., 1, 1] = False
    mask[..., 2:, 2:] = False
    y = module(x.masked_fill(~mask, math.nan), mask=mask)
    expected = module(x.masked_fill(~mask, 0))
    expected = expected * torch.tensor([[1.0, 1.0], [1.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(y, expected)


def test_derivatives_and_copies() -> None:
    for activation in FUNCTIONS:
        module = LeNetSubsampling(2, activation=activation).double()
        x = torch.randn(2, 2, 4, 5, dtype=torch.float64, requires_grad=True)

        def call(x: Tensor, weight: Tensor, bias: Tensor, module: Any = module) -> Any:
            return torch.func.functional_call(module, {"weight": weight, "bias": bias}, (x,))

        values = [p.detach().clone().requires_grad_() for p in module.parameters()]
        assert torch.autograd.gradcheck(call, (x, *values))
        assert torch.autograd.gradgradcheck(call, (x, *values), fast_mode=True)
        for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
            assert torch.equal(twin(x), module(x))


def test_half_types_add_in_a_wider_one() -> None:
    """4096 ones sum to 4096, where bfloat16 alone stops at 256."""
    module = LeNetSubsampling(1, 64, activation=None).bfloat16()
    with torch.no_grad():
        module.weight.fill_(1.0)
        module.bias.fill_(0.0)
    assert module(torch.ones(1, 1, 64, 64, dtype=torch.bfloat16)).item() == 4096


def test_sums_beyond_float16() -> None:
    """16 * 6000 is no float16, a hundredth of it is; with what is masked it is the share of the rest."""
    module = LeNetSubsampling(1, 4, activation=None).half()
    with torch.no_grad():
        module.weight.fill_(0.01)
        module.bias.fill_(0.0)
    x = torch.full((1, 1, 4, 4), 6000.0, dtype=torch.float16)
    assert module(x).item() == pytest.approx(960, rel=2e-3)
    mask = torch.ones(1, 1, 4, 4, dtype=torch.bool)
    mask[..., 0] = False
    assert module(x, mask=mask).item() == pytest.approx(720, rel=2e-3)
    module = module.float()
    assert module(x).dtype == torch.float32
    assert module.double()(x.double()).dtype == torch.float64


def test_bad_input() -> None:
    x = torch.ones(1, 3, 4, 4)
    cases: list[tuple[Any, type[Exception], str]] = [
        (lambda: LeNetSubsampling(0), ValueError, "channels"),
        (lambda: LeNetSubsampling(3, -2), ValueError, "kernel_size"),
        (lambda: LeNetSubsampling(3, 2, 0), ValueError, "stride"),
        (lambda: LeNetSubsampling(3, 2.0), TypeError, "kernel_size"),
        (lambda: LeNetSubsampling(2)(x), ValueError, "input"),
        (lambda: LeNetSubsampling(3, 5)(x), ValueError, "kernel_size"),
        (lambda: LeNetSubsampling(3)(x.int()), TypeError, "input"),
        (lambda: LeNetSubsampling(3)(x, mask=torch.ones(1, 1, 4, 4)), TypeError, "mask"),
    ]
    for made, error, name in cases:
        with pytest.raises(error, match=f"^`{name}` must be .+, got "):
            made()
