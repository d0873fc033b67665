"""Inputs, masks and sizes that obey their rules."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from everypool import _check as check
from everypool.backends.context import can_compare_sizes, can_read_values

if TYPE_CHECKING:
    from everypool.pool.records import Windows

__all__ = ["checked_mask", "checked_sizes", "padded_batch", "prepared"]


def prepared(input: Any, windows: Windows, nd: int | None, mask: Any, sizes: Any) -> tuple[Any, Any, Any]:
    """Checked input, mask and sizes; a list of tensors of different sizes becomes one padded batch."""
    if isinstance(input, (list, tuple)) and not windows.many:
        if mask is not None or sizes is not None:
            raise check.invalid("sizes", "None when the input is a list of tensors", sizes if sizes is not None else mask)
        input, sizes = padded_batch(input, windows)
    tensors = list(input) if isinstance(input, (list, tuple)) else [input]
    if not tensors:
        raise check.invalid("input", "one tensor or more", check.Shown("an empty list"))
    for x in tensors:
        check.batched("input", x, nd)
        if x.is_complex() or x.dtype in (torch.uint16, torch.uint32, torch.uint64):
            raise check.wrong_type("input", "floating point, integer or bool", check.Shown(str(x.dtype)))
        if can_compare_sizes() and 0 in x.shape[2:]:
            raise check.invalid("input", "non-empty in every spatial axis", check.Shown(f"shape {tuple(x.shape)}"))
    if windows.many and isinstance(input, (list, tuple)):
        return tensors, each("mask", checked_mask, mask, tensors), each("sizes", checked_sizes, sizes, tensors)
    mask = None if mask is None else checked_mask(mask, tensors[0])
    return tensors[0], mask, None if sizes is None else checked_sizes(sizes, tensors[0])


def each(name: str, checked: Callable[[Any, Tensor], Tensor], items: Any, tensors: list[Tensor]) -> list[Tensor] | None:
    """One mask, or one table of sizes, for every level."""
    if items is None:
        return None
    if not isinstance(items, (list, tuple)) or len(items) != len(tensors):
        raise check.wrong_type(name, f"a list of {len(tensors)}, one per level", items)
    return [checked(item, x) for item, x in zip(items, tensors, strict=True)]


def checked_mask(mask: Any, x: Tensor) -> Tensor:
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        raise check.wrong_type("mask", mask_rule(x), mask)
    if mask.dim() != x.dim() or (can_compare_sizes() and not mask_fits(mask.shape, x.shape)):
        raise check.invalid("mask", mask_rule(x), mask)
    if mask.device != x.device:
        raise check.invalid("mask", f"on the device of the input, {x.device}", check.Shown(str(mask.device)))
    return mask


def mask_fits(mask: Sequence[int], x: Sequence[int]) -> bool:
    return mask[0] == x[0] and mask[2:] == x[2:] and (mask[1] == 1 or mask[1] == x[1])


def mask_rule(x: Tensor) -> str:
    batch, channels, *spatial = x.shape
    return f"a bool tensor of shape (N, 1 or C, *spatial) = ({batch}, 1 or {channels}, {', '.join(map(str, spatial))})"


def checked_sizes(sizes: Any, x: Tensor) -> Tensor:
    nd = x.dim() - 2
    if not isinstance(sizes, Tensor):
        try:
            sizes = torch.as_tensor(sizes, device=x.device)
        except (TypeError, ValueError, RuntimeError) as error:
            raise check.wrong_type("sizes", sizes_rule(x), sizes) from error
        sizes = sizes.reshape(0, nd) if sizes.numel() == 0 else sizes
        sizes = sizes if sizes.dtype in check.INTEGRAL or sizes.numel() else sizes.to(torch.int64)
    if sizes.dim() == 1 and nd == 1:
        sizes = sizes.unsqueeze(1)
    if sizes.dtype not in check.INTEGRAL:
        raise check.wrong_type("sizes", sizes_rule(x), sizes)
    if sizes.dim() != 2 or (can_compare_sizes() and tuple(sizes.shape) != (x.shape[0], nd)):
        raise check.invalid("sizes", sizes_rule(x), sizes)
    if sizes.device != x.device:
        raise check.invalid("sizes", f"on the device of the input, {x.device}", check.Shown(str(sizes.device)))
    sizes = sizes.to(torch.int64)
    if can_read_values(sizes):
        limit = torch.tensor(x.shape[2:], device=x.device)
        if bool(((sizes < 1) | (sizes > limit)).any()):
            raise check.invalid(
                "sizes", f"between 1 and the input's size {tuple(x.shape[2:])}", check.Shown(str(sizes.tolist())[:80])
            )
    return sizes


def sizes_rule(x: Tensor) -> str:
    nd = x.dim() - 2
    return f"ints of shape (N, {nd}) = ({x.shape[0]}, {nd})"


def padded_batch(samples: Sequence[Any], windows: Windows) -> tuple[Tensor, Tensor]:
    """One zero-padded batch and the samples' sizes, from tensors (C, *spatial) of different sizes."""
    if not windows.fixed:
        raise check.wrong_type(
            "input", "one tensor, since these windows give each size of input another size of output", samples
        )
    rule = "a list of tensors (C, *spatial) alike in channels, axes, type and device"
    if not samples:
        raise check.invalid("input", rule, check.Shown("an empty list"))
    for x in samples:
        if not isinstance(x, Tensor):
            raise check.wrong_type("input", rule, x)
        first = samples[0]
        if x.dim() not in (2, 3, 4) or x.dim() != first.dim() or x.shape[0] != first.shape[0]:
            raise check.invalid("input", rule, x)
        if x.dtype != first.dtype or x.device != first.device:
            raise check.invalid("input", rule, x)
        if 0 in x.shape[1:]:
            raise check.invalid("input", "non-empty in every spatial axis", x)
    largest = [max(x.shape[axis] for x in samples) for axis in range(1, samples[0].dim())]
    padded = []
    for x in samples:
        pad = [p for axis in reversed(range(len(largest))) for p in (0, largest[axis] - x.shape[1 + axis])]
        padded.append(
            torch.nn.functional.pad(x, pad) if x.dtype != torch.bool else torch.nn.functional.pad(x, pad, value=False)
        )
    return torch.stack(padded), torch.tensor([x.shape[1:] for x in samples], device=samples[0].device)
