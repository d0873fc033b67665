"""What ends a classifier: fully connected layers, or one number per channel."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from everypool.blocks import FullyConnectedHead, GlobalAverageHead, SpatialPyramidHead
from everypool.factory import create
from everypool.study.data import mnist
from everypool.study.experiment import Experiment, Measure, Scale, register
from everypool.study.measures import accuracy, agreement, multiply_adds, parameters, training_time
from everypool.study.nets import convolution, halving
from everypool.study.train import fit
from everypool.study.transforms import shifted
from everypool.study.trial import Context, Trial

__all__ = ["EXPERIMENT", "build", "make_head"]

WIDTH, CLASSES = 8, 10
CHANNELS = 4 * WIDTH
MARGIN = 2  # as LeNet-5 adds around its images: a shift by 4 px cuts off little but the blur of the pen
SIDE = (mnist.SIDE + 2 * MARGIN) // 4  # of the map that a head is given
HIDDEN = 120, 84  # LeNet-5's fully connected layers
TRAIN, TEST = 1000, 250
SHIFTS = 1, 2, 4
BATCH = 32


def make_head(name: str) -> nn.Module:
    """What maps (N, 32, 8, 8) to the scores of the classes (N, 10).

    >>> sum(p.numel() for p in make_head("gap").parameters())
    330
    """
    if name == "fc":
        return FullyConnectedHead(CHANNELS, (SIDE, SIDE), CLASSES, HIDDEN)
    if name == "dropout":
        return nn.Sequential(nn.Dropout(0.5), make_head("fc"))
    if name == "linear":
        return FullyConnectedHead(CHANNELS, (SIDE, SIDE), CLASSES)
    if name == "gap":
        return GlobalAverageHead(CHANNELS, CLASSES)
    if name == "spp":
        return SpatialPyramidHead(CHANNELS, CLASSES, (1, 2, 4))
    return nn.Sequential(create(name), nn.Linear(CHANNELS, CLASSES))


def build(name: str) -> tuple[nn.Module, nn.Module]:
    """The trunk, (N, 1, 32, 32) -> (N, 32, 8, 8), which is the same for all, and the head."""
    trunk = [
        *convolution(1, WIDTH, kernel=5, padding=2, stride=2),
        *halving(WIDTH, 2 * WIDTH, "max"),
        *convolution(2 * WIDTH, CHANNELS),
    ]
    return nn.Sequential(*trunk), make_head(name)


def samples(generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images and labels to train with, and those to test with, drawn anew for every seed."""
    images, labels = mnist.load()
    chosen = torch.randperm(len(images), generator=generator)[: TRAIN + TEST]
    images, labels = F.pad(images[chosen], (MARGIN,) * 4), labels[chosen]
    return images[:TRAIN], labels[:TRAIN], images[TRAIN:], labels[TRAIN:]


def run(trial: Trial, context: Context) -> dict[str, float]:
    generator = torch.Generator().manual_seed(trial.seed)
    images, labels, tests, own = samples(generator)
    trunk, head = build(trial.variant)
    model = nn.Sequential(trunk, head)
    after_one: list[float] = []

    def epoch_done(epoch: int) -> None:
        if epoch == 1:
            after_one.append(accuracy(model, tests, own))
            model.train()

    epochs = trial["epochs"]
    fit(model, images, labels, epochs=epochs, generator=generator, context=context, batch=BATCH, epoch_done=epoch_done)
    right = accuracy(model, tests, own)
    moves = {d: [(0, d), (0, -d), (d, 0), (-d, 0)] for d in SHIFTS}
    return {
        "accuracy": right,
        "gap": accuracy(model, images, labels) - right,
        "first epoch": after_one[0],
        **{f"shift {d}": agreement(model, tests, [shifted(tests, *move) for move in moves[d]]) for d in SHIFTS},
        "training": training_time(model, images[:64], labels[:64], rounds=3),
        "parameters": parameters(model),
        "head parameters": parameters(head),
        "head multiply-adds": multiply_adds(head.eval(), torch.zeros(1, CHANNELS, SIDE, SIDE)),
    }


STEP = 100 / TEST
EXPERIMENT = register(
    Experiment(
        name="heads",
        summary="Classify handwritten digits; the same three convolutions, and in place of fully connected layers a global "
        "pooling.",
        data=f"{mnist.CREDIT}: {TRAIN:,} drawn to train and {TEST} to test; 2 empty pixels added on every side",
        variants={
            "fc": "fully connected layers of 120, 84 and 10 (LeNet-5)",
            "dropout": "the same after dropout of one half",
            "linear": "one fully connected layer",
            "gap": "a map for each class, averaged (Network in Network)",
            "avg": "the global mean and a linear layer",
            "max": "the global maximum and a linear layer",
            "gem": "the global generalised mean, p learned, and a linear layer",
            "soft": "global SoftPool and a linear layer",
            "logsumexp": "the global smooth maximum and a linear layer",
            "spp": "the means of grids of 1, 4 and 16 cells and a linear layer",
        },
        measures={
            "accuracy": Measure("accuracy", step=STEP),
            "gap": Measure("gap between training and test accuracy", "points", better=-1, step=STEP),
            "first epoch": Measure("accuracy after one epoch", step=STEP),
            **{f"shift {d}": Measure(f"agreement under a shift by {d} px", step=STEP / 4, curve="shift", at=d) for d in SHIFTS},
            "training": Measure("processor time of a training step, per image", "µs", better=-1),
            "parameters": Measure("parameters", "", better=-1, exact=True),
            "head parameters": Measure("parameters of the head", "", better=-1, exact=True),
            "head multiply-adds": Measure("multiply-adds of the head", "", better=-1, exact=True),
        },
        run=run,
        recipe=1,
        full=Scale(seeds=12, settings={"epochs": 8}),
        quick=Scale(seeds=8, settings={"epochs": 2}),
        overlap=TEST / TRAIN,
        needs=("mlxtend",),
    )
)
