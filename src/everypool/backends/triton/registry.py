"""Operators that torch knows, so that graphs hold fused kernels whole; Triton is imported when one first runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from everypool.backends.layout import LAST, in_pixels

__all__ = ["define", "laid_out", "present", "there"]

_LIBRARY = torch.library.Library("everypool", "FRAGMENT")  # operators live as long as this does


def define(name: str, schema: str, body: Callable[..., Any], fake: Callable[..., Any]) -> None:
    """An operator `everypool::name`: at import, since while a graph is recorded nothing can be defined.

    `body` computes, `fake` makes results of the same shapes, types and memory formats without values.
    """
    _LIBRARY.define(name + schema)
    _LIBRARY.impl(name, body, "CPU")  # in the interpreter
    _LIBRARY.impl(name, body, "CUDA")
    torch.library.register_fake(f"everypool::{name}", fake, lib=_LIBRARY)


def laid_out(like: Tensor, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Fresh memory in the format of `like`."""
    form = LAST[like.dim()] if in_pixels(like) else torch.contiguous_format
    return torch.empty(tuple(shape), dtype=dtype, device=like.device, memory_format=form)


def present(parts: Sequence[Tensor | None], like: Tensor) -> list[Tensor]:
    """An operator's list holds tensors only: an empty one stands for none."""
    return [like.new_empty(0) if part is None else part for part in parts]


def there(parts: Sequence[Tensor | None]) -> list[Tensor | None]:
    """The other way round."""
    return [None if part is None or part.dim() == 1 else part for part in parts]
