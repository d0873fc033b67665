"""`report.html`: one file that needs nothing else."""

from __future__ import annotations

import json
import math
import os
import re
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from everypool.study import figures, provenance, samples, tables
from everypool.study.claims import Verdict
from everypool.study.experiments import costs
from everypool.study.statistics import FEWEST
from everypool.study.summary import Study, listed

__all__ = ["Page", "cost_of", "notices", "render", "title", "write"]

NETWORK = 4000  # letters of a network that are still worth reading


@dataclass
class Page:
    """What a report is made of.

    Args:
        studies: one section each.
        costs: studies of the experiment "costs", of any of their experiments.
        command: what was typed, in one line or more.
        verdicts: on claims; with them the page opens.
        untested: what no verdict says anything about, a sentence each.
        interrupted: why the run is partial, such as "the budget was used up".
    """

    studies: Sequence[Study]
    costs: Sequence[Study]
    command: str
    verdicts: Sequence[Verdict] = ()
    untested: Sequence[str] = ()
    interrupted: str = ""


def title(page: Page) -> str:
    return "Claims about pooling, measured" if page.verdicts else "Which pooling, and what does it cost?"


def render(page: Page) -> str:
    """The page as text."""
    environment = Environment(
        loader=PackageLoader("everypool.study", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    everything = [*page.studies, *page.costs]
    return environment.get_template("page.html.jinja").render(
        title=title(page),
        page=page,
        notices=notices(page),
        counted=tables.counted(page.verdicts) if page.verdicts else "",
        by_claim=tables.by_claim(page.verdicts),
        lines=tables.lines(page.verdicts, page.studies),
        chances=tables.chances,
        sections=[section(page, study, name) for study, name in zip(page.studies, names(page.studies), strict=True)],
        links=dict(zip((study.experiment.name for study in page.studies), names(page.studies), strict=True)),
        versions=provenance.versions(),
        hardware=provenance.hardware(everything),
        data=Markup(json.dumps(record(page), allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")),
    )


def write(path: Path, text: str) -> None:
    """Replace the file at once: whoever opens it sees the old page or the new one, never half of one."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(name, 0o666 & ~mask)  # mkstemp's files are private
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def names(studies: Sequence[Study]) -> list[str]:
    """An identifier for each; an experiment may be there with several settings."""
    plain = [re.sub(r"[^a-z0-9]+", "-", study.experiment.name.lower()) for study in studies]
    return [name if plain.count(name) == 1 else f"{name}-{plain[:i].count(name) + 1}" for i, name in enumerate(plain)]


def cost_of(page: Page, study: Study) -> Study | None:
    """The costs of that study's trials; one machine's, as times of several cannot be compared."""
    own = [c for c in page.costs if c.finished and c.scale.settings.get(costs.OF) == study.experiment.name]
    apart = costs.OF, costs.MACHINE
    alike = [
        c for c in own if {k: v for k, v in c.scale.settings.items() if k not in apart} == dict(study.scale.settings)
    ]  # fmt: skip
    return max(alike or own, key=lambda c: c.finished, default=None)


def notices(page: Page) -> list[str]:
    """What a reader must know before the results: what is missing, what failed, what cannot be told."""
    said = [text for study in (*page.studies, *page.costs) for text in study.divergences()]
    missing = [study for study in page.studies if study.finished < study.planned]
    if page.interrupted and not missing:
        said.append(f"All trials were finished, but {page.interrupted} before the rest was measured.")
    why = f", as {page.interrupted}" if page.interrupted else ""
    for study in missing:
        where = f"{study.experiment.name}: " if len(page.studies) > 1 else ""
        said.append(f"Partial: {where}{study.finished} of {study.planned} trials were finished{why}.")
    for study in (*page.studies, *page.costs):
        said += failures(study)
    for study in page.studies:
        pairs = max(
            (
                len(study.pairs(v, study.variants[0], m))
                for v in study.variants[1:]
                for m in study.judged
                if not study.measure(m).exact
            ),
            default=0,
        )
        if 2 <= pairs < FEWEST:
            least = 2.0 ** (1 - pairs)
            said.append(
                f"{study.experiment.name}: with {pairs} seeds no p value is below {least:.3g}, so no difference can be found; "
                "six seeds are the fewest that can tell one."
            )
    return said


def failures(study: Study) -> list[str]:
    """One line for all seeds of a variant that failed in the same way."""
    alike: dict[tuple[str, str], list[int]] = {}
    for trial, message in study.failures:
        alike.setdefault((trial.variant, provenance.failure(message)), []).append(trial.seed)
    return [
        f"{study.experiment.name}: {variant}, seed{'' if len(seeds) == 1 else 's'} {provenance.seeds(seeds)}, failed: {why}"
        for (variant, why), seeds in alike.items()
    ]


def section(page: Page, study: Study, name: str) -> dict[str, Any]:
    """What the template shows of one study."""
    cost = cost_of(page, study)
    rows = study.rows()
    network, pictures = samples.shown(study, name) if study.finished else ("", [])
    several = len(page.studies) > 6
    return {
        "id": name,
        "name": study.experiment.name,
        "study": study,
        "conclusion": study.conclusion(),
        "table": tables.results(study, rows, cost),
        "reference": study.variants[0],
        "judged": listed([study.measure(m).title for m in study.judged]),
        "figures": figures.figures(study, rows, cost, name, most=2 if several else 4),
        "pictures": pictures,
        "details": details(study, cost),
        "network": network if len(network) <= NETWORK else "",
    }


def details(study: Study, cost: Study | None) -> list[tuple[str, list[str]]]:
    """How it was measured, as terms and what is to say of each."""
    experiment = study.experiment
    taste = {1: "more is better", -1: "less is better"}
    known = [f"{v}: {experiment.variants[v]}" if v in experiment.variants else v for v in study.variants]
    shared = (
        f"Every seed splits the same data anew, {experiment.overlap:.3g} samples tested for each one trained on; intervals "
        "are widened for what the seeds share."
        if experiment.overlap
        else "The seeds share no tests; intervals are Student's."
    )
    finished = {seed for by_seed in study.outcomes.values() for seed in by_seed}
    spent = math.fsum(o.seconds for by_seed in study.outcomes.values() for o in by_seed.values())
    settings = [f"{name} {value}" for name, value in provenance.public(study.scale.settings).items()]
    found = [
        ("Task", [experiment.summary]),
        ("Data", [experiment.data]),
        ("Variants", known),
        ("Measures", [f"{m.title}{f', {taste[m.better]}' if m.better else ''}" for m in experiment.measures.values()]),
        ("Judged", [listed([study.measure(m).title for m in study.judged])]),
        ("Seeds", [f"{provenance.seeds(sorted(finished)) or 'none'}; {study.finished} of {study.planned} trials", shared]),
        ("Settings", [", ".join(settings) or "none"]),
        ("Time", [f"{provenance.seconds(spent)} of processor time for all trials"]),
    ]
    if cost is not None:
        on = str(provenance.public(cost.scale.settings).get(costs.MACHINE, ""))
        found.append(("Costs", [f"{cost.experiment.summary} {cost.scale.seeds} rounds, {on}. Memory is what is held at most "
                                "at once beyond weights and inputs."]))  # fmt: skip
    return found


def record(page: Page) -> dict[str, Any]:
    """Everything in the page, for programs."""
    return {
        "command": page.command,
        "versions": provenance.versions(),
        "hardware": provenance.hardware([*page.studies, *page.costs]),
        "interrupted": page.interrupted,
        "studies": [recorded(study) for study in page.studies],
        "costs": [recorded(study) for study in page.costs],
        "verdicts": [
            {**asdict(v.check), "verdict": v.verdict, "why": v.why,
             "difference": None if v.difference is None else finite(asdict(v.difference))}
            for v in page.verdicts
        ],
    }  # fmt: skip


def recorded(study: Study) -> dict[str, Any]:
    own = study.record()
    failed = [{**failed, "message": provenance.failure(failed["message"])} for failed in own["failures"]]
    return {**own, "settings": provenance.public(study.scale.settings), "failures": failed}


def finite(values: dict[str, Any]) -> dict[str, Any]:
    """None for what JSON has no number for."""
    return {
        name: finite(v) if isinstance(v, dict) else None if isinstance(v, float) and not math.isfinite(v) else v
        for name, v in values.items()
    }
