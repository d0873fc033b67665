"""Max pooling: the largest value of each window."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from everypool import _check as check
from everypool._overrides import handle_overrides
from everypool.backends.eager import Folds, wide
from everypool.backends.recipe import Recipe
from everypool.backends.work import Work
from everypool.layer import Made
from everypool.pool import Operation, Reducer, call, register
from everypool.reducers._layer import AdaptiveLayer, GlobalLayer, Layer, SlidingLayer
from everypool.windows import Adaptive, Global, Sliding

__all__ = [
    "AdaptiveMaxPool1d",
    "AdaptiveMaxPool2d",
    "AdaptiveMaxPool3d",
    "GlobalMaxPool",
    "Max",
    "MaxPool1d",
    "MaxPool2d",
    "MaxPool3d",
    "adaptive_max_pool",
    "global_max_pool",
    "max_pool",
]


@dataclass(frozen=True, eq=False)
class Max(Reducer):
    """The largest value of each window; NaN wins.

    Args:
        ties: where the gradient of equal maxima goes: to the "first" in row-major order or in the direction of a scan
            (torch.nn's rule), to the "last", or "even" to all of them in equal parts.
        indices: also give each maximum's flat position in its plane, -1 for a window without a valid element.

    >>> Max(ties="last")
    Max(ties='last', indices=False)
    """

    ties: str = "first"
    indices: bool = False

    any_dtype: ClassVar[bool] = True
    selects: ClassVar[bool] = True

    def check(self, input: Tensor) -> None:
        super().check(input)
        check.choice("ties", self.ties, ("first", "last", "even"))
        if check.boolean("return_indices", self.indices) and self.ties == "even":
            raise check.invalid("ties", "'first' or 'last' where indices are asked for", self.ties)

    def recipe(self) -> Recipe | str:
        if self.ties == "even":
            return Recipe("even_max", index=self.indices)
        return Recipe("max", last=self.ties == "last", index=self.indices)

    def work(self, nd: int) -> Work:
        if self.ties == "even":  # who is as large, how many they are, and a share for each
            return Work((1, -1), (3, 0), input=True, output=True)
        return Work((1, -1), (0, 1), winners=1)

    def define(self, x: Tensor, folds: Folds) -> tuple[tuple[Tensor, ...], Tensor | None]:
        if x.dtype == torch.bool:
            parts, exists = self.define(x.to(torch.uint8), folds)
            return (parts[0].to(torch.bool), *parts[1:]), exists
        if self.ties == "even" and x.is_floating_point():
            return (even_maximum(x, folds),), None
        if self.ties == "first":
            native = folds.native_max(x)
            if native is not None:
                return (native if self.indices else native[:1]), None
        if torch.compiler.is_exporting() and not self.indices and x.is_floating_point():
            return (folds.maximum(x),), None  # no gradient is asked for, and every runtime has the operators
        index = folds.argmax(x, last=self.ties == "last")
        y = folds.take(x, index)
        return ((y, index) if self.indices else (y,)), None


def even_maximum(x: Tensor, folds: Folds) -> Tensor:
    """The maximum, whose gradient all elements that equal it share."""
    x = wide(x)  # counts beyond what a narrow type holds
    fixed = x.detach()
    level = folds.maximum(fixed)
    share = folds.weighted(fixed, level, folds.ones(x.dtype).expand(x.shape), hard=True)
    slope = torch.where(fixed.isinf(), torch.zeros_like(x), x - fixed)  # 0: a sum of the equal values might overflow
    return level + folds.weighted(fixed, level, slope, hard=True) / share.clamp(min=1)


@handle_overrides
def max_pool(
    input: Any,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
    *,
    ties: str = "first",
    nd: int | None = None,
    mask: Tensor | None = None,
    sizes: Any = None,
) -> Any:
    """Largest value of each window.

    y = max(x), over the elements of the window that lie in the input.

    Args:
        input: (N, C, *spatial), one to three spatial axes, any real type, bool too; (C, *spatial) where `nd` or a
            tuple as `kernel_size` says how many.
        kernel_size: window extent in elements, one int or one per axis.
        stride: step in elements. Default: kernel_size.
        padding: empty elements added on both sides, at most half the dilated kernel; (left, right) pairs, "same" and
            "valid" too. They never win.
        dilation: distance in elements between window elements.
        ceil_mode: keep a last window that starts inside the input but runs over its end.
        return_indices: also give the flat position of each maximum in its plane, int64.
        ties: "first", "last" or "even": which of equal values gets the gradient.
        nd: number of spatial axes, which tells (C, *spatial) from a batch: the functions of `everypool.functional` with
            1d, 2d or 3d in their names have it. Default: with an int as `kernel_size` the input is a batch.
        mask: (N, 1 or C, *spatial), bool, True where an element counts.
        sizes: (N, nd), int: each sample's own extent.

    Returns:
        (N, C, *out), same type as the input; a pair with the indices if asked for.

    Raises:
        ValueError: a size breaks its rule, or the window does not fit.
        TypeError: the input is complex or quantised.

    Source: LeCun et al. 1998; Krizhevsky et al. 2012 for overlapping windows. Reference: torch.nn.functional.max_pool2d.

    >>> max_pool(torch.tensor([[[0.0, 3.0, 2.0, 1.0]]]), 2)
    tensor([[[3., 2.]]])
    """
    windows = (kernel_size, stride, padding, dilation, ceil_mode)
    return call(input, Max, (ties, return_indices), Sliding, windows, nd=check.axes(nd), mask=mask, sizes=sizes)


@handle_overrides
def adaptive_max_pool(
    input: Any,
    output_size: Any,
    return_indices: bool = False,
    *,
    ties: str = "first",
    nd: int | None = None,
    mask: Tensor | None = None,
    sizes: Any = None,
) -> Any:
    """Largest value of each of a fixed number of bins; see `max_pool` and `Adaptive`.

    >>> adaptive_max_pool(torch.tensor([[[0.0, 3.0, 2.0]]]), 1)
    tensor([[[3.]]])
    """
    return call(input, Max, (ties, return_indices), Adaptive, (output_size,), nd=check.axes(nd), mask=mask, sizes=sizes)


@handle_overrides
def global_max_pool(
    input: Any, *, keepdim: bool = False, ties: str = "first", mask: Tensor | None = None, sizes: Any = None
) -> Tensor:
    """Largest value of the whole map; see `max_pool`.

    >>> global_max_pool(torch.tensor([[[0.0, 3.0, 2.0]]]))
    tensor([[3.]])
    """
    return call(input, Max, (ties,), Global, (keepdim,), mask=mask, sizes=sizes)


class _Max(Layer):
    def settle(self, *, return_indices: bool = False, ties: str = "first") -> None:
        self.return_indices = check.boolean("return_indices", return_indices)
        self.ties = check.choice("ties", ties, ("first", "last", "even"))

    def reduced(self) -> Made:
        return Max, (self.ties, self.return_indices)

    def settings(self) -> str:
        shown = [f"return_indices={self.return_indices}"] if self.return_indices else []
        shown += [f"ties={self.ties!r}"] if self.ties != "first" else []
        return ", ".join(shown)


class _MaxPool(_Max, SlidingLayer):
    def __init__(
        self,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        dilation: Any = 1,
        return_indices: bool = False,
        ceil_mode: bool = False,
        **settings: Any,
    ) -> None:
        super().__init__(kernel_size, stride, padding, dilation, ceil_mode, return_indices=return_indices, **settings)


class MaxPool1d(_MaxPool):
    """Largest value of each window over (N, C, W) or (C, W); see `max_pool`."""

    nd = 1


class MaxPool2d(_MaxPool):
    """Largest value of each window over (N, C, H, W) or (C, H, W); see `max_pool`."""

    nd = 2


class MaxPool3d(_MaxPool):
    """Largest value of each window over (N, C, D, H, W) or (C, D, H, W); see `max_pool`."""

    nd = 3


class _AdaptiveMaxPool(_Max, AdaptiveLayer):
    def __init__(self, output_size: Any, return_indices: bool = False, **settings: Any) -> None:
        super().__init__(output_size, return_indices=return_indices, **settings)


class AdaptiveMaxPool1d(_AdaptiveMaxPool):
    """Largest value of each of a fixed number of bins over (N, C, W) or (C, W); see `adaptive_max_pool`."""

    nd = 1


class AdaptiveMaxPool2d(_AdaptiveMaxPool):
    """Largest value of each of a fixed number of bins over (N, C, H, W) or (C, H, W); see `adaptive_max_pool`."""

    nd = 2


class AdaptiveMaxPool3d(_AdaptiveMaxPool):
    """Largest value of each of a fixed number of bins over (N, C, D, H, W) or (C, D, H, W); see `adaptive_max_pool`."""

    nd = 3


class GlobalMaxPool(_Max, GlobalLayer):
    """Largest value of the whole map, (N, C, *spatial) to (N, C); see `global_max_pool`."""


def reference(values: Any, exists: Any, ties: str = "first") -> float:
    """One window by definition: values and which exist, float64 arrays of the window's shape."""
    return float(np.max(values[exists]))


register(
    Operation(
        name="max",
        kind="reducer",
        summary="The largest value of each window.",
        formula="y = max(x)",
        source="LeCun et al. 1998; Krizhevsky et al. 2012",
        names=(*(name for name in __all__ if name != "Max"),),
        dtypes="any",
        reducer=Max,
        variants=({}, {"ties": "last"}, {"ties": "even"}),
        reference=reference,
        stem="Max",
    )
)
