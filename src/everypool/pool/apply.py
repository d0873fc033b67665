"""A call: checked, by a plan kept from one like it where there is one, else folded layout by layout."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from everypool import _check as check
from everypool._memo import MOST, made, plain
from everypool._overrides import call_override, handle_overrides, has_override
from everypool.backends import counter, cpu, triton
from everypool.backends.choose import choose
from everypool.backends.layout import add_batch_axis, make_format_key
from everypool.backends.work import operations_of
from everypool.pool.checks import prepared
from everypool.pool.folding import existing, finished
from everypool.pool.plans import CALLS, drop_batch, fused_plan, new_plan, planned
from everypool.pool.records import Reducer, Windows, parse
from everypool.pool.shards import is_distributed, pool_shards

__all__ = ["apply", "call", "pool"]


@handle_overrides
def pool(
    input: Tensor | Sequence[Tensor],
    reducer: str | Reducer,
    windows: Windows,
    *,
    mask: Tensor | None = None,
    sizes: Tensor | Sequence[Sequence[int]] | None = None,
    return_mask: bool = False,
) -> Any:
    """Fold any reducer over any windows.

    y = reducer({input[j] : j in window, mask[j]}), for every window.

    Args:
        input: (N, C, *spatial), one to three spatial axes; or, where the windows give a result of fixed size, a list
            of tensors (C, *spatial) of different sizes; or one tensor per level where the windows have levels.
        reducer: a reducer, or the name of one with its settings, such as "gem:p=4".
        windows: which elements belong together.
        mask: (N, 1 or C, *spatial), bool, True where an element counts.
        sizes: (N, nd), int; each sample is the first `sizes` elements of every axis, and is pooled as if alone.
        return_mask: also return (N, C, *out), bool, False where a window has no valid element (its value is 0).

    Returns:
        (N, C, *out), in the type and memory layout of the input; strips give a tuple of such.

    Raises:
        ValueError: a size, mask or parameter breaks its rule.
        TypeError: the input's type has no meaning for the reducer.

    Source: Krizhevsky et al. 2012 and later; see docs/design.md.

    >>> pool(torch.tensor([[[1.0, 2.0, 3.0, 9.0]]]), "max", everypool.Sliding(2))
    tensor([[[2., 9.]]])
    """
    return apply(input, reducer, windows, nd=None, mask=mask, sizes=sizes, return_mask=return_mask)


def call(
    input: Any,
    reducer: Callable[..., Reducer],
    settings: tuple[Any, ...],
    windows: type[Windows],
    arguments: tuple[Any, ...],
    *,
    nd: int | None = None,
    mask: Any = None,
    sizes: Any = None,
) -> Any:
    """`apply` to `reducer(*settings)` over `windows(*arguments)`, which a call like an earlier one need not make."""
    if mask is None and sizes is None and choose().name == "cpu" and cpu.unsupported_reason(input) is None:
        types = plain(settings + arguments)
        if types is not None:
            if nd is None and arguments and tuple in types:
                nd = windows.axes_of(arguments[0])
            single = nd is not None and input.dim() == nd + 1
            x = add_batch_axis(input) if single else input
            key = (reducer, settings, windows, arguments, types, nd, single, x.shape, x.dtype, make_format_key(x))
            entry = CALLS.get(key)
            if entry is None:
                if len(CALLS) >= MOST:
                    CALLS.clear()
                entry = CALLS[key] = new_plan(x, reducer(*settings), windows(*arguments), nd)
            found = entry(x, entry.reducer)
            if found is not None:
                return drop_batch(found) if single else found
    return apply(input, made(reducer, *settings), made(windows, *arguments), nd=nd, mask=mask, sizes=sizes)


def apply(
    input: Any,
    reducer: Any,
    windows: Windows,
    *,
    nd: int | None,
    mask: Any = None,
    sizes: Any = None,
    return_mask: bool = False,
    tells: bool = True,
) -> Any:
    """`pool` for callers that know the number of spatial axes, so that (C, *spatial) can be told from a batch.

    With `tells`, torch's counter of operations is told of it, where one listens.
    """
    if has_override(input, mask, sizes):
        return call_override(apply, input, reducer, windows, nd=nd, mask=mask, sizes=sizes, return_mask=return_mask)
    choice = choose(input.device.type if isinstance(input, Tensor) else "cpu")
    reducer = reducer if isinstance(reducer, Reducer) else made(parse, reducer)
    if not isinstance(windows, Windows):
        raise check.wrong_type("windows", "a Windows object such as Sliding(2)", windows)
    nd = windows.nd if nd is None else nd
    options: dict[str, Any] = {"nd": nd, "mask": mask, "sizes": sizes, "return_mask": return_mask}
    if mask is None and sizes is None and not return_mask:
        found = None
        if choice.name == "cpu" and cpu.unsupported_reason(input) is None:
            found = planned(input, reducer, windows, nd)
        elif choice.name == "triton" and triton.direct(input) and triton.suits(input) and not counter.listening():
            found = fused_plan(input, reducer, windows, nd)
        if found is not None:
            return found
    if is_distributed(input):
        return pool_shards(apply, input, reducer, windows, **options)
    if tells and counter.listening():
        return counted(input, reducer, windows, **options)
    single = isinstance(input, Tensor) and nd is not None and input.dim() == nd + 1
    if single:
        input = add_batch_axis(input)
        mask = mask.unsqueeze(0) if isinstance(mask, Tensor) else mask
        sizes = sizes.unsqueeze(0) if isinstance(sizes, Tensor) else sizes if sizes is None else [sizes]
    tensors, mask, sizes = prepared(input, windows, nd, mask, sizes)
    first = tensors if isinstance(tensors, Tensor) else tensors[0]
    reducer.check(first)
    values: list[tuple[Tensor, ...]] = []
    masks = []
    for parts, exists in windows.reduce(reducer, tensors, mask, sizes):
        values.append(tuple(finished(part, first) for part in parts))
        if return_mask:
            found = existing(exists)
            found = torch.ones((), dtype=torch.bool, device=first.device) if found is None else found
            masks.append(found.expand(parts[0].shape))
    results = [windows.assemble([part[i] for part in values]) for i in range(len(values[0]))]
    if return_mask:
        results.append(windows.assemble(masks))
    result = results[0] if len(results) == 1 else tuple(results)
    return drop_batch(result) if single else result


def counted(input: Any, reducer: Reducer, windows: Windows, *, nd: int | None, **options: Any) -> Any:
    """`apply`, and torch's counter of operations is told what it cost."""
    with counter.quiet():
        result = apply(input, reducer, windows, nd=nd, tells=False, **options)
        forward, backward = cost(input, reducer, windows, nd)
    leaves, structure = tree_flatten(result)
    return tree_unflatten(counter.told(leaves, forward, backward), structure)


def cost(input: Any, reducer: Reducer, windows: Windows, nd: int | None) -> tuple[int, int]:
    """Operations of a call and of its gradient; samples of different sizes cost what each does alone."""
    single = isinstance(input, Tensor) and nd is not None and input.dim() == nd + 1
    alone = single or (isinstance(input, (list, tuple)) and not windows.many)
    shapes = [tuple(x.shape) for x in (input if isinstance(input, (list, tuple)) else [input])]
    shapes = [(1, *shape) if alone else shape for shape in shapes]
    work, taps = reducer.work(len(shapes[0]) - 2), windows.taps(shapes)
    return (0, 0) if work is None or taps is None else operations_of(work, taps)
