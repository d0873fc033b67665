"""Every layer of every reducer, in 1-D, 2-D and 3-D: equals its function; copies, pickles, hooks, layouts, batches."""

from __future__ import annotations

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from cases import CONTRACT, DEFAULTS, ROWS, Case, Row, as_tuple, case_id, flat, numbers, pooled, row_id
from torch import Tensor

import everypool

SPATIAL = {1: (9,), 2: (7, 6), 3: (5, 4, 6)}
REQUIRED: dict[str, dict[str, Any]] = {"lp": {"norm_type": 2.0}}
SINGLE = [(row, nd) for row in DEFAULTS for nd in row.operation.nd]
IDS = [f"{row.id}-{nd}d" for row, nd in SINGLE]


def layers(row: Row, nd: int) -> list[tuple[torch.nn.Module, everypool.Windows]]:
    """The sliding, adaptive and global layer, made in the two ways that users have."""
    stem, own = row.operation.stem, REQUIRED.get(row.operation.name, {})
    made = [
        (getattr(everypool, f"{stem}Pool{nd}d")(**own, kernel_size=3, stride=2, padding=1), everypool.Sliding(3, 2, 1)),
        (getattr(everypool, f"{stem}Pool{nd}d")(**own, kernel_size=2, ceil_mode=True), everypool.Sliding(2, ceil_mode=True)),
        (getattr(everypool, f"Adaptive{stem}Pool{nd}d")(**own, output_size=3), everypool.Adaptive(3)),
        (getattr(everypool, f"Global{stem}Pool")(**own), everypool.Global()),
        (everypool.create(row.operation.name, nd=nd, kernel_size=2), everypool.Sliding(2)),
        (everypool.create(row.operation.name, nd=nd, output_size=2), everypool.Adaptive(2)),
        (everypool.create(row.operation.name, nd=nd, keepdim=True), everypool.Global(keepdim=True)),
    ]
    return made


def plain(row: Row) -> Any:
    """The reducer whose defaults are those of torch.nn's layer of the name."""
    return everypool.Mean(count_include_pad=True) if row.operation.name == "avg" else row.reducer()


@pytest.mark.parametrize(("row", "nd"), SINGLE, ids=IDS)
def test_a_layer_is_its_function(row: Row, nd: int) -> None:
    x = torch.from_numpy(numbers((2, 3, *SPATIAL[nd]), low=0.2))
    for layer, windows in layers(row, nd):
        expected = everypool.pool(x, plain(row), windows)
        y = layer(x)
        torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-13)
        twins = [copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), copy.deepcopy(layer).train()]
        twins[0].load_state_dict(layer.state_dict())
        for twin in twins:
            assert torch.equal(twin(x), y)
            assert repr(twin) == repr(layer)
        assert type(layer).__name__ in repr(layer)
        if "Global" not in type(layer).__name__:
            torch.testing.assert_close(layer(x[0]), y[0], rtol=1e-13, atol=1e-14)  # without a batch
        sizes = [[2] * nd, list(SPATIAL[nd])]
        if isinstance(windows, everypool.Adaptive | everypool.Global):
            ragged = layer(x, sizes=sizes)
            torch.testing.assert_close(ragged[1], y[1], rtol=1e-12, atol=1e-13)
            parts = [x[0][(slice(None), *(slice(2) for _ in range(nd)))], x[1]]
            torch.testing.assert_close(layer(parts), ragged, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(("row", "nd"), SINGLE, ids=IDS)
def test_names_in_one_to_three_dimensions(row: Row, nd: int) -> None:
    """The functions take any number of axes; the layers have one class each; all are public."""
    stem, name = row.operation.stem, row.operation.name
    for public in (f"{stem}Pool{nd}d", f"Adaptive{stem}Pool{nd}d", f"Global{stem}Pool"):
        assert public in row.operation.names
        assert getattr(everypool, public).__doc__
    x = torch.from_numpy(numbers((2, 3, *SPATIAL[nd]), low=0.2))
    own = REQUIRED.get(name, {})
    pairs = [
        (getattr(everypool, f"{name}_pool")(x, kernel_size=2, **own), everypool.Sliding(2)),
        (getattr(everypool, f"adaptive_{name}_pool")(x, output_size=2, **own), everypool.Adaptive(2)),
        (getattr(everypool, f"global_{name}_pool")(x, **own), everypool.Global()),
    ]
    for y, windows in pairs:
        torch.testing.assert_close(y, everypool.pool(x, row.reducer(), windows), rtol=1e-12, atol=1e-13)


def test_learned_settings() -> None:
    """Shapes, names and gradients of what a layer learns."""
    x = torch.from_numpy(numbers((2, 3, 8, 8), low=0.2)).float()
    for made, name, shape in (
        (lambda **o: everypool.GeMPool2d(2, **o), "p", (1,)),
        (lambda **o: everypool.GeMPool2d(2, channels=3, **o), "p", (3,)),
        (lambda **o: everypool.SoftPool2d(2, learnable=True, **o), "beta", (1,)),
        (lambda **o: everypool.SoftPool2d(2, learnable=True, channels=3, **o), "beta", (3,)),
        (lambda **o: everypool.LogSumExpPool2d(2, learnable=True, **o), "r", (1,)),
    ):
        layer = made()
        parameters = dict(layer.named_parameters())
        assert {key: tuple(value.shape) for key, value in parameters.items()} == {name: shape}
        layer(x).square().sum().backward()
        grad = parameters[name].grad
        assert grad is not None
        assert bool(grad.isfinite().all())
        assert grad.any()
    assert not list(everypool.GeMPool2d(2, p=4.0, learnable=False).parameters())
    assert not list(everypool.SoftPool2d(2).parameters())


@pytest.mark.parametrize("case", CONTRACT, ids=case_id)
@pytest.mark.parametrize("row", ROWS, ids=row_id)
def test_rows_of_a_batch_are_independent(row: Row, case: Case) -> None:
    """Each sample and channel alone, whatever the strides; the same bits each time; an empty batch or no channel."""
    x = torch.from_numpy(numbers((3, 2, *case.spatial)))
    y = flat(pooled(row, case, x))
    assert torch.equal(flat(pooled(row, case, x)), y)
    parts = [as_tuple(pooled(row, case, x[i : i + 1])) for i in range(3)]
    joined = [torch.cat(group) for group in zip(*parts, strict=True)]
    torch.testing.assert_close(flat(tuple(joined)), y, rtol=1e-14, atol=1e-15)
    wide = torch.zeros(2, 3, *case.spatial, 2, dtype=torch.float64)
    wide[..., 1] = x.transpose(0, 1)
    for same in (wide[..., 1].transpose(0, 1), x.flip(2).contiguous().flip(2)):
        torch.testing.assert_close(flat(pooled(row, case, same)), y, rtol=1e-14, atol=1e-15)
    for shape in ((0, 2), (2, 0)):
        empty = torch.zeros(*shape, *case.spatial, requires_grad=True)
        results = as_tuple(pooled(row, case, empty))
        assert all(part.numel() == 0 for part in results)
        flat(pooled(row, case, empty)).sum().backward()
        assert empty.grad is not None
        assert empty.grad.shape == empty.shape


@pytest.mark.parametrize("row", ROWS, ids=row_id)
def test_the_layout_is_kept(row: Row) -> None:
    """channels_last in, channels_last out, with the same values and gradients."""
    formats = {2: torch.channels_last, 3: torch.channels_last_3d}
    for case in CONTRACT:
        if case.nd not in formats:
            continue
        x = torch.from_numpy(numbers((2, 3, *case.spatial)))
        last = x.contiguous(memory_format=formats[case.nd]).requires_grad_()
        first = x.clone().requires_grad_()
        y, expected = as_tuple(pooled(row, case, last)), as_tuple(pooled(row, case, first))
        for a, b in zip(y, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-14)
            if a.dim() == x.dim():
                assert a.is_contiguous(memory_format=formats[case.nd])
        for item in (last, first):
            flat(pooled(row, case, item)).sin().sum().backward()
        torch.testing.assert_close(last.grad, first.grad, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("row", DEFAULTS, ids=row_id)
def test_several_threads_at_once(row: Row) -> None:
    x = torch.from_numpy(numbers((2, 3, 9, 8), low=0.2))

    def work(_: int) -> tuple[Tensor, Tensor]:
        leaf = x.clone().requires_grad_()
        y = everypool.pool(leaf, row.reducer(), everypool.Sliding(3, 2, 1))
        return y.detach(), torch.autograd.grad(y.sin().sum(), leaf)[0]

    expected = work(0)
    with ThreadPoolExecutor(4) as executor:
        for result in executor.map(work, range(16)):
            assert all(torch.equal(a, b) for a, b in zip(result, expected, strict=True))


@pytest.mark.parametrize("row", ROWS, ids=row_id)
def test_not_a_number_and_infinity(row: Row) -> None:
    """NaN stays within the windows that hold it; infinities give no NaN where the limit is clear."""
    x = torch.from_numpy(numbers((1, 1, 8), low=0.3))
    x[0, 0, 5] = float("nan")
    y = everypool.pool(x, row.reducer(), everypool.Sliding(2))
    assert y.isnan().flatten().tolist() == [False, False, True, False] or row.by_place
    low = torch.from_numpy(numbers((1, 1, 8), low=0.3))
    expected = everypool.pool(low, row.reducer(), everypool.Sliding(2))
    np.testing.assert_allclose(y[0, 0, [0, 1, 3]].numpy(), expected[0, 0, [0, 1, 3]].numpy(), rtol=1e-12)
    if row.operation.name in ("max", "soft", "logsumexp", "gem", "lp") and all(
        row.settings.get(key, 1) > 0 for key in ("p", "beta", "r")
    ) and row.settings.get("signed") != "shift":  # fmt: skip
        low[0, 0, 5] = float("inf")
        assert everypool.pool(low, row.reducer(), everypool.Sliding(2))[0, 0, 2] == float("inf")
