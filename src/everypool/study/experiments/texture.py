"""The general level or the strongest response: which tells one texture from another, and which bears noise."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from everypool.factory import create
from everypool.study.data import photos
from everypool.study.experiment import Experiment, Measure, Scale, register
from everypool.study.measures import accuracy
from everypool.study.nets import halving
from everypool.study.train import fit
from everypool.study.transforms import noisy
from everypool.study.trial import Context, Trial

__all__ = ["EXPERIMENT", "TEXTURES", "build", "crops", "peppered"]

TEXTURES = "brick", "grass", "gravel", "moon", "hubble", "ihc", "page", "text"
GRID, KEPT = 4, 4  # each picture is cut into 4 x 4 tiles; crops of 4 of them test
SIDE, WIDTH = 20, 16
TRAIN, TEST = 96, 32  # crops of each picture
DEVIATIONS = 0.02, 0.05
SPOILT = 0.02  # the share of pixels that salt and pepper fall on


def build(name: str) -> nn.Sequential:
    """A network (N, 1, 20, 20) -> (N, 8); a name as "max, avg" gives the pooling inside, then the one at the end.

    >>> build("max, avg")[-2]
    GlobalAvgPool(keepdim=False)
    """
    inside, _, end = name.partition(", ")
    return nn.Sequential(
        nn.InstanceNorm2d(1, eps=1e-7),  # brightness and contrast tell nothing, though those of a night sky are small
        *halving(1, WIDTH, inside),
        *halving(WIDTH, 2 * WIDTH, inside),
        create(end or inside),
        nn.Linear(2 * WIDTH, len(TEXTURES)),
    )


def crops(generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Grey crops and labels to train with, and those to test with, which come from other tiles of the same pictures."""
    drawn: tuple[list[Tensor], list[Tensor]] = ([], [])
    for name in TEXTURES:
        picture = photos.load(name).mean(0)
        height, width = (size // GRID for size in picture.shape)
        tiles = torch.randperm(GRID * GRID, generator=generator)
        for part, count, own in ((0, TRAIN, tiles[KEPT:]), (1, TEST, tiles[:KEPT])):
            tile = own[torch.randint(len(own), (count,), generator=generator)]
            top = tile // GRID * height + torch.randint(height - SIDE + 1, (count,), generator=generator)
            left = tile % GRID * width + torch.randint(width - SIDE + 1, (count,), generator=generator)
            windows = picture.unfold(0, SIDE, 1).unfold(1, SIDE, 1)
            drawn[part].append(windows[top, left].unsqueeze(1))
    train, test = (torch.cat(part) for part in drawn)
    labels = torch.arange(len(TEXTURES))
    return train, labels.repeat_interleave(TRAIN), test, labels.repeat_interleave(TEST)


def peppered(images: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """With that share of the pixels set to 0 or 1."""
    spoilt = torch.rand(images.shape, generator=generator) < share
    return torch.where(spoilt, torch.randint(2, images.shape, generator=generator).to(images.dtype), images)


def run(trial: Trial, context: Context) -> dict[str, float]:
    generator = torch.Generator().manual_seed(trial.seed)
    images, labels, tests, own = crops(generator)
    model = build(trial.variant)
    fit(model, images, labels, epochs=trial["epochs"], generator=generator, context=context, batch=32)
    right = accuracy(model, tests, own)
    return {
        "accuracy": right,
        "gap": accuracy(model, images, labels) - right,
        **{f"noise {d}": accuracy(model, noisy(tests, d, generator).clamp(0, 1), own) for d in DEVIATIONS},
        "salt and pepper": accuracy(model, peppered(tests, SPOILT, generator), own),
    }


STEP = 100 / (TEST * len(TEXTURES))
EXPERIMENT = register(
    Experiment(
        name="texture",
        summary="Tell eight textures apart from crops of 20 x 20 grey pixels; the pooling halves the map twice and ends it.",
        data=f"8 {photos.CREDIT}; {TRAIN} crops of each to train and {TEST} from other parts of it to test, brightness and "
        "contrast made equal. The pictures are always the same: a result speaks of them",
        variants={
            "max": "the largest value",
            "avg": "the mean",
            "max, avg": "the largest value inside, the mean at the end",
            "soft": "SoftPool",
            "gem": "the generalised mean, p learned",
            "lp": "the 2-norm",
        },
        measures={
            "accuracy": Measure("accuracy", step=STEP),
            "gap": Measure("gap between training and test accuracy", "points", better=-1, step=STEP),
            **{
                f"noise {d}": Measure(f"accuracy under noise of {d} of full contrast", step=STEP, curve="noise", at=d)
                for d in DEVIATIONS
            },
            "salt and pepper": Measure("accuracy with 2 % of the pixels black or white", step=STEP),
        },
        run=run,
        recipe=1,
        full=Scale(seeds=16, settings={"epochs": 12}),
        quick=Scale(seeds=8, settings={"epochs": 6}),
        overlap=TEST / TRAIN,
    )
)
