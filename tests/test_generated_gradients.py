"""First and second derivatives equal finite differences, and are right at ties, limits and beyond the floating-point range."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from cases import CONTRACT, DEFAULTS, ROWS, Case, Row, case_id, flat, numbers, pooled, row_id, sliding

import everypool

# p or r so large that the function is flat or steep to the last digit of a finite difference, or a rounding that jumps
SMOOTH = [row for row in ROWS if abs(row.settings.get("p", 1.0)) <= 5 and row.settings.get("grad") != "authors"]


@pytest.mark.parametrize("case", CONTRACT, ids=case_id)
@pytest.mark.parametrize("row", SMOOTH, ids=row_id)
def test_first_and_second_derivative(row: Row, case: Case) -> None:
    low = 0.3 if row.settings.get("signed", "clamp") == "clamp" else -2.0
    x = torch.from_numpy(numbers((1, 2, *case.spatial), 4, low, 2.1)).requires_grad_()
    mask = torch.from_numpy(np.random.default_rng(2).random((1, 1, *case.spatial)) < 0.8)
    for options in ({}, {"mask": mask}):

        def function(x: torch.Tensor, options: dict[str, torch.Tensor] = options) -> torch.Tensor:
            return flat(pooled(row, case, x, **options))

        assert torch.autograd.gradcheck(function, (x,), fast_mode=False)
        assert torch.autograd.gradgradcheck(function, (x,), fast_mode=True)


LEARNED = [("gem", "p", 3.0), ("gem", "p", 0.75), ("lp", "p", 2.5), ("soft", "beta", 1.5), ("logsumexp", "r", 2.0)]


@pytest.mark.parametrize("case", CONTRACT, ids=case_id)
@pytest.mark.parametrize(("name", "parameter", "value"), LEARNED)
def test_derivative_by_the_parameter(name: str, parameter: str, value: float, case: Case) -> None:
    x = torch.from_numpy(numbers((2, 2, *case.spatial), 4, 0.3, 2.1)).requires_grad_()
    operation = everypool.operations()[name]
    for start in ([value], [value, value + 0.5]):
        setting = torch.tensor(start, dtype=torch.float64, requires_grad=True)

        def function(x: torch.Tensor, setting: torch.Tensor) -> torch.Tensor:
            return flat(pooled(Row(operation, {parameter: setting}), case, x))

        assert torch.autograd.gradcheck(function, (x, setting))
        assert torch.autograd.gradgradcheck(function, (x, setting), fast_mode=True)


@pytest.mark.parametrize("case", CONTRACT, ids=case_id)
@pytest.mark.parametrize("row", ROWS, ids=row_id)
def test_finite_where_all_values_are_equal(row: Row, case: Case) -> None:
    """All equal, all zero, beyond the range of exp: values and gradients stay finite."""
    for value in (0.0, 1.0, -3.0, 1e4, -1e30, 1e-30):
        x = torch.full((1, 2, *case.spatial), value, requires_grad=True)
        y = flat(pooled(row, case, x))
        (grad,) = torch.autograd.grad(y.sum(), x)
        assert bool(y.isfinite().all()), value
        assert bool(grad.isfinite().all()), value


def test_ties_follow_the_rule() -> None:
    """Which of equal maxima gets the gradient: the first, the last, or all in equal parts."""
    x = torch.tensor([[[2.0, 2.0, 1.0, 2.0]]])
    wanted = {"first": [1.0, 0, 0, 0], "last": [0, 0, 0, 1.0], "even": [1 / 3, 1 / 3, 0, 1 / 3]}
    for ties, expected in wanted.items():
        leaf = x.clone().requires_grad_()
        everypool.global_max_pool(leaf, ties=ties).sum().backward()
        torch.testing.assert_close(leaf.grad, torch.tensor([[expected]]))


def test_ties_in_a_scan() -> None:
    """The rows of the published kernels (first met) and of torch.cummax (last met), by counting."""
    values = [1.0, 3.0, 3.0, 2.0, 3.0]
    for reverse in (False, True):
        order = range(4, -1, -1) if reverse else range(5)
        for ties in ("first", "last"):
            counts = np.zeros(5)
            best: int | None = None
            for i in order:
                better = best is None or values[i] > values[best] or (ties == "last" and values[i] == values[best])
                best = i if better else best
                counts[best] += 1
            x = torch.tensor([[values]], requires_grad=True)
            everypool.directional_pool(x, 0, reverse, ties=ties).sum().backward()
            assert x.grad is not None
            assert x.grad.flatten().tolist() == counts.tolist()


def test_the_authors_gradient_of_softpool() -> None:
    """It treats the weights as constants: dy/dx_i = w_i; the exact one adds the weights' own change."""
    x = torch.tensor([[[0.5, 2.0, -1.0]]], dtype=torch.float64)
    weight = torch.softmax(x, -1)
    y = (weight * x).sum()
    for grad, expected in (("authors", weight), ("exact", weight * (1 + x - y))):
        leaf = x.clone().requires_grad_()
        everypool.global_soft_pool(leaf, grad=grad).sum().backward()
        torch.testing.assert_close(leaf.grad, expected, rtol=1e-13, atol=1e-15)


def test_limits_of_the_power_mean() -> None:
    """p = 1 spreads the gradient evenly, p = inf gives it to the maximum, p -> 0 is the geometric mean's."""
    x = torch.tensor([[[1.0, 2.0, 4.0]]], dtype=torch.float64)
    wanted = {1.0: [1 / 3] * 3, float("inf"): [0.0, 0.0, 1.0], float("-inf"): [1.0, 0.0, 0.0], 0.0: [2 / 3, 1 / 3, 1 / 6]}
    for p, expected in wanted.items():
        leaf = x.clone().requires_grad_()
        everypool.global_gem_pool(leaf, p=p).sum().backward()
        torch.testing.assert_close(leaf.grad, torch.tensor([[expected]], dtype=torch.float64), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("row", DEFAULTS, ids=row_id)
@pytest.mark.filterwarnings("ignore:Anomaly Detection")
def test_anomaly_mode_finds_nothing(row: Row) -> None:
    """No NaN on the way, also with empty windows (padding beyond the map) and masked samples."""
    case = sliding((3,), 4, 1, 6, 4)
    x = torch.from_numpy(numbers((2, 1, 3))).requires_grad_()
    with torch.autograd.detect_anomaly(check_nan=True):
        y = pooled(row, case, x, mask=torch.tensor([[[True, False, True]], [[False] * 3]]))
        (grad,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        grad.square().sum().backward()
    assert x.grad is not None
    assert bool(x.grad.isfinite().all())
