"""Tensors that a call makes for itself lie where its input does, whatever device is the default."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
from cases import CONTRACT, ROWS, Row, flat, numbers, pooled, row_id
from test_generated_masks import RAGGED
from torch import Tensor
from torch.utils._pytree import tree_leaves

import everypool
from everypool.backends.choose import forced


@contextmanager
def default_device() -> Iterator[None]:
    torch.set_default_device("meta")
    try:
        yield
    finally:
        torch.set_default_device(None)


ELSEWHERE: dict[str, Callable[[], Any]] = {"context": lambda: torch.device("meta"), "default": default_device}


def compare(call: Callable[[], list[Tensor]], elsewhere: str) -> None:
    """The same bits as the definition gives at home; which implementation runs may depend on the mode."""
    expected = call()
    with ELSEWHERE[elsewhere]():
        found = call()
    assert len(found) == len(expected)
    for y, wanted in zip(found, expected, strict=True):
        assert y.device == wanted.device
        assert torch.equal(y, wanted)


@pytest.mark.parametrize("elsewhere", ELSEWHERE)
@pytest.mark.parametrize("row", ROWS, ids=row_id)
def test_every_reducer_and_window(row: Row, elsewhere: str) -> None:
    for number, case in enumerate(CONTRACT):
        x = torch.from_numpy(numbers((2, 2, *case.spatial)))
        mask = torch.from_numpy(np.random.default_rng(number).random((2, 1, *case.spatial)) < 0.7)
        for options in ({}, {"mask": mask}, {"sizes": [list(case.spatial)] * 2}):
            compare(lambda case=case, x=x, options=options: derivatives(row, x, case, options), elsewhere)  # type: ignore[misc]
    for case, sizes in RAGGED[::4]:
        x = torch.from_numpy(numbers((len(sizes), 2, *case.spatial)))
        compare(lambda case=case, x=x, sizes=sizes: derivatives(row, x, case, {"sizes": sizes}), elsewhere)  # type: ignore[misc]


def derivatives(row: Row, x: Tensor, case: Any, options: dict[str, Any]) -> list[Tensor]:
    leaf = x.clone().requires_grad_()
    with forced("eager"):
        y = flat(pooled(row, case, leaf, **options))
        return [y.detach(), *torch.autograd.grad(y, leaf, y.detach().sin())]


SAMPLES = [op for op in everypool.operations().values() if op.sample is not None]


@pytest.mark.parametrize("elsewhere", ELSEWHERE)
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("operation", SAMPLES, ids=lambda op: op.name)
def test_every_sample(operation: everypool.pool.Operation, training: bool, elsewhere: str) -> None:
    assert operation.sample is not None
    module, arguments = operation.sample()
    module.train(training)

    def call() -> list[Tensor]:
        torch.manual_seed(1)
        own = deepcopy(module)
        with forced("eager"):
            ys = [y for y in tree_leaves(own(*arguments)) if isinstance(y, Tensor)]
            weights = [weight for weight in own.parameters() if weight.requires_grad]
            moving = [y for y in ys if y.requires_grad]
            total = torch.stack([y.sum() for y in moving]).sum() if moving else None
            grads = torch.autograd.grad(total, weights, allow_unused=True) if weights and total is not None else []
        return [*ys, *(grad for grad in grads if grad is not None)]

    compare(call, elsewhere)


X = torch.arange(2.0 * 3 * 8 * 8).sin().reshape(2, 3, 8, 8)
CALLS: dict[str, Callable[[], Any]] = {
    "avg_pool": lambda: everypool.avg_pool(X, 3, 2, 1),
    "avg_pool of sizes": lambda: everypool.avg_pool(X, 3, 2, 1, sizes=[[8, 5], [4, 8]]),
    "avg_pool in one map": lambda: everypool.AvgPool2d(3, 2, 1, True)(X[0]),
    "max_pool": lambda: everypool.max_pool(X, 3, 2, 1, return_indices=True),
    "far apart": lambda: everypool.soft_pool(X, 2, 100),
    "same, of sizes": lambda: everypool.pool(X, "soft", everypool.Sliding(3, 2, "same"), sizes=[[8, 5], [4, 8]]),
    "a list": lambda: everypool.global_max_pool([X[0], X[1, :, :5]]),
    "mask back": lambda: everypool.pool(X, "max", everypool.Global(), return_mask=True),
    "roi_align": lambda: everypool.roi_align(X, BOXES, 2),
    "roi_align of lists": lambda: everypool.roi_align(X, [BOXES[:1, 1:], BOXES[:0, 1:]], 2),
    "roi_pool": lambda: everypool.roi_pool(X, BOXES, 2, sizes=[[8, 7], [7, 8]]),
    "max_unpool": lambda: everypool.max_unpool(*everypool.max_pool(X, 2, return_indices=True), 2),
    "integers": lambda: everypool.avg_pool((X * 9).int(), 3, 2, 1),
}
BOXES = torch.tensor([[0.0, 1.0, 1.0, 6.0, 7.0], [1.0, 0.0, 0.0, 3.0, 5.0]])


@pytest.mark.parametrize("elsewhere", ELSEWHERE)
@pytest.mark.parametrize("name", CALLS)
def test_functions_and_layers(name: str, elsewhere: str) -> None:
    def call() -> list[Tensor]:
        with forced("eager"):
            return [y for y in tree_leaves(CALLS[name]()) if isinstance(y, Tensor)]

    compare(call, elsewhere)
