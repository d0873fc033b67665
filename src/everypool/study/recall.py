"""Studies from the rows of a folder, without the plan that made them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from everypool.study.experiment import Scale, experiments
from everypool.study.experiments import costs
from everypool.study.store import Row
from everypool.study.summary import Study

__all__ = ["recalled"]


def recalled(rows: Iterable[Row]) -> tuple[list[Study], list[Study], int]:
    """The studies, those of costs apart, and how many rows belong to experiments that have changed since or are not here.

    Rows of one experiment make one study for every choice of settings and versions.
    """
    known = experiments()
    groups: dict[tuple[object, ...], list[Row]] = {}
    foreign = 0
    for row in rows:
        experiment = known.get(row.trial.experiment)
        if experiment is None or experiment.recipe != row.recipe or set(experiment.measures) != set(row.outcome.measures):
            foreign += 1
            continue
        groups.setdefault((experiment.name, row.trial.settings, row.everypool, row.torch), []).append(row)
    studies = [study_of(group) for _, group in sorted(groups.items(), key=lambda item: str(item[0]))]
    of_costs = [study for study in studies if study.experiment is costs.EXPERIMENT]
    return [study for study in studies if study.experiment is not costs.EXPERIMENT], of_costs, foreign


def study_of(rows: Sequence[Row]) -> Study:
    experiment = experiments()[rows[0].trial.experiment]
    seen = dict.fromkeys(row.trial.variant for row in rows)
    variants = [v for v in experiment.variants if v in seen] + sorted(set(seen) - set(experiment.variants))
    scale = Scale(1 + max(row.trial.seed for row in rows), dict(rows[0].trial.settings))
    study = Study(experiment, scale, variants, experiment.judged or tuple(experiment.measures)[:1])
    for row in rows:
        study.add(row.trial, row.outcome)
    return study
