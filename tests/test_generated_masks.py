"""What a mask or a size excludes never counts: a sample in a ragged batch is pooled as if it were alone."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from cases import (
    CONTRACT,
    DEFAULTS,
    ROWS,
    Case,
    Row,
    adaptive,
    as_tuple,
    case_id,
    flat,
    numbers,
    pooled,
    pyramid,
    row_id,
    scan,
    sliding,
    strips,
    whole,
)
from torch import Tensor

import everypool
from everypool.backends.layout import prefix_mask

RAGGED: list[tuple[Case, list[list[int]]]] = [
    (sliding((9,), 3, 2, 1), [[9], [4], [1], [6]]),
    (sliding((9,), 2, 2, ceil_mode=True), [[9], [4], [5], [1]][:3]),
    (sliding((10,), 4, 3, "same"), [[10], [7], [2], [1]]),
    (sliding((10,), 5, 1, "same"), [[10], [7], [2], [1]]),
    (sliding((10,), 5, 3, 2, ceil_mode=True), [[10], [8], [3], [1]]),
    (sliding((9,), 3, 1, ((1, 2),), 2), [[9], [3], [5]]),
    (sliding((30,), 17, 2, 8), [[30], [5], [17]]),
    (sliding((3,), 4, 1, 6, 4), [[3], [1], [2]]),
    (sliding((6,), 2, 7, 1, ceil_mode=True), [[6], [1], [4]]),
    (sliding((6, 7), (3, 2), (2, 1), (1, 1), (1, 2)), [[6, 7], [2, 5], [1, 3]]),
    (sliding((6, 7), 2, 2, ceil_mode=True), [[6, 7], [3, 2], [5, 5]]),
    (sliding((6, 5), 3, 2, "same"), [[6, 5], [1, 4], [5, 2]]),
    (sliding((3, 4, 5), 2, 2, 1, ceil_mode=True), [[3, 4, 5], [1, 2, 3]]),
    (sliding((3, 4, 3), (1, 3, 2), 2, "same"), [[3, 4, 3], [2, 1, 3]]),
    (adaptive((7,), 3), [[7], [3], [1], [5]]),
    (adaptive((5, 4), (2, 5)), [[5, 4], [3, 1], [1, 3]]),
    (adaptive((5, 4), (None, 3)), [[5, 4], [3, 1], [1, 3]]),
    (adaptive((3, 4, 2), 2), [[3, 4, 2], [1, 3, 1]]),
    (whole((6,)), [[6], [1], [4]]),
    (whole((4, 5), True), [[4, 5], [3, 1], [1, 4]]),
    (whole((3, 2, 4)), [[3, 2, 4], [2, 1, 3]]),
    (pyramid((6,), (1, 2, 4)), [[6], [5], [1]]),
    (pyramid((5, 4), (1, 3)), [[5, 4], [2, 3]]),
    (pyramid((3, 3, 2), (2, 1)), [[3, 3, 2], [2, 3, 1]]),
    (strips((6,)), [[6], [2]]),
    (strips((4, 5)), [[4, 5], [3, 2], [1, 4]]),
    (strips((3, 2, 4)), [[3, 2, 4], [1, 2, 3]]),
    (scan((6,), -1, False), [[6], [2]]),
    (scan((6,), -1, True), [[6], [2], [5]]),
    (scan((4, 5), 0, True), [[4, 5], [3, 2]]),
    (scan((4, 5), -1, False), [[4, 5], [3, 2]]),
    (scan((3, 2, 4), 2, True), [[3, 2, 4], [1, 2, 3]]),
]


def learnable(row: Row) -> dict[str, Tensor]:
    """The parameters of a reducer that may be tensors, as leaves: one element per channel."""
    settings = {
        **{"gem": {"p": 3.0}, "lp": {"p": 2.0}, "soft": {"beta": 1.0}, "logsumexp": {"r": 1.0}}.get(row.operation.name, {})
    }
    settings.update({key: value for key, value in row.settings.items() if key in settings})
    if row.settings.get("signed") == "odd" or any(np.isinf(value) for value in settings.values()):
        return {}
    return {
        key: torch.tensor([value, value + 0.25], dtype=torch.float64, requires_grad=True) for key, value in settings.items()
    }


def crop(item: Tensor, sizes: Any) -> Tensor:
    return item[(..., *(slice(int(n)) for n in sizes))]


@pytest.mark.parametrize(("case", "sizes"), RAGGED, ids=[case.id for case, _ in RAGGED])
@pytest.mark.parametrize("row", ROWS, ids=row_id)
def test_sizes_equal_each_sample_alone(row: Row, case: Case, sizes: list[list[int]]) -> None:
    """Forward, gradient of the input and of the parameters; what lies outside is NaN and must not be seen."""
    low = 0.25 if row.settings.get("signed") is None else -2.0
    x = torch.from_numpy(numbers((len(sizes), 2, *case.spatial), low=low)).requires_grad_()
    inside = torch.zeros((len(sizes), 1, *case.spatial), dtype=torch.bool)
    for own, size in zip(inside, sizes, strict=True):
        crop(own, size).fill_(True)
    parameters = learnable(row)
    reducer = Row(row.operation, {**row.settings, **parameters})
    result = pooled(reducer, case, x.masked_fill(~inside, float("nan")), sizes=sizes)
    torch.manual_seed(1)
    weights = [torch.randn(y.shape, dtype=y.dtype) for y in as_tuple(result)]
    leaves = [x, *parameters.values()]
    grads = torch.autograd.grad([y for y in as_tuple(result)], leaves, weights)
    total = [torch.zeros_like(value) for value in parameters.values()]
    for i, size in enumerate(sizes):
        single = crop(x[i : i + 1].detach(), size).clone().requires_grad_()
        alone = as_tuple(pooled(reducer, case, single))
        own = [[] if isinstance(case.windows, everypool.Pyramid | everypool.Global) else y.shape[2:] for y in alone]
        for y, part, extent in zip(as_tuple(result), alone, own, strict=True):
            torch.testing.assert_close(crop(y[i : i + 1], extent), part, rtol=1e-11, atol=1e-12)
            rest = y[i : i + 1].detach().clone()
            crop(rest, extent).zero_()
            assert not rest.any(), "a window that the sample does not have must hold 0"
        upstream = [crop(w[i : i + 1], extent) for w, extent in zip(weights, own, strict=True)]
        grad, *others = torch.autograd.grad(alone, [single, *parameters.values()], upstream)
        torch.testing.assert_close(crop(grads[0][i : i + 1], size), grad, rtol=1e-10, atol=1e-11)
        total = [sum_ + other for sum_, other in zip(total, others, strict=True)]
    assert not grads[0].masked_fill(inside, 0).any(), "nothing outside a sample has a gradient"
    for actual, expected in zip(grads[1:], total, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("case", CONTRACT, ids=case_id)
@pytest.mark.parametrize("row", ROWS, ids=row_id)
def test_mask_excludes(row: Row, case: Case) -> None:
    """A random mask, shared and per channel, with one sample all masked; what it hides is NaN and must not be seen."""
    x = numbers((3, 2, *case.spatial))
    for channels in (1, 2):
        mask = np.random.default_rng(channels).random((3, channels, *case.spatial)) < 0.6
        mask[1] = False
        inside = torch.from_numpy(mask).expand(3, 2, *case.spatial)
        leaf = torch.from_numpy(x).requires_grad_()
        hidden = leaf.masked_fill(~inside, float("nan"))
        y, exists = pooled(row, case, hidden, mask=torch.from_numpy(mask), return_mask=True)
        expected, there = case.expected(row, x, mask)
        np.testing.assert_allclose(flat(y).detach().numpy(), flat_of(expected), rtol=1e-12, atol=1e-12)
        assert bool((flat(exists).numpy() == flat_of(there)).all())
        (grad,) = torch.autograd.grad(flat(y).sum(), leaf)
        assert bool(grad.isfinite().all())
        assert not grad.masked_fill(inside, 0).any()
        assert not grad[1].any(), "a sample without a valid element has no gradient"


def flat_of(item: Any) -> np.ndarray:
    return np.concatenate([part.reshape(-1) for part in as_tuple(item)])


@pytest.mark.parametrize("row", DEFAULTS, ids=row_id)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64], ids=str)
def test_all_masked(row: Row, dtype: torch.dtype) -> None:
    """0, no window exists, no gradient: for the input, the parameters, and the gradient of the gradient."""
    for case in CONTRACT:
        x = torch.from_numpy(numbers((2, 2, *case.spatial))).to(dtype).requires_grad_()
        parameters = learnable(row)
        mask = torch.zeros((2, 1, *case.spatial), dtype=torch.bool)
        y, exists = pooled(Row(row.operation, {**row.settings, **parameters}), case, x, mask=mask, return_mask=True)
        assert not flat(y).any()
        assert not flat(exists).any()
        for grad in torch.autograd.grad(flat(y).sum(), [x, *parameters.values()]):
            assert bool((grad == 0).all()), case.id


@pytest.mark.parametrize("row", DEFAULTS, ids=row_id)
def test_mask_and_sizes_together(row: Row) -> None:
    for case, sizes in RAGGED:
        x = numbers((len(sizes), 2, *case.spatial))
        mask = np.random.default_rng(5).random((len(sizes), 1, *case.spatial)) < 0.7
        result = pooled(row, case, torch.from_numpy(x), mask=torch.from_numpy(mask), sizes=torch.tensor(sizes))
        for i, size in enumerate(sizes):
            cut = (slice(i, i + 1), slice(None), *(slice(n) for n in size))
            expected, _ = case.expected(row, x[cut], mask[cut])
            for y, part in zip(as_tuple(result), as_tuple(expected), strict=True):
                own = crop(y[i : i + 1], part.shape[2:]).numpy()
                np.testing.assert_allclose(own, part, rtol=1e-12, atol=1e-12, err_msg=case.id)


FIXED = [(case, sizes) for case, sizes in RAGGED if case.windows.fixed and "None" not in case.id]


@pytest.mark.parametrize("row", DEFAULTS, ids=row_id)
def test_list_of_samples(row: Row) -> None:
    """Tensors of different sizes, where the output's size is fixed."""
    for case, sizes in FIXED:
        samples = [torch.from_numpy(numbers((2, *size), i)) for i, size in enumerate(sizes)]
        together = pooled(row, case, samples)
        for i, sample in enumerate(samples):
            torch.testing.assert_close(together[i : i + 1], pooled(row, case, sample[None]), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("row", DEFAULTS, ids=row_id)
def test_sizes_of_integers(row: Row) -> None:
    if row.operation.dtypes == "floating":
        pytest.skip("no integers")
    for case, sizes in RAGGED:
        x = torch.from_numpy(np.random.default_rng(3).integers(-100, 100, (len(sizes), 2, *case.spatial)))
        result = pooled(row, case, x, sizes=sizes)
        for i, size in enumerate(sizes):
            alone = pooled(row, case, crop(x[i : i + 1], size))
            for y, part in zip(as_tuple(result), as_tuple(alone), strict=True):
                assert torch.equal(crop(y[i : i + 1], part.shape[2:]), part), case.id


@pytest.mark.parametrize("fill", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("case", [case for case in CONTRACT if "pyramid" not in case.id], ids=case_id)
@pytest.mark.parametrize("row", ROWS, ids=row_id)
def test_what_lies_outside_has_no_part_in_gradients(row: Row, case: Case, fill: float) -> None:
    """0 times NaN is NaN: what no window holds may be anything, and gets 0."""
    made = torch.Generator().manual_seed(0)
    x = torch.rand(2, 3, *(n + 3 for n in case.spatial), generator=made) + 0.1
    sizes = [list(case.spatial), [n + 1 for n in case.spatial]]
    inside = prefix_mask(torch.tensor(sizes), tuple(x.shape[2:])).expand_as(x)
    gradients = []
    for value in (0.0, fill):
        given = torch.where(inside, x, value).requires_grad_()
        ys = as_tuple(pooled(row, case, given, sizes=sizes))
        sum(((y * torch.arange(1.0, y.numel() + 1).reshape(y.shape)).sum() for y in ys), start=torch.zeros(())).backward()
        assert given.grad is not None
        gradients.append(given.grad)
    assert not bool(gradients[1][~inside].any())
    torch.testing.assert_close(gradients[1], gradients[0])
