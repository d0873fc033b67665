"""Windows along one axis, and how a merging state is folded over them.

An axis relates `n` elements to `out` windows. `fold` merges, for every window, the states of its elements in order;
`transposed` is the same relation read from the elements' side (which windows does an element belong to), which is all
that a backward pass needs. Every kind of window is a product of such axes, so cost and memory never grow with k x k.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from everypool.backends.context import can_compare_sizes, is_jit_tracing, is_tracing
from everypool.backends.monoids import Monoid, State

__all__ = ["Axis", "Bins", "Keep", "Rule", "Run", "Slide", "Spans", "Spread", "Table", "middle"]

CPU = torch.device("cpu")  # of tables for the compiled loops, whatever device tensors are made on by default


def crop(part: Tensor, dim: int, start: int, length: int) -> Tensor:
    if not is_tracing() and start == 0 and length == part.shape[dim]:  # a batch of gradients knows no slice of everything
        return part
    return part[(slice(None),) * dim + (slice(start, start + length),)]


def reshape_axes(part: Tensor, dim: int, sizes: tuple[Any, ...], count: int = 1) -> Tensor:
    """Replace `count` axes from `dim` on by axes of those sizes; a batch of gradients knows reshape, but not flatten."""
    return part.reshape(*part.shape[:dim], *sizes, *part.shape[dim + count :])


@dataclass(frozen=True, eq=False)
class Spans:
    """Windows along one axis in a table: elements start, start + step, ..., `count` of them.

    A compiled loop may rely on `run`: every element up to the window's own place, or from it on.
    """

    start: Tensor  # (1 or N, out), int64
    count: Tensor
    step: int = 1
    run: int = 0  # 1 forward, 2 in reverse

    @classmethod
    def between(cls, start: Tensor, end: Tensor, size: Tensor | None, **kind: Any) -> Spans:
        """Elements from start up to end, none of them beyond a sample's size."""
        start, end = start.unsqueeze(0), end.unsqueeze(0)
        if size is not None:
            end = torch.minimum(end, size.reshape(-1, 1))
            start = start.expand(end.shape)
        return cls(start, (end - start).clamp(min=0), **kind)


@dataclass(frozen=True)
class Rule:
    """Windows along one axis that numbers describe, alike for all samples: a plan of them does not grow with the axis."""

    kind: int
    step: int = 1  # between the elements of a window
    kernel: int = 1
    stride: int = 1
    left: int = 0  # padding in front of the first element

    SLIDING, BINS, UP_TO, FROM, LISTED = range(5)  # kinds, as the compiled loops number them


class Axis:
    """`n` elements related to `out` windows."""

    n: int
    out: int

    @property
    def rule(self) -> Rule | None:
        """The windows in numbers where all samples are as large as the map; None where only a table tells them."""
        return None

    def spans(self, size: Tensor | None) -> Spans:
        """The windows as starts and counts, clipped to the map, or to each sample's own size (N,)."""
        raise NotImplementedError

    def fold(self, monoid: Monoid, state: State, dim: int) -> State:
        """Each window's merged state; `dim` goes from n elements to `out` windows."""
        raise NotImplementedError

    def transposed(self) -> Axis:
        """The relation from windows to elements."""
        raise NotImplementedError

    def table(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Element positions ([N,] out, taps) of each window in order, and which of them exist."""
        raise NotImplementedError

    def seen(self, device: torch.device, windows: Tensor | None) -> Tensor | None:
        """Tell which elements (1 or N, n) lie in a window, or in one of each sample's first `windows` (N,); None if all do."""
        return None

    def centre(self, device: torch.device, upper: bool, size: Tensor | None) -> Tensor:
        """Element position ([N,] out) at the middle of each window, or the element nearest to it.

        `upper` takes the later of two middles; `size` (N,) says how many of the elements each sample has.
        """
        positions, exists = self.table(device)
        if size is not None:
            exists = exists & (positions < size.reshape(-1, 1, 1))
            positions = positions.expand(exists.shape)
        number = exists.sum(-1)
        first = exists.to(torch.uint8).argmax(-1)
        middle = (first + (number - 1 + int(upper)) // 2).clamp(min=0, max=positions.shape[-1] - 1)
        return positions.gather(-1, middle.unsqueeze(-1)).squeeze(-1)


@dataclass(frozen=True)
class Keep(Axis):
    """An axis that is not pooled."""

    n: int

    @property
    def out(self) -> int:  # type: ignore[override]
        return self.n

    def fold(self, monoid: Monoid, state: State, dim: int) -> State:
        return state

    def transposed(self) -> Axis:
        return self

    @property
    def rule(self) -> Rule:
        return Rule(Rule.SLIDING)

    def spans(self, size: Tensor | None) -> Spans:
        place = torch.arange(self.n, device=CPU)
        return Spans.between(place, place + 1, size)

    def table(self, device: torch.device) -> tuple[Tensor, Tensor]:
        positions = torch.arange(self.n, device=device).unsqueeze(-1)
        return positions, torch.ones_like(positions, dtype=torch.bool)


@dataclass(frozen=True)
class Slide(Axis):
    """Sliding windows: window i holds elements i * stride - left + t * dilation, t < kernel, that lie in [0, n)."""

    n: int
    out: int
    kernel: int
    stride: int
    dilation: int
    left: int
    right: int  # elements that the last window may need beyond the end; more than needed is cut off

    def fold(self, monoid: Monoid, state: State, dim: int) -> State:
        if not is_tracing():
            if self.stride > self.n:
                return Table.of(self).fold(monoid, state, dim)
            return self._trimmed()._fold(monoid, state, dim)
        return self._fold(monoid, state, dim)

    def _trimmed(self) -> Slide:
        """The same windows without the taps that no window finds inside the input."""
        d, kernel, left = self.dilation, self.kernel, self.left
        before = max((left - (self.out - 1) * self.stride) // d, 0)  # first taps outside even for the last window
        kernel, left = kernel - before, left - before * d
        kernel = min(kernel, max((self.n - 1 + left) // d + 1, 1))  # last taps outside even for the first window
        reach = (self.out - 1) * self.stride - left + (kernel - 1) * d + 1
        return replace(self, kernel=kernel, left=left, right=max(reach - self.n, 0))

    def _fold(self, monoid: Monoid, state: State, dim: int) -> State:
        k, s, d, out = self.kernel, self.stride, self.dilation, self.out
        parts = [_padded(part, dim, self.left, self.right, value) for part, value in zip(state, monoid.identity, strict=True)]
        if k == 1:
            return tuple(_stepped(part, dim, 0, out, s) for part in parts)
        if 3 < k <= s and d == 1 and not is_tracing():
            parts = [crop(part, dim, 0, (out - 1) * s + k).unfold(dim, k, s) for part in parts]
            return monoid.over(tuple(parts), parts[0].dim() - 1)
        if k <= 3 or (k <= s and k <= 9):
            taps = [tuple(_stepped(part, dim, t * d, out, s) for part in parts) for t in range(k)]
            return _merged(monoid, taps)
        # an exported graph cannot know that the last window lies inside
        length = (out - 1) * s + 1 if can_compare_sizes() else parts[0].shape[dim] - (k - 1) * d
        return tuple(_stepped(part, dim, 0, out, s) for part in _doubled(monoid, tuple(parts), dim, k, d, length))

    def transposed(self) -> Axis:
        if self.stride > self.n:
            return Table.of(self).transposed()
        return Spread(self._trimmed())

    @property
    def rule(self) -> Rule:
        return Rule(Rule.SLIDING, self.dilation, self.kernel, self.stride, self.left)

    def spans(self, size: Tensor | None) -> Spans:
        d = self.dilation
        start = (torch.arange(self.out, device=CPU) * self.stride - self.left).unsqueeze(0)
        skipped = torch.div((-start).clamp(min=0) + d - 1, d, rounding_mode="floor")
        first = start + skipped * d
        last = torch.tensor([[self.n]], device=CPU) if size is None else size.reshape(-1, 1)
        fitting = torch.div(last - 1 - first, d, rounding_mode="floor") + 1
        count = torch.minimum(fitting, self.kernel - skipped).clamp(min=0)
        return Spans(first.expand(count.shape), count, d)

    def table(self, device: torch.device) -> tuple[Tensor, Tensor]:
        if not is_tracing() and self.stride > self.n:
            return Table.of(self).table(device)
        here = self if is_tracing() else self._trimmed()
        taps = torch.arange(here.kernel, device=device) * here.dilation - here.left
        positions = (torch.arange(here.out, device=device) * here.stride).unsqueeze(-1) + taps
        exists = (positions >= 0) & (positions < here.n)
        return positions.clamp(min=0, max=here.n - 1), exists

    def seen(self, device: torch.device, windows: Tensor | None) -> Tensor | None:
        k, s, d = self.kernel, self.stride, self.dilation
        if windows is None and d == 1 and (s == 1 if is_tracing() else self._covers()):
            return None
        place = torch.arange(self.n, device=device).unsqueeze(0) + self.left
        last = self.out - 1 if windows is None else windows.to(device).reshape(-1, 1) - 1
        if d == 1:
            before_end = place < last * s + k
            return before_end if k >= s else before_end & (place % s < k)
        latest = torch.div(place, s, rounding_mode="floor").clamp(max=last)
        # of the windows whose taps can fall on that place, every `period`-th, the latest
        shared = math.gcd(s, d)
        period = d // shared
        first = torch.div(place, shared, rounding_mode="floor") * pow(s // shared, -1, period)
        latest = latest - (latest - first) % period
        return (place % shared == 0) & (latest >= 0) & (place - latest * s <= (k - 1) * d)

    def _covers(self) -> bool:
        """Tell whether every element lies in a window, of windows that are not dilated."""
        last = (self.out - 1) * self.stride - self.left
        return (self.kernel >= self.stride or self.out == 1) and self.left >= 0 and last + self.kernel >= self.n

    def centre(self, device: torch.device, upper: bool, size: Tensor | None) -> Tensor:
        start = torch.arange(self.out, device=device) * self.stride - self.left
        last = (self.n if size is None else size.reshape(-1, 1)) - 1
        return middle(start, last, self.kernel, self.dilation, upper).clamp(min=0, max=self.n - 1)


def middle(start: Tensor, last: Any, kernel: int, dilation: int, upper: bool) -> Tensor:
    """Where the middle tap of a window lies that begins at `start`, or the tap nearest to it that lies in 0 to `last`."""
    first = torch.div(dilation - 1 - start, dilation, rounding_mode="floor").clamp(min=0)
    final = torch.div(last - start, dilation, rounding_mode="floor").clamp(max=kernel - 1)
    tap = torch.minimum(first.clamp(min=(kernel - 1 + int(upper)) // 2), final)
    return start + tap * dilation


def _padded(part: Tensor, dim: int, left: int, right: int, value: float) -> Tensor:
    if not is_tracing() and left < 0:
        size = part.shape[dim]
        part, left, right = crop(part, dim, -left, size), 0, min(right, size + left + right)
    if not is_tracing() and left == 0 and right <= 0:
        return part if right == 0 else crop(part, dim, 0, part.shape[dim] + right)
    pad = [0, 0] * (part.dim() - 1 - dim) + [left, right]
    if part.dtype == torch.int64 and value < -(2**62):
        fill = torch.full((), -(2**63), dtype=torch.int64, device=part.device)
        inside = F.pad(torch.ones_like(part, dtype=torch.bool), pad, value=False)
        return torch.where(inside, F.pad(part, pad), fill)
    return F.pad(part, pad, value=value)


def _stepped(part: Tensor, dim: int, start: int, count: int, step: int) -> Tensor:
    """Return `count` elements of an axis from `start` on, `step` apart."""
    if not can_compare_sizes():  # a slice asks whether its end lies inside
        return part.index_select(dim, torch.arange(count, device=part.device) * step + start)
    if step == 1:
        return crop(part, dim, start, count)
    return part[(slice(None),) * dim + (slice(start, start + (count - 1) * step + 1, step),)]


def _merged(monoid: Monoid, states: list[State]) -> State:
    while len(states) > 1:
        pairs = [monoid.merge(states[i], states[i + 1]) for i in range(0, len(states) - 1, 2)]
        states = pairs + states[len(states) // 2 * 2 :]
    return states[0]


def _doubled(monoid: Monoid, state: State, dim: int, kernel: int, dilation: int, length: int) -> State:
    """Windows of `kernel` elements from each of the first `length` positions, in at most 2 log2(kernel) merges."""
    block, size, covered = state, 1, 0  # block: `size` elements from each position
    done: State | None = None  # done: the first `covered` elements of each window
    while True:
        if kernel & size:
            piece = tuple(crop(part, dim, covered * dilation, length) for part in block)
            done = piece if done is None else monoid.merge(done, piece)
            covered += size
            if covered == kernel:
                return done
        reach = block[0].shape[dim] - size * dilation
        early = tuple(crop(part, dim, 0, reach) for part in block)
        block = monoid.merge(early, tuple(crop(part, dim, size * dilation, reach) for part in block))
        size *= 2


@dataclass(frozen=True)
class Spread(Axis):
    """The transposed view of sliding windows: element j holds the windows that contain it."""

    windows: Slide

    @property
    def n(self) -> int:  # type: ignore[override]
        return self.windows.out

    @property
    def out(self) -> int:  # type: ignore[override]
        return self.windows.n

    def fold(self, monoid: Monoid, state: State, dim: int) -> State:
        w = self.windows
        grid = (w.out - 1) * w.stride + 1
        left = (w.kernel - 1) * w.dilation - w.left
        dense = Slide(grid, w.n, w.kernel, 1, w.dilation, left, max(w.n + w.left - grid, 0))
        if w.stride > 1:  # windows stand `stride` elements apart; nothing stands between them
            spread = [
                _padded(part.unsqueeze(dim + 1), dim + 1, 0, w.stride - 1, value)
                for part, value in zip(state, monoid.identity, strict=True)
            ]
            state = tuple(crop(reshape_axes(part, dim, (w.out * w.stride,), 2), dim, 0, grid) for part in spread)
        return dense._fold(monoid, state, dim)

    def transposed(self) -> Axis:
        return self.windows


@dataclass(frozen=True)
class Bins(Axis):
    """Adaptive bins: window i holds elements floor(i * n / out) to ceil((i + 1) * n / out) - 1."""

    n: int
    out: int

    def fold(self, monoid: Monoid, state: State, dim: int) -> State:
        if self.out == 1:
            return tuple(part.unsqueeze(dim) for part in monoid.over(state, dim))
        if not is_tracing():
            if self.n == 1:
                return tuple(part.expand(*part.shape[:dim], self.out, *part.shape[dim + 1 :]) for part in state)
            if self.n % self.out == 0:
                return monoid.over(tuple(reshape_axes(part, dim, (self.out, self.n // self.out)) for part in state), dim + 1)
        return Table(*self.table(state[0].device), self.n, self.out).fold(monoid, state, dim)

    def transposed(self) -> Axis:
        # j in [floor(i n / o), ceil((i + 1) n / o)) exactly when i in [floor(j o / n), ceil((j + 1) o / n))
        return Bins(self.out, self.n)

    @property
    def rule(self) -> Rule:
        return Rule(Rule.BINS)

    def spans(self, size: Tensor | None) -> Spans:
        number = torch.arange(self.out, device=CPU)
        return Spans.between(number * self.n // self.out, ((number + 1) * self.n + self.out - 1) // self.out, size)

    def table(self, device: torch.device) -> tuple[Tensor, Tensor]:
        number = torch.arange(self.out, device=device)
        start = number * self.n // self.out
        end = ((number + 1) * self.n + (self.out - 1)) // self.out
        positions = start.unsqueeze(-1) + torch.arange((self.n + self.out - 1) // self.out + 1, device=device)
        return positions.clamp(max=self.n - 1), positions < end.unsqueeze(-1)


@dataclass(frozen=True, eq=False)
class Table(Axis):
    """Windows listed element by element: positions ([N,] out, taps), with a row per sample where samples differ in size."""

    positions: Tensor
    exists: Tensor
    n: int
    out: int
    back: tuple[Tensor, Tensor] | None = None  # the transposed table; needed for gradients only
    middles: tuple[Tensor, Tensor] | None = None  # lower and upper, where they are not those of the elements that exist
    step: int = 1  # between the elements of a window

    @classmethod
    def of(cls, windows: Slide) -> Table:
        """Few windows far apart: every element is asked which of all windows it belongs to."""
        element, window = torch.arange(windows.n, device=CPU).unsqueeze(-1), torch.arange(windows.out, device=CPU)
        offset = element + windows.left - window * windows.stride
        inside = (offset >= 0) & (offset % windows.dilation == 0) & (offset <= (windows.kernel - 1) * windows.dilation)
        positions = element.squeeze(-1).expand(windows.out, -1)
        return cls(positions, inside.T, windows.n, windows.out, (window.expand(windows.n, -1), inside))

    def fold(self, monoid: Monoid, state: State, dim: int) -> State:
        device = state[0].device
        return monoid.over(
            tuple(
                _looked_up(part, dim, self.positions.to(device), self.exists.to(device), value)
                for part, value in zip(state, monoid.identity, strict=True)
            ),
            dim + 1,
        )

    def transposed(self) -> Axis:
        if self.back is None:
            raise NotImplementedError("this table of windows has no transposed table")
        return Table(*self.back, self.out, self.n, (self.positions, self.exists))

    def spans(self, size: Tensor | None) -> Spans:
        count = self.exists.sum(-1)
        start = self.positions.gather(-1, self.exists.to(torch.uint8).argmax(-1, keepdim=True)).squeeze(-1)
        if size is not None:
            size = size.reshape(-1, 1)
            count = torch.minimum(count, torch.div(size - 1 - start, self.step, rounding_mode="floor") + 1).clamp(min=0)
        shape = (-1, self.out)
        return Spans(start.reshape(shape).expand(count.reshape(shape).shape), count.reshape(shape), self.step)

    def seen(self, device: torch.device, windows: Tensor | None) -> Tensor | None:
        positions, exists = self.transposed().table(device)
        if windows is not None:
            exists = exists & (positions < windows.to(device).reshape(-1, 1, 1))
        return exists.any(-1).reshape(-1, self.n)

    def table(self, device: torch.device) -> tuple[Tensor, Tensor]:
        return self.positions.to(device), self.exists.to(device)

    def centre(self, device: torch.device, upper: bool, size: Tensor | None) -> Tensor:
        return super().centre(device, upper, size) if self.middles is None else self.middles[upper].to(device)


def _looked_up(part: Tensor, dim: int, positions: Tensor, exists: Tensor, value: float) -> Tensor:
    """part with `dim` replaced by (out, taps); taps that do not exist hold `value`."""
    out, taps = positions.shape[-2:]
    if positions.dim() == 2:
        found = reshape_axes(part.index_select(dim, positions.flatten()), dim, (out, taps))
        shape = [1] * dim + [out, taps] + [1] * (part.dim() - dim - 1)
    else:
        rows = positions.shape[0]
        part = part.expand(rows, *part.shape[1:])
        shape = [rows] + [1] * (dim - 1) + [out, taps] + [1] * (part.dim() - dim - 1)
        flat = positions.reshape(rows, *[1] * (dim - 1), out * taps, *[1] * (part.dim() - dim - 1))
        found = reshape_axes(
            part.gather(dim, flat.expand(*part.shape[:dim], out * taps, *part.shape[dim + 1 :])), dim, (out, taps)
        )
    if part.dtype == torch.int64 and value < -(2**62):
        return torch.where(exists.reshape(shape), found, torch.full((), -(2**63), dtype=torch.int64, device=part.device))
    return found.masked_fill(~exists.reshape(shape), value)


@dataclass(frozen=True)
class Run(Axis):
    """Running windows: window i holds every element up to i, or from i on with `reverse`, in the order they are met."""

    n: int
    reverse: bool = False

    LONGEST_EXPORT = 1 << 16  # an exported graph has a fixed number of doubling steps

    @property
    def out(self) -> int:  # type: ignore[override]
        return self.n

    def fold(self, monoid: Monoid, state: State, dim: int) -> State:
        step = 1
        while step < (self.n if can_compare_sizes() else self.LONGEST_EXPORT):
            moved = tuple(self._moved(part, dim, step, value) for part, value in zip(state, monoid.identity, strict=True))
            state = monoid.merge(moved, state)
            step *= 2
        return state

    def _moved(self, part: Tensor, dim: int, step: int, value: float) -> Tensor:
        if is_jit_tracing():
            place = torch.arange(self.n, device=part.device)
            taken = (place + step).clamp(max=self.n - 1) if self.reverse else (place - step).clamp(min=0)
            inside = place + step < self.n if self.reverse else place >= step
            return _looked_up(part, dim, taken.unsqueeze(-1), inside.unsqueeze(-1), value).squeeze(dim + 1)
        if self.reverse:
            return crop(_padded(part, dim, 0, step, value), dim, step, self.n)
        return crop(_padded(part, dim, step, 0, value), dim, 0, self.n)

    def transposed(self) -> Axis:
        return Run(self.n, not self.reverse)

    @property
    def rule(self) -> Rule:
        return Rule(Rule.FROM if self.reverse else Rule.UP_TO)

    def spans(self, size: Tensor | None) -> Spans:
        place = torch.arange(self.n, device=CPU)
        if self.reverse:
            return Spans.between(place, torch.full_like(place, self.n), size, run=2)
        spans = Spans.between(torch.zeros_like(place), place + 1, size, run=1)
        if size is not None:  # no window beyond a sample's end
            spans = replace(spans, count=torch.where(place < size.reshape(-1, 1), spans.count, 0))
        return spans

    def centre(self, device: torch.device, upper: bool, size: Tensor | None) -> Tensor:
        place = torch.arange(self.n, device=device)
        if not self.reverse:
            return (place + int(upper)) // 2
        last = (self.n if size is None else size.reshape(-1, 1)) - 1
        return (last - (last - place + int(upper)).clamp(min=0) // 2).clamp(max=self.n - 1)

    def table(self, device: torch.device) -> tuple[Tensor, Tensor]:
        order = torch.arange(self.n, device=device)
        number = order.flip(0) if self.reverse else order
        exists = (number <= order.unsqueeze(-1)) if not self.reverse else (number >= order.unsqueeze(-1))
        return number.expand(self.n, self.n), exists
