"""A pooling as a module: what all layers share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

from torch import Tensor

from everypool.module import PoolingModule
from everypool.pool import Reducer, Windows, apply

__all__ = ["Layer", "Made", "WindowLayer"]

Made = tuple[Callable[..., Any], tuple[Any, ...]]  # a reducer or windows: what makes it, and of what


class Layer(PoolingModule):
    """A pooling as a module."""

    nd: ClassVar[int | None] = None

    settle: Callable[..., None]  # takes the operation's own keyword arguments

    @classmethod
    def find_settings(cls) -> Callable[..., Any] | None:
        return getattr(cls, "settle", None)

    def settings(self) -> str:
        """The operation's own settings, for repr."""
        return ""


class WindowLayer(Layer):
    """A reducer over windows, both of which are attributes."""

    @property
    @abstractmethod
    def reducer(self) -> Reducer:
        """The reducer, made of the current settings."""

    @property
    @abstractmethod
    def windows(self) -> Windows:
        """The windows, made of the current settings."""

    def forward(self, input: Any, mask: Tensor | None = None, sizes: Any = None) -> Any:
        """Pool (N, C, *spatial), or (C, *spatial) where the number of axes is known; mask and sizes as in `everypool.pool`."""
        return apply(input, self.reducer, self.windows, nd=self.nd, mask=mask, sizes=sizes)
