"""Context from far away: roads across a picture, each named by a sign that may stand at its far end."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from everypool.blocks import MixedPoolingModule, PyramidPoolingModule, StripPoolingModule
from everypool.reducers import avg_pool
from everypool.study.data import digits, photos
from everypool.study.experiment import Experiment, Measure, Scale, register
from everypool.study.measures import parameters
from everypool.study.nets import convolution
from everypool.study.train import fit, predict
from everypool.study.trial import Context, Trial

__all__ = ["EXPERIMENT", "WindowModule", "build", "scene", "scenes", "scores"]

SIDE, ROAD, SIGNS = 48, 8, 4  # pixels of the picture, pixels across a road, and digits 0 to 3 as signs
CELL = 4  # pixels that share a label, since roads begin at multiples of it
CLASSES = SIGNS + 1  # 0 is what is no road
CHANNELS, LEVEL = 16, 20  # of the map, and of each level of the pyramid, so that all have about as many parameters
TRAIN, TEST, SHARE = 320, 80, 0.2  # pictures, and the share of the scans and of each texture that tests
NEAR, FAR = 12, 24  # pixels from the middle of the sign
NOWHERE = 999


class WindowModule(StripPoolingModule):
    """The strip pooling module with square windows in place of strips, and otherwise the same, parameters too."""

    def __init__(self, channels: int, window: int | None) -> None:
        super().__init__(channels)
        self.window = window  # None for the whole map

    def compute(self, input: Tensor) -> Tensor:
        if self.window is None:
            around = input.mean((2, 3), keepdim=True).expand_as(input)
        else:
            around = avg_pool(input, self.window, 1, self.window // 2, count_include_pad=False)
        both = torch.relu(self.bn1(self.conv1(around)) + self.bn2(self.conv2(around)))
        return input * self.conv3(both).sigmoid()


class Residual(nn.Sequential):
    """Convolutions added to the map."""

    def forward(self, input: Tensor) -> Tensor:
        output: Tensor = super().forward(input)
        return input + output


def context_module(name: str) -> nn.Module:
    """What looks around, between the convolutions and the classifier."""
    if name == "strip":
        return StripPoolingModule(CHANNELS)
    if name in ("local", "global"):
        return WindowModule(CHANNELS, 5 if name == "local" else None)
    if name == "pyramid":
        return PyramidPoolingModule(CHANNELS, reduced=LEVEL)
    if name == "mixed":
        return MixedPoolingModule(CHANNELS, (6, 3))
    dilated = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=4, dilation=4)
    return Residual(dilated, nn.BatchNorm2d(CHANNELS), nn.ReLU())


def build(name: str) -> nn.Module:
    """A network (N, 1, 48, 48) -> (N, 5, 12, 12), whose cells see 15 pixels a side without the context.

    >>> build("strip")(torch.zeros(2, 1, 48, 48)).shape
    torch.Size([2, 5, 12, 12])
    """
    trunk = [
        *convolution(1, CHANNELS // 2, stride=2),
        *convolution(CHANNELS // 2, CHANNELS, stride=2),
        *convolution(CHANNELS, CHANNELS),
    ]
    module = context_module(name)
    channels = CHANNELS + 4 * LEVEL if name == "pyramid" else CHANNELS
    return nn.Sequential(*trunk, module, nn.Conv2d(channels, CLASSES, 1))


def pick(count: int, generator: torch.Generator) -> int:
    """A number from 0 to count - 1."""
    return int(torch.randint(count, (), generator=generator))


def cut(texture: Tensor, height: int, width: int, generator: torch.Generator) -> Tensor:
    """A rectangle (height, width) of it at a random place."""
    top, left = pick(texture.shape[0] - height + 1, generator), pick(texture.shape[1] - width + 1, generator)
    return texture[top : top + height, left : left + width]


def scene(grass: Tensor, gravel: Tensor, scans: list[Tensor], generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """A meadow with two roads across and one road down.

    A sign stands at one end of a road, or one stands every eight pixels of it, by the toss of a coin.

    Args:
        grass: the texture of the meadow.
        gravel: that of the roads.
        scans: those that may serve as each of the signs, (n, 8, 8).
        generator: draws all.

    Returns:
        The picture (48, 48); the class of each cell of 4 x 4 pixels (12, 12); its first pixel's distance along the road from
        the middle of the only sign, -1 where the road has many, `NOWHERE` off the roads.
    """
    picture = cut(grass, SIDE, SIDE, generator).clone()
    labels = torch.zeros(SIDE, SIDE, dtype=torch.int64)
    distance = torch.full((SIDE, SIDE), NOWHERE)
    # none runs along the rim, where the ends of the others are
    last, choices = SIDE - 2 * ROAD, (SIDE // 2 - 2 * ROAD) // CELL + 1
    first, second = ROAD + CELL * pick(choices, generator), last - CELL * pick(choices, generator)
    for down, start in ((True, CELL * (2 + pick(last // CELL - 1, generator))), (False, first), (False, second)):
        views = [part.T if down else part for part in (picture, labels, distance)]
        road, name, away = (view[start : start + ROAD] for view in views)
        sign, many, right = pick(SIGNS, generator), bool(pick(2, generator)), bool(pick(2, generator))
        road.copy_(cut(gravel, ROAD, SIDE, generator))
        name.fill_(sign + 1)
        places = range(0, SIDE, ROAD) if many else [SIDE - ROAD if right else 0]
        for place in places:
            scan = scans[sign][pick(len(scans[sign]), generator)]
            target = road[:, place : place + ROAD]
            target.copy_(torch.maximum(target / 2, scan.T if down else scan))
        away.copy_(torch.tensor(-1) if many else (torch.arange(SIDE) - places[0] - ROAD // 2).abs().expand(ROAD, SIDE))
    return picture, labels[::CELL, ::CELL], distance[::CELL, ::CELL]


def scenes(generator: torch.Generator) -> tuple[tuple[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]:
    """Pictures (N, 1, 48, 48), classes and distances to train with; those to test with have other scans and textures."""
    images, labels = digits.load()
    images = images[:, 0, digits.MARGIN : -digits.MARGIN, digits.MARGIN : -digits.MARGIN]
    order = torch.randperm(len(images), generator=generator)
    textures = [photos.load(name).mean(0) for name in ("grass", "gravel")]
    parts = []
    for count, first, last in ((TRAIN, SHARE, 1.0), (TEST, 0.0, SHARE)):
        own = order[int(first * len(order)) : int(last * len(order))]
        scans = [images[own[labels[own] == sign]] for sign in range(SIGNS)]
        grass, gravel = (part[int(first * len(part)) : int(last * len(part))] for part in textures)
        made = [scene(grass, gravel, scans, generator) for _ in range(count)]
        pictures, classes, distances = (torch.stack(column) for column in zip(*made, strict=True))
        parts.append((pictures.unsqueeze(1), classes, distances))
    return parts[0], parts[1]


def scores(answer: Tensor, labels: Tensor, distance: Tensor) -> dict[str, float]:
    """What is right of the classes of all cells, in percent.

    >>> found = scores(torch.tensor([[1, 1, 2, 0]]), torch.tensor([[1, 1, 1, 0]]), torch.tensor([[4, -1, 40, 999]]))
    >>> found["near"], found["far"], found["local"], found["road"]
    (100.0, 0.0, 100.0, 100.0)
    """

    def share(right: Tensor, chosen: Tensor) -> float:
        return 100 * right[chosen].to(torch.float64).mean().item()

    right, road = answer == labels, labels > 0
    alone = road & (distance >= 0)
    unions = [((answer == k) | (labels == k), (answer == k) & (labels == k)) for k in range(CLASSES)]
    shares = [100 * both.sum().item() / either.sum().item() for either, both in unions if either.any()]
    return {
        "accuracy": share(right, torch.ones_like(road)),
        "iou": sum(shares) / len(shares),
        "near": share(right, alone & (distance <= NEAR)),
        "far": share(right, alone & (distance >= FAR)),
        "local": share(right, road & ~alone),
        "road": share((answer > 0) == road, torch.ones_like(road)),
    }


def run(trial: Trial, context: Context) -> dict[str, float]:
    generator = torch.Generator().manual_seed(trial.seed)
    (pictures, labels, _), (tests, own, distance) = scenes(generator)
    model = build(trial.variant)
    fit(model, pictures, labels, epochs=trial["epochs"], generator=generator, context=context, batch=16)
    answer = predict(model, tests).argmax(1)
    return {**scores(answer, own, distance), "parameters": parameters(model)}


EXPERIMENT = register(
    Experiment(
        name="far",
        summary="Label every 4 x 4 pixels of a meadow with three roads; one sign at its end names a road, or signs all along.",
        data=f"scikit-learn's digits 0 to {SIGNS - 1} as signs on gravel and grass, two {photos.CREDIT}: {TRAIN} pictures "
        f"of {SIDE} x {SIDE} pixels to train, {TEST} to test with other scans and other parts of the textures",
        variants={
            "local": "the strip module with windows of 5 x 5 in place of strips",
            "strip": "the strip pooling module",
            "global": "the strip module with the mean of the whole map in place of strips",
            "pyramid": "the pyramid pooling module",
            "mixed": "the mixed pooling module",
            "dilated": "a convolution of 3 x 3 with gaps of 4, added",
        },
        measures={
            "accuracy": Measure("accuracy"),
            "iou": Measure("mean intersection over union"),
            "near": Measure(f"accuracy on roads with one sign, up to {NEAR} px from it"),
            "far": Measure(f"accuracy on roads with one sign, from {FAR} px on"),
            "local": Measure("accuracy on roads with signs all along"),
            "road": Measure("accuracy of road or no road"),
            "parameters": Measure("parameters", "", better=-1, exact=True),
        },
        run=run,
        recipe=1,
        full=Scale(seeds=12, settings={"epochs": 20}),
        quick=Scale(seeds=8, settings={"epochs": 7}),
        overlap=SHARE / (1 - SHARE),
    )
)
