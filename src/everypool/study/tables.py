"""Tables of a study and of claims as text, for the page and for Markdown alike."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from everypool.study import claims
from everypool.study.checks import CLAIMS
from everypool.study.claims import Verdict
from everypool.study.experiment import Measure, experiments
from everypool.study.experiments import costs
from everypool.study.statistics import Interval, interval
from everypool.study.summary import Row, Study

__all__ = [
    "Cell",
    "Line",
    "Table",
    "chances",
    "costs_of",
    "counted",
    "decimals",
    "heading",
    "lines",
    "results",
    "spread",
    "unit_of",
]

COSTS = "answer", "training", "pooling", "training memory", "parameters", "multiply-adds"


@dataclass(frozen=True)
class Cell:
    """What is shown, what it is sorted by (NaN comes last), and "▲" or "▼" where it differs from the first row."""

    text: str
    value: float
    mark: str = ""


@dataclass(frozen=True)
class Table:
    """Headings, that of the names first, and a row of cells per variant."""

    heads: list[str]
    rows: list[tuple[str, list[Cell]]]


@dataclass(frozen=True)
class Line:
    """One check of a claim, in words."""

    verdict: Verdict
    measure: str
    says: str
    effect: str
    size: float
    count: int
    p: str
    chance: float


def decimals(measure: Measure, values: Iterable[float]) -> int:
    """Digits behind the point: one for shares, none for counts, and for others as many as three significant ones take.

    Shares that are all below a half have two significant digits.

    >>> decimals(Measure("accuracy"), [98.76]), decimals(Measure("loss", ""), [0.0321]), decimals(Measure("time", "µs"), [731])
    (1, 4, 0)
    """
    if measure.exact:
        return 0
    largest = max((abs(v) for v in values if math.isfinite(v)), default=0.0)
    share = measure.unit in ("%", "points")
    if largest == 0 or (share and largest >= 0.5):
        return 1
    return min(6, max(0, (1 if share else 2) - math.floor(math.log10(largest))))


def number(value: float, digits: int, sign: str = "") -> str:
    """With thousands apart and a true minus sign.

    >>> number(-1234.5, 1), number(2, 1, "+"), number(-0.01, 1)
    ('−1,234.5', '+2.0', '0.0')
    """
    rounded = round(value, digits) + 0.0  # no minus before a zero
    return f"{rounded:{sign},.{digits}f}".replace("-", "−")


def spread(value: Interval, digits: int) -> str:
    """98.9 ± 0.4, or as much of it as is known."""
    if value.count == 0:
        return "—"
    mean = number(value.mean, digits)
    return mean if value.count == 1 else f"{mean} ± {number(value.half, digits)}"


def unit_of(measure: Measure) -> str:
    """That of a difference."""
    return "points" if measure.unit == "%" else measure.unit


def heading(measure: Measure) -> str:
    return f"{measure.title}, {measure.unit}" if measure.unit else measure.title


def costs_of(cost: Study | None) -> dict[str, dict[str, Interval]]:
    """Of each variant whose costs were measured, every cost over the rounds."""
    if cost is None:
        return {}
    return {v: {m: interval(cost.values(v, m)) for m in cost.experiment.measures} for v in cost.variants if v in cost.outcomes}


def results(study: Study, rows: Sequence[Row], cost: Study | None) -> Table:
    """Judged measures first, then the others, then costs."""
    names = [*study.judged, *(name for name in study.experiment.measures if name not in study.judged)]
    heads = ["variant"]
    columns: list[list[Cell]] = []
    for name in names:
        measure = study.measure(name)
        heads.append(heading(measure))
        columns.append(column(measure, [row.intervals[name] for row in rows], [row.mark(name) for row in rows]))
    paid = costs_of(cost)
    for name in COSTS if paid else ():
        measure = costs.EXPERIMENT.measures[name]
        if measure.exact and heading(measure) in heads:
            continue
        nothing = Interval(math.nan, math.nan, math.nan, 0)
        heads.append(heading(measure))
        columns.append(column(measure, [paid[v][name] if v in paid else nothing for v in study.variants]))
    return Table(heads, [(row.label, [cells[i] for cells in columns]) for i, row in enumerate(rows)])


def column(measure: Measure, intervals: Sequence[Interval], marks: Sequence[str] = ()) -> list[Cell]:
    """All with the same digits behind the point."""
    digits = decimals(measure, [i.mean for i in intervals])
    texts = [number(i.mean, digits) if measure.exact and i.count else spread(i, digits) for i in intervals]
    return [Cell(text, i.mean, mark) for text, i, mark in zip(texts, intervals, marks or [""] * len(texts), strict=True)]


def counted(verdicts: Sequence[Verdict]) -> str:
    """How many comparisons came out which way, in one sentence."""
    about = len({verdict.check.claim for verdict in verdicts})
    comparisons = "1 comparison" if len(verdicts) == 1 else f"{len(verdicts)} comparisons"
    return f"{comparisons} for {about} claim{'' if about == 1 else 's'}: {ways(verdicts)}."


def ways(verdicts: Sequence[Verdict]) -> str:
    """2 supported, 1 not supported."""
    kinds = (claims.SUPPORTED, claims.NOT_SUPPORTED, claims.NO_DIFFERENCE, claims.NOT_TESTED)
    numbers = {kind: sum(verdict.verdict == kind for verdict in verdicts) for kind in kinds}
    return ", ".join(f"{count} {kind}" for kind, count in numbers.items() if count)


def by_claim(verdicts: Sequence[Verdict]) -> list[tuple[str, str, str]]:
    """Each claim's number, what it says, and which ways its comparisons came out."""
    numbers = sorted({verdict.check.claim for verdict in verdicts}, key=order)
    return [(name, CLAIMS.get(name, ""), ways([v for v in verdicts if v.check.claim == name])) for name in numbers]


def lines(verdicts: Sequence[Verdict], studies: Sequence[Study]) -> list[Line]:
    """Claim by claim, in the order of their numbers."""
    return [line(verdict, studies) for verdict in sorted(verdicts, key=lambda verdict: order(verdict.check.claim))]


def order(claim: str) -> tuple[str, int]:
    """C2 before C10."""
    found = re.fullmatch(r"(.*?)(\d*)", claim)
    return (found[1], int(found[2] or 0)) if found else (claim, 0)


def line(verdict: Verdict, studies: Sequence[Study]) -> Line:
    check, found = verdict.check, verdict.difference
    measures = next((s.experiment.measures for s in studies if s.experiment.name == check.experiment), None)
    if measures is None and check.experiment in experiments():
        measures = experiments()[check.experiment].measures
    measure = (measures or {}).get(check.measure, Measure(check.measure, ""))
    says = {1: "more", -1: "less"}.get(check.sign, "")
    if found is None or found.interval.count == 0:
        return Line(verdict, measure.title, says, "—", math.nan, 0, "—", math.nan)
    spread = found.interval
    ends = [v for v in (spread.mean, spread.low, spread.high) if math.isfinite(v)]
    digits = decimals(measure, ends)
    unit = f" {unit_of(measure)}" if measure.unit else ""
    effect = f"{number(spread.mean, digits, '+')}{unit}"
    if len(ends) == 3 and not found.exact:
        effect += f" ({number(spread.low, digits, '+')} to {number(spread.high, digits, '+')})"
    return Line(verdict, measure.title, says, effect, spread.mean, spread.count, chances(found.adjusted), found.adjusted)


def chances(p: float) -> str:
    """A p-value.

    >>> chances(0.0004), chances(0.0421)
    ('< 0.001', '0.042')
    """
    return "—" if not math.isfinite(p) else "< 0.001" if p < 0.001 else f"{p:.3f}"
