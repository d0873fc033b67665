"""Boxes of a brain scan in many sizes: windows that grow with the volume, against resizing and cropping, in 3-D."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from everypool.study.data import brain
from everypool.study.experiment import Experiment, Measure, Scale, register
from everypool.study.measures import accuracy, parameters
from everypool.study.ragged import Ragged, RaggedNet, cropped, drawn, resized, steadiness
from everypool.study.train import fit
from everypool.study.trial import Context, Trial

__all__ = ["EXPERIMENT", "blocks", "build", "crops"]

# cells of 2 mm: from left to right whole, as both halves are mirror images; from back to front and upwards cut into blocks
ACROSS, FRONT, UP = (13, 85), (14, 36, 58, 80, 102), (1, 26, 51, 76)
BLOCKS = (0, 1), (1, 1), (1, 2), (2, 1), (2, 2), (3, 1)  # those in which boxes of every size can have either class
SEEN = 10, 18  # shortest and longest side in training
SIZES = {8: (7, 9), 11: (10, 12), 14: (13, 15), 17: (16, 18), 20: (19, 22)}  # tested apart; the outer ones are new
TESTED = 2  # blocks of six
TRAINING, TESTS, EACH = 160, 80, 50  # boxes of each class: to train on, to test on, and for each of `SIZES`
CLASSES, FILLED = 2, 0.7
MIDDLE = 14
WIDTHS = 1, 8, 16
# the head's grids and reducer, and whether the sizes are known
VARIANTS = {
    "adaptive": ((2,), "avg", True),
    "pyramid": ((1, 2), "avg", True),
    "global avg": ((1,), "avg", True),
    "resize": ((2,), "avg", True),
    "crop": ((2,), "avg", True),
    "naive adaptive": ((2,), "avg", False),
    "naive avg": ((1,), "avg", False),
}


def build(variant: str) -> RaggedNet:
    """A network (N, 1, X, Y, Z) and sizes (N, 3) -> (N, 2) that halves its map twice."""
    levels, reducer, masked = VARIANTS[variant]
    return RaggedNet(WIDTHS, CLASSES, nd=3, levels=levels, reducer=reducer, masked=masked)


def fitted(variant: str, samples: Sequence[Tensor]) -> list[Tensor]:
    """The samples as the variant takes them."""
    if variant == "resize":
        return [resized(sample, [MIDDLE] * 3) for sample in samples]
    return [cropped(sample, [SEEN[0]] * 3) for sample in samples] if variant == "crop" else list(samples)


def blocks(generator: torch.Generator) -> tuple[list[Tensor], list[Tensor]]:
    """The scan and its tissues in blocks (3, X, Y, Z): four to train on, two others to test on."""
    across = brain.load()[:, slice(*ACROSS)]
    made = [across[:, :, slice(*FRONT[i : i + 2]), slice(*UP[j : j + 2])] for i, j in BLOCKS]
    order = torch.randperm(len(made), generator=generator).tolist()
    return [made[i] for i in order[TESTED:]], [made[i] for i in order[:TESTED]]


def crops(
    sources: Sequence[Tensor], each: int, sides: tuple[int, int], generator: torch.Generator
) -> tuple[list[Tensor], Tensor]:
    """Boxes of the scan, as many with more grey matter as with more white (1), each with mean 0 and deviation 1 of its own.

    T1 intensity has no scale, so its mean must not tell the class. Boxes less than seven tenths full of both are passed over.
    """
    kept: list[list[Tensor]] = [[], []]
    while min(map(len, kept)) < each:
        box = drawn(sources[int(torch.randint(len(sources), (), generator=generator))], sides, generator)
        grey, white = box[1].mean().item(), box[2].mean().item()
        label = int(white > grey)
        if grey + white >= FILLED and len(kept[label]) < each:
            scan = box[:1]
            kept[label].append((scan - scan.mean()) / scan.std().clamp(min=1e-3))
    return kept[0] + kept[1], torch.arange(CLASSES).repeat_interleave(each)


def run(trial: Trial, context: Context) -> dict[str, float]:
    generator = torch.Generator().manual_seed(trial.seed)
    training, testing = blocks(generator)
    samples, labels = crops(training, TRAINING, SEEN, generator)
    tests, own = crops(testing, TESTS, SEEN, generator)
    apart = {size: crops(testing, EACH, sides, generator) for size, sides in SIZES.items()}
    model = build(trial.variant)
    inputs = Ragged(fitted(trial.variant, samples))
    fit(model, inputs, labels, epochs=trial["epochs"], generator=generator, context=context, batch=32)
    taken = fitted(trial.variant, tests)
    return {
        "accuracy": accuracy(model, Ragged(taken), own),
        **{
            f"size {size}": accuracy(model, Ragged(fitted(trial.variant, some)), classes)
            for size, (some, classes) in apart.items()
        },
        "alone": steadiness(model, taken[::2]),
        "parameters": parameters(model),
    }


def title(size: int) -> str:
    low, high = SIZES[size]
    new = "" if SEEN[0] <= low and high <= SEEN[1] else ", never seen in training"
    return f"accuracy on boxes of {low} to {high} cells{new}"


EXPERIMENT = register(
    Experiment(
        name="volumes",
        summary="Tell whether grey or white matter fills more of a box of a brain scan; boxes of 10 to 18 cells a side.",
        data=f"{brain.CREDIT}, in cells of 2 mm; boxes of four blocks train, of the two others test",
        variants={
            "adaptive": "2 x 2 x 2 windows that grow with the box",
            "pyramid": "grids of 1 and 8 bins over each one's own size",
            "global avg": "one mean over each one's own size",
            "resize": "resampled to 14 x 14 x 14, then 2 x 2 x 2 windows",
            "crop": "the middle 10 x 10 x 10, then 2 x 2 x 2 windows",
            "naive adaptive": "2 x 2 x 2 windows, padding counts",
            "naive avg": "one mean, padding counts",
        },
        measures={
            "accuracy": Measure("accuracy", step=100 / (TESTS * CLASSES)),
            **{f"size {size}": Measure(title(size), step=100 / (EACH * CLASSES), curve="size", at=size) for size in SIZES},
            "alone": Measure("agreement between alone and in a batch", step=200 / (TESTS * CLASSES)),
            "parameters": Measure("parameters", "", better=-1, exact=True),
        },
        run=run,
        recipe=1,
        full=Scale(seeds=16, settings={"epochs": 8}),
        quick=Scale(seeds=8, settings={"epochs": 3}),
        overlap=TESTED / (len(BLOCKS) - TESTED),
        needs=("nilearn", "nibabel"),
    )
)
