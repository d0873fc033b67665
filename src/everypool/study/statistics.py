"""Intervals over seeds, paired differences, and the one sentence that they allow."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

__all__ = ["Difference", "Interval", "compare", "conclude", "interval"]

LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean over `count` seeds and where the true one lies; without bounds (NaN) if there is one seed alone."""

    mean: float
    low: float
    high: float
    count: int

    @property
    def half(self) -> float:
        return (self.high - self.low) / 2

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Difference:
    """How far one pooling lies above the reference, in points, over the seeds that both have."""

    pool: str
    reference: str
    measure: str
    interval: Interval

    @property
    def found(self) -> bool:
        return self.interval.excludes_zero


def interval(values: Sequence[float], *, level: float = LEVEL, overlap: float = 0.0, resolution: float = 0.0) -> Interval:
    """The mean of repeated splits with Nadeau and Bengio's corrected interval.

    mean ± t(level, n - 1) · s · sqrt(1 / n + overlap)

    Args:
        values: one per seed.
        level: how often such an interval holds the true mean.
        overlap: test images per training image. The seeds share training images, so their results are not independent, and
            Student's interval (overlap 0) would be too narrow.
        resolution: the step between possible values; s counts as at least what rounding to that step makes, step / sqrt(12).

    Source: Nadeau and Bengio, Inference for the generalization error, Machine Learning 52, 2003, section 3.

    >>> interval([1.0, 2.0, 3.0])
    Interval(mean=2.0, low=-0.48..., high=4.48..., count=3)
    """
    count = len(values)
    if count == 0:
        return Interval(math.nan, math.nan, math.nan, 0)
    mean = math.fsum(values) / count
    if count == 1:
        return Interval(mean, math.nan, math.nan, 1)
    from scipy import stats  # type: ignore[import-untyped]

    spread = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (count - 1))
    spread = max(spread, resolution / math.sqrt(12))
    half = float(stats.t.ppf((1 + level) / 2, count - 1)) * spread * math.sqrt(1 / count + overlap)
    return Interval(mean, mean - half, mean + half, count)


def compare(
    results: Mapping[str, Mapping[int, Mapping[str, float]]],
    measures: Mapping[str, float],
    *,
    overlap: float = 0.0,
    level: float = LEVEL,
) -> list[Difference]:
    """Each pooling against the first, seed by seed, for each measure.

    Bonferroni's correction: the intervals of all comparisons hold together with probability `level` at least.

    Args:
        results: pooling -> seed -> measure -> value; the first pooling is the reference.
        measures: measure -> the step between its possible values.
        overlap: as in `interval`.
        level: of all intervals together.
    """
    pools = list(results)
    comparisons = (len(pools) - 1) * len(measures)
    found = []
    for measure, resolution in measures.items():
        for pool in pools[1:]:
            seeds = sorted(set(results[pool]) & set(results[pools[0]]))
            differences = [results[pool][seed][measure] - results[pools[0]][seed][measure] for seed in seeds]
            each = 1 - (1 - level) / comparisons
            spread = interval(differences, level=each, overlap=overlap, resolution=resolution)
            found.append(Difference(pool, pools[0], measure, spread))
    return found


def conclude(differences: Sequence[Difference], names: Mapping[str, str]) -> str:
    """One sentence that claims no more than the paired intervals allow.

    Args:
        differences: of `compare`.
        names: measure -> what it is called in a sentence.
    """
    if not differences:
        return "There is only one pooling, so there is nothing to compare."
    counts = {difference.interval.count for difference in differences}
    if max(counts) < 2:
        return "No conclusion: differences between poolings can only be told from chance with two seeds or more."
    seeds = f"{min(counts)} to {max(counts)}" if len(counts) > 1 else f"{max(counts)}"
    reference = differences[0].reference
    if any(difference.found for difference in differences):
        said = ", and ".join(clause([d for d in differences if d.measure == measure], name) for measure, name in names.items())
    else:
        alone = len(differences) == len(names)
        who = f"{differences[0].pool} shows no" if alone else "no other pooling shows a"
        said = f"{who} difference in {' or '.join(names.values())}"
    suffix = "" if len(differences) == 1 else f", corrected for {len(differences)} comparisons"
    return f"Compared with {reference} over {seeds} seeds, {said} (paired {100 * LEVEL:.0f} % intervals{suffix})."


def clause(differences: Sequence[Difference], name: str) -> str:
    """What is known of one measure."""
    higher = [d for d in differences if d.interval.low > 0]
    lower = [d for d in differences if d.interval.high < 0]
    open_ = [d.pool for d in differences if not d.found]
    if not higher and not lower:
        return f"{name} shows no difference"
    parts = [
        f"is {word} for {listed([in_points(d) for d in some])}" for word, some in (("higher", higher), ("lower", lower)) if some
    ]
    if open_:
        parts.append(f"shows no difference for {listed(open_)}")
    return f"{name} {listed(parts)}"


def in_points(difference: Difference) -> str:
    spread = difference.interval
    return f"{difference.pool} ({signed(spread.mean)} points, {signed(spread.low)} to {signed(spread.high)})"


def signed(value: float) -> str:
    """With a true minus sign.

    >>> signed(-1.25), signed(3)
    ('−1.2', '+3.0')
    """
    return f"{value:+.1f}".replace("-", "−")


def listed(parts: Sequence[str]) -> str:
    """a, b and c."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
