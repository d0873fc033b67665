"""The report's figures: SVG whose colours and fonts are those of the page around it, as wide as a phone's screen."""

from __future__ import annotations

import io
import math
import re
import textwrap
from collections.abc import Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from everypool.study.labels import placed, ticks
from everypool.study.statistics import Difference, Interval

__all__ = ["SERIES", "curves", "differences", "dots", "figure_svg", "scatter", "stretches"]

SERIES = 8  # colours of lines
# drawn in these colours, which no picture has, and replaced by the page's own
PAGE = {"#fe0101": "var(--ink)", "#fe0202": "var(--muted)", "#fe0303": "var(--accent)", "#fe0404": "var(--grid)"}
PAGE |= {f"#fe05{i:02x}": f"var(--series{i})" for i in range(SERIES)}
INK, MUTED, ACCENT, GRID, *COLORS = PAGE
SIZE = 14  # of letters; WIDTH and all lengths are in the same unit, about a pixel on a phone
WIDTH = 330
SETTINGS: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "everypool",
    "figure.dpi": 72,
    "font.size": SIZE,
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
LETTER = 0.56 * SIZE  # width of one, on the average
DOTS = 60  # drawn per row at most
MARKERS = "osD^vPX*"
DASHES: Any = ("solid", (0, (5, 1.5)), (0, (1.5, 1.5)), (0, (6, 1.5, 1.5, 1.5)))


def figure_svg(figure: Figure, name: str, description: str) -> str:
    """The figure as an element of a page: no prologue, no addresses, its own ids, and words for who cannot see it."""
    text = io.StringIO()
    with matplotlib.rc_context(SETTINGS):
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\s+xmlns(:\w+)?="[^"]*"', "", svg).replace("xlink:href", "href")
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)  # nobody refers to them
    svg = re.sub(r'="[^"]*"', lambda found: re.sub(r"(\.\d\d)\d+", r"\1", found[0]), svg)
    svg = re.sub(r">\s+<", "><", svg)
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', svg)
    svg = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", svg)
    svg = re.sub(r'href="#([^"]+)"', rf'href="#{name}-\1"', svg)
    svg = re.sub(r'(<svg\b[^>]*?)\s+width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg\b[^>]*?)\s+height="[^"]*"', r"\1", svg, count=1)
    for drawn, shown in PAGE.items():
        svg = svg.replace(drawn, shown)
    title = description.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")
    return svg.strip().replace("<svg", f'<svg role="img" aria-label="{title}"', 1)


def canvas(height: float, *, left: float, top: float = 8.0, bottom: float = 44.0, right: float = 12.0) -> tuple[Figure, Axes]:
    """Axes with these margins."""
    figure = Figure(figsize=(WIDTH / 72, height / 72))
    axes = figure.add_axes((left / WIDTH, bottom / height, (WIDTH - left - right) / WIDTH, (height - top - bottom) / height))
    axes.set_axisbelow(True)
    axes.tick_params(length=0)
    axes.set_facecolor("none")
    for side in ("top", "left", "right"):
        axes.spines[side].set_visible(False)
    return figure, axes


def wrapped(name: str, width: int = 16) -> str:
    return "\n".join(textwrap.wrap(name, width)) or name


def by_row(names: Sequence[str], xlabel: str) -> tuple[Figure, Axes]:
    """A row for each name."""
    labels = [wrapped(name) for name in names]
    longest = max(len(line) for label in labels for line in label.splitlines())
    step = 18 + 15 * max(1 + label.count("\n") for label in labels)
    figure, axes = canvas(52 + step * len(names), left=12 + LETTER * longest)
    axes.set_yticks(range(len(names)), labels)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlabel(xlabel)
    axes.grid(axis="x", linewidth=0.8)
    return figure, axes


def dots(rows: Sequence[tuple[str, Sequence[float], Interval]], xlabel: str) -> Figure:
    """Every trial as a dot, the mean over seeds with its interval as a line."""
    with matplotlib.rc_context(SETTINGS):
        figure, axes = by_row([name for name, _, _ in rows], xlabel)
        for y, (_, values, spread) in enumerate(rows):
            shown = sorted(values)
            if len(shown) > DOTS:  # the shape of many is that of some
                shown = [shown[round(i * (len(shown) - 1) / (DOTS - 1))] for i in range(DOTS)]
            axes.scatter(shown, [y + 0.17] * len(shown), s=24, color=ACCENT, alpha=0.5, linewidths=0)
            whiskers(axes, y - 0.13, spread, INK)
        numbered(axes)
        return figure


def differences(found: Sequence[Difference], xlabel: str) -> Figure:
    """Paired differences from the first variant with their intervals; those that chance does not explain stand out."""
    with matplotlib.rc_context(SETTINGS):
        figure, axes = by_row([difference.variant for difference in found], xlabel)
        axes.axvline(0, color=MUTED, linewidth=1.2)
        for y, difference in enumerate(found):
            whiskers(axes, y, difference.interval, ACCENT if difference.found else MUTED, "o" if difference.found else "|")
        numbered(axes)
        return figure


def whiskers(axes: Axes, y: float, spread: Interval, color: str, marker: str = "o") -> None:
    if spread.count == 0:
        return
    if math.isfinite(spread.low):
        axes.plot([spread.low, spread.high], [y, y], color=color, linewidth=2, solid_capstyle="round")
    axes.plot([spread.mean], [y], marker, color=color, markersize=8 if marker == "o" else 12, markeredgewidth=2)


def numbered(axes: Axes) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.xaxis.set_major_formatter(FuncFormatter(plain))


def plain(value: float, _: object = None) -> str:
    return f"{value:,.6g}".replace("-", "−")


def scatter(points: Sequence[tuple[str, Interval, Interval]], xlabel: str, ylabel: str) -> Figure:
    """Costs (to the right, on a logarithmic axis) and what is got for them (upwards), each with its interval and name."""
    with matplotlib.rc_context(SETTINGS):
        figure, axes = canvas(300, left=54, top=30)
        axes.text(-0.12, 1.02, ylabel, transform=axes.transAxes, color=MUTED, ha="left", va="bottom")
        axes.set_xlabel(xlabel)
        axes.set_xscale("log")
        xs, ys = [x.mean for _, x, _ in points], [y.mean for _, _, y in points]
        ends = [v for _, _, y in points for v in (y.mean, y.low, y.high) if math.isfinite(v)]
        room = (max(ends) - min(ends)) * 0.08 or 1.0
        low, high = min(xs), max(xs)
        axes.set_xlim(low * (low / high) ** 0.08 / 1.03, high * (high / low) ** 0.25 * 1.06)
        axes.set_ylim(min(ends) - room, max(ends) + room)
        for _, x, y in points:
            if math.isfinite(y.low):
                axes.plot([x.mean, x.mean], [y.low, y.high], color=MUTED, linewidth=1.2)
            axes.plot([x.mean], [y.mean], "o", color=ACCENT, markersize=9)
        axes.grid(linewidth=0.8)
        axes.xaxis.set_major_locator(FixedLocator(ticks(*axes.get_xlim())))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(plain))
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.yaxis.set_major_formatter(FuncFormatter(plain))
        axes.tick_params(axis="y", labelcolor=MUTED)
        where = [(float(a), float(b)) for a, b in axes.transData.transform(list(zip(xs, ys, strict=True)))]
        box = axes.bbox
        sizes = [(LETTER * len(name), SIZE + 2.0) for name, _, _ in points]
        heights = axes.transData.transform([(x.mean, v) for _, x, y in points for v in (y.low, y.high)])[:, 1]
        bars = [(x - 3.0, low, x + 3.0, high) for (x, _), low, high in zip(where, heights[::2], heights[1::2], strict=True)]
        corners = placed(where, sizes, (box.x0, box.y0, box.x1, box.y1), [bar for bar in bars if math.isfinite(bar[1])])
        for (name, _, _), (left, bottom) in zip(points, corners, strict=True):
            x, y = axes.transAxes.inverted().transform((left, bottom))
            axes.text(x, y, name, transform=axes.transAxes, ha="left", va="bottom", fontsize=SIZE, linespacing=1)
        return figure


def curves(lines: Sequence[tuple[str, Sequence[tuple[float, Interval]]]], xlabel: str, ylabel: str) -> Figure:
    """A line for each name, told apart by colour, marker and dash, with its interval as a light band."""
    with matplotlib.rc_context(SETTINGS):
        columns = 2 if max(len(name) for name, _ in lines) <= 14 else 1
        legend = 20 * math.ceil(len(lines) / columns)
        figure, axes = canvas(285 + legend, left=54, top=legend + 34)
        axes.text(-0.12, 1.02, ylabel, transform=axes.transAxes, color=MUTED, ha="left", va="bottom")
        for i, (name, points) in enumerate(lines):
            known = [(at, spread) for at, spread in points if spread.count]
            xs = [at for at, _ in known]
            color = COLORS[i % SERIES]
            banded = [(at, s.low, s.high) for at, s in known if math.isfinite(s.low)]
            at, low, high = ([point[k] for point in banded] for k in range(3))
            axes.fill_between(at, low, high, color=color, alpha=0.07, linewidth=0)
            style = {"linestyle": DASHES[(i + i // SERIES) % len(DASHES)], "marker": MARKERS[i % SERIES]}
            fill = color if i < SERIES else "none"
            axes.plot(xs, [s.mean for _, s in known], color=color, lw=2, ms=7, mfc=fill, label=name, **style)
        axes.set_xlabel(xlabel)
        axes.set_xticks(sorted({at for _, points in lines for at, _ in points}))
        axes.xaxis.set_major_formatter(FuncFormatter(plain))
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.yaxis.set_major_formatter(FuncFormatter(plain))
        axes.tick_params(axis="y", labelcolor=MUTED)
        axes.grid(axis="y", linewidth=0.8)
        figure.legend(
            loc="upper left", bbox_to_anchor=(0, 1), ncols=columns, frameon=False, fontsize=SIZE, handlelength=2.6,
            borderpad=0.2, labelspacing=0.2, columnspacing=1.2,
        )  # fmt: skip
        return figure


def stretches(lines: Sequence[Sequence[float]]) -> Figure:
    """A series above the same after a shift, in small."""
    with matplotlib.rc_context(SETTINGS):
        figure = Figure(figsize=(WIDTH / 72, 1.4))
        axes = figure.add_axes((0.01, 0.03, 0.98, 0.94))
        axes.set_axis_off()
        for values, color, dash in zip(lines, (INK, ACCENT), DASHES, strict=False):
            axes.plot(range(len(values)), values, color=color, linewidth=2, linestyle=dash, drawstyle="steps-mid")
        axes.margins(x=0)
        return figure
