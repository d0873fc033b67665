"""What calls alike in all but their values have in common, made once."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from everypool._memo import MOST, token
from everypool.backends import cpu, triton
from everypool.backends.layout import Layout, add_batch_axis, in_pixels, make_format_key
from everypool.pool.checks import prepared
from everypool.pool.folding import definition, single_definition
from everypool.pool.records import Reducer, Windows

__all__ = ["CALLS", "fused_plan", "new_plan", "planned"]


@dataclass(frozen=True, eq=False)
class Planned:
    """What calls alike in all but their values have in common."""

    reducer: Reducer  # both held: their addresses may be in the key
    windows: Windows
    layouts: list[Layout]
    fold: cpu.Fold | None  # None: the loops do not do it all at once
    learned: bool  # the reducer's parameter is a tensor
    direct: bool  # the fold's only result is the call's

    def __call__(self, x: Tensor, reducer: Reducer) -> Any:
        """The result for a batch, or None where the values need the definition."""
        fold, windows = self.fold, self.windows
        if fold is None:
            return None
        if self.direct:
            return fold.linear(x)
        if self.learned:  # values that the reducer would refuse are none that the loops take
            recipe = reducer.recipe()
            if isinstance(recipe, str):
                return None
            fold = cpu.Fold(fold.plan, recipe.parameter, None, definition(reducer, self.layouts))
        results = fold.run(x)
        if results is None:
            return None
        number = len(self.layouts)
        parts = [windows.assemble(list(results[i : i + number])) for i in range(0, len(results), number)]
        return parts[0] if len(parts) == 1 else tuple(parts)


def drop_batch(result: Any) -> Any:
    """Return a result of one sample without its batch axis, whatever tuples it lies in."""
    return tuple(map(drop_batch, result)) if isinstance(result, tuple) else result.squeeze(0)


PLANS: dict[tuple[Any, ...], Planned] = {}
CALLS: dict[tuple[Any, ...], Planned] = {}


def planned(input: Tensor, reducer: Reducer, windows: Windows, nd: int | None) -> Any:
    """The whole call by a plan kept from one like it; None where the loops do not do it all at once."""
    tokens = (token(reducer), token(windows))
    if None in tokens:
        return None
    single = nd is not None and input.dim() == nd + 1
    x = add_batch_axis(input) if single else input
    key = (tokens, nd, x.shape, x.dtype, make_format_key(x))
    entry = PLANS.get(key)
    if entry is None:
        if len(PLANS) >= MOST:
            PLANS.clear()
        entry = PLANS[key] = new_plan(x, reducer, windows, nd)
    found = entry(x, reducer)
    return drop_batch(found) if single and found is not None else found


def new_plan(x: Tensor, reducer: Reducer, windows: Windows, nd: int | None) -> Planned:
    """Plan a batch (N, C, *spatial) like x."""
    nothing = Planned(reducer, windows, [], None, False, False)
    if windows.many or not windows.folds:
        return nothing
    x, _, _ = prepared(x.detach(), windows, nd, None, None)
    reducer.check(x)
    layouts = windows.layouts(tuple(x.shape[2:]), None)
    try:
        plan = cpu.make_plan(reducer.recipe(), layouts, tuple(x.shape), x.dtype, in_pixels(x))
    except cpu.Unsupported:
        return nothing
    parameter = plan.recipe.parameter
    learned = isinstance(parameter, Tensor)
    direct = plan.linear and type(windows).assemble is Windows.assemble
    fold = cpu.Fold(plan, None if learned else parameter, None, definition(reducer, layouts))
    return Planned(reducer, windows, layouts, fold, learned, direct)


@dataclass(frozen=True, eq=False)
class FusedPlan:
    """`Planned` for the fused kernels: a call for each layout."""

    reducer: Reducer
    windows: Windows
    layouts: list[Layout]
    calls: tuple[triton.Fused, ...]  # none: the kernels do not do it all

    def __call__(self, x: Tensor, reducer: Reducer) -> Any:
        """The result for a batch, or None where the call must be made as if for the first time."""
        if not self.calls:
            return None
        calls = self.calls
        if isinstance(calls[0].recipe.parameter, Tensor):
            calls = fused_calls(reducer, self.layouts, x, calls)
            if not calls:
                return None
        results = [call(x) for call in calls]
        parts = [self.windows.assemble(list(items)) for items in zip(*results, strict=True)]
        return parts[0] if len(parts) == 1 else tuple(parts)


FUSED: dict[tuple[Any, ...], FusedPlan] = {}


def fused_plan(input: Tensor, reducer: Reducer, windows: Windows, nd: int | None) -> Any:
    """The whole call by kernels that were prepared for one like it; None where they do not do it all."""
    tokens = (token(reducer), token(windows))
    if None in tokens:
        return None
    single = nd is not None and input.dim() == nd + 1
    x = add_batch_axis(input) if single else input
    key = (tokens, nd, x.shape, x.dtype, make_format_key(x), x.device)
    entry = FUSED.get(key)
    if entry is None:
        layouts: list[Layout] = []
        calls: tuple[triton.Fused, ...] = ()
        if windows.folds and not windows.many and x.numel() > 0:
            checked, _, _ = prepared(x.detach(), windows, nd, None, None)
            reducer.check(checked)
            layouts = windows.layouts(tuple(checked.shape[2:]), None)
            calls = fused_calls(reducer, layouts, checked)
        if len(FUSED) >= MOST:
            FUSED.clear()
        entry = FUSED[key] = FusedPlan(reducer, windows, layouts, calls)
    found = entry(x, reducer)
    return drop_batch(found) if single and found is not None else found


def fused_calls(
    reducer: Reducer, layouts: list[Layout], x: Tensor, earlier: tuple[triton.Fused, ...] = ()
) -> tuple[triton.Fused, ...]:
    """A call for each layout, none where the kernels do not do them all; of `earlier` ones with another parameter."""
    recipe = reducer.recipe()
    calls = []
    for number, layout in enumerate(layouts):
        define = single_definition(reducer, layout)
        try:
            if earlier:
                calls.append(replace(earlier[number], recipe=triton.check(recipe, layout, x, None), define=define))
            else:
                calls.append(triton.make_fused(recipe, layout, x, None, define))
        except triton.Unsupported:
            return ()
    return tuple(calls)
