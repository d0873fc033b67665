"""Pyramid modules in training against the published modules; SPPF and SPP where maxima are equal."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import everypool


class PublishedPPM(nn.Module):
    def __init__(self, channels: int, reduced: int, bins: tuple[int, ...]) -> None:
        super().__init__()
        self.features = nn.ModuleList(
            nn.Sequential(
                nn.AdaptiveAvgPool2d(n), nn.Conv2d(channels, reduced, 1, bias=False), nn.BatchNorm2d(reduced), nn.ReLU()
            )
            for n in bins
        )

    def forward(self, x: Tensor) -> Tensor:
        size = x.shape[2:]
        grids = [F.interpolate(f(x), size, mode="bilinear", align_corners=True) for f in self.features]
        return torch.cat([x, *grids], 1)


class Conv(nn.Module):
    def __init__(self, inputs: int, outputs: int, act: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=1e-3, momentum=0.03)
        self.act = nn.SiLU() if act else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.act(self.bn(self.conv(x)))
        return y


class PublishedSPP(nn.Module):
    """SPP, and SPPF in all its versions if chained."""

    def __init__(
        self, channels: int, outputs: int, kernels: tuple[int, ...], chained: bool, shortcut: bool = False, act: bool = True
    ) -> None:
        super().__init__()
        self.cv1 = Conv(channels, channels // 2, act)
        self.cv2 = Conv(channels // 2 * (len(kernels) + 1), outputs)
        self.kernels, self.chained, self.shortcut = kernels, chained, shortcut

    def forward(self, x: Tensor) -> Tensor:
        maps = [self.cv1(x)]
        for k in self.kernels:
            maps.append(F.max_pool2d(maps[-1] if self.chained else maps[0], k, 1, k // 2))
        y: Tensor = self.cv2(torch.cat(maps, 1))
        return x + y if self.shortcut else y


PAIRS = [
    pytest.param(lambda: (everypool.PyramidPoolingModule(8), PublishedPPM(8, 2, (1, 2, 3, 6))), id="ppm"),
    pytest.param(lambda: (everypool.PyramidPoolingModule(8, 3, (1, 4)), PublishedPPM(8, 3, (1, 4))), id="ppm, own bins"),
    pytest.param(lambda: (everypool.YOLOSPP(8), PublishedSPP(8, 8, (5, 9, 13), False)), id="spp"),
    pytest.param(lambda: (everypool.YOLOSPP(8, 6, (3, 7)), PublishedSPP(8, 6, (3, 7), False)), id="spp, own kernels"),
    pytest.param(lambda: (everypool.SPPF(8, act=True), PublishedSPP(8, 8, (5, 5, 5), True)), id="sppf"),
    pytest.param(lambda: (everypool.SPPF(8, 12, 3, act=True), PublishedSPP(8, 12, (3, 3, 3), True)), id="sppf, own kernel"),
    *(
        pytest.param(
            lambda n=n, shortcut=shortcut, act=act: (
                everypool.SPPF(8, 8, 5, n, shortcut, act=act),
                PublishedSPP(8, 8, (5,) * n, True, shortcut, act),
            ),
            id=f"sppf, n={n}, shortcut={shortcut}, act={act}",
        )
        for n in (1, 2, 3, 4)
        for shortcut in (False, True)
        for act in (False, True)
    ),
]


@pytest.mark.parametrize("made", PAIRS)
@pytest.mark.parametrize("size", [(7, 6), (3, 1), (15, 14)])
def test_trains_as_published(made: object, size: tuple[int, int]) -> None:
    module, published = (m.double().train() for m in made())  # type: ignore[operator]
    module.load_state_dict(published.state_dict(), strict=True)
    x = torch.randn(3, 8, *size, dtype=torch.float64)
    inputs = x.clone().requires_grad_(), x.clone().requires_grad_()
    y, expected = module(inputs[0]), published(inputs[1])
    torch.testing.assert_close(y, expected, rtol=1e-9, atol=1e-11)
    weight = torch.randn_like(y)
    (y * weight).sum().backward()
    (expected * weight).sum().backward()
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad, rtol=1e-7, atol=1e-9)
    wanted = dict(published.named_parameters())
    for key, parameter in module.named_parameters():
        torch.testing.assert_close(parameter.grad, wanted[key].grad, rtol=1e-7, atol=1e-9, msg=key)
    wanted = published.state_dict()
    for key, value in module.state_dict().items():
        torch.testing.assert_close(value, wanted[key], rtol=1e-9, atol=1e-11, msg=key)


def test_fast_and_slow_spp_of_equal_values() -> None:
    """Bit for bit the same result, whatever is equal; the same gradient where no two values are."""
    slow, fast = everypool.YOLOSPP(4).eval(), everypool.SPPF(4, act=True).eval()
    fast.load_state_dict(slow.state_dict())
    tied = torch.randint(0, 3, (2, 4, 17, 15)).float()
    assert torch.equal(slow(tied), fast(tied))
    grads = []
    for module in (slow, fast):
        x = torch.linspace(-1, 1, 2 * 4 * 17 * 15, dtype=torch.float64)
        generator = torch.Generator().manual_seed(1)
        x = x[torch.randperm(x.numel(), generator=generator)].reshape(2, 4, 17, 15).requires_grad_()
        grads += torch.autograd.grad(module.double()(x).sin().sum(), x)
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("bins", ["adaptive", "sppnet"])
def test_head_loads_weights_in_the_published_order(bins: str) -> None:
    """Level by level, channel by channel, bin by bin: the order on which the first linear layer depends."""
    levels = (6, 3, 2, 1)
    head = everypool.SpatialPyramidHead(2, 3, levels, bins=bins).double()
    x = torch.randn(2, 2, 13, 13, dtype=torch.float64)  # the paper's size, at which its windows exist
    parts = []
    for n in levels:
        window, step = -(-13 // n), 13 // n
        parts.append(F.max_pool2d(x, window, step).flatten(1))
    vector = torch.cat(parts, 1)
    (layer,) = head.classifier
    torch.testing.assert_close(head(x), F.linear(vector, layer.weight, layer.bias))


def test_head_of_one_axis() -> None:
    head = everypool.SpatialPyramidHead(3, 2, (1, 4), nd=1)
    assert head([torch.ones(3, 5), torch.ones(3, 90)]).shape == (2, 2)
    assert head.classifier[0].in_features == 3 * 5
