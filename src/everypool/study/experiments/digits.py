"""Down-sampling inside a network: scanned digits, and what shifts, turns and noise do to the answer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from everypool.study.data import digits
from everypool.study.experiment import Experiment, Measure, Scale, register
from everypool.study.measures import accuracy, agreement, multiply_adds, parameters, training_memory, training_time
from everypool.study.nets import halving
from everypool.study.train import fit
from everypool.study.transforms import noisy, rotated, shifted, split
from everypool.study.trial import Context, Trial

__all__ = ["EXPERIMENT", "build"]

WIDTH, CLASSES, COUNT, SHARE = 16, 10, 1797, 0.2
SHIFTS = 1, 2
ANGLES = 10, 20, 30
NOISE = 0.3  # standard deviation, where ink is 1 and paper 0


def build(pool: str) -> nn.Module:
    """A network (N, 1, 10, 10) -> (N, 10) that halves its map twice.

    >>> sum(p.numel() for p in build("max").parameters())
    6186
    """
    trunk = nn.Sequential(*halving(1, WIDTH, pool, padding=0), *halving(WIDTH, 2 * WIDTH, pool), nn.Flatten())
    with torch.no_grad():
        length = trunk.eval()(torch.zeros(1, 1, digits.SIDE, digits.SIDE)).shape[1]
    return nn.Sequential(*trunk.train(), nn.Linear(length, CLASSES))


def moves(distance: int) -> list[tuple[int, int]]:
    """Rows and columns of the four moves over that distance."""
    return [(0, distance), (0, -distance), (distance, 0), (-distance, 0)]


def sample(trial: Trial) -> tuple[nn.Module, Tensor, Tensor]:
    images, labels = digits.load()
    return build(trial.variant), images[:64], labels[:64]


def run(trial: Trial, context: Context) -> dict[str, float]:
    generator = torch.Generator().manual_seed(trial.seed)  # apart, so that a pooling that draws changes no split or order
    images, labels = digits.load()
    train, test = split(len(images), generator, SHARE)
    model = build(trial.variant)
    after_one: list[float] = []

    def epoch_done(epoch: int) -> None:
        if epoch == 1:
            after_one.append(accuracy(model, images[test], labels[test]))
            model.train()

    loss = fit(
        model, images[train], labels[train], epochs=trial["epochs"], generator=generator, context=context, epoch_done=epoch_done
    )
    own, tests = labels[test], images[test]
    right = accuracy(model, tests, own)
    return {
        "accuracy": right,
        "gap": accuracy(model, images[train], labels[train]) - right,
        "first epoch": after_one[0],
        **{f"shift {d}": agreement(model, tests, [shifted(tests, *move) for move in moves(d)]) for d in SHIFTS},
        **{f"rotation {a}": agreement(model, tests, [rotated(tests, a), rotated(tests, -a)]) for a in ANGLES},
        "noise": accuracy(model, noisy(tests, NOISE, generator), own),
        "loss": loss,
        "training": training_time(model, images[train][:256], labels[train][:256]),
        "memory": training_memory(model, images[train][:64], labels[train][:64]),
        "parameters": parameters(model),
        "multiply-adds": multiply_adds(model, tests[:1]),
    }


STEP = 100 / int(COUNT * SHARE)
EXPERIMENT = register(
    Experiment(
        name="digits",
        summary="Classify scanned digits; the pooling halves the map twice inside a network of two convolutions.",
        data="scikit-learn's digits: 1,797 scans of 8 x 8 pixels, an empty pixel added on every side; a fifth of them tests",
        variants={
            "max": "the largest value",
            "avg": "the mean",
            "lp": "the 2-norm",
            "soft": "SoftPool",
            "gem": "the generalised mean, p learned",
            "center": "the value in the middle",
            "stride": "no pooling; the convolutions step by two",
            "none": "no pooling; the map stays as large as it is",
        },
        measures={
            "accuracy": Measure("accuracy", step=STEP),
            "gap": Measure("gap between training and test accuracy", "points", better=-1, step=STEP),
            "first epoch": Measure("accuracy after one epoch", step=STEP),
            **{f"shift {d}": Measure(f"agreement under a shift by {d} px", step=STEP / 4, curve="shift", at=d) for d in SHIFTS},
            **{
                f"rotation {a}": Measure(f"agreement under a turn by {a}°", step=STEP / 2, curve="rotation", at=a)
                for a in ANGLES
            },
            "noise": Measure("accuracy under noise", step=STEP),
            "loss": Measure("last training loss", "", better=-1),
            "training": Measure("processor time of a training step, per image", "µs", better=-1),
            "memory": Measure("peak memory of a training step, per image", "KiB", better=-1),
            "parameters": Measure("parameters", "", better=-1, exact=True),
            "multiply-adds": Measure("multiply-adds of an answer", "", better=-1, exact=True),
        },
        run=run,
        recipe=3,
        full=Scale(seeds=16, settings={"epochs": 10}),
        quick=Scale(seeds=8, settings={"epochs": 4}),
        overlap=SHARE / (1 - SHARE),
        needs=("sklearn",),
        nd=2,
        sample=sample,
        judged=("accuracy", "shift 1"),
    )
)
