"""A strong feature in clutter: a small digit anywhere in a dim photograph."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from everypool.factory import create
from everypool.study.data import mnist, photos
from everypool.study.experiment import Experiment, Measure, Scale, register
from everypool.study.measures import accuracy, agreement
from everypool.study.nets import convolution
from everypool.study.train import fit
from everypool.study.transforms import noisy
from everypool.study.trial import Context, Trial

__all__ = ["EXPERIMENT", "build", "pasted", "scenes"]

CLASSES, WIDTH, EARLY = 10, 12, 3
SCAN, SIDE = mnist.SIDE // 2, 40
DIM = 0.5  # how bright the background's brightest point may be, where ink is 1
TRAIN, TEST, PHOTOS = 1000, 250, 16  # samples, and how many of the photographs train
NOISE = 0.1


def build(name: str) -> nn.Module:
    """A network (N, 1, 40, 40) -> (N, 10) without pooling inside; it sees 15 pixels a side before the pooling at the end.

    >>> build("max")[-2]
    GlobalMaxPool(keepdim=False)
    """
    return nn.Sequential(
        *convolution(1, WIDTH, stride=2),
        *convolution(WIDTH, 2 * WIDTH, stride=2),
        *convolution(2 * WIDTH, 2 * WIDTH),
        create(name),
        nn.Linear(2 * WIDTH, CLASSES),
    )


def backgrounds(names: list[str], count: int, generator: torch.Generator) -> Tensor:
    """Grey cuts of those photographs (count, 1, 40, 40), dimmed, at random places."""
    which = torch.randint(len(names), (count,), generator=generator)
    places = torch.rand(count, 2, generator=generator)
    cuts = torch.empty(count, 1, SIDE, SIDE)
    for number, (photo, place) in enumerate(zip(which.tolist(), places.tolist(), strict=True)):
        picture = photos.load(names[photo])
        top, left = (int(share * (size - SIDE + 1)) for share, size in zip(place, picture.shape[1:], strict=True))
        cuts[number, 0] = picture[:, top : top + SIDE, left : left + SIDE].mean(0)
    return DIM * cuts


def pasted(scans: Tensor, ground: Tensor, corners: Tensor) -> Tensor:
    """Each scan (N, 1, h, w) on its ground (N, 1, H, W) with its first pixel at that row and column (N, 2): the brighter shows.

    >>> pasted(torch.ones(1, 1, 1, 2), torch.zeros(1, 1, 2, 3), torch.tensor([[1, 1]]))[0, 0, 1]
    tensor([0., 1., 1.])
    """
    result = ground.clone()
    height, width = scans.shape[2:]
    for canvas, scan, (top, left) in zip(result, scans, corners.tolist(), strict=True):
        place = canvas[:, top : top + height, left : left + width]
        torch.maximum(place, scan, out=place)
    return result


def scenes(generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Images and labels to train with and to test with, and the tests with each digit at another place.

    Tests have other digits and other photographs, drawn anew for every seed.
    """
    images, labels = mnist.load()
    chosen = torch.randperm(len(images), generator=generator)[: TRAIN + TEST]
    scans, labels = F.avg_pool2d(images[chosen], 2), labels[chosen]
    names = [photos.NAMES[i] for i in torch.randperm(len(photos.NAMES), generator=generator).tolist()]
    ground = torch.cat([backgrounds(names[:PHOTOS], TRAIN, generator), backgrounds(names[PHOTOS:], TEST, generator)])
    first, second = torch.randint(SIDE - SCAN + 1, (2, TRAIN + TEST, 2), generator=generator)
    canvases = pasted(scans, ground, first)
    moved = pasted(scans[TRAIN:], ground[TRAIN:], second[TRAIN:])
    return canvases[:TRAIN], labels[:TRAIN], canvases[TRAIN:], labels[TRAIN:], moved


def run(trial: Trial, context: Context) -> dict[str, float]:
    generator = torch.Generator().manual_seed(trial.seed)
    images, labels, tests, own, moved = scenes(generator)
    model = build(trial.variant)
    early: list[float] = []

    def epoch_done(epoch: int) -> None:
        if epoch == EARLY:
            early.append(accuracy(model, tests, own))
            model.train()

    epochs = trial["epochs"]
    fit(model, images, labels, epochs=epochs, generator=generator, context=context, batch=32, epoch_done=epoch_done)
    right = accuracy(model, tests, own)
    return {
        "accuracy": right,
        "gap": accuracy(model, images, labels) - right,
        "early": early[0],
        "moved": agreement(model, tests, [moved]),
        "noise": accuracy(model, noisy(tests, NOISE, generator), own),
    }


STEP = 100 / TEST
EXPERIMENT = register(
    Experiment(
        name="sparse",
        summary="Name a digit of 14 x 14 pixels anywhere on a dim cut of a photograph, 40 x 40; the pooling ends the network.",
        data=f"{mnist.CREDIT}, halved, on {photos.CREDIT}: {TRAIN:,} to train, and {TEST} other digits to test on other "
        "photographs",
        variants={
            "max": "the global maximum",
            "avg": "the global mean",
            "gem": "the global generalised mean, p learned",
            "soft": "global SoftPool",
            "logsumexp": "the global smooth maximum",
        },
        measures={
            "accuracy": Measure("accuracy", step=STEP),
            "gap": Measure("gap between training and test accuracy", "points", better=-1, step=STEP),
            "early": Measure(f"accuracy after {EARLY} epochs", step=STEP),
            "moved": Measure("agreement when the digit lies elsewhere", step=STEP),
            "noise": Measure("accuracy under noise", step=STEP),
        },
        run=run,
        recipe=1,
        full=Scale(seeds=16, settings={"epochs": 8}),
        quick=Scale(seeds=8, settings={"epochs": 5}),
        overlap=TEST / TRAIN,
        needs=("mlxtend",),
    )
)
