"""Spoken vowels of different lengths: batches that know each one's length, against padding, resampling and cropping."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from everypool.study.data import series
from everypool.study.experiment import Experiment, Measure, Scale, register
from everypool.study.measures import accuracy, parameters, predicted
from everypool.study.ragged import Ragged, RaggedNet, cropped, resized, steadiness
from everypool.study.train import fit
from everypool.study.transforms import split
from everypool.study.trial import Context, Trial

__all__ = ["EXPERIMENT", "build", "moved"]

COUNT, CLASSES, SHARE = 640, 9, 370 / 640  # the share of tests in the files' own split
WIDTHS = 12, 24, 48
SHORTEST, MIDDLE = 7, 15  # of the lengths
SHIFTS = 1, 2
PYRAMID, GLOBAL = (1, 2, 4), (1,)
# the head's grids and reducer, what halves the map inside the network, and whether the lengths are known
VARIANTS = {
    "pyramid": (PYRAMID, "max", "max", True),
    "max": (GLOBAL, "max", "max", True),
    "avg": (GLOBAL, "avg", "max", True),
    "naive pyramid": (PYRAMID, "max", "max", False),
    "naive max": (GLOBAL, "max", "max", False),
    "naive avg": (GLOBAL, "avg", "max", False),
    "resize": (PYRAMID, "max", "max", True),
    "crop": (PYRAMID, "max", "max", True),
    "average inside": (PYRAMID, "max", "avg", True),
    "stride inside": (PYRAMID, "max", "stride", True),
}


def build(variant: str) -> RaggedNet:
    """A network (N, 12, T) and lengths (N, 1) -> (N, 9) that halves its map twice."""
    levels, reducer, inside, masked = VARIANTS[variant]
    return RaggedNet(WIDTHS, CLASSES, nd=1, levels=levels, reducer=reducer, inside=inside, masked=masked)


def fitted(variant: str, samples: Sequence[Tensor]) -> list[Tensor]:
    """The samples as the variant takes them."""
    if variant == "resize":
        return [resized(sample, [MIDDLE]) for sample in samples]
    return [cropped(sample, [SHORTEST]) for sample in samples] if variant == "crop" else list(samples)


def moved(sample: Tensor, distance: int) -> Tensor:
    """The sample (C, T) recorded that many steps earlier, or later if negative; the frame at the edge stands in for silence.

    >>> moved(torch.tensor([[1.0, 2.0, 3.0]]), 1), moved(torch.tensor([[1.0, 2.0, 3.0]]), -1)
    (tensor([[1., 1., 2.]]), tensor([[2., 3., 3.]]))
    """
    length = sample.shape[1]
    return sample[:, (torch.arange(length) - distance).clamp(0, length - 1)]


def run(trial: Trial, context: Context) -> dict[str, float]:
    generator = torch.Generator().manual_seed(trial.seed)
    voices, labels = series.load("JapaneseVowels")
    train, test = split(len(voices), generator, SHARE)
    tests, own = [voices[i] for i in test.tolist()], labels[test]
    model = build(trial.variant)
    inputs = Ragged(fitted(trial.variant, [voices[i] for i in train.tolist()]))
    fit(model, inputs, labels[train], epochs=trial["epochs"], generator=generator, context=context, batch=32)

    def ask(samples: Sequence[Tensor]) -> Tensor:
        return predicted(model, Ragged(fitted(trial.variant, samples)), len(samples))

    taken = fitted(trial.variant, tests)
    before = ask(tests)
    shifts = {d: [ask([moved(sample, move) for sample in tests]) for move in (d, -d)] for d in SHIFTS}
    return {
        "accuracy": accuracy(model, Ragged(taken), own),
        "padded": accuracy(model, Ragged(taken, stretch=2), own),
        "alone": steadiness(model, taken),
        **{
            f"shift {d}": 100 * torch.stack([after == before for after in changed]).to(torch.float64).mean().item()
            for d, changed in shifts.items()
        },
        "parameters": parameters(model),
    }


STEP = 100 / int(COUNT * SHARE)
EXPERIMENT = register(
    Experiment(
        name="speech",
        summary="Tell nine speakers by one vowel each time, of 7 to 29 frames; two convolutions, then a pooling over time.",
        data=f"JapaneseVowels, 640 utterances of 12 coefficients a frame, {series.CREDIT}; 37 in 64 of them tests",
        variants={
            "pyramid": "grids of 1, 2 and 4 bins over each one's own length",
            "max": "one maximum over each one's own length",
            "avg": "one mean over each one's own length",
            "naive pyramid": "grids of 1, 2 and 4 bins, padding counts",
            "naive max": "one maximum, padding counts",
            "naive avg": "one mean, padding counts",
            "resize": "resampled to 15 frames, then the pyramid",
            "crop": "the 7 frames in the middle, then the pyramid",
            "average inside": "the pyramid; the mean, not the maximum, halves the map inside",
            "stride inside": "the pyramid; no pooling inside, the convolutions step by two",
        },
        measures={
            "accuracy": Measure("accuracy", step=STEP),
            "padded": Measure("accuracy when padded to twice the length", step=STEP),
            "alone": Measure("agreement between alone and in a batch", step=STEP),
            **{
                f"shift {d}": Measure(f"agreement under a shift by {d} frames", step=STEP / 2, curve="shift", at=d)
                for d in SHIFTS
            },
            "parameters": Measure("parameters", "", better=-1, exact=True),
        },
        run=run,
        recipe=1,
        full=Scale(seeds=12, settings={"epochs": 15}),
        quick=Scale(seeds=8, settings={"epochs": 5}),
        overlap=SHARE / (1 - SHARE),
        needs=("sktime",),
    )
)
