"""What an experiment is: a plain record. Each stands in a file of its own in `experiments/`."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from torch import Tensor, nn

from everypool import _check as check
from everypool.study.trial import Context, Trial, Value

__all__ = ["Experiment", "Measure", "Scale", "experiments", "find", "missing", "register"]


@dataclass(frozen=True)
class Measure:
    """One number that a trial gives.

    Args:
        title: what it is called in a sentence, such as "shift agreement".
        unit: "%" for shares, else the word after the number; "" for none.
        better: 1 if more is better, -1 if less is, 0 if neither.
        step: the smallest difference between two values that can occur, in the same unit; 0 if any can.
        exact: a count that is the same for every seed; nothing about it is left to chance.
        curve: the name of the series of measures that this is a point of, such as "shift".
        at: where on that series, such as 2 (pixels).
    """

    title: str
    unit: str = "%"
    better: int = 1
    step: float = 0.0
    exact: bool = False
    curve: str = ""
    at: float = 0.0


@dataclass(frozen=True)
class Scale:
    """How large a run is: seeds 0 to `seeds` - 1, and the settings of every trial."""

    seeds: int
    settings: Mapping[str, Value] = field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True)
class Experiment:
    """What is compared, on which data, and what is measured of it.

    Args:
        name: of its file, too.
        summary: one sentence: the task, the network, where the pooling sits.
        data: what the data are, how many, where they come from.
        variants: name -> what it is, in a phrase; the first is what the others are compared with.
        measures: name -> `Measure`, in the order of the table.
        run: a pure function of the trial; all that it draws comes from the trial's seed.
        recipe: goes up with every change of data, network or training: older results no longer count as the same trial.
        full: the size of a real run.
        quick: that of a first look: at least 8 seeds too, or nothing could be told from chance, with less to each.
        overlap: samples tested per sample trained on, where every seed splits the same data anew; 0 where they share none.
        needs: modules that it imports, beside those of the command line.
        nd: spatial axes of the pooling, where any reducer may stand beside the named variants; 0 where none may.
        sample: trial -> its untrained network, and one batch of inputs with their labels: what costs are measured on, and
            pictures made of; None where there is no one network.
        judged: the measures that a comparison is about, unless others are asked for; the first if there are none here.
        check_variant: raises a ValueError for text that is no variant beside the named ones; where there is none, any operation
            is one that halves a map of `nd` axes.
    """

    name: str
    summary: str
    data: str
    variants: Mapping[str, str]
    measures: Mapping[str, Measure]
    run: Callable[[Trial, Context], dict[str, float]]
    recipe: int
    full: Scale
    quick: Scale
    overlap: float = 0.0
    needs: tuple[str, ...] = ()
    nd: int = 0
    sample: Callable[[Trial], tuple[nn.Module, Tensor, Tensor]] | None = None
    judged: tuple[str, ...] = ()
    check_variant: Callable[[str], object] | None = None

    def trials(self, scale: Scale, variants: tuple[str, ...] = ()) -> Iterator[Trial]:
        """Seed by seed, so that a run cut short has the same seeds for every variant."""
        settings = tuple(sorted(scale.settings.items()))
        for seed in range(scale.seeds):
            for variant in variants or self.variants:
                yield Trial(self.name, variant, seed, settings)


REGISTRY: dict[str, Experiment] = {}


def register(experiment: Experiment) -> Experiment:
    """Make it known by its name.

    Raises:
        ValueError: there is another of that name.
    """
    if REGISTRY.setdefault(experiment.name, experiment) is not experiment:
        raise check.invalid("name", "a name that no other experiment has", experiment.name)
    return experiment


def experiments() -> dict[str, Experiment]:
    """All of them by name."""
    import everypool.study.experiments  # noqa: F401  (each file registers its own)

    return dict(REGISTRY)


def find(name: str) -> Experiment:
    """One by its name.

    Raises:
        ValueError: there is none; the nearest name is suggested.
    """
    known = experiments()
    check.choice("experiment", name, list(known))
    return known[name]


def missing(experiment: Experiment) -> list[str]:
    """The modules that it needs and that are not installed."""
    return [name for name in experiment.needs if importlib.util.find_spec(name) is None]
