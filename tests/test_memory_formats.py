"""Results have the memory format that torch gives its own: every record, in memory of every kind, by every implementation."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from cases import CONTRACT, DEFAULTS, ROWS, Case, Row, case_id, numbers, row_id
from memories import find_strides, make_memories
from torch import Tensor
from torch._prims_common import suggest_memory_format
from torch.utils._pytree import tree_leaves

import everypool
from everypool.backends import triton
from everypool.backends.choose import forced
from everypool.backends.layout import compute_strides, in_pixels

BLOCKS = [op for op in everypool.operations().values() if op.kind == "block"]


def check_memories(pool: Callable[[Tensor], Any], plain: Tensor, nd: int) -> None:
    """The same numbers give the same result, in the format that the input's strides ask for."""
    expected = tree_leaves(pool(plain))
    for kind, x in make_memories(plain):
        shared = "expanded" in kind or kind == "no sample"
        for ours, theirs in zip(tree_leaves(pool(x)), tree_leaves(pool(x.clone())) if shared else expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12, equal_nan=True, check_stride=False, msg=kind)
            assert ours.stride() == find_strides(ours, x, nd), (kind, tuple(x.shape), x.stride(), ours.stride())


def make_maps(case: Case) -> list[Tensor]:
    """Return some samples and channels, one of each, and a map of one element where the windows take it."""
    shapes: list[tuple[int, ...]] = [(2, 3, *case.spatial), (1, 1, *case.spatial)]
    if not isinstance(case.windows, everypool.Sliding):
        shapes.append((2, 3, *[1] * case.nd))
    return [torch.from_numpy(numbers(shape)) for shape in shapes]


def make_mask(x: Tensor) -> Tensor:
    """Return a mask of three quarters of all positions, the same for inputs of one shape."""
    return torch.from_numpy(numbers(x.shape)) > -1


@pytest.mark.parametrize("case", CONTRACT, ids=case_id)
@pytest.mark.parametrize("row", ROWS, ids=row_id)
def test_reducers(row: Row, case: Case) -> None:
    """By the implementation that runs, without and with a gradient."""
    for plain in make_maps(case):
        check_memories(lambda x: everypool.pool(x, row.reducer(), case.windows), plain, case.nd)
    check_memories(lambda x: everypool.pool(x.requires_grad_(), row.reducer(), case.windows), make_maps(case)[0], case.nd)


@pytest.mark.parametrize("case", CONTRACT, ids=case_id)
@pytest.mark.parametrize("row", DEFAULTS, ids=row_id)
def test_reducers_by_definition_and_with_a_mask(row: Row, case: Case) -> None:
    for plain in make_maps(case):
        with forced("eager"):
            check_memories(lambda x: everypool.pool(x, row.reducer(), case.windows), plain, case.nd)
        check_memories(lambda x: everypool.pool(x, row.reducer(), case.windows, mask=make_mask(x)), plain, case.nd)


@pytest.mark.parametrize("case", CONTRACT, ids=case_id)
@pytest.mark.parametrize("ties", ["first", "last"])
def test_indices(case: Case, ties: str) -> None:
    """Those of maxima lie as the values do; by the definition, with a mask and in every type too."""
    reducer = everypool.Max(ties, indices=True)
    for plain in make_maps(case):
        for dtype in (torch.float64, torch.bfloat16, torch.int64, torch.uint8):
            check_memories(lambda x: everypool.pool(x, reducer, case.windows), plain.to(dtype), case.nd)
        check_memories(lambda x: everypool.pool(x, reducer, case.windows, mask=make_mask(x)), plain, case.nd)
        with forced("eager"):
            check_memories(lambda x: everypool.pool(x, reducer, case.windows), plain, case.nd)


@pytest.mark.parametrize("nd", [1, 2, 3])
def test_unpooling(nd: int) -> None:
    shape = (2, 3, *(4, 3, 2)[:nd])
    indices = torch.from_numpy(numbers(shape)).flatten(2).argsort(-1).reshape(shape)
    layer = getattr(everypool, f"MaxUnpool{nd}d")(1)
    for samples, channels in ((2, 3), (1, 1), (2, 1)):
        plain = torch.from_numpy(numbers(shape))[:samples, :channels].contiguous()
        check_memories(lambda x: layer(x, indices[: len(x), : x.shape[1]]), plain, nd)


@pytest.mark.parametrize("nd", [1, 2, 3])
def test_lone_samples(nd: int) -> None:
    """Their results are contiguous, as torch's are."""
    for spatial in ((5, 4, 3)[:nd], (1,) * nd):
        for layer in (f"AdaptiveMaxPool{nd}d", f"AdaptiveSoftPool{nd}d", f"AdaptiveMedianPool{nd}d"):
            pool = getattr(everypool, layer)(2)
            for kind, x in make_memories(torch.from_numpy(numbers((3, *spatial))), True):
                for implementation in (None, "eager"):
                    with nullcontext() if implementation is None else forced(implementation):
                        y = pool(x)
                    assert y.stride() == torch.empty(y.shape).stride(), (kind, layer, x.stride())


def test_an_earlier_call_decides_nothing() -> None:
    """Calls of one shape and different formats do not share their plans."""
    for shape in ((1, 3, 4, 4), (2, 1, 4, 4), (2, 3, 1, 1), (2, 3, 4)):
        views = [x for _, x in make_memories(torch.from_numpy(numbers(shape)))]
        for x in views + views[::-1]:
            if len(x):
                y = everypool.max_pool(x, 1)
                assert y.stride() == find_strides(y, x, len(shape) - 2)
                assert torch.equal(y, x)


@pytest.mark.parametrize("nd", [1, 2, 3])
def test_the_rule_is_torchs(nd: int) -> None:
    """Of strides at random, and the strides of a fresh tensor."""
    rng = np.random.default_rng(nd)
    for shape in ((2, 3, 2, 4, 2), (1, 2, 3, 1, 1), (3, 1, 2, 2, 2), (1, 1, 1, 1, 1), (2, 2, 1, 1, 1), (0, 2, 2, 2, 2)):
        shape = shape[: nd + 2]
        named = 0
        for _ in range(3000):
            strides = [int(n) for n in rng.choice([0, 1, 2, 3, 4, 6, 12, 24, 48], nd + 2)]
            if rng.random() < 0.5:  # close to channels last
                strides = [n * int(rng.choice([1, 1, 1, 2])) for n in compute_strides(shape, True)]
            x = torch.empty_strided(shape, strides, device="meta")
            torchs = suggest_memory_format(x.unsqueeze(2) if nd == 1 else x) != torch.contiguous_format
            assert in_pixels(x) == torchs, (shape, strides)
            named += torchs
        assert 0 in shape or named > 20
        assert compute_strides(shape, False) == torch.empty(shape).stride()
        if nd > 1 and 0 not in shape:
            last = torch.channels_last if nd == 2 else torch.channels_last_3d
            assert compute_strides(shape, True) == torch.empty(shape, memory_format=last).stride()


def takes_one_map(operation: Any) -> bool:
    """Return whether a block's sample is a module and one map."""
    arguments = operation.sample()[1]
    return len(arguments) == 1 and isinstance(arguments[0], Tensor) and arguments[0].dim() > 3


@pytest.mark.parametrize("operation", list(filter(takes_one_map, BLOCKS)), ids=lambda operation: operation.name)
def test_blocks(operation: Any) -> None:
    """Blocks from a map to a map."""
    module, (plain,) = operation.sample()
    check_memories(module.double().eval(), plain.detach().double(), plain.dim() - 2)


@pytest.mark.skipif(not triton.installed(), reason="Triton is not installed")
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the interpreter's NumPy warns of what `where` leaves out
@pytest.mark.parametrize("nd", [1, 2, 3])
@pytest.mark.parametrize("windows", [everypool.Sliding(1), everypool.Adaptive(2), everypool.Scan(-1)], ids=repr)
def test_fused_kernels(windows: everypool.Windows, nd: int) -> None:
    """Values and indices in float32, in which they compute; from the memories that ask for other formats than contiguous."""
    reducer = everypool.Max(indices=True)
    for shape in ((2, 3, *(4, 3, 2)[:nd]), (1, 1, *(4, 3, 2)[:nd]), (2, 3, *[1] * nd)):
        for kind, x in make_memories(torch.from_numpy(numbers(shape)).float()):
            if "contiguous" in kind:
                continue
            expected = everypool.pool(x, reducer, windows)
            with forced("triton"):
                results = everypool.pool(x, reducer, windows)
            for ours, theirs in zip(results, expected, strict=True):
                torch.testing.assert_close(ours, theirs, check_stride=False, msg=kind)
                assert ours.stride() == find_strides(ours, x, nd), (kind, shape, x.stride(), ours.stride())
