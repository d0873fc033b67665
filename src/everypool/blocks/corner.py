"""Corner pooling, cascade corner pooling and CenterNet's center pooling, as trainable modules."""

from __future__ import annotations

from collections import OrderedDict
from typing import ClassVar

import torch
from torch import Tensor, nn

from everypool import _check as check
from everypool.blocks._map_block import MapBlock
from everypool.pool import Operation, register
from everypool.windows import corner_pool, cross_max_pool
from everypool.windows.scan import CORNERS, scanned_onto

__all__ = [
    "BottomRightCornerPool",
    "CascadeBottomRightPool",
    "CascadeTopLeftPool",
    "CenterNetCenterPool",
    "TopLeftCornerPool",
]


def convolution(inputs: int, outputs: int) -> nn.Sequential:
    """3x3 convolution, batch normalisation, ReLU, under the published names."""
    conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    return nn.Sequential(OrderedDict(conv=conv, bn=nn.BatchNorm2d(outputs), relu=nn.ReLU()))


class _TwoDirections(MapBlock):
    """Two branches pooled in two directions, added, and joined with the input by a residual connection."""

    def __init__(self, channels: int = 256, middle: int = 128, *, ties: str = "first") -> None:
        super().__init__()
        self.channels = check.positive_int("channels", channels)
        check.positive_int("middle", middle)
        self.ties = check.choice("ties", ties, ("first", "last", "even"))
        self.p1_conv1 = convolution(channels, middle)
        self.p2_conv1 = convolution(channels, middle)
        self.p_conv1 = nn.Conv2d(middle, channels, 3, padding=1, bias=False)
        self.p_bn1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = convolution(channels, channels)

    def core(self, input: Tensor) -> Tensor:
        """The two pooled branches, added."""
        raise NotImplementedError

    def compute(self, input: Tensor) -> Tensor:
        pooled = self.p_bn1(self.p_conv1(self.core(input)))
        result: Tensor = self.conv2(torch.relu(pooled + self.bn1(self.conv1(input))))
        return result


class _CornerPool(_TwoDirections):
    corner: ClassVar[str]

    def meet(self, first: Tensor, second: Tensor) -> Tensor:
        return corner_pool(first, self.corner, other=second, ties=self.ties)

    def core(self, input: Tensor) -> Tensor:
        return self.meet(self.p1_conv1(input), self.p2_conv1(input))


class TopLeftCornerPool(_CornerPool):
    """CornerNet's top-left corner pooling module.

    y = conv2(relu(bn(conv(top_pool(f1(x)) + left_pool(f2(x)))) + bn(conv1x1(x)))), where f1, f2 and conv2 are 3x3
    convolutions with batch normalisation and ReLU.

    Args:
        channels: C of input and output.
        middle: channels of the pooled maps.
        ties: which of equal maxima gets the gradient; "first" is the published kernels' rule.

    Shape: (N, C, H, W) to (N, C, H, W). Parameters: 1,542,144 at C = 256.

    Raises:
        ValueError: an input of other channels.

    Source: Law and Deng 2018, CornerNet. Reference: github princeton-vl/CornerNet, whose weights load.

    >>> TopLeftCornerPool(16, 8)(torch.zeros(1, 16, 5, 6)).shape
    torch.Size([1, 16, 5, 6])
    """

    corner = "top_left"


class BottomRightCornerPool(_CornerPool):
    """CornerNet's bottom-right corner pooling module; see `TopLeftCornerPool`.

    >>> BottomRightCornerPool(16, 8)(torch.zeros(1, 16, 5, 6)).shape
    torch.Size([1, 16, 5, 6])
    """

    corner = "bottom_right"


class _CascadeCornerPool(_CornerPool):
    def __init__(self, channels: int = 256, middle: int = 128, *, ties: str = "first") -> None:
        super().__init__(channels, middle, ties=ties)
        self.look_conv1 = convolution(channels, middle)
        self.look_conv2 = convolution(channels, middle)
        self.P1_look_conv = nn.Conv2d(middle, middle, 3, padding=1, bias=False)
        self.P2_look_conv = nn.Conv2d(middle, middle, 3, padding=1, bias=False)

    def core(self, input: Tensor) -> Tensor:
        down, across = CORNERS[self.corner]
        first = self.P1_look_conv(scanned_onto(self.p1_conv1(input), self.look_conv1(input), across, self.ties))
        second = self.P2_look_conv(scanned_onto(self.p2_conv1(input), self.look_conv2(input), down, self.ties))
        return self.meet(first, second)


class CascadeTopLeftPool(_CascadeCornerPool):
    """CenterNet's cascade corner pooling, top-left: look along the box first, then for its corner.

    The pooled sum of `TopLeftCornerPool` becomes
    top_pool(conv(f1(x) + left_pool(g1(x)))) + left_pool(conv(f2(x) + top_pool(g2(x)))): the maximum found along one side
    of the box is added before the other side is searched.

    Args:
        channels: C of input and output.
        middle: channels of the pooled maps.
        ties: which of equal maxima gets the gradient; "first" is the published kernels' rule.

    Shape: (N, C, H, W) to (N, C, H, W). Parameters: 2,427,392 at C = 256.

    Raises:
        ValueError: an input of other channels.

    Source: Duan et al. 2019, CenterNet. Reference: github Duankaiwen/CenterNet, whose weights load.

    >>> CascadeTopLeftPool(16, 8)(torch.zeros(1, 16, 5, 6)).shape
    torch.Size([1, 16, 5, 6])
    """

    corner = "top_left"


class CascadeBottomRightPool(_CascadeCornerPool):
    """CenterNet's cascade corner pooling, bottom-right; see `CascadeTopLeftPool`.

    >>> CascadeBottomRightPool(16, 8)(torch.zeros(1, 16, 5, 6)).shape
    torch.Size([1, 16, 5, 6])
    """

    corner = "bottom_right"


class CenterNetCenterPool(_TwoDirections):
    """CenterNet's center pooling module: the largest value of a place's column plus the largest of its row.

    As `TopLeftCornerPool`, with max over the column of f1(x) + max over the row of f2(x) as the pooled sum. For the value
    in the middle of a window, the other meaning of the name, see `CenterPool2d`. Equal maxima: the last gets the gradient,
    as published.

    Args:
        channels: C of input and output.
        middle: channels of the pooled maps.

    Shape: (N, C, H, W) to (N, C, H, W). Parameters: 1,542,144 at C = 256.

    Raises:
        ValueError: an input of other channels.

    Source: Duan et al. 2019, CenterNet. Reference: github Duankaiwen/CenterNet, whose weights load.

    >>> CenterNetCenterPool(16, 8)(torch.zeros(1, 16, 5, 6)).shape
    torch.Size([1, 16, 5, 6])
    """

    def __init__(self, channels: int = 256, middle: int = 128) -> None:
        super().__init__(channels, middle)

    def core(self, input: Tensor) -> Tensor:
        return cross_max_pool(self.p1_conv1(input), other=self.p2_conv1(input))


register(
    Operation(
        name="corner_module",
        kind="block",
        summary="Running maxima that meet in a box's corner, between convolutions.",
        formula="y = conv2(relu(bn(conv(top(f1(x)) + left(f2(x)))) + bn(conv1x1(x))))",
        source="Law and Deng 2018, CornerNet",
        nd=(2,),
        names=("TopLeftCornerPool", "BottomRightCornerPool"),
        parameters="1,542,144 at 256 channels",
        sample=lambda: (TopLeftCornerPool(8, 4), (torch.randn(2, 8, 6, 5),)),
    )
)
register(
    Operation(
        name="cascade_corner",
        kind="block",
        summary="Corner pooling that first looks along the sides of the box.",
        formula="pooled = top(conv(f1(x) + left(g1(x)))) + left(conv(f2(x) + top(g2(x))))",
        source="Duan et al. 2019, CenterNet",
        nd=(2,),
        names=("CascadeTopLeftPool", "CascadeBottomRightPool"),
        parameters="2,427,392 at 256 channels",
        sample=lambda: (CascadeTopLeftPool(8, 4), (torch.randn(2, 8, 6, 5),)),
    )
)
register(
    Operation(
        name="center_module",
        kind="block",
        summary="The largest values of a place's column and row, between convolutions.",
        formula="pooled = max over h of f1(x) + max over w of f2(x)",
        source="Duan et al. 2019, CenterNet",
        nd=(2,),
        names=("CenterNetCenterPool",),
        parameters="1,542,144 at 256 channels",
        sample=lambda: (CenterNetCenterPool(8, 4), (torch.randn(2, 8, 6, 5),)),
    )
)
