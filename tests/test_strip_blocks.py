"""The strip pooling module and the mixed pooling module in training against the published modules."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import everypool


class PublishedStrip(nn.Module):
    """SPBlock, with the multiplication that the bottleneck does."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, (3, 1), padding=(1, 0), bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, (1, 3), padding=(0, 1), bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, channels, 1, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        rows = self.bn1(self.conv1(F.adaptive_avg_pool2d(x, (None, 1)))).expand(-1, -1, height, width)
        columns = self.bn2(self.conv2(F.adaptive_avg_pool2d(x, (1, None)))).expand(-1, -1, height, width)
        return x * self.conv3((rows + columns).relu()).sigmoid()


class PublishedMixed(nn.Module):
    """StripPooling: strips are brought back to the map's size by interpolation, as in the original."""

    def __init__(self, channels: int, pool_size: tuple[int, int]) -> None:
        super().__init__()
        inner = channels // 4
        self.pool_size = pool_size

        def layer(inputs: int, outputs: int, kernel: tuple[int, int], act: bool) -> nn.Sequential:
            conv = nn.Conv2d(inputs, outputs, kernel, padding=(kernel[0] // 2, kernel[1] // 2), bias=False)
            return nn.Sequential(conv, nn.BatchNorm2d(outputs), *([nn.ReLU()] if act else []))

        self.conv1_1 = layer(channels, inner, (1, 1), True)
        self.conv1_2 = layer(channels, inner, (1, 1), True)
        self.conv2_0 = layer(inner, inner, (3, 3), False)
        self.conv2_1 = layer(inner, inner, (3, 3), False)
        self.conv2_2 = layer(inner, inner, (3, 3), False)
        self.conv2_3 = layer(inner, inner, (1, 3), False)
        self.conv2_4 = layer(inner, inner, (3, 1), False)
        self.conv2_5 = layer(inner, inner, (3, 3), True)
        self.conv2_6 = layer(inner, inner, (3, 3), True)
        self.conv3 = layer(2 * inner, channels, (1, 1), False)

    def forward(self, x: Tensor) -> Tensor:
        def up(grid: Tensor) -> Tensor:
            return F.interpolate(grid, x.shape[2:], mode="bilinear", align_corners=True)

        x1, x2 = self.conv1_1(x), self.conv1_2(x)
        near = self.conv2_0(x1)
        near = near + up(self.conv2_1(F.adaptive_avg_pool2d(x1, self.pool_size[0])))
        near = near + up(self.conv2_2(F.adaptive_avg_pool2d(x1, self.pool_size[1])))
        far = up(self.conv2_4(F.adaptive_avg_pool2d(x2, (None, 1)))) + up(self.conv2_3(F.adaptive_avg_pool2d(x2, (1, None))))
        both = self.conv3(torch.cat([self.conv2_5(near.relu()), self.conv2_6(far.relu())], 1))
        return (x + both).relu()


PAIRS = [
    pytest.param(lambda: (everypool.StripPoolingModule(8), PublishedStrip(8)), id="strip"),
    pytest.param(lambda: (everypool.MixedPoolingModule(8, (4, 3)), PublishedMixed(8, (4, 3))), id="mixed"),
    pytest.param(lambda: (everypool.MixedPoolingModule(8), PublishedMixed(8, (20, 12))), id="mixed, grids finer than the map"),
]


@pytest.mark.parametrize("made", PAIRS)
@pytest.mark.parametrize("size", [(7, 6), (9, 1), (2, 11)])
def test_trains_as_published(made: object, size: tuple[int, int]) -> None:
    module, published = (m.double().train() for m in made())  # type: ignore[operator]
    module.load_state_dict(published.state_dict(), strict=True)
    x = torch.randn(2, 8, *size, dtype=torch.float64)
    weight = torch.randn_like(x)
    inputs = x.clone().requires_grad_(), x.clone().requires_grad_()
    y, expected = module(inputs[0]), published(inputs[1])
    torch.testing.assert_close(y, expected, rtol=1e-9, atol=1e-11)
    (y * weight).sum().backward()
    (expected * weight).sum().backward()
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad, rtol=1e-7, atol=1e-9)
    wanted = dict(published.named_parameters())
    for key, parameter in module.named_parameters():
        torch.testing.assert_close(parameter.grad, wanted[key].grad, rtol=1e-7, atol=1e-9, msg=key)
    wanted = published.state_dict()
    for key, value in module.state_dict().items():
        torch.testing.assert_close(value, wanted[key], rtol=1e-9, atol=1e-11, msg=key)


def test_mixed_module_starts_as_published() -> None:
    """He's normal values with n = kernel height * kernel width * output channels."""
    module = everypool.MixedPoolingModule(256)
    for convolution in module.modules():
        if isinstance(convolution, nn.Conv2d):
            weight = convolution.weight
            expected = (2 / (weight.shape[0] * weight.shape[2] * weight.shape[3])) ** 0.5
            assert abs(weight.mean().item()) < 5 * expected / weight.numel() ** 0.5
            assert weight.std().item() == pytest.approx(expected, rel=5 / (2 * weight.numel()) ** 0.5)


@pytest.mark.parametrize("channels", [0, -4, 6, 2.0, True, "8"])
def test_mixed_module_refuses_channels(channels: object) -> None:
    with pytest.raises((ValueError, TypeError), match=r"^`channels` must be .+, got "):
        everypool.MixedPoolingModule(channels)  # type: ignore[arg-type]
