"""PANet's heads: every box is pooled on every level, and the levels are fused after each has had a layer of its own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from everypool import _check as check
from everypool.blocks._map_block import features
from everypool.module import PoolingModule
from everypool.pool import Operation, register
from everypool.windows import multi_level_roi_pool
from everypool.windows.levels import FUSIONS

__all__ = ["PANetBoxHead", "PANetConvBoxHead", "PANetMaskHead"]

SCALES = (1 / 4, 1 / 8, 1 / 16, 1 / 32)


class _FusedHead(PoolingModule):
    """Adaptive feature pooling before a head: `first` per level, fused, then `rest`."""

    def __init__(self, channels: int, resolution: int, scales: Sequence[float], fuse: str, sampling_ratio: int) -> None:
        super().__init__()
        self.channels = check.positive_int("channels", channels)
        self.resolution = check.positive_int("resolution", resolution)
        if not isinstance(scales, (list, tuple)) or not scales:
            raise check.invalid("scales", "one number per level, at least one", scales)
        self.scales = tuple(check.number("scales", scale, "positive and finite", above=0, finite=True) for scale in scales)
        self.fuse = check.choice("fuse", fuse, FUSIONS)
        if not check.is_int(sampling_ratio):
            raise check.wrong_type("sampling_ratio", "an int", sampling_ratio)
        self.sampling_ratio = sampling_ratio

    def reset_parameters(self) -> None:
        """The published initial values."""
        super().reset_parameters()
        self.apply(_filled)

    def first(self, level: int, pooled: Tensor) -> Tensor:
        raise NotImplementedError

    def rest(self, fused: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(
        self, inputs: Sequence[Tensor], boxes: Any, mask: Sequence[Tensor] | None = None, sizes: Sequence[Any] | None = None
    ) -> Tensor:
        """One map (N, C, H, W) per level, in the order of `scales`; boxes (R, 5): sample number, x1, y1, x2, y2."""
        for x in inputs if isinstance(inputs, (list, tuple)) else ():
            features("inputs", x, self.channels, 2)
        pooled = multi_level_roi_pool(
            inputs,
            boxes,
            self.resolution,
            self.scales,
            None,
            sampling_ratio=self.sampling_ratio,
            mask=mask,
            sizes=sizes,
        )
        levels = torch.stack([self.first(i, part) for i, part in enumerate(pooled)])
        return self.rest(levels.amax(0) if self.fuse == "max" else levels.sum(0))


class PANetBoxHead(_FusedHead):
    """PANet's box head with two fully connected layers.

    y = relu(gn(W2 fuse over levels l of relu(gn(W1_l roi_align(x_l, boxes))))).

    Args:
        channels: C of the maps.
        hidden: width of both layers, a multiple of 32 and more, so that a group has a variance.
        resolution: bins per axis of a box.
        scales: map cells per unit of the boxes, one per level; the published weights take the finest level first.
        fuse: "max" (the published code) or "sum" (the paper's other choice).
        sampling_ratio: samples per bin and axis.
        first_norm: group normalisation in the layers before the fusion; a later revision of the published code has none.

    Shape: L maps (N, C, H_l, W_l) and boxes (R, 5) to (R, hidden). Parameters: 52,444,160 with the defaults.

    Raises:
        ValueError: maps of other channels or number, boxes that break their rule.

    Source: Liu et al. 2018, PANet. Reference: github ShuLiu1993/PANet (roi_2mlp_head_gn_panet), whose weights load.

    >>> maps = [torch.ones(1, 8, 32, 32), torch.ones(1, 8, 16, 16)]
    >>> head = PANetBoxHead(8, 64, scales=(1 / 4, 1 / 8))
    >>> head(maps, torch.tensor([[0.0, 4.0, 4.0, 90.0, 60.0]])).shape
    torch.Size([1, 64])
    """

    def __init__(
        self,
        channels: int = 256,
        hidden: int = 1024,
        resolution: int = 7,
        scales: Sequence[float] = SCALES,
        fuse: str = "max",
        *,
        sampling_ratio: int = 2,
        first_norm: bool = True,
    ) -> None:
        super().__init__(channels, resolution, scales, fuse, sampling_ratio)
        _groups("hidden", hidden, 1)
        check.boolean("first_norm", first_norm)
        inputs = channels * resolution**2
        self.fc1 = nn.ModuleList()
        for _ in self.scales:
            norm = [nn.GroupNorm(32, hidden)] if first_norm else []
            self.fc1.append(nn.Sequential(nn.Linear(inputs, hidden), *norm, nn.ReLU()))
        self.fc2 = nn.Sequential(nn.Linear(hidden, hidden), nn.GroupNorm(32, hidden), nn.ReLU())
        self.apply(_filled)

    def first(self, level: int, pooled: Tensor) -> Tensor:
        result: Tensor = self.fc1[level](pooled.flatten(1))
        return result

    def rest(self, fused: Tensor) -> Tensor:
        result: Tensor = self.fc2(fused)
        return result


class PANetConvBoxHead(_FusedHead):
    """PANet's box head with convolutions and one fully connected layer ("Xconv1fc").

    y = relu(W flatten(convs(fuse over levels l of relu(gn(conv_l(roi_align(x_l, boxes))))))).

    Args:
        channels: C of the maps.
        hidden: width of the fully connected layer.
        resolution: bins per axis of a box.
        scales: map cells per unit of the boxes, one per level; the published weights take the finest level first.
        fuse: "max" (the published code) or "sum".
        convs: convolutions in all, the one before the fusion included.
        width: their channels, a multiple of 32.
        sampling_ratio: samples per bin and axis.

    Shape: L maps (N, C, H_l, W_l) and boxes (R, 5) to (R, hidden). Parameters: 16,978,432 with the defaults.

    Raises:
        ValueError: maps of other channels or number, boxes that break their rule.

    Source: Liu et al. 2018, PANet. Reference: github ShuLiu1993/PANet (roi_Xconv1fc_gn_head_panet), whose weights load.

    >>> maps = [torch.ones(1, 32, 32, 32), torch.ones(1, 32, 16, 16)]
    >>> head = PANetConvBoxHead(32, 16, scales=(1 / 4, 1 / 8), width=32)
    >>> head(maps, torch.tensor([[0.0, 4.0, 4.0, 90.0, 60.0]])).shape
    torch.Size([1, 16])
    """

    def __init__(
        self,
        channels: int = 256,
        hidden: int = 1024,
        resolution: int = 7,
        scales: Sequence[float] = SCALES,
        fuse: str = "max",
        *,
        convs: int = 4,
        width: int = 256,
        sampling_ratio: int = 2,
    ) -> None:
        super().__init__(channels, resolution, scales, fuse, sampling_ratio)
        _groups("width", width, resolution**2)
        self.conv1_head = nn.ModuleList(nn.Sequential(*_conv(channels, width)) for _ in self.scales)
        self.convs = nn.Sequential(
            *(part for _ in range(check.positive_int("convs", convs) - 1) for part in _conv(width, width))
        )
        self.fc = nn.Linear(width * resolution**2, check.positive_int("hidden", hidden))
        self.apply(_filled)

    def first(self, level: int, pooled: Tensor) -> Tensor:
        result: Tensor = self.conv1_head[level](pooled)
        return result

    def rest(self, fused: Tensor) -> Tensor:
        return torch.relu(self.fc(self.convs(fused).flatten(1)))


class PANetMaskHead(_FusedHead):
    """PANet's mask head: convolutions per level, fused, more convolutions, twice the resolution.

    y = relu(deconv(convs(fuse over levels l of relu(gn(conv_l(roi_align(x_l, boxes))))))).

    Args:
        channels: C of the maps.
        width: channels of the convolutions, a multiple of 32.
        resolution: bins per axis of a box.
        scales: map cells per unit of the boxes, one per level; the published weights take the finest level first.
        fuse: "max" (the published code) or "sum".
        convs: convolutions in all, the one before the fusion included.
        sampling_ratio: samples per bin and axis.

    Shape: L maps (N, C, H_l, W_l) and boxes (R, 5) to (R, width, 2 * resolution, 2 * resolution). Parameters: 4,394,752
    with the defaults.

    Raises:
        ValueError: maps of other channels or number, boxes that break their rule.

    Source: Liu et al. 2018, PANet. Reference: github ShuLiu1993/PANet (mask_rcnn_fcn_head_v1upXconvs_gn_adp), whose
    weights load.

    >>> maps = [torch.ones(1, 32, 32, 32), torch.ones(1, 32, 16, 16)]
    >>> head = PANetMaskHead(32, 32, scales=(1 / 4, 1 / 8))
    >>> head(maps, torch.tensor([[0.0, 4.0, 4.0, 90.0, 60.0]])).shape
    torch.Size([1, 32, 28, 28])
    """

    def __init__(
        self,
        channels: int = 256,
        width: int = 256,
        resolution: int = 14,
        scales: Sequence[float] = SCALES,
        fuse: str = "max",
        *,
        convs: int = 4,
        sampling_ratio: int = 2,
    ) -> None:
        super().__init__(channels, resolution, scales, fuse, sampling_ratio)
        _groups("width", width, resolution**2)
        self.mask_conv1 = nn.ModuleList(nn.Sequential(*_conv(channels, width)) for _ in self.scales)
        rest = range(check.positive_int("convs", convs) - 1)
        self.conv_fcn = nn.Sequential(*(part for _ in rest for part in _conv(width, width)))
        self.upconv = nn.ConvTranspose2d(width, width, 2, 2)
        self.apply(_filled)

    def first(self, level: int, pooled: Tensor) -> Tensor:
        result: Tensor = self.mask_conv1[level](pooled)
        return result

    def rest(self, fused: Tensor) -> Tensor:
        return torch.relu(self.upconv(self.conv_fcn(fused)))


def _groups(name: str, value: int, places: int) -> None:
    if check.positive_int(name, value) % 32:
        raise check.invalid(name, "a multiple of 32", value)
    if value * places == 32:  # 32 groups of one value, of which normalisation leaves the bias alone
        raise check.invalid(name, "at least 64, since groups of one value have no variance", value)


def _conv(inputs: int, outputs: int) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.GroupNorm(32, outputs), nn.ReLU()]


def _filled(module: nn.Module) -> None:
    """The published initial values: He for convolutions, Xavier for linear layers, no bias."""
    if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    elif isinstance(module, nn.Linear):
        bound = math.sqrt(3 / module.in_features)
        nn.init.uniform_(module.weight, -bound, bound)
    if isinstance(module, (nn.Linear, nn.ConvTranspose2d)) and module.bias is not None:
        nn.init.zeros_(module.bias)


def _sample() -> tuple[nn.Module, tuple[Any, ...]]:
    maps = [torch.randn(2, 8, 18, 12), torch.randn(2, 8, 9, 6)]  # sizes unlike those of weights, which a graph takes for one
    return PANetBoxHead(8, 64, 2, (0.25, 0.125)), (
        maps,
        torch.tensor([[0.0, 3.0, 2.0, 30.0, 40.0], [1.0, 8.0, 9.0, 20.0, 15.0]]),
    )


register(
    Operation(
        name="panet_head",
        kind="block",
        summary="Boxes pooled on every level, one layer per level, fused, then the head.",
        formula="y = head(max over levels l of layer_l(roi_align(x_l)))",
        source="Liu et al. 2018, PANet",
        nd=(2,),
        names=("PANetBoxHead", "PANetConvBoxHead", "PANetMaskHead"),
        parameters="52,444,160 (two fully connected layers), 16,978,432 (convolutions), 4,394,752 (mask)",
        onnx=False,
        sample=_sample,
    )
)
