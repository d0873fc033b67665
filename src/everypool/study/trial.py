"""One trial: what defines it, and what comes of it."""

from __future__ import annotations

import hashlib
import json
import math
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import torch

from everypool import _check as check

__all__ = ["Context", "Outcome", "Trial", "Value", "run"]

Value: TypeAlias = int | float | str | bool


@dataclass(frozen=True)
class Trial:
    """One variant of one experiment under one seed; equal trials have equal outcomes.

    Args:
        experiment: its name.
        variant: which of the things that are compared, a pooling most often.
        seed: draws the split, the first weights, the order of the samples, and whatever else is drawn; where samples are
            taken in turn rather than drawn, it is the number of the sample. Variants with the same seed make a pair.
        settings: the rest, such as the number of epochs, in the order of their names.
    """

    experiment: str
    variant: str
    seed: int
    settings: tuple[tuple[str, Value], ...] = ()

    def __getitem__(self, name: str) -> Any:
        """A setting by its name."""
        return dict(self.settings)[name]

    def spec(self) -> dict[str, Any]:
        """All that decides the outcome."""
        from everypool import __version__
        from everypool.study.experiment import find

        return {
            "experiment": self.experiment,
            "recipe": find(self.experiment).recipe,
            "variant": self.variant,
            "seed": self.seed,
            "settings": dict(self.settings),
            "everypool": __version__,
            "torch": torch.__version__,
        }

    def key(self) -> str:
        """The name of this trial among results."""
        return hashlib.sha256(json.dumps(self.spec(), sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Context:
    """What a trial is given beside its spec; nothing of it changes the outcome by more than rounding.

    Args:
        tick: told how much of the trial is done, from 0 to 1.
        device: where to compute.
        fabric: a launched `lightning.fabric.Fabric` that spreads the training of this one trial over processes, if any.
        mark_diverged: told when a loss or a weight is not finite.
    """

    tick: Callable[[float], None] = lambda done: None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    fabric: Any = None
    mark_diverged: Callable[[], None] = lambda: None


@dataclass(frozen=True)
class Outcome:
    """The measures by name (NaN where one could not be taken), the processor seconds spent, and where.

    It is `diverged` if a loss or a weight was not finite in training.
    """

    measures: dict[str, float]
    seconds: float
    machine: str
    diverged: bool = False


def run(trial: Trial, context: Context | None = None) -> Outcome:
    """What a trial gives. On one thread the same trial gives the same, whatever runs beside it.

    Raises:
        ValueError: no such experiment, or it has measured something else than it says.
    """
    from everypool.study.experiment import find

    experiment = find(trial.experiment)
    began = time.process_time()
    torch.manual_seed(trial.seed)
    marks: list[bool] = []
    measures = experiment.run(trial, replace(context or Context(), mark_diverged=lambda: marks.append(True)))
    if set(measures) != set(experiment.measures):
        raise check.invalid("measures", f"those of {trial.experiment}, {sorted(experiment.measures)}", sorted(measures))
    values = {name: float(value) for name, value in measures.items()}
    return Outcome(values, time.process_time() - began, f"{platform.node()}, {platform.machine()}", bool(marks))


def known(value: float) -> float | None:
    """For JSON, which has no NaN."""
    return value if math.isfinite(value) else None
