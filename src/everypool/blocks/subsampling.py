"""LeNet's subsampling: the sum of each window, scaled and shifted by what every map learns."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from everypool import _check as check
from everypool.blocks._map_block import of_channels
from everypool.module import PoolingModule
from everypool.pool import Operation, apply, register
from everypool.reducers import Mean
from everypool.windows import Sliding

__all__ = ["LeNetSubsampling"]


class LeNetSubsampling(PoolingModule):
    """LeNet-5's trainable subsampling.

    y = f(weight * sum(x) + bias), one weight and one bias per map, f(a) = 1.7159 tanh(2 a / 3).

    Args:
        channels: C of the input.
        kernel_size: window extent in elements, one int or one per axis.
        stride: step in elements. Default: kernel_size.
        activation: "tanh" for f as published, "sigmoid", or None.

    Shape: (N, C, *spatial) to (N, C, *out), one to three spatial axes. Parameters: 2 C.

    Raises:
        ValueError: an input of other channels, or a window that does not fit.
        TypeError: an input that is not floating point.

    Source: LeCun et al. 1998, Gradient-based learning applied to document recognition.

    >>> LeNetSubsampling(6)(torch.ones(1, 6, 28, 28)).shape
    torch.Size([1, 6, 14, 14])
    """

    def __init__(self, channels: int, kernel_size: Any = 2, stride: Any = None, *, activation: str | None = "tanh") -> None:
        super().__init__()
        self.channels = check.positive_int("channels", channels)
        self.kernel_size, self.stride = kernel_size, stride
        nd = len(kernel_size) if isinstance(kernel_size, (list, tuple)) else 1
        Sliding(kernel_size, stride).checked(nd)
        if activation is not None:
            check.choice("activation", activation, ("tanh", "sigmoid"))
        self.activation = activation
        self.weight = nn.Parameter(torch.empty(channels))
        self.bias = nn.Parameter(torch.empty(channels))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Uniform within 2.4 over the number of inputs, as published (for the square of a plain int)."""
        inputs = 1
        for n in self.kernel_size if isinstance(self.kernel_size, (list, tuple)) else (self.kernel_size,) * 2:
            inputs *= n
        nn.init.uniform_(self.weight, -2.4 / inputs, 2.4 / inputs)
        nn.init.uniform_(self.bias, -2.4 / inputs, 2.4 / inputs)

    def forward(self, input: Tensor, mask: Tensor | None = None, sizes: Any = None) -> Tensor:
        """Subsample (N, C, *spatial); what is masked adds nothing, a window of nothing else gives 0."""
        check.floating("input", of_channels("input", check.batched("input", input), self.channels))  # sums of bytes would wrap
        windows = Sliding(self.kernel_size, self.stride)
        # a sum of float16 overflows where its weighted value need not: there the mean, and weights as much larger
        cells = math.prod(windows.checked(input.dim() - 2)[0]) if input.dtype == torch.float16 else 1
        total, exists = apply(input, Mean(divisor=cells), windows, nd=None, mask=mask, sizes=sizes, return_mask=True)
        shape, wide = (-1, *[1] * (input.dim() - 2)), torch.promote_types(total.dtype, torch.float32)
        weight, bias = (parameter.to(wide).reshape(shape) for parameter in (self.weight, self.bias))
        result: Tensor = weight * cells * total + bias
        if self.activation == "tanh":
            result = 1.7159 * torch.tanh(result * (2 / 3))
        elif self.activation == "sigmoid":
            result = torch.sigmoid(result)
        result = result.to(torch.promote_types(total.dtype, self.weight.dtype))
        return result if mask is None and sizes is None else result.masked_fill(~exists, 0)

    def extra_repr(self) -> str:
        return f"{self.channels}, kernel_size={self.kernel_size}, stride={self.stride}, activation={self.activation!r}"


register(
    Operation(
        name="lenet_subsampling",
        kind="block",
        summary="The sum of each window, scaled and shifted by what every map learns.",
        formula="y = f(weight * sum(x) + bias)",
        source="LeCun et al. 1998",
        names=("LeNetSubsampling",),
        parameters="2 C",
        sample=lambda: (LeNetSubsampling(8), (torch.randn(2, 8, 6, 6),)),
    )
)
