"""Running windows: at every place, all elements met so far in one direction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from everypool import _check as check
from everypool._memo import made
from everypool._overrides import handle_overrides
from everypool.backends.axes import Axis, Keep, Run
from everypool.backends.layout import Layout
from everypool.layer import WindowLayer
from everypool.module import PoolingModule
from everypool.pool import Operation, Reducer, Windows, apply, parse, register
from everypool.pool.sums import added, onto
from everypool.windows.strips import check_like, spatial_axis

__all__ = [
    "BottomPool",
    "BottomRightPool",
    "DirectionalPool",
    "LeftPool",
    "RightPool",
    "Scan",
    "TopLeftPool",
    "TopPool",
    "bottom_pool",
    "corner_pool",
    "directional_pool",
    "left_pool",
    "right_pool",
    "top_pool",
]


@dataclass(frozen=True)
class Scan(Windows):
    """The window of a place is everything up to it along one axis.

    y[i] = reducer(x[0], ..., x[i]); with `reverse` reducer(x[n - 1], ..., x[i]).

    Args:
        axis: spatial axis, counted from the end if negative.
        reverse: run from the end towards the start.

    Raises:
        ValueError: there is no such axis.

    Source: Law and Deng 2018, CornerNet.

    >>> everypool.pool(torch.tensor([[[1.0, 3.0, 2.0]]]), "max", Scan(reverse=True))
    tensor([[[3., 3., 2.]]])
    """

    axis: int = -1
    reverse: bool = False

    def layouts(self, spatial: tuple[int, ...], sizes: Tensor | None) -> list[Layout]:
        nd = len(spatial)
        check.boolean("reverse", self.reverse)
        along = spatial_axis("axis", self.axis, nd)
        axes: tuple[Axis, ...] = tuple(Run(n, self.reverse) if axis == along else Keep(n) for axis, n in enumerate(spatial))
        return [Layout(axes, sizes, sizes, full=True, own_position=True)]


def scanned(
    input: Tensor, scan: Scan, reducer: str | Reducer, ties: str, mask: Any, sizes: Any, nd: int | None = None
) -> Tensor:
    """A running reduction, with the rule for ties where it is a maximum."""
    return apply(input, scan_reducer(reducer, ties), scan, nd=nd, mask=mask, sizes=sizes)


def scan_reducer(reducer: str | Reducer, ties: str) -> Reducer:
    """Return the reducer, with the rule for ties where it is a maximum given by name."""
    check.choice("ties", ties, ("first", "last", "even"))
    if isinstance(reducer, str) and reducer.lower().strip() == "max":
        reducer = f"max:ties={ties}"
    return made(parse, reducer)


def scanned_onto(base: Tensor, input: Tensor, scan: Scan, ties: str) -> Tensor:
    """base plus the running maximum of `input`, both (N, C, H, W)."""
    found = onto(base, made(parse, f"max:ties={ties}"), scan, input)
    return base + scanned(input, scan, "max", ties, None, None) if found is None else found


@handle_overrides
def directional_pool(
    input: Tensor,
    axis: int,
    reverse: bool = False,
    *,
    reducer: str | Reducer = "max",
    ties: str = "first",
    mask: Tensor | None = None,
    sizes: Any = None,
) -> Tensor:
    """Running maximum, or any other running reduction, along one axis.

    y[i] = reducer(x[0], ..., x[i]); with `reverse` reducer(x[n - 1], ..., x[i]).

    Args:
        input: (N, C, *spatial), one to three spatial axes.
        axis: spatial axis to run along, counted from the end if negative.
        reverse: run from the end towards the start.
        reducer: a reducer or the name of one.
        ties: which of equal maxima gets the gradient: the "first" met (the published kernels' rule), the "last" met
            (that of torch.cummax), or "even".
        mask: (N, 1 or C, *spatial), bool, True where an element counts.
        sizes: (N, nd), int: each sample's own extent.

    Returns:
        Like input.

    Raises:
        ValueError: no such axis, reducer or tie rule.
        TypeError: the input's type has no meaning for the reducer.

    Source: Law and Deng 2018, CornerNet. Reference: github princeton-vl/CornerNet.

    >>> directional_pool(torch.tensor([[[1.0, 3.0, 2.0]]]), axis=0)
    tensor([[[1., 3., 3.]]])
    """
    return scanned(input, Scan(axis, reverse), reducer, ties, mask, sizes)


@handle_overrides
def top_pool(input: Tensor, *, ties: str = "first", mask: Tensor | None = None, sizes: Any = None) -> Tensor:
    """Running maximum from the bottom up of (N, C, H, W) or (C, H, W); see `directional_pool`.

    y[h] = max(x[h], x[h + 1], ...). A 3-D input is one map (C, H, W); of lines (N, C, L) take `directional_pool`.

    >>> top_pool(torch.tensor([[[[1.0, 5.0], [3.0, 2.0]]]]))
    tensor([[[[3., 5.],
              [3., 2.]]]])
    """
    return scanned(input, Scan(-2, True), "max", ties, mask, sizes, 2)


@handle_overrides
def bottom_pool(input: Tensor, *, ties: str = "first", mask: Tensor | None = None, sizes: Any = None) -> Tensor:
    """Running maximum from the top down of (N, C, H, W) or (C, H, W); see `directional_pool`.

    y[h] = max(x[0], ..., x[h]). A 3-D input is one map (C, H, W); of lines (N, C, L) take `directional_pool`.

    >>> bottom_pool(torch.tensor([[[[1.0, 5.0], [3.0, 2.0]]]]))
    tensor([[[[1., 5.],
              [3., 5.]]]])
    """
    return scanned(input, Scan(-2, False), "max", ties, mask, sizes, 2)


@handle_overrides
def left_pool(input: Tensor, *, ties: str = "first", mask: Tensor | None = None, sizes: Any = None) -> Tensor:
    """Running maximum from the right to the left of (N, C, H, W) or (C, H, W); see `directional_pool`.

    y[w] = max(x[w], x[w + 1], ...). A 3-D input is one map (C, H, W); of lines (N, C, L) take `directional_pool`.

    >>> left_pool(torch.tensor([[[[1.0, 5.0], [3.0, 2.0]]]]))
    tensor([[[[5., 5.],
              [3., 2.]]]])
    """
    return scanned(input, Scan(-1, True), "max", ties, mask, sizes, 2)


@handle_overrides
def right_pool(input: Tensor, *, ties: str = "first", mask: Tensor | None = None, sizes: Any = None) -> Tensor:
    """Running maximum from the left to the right of (N, C, H, W) or (C, H, W); see `directional_pool`.

    y[w] = max(x[0], ..., x[w]). A 3-D input is one map (C, H, W); of lines (N, C, L) take `directional_pool`.

    >>> right_pool(torch.tensor([[[[1.0, 5.0], [3.0, 2.0]]]]))
    tensor([[[[1., 5.],
              [3., 3.]]]])
    """
    return scanned(input, Scan(-1, False), "max", ties, mask, sizes, 2)


@handle_overrides
def corner_pool(
    input: Tensor,
    corner: str = "top_left",
    *,
    other: Tensor | None = None,
    ties: str = "first",
    mask: Tensor | None = None,
    sizes: Any = None,
) -> Tensor:
    """Sum of the two running maxima that meet in a corner.

    top_left: y = top_pool(input) + left_pool(other); bottom_right: y = bottom_pool(input) + right_pool(other).

    Args:
        input: (N, C, H, W) or (C, H, W).
        corner: "top_left" or "bottom_right".
        other: the map for the horizontal direction. Default: input.
        ties: which of equal maxima gets the gradient, see `directional_pool`.
        mask: (N, 1 or C, H, W), bool, True where an element counts.
        sizes: (N, 2), int: each sample's own extent.

    Returns:
        Like input.

    Raises:
        ValueError: unknown corner or tie rule, or `other` is not like input.

    Source: Law and Deng 2018, CornerNet.

    >>> corner_pool(torch.tensor([[[[0.0, 1.0], [1.0, 0.0]]]]))
    tensor([[[[2., 2.],
              [2., 0.]]]])
    """
    first, second = CORNERS[check.choice("corner", corner, tuple(CORNERS))]
    check.choice("ties", ties, ("first", "last", "even"))
    if other is not None:
        check_like(other, check.tensor("input", input, "(N, C, H, W) or (C, H, W)", (3, 4)))
    across = input if other is None else other
    if mask is None and sizes is None and isinstance(input, Tensor) and input.dim() == 4:
        found = added(made(parse, f"max:ties={ties}"), (first, second), input, across)
        if found is not None:
            return found
    return scanned(input, first, "max", ties, mask, sizes, 2) + scanned(across, second, "max", ties, mask, sizes, 2)


CORNERS = {
    "top_left": (Scan(-2, True), Scan(-1, True)),
    "bottom_right": (Scan(-2, False), Scan(-1, False)),
}


class DirectionalPool(WindowLayer):
    """Running reduction along one axis; see `directional_pool`."""

    def __init__(self, axis: int, reverse: bool = False, *, reducer: str | Reducer = "max", ties: str = "first") -> None:
        super().__init__()
        self.axis, self.reverse = axis, check.boolean("reverse", reverse)
        self.chosen, self.ties = reducer, check.choice("ties", ties, ("first", "last", "even"))
        parse(reducer)

    @property
    def reducer(self) -> Reducer:
        return scan_reducer(self.chosen, self.ties)

    @property
    def windows(self) -> Windows:
        return Scan(self.axis, self.reverse)

    def extra_repr(self) -> str:
        return f"axis={self.axis}, reverse={self.reverse}, reducer={self.chosen!r}, ties={self.ties!r}"


class _Direction(DirectionalPool):
    scan: ClassVar[Scan]
    nd = 2

    def __init__(self, *, ties: str = "first") -> None:
        super().__init__(self.scan.axis, self.scan.reverse, ties=ties)

    def extra_repr(self) -> str:
        return f"ties={self.ties!r}"


class TopPool(_Direction):
    """Running maximum from the bottom up of (N, C, H, W) or (C, H, W), never of lines (N, C, L); see `top_pool`."""

    scan = Scan(-2, True)


class BottomPool(_Direction):
    """Running maximum from the top down of (N, C, H, W) or (C, H, W), never of lines (N, C, L); see `bottom_pool`."""

    scan = Scan(-2, False)


class LeftPool(_Direction):
    """Running maximum from the right to the left of (N, C, H, W) or (C, H, W), never of lines; see `left_pool`."""

    scan = Scan(-1, True)


class RightPool(_Direction):
    """Running maximum from the left to the right of (N, C, H, W) or (C, H, W), never of lines; see `right_pool`."""

    scan = Scan(-1, False)


class _Corner(PoolingModule):
    corner: ClassVar[str]

    def __init__(self, *, ties: str = "first") -> None:
        super().__init__()
        self.ties = check.choice("ties", ties, ("first", "last", "even"))

    def forward(self, input: Tensor, other: Tensor | None = None, mask: Tensor | None = None, sizes: Any = None) -> Tensor:
        """Pool (N, C, H, W) or (C, H, W): vertically `input`, horizontally `other`."""
        return corner_pool(input, self.corner, other=other, ties=self.ties, mask=mask, sizes=sizes)


class TopLeftPool(_Corner):
    """Running maxima towards the top and towards the left of (N, C, H, W) or (C, H, W), added; see `corner_pool`."""

    corner = "top_left"


class BottomRightPool(_Corner):
    """Running maxima towards the bottom and the right of (N, C, H, W) or (C, H, W), added; see `corner_pool`."""

    corner = "bottom_right"


register(
    Operation(
        name="directional",
        kind="windows",
        summary="Running maximum, or any other running reduction, along one axis.",
        formula="y[i] = reducer(x[0], ..., x[i])",
        source="Law and Deng 2018, CornerNet",
        names=(
            "DirectionalPool",
            "BottomPool",
            "LeftPool",
            "RightPool",
            "TopPool",
            "Scan",
            "bottom_pool",
            "directional_pool",
            "left_pool",
            "right_pool",
            "top_pool",
        ),
        dtypes="any",
        sample=lambda: (DirectionalPool(-1, reverse=True), (torch.randn(2, 3, 5, 6),)),
    )
)
register(
    Operation(
        name="corner",
        kind="windows",
        summary="Sum of the two running maxima that meet in a corner.",
        formula="y[h, w] = max(x[h:, w]) + max(x[h, w:])",
        source="Law and Deng 2018, CornerNet",
        names=("TopLeftPool", "BottomRightPool", "corner_pool"),
        nd=(2,),
        dtypes="any",
        sample=lambda: (TopLeftPool(), (torch.randn(2, 3, 5, 6),)),
    )
)
