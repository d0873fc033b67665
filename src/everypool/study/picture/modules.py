"""Scenes of trainable modules, with what they learn left out: cascade corner pooling, Hopfield retrieval, blurs and mixes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

import everypool
from everypool.pool import Operation
from everypool.study.picture.folds import Function, liveliest, numbered, reducer_scene
from everypool.study.picture.scene import (
    ACCENT,
    SECOND,
    THIRD,
    Arrow,
    Box,
    Canvas,
    Dots,
    Layer,
    Mark,
    Scene,
    Values,
    canvas_of,
    gradient,
    plain,
    whole,
)
from everypool.study.picture.shapes import BLANK, arrow_over, bin_grid, cell_box, titled

__all__ = [
    "blur_scene",
    "cascade_scene",
    "context_scene",
    "gated_scene",
    "max_blur_scene",
    "mixed_scene",
    "retrieval_scene",
    "subsampling_scene",
    "yolo_scene",
]


def cascade_scene(operation: Operation, x: Tensor) -> Scene:
    """Along the sides of the box first, then for its corner: top(x + left(x)) + left(x + top(x))."""
    height, width = x.shape[-2:]
    size = (float(width), float(height))

    def cascade(t: Tensor) -> Tensor:
        along = everypool.top_pool(t + everypool.left_pool(t))
        return along + everypool.left_pool(t + everypool.top_pool(t))

    looked = x + everypool.left_pool(x)
    h, w, down, inside = telling_path(x[0, 0], looked[0, 0])
    path: tuple[Mark, ...] = (
        Arrow((inside + 0.5, down + 0.5), (w + 1, down + 0.5), SECOND, 3.5),
        Arrow((w + 0.5, down), (w + 0.5, h + 1), ACCENT, 3.5),
        Dots(((inside + 0.5, down + 0.5),), SECOND, 13),
        Dots(((w + 0.5, down + 0.5),), ACCENT, 13),
        cell_box(h, w),
    )
    main = (
        canvas_of(whole(plain(x), limits=BLANK), "Input", "down the left side, and from there into the box", path),
        canvas_of(whole(plain(cascade(x))), "Output, top-left", "convolutions left out", (cell_box(h, w),)),
        canvas_of(
            whole(plain(gradient(cascade, x)), look="counts"), "Gradient", "how often each cell is found, or passed", bar=True
        ),
    )
    steps = (
        ("x", x, None),
        ("x + left_pool(x)", looked, ((0.85, 0.5), (0.15, 0.5))),
        ("top_pool of that", everypool.top_pool(looked), ((0.5, 0.85), (0.5, 0.15))),
        ("+ the other way round", cascade(x), None),
    )
    detail = tuple(
        canvas_of(whole(plain(y)), name, "", () if way is None else (arrow_over(size, *way),)) for name, y, way in steps
    )
    caption = (
        "Corner pooling looks along the border alone; the cascade adds what lies inside the box before it goes for the corner"
    )
    return titled(
        operation, "Cascade corner pooling", main, detail=detail, joins=("→", "→", "→"), caption=caption, main_share=0.53
    )


def telling_path(x: Tensor, looked: Tensor) -> tuple[int, int, int, int]:
    """(h, w, down, inside): a corner cell, the row that it finds below, and the column found from there, far from borders."""
    height, width = x.shape
    h = height // 10
    best, found = -1.0, (h, 0, h, 0)
    for w in range(width // 10, width // 2):
        down = int(looked[h:, w].argmax()) + h
        inside = int(x[down, w:].argmax()) + w
        length = min(down - h, height - 1 - down) / height + min(inside - w, width - 1 - inside) / width
        if length > best:
            best, found = length, (h, w, down, inside)
    return found


PATCHES = (2, 4)  # rows and columns of patches
SIDE = 16  # cells of a patch
ASKED = 5  # the patch whose half is shown
BETAS = (0.5, 4.0, 32.0)


def retrieval_scene(operation: Operation, x: Tensor) -> Scene:
    """Parts of the photo as stored patterns; one of them, half hidden, retrieves itself."""
    stored = patches(x)
    state = stored[ASKED].clone()
    state[SIDE // 2 :] = 0.0
    results = {beta: recalled(stored, state, beta) for beta in BETAS}
    shares = {beta: association(stored, state, beta) for beta in BETAS}
    rows, columns = PATCHES
    gap = 2.0
    step = SIDE + gap
    places = [(c * step, r * step, c * step + SIDE, r * step + SIDE) for r in range(rows) for c in range(columns)]
    size = (columns * step - gap, rows * step - gap)
    limits = (float(stored.min()), float(stored.max()))

    def sheet(values: list[Values], **look: object) -> tuple[Layer, ...]:
        return tuple(Layer(value, place, **look) for value, place in zip(values, places, strict=True))  # type: ignore[arg-type]

    mine = Box(*places[ASKED], ACCENT, 4)
    best = BETAS[-1]
    big = 1.6 * SIDE
    middle = (size[1] - big) / 2
    left, right = (2.0, middle, 2.0 + big, middle + big), (size[0] - 2.0 - big, middle, size[0] - 2.0, middle + big)
    slope = gradient(lambda s: recalled(s, state, BETAS[1]), stored)
    most = float(slope.abs().max())
    main = (
        Canvas(size, sheet([plain(p) for p in stored], limits=limits), "Input", "stored patterns: parts of the photo", (mine,)),
        Canvas(
            size,
            (Layer(plain(state), left, limits=limits), Layer(plain(results[best]), right, limits=limits)),
            "Output",
            "a state with its lower half hidden; what it retrieves",
            (
                Box(*left, SECOND, 3),
                Box(*right, ACCENT, 4),
                Arrow((left[2] + 2, size[1] / 2), (right[0] - 2, size[1] / 2), SECOND, 4),
            ),
        ),
        Canvas(
            size,
            sheet([plain(g) for g in slope], look="signed", limits=(-most, most)),
            "Gradient",
            f"of the retrieved values' sum at β = {BETAS[1]:g}",
            (mine,),
        ),
    )
    row, column = divmod(ASKED, columns)
    marked = Box(2.0 * column, 2.0 * row, 2.0 * column + 2, 2.0 * row + 2, ACCENT, 4)
    detail = tuple(
        Canvas(
            (3.2 * columns, 2.0 * rows),
            (
                Layer(shares[beta].reshape(rows, columns), (0, 0, 2.0 * columns, 2.0 * rows), "share", (0.0, 1.0), "{:.2f}"),
                Layer(plain(results[beta]), (3.2 * columns - 2.0 * rows, 0, 3.2 * columns, 2.0 * rows), limits=limits),
            ),
            f"β = {beta:g}",
            "share of each pattern, and their sum",
            (marked,),
        )
        for beta in BETAS
    )
    caption = "A small β recalls a mean of all patterns, a large one the pattern itself; learned projections are left out"
    return titled(operation, "Hopfield retrieval", main, detail=detail, caption=caption, main_share=0.55)


def patches(x: Tensor) -> Tensor:
    """(patterns, SIDE, SIDE) from a grid over the photo, each of mean zero and length one."""
    rows, columns = PATCHES
    resized = everypool.adaptive_avg_pool(x, (rows * SIDE, columns * SIDE))[0, 0]
    grid = resized.unfold(0, SIDE, SIDE).unfold(1, SIDE, SIDE).reshape(-1, SIDE, SIDE)
    grid = grid - grid.mean((1, 2), keepdim=True)
    return grid / torch.linalg.vector_norm(grid, dim=(1, 2), keepdim=True).clamp(min=1e-9)


def memory(beta: float) -> everypool.Hopfield:
    """An association that learns nothing: q, k and v are the patterns themselves."""
    return everypool.Hopfield(
        scaling=beta,
        stored_pattern_as_static=True,
        state_pattern_as_static=True,
        pattern_projection_as_static=True,
        normalize_stored_pattern=False,
        normalize_state_pattern=False,
        normalize_pattern_projection=False,
        disable_out_projection=True,
    )


def as_patterns(stored: Tensor, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    known = stored.reshape(1, len(stored), -1)
    return known, state.reshape(1, 1, -1), known


def recalled(stored: Tensor, state: Tensor, beta: float) -> Tensor:
    """What the state retrieves, (SIDE, SIDE)."""
    result: Tensor = memory(beta)(as_patterns(stored, state))
    return result.reshape(SIDE, SIDE)


def association(stored: Tensor, state: Tensor, beta: float) -> Values:
    """The share of each stored pattern."""
    matrix = memory(beta).get_association_matrix(as_patterns(stored, state))
    return np.asarray(matrix.detach().reshape(-1).double())


def blur_scene(operation: Operation, x: Tensor) -> Scene:
    """Every second cell, of the photo and of the blurred photo."""
    both = ("Every second cell", lambda t: t[..., ::2, ::2]), ("Blurred first", everypool.BlurPool2d())
    return shift_scene(operation, "Blur pooling", x, *both)


def max_blur_scene(operation: Operation, x: Tensor) -> Scene:
    """Maxima of windows that tile the photo, and the blurred maxima of all windows."""
    both = ("max_pool", lambda t: everypool.max_pool(t, 2)), ("Blurred maxima", everypool.MaxBlurPool2d(2))
    return shift_scene(operation, "Max-blur pooling", x, *both)


def shift_scene(operation: Operation, title: str, x: Tensor, bare: tuple[str, Function], soft: tuple[str, Function]) -> Scene:
    """Two ways to half the size, and how much each changes when the photo is shifted by one cell."""
    height, width = x.shape[-2:]
    height, width = height // 2 * 2, (width - 1) // 2 * 2
    here, shifted = x[..., :height, :width], x[..., :height, 1 : width + 1]
    side = min(8, height, width)
    top, left = liveliest(here, side, 2)
    area = (float(left), float(top), float(left + side), float(top + side))
    small = Box(left / 2, top / 2, (left + side) / 2, (top + side) / 2, SECOND, 3.5)
    _, function = soft
    y = plain(function(here))
    slope = whole(plain(gradient(function, here)), look="signed")
    main = (
        canvas_of(whole(plain(here), limits=BLANK), "Input", f"{height} × {width} values", (Box(*area, SECOND, 3.5),)),
        canvas_of(whole(y, limits=BLANK), "Output", f"{y.shape[0]} × {y.shape[1]} values", (small,)),
        canvas_of(slope, "Gradient", "of the output's sum, by the input", bar=True),
    )
    detail, change = [], []
    rows, columns = (slice(start // 2, (start + side) // 2) for start in (top, left))
    for label, each in (bare, soft):
        results = [plain(each(t)) for t in (here, shifted)]
        change.append(abs(results[1] - results[0]).mean())
        for result, said in zip(results, (label, "Photo shifted by one"), strict=True):
            detail.append(numbered(result[rows, columns], True, BLANK).with_title(said))
    caption = f"Shifted by one cell, values change by {change[0]:.2f} on average, with the blur by {change[1]:.2f}"
    return titled(operation, title, main, detail=tuple(detail), caption=caption, joins=("→", "", "→"))


def mixed_scene(operation: Operation, x: Tensor) -> Scene:
    """Half the maximum and half the mean."""
    module = everypool.MixedPool("max", "avg", 0.5, kernel_size=2)
    return window_scene(operation, "Mixed pooling", module, x, "alpha = 0.5, halfway from the maximum to the mean")


def gated_scene(operation: Operation, x: Tensor) -> Scene:
    """A gate that is the wider open for the maximum the brighter the window."""
    module = everypool.GatedPool2d(2)
    with torch.no_grad():
        module.weight.fill_(0.1)
    return window_scene(operation, "Gated pooling", module, x, "w = 0.1: the brighter a window, the nearer to its maximum")


def subsampling_scene(operation: Operation, x: Tensor) -> Scene:
    """Sums of windows, weighted, shifted and squashed."""
    module = everypool.LeNetSubsampling(1)
    with torch.no_grad():
        module.weight.fill_(0.05)
        module.bias.fill_(-1.0)
    scene = window_scene(operation, "LeNet's subsampling", module, x, "weight = 0.05, bias = −1, before f")
    return replace(
        scene,
        main=(scene.main[0], with_limits(scene.main[1], -1.7159, 1.7159), scene.main[2]),
        detail=(scene.detail[0], with_limits(scene.detail[1], -1.7159, 1.7159), *scene.detail[2:]),
    )


def with_limits(canvas: Canvas, low: float, high: float) -> Canvas:
    """Return the canvas with its images drawn from black at `low` to white at `high`."""
    return replace(canvas, layers=tuple(replace(layer, limits=(low, high)) for layer in canvas.layers))


WINDOWS = ((5, THIRD), (9, SECOND), (13, ACCENT))  # of YOLO's SPP


def yolo_scene(operation: Operation, x: Tensor) -> Scene:
    """The map and its maxima in windows of 5, 9 and 13 cells, put side by side; convolutions left out."""
    height, width = x.shape[-2:]
    maps = [x, *(everypool.max_pool(x, k, 1, k // 2) for k, _ in WINDOWS)]
    row, column = height // 2, width // 2
    boxes = tuple(Box(column - k // 2, row - k // 2, column + k // 2 + 1, row + k // 2 + 1, colour, 3) for k, colour in WINDOWS)

    def joined(t: Tensor) -> Tensor:
        return torch.cat([t, *(everypool.max_pool(t, k, 1, k // 2) for k, _ in WINDOWS)], dim=1)

    main = (
        canvas_of(whole(plain(x), limits=BLANK), "Input", "windows of 5, 9 and 13 around one cell", boxes),
        sheet_of(maps, "Output", "the map and its maxima: four channels for one"),
        canvas_of(
            whole(plain(gradient(joined, x)), look="counts"), "Gradient", "how many outputs each cell gave its value", bar=True
        ),
    )
    names = ("x", *(f"max_pool(x, {k}, 1, {k // 2})" for k, _ in WINDOWS))
    detail = tuple(canvas_of(whole(plain(y), limits=BLANK), name) for name, y in zip(names, maps, strict=True))
    caption = "Every cell sees its surroundings at three sizes; the convolutions before and behind are left out"
    return titled(operation, "YOLO's SPP", main, detail=detail, joins=("", "", ""), caption=caption, main_share=0.53)


BINS = 1, 2, 3, 6  # of PSPNet's module


def context_scene(operation: Operation, x: Tensor) -> Scene:
    """The map and its averages over grids of bins, drawn up to its size; convolutions left out."""
    height, width = x.shape[-2:]

    def spread(t: Tensor, n: int) -> Tensor:
        grid = everypool.adaptive_avg_pool(t, n)
        return torch.nn.functional.interpolate(grid, t.shape[2:], mode="bilinear", align_corners=True)

    def joined(t: Tensor) -> Tensor:
        return torch.cat([spread(t, n) for n in BINS], dim=1)

    maps = [spread(x, n) for n in BINS]
    grids = tuple(bin_grid((height, width), n, colour, line) for n, colour, line in ((6, ACCENT, 1.5), (2, SECOND, 3.5)))
    row, column = height // 3, width // 3
    slope = gradient(lambda t: joined(t)[..., row, column], x)
    main = (
        canvas_of(whole(plain(x), limits=BLANK), "Input", "two of the grids: 2 × 2 and 6 × 6 bins", grids),
        sheet_of(maps, "Output", "averages of 1, 4, 9 and 36 bins, beside the map"),
        canvas_of(
            whole(plain(slope), look="signed"), "Gradient", "of one cell of the averages", (cell_box(row, column),), bar=True
        ),
    )
    detail = tuple(
        canvas_of(whole(plain(y), limits=BLANK), f"{n} × {n} bins" if n > 1 else "the whole map")
        for n, y in zip(BINS, maps, strict=True)
    )
    caption = "Averages over grids from coarse to fine tell each cell where it is; the convolutions are left out"
    return titled(
        operation, "Pyramid pooling module", main, detail=detail, joins=("", "", ""), caption=caption, main_share=0.53
    )


def sheet_of(maps: list[Tensor], title: str, note: str) -> Canvas:
    """Four maps on one canvas, two by two."""
    height, width = maps[0].shape[-2:]
    gap = 0.04 * width
    wide, high = (width - gap) / 2, (height - gap) / 2
    corners = [(column * (wide + gap), row * (high + gap)) for row in range(2) for column in range(2)]
    layers = tuple(
        Layer(plain(y), (left, top, left + wide, top + high), limits=BLANK)
        for y, (left, top) in zip(maps, corners, strict=True)
    )
    return Canvas((float(width), float(height)), layers, title, note)


def window_scene(operation: Operation, title: str, module: Function, x: Tensor, caption: str) -> Scene:
    """A module as a reducer over windows of 2 x 2."""
    scene = reducer_scene(title, operation.formula, operation.summary, operation.source, module, x, 2)
    return replace(scene, caption=f"{scene.caption};  {caption}")
