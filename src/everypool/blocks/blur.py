"""Anti-aliased downsampling: a blur before every so many elements are kept, with a maximum in front of it or without."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from everypool import _check as check
from everypool.backends import counter
from everypool.backends.context import is_tracing
from everypool.backends.layout import prefix_mask
from everypool.blocks._spatial import SlidingBlock, SpatialBlock, wide
from everypool.pool import Operation, apply, register
from everypool.reducers import Max
from everypool.windows import Sliding
from everypool.windows._between import Between

__all__ = ["BlurPool1d", "BlurPool2d", "BlurPool3d", "MaxBlurPool1d", "MaxBlurPool2d", "MaxBlurPool3d"]

PADDINGS = ("reflect", "replicate", "circular", "zeros")


def checked_taps(name: str, value: Any, nd: int) -> tuple[int, ...]:
    """The number of taps along each axis."""
    taps = check.ints(name, value, nd, 1)
    if max(taps) > 7:
        raise check.invalid(name, "of 1 to 7 taps", value)
    return taps


def binomial(taps: int) -> list[float]:
    """The filter of so many taps along one axis, of sum 1; its weights are exact in every type."""
    return [math.comb(taps - 1, t) / 2 ** (taps - 1) for t in range(taps)]


def source(mode: str, position: Any, n: Any) -> Any:
    """Which of n elements stands at a position before or behind them; ints, or tensors where samples differ in n."""
    largest, least = (torch.maximum, torch.minimum) if isinstance(n, Tensor) else (max, min)
    if mode == "circular":
        return position % n
    one = n * 0 + 1
    if mode == "replicate":
        return least(largest(position, one - 1), n - 1)
    period = largest(2 * n - 2, one)  # to the last element and back to the first
    return least(position % period, -position % period)


def taken(x: Tensor, dim: int, place: Any) -> Tensor:
    """The slice of x at a place along `dim`: the same for all samples, or one per sample.

    One slice at a time: no element is then taken twice at once, so the gradient is the same bits on every device.
    """
    if not isinstance(place, Tensor):
        return x.narrow(dim, place, 1)
    if place.dim() == 1:
        return x.index_select(dim, place)
    return x.gather(dim, place.expand(*x.shape[:dim], 1, *x.shape[dim + 1 :]))


def bordered(x: Tensor, dim: int, left: int, right: int, mode: str, size: Tensor | None, fill: float) -> Tensor:
    """x with a border along `dim`; with `size` (N,) the right one follows each sample's own last element."""
    if right == 0:
        return x
    n = x.shape[dim]
    place = torch.arange(n + right, device=x.device).reshape(-1, *[1] * (x.dim() - 1 - dim))
    behind = [0, 0] * (x.dim() - 1 - dim) + [0, right]
    own = None if size is None else size.reshape(-1, *[1] * (x.dim() - 1))
    if mode == "zeros":
        x = F.pad(x, behind, value=fill)
        x = x if own is None else torch.where(place < own, x, fill)
        return F.pad(x, [0, 0] * (x.dim() - 1 - dim) + [left, 0], value=fill)
    end: Any = own
    if own is None:  # a recorded graph must not branch on n
        end = torch.full((1,), n, device=x.device) if is_tracing() else n
    before = [taken(x, dim, source(mode, end * 0 - i, end)) for i in range(left, 0, -1)]
    after = [taken(x, dim, source(mode, end + i, end)) for i in range(right)]
    if own is None:
        return torch.cat([*before, x, *after], dim)
    x = F.pad(x, behind)
    for i, part in enumerate(after):
        x = torch.where(place == own + i, part, x)
    return torch.cat([*before, x], dim)


def smoothed(
    x: Tensor, taps: tuple[int, ...], stride: tuple[int, ...], mode: str, sizes: Tensor | None, fill: float = 0.0
) -> Tensor:
    """The filtered elements at 0, stride, 2 * stride, ..., axis by axis; zero padding holds `fill`."""
    for axis in reversed(range(len(taps))):
        dim, number, n = 2 + axis, taps[axis], x.shape[2 + axis]
        own = None if sizes is None else sizes[:, axis]
        x = bordered(x, dim, (number - 1) // 2, number // 2, mode, own, fill)
        parts = [x[(slice(None),) * dim + (slice(t, t + n, stride[axis]),)] for t in range(number)]
        weights = binomial(number)
        x = parts[0] * weights[0]
        for part, weight in zip(parts[1:], weights[1:], strict=True):
            x = torch.add(x, part, alpha=weight)
    return x


def blurred(
    x: Tensor, taps: tuple[int, ...], stride: tuple[int, ...], mode: str, mask: Tensor | None, sizes: Tensor | None
) -> Tensor:
    """The blur of (N, C, *spatial) over what is valid, in the type that is computed in; 0 where nothing is.

    torch's counter of operations is told of it: a multiplication for every weight of the whole filter, and their sum.
    """
    y = blur_of(x, taps, stride, mode, mask, sizes)
    if not counter.listening():
        return y
    cells = math.prod(taps)
    return counter.told([y], y.numel() * (2 * cells - 1), y.numel() * 2 * cells)[0]


def blur_of(
    x: Tensor, taps: tuple[int, ...], stride: tuple[int, ...], mode: str, mask: Tensor | None, sizes: Tensor | None
) -> Tensor:
    values = wide(x)
    if mask is None:
        y = smoothed(values, taps, stride, mode, sizes)
    else:
        ones = mask.to(values.dtype)
        weight = smoothed(ones, taps, stride, mode, sizes, fill=1.0)  # zeros of the padding are values
        exists = (weight if mode != "zeros" else smoothed(ones, taps, stride, mode, sizes)) > 0
        y = smoothed(values.masked_fill(~mask, 0), taps, stride, mode, sizes)
        y = torch.where(exists, y / weight.masked_fill(~exists, 1), 0)
    if sizes is None:
        return y
    pairs = tuple(((n - 1) // 2, n // 2) for n in taps)
    own = Sliding(taps, stride, pairs).layouts(tuple(x.shape[2:]), sizes)[0].out_sizes
    return y if own is None else y.masked_fill(~prefix_mask(own, tuple(y.shape[2:])), 0)


def drop_filter(state_dict: dict[str, Any], key: str, taps: tuple[int, ...], name: str, errors: list[str]) -> None:
    """Take out the filter of a blur, which is a buffer elsewhere, and say so where another one is computed with here.

    Args:
        state_dict: what is loaded.
        key: of the filter, (channels or 1, 1, *taps), the same for all channels.
        taps: the module's own, along every axis.
        name: the setting that they come from.
        errors: what went wrong so far.
    """
    given = state_dict.pop(key, None)
    if given is None:
        return
    own = torch.ones((), dtype=torch.float64)
    for number in taps:
        own = own[..., None] * torch.tensor(binomial(number), dtype=own.dtype)
    if tuple(given.shape[2:]) != taps:
        errors.append(f"`{name}` must be {tuple(given.shape[2:])} for the filter at {key!r}, got {taps}")
    elif not given.is_meta and not torch.allclose(given.to("cpu", own.dtype), own.expand(given.shape), rtol=0, atol=1e-3):
        errors.append(f"`{key}` must be the binomial filter, which is the only one here, got {check.shown(given)}, another")


class _BlurPool(SpatialBlock):
    def __init__(self, kernel_size: Any = 3, stride: Any = 2, *, padding_mode: str = "reflect") -> None:
        super().__init__()
        self.kernel_size, self.stride = check.plain(kernel_size), check.plain(stride)
        checked_taps("kernel_size", self.kernel_size, self.nd)
        check.ints("stride", self.stride, self.nd, 1)
        self.padding_mode = check.choice("padding_mode", padding_mode, PADDINGS)

    def compute(self, x: Tensor, mask: Tensor | None, sizes: Tensor | None) -> Tensor:
        taps, stride = checked_taps("kernel_size", self.kernel_size, self.nd), check.ints("stride", self.stride, self.nd, 1)
        return blurred(x, taps, stride, self.padding_mode, mask, sizes)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
        taps = checked_taps("kernel_size", self.kernel_size, self.nd)
        drop_filter(state_dict, f"{prefix}filt", taps, "kernel_size", arguments[-1])
        super()._load_from_state_dict(state_dict, prefix, *arguments)

    def extra_repr(self) -> str:
        return f"kernel_size={self.kernel_size}, stride={self.stride}, padding_mode={self.padding_mode!r}"


class BlurPool1d(_BlurPool):
    """Blurred subsampling of (N, C, W) or (C, W); see `BlurPool2d`.

    >>> BlurPool1d()(torch.tensor([[[0.0, 4.0, 0.0, 0.0, 8.0]]]))
    tensor([[[2., 1., 4.]]])
    """

    nd = 1


class BlurPool2d(_BlurPool):
    """Blurred subsampling: what a stride leaves out is first spread over its neighbours.

    y[i] = sum(w[t] * x[i * stride - (k - 1) // 2 + t]) over t < k, per axis, w the binomial filter of k taps: [1, 2, 1] / 4
    for 3, [1, 3, 3, 1] / 8 for 4. All channels alike, nothing is learned.

    Args:
        kernel_size: taps of the filter, 1 to 7, one int or one per axis. With 1 nothing is blurred.
        stride: step in elements, one int or one per axis.
        padding_mode: what stands in the border of (k - 1) // 2 elements before the map and k // 2 behind it. "reflect":
            the map mirrored at its first and last element, to and fro where it is smaller than the border, as in
            numpy.pad; a single element repeats. "replicate": the nearest element. "circular": the other end. "zeros".

    Shape: (N, C, H, W) or (C, H, W) to ceil(n / stride) per axis. With `sizes` every sample has its own border, and gives
        what it gives alone; with `mask` the weights of what is masked are dropped and the others scaled to a sum of 1.

    Returns:
        The same type and memory layout as the input; half types are added up in float32.

    Raises:
        ValueError: a filter of more than 7 taps, or an unknown padding mode.
        TypeError: an input that is not floating point.

    Source: Zhang 2019, Making convolutional networks shift-invariant again.

    >>> BlurPool2d()(torch.eye(3).reshape(1, 1, 3, 3))
    tensor([[[[0.5000, 0.2500],
              [0.2500, 0.5000]]]])
    """

    nd = 2


class BlurPool3d(_BlurPool):
    """Blurred subsampling of (N, C, D, H, W) or (C, D, H, W); see `BlurPool2d`.

    >>> BlurPool3d(4)(torch.ones(1, 2, 5, 6, 7)).shape
    torch.Size([1, 2, 3, 3, 4])
    """

    nd = 3


class _MaxBlurPool(SlidingBlock):
    def __init__(
        self,
        kernel_size: Any = 2,
        stride: Any = None,
        padding: Any = 0,
        dilation: Any = 1,
        *,
        ceil_mode: bool = False,
        filter_size: Any = 3,
        padding_mode: str = "reflect",
    ) -> None:
        super().__init__()
        self.place(kernel_size, stride, padding, dilation, ceil_mode)
        self.filter_size = check.plain(filter_size)
        checked_taps("filter_size", self.filter_size, self.nd)
        self.padding_mode = check.choice("padding_mode", padding_mode, PADDINGS)

    @property
    def windows(self) -> Between:
        return Between(self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode)

    def compute(self, x: Tensor, mask: Tensor | None, sizes: Tensor | None) -> Tensor:
        windows, taps = self.windows, checked_taps("filter_size", self.filter_size, self.nd)
        _, stride, dilation, _, _ = windows.checked(self.nd)
        own = None if sizes is None else windows.layouts(tuple(x.shape[2:]), sizes)[0].out_sizes
        if mask is None and all(d == 1 for d in dilation):
            y, exists = apply(x, Max(), windows, nd=self.nd, sizes=sizes), None
        else:  # taps that are masked, or that jump over the map, may leave a window empty
            y, exists = apply(x, Max(), windows, nd=self.nd, mask=mask, sizes=sizes, return_mask=True)
            exists = exists[:, :1] if mask is None or mask.shape[1] == 1 else exists
        return blurred(y, taps, stride, self.padding_mode, exists, own)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
        taps = checked_taps("filter_size", self.filter_size, self.nd)
        for key in ("filt", "1.filt"):  # alone, and behind the maximum in a sequence
            drop_filter(state_dict, prefix + key, taps, "filter_size", arguments[-1])
        super()._load_from_state_dict(state_dict, prefix, *arguments)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, filter_size={self.filter_size}, padding_mode={self.padding_mode!r}"


class MaxBlurPool1d(_MaxBlurPool):
    """Max pooling of (N, C, W) or (C, W) with a blur before its stride; see `MaxBlurPool2d`.

    >>> MaxBlurPool1d(2)(torch.tensor([[[0.0, 4.0, 0.0, 0.0, 8.0]]]))
    tensor([[[4., 3.]]])
    """

    nd = 1


class MaxBlurPool2d(_MaxBlurPool):
    """Max pooling with a blur before its stride, in place of torch.nn.MaxPool2d of the same arguments.

    y = blur(max(x, stride 1), stride): the largest value of the windows at every position, see `BlurPool2d` for the blur.

    The maxima reach from the first to the last window of the max pooling, in `ceil_mode` too, where they run over the end
    as far as it does, so the result has the same size for every input, and equals it where `filter_size` is 1. The blur's
    border lies around the maxima.

    Args:
        kernel_size: window extent in elements, one int or one per axis.
        stride: step in elements. Default: kernel_size.
        padding: empty elements added on both sides, as in `max_pool`; with "same" the blur keeps ceil(n / stride).
        dilation: distance in elements between window elements.
        ceil_mode: keep a last window that starts inside the input but runs over its end.
        filter_size: taps of the blur, 1 to 7, one int or one per axis.
        padding_mode: the blur's border, see `BlurPool2d`.

    Shape: (N, C, H, W) or (C, H, W), to what torch.nn.MaxPool2d gives. With `sizes` every sample gives what it gives
        alone; with `mask` maxima of nothing are left out of the blur.

    Returns:
        The same type and memory layout as the input.

    Raises:
        ValueError: a size breaks its rule, or the window does not fit.
        TypeError: an input that is not floating point.

    Source: Zhang 2019, Making convolutional networks shift-invariant again.

    >>> x = torch.rand(1, 8, 56, 57)
    >>> MaxBlurPool2d(3, 2, 1)(x).shape == nn.MaxPool2d(3, 2, 1)(x).shape
    True
    """

    nd = 2


class MaxBlurPool3d(_MaxBlurPool):
    """Max pooling of (N, C, D, H, W) or (C, D, H, W) with a blur before its stride; see `MaxBlurPool2d`.

    >>> MaxBlurPool3d(2)(torch.ones(1, 2, 5, 6, 7)).shape
    torch.Size([1, 2, 2, 3, 3])
    """

    nd = 3


register(
    Operation(
        name="blur_pool",
        kind="block",
        summary="Every so many elements of a map blurred by a binomial filter, which a shift changes less.",
        formula="y[i] = sum(w[t] x[s i + t])",
        source="Zhang 2019",
        names=("BlurPool1d", "BlurPool2d", "BlurPool3d"),
        aliases=("blur",),
        sample=lambda: (BlurPool2d(), (torch.randn(2, 8, 6, 5),)),
    )
)
register(
    Operation(
        name="max_blur_pool",
        kind="block",
        summary="The maxima of the windows at every position, blurred before a stride picks some.",
        formula="y = blur(max(x, stride 1), stride)",
        source="Zhang 2019",
        names=("MaxBlurPool1d", "MaxBlurPool2d", "MaxBlurPool3d"),
        sample=lambda: (MaxBlurPool2d(3, 2, 1), (torch.randn(2, 8, 6, 5),)),
    )
)
