"""Running windows and sums of two maxima by the fused kernels, in Triton's interpreter where there is no GPU."""

import functools
import json
import pathlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from everypool import CascadeTopLeftPool, Scan, Sliding, corner_pool, cross_max_pool, pool
from everypool.backends import triton
from everypool.backends.choose import forced
from everypool.pool import find_operation
from everypool.windows.scan import scanned_onto

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = [
    pytest.mark.usefixtures("small_tiles"),
    pytest.mark.skipif(not triton.installed(), reason="Triton is not installed"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),  # the interpreter's NumPy warns of what `where` leaves out
]


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was launched since."""
    from everypool.backends.triton import launches, planes_launch

    names: list[str] = []
    body = launches.Launch.__call__
    monkeypatch.setattr(
        launches.Launch, "__call__", lambda self, tensors: (names.append(self.kernel.fn.__name__), body(self, tensors))[1]
    )
    for name in ("forward", "backward"):
        planes = getattr(planes_launch, name)
        monkeypatch.setattr(planes_launch, name, lambda *a, name=name, planes=planes: (names.append(name), planes(*a))[1])
    return names


def both(call: Callable[..., Any], *maps: Tensor) -> dict[str, list[Tensor]]:
    """Results and the gradients of all maps, by the definition in float64 and by the kernels."""
    found = {}
    for name in ("eager", "triton"):
        own = [(x.double() if name == "eager" else x.clone(memory_format=torch.preserve_format)) for x in maps]
        own = [x.requires_grad_() for x in own]
        with forced(name):
            y = call(*own)
            parts = y if isinstance(y, tuple) else (y,)
            torch.manual_seed(1)
            weights = torch.randn(parts[0].shape).to(maps[0].dtype).to(parts[0])
            gradients = torch.autograd.grad((parts[0] * weights).sum(), own)
        found[name] = [*(part.detach() for part in parts), *gradients]
    return found


def check(found: dict[str, list[Tensor]], dtype: torch.dtype = torch.float32) -> None:
    """Values within 64 eps in float32 or 1 ulp of a narrower type, gradients within four times that."""
    for number, (y, right) in enumerate(zip(found["triton"], found["eager"], strict=True)):
        units = (64 if dtype == torch.float32 else 1) * (1 if number == 0 else 4)
        limit = units * torch.finfo(dtype).eps * right.abs().double().clamp(min=1)
        assert ((y.double() - right.double()).abs() <= limit).all()


@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
@pytest.mark.parametrize("reverse", [False, True], ids=["forwards", "backwards"])
@pytest.mark.parametrize("reducer", ["max", "max:ties=last", "avg", "gem", "gem:p=-2", "soft", "logsumexp:r=-1"])
def test_long_lines_in_blocks(reducer: str, reverse: bool, masked: bool, ran: list[str]) -> None:
    x = torch.randn(1, 2, 29, device=DEVICE).round(decimals=1)
    mask = (torch.rand(1, 2, 29, device=DEVICE) > 0.3) if masked else None
    check(both(lambda x: pool(x, reducer, Scan(-1, reverse), mask=mask), x))
    assert ran == (["sweep", "unsweep"] if reducer[:3] in ("max", "avg") else ["run", "unrun"])


@pytest.mark.parametrize("last", [False, True], ids=["NCDHW", "NDHWC"])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_three_axes_samples_of_different_sizes_and_positions(axis: int, last: bool, ran: list[str]) -> None:
    x = torch.randn(3, 2, 4, 5, 3, device=DEVICE)
    x = x.contiguous(memory_format=torch.channels_last_3d) if last else x
    sizes = torch.tensor([[4, 5, 3], [2, 3, 1], [1, 1, 2]], device=DEVICE)
    for reducer in ("max:indices=True", "soft", "center"):
        check(both(lambda x, reducer=reducer: pool(x, reducer, Scan(axis, True), sizes=sizes), x))
    assert {"run", "unrun", "fold", "share"} <= set(ran)  # the value in the middle is one of a table
    assert len(ran) == 6


@pytest.mark.parametrize("reducer", ["gem", "soft", "logsumexp"])
def test_learned_parameters(reducer: str) -> None:
    name = {"gem": "p", "soft": "beta", "logsumexp": "r"}[reducer]
    make = find_operation(reducer, "reducer").reducer
    assert make is not None
    x, mask = torch.rand(3, 2, 4, 5, device=DEVICE), torch.rand(3, 1, 4, 5, device=DEVICE) > 0.3
    slopes = []
    for name_of, dtype in (("eager", torch.float64), ("triton", torch.float32)):
        values = torch.tensor([2.5, 1.5], dtype=dtype, device=DEVICE, requires_grad=True)
        with forced(name_of):
            y = pool(x.to(dtype), make(**{name: values}), Scan(-1, True), mask=mask)
            slopes.append(torch.autograd.grad((y * y).sum(), values)[0])
    torch.testing.assert_close(slopes[1].double(), slopes[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("maps", [1, 2])
@pytest.mark.parametrize("ties", ["first", "last"])
@pytest.mark.parametrize("corner", ["top_left", "bottom_right", "cross"])
def test_planes_held_whole(corner: str, ties: str, maps: int, dtype: torch.dtype, ran: list[str]) -> None:
    xs = [torch.randn(2, 3, 5, 6, device=DEVICE).round(decimals=1 - i).to(dtype) for i in range(maps)]

    def call(x: Tensor, other: Tensor | None = None) -> Tensor:
        if corner == "cross":
            return cross_max_pool(x, other=other)
        return corner_pool(x, corner, other=other, ties=ties)

    check(both(call, *xs), dtype)
    assert ran == ["forward", "backward"]


def test_planes_that_are_not_held_run_one_direction_onto_the_other(ran: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from everypool.backends.triton import planes

    x, other = (torch.randn(1, 2, 5, 6, device=DEVICE).contiguous(memory_format=torch.channels_last) for _ in range(2))
    check(both(lambda x, other: corner_pool(x, other=other), x, other))
    monkeypatch.setattr(planes, "HELD", 8)
    x, other = x.contiguous(), other.contiguous()
    check(both(lambda x, other: corner_pool(x, other=other), x, other))
    check(both(lambda x, other: scanned_onto(x, other, Scan(-2, True), "first"), x, other))
    assert ran == ["run", "run", "unrun", "unrun", "run", "sweep", "unsweep", "unrun", "run", "unrun"]
    check(both(lambda x, other: cross_max_pool(x, other=other), x, other))


def test_special_values(ran: list[str]) -> None:
    x = torch.tensor([1.0, float("inf"), -2.0, float("nan"), float("-inf"), 3.0, float("nan")], device=DEVICE)
    x = x.expand(1, 2, 7, 7).contiguous()
    for call in (lambda x: corner_pool(x), lambda x: pool(x, "max", Scan(-1)), lambda x: pool(x, "max", Scan(-2, True))):
        with forced("triton"):
            found = call(x)
        with forced("eager"):
            torch.testing.assert_close(found.double(), call(x.double()), equal_nan=True)
    assert ran == ["forward", "sweep", "run"]


def test_gradients_of_gradients(ran: list[str]) -> None:
    x = torch.randn(1, 1, 3, 4, device=DEVICE)
    seconds = []
    for name in ("eager", "triton"):
        own = (x.double() if name == "eager" else x.clone()).requires_grad_()
        with forced(name):
            y = corner_pool(own * own) + pool(own, "soft", Scan(-1))
            (first,) = torch.autograd.grad((y * y).sum(), own, create_graph=True)
            (second,) = torch.autograd.grad((first * first).sum(), own)
        seconds.append(second.double())
    torch.testing.assert_close(seconds[1], seconds[0], rtol=1e-4, atol=1e-4)
    assert {"forward", "run"} <= set(ran)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch's compiler, of any Function
def test_compiles_whole_at_the_first_call(ran: list[str]) -> None:
    x, other = (torch.randn(2, 3, 4, 5, device=DEVICE) for _ in range(2))

    def call(x: Tensor, other: Tensor) -> Tensor:
        return corner_pool(x, other=other) + cross_max_pool(x) + pool(other, "max", Scan(-1))

    with forced("triton"):
        compiled = torch.compile(call, fullgraph=True, dynamic=True, backend="aot_eager")
        own = [t.clone().requires_grad_() for t in (x, other)]
        y = compiled(*own)
        gradients = torch.autograd.grad(y.sum(), own)
    assert sorted(ran) == sorted(["forward"] * 2 + ["sweep", "backward", "backward", "unsweep"])
    with forced("eager"):
        rights = [t.double().requires_grad_() for t in (x, other)]
        expected = call(*rights)
        right = torch.autograd.grad(expected.sum(), rights)
    check({"triton": [y.detach(), *gradients], "eager": [expected.detach(), *right]})


def test_the_cascade(ran: list[str]) -> None:
    layer = CascadeTopLeftPool(4, 2).to(DEVICE).eval()
    x = torch.randn(1, 4, 5, 6, device=DEVICE)
    with torch.no_grad(), forced("triton"):
        found = layer(x)
    with torch.no_grad(), forced("eager"):
        torch.testing.assert_close(found.double(), layer.double()(x.double()), rtol=1e-5, atol=1e-5)
    assert ran == ["sweep", "run", "forward"]


def test_tiles_are_tried_on_request_and_remembered(
    ran: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    from everypool.backends.triton import tuning
    from everypool.backends.triton.launches import Choice

    monkeypatch.setattr(tuning, "CHOICES", (Choice(64, 1), Choice(128, 1)))
    monkeypatch.setenv("EVERYPOOL_TUNE", "1")
    monkeypatch.setenv("EVERYPOOL_CACHE", str(tmp_path))
    x = torch.randn(1, 1, 2, 12, device=DEVICE)
    for reducer, windows in (("max", Sliding(2)), ("soft", Scan(-1)), ("max", Scan(-1))):
        mask = torch.ones(1, 1, 2, 12, dtype=torch.bool, device=DEVICE)  # a call with a mask is made anew each time
        call = functools.partial(pool, reducer=reducer, windows=windows, mask=mask)
        check(both(call, x))
        tried = len(ran)
        assert tried > 4
        with monkeypatch.context() as patch:
            patch.setattr(tuning, "_milliseconds", None)  # nothing is tried again
            check(both(call, x))
        assert len(ran) == tried + 2
        ran.clear()
    (file,) = tmp_path.iterdir()
    assert len(json.loads(file.read_text())) == 6
    file.write_text("broken")
    check(both(lambda x: pool(x, "max", Sliding(2)), x))
    assert len(json.loads(file.read_text())) == 2
