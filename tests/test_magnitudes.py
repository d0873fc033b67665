"""Nothing overflows, underflows or loses digits that need not: values from 1e-30 to 1e20, exponents from -50 to 1e4."""

from __future__ import annotations

from decimal import Decimal, localcontext
from typing import Any

import numpy as np
import pytest
import torch
from cases import Case, adaptive, as_tuple, case_id, scan, sliding, steps, strips, whole
from torch import Tensor

import everypool
from everypool import Global, LogSumExp, Power, Sliding, Soft, pool
from everypool.pool import Reducer

MAGNITUDES = [1e-30, 1e-6, 1.0, 1e3, 1e20]
DTYPES = [torch.float16, torch.bfloat16, torch.float32]
EXPONENTS = [-50.0, -3.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 17.0, 123.4, 1e3, 1e4]
PATTERNS = {
    "spread": [0.71, 1.0, 0.93, 0.127, 0.51, 0.999, 0.33, 0.25, 0.8],
    "equal": [0.7] * 9,
    "one large": [1.0] + [1e-3] * 8,
}


def at(magnitude: float, dtype: torch.dtype, pattern: str, signs: bool = False) -> Tensor | None:
    """The pattern at that magnitude as the type has it; None where the type does not hold it."""
    values = torch.tensor(PATTERNS[pattern], dtype=torch.float64) * magnitude
    if signs:
        values = values * torch.tensor([1.0, -1.0, 1.0] * 3, dtype=torch.float64)
    x = values.to(dtype)
    info = torch.finfo(dtype)
    return x if 16 * info.tiny * info.eps < magnitude < info.max else None


def exact(function: Any, x: Tensor, **settings: float) -> float:
    """The definition in 60 digits."""
    with localcontext() as context:
        context.prec = 60
        context.Emax, context.Emin = 10**15, -(10**15)
        return float(function([Decimal(v) for v in x.double().tolist()], **{k: Decimal(v) for k, v in settings.items()}))


def power(x: list[Decimal], p: Decimal, sums: Decimal = Decimal(0), eps: Decimal = Decimal("1e-6")) -> Decimal:
    x = [abs(v) for v in x] if sums else [max(v, eps) for v in x]
    if p == 0:
        return (sum((v.ln() for v in x), Decimal(0)) / len(x)).exp()
    total = sum(((v.ln() * p).exp() for v in x if v), Decimal(0))
    return ((total if sums else total / len(x)).ln() / p).exp()


def soft(x: list[Decimal], beta: Decimal) -> Decimal:
    weights = [(beta * v - beta * max(x)).exp() for v in x] if beta >= 0 else [(beta * v - beta * min(x)).exp() for v in x]
    return sum((w * v for w, v in zip(weights, x, strict=True)), Decimal(0)) / sum(weights)


def log_mean_exp(x: list[Decimal], r: Decimal) -> Decimal:
    top = max(r * v for v in x)
    return (top + (sum(((r * v - top).exp() for v in x), Decimal(0)) / len(x)).ln()) / r


def both_windows(x: Tensor, reducer: Reducer) -> Tensor:
    """The same nine values as a square window, as a long one, and as the whole map."""
    square = x.reshape(1, 1, 3, 3)
    results = [pool(square, reducer, Sliding(3)), pool(square, reducer, Global())]
    results += [pool(x.reshape(1, 1, 9), reducer, Sliding(9, 1)), pool(square, reducer, Sliding(2, 1, 1))[..., :0]]
    return torch.cat([y.flatten() for y in results])


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("magnitude", MAGNITUDES)
def test_power_mean(magnitude: float, dtype: torch.dtype, pattern: str) -> None:
    x = at(magnitude, dtype, pattern)
    if x is None:
        pytest.skip(f"{dtype} does not hold {magnitude}")
    eps = magnitude * 1e-6
    for p in EXPONENTS:
        expected = exact(power, x, p=p, eps=eps)
        close(both_windows(x, Power(p, eps=eps)), expected, f"p={p}")
    assert torch.equal(both_windows(x, Power(float("inf"), eps=eps)), x.max().expand(3))
    assert torch.equal(both_windows(x, Power(float("-inf"), eps=eps)), x.min().expand(3))


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("magnitude", MAGNITUDES)
def test_power_sum(magnitude: float, dtype: torch.dtype, pattern: str) -> None:
    x = at(magnitude, dtype, pattern, signs=True)
    if x is None:
        pytest.skip(f"{dtype} does not hold {magnitude}")
    for p in (0.5, 1.0, 2.0, 3.0, 50.0, 1e4):
        expected = exact(power, x, p=p, sums=1.0)
        if expected < torch.finfo(dtype).max:
            close(both_windows(x, Power(p, "sum", "abs")), expected, f"p={p}")


@pytest.mark.parametrize("signs", [False, True])
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("magnitude", MAGNITUDES)
def test_soft_and_log_sum_exp(magnitude: float, dtype: torch.dtype, pattern: str, signs: bool) -> None:
    x = at(magnitude, dtype, pattern, signs)
    if x is None:
        pytest.skip(f"{dtype} does not hold {magnitude}")
    largest = float(x.abs().max())
    for sharpness in (1.0, 0.25, 20.0, -2.0):
        close(both_windows(x, Soft(sharpness)), exact(soft, x, beta=sharpness), f"beta={sharpness}", largest)
        close(both_windows(x, LogSumExp(sharpness)), exact(log_mean_exp, x, r=sharpness), f"r={sharpness}", largest)


def close(actual: Tensor, expected: float, what: str, largest: float = 0.0) -> None:
    """Finite, and half types one representable number away at most; float32 16 eps, of the largest value where terms cancel."""
    assert bool(actual.isfinite().all()), what
    if actual.dtype == torch.float32:
        allowed = 16 * torch.finfo(torch.float32).eps * max(abs(expected), largest)
        assert float((actual.double() - expected).abs().max()) <= allowed + 1e-45, (what, actual.tolist(), expected)
    else:
        assert steps(actual, np.full(actual.shape, expected)) <= 1, (what, actual.tolist(), expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("magnitude", MAGNITUDES)
@pytest.mark.parametrize(
    "reducer",
    [
        Soft(),
        LogSumExp(),
        Power(3.0, eps=1e-38),
        Power(2.0, "sum", "abs"),
        Power(1e4, eps=1e-38),
        Power(-50.0, eps=1e-38),
    ],
    ids=str,
)
def test_gradients_are_finite_and_add_up(reducer: Reducer, magnitude: float, dtype: torch.dtype) -> None:
    """Euler: sum(x dy/dx) = y for powers; sum(dy/dx) = 1 for what moves along with a constant added to all."""
    x = at(magnitude, dtype, "spread")
    if x is None or magnitude < torch.finfo(dtype).tiny:
        pytest.skip(f"{dtype} does not hold {magnitude} with all its digits")
    leaf = x.reshape(1, 1, 9).requires_grad_()
    y = pool(leaf, reducer, Global())
    (grad,) = torch.autograd.grad(y.sum(), leaf)
    assert bool(grad.isfinite().all())
    total = (grad.double() * x.double()).sum() / y.item() if isinstance(reducer, Power) else grad.double().sum()
    assert float(total) == pytest.approx(1.0, abs=16 * torch.finfo(dtype).eps)


def test_a_learned_exponent_stays_finite() -> None:
    for magnitude in MAGNITUDES:
        x = at(magnitude, torch.float32, "spread")
        assert x is not None
        for p in EXPONENTS:
            setting = torch.tensor(p, requires_grad=True)
            leaf = x.reshape(1, 1, 9).clone().requires_grad_()
            y = everypool.global_gem_pool(leaf, p=setting, eps=magnitude * 1e-6)
            grads = torch.autograd.grad(y.sum(), (leaf, setting))
            assert all(bool(grad.isfinite().all()) for grad in grads), (magnitude, p)


# ---- windows of one plane whose magnitudes differ: each is as exact as if it were alone -------------------------------------

FAR = {
    "logsumexp": {"r": (1.0, -3.0)},
    "soft": {"beta": (1.0, -2.0)},
    "gem": {"p": (0.5, 4.5, -2.0)},
    "lp": {"p": (0.5, 1.5)},
    "avg": {},
}
WINDOWS_FAR = [
    sliding((24, 24), 3),
    sliding((20, 21), 3, 1, 1),
    sliding((24, 24), 9, 1),
    sliding((26, 26), 9, 3),
    sliding((38, 38), 20, 3),
    sliding((40, 40), 31, 3),
    adaptive((23, 20), (5, 3)),
    whole((24, 24)),
    strips((12, 24)),
    scan((3, 24), -1, False),
    scan((24, 3), 0, True),
]
FAR_ROWS = [(name, {key: value}) for name, settings in FAR.items() for key, values in settings.items() for value in values]


def far_apart(spatial: tuple[int, ...], orders: int, seed: int) -> np.ndarray:
    """Two planes of numbers of either sign: every row, or every element, of a magnitude of its own."""
    made = np.random.default_rng(seed)
    shape = (1, 2, *spatial)
    rows = made.integers(-orders, 1, size=(1, 2, spatial[0], 1 if seed % 2 else spatial[1]))
    return np.asarray(made.standard_normal(shape) * 10.0 ** np.broadcast_to(rows, shape))


@pytest.mark.parametrize("orders", [0, 6, 20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("case", WINDOWS_FAR, ids=case_id)
@pytest.mark.parametrize(("name", "settings"), [*FAR_ROWS, ("avg", {})], ids=str)
def test_windows_far_apart(name: str, settings: dict[str, float], case: Case, dtype: torch.dtype, orders: int) -> None:
    operation = everypool.operations()[name]
    for seed in (0, 1):
        x = torch.from_numpy(far_apart(case.spatial, orders, seed)).to(dtype)
        given = x.double().numpy()
        found = as_tuple(everypool.pool(x, operation.reducer(**settings), case.windows))
        for y, layout in zip(found, case.layouts(case.spatial), strict=True):
            kept = y.double().numpy().reshape(2, -1)
            axes = [len(axis) for axis in layout]
            for plane in range(2):
                for at, place in enumerate(np.ndindex(*axes)):
                    inside = [[i for i in layout[a][o] if 0 <= i < case.spatial[a]] for a, o in enumerate(place)]
                    values = given[0, plane][np.ix_(*inside)].reshape(-1)
                    right, scale = in_long_double(name, values, settings)
                    assert abs(kept[plane, at] - right) <= 64 * torch.finfo(dtype).eps * scale, (seed, plane, place)


def in_long_double(name: str, values: np.ndarray, settings: dict[str, float]) -> tuple[Any, Any]:
    """The value of a window, and the magnitude that its rounding errors may be of: what is subtracted may cancel."""
    v = values.astype(np.longdouble)
    size = np.abs(v).max()
    if name == "avg":
        return v.mean(), size
    parameter = np.longdouble(next(iter(settings.values())))
    if name in ("gem", "lp"):
        a = np.abs(v) if name == "lp" else np.maximum(v, np.longdouble(1e-6))
        top = a.max() if parameter > 0 else a.min()
        total = ((a / top) ** parameter).sum() if top > 0 else np.longdouble(0)
        right = top * (total if name == "lp" else total / len(a)) ** (1 / parameter)
        return right, right
    top = (parameter * v).max()
    weight = np.exp(parameter * v - top)
    if name == "soft":
        return (weight * v).sum() / weight.sum(), size
    right = (top + np.log1p(np.expm1(parameter * v - top).mean())) / parameter
    return right, max(abs(right), size)
