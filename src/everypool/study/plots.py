"""The report's figures: SVG whose colours and fonts are those of the page around it."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from typing import Any

import matplotlib
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from torch import Tensor

from everypool.factory import create
from everypool.study.data import shifted
from everypool.study.summary import Row

__all__ = ["cost_figure", "difference_figure", "figure_svg", "result_figure", "tile"]

# drawn in these colours, which no grey picture has, and replaced by the page's own
PAGE = {"#fe0101": "var(--ink)", "#fe0202": "var(--muted)", "#fe0303": "var(--accent)", "#fe0404": "var(--grid)"}
INK, MUTED, ACCENT, GRID = PAGE
SETTINGS: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "everypool",
    "font.size": 10,
    "axes.edgecolor": GRID,
    "axes.labelcolor": MUTED,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": INK,
    "text.color": INK,
    "grid.color": GRID,
    "text.parse_math": False,
}
WIDTH = 4.6


def figure_svg(figure: Figure, name: str, description: str) -> str:
    """The figure as an element of a page: no prologue, no addresses, its own ids, and words for who cannot see it."""
    text = io.StringIO()
    with matplotlib.rc_context(SETTINGS):
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\s+xmlns(:\w+)?="[^"]*"', "", svg).replace("xlink:href", "href")
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', svg)
    svg = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", svg)
    svg = re.sub(r'href="#([^"]+)"', rf'href="#{name}-\1"', svg)
    svg = re.sub(r'(<svg\b[^>]*?)\s+width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg\b[^>]*?)\s+height="[^"]*"', r"\1", svg, count=1)
    for drawn, shown in PAGE.items():
        svg = svg.replace(drawn, shown)
    title = description.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")
    return svg.replace("<svg", f'<svg role="img" aria-label="{title}"', 1)


def empty_figure(rows: Sequence[Row], xlabel: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, 0.8 + 0.3 * len(rows)), layout="constrained")
    axes = figure.subplots()
    axes.set_yticks(range(len(rows)), [row.pool for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlabel(xlabel)
    axes.tick_params(length=0)
    axes.grid(axis="x", linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "left", "right"):
        axes.spines[side].set_visible(False)
    return figure, axes


def result_figure(rows: Sequence[Row], measure: str, xlabel: str) -> Figure:
    """Every trial as a dot, the mean over seeds with its interval as a line."""
    with matplotlib.rc_context(SETTINGS):
        figure, axes = empty_figure(rows, xlabel)
        for y, row in enumerate(rows):
            values = [getattr(outcome, measure) for outcome in row.outcomes.values()]
            axes.scatter(values, [y + 0.14] * len(values), s=12, color=ACCENT, alpha=0.5, linewidths=0)
            spread = row.intervals[measure]
            if values:
                whiskers(axes, y - 0.1, spread.mean, spread.low, spread.high, INK)
        axes.xaxis.set_major_locator(MaxNLocator(6))
        return figure


def difference_figure(rows: Sequence[Row], measure: str, xlabel: str) -> Figure:
    """Paired differences from the first pooling with intervals that hold together."""
    with matplotlib.rc_context(SETTINGS):
        figure, axes = empty_figure(rows[1:], xlabel)
        axes.axvline(0, color=MUTED, linewidth=1)
        for y, row in enumerate(rows[1:]):
            difference = row.differences[measure]
            spread = difference.interval
            if spread.count:
                whiskers(axes, y, spread.mean, spread.low, spread.high, ACCENT if difference.found else MUTED)
        axes.xaxis.set_major_locator(MaxNLocator(6))
        return figure


def cost_figure(rows: Sequence[Row], kinds: dict[str, tuple[str, str]], xlabel: str) -> Figure:
    """Costs on a logarithmic axis; `kinds`: attribute of `Cost` -> (label, marker)."""
    with matplotlib.rc_context(SETTINGS):
        figure, axes = empty_figure(rows, xlabel)
        axes.set_xscale("log")
        for (name, (label, marker)), color in zip(kinds.items(), (ACCENT, INK, MUTED), strict=False):
            points = [(scaled(row, name), y) for y, row in enumerate(rows) if row.cost is not None]
            xs, ys = [x for x, _ in points], [y for _, y in points]
            axes.scatter(xs, ys, s=34, marker=marker, color=color, label=label, linewidths=0, zorder=3)
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.tick_params(which="minor", length=0)
        figure.legend(loc="outside upper left", ncols=len(kinds), frameon=False, fontsize=9, handletextpad=0.1, columnspacing=1)
        return figure


def scaled(row: Row, name: str) -> float:
    value = getattr(row.cost, name)
    return math.nan if value is None else value / 1024 if name.endswith("bytes") else value


def whiskers(axes: Axes, y: float, mean: float, low: float, high: float, color: str) -> None:
    if math.isfinite(low) and math.isfinite(high):
        axes.plot([low, high], [y, y], color=color, linewidth=1.6, solid_capstyle="round")
    axes.scatter([mean], [y], s=30, color=color, zorder=3, linewidths=0)


def tile(image: Tensor, pool: str | None) -> Figure:
    """A digit (1, 1, H, W), or what a pooling makes of it; below, the same after a shift to the right by one pixel."""
    inputs = [image, shifted(image, 0, 1)]
    if pool is not None:
        layer = create(pool, nd=2, kernel_size=2, stride=2)
        with torch.no_grad():
            inputs = [layer(x) for x in inputs]
    with matplotlib.rc_context(SETTINGS):
        figure = Figure(figsize=(1.0, 2.1))
        for axes, picture in zip(figure.subplots(2, 1, gridspec_kw={"hspace": 0.08}).flat, inputs, strict=True):
            draw(axes, picture[0, 0])
        figure.subplots_adjust(0.02, 0.01, 0.98, 0.99)
        return figure


def draw(axes: Any, picture: Tensor) -> None:
    """Squares from white to black, at the picture's own scale."""
    axes.pcolormesh(picture.flip(0).numpy(), cmap="Greys", edgecolors="face", linewidth=0.3)
    axes.set_aspect("equal")
    axes.set_xticks([])
    axes.set_yticks([])
