"""At infinities and NaN the gradients of transforms and compiled graphs are those of a plain call, NaN in the same places."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from cases import ROWS, Row, row_id
from torch import Tensor
from torch.func import jvp, vjp, vmap
from ways.derivatives import check_all, list_floats
from ways.subjects import make_map, make_mask

from everypool import Adaptive, Global, Scan, Sliding, Windows, pool

WINDOWS: dict[str, tuple[Windows, int]] = {
    "sliding": (Sliding(3, 2, 1), 2),
    "wide": (Sliding(7, 1, 3), 1),
    "adaptive": (Adaptive(2), 2),
    "global": (Global(), 1),
    "scan": (Scan(-1), 1),
}
EXTREMES = {"inf": [torch.inf], "-inf": [-torch.inf], "both": [torch.inf, -torch.inf], "nan": [torch.nan]}


def place_extremes(x: Tensor, values: list[float], exists: Tensor | None) -> Tensor:
    """Put each value in two places in ten; where there is a mask, all that it excludes is infinite."""
    draw = torch.from_numpy(np.random.default_rng(5).random(x.shape))
    for number, value in enumerate(values):
        x = torch.where((draw > 0.2 * number) & (draw < 0.2 * (number + 1)), value, x)
    return x if exists is None else torch.where(exists, x, torch.inf)


def make_call(row: Row, name: str, extremes: str, is_masked: bool) -> tuple[Callable[[Tensor], list[Tensor]], Tensor]:
    windows, nd = WINDOWS[name]
    exists = make_mask(nd) if is_masked else None
    x = place_extremes(make_map(nd), EXTREMES[extremes], exists)
    reducer = row.reducer()
    return lambda x: list_floats(pool(x, reducer, windows, mask=exists)), x


def make_outer(parts: list[Tensor]) -> list[Tensor]:
    return [torch.linspace(0.5, 1.5, part.numel(), dtype=part.dtype).reshape(part.shape) for part in parts]


CASES = [(row, name, extremes, m) for row in ROWS for name in WINDOWS for extremes in EXTREMES for m in (False, True)]


@pytest.mark.parametrize("row", ROWS, ids=row_id)
def test_transforms_at_infinities(row: Row) -> None:
    """vjp, vmap of vjp, and jvp."""
    told = []
    for case in (case for case in CASES if case[0] is row):
        call, x = make_call(*case)
        leaf = x.clone().requires_grad_()
        parts = call(leaf)
        outer = make_outer(parts)
        (expected,) = torch.autograd.grad(parts, leaf, outer)
        values, pull = vjp(call, x)
        stacked = vmap(lambda x, call=call, outer=outer: vjp(call, x)[1](outer)[0])(torch.stack([x, x]))
        _, slopes = jvp(call, (x,), (torch.ones_like(x),))
        slope = sum((slope * g).sum() for slope, g in zip(slopes, outer, strict=True))
        found = {
            "values": (values, [part.detach() for part in parts]),
            "vjp": (pull(outer), [expected]),
            "vmap": (list(stacked), [expected, expected]),
            "jvp": ([slope], [expected.sum()]),
        }
        for name, pair in found.items():
            try:
                check_all(*pair)
            except AssertionError as error:
                told.append(f"{name} {case[1:]}: {str(error).splitlines()[2]}")
    assert not told, f"{len(told)}:\n" + "\n".join(told)


def check_compiled(row: Row, names: list[str]) -> None:
    for name in names:
        for is_masked in (False, True):
            torch._dynamo.reset()
            call, _ = make_call(row, name, "inf", is_masked)
            compiled = torch.compile(call, backend="aot_eager", fullgraph=True)
            for extremes in EXTREMES:
                x = make_call(row, name, extremes, is_masked)[1]
                found: list[Any] = []
                for run in (compiled, call):
                    leaf = x.clone().requires_grad_()
                    parts = run(leaf)
                    found.append([*torch.autograd.grad(parts, leaf, make_outer(parts)), *(p.detach() for p in parts)])
                check_all(*found)
    torch._dynamo.reset()


@pytest.mark.parametrize("row", [row for row in ROWS if not row.settings], ids=row_id)
def test_compiled_at_infinities(row: Row) -> None:
    check_compiled(row, ["sliding"])


@pytest.mark.slow
@pytest.mark.parametrize("row", ROWS, ids=row_id)
def test_all_compiled_at_infinities(row: Row) -> None:
    check_compiled(row, [name for name in WINDOWS if row.settings or name != "sliding"])
