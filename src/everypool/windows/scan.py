"""Running windows: at every place, all elements met so far in one direction."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from everypool import _check as check
from everypool.backends.axes import Axis, Keep, Run
from everypool.backends.eager import Layout
from everypool.pool import Windows

__all__ = ["Scan"]


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
        rule = f"an int between {-nd} and {nd - 1}"
        if not check.is_int(self.axis):
            raise check.wrong_type("axis", rule, self.axis)
        if not -nd <= self.axis < nd:
            raise check.invalid("axis", rule, self.axis)
        along = self.axis % nd
        axes: tuple[Axis, ...] = tuple(Run(n, self.reverse) if axis == along else Keep(n) for axis, n in enumerate(spatial))
        return [Layout(axes, sizes, sizes, full=True, own_position=True)]
