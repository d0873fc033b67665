"""Windows that adapt to the input: bins of a fixed number, the whole map, and pyramids of bins."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from everypool import _check as check
from everypool._overrides import handle_overrides
from everypool.backends.axes import Axis, Bins, Keep, Slide, Table
from everypool.backends.context import can_compare_sizes, can_read_values, is_tracing
from everypool.backends.layout import Layout
from everypool.layer import WindowLayer
from everypool.pool import Operation, Reducer, Windows, apply, parse, register

__all__ = ["Adaptive", "Global", "Pyramid", "SpatialPyramidPool", "spatial_pyramid_pool"]

MOST_OUTPUTS = 1 << 27  # per plane; bounds what a mistyped output size can allocate


def bins(n: int, out: int, sizes: Tensor | None) -> Axis:
    """`out` adaptive bins over n elements, or over each sample's own size."""
    if sizes is None or out == 1:  # one bin is the whole sample, which the mask already says
        return Bins(n, out)
    fewest = int(sizes.min()) if can_read_values(sizes) and sizes.numel() else 1
    size = sizes.reshape(-1, 1, 1)
    forward = _ranges(torch.arange(out, device=sizes.device).reshape(1, -1, 1), size, out, n // out + 2, n)
    element = torch.arange(n, device=sizes.device).reshape(1, -1, 1)
    positions, exists = _ranges(element, out, size, min(out // fewest + 2, out), out)
    return Table(*forward, n, out, (positions, exists & (element < size)))


def _ranges(number: Tensor, n: Any, out: Any, taps: int, limit: int) -> tuple[Tensor, Tensor]:
    """Positions floor(i n / out) to ceil((i + 1) n / out) - 1 of bin i, and which of the `taps` places they fill."""
    start = number * n // out
    end = ((number + 1) * n + out - 1) // out
    positions = start + torch.arange(taps, device=number.device)
    return positions.clamp(max=limit - 1), positions < end


@dataclass(frozen=True)
class Adaptive(Windows):
    """A fixed number of bins whatever the input's size.

    Bin i covers elements floor(i * n / out) to ceil((i + 1) * n / out) - 1.

    Args:
        output_size: bins per axis, one int or one per axis; None keeps the axis as it is.

    Raises:
        ValueError: a size below one, or a result that no memory holds.

    Source: torch.nn.AdaptiveAvgPool2d.

    >>> everypool.pool(torch.arange(5.0).reshape(1, 1, 5), "max", Adaptive(2))
    tensor([[[2., 4.]]])
    """

    output_size: Any

    fixed: ClassVar[bool] = True

    @staticmethod
    def axes_of(argument: Any) -> int | None:
        return len(argument) if isinstance(argument, (list, tuple)) and len(argument) > 1 else None

    @property
    def nd(self) -> int | None:
        return self.axes_of(self.output_size)

    def checked(self, nd: int) -> tuple[tuple[int, ...], list[bool]]:
        """Bins per axis, and which axes are kept as they are."""
        wanted = self.output_size
        if wanted is None or (isinstance(wanted, (list, tuple)) and None in wanted):
            given = [wanted] * nd if wanted is None else list(wanted)
            if len(given) != nd:
                raise check.invalid("output_size", f"a positive int or {nd} of them", wanted)
            wanted = [1 if item is None else item for item in given]
            kept = [item is None for item in given]
        else:
            kept = [False] * nd
        return check.ints("output_size", wanted, nd, 1), kept

    def layouts(self, spatial: tuple[int, ...], sizes: Tensor | None) -> list[Layout]:
        nd = len(spatial)
        out, kept = self.checked(nd)
        number = 1
        for n, o, keep in zip(spatial, out, kept, strict=True):
            number = number * (n if keep else o)
        if not is_tracing() and number > MOST_OUTPUTS:
            raise check.invalid("output_size", f"at most {MOST_OUTPUTS} outputs in all", self.output_size)
        axes: list[Axis] = []
        for axis, (n, o, keep) in enumerate(zip(spatial, out, kept, strict=True)):
            axes.append(Keep(n) if keep else bins(n, o, None if sizes is None else sizes[:, axis]))
        out_sizes = None
        if sizes is not None:
            columns = [sizes[:, a] if keep else torch.full_like(sizes[:, a], out[a]) for a, keep in enumerate(kept)]
            out_sizes = torch.stack(columns, dim=1)
        return [Layout(tuple(axes), sizes, out_sizes, full=True)]


@dataclass(frozen=True)
class Global(Windows):
    """The whole map as one window.

    Args:
        keepdim: give (N, C, 1, ...) rather than (N, C).

    Source: Lin et al. 2013, Network in Network.

    >>> everypool.pool(torch.arange(4.0).reshape(1, 1, 2, 2), "mean", Global())
    tensor([[1.5000]])
    """

    keepdim: bool = False

    fixed: ClassVar[bool] = True

    def layouts(self, spatial: tuple[int, ...], sizes: Tensor | None) -> list[Layout]:
        check.boolean("keepdim", self.keepdim)
        return [Layout(tuple(Bins(n, 1) for n in spatial), sizes, full=True)]

    def assemble(self, parts: list[Tensor]) -> Tensor:
        return parts[0] if self.keepdim else parts[0].flatten(1)


@dataclass(frozen=True)
class Pyramid(Windows):
    """Grids of bins from coarse to fine, joined to one vector of fixed length.

    Args:
        levels: bins per axis of each grid.
        bins: "adaptive" covers the map with exactly that many bins at every size; "sppnet" takes windows of
            ceil(n / level) at steps of floor(n / level) as the paper's text does; "caffe" takes windows and steps of
            ceil(n / level) with padding as Caffe's layer does. The last two exist for published weights and refuse
            sizes at which they do not give `level` bins.

    Returns (from `pool`):
        (N, C * sum(level ** nd)): level by level, within it channel by channel, within it bins in row-major order.

    Raises:
        ValueError: a level below one, or a size for which `bins` has no such grid.

    Source: He et al. 2014, Spatial pyramid pooling.

    >>> everypool.pool(torch.arange(4.0).reshape(1, 1, 4), "max", Pyramid((1, 2)))
    tensor([[3., 1., 3.]])
    """

    levels: Any = (1, 2, 4)
    bins: str = "adaptive"

    fixed: ClassVar[bool] = True
    keeps_channels: ClassVar[bool] = False

    def checked(self, nd: int = 1) -> list[int]:
        """The levels, every rule kept that does not need the input."""
        check.choice("bins", self.bins, ("adaptive", "sppnet", "caffe"))
        rule = "one or more positive ints"
        if not isinstance(self.levels, (list, tuple)):
            raise check.wrong_type("levels", rule, self.levels)
        if not self.levels:
            raise check.invalid("levels", rule, self.levels)
        levels = [check.positive_int("levels", level) for level in self.levels]
        if max(levels) ** nd > MOST_OUTPUTS:
            raise check.invalid("levels", f"grids of at most {MOST_OUTPUTS} bins", self.levels)
        return levels

    def layouts(self, spatial: tuple[int, ...], sizes: Tensor | None) -> list[Layout]:
        levels = self.checked(len(spatial))
        if self.bins == "adaptive":
            return [Adaptive(level).layouts(spatial, sizes)[0] for level in levels]
        if sizes is not None:
            raise NotImplementedError(f"`sizes` must be None with bins={self.bins!r}; bins='adaptive' takes them")
        return [Layout(tuple(self._windows(n, level) for n in spatial), full=self.bins == "sppnet") for level in levels]

    def _windows(self, n: int, level: int) -> Slide:
        kernel = (n + level - 1) // level
        if self.bins == "sppnet":
            stride, left = n // level, 0
            fits = stride > 0 and (n - kernel) // stride + 1 == level
        else:
            stride, left = kernel, (kernel * level - n + 1) // 2
            fits = left < kernel and (level - 1) * stride < n + left
        if not fits:
            raise check.invalid("bins", f"'adaptive' for {level} bins over {n} elements", self.bins)
        return Slide(n, level, kernel, stride, 1, left, max((level - 1) * stride + kernel - left - n, 0))

    def assemble(self, parts: list[Tensor]) -> Tensor:
        # masks may have one row or one channel for all
        alike = torch.broadcast_shapes(*(part.shape[:2] for part in parts)) if can_compare_sizes() else parts[0].shape[:2]
        return torch.cat([part.expand(*alike, *part.shape[2:]).flatten(1) for part in parts], dim=1)


@handle_overrides
def spatial_pyramid_pool(
    input: Any,
    levels: Any = (1, 2, 4),
    reducer: str | Reducer = "max",
    *,
    bins: str = "adaptive",
    mask: Tensor | None = None,
    sizes: Any = None,
) -> Tensor:
    """Pool grids of bins from coarse to fine and join them to a vector of fixed length, whatever the input's size.

    y = concat over levels n of reducer(bins of an n x n grid).

    Args:
        input: (N, C, *spatial), one to three spatial axes; or a list of (C, *spatial) of different sizes.
        levels: bins per axis of each grid.
        reducer: a reducer or the name of one.
        bins: "adaptive", "sppnet" or "caffe", see `Pyramid`.
        mask: (N, 1 or C, *spatial), bool, True where an element counts.
        sizes: (N, nd), int: each sample's own extent.

    Returns:
        (N, C * sum(level ** nd)): level by level, channel by channel, bins in row-major order.

    Raises:
        ValueError: no levels, a level below one, or a size for which `bins` has no such grid.

    Source: He et al. 2014, Spatial pyramid pooling.

    >>> spatial_pyramid_pool(torch.ones(1, 3, 13, 9), (1, 2, 3, 6)).shape
    torch.Size([1, 150])
    """
    return apply(input, reducer, Pyramid(levels, bins), nd=None, mask=mask, sizes=sizes)


class SpatialPyramidPool(WindowLayer):
    """Grids of bins from coarse to fine, joined to a vector of fixed length; see `spatial_pyramid_pool`."""

    def __init__(self, levels: Any = (1, 2, 4), reducer: str | Reducer = "max", *, bins: str = "adaptive") -> None:
        super().__init__()
        self.levels, self.chosen, self.bins = levels, reducer, bins
        Pyramid(levels, bins).checked()
        parse(reducer)

    @property
    def reducer(self) -> Reducer:
        return parse(self.chosen)

    @property
    def windows(self) -> Windows:
        return Pyramid(self.levels, self.bins)

    def extra_repr(self) -> str:
        return f"levels={self.levels}, reducer={self.chosen!r}, bins={self.bins!r}"


register(
    Operation(
        name="spatial_pyramid",
        kind="windows",
        summary="Grids of bins from coarse to fine, joined to a vector of fixed length.",
        formula="y = concat over levels n of reducer(bins of an n x n grid)",
        source="He et al. 2014",
        names=("SpatialPyramidPool", "spatial_pyramid_pool", "Pyramid"),
        sample=lambda: (SpatialPyramidPool((1, 2)), (torch.randn(2, 3, 5, 6),)),
        aliases=("spp",),
    )
)
