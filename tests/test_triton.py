"""The fused kernels, in Triton's interpreter where there is no GPU: against the definition, forward and backward."""

import subprocess
import sys

import pytest
import torch

from everypool import Adaptive, Boxes, Global, GlobalGeMPool, Pyramid, Scan, Sliding, operations, pool
from everypool.backends import triton
from everypool.backends.choose import forced
from everypool.windows.strips import Strips

here = pytest.mark.skipif(not triton.installed(), reason="Triton is not installed")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# of every reducer all settings that its record holds worth testing; the first of them in a narrow type too
SETTINGS = {
    name: [":".join(filter(None, [name, ",".join(f"{key}={value}" for key, value in settings.items())]))
           for settings in operation.variants]
    for name, operation in operations().items()
    if operation.kind == "reducer"
}  # fmt: skip
SETTINGS["avg"].append("avg:count_include_pad=True")
CASES = [pytest.param(spec, torch.float32, id=f"{spec}-float32") for specs in SETTINGS.values() for spec in specs]
CASES += [pytest.param(specs[0], torch.bfloat16, id=f"{specs[0]}-bfloat16") for specs in SETTINGS.values()]
# what only the definition does: signs of their own, the limits of powers
REFUSED = {"gem:p=0.0", "gem:p=3.0,signed=odd", "gem:p=2.0,signed=shift", "gem:p=inf", "lp:p=inf"}
WINDOWS = {
    "overlapping": (Sliding(3, 2, 1), (2, 3, 7, 9)),
    "line": (Sliding(2), (2, 3, 8)),
    "dilated": (Sliding(2, 1, 0, dilation=2), (1, 2, 3, 4, 5)),
    "bins": (Adaptive((3, 2)), (2, 3, 7, 9)),
    "global": (Global(), (2, 3, 7, 9)),
    "pyramid": (Pyramid((1, 3)), (2, 3, 7, 9)),
    "strips": (Strips(), (2, 3, 5, 6)),
    "long": (Sliding(7, 1, 3), (1, 1, 7, 6)),
    "running": (Scan(-1, True), (1, 2, 3, 4)),
    "running down": (Scan(-2), (1, 2, 4, 3)),
}

LARGE = ("global", "pyramid", "strips", "long")
OTHER_MIDDLES = ("median:even=mean", "median:even=upper")  # found as the lower one is, which takes long in the interpreter
PAIRS = [
    pytest.param(*case.values, name, id=f"{case.id}-{name}")
    for case in CASES
    for name in WINDOWS
    if not (case.values[0] in OTHER_MIDDLES and name in LARGE)
]


# the interpreter's NumPy warns of what `where` leaves out
pytestmark = [pytest.mark.usefixtures("small_tiles"), pytest.mark.filterwarnings("ignore::RuntimeWarning")]


def launches(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the kernels that ran since."""
    from everypool.backends.triton import launch

    ran: list[str] = []
    for name in ("fold", "backward", "slope"):
        body = getattr(launch, name)
        monkeypatch.setattr(launch, name, lambda *a, name=name, body=body: (ran.append(name), body(*a))[1])
    return ran


def close(found: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype, times: int = 64) -> None:
    """Within 64 eps in float32, 1 ulp of a narrower type; `times` for gradients, which add up several such."""
    unit = torch.finfo(dtype).eps
    limit = (times * unit if dtype == torch.float32 else max(1, times // 64) * unit) * expected.abs().double().clamp(min=1)
    assert found.isfinite().all()
    assert ((found.double() - expected.double()).abs() <= limit).all()


@here
@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
@pytest.mark.parametrize(("reducer", "dtype", "windows"), PAIRS)
def test_equals_the_definition(
    reducer: str, dtype: torch.dtype, windows: str, masked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    over, shape = WINDOWS[windows]
    if reducer.startswith("median"):
        shape = (1, 1, *shape[2:])
    x = torch.randn(shape, device=DEVICE).to(dtype)
    mask = (torch.rand(shape[0], 1, *shape[2:], device=DEVICE) > 0.4) if masked else None
    if reducer in REFUSED or (reducer == "center:even=mean" and masked):
        with forced("triton"), pytest.raises(NotImplementedError, match=r"no fused kernel|only the definition"):
            pool(x, reducer, over, mask=mask)
        return
    results = {}
    ran = launches(monkeypatch)
    for name in ("eager", "triton"):
        own = x.double() if name == "eager" else x.clone()
        own.requires_grad_()
        with forced(name):
            y = pool(own, reducer, over, mask=mask)
            parts = y if isinstance(y, tuple) else (y,)
            assert ran == ([] if name == "eager" else ["fold"] * len(ran))
            torch.manual_seed(1)
            loss = sum((part * torch.randn(part.shape).to(part)).sum() for part in parts)
            (gradient,) = torch.autograd.grad(loss, own)
        results[name] = (*(part.detach() for part in parts), gradient)
    assert "fold" in ran
    assert "backward" in ran
    *values, gradient = results["triton"]
    *expected, slope = results["eager"]
    for found, right in zip(values, expected, strict=True):
        close(found, right, dtype)
    close(gradient, slope, dtype, 256)


@here
def test_a_learned_power_and_a_channels_last_map(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = GlobalGeMPool(learnable=True, channels=3).to(DEVICE)
    x = torch.rand(2, 3, 5, 6, device=DEVICE).contiguous(memory_format=torch.channels_last)
    slopes = []
    ran = launches(monkeypatch)
    for name in ("eager", "triton"):
        layer.zero_grad()
        with forced(name):
            (layer(x) ** 2).sum().backward()
        slopes.append(layer.p.grad.clone())
    assert "slope" in ran
    torch.testing.assert_close(slopes[1], slopes[0], rtol=1e-4, atol=1e-6)
    with forced("triton"):
        assert pool(x, "soft", Sliding(2)).is_contiguous(memory_format=torch.channels_last)


@here
def test_parameters_that_follow_each_other() -> None:
    """A launch kept from a call with one parameter is not that of a call with another of another shape or type."""
    x, soft = torch.randn(2, 4, 5, 6, device=DEVICE), operations()["soft"].reducer
    assert soft is not None
    beta = torch.tensor([1.0, 9.0, 2.0, 9.0, 3.0, 9.0, 4.0, 9.0], device=DEVICE)
    for windows in (Global(), Scan(-2), Boxes(torch.tensor([[0.0, 0.0, 0.0, 4.0, 4.0]], device=DEVICE), 2)):
        for values in (beta[0], beta[:1], beta[:4], beta[::2], beta[:4].double(), beta[:4].half()):
            found = {}
            for name in ("eager", "triton"):
                own = (values.double() if name == "eager" else values.clone()).detach().requires_grad_()
                strided = own if own.dim() == 0 else torch.stack([own, own + 1], 1)[:, 0]
                with forced(name):
                    y = pool(x.double() if name == "eager" else x, soft(strided), windows)
                    (slope,) = torch.autograd.grad((y * y).sum(), own)
                found[name] = y.double(), slope.double()
            torch.testing.assert_close(
                found["triton"], found["eager"], rtol=2e-3 if values.dtype == torch.half else 1e-5, atol=1e-5
            )


@here
def test_samples_of_different_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    x, sizes = torch.randn(3, 2, 6, 7, device=DEVICE), torch.tensor([[6, 7], [3, 4], [1, 2]], device=DEVICE)
    ran = launches(monkeypatch)
    for windows in (Sliding(3, 2, 1), Adaptive(2), Global()):
        with forced("triton"):
            found = pool(x, "logsumexp", windows, sizes=sizes)
        with forced("eager"):
            close(found, pool(x.double(), "logsumexp", windows, sizes=sizes), torch.float32)
    assert ran == ["fold"] * 3


@here
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch's compiler, of any Function
def test_compiles_whole_at_the_first_call(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(2, 3, 7, 9, device=DEVICE, requires_grad=True)
    ran = launches(monkeypatch)
    with forced("triton"):
        call = torch.compile(lambda x: pool(x, "soft", Sliding(3, 2, 1)), fullgraph=True, dynamic=True, backend="aot_eager")
        y = call(x)
        (gradient,) = torch.autograd.grad(y.sum(), x)
    with forced("eager"):
        expected = pool(x.double(), "soft", Sliding(3, 2, 1))
        (slope,) = torch.autograd.grad(expected.sum(), x)
    assert ran == ["fold", "backward"]
    close(y, expected, torch.float32)
    close(gradient, slope, torch.float32, 256)


@here
def test_what_it_does_not_do_is_refused_by_name() -> None:
    with forced("triton"):
        with pytest.raises(NotImplementedError, match="float64 has no fused kernel"):
            pool(torch.randn(1, 1, 4, dtype=torch.float64, device=DEVICE), "max", Sliding(2))
        with pytest.raises(NotImplementedError, match="no fused kernel"):
            pool(torch.randn(1, 1, 40, 40, device=DEVICE), "median", Global())


def test_the_cpu_never_imports_triton() -> None:
    program = """
import sys, torch, everypool
everypool.SoftPool2d(2)(torch.randn(1, 1, 4, 4, requires_grad=True)).sum().backward()
sys.exit("triton" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", program], timeout=300).returncode == 0
