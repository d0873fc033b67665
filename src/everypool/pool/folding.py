"""One reducer over one layout, by the implementation that suits."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd import Function

from everypool.backends import counter, cpu, triton
from everypool.backends.choose import Choice, choose
from everypool.backends.context import find_obstacle, fixed_shape, has_address, is_tracing, needs_differentiable_ops
from everypool.backends.eager import Folds
from everypool.backends.layout import Layout, compute_strides, in_pixels, lay_out

if TYPE_CHECKING:
    from everypool.pool.records import Reducer

__all__ = ["Reduced", "defined", "definition", "existing", "finished", "refuse", "run", "single_definition"]

Exists = Tensor | Callable[[], Tensor | None] | None  # which windows exist, if not all; found when asked for
Reduced = tuple[tuple[Tensor, ...], Exists]  # values (and indices)


def single_definition(reducer: Reducer, layout: Layout) -> Callable[[Tensor], Tensor]:
    """The values of one layout by the definition."""
    return lambda x: defined(reducer, x, Folds(layout, None, x.device))[0][0]


def definition(reducer: Reducer, layouts: list[Layout]) -> Callable[[Tensor], tuple[Tensor, ...]]:
    """The values of every layout by the definition."""
    return lambda x: tuple(defined(reducer, x, Folds(layout, None, x.device))[0][0] for layout in layouts)


def compiled(reducer: Reducer, x: Tensor, folds: Folds) -> Reduced | None:
    """`defined` by the compiled loops or the fused kernels, where they can."""
    choice = choose(x.device.type)
    if choice.name == "triton":
        return fused(reducer, x, folds, choice)
    if choice.name == "eager":
        return None
    why = cpu.unsupported_reason(x)
    if why is not None:
        refuse(choice, x, why)
        return None
    mask = None if folds.mask is folds.own else folds.mask
    channels = 0 if mask is None else mask.shape[1]
    recipe = reducer.recipe()
    if folds.own is not None and folds.layout.own_position:  # loops along a line meet what lies behind a sample's end
        x = x.masked_fill(~folds.own, 0)
    try:
        plan = cpu.make_plan(recipe, [folds.layout], tuple(x.shape), x.dtype, in_pixels(x), channels)
    except cpu.Unsupported as error:
        refuse(choice, x, error)
        return None
    fold = cpu.Fold(
        plan,
        plan.recipe.parameter,
        None if mask is None else mask.contiguous(),
        lambda x: defined(reducer, x, folds)[0][:1],
    )
    results = fold.run(x)
    return None if results is None else (results, folds.exists)


def fused(reducer: Reducer, x: Tensor, folds: Folds, choice: Choice) -> Reduced | None:
    """`defined` by the fused kernels, where they can."""
    if x.is_cpu and not triton.interpreted():
        refuse(choice, x, "the fused kernels are for GPUs, the input is on the CPU")
    if not triton.suits(x):
        refuse(choice, x, find_obstacle(x) or "the fused kernels are left out of exported graphs")
        return None
    if x.numel() == 0:
        return None
    recipe = reducer.recipe()
    # tables hold the samples' own sizes; along running windows, whose tables are not looked at, the mask does
    running = folds.layout.own_position and not isinstance(recipe, str) and recipe.op not in triton.LISTED
    mask = folds.mask if running or folds.mask is not folds.own else None
    define = None if is_tracing() else lambda x: defined(reducer, x, folds)[0][0]
    try:
        call = triton.make_fused(recipe, folds.layout, x, mask, define)
    except triton.Unsupported as error:
        refuse(choice, x, error)
        return None
    if not isinstance(recipe, str) and recipe.op == "centre" and mask is not None:  # nothing, if the middle does not count
        return call(x), lambda: existing(defined(reducer, x.detach(), folds)[1])
    return call(x), folds.exists


def refuse(choice: Choice, x: Tensor, why: Exception | str) -> None:
    """An implementation that was asked for by name never falls back."""
    if choice.named and 0 not in fixed_shape(x):
        message = f"`EVERYPOOL_IMPL` must be an implementation that does this, got {choice.name!r}: {why}"
        raise NotImplementedError(message) from (why if isinstance(why, Exception) else None)


class KeepFormat(Function):
    """x, whose gradient is given the memory format of x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return lay_out(grad, True) if has_address(grad) else grad


def run(reducer: Reducer, x: Tensor, folds: Folds) -> Reduced:
    """One reducer over one layout, by the implementation that suits."""
    if counter.listening():  # what is made again for a gradient must be made in the same way
        with counter.quiet():
            found = compiled(reducer, x, folds)
            return define_in_format(reducer, x, folds) if found is None else found
    found = compiled(reducer, x, folds)
    return define_in_format(reducer, x, folds) if found is None else found


def define_in_format(reducer: Reducer, x: Tensor, folds: Folds) -> Reduced:
    """Return what `defined` does, with a gradient in the memory format of x."""
    if torch.is_grad_enabled() and x.requires_grad and not needs_differentiable_ops() and in_pixels(x):
        x = KeepFormat.apply(x)
    return defined(reducer, x, folds)


def existing(exists: Exists) -> Tensor | None:
    """Which windows exist; None where all do."""
    return exists if exists is None or isinstance(exists, Tensor) else exists()


def defined(reducer: Reducer, x: Tensor, folds: Folds) -> Reduced:
    """One reducer over one layout; windows without a valid element give 0 (as an index -1) and no gradient."""
    parts, told = reducer.define(x if reducer.selects else folds.hide_outside(x), folds)
    exists = folds.exists() if told is None else existing(told)
    if exists is not None:
        parts = tuple(part.masked_fill(~exists, -i) for i, part in enumerate(parts))
    return (parts[0].to(x.dtype), *parts[1:]), exists


def finished(y: Tensor, input: Tensor) -> Tensor:
    """Return y in the memory format that torch gives results of the batch `input`, see `in_pixels`."""
    pixels = y.dim() == input.dim() and in_pixels(input)
    if needs_differentiable_ops():  # transforms know no format by its name, and what they hide may lie in any order
        return y.movedim(1, -1).contiguous().movedim(-1, 1) if pixels else y.contiguous()
    strides = compute_strides(y.shape, pixels)
    if y.stride() == strides:
        return y
    y = lay_out(y, pixels)
    if y.stride() == strides:
        return y
    # one channel, one position or no element: the order in memory is right, its strides may be those of the other format
    ordered = y.movedim(1, -1) if pixels else y
    ordered = ordered.flatten().view(ordered.shape)
    return ordered.movedim(-1, 1) if pixels else ordered
