"""`report.html`: one file that needs nothing else."""

from __future__ import annotations

import json
import os
import platform
import tempfile
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from everypool.study.data import Digits
from everypool.study.plots import cost_figure, difference_figure, figure_svg, result_figure, tile
from everypool.study.statistics import Interval, signed
from everypool.study.summary import Row, Study

__all__ = ["render", "write"]

TITLES = {"accuracy": "Accuracy", "shift": "Shift agreement"}


def render(study: Study, digits: Digits | None) -> str:
    """The page as text."""
    template = files("everypool.study").joinpath("report.html.jinja").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(spread=spread, signed=signed, grouped=lambda n: f"{n:,}")
    rows = study.rows()
    return environment.from_string(template).render(
        study=study,
        rows=rows,
        conclusion=study.conclusion(),
        figures=figures(rows, study),
        tiles=[] if digits is None else tiles(study, digits),
        level_each=1 - 0.05 / max(1, len(study.differences())),
        machine=f"{platform.machine()}, {platform.system()}, Python {platform.python_version()}, torch {torch.__version__}",
        data=Markup(json.dumps(study.record(), allow_nan=False).replace("<", "\\u003c")),
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


def spread(value: Interval) -> str:
    """98.9 ± 0.4, or as much of it as is known."""
    if value.count == 0:
        return "—"
    return f"{value.mean:.1f}" if value.count == 1 else f"{value.mean:.1f} ± {value.half:.1f}"


def figures(rows: list[Row], study: Study) -> list[dict[str, Any]]:
    """Each with a title, a caption and the drawing."""
    made: list[dict[str, Any]] = []
    if not study.finished:
        return made
    for measure, title in TITLES.items():
        words = "; ".join(f"{row.pool} {spread(row.intervals[measure])}" for row in rows)
        drawing = figure_svg(result_figure(rows, measure, "% of test images"), measure, f"{title} in percent: {words}")
        made.append(
            {"title": title, "caption": "Dots: one trained network each. Line: mean and its 95 % interval.", "svg": drawing}
        )
    if len(rows) > 1 and any(row.differences["accuracy"].interval.count > 1 for row in rows[1:]):
        for measure, title in TITLES.items():
            words = "; ".join(
                f"{row.pool} {signed(i.mean)} ({signed(i.low)} to {signed(i.high)})"
                for row in rows[1:]
                if (i := row.differences[measure].interval).count > 1
            )
            name = f"{title}: difference from {rows[0].pool}"
            drawing = figure_svg(
                difference_figure(rows, measure, "points"), f"{measure}-difference", f"{name} in points: {words}"
            )
            caption = "Pairs with the same seed. A line that crosses 0 is no difference; all lines hold together at 95 %."
            made.append({"title": name, "caption": caption, "svg": drawing})
    if len(study.costs) == len(rows):
        made += cost_figures(rows)
    return made


def cost_figures(rows: list[Row]) -> list[dict[str, Any]]:
    costs = [(row.pool, row.cost) for row in rows if row.cost is not None]
    times = {
        "pooling_us": ("pooling alone", "D"),
        "inference_us": ("answer", "o"),
        "training_us": ("training step", "s"),
    }
    words = "; ".join(f"{pool} {cost.inference_us:.0f} for an answer, {cost.training_us:.0f} to train" for pool, cost in costs)
    time = figure_svg(cost_figure(rows, times, "µs per image"), "time", f"Time per image in microseconds: {words}")
    caption = "On one thread, in batches of 64, after all training. A training step is forward and backward."
    made = [{"title": "Time per image", "caption": caption, "svg": time}]
    if all(cost.training_bytes is not None and cost.inference_bytes is not None for _, cost in costs):
        kinds = {"inference_bytes": ("answer", "o"), "training_bytes": ("training step", "s")}
        words = "; ".join(f"{pool} {(cost.training_bytes or 0) / 1024:.0f}" for pool, cost in costs)
        memory = figure_svg(
            cost_figure(rows, kinds, "KiB per image"), "memory", f"Peak memory of a training step in KiB: {words}"
        )
        caption = "The most that is held at once, beyond weights and images, on a batch of 64."
        made.append({"title": "Peak memory per image", "caption": caption, "svg": memory})
    return made


def tiles(study: Study, digits: Digits) -> list[dict[str, Any]]:
    """One digit as it is, and as each pooling leaves it."""
    image = digits.images[:1]
    made = []
    for i, pool in enumerate([None, *study.pools]):
        words = "A scanned digit, and the same shifted by one pixel" if pool is None else f"Both after {pool} pooling"
        made.append({"title": pool or "input", "svg": figure_svg(tile(image, pool), f"tile{i}", words)})
    return made
