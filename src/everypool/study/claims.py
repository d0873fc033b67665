"""The claims of the source article as comparisons that an experiment can settle, and their verdicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from everypool.study.statistics import Difference, adjusted
from everypool.study.summary import Study, listed

__all__ = ["NOT_SUPPORTED", "NOT_TESTED", "NO_DIFFERENCE", "SUPPORTED", "Check", "Verdict", "judge"]

SUPPORTED, NOT_SUPPORTED, NO_DIFFERENCE, NOT_TESTED = "supported", "not supported", "no difference here", "not tested"


@dataclass(frozen=True)
class Check:
    """One comparison that bears on a claim.

    Args:
        claim: its number, such as "C4".
        text: what the claim says of this comparison, in one sentence.
        experiment: which one measures it.
        treatment: the variant that the claim speaks of.
        control: what it is compared with.
        measure: in which respect.
        sign: 1 if the claim says that the treatment has more of it, -1 if less.
    """

    claim: str
    text: str
    experiment: str
    treatment: str
    control: str
    measure: str
    sign: int


@dataclass(frozen=True)
class Verdict:
    """What has come of a check.

    Args:
        check: which.
        difference: treatment minus control; None if nothing was measured.
        verdict: "supported", "not supported", "no difference here" or "not tested".
        why: of "not tested".
    """

    check: Check
    difference: Difference | None
    verdict: str
    why: str = ""


def judge(checks: Sequence[Check], studies: Mapping[str, Study]) -> list[Verdict]:
    """All checks at once, since what chance may find among them is shared out over the whole table.

    Args:
        checks: of all claims that are asked about.
        studies: the studies by the name of their experiment; a check whose study is missing or empty is "not tested".
    """
    measured, whys = [], []
    for check in checks:
        study = studies.get(check.experiment)
        whys.append("its experiment was not run" if study is None else divergence(check, study))
        compared = study is not None and not whys[-1]
        measured.append(study.difference(check.treatment, check.control, check.measure) if study and compared else None)
    corrected = iter(adjusted([d for d in measured if d is not None]))
    found = [None if d is None else next(corrected) for d in measured]
    return [verdict(check, d, why) for check, d, why in zip(checks, found, whys, strict=True)]


def divergence(check: Check, study: Study) -> str:
    """Return which of the two variants has diverged in any trial, if one has."""
    names = [name for name in (check.treatment, check.control) if name in study.diverged_seeds()]
    return f"{listed(names)} diverged: loss or weights were not finite" if names else ""


def verdict(check: Check, found: Difference | None, why: str) -> Verdict:
    """A find in the direction of the claim supports it, one in the other direction speaks against it."""
    if found is None:
        return Verdict(check, None, NOT_TESTED, why)
    if found.interval.count == 0 or (not found.exact and found.interval.count < 2):
        return Verdict(check, None, NOT_TESTED, f"{found.interval.count} pair(s) of trials were finished")
    if not found.found:
        return Verdict(check, found, NO_DIFFERENCE)
    return Verdict(check, found, SUPPORTED if found.interval.mean * check.sign > 0 else NOT_SUPPORTED)
