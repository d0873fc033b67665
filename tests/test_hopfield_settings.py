"""The rarer settings of the Hopfield modules, each against the published formula written out for one sample and one head."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from everypool import Hopfield, HopfieldLayer, HopfieldPooling


def filled(module: nn.Module) -> Any:
    """Float64, and no parameter at its initial value."""
    module.double()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.5)
    return module.eval()


def normal(x: Tensor, state: dict[str, Tensor], name: str) -> Tensor:
    weight, bias = state.get(f"{name}.weight"), state.get(f"{name}.bias")
    return x if weight is None else F.layer_norm(x, x.shape[-1:], weight, bias)


def alone(
    module: Hopfield,
    stored: Tensor,
    state: Tensor,
    projection: Tensor,
    *,
    heads: int,
    size: int,
    steps: int = 0,
    beta: Any = None,
    static: str = "",
    connected: bool = False,
    space: bool = False,
    bias_pattern: bool = False,
    zero: bool = False,
) -> Tensor:
    """The result for one sample (L, out), from the tensors of the published state dict, head after head."""
    s = module.state_dict()
    core = "association_core"
    if f"{core}.in_proj_weight" in s:
        blocks = list(s[f"{core}.in_proj_weight"].split(heads * size))
        weights = {part: blocks.pop(0) for part in "qkv" if part not in static}
    else:
        weights = {part: s[f"{core}.{part}_proj_weight"] for part in "qkv" if part not in static}
    biases, start = {}, 0
    for part in "qkv":
        if part in weights:
            rows = weights[part].shape[0]
            biases[part] = s[f"{core}.in_proj_bias"][start : start + rows] if f"{core}.in_proj_bias" in s else torch.zeros(rows)
            start += rows

    def project(x: Tensor, part: str, head: int) -> Tensor:
        if part not in weights:
            return x
        every = x @ weights[part].T + biases[part]
        return every.chunk(heads, -1)[head]

    stored, state = normal(stored, s, "norm_stored_pattern"), normal(state, s, "norm_state_pattern")
    projection = normal(projection, s, "norm_pattern_projection")
    betas = [1 / math.sqrt(size)] * heads if beta is None else beta
    recalled = []
    for head in range(heads):
        q, k = project(state, "q", head), project(stored, "k", head)
        given = projection @ weights["k"].T + biases["k"] if connected else projection
        v = project(given, "v", head)
        if connected and "v" in static:
            v = given.chunk(heads, -1)[head]
        if space:
            weight, bias = s.get(f"{core}.p_norm_weight"), s.get(f"{core}.p_norm_bias")
            q, k = F.layer_norm(q, (size,), weight, bias), F.layer_norm(k, (size,), weight, bias)
        if bias_pattern:
            k = torch.cat([k, s[f"{core}.bias_k"].reshape(1, -1).chunk(heads, -1)[head]])
            v = torch.cat([v, s[f"{core}.bias_v"].reshape(1, -1).chunk(heads, -1)[head]])
        if zero:
            k, v = torch.cat([k, torch.zeros(1, k.shape[1])]), torch.cat([v, torch.zeros(1, v.shape[1])])
        xi = (betas[head] * q @ k.T).softmax(-1)
        for _ in range(steps):
            xi = (betas[head] * (xi @ k) @ k.T).softmax(-1)
        recalled.append(xi @ v)
    y = torch.cat(recalled, -1)
    return (
        y if f"{core}.out_proj.weight" not in s else F.linear(y, s[f"{core}.out_proj.weight"], s.get(f"{core}.out_proj.bias"))
    )


STATIC = {"k": "stored_pattern_as_static", "q": "state_pattern_as_static", "v": "pattern_projection_as_static"}
NORMS = {"k": "normalize_stored_pattern", "q": "normalize_state_pattern", "v": "normalize_pattern_projection"}


@pytest.mark.parametrize("static", ["k", "q", "v", "kq", "kv", "qv"])
@pytest.mark.parametrize("steps", [0, 2])
def test_static_patterns(static: str, steps: int) -> None:
    """Static patterns serve every head as they are; a sample stays alone with several heads."""
    settings = {STATIC[part]: True for part in static} | {NORMS[part]: False for part in static}
    module = filled(Hopfield(6, num_heads=3, update_steps_max=steps, update_steps_eps=1e-30, **settings))
    widths = [2 if part in static else 6 for part in "kqv"]
    stored, state, projection = (torch.randn(3, n, d, dtype=torch.float64) for n, d in zip((5, 4, 5), widths, strict=True))
    y = module((stored, state, projection))
    for i in range(3):
        expected = alone(module, stored[i], state[i], projection[i], heads=3, size=2, steps=steps, static=static)
        torch.testing.assert_close(y[i], expected)


def test_nothing_is_projected() -> None:
    """The bare association: no parameter, beta 1."""
    settings = {name: True for name in STATIC.values()} | {name: False for name in NORMS.values()}
    module = Hopfield(**settings, disable_out_projection=True)
    assert not list(module.parameters())
    stored, state, projection = torch.randn(2, 5, 3), torch.randn(2, 4, 3), torch.randn(2, 5, 7)
    expected = (state @ stored.transpose(1, 2)).softmax(-1) @ projection
    torch.testing.assert_close(module((stored, state, projection)), expected)


@pytest.mark.parametrize(
    ("settings", "reference"),
    [
        ({"pattern_projection_as_connected": True}, {"connected": True}),
        (
            {
                "pattern_projection_as_connected": True,
                "pattern_projection_as_static": True,
                "normalize_pattern_projection": False,
            },
            {"connected": True, "static": "v"},
        ),
        ({"normalize_hopfield_space": True}, {"space": True}),
        ({"normalize_hopfield_space": True, "normalize_hopfield_space_affine": True}, {"space": True}),
        ({"concat_bias_pattern": True}, {"bias_pattern": True}),
        ({"add_zero_association": True}, {"zero": True}),
        ({"concat_bias_pattern": True, "add_zero_association": True}, {"bias_pattern": True, "zero": True}),
        ({"scaling": torch.tensor([0.0, 0.3, 9.0])}, {"beta": [0.0, 0.3, 9.0]}),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, dict) else "",
)
def test_settings(settings: dict[str, Any], reference: dict[str, Any]) -> None:
    module = filled(Hopfield(6, num_heads=3, update_steps_max=1, **settings))
    pooling = filled(HopfieldPooling(6, num_heads=3, update_steps_max=1, quantity=2, **settings))
    assert pooling.foldable == ("scaling" in settings)
    torch.set_default_dtype(torch.float64)
    try:
        stored, state, projection = (torch.randn(2, n, 6) for n in (5, 4, 5))
        y, pooled = module((stored, state, projection)), pooling((stored, projection))
        for i in range(2):
            expected = alone(module, stored[i], state[i], projection[i], heads=3, size=2, steps=1, **reference)
            torch.testing.assert_close(y[i], expected)
            weights = pooling.pooling_weights[0]
            own = alone(pooling.hopfield, stored[i], weights, projection[i], heads=3, size=2, steps=1, **reference)
            torch.testing.assert_close(pooled[i], own.flatten())
    finally:
        torch.set_default_dtype(torch.float32)


def test_sequence_first() -> None:
    """batch_first=False takes (S, N, D); pooling still gives one row per sample."""
    for cls, x in (
        (Hopfield, torch.randn(5, 2, 6)),
        (HopfieldPooling, torch.randn(5, 2, 6)),
        (HopfieldLayer, torch.randn(5, 2, 6)),
    ):
        more = {} if cls is Hopfield else {"quantity": 3}
        first, last = filled(cls(6, num_heads=2, **more)), filled(cls(6, num_heads=2, batch_first=False, **more))
        state = {key: v.transpose(0, 1) if v.dim() == 3 else v for key, v in first.state_dict().items()}
        last.load_state_dict(state)
        expected = first(x.double().transpose(0, 1))
        torch.testing.assert_close(last(x.double()), expected if cls is HopfieldPooling else expected.transpose(0, 1))


@pytest.mark.parametrize("form", ["folded", "plain"])
def test_dropout_acts_on_associations(form: str) -> None:
    """A dropped association takes its share of the biases with it, in either form."""
    module = filled(HopfieldPooling(6, num_heads=2, quantity=2, dropout=0.5, form=form))
    x = torch.randn(3, 7, 6, dtype=torch.float64)
    torch.testing.assert_close(module(x), filled(HopfieldPooling(6, num_heads=2, quantity=2, form="plain"))(x))
    module.train()
    torch.manual_seed(1)
    y = module(x)
    torch.manual_seed(1)
    kept = F.dropout(module.get_association_matrix(x), 0.5, True)
    recalled = kept @ module.get_projected_pattern_matrix(x)
    out = module.hopfield.association_core.out_proj
    torch.testing.assert_close(y, out(recalled.transpose(1, 2).flatten(2)).flatten(1))


@pytest.mark.parametrize("form", ["folded", "plain"])
def test_the_three_ways_to_say_what_counts(form: str) -> None:
    """Padding mask, mask and sizes, and a list of samples: each sample gives what it gives alone; NaN is not seen."""
    module = filled(HopfieldPooling(6, num_heads=2, update_steps_max=1, form=form))
    samples = [torch.randn(n, 6, dtype=torch.float64) for n in (4, 1, 7)]
    padded = torch.full((3, 7, 6), math.nan, dtype=torch.float64)
    for row, sample in zip(padded, samples, strict=True):
        row[: len(sample)] = sample
    counts = torch.arange(7) < torch.tensor([[4], [1], [7]])
    expected = torch.cat([module(sample[None]) for sample in samples])
    padded.requires_grad_()
    for y in (module(padded, ~counts), module(padded, mask=counts), module(padded, sizes=[4, 1, 7]), module(samples)):
        torch.testing.assert_close(y, expected)
    (grad,) = torch.autograd.grad(module(padded, mask=counts).sum(), padded)
    assert bool(grad.isfinite().all())
    assert not grad[~counts].any()
    matrix = module.get_association_matrix(samples)
    torch.testing.assert_close(matrix.sum(-1), torch.ones(3, 2, 1, dtype=torch.float64))
    assert not matrix.transpose(1, 3)[~counts].any()


@pytest.mark.parametrize("nd", [1, 2, 3])
def test_maps(nd: int) -> None:
    """channels_first: one pattern per place; sizes and masks as of any pooling."""
    module = filled(HopfieldPooling(6, num_heads=2, quantity=2, channels_first=True))
    tokens = HopfieldPooling(6, num_heads=2, quantity=2).double()
    tokens.load_state_dict(module.state_dict())
    shape = (4, 3, 5)[:nd]
    x = torch.randn(2, 6, *shape, dtype=torch.float64)
    torch.testing.assert_close(module(x), tokens(x.flatten(2).transpose(1, 2)))
    own = (2, 3, 1)[:nd]
    crop = x[(slice(1, 2), slice(None), *(slice(n) for n in own))]
    expected = torch.cat([module(x[:1]), module(crop)])
    torch.testing.assert_close(module(x, sizes=[list(shape), list(own)]), expected)
    torch.testing.assert_close(module([x[0], crop[0]]), expected)
    mask = torch.zeros(2, 1, *shape, dtype=torch.bool)
    mask[0] = True
    mask[(slice(1, 2), slice(None), *(slice(n) for n in own))] = True
    torch.testing.assert_close(module(x, mask=mask), expected)


def test_ragged_states() -> None:
    """States that are padding have no say in when the others stop, and give 0."""
    settings = {"num_heads": 2, "update_steps_max": None, "update_steps_eps": 1e-2, "scaling": 2.0}
    for module in (filled(Hopfield(6, **settings)), filled(HopfieldLayer(6, quantity=4, **settings))):
        x = torch.randn(2, 5, 6, dtype=torch.float64)
        y = module(x, sizes=[5, 2])
        torch.testing.assert_close(y[:1], module(x[:1]))
        torch.testing.assert_close(y[1:, :2], module(x[1:, :2]))
        assert not y[1, 2:].any()


def test_steps_of_each_head() -> None:
    """One number of updates per head; -1 is until converged."""
    x = torch.randn(2, 5, 6, dtype=torch.float64)
    both = filled(HopfieldPooling(6, num_heads=2, update_steps_max=torch.tensor([0, 2]), update_steps_eps=1e-30))
    matrix = both.get_association_matrix(x)
    for head, steps in enumerate((0, 2)):
        one = filled(HopfieldPooling(6, num_heads=2, update_steps_max=steps, update_steps_eps=1e-30))
        torch.testing.assert_close(matrix[:, head], one.get_association_matrix(x)[:, head])
    settled = filled(HopfieldPooling(6, num_heads=2, update_steps_max=None, update_steps_eps=1e-12, scaling=0.2))
    more = filled(HopfieldPooling(6, num_heads=2, update_steps_max=200, update_steps_eps=1e-12, scaling=0.2))
    xi = settled.get_association_matrix(x)
    k = settled.hopfield.association_core.key(settled.hopfield.norm_stored_pattern(x))
    torch.testing.assert_close(xi, (0.2 * (xi @ k) @ k.transpose(2, 3)).softmax(-1), rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(xi, more.get_association_matrix(x), rtol=1e-6, atol=1e-9)


def test_convergence_is_decided_sample_by_sample() -> None:
    """A sample that is still moving does not keep its neighbour moving, and one at rest does not stop it."""
    module = filled(HopfieldPooling(6, num_heads=2, update_steps_max=None, update_steps_eps=0.05, scaling=1.5))
    x = torch.randn(40, 6, 6, dtype=torch.float64)
    x[20:] = x[20:, :1] + 1e-9 * x[20:]  # all patterns alike: at rest from the first step
    together = module.get_association_matrix(x)
    for i in range(0, 40, 3):
        torch.testing.assert_close(together[i : i + 1], module.get_association_matrix(x[i : i + 1]), rtol=1e-9, atol=1e-11)


def test_every_parameter_has_a_gradient() -> None:
    """Nothing drops out of the graph in the folded form, whose softmax does not see the key's bias."""
    module = HopfieldPooling(6, num_heads=2, form="folded").double()
    module(torch.randn(2, 5, 6, dtype=torch.float64)).sum().backward()
    assert all(p.grad is not None for p in module.parameters())
    assert module.hopfield.norm_stored_pattern.bias.grad.abs().max() < 1e-12


def test_a_learned_beta() -> None:
    beta = nn.Parameter(torch.tensor([0.5, 2.0], dtype=torch.float64))
    for form in ("folded", "plain"):
        module = filled(HopfieldPooling(6, num_heads=2, scaling=beta, form=form))
        assert "hopfield.scaling" in dict(module.named_parameters())
        x = torch.randn(2, 5, 6, dtype=torch.float64)
        (grad,) = torch.autograd.grad(module(x).sin().sum(), module.hopfield.scaling)
        assert bool((grad != 0).all())


def test_copies() -> None:
    for module in (Hopfield(6, num_heads=2), HopfieldPooling(6, scaling=torch.tensor(2.0)), HopfieldLayer(6, quantity=3)):
        x = torch.randn(2, 5, 6)
        for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
            assert torch.equal(other(x), module(x))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types(dtype: torch.dtype) -> None:
    """Scores beyond float16's range, 65504, still tell patterns apart."""
    module = HopfieldPooling(8, scaling=1.0, normalize_stored_pattern=False, normalize_state_pattern=False)
    with torch.no_grad():
        core = module.hopfield.association_core
        core.in_proj_weight.copy_(torch.eye(8).repeat(3, 1))
        core.out_proj.weight.copy_(torch.eye(8))
        module.pooling_weights.fill_(300.0)
    x = torch.eye(8)[:4].reshape(1, 4, 8) * torch.tensor([300.0, 302.0, 304.0, 296.0]).reshape(1, 4, 1)
    module.to(dtype)
    expected = F.layer_norm(torch.eye(8)[2] * 304, (8,))
    for form in ("folded", "plain"):
        module.form = form
        y = module(x.to(dtype))
        assert y.dtype == dtype
        torch.testing.assert_close(y[0].float(), expected, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("form", ["folded", "plain"])
@pytest.mark.parametrize("steps", [0, 2])
def test_autocast_keeps_the_scores(form: str, steps: int) -> None:
    """Under autocast too the scores are float32: in float16 they are infinite here, and their softmax NaN."""
    module = filled(HopfieldPooling(64, num_heads=2, quantity=2, scaling=4.0, form=form, update_steps_max=steps,
                                    normalize_stored_pattern=False, normalize_state_pattern=False))  # fmt: skip
    with torch.no_grad():
        module.pooling_weights.mul_(20)
    x = torch.randn(2, 9, 64, dtype=torch.float64) * 20
    core = module.hopfield.association_core
    scores = 4.0 * core.query(module.pooling_weights) @ core.key(x).transpose(2, 3)
    assert scores.amax() > 65504
    expected = module(x)
    with torch.autocast("cpu", dtype=torch.float16):
        y = module.float()(x.float())
    assert y.dtype == torch.float16
    assert (y.double() - expected).norm() / expected.norm() < 0.01


def test_activation() -> None:
    plain = filled(HopfieldPooling(6))
    active = filled(HopfieldPooling(6, association_activation="tanh"))
    x = torch.randn(2, 5, 6, dtype=torch.float64)
    torch.testing.assert_close(active(x), plain(x).tanh())


def test_shapes_without_values() -> None:
    """On the meta device the shape is all there is: nothing looks at whether states have converged."""
    x = torch.zeros(2, 5, 6, device="meta")
    for form in ("folded", "plain"):
        for steps in (0, 2, None):
            module = HopfieldPooling(6, num_heads=2, quantity=3, update_steps_max=steps, form=form).to("meta")
            assert module(x).shape == (2, 18)


def test_empty_batch() -> None:
    x = torch.zeros(0, 5, 6)
    for form in ("folded", "plain"):
        assert HopfieldPooling(6, quantity=2, form=form, update_steps_max=2)(x).shape == (0, 12)
    assert Hopfield(6, update_steps_max=2)(x).shape == (0, 5, 6)
    assert HopfieldLayer(6)(x).shape == (0, 5, 6)


FLAGS = [
    f"normalize_{part}{affine}"
    for part in ("stored_pattern", "state_pattern", "pattern_projection", "hopfield_space")
    for affine in ("", "_affine")
]


def test_bad_settings() -> None:
    x = torch.ones(2, 3, 6)
    cases: list[tuple[Any, type[Exception], str]] = [
        (lambda: Hopfield(), ValueError, "input_size"),
        (lambda: Hopfield(6, dropout=True), TypeError, "dropout"),
        (lambda: Hopfield(6, batch_first=1), TypeError, "batch_first"),
        (lambda: Hopfield(6, association_activation="tan"), ValueError, "association_activation"),
        (lambda: Hopfield(6, pattern_projection_as_connected=True, pattern_size=2), ValueError, "pattern_size"),
        (lambda: Hopfield(6, concat_bias_pattern=True, stored_pattern_as_static=True), ValueError, "concat_bias_pattern"),
        (lambda: Hopfield(6, update_steps_max=[1, 2]), ValueError, "update_steps_max"),
        (lambda: Hopfield(6, update_steps_max=1.0), TypeError, "update_steps_max"),
        (lambda: Hopfield(6, scaling="2"), TypeError, "scaling"),
        (lambda: Hopfield(6, scaling=torch.tensor(math.nan)), ValueError, "scaling"),
        (lambda: Hopfield(6, num_heads=2, scaling=nn.Parameter(torch.tensor([1.0, math.inf]))), ValueError, "scaling"),
        *((lambda key=key: Hopfield(6, **{key: "yes"}), TypeError, key) for key in FLAGS),
        *((lambda key=key: Hopfield(6, **{key: 1}), TypeError, key) for key in FLAGS),
        *((lambda key=key: Hopfield(6, **{f"{key}_eps": 0.0}), ValueError, f"{key}_eps") for key in FLAGS[::2]),
        *((lambda key=key: Hopfield(6, **{f"{key}_eps": "0"}), TypeError, f"{key}_eps") for key in FLAGS[::2]),
        (lambda: Hopfield(6)(x.to_sparse()), TypeError, "input"),
        (lambda: Hopfield(6)(x, None, torch.zeros(3, 3, device="meta")), ValueError, "association_mask"),
        # the published order of the lookup's settings is another one from here on
        (lambda: HopfieldLayer(6, 3, 6, 3, 2, 1.0, 0, 1e-4, True), TypeError, "lookup_weights_as_separated"),
        (lambda: HopfieldPooling(6, form="folded", normalize_hopfield_space=True), ValueError, "form"),
        (lambda: HopfieldPooling(6, channels_first=True, batch_first=False), ValueError, "batch_first"),
        (lambda: HopfieldPooling(6)(x, sizes=[3, 4]), ValueError, "sizes"),
        (lambda: HopfieldPooling(6)(x, sizes=[3]), ValueError, "sizes"),
        (lambda: HopfieldPooling(6)(x, sizes=[1.0, 2.0]), TypeError, "sizes"),
        (lambda: HopfieldPooling(6)(x, mask=torch.ones(2, 3).bool(), sizes=[1, 2]), ValueError, "sizes"),
        (lambda: HopfieldPooling(6)([x[0]], sizes=[1]), ValueError, "sizes"),
        (lambda: HopfieldPooling(6)([]), ValueError, "input"),
        (lambda: HopfieldPooling(6)(torch.ones(2, 0, 6)), ValueError, "input"),
        (lambda: HopfieldLayer(6, quantity=2)(x, torch.ones(2, 3).bool()), ValueError, "stored_pattern_padding_mask"),
        (lambda: HopfieldPooling(6, channels_first=True)(x), ValueError, "input"),
    ]
    for made, error, name in cases:
        with pytest.raises(error, match=f"^`{name}` must be .+, got "):
            made()


PROPERTIES = {  # of ml-jku/hopfield-layers, with the values of a plain module of 8 elements and 2 heads
    "batch_first": True, "scaling": 0.5, "stored_pattern_dim": 8, "state_pattern_dim": 8, "pattern_projection_dim": 8,
    "input_size": 8, "hidden_size": 4, "output_size": 8, "pattern_size": 4, "update_steps_max": 0, "update_steps_eps": 1e-4,
    "stored_pattern_as_static": False, "state_pattern_as_static": False, "pattern_projection_as_static": False,
    "normalize_stored_pattern": True, "normalize_stored_pattern_affine": True, "normalize_state_pattern": True,
    "normalize_state_pattern_affine": True, "normalize_pattern_projection": True,
    "normalize_pattern_projection_affine": True, "normalize_hopfield_space": False, "normalize_hopfield_space_affine": False,
}  # fmt: skip
OTHER: list[dict[str, Any]] = [
    {"hidden_size": 3, "output_size": 5, "pattern_size": 6},
    {"stored_pattern_size": 6, "pattern_projection_size": 7},
    {"normalize_stored_pattern": False, "normalize_stored_pattern_affine": False},
    {"normalize_state_pattern_affine": False, "normalize_pattern_projection_affine": False},
    {"normalize_hopfield_space": True, "normalize_hopfield_space_affine": True},
    {"batch_first": False, "scaling": 2.0, "update_steps_max": 3, "update_steps_eps": 0.01},
    {"stored_pattern_as_static": True},
    {"state_pattern_as_static": True},
    {"pattern_projection_as_static": True},
]
NAMED = {"stored_pattern_size": "stored_pattern_dim", "pattern_projection_size": "pattern_projection_dim"}


@pytest.mark.parametrize("kind", [Hopfield, HopfieldPooling, HopfieldLayer])
def test_published_properties(kind: type[nn.Module]) -> None:
    module = kind(8, num_heads=2)
    assert {name: getattr(module, name) for name in PROPERTIES} == PROPERTIES
    assert kind is Hopfield or module.quantity == 1
    for settings in OTHER:
        module = kind(8, num_heads=2, **settings)
        for name, value in settings.items():
            assert getattr(module, NAMED.get(name, name)) == value
    if kind is not Hopfield:
        with pytest.raises(AttributeError):
            module.output_size = 3


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("settings", [{}, {"add_zero_association": True}, {"concat_bias_pattern": True}])
def test_projected_patterns_of_every_sample(batch_first: bool, settings: dict[str, Any]) -> None:
    x = torch.randn(3, 5, 8)
    x = x if batch_first else x.transpose(0, 1)
    more = bool(settings)
    options: dict[str, Any] = {"num_heads": 2, "batch_first": batch_first, **settings}
    hidden, pairs = torch.zeros(3, 5, dtype=torch.bool), torch.zeros(5, 5, dtype=torch.bool)
    hopfield = Hopfield(8, **options)
    assert hopfield.get_projected_pattern_matrix(x, hidden, pairs).shape == (3, 2, 5 + more, 4)
    pooling = HopfieldPooling(8, quantity=2, **options)
    assert pooling.get_projected_pattern_matrix(x, hidden, pairs[:2]).shape == (3, 2, 5 + more, 4)
    lookup = HopfieldLayer(8, quantity=7, **options)
    found = lookup.get_projected_pattern_matrix(x, torch.zeros(3, 7, dtype=torch.bool), torch.zeros(5, 7, dtype=torch.bool))
    assert found.shape == (3, 2, 7 + more, 4)
    assert torch.equal(found, found[:1].expand(3, -1, -1, -1))
    # they are what associations pick from
    lookup.eval()
    recalled = lookup.get_association_matrix(x) @ lookup.get_projected_pattern_matrix(x)
    y = lookup.hopfield.finish(recalled, x.dtype)
    torch.testing.assert_close(lookup(x), y if batch_first else y.transpose(0, 1))


def test_a_learned_scaling_under_its_published_name() -> None:
    module = HopfieldPooling(8, num_heads=2, scaling=nn.Parameter(torch.ones(2)))
    checkpoint = dict(module.state_dict())
    checkpoint["hopfield._Hopfield__scaling"] = checkpoint.pop("hopfield.scaling") * 3
    module.load_state_dict(checkpoint)
    assert module.scaling.tolist() == [3, 3]
