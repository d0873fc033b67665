"""Down-sampling along time: outlines of leaves as series, and what shifts and noise do to the answer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from everypool.study.data import series
from everypool.study.experiment import Experiment, Measure, Scale, register
from everypool.study.measures import accuracy, agreement, multiply_adds, parameters
from everypool.study.nets import halving
from everypool.study.train import fit
from everypool.study.transforms import noisy, split
from everypool.study.trial import Context, Trial

__all__ = ["EXPERIMENT", "build"]

SET, LENGTH, CLASSES, COUNT, SHARE = "OSULeaf", 427, 6, 442, 0.3
WIDTHS = 1, 8, 16, 32
SHIFTS = 1, 2, 4
NOISE = 0.1  # standard deviation, where that of every series is 1


def build(pool: str) -> nn.Module:
    """A network (N, 1, 427) -> (N, 6) that halves its map three times.

    >>> sum(p.numel() for p in build("max").parameters())
    12294
    """
    steps = [layer for i in range(3) for layer in halving(WIDTHS[i], WIDTHS[i + 1], pool, nd=1)]
    trunk = nn.Sequential(*steps, nn.Flatten())
    with torch.no_grad():
        length = trunk.eval()(torch.zeros(1, 1, LENGTH)).shape[1]
    return nn.Sequential(*trunk.train(), nn.Linear(length, CLASSES))


def turned(outlines: Tensor, distance: int) -> list[Tensor]:
    """The outlines begun that many points earlier and later: they are closed, so nothing is lost."""
    return [outlines.roll(distance, -1), outlines.roll(-distance, -1)]


def run(trial: Trial, context: Context) -> dict[str, float]:
    generator = torch.Generator().manual_seed(trial.seed)
    outlines, labels = series.equal(SET)
    train, test = split(len(outlines), generator, SHARE)
    model = build(trial.variant)
    loss = fit(
        model, outlines[train], labels[train], epochs=trial["epochs"], generator=generator, context=context, batch=32
    )  # fmt: skip
    tests, own = outlines[test], labels[test]
    right = accuracy(model, tests, own)
    return {
        "accuracy": right,
        "gap": accuracy(model, outlines[train], labels[train]) - right,
        **{f"shift {d}": agreement(model, tests, turned(tests, d)) for d in SHIFTS},
        "noise": accuracy(model, noisy(tests, NOISE, generator), own),
        "loss": loss,
        "parameters": parameters(model),
        "multiply-adds": multiply_adds(model, tests[:1]),
    }


STEP = 100 / int(COUNT * SHARE)
EXPERIMENT = register(
    Experiment(
        name="series",
        summary="Tell six species of trees by the outlines of their leaves as series; the pooling halves the map three times.",
        data=f"OSULeaf, 442 outlines of 427 points, {series.CREDIT}; three in ten of them tests",
        variants={
            "max": "the largest value",
            "avg": "the mean",
            "lp": "the 2-norm",
            "soft": "SoftPool",
            "gem": "the generalised mean, p learned",
            "center": "the value in the middle",
            "stride": "no pooling; the convolutions step by two",
            "none": "no pooling; the map stays as long as it is",
        },
        measures={
            "accuracy": Measure("accuracy", step=STEP),
            "gap": Measure("gap between training and test accuracy", "points", better=-1, step=STEP),
            **{
                f"shift {d}": Measure(f"agreement under a shift by {d} steps", step=STEP / 2, curve="shift", at=d)
                for d in SHIFTS
            },
            "noise": Measure("accuracy under noise", step=STEP),
            "loss": Measure("last training loss", "", better=-1),
            "parameters": Measure("parameters", "", better=-1, exact=True),
            "multiply-adds": Measure("multiply-adds of an answer", "", better=-1, exact=True),
        },
        run=run,
        recipe=1,
        full=Scale(seeds=16, settings={"epochs": 20}),
        quick=Scale(seeds=8, settings={"epochs": 8}),
        overlap=SHARE / (1 - SHARE),
        needs=("sktime",),
    )
)
