"""Which poolings a model has: modules and functions, where they stand, what they cost."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import models
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import everypool
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


def test_norms_have_statistics_and_no_poolings() -> None:
    class OwnNorm(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x - x.mean((2, 3), keepdim=True)

    assert find(nn.Sequential(OwnNorm(), nn.MaxPool2d(2)), EXAMPLE)[0].name == "1"


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
