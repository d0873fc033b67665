"""Scenes of windows that are not sliding: pyramids, strips, scans, corners, crosses and switches."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

import everypool
from everypool.pool import Operation
from everypool.study.picture.folds import liveliest, numbered, window_lines, zoom
from everypool.study.picture.scene import (
    ACCENT,
    SECOND,
    THIRD,
    Arrow,
    Box,
    Canvas,
    Dots,
    Grid,
    Layer,
    Mark,
    Scene,
    Values,
    Word,
    canvas_of,
    gradient,
    plain,
    whole,
)

__all__ = ["corner_scene", "cross_scene", "pyramid_scene", "scan_scene", "strip_scene", "unpool_scene"]

LEVELS = ((1, THIRD, 5.0), (2, SECOND, 3.5), (4, ACCENT, 2.0))  # bins per axis, colour and line width
BLANK = (0.0, 10.0)


def titled(operation: Operation, title: str, main: tuple[Canvas, Canvas, Canvas], **rest: object) -> Scene:
    """A scene with the record's own words."""
    return Scene(title, operation.formula, operation.summary, operation.source, main, **rest)  # type: ignore[arg-type]


def at(x: Tensor, row: int, column: int) -> Tensor:
    """One cell of a map."""
    return x[..., row, column]


def cell_box(row: float, column: float, colour: str = ACCENT, width: float = 4.0) -> Box:
    return Box(column, row, column + 1, row + 1, colour, width)


def bin_grid(shape: tuple[int, int], level: int, colour: str, width: float) -> Grid:
    """Borders of `level` x `level` adaptive bins."""
    height, wide = shape
    columns = tuple(wide * i / level for i in range(level + 1))
    rows = tuple(height * i / level for i in range(level + 1))
    return Grid(columns, rows, (0, 0, wide, height), colour, width)


def pyramid_scene(operation: Operation, x: Tensor) -> Scene:
    """Grids of 1, 2 and 4 bins per axis, and the 21 numbers that they give."""
    height, width = x.shape[-2:]
    levels = tuple(level for level, _, _ in LEVELS)
    vector = everypool.spatial_pyramid_pool(x, levels, "mean")
    slope = plain(gradient(lambda t: everypool.spatial_pyramid_pool(t, levels, "max"), x))
    parts = [
        part.reshape(level, level).numpy() for part, level in zip(vector[0].split([n * n for n in levels]), levels, strict=True)
    ]
    grids = tuple(bin_grid((height, width), level, colour, line) for level, colour, line in reversed(LEVELS))
    gap = 0.06 * width
    half = (width - gap) / 2
    tall = half * height / width
    places = (
        (0, 0, half, tall),
        (0, height - tall, half, height),
        (half + gap, (height - tall) / 2, width, (height + tall) / 2),
    )
    layers = tuple(Layer(part, place, limits=BLANK) for part, place in zip(parts, places, strict=True))
    frames = tuple(Box(*place, colour, 3) for place, (_, colour, _) in zip(places, LEVELS, strict=True))
    winners = tuple((float(c) + 0.5, float(r) + 0.5) for r, c in np.argwhere(slope > 0))
    main = (
        canvas_of(whole(plain(x), limits=BLANK), "Input", "grids of 1 × 1, 2 × 2 and 4 × 4 bins", grids),
        Canvas((width, height), layers, "Output", "mean of every bin", frames),
        canvas_of(
            Layer(plain(x), (0, 0, width, height), limits=BLANK, opacity=0.35),
            "Gradient",
            "with max: only the winners' cells get any",
            (Dots(winners, SECOND, 9),),
        ),
    )
    flat = np.concatenate([part.ravel() for part in parts])[None]
    cells = float(flat.shape[1])
    marks: list[Mark] = []
    start = 0.0
    for level, colour, _ in LEVELS:
        end = start + level * level
        marks.append(Box(start, 0.55, end, 1.55, colour, 5))
        text = f"{level} × {level}" if level > 1 else "1"
        marks.append(Word((start + end) / 2, 0.2, text, 19, colour, bold=True))
        start = end
    row = Canvas((cells, 1.7), (Layer(flat, (0, 0.55, cells, 1.55), limits=BLANK, numbers="{:.1f}"),), marks=tuple(marks))
    caption = f"{flat.shape[1]} numbers per channel, whatever the size of the photo"
    return titled(operation, "Spatial pyramid pooling", main, detail=(row,), caption=caption, main_share=0.7)


def with_bands(x: Values, row: Values, column: Values, numbers: str = "", limits: tuple[float, float] = BLANK) -> Canvas:
    """A map with what its rows and columns gave beside and beneath it."""
    height, width = x.shape
    gap, thick = (0.35, 1.0) if numbers else (0.02 * width, 0.07 * width)
    size = (width + gap + thick, height + gap + thick)
    middle = Layer(x, (0, 0, width, height), limits=limits, numbers=numbers)
    right = Layer(row.reshape(-1, 1), (width + gap, 0, size[0], height), limits=limits, numbers=numbers)
    below = Layer(column.reshape(1, -1), (0, height + gap, width, size[1]), limits=limits, numbers=numbers)
    return Canvas(size, (middle, right, below))


def strip_scene(operation: Operation, x: Tensor) -> Scene:
    """Every row and every column as one window."""
    height, width = x.shape[-2:]
    row, column = everypool.strip_pool(x)
    rows, columns = row.flatten().numpy(), column.flatten().numpy()
    h, w = int(height * 0.3), int(width * 0.62)

    def both(t: Tensor, i: int = h, j: int = w) -> Tensor:
        across, down = everypool.strip_pool(t)
        return across[0, 0, i, 0] + down[0, 0, 0, j]

    deep = max(1.0, height / 32)
    strips = (
        Box(0, h - deep / 2, width, h + deep / 2, ACCENT, 3, 0.35),
        Box(w - deep / 2, 0, w + deep / 2, height, SECOND, 3, 0.35),
    )
    bands = with_bands(plain(x), rows, columns)
    faint = Layer(plain(x), bands.layers[0].place, limits=BLANK, opacity=0.25)
    bands = Canvas(
        bands.size,
        (faint, *bands.layers[1:]),
        "Output",
        f"{height} row means and {width} column means",
        (
            Arrow((w, h), (width + 0.5, h), ACCENT, 3),
            Arrow((w, h), (w, height + 0.5), SECOND, 3),
        ),
    )
    main = (
        canvas_of(whole(plain(x), limits=BLANK), "Input", "one row and one column of all the strips", strips),
        bands,
        canvas_of(whole(plain(gradient(both, x)), look="signed"), "Gradient", "of one row mean and one column mean", bar=True),
    )
    side = min(8, height, width)
    top, left = liveliest(x, side, 1)
    crop = x[..., top : top + side, left : left + side]
    across, down = everypool.strip_pool(crop)
    near = with_bands(plain(crop), across.flatten().numpy(), down.flatten().numpy(), "{:.1f}")
    i, j = side // 2 - 1, side // 2
    edge = side + 0.35
    near = Canvas(
        near.size,
        near.layers,
        marks=(
            Box(0, i, side, i + 1, ACCENT, 4), Box(edge, i, edge + 1, i + 1, ACCENT, 4),
            Box(j, 0, j + 1, side, SECOND, 4), Box(j, edge, j + 1, edge + 1, SECOND, 4),
        ),
    )  # fmt: skip
    slope = plain(gradient(lambda t: both(t, i, j), crop))
    spread = plain(across + down)
    detail = (
        near,
        numbered(spread, True, None, (Box(j, i, j + 1, i + 1, ACCENT, 4),)).with_title(""),
        numbered(slope, True, None, (Box(0, i, side, i + 1, ACCENT, 4), Box(j, 0, j + 1, side, SECOND, 4)), look="signed"),
    )
    caption = (
        "Row means and column means; their sum spread over the map, as strip pooling modules use it; gradient of the marked sum"
    )
    box = Box(left, top, left + side, top + side, THIRD, 3.5)
    main = (Canvas(main[0].size, main[0].layers, main[0].title, main[0].note, (*strips, box)), *main[1:])
    return titled(
        operation,
        "Strip pooling",
        main,
        detail=detail,
        caption=caption,
        zoom=(left, top, left + side, top + side),
        joins=("→", ""),
    )


DIRECTIONS: dict[str, tuple[Callable[[Tensor], Tensor], tuple[float, float], tuple[float, float]]] = {
    "top_pool": (everypool.top_pool, (0.5, 0.85), (0.5, 0.15)),
    "bottom_pool": (everypool.bottom_pool, (0.5, 0.15), (0.5, 0.85)),
    "left_pool": (everypool.left_pool, (0.85, 0.5), (0.15, 0.5)),
    "right_pool": (everypool.right_pool, (0.15, 0.5), (0.85, 0.5)),
}


def arrow_over(size: tuple[float, float], start: tuple[float, float], end: tuple[float, float], width: float = 7) -> Arrow:
    return Arrow((start[0] * size[0], start[1] * size[1]), (end[0] * size[0], end[1] * size[1]), ACCENT, width)


def scan_scene(operation: Operation, x: Tensor) -> Scene:
    """The running maximum in one direction, then in all four."""
    height, width = x.shape[-2:]
    size = (float(width), float(height))
    h, w = int(height * 0.28), int(width * 0.86)
    y = everypool.right_pool(x)
    slope = plain(gradient(everypool.right_pool, x))
    main = (
        canvas_of(
            whole(plain(x), limits=BLANK),
            "Input",
            "the window of a cell: all before it in its row",
            (Box(0, h - 0.5, w + 1, h + 1.5, ACCENT, 3, 0.3), Arrow((2, h + 0.5), (w + 1, h + 0.5), ACCENT, 4)),
        ),
        canvas_of(whole(plain(y), limits=BLANK), "Output of right_pool", "the largest value met so far"),
        canvas_of(whole(slope, look="counts"), "Gradient", "how many outputs each cell gave its value", bar=True),
    )
    detail = tuple(
        canvas_of(whole(plain(function(x)), limits=BLANK), name, "", (arrow_over(size, start, end),))
        for name, (function, start, end) in DIRECTIONS.items()
    )
    return titled(operation, "Directional pooling", main, detail=detail, main_share=0.53)


def corner_scene(operation: Operation, x: Tensor) -> Scene:
    """Two running maxima that meet in the upper left corner of what they enclose."""
    height, width = x.shape[-2:]
    h, w = int(height * 0.14), int(width * 0.22)
    y = everypool.corner_pool(x)
    down = int(x[0, 0, h:, w].argmax()) + h
    along = int(x[0, 0, h, w:].argmax()) + w
    rays: tuple[Mark, ...] = (
        Arrow((w + 0.5, height - 1), (w + 0.5, h + 1), ACCENT, 3.5),
        Arrow((width - 1, h + 0.5), (w + 1, h + 0.5), SECOND, 3.5),
        Dots(((w + 0.5, down + 0.5),), ACCENT, 13),
        Dots(((along + 0.5, h + 0.5),), SECOND, 13),
    )
    slope = plain(gradient(everypool.corner_pool, x))
    main = (
        canvas_of(whole(plain(x), limits=BLANK), "Input", "largest value below, and to the right, of a cell", rays),
        canvas_of(whole(plain(y)), "Output of top-left pooling", "the sum of both: large where both meet", (cell_box(h, w),)),
        canvas_of(whole(slope, look="counts"), "Gradient", "how many outputs each cell gave its value", bar=True),
    )
    side = min(6, height, width)
    top, left = liveliest(x, side, 1)
    crop = x[..., top : top + side, left : left + side]
    tops, lefts, total = (plain(f(crop)) for f in (everypool.top_pool, everypool.left_pool, everypool.corner_pool))
    values = plain(crop)
    i, j = 1, 1
    low, far = int(values[i:, j].argmax()) + i, int(values[i, j:].argmax()) + j
    detail = (
        numbered(
            values, True, BLANK,
            (Box(j, i, j + 1, side, ACCENT, 4), Box(j, i, side, i + 1, SECOND, 4), Dots(((j + 0.82, low + 0.2),), ACCENT, 11),
             Dots(((far + 0.82, i + 0.2),), SECOND, 11)),
        ).with_title("Input"),
        numbered(tops, True, BLANK, (cell_box(i, j),)).with_title("top_pool ↑"),
        numbered(lefts, True, BLANK, (cell_box(i, j, SECOND),)).with_title("left_pool ←"),
        numbered(total, True, (0, 20), (cell_box(i, j, THIRD),)).with_title("Sum"),
    )  # fmt: skip
    return titled(operation, "Corner pooling", main, detail=detail, joins=("", "+", "="), main_share=0.47)


def cross_scene(operation: Operation, x: Tensor) -> Scene:
    """The largest value of each column plus the largest of each row."""
    height, width = x.shape[-2:]
    h, w = int(height * 0.5), int(width * 0.45)
    low, far = int(x[0, 0, :, w].argmax()), int(x[0, 0, h].argmax())
    lines: tuple[Mark, ...] = (
        Box(w - 0.5, 0, w + 1.5, height, ACCENT, 2.5, 0.35),
        Box(0, h - 0.5, width, h + 1.5, SECOND, 2.5, 0.35),
        Dots(((w + 0.5, low + 0.5),), ACCENT, 13),
        Dots(((far + 0.5, h + 0.5),), SECOND, 13),
    )
    y = plain(everypool.cross_max_pool(x))
    slope = plain(gradient(everypool.cross_max_pool, x))
    side = min(7, height, width)
    top, left = liveliest(x, side, 1)
    area = (float(left), float(top), float(left + side), float(top + side))
    main = (
        canvas_of(
            whole(plain(x), limits=BLANK), "Input", "the column and the row of one cell", (*lines, Box(*area, THIRD, 3.5))
        ),
        canvas_of(whole(y), "Output", "largest of the column + largest of the row", (cell_box(h, w),)),
        canvas_of(whole(slope, look="counts"), "Gradient", "how many outputs each cell gave its value", bar=True),
    )
    crop = x[..., top : top + side, left : left + side]
    values = plain(crop)
    near = with_bands(values, values.max(1), values.max(0), "{:.1f}")
    i, j, edge = side // 2, side // 2, side + 0.35
    marks = (
        Box(j, 0, j + 1, side, ACCENT, 4), Box(j, edge, j + 1, edge + 1, ACCENT, 4),
        Box(0, i, side, i + 1, SECOND, 4), Box(edge, i, edge + 1, i + 1, SECOND, 4),
    )  # fmt: skip
    total = plain(everypool.cross_max_pool(crop))
    detail = (
        Canvas(near.size, near.layers, marks=marks),
        numbered(total, True, (0, 20), (cell_box(i, j, THIRD),)),
        numbered(plain(gradient(everypool.cross_max_pool, crop)), True, None, look="signed"),
    )
    caption = f"Marked cell: {values[:, j].max():.1f} + {values[i].max():.1f} = {total[i, j]:.1f}"
    return titled(operation, "Cross max pooling", main, detail=detail, caption=caption, zoom=area, joins=("→", ""))


def unpool_scene(operation: Operation, x: Tensor, kernel: int) -> Scene:
    """Maxima taken out with their places, and put back there."""

    def there_and_back(t: Tensor) -> Tensor:
        values, indices = everypool.max_pool(t, kernel, return_indices=True)
        back: Tensor = everypool.max_unpool(values, indices, kernel, output_size=tuple(t.shape[-2:]))
        return back

    cut = x[..., : x.shape[-2] // kernel * kernel, : x.shape[-1] // kernel * kernel]
    near = zoom(lambda t: everypool.max_pool(t, kernel), cut, kernel)
    height, width = cut.shape[-2:]
    pooled = plain(everypool.max_pool(cut, kernel))
    back = plain(there_and_back(cut))
    n, m = near.input.shape[0], near.output.shape[0]
    area = (float(near.left), float(near.top), float(near.left + n), float(near.top + n))
    left, top, right, bottom = (edge / kernel for edge in area)
    crop, small = Box(*area, SECOND, 3.5), Box(left, top, right, bottom, SECOND, 3.5)
    main = (
        canvas_of(
            whole(pooled, limits=BLANK), "Input", f"{pooled.shape[0]} × {pooled.shape[1]} maxima and their places", (small,)
        ),
        canvas_of(whole(back, limits=BLANK), "Output", f"{height} × {width} values, zeros elsewhere", (crop,)),
        canvas_of(
            whole(plain(gradient(there_and_back, cut)), look="signed"),
            "Gradient",
            "through pooling and unpooling",
            (crop,),
            bar=True,
        ),
    )
    said = n <= 10
    returned = plain(there_and_back(torch.from_numpy(near.input)[None, None]))
    lines = window_lines((n, n), kernel, SECOND, 2.0)
    winners = tuple((float(c) + 0.5, float(r) + 0.5) for r, c in np.argwhere(near.gradient > 0))
    rings = (Dots(winners, ACCENT, 30, hollow=True),) if said else ()
    detail = (
        numbered(near.input, said, BLANK, (lines, *rings)),
        numbered(near.output, True, BLANK, (window_lines((m, m), 1, SECOND, 2.0),)),
        numbered(returned, said, BLANK, (lines, *rings)),
    )
    caption = "max_pool keeps each window's largest value and its place; max_unpool puts it back there"
    return titled(operation, "Max unpooling", main, detail=detail, caption=caption, joins=("→", "→"))
