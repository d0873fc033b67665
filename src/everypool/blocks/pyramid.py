"""Pyramids as trainable modules: the head of SPP-net, PSPNet's PPM, and the SPP and SPPF of YOLO."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from everypool import _check as check
from everypool.blocks._map_block import MapBlock, conv_norm, features
from everypool.blocks.heads import fully_connected
from everypool.module import PoolingModule
from everypool.pool import Operation, register
from everypool.pool.shards import refuse_shards
from everypool.reducers import adaptive_avg_pool, max_pool
from everypool.windows import SpatialPyramidPool

__all__ = ["SPPF", "YOLOSPP", "PyramidPoolingModule", "SpatialPyramidHead"]


class SpatialPyramidHead(PoolingModule):
    """SPP-net's head: a map of any size becomes a vector of fixed length, which fully connected layers classify.

    y = W [reducer over every bin of every level] + b, with a hidden layer and ReLU for each entry of `hidden`.

    Args:
        channels: C of the input.
        classes: K.
        levels: bins per axis of each level.
        hidden: widths of the hidden layers.
        reducer: a reducer or the name of one.
        bins: "adaptive", "sppnet" or "caffe", see `Pyramid`.
        nd: spatial axes of the input.

    Shape: (N, C, *spatial) to (N, K).

    Raises:
        ValueError: an input of other channels or axes.
        TypeError: an input that is not floating point.

    Source: He et al. 2014, Spatial pyramid pooling.

    >>> head = SpatialPyramidHead(8, 10)
    >>> head(torch.ones(1, 8, 13, 17)).shape, head(torch.ones(1, 8, 6, 5)).shape
    (torch.Size([1, 10]), torch.Size([1, 10]))
    """

    def __init__(
        self,
        channels: int,
        classes: int,
        levels: Sequence[int] = (1, 2, 4),
        *,
        hidden: Sequence[int] = (),
        reducer: Any = "max",
        bins: str = "adaptive",
        nd: int = 2,
    ) -> None:
        super().__init__()
        self.channels = check.positive_int("channels", channels)
        self.nd = check.positive_int("nd", nd)
        if nd > 3:
            raise check.invalid("nd", "1, 2 or 3", nd)
        self.pool = SpatialPyramidPool(levels, reducer, bins=bins)
        self.classifier = fully_connected(channels * sum(level**nd for level in levels), hidden, classes)

    def forward(self, input: Any, mask: Tensor | None = None, sizes: Any = None) -> Tensor:
        """Classify (N, C, *spatial), or a list of maps (C, *spatial) of different sizes."""
        for sample in input if isinstance(input, (list, tuple)) else ():
            features("input", check.tensor("input", sample, "(C, *spatial)", (self.nd + 1,))[None], self.channels, self.nd)
        if isinstance(input, Tensor):
            features("input", input, self.channels, self.nd)
        result: Tensor = self.classifier(self.pool(input, mask=mask, sizes=sizes))
        return result


class PyramidPoolingModule(MapBlock):
    """PSPNet's pyramid pooling module: averages over grids from coarse to fine, put next to the map.

    y = [x, up(relu(bn(conv1x1(adaptive_avg(x, n))))) for each n].

    Args:
        channels: C of the input.
        reduced: channels of each level. Default: C / number of levels.
        bins: the grids.

    Shape: (N, C, H, W) to (N, C + levels * reduced, H, W). Parameters: C^2 + 2 C with the defaults.

    Raises:
        ValueError: an input of other channels, or fewer channels than grids where `reduced` is None.

    Source: Zhao et al. 2017, PSPNet. Reference: github hszhao/semseg (PPM), whose weights load.

    >>> PyramidPoolingModule(8).eval()(torch.ones(1, 8, 7, 6)).shape
    torch.Size([1, 16, 7, 6])
    """

    def __init__(self, channels: int, reduced: int | None = None, bins: Sequence[int] = (1, 2, 3, 6)) -> None:
        super().__init__()
        self.channels = check.positive_int("channels", channels)
        if not isinstance(bins, (list, tuple)) or not bins:
            raise check.invalid("bins", "one positive int or more", bins)
        self.bins = tuple(check.positive_int("bins", n) for n in bins)
        if reduced is None and channels < len(bins):
            raise check.invalid("channels", f"at least the number of grids {len(bins)} where reduced is None", channels)
        width = channels // len(bins) if reduced is None else check.positive_int("reduced", reduced)
        # the first entry stands where the original has its pooling layer, so that names agree
        self.features = nn.ModuleList(nn.Sequential(nn.Identity(), *conv_norm(channels, width, 1)) for _ in self.bins)

    def places(self, height: int, width: int) -> int:
        return min(self.bins) ** 2

    def compute(self, input: Tensor) -> Tensor:
        refuse_shards("input", input)
        parts = [input]
        for n, layers in zip(self.bins, self.features, strict=True):
            grid = layers(adaptive_avg_pool(input, n))
            parts.append(F.interpolate(grid, input.shape[2:], mode="bilinear", align_corners=True))
        return torch.cat(parts, dim=1)


def conv_silu(inputs: int, outputs: int, act: bool = True) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, 1, bias=False)
    norm = nn.BatchNorm2d(outputs, eps=1e-3, momentum=0.03)
    return nn.Sequential(OrderedDict(conv=conv, bn=norm, act=nn.SiLU() if act else nn.Identity()))


class YOLOSPP(MapBlock):
    """YOLO's SPP: the map next to its maxima in three sizes of window.

    y = conv([x', max5(x'), max9(x'), max13(x')]), x' = conv(x).

    Args:
        channels: C of the input.
        outputs: channels of the result. Default: C.
        kernels: odd window sizes.

    Shape: (N, C, H, W) to (N, outputs, H, W).

    Raises:
        ValueError: an even kernel, or an input of other channels.

    Source: Huang and Wang 2020; YOLOv3-SPP, YOLOv5. Reference: ultralytics SPP (the order x, 5, 9, 13), whose weights load.

    >>> YOLOSPP(8)(torch.ones(2, 8, 7, 6)).shape
    torch.Size([2, 8, 7, 6])
    """

    def __init__(self, channels: int, outputs: int | None = None, kernels: Sequence[int] = (5, 9, 13)) -> None:
        super().__init__()
        self.channels = check.positive_int("channels", channels)
        if not isinstance(kernels, (list, tuple)) or not kernels:
            raise check.invalid("kernels", "one odd int or more", kernels)
        for kernel in kernels:
            if check.positive_int("kernels", kernel) % 2 == 0:
                raise check.invalid("kernels", "odd", kernels)
        self.kernels = tuple(kernels)
        inner = max(channels // 2, 1)
        self.cv1 = conv_silu(channels, inner)
        self.cv2 = conv_silu(
            inner * (len(self.kernels) + 1), channels if outputs is None else check.positive_int("outputs", outputs)
        )

    def compute(self, input: Tensor) -> Tensor:
        x = self.cv1(input)
        result: Tensor = self.cv2(torch.cat([x, *(max_pool(x, k, 1, k // 2) for k in self.kernels)], dim=1))
        return result


class SPPF(MapBlock):
    """YOLO's fast SPP: one window applied three times in a row; equal to `YOLOSPP` with 5, 9 and 13 where k = 5.

    y = conv([x', m(x'), m(m(x')), m(m(m(x')))]), x' = conv(x), m = max_pool(k, stride 1); y + x with `shortcut`.

    Args:
        channels: C of the input.
        outputs: channels of the result. Default: C.
        kernel: odd window size.
        n: how often the window is applied.
        shortcut: add the input to the result. Default: False.
        act: SiLU after the first convolution, as in YOLOv5 to YOLO12; False as in YOLO26. Default: True.

    Shape: (N, C, H, W) to (N, outputs, H, W). At equal maxima the gradient may differ from that of `YOLOSPP`.

    Raises:
        ValueError: an even kernel, an input of other channels, or a shortcut to other channels; a state dict that was saved
            with other settings.

    Warns:
        UserWarning: what is loaded does not say how it was trained, and neither do `act` and `shortcut`: weights of YOLOv5
            and of YOLO26 have the same names and shapes, but mean different functions.

    Source: Jocher 2022, YOLOv5. Reference: ultralytics SPPF, whose weights load. From 8.4 on its class has act=False, but
    models that were described before, up to YOLO12, keep the activation: `act` is True for them whatever the version.

    >>> SPPF(8)(torch.ones(2, 8, 7, 6)).shape
    torch.Size([2, 8, 7, 6])
    """

    def __init__(
        self,
        channels: int,
        outputs: int | None = None,
        kernel: int = 5,
        n: int = 3,
        shortcut: bool | None = None,
        *,
        act: bool | None = None,
    ) -> None:
        super().__init__()
        self.channels = check.positive_int("channels", channels)
        if check.positive_int("kernel", kernel) % 2 == 0:
            raise check.invalid("kernel", "odd", kernel)
        self.kernel, self.n = kernel, check.positive_int("n", n)
        self.outputs = channels if outputs is None else check.positive_int("outputs", outputs)
        self.shortcut = None if shortcut is None else check.boolean("shortcut", shortcut)
        if self.shortcut and self.outputs != channels:
            raise check.invalid("shortcut", f"False where outputs = {outputs} differ from channels = {channels}", shortcut)
        self.act = None if act is None else check.boolean("act", act)
        inner = max(channels // 2, 1)
        self.cv1 = conv_silu(channels, inner, self.act is not False)
        self.cv2 = conv_silu(inner * (n + 1), self.outputs)

    def compute(self, input: Tensor) -> Tensor:
        maps = [self.cv1(input)]
        for _ in range(self.n):
            maps.append(max_pool(maps[-1], self.kernel, 1, self.kernel // 2))
        result: Tensor = self.cv2(torch.cat(maps, dim=1))
        return result + input if self.shortcut else result

    def settings(self) -> dict[str, Any]:
        """What weights do not tell of the function that they belong to."""
        return {"kernel": self.kernel, "shortcut": bool(self.shortcut), "act": self.act is not False}

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if hasattr(destination, "_metadata"):  # beside the entries, which are those of the published module
            destination._metadata[prefix[:-1]]["settings"] = self.settings()

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any], *arguments: Any
    ) -> None:
        saved = local_metadata.get("settings")
        if saved is not None:
            for name, value in self.settings().items():
                if saved.get(name, value) != value:
                    arguments[-1].append(
                        f"`{name}` must be {saved[name]!r}, as it was when {prefix!r} was saved, got {value!r}"
                    )
        elif self.act is None:
            rule = "True for weights of YOLOv5 to YOLO12 or False for those of YOLO26, which alone do not tell"
            warnings.warn(f"`act` must be {rule}, got None, taken for True", stacklevel=2)
        elif self.act is False and self.shortcut is None and self.outputs == self.channels:
            rule = "True or False for weights of YOLO26, which alone do not tell"
            warnings.warn(f"`shortcut` must be {rule}, got None, taken for False", stacklevel=2)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *arguments)

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value}" for name, value in {**self.settings(), "n": self.n}.items())


register(
    Operation(
        name="spatial_pyramid_head",
        kind="block",
        summary="A map of any size becomes a vector of fixed length, which fully connected layers classify.",
        formula="y = W spatial_pyramid_pool(x) + b",
        source="He et al. 2014",
        names=("SpatialPyramidHead",),
        parameters="C K sum(n^2) + K",
        sample=lambda: (SpatialPyramidHead(8, 3, (1, 2)), (torch.randn(2, 8, 6, 5),)),
    )
)
register(
    Operation(
        name="pyramid_pooling_module",
        kind="block",
        summary="Averages over grids from coarse to fine, put next to the map.",
        formula="y = [x, up(relu(bn(conv(adaptive_avg(x, n))))) for each n]",
        source="Zhao et al. 2017, PSPNet",
        nd=(2,),
        names=("PyramidPoolingModule",),
        parameters="C^2 + 2 C",
        sample=lambda: (PyramidPoolingModule(8), (torch.randn(2, 8, 6, 5),)),
    )
)
register(
    Operation(
        name="yolo_spp",
        kind="block",
        summary="The map next to its maxima in windows of three sizes.",
        formula="y = conv([x', max5(x'), max9(x'), max13(x')]), x' = conv(x)",
        source="YOLOv3-SPP, YOLOv5",
        nd=(2,),
        names=("YOLOSPP", "SPPF"),
        parameters="5/2 C^2 + 3 C",
        sample=lambda: (SPPF(8), (torch.randn(2, 8, 6, 5),)),
    )
)
