"""Fused kernels for GPUs, in Triton, which is imported only once a kernel runs; in its interpreter they run on the CPU too."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from everypool.backends.context import needs_differentiable_ops
from everypool.backends.layout import Layout
from everypool.backends.recipe import Recipe
from everypool.backends.triton.boxes import Pooled, spots_of
from everypool.backends.triton.grid import LISTED, Unsupported, grid_of
from everypool.backends.triton.operators import Fused
from everypool.backends.triton.planes import Planes, held
from everypool.backends.triton.registry import INSTALLED, TYPES, direct
from everypool.backends.triton.retrieval import Retrieval
from everypool.backends.work import most

__all__ = [
    "LISTED",
    "TYPES",
    "Fused",
    "Planes",
    "Retrieval",
    "Unsupported",
    "check",
    "direct",
    "held",
    "installed",
    "interpreted",
    "make_boxes",
    "make_fused",
    "suits",
]

INTERPRET = "TRITON_INTERPRET"
META = torch.device("meta")  # where only shapes are asked for
ORDERED = 1024  # elements of a window that a program puts in order
NEAR_ZERO = 1e-2  # powers below need the series of the definition


def installed() -> bool:
    """Whether Triton can be imported."""
    return INSTALLED


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, on tensors of the CPU."""
    return os.environ.get(INTERPRET, "0") not in ("", "0")


def suits(x: Any) -> bool:
    """Whether the kernels may have this tensor: nothing transforms the computation, nor wants it of standard operators."""
    return (
        isinstance(x, Tensor)
        and (x.is_cuda or (x.is_cpu and interpreted()))
        and x.layout is torch.strided
        and not x.is_nested
        and not torch.compiler.is_exporting()
        and (torch.compiler.is_compiling() or not needs_differentiable_ops())
    )


def make_fused(
    recipe: Recipe | str,
    layout: Layout,
    x: Tensor,
    mask: Tensor | None,
    define: Callable[[Tensor], Tensor] | None,
) -> Fused:
    """The kernels' call for an input like x (N, C, *spatial).

    Raises:
        Unsupported: no kernel does this, with the reason.
    """
    known = check(recipe, layout, x, mask)
    return Fused(known, grid_of(layout, known, x.device), mask, define)


def make_boxes(
    recipe: Recipe | str,
    x: Tensor,
    mask: Tensor | None,
    sample: Tensor,
    axes: Sequence[tuple[Any, Tensor]],
    out: Sequence[int],
    ratio: int,
    define: Callable[[Tensor], Tensor] | None,
) -> Pooled:
    """The kernels' call for boxes over a map like x (N, C, *spatial), whose bins hold `axes`, see `spots_of`.

    Raises:
        Unsupported: no kernel does this, with the reason.
    """
    known = check(recipe, Layout(()), x, mask)
    return Pooled.of(known, spots_of(sample, axes, x.shape[2:], out, ratio), x, mask, define)


def check(recipe: Recipe | str, layout: Layout, x: Tensor, mask: Tensor | None) -> Recipe:
    """The recipe, if the kernels follow it over this layout for an input of that type.

    Raises:
        Unsupported: they do not, with the reason.
    """
    if isinstance(recipe, str):
        raise Unsupported(recipe.replace("compiled loop", "fused kernel"))
    if x.dtype not in TYPES:
        raise Unsupported(f"{x.dtype} has no fused kernel: sums are made in float32")
    if recipe.op == "even_max" and recipe.index:
        raise Unsupported("maxima that share a gradient have no position")
    if recipe.op == "centre" and recipe.both and mask is not None:
        raise Unsupported("the mean of two middles with a mask has no fused kernel")
    if recipe.op == "median" and math.prod(map(most, layout.axes)) > ORDERED:
        raise Unsupported(f"windows of more than {ORDERED} elements have no fused kernel that puts them in order")
    value = recipe.parameter
    if isinstance(value, Tensor):
        fits = value.dim() <= 1 and value.numel() in (1, x.shape[1]) and x.device in (value.device, META)
        if not (fits and value.is_floating_point()):
            raise Unsupported("only the definition takes such a parameter")
        return replace(recipe, parameter=value.contiguous())  # the kernels step from one to the next
    if value is not None and (abs(value) == float("inf") or (recipe.op == "power" and abs(value) < NEAR_ZERO)):
        raise Unsupported("only the definition takes a power near zero or infinite")
    if recipe.op == "logsumexp" and recipe.sum and abs(value) < NEAR_ZERO:
        raise Unsupported("only the definition takes a sum of exponentials with r near zero")
    return recipe
