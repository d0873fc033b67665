"""Sliding windows: size arithmetic exactly as torch.nn's, with asymmetric, "same" and "valid" padding besides."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from everypool import _check as check
from everypool.backends.axes import Axis, Slide, Table, middle
from everypool.backends.context import can_compare_sizes, can_read_values, is_tracing
from everypool.backends.layout import Cells, Layout, Native
from everypool.pool import Windows

__all__ = ["Sliding"]


@dataclass(frozen=True)
class Sliding(Windows):
    """Windows of one size at regular steps.

    out = floor((n + left + right - dilation * (kernel_size - 1) - 1) / stride) + 1, per axis; with `ceil_mode` ceil
    instead of floor, but the last window must start inside the input or its left padding.

    Args:
        kernel_size: elements per window, one int or one per axis.
        stride: elements between windows; the kernel's size if None.
        padding: elements added on both sides, one int or one per axis, or a (left, right) pair per axis; at most half
            the dilated kernel. "valid" is none; "same" gives ceil(n / stride) windows, the odd element on the right.
            Padding is never a value: it counts for nothing, except in an average that asks for it.
        dilation: elements between the elements of a window.
        ceil_mode: keep a last window that runs over the end.

    Raises:
        ValueError: a size breaks its rule, or the window does not fit into the padded input.

    Source: torch.nn.MaxPool2d; TensorFlow for "same".

    >>> everypool.pool(torch.arange(5.0).reshape(1, 1, 5), "max", Sliding(2, padding="same"))
    tensor([[[1., 3., 4.]]])
    """

    kernel_size: Any
    stride: Any = None
    padding: Any = 0
    dilation: Any = 1
    ceil_mode: bool = False

    @staticmethod
    def axes_of(argument: Any) -> int | None:
        return len(argument) if isinstance(argument, (list, tuple)) and len(argument) > 1 else None

    @property
    def nd(self) -> int | None:
        return self.axes_of(self.kernel_size)

    def checked(self, nd: int) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], bool, list[tuple[int, int] | None]]:
        """(kernel, stride, dilation, ceil_mode, padding) per axis, every rule kept that does not need the input."""
        kernel = check.ints("kernel_size", self.kernel_size, nd, 1)
        empty = self.stride is None or (isinstance(self.stride, (list, tuple)) and len(self.stride) == 0)
        stride = kernel if empty else check.ints("stride", self.stride, nd, 1)
        dilation = check.ints("dilation", self.dilation, nd, 1)
        ceil = check.boolean("ceil_mode", self.ceil_mode)
        for k, d in zip(kernel, dilation, strict=True):
            if (k - 1) * d > check.LARGEST:
                raise check.invalid("kernel_size", "at most 2**40 once dilated", check.Shown(str((k - 1) * d + 1)))
        return kernel, stride, dilation, ceil, self._pairs(nd, kernel, dilation)

    def layouts(self, spatial: tuple[int, ...], sizes: Tensor | None) -> list[Layout]:
        nd = len(spatial)
        kernel, stride, dilation, ceil, pairs = self.checked(nd)
        rows = [_Row(n, k, s, d, pair, ceil) for n, k, s, d, pair in zip(spatial, kernel, stride, dilation, pairs, strict=True)]
        native = None
        # torch's kernels take equal padding on both sides, of at most half the kernel before its dilation
        if all(pair is not None and pair[0] == pair[1] <= k // 2 for pair, k in zip(pairs, kernel, strict=True)):
            native = Native(kernel, stride, tuple(pair[0] for pair in pairs if pair), dilation, ceil)
        own = [None] * nd if sizes is None else [row.own(sizes[:, axis]) for axis, row in enumerate(rows)]
        return [
            Layout(
                axes=tuple(row.axis(o) for row, o in zip(rows, own, strict=True)),
                sizes=sizes,
                out_sizes=None if sizes is None else torch.stack([o.out for o in own if o is not None], dim=1),
                extents=tuple(row.cells(o) for row, o in zip(rows, own, strict=True)),
                native=native if all(d == 1 for d in dilation) or all(row.full() for row in rows) else None,
                full=all(row.full() for row in rows),
            )
        ]

    def valid_sizes(self, sizes: Tensor) -> Tensor:
        """Each sample's own number of windows; those of a convolution with the same settings, too.

        Args:
            sizes: (N, nd), int: each sample's own extent.

        Returns:
            (N, nd), int64.

        Raises:
            ValueError: a size breaks its rule, or a sample has no window.

        >>> Sliding(3, stride=2, padding=1).valid_sizes(torch.tensor([[7], [8]])).tolist()
        [[4], [4]]
        """
        if not isinstance(sizes, Tensor) or sizes.dtype not in check.INTEGRAL:
            raise check.wrong_type("sizes", "an int tensor of shape (N, nd)", sizes)
        if sizes.dim() != 2 or sizes.shape[1] not in (1, 2, 3):
            raise check.invalid("sizes", "of shape (N, nd), nd from 1 to 3", sizes)
        kernel, stride, dilation, ceil, pairs = self.checked(sizes.shape[1])
        settings = zip(kernel, stride, dilation, pairs, strict=True)
        rows = [_Row(1, k, s, d, pair, ceil) for k, s, d, pair in settings]
        return torch.stack([row.own(column).out for row, column in zip(rows, sizes.to(torch.int64).unbind(1), strict=True)], 1)

    def _pairs(self, nd: int, kernel: tuple[int, ...], dilation: tuple[int, ...]) -> list[tuple[int, int] | None]:
        """(left, right) per axis; None where "same" makes it depend on the input."""
        padding = self.padding
        if isinstance(padding, str):
            check.choice("padding", padding, ("same", "valid"))
            return [None if padding == "same" else (0, 0)] * nd
        rule = f"a non-negative int, {nd} of them, (left, right) pairs, 'same' or 'valid'"
        if isinstance(padding, (list, tuple)) and any(isinstance(item, (list, tuple)) for item in padding):
            if len(padding) != nd or not all(isinstance(item, (list, tuple)) and len(item) == 2 for item in padding):
                raise check.invalid("padding", rule, padding)
            pairs = [check.ints("padding", item, 2, 0) for item in padding]
        else:
            pairs = [(p, p) for p in check.ints("padding", padding, nd, 0)]
        for (left, right), k, d in zip(pairs, kernel, dilation, strict=True):
            if max(left, right) > (d * (k - 1) + 1) // 2:
                rule = f"at most half the dilated kernel, {(d * (k - 1) + 1) // 2}"
                raise check.invalid("padding", rule, padding)
        return [(left, right) for left, right in pairs]


def convolved(
    n: int, kernel: int, stride: int, padding: int | tuple[int, int] | None, dilation: int, ceil: bool = False
) -> int:
    """Windows along one axis of n elements, below 1 if none fits; padding knows no bound here, and None is "same"."""
    pair = (padding, padding) if isinstance(padding, int) else padding
    return int(_Row(n, kernel, stride, dilation, pair, ceil).sized(n)[0])


def deconvolved(n: int, kernel: int, stride: int, padding: int, output_padding: int, dilation: int) -> int:
    """Cells that a transposed convolution makes of n elements along one axis."""
    return (n - 1) * stride - 2 * padding + dilation * (kernel - 1) + output_padding + 1


@dataclass(frozen=True)
class _Own:
    """What one axis looks like to each sample: its size, windows and left and right padding, (N,) each."""

    size: Tensor
    out: Tensor
    left: Any
    right: Any


@dataclass(frozen=True)
class _Row:
    """The arithmetic of one axis."""

    n: int
    kernel: int
    stride: int
    dilation: int
    pair: tuple[int, int] | None
    ceil: bool

    @property
    def reach(self) -> int:
        return self.dilation * (self.kernel - 1) + 1

    def sized(self, n: Any) -> tuple[Any, Any, Any]:
        """(windows, left, right) for an input of n elements; n may be a tensor of sizes."""
        if self.pair is None:
            out = (n + self.stride - 1) // self.stride
            total = _larger((out - 1) * self.stride + self.reach - n, 0)
            return out, total // 2, total - total // 2
        left, right = self.pair
        room = n + left + right - self.reach
        if not self.ceil:
            return room // self.stride + 1, left, right
        out = (room + self.stride - 1) // self.stride + 1
        begun = (n + left + self.stride - 1) // self.stride  # windows that start inside the input or its left padding
        return _smaller(out, begun), left, right

    def checked(self) -> tuple[int, Any, Any]:
        if self.pair is not None and can_compare_sizes():
            # in ceil mode the only window may run over the end too, by less than a step
            padded, over = self.n + sum(self.pair), self.stride - 1 if self.ceil else 0
            if self.reach > padded + over:
                rule = f"at most the padded input, {padded}, " + (f"and {over} more, " if over else "") + "once dilated"
                raise check.invalid("kernel_size", rule, check.Shown(str(self.reach)))
        return self.sized(self.n)

    def own(self, size: Tensor) -> _Own:
        out, left, right = self.sized(size)
        if can_read_values(size) and bool((out < 1).any()):
            rule = f"large enough for a dilated kernel of {self.reach} in the padded sample"
            raise check.invalid("sizes", rule, check.Shown(str(size.tolist())[:80]))
        return _Own(size, out, left, right)

    def axis(self, own: _Own | None) -> Axis:
        out, left, _ = self.checked()
        if own is not None and self.pair is None and self.stride > 1:
            return self._tabled(out, own)  # "same" begins elsewhere for every size
        over = self.reach + self.stride if self.pair is None else self.pair[1] + (self.stride - 1 if self.ceil else 0)
        return Slide(self.n, out, self.kernel, self.stride, self.dilation, left, over)

    def _tabled(self, out: int, own: _Own) -> Table:
        device = own.size.device
        left, size = own.left.reshape(-1, 1, 1), own.size.reshape(-1, 1, 1)
        window = torch.arange(out, device=device).reshape(1, -1, 1)
        # each window's first tap inside the map, and as many from there as the map can hold
        first = torch.div(left - window * self.stride + self.dilation - 1, self.dilation, rounding_mode="floor").clamp(min=0)
        tap = first + torch.arange(min(self.kernel, (self.n - 1) // self.dilation + 1), device=device)
        positions = window * self.stride - left + tap * self.dilation
        exists = (tap < self.kernel) & (positions >= 0) & (positions < size)
        element = torch.arange(self.n, device=device).reshape(1, -1, 1)
        # the windows of an element, earliest first
        number = min((self.reach - 1) // self.stride + 1, out)
        latest = ((element + left) // self.stride).clamp(max=out - 1)
        windows = latest - torch.arange(number - 1, -1, -1, device=device)
        offset = element + left - windows * self.stride
        inside = (windows >= 0) & (windows < out) & (offset % self.dilation == 0) & (offset // self.dilation < self.kernel)
        start, last = window.squeeze(-1) * self.stride - left.squeeze(-1), size.squeeze(-1) - 1
        middles = [middle(start, last, self.kernel, self.dilation, up).clamp(min=0, max=self.n - 1) for up in (False, True)]
        return Table(
            positions.clamp(min=0, max=self.n - 1),
            exists,
            self.n,
            out,
            back=(windows.clamp(min=0, max=out - 1), inside & (element < size)),
            middles=(middles[0], middles[1]),
            step=self.dilation,
        )

    def cells(self, own: _Own | None) -> Cells:
        out, left, right = self.checked()
        size, left, right = (self.n, left, right) if own is None else (own.size, own.left, own.right)
        return Cells(out, self.kernel, self.stride, self.dilation, size, left, right)

    def full(self) -> bool:
        """Every window holds an element: granted by the padding rule unless dilation lets taps jump over the input."""
        if self.dilation == 1:
            return True
        return not is_tracing() and self.n >= self.dilation


def _larger(first: Any, second: Any) -> Any:
    if isinstance(first, Tensor):
        return first.clamp(min=second)
    return torch.sym_max(first, second) if is_tracing() else max(first, second)


def _smaller(first: Any, second: Any) -> Any:
    if isinstance(first, Tensor):
        return torch.minimum(first, second)
    return torch.sym_min(first, second) if is_tracing() else min(first, second)
