"""What a picture shows, apart from how it is drawn: canvases with images and marks on them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["Arrow", "Box", "Canvas", "Dots", "Grid", "Layer", "Scene", "Word", "gradient", "plain"]

Values = NDArray[np.float64]
ACCENT, SECOND, THIRD = "#D55E00", "#0072B2", "#009E73"  # Okabe and Ito: told apart by every kind of colour vision


@dataclass(frozen=True)
class Box:
    """A rectangle, in cells from the upper left corner."""

    left: float
    top: float
    right: float
    bottom: float
    colour: str = ACCENT
    width: float = 3.0
    filled: float = 0.0
    dashed: bool = False


@dataclass(frozen=True)
class Grid:
    """Lines at the given columns and rows, within a rectangle."""

    columns: tuple[float, ...]
    rows: tuple[float, ...]
    inside: tuple[float, float, float, float]
    colour: str = ACCENT
    width: float = 1.0
    strength: float = 1.0


@dataclass(frozen=True)
class Arrow:
    """An arrow from one point to another."""

    start: tuple[float, float]
    end: tuple[float, float]
    colour: str = ACCENT
    width: float = 4.0


@dataclass(frozen=True)
class Dots:
    """Round marks."""

    places: tuple[tuple[float, float], ...]
    colour: str = ACCENT
    size: float = 10.0
    hollow: bool = False


@dataclass(frozen=True)
class Word:
    """Text at a point."""

    x: float
    y: float
    text: str
    size: float = 15.0
    colour: str = "#222222"
    across: str = "center"
    bold: bool = False


Mark = Box | Grid | Arrow | Dots | Word


@dataclass(frozen=True, eq=False)
class Layer:
    """An array drawn as an image at a place (left, top, right, bottom) of the canvas.

    `look` is "grey" for values, "signed" for gradients (white is none, blue positive, red negative), "share" for weights
    and "counts" for counts, of which the small ones are made visible.
    """

    values: Values
    place: tuple[float, float, float, float]
    look: str = "grey"
    limits: tuple[float, float] | None = None
    numbers: str = ""  # how numbers are written, such as "{:.1f}"; none if empty
    opacity: float = 1.0
    number_size: float = 1.0


@dataclass(frozen=True, eq=False)
class Canvas:
    """One image of a slide: `size` is its (width, height) in cells."""

    size: tuple[float, float]
    layers: tuple[Layer, ...]
    title: str = ""
    note: str = ""
    marks: tuple[Mark, ...] = ()
    bar: bool = False  # a scale of colours beneath

    def with_title(self, title: str, note: str = "") -> Canvas:
        return replace(self, title=title, note=note)


@dataclass(frozen=True, eq=False)
class Scene:
    """An operation on a photo: input with windows, output and gradient; beneath, how it comes about."""

    title: str
    formula: str
    summary: str
    source: str
    main: tuple[Canvas, Canvas, Canvas]
    detail: tuple[Canvas, ...] = ()
    caption: str = ""
    joins: tuple[str, ...] = ()  # signs between the canvases of the detail row
    zoom: tuple[float, float, float, float] | None = None  # the part of the input that the detail row's first canvas shows
    main_share: float = field(default=0.455)  # of the height of both rows


def gradient(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Derivative of the sum of the function's result by x."""
    x = x.detach().clone().requires_grad_()
    with torch.enable_grad():
        total = function(x).sum()
        result = torch.autograd.grad(total, x, allow_unused=True)[0] if total.requires_grad else None
    return torch.zeros_like(x) if result is None else result


def plain(x: Tensor) -> Values:
    """The last two axes as an array."""
    array: Values = x.detach().reshape(x.shape[-2:]).double().numpy()
    return array


def whole(values: Values, *, look: str = "grey", numbers: str = "", limits: tuple[float, float] | None = None) -> Layer:
    """A layer that fills a canvas of its own size."""
    height, width = values.shape
    return Layer(values, (0, 0, width, height), look, limits, numbers)


def canvas_of(layer: Layer, title: str = "", note: str = "", marks: tuple[Mark, ...] = (), bar: bool = False) -> Canvas:
    """A canvas with one layer on it."""
    return Canvas((layer.place[2], layer.place[3]), (layer,), title, note, marks, bar)


def number_format(values: Values) -> str:
    """As few decimals as tell the values, at most two."""
    for decimals in (0, 1):
        if np.allclose(values, values.round(decimals), atol=1e-9):
            return f"{{:.{decimals}f}}"
    return "{:.2f}"
