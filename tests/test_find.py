"""Which poolings a model has: modules and functions, where they stand, what they cost."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import models
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import everypool
from everypool import functional
from everypool.surgery.find import chosen, find


class Block(nn.Module):
    def __init__(self, channels: int, step: bool) -> None:
        super().__init__()
        self.body = nn.Conv2d(channels, channels, 3, stride=2 if step else 1, padding=1)
        self.down = nn.AvgPool2d(2, ceil_mode=True) if step else nn.Identity()
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, channels, 1))
        self.out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        y = self.out(y * self.gate(y).sigmoid())
        y += self.down(x)
        return y


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.first = nn.MaxPool2d(3, 2, 1)
        self.blocks = nn.Sequential(Block(4, False), Block(4, True))
        self.last = nn.AdaptiveAvgPool2d(1)
        self.line = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.line(self.last(self.blocks(self.first(self.conv(x)))).flatten(1))


EXAMPLE = torch.linspace(-1, 1, 2 * 13 * 14).sin().reshape(2, 1, 13, 14)


def test_a_residual_network() -> None:
    model = Residual()
    found = find(model, EXAMPLE)
    assert [(p.name, p.kind, p.place, p.before, p.after) for p in found] == [
        ("first", "sliding", "stem", "conv", "blocks.0.body"),
        ("blocks.0.gate.0", "global", "inside", "blocks.0.body", "blocks.0.gate.1"),
        ("blocks.1.gate.0", "global", "inside", "blocks.1.body", "blocks.1.gate.1"),
        ("blocks.1.down", "sliding", "stage", "blocks.1.out", "line"),
        ("last", "global", "head", "blocks.1.out", "line"),
    ]
    assert found[0].input == (2, 4, 13, 14)
    assert found[0].output == (2, 4, 7, 7)
    assert [p.described() for p in found] == ["3x3 s2 p1", "all of 7x7", "all of 4x4", "2x2 s2 ceil", "all of 4x4"]
    assert model.training
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_plain_networks() -> None:
    def stands(*layers: nn.Module, example: Tensor = EXAMPLE) -> list[tuple[str, str, int]]:
        return [(p.name, p.place, p.calls) for p in find(nn.Sequential(*layers), example)]

    conv = [nn.Conv2d(1, 1, 3, padding=1) for _ in range(3)]
    pool = nn.MaxPool2d(2)
    assert stands(conv[0], pool, conv[1], pool, nn.AvgPool2d(3)) == [("1", "stem", 2), ("4", "head", 1)]
    assert stands(nn.MaxPool2d(2), conv[0], nn.MaxPool2d(2), conv[1]) == [("0", "stem", 1), ("2", "stage", 1)]
    assert stands(nn.MaxPool2d(2, return_indices=True)) == [("0", "stem", 1)]
    assert stands(nn.MaxPool2d(2), nn.AdaptiveAvgPool2d((3, 2)), nn.Flatten(), nn.Linear(6, 2)) == [
        ("0", "stem", 1),
        ("1", "head", 1),
    ]
    assert stands(everypool.SoftPool2d(2), everypool.GlobalGeMPool()) == [("0", "stem", 1), ("1", "head", 1)]
    series = torch.rand(2, 3, 16)
    assert stands(nn.LPPool1d(2, 2), nn.Conv1d(3, 3, 1), nn.AdaptiveMaxPool1d(1), example=series) == [
        ("0", "stem", 1), ("2", "head", 1)
    ]  # fmt: skip


class Calls(nn.Module):
    """A convolution, and then a function."""

    def __init__(self, function: Callable[[Tensor], Any], axes: int = 2) -> None:
        super().__init__()
        self.conv = getattr(nn, f"Conv{axes}d")(3, 4, 1)
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(self.conv(x))


SHAPES = {1: (2, 3, 12), 2: (2, 3, 12, 10), 3: (2, 3, 6, 5, 4)}
FUNCTIONS: list[tuple[int, Callable[[Tensor], Any], str, str, str]] = [
    (2, lambda x: F.max_pool2d(x, 3, 2, 1), "max", "sliding", "3x3 s2 p1"),
    (2, lambda x: F.max_pool2d(x, kernel_size=(3, 2), stride=2), "max", "sliding", "3x2 s2"),
    (2, lambda x: torch.max_pool2d(x, 2), "max", "sliding", "2x2"),
    (2, lambda x: F.max_pool2d(x, 2, return_indices=True)[0], "max", "sliding", "2x2"),
    (2, lambda x: F.max_pool2d(input=x, kernel_size=2), "max", "sliding", "2x2"),
    (2, lambda x: torch.amax(input=x, dim=(2, 3)), "max", "global", "all of 12x10"),
    (2, lambda x: F.avg_pool2d(x, 2, ceil_mode=True), "avg", "sliding", "2x2 ceil"),
    (2, lambda x: F.lp_pool2d(x, 2.0, 2), "lp", "sliding", "2x2"),
    (2, lambda x: F.adaptive_avg_pool2d(x, 1), "avg", "global", "all of 12x10"),
    (2, lambda x: F.adaptive_avg_pool2d(x, (1, 1)), "avg", "global", "all of 12x10"),
    (2, lambda x: F.adaptive_max_pool2d(x, (3, 2)), "max", "adaptive", "3x2 bins"),
    (2, lambda x: F.adaptive_avg_pool2d(x, (1, None)), "avg", "adaptive", "1x- bins"),
    (2, lambda x: x.mean((2, 3)), "avg", "global", "all of 12x10"),
    (2, lambda x: x.mean([-2, -1], keepdim=True), "avg", "global", "all of 12x10"),
    (2, lambda x: torch.mean(x, dim=(3, 2)), "avg", "global", "all of 12x10"),
    (2, lambda x: x.amax(dim=(2, 3)), "max", "global", "all of 12x10"),
    (2, lambda x: torch.logsumexp(x, (2, 3)), "logsumexp", "global", "all of 12x10"),
    (2, lambda x: x.mean(3, keepdim=True), "avg", "strip", "all of 10"),
    (2, lambda x: x.permute(0, 2, 3, 1).mean((1, 2)), "avg", "global", "all of 12x10"),
    (2, lambda x: x.flatten(2).transpose(1, 2).mean(1), "avg", "global", "all of 120"),
    (1, lambda x: F.max_pool1d(x, 2), "max", "sliding", "2"),
    (1, lambda x: F.adaptive_avg_pool1d(x, 1), "avg", "global", "all of 12"),
    (1, lambda x: x.max(2)[0], "max", "global", "all of 12"),
    (1, lambda x: x.mean(-1), "avg", "global", "all of 12"),
    (3, lambda x: F.avg_pool3d(x, 2), "avg", "sliding", "2x2x2"),
    (3, lambda x: x.mean((2, 3, 4)), "avg", "global", "all of 6x5x4"),
]


@pytest.mark.parametrize(("nd", "function", "reducer", "kind", "described"), FUNCTIONS)
def test_functions(nd: int, function: Callable[[Tensor], Any], reducer: str, kind: str, described: str) -> None:
    model = Calls(function, nd)
    found = find(model, torch.rand(SHAPES[nd]))
    assert [(p.reducer, p.kind, p.described(), p.before) for p in found] == [(reducer, kind, described, "conv")]
    assert found[0].module is None
    assert found[0].owner is model
    assert found[0].source.startswith("test_find.py:")


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.mean(1, keepdim=True),  # over channels
        lambda x: x.mean(),
        lambda x: x.mean(0),
        lambda x: x.mean((1, 2, 3)),
        lambda x: torch.maximum(x, -x),
        lambda x: x.max(),
        lambda x: F.interpolate(x, scale_factor=2),
        lambda x: F.layer_norm(x, x.shape[2:]),
        lambda x: x.flatten(2).transpose(1, 2).mean(-1, keepdim=True),
    ],
)
def test_what_is_no_pooling(function: Callable[[Tensor], Any]) -> None:
    assert find(Calls(function), torch.rand(SHAPES[2])) == ()
    assert str(find(Calls(function), torch.rand(SHAPES[2]))) == "no pooling found"


def centered(x: Tensor) -> Tensor:
    return x - x.mean((2, 3), keepdim=True)


# what normalizes a map by its own statistics, written by hand as models do
NORMALIZATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "centered": centered,
    "centered the other way": lambda x: -(x.mean((2, 3), keepdim=True) - x),
    "centered in place": lambda x: x.clone().sub_(x.mean((2, 3))[:, :, None, None]),
    "by its deviation": lambda x: centered(x) / (x.std((2, 3), keepdim=True) + 1e-5),
    "by its variance": lambda x: centered(x) * torch.rsqrt(x.var((2, 3), keepdim=True, unbiased=False) + 1e-5),
    "by mean squares": lambda x: x * torch.rsqrt(x.pow(2).mean((2, 3), keepdim=True) + 1e-5),
    "by expanded mean squares": lambda x: x * x.square().mean((2, 3), keepdim=True).add(1e-5).rsqrt().expand(x.shape),
    "by centered squares": lambda x: centered(x) * (centered(x).square().mean((2, 3), keepdim=True) + 1e-5).pow(-0.5),
    "by two moments": lambda x: centered(x) / (x.square().mean((2, 3)) - x.mean((2, 3)).square()).sqrt()[..., None, None],
    "over groups": lambda x: x - x.mean((2, 3), keepdim=True).mean(1, keepdim=True),
    "over tokens": lambda x: (lambda y: y - y.mean(1, keepdim=True))(x.flatten(2).transpose(1, 2)),
    "by its maximum": lambda x: x / x.amax((2, 3), keepdim=True).clamp(min=1e-5),
    "by its sum": lambda x: x.exp() / x.exp().sum((2, 3), keepdim=True),
    "by one over its mean": lambda x: x * (1 / x.mean((2, 3), keepdim=True)),
    "softmax": lambda x: (x - x.amax((2, 3), keepdim=True)).exp(),
}
# what goes on into a layer, or out of the model, is pooled
HEADS: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda x: x.mean((2, 3)),
    "scaled mean": lambda x: x.mean((2, 3)) * 2 + 1,
    "gate": lambda x: x * x.mean((2, 3), keepdim=True).sigmoid(),
    "plain gate": lambda x: x * x.mean((2, 3), keepdim=True),
    "added": lambda x: x + x.mean((2, 3), keepdim=True),
    "normalizes and goes on": lambda x: (lambda m: (x - m).flatten(1)[:, :4] + m.flatten(1))(x.mean((2, 3), keepdim=True)),
    "normalizes another": lambda x: x - (x * 2 + x.roll(1)).mean((2, 3), keepdim=True),
}
NAMES = ("Plain", "NormHead", "LayerNorm", "Normalizer", "BatchNorm2dHead", "Enormous")


@pytest.mark.parametrize("name", NAMES)
def test_norms_are_told_from_heads_by_what_they_do(name: str) -> None:
    for function in NORMALIZATIONS.values():
        found = find(type(name, (Calls,), {})(function), torch.rand(SHAPES[2]))
        assert (found, found.missed) == ((), ())
    for function in HEADS.values():
        found = find(type(name, (Calls,), {})(function), torch.rand(SHAPES[2]))
        assert [(p.what, p.reducer, p.kind) for p in found] == [(".mean()", "avg", "global")]


def test_norms_have_statistics_and_no_poolings() -> None:
    class OwnNorm(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x - x.mean((2, 3), keepdim=True)

    assert find(nn.Sequential(OwnNorm(), nn.MaxPool2d(2)), EXAMPLE)[0].name == "1"

    class RootMeanSquare(nn.Module):
        """Over the features of tokens (N, tokens, features), which could be places of (N, C, W)."""

        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(4))

        def forward(self, x: Tensor) -> Tensor:
            y = x.to(torch.float32)
            return self.weight * (y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-6)).to(x.dtype)

    assert find(nn.Sequential(RootMeanSquare()), torch.rand(2, 7, 4)) == ()
    tokens = nn.Sequential(nn.Embedding(9, 4), RootMeanSquare(), Tokens())
    assert [p.name for p in find(tokens, torch.zeros(2, 7, dtype=torch.long))] == ["2.mean"]

    class Standardized(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            weight = self.weight - self.weight.mean((2, 3), keepdim=True)
            return F.conv2d(x, weight / weight.std((2, 3), keepdim=True), self.bias)

    found = find(nn.Sequential(Standardized(1, 2, 3), nn.MaxPool2d(2)), EXAMPLE)
    assert ([p.name for p in found], found.missed) == (["1"], ())


@pytest.mark.parametrize("order", list(itertools.permutations(range(4))))
def test_places_wherever_they_lie(order: tuple[int, ...]) -> None:
    """A map with its axes in every order, its places apart or in one axis: those of places are found, and no others."""
    kinds = "".join("ncss"[axis] for axis in order)
    for axes in [(0,), (1,), (2,), (3,), *itertools.combinations(range(4), 2)]:
        named = {kinds[axis] for axis in axes}
        found = find(Calls(lambda x, axes=axes: x.permute(order).mean(axes)), torch.rand(SHAPES[2]))
        assert [p.kind for p in found] == ([] if named != {"s"} else ["global" if len(axes) == 2 else "strip"])
    if "ss" not in kinds:
        return
    flat, first = kinds.replace("ss", "s"), kinds.index("s")
    for axis in range(3):
        found = find(Calls(lambda x, axis=axis: x.permute(order).flatten(first, first + 1).mean(axis)), torch.rand(SHAPES[2]))
        assert [p.described() for p in found] == ["all of 120"] * (flat[axis] == "s")


VIEWS: dict[str, Callable[[Tensor], Tensor]] = {  # of places in one axis or in two, the last
    "flatten": lambda x: x.flatten(2),
    "view": lambda x: x.view(*x.shape[:2], -1),
    "reshape": lambda x: torch.reshape(x, (x.shape[0], x.shape[1], x.shape[2] * x.shape[3])),
    "more axes": lambda x: x.unflatten(2, (3, 4)).flatten(2),
    "and back": lambda x: x.flatten(2).transpose(1, 2).contiguous().transpose(1, 2),
    "of all but one": lambda x: x.flatten(2)[:, :, 1:],
    "with an axis more": lambda x: x[:, None].flatten(3).squeeze(1),
    "next to others": lambda x: torch.cat([x.flatten(2), x.flatten(2)], 2),
    "activated": lambda x: F.dropout(x.flatten(2).relu(), 0.1, False) + 1,
}


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("reduce", ["mean", "amax", "max", "logsumexp"])
def test_flattened_maps(view: str, reduce: str) -> None:
    def pooled(x: Tensor) -> Tensor:
        y = getattr(VIEWS[view](x), reduce)(-1)
        return y[0] if reduce == "max" else y

    for batch in (1, 2):
        found = find(Calls(pooled), torch.rand(batch, *SHAPES[2][1:]))
        assert [(p.kind, p.place, p.call is not None and p.call.axes) for p in found] == [("global", "head", (2,))]


def test_one_axis_after_the_other() -> None:
    for function in (lambda x: x.mean(3).mean(2), lambda x: x.max(2).values.max(2).values):
        assert [p.kind for p in find(Calls(function), torch.rand(SHAPES[2]))] == ["strip", "global"]


def masked_mean(x: Tensor) -> Tensor:
    mask = (x[:, :1] > 0).to(x.dtype)
    return (x * mask).sum((2, 3)) / mask.sum((2, 3))


DOUBTFUL: dict[str, tuple[Callable[[Tensor], Any], int]] = {
    "masked mean": (masked_mean, 2),
    "maximum under a mask": (lambda x: x.masked_fill(x < 0, -math.inf).amax((2, 3)), 1),
    "maximum over the least": (lambda x: x.masked_fill(x < 0, torch.finfo(x.dtype).min).flatten(2).max(2)[0], 1),
    "mean of another type": (lambda x: x.mean((2, 3), dtype=torch.float64), 1),
    "of everypool": (lambda x: everypool.soft_pool(x, 2), 1),
    "of everypool in torch's words": (lambda x: functional.max_pool2d(x, 2), 1),
    "of everypool under a mask": (lambda x: functional.max_pool2d(x, 2, mask=x[:, :1] > 0), 1),
    "sum over number": (lambda x: x.sum((2, 3)) / 120, 1),
    "tokens under a mask": (lambda x: (x * 2).flatten(2).transpose(1, 2).sum(1) / 7, 1),
    "nanmean": (lambda x: x.nanmean((2, 3)), 1),
    "std": (lambda x: x.flatten(2).std(-1), 1),
    "std of places": (lambda x: torch.std(x, dim=(2, 3)), 1),
    "mean and std": (lambda x: torch.cat([x.mean((2, 3)), x.std((2, 3))], 1), 1),
    "var_mean": (lambda x: torch.var_mean(x, (2, 3)), 1),
    "min": (lambda x: x.flatten(2).min(2).values, 1),
    "amin": (lambda x: x.amin((2, 3)), 1),
    "median": (lambda x: x.flatten(2).median(-1)[0], 1),
    "norm": (lambda x: x.norm(2, (2, 3)), 1),
    "vector_norm": (lambda x: torch.linalg.vector_norm(x, 3, dim=(2, 3)), 1),
    "quantile": (lambda x: x.flatten(2).quantile(0.9, -1), 1),
    "topk": (lambda x: x.flatten(2).topk(3)[0].mean(-1), 1),
    "fractional": (lambda x: F.fractional_max_pool2d(x, 2, output_ratio=(0.5, 0.5)), 1),
    "area": (lambda x: F.interpolate(x, (3, 2), mode="area"), 1),
}


@pytest.mark.parametrize("name", DOUBTFUL)
def test_what_may_be_missed_is_said(name: str) -> None:
    function, number = DOUBTFUL[name]
    found = find(Calls(function), torch.rand(SHAPES[2]))
    assert len(found.missed) == number
    assert [p.what for p in found] == ([".mean()"] if name in ("mean and std", "topk") else [])
    item = found.missed[0]
    assert item.source.startswith("test_find.py:")
    assert f"possibly missed: {item.what} ({item.source}) in the model, " in str(found)
    with pytest.raises(ValueError, match=r"possibly missed: "):
        chosen(found, "stem")


def test_modules_that_may_be_missed() -> None:
    class HashPool(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.fft.fft2(x).real[:, :, :2, :2]

    found = find(nn.Sequential(nn.FractionalMaxPool2d(2, output_ratio=0.5), HashPool()), torch.rand(SHAPES[2]))
    assert [str(item) for item in found.missed] == [
        "FractionalMaxPool2d in 0, 2x3x12x10 to 2x3x6x5",
        "HashPool in 1, 2x3x6x5 to 2x3x2x2",
    ]


def test_modules_of_others() -> None:
    """What they pool is read from what they give, and not from a name."""

    class Whole(nn.Module):
        def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
            super().__init__()
            self.function = function

        def forward(self, x: Tensor) -> Tensor:
            return self.function(x)

    both: Callable[[Tensor], Tensor] = lambda x: (x.amax((2, 3)) + x.mean((2, 3))) / 2  # noqa: E731
    for name, function, reducer in (
        ("AvgMaxPool", both, ""),
        ("SoftmaxPool", lambda x: (x * x.flatten(2).softmax(2).view_as(x)).sum((2, 3)), ""),
        ("GeM", lambda x: x.pow(3).mean((2, 3)).pow(1 / 3), ""),
        ("MaximalPooling", lambda x: x.mean((2, 3)), "avg"),
        ("GlobalPool", lambda x: x.amax((2, 3), keepdim=True), "max"),
    ):
        found = find(nn.Sequential(type(name, (Whole,), {})(function)), torch.rand(SHAPES[2]))
        assert [(p.what, p.reducer, p.kind) for p in found] == [(name, reducer, "global")]
    for name in ("GemmaHead", "Gemini"):  # no GeM
        found = find(nn.Sequential(type(name, (Whole,), {})(lambda x: x.mean((2, 3)))), torch.rand(SHAPES[2]))
        assert [p.what for p in found] == [".mean()"]
    assert find(nn.Sequential(type("Line", (nn.MaxPool1d,), {})(2)))[0].described() == "2 s2"


def test_examples_of_several_kinds() -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor, *, scale: Tensor, flag: bool = False) -> dict[str, Any]:
            return {"a": F.max_pool2d(x * scale, 2), "flag": flag}

    x = torch.rand(1, 2, 4, 4)
    assert len(find(Two(), {"x": x, "scale": torch.ones(1)})) == 1
    assert len(find(nn.MaxPool2d(2), (x,))) == 1
    tokens = find(nn.Sequential(nn.Embedding(9, 4), Tokens()), torch.zeros(2, 7, dtype=torch.long))
    assert [(p.name, p.described(), p.place) for p in tokens] == [("1.mean", "all of 7", "head")]


class Tokens(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1)


def test_without_an_example() -> None:
    found = find(
        nn.Sequential(
            nn.MaxPool2d(3, 2, 1), nn.ReLU(), everypool.GeMPool2d(2), nn.AdaptiveAvgPool2d((2, None)), nn.AdaptiveMaxPool1d(1)
        )
    )
    assert [(p.name, p.what, p.reducer, p.kind, p.described()) for p in found] == [
        ("0", "MaxPool2d", "max", "sliding", "3x3 s2 p1"),
        ("2", "GeMPool2d", "gem", "sliding", "2x2 s2"),
        ("3", "AdaptiveAvgPool2d", "avg", "adaptive", "2x- bins"),
        ("4", "AdaptiveMaxPool1d", "max", "global", "all"),
    ]


def test_bad_input() -> None:
    compiled = nn.Module()
    compiled._orig_mod = nn.MaxPool2d(2)  # what torch.compile gives has the module under this name
    with pytest.raises(TypeError, match=r"^`model` must be a torch.nn.Module, got 3"):
        find(3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^`example` must be a tensor, a tuple of arguments or"):
        find(nn.MaxPool2d(2), ())
    with pytest.raises(TypeError, match=r"^`model` must be the module itself, before torch.compile"):
        find(compiled, EXAMPLE)
    with pytest.raises(ValueError, match=r"^`where` must be places where the model pools \(stem: 0\), got 'head'"):
        chosen(find(nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(1, 1, 1)), EXAMPLE), "head")

    class Fails(nn.MaxPool2d):
        def forward(self, x: Tensor) -> Tensor:
            raise ArithmeticError

    model = nn.Sequential(nn.Conv2d(1, 1, 1), Fails(2)).train()
    with pytest.raises(ArithmeticError):
        find(model, EXAMPLE)
    assert model.training
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_costs() -> None:
    """Shares that can be told by counting, and times that are shares."""
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), Calls(lambda x: x.mean((2, 3))), nn.Linear(4, 2)
    )
    model[3].conv = nn.Conv2d(8, 4, 1)
    x = torch.rand(2, 1, 12, 10)
    pool, mean = find(model, x, costs=True)
    assert pool.cost is not None
    assert mean.cost is not None
    cells = 2 * 12 * 10
    convolutions = 2 * (
        cells * 8 * 9 + cells // 4 * 8 * 4 + 2 * 4 * 2
    )  # as torch counts: two for a multiplication and an addition
    pooled = cells // 4 * 8 * 3
    averaged = 2 * 4 * 30  # 29 additions and a division
    everything = convolutions + pooled + averaged
    assert pool.cost.operations == pytest.approx(pooled / everything)
    assert mean.cost.operations == pytest.approx(averaged / everything)
    # kept: input, what ReLU gave, the places of the maxima (8 bytes each), their values for the next convolution, the averages
    kept = 4 * cells + 4 * 8 * cells + 8 * 8 * cells // 4 + 4 * 8 * cells // 4 + 4 * 2 * 4
    assert pool.cost.memory == pytest.approx(8 * 8 * cells // 4 / kept)
    assert mean.cost.memory == 0
    assert 0 < pool.cost.time < 1
    assert 0 < mean.cost.time < 1
    assert pool.cost.time + mean.cost.time < 1
    assert "operations" in str(find(model, x, costs=True))


# read from the sources of transformers 5.24, timm 1.0.31 and torchvision 0.28 by hand: class or function, and how many
EXPECTED: dict[str, list[tuple[str, int]]] = {
    "ResNet": [("MaxPool2d", 1), ("AdaptiveAvgPool2d", 1)],
    "ConvNeXt": [(".mean()", 1)],
    "MobileNetV1": [("AdaptiveAvgPool2d", 1)],
    "MobileNetV2": [("AdaptiveAvgPool2d", 1)],
    "SegFormer": [(".mean()", 1)],
    "ViT": [],
    "PoolFormer": [("AvgPool2d", 4), (".mean()", 1)],
    "Swin": [("AdaptiveAvgPool1d", 1)],
    "RegNet": [("AdaptiveAvgPool2d", 5)],
    "EfficientNet": [("AdaptiveAvgPool2d", 7), ("AvgPool2d", 1)],
    "LeViT": [(".mean()", 2)],
    "DINOv2": [(".mean()", 1)],
    "DETR": [("MaxPool2d", 1)],
    "resnet18": [("MaxPool2d", 1), ("AdaptiveAvgPool2d", 1)],
    "convnext_atto": [("AdaptiveAvgPool2d", 1)],
    "mobilenetv3_small_050": [(".mean()", 9), ("AdaptiveAvgPool2d", 1)],
    "regnetx_002": [("AdaptiveAvgPool2d", 1)],
    "densenet121": [("MaxPool2d", 1), ("AvgPool2d", 3), ("adaptive_avg_pool2d()", 1)],
    "mobilenet_v2": [("adaptive_avg_pool2d()", 1)],
    "shufflenet_v2_x0_5": [("MaxPool2d", 1), (".mean()", 1)],
    "squeezenet1_1": [("MaxPool2d", 3), ("AdaptiveAvgPool2d", 1)],
    "googlenet": [("MaxPool2d", 13), ("AdaptiveAvgPool2d", 1)],
}


@pytest.mark.parametrize("name", EXPECTED)
def test_real_architectures(name: str) -> None:
    model, size = models.build(name)
    found = find(model, models.pixels(size))
    counts: dict[str, int] = {}
    for p in found:
        counts[p.what] = counts.get(p.what, 0) + 1
    assert sorted(counts.items()) == sorted(EXPECTED[name])
    heads = [p for p in found if p.place == "head"]
    assert len(heads) == {"ViT": 0, "DETR": 0, "LeViT": 2}.get(name, 1)
    assert all(math.prod(p.output[2:]) == 1 for p in heads)
