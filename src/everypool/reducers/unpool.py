"""Unpooling by switches: values go back to where max pooling found them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from everypool import _check as check
from everypool._overrides import handle_overrides
from everypool.backends.context import can_read_values
from everypool.backends.layout import add_batch_axis
from everypool.module import PoolingModule
from everypool.pool import Operation, finished, register
from everypool.pool.shards import refuse_shards

__all__ = ["MaxUnpool1d", "MaxUnpool2d", "MaxUnpool3d", "max_unpool"]

OVERLAPS = ("last", "add")


@handle_overrides
def max_unpool(
    input: Tensor,
    indices: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    output_size: Any = None,
    *,
    overlap: str = "last",
    nd: int | None = None,
) -> Tensor:
    """Put every value at the position its index names, and zeros elsewhere.

    y = 0; y[indices[i]] = x[i].

    Args:
        input: (N, C, *spatial), or (C, *spatial) where `nd` or a tuple as `kernel_size` says how many axes these are.
        indices: like input, int64: flat positions in the output's plane, as `max_pool(..., return_indices=True)` gives
            them; -1 is nowhere.
        kernel_size: of the pooling that is undone.
        stride: of that pooling. Default: kernel_size.
        padding: of that pooling.
        output_size: the size to restore, when several fit; per axis within a stride of (i - 1) * stride - 2 * padding +
            kernel_size, the default.
        overlap: where windows overlapped and two values name one position: "last" keeps the last in row-major order,
            and only it gets the gradient; "add" sums them.
        nd: number of spatial axes, which tells (C, *spatial) from a batch.

    Returns:
        (N, C, *output_size), same type as input.

    Raises:
        ValueError: indices unlike the input or out of range, or an output size that does not fit.
        TypeError: indices that are not int64.

    Source: Zeiler and Fergus 2014. Reference: torch.nn.functional.max_unpool2d, away from repeated positions.

    >>> max_unpool(torch.tensor([[[3.0, 4.0]]]), torch.tensor([[[1, 2]]]), 2)
    tensor([[[0., 3., 4., 0.]]])
    """
    tuples = isinstance(kernel_size, (list, tuple)) and len(kernel_size) > 1
    axes = len(kernel_size) if tuples and nd is None else check.axes(nd)
    return _unpooled(input, indices, kernel_size, stride, padding, output_size, overlap, axes)


def _unpooled(
    input: Tensor, indices: Tensor, kernel_size: Any, stride: Any, padding: Any, output_size: Any, overlap: str, nd: int | None
) -> Tensor:
    check.choice("overlap", overlap, OVERLAPS)
    refuse_shards("input", input, indices)
    if not isinstance(indices, Tensor) or indices.dtype != torch.int64:
        raise check.wrong_type("indices", "an int64 tensor", indices)
    single = isinstance(input, Tensor) and nd is not None and input.dim() == nd + 1
    x = check.batched("input", add_batch_axis(input) if single else input, nd)
    nd = x.dim() - 2
    if indices.layout != torch.strided:
        raise check.wrong_type("indices", "a dense (strided) tensor", check.Shown(f"layout {indices.layout}"))
    if 0 in x.shape[2:]:
        raise check.invalid("input", "non-empty in every spatial axis", x)
    if indices.shape != input.shape or indices.device != input.device:
        raise check.invalid("indices", f"like the input, {tuple(input.shape)} on {input.device}", indices)
    where = indices.reshape(x.shape)
    kernel = check.ints("kernel_size", kernel_size, nd, 1)
    stride = kernel if stride is None else check.ints("stride", stride, nd, 1)
    padding = check.ints("padding", padding, nd, 0)
    usual = tuple((n - 1) * s - 2 * p + k for n, s, p, k in zip(x.shape[2:], stride, padding, kernel, strict=True))
    size = usual
    if output_size is not None:
        wanted = tuple(output_size) if isinstance(output_size, (list, tuple, torch.Size)) else output_size
        if isinstance(wanted, tuple) and len(wanted) in (nd + 1, nd + 2):
            wanted = wanted[-nd:]
        size = check.ints("output_size", wanted, nd, 1)
        if any(not u - s < o < u + s for o, u, s in zip(size, usual, stride, strict=True)):
            raise check.invalid("output_size", f"within a stride of {usual}", output_size)
    cells = 1
    for n in size:
        if n < 1:
            raise check.invalid("output_size", "positive", check.Shown(str(size)))
        cells *= n
    if cells > max(1 << 27, 64 * x[:1, :1].numel()):
        raise check.invalid("output_size", "at most 2**27 cells", check.Shown(str(size)))
    if can_read_values(where) and where.numel() and bool(((where < -1) | (where >= cells)).any()):
        rule = f"between -1 and {cells - 1}, the last cell of {size}"
        raise check.invalid("indices", rule, check.Shown(f"{int(where.min())} to {int(where.max())}"))
    flat, where = x.flatten(2), where.flatten(2)
    where = torch.where(where < 0, cells, where)  # a cell beyond the last takes what has no place
    if overlap == "add":
        y = flat.new_zeros((*flat.shape[:2], cells + 1)).scatter_add(2, where, flat)
    else:
        order = torch.arange(flat.shape[2], device=x.device).expand(flat.shape)
        writer = torch.full((*flat.shape[:2], cells + 1), -1, device=x.device).scatter_reduce(2, where, order, "amax")
        y = flat.gather(2, writer.clamp(min=0)).masked_fill(writer < 0, 0)
    y = finished(y[..., :cells].unflatten(2, size), x)
    return y.squeeze(0) if single else y


class _MaxUnpool(PoolingModule):
    nd = 0

    def __init__(self, kernel_size: Any, stride: Any = None, padding: Any = 0, *, overlap: str = "last") -> None:
        super().__init__()
        check.ints("kernel_size", kernel_size, self.nd, 1)
        self.kernel_size = kernel_size
        self.stride = kernel_size if stride is None else stride
        self.padding = padding
        check.ints("stride", self.stride, self.nd, 1)
        check.ints("padding", padding, self.nd, 0)
        self.overlap = check.choice("overlap", overlap, OVERLAPS)

    def forward(self, input: Tensor, indices: Tensor, output_size: Any = None) -> Tensor:
        """Unpool (N, C, *spatial) or (C, *spatial)."""
        return _unpooled(input, indices, self.kernel_size, self.stride, self.padding, output_size, self.overlap, self.nd)

    def extra_repr(self) -> str:
        return f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}, overlap={self.overlap!r}"


class MaxUnpool1d(_MaxUnpool):
    """Put values back where `MaxPool1d(return_indices=True)` found them; see `max_unpool`."""

    nd = 1


class MaxUnpool2d(_MaxUnpool):
    """Put values back where `MaxPool2d(return_indices=True)` found them; see `max_unpool`."""

    nd = 2


class MaxUnpool3d(_MaxUnpool):
    """Put values back where `MaxPool3d(return_indices=True)` found them; see `max_unpool`."""

    nd = 3


register(
    Operation(
        name="max_unpool",
        kind="windows",
        summary="Values go back to where max pooling found them, zeros elsewhere.",
        formula="y = 0; y[indices[i]] = x[i]",
        source="Zeiler and Fergus 2014",
        names=tuple(__all__),
        dtypes="any",
        mask=False,
        sample=lambda: (MaxUnpool1d(2), (torch.tensor([[[3.0, 4.0]]]), torch.tensor([[[1, 2]]]))),
    )
)
