"""The value in the middle as the last pooling, where what counts lies in the middle and other things around it."""

from __future__ import annotations

import time

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from everypool.factory import create
from everypool.study.data import mnist
from everypool.study.experiment import Experiment, Measure, Scale, register
from everypool.study.experiments.sparse import pasted
from everypool.study.measures import accuracy, multiply_adds, parameters
from everypool.study.nets import convolution
from everypool.study.train import fit
from everypool.study.trial import Context, Trial

__all__ = ["EXPERIMENT", "build", "scenes", "steps"]

CLASSES, WIDTH = 10, 8
SCAN, SIDE, MAP = mnist.SIDE // 2, 49, 13  # a digit, the canvas, and the map before the last pooling
MIDDLE = (SIDE - SCAN) // 2
OTHERS, APART = 4, 1  # how many of the eight places around the middle hold another digit, and the pixels between them
OFF = 2
TRAIN, TEST = 1000, 250
GRID = 3


def make_pool(name: str) -> nn.Module:
    """The last pooling; "grid" gives means of 3 x 3 bins, "flatten" the map as it is."""
    if name == "flatten":
        return nn.Identity()
    return create("avg", output_size=GRID) if name == "grid" else create(name)


def build(name: str) -> nn.Module:
    """A network (N, 1, 49, 49) -> (N, 10) without pooling inside; each place of its last map sees 15 pixels a side.

    >>> build("center")(torch.zeros(2, 1, 49, 49)).shape
    torch.Size([2, 10])
    """
    trunk = [*convolution(1, WIDTH, stride=2), *convolution(WIDTH, 2 * WIDTH, stride=2), *convolution(2 * WIDTH, 2 * WIDTH)]
    return nn.Sequential(*trunk, make_pool(name), nn.Flatten(), nn.Linear(2 * WIDTH * numbers(name), CLASSES))


def numbers(name: str) -> int:
    """How many the last pooling leaves of a channel."""
    return {"grid": GRID * GRID, "flatten": MAP * MAP}.get(name, 1)


def steps(name: str) -> int:
    """Values of one channel that the last pooling reads: those that its gradient could reach.

    >>> steps("center"), steps("avg")
    (1, 169)
    """
    values = torch.ones(1, 1, MAP, MAP, requires_grad=True)
    pool = make_pool("avg" if name == "max" else name)  # which of equal values is the largest tells nothing
    (gradient,) = torch.autograd.grad(pool(values).sum(), values)
    return int((gradient != 0).sum())


def scenes(scans: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Each scan (N, 1, 14, 14) in the middle of a canvas, others of the same set around it.

    Returns:
        The canvases; the same without the others; the same with the wanted digit off the middle, up, down, left and right.
    """
    count = len(scans)
    around = torch.zeros(count, 1, SIDE, SIDE)
    places = MIDDLE - SCAN - APART, MIDDLE, MIDDLE + SCAN + APART
    corners = torch.tensor([(i, j) for i in places for j in places])[torch.arange(9) != 4]
    order = torch.rand(count, 8, generator=generator).argsort(1)
    for place in order[:, :OTHERS].unbind(1):
        around = pasted(scans[torch.randint(count, (count,), generator=generator)], around, corners[place])
    middle = torch.full((count, 2), MIDDLE)
    off = [pasted(scans, around, middle + torch.tensor(move)) for move in ((-OFF, 0), (OFF, 0), (0, -OFF), (0, OFF))]
    return pasted(scans, around, middle), pasted(scans, torch.zeros_like(around), middle), off


def pooling_times(name: str, rounds: int = 20) -> tuple[float, float]:
    """Processor time of the last pooling, forward and then backward, in microseconds per image: the best of some rounds."""
    pool, images, times = make_pool(name), 64, []
    values = torch.rand(images, 2 * WIDTH, MAP, MAP, requires_grad=True)
    weights = torch.rand_like(pool(values))
    for _ in range(rounds):
        began = time.process_time()
        pooled = pool(values)
        between = time.process_time()
        torch.autograd.grad(pooled, values, weights)
        times.append((between - began, time.process_time() - between))
    forward, backward = (1e6 * min(column) / images for column in zip(*times, strict=True))
    return forward, backward


def run(trial: Trial, context: Context) -> dict[str, float]:
    generator = torch.Generator().manual_seed(trial.seed)
    scans, labels = mnist.load()
    chosen = torch.randperm(len(scans), generator=generator)[: TRAIN + TEST]
    scans, labels = F.avg_pool2d(scans[chosen], 2), labels[chosen]
    images, _, _ = scenes(scans[:TRAIN], generator)
    tests, alone, off = scenes(scans[TRAIN:], generator)
    labels, own = labels[:TRAIN], labels[TRAIN:]
    model = build(trial.variant)
    fit(model, images, labels, epochs=trial["epochs"], generator=generator, context=context, batch=32)
    right = accuracy(model, tests, own)
    forward, backward = pooling_times(trial.variant)
    return {
        "accuracy": right,
        "gap": accuracy(model, images, labels) - right,
        "alone": accuracy(model, alone, own),
        "off": accuracy(model, torch.cat(off), own.repeat(len(off))),
        "forward": forward,
        "backward": backward,
        "read": steps(trial.variant),
        "parameters": parameters(model),
        "multiply-adds": multiply_adds(model, tests[:1]),
    }


STEP = 100 / TEST
EXPERIMENT = register(
    Experiment(
        name="centre",
        summary="Name the digit in the middle of a canvas of 49 x 49 pixels, with four others around it; the pooling ends the "
        "network.",
        data=f"{mnist.CREDIT}, halved to 14 x 14 pixels: {TRAIN:,} drawn to train and {TEST} others to test, each with four of "
        "its own part around it",
        variants={
            "center": "the value in the middle",
            "avg": "the global mean",
            "max": "the global maximum",
            "gem": "the global generalised mean, p learned",
            "grid": "the means of 3 x 3 bins",
            "flatten": "no pooling: the whole map into a fully connected layer",
        },
        measures={
            "accuracy": Measure("accuracy", step=STEP),
            "gap": Measure("gap between training and test accuracy", "points", better=-1, step=STEP),
            "alone": Measure("accuracy without other digits", step=STEP),
            "off": Measure(f"accuracy with the digit {OFF} px off the middle", step=STEP / 4),
            "forward": Measure("processor time of the last pooling, per image", "µs", better=-1),
            "backward": Measure("processor time of its gradient, per image", "µs", better=-1),
            "read": Measure("values of a channel that the last pooling reads", "", better=-1, exact=True),
            "parameters": Measure("parameters", "", better=-1, exact=True),
            "multiply-adds": Measure("multiply-adds of an answer", "", better=-1, exact=True),
        },
        run=run,
        recipe=1,
        full=Scale(seeds=16, settings={"epochs": 8}),
        quick=Scale(seeds=8, settings={"epochs": 4}),
        overlap=TEST / TRAIN,
        needs=("mlxtend",),
    )
)
