"""Hopfield pooling by the fused kernel, in Triton's interpreter where there is no GPU: against the definition."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from everypool import HopfieldPooling
from everypool.backends import triton
from everypool.backends.choose import forced

here = pytest.mark.skipif(not triton.installed(), reason="Triton is not installed")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BOTH = ["retrieve", "backward"]

# the interpreter's NumPy warns of what `where` leaves out
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


def launches(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the kernels that ran since."""
    from everypool.backends.triton import retrieval_kernels

    ran: list[str] = []
    for name in BOTH:
        body = getattr(retrieval_kernels, name)
        monkeypatch.setattr(retrieval_kernels, name, lambda *a, name=name, body=body: (ran.append(name), body(*a))[1])
    return ran


EPS = torch.finfo(torch.float32).eps


def close(found: Tensor, expected: Tensor, dtype: torch.dtype, times: int = 64) -> None:
    """Within 64 eps in float32, 1 ulp of a narrower type; `times` for gradients, which add up several such."""
    unit = torch.finfo(dtype).eps
    limit = (times * unit if dtype == torch.float32 else max(1, times // 64) * unit) * expected.abs().double().clamp(min=1)
    assert found.isfinite().all()
    assert ((found.double() - expected.double()).abs() <= limit).all()


def pooling(size: int = 21, **settings: Any) -> HopfieldPooling:
    """One with scores that differ, and none of its parameters at 0 or 1."""
    module = HopfieldPooling(size, form="folded", **settings).to(DEVICE)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape) * (0.5 if parameter.dim() < 2 else 2 / parameter.shape[-1] ** 0.5))
    return module


def loss(y: Tensor) -> Tensor:
    torch.manual_seed(1)
    return (y * torch.randn(y.shape).to(y)).sum()


def compared(
    module: HopfieldPooling, x: Tensor, call: Callable[[HopfieldPooling, Tensor], Tensor] = lambda module, x: module(x)
) -> None:
    """Values and all gradients: the kernel's are those of the definition in float64."""
    exact = copy.deepcopy(module).double()
    own, wide = x.detach().clone().requires_grad_(x.requires_grad), x.detach().double().requires_grad_(x.requires_grad)
    with forced("triton"):
        y = call(module, own)
    with forced("eager"):
        expected = call(exact, wide)
    close(y, expected, y.dtype)
    module.zero_grad()
    loss(y).backward()
    loss(expected).backward()
    if x.requires_grad:
        close(own.grad, wide.grad, x.dtype, 256)
    for (name, found), right in zip(module.named_parameters(), exact.parameters(), strict=True):
        assert (found.grad is None) == (right.grad is None), name
        if found.grad is not None:
            close(found.grad, right.grad, torch.float32, 256)


def masks(kind: str, heads: int, quantity: int, samples: int, count: int) -> dict[str, Tensor]:
    """Of each kind one under which nothing is left for some sample or state."""
    if kind == "counts":
        mask = torch.rand(samples, count, device=DEVICE) > 0.4
        mask[-1] = False
        return {"mask": mask}
    if kind == "none":
        return {}
    pairs = torch.rand(samples * heads, quantity, count, device=DEVICE) > 0.5
    pairs[0, -1] = True
    if kind == "bool pairs":
        return {"association_mask": pairs}
    return {"association_mask": torch.randn(pairs.shape, device=DEVICE).masked_fill(pairs, float("-inf"))}


@here
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["none", "counts", "bool pairs", "added pairs"])
@pytest.mark.parametrize("quantity", [1, 2])
@pytest.mark.parametrize("heads", [1, 3])
def test_equals_the_definition(
    heads: int, quantity: int, kind: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = pooling(num_heads=heads, quantity=quantity)
    x = torch.randn(2, 19, 21, device=DEVICE).to(dtype).requires_grad_()
    ran = launches(monkeypatch)
    given = masks(kind, heads, quantity, 2, 19)
    compared(module, x, lambda module, x: module(x, **given))
    assert ran == BOTH


@here
@pytest.mark.parametrize(
    ("size", "count", "settings"),
    [
        (32, 300, {"num_heads": 2, "hidden_size": 3}),  # vectors of four; several tiles for each of several programs
        (32, 5, {"quantity": 3, "input_bias": False, "scaling": 0.5}),  # a number of states that is no power of two
        (40, 9, {"num_heads": 5, "hidden_size": 4, "pattern_size": 3, "output_size": 6}),  # more states than fit at once
        (300, 5, {}),  # several pieces of each pattern
        (12, 20, {"normalize_stored_pattern": False, "normalize_pattern_projection": False, "num_heads": 2}),
        (12, 20, {"normalize_stored_pattern_affine": False, "normalize_state_pattern": False, "num_heads": 2}),
        (12, 20, {"num_heads": 3, "scaling": torch.tensor([0.1, 1.0, 4.0])}),
        (12, 20, {"num_heads": 2, "quantity": 5, "update_steps_max": 1}),
        (12, 20, {"num_heads": 2, "update_steps_max": [0, 1]}),
    ],
    ids=str,
)
def test_sizes_and_settings(size: int, count: int, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    from everypool.backends.triton import retrieval_kernels

    monkeypatch.setattr(retrieval_kernels, "PROGRAMS", 6)
    ran = launches(monkeypatch)
    settings = dict(settings)
    if isinstance(settings.get("scaling"), Tensor):
        settings["scaling"] = torch.nn.Parameter(settings["scaling"].clone())
    module = pooling(size, **settings)
    compared(module, torch.randn(2, count, size, device=DEVICE, requires_grad=True))
    steps = module.hopfield.iteration().most
    assert ran == ["retrieve"] * (1 + steps) + ["backward"] * (1 + steps)


@here
@pytest.mark.parametrize("kind", ["none", "bool pairs", "added pairs"])
def test_where_one_association_takes_almost_all(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores of 100 are far off in float32: values and gradients are about as near as those of the definition in float32."""
    ran = launches(monkeypatch)
    ratios: list[list[float]] = [[], [], []]
    for seed in range(8):
        torch.manual_seed(seed)
        module = pooling(quantity=2, scaling=40.0)
        x = torch.randn(3, 20, 21, device=DEVICE) + 30
        pairs = torch.rand(2, 20, device=DEVICE) > 0.7
        masks = {"none": None, "bool pairs": pairs, "added pairs": torch.zeros(2, 20, device=DEVICE).masked_fill(pairs, -1e4)}
        results = []
        for name, dtype in (("eager", torch.float64), ("eager", torch.float32), ("triton", torch.float32)):
            own, leaf = copy.deepcopy(module).to(dtype), x.to(dtype).requires_grad_()
            with forced(name):
                y = own(leaf, association_mask=masks[kind], sizes=[20, 3, 1])
            results.append([y.detach(), *torch.autograd.grad(loss(y), [leaf, own.pooling_weights])])
        for row, right, plain, found in zip(ratios, *results, strict=True):
            errors = [float(((y - right) / right.abs().clamp(min=1)).abs().max()) for y in (found, plain)]
            row.append(math.log(max(errors[0], EPS) / max(errors[1], EPS)))
    assert all(math.exp(sum(row) / len(row)) < 3 for row in ratios)  # geometric means
    assert ran == BOTH * 8


@here
def test_the_folded_form_by_the_kernel_is_the_plain_one(monkeypatch: pytest.MonkeyPatch) -> None:
    ran = launches(monkeypatch)
    folded = pooling(num_heads=3, quantity=2)
    plain = HopfieldPooling(21, form="plain", num_heads=3, quantity=2).to(DEVICE)
    plain.load_state_dict(folded.state_dict())
    x = torch.randn(2, 9, 21, device=DEVICE)
    with forced("triton"):
        found = folded(x)
        assert ran == ["retrieve"]
        torch.testing.assert_close(found, plain(x), rtol=1e-5, atol=1e-5)
    assert ran == ["retrieve"]


@here
def test_only_what_learns_has_a_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    ran = launches(monkeypatch)
    for heads in (1, 12):
        module = pooling(12, num_heads=heads)
        x = torch.randn(1, 9, 12, device=DEVICE)
        compared(module, x)
        module.requires_grad_(False)
        with forced("triton"):
            assert not module(x).requires_grad
        compared(module, x.requires_grad_())
    assert ran == ["retrieve", "backward", "retrieve", *BOTH] * 2


@here
def test_any_strides(monkeypatch: pytest.MonkeyPatch) -> None:
    """Maps with channels first, sequences first, and one sample for all."""
    ran = launches(monkeypatch)
    compared(pooling(12, channels_first=True), torch.randn(2, 12, 5, 4, device=DEVICE, requires_grad=True))
    last = torch.randn(2, 16, 5, 4, device=DEVICE).contiguous(memory_format=torch.channels_last)
    compared(pooling(16, channels_first=True), last.requires_grad_())
    compared(pooling(12, batch_first=False), torch.randn(7, 2, 12, device=DEVICE, requires_grad=True))
    one = torch.randn(1, 7, 12, device=DEVICE, requires_grad=True)
    compared(pooling(12), one, lambda module, x: module(x.expand(3, -1, -1)))
    assert ran == BOTH * 4


@here
def test_places_that_need_64_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    from everypool.backends.triton import retrieval_kernels

    monkeypatch.setattr(retrieval_kernels, "LIMIT", 1)
    ran = launches(monkeypatch)
    compared(pooling(12, num_heads=3), torch.randn(1, 12, 5, device=DEVICE).transpose(1, 2).requires_grad_())
    assert ran == BOTH


@here
def test_half_precision_throughout(monkeypatch: pytest.MonkeyPatch) -> None:
    """A module in bfloat16 and one under autocast: what the definition gives in the same way."""
    ran = launches(monkeypatch)
    module = pooling(16, num_heads=2)
    x = torch.randn(2, 9, 16, device=DEVICE)
    results = {}
    for name in ("eager", "triton"):
        with forced(name):
            half = copy.deepcopy(module).bfloat16()(x.bfloat16())
            with torch.autocast(DEVICE, torch.bfloat16):
                results[name] = half, module(x)
    assert ran == ["retrieve"] * 2
    for found, right in zip(results["triton"], results["eager"], strict=True):
        assert found.dtype == right.dtype == torch.bfloat16
        torch.testing.assert_close(found, right, rtol=2**-6, atol=2**-6)


@here
def test_gradients_of_gradients() -> None:
    module = pooling(6, num_heads=2)
    x, mask = torch.randn(2, 5, 6, device=DEVICE), torch.rand(2, 5, device=DEVICE) > 0.3
    slopes = []
    for name, m in (("triton", module), ("eager", copy.deepcopy(module).double())):
        own = x.to(m.pooling_weights.dtype).requires_grad_()
        with forced(name):
            (slope,) = torch.autograd.grad(m(own, mask=mask).square().sum(), own, create_graph=True)
            slopes.append(torch.autograd.grad(slope.square().sum(), (own, m.pooling_weights)))
    for found, right in zip(*slopes, strict=True):
        torch.testing.assert_close(found.double(), right, rtol=1e-3, atol=1e-3)


@here
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch's compiler, of any Function
def test_compiles_whole_at_the_first_call(monkeypatch: pytest.MonkeyPatch) -> None:
    module = pooling(12, num_heads=2, update_steps_max=1)
    x, mask = torch.randn(2, 9, 12, device=DEVICE, requires_grad=True), torch.rand(2, 9, device=DEVICE) > 0.3
    ran = launches(monkeypatch)
    compiled = torch.compile(module, fullgraph=True, dynamic=True, backend="aot_eager")
    compared(module, x, lambda m, x: (compiled if m is module else m)(x, mask=mask))
    assert ran == ["retrieve", "retrieve", "backward", "backward"]


@here
def test_the_same_bits_each_time() -> None:
    module = pooling(num_heads=3)
    x = torch.randn(1, 37, 21, device=DEVICE, requires_grad=True)
    results = []
    for _ in range(2):
        with forced("triton"):
            y = module(x)
            results.append((y, *torch.autograd.grad(loss(y), (x, *module.parameters()))))
    assert all(map(torch.equal, *results))


REFUSED: dict[str, tuple[dict[str, Any], Callable[[HopfieldPooling, Tensor], Tensor]]] = {
    "more than one update": ({"update_steps_max": 2}, lambda m, x: m(x)),
    "dropout": ({"dropout": 0.5}, lambda m, x: m(x)),
    "a pattern projection other": ({}, lambda m, x: m((x, x + 1))),
    "two normalisations that differ": ({"normalize_pattern_projection": False}, lambda m, x: m(x)),
    "two normalisations that": ({"normalize_pattern_projection_eps": 1e-3}, lambda m, x: m(x)),
    "float64 has no fused kernel": ({}, lambda m, x: m.double()(x.double())),
    "more than 4096": ({"input_size": 4097}, lambda m, x: m(torch.ones(1, 1, 4097, device=DEVICE))),
    "an association mask that is learned": (
        {},
        lambda m, x: m(x, association_mask=torch.zeros(1, 4, device=DEVICE, requires_grad=True)),
    ),
}


@here
@pytest.mark.parametrize("why", REFUSED)
def test_what_it_does_not_do_is_refused_by_name(why: str) -> None:
    settings, call = REFUSED[why]
    module = HopfieldPooling(**{"input_size": 6, "form": "folded", "quantity": 1} | settings).to(DEVICE)
    with forced("triton"), pytest.raises(NotImplementedError, match=why):
        call(module, torch.randn(2, 4, 6, device=DEVICE))


@here
def test_what_is_not_refused() -> None:
    """Dropout outside of training, samples without patterns to speak of, and the plain form."""
    x = torch.randn(2, 4, 6, device=DEVICE)
    module = HopfieldPooling(6, form="folded", dropout=0.5).to(DEVICE).eval()
    with forced("triton"):
        found = module(x)
        assert module(x[:0]).shape == (0, 6)
        assert torch.func.vmap(module)(x.unsqueeze(0)).shape == (1, 2, 6)
    with forced("eager"):
        close(found, module.double()(x.double()), torch.float32)
