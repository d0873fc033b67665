"""A digit among many: is there one of a certain class, when it lies or looks otherwise than all that were trained on?"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from everypool.study.data import digits
from everypool.study.experiment import Experiment, Measure, Scale, register
from everypool.study.experiments.bags import BagPool
from everypool.study.measures import accuracy, parameters
from everypool.study.nets import halving
from everypool.study.train import fit
from everypool.study.transforms import shifted, split
from everypool.study.trial import Context, Trial

__all__ = ["EXPERIMENT", "Sequences", "WitnessNet", "drawn", "found"]

LENGTH, WIDTH, CHANNELS, CLASSES = 12, 32, 8, 10
HALF = LENGTH // 2
TRAIN, TEST = 600, 400
FLATTEN = "flatten"
BATCH, RATE = 16, 5e-3


class WitnessNet(nn.Module):
    """A small network for each scan, a pooling over the sequence, and a linear layer.

    Args:
        pool: as in `BagPool`; or "flatten", a linear layer that sees every place apart.
    """

    def __init__(self, pool: str) -> None:
        super().__init__()
        places = ((digits.SIDE - 2) // 2) ** 2
        self.embed = nn.Sequential(
            *halving(1, CHANNELS, "max", padding=0),
            nn.Flatten(),
            nn.Linear(CHANNELS * places, WIDTH),
            nn.LayerNorm(WIDTH),
            nn.ReLU(),
        )
        self.pool = None if pool == FLATTEN else BagPool(pool, WIDTH)
        self.head = nn.Linear(WIDTH if self.pool else WIDTH * LENGTH, 2)

    def instances(self, sequences: Tensor) -> Tensor:
        """The scans (N, 12, 10, 10) as vectors (N, 12, D)."""
        return self.embed(sequences.flatten(0, 1).unsqueeze(1)).unflatten(0, sequences.shape[:2])

    def forward(self, sequences: Tensor) -> Tensor:
        instances = self.instances(sequences)
        answer: Tensor = self.head(instances.flatten(1) if self.pool is None else self.pool(instances, lengths(instances)))
        return answer


def lengths(instances: Tensor) -> Tensor:
    """Every sequence is whole."""
    return torch.full((len(instances),), instances.shape[1], device=instances.device)


@dataclass(frozen=True)
class Sequences:
    """Sequences of scans without the witness (N, 12, 10, 10), the witness of each (N, 10, 10), its place, and the labels.

    Only sequences of label 1 are given their witness.
    """

    others: Tensor
    witness: Tensor
    place: Tensor
    labels: Tensor

    def made(self, witness: Tensor | None = None, moved: int = 0) -> Tensor:
        """The sequences, with another look of the witness or so many places further on."""
        sequences = self.others.clone()
        rows = self.labels.nonzero().squeeze(1)
        sequences[rows, self.place[rows] + moved] = (self.witness if witness is None else witness)[rows]
        return sequences


def drawn(images: Tensor, labels: Tensor, digit: int, count: int, generator: torch.Generator) -> Sequences:
    """Sequences of scans of other digits; every second one gets a scan of `digit` at a place of the first half."""
    scans = images.squeeze(1)
    others, own = scans[labels != digit], scans[labels == digit]
    return Sequences(
        others[torch.randint(len(others), (count, LENGTH), generator=generator)],
        own[torch.randint(len(own), (count,), generator=generator)],
        torch.randint(HALF, (count,), generator=generator),
        torch.arange(count) % 2,
    )


@torch.no_grad()
def found(model: WitnessNet, sequences: Tensor, place: Tensor) -> float:
    """The share of sequences in which the pooling gives the largest weight to the witness; NaN where it learns no weights."""
    instances = model.instances(sequences)
    weights = None if model.pool is None else model.pool.weights(instances, lengths(instances))
    return math.nan if weights is None else 100 * (weights.argmax(1) == place).to(torch.float64).mean().item()


def run(trial: Trial, context: Context) -> dict[str, float]:
    generator = torch.Generator().manual_seed(trial.seed)
    images, classes = digits.load()
    train, test = split(len(images), generator)
    digit = trial.seed % CLASSES
    known = drawn(images[train], classes[train], digit, TRAIN, generator)
    asked = drawn(images[test], classes[test], digit, TEST, generator)
    model = WitnessNet(trial.variant)
    loss = fit(
        model,
        known.made(),
        known.labels,
        epochs=trial["epochs"],
        generator=generator,
        context=context,
        batch=BATCH,
        rate=RATE,
    )
    model.cpu()
    with_witness = asked.labels == 1
    same, moved = asked.made(), asked.made(moved=HALF)
    steps = [shifted(asked.witness.unsqueeze(1), *step).squeeze(1) for step in ((0, 1), (0, -1), (1, 0), (-1, 0))]
    hidden = asked.witness.clone()
    hidden[:, digits.SIDE // 2 :] = 0
    return {
        "same": accuracy(model, same, asked.labels),
        "moved": accuracy(model, moved, asked.labels),
        "shifted": sum(accuracy(model, asked.made(witness), asked.labels) for witness in steps) / len(steps),
        "half": accuracy(model, asked.made(hidden), asked.labels),
        "found": found(model, same[with_witness], asked.place[with_witness]),
        "found moved": found(model, moved[with_witness], asked.place[with_witness] + HALF),
        "loss": loss,
        "parameters": parameters(model),
    }


STEP = 100 / TEST
EXPERIMENT = register(
    Experiment(
        name="witness",
        summary=f"Tell whether a certain digit is among {LENGTH} scans; trained with it in the first half of the places only.",
        data=f"scikit-learn's digits; {TRAIN} sequences of four fifths of the scans to train on, {TEST} of the others to test",
        variants={
            "avg": "the mean",
            "max": "the largest value",
            "attention": "gated attention",
            "hopfield": "Hopfield pooling with one learned query",
            FLATTEN: "no pooling; a linear layer with a weight for every place",
        },
        measures={
            "same": Measure("accuracy with the digit in the places trained on", step=STEP),
            "moved": Measure("accuracy with the digit in the other places", step=STEP),
            "shifted": Measure("accuracy with the digit shifted by 1 px in its scan", step=STEP / 4),
            "half": Measure("accuracy with the lower half of the digit hidden", step=STEP),
            "found": Measure("largest weight on the digit", step=2 * STEP),
            "found moved": Measure("largest weight on the digit in the other places", step=2 * STEP),
            "loss": Measure("last training loss", "", better=-1),
            "parameters": Measure("parameters", "", better=-1, exact=True),
        },
        run=run,
        recipe=1,
        full=Scale(seeds=15, settings={"epochs": 15}),
        quick=Scale(seeds=8, settings={"epochs": 7}),
        overlap=0.25,
        needs=("sklearn",),
    )
)
