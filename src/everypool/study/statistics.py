"""Intervals over seeds, paired differences with their chance, and how many finds a table may have by chance alone."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

__all__ = ["ALPHA", "FEWEST", "LEVEL", "Difference", "Interval", "adjusted", "chance", "difference", "interval", "signed"]

LEVEL = 0.95
ALPHA = 1 - LEVEL
EXACT = 13  # pairs up to which all 2^n ways of exchanging the two of a pair are counted; beyond, many are drawn
DRAWN = 9999
FEWEST = 6  # pairs with which a permutation test can come out below ALPHA: 2 of 2^6


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
    """How far a variant lies above the reference, over the seeds that both have.

    Args:
        variant: what is compared.
        reference: with what.
        measure: in which respect.
        interval: of the differences.
        p: the chance of a mean difference at least as large if the two were exchangeable.
        adjusted: p, corrected for all comparisons of its table; see `adjusted`.
        exact: the difference of two counts, which chance has no part in.
    """

    variant: str
    reference: str
    measure: str
    interval: Interval
    p: float
    adjusted: float
    exact: bool = False

    @property
    def found(self) -> bool:
        """Whether there is a difference: the corrected chance is small and the interval leaves out 0."""
        if self.exact:
            return self.interval.mean != 0
        return self.adjusted <= ALPHA and self.interval.excludes_zero


def interval(values: Sequence[float], *, level: float = LEVEL, overlap: float = 0.0, resolution: float = 0.0) -> Interval:
    """The mean of repeated splits with Nadeau and Bengio's corrected interval.

    mean ± t(level, n - 1) · s · sqrt(1 / n + overlap)

    Args:
        values: one per seed.
        level: how often such an interval holds the true mean.
        overlap: test samples per training sample. The seeds share training samples, so their results are not independent, and
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


def chance(differences: Sequence[float]) -> float:
    """The two-sided p-value of a paired permutation test: how often the mean is as far from 0 when signs are drawn at random.

    >>> chance([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])  # 2 of 64
    0.03125
    """
    if len(differences) < 2:
        return math.nan
    return permuted(tuple(differences)) if any(differences) else 1.0


@functools.lru_cache(maxsize=4096)  # a page asks for each more than once
def permuted(differences: tuple[float, ...]) -> float:
    import numpy as np
    from scipy import stats

    exact = len(differences) <= EXACT
    found = stats.permutation_test(
        (np.asarray(differences),),
        lambda values, axis: values.mean(axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=math.inf if exact else DRAWN,
        rng=np.random.default_rng(0),
    )
    return float(found.pvalue)


def difference(
    variant: str,
    reference: str,
    measure: str,
    pairs: Sequence[tuple[float, float]],
    *,
    overlap: float = 0.0,
    resolution: float = 0.0,
    exact: bool = False,
) -> Difference:
    """One comparison by itself, not corrected yet.

    Args:
        variant, reference, measure: what is compared with what, in which respect.
        pairs: a value of the variant and one of the reference for every seed; pairs with a NaN are left out.
        overlap, resolution: as in `interval`.
        exact: the values are counts.
    """
    values = [a - b for a, b in pairs if math.isfinite(a) and math.isfinite(b)]
    if exact:
        mean = values[0] if values else math.nan
        return Difference(variant, reference, measure, Interval(mean, mean, mean, len(values)), math.nan, math.nan, True)
    p = chance(values)
    return Difference(variant, reference, measure, interval(values, overlap=overlap, resolution=resolution), p, p)


def adjusted(differences: Sequence[Difference]) -> list[Difference]:
    """The same with `adjusted` such that, of all that a table takes for a difference, a twentieth at most is expected to be
    none.

    Source: Benjamini and Hochberg, Controlling the false discovery rate, Journal of the Royal Statistical Society B 57, 1995.
    """
    tested = [d for d in differences if math.isfinite(d.p)]
    if not tested:
        return list(differences)
    from scipy import stats

    values = iter(stats.false_discovery_control([d.p for d in tested]))
    return [replace(d, adjusted=float(next(values))) if math.isfinite(d.p) else d for d in differences]


def signed(value: float, digits: int = 1) -> str:
    """With a true minus sign.

    >>> signed(-1.25), signed(3)
    ('−1.2', '+3.0')
    """
    return f"{value:+,.{digits}f}".replace("-", "−")
