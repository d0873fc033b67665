"""Scenes drawn as slides and contact sheets with matplotlib's Agg and SVG writers; no window is ever opened."""

from __future__ import annotations

import os
import tempfile
import textwrap
import warnings
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize, PowerNorm, TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyArrowPatch, Rectangle

from everypool import _check as check
from everypool.study.picture.formula import typeset
from everypool.study.picture.photo import Photo
from everypool.study.picture.scene import SECOND, Arrow, Box, Canvas, Dots, Grid, Layer, Mark, Scene

__all__ = ["checked_output", "contact_sheet", "save", "slide"]

INK, PALE, LINE = "#1A1A1A", "#5F6368", "#9AA0A6"
SUFFIXES = (".png", ".svg")
SETTINGS: Any = {"font.family": "DejaVu Sans", "svg.hashsalt": "everypool", "svg.fonttype": "path", "path.simplify": True}
Rect = tuple[float, float, float, float]  # left, bottom, width, height in inches


class Page:
    """A figure whose places are given in inches from its lower left corner."""

    def __init__(self, width: float, height: float, dpi: int) -> None:
        self.width, self.height = width, height
        self.figure = Figure(figsize=(width, height), dpi=dpi, facecolor="white")
        FigureCanvasAgg(self.figure)

    def axes(self, rect: Rect) -> Axes:
        left, bottom, width, height = rect
        return self.figure.add_axes((left / self.width, bottom / self.height, width / self.width, height / self.height))

    def text(self, x: float, y: float, text: str, size: float, *, most: float = 0, math: bool = False, **style: Any) -> float:
        """Text at a place, made smaller where it is wider than `most` inches; its width."""
        item = self.figure.text(
            x / self.width, y / self.height, text, size=size, parse_math=math, math_fontfamily="stix", **style
        )
        inches = float(item.get_window_extent().width / self.figure.dpi)
        if most and inches > most:
            item.set_fontsize(size * most / inches)
            return most
        return inches

    def line(self, start: tuple[float, float], end: tuple[float, float], colour: str, width: float, order: int = -1) -> None:
        xs, ys = zip(start, end, strict=True)
        self.figure.add_artist(
            Line2D([x / self.width for x in xs], [y / self.height for y in ys], color=colour, linewidth=width, zorder=order)
        )


def slide(scene: Scene, photo: Photo, dpi: int = 120) -> Figure:
    """One operation on a page of 16:9."""
    with matplotlib.rc_context(SETTINGS):
        page = Page(16, 9, dpi)
        left, right = 0.6, 15.4
        name = page.text(left, 8.3, scene.title, 34, weight="bold", color=INK, most=12.2)
        if name < 8:
            most = 11.8 - name
            lines = textwrap.wrap(scene.summary, int(most * 8.2))[:2]  # 8.2 letters of this size fit into an inch
            for number, line in enumerate(lines):
                y = 8.3 if len(lines) == 1 else 8.52 - 0.3 * number
                page.text(left + name + 0.4, y, line, 17, color=PALE, most=most)
        page.text(left, 7.78, typeset(scene.formula), 27, math=True, color=INK, va="center", most=12.2)
        height, width = photo.colour.shape[:2]
        scale = min(2.1 / width, 1.25 / height)
        corner = page.axes((right - width * scale, 8.75 - height * scale, width * scale, height * scale))
        corner.imshow(photo.colour, interpolation="antialiased", aspect="auto")
        framed(corner)
        page.text(left, 0.3, f"Source: {scene.source}", 13, color=PALE, va="center", most=7.2)
        page.text(right, 0.3, f"{photo.credit}   ·   everypool", 13, color=PALE, va="center", ha="right", most=7.2)
        top, bottom = 7.4, 0.6
        if scene.caption:
            page.text(8, bottom + 0.12, scene.caption, 16, color=INK, va="center", ha="center", most=14.4)
            bottom += 0.4
        if scene.detail:
            middle = top - (top - bottom) * scene.main_share
            first = row(page, scene.main, (left, middle + 0.1, right - left, top - middle - 0.1))
            second = row(page, scene.detail, (left, bottom, right - left, middle - bottom - 0.15), scene.joins)
            if scene.zoom is not None:
                connect(page, first[0], scene.main[0], second[0], scene.zoom)
        else:
            row(page, scene.main, (left, bottom, right - left, top - bottom))
        return page.figure


def contact_sheet(scenes: Sequence[Scene], photo: Photo, dpi: int = 120, columns: int = 3) -> Figure:
    """All operations on one page: input, output and gradient of each."""
    with matplotlib.rc_context(SETTINGS):
        rows = -(-len(scenes) // columns)
        width, margin, gap, head, foot = 20.0, 0.6, 0.55, 1.85, 0.6
        tile_width = (width - 2 * margin - (columns - 1) * gap) / columns
        widest = min((sum(c.size[0] / c.size[1] for c in scene.main) for scene in scenes), default=3.0)
        tile_height = 0.95 + tile_width / max(widest, 3.0)
        page = Page(width, head + foot + rows * (tile_height + 0.3), dpi)
        top = page.height - head
        page.text(margin, page.height - 0.62, "Every pooling on one photo", 34, weight="bold", color=INK, va="center")
        about = "The input with its windows, the output, and where the gradient goes (blue raises the output, red lowers it)."
        page.text(margin, page.height - 1.25, about, 17, color=PALE, va="center", most=16)
        high, wide = photo.colour.shape[:2]
        scale = min(2.1 / wide, 1.3 / high)
        corner = page.axes((width - margin - wide * scale, page.height - 0.25 - high * scale, wide * scale, high * scale))
        corner.imshow(photo.colour, interpolation="antialiased", aspect="auto")
        framed(corner)
        for number, scene in enumerate(scenes):
            x = margin + number % columns * (tile_width + gap)
            y = top - number // columns * (tile_height + 0.3)
            page.line((x, y), (x + tile_width, y), LINE, 0.8)
            page.text(x, y - 0.26, scene.title, 17, weight="bold", color=INK, va="center", most=tile_width)
            page.text(x, y - 0.6, typeset(scene.formula), 15, math=True, color=INK, va="center", most=tile_width)
            bare = [canvas.with_title("") for canvas in scene.main]
            row(page, bare, (x, y - tile_height, tile_width, tile_height - 0.84), marks=0.45, gap=0.14, bars=False)
        page.text(width - margin, 0.28, f"{photo.credit}   ·   everypool", 13, color=PALE, va="center", ha="right")
        return page.figure


def row(
    page: Page,
    canvases: Sequence[Canvas],
    area: Rect,
    joins: Sequence[str] = (),
    *,
    marks: float = 1.0,
    gap: float = 0.55,
    bars: bool = True,
) -> list[Rect]:
    """Canvases of one height side by side, titles above; the places where they came to lie."""
    left, bottom, width, height = area
    label = 0.0
    if any(canvas.title for canvas in canvases):
        label = 0.72 if any(canvas.note for canvas in canvases) else 0.42
    aspects = [canvas.size[0] / canvas.size[1] for canvas in canvases]
    column = width / len(canvases)
    high = min(height - label, (width - gap * (len(canvases) - 1)) / sum(aspects))
    even = all(aspect * high <= column - gap / 2 for aspect in aspects)
    spare = (width - high * sum(aspects)) / len(canvases)
    rects: list[Rect] = []
    at = left
    for number, (canvas, aspect) in enumerate(zip(canvases, aspects, strict=True)):
        wide = aspect * high
        x = left + column * (number + 0.5) - wide / 2 if even else at + spare / 2
        at += wide + spare
        y = bottom + (height - label - high) / 2
        rect = (x, y, wide, high)
        rects.append(rect)
        if canvas.title:
            most = left + column * (number + 1) - x - 0.1 if even else wide + spare * 0.9
            page.text(x, y + high + label - 0.2, canvas.title, 18, weight="bold", color=INK, va="center", most=most)
            if canvas.note:
                page.text(x, y + high + 0.2, canvas.note, 14, color=PALE, va="center", most=most)
        paint(page, canvas, rect, marks)
        if bars and canvas.bar:
            colour_bar(page, canvas, rect)
    for sign, (one, two) in zip(joins, pairwise(rects), strict=False):
        if sign:
            middle = (one[0] + one[2] + two[0]) / 2
            page.text(middle, one[1] + one[3] / 2, sign, 34, color=PALE, va="center", ha="center")
    return rects


def paint(page: Page, canvas: Canvas, rect: Rect, scale: float = 1.0) -> None:
    """One canvas: its layers in order, then its marks."""
    axes = page.axes(rect)
    axes.set_xlim(0, canvas.size[0])
    axes.set_ylim(canvas.size[1], 0)
    axes.set_axis_off()
    cell = rect[2] / canvas.size[0] * 72  # points per cell
    for layer in canvas.layers:
        x0, y0, x1, y1 = layer.place
        image = axes.imshow(layer.values, extent=(x0, x1, y1, y0), interpolation="nearest", aspect="auto", alpha=layer.opacity)
        if layer.values.ndim == 2:
            mappable = colours(layer)
            image.set_cmap(mappable.get_cmap())
            image.set_norm(mappable.norm)
            if layer.numbers and scale == 1.0:
                write_numbers(axes, layer, cell, mappable)
        axes.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor=LINE, linewidth=0.8 * scale, clip_on=False))
    axes.set_xlim(0, canvas.size[0])
    axes.set_ylim(canvas.size[1], 0)
    for order, mark in enumerate(canvas.marks):
        put(axes, mark, scale, 3 + order)


def colours(layer: Layer) -> ScalarMappable:
    """The colour map of a layer: greys for values, red-white-blue about zero for gradients, white to blue for shares."""
    low, high = (float(np.nanmin(layer.values)), float(np.nanmax(layer.values))) if layer.limits is None else layer.limits
    if layer.look == "grey":
        return ScalarMappable(Normalize(low, high if high > low else low + 1), matplotlib.colormaps["gray"])
    if layer.look == "signed":
        most = max(abs(low), abs(high)) or 1.0
        return ScalarMappable(TwoSlopeNorm(0, -most, most), matplotlib.colormaps["RdBu"])
    norm = PowerNorm(0.4, 0, high or 1.0) if layer.look == "counts" else Normalize(0, high or 1.0)
    return ScalarMappable(norm, matplotlib.colormaps["Blues"])


def write_numbers(axes: Axes, layer: Layer, cell: float, mappable: ScalarMappable) -> None:
    """The values of a layer written into its cells, black or white by the cell's own brightness."""
    x0, y0, x1, y1 = layer.place
    rows, columns = layer.values.shape
    across, down = (x1 - x0) / columns, (y1 - y0) / rows
    texts = [[written(value, layer.numbers) for value in line] for line in layer.values]
    longest = max(len(text) for line in texts for text in line)
    size = min(across * cell / (0.6 * longest + 0.4), down * cell * 0.45, 24) * layer.number_size
    red, green, blue = np.moveaxis(np.asarray(mappable.to_rgba(layer.values))[..., :3], -1, 0)
    bright = 0.299 * red + 0.587 * green + 0.114 * blue
    for i in range(rows):
        for j in range(columns):
            faint = layer.look != "grey" and layer.values[i, j] == 0
            colour = LINE if faint else INK if bright[i, j] > 0.5 else "white"
            x, y = x0 + (j + 0.5) * across, y0 + (i + 0.5) * down
            axes.text(x, y, texts[i][j], size=size, ha="center", va="center", color=colour, parse_math=False)


def written(value: float, form: str) -> str:
    """A number as it stands in a cell; nought plainly, and with a true minus sign."""
    text = form.format(value)
    if float(text) == 0:
        return "0" if value == 0 else text.replace("-", "")
    return text.replace("-", "−")


def put(axes: Axes, mark: Mark, scale: float, order: int) -> None:
    """One mark on a canvas."""
    if isinstance(mark, Box):
        place, wide, high = (mark.left, mark.top), mark.right - mark.left, mark.bottom - mark.top
        if mark.filled:
            axes.add_patch(Rectangle(place, wide, high, facecolor=mark.colour, alpha=mark.filled, linewidth=0, zorder=order))
        style = "--" if mark.dashed else "-"
        edge = mark.width * scale
        axes.add_patch(
            Rectangle(
                place, wide, high, fill=False, edgecolor=mark.colour, linewidth=edge, linestyle=style, clip_on=False,
                joinstyle="miter", zorder=order,
            )
        )  # fmt: skip
    elif isinstance(mark, Grid):
        x0, y0, x1, y1 = mark.inside
        lines = [[(x, y0), (x, y1)] for x in mark.columns] + [[(x0, y), (x1, y)] for y in mark.rows]
        thin = mark.width * scale
        axes.add_collection(
            LineCollection(lines, colors=mark.colour, linewidths=thin, alpha=mark.strength, clip_on=False, zorder=order),
            autolim=False,
        )
    elif isinstance(mark, Arrow):
        axes.add_patch(
            FancyArrowPatch(
                mark.start, mark.end, arrowstyle="-|>", mutation_scale=26 * max(scale, 0.5), shrinkA=0, shrinkB=0,
                color=mark.colour, linewidth=mark.width * scale, clip_on=False, zorder=order,
            )
        )  # fmt: skip
    elif isinstance(mark, Dots):
        xs, ys = zip(*mark.places, strict=True) if mark.places else ((), ())
        face, edge_colour, edge = ("none", mark.colour, 2.0) if mark.hollow else (mark.colour, "white", 1.2)
        axes.plot(
            xs, ys, "o", markersize=mark.size * scale, markerfacecolor=face, markeredgecolor=edge_colour,
            markeredgewidth=edge * scale, clip_on=False, zorder=order,
        )  # fmt: skip
    elif scale == 1.0:
        weight = "bold" if mark.bold else "normal"
        axes.text(
            mark.x,
            mark.y,
            mark.text,
            size=mark.size,
            color=mark.colour,
            ha=mark.across,
            va="center",
            weight=weight,
            parse_math=False,
            zorder=order,
        )


def colour_bar(page: Page, canvas: Canvas, rect: Rect) -> None:
    """A slim scale beside the title of a canvas, its ends named."""
    layer = canvas.layers[-1]
    mappable = colours(layer)
    low, high = min(float(np.nanmin(layer.values)), 0.0), max(float(np.nanmax(layer.values)), 0.0)
    high = high if high > low else 1.0
    left, bottom, wide, tall = rect
    y, end, long = bottom + tall + 0.52, left + max(wide, 3.0) - 0.45, 0.8
    axes = page.axes((end - long, y - 0.075, long, 0.15))
    axes.imshow(np.asarray(mappable.to_rgba(np.linspace(low, high, 256)))[None], aspect="auto", interpolation="nearest")
    framed(axes)
    page.text(end - long - 0.08, y, f"{low:.3g}".replace("-", "−"), 13, color=PALE, va="center", ha="right")
    page.text(end + 0.08, y, f"{high:.3g}", 13, color=PALE, va="center", ha="left")


def connect(page: Page, above: Rect, canvas: Canvas, below: Rect, area: tuple[float, float, float, float]) -> None:
    """Lines from a part of the upper canvas to the lower one that shows it enlarged."""
    cell = above[2] / canvas.size[0]
    y = above[1] + above[3] - area[3] * cell
    for part, x in ((area[0], below[0]), (area[2], below[0] + below[2])):
        page.line((above[0] + part * cell, y), (x, below[1] + below[3]), SECOND, 1.6, order=5)


def framed(axes: Axes) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_edgecolor(LINE)
        spine.set_linewidth(0.8)


def save(figure: Figure, path: str | Path) -> Path:
    """Write a figure as PNG or SVG, by the suffix; the file appears whole or not at all.

    Raises:
        ValueError: another suffix, no such folder, or a place that cannot be written.
    """
    path = checked_output(path)
    kind = path.suffix.lower().removeprefix(".")
    metadata = {"Date": None} if kind == "svg" else {"Software": None}
    with matplotlib.rc_context(SETTINGS), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph", UserWarning)  # a file name in a script that the font lacks
        handle, part = -1, ""
        try:
            handle, part = tempfile.mkstemp(suffix=path.suffix, prefix=".everypool-", dir=path.parent)
            with os.fdopen(handle, "wb") as file:
                figure.savefig(file, format=kind, metadata=metadata)
            mask = os.umask(0)
            os.umask(mask)
            os.chmod(part, 0o666 & ~mask)
            os.replace(part, path)
        except BaseException as error:
            if part and os.path.exists(part):
                os.unlink(part)
            if isinstance(error, OSError):
                raise check.invalid(
                    "output", "a file that can be written", check.Shown(f"{str(path)!r} ({error.strerror})")
                ) from error
            raise
    return path


def checked_output(path: str | Path) -> Path:
    """The path, if a picture can be written there."""
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise check.invalid("output", "a file name that ends in .png or .svg", check.Shown(repr(str(path))))
    if not path.parent.is_dir():
        raise check.invalid("output", "in a folder that exists", check.Shown(repr(str(path))))
    if path.is_dir():
        raise check.invalid("output", "a file, not a folder", check.Shown(repr(str(path))))
    return path
