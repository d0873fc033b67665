"""Strip pooling module and mixed pooling module of SPNet."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from everypool import _check as check
from everypool.blocks._map_block import MapBlock, conv_norm
from everypool.pool import Operation, register
from everypool.reducers import adaptive_avg_pool
from everypool.windows import strip_pool

__all__ = ["MixedPoolingModule", "StripPoolingModule"]


class StripPoolingModule(MapBlock):
    """SPNet's strip pooling module: every place is gated by what its row and its column hold.

    y = x * sigmoid(conv1x1(relu(bn(conv3x1(row means)) + bn(conv1x3(column means))))).

    Args:
        channels: C of input and output.
        gated: multiply with the input; False for the gate alone, as the published block gives it.

    Shape: (N, C, H, W) to (N, C, H, W). Parameters: 7 C^2 + 5 C.

    Raises:
        ValueError: an input of other channels.

    Source: Hou et al. 2020, Strip pooling. Reference: github Andrew-Qibin/SPNet (SPBlock), whose weights load.

    >>> StripPoolingModule(8)(torch.ones(1, 8, 5, 6)).shape
    torch.Size([1, 8, 5, 6])
    """

    def __init__(self, channels: int, *, gated: bool = True) -> None:
        super().__init__()
        self.channels = check.positive_int("channels", channels)
        self.gated = check.boolean("gated", gated)
        self.conv1 = nn.Conv2d(channels, channels, (3, 1), padding=(1, 0), bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, (1, 3), padding=(0, 1), bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, channels, 1)

    def places(self, height: int, width: int) -> int:
        return min(height, width)

    def compute(self, input: Tensor) -> Tensor:
        rows, columns = strip_pool(input, "mean")
        both = torch.relu(self.bn1(self.conv1(rows)) + self.bn2(self.conv2(columns)))
        gate: Tensor = self.conv3(both).sigmoid()
        return input * gate if self.gated else gate


class MixedPoolingModule(MapBlock):
    """SPNet's mixed pooling module: a pyramid for short distances, strips for long ones, added to the input.

    y = relu(x + bn(conv1x1([short(x), long(x)]))), where short adds bins of two sizes to the map and long adds row means
    and column means.

    Args:
        channels: C of input and output, a multiple of 4.
        pool_size: the two grids of the pyramid.

    Shape: (N, C, H, W) to (N, C, H, W). Parameters: 276,096 at C = 256.

    Raises:
        ValueError: channels that 4 does not divide, or an input of other channels.

    Source: Hou et al. 2020, Strip pooling. Reference: github Andrew-Qibin/SPNet (StripPooling), whose weights load.

    >>> MixedPoolingModule(8, (3, 2)).eval()(torch.ones(1, 8, 5, 6)).shape
    torch.Size([1, 8, 5, 6])
    """

    def __init__(self, channels: int, pool_size: tuple[int, int] = (20, 12)) -> None:
        super().__init__()
        self.channels = check.positive_int("channels", channels)
        if channels % 4:
            raise check.invalid("channels", "a multiple of 4", channels)
        self.pool_size = check.ints("pool_size", pool_size, 2, 1)
        inner = channels // 4
        self.conv1_1 = conv_norm(channels, inner, 1)
        self.conv1_2 = conv_norm(channels, inner, 1)
        self.conv2_0 = conv_norm(inner, inner, 3, act=False)
        self.conv2_1 = conv_norm(inner, inner, 3, act=False)
        self.conv2_2 = conv_norm(inner, inner, 3, act=False)
        self.conv2_3 = conv_norm(inner, inner, (1, 3), act=False)
        self.conv2_4 = conv_norm(inner, inner, (3, 1), act=False)
        self.conv2_5 = conv_norm(inner, inner, 3)
        self.conv2_6 = conv_norm(inner, inner, 3)
        self.conv3 = conv_norm(2 * inner, channels, 1, act=False)
        self.apply(_filled)

    def reset_parameters(self) -> None:
        """The published initial values."""
        super().reset_parameters()
        self.apply(_filled)

    def places(self, height: int, width: int) -> int:
        return min(height, width, *(bins**2 for bins in self.pool_size))

    def compute(self, input: Tensor) -> Tensor:
        size = input.shape[2:]
        short, long = self.conv1_1(input), self.conv1_2(input)
        near = self.conv2_0(short)
        for bins, conv in zip(self.pool_size, (self.conv2_1, self.conv2_2), strict=True):
            grid = conv(adaptive_avg_pool(short, bins))
            near = near + F.interpolate(grid, size, mode="bilinear", align_corners=True)
        rows, columns = strip_pool(long, "mean")
        far = self.conv2_3(columns) + self.conv2_4(rows)
        both = torch.cat([self.conv2_5(torch.relu(near)), self.conv2_6(torch.relu(far))], dim=1)
        return torch.relu(input + self.conv3(both))


def _filled(module: nn.Module) -> None:
    """He's initial values for convolutions."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


register(
    Operation(
        name="strip_module",
        kind="block",
        summary="Every place gated by what its row and its column hold.",
        formula="y = x * sigmoid(conv(relu(bn(conv(row means)) + bn(conv(column means)))))",
        source="Hou et al. 2020, Strip pooling",
        nd=(2,),
        names=("StripPoolingModule",),
        parameters="7 C^2 + 5 C",
        sample=lambda: (StripPoolingModule(8), (torch.randn(2, 8, 6, 5),)),
    )
)
register(
    Operation(
        name="mixed_pooling_module",
        kind="block",
        summary="A pyramid for short distances and strips for long ones, added to the map.",
        formula="y = relu(x + bn(conv([short(x), long(x)])))",
        source="Hou et al. 2020, Strip pooling",
        nd=(2,),
        names=("MixedPoolingModule",),
        parameters="276,096 at 256 channels",
        sample=lambda: (MixedPoolingModule(8, (3, 2)), (torch.randn(2, 8, 6, 5),)),
    )
)
