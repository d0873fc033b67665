"""What a study knows so far, for the table, the report and `--json` alike."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from everypool.study.experiment import Experiment, Measure, Scale
from everypool.study.statistics import FEWEST, Difference, Interval, adjusted, difference, interval, signed
from everypool.study.trial import Outcome, Trial

__all__ = ["Row", "Study", "has_diverged", "known", "listed", "written"]


@dataclass(frozen=True)
class Row:
    """One variant: its results over seeds, how it differs from the first, and the seeds with which its training diverged."""

    variant: str
    intervals: dict[str, Interval]
    differences: dict[str, Difference]
    outcomes: dict[int, Outcome]
    diverged: tuple[int, ...] = ()

    @property
    def label(self) -> str:
        """What it is called in tables."""
        return f"{self.variant} (diverged)" if self.diverged else self.variant

    def mark(self, measure: str) -> str:
        """Which way it differs from the first variant, if it does."""
        found = self.differences.get(measure)
        if found is None or not found.found:
            return ""
        return "▲" if found.interval.mean > 0 else "▼"


@dataclass
class Study:
    """One experiment: the plan and what has come of it; the first variant is the one that the others are compared with.

    Args:
        experiment: which.
        scale: seeds, and the settings of all trials.
        variants: what is compared.
        judged: the measures of which differences are claimed; the others are shown.
    """

    experiment: Experiment
    scale: Scale
    variants: Sequence[str]
    judged: Sequence[str]
    outcomes: dict[str, dict[int, Outcome]] = field(default_factory=dict)
    failures: list[tuple[Trial, str]] = field(default_factory=list)

    def trials(self) -> list[Trial]:
        """Every trial of the plan."""
        return list(self.experiment.trials(self.scale, tuple(self.variants)))

    def add(self, trial: Trial, outcome: Outcome) -> None:
        self.outcomes.setdefault(trial.variant, {})[trial.seed] = outcome

    @property
    def finished(self) -> int:
        return sum(len(by_seed) for by_seed in self.outcomes.values())

    @property
    def planned(self) -> int:
        return len(self.variants) * self.scale.seeds

    def measure(self, name: str) -> Measure:
        return self.experiment.measures[name]

    def values(self, variant: str, measure: str) -> list[float]:
        """Those of all its seeds that have one."""
        outcomes = self.outcomes.get(variant, {})
        return [v for seed in sorted(outcomes) if math.isfinite(v := outcomes[seed].measures[measure])]

    def pairs(self, variant: str, reference: str, measure: str) -> list[tuple[float, float]]:
        """The two values of every seed that both have finished."""
        ours, theirs = self.outcomes.get(variant, {}), self.outcomes.get(reference, {})
        seeds = sorted(set(ours) & set(theirs))
        return [(ours[seed].measures[measure], theirs[seed].measures[measure]) for seed in seeds]

    def difference(self, variant: str, reference: str, measure: str) -> Difference:
        """One comparison, not corrected for others."""
        known = self.measure(measure)
        return difference(
            variant, reference, measure, self.pairs(variant, reference, measure),
            overlap=self.experiment.overlap, resolution=known.step, exact=known.exact,
        )  # fmt: skip

    def differences(self) -> list[Difference]:
        """Each variant against the first in each judged measure, corrected together; none of what has diverged."""
        reference, *others = [v for v in self.variants if v not in self.diverged_seeds()] or [""]
        if reference != self.variants[0]:
            return []
        return adjusted([self.difference(v, reference, m) for m in self.judged for v in others])

    def diverged_seeds(self) -> dict[str, tuple[int, ...]]:
        """Return, of every variant that has such, the seeds with which a loss or a weight was not finite."""
        found = {
            variant: tuple(seed for seed, outcome in sorted(self.outcomes.get(variant, {}).items()) if has_diverged(outcome))
            for variant in self.variants
        }
        return {variant: seeds for variant, seeds in found.items() if seeds}

    def divergences(self) -> list[str]:
        """Return a sentence for each variant that has diverged."""
        return [
            f"{variant} diverged in {len(seeds)} of {len(self.outcomes[variant])} trials: its loss or weights were not finite."
            for variant, seeds in self.diverged_seeds().items()
        ]

    @property
    def has_only_diverged(self) -> bool:
        """Whether trials were finished, and all of them diverged."""
        return bool(self.finished) and sum(map(len, self.diverged_seeds().values())) == self.finished

    def rows(self) -> list[Row]:
        differences, diverged = self.differences(), self.diverged_seeds()
        rows = []
        for variant in self.variants:
            intervals = {
                name: interval(self.values(variant, name), overlap=self.experiment.overlap) for name in self.experiment.measures
            }
            own = {d.measure: d for d in differences if d.variant == variant}
            outcomes = dict(sorted(self.outcomes.get(variant, {}).items()))
            rows.append(Row(variant, intervals, own, outcomes, diverged.get(variant, ())))
        return rows

    def conclusion(self) -> str:
        """One sentence that claims no more than the paired comparisons allow; before it, what has diverged."""
        if not self.finished:
            return "No trial was finished, so there is nothing to conclude."
        diverged = list(self.diverged_seeds())
        if self.has_only_diverged:
            return "No conclusion: every trial diverged, its loss or weights were not finite."
        if self.variants[0] in diverged and len(self.variants) > 1:
            return f"No conclusion: {self.variants[0]}, with which the others are compared, diverged."
        if diverged and len(diverged) == len(self.variants) - 1:
            return f"No conclusion: {listed(diverged)} diverged."
        said = self.compared_conclusion()
        return (
            f"{listed(diverged)} diverged, so nothing is concluded of {'it' if len(diverged) == 1 else 'them'}. {said}"
            if diverged
            else said
        )

    def compared_conclusion(self) -> str:
        """Return the sentence on the variants that have not diverged."""
        differences = self.differences()
        if not differences:
            return "There is only one variant, so there is nothing to compare."
        counts = {d.interval.count for d in differences}
        if max(counts) < 2:
            return "No conclusion: differences can only be told from chance with two seeds or more."
        if max(counts) < FEWEST and not any(d.exact or d.found for d in differences):
            return f"No conclusion: {FEWEST} seeds are the fewest with which a paired test can tell a difference from chance."
        seeds = f"{min(counts)} to {max(counts)}" if len(counts) > 1 else f"{max(counts)}"
        names = {name: self.measure(name).title for name in self.judged}
        if any(d.found for d in differences):
            clauses = [self.clause([d for d in differences if d.measure == measure]) for measure in self.judged]
            said = ", and ".join(clauses)
        else:
            others = list(dict.fromkeys(d.variant for d in differences))
            who = f"{others[0]} shows no" if len(others) == 1 else "none of the others shows a"
            said = f"{who} difference in {listed(list(names.values()), 'or')}"
        suffix = "" if len(differences) == 1 else f", corrected for {len(differences)} comparisons"
        return f"Compared with {self.variants[0]} over {seeds} seeds, {said} (paired permutation tests{suffix})."

    def clause(self, differences: Sequence[Difference]) -> str:
        """What is known of one measure."""
        measure = self.measure(differences[0].measure)
        higher = [d for d in differences if d.found and d.interval.mean > 0]
        lower = [d for d in differences if d.found and d.interval.mean < 0]
        same = [d.variant for d in differences if not d.found]
        if not higher and not lower:
            return f"{measure.title} shows no difference"
        parts = [
            f"is {word} for {listed([written(d, measure) for d in some])}"
            for word, some in (("higher", higher), ("lower", lower))
            if some
        ]
        if same:
            parts.append(f"shows no difference for {listed(same)}")
        return f"{measure.title} {listed(parts)}"

    def record(self) -> dict[str, Any]:
        """Everything, ready for JSON; what is not known is None."""
        return {
            "experiment": self.experiment.name,
            "variants": list(self.variants),
            "seeds": self.scale.seeds,
            "settings": dict(self.scale.settings),
            "finished": self.finished,
            "planned": self.planned,
            "conclusion": self.conclusion(),
            "diverged": {variant: list(seeds) for variant, seeds in self.diverged_seeds().items()},
            "results": [
                {
                    "variant": row.variant,
                    "measures": {measure: known(asdict(spread)) for measure, spread in row.intervals.items()},
                    "trials": [
                        {"seed": seed, "seconds": outcome.seconds, "diverged": has_diverged(outcome), **known(outcome.measures)}
                        for seed, outcome in row.outcomes.items()
                    ],
                }
                for row in self.rows()
            ],
            "differences": [
                {"variant": d.variant, "reference": d.reference, "measure": d.measure, "found": d.found,
                 **known({"p": d.p, "adjusted": d.adjusted, **asdict(d.interval)})}
                for d in self.differences()
            ],
            "failures": [{"variant": trial.variant, "seed": trial.seed, "message": text} for trial, text in self.failures],
        }  # fmt: skip


def has_diverged(outcome: Outcome) -> bool:
    """Return whether a loss or a weight was not finite; of trials from before that was noted their last loss tells."""
    return outcome.diverged or not math.isfinite(outcome.measures.get("loss", 0.0))


def written(found: Difference, measure: Measure) -> str:
    """center (−20.1 points, −20.4 to −19.8)."""
    spread = found.interval
    unit = " points" if measure.unit == "%" else f" {measure.unit}" if measure.unit else ""
    if found.exact:
        return f"{found.variant} ({signed(spread.mean, 0)}{unit})"
    return f"{found.variant} ({signed(spread.mean)}{unit}, {signed(spread.low)} to {signed(spread.high)})"


def listed(parts: Sequence[str], last: str = "and") -> str:
    """a, b and c."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} {last} {parts[-1]}"


def known(values: dict[str, Any]) -> dict[str, Any]:
    return {name: None if isinstance(v, float) and not math.isfinite(v) else v for name, v in values.items()}
