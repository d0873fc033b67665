"""Every reducer over every kind of window equals a brute-force loop, in every floating-point type."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from cases import CASES, CONTRACT, ROWS, Case, Row, as_tuple, case_id, numbers, pooled, row_id, sliding, steps

import everypool

EPS = torch.finfo(torch.float32).eps


@pytest.mark.parametrize("case", CASES, ids=case_id)
@pytest.mark.parametrize("row", ROWS, ids=row_id)
def test_equals_brute_force(row: Row, case: Case) -> None:
    x = numbers((2, 2, *case.spatial))
    *actual, exists = as_tuple(pooled(row, case, torch.from_numpy(x), return_mask=True))
    expected, there = case.expected(row, x)
    results = [(actual[0], expected, exists, there)]
    if isinstance(expected, tuple):
        results = list(zip(actual[0], expected, exists, there, strict=True))
    for y, wanted, found, should in results:
        np.testing.assert_allclose(y.numpy(), wanted, rtol=1e-12, atol=1e-12)
        assert bool((found.expand(y.shape).numpy() == should).all())


@pytest.mark.parametrize("nd", [1, 2, 3])
@pytest.mark.parametrize("row", ROWS, ids=row_id)
def test_random_windows(row: Row, nd: int) -> None:
    rng = np.random.default_rng(nd)
    done = 0
    while done < 12:
        spatial = tuple(int(n) for n in rng.integers(1, (24, 9, 6)[nd - 1], nd))
        kernel = tuple(int(n) for n in rng.integers(1, (12, 5, 4)[nd - 1], nd))
        dilation = tuple(int(n) for n in rng.integers(1, 4, nd))
        stride = tuple(int(n) for n in rng.integers(1, 5, nd))
        reach = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
        padding = tuple(int(rng.integers(0, r // 2 + 1)) for r in reach)
        if any(n + 2 * p < r for n, p, r in zip(spatial, padding, reach, strict=True)):
            continue
        done += 1
        case = sliding(spatial, kernel, stride, padding, dilation, bool(rng.integers(2)))
        x = numbers((1, 2, *spatial), done)
        expected, _ = case.expected(row, x)
        np.testing.assert_allclose(
            pooled(row, case, torch.from_numpy(x)).numpy(), expected, rtol=1e-12, atol=1e-12, err_msg=case.id
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("row", ROWS, ids=row_id)
def test_narrow_types(row: Row, dtype: torch.dtype) -> None:
    """float32 within 64 eps, of the values themselves where they cancel; half types within one step of the rounded float64."""
    for case in [*CONTRACT, sliding((40,), 33, 1, 16), sliding((18, 18), 17, 2, 8)]:
        x = torch.from_numpy(numbers((2, 2, *case.spatial))).to(dtype)
        result, (expected, _) = pooled(row, case, x), case.expected(row, x.double().numpy())
        for y, wanted in zip(as_tuple(result), as_tuple(expected), strict=True):
            assert y.dtype == dtype
            if dtype == torch.float32:
                np.testing.assert_allclose(y.double().numpy(), wanted, rtol=64 * EPS, atol=EPS * 2.3)
            else:
                assert steps(y, wanted) <= 1, case.id


INTEGERS = [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool]


@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
@pytest.mark.parametrize("row", ROWS, ids=row_id)
def test_integers(row: Row, dtype: torch.dtype) -> None:
    """Exact where the record says that integers have a meaning (an average is cut off towards zero), else a TypeError."""
    dtypes = row.operation.dtypes
    defined = dtypes == "any" or (dtypes == "any but bool" and dtype != torch.bool)
    defined = defined and row.settings.get("even") != "mean"
    for case in CONTRACT:
        low, high = (0, 2) if dtype == torch.bool else (torch.iinfo(dtype).min, torch.iinfo(dtype).max)
        low, high = max(low, -(2**40)), min(high, 2**40)
        x = torch.from_numpy(np.random.default_rng(3).integers(low, high, (2, 2, *case.spatial))).to(dtype)
        if not defined:
            with pytest.raises(TypeError, match="`input` must be floating point"):
                pooled(row, case, x)
            continue
        result, (expected, _) = pooled(row, case, x), case.expected(row, x.double().numpy())
        for y, wanted in zip(as_tuple(result), as_tuple(expected), strict=True):
            assert y.dtype == dtype
            assert bool((y.double().numpy() == np.trunc(wanted)).all()), case.id


@pytest.mark.parametrize("row", ROWS, ids=row_id)
def test_memory_is_never_shared(row: Row) -> None:
    for case in [*CONTRACT, sliding((6,), 1), sliding((4, 4), 1, 1, "same"), whole_axis((4,)), whole_axis((3, 4))]:
        x = torch.from_numpy(numbers((1, 1, *case.spatial), 0, 0.5, 2.0))
        before = x.clone()
        for y in as_tuple(pooled(row, case, x)):
            assert y.untyped_storage().data_ptr() != x.untyped_storage().data_ptr(), case.id
            y.fill_(7.0)  # a result that expands one cell could not be written to
        assert bool((x == before).all())


def whole_axis(spatial: tuple[int, ...]) -> Case:
    from cases import adaptive

    return adaptive(spatial, tuple(None for _ in spatial) if len(spatial) > 1 else spatial[0])


def test_every_reducer_is_registered() -> None:
    kinds = {row.operation.name for row in ROWS}
    assert {"max", "avg", "gem", "lp", "soft", "logsumexp", "center"} <= kinds
    for row in ROWS:
        for name in row.operation.names:
            assert getattr(everypool, name)
