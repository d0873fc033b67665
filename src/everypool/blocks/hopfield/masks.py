"""What may be associated with what: padding, ragged batches and association masks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from everypool import _check as check
from everypool.backends.context import can_compare_sizes, can_read_values

__all__ = ["association_mask", "exists", "softmax_over"]


def exists(padding: Any, mask: Any, sizes: Any, samples: int, count: int, device: torch.device) -> Tensor | None:
    """(N, count), True for patterns that count; from at most one of the three ways to say it."""
    given = [name for name, value in (("stored_pattern_padding_mask", padding), ("mask", mask), ("sizes", sizes))
             if value is not None]  # fmt: skip
    if len(given) > 1:
        raise check.invalid(given[1], f"None where {given[0]} is given", check.Shown("both"))
    if sizes is not None:
        return torch.arange(count, device=device) < _sizes(sizes, samples, count, device)
    if not given:
        return None
    table = mask if mask is not None else padding
    rule = f"a bool tensor of shape (N, S) = ({samples}, {count})"
    if not isinstance(table, Tensor) or table.dtype != torch.bool:
        raise check.wrong_type(given[0], rule, table)
    if table.dim() != 2 or (can_compare_sizes() and tuple(table.shape) != (samples, count)):
        raise check.invalid(given[0], rule, table)
    if table.device != device:
        raise check.invalid(given[0], f"on the device of the input, {device}", check.Shown(str(table.device)))
    return table if mask is not None else ~table


def _sizes(sizes: Any, samples: int, count: int, device: torch.device) -> Tensor:
    rule = f"ints of shape (N,) = ({samples},)"
    try:
        table = torch.as_tensor(sizes, device=device)
    except (TypeError, ValueError, RuntimeError) as error:
        raise check.wrong_type("sizes", rule, sizes) from error
    if table.dtype not in check.INTEGRAL and table.numel():
        raise check.wrong_type("sizes", rule, sizes)
    if table.dim() not in (1, 2) or (can_compare_sizes() and tuple(table.shape) not in ((samples,), (samples, 1))):
        raise check.invalid("sizes", rule, sizes)
    if can_read_values(table) and bool(((table < 1) | (table > count)).any()):
        raise check.invalid("sizes", f"between 1 and the number of patterns {count}", check.Shown(str(table.tolist())[:80]))
    return table.reshape(-1, 1)


def association_mask(mask: Any, samples: int, heads: int, states: int, count: int, device: torch.device) -> Tensor | None:
    """The published mask over pairs of state and stored pattern as (N or 1, heads or 1, L, S)."""
    if mask is None:
        return None
    rule = (
        "bool (True where nothing is associated) or floating point (added to the scores), of shape (L, S) = "
        f"({states}, {count}) or (N * heads, L, S) = ({samples * heads}, {states}, {count})"
    )
    if not isinstance(mask, Tensor) or mask.dtype not in (torch.bool, *check.FLOATING):
        raise check.wrong_type("association_mask", rule, mask)
    if mask.dim() not in (2, 3) or mask.shape[-2] != states or mask.shape[-1] != count:
        raise check.invalid("association_mask", rule, mask)
    if mask.device != device:
        raise check.invalid("association_mask", f"on the device of the input, {device}", check.Shown(str(mask.device)))
    if mask.dim() == 2:
        return mask[None, None]
    if mask.shape[0] != samples * heads:
        raise check.invalid("association_mask", rule, mask)
    return mask.unflatten(0, (samples, heads))


def softmax_over(counts: Tensor | None, pairs: Tensor | None, extra: int) -> Callable[[Tensor], Tensor]:
    """The softmax over the patterns that count, 0 throughout where there is none.

    Args:
        counts: (N, S), True where a stored pattern counts.
        pairs: the association mask, (N or 1, heads or 1, L, S).
        extra: patterns behind the S, which always count.
    """
    blocked: Tensor | None = None if counts is None else ~counts[:, None, None]
    added: Tensor | None = None
    if pairs is not None and pairs.dtype == torch.bool:
        blocked = pairs if blocked is None else blocked | pairs
    elif pairs is not None:
        added = pairs
    if extra and blocked is not None:
        blocked = torch.nn.functional.pad(blocked, (0, extra))
    if extra and added is not None:
        added = torch.nn.functional.pad(added, (0, extra))

    def allow(scores: Tensor) -> Tensor:
        if added is not None:
            scores = scores + added.to(scores.dtype)
        if blocked is not None:
            scores = scores.masked_fill(blocked, float("-inf"))
        if added is None and blocked is None:
            return scores.softmax(-1)
        none = (scores == float("-inf")).all(-1, keepdim=True)
        return scores.masked_fill(none, 0).softmax(-1).masked_fill(none, 0)

    return allow
