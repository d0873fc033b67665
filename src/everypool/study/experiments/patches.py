"""Patches of photographs in many sizes: pyramids and windows that grow with the map, against resizing and cropping."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from everypool.study.data import photos
from everypool.study.experiment import Experiment, Measure, Scale, register
from everypool.study.measures import accuracy, parameters
from everypool.study.ragged import Ragged, RaggedNet, cropped, drawn, resized, steadiness
from everypool.study.train import fit
from everypool.study.trial import Context, Trial

__all__ = ["EXPERIMENT", "build", "halves", "patches"]

NAMES = (
    *("astronaut", "brick", "camera", "chelsea", "china", "coffee"),
    *("coins", "flower", "grass", "gravel", "motorcycle", "rocket"),
)
SEEN = 20, 56  # shortest and longest side in training
SIZES = {16: (12, 19), 24: (20, 28), 38: (33, 43), 52: (48, 56), 80: (64, 96)}  # tested apart; the outer ones are new
TESTS, EACH = 20, 8  # patches of a photograph: to test on, and for each of `SIZES`
MIDDLE = 38
WIDTHS = 3, 16, 24, 32
# the head's grids and reducer, and whether the sizes are known
VARIANTS = {
    "pyramid": ((1, 2, 4), "max", True),
    "adaptive": ((4,), "max", True),
    "global max": ((1,), "max", True),
    "global avg": ((1,), "avg", True),
    "resize": ((1, 2, 4), "max", True),
    "crop": ((1, 2, 4), "max", True),
    "naive pyramid": ((1, 2, 4), "max", False),
    "naive avg": ((1,), "avg", False),
}


def build(variant: str) -> RaggedNet:
    """A network (N, 3, H, W) and sizes (N, 2) -> (N, 12) that halves its map three times."""
    levels, reducer, masked = VARIANTS[variant]
    return RaggedNet(WIDTHS, len(NAMES), nd=2, levels=levels, reducer=reducer, masked=masked)


def fitted(variant: str, samples: Sequence[Tensor]) -> list[Tensor]:
    """The samples as the variant takes them."""
    if variant == "resize":
        return [resized(sample, [MIDDLE] * 2) for sample in samples]
    return [cropped(sample, [SEEN[0]] * 2) for sample in samples] if variant == "crop" else list(samples)


def halves(generator: torch.Generator) -> tuple[list[Tensor], list[Tensor]]:
    """Each photograph's half to train on and its half to test on; which is which is drawn for each."""
    pairs = []
    for name in NAMES:
        photo = photos.load(name)
        middle = photo.shape[2] // 2
        pair = photo[:, :, :middle], photo[:, :, middle:]
        pairs.append(pair if torch.rand((), generator=generator) < 0.5 else pair[::-1])
    return [first for first, _ in pairs], [second for _, second in pairs]


def patches(
    sources: Sequence[Tensor], each: int, sides: tuple[int, int], generator: torch.Generator
) -> tuple[list[Tensor], Tensor]:
    """As many patches of each source, and the number of the source that each comes from."""
    labels = torch.arange(len(sources)).repeat_interleave(each)
    return [drawn(sources[i], sides, generator) for i in labels.tolist()], labels


def run(trial: Trial, context: Context) -> dict[str, float]:
    generator = torch.Generator().manual_seed(trial.seed)
    training, testing = halves(generator)
    samples, labels = patches(training, trial["patches"], SEEN, generator)
    tests, own = patches(testing, TESTS, SEEN, generator)
    apart = {size: patches(testing, EACH, sides, generator) for size, sides in SIZES.items()}
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
    return f"accuracy on patches of {low} to {high} px{new}"


EXPERIMENT = register(
    Experiment(
        name="patches",
        summary="Tell from which of twelve photographs a patch is; patches of 20 to 56 pixels a side, three convolutions.",
        data=f"{len(NAMES)} {photos.CREDIT}; patches of one half of each train, of the other half test",
        variants={
            "pyramid": "grids of 1, 4 and 16 bins over each one's own size",
            "adaptive": "one grid of 4 x 4 windows that grow with the patch",
            "global max": "one maximum over each one's own size",
            "global avg": "one mean over each one's own size",
            "resize": "resampled to 38 x 38, then the pyramid",
            "crop": "the middle 20 x 20, then the pyramid",
            "naive pyramid": "grids of 1, 4 and 16 bins, padding counts",
            "naive avg": "one mean, padding counts",
        },
        measures={
            "accuracy": Measure("accuracy", step=100 / (TESTS * len(NAMES))),
            **{f"size {size}": Measure(title(size), step=100 / (EACH * len(NAMES)), curve="size", at=size) for size in SIZES},
            "alone": Measure("agreement between alone and in a batch", step=200 / (TESTS * len(NAMES))),
            "parameters": Measure("parameters", "", better=-1, exact=True),
        },
        run=run,
        recipe=1,
        full=Scale(seeds=12, settings={"epochs": 8, "patches": 40}),
        quick=Scale(seeds=8, settings={"epochs": 4, "patches": 20}),
        overlap=TESTS / 40,
        needs=("skimage", "sklearn"),
    )
)
