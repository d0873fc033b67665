"""Operators that torch knows, so that graphs hold fused kernels whole; Triton is imported when one first runs."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from everypool.backends.context import is_tracing
from everypool.backends.layout import LAST, in_pixels

__all__ = ["INSTALLED", "TYPES", "define", "direct", "laid_out", "on", "present", "there"]

INSTALLED = importlib.util.find_spec("triton") is not None
TYPES = (torch.float32, torch.float16, torch.bfloat16)

_LIBRARY = torch.library.Library("everypool", "FRAGMENT")  # operators live as long as this does


def define(name: str, schema: str, body: Callable[..., Any], fake: Callable[..., Any]) -> None:
    """An operator `everypool::name`: at import, since while a graph is recorded nothing can be defined; with Triton alone.

    `body` computes, on the device of its first argument; `fake` makes results of the same shapes, types and memory formats
    without values.
    """

    if not INSTALLED:
        return

    @functools.wraps(body)
    def placed(x: Tensor, *others: Any) -> Any:
        with on(x):
            return body(x, *others)

    _LIBRARY.define(name + schema)
    _LIBRARY.impl(name, body, "CPU")  # in the interpreter
    _LIBRARY.impl(name, placed, "CUDA")
    torch.library.register_fake(f"everypool::{name}", fake, lib=_LIBRARY)


def on(x: Tensor) -> AbstractContextManager[Any]:
    """On the device of x: Triton launches on the current one."""
    if not x.is_cuda or x.device.index == torch.cuda.current_device():
        return nullcontext()
    return torch.cuda.device(x.device)


def laid_out(like: Tensor, shape: Sequence[int], dtype: torch.dtype, last: bool | None = None) -> Tensor:
    """Fresh memory in the format of `like`, or with channels side by side if `last`."""
    pixels = in_pixels(like) if last is None else last
    if pixels and len(shape) == 3:
        return torch.empty((shape[0], shape[2], shape[1]), dtype=dtype, device=like.device).transpose(1, 2)
    form = LAST[len(shape)] if pixels else torch.contiguous_format
    return torch.empty(tuple(shape), dtype=dtype, device=like.device, memory_format=form)


def present(parts: Sequence[Tensor | None], like: Tensor) -> list[Tensor]:
    """An operator's list holds tensors only: an empty one stands for none."""
    return [like.new_empty(0) if part is None else part for part in parts]


def there(parts: Sequence[Tensor | None]) -> list[Tensor | None]:
    """The other way round."""
    return [None if part is None or part.dim() == 1 else part for part in parts]


def direct(x: Tensor) -> bool:
    """Whether a kernel may be launched without an operator around it, which costs as much again: nothing looks on."""
    return type(x) in _KINDS and not is_tracing() and not torch._C._len_torch_dispatch_stack()


_KINDS = (Tensor, torch.nn.Parameter)
