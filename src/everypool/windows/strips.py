"""Strips: long windows one element thin, each as long as the map."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from everypool import _check as check
from everypool._overrides import handle_overrides
from everypool.backends.axes import Axis, Bins, Keep
from everypool.backends.choose import choose
from everypool.backends.context import fixed_shape
from everypool.backends.corners import cross_sum
from everypool.backends.layout import Layout
from everypool.layer import WindowLayer
from everypool.module import PoolingModule
from everypool.pool import Operation, Reducer, Windows, apply, parse, register
from everypool.pool.sums import added

__all__ = ["CrossMaxPool", "StripPool", "Strips", "cross_max_pool", "strip_pool"]


@dataclass(frozen=True)
class Strips(Windows):
    """One strip along every axis through every place of the others.

    The result is a tuple with one map per axis: first the strips along the last axis (rows), then along the one before.
    A 2-D map (N, C, H, W) gives (N, C, H, 1) and (N, C, 1, W).

    Args:
        along: the axes to run along; all if None.

    Raises:
        ValueError: there is no such axis.

    Source: Hou et al. 2020, Strip pooling.

    >>> row, column = everypool.pool(torch.arange(4.0).reshape(1, 1, 2, 2), "mean", Strips())
    >>> row.flatten().tolist(), column.flatten().tolist()
    ([0.5, 2.5], [1.0, 2.0])
    """

    along: tuple[int, ...] | None = None

    def layouts(self, spatial: tuple[int, ...], sizes: Tensor | None) -> list[Layout]:
        nd = len(spatial)
        along = range(nd) if self.along is None else self.along
        if not isinstance(along, (range, list, tuple)):
            raise check.wrong_type("along", "None or a tuple of spatial axes", along)
        if not along:
            raise check.invalid("along", "None or one spatial axis or more", along)
        chosen = [spatial_axis("along", axis, nd) for axis in along]
        layouts = []
        for line in reversed(range(nd)):
            if line not in chosen:
                continue
            axes: tuple[Axis, ...] = tuple(Bins(n, 1) if axis == line else Keep(n) for axis, n in enumerate(spatial))
            out_sizes = None
            if sizes is not None:
                columns = [torch.ones_like(sizes[:, a]) if a == line else sizes[:, a] for a in range(nd)]
                out_sizes = torch.stack(columns, dim=1)
            layouts.append(Layout(axes, sizes, out_sizes, full=True))
        return layouts

    def assemble(self, parts: list[Tensor]) -> Any:
        return tuple(parts)


def spatial_axis(name: str, axis: Any, nd: int) -> int:
    """A spatial axis, counted from the end if negative, as a number from 0."""
    rule = f"an int between {-nd} and {nd - 1}"
    if not check.is_int(axis):
        raise check.wrong_type(name, rule, axis)
    if not -nd <= axis < nd:
        raise check.invalid(name, rule, axis)
    return int(axis) % nd


def check_like(other: Any, input: Tensor) -> None:
    """Raise unless `other` is a map of the same shape, type and device."""
    alike = isinstance(other, Tensor) and (other.dtype, other.device) == (input.dtype, input.device)
    if not alike or fixed_shape(other) != fixed_shape(input):
        raise check.invalid("other", f"like input, {check.shown(input)}", other)


@handle_overrides
def strip_pool(
    input: Tensor, reducer: str | Reducer = "mean", *, mask: Tensor | None = None, sizes: Any = None
) -> tuple[Tensor, ...]:
    """Pool long thin strips, one along every axis through every place of the others.

    row[h] = reducer(x[h, :]), column[w] = reducer(x[:, w]).

    Args:
        input: (N, C, *spatial), one to three spatial axes.
        reducer: a reducer or the name of one.
        mask: (N, 1 or C, *spatial), bool, True where an element counts.
        sizes: (N, nd), int: each sample's own extent.

    Returns:
        One map per axis, beginning with the strips along the last: (N, C, H, 1) and (N, C, 1, W) in 2-D.

    Raises:
        ValueError: unknown reducer, or a mask that does not fit.
        TypeError: the input's type has no meaning for the reducer.

    Source: Hou et al. 2020, Strip pooling. Reference: github Andrew-Qibin/SPNet.

    >>> [tuple(strip.shape) for strip in strip_pool(torch.ones(1, 2, 3, 4))]
    [(1, 2, 3, 1), (1, 2, 1, 4)]
    """
    return apply(input, reducer, Strips(), nd=None, mask=mask, sizes=sizes)


class StripPool(WindowLayer):
    """Pool long thin strips along every axis; see `strip_pool`."""

    def __init__(self, reducer: str | Reducer = "mean") -> None:
        super().__init__()
        self.chosen = reducer
        parse(reducer)

    @property
    def reducer(self) -> Reducer:
        return parse(self.chosen)

    @property
    def windows(self) -> Windows:
        return Strips()

    def extra_repr(self) -> str:
        return f"reducer={self.chosen!r}"


@handle_overrides
def cross_max_pool(input: Tensor, *, other: Tensor | None = None, mask: Tensor | None = None, sizes: Any = None) -> Tensor:
    """Largest value of each column plus largest value of each row: the core of CenterNet's center pooling.

    y[h, w] = max(input[:, w]) + max(other[h, :]); for the middle of a window see `center_pool`.

    Args:
        input: (N, C, *spatial); in 1-D and 3-D the sum runs over the lines along every axis through a place.
        other: (N, C, H, W), the map whose rows are taken, 2-D only. Default: input.
        mask: (N, 1 or C, *spatial), bool, True where an element counts.
        sizes: (N, nd), int: each sample's own extent.

    Returns:
        Like input. Of equal values the last along the line (the lowest, the right-most) gets the gradient.

    Raises:
        ValueError: `other` is not like input.

    Source: Duan et al. 2019, CenterNet. Reference: github Duankaiwen/CenterNet.

    >>> cross_max_pool(torch.tensor([[[[1.0, 2.0], [3.0, 0.0]]]]))
    tensor([[[[5., 4.],
              [6., 5.]]]])
    """
    reducer = parse("max:ties=last")
    if mask is None and sizes is None and isinstance(input, Tensor) and input.dim() == 4:
        if other is not None:
            check_like(other, input)
        found = added(reducer, (Strips((0,)), Strips((1,))), input, input if other is None else other)
        if found is not None:
            return found
    if other is None:
        lines, exists = apply(input, reducer, Strips(), nd=None, mask=mask, sizes=sizes, return_mask=True)
    else:
        check.batched("input", input, 2)
        check_like(other, input)
        lines, exists = [], []
        for x, axis in ((other, 1), (input, 0)):
            line, there = apply(x, reducer, Strips((axis,)), nd=None, mask=mask, sizes=sizes, return_mask=True)
            lines += line
            exists += there
    plain = mask is None and sizes is None
    if plain and len(lines) == 2 and input.dim() == 4 and input.is_contiguous() and choose().name == "cpu":
        found = cross_sum(lines[1], lines[0])
        if found is not None:
            return found
    total = lines[0]
    for line in lines[1:]:
        total = total + line
    total = total.expand(input.shape)
    if plain:
        return total.clone(memory_format=torch.preserve_format) if len(lines) == 1 else total
    inside = exists[0]
    for there in exists[1:]:
        inside = inside & there
    return total.masked_fill(~(inside if mask is None else inside & mask), 0)


class CrossMaxPool(PoolingModule):
    """Largest value of each column plus largest value of each row; see `cross_max_pool`."""

    def __init__(self) -> None:
        super().__init__()

    def forward(self, input: Tensor, other: Tensor | None = None, mask: Tensor | None = None, sizes: Any = None) -> Tensor:
        """Pool (N, C, *spatial); columns of `input`, rows of `other`."""
        return cross_max_pool(input, other=other, mask=mask, sizes=sizes)


register(
    Operation(
        name="strip",
        kind="windows",
        summary="Long thin strips, one along every axis through every place of the others.",
        formula="row[h] = reducer(x[h, :]), column[w] = reducer(x[:, w])",
        source="Hou et al. 2020, Strip pooling",
        names=("StripPool", "strip_pool", "Strips"),
        sample=lambda: (StripPool("mean"), (torch.randn(2, 3, 5, 6),)),
    )
)
register(
    Operation(
        name="cross_max",
        kind="windows",
        summary="Largest value of each column plus largest value of each row.",
        formula="y[h, w] = max(x[:, w]) + max(x[h, :])",
        source="Duan et al. 2019, CenterNet's center pooling",
        names=("CrossMaxPool", "cross_max_pool"),
        dtypes="any",
        sample=lambda: (CrossMaxPool(), (torch.randn(2, 3, 5, 6),)),
    )
)
