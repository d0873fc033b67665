"""Networks around a pooling, as users write them. Annotations are types here: torch.fx cannot pickle those that are text."""

from typing import Any

from torch import Tensor, nn

import everypool
from everypool import Boxes


class Pooling(nn.Module):
    """`everypool.pool` in a module, as users write it."""

    def __init__(self, reducer: Any, windows: Any) -> None:
        super().__init__()
        self.reducer, self.windows = reducer, windows

    def forward(self, x: Tensor) -> Any:
        return everypool.pool(x, self.reducer, self.windows)


class Masked(Pooling):
    def forward(self, x: Tensor, mask: Tensor) -> Any:
        return everypool.pool(x, self.reducer, self.windows, mask=mask, return_mask=True)


class Sized(Pooling):
    def forward(self, x: Tensor, sizes: Tensor) -> Any:
        return everypool.pool(x, self.reducer, self.windows, sizes=sizes)


class SizedLayer(nn.Module):
    """A layer that is given sizes."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor, sizes: Tensor) -> Any:
        return self.layer(x, sizes=sizes)


class Function(nn.Module):
    """A function of everypool in a module."""

    def __init__(self, name: str, *settings: Any) -> None:
        super().__init__()
        self.name, self.settings = name, settings

    def forward(self, x: Tensor) -> Any:
        return getattr(everypool, self.name)(x, *self.settings)


class BoxFunction(Function):
    def forward(self, x: Tensor, boxes: Tensor) -> Any:
        return getattr(everypool, self.name)(x, boxes, *self.settings)


class InBoxes(nn.Module):
    def __init__(self, reducer: str) -> None:
        super().__init__()
        self.reducer = reducer

    def forward(self, x: Tensor, boxes: Tensor) -> Any:
        return everypool.pool(x, self.reducer, Boxes(boxes, 2))


class Fronted(nn.Module):
    """A network's end: a convolution and the subject."""

    def __init__(self, front: nn.Module, body: nn.Module) -> None:
        super().__init__()
        self.front, self.body = front, body

    def forward(self, x: Tensor) -> Any:
        return self.body(self.front(x))


class FrontedWithMore(Fronted):
    """The same where the subject takes a mask, sizes, boxes or indices."""

    def forward(self, x: Tensor, other: Tensor) -> Any:
        return self.body(self.front(x), other)


class FrontedLevels(Fronted):
    """The same where the subject takes two levels."""

    def forward(self, x: list[Tensor], other: Tensor) -> Any:
        return self.body([self.front(x[0]), x[1]], other)
