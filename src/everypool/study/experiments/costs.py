"""What the variants of another experiment cost: time and memory of its network on one batch. Run it when nothing else runs."""

from __future__ import annotations

import platform

from everypool.study import measures
from everypool.study.experiment import Experiment, Measure, Scale, find, register
from everypool.study.trial import Context, Trial

__all__ = ["EXPERIMENT", "scale"]

OF = "of"  # the setting that names the other experiment; the rest are the other's own
MACHINE = "machine"  # a cost belongs to a machine
ROUNDS = 5


def scale(other: Trial, device: str) -> Scale:
    """Rounds for the experiment of that trial, on this machine."""
    own = {OF: other.experiment, MACHINE: f"{platform.node()} {platform.machine()} {device}"}
    return Scale(ROUNDS, {**dict(other.settings), **own})


def run(trial: Trial, context: Context) -> dict[str, float]:
    other = find(trial[OF])
    settings = tuple((name, value) for name, value in trial.settings if name not in (OF, MACHINE))
    if other.sample is None:
        raise NotImplementedError(f"`of` must be an experiment with one network, got {other.name!r}")
    model, inputs, labels = other.sample(Trial(other.name, trial.variant, trial.seed, settings))
    found = measures.costs(model.to(context.device), inputs.to(context.device), labels.to(context.device))
    context.tick(1.0)
    return found


EXPERIMENT = register(
    Experiment(
        name="costs",
        summary="Time and memory of a network with each pooling, on one batch; a seed is a round in which each has its turn.",
        data="one batch of the other experiment",
        variants={},
        measures={
            "answer": Measure("time of an answer, per sample", "µs", better=-1),
            "training": Measure("time of a training step, per sample", "µs", better=-1),
            "pooling": Measure("time of the pooling layers alone, per sample", "µs", better=-1),
            "answer memory": Measure("peak memory of an answer, per sample", "KiB", better=-1),
            "training memory": Measure("peak memory of a training step, per sample", "KiB", better=-1),
            "parameters": Measure("parameters", "", better=-1, exact=True),
            "multiply-adds": Measure("multiply-adds of an answer", "", better=-1, exact=True),
        },
        run=run,
        recipe=1,
        full=Scale(ROUNDS),
        quick=Scale(ROUNDS),
    )
)
