"""torch.compile whole, torch.func, autocast and ONNX at sizes never seen: for every reducer over every kind of window."""

from __future__ import annotations

import io
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from cases import DEFAULTS, REDUCERS, Row, as_tuple, numbers, row_id
from torch import Tensor, nn

import everypool
from everypool import Adaptive, Global, Pyramid, Scan, Sliding, Strips, pool
from everypool.backends.axes import Run

WINDOWS: list[tuple[str, Any]] = [
    ("sliding", Sliding(3, 2, 1)),
    ("wide", Sliding(7, 1, 3)),
    ("ceil", Sliding(2, 2, 0, 1, True)),
    ("same", Sliding(3, 2, "same")),
    ("dilated", Sliding(3, 1, 1, 2)),
    ("adaptive", Adaptive(3)),
    ("global", Global()),
    ("pyramid", Pyramid((1, 2, 3))),
    ("strips", Strips()),
    ("scan", Scan(-1, True)),
]
IDS = [name for name, _ in WINDOWS]
SAME = ("gem", "lp")  # a fold as that of logsumexp
SPATIAL = {1: (11,), 2: (11, 9), 3: (7, 6, 5)}
# 11 and 15 lie between the same powers of two: the graph of a scan has a step for each
OTHER = {1: (15,), 2: (8, 17), 3: (6, 9, 8)}


def values(shape: Any, seed: int = 0) -> Tensor:
    return torch.from_numpy(numbers(shape, seed, 0.3, 2.0)).float()


def parts(result: Any) -> list[Tensor]:
    return [part for part in as_tuple(result) if part.is_floating_point()]


def loss(result: Any) -> Tensor:
    return sum((part.sin().sum() for part in parts(result)), torch.zeros(()))


@pytest.mark.parametrize("nd", [1, 2, 3])
@pytest.mark.parametrize("windows", [windows for _, windows in WINDOWS], ids=IDS)
@pytest.mark.parametrize("row", DEFAULTS, ids=row_id)
def test_functorch(row: Row, windows: Any, nd: int) -> None:
    """vmap, grad, and a forward-mode derivative that agrees with the backward one."""

    def call(x: Tensor) -> Any:
        return pool(x, row.reducer(), windows)

    x = values((3, 2, 2, *SPATIAL[nd])).double()
    together = parts(torch.func.vmap(call)(x))
    for i in range(3):
        for a, b in zip(together, parts(call(x[i])), strict=True):
            torch.testing.assert_close(a[i], b, rtol=1e-10, atol=1e-12)
    leaf = x[0].clone().requires_grad_()
    (expected,) = torch.autograd.grad(loss(call(leaf)), leaf)
    torch.testing.assert_close(torch.func.grad(lambda x: loss(call(x)))(x[0]), expected, rtol=1e-8, atol=1e-11)
    direction = torch.randn_like(x[0])
    _, tangent = torch.func.jvp(lambda x: loss(call(x)), (x[0],), (direction,))
    torch.testing.assert_close(tangent, (expected * direction).sum(), rtol=1e-8, atol=1e-10)


def compiled_agrees(call: Callable[..., Any], nd: int, *, mask: bool = False) -> None:
    """One graph forward and backward, at a second size without a new one."""
    torch._dynamo.reset()
    compiled = torch.compile(call, fullgraph=True, dynamic=True, backend="aot_eager")
    for shape in ((2, 4, *SPATIAL[nd]), (3, 5, *OTHER[nd])):  # all different: equal sizes would be taken for one symbol
        x = values(shape).requires_grad_()
        covered = np.random.default_rng(1).random((shape[0], 1, *shape[2:])) < 0.6
        arguments = (x, torch.from_numpy(covered)) if mask else (x,)
        with torch.compiler.set_stance("fail_on_recompile") if shape[0] == 3 else nullcontext():
            actual = parts(compiled(*arguments))
        expected = parts(call(*arguments))
        for a, b in zip(actual, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=2e-5, atol=1e-5)
        grads = [torch.autograd.grad(sum(y.sin().sum() for y in result), x)[0] for result in (actual, expected)]
        torch.testing.assert_close(*grads, rtol=1e-3, atol=1e-4)


# A graph takes seconds to trace, so not every pair: all windows with the plainest reducer, all reducers over two of them.
# tests/test_ways_of_calling.py compiles every record.
COMPILED = [(row, name, nd) for row in DEFAULTS for name, nd in (("sliding", 2), ("scan", 1))]
COMPILED += [(row, name, 1 + i % 3) for row in DEFAULTS if row.operation.name == "avg" for i, (name, _) in enumerate(WINDOWS)]


@pytest.mark.parametrize(("row", "name", "nd"), COMPILED, ids=[f"{row.id}-{name}-{nd}" for row, name, nd in COMPILED])
def test_compiles_whole_with_dynamic_sizes(row: Row, name: str, nd: int) -> None:
    compiled_agrees(lambda x: pool(x, row.reducer(), dict(WINDOWS)[name]), nd)


@pytest.mark.parametrize("row", [row for row in DEFAULTS if row.operation.name not in SAME], ids=row_id)
def test_compiles_whole_with_a_mask(row: Row) -> None:
    compiled_agrees(lambda x, mask: pool(x, row.reducer(), Sliding(3, 2, 1), mask=mask), 1, mask=True)


class Module(nn.Module):
    def __init__(self, call: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.call = call

    def forward(self, x: Tensor) -> Any:
        return self.call(x)


def onnx_session(call: Callable[[Tensor], Any], x: Tensor) -> Callable[[Tensor], list[np.ndarray]]:
    """Export with batch and spatial axes dynamic, and run in ONNX Runtime.

    The graph is not optimized, which takes a third of the time; graphs in tests/test_export.py and tests/test_blocks.py are.
    """
    pytest.importorskip("onnxscript")
    ort = pytest.importorskip("onnxruntime")
    dynamic = {axis: torch.export.Dim.DYNAMIC for axis in (0, *range(2, x.dim()))}
    buffer = io.BytesIO()
    options: dict[str, Any] = {"dynamo": True, "dynamic_shapes": (dynamic,), "verbose": False, "optimize": False}
    torch.onnx.export(Module(call), (x,), **options).save(buffer)
    session = ort.InferenceSession(buffer.getvalue())
    return lambda x: session.run(None, {session.get_inputs()[0].name: x.numpy()})


UNSEEN = {
    1: [(1, 13), (3, 16), (2, 8)],
    2: [(1, 13, 8), (3, 9, 21), (2, 30, 17)],
    3: [(1, 8, 7, 9), (3, 7, 10, 8), (2, 11, 8, 12)],
}
PARITY = ("gem", "logsumexp", "lp", "soft")  # float32 in the graph, float64 here
# a graph takes 20 ms and more per operator, so nothing twice: most reducers fold axis by axis, in two axes as in one
JOINTLY = ("avg", "center", "max", "median")  # these look at all axes at once, or are cheap
EXPORTED = [(row, 1, ("sliding", "adaptive", "global") + ("scan",) * (row.operation.name not in SAME)) for row in DEFAULTS]
EXPORTED += [(row, 2, ("sliding", "adaptive")) for row in DEFAULTS if row.operation.name in JOINTLY]
EXPORTED += [(row, 2, ("adaptive",)) for row in DEFAULTS if row.operation.name == "soft"]
EXPORTED += [(row, 3, ("adaptive",)) for row in DEFAULTS if row.operation.name in JOINTLY]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("row", "nd", "names"), EXPORTED, ids=[f"{row.id}-{nd}" for row, nd, _ in EXPORTED])
def test_onnx_at_three_unseen_sizes(row: Row, nd: int, names: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    if row.operation.name != "max":  # whose scan has all its steps; the others' as many as these sizes need
        monkeypatch.setattr(Run, "LONGEST_EXPORT", 16)

    def call(x: Tensor) -> Any:
        return tuple(pool(x, row.reducer(), dict(WINDOWS)[name]) for name in names)

    run = onnx_session(call, values((2, 2, *SPATIAL[nd])))
    for batch, *spatial in UNSEEN[nd]:
        x = values((batch, 2, *spatial), batch)
        for name, a, b in zip(names, run(x), call(x), strict=True):
            tolerance = 2e-5 if row.operation.name in PARITY else 3e-6
            np.testing.assert_allclose(a, b.numpy(), rtol=tolerance, atol=1e-6, err_msg=name)


@pytest.mark.filterwarnings("ignore")
def test_onnx_of_named_windows() -> None:
    """Strips, pyramids, directions, crosses, indices, unpooling: each exported once, run at three unseen sizes."""
    calls: list[Callable[[Tensor], Any]] = [
        everypool.strip_pool,
        everypool.spatial_pyramid_pool,
        everypool.corner_pool,
        everypool.cross_max_pool,
        lambda x: everypool.max_pool(x, 3, 2, 1, return_indices=True),
        lambda x: everypool.avg_pool(x, 3, 2, 1, ceil_mode=True),
        lambda x: everypool.avg_pool(x, 3, 2, "same"),
        lambda x: everypool.avg_pool(x, 7, 1, 3),
        lambda x: everypool.adaptive_avg_pool(x, (3, None)),
        lambda x: everypool.center_pool(x, 2, even="mean"),
    ]

    def call(x: Tensor) -> Any:
        return tuple(part for one in calls for part in as_tuple(one(x)))

    run = onnx_session(call, values((2, 2, *SPATIAL[2])))
    for batch, *spatial in UNSEEN[2]:
        x = values((batch, 2, *spatial), batch)
        for a, b in zip(run(x), call(x), strict=True):
            np.testing.assert_allclose(a, b.numpy(), rtol=3e-6, atol=1e-6)


@pytest.mark.parametrize("row", DEFAULTS, ids=row_id)
def test_autocast(row: Row) -> None:
    """Under autocast the input's type decides: what is bfloat16 stays so, and is accumulated in a wider type."""
    x = values((2, 3, 8, 8))
    for dtype in (torch.bfloat16, torch.float32):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = pool(x.to(dtype), row.reducer(), Sliding(2))
        assert y.dtype == dtype
        assert torch.equal(y, pool(x.to(dtype), row.reducer(), Sliding(2)))


@pytest.mark.parametrize("operation", REDUCERS, ids=lambda op: op.name)
def test_exported_programs_run(operation: Any) -> None:
    """torch.export with symbolic batch, height and width."""
    made = operation.reducer

    def call(x: Tensor) -> Any:
        return pool(x, made(), Sliding(3, 2, 1)), pool(x, made(), Adaptive(2))

    dynamic = {0: torch.export.Dim.DYNAMIC, 2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    program = torch.export.export(Module(call), (values((2, 2, 9, 8)),), dynamic_shapes=(dynamic,)).module()
    for shape in ((1, 2, 8, 7), (3, 2, 20, 13)):
        x = values(shape)
        for a, b in zip(program(x), call(x), strict=True):
            torch.testing.assert_close(a, b, rtol=2e-5, atol=1e-6)
