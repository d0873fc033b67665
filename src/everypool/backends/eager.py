"""The definition: every pooling as a few lines of torch on any device, differentiable twice, and the oracle of all tests.

A reducer is written in the verbs of `Folds`: `total`, `argmax`, `take`, `log_mean_exp`, `weighted` and a few more. Each
verb folds a merging state axis by axis, so time grows with the logarithm of the window and memory with input plus
output. The two verbs with weights are closed under differentiation: the derivative of `weighted` is its transpose
`spread` and the other way round, so gradients of every order cost the same few copies; nothing is saved per tap.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from everypool.backends.axes import Axis, Table
from everypool.backends.context import (
    can_compare_sizes,
    can_read_values,
    is_forward_mode,
    is_jit_tracing,
    is_tracing,
    needs_differentiable_ops,
)
from everypool.backends.gradients import LogMeanExp, Mean, SoftMean, Spread, Total, Weighted, mean_of
from everypool.backends.layout import Layout, prefix_mask
from everypool.backends.monoids import ArgMax, Centred, LogMean, Maximum, Monoid, State, Sum
from everypool.backends.monoids import Weighted as WeightedSum

__all__ = ["Folds", "wide"]

CHUNK = 1 << 20  # taps of an unmergeable reducer that are laid out at once
BLOCK = 1 << 15  # elements folded at once outside of traced graphs: a state then stays in cache, and few copies live


def wide(x: Tensor) -> Tensor:
    """x in the type that sums are made in: float64, or float32 where the device or an exported graph has no float64."""
    narrow = is_tracing() or x.device.type in ("mps", "xla", "vulkan")
    return x.to(torch.float32) if narrow and x.dtype != torch.float64 else x.to(torch.float64)


def keep_slope(x: Tensor) -> Tensor:
    """Return zeros with the slope of x, none where x is infinite; NaN stays."""
    finite = torch.where(x.isinf(), torch.zeros_like(x), x)
    return finite - finite.detach()


class Folds:
    """The verbs in which reducers are defined, bound to one layout and one mask."""

    def __init__(self, layout: Layout, mask: Tensor | None, device: torch.device) -> None:
        self.layout = layout
        self.nd = len(layout.axes)
        own = None if layout.sizes is None else prefix_mask(layout.sizes.to(device), layout.spatial)
        self.own = own
        self.mask = mask if own is None else own if mask is None else mask & own
        self.device = device

    # -- which windows exist -----------------------------------------------------------------------------------------

    def ones(self, dtype: torch.dtype) -> Tensor:
        """The mask as numbers; (1, 1, *spatial) of ones without one."""
        if self.mask is not None:
            return self.mask.to(dtype)
        return torch.ones((), dtype=dtype, device=self.device).expand(1, 1, *self.layout.spatial)

    def number(self, dtype: torch.dtype) -> Tensor:
        """How many valid elements each window has."""
        return self._fold(Sum(), (self.ones(dtype),))[0]

    def padded_number(self, dtype: torch.dtype) -> Tensor:
        """The same plus the cells of explicit padding, which average pooling may count."""
        if self.layout.extents is None:
            return self.number(dtype)
        cells = torch.ones((), dtype=dtype, device=self.device)
        for axis, sides in enumerate(self.layout.extents):
            extent = sides.count(self.device)
            rows = extent.shape[0] if extent.dim() == 2 else 1
            shape = [rows] + [1] * (self.nd + 1)
            shape[2 + axis] = extent.shape[-1]
            cells = cells * extent.to(dtype).reshape(shape)
        if self.mask is None or self.mask is self.own:
            return cells
        own = Folds(Layout(self.layout.axes), self.own, self.device)
        return cells - own.number(dtype) + self.number(dtype)

    def exists(self) -> Tensor | None:
        """(N or 1, 1 or C, *out): the window has a valid element; None where all windows have one."""
        layout = self.layout
        if self.mask is None and layout.full:
            return None
        found = self.number(torch.float32) > 0
        if layout.out_sizes is not None:
            found = found & prefix_mask(layout.out_sizes.to(self.device), layout.out)
        if layout.own_position and self.mask is not None:
            found = found & self.mask
        return found

    def masked(self, x: Tensor, value: float = 0.0) -> Tensor:
        """x with `value` where the mask says that nothing is."""
        return x if self.mask is None else x.masked_fill(~self.mask, value)

    def hide_outside(self, x: Tensor) -> Tensor:
        """Put zeros, which have no gradient, where nothing counts: there 0 would be multiplied by NaN or infinity.

        That is where the mask says so, and between and behind windows.
        """
        counts = self.mask
        learns = torch.is_grad_enabled() or is_jit_tracing()  # a traced graph may learn later
        if x.is_floating_point() and learns and not torch.compiler.is_exporting():
            for axis, along in enumerate(self.layout.axes):
                windows = None if self.layout.out_sizes is None else self.layout.out_sizes[:, axis]
                seen = along.seen(self.device, windows)
                if seen is not None:
                    seen = seen.reshape(-1, *[1] * (1 + axis), along.n, *[1] * (self.nd - 1 - axis))
                    counts = seen if counts is None else counts & seen
        return x if counts is None else x.masked_fill(~counts, 0)

    # -- folds ---------------------------------------------------------------------------------------------------------

    def _fold(self, monoid: Monoid, state: State, *, back: bool = False) -> State:
        for axis in reversed(range(self.nd)):  # last axis first: the earlier of equal values is then row-major first
            along = self.layout.axes[axis]
            state = _folded_in_parts(along.transposed() if back else along, monoid, state, 2 + axis)
        return state

    def _blocked(self, verb: Callable[..., Any], *tensors: Tensor) -> Any:
        """`verb(folds, *tensors)`, a tensor or a tuple of them, a block of channels at a time."""
        if needs_differentiable_ops():
            return verb(self, *tensors)
        channels = max(tensor.shape[1] for tensor in tensors)
        most = max(tensor[:, :1].numel() for tensor in tensors)
        step = max(1, BLOCK // max(most, 1))
        if step >= channels:
            return verb(self, *tensors)
        results: list[Tensor] = []
        for start in range(0, channels, step):
            block = slice(start, start + step)
            parts = verb(self.channels(block), *(tensor[:, block] if tensor.shape[1] > 1 else tensor for tensor in tensors))
            for i, part in enumerate(parts if isinstance(parts, tuple) else (parts,)):
                if start == 0:
                    results.append(part.new_empty((part.shape[0], channels, *part.shape[2:])))
                results[i][:, block] = part
        return tuple(results) if len(results) > 1 else results[0]

    def channels(self, block: slice) -> Folds:
        """The same folds over some of the channels."""
        if self.mask is None or self.mask.shape[1] == 1:
            return self
        part = copy(self)
        part.mask = self.mask[:, block]
        return part

    def total(self, v: Tensor, *, back: bool = False) -> Tensor:
        """Sum over each window, or with `back` over the windows of each element; linear, so nothing is kept for the gradient.

        `v` must be zero where masked.
        """
        return self._total(v, back) if needs_differentiable_ops() else Total.apply(v, self, back)

    def _total(self, v: Tensor, back: bool) -> Tensor:
        return self._fold(Sum(), (v,), back=back)[0]

    def mean(self, v: Tensor, number: Any, *, wider: bool = False) -> Tensor:
        """Divide the sum over each window by `number`; finite wherever that is, though the sum itself may not be.

        With `wider`, v is of a wider type than its values, whose sum does not overflow. `v` must be zero where masked.
        """
        if needs_differentiable_ops():
            return self._mean(v, number, wider)
        y: Tensor = Mean.apply(v, number, self, wider)
        return y

    def _mean(self, v: Tensor, number: Any, wider: bool) -> Tensor:
        total = self.total(v)
        y = total / number
        if wider or torch.compiler.is_exporting():
            return y
        finite = total.isfinite()
        if can_read_values(total) and total.is_cpu and bool(finite.all()):
            return y
        least = 2.0**-64  # windows have fewer elements; what that loses at the other end is nothing next to such a sum
        return torch.where(finite, y, self.total(v * least) / (number * least))

    def maximum(self, x: Tensor) -> Tensor:
        """Largest value of each window, without an index."""
        return self._fold(Maximum(), (self.masked(x, float("-inf")),))[0]

    def argmax(self, x: Tensor, *, last: bool = False) -> Tensor:
        """Flat position of each window's largest element; -1 where the window is empty."""
        with torch.no_grad():
            return self._blocked(lambda folds, x: folds._argmax(x, last), x.detach())

    def _argmax(self, x: Tensor, last: bool) -> Tensor:
        lowest = float("-inf") if x.is_floating_point() else float(torch.iinfo(x.dtype).min)
        index = torch.arange(_product(x.shape[2:]), device=x.device).reshape(1, 1, *x.shape[2:])
        if self.mask is not None:
            index = index.masked_fill(~self.mask, -1)
            x = (
                x.masked_fill(~self.mask, lowest)
                if x.is_floating_point()
                else torch.where(self.mask, x, torch.iinfo(x.dtype).min)
            )
        value, index = self._fold(ArgMax(lowest, last), (x, index))
        return index.expand(value.shape)

    @staticmethod
    def take(x: Tensor, index: Tensor) -> Tensor:
        """The elements at flat positions of each plane; position -1 gives some element, for `exists` to erase."""
        planes = x.flatten(2)
        if not is_tracing():
            return planes.gather(2, index.flatten(2).clamp(min=0)).unflatten(2, index.shape[2:])
        shape = [1] * (x.dim() - 2)  # a graph cannot split an axis into symbolic ones
        samples = torch.arange(x.shape[0], device=x.device).reshape(-1, 1, *shape)
        channels = torch.arange(x.shape[1], device=x.device).reshape(1, -1, *shape)
        return planes[samples, channels, index.clamp(min=0)]

    def log_mean_exp(self, u: Tensor) -> Tensor:
        """log(mean(exp(u))) over each window, exact for huge, tiny and equal u; -inf where the window is empty."""
        u = self.masked(u, float("-inf"))
        if not needs_differentiable_ops():
            return LogMeanExp.apply(u, self)
        top, mean = self._log_mean_exp(u)
        return top + mean.log1p()

    def _log_mean_exp(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Each window's largest u, and mean(exp(u - largest)) - 1."""
        top = u.detach()
        if needs_differentiable_ops():
            rest = keep_slope(u).expm1()
        else:
            rest = torch.zeros((1, 1, *u.shape[2:]), dtype=u.dtype, device=u.device)
        top, rest, number = self._fold(LogMean(), (top, rest, self.ones(u.dtype)))
        return top, rest / number.clamp(min=1)

    def soft_mean(self, u: Tensor, x: Tensor) -> Tensor:
        """Mean of x with weights exp(u) over each window, exact for huge and nearly equal x and u."""
        u, x = self.masked(u, float("-inf")), self.masked(x)
        if not needs_differentiable_ops():
            return SoftMean.apply(u, x, self)
        _, centre, total, rest = self._soft_mean(u, x)
        return mean_of(centre, total, rest)

    def _soft_mean(self, u: Tensor, x: Tensor) -> State:
        v, rest = self.ones(u.dtype), torch.zeros((), dtype=u.dtype, device=u.device).expand(u.shape)
        if needs_differentiable_ops():  # 1 and 0, with the slopes that u and x give them
            v = v * keep_slope(u).exp()
            rest = v * keep_slope(x)
        # what the mask excludes is no center, not even of a window whose values are all minus infinity
        center = self.masked(x.detach(), float("-inf"))
        return self._fold(Centred(), (u.detach(), center, v, rest))

    def weighted(self, u: Tensor, level: Tensor, v: Tensor, *, hard: bool = False) -> Tensor:
        """sum of v * exp(u - level) over each window; level must not lie far below the window's largest u.

        With `hard` the weight is 1 where u equals level and 0 elsewhere. `v` must be zero where masked.
        """
        u = self.masked(u, float("-inf"))
        if needs_differentiable_ops():
            return self._weighted(u, level, v, hard)
        return Weighted.apply(u, level, v, self, hard)

    def _weighted(self, u: Tensor, level: Tensor, v: Tensor, hard: bool) -> Tensor:
        monoid = WeightedSum(hard)
        start = u.detach()
        if needs_differentiable_ops() and not hard:
            v = v * keep_slope(u).exp()
        top, value = self._fold(monoid, (start, v))
        if hard:
            return value * monoid.weight(top, level)
        gap = torch.where(top == level.detach(), torch.zeros_like(level), top - level)
        if needs_differentiable_ops():  # where top equals level the gap is zero but its slope is not
            gap = torch.where(top.isinf(), gap, top - level)
        return torch.where(gap == float("-inf"), torch.zeros_like(value), value * gap.exp())

    def spread(self, u: Tensor, level: Tensor, a: Tensor, *, hard: bool = False) -> Tensor:
        """Transpose of `weighted`: sum over an element's windows of a * exp(u - level)."""
        if needs_differentiable_ops():
            return self._spread(u, level, a, hard)
        return Spread.apply(u, level, a, self, hard)

    def _spread(self, u: Tensor, level: Tensor, a: Tensor, hard: bool) -> Tensor:
        monoid = WeightedSum(hard)
        nowhere = level.isinf() | level.isnan() if hard else level.isinf()  # no element equals NaN
        start = (-level.detach()).masked_fill(nowhere, float("-inf"))
        if needs_differentiable_ops() and not hard:
            a = a * keep_slope(-level).exp()
        top, value = self._fold(monoid, (start, a.masked_fill(nowhere, 0.0)), back=True)
        if hard:
            return value * (u == -top).to(value.dtype)
        return torch.where(u.isinf(), torch.zeros_like(value), value * (u + top).exp())

    def _soft_spread(self, u: Tensor, x: Tensor, top: Tensor, y: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
        """Sums over an element's windows of a * exp(u - top) * (x - y), and of a * exp(u - top)."""
        nowhere = top.isinf()
        start = (-top).masked_fill(nowhere, float("-inf"))
        a = a.masked_fill(nowhere, 0.0)
        top, centre, total, rest = self._fold(
            Centred(), (start, y, a, torch.zeros((), dtype=a.dtype, device=a.device).expand(a.shape)), back=True
        )
        weight = torch.where(u.isinf() | top.isinf(), 0.0, (u + top).exp())
        share = weight * total
        return torch.where(weight == 0, 0.0, share * (x - centre) - weight * rest), share

    # -- reducers whose state does not merge ----------------------------------------------------------------------------

    def rows(self, planes: int = 1) -> list[slice]:
        """Windows along the first axis, in parts of which the taps over so many planes may be laid out at once."""
        if needs_differentiable_ops():
            return [slice(None)]
        out, *others = self.layout.out
        taps = _product(axis.table(self.device)[0].shape[-1] for axis in self.layout.axes)
        step = max(1, CHUNK // max(planes * taps * _product(others), 1))
        return [slice(start, min(start + step, out)) for start in range(0, out, step)]

    def tap_table(self, rows: slice = slice(None)) -> tuple[Tensor, Tensor]:
        """Flat positions (N or 1, *out, taps) of every window's elements in row-major order, and which exist."""
        flat = torch.zeros((1,) * (2 * self.nd + 1), dtype=torch.int64, device=self.device)
        found = torch.ones_like(flat, dtype=torch.bool)
        for axis, along in enumerate(self.layout.axes):
            positions, exists = along.table(self.device)
            if axis == 0:
                positions, exists = positions[..., rows, :], exists[..., rows, :]
            shape = [positions.shape[0] if positions.dim() == 3 else 1] + [1] * (2 * self.nd)
            shape[1 + axis], shape[1 + self.nd + axis] = positions.shape[-2:]
            flat = flat * along.n + positions.reshape(shape)
            found = found & exists.reshape(shape)
        return flat.flatten(1 + self.nd), found.expand(flat.shape).flatten(1 + self.nd)

    def choose(self, x: Tensor, chooser: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """Flat position of the element that `chooser(values, exists)` picks, as a tap number, in each window."""
        x = x.detach()
        batch, channels = x.shape[:2]
        if needs_differentiable_ops():  # a symbolic batch cannot be walked, nor one that a transform adds be written to
            flat, _ = self.tap_table()
            tap = chooser(*self.taps(x)).unsqueeze(-1)
            return flat.unsqueeze(1).expand(*tap.shape[:-1], flat.shape[-1]).gather(-1, tap).squeeze(-1)
        planes = x.flatten(2)
        mask = None if self.mask is None else self.mask.expand(batch, channels, *self.layout.spatial).flatten(2)
        result = torch.empty((batch, channels, *self.layout.out), dtype=torch.int64, device=x.device)
        for rows in self.rows():
            flat, found = self.tap_table(rows)
            step = max(1, CHUNK // max(flat[0].numel(), 1))
            for sample in range(batch):
                here, real = flat[sample % flat.shape[0]].flatten(), found[sample % found.shape[0]]
                for start in range(0, channels, step):
                    block = slice(start, start + step)
                    values = planes[sample, block].index_select(1, here).unflatten(1, real.shape)
                    exists = real.expand(values.shape)
                    if mask is not None:
                        exists = exists & mask[sample, block].index_select(1, here).unflatten(1, real.shape)
                    tap = chooser(values, exists).unsqueeze(-1)
                    result[sample, block, rows] = here.reshape(real.shape).expand(values.shape).gather(-1, tap).squeeze(-1)
        return result

    def taps(self, x: Tensor, rows: slice = slice(None)) -> tuple[Tensor, Tensor]:
        """Every window's elements side by side, (N, C, *out, taps), and which exist: k x k copies, for few reducers."""
        if is_tracing():
            return self._indexed_taps(x)
        flat, found = self.tap_table(rows)
        batch = x.shape[0]
        shape = flat.shape[1:]
        index = flat.flatten(1).unsqueeze(1).expand(batch, x.shape[1], -1)
        exists = found.unsqueeze(1)
        if self.mask is not None:
            mask = self.mask.flatten(2)
            index_of_mask = flat.flatten(1).unsqueeze(1).expand(mask.shape[0], mask.shape[1], -1)
            exists = exists & mask.gather(2, index_of_mask).unflatten(2, shape)
        return x.flatten(2).gather(2, index).unflatten(2, shape), exists

    def _indexed_taps(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """`taps` for recorded graphs, which cannot split an axis into symbolic ones."""
        tables = [along.table(x.device) for along in self.layout.axes]
        ragged = any(positions.dim() == 3 for positions, _ in tables)  # each sample has windows of its own
        index: list[Tensor] = []
        exists = torch.ones((), dtype=torch.bool, device=x.device)
        for axis, (positions, found) in enumerate(tables):
            shape = [positions.shape[0] if positions.dim() == 3 else 1] * ragged + [1] * (2 * self.nd)
            shape[ragged + axis], shape[ragged + self.nd + axis] = positions.shape[-2:]
            index.append(positions.reshape(shape))
            exists = exists & found.reshape(shape)

        def look_up(planes: Tensor) -> Tensor:  # (N, C, *spatial) to (N, C, *out, taps)
            if not ragged:
                plain: tuple[Any, ...] = (slice(None), slice(None), *index)
                return planes[plain].flatten(2 + self.nd)
            rows = torch.arange(planes.shape[0], device=x.device).reshape(-1, *[1] * (2 * self.nd))
            own: tuple[Any, ...] = (slice(None), rows, *index)
            return planes.transpose(0, 1)[own].transpose(0, 1).flatten(2 + self.nd)

        exists = exists.flatten(ragged + self.nd)
        exists = exists.unsqueeze(1) if ragged else exists[None, None]
        return look_up(x), exists if self.mask is None else exists & look_up(self.mask)

    def centre(self, x: Tensor, *, upper: tuple[bool, ...]) -> Tensor:
        """The element in the middle of each window, taking per axis the later of two middles where `upper` says so."""
        for axis, along in enumerate(self.layout.axes):
            dim = 2 + axis
            size = None if self.layout.sizes is None else self.layout.sizes[:, axis].to(x.device)
            positions = along.centre(x.device, upper[axis], size)
            if positions.dim() == 1:
                x = x.index_select(dim, positions)
            else:
                rows = positions.shape[0]
                index = positions.reshape(rows, *[1] * (dim - 1), positions.shape[-1], *[1] * (x.dim() - dim - 1))
                x = x.expand(rows, *x.shape[1:])
                x = x.gather(dim, index.expand(*x.shape[:dim], positions.shape[-1], *x.shape[dim + 1 :]))
        return x

    # -- torch's own kernels ---------------------------------------------------------------------------------------------

    def native_max(self, x: Tensor) -> tuple[Tensor, Tensor] | None:
        """torch's max pooling with its indices where it is right and not slower than a fold; else None."""
        native = self.layout.native
        if native is None or self.mask is not None or not x.is_floating_point() or max(native.kernel) > 5:
            return None
        if (torch.compiler.is_exporting() and native.ceil_mode) or (can_compare_sizes() and x.shape[1] == 0):
            return None
        if is_forward_mode():  # torch's derivative does not take a batch of tangents
            return None
        if max(*native.stride, *native.padding, *native.dilation) >= 1 << 31:  # torch takes them as 32-bit
            return None
        arguments: dict[str, Any] = {"ceil_mode": native.ceil_mode, "return_indices": True}
        if self.nd == 1:
            y, index = F.max_pool2d(
                x.unsqueeze(2),
                (1, *native.kernel),
                (1, *native.stride),
                (0, *native.padding),
                (1, *native.dilation),
                **arguments,
            )
            return y.squeeze(2), index.squeeze(2)
        if self.nd == 2:
            return F.max_pool2d(x, native.kernel, native.stride, native.padding, native.dilation, **arguments)
        # where channels lie side by side, torch's indices of windows of -inf in volumes are wrong, see docs/torch.md
        return F.max_pool3d(x.contiguous(), native.kernel, native.stride, native.padding, native.dilation, **arguments)


def _folded_in_parts(along: Axis, monoid: Monoid, state: State, dim: int) -> State:
    """`along.fold`, a part of the other axes at a time where no graph is recorded: what a fold holds at once stays small."""
    if needs_differentiable_ops() or any(part.requires_grad for part in state):
        return along.fold(monoid, state, dim)
    full = [max(sizes) for sizes in zip(*(part.shape for part in state), strict=True)]
    others = [axis for axis in range(2, len(full)) if axis != dim]
    if not (isinstance(along, Table) and along.positions.dim() == 3):  # such a table has a row for every sample
        others.append(0)
    others = [axis for axis in others if full[axis] > 1]
    if not others:
        return along.fold(monoid, state, dim)
    split = max(others, key=lambda axis: full[axis])
    step = max(1, BLOCK * full[split] // max(_product(full), 1))
    if step * 2 > full[split]:
        return along.fold(monoid, state, dim)
    state = tuple(part.expand([full[a] if a == split else n for a, n in enumerate(part.shape)]) for part in state)
    results: list[Tensor] = []
    for start in range(0, full[split], step):
        length = min(step, full[split] - start)
        piece = along.fold(monoid, tuple(part.narrow(split, start, length) for part in state), dim)
        if not results:
            results = [part.new_empty([full[a] if a == split else n for a, n in enumerate(part.shape)]) for part in piece]
        for whole, part in zip(results, piece, strict=True):
            whole.narrow(split, start, length).copy_(part)
    return tuple(results)


def _product(numbers: Any) -> int:
    result = 1
    for number in numbers:
        result = result * number
    return result
