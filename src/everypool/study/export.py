"""Results for other programs and for other pages: CSV and Markdown."""

from __future__ import annotations

import csv as csv_module
import io
import json
import math
import re
from collections.abc import Sequence

from everypool.study import claims, provenance, report, tables
from everypool.study.report import Page
from everypool.study.summary import Study, has_diverged
from everypool.study.tables import Line, Table

__all__ = ["csv", "markdown"]

COLUMNS = "experiment", "variant", "seed", "measure", "unit", "value", "settings", "diverged"
JUDGING = (
    "Each comparison is made seed by seed: the same data, the same split and the same order of samples for both. A difference "
    "is found if its 95 % interval leaves out 0 and a paired permutation test gives p ≤ 0.05, corrected for all comparisons of "
    f"the table (Benjamini and Hochberg 1995). *{claims.SUPPORTED}*: a difference is found, and it goes the way that the claim "
    f"says; *{claims.NOT_SUPPORTED}*: it goes the other way; *{claims.NO_DIFFERENCE}*: none is found, which does not mean that "
    "there is none. Effects are means with 95 % intervals, widened where seeds share training samples (Nadeau and Bengio "
    "2003); counts are exact."
)


def csv(studies: Sequence[Study], costs: Sequence[Study]) -> str:
    """A line for each measure of each trial; a value that could not be taken is empty."""
    text = io.StringIO()
    writer = csv_module.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for study in (*studies, *costs):
        settings = json.dumps(provenance.public(study.scale.settings), sort_keys=True)
        for variant in study.variants:
            for seed, outcome in sorted(study.outcomes.get(variant, {}).items()):
                diverged = "yes" if has_diverged(outcome) else ""
                for name, measure in study.experiment.measures.items():
                    value = outcome.measures[name]
                    shown = repr(value) if math.isfinite(value) else ""
                    writer.writerow((study.experiment.name, variant, seed, name, measure.unit, shown, settings, diverged))
    return text.getvalue()


def markdown(page: Page) -> str:
    """The same as the page, without pictures."""
    blocks = [f"# {report.title(page)}"]
    if page.verdicts:
        blocks.append(tables.counted(page.verdicts))
    elif len(page.studies) == 1:
        blocks.append(escaped(page.studies[0].conclusion()))
    notices = report.notices(page)
    if notices:
        blocks.append("\n".join(f"- **{escaped(notice)}**" for notice in notices))
    if page.verdicts:
        heads = ["Claim", "What the article says", "Comparisons"]
        blocks.append(piped(heads, [[escaped(text) for text in row] for row in tables.by_claim(page.verdicts)], "lll"))
        blocks += ["## Comparisons", JUDGING, claims_table(tables.lines(page.verdicts, page.studies))]
    if page.untested:
        blocks += ["## What was not tested", "\n".join(f"- {escaped(text)}" for text in page.untested)]
    for study in page.studies:
        blocks += experiment(page, study)
    blocks += ["## How it was measured", how(page)]
    blocks += [f"```sh\n{page.command.strip()}\n```"]
    return "\n\n".join(blocks) + "\n"


def claims_table(lines: Sequence[Line]) -> str:
    heads = ["Claim", "What is checked", "Compared", "Measure", "Claim says", "Effect (95 % interval)", "n", "p", "Verdict"]
    rows = []
    for line in lines:
        check = line.verdict.check
        verdict = f"{line.verdict.verdict}: {line.verdict.why}" if line.verdict.why else f"**{line.verdict.verdict}**"
        compared = f"{check.treatment} against {check.control} ({check.experiment})"
        cells = [check.claim, check.text, compared, line.measure, line.says, line.effect, f"{line.count}", line.p]
        rows.append([*map(escaped, cells), verdict if not line.verdict.why else escaped(verdict)])
    return piped(heads, rows, "lllllrrrl")


def experiment(page: Page, study: Study) -> list[str]:
    """A section."""
    settings = ", ".join(f"{name} {value}" for name, value in provenance.public(study.scale.settings).items())
    done = f"{study.finished} of {study.planned} trials" if study.finished < study.planned else f"{study.planned} trials"
    told = f"{escaped(study.experiment.summary)} Data: {escaped(study.experiment.data)}."
    run = f"{done}, seeds {provenance.seeds(range(study.scale.seeds))}{f'; {escaped(settings)}' if settings else ''}."
    known = [
        f"- `{variant}`: {escaped(study.experiment.variants[variant])}"
        for variant in study.variants
        if variant in study.experiment.variants
    ]
    blocks = [f"## {escaped(study.experiment.name)}", f"{told} {run}"]
    if known:
        blocks.append("\n".join(known))
    if len(page.studies) > 1 or page.verdicts:
        blocks.append(f"**{escaped(study.conclusion())}**")
    if study.finished:
        blocks.append(results_table(tables.results(study, study.rows(), report.cost_of(page, study))))
        if len(study.variants) > 1:
            blocks.append(f"▲ above and ▼ below {escaped(study.variants[0])}: a difference that chance does not explain.")
    return blocks


def results_table(table: Table) -> str:
    """Variants downwards, unless there are more measures than variants."""
    grid = [table.heads, *([variant, *(f"{c.text} {c.mark}".strip() for c in cells)] for variant, cells in table.rows)]
    if len(table.heads) - 1 > len(table.rows):
        grid = [list(column) for column in zip(*grid, strict=True)]
        grid[0][0] = "measure"
    heads, *rows = [[escaped(text) for text in line] for line in grid]
    return piped(heads, rows, "l" + "r" * (len(heads) - 1))


def piped(heads: Sequence[str], rows: Sequence[Sequence[str]], sides: str) -> str:
    """A pipe table with columns to the left and to the right."""
    rule = [":--" if side == "l" else "--:" for side in sides]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (heads, rule, *rows))


def how(page: Page) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in provenance.versions().items())
    hardware = ", ".join(provenance.hardware([*page.studies, *page.costs]))
    return (
        "Numbers are means over seeds ± half of a 95 % interval. Compared are pairs of the same seed; p values are corrected "
        f"for all comparisons of a table. {escaped(versions)}. {escaped(hardware)}. The command:"
    )


def escaped(text: str) -> str:
    """Free of what Markdown takes for markup.

    >>> escaped("a|b *c*")
    'a\\\\|b \\\\*c\\\\*'
    """
    return re.sub(r"([\\\\`*_\[\]<>|$~])", r"\\\1", re.sub(r"\s+", " ", text))
