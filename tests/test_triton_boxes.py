"""The fused kernels over boxes, in Triton's interpreter where there is no GPU: against the definition, forward and backward."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_triton import DEVICE, close
from torch import Tensor

from everypool import Boxes, multi_level_roi_pool, pool, roi_align, roi_pool
from everypool.backends import triton
from everypool.backends.choose import forced
from everypool.reducers.power import Power

# the interpreter's NumPy warns of what `where` leaves out
pytestmark = [
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
    pytest.mark.skipif(not triton.installed(), reason="Triton is not installed"),
]

REDUCERS = ("mean", "max", "max:ties=even", "gem:p=3", "soft", "logsumexp")
SPATIAL = {1: (9,), 2: (4, 6), 3: (3, 4, 3)}
# per number of axes, in x, y, z order: over the border, inside, smaller than a cell, wholly outside; sample 1 has none
ROWS = {
    1: [[0, -3, 5.2], [0, 1.3, 8.1], [2, 2, 2.3], [2, 30, 40]],
    2: [[0, -3, -4, 5.2, 6.5], [0, 1.3, 0.2, 5.1, 3.7], [2, 1, 0, 1.4, 0.3], [2, 30, 30, 40, 44]],
    3: [[0, -1, 0.6, 0.2, 4.4, 6, 3.9], [2, 1.2, 0.2, 0.4, 1.6, 0.7, 0.9]],
}
ALIGN: dict[str, dict[str, Any]] = {
    "two": {"sampling_ratio": 2},
    "two, aligned": {"sampling_ratio": 2, "aligned": True},
    "as many as cells": {"sampling_ratio": 0, "aligned": True},
}


def boxes(nd: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.tensor(ROWS[nd], dtype=dtype, device=DEVICE)


def maps(nd: int, channels: int = 3, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn((3, channels, *SPATIAL[nd]), device=DEVICE).to(dtype)


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the launches that were made since."""
    from everypool.backends.triton import boxes_launch

    names: list[str] = []
    for name in ("fold", "backward", "slope"):
        body = getattr(boxes_launch, name)
        monkeypatch.setattr(boxes_launch, name, lambda *a, name=name, body=body: (names.append(name), body(*a))[1])
    return names


def derived(call: Callable[..., Tensor], leaves: list[Tensor]) -> list[Tensor]:
    """The result, and the gradients of its sum with fixed weights."""
    leaves = [leaf.detach().requires_grad_() for leaf in leaves]
    y = call(*leaves)
    weights = torch.linspace(-1, 2, max(y.numel(), 1), dtype=torch.float64)[: y.numel()].reshape(y.shape)
    return [y.detach(), *torch.autograd.grad((y * weights.to(y)).sum(), leaves)]


def compared(call: Callable[..., Tensor], leaves: list[Tensor], dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """What the kernels give, which is what the definition gives in float64."""
    with forced("eager"):
        expected = derived(call, [leaf.double() for leaf in leaves])
    with forced("triton"):
        found = derived(call, leaves)
    close(found[0], expected[0], dtype)
    for gradient, slope in zip(found[1:], expected[1:], strict=True):
        close(gradient, slope, dtype, 256)
    return found


@pytest.mark.parametrize("sampling", ["align", "pool"])
@pytest.mark.parametrize(
    ("reducer", "masked"), [*((reducer, masked) for reducer in REDUCERS for masked in (0, 1)), ("max", 3), ("soft", 3)]
)
def test_equals_the_definition(reducer: str, masked: int, sampling: str, ran: list[str]) -> None:
    mask = (torch.rand((3, masked, *SPATIAL[2]), device=DEVICE) > 0.4) if masked else None
    windows = Boxes(boxes(2)[[0, 2]] if masked else boxes(2), (2, 1), 0.8, 1 if masked else 2, sampling=sampling)
    compared(lambda x: pool(x, reducer, windows, mask=mask), [maps(2)])
    assert ran == ["fold", "backward"]


@pytest.mark.parametrize("sampling", ["align", "pool"])
@pytest.mark.parametrize("channels", [0, 1, 3])
def test_which_bins_hold_something(channels: int, sampling: str, ran: list[str]) -> None:
    mask = (torch.rand((3, channels, *SPATIAL[1]), device=DEVICE) > 0.7) if channels else None
    rows = torch.cat([boxes(1), boxes(1).new_tensor([[1, 2, 2]])])  # a box without extent has no sample between cells
    windows = Boxes(rows, 2, 0.8, 0, aligned=True, sampling=sampling)
    held = []
    for name in ("eager", "triton"):
        with forced(name):
            held.append(pool(maps(1), "max", windows, mask=mask, return_mask=True)[1])
    assert torch.equal(*held)
    assert held[0].any()
    assert not held[0].all()
    assert ran == ["fold"]


@pytest.mark.parametrize("align", ALIGN)
@pytest.mark.parametrize("nd", [1, 2])
def test_samples_between_cells(nd: int, align: str, ran: list[str]) -> None:
    rows = boxes(nd) if nd == 1 else boxes(nd)[[0, 2]]
    for reducer in {1: REDUCERS if align == "two" else ("mean", "soft"), 2: ("mean",) if align == "two" else ("soft",)}[nd]:
        compared(lambda x, reducer=reducer: roi_align(x, rows, 2, 0.5, reducer=reducer, **ALIGN[align]), [maps(nd)])
    assert set(ran) == {"fold", "backward"}


@pytest.mark.parametrize("reducer", REDUCERS)
def test_lines_of_whole_cells(reducer: str, ran: list[str]) -> None:
    compared(lambda x: roi_pool(x, boxes(1), 3, 0.7, reducer=reducer), [maps(1)])
    assert ran == ["fold", "backward"]


@pytest.mark.parametrize("reducer", ["mean", "soft"])
def test_volumes(reducer: str, ran: list[str]) -> None:
    compared(lambda x: roi_align(x, boxes(3), (1, 2, 1), 1.0, 1, reducer=reducer), [maps(3)])
    compared(lambda x: roi_pool(x, boxes(3), (2, 1, 2), 1.0, reducer=reducer), [maps(3)])
    assert ran == ["fold", "backward"] * 2


@pytest.mark.parametrize(("reducer", "dtype"), [("mean", torch.float16), ("max", torch.bfloat16), ("soft", torch.bfloat16)])
def test_narrow_types_and_channels_last(reducer: str, dtype: torch.dtype, ran: list[str]) -> None:
    x = maps(2, 20, dtype).contiguous(memory_format=torch.channels_last)
    for call in (
        lambda x: roi_align(x, boxes(2), 2, 0.6, 1, reducer=reducer),
        lambda x: roi_pool(x, boxes(2), 2, 0.6, reducer=reducer),
    ):
        y, gradient = compared(call, [x], dtype)
        assert y.is_contiguous(memory_format=torch.channels_last)
        assert gradient.is_contiguous(memory_format=torch.channels_last)
        assert y.dtype == gradient.dtype == dtype
    assert ran == ["fold", "backward"] * 2


def test_volumes_with_channels_last_and_a_mask_by_channel(ran: list[str]) -> None:
    x = maps(3, 4).contiguous(memory_format=torch.channels_last_3d)
    mask = torch.rand(x.shape, device=DEVICE) > 0.4
    _, gradient = compared(lambda x: roi_align(x, boxes(3), 1, 1.0, 1, reducer="max", mask=mask), [x])
    assert gradient.is_contiguous(memory_format=torch.channels_last_3d)
    assert ran == ["fold", "backward"]


@pytest.mark.parametrize("function", [roi_align, roi_pool])
def test_samples_of_different_sizes(function: Callable[..., Tensor], ran: list[str]) -> None:
    options = {"sampling_ratio": 1} if function is roi_align else {}
    sizes = torch.tensor([[4, 6], [1, 1], [3, 2]], device=DEVICE)
    x = maps(2)
    _, gradient = compared(lambda x: function(x, boxes(2), 2, 0.8, sizes=sizes, **options), [x])
    assert not gradient[2, :, 3:].any()
    assert not gradient[2, :, :, 2:].any()
    assert ran == ["fold", "backward"]


def test_settings_of_reducers(ran: list[str]) -> None:
    """Ties, divisors, sums, and values made positive in another way."""
    level = maps(1).round()
    for reducer in ("max:ties=last", "avg:divisor=3", "lp:p=2", "logsumexp:norm=sum", "soft:beta=-2", "soft:grad=authors"):
        for function in (roi_pool, functools.partial(roi_align, sampling_ratio=2)):
            compared(lambda x, r=reducer, f=function: f(x, boxes(1), 2, 0.7, reducer=r), [level])
    assert ran == ["fold", "backward"] * 12


@pytest.mark.parametrize("sampling", ["align", "pool"])
@pytest.mark.parametrize("channels", [0, 3], ids=["one", "by channel"])
def test_a_learned_power(channels: int, sampling: str, ran: list[str]) -> None:
    p = torch.linspace(2, 3, channels, device=DEVICE) if channels else torch.tensor(2.5, device=DEVICE)
    windows = Boxes(boxes(1), 2, 0.8, 2, sampling=sampling)
    compared(lambda x, p: pool(x, Power(p), windows), [maps(1).abs(), p])
    assert ran == ["fold", "backward", "slope"]
    with forced("triton"):
        (alone,) = torch.autograd.grad(pool(maps(1), Power(p.requires_grad_()), windows).sum(), p)
    assert alone.isfinite().all()
    assert ran[3:] == ["fold", "slope"]


@pytest.mark.parametrize(("fuse", "masked"), [("max", False), ("sum", False), ("max", True)])
def test_several_levels(fuse: str, masked: bool, ran: list[str]) -> None:
    levels = [maps(2), torch.randn(3, 3, 3, 3, device=DEVICE)]
    mask = [torch.rand(3, 1, *x.shape[2:], device=DEVICE) > 0.3 for x in levels] if masked else None
    rows = boxes(2)[[0, 2]]
    compared(lambda *x: multi_level_roi_pool(x, rows, 2, (0.8, 0.4), fuse, sampling_ratio=1, mask=mask), levels)
    assert ran == ["fold", "fold", "backward", "backward"]


def test_no_boxes_at_all(ran: list[str]) -> None:
    for call in (lambda x: roi_align(x, boxes(2)[:0], 2, 1.0, 2), lambda x: roi_pool(x, [boxes(2)[:0, 1:]] * 3, 2)):
        y, gradient = compared(call, [maps(2)])
        assert y.shape == (0, 3, 2, 2)
        assert not gradient.any()
    assert ran == ["fold", "backward"] * 2


def test_same_bits_twice(ran: list[str]) -> None:
    rows = torch.cat([boxes(2)[:2]] * 3)
    x = maps(2)
    with forced("triton"):
        once, again = (derived(lambda x: roi_align(x, rows, 2, 0.8, 1, reducer="soft"), [x]) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))
    assert ran == ["fold", "backward"] * 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_some_boxes_at_a_time(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch, ran: list[str]) -> None:
    from everypool.backends.triton import boxes_launch

    monkeypatch.setattr(boxes_launch, "HELD", 60)
    compared(lambda x: roi_align(x, boxes(1), 2, 0.8, 2, reducer="soft"), [maps(1, dtype=dtype)], dtype)
    compared(lambda x: roi_pool(x, boxes(1), 2, 0.8), [maps(1, dtype=dtype)], dtype)
    assert ran == ["fold", "backward"] * 2


def test_places_that_need_64_bits(monkeypatch: pytest.MonkeyPatch, ran: list[str]) -> None:
    from everypool.backends.triton import boxes_launch

    monkeypatch.setattr(boxes_launch, "wide", lambda *tensors: True)
    for function in (roi_pool, functools.partial(roi_align, sampling_ratio=1)):
        compared(lambda x, f=function: f(x, boxes(2)[[0, 2]], 2, 0.8, reducer="gem:p=3"), [maps(2)])
    assert ran == ["fold", "backward"] * 2


def test_coordinates_in_float64(ran: list[str]) -> None:
    compared(lambda x: roi_align(x, boxes(1, torch.float64), 2, 0.7, 2), [maps(1)])
    assert ran == ["fold", "backward"]


def test_gradients_of_gradients(ran: list[str]) -> None:
    slopes = []
    x = maps(1).abs()
    for name in ("eager", "triton"):
        own = x.clone().requires_grad_()
        with forced(name):
            y = roi_align(own, boxes(1), 2, 0.8, 2, reducer="gem:p=3")
            (once,) = torch.autograd.grad(y.sin().sum(), own, create_graph=True)
            slopes += [once.detach(), torch.autograd.grad(once.sin().sum(), own)[0]]
    torch.testing.assert_close(slopes[2:], slopes[:2], rtol=1e-4, atol=1e-5)
    assert ran[0] == "fold"


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch's compiler, of any Function
def test_compiles_whole_at_the_first_call(ran: list[str]) -> None:
    def call(x: Tensor, rows: Tensor) -> Tensor:
        return roi_align(x, rows, 2, 0.8, 2, reducer="soft") + roi_pool(x, rows, 2, 0.8)

    whole = torch.compile(call, fullgraph=True, dynamic=True, backend="aot_eager")
    for rows in (boxes(1), boxes(1)[:3]):
        compared(lambda x, rows=rows: (whole if x.dtype == torch.float32 else call)(x, rows), [maps(1)])
    assert ran.count("fold") == ran.count("backward") == 4


def test_what_it_does_not_do_is_refused_by_name() -> None:
    x, rows = maps(1), boxes(1)
    with forced("triton"):
        with pytest.raises(NotImplementedError, match="float64 has no fused kernel"):
            roi_align(x.double(), rows, 2)
        with pytest.raises(NotImplementedError, match="int32 has no fused kernel"):
            roi_pool(x.to(torch.int32), rows, 2)
        with pytest.raises(NotImplementedError, match="no fused kernel puts the samples of a bin in order"):
            roi_pool(x, rows, 2, reducer="median")
        with pytest.raises(NotImplementedError, match="the sample in the middle of a bin has no fused kernel"):
            roi_pool(x, rows, 2, reducer="center")
        with pytest.raises(NotImplementedError, match="only the definition takes a power near zero or infinite"):
            roi_pool(x, rows, 2, reducer="gem:p=0.001")
