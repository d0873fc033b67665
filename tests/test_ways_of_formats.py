"""Maps without a batch, and the memory format of results: as torch.nn.functional has them, whatever was called before."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from cases import DEFAULTS, Row, row_id
from torch import Tensor
from ways.derivatives import check_all, list_parts
from ways.subjects import SLIDING2, SUBJECTS, Subject, make_layer, make_map

import everypool
from everypool.backends.choose import forced
from everypool.layer import Layer

LAST = {2: torch.channels_last, 3: torch.channels_last_3d}
KINDS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x.contiguous(),
    "channels_last": lambda x: x.contiguous(memory_format=LAST[x.dim() - 2]),
    "sliced channels_last": lambda x: x.repeat_interleave(2, 1).contiguous(memory_format=LAST[x.dim() - 2])[:, ::2],
    "cropped channels_last": lambda x: F.pad(x, (1, 2)).contiguous(memory_format=LAST[x.dim() - 2])[..., 1:-2],
    "cropped": lambda x: F.pad(x, (1, 2))[..., 1:-2],
    "transposed": lambda x: x.transpose(-1, -2).contiguous().transpose(-1, -2),
    "expanded": lambda x: x[:1].expand(x.shape),
}
EARLIER = [(None, False), (None, True), ("contiguous", False), ("channels_last", True)]
FRESH = itertools.count(11)  # sizes never seen before: a plan kept from an earlier call would hide the first one's fault


def make_fresh_map(nd: int) -> Tensor:
    spatial = (*[6] * (nd - 1), next(FRESH))
    return torch.randn((2, 4, *spatial), dtype=torch.float64)


def list_calls(row: Row) -> list[tuple[str, int, Callable[[Tensor], Any], Callable[[Tensor], Any]]]:
    """(name, axes, everypool's, torch's of the same shape)."""
    stem, norm = row.operation.stem, (2.0,) if row.operation.name == "lp" else ()
    found: list[tuple[str, int, Callable[[Tensor], Any], Callable[[Tensor], Any]]] = []
    for nd in (2, 3):
        theirs: Any = {2: F.max_pool2d, 3: F.max_pool3d}[nd]
        # torch's adaptive poolings alone lose the format in 3-D: its sliding ones tell it
        adaptive: Any = {2: F.adaptive_max_pool2d, 3: lambda x, out: F.max_pool3d(F.interpolate(x, 2 * out), 2)}[nd]
        sliding = getattr(everypool, f"{stem}Pool{nd}d")(*norm, 3, 2).double()
        bins = getattr(everypool, f"Adaptive{stem}Pool{nd}d")(*norm, 3).double()
        function = getattr(everypool, f"{row.operation.name}_pool")
        found.append(("sliding", nd, sliding, lambda x, theirs=theirs: theirs(x, 3, 2)))
        found.append(("adaptive", nd, bins, lambda x, adaptive=adaptive: adaptive(x, 3)))
        found.append(
            ("function", nd, lambda x, function=function: function(x, *norm, 2), lambda x, theirs=theirs: theirs(x, 2))
        )
        if row.operation.name == "max":
            layer = getattr(everypool, f"MaxPool{nd}d")(3, 2, return_indices=True)
            found.append(("indices", nd, layer, lambda x, theirs=theirs: theirs(x, 3, 2, return_indices=True)))
    return found


def compare_strides(name: str, mine: Any, theirs: Any) -> list[str]:
    return [
        f"{name}: {a.stride()}, torch {b.stride()}"
        for a, b in zip(list_parts(mine), list_parts(theirs), strict=True)
        if a.stride() != b.stride()
    ]


@pytest.mark.parametrize("row", DEFAULTS, ids=row_id)
def test_memory_format_is_that_of_torch(row: Row) -> None:
    """Each kind of input as the first call of its shape, with a gradient wanted and without, and after the two plain kinds."""
    told: list[str] = []
    for name, nd, mine, theirs in list_calls(row):
        for kind, (earlier, learns) in itertools.product(KINDS, EARLIER):
            x = make_fresh_map(nd)
            if earlier is not None:
                mine(KINDS[earlier](x))
            given = KINDS[kind](x).detach().requires_grad_(learns)
            told += compare_strides(f"{name} {nd}-D {kind} after {earlier}", mine(given), theirs(given))
    assert not told, f"{len(told)}:\n" + "\n".join(told)


@pytest.mark.parametrize("row", DEFAULTS, ids=row_id)
def test_memory_format_of_gradients(row: Row) -> None:
    """That of the input, as torch's sliding poolings have it; by the kernels and by the definition."""
    told: list[str] = []
    for name, nd, mine, theirs in list_calls(row):
        for kind, implementation in itertools.product(("contiguous", "channels_last"), ("cpu", "eager")):
            x = KINDS[kind](make_fresh_map(nd)).detach().requires_grad_()
            with forced(implementation) if implementation == "eager" else nullcontext():
                (mine_grad,) = torch.autograd.grad(list_parts(mine(x))[0].sin().sum(), x)
            if name == "sliding":
                (grad,) = torch.autograd.grad(theirs(x).sin().sum(), x)
                assert grad.stride() == x.stride()
            told += compare_strides(f"{name} {nd}-D {kind} {implementation}", mine_grad, x)
    assert not told, f"{len(told)}:\n" + "\n".join(told)


def list_unbatched() -> list[Subject]:
    """Layers that know their number of axes."""
    found = [subject for subject in SUBJECTS if isinstance(subject.module(), Layer)]
    return [subject for subject in found if subject.module().nd is not None and len(subject.arguments()) == 1]


@pytest.mark.parametrize("subject", list_unbatched(), ids=lambda subject: subject.id)
def test_layers_take_maps_without_a_batch(subject: Subject) -> None:
    """(C, *spatial) in either order with (N, C, *spatial), and both memory formats."""
    (x,) = subject.arguments()
    for kind in ("contiguous", "channels_last") if x.dim() > 3 else ("contiguous",):
        given = KINDS[kind](x)
        for first, second in ((given, given[0]), (given[0], given)):
            module = subject.module()
            results = {y.dim(): list_parts(module(y)) for y in (first, second)}
            check_all(results[x.dim() - 1], [part[0] for part in results[x.dim()]])
            leaf = given[0].detach().requires_grad_()
            whole = given.detach().requires_grad_()
            (alone,) = torch.autograd.grad(list_parts(module(leaf))[0].sin().sum(), leaf)
            (among,) = torch.autograd.grad(list_parts(module(whole))[0].sin().sum(), whole)
            check_all([alone], [among[0]])


@pytest.mark.parametrize("row", DEFAULTS, ids=row_id)
def test_functions_take_maps_without_a_batch(row: Row) -> None:
    """A tuple of two or more tells the number of axes."""
    name, norm = row.operation.name, (2.0,) if row.operation.name == "lp" else ()
    sliding, adaptive = getattr(everypool, f"{name}_pool"), getattr(everypool, f"adaptive_{name}_pool")
    for nd, kernel in ((2, (2, 3)), (3, (2, 1, 2))):
        x = make_map(nd)
        for function in (sliding, adaptive):
            for y in (x[0], x[1].clone(), x[0].clone()):
                check_all([function(y, *norm, kernel)], [function(y.unsqueeze(0), *norm, kernel)[0]])
    x = make_map(2)
    layer = make_layer(f"{row.operation.stem}Pool2d", **SLIDING2)().double()
    options = {key: SLIDING2[key] for key in ("stride", "padding", "dilation")}
    check_all([sliding(x[0], *norm, SLIDING2["kernel_size"], **options)], [layer(x)[0]])
