"""Clips of an object that grows: windows that grow with its box, against windows of one size and against resizing."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from everypool.study.data import mnist
from everypool.study.experiment import Experiment, Measure, Scale, register
from everypool.study.measures import parameters, predicted
from everypool.study.ragged import Ragged, RaggedNet, cropped, resized, steadiness
from everypool.study.train import fit
from everypool.study.trial import Context, Trial

__all__ = ["EXPERIMENT", "build", "clips"]

SEEN = 20, 26, 32  # sides of the object in training
GROWING = 14, 17, 20, 23, 26, 29, 32, 35, 38, 41, 44  # its side in each frame of a clip
RANGES = {"smaller": (14, 17), "between": (23, 29), "larger": (35, 38, 41, 44)}  # of them, sides never seen in training
TRAINING, TESTS, CLASSES = 600, 120, 10
MIDDLE, LARGEST = 26, 32
WIDTHS = 1, 16, 32
# the head's grids and reducer, and whether the sizes are known
VARIANTS = {
    "adaptive": ((4,), "max", True),
    "pyramid": ((1, 2, 4), "max", True),
    "fixed": ((4,), "max", True),
    "resize": ((4,), "max", True),
    "naive": ((4,), "max", False),
}


def build(variant: str) -> RaggedNet:
    """A network (N, 1, H, W) and sizes (N, 2) -> (N, 10) that halves its map twice."""
    levels, reducer, masked = VARIANTS[variant]
    return RaggedNet(WIDTHS, CLASSES, nd=2, levels=levels, reducer=reducer, masked=masked)


def fitted(variant: str, samples: Sequence[Tensor]) -> list[Tensor]:
    """The samples as the variant takes them."""
    if variant == "resize":
        return [resized(sample, [MIDDLE] * 2) for sample in samples]
    return [cropped(sample, [LARGEST] * 2) for sample in samples] if variant == "fixed" else list(samples)


def clips(images: Tensor) -> list[Tensor]:
    """The box of each image (1, H, W) in every frame, in which it is ever larger: clip by clip."""
    return [resized(image, [side] * 2) for image in images for side in GROWING]


def run(trial: Trial, context: Context) -> dict[str, float]:
    generator = torch.Generator().manual_seed(trial.seed)
    images, labels = mnist.load()
    order = torch.randperm(len(images), generator=generator)[: TRAINING + TESTS]
    train, test = order[:TRAINING], order[TRAINING:]
    sides = [SEEN[i] for i in torch.randint(len(SEEN), (TRAINING,), generator=generator).tolist()]
    inputs = Ragged(
        fitted(trial.variant, [resized(image, [side] * 2) for image, side in zip(images[train], sides, strict=True)])
    )
    model = build(trial.variant)
    fit(model, inputs, labels[train], epochs=trial["epochs"], generator=generator, context=context, batch=32)
    frames = fitted(trial.variant, clips(images[test]))
    found = predicted(model, Ragged(frames), len(frames)).reshape(TESTS, len(GROWING))
    right = (found == labels[test].unsqueeze(1)).to(torch.float64)

    def share(sides: Sequence[int]) -> float:
        return 100 * right[:, [GROWING.index(side) for side in sides]].mean().item()

    return {
        "accuracy": share(GROWING),
        "seen": share(SEEN),
        **{name: share(sides) for name, sides in RANGES.items()},
        "agreement": 100 * (found[:, 1:] == found[:, :-1]).to(torch.float64).mean().item(),
        "whole": 100 * right.prod(1).mean().item(),
        "alone": steadiness(model, frames[: 20 * len(GROWING)]),
        "parameters": parameters(model),
    }


STEP = 100 / TESTS
EXPERIMENT = register(
    Experiment(
        name="frames",
        summary="Name a digit in every frame of a clip in which it grows from 14 to 44 pixels; trained at three sizes.",
        data=f"{mnist.CREDIT}; each seed draws 600 to train on, at 20, 26 or 32 pixels a side, and 120 others as clips",
        variants={
            "adaptive": "4 x 4 windows that grow with the digit's box",
            "pyramid": "grids of 1, 4 and 16 bins over the digit's box",
            "fixed": "4 x 4 windows over 32 x 32 pixels around the digit's middle, whatever its size",
            "resize": "the digit's box resampled to 26 x 26, then 4 x 4 windows",
            "naive": "4 x 4 windows over the batch's largest box, padding counts",
        },
        measures={
            "accuracy": Measure("accuracy over all frames", step=STEP / len(GROWING)),
            "seen": Measure("accuracy at sizes seen in training", step=STEP / len(SEEN)),
            **{
                name: Measure(f"accuracy at sizes {name} than those seen in training", step=STEP / len(sides))
                for name, sides in RANGES.items()
                if name != "between"
            },
            "between": Measure("accuracy at sizes between those seen in training", step=STEP / len(RANGES["between"])),
            "agreement": Measure("agreement from frame to frame", step=STEP / (len(GROWING) - 1)),
            "whole": Measure("clips with every frame right", step=STEP),
            "alone": Measure("agreement between alone and in a batch", step=100 / (20 * len(GROWING))),
            "parameters": Measure("parameters", "", better=-1, exact=True),
        },
        run=run,
        recipe=1,
        full=Scale(seeds=16, settings={"epochs": 10}),
        quick=Scale(seeds=8, settings={"epochs": 3}),
        overlap=TESTS / TRAINING,
        needs=("mlxtend",),
    )
)
