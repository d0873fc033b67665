"""What a study knows so far, for the table, the report and `--json` alike."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from everypool.study.data import TEST_SHARE
from everypool.study.measures import Cost
from everypool.study.statistics import Difference, Interval, compare, conclude, interval
from everypool.study.trial import Outcome, Trial

__all__ = ["MEASURES", "Row", "Study"]

MEASURES = {"accuracy": "accuracy", "shift": "shift agreement"}
OVERLAP = TEST_SHARE / (1 - TEST_SHARE)


@dataclass(frozen=True)
class Row:
    """One pooling: its results over seeds, its costs if they were measured, and how it differs from the first."""

    pool: str
    intervals: dict[str, Interval]
    differences: dict[str, Difference]
    cost: Cost | None
    outcomes: dict[int, Outcome]

    def mark(self, measure: str) -> str:
        """Which way it differs from the first pooling, if it does."""
        difference = self.differences.get(measure)
        if difference is None or not difference.found:
            return ""
        return "▲" if difference.interval.mean > 0 else "▼"


@dataclass
class Study:
    """The plan and what has come of it; the first pooling is the one that the others are compared with."""

    pools: Sequence[str]
    seeds: int
    epochs: int
    images: int
    outcomes: dict[str, dict[int, Outcome]] = field(default_factory=dict)
    costs: dict[str, Cost] = field(default_factory=dict)
    failures: list[tuple[Trial, str]] = field(default_factory=list)
    interrupted: bool = False

    def trials(self) -> list[Trial]:
        """Every trial of the plan, seed by seed, so that a study cut short has the same seeds for every pooling."""
        return [Trial(pool, seed, self.epochs) for seed in range(self.seeds) for pool in self.pools]

    def add(self, trial: Trial, outcome: Outcome) -> None:
        self.outcomes.setdefault(trial.pool, {})[trial.seed] = outcome

    @property
    def finished(self) -> int:
        return sum(len(by_seed) for by_seed in self.outcomes.values())

    @property
    def planned(self) -> int:
        return len(self.pools) * self.seeds

    @property
    def test_images(self) -> int:
        return int(self.images * TEST_SHARE)

    def diverged(self) -> list[str]:
        """Poolings with a trial whose loss was not finite in the end."""
        return [pool for pool in self.pools if any(not math.isfinite(o.loss) for o in self.outcomes.get(pool, {}).values())]

    def differences(self) -> list[Difference]:
        """Each pooling against the first, over the seeds that both have finished."""
        results = {
            pool: {
                seed: {measure: getattr(outcome, measure) for measure in MEASURES}
                for seed, outcome in self.outcomes.get(pool, {}).items()
            }
            for pool in self.pools
        }
        step = 100 / self.test_images
        return compare(results, {"accuracy": step, "shift": step / 4}, overlap=OVERLAP)

    def rows(self) -> list[Row]:
        differences = self.differences()
        rows = []
        for pool in self.pools:
            outcomes = dict(sorted(self.outcomes.get(pool, {}).items()))
            intervals = {m: interval([getattr(o, m) for o in outcomes.values()], overlap=OVERLAP) for m in MEASURES}
            own = {d.measure: d for d in differences if d.pool == pool}
            rows.append(Row(pool, intervals, own, self.costs.get(pool), outcomes))
        return rows

    def conclusion(self) -> str:
        """One sentence."""
        if not self.finished:
            return "No trial was finished, so there is nothing to conclude."
        return conclude(self.differences(), MEASURES)

    def record(self) -> dict[str, Any]:
        """Everything, ready for JSON; what is not known is None."""
        return {
            "pools": list(self.pools),
            "seeds": self.seeds,
            "epochs": self.epochs,
            "finished": self.finished,
            "planned": self.planned,
            "interrupted": self.interrupted,
            "conclusion": self.conclusion(),
            "results": [
                {
                    "pool": row.pool,
                    **{measure: known(asdict(spread)) for measure, spread in row.intervals.items()},
                    "cost": None if row.cost is None else asdict(row.cost),
                    "trials": [{"seed": seed, **known(asdict(outcome))} for seed, outcome in row.outcomes.items()],
                }
                for row in self.rows()
            ],
            "differences": [
                {"pool": d.pool, "reference": d.reference, "measure": d.measure, "found": d.found, **known(asdict(d.interval))}
                for d in self.differences()
            ],
            "failures": [{"pool": trial.pool, "seed": trial.seed, "message": text} for trial, text in self.failures],
        }


def known(values: dict[str, Any]) -> dict[str, Any]:
    return {name: None if isinstance(v, float) and not math.isfinite(v) else v for name, v in values.items()}
