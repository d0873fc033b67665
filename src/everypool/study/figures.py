"""Which figures a study gets, with their titles, captions and descriptions."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import takewhile

from everypool.study import plots
from everypool.study.experiment import Measure
from everypool.study.experiments import costs
from everypool.study.statistics import Interval, signed
from everypool.study.summary import Row, Study
from everypool.study.tables import costs_of, decimals, spread, unit_of

__all__ = ["Drawing", "figures"]

TIME = "training"


@dataclass(frozen=True)
class Drawing:
    """A figure in the page."""

    title: str
    caption: str
    svg: str


def figures(study: Study, rows: list[Row], cost: Study | None, name: str, *, most: int = 4) -> list[Drawing]:
    """Of each judged measure the trials and the differences; the first against its cost; and all curves.

    Args:
        study: which.
        rows: its rows.
        cost: its costs, if they were measured.
        name: goes in front of all identifiers.
        most: judged measures that are drawn.
    """
    made = []
    for i, measure in enumerate([m for m in study.judged if not study.measure(m).exact][:most]):
        made += judged(study, rows, measure, f"{name}-{i}")
    made += against_cost(study, rows, cost, f"{name}-cost")
    for i, curve in enumerate(dict.fromkeys(m.curve for m in study.experiment.measures.values() if m.curve)):
        made += curved(study, rows, curve, f"{name}-curve{i}")
    return made


def judged(study: Study, rows: list[Row], name: str, prefix: str) -> list[Drawing]:
    measure = study.measure(name)
    title = capital(measure.title)
    better = {1: " More is better.", -1: " Less is better."}.get(measure.better, "")
    values = [(row.variant, study.values(row.variant, name), row.intervals[name]) for row in rows]
    if not any(spread.count for _, _, spread in values):
        return []
    unit = measure.unit or measure.title
    svg = plots.figure_svg(plots.dots(values, unit), prefix, f"{title}, {measure.unit}: {words(measure, values)}")
    made = [Drawing(title, f"Dots: one trial each. Line: the mean and its 95 % interval.{better}", svg)]
    found = [row.differences[name] for row in rows[1:] if name in row.differences]
    known = [d for d in found if d.interval.count > 1]
    if known:
        digits = decimals(measure, [d.interval.high - d.interval.low for d in known])
        title = f"{title}: difference from {rows[0].variant}"
        parts = [
            f"{d.variant} {signed(d.interval.mean, digits)} ({signed(d.interval.low, digits)} to "
            f"{signed(d.interval.high, digits)}{', a difference' if d.found else ''})"
            for d in known
        ]
        drawn = plots.differences(found, unit_of(measure) or measure.title)
        svg = plots.figure_svg(drawn, f"{prefix}-difference", f"{title}: {'; '.join(parts)}")
        caption = "Pairs with the same seed, 95 % intervals. A dot: a difference that chance does not explain; a bar: none."
        made.append(Drawing(title, caption, svg))
    return made


def words(measure: Measure, values: list[tuple[str, list[float], Interval]]) -> str:
    digits = decimals(measure, [spread.mean for _, _, spread in values])
    return "; ".join(f"{variant} {spread(interval, digits)}" for variant, _, interval in values)


def against_cost(study: Study, rows: list[Row], cost: Study | None, prefix: str) -> list[Drawing]:
    """The first judged measure against the time of a training step."""
    paid = costs_of(cost)
    if paid:
        times = {variant: own[TIME] for variant, own in paid.items()}
        axis = costs.EXPERIMENT.measures[TIME]
    elif TIME in study.experiment.measures:
        times = {row.variant: row.intervals[TIME] for row in rows}
        axis = study.measure(TIME)
    else:
        return []
    name = study.judged[0]
    measure = study.measure(name)
    points = [(row.variant, times[row.variant], row.intervals[name]) for row in rows if row.variant in times]
    points = [(variant, x, y) for variant, x, y in points if x.count and y.count and x.mean > 0]
    if len(points) < 2:
        return []
    figure = plots.scatter(points, "training step per sample, µs", measure.unit)
    digits = decimals(measure, [y.mean for _, _, y in points]), decimals(axis, [x.mean for _, x, _ in points])
    parts = [f"{variant} {spread(y, digits[0])} {measure.unit} for {spread(x, digits[1])} µs" for variant, x, y in points]
    title = f"{capital(measure.title)} against time"
    good = {1: "Best is at the upper left. ", -1: "Best is at the lower left. "}.get(measure.better, "")
    caption = f"{good}Upright lines are 95 % intervals."
    return [Drawing(title, caption, plots.figure_svg(figure, prefix, f"{title}: {'; '.join(parts)}"))]


def curved(study: Study, rows: list[Row], curve: str, prefix: str) -> list[Drawing]:
    """A series of measures as lines."""
    own = {name: m for name, m in study.experiment.measures.items() if m.curve == curve}
    if len(own) < 2:
        return []
    lines = [(row.variant, [(m.at, row.intervals[name]) for name, m in own.items()]) for row in rows]
    lines = [(variant, points) for variant, points in lines if any(interval.count for _, interval in points)]
    if not lines:
        return []
    title, unit = common([m.title for m in own.values()])
    title = capital(title or curve)
    first = next(iter(own.values()))
    figure = plots.curves(lines, f"{curve}, {unit}" if unit else curve, first.unit)
    digits = decimals(first, [interval.mean for _, points in lines for _, interval in points])
    said = [(variant, ", ".join(f"{spread(value, digits)} at {at:g}" for at, value in points)) for variant, points in lines]
    words = f"{title}: {'; '.join(f'{variant} {numbers}' for variant, numbers in said)}"
    return [Drawing(title, "Means and their 95 % intervals.", plots.figure_svg(figure, prefix, words))]


def common(titles: list[str]) -> tuple[str, str]:
    """What titles share before their number, and behind it.

    >>> common(["agreement under a turn by 10°", "agreement under a turn by 20°"])
    ('agreement under a turn', '°')
    """
    before = beginning(titles).rstrip("0123456789.")
    after = beginning([title[::-1] for title in titles])[::-1].lstrip("0123456789.")
    return re.sub(r"\s+(by|of|at|to|with|in)\s*$", "", before).strip(), after.strip()


def beginning(texts: list[str]) -> str:
    """What all begin with."""
    alike = takewhile(lambda letters: len(set(letters)) == 1, zip(*texts, strict=False))
    return "".join(letters[0] for letters in alike)


def capital(text: str) -> str:
    return text[:1].upper() + text[1:]
