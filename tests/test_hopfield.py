"""Hopfield association, pooling and lookup equal the published formula; folded equals plain; samples are alone."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from everypool import Hopfield, HopfieldLayer, HopfieldPooling


def shuffled(module: nn.Module) -> Any:
    generator = torch.Generator().manual_seed(3)
    for parameter in module.parameters():
        with torch.no_grad():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.4)
    return module.double()


def norm(x: np.ndarray, state: dict[str, Any], name: str) -> np.ndarray:
    if f"{name}.weight" not in state:
        return x
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    return x * state[f"{name}.weight"] + state[f"{name}.bias"]


def softmax(x: np.ndarray, hidden: np.ndarray) -> np.ndarray:
    if hidden.all():
        return np.zeros_like(x)
    e = np.where(hidden, 0, np.exp(x - x[~hidden].max()))
    return e / e.sum()


def published(
    module: Hopfield, stored: Tensor, state: Tensor, projection: Tensor, steps: int, beta: Any = None, hidden: Any = None
) -> np.ndarray:
    """One sample, one head and one state at a time; `hidden` is (B, heads, L, S)."""
    s = {key: value.numpy() for key, value in module.state_dict().items()}
    heads, size = module.association_core.num_heads, module.hidden_size or 0
    if "association_core.in_proj_weight" in s:
        rows = np.cumsum([heads * size, heads * size])
        weights = np.split(s["association_core.in_proj_weight"], rows)
    else:
        weights = [s[f"association_core.{n}_proj_weight"] for n in "qkv"]
    biases = [np.zeros(len(w)) for w in weights]
    if "association_core.in_proj_bias" in s:
        biases = np.split(s["association_core.in_proj_bias"], np.cumsum([len(w) for w in weights])[:2])
    normed = [
        norm(x.numpy(), s, f"norm_{name}")
        for x, name in ((state, "state_pattern"), (stored, "stored_pattern"), (projection, "pattern_projection"))
    ]
    q, k, v = (x @ w.T + b for x, w, b in zip(normed, weights, biases, strict=True))
    beta = np.broadcast_to(1 / math.sqrt(size) if beta is None else beta, (heads,))
    out, length = np.zeros((*q.shape[:2], v.shape[2])), module.pattern_size or 0
    for n, head, row in np.ndindex(len(q), heads, q.shape[1]):
        own = slice(head * size, (head + 1) * size)
        values = slice(head * length, (head + 1) * length)
        cover = np.zeros(k.shape[1], bool) if hidden is None else hidden[n, head, row]
        query, keys = q[n, row, own], k[n][:, own]
        xi = softmax(beta[head] * keys @ query, cover)
        for _ in range(steps):
            xi = softmax(beta[head] * keys @ (xi @ keys), cover)
        out[n, row, values] = xi @ v[n][:, values]
    y = out @ s["association_core.out_proj.weight"].T
    return y + s.get("association_core.out_proj.bias", 0)


SETTINGS: list[dict[str, Any]] = [
    {},
    {"num_heads": 3},
    {"num_heads": 2, "update_steps_max": 3, "update_steps_eps": 1e-30},
    {"num_heads": 2, "hidden_size": 5, "output_size": 7},
    {"num_heads": 2, "hidden_size": 3, "pattern_size": 4, "update_steps_max": 1},
    {"num_heads": 3, "scaling": torch.tensor([0.1, 1.0, 4.0])},
    {"scaling": 2.0, "input_bias": False, "update_steps_max": 1},
    {"normalize_stored_pattern": False, "num_heads": 2, "update_steps_max": 2, "update_steps_eps": 1e-30},
    {"normalize_pattern_projection": False, "normalize_state_pattern": False, "num_heads": 2},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_association(settings: dict[str, Any]) -> None:
    module = shuffled(Hopfield(6, **settings))
    stored, state, projection = (torch.randn(2, n, 6, dtype=torch.float64) for n in (5, 4, 5))
    beta = settings.get("scaling")
    beta = beta.numpy() if isinstance(beta, Tensor) else beta
    steps = settings.get("update_steps_max", 0)
    expected = published(module, stored, state, projection, steps, beta)
    np.testing.assert_allclose(module((stored, state, projection)).detach().numpy(), expected, rtol=1e-8, atol=1e-10)
    own = published(module, stored, stored, stored, steps, beta)
    np.testing.assert_allclose(module(stored).detach().numpy(), own, rtol=1e-8, atol=1e-10)


def test_patterns_of_other_lengths() -> None:
    module = shuffled(Hopfield(6, num_heads=2, stored_pattern_size=4, pattern_projection_size=3))
    stored, state, projection = (torch.randn(2, n, d, dtype=torch.float64) for n, d in ((5, 4), (2, 6), (5, 3)))
    expected = published(module, stored, state, projection, 0)
    np.testing.assert_allclose(module((stored, state, projection)).detach().numpy(), expected, rtol=1e-9, atol=1e-11)
    assert {"association_core.q_proj_weight", "association_core.k_proj_weight"} <= set(module.state_dict())


def test_the_published_names() -> None:
    """The state dict of hflayers loads as it is."""
    core = {"in_proj_weight": (36, 12), "in_proj_bias": (36,), "out_proj.weight": (12, 12), "out_proj.bias": (12,)}
    expected = {f"hopfield.association_core.{key}": shape for key, shape in core.items()}
    for name in ("stored_pattern", "state_pattern", "pattern_projection"):
        expected |= {f"hopfield.norm_{name}.weight": (12,), f"hopfield.norm_{name}.bias": (12,)}
    for module, own in (
        (HopfieldPooling(12, quantity=2), "pooling_weights"),
        (HopfieldLayer(12, quantity=2), "lookup_weights"),
    ):
        state = {key: tuple(value.shape) for key, value in module.state_dict().items()}
        assert state == expected | {own: (1, 2, 12)}
    apart = HopfieldLayer(12, quantity=2, lookup_weights_as_separated=True)
    assert "target_weights" in apart.state_dict()


@pytest.mark.parametrize("bool_mask", [True, False])
def test_masks(bool_mask: bool) -> None:
    module = shuffled(Hopfield(6, num_heads=2, update_steps_max=1, update_steps_eps=1e-30))
    stored, state = torch.randn(3, 5, 6, dtype=torch.float64), torch.randn(3, 4, 6, dtype=torch.float64)
    padding = torch.tensor([[False] * 5, [False, False, True, False, True], [True] * 5])
    for shape in ((4, 5), (6, 4, 5)):
        association = torch.rand(shape) < 0.3
        hidden = (association.expand(6, 4, 5) if len(shape) == 2 else association).reshape(3, 2, 4, 5)
        hidden = hidden | padding[:, None, None]
        given: Tensor = association
        if not bool_mask:
            given = torch.zeros(shape, dtype=torch.float64).masked_fill(association, -math.inf)
        expected = published(module, stored, state, stored, 1, hidden=hidden.numpy())
        dirty = stored.masked_fill(padding.unsqueeze(-1), math.nan)
        y = module((dirty, state, dirty), padding, given)
        np.testing.assert_allclose(y.detach().numpy(), expected, rtol=1e-9, atol=1e-11)
    y.sum().backward()
    assert all(bool(p.grad.isfinite().all()) for p in module.parameters() if p.grad is not None)
    empty = module((stored, state, stored), torch.ones(3, 5, dtype=torch.bool))
    torch.testing.assert_close(empty, module.association_core.out_proj.bias.expand(3, 4, 6))


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_the_folded_form_is_the_plain_one(settings: dict[str, Any]) -> None:
    """Values, gradients of every parameter and of the input, with and without padding."""
    folded = shuffled(HopfieldPooling(6, quantity=2, form="folded", **settings))
    plain = HopfieldPooling(6, quantity=2, form="plain", **settings).double()
    plain.load_state_dict(folded.state_dict())
    x = torch.randn(3, 7, 6, dtype=torch.float64, requires_grad=True)
    padding = torch.arange(7) >= torch.tensor([[7], [3], [1]])
    for mask in (None, padding):
        first, second = folded(x, mask), plain(x, mask)
        torch.testing.assert_close(first, second, rtol=1e-9, atol=1e-10)
        np.testing.assert_allclose(
            folded.get_association_matrix(x, mask).numpy(), plain.get_association_matrix(x, mask).numpy(), rtol=1e-8, atol=1e-10
        )
        grads = [
            torch.autograd.grad(y.sin().sum(), [x, *module.parameters()]) for y, module in ((first, folded), (second, plain))
        ]
        for a, b in zip(*grads, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9)


def test_the_form_is_chosen_by_cost() -> None:
    """Few states for many patterns fold, many states for few patterns do not; counted by hand for the leading terms."""
    chosen = set()
    for size, heads, quantity, patterns in ((64, 8, 1, 49), (64, 8, 1, 196), (64, 8, 60, 4), (64, 32, 40, 10)):
        module = HopfieldPooling(size, num_heads=heads, quantity=quantity)
        cost = module.cost(2, patterns)
        assert module.chosen(2, patterns) == min(cost, key=lambda name: cost[name])
        chosen.add(module.chosen(2, patterns))
        # keys and values of all patterns, then scores and sums; against scores and sums over patterns for every head
        query = quantity * size * size
        assert cost["plain"] == query + 2 * (2 * patterns * size * size + 2 * patterns * quantity * size)
        after = quantity * size * size
        assert cost["folded"] == 2 * query + 2 * (2 * patterns * heads * quantity * size + after)
    assert chosen == {"folded", "plain"}
    cost = HopfieldPooling(512, num_heads=8).cost(1, 196)
    assert cost["plain"] / cost["folded"] > 40  # 43 by the leading terms


def test_pooling_is_an_association_of_learned_states() -> None:
    for form in ("auto", "plain", "folded"):
        module = shuffled(HopfieldPooling(6, num_heads=2, quantity=3, update_steps_max=1, form=form))
        x = torch.randn(2, 5, 6, dtype=torch.float64)
        state = module.pooling_weights.detach().expand(2, -1, -1)
        expected = published(module.hopfield, x, state, x, 1).reshape(2, 18)
        np.testing.assert_allclose(module(x).detach().numpy(), expected, rtol=1e-8, atol=1e-10)
    pair = torch.randn(2, 5, 6, dtype=torch.float64)
    two = shuffled(HopfieldPooling(6, num_heads=2))
    expected = published(two.hopfield, x, two.pooling_weights.detach().expand(2, -1, -1), pair, 0)
    np.testing.assert_allclose(two((x, pair)).detach().numpy(), expected.reshape(2, 6), rtol=1e-8, atol=1e-10)


def test_lookup() -> None:
    for apart in (False, True):
        module = shuffled(HopfieldLayer(6, num_heads=2, quantity=4, lookup_weights_as_separated=apart))
        x = torch.randn(2, 5, 6, dtype=torch.float64)
        stored = module.lookup_weights.detach().expand(2, -1, -1)
        target = stored if module.target_weights is None else module.target_weights.detach().expand(2, -1, -1)
        np.testing.assert_allclose(
            module(x).detach().numpy(), published(module.hopfield, stored, x, target, 0), rtol=1e-8, atol=1e-10
        )
        assert module.get_association_matrix(x).shape == (2, 2, 5, 4)


@pytest.mark.parametrize("form", ["folded", "plain"])
@pytest.mark.parametrize("steps", [0, 3, None])
def test_batch_mates_do_not_matter(steps: int | None, form: str) -> None:
    """Each sample stops by itself when it has converged, so its result is the one that it has alone."""
    module = shuffled(HopfieldPooling(6, num_heads=2, quantity=2, scaling=3.0, update_steps_max=steps, form=form))
    x = torch.randn(4, 7, 6, dtype=torch.float64)
    padding = torch.arange(7) >= torch.tensor([[7], [5], [2], [6]])
    together = module(x, padding)
    for i, number in enumerate((7, 5, 2, 6)):
        torch.testing.assert_close(together[i : i + 1], module(x[i : i + 1, :number]), rtol=1e-12, atol=1e-13)


def test_a_stored_pattern_is_retrieved() -> None:
    """The paper's claim: from half of a stored pattern, with large beta, association gives it back in one or two steps."""
    patterns = torch.randn(1, 40, 64).sign()
    module = Hopfield(
        64, scaling=8.0, update_steps_max=None, normalize_stored_pattern=False, normalize_state_pattern=False,
        normalize_pattern_projection=False, input_bias=False,
    )  # fmt: skip
    with torch.no_grad():
        module.association_core.in_proj_weight.copy_(torch.eye(64).repeat(3, 1))
        module.association_core.out_proj.weight.copy_(torch.eye(64))
    half = patterns.clone()
    half[..., 32:] = 0
    torch.testing.assert_close(module((patterns, half, patterns)), patterns, rtol=0, atol=1e-4)


def test_derivatives() -> None:
    for form in ("folded", "plain"):
        module = shuffled(HopfieldPooling(4, num_heads=2, update_steps_max=1, update_steps_eps=1e-30, form=form))
        x = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(module, (x,))
        assert torch.autograd.gradgradcheck(module, (x,), fast_mode=True)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("steps", [0, 2])
def test_onnx_and_compile_at_unseen_lengths(steps: int) -> None:
    import io

    pytest.importorskip("onnxscript")
    ort = pytest.importorskip("onnxruntime")
    module = shuffled(HopfieldPooling(8, num_heads=2, quantity=2, update_steps_max=steps)).float().eval()
    buffer = io.BytesIO()
    dynamic = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    torch.onnx.export(module, (torch.randn(2, 6, 8),), dynamo=True, dynamic_shapes=(dynamic,), verbose=False).save(buffer)
    session = ort.InferenceSession(buffer.getvalue())
    compiled = torch.compile(module, fullgraph=True, dynamic=True, backend="aot_eager")
    for batch, patterns in ((1, 3), (3, 19), (2, 50)):
        x = torch.randn(batch, patterns, 8)
        (y,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        np.testing.assert_allclose(y, module(x).detach().numpy(), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(compiled(x), module(x), rtol=1e-4, atol=1e-5)


def test_half_precision_keeps_its_scores() -> None:
    """Scores beyond the range of float16 do not overflow the softmax; the result stays close to that in float64."""
    module = shuffled(HopfieldPooling(16, num_heads=2, scaling=4.0))
    x = torch.randn(2, 9, 16, dtype=torch.float64)
    expected = module(x)
    y = module.bfloat16()(x.bfloat16())
    assert bool(y.isfinite().all())
    torch.testing.assert_close(y.double(), expected, rtol=0.1, atol=0.15)


def test_bad_input() -> None:
    for made, error, name in (
        (lambda: Hopfield(0), ValueError, "input_size"),
        (lambda: Hopfield(6.0), TypeError, "input_size"),
        (lambda: Hopfield(6, num_heads=4), ValueError, "num_heads"),
        (lambda: Hopfield(6, num_heads=2, scaling=torch.ones(3)), ValueError, "scaling"),
        (lambda: Hopfield(6, scaling=math.nan), ValueError, "scaling"),
        (lambda: Hopfield(6, update_steps_max=-2), ValueError, "update_steps_max"),
        (lambda: Hopfield(6, update_steps_eps=-1.0), ValueError, "update_steps_eps"),
        (lambda: Hopfield(6, dropout=1.5), ValueError, "dropout"),
        (lambda: HopfieldPooling(6, quantity=0), ValueError, "quantity"),
        (lambda: HopfieldPooling(6, form="fold"), ValueError, "form"),
        (lambda: Hopfield(6)(torch.ones(2, 3, 5)), ValueError, "input"),
        (lambda: Hopfield(6)(torch.ones(3, 6)), ValueError, "input"),
        (lambda: Hopfield(6)(torch.ones(2, 3, 6).int()), TypeError, "input"),
        (lambda: Hopfield(6)((torch.ones(2, 3, 6),) * 2), TypeError, "input"),
        (lambda: Hopfield(6)((torch.ones(2, 3, 6), torch.ones(3, 3, 6), torch.ones(2, 3, 6))), ValueError, "input"),
        (lambda: HopfieldPooling(6)((torch.ones(2, 3, 6),) * 3), TypeError, "input"),
        (lambda: Hopfield(6)(torch.ones(2, 3, 6), torch.ones(2, 4).bool()), ValueError, "stored_pattern_padding_mask"),
        (lambda: Hopfield(6)(torch.ones(2, 3, 6), torch.ones(2, 3)), TypeError, "stored_pattern_padding_mask"),
        (lambda: Hopfield(6)(torch.ones(2, 3, 6), None, torch.ones(3, 4).bool()), ValueError, "association_mask"),
        (lambda: Hopfield(6)(torch.ones(2, 3, 6), None, torch.ones(3, 3).int()), TypeError, "association_mask"),
    ):
        with pytest.raises(error, match=f"^`{name}` must be .+, got "):
            made()
