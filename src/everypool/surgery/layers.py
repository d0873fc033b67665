"""What a swap puts around a pooling: other axes, a scale, a blur before a convolution."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from everypool.module import PoolingModule, describe_setting, keep_start

__all__ = ["BLURRED", "BlurConv1d", "BlurConv2d", "BlurConv3d", "OverAxes", "Scaled"]


class OverAxes(PoolingModule):
    """A global pooling over any axes, such as those of (N, H, W, C), (N, tokens, C) or (tokens, N, C).

    Args:
        pool: takes (N, C, *spatial) and gives (N, C).
        axes: those that are pooled, in order.
        keepdim: whether they stay, of size 1.
        batch: the axis of samples.

    >>> OverAxes(everypool.GlobalMaxPool(), (1,))(torch.tensor([[[1.0, 4.0], [2.0, 3.0]]]))
    tensor([[2., 4.]])
    """

    def __init__(self, pool: nn.Module, axes: tuple[int, ...], keepdim: bool = False, batch: int = 0) -> None:
        super().__init__()
        self.pool = pool
        self.axes, self.keepdim, self.batch = axes, keepdim, batch

    def forward(self, input: Tensor) -> Tensor:
        others = [axis for axis in range(input.dim()) if axis not in self.axes and axis != self.batch]
        x = input.permute(self.batch, *others, *self.axes)
        kept = x.shape[1 : 1 + len(others)]
        x = x.flatten(1, len(others)) if len(others) > 1 else x
        output: Tensor = self.pool(x)
        output = output.unflatten(1, kept) if len(others) > 1 else output
        output = output.movedim(0, sum(axis < self.batch for axis in others))
        for axis in self.axes if self.keepdim else ():
            output = output.unsqueeze(axis)
        return output

    def extra_repr(self) -> str:
        return f"axes={self.axes}, keepdim={self.keepdim}" + f", batch={self.batch}" * bool(self.batch)


class Scaled(PoolingModule):
    """A pooling times a number that was fitted to what stood there before.

    >>> Scaled(everypool.MaxPool1d(2), 0.5)(torch.tensor([[[1.0, 4.0]]]))
    tensor([[[2.]]], grad_fn=<MulBackward0>)
    """

    def __init__(self, pool: nn.Module, scale: float = 1.0) -> None:
        super().__init__()
        self.pool = pool
        self.scale = nn.Parameter(torch.tensor(float(scale)))
        keep_start(self, "scale", scale)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        output: Tensor = self.pool(*args, **kwargs)
        return output * self.scale.to(output.dtype)

    def extra_repr(self) -> str:
        return f"scale={describe_setting(self.scale)}"


class _BlurConv(nn.Module):
    """A convolution that is given what `blur` has smoothed and made smaller; its weights keep their names."""

    blur: nn.Module

    def forward(self, input: Tensor) -> Tensor:
        output: Tensor = super().forward(self.blur(input))
        return output


class BlurConv1d(_BlurConv, nn.Conv1d):
    """Blur, then convolve (N, C, W)."""


class BlurConv2d(_BlurConv, nn.Conv2d):
    """Blur, then convolve (N, C, H, W)."""


class BlurConv3d(_BlurConv, nn.Conv3d):
    """Blur, then convolve (N, C, D, H, W)."""


BLURRED: dict[type[nn.Module], type[nn.Module]] = {nn.Conv1d: BlurConv1d, nn.Conv2d: BlurConv2d, nn.Conv3d: BlurConv3d}
