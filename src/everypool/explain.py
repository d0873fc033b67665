"""Which implementation runs a pooling, why, and what it costs: from shapes alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from everypool import _check as check
from everypool.backends import counter, cpu, triton
from everypool.backends.choose import Choice, choose
from everypool.backends.context import find_obstacle, pause_jit_tracing
from everypool.backends.layout import Layout
from everypool.backends.work import operations_of, traffic
from everypool.pool import Reducer, Windows, parse, prepared
from everypool.pool.shards import is_distributed

__all__ = ["Explanation", "explain"]

MOST_ELEMENTS = 1 << 56  # bytes of more than these are no longer counted by torch
MOST_WINDOWS = 1 << 26  # along one axis: tables of more are made by a call alone
NUMBERED = 1 << 31  # elements of a plane, beyond which the compiled loops do not number them


@dataclass(frozen=True)
class Explanation:
    """What `explain` found.

    Args:
        implementation: what runs, such as "cpu avx2" or "eager", the definition; "none" where the call is an error, and
            "unknown" where only the call itself can tell.
        reason: why.
        rejected: every other implementation, and why it does not run.
        output: shapes of the results; several where the windows give several.
        elements: of the largest window.
        mean_elements: of all windows that hold any.
        operations: forward, and of the gradient of the input, 0 where there is none; None where the reducer does not say.
        traffic: bytes read and written, forward and for that gradient.
    """

    implementation: str
    reason: str
    rejected: tuple[tuple[str, str], ...]
    output: tuple[tuple[int, ...], ...]
    elements: int
    mean_elements: float
    operations: tuple[int, int] | None
    traffic: tuple[int, int] | None


def explain(
    reducer: str | Reducer,
    windows: Windows,
    shape: Sequence[int] | Tensor,
    dtype: torch.dtype = torch.float32,
    device: Any = "cpu",
    mask: bool = False,
) -> Explanation:
    """Say which implementation pools an input of that shape here and now, why, and what that costs.

    Operations are those of the definition, each addition, comparison, power and so on counting as one; bytes are those of
    a fold that touches every tensor once. See docs/costs.md.

    Args:
        reducer: a reducer, or the name of one with its settings, such as "gem:p=4".
        windows: which elements belong together.
        shape: of the input, (N, C, *spatial), one to three spatial axes; or the input itself, whose type and device then
            count, and whether it is a tensor of a kind of its own. No value is read.
        dtype: of the input.
        device: of the input.
        mask: with a mask (N, 1, *spatial).

    Returns:
        An `Explanation`.

    Raises:
        ValueError: a size or setting breaks its rule.
        TypeError: the type has no meaning for the reducer.
        NotImplementedError: the windows are boxes, whose number and place a shape does not tell.

    >>> explain("max", everypool.Sliding(3, 2, 1), (32, 64, 112, 112)).output
    ((32, 64, 56, 56),)
    >>> explain("median", everypool.Global(), (1, 1, 3, 3), torch.int32).implementation
    'eager'
    """
    reducer = parse(reducer)
    if not isinstance(windows, Windows):
        raise check.wrong_type("windows", "a Windows object such as Sliding(2)", windows)
    if not windows.folds:
        raise NotImplementedError("`windows` must be over whole maps; FlopCounterMode counts a call with boxes, got Boxes")
    if not isinstance(dtype, torch.dtype):
        raise check.wrong_type("dtype", "a torch.dtype", dtype)
    check.boolean("mask", mask)
    given = shape if isinstance(shape, Tensor) else None
    if is_distributed(given):
        given = given.to_local()  # type: ignore[union-attr]
    with counter.quiet() if counter.listening() else nullcontext():
        obstacle = find_obstacle() if given is None else find_obstacle(given)
    if given is not None:
        shape, dtype, device = given.shape, given.dtype, given.device
    with pause_jit_tracing(), _disable_current_modes():
        return _explain(reducer, windows, _size(shape), dtype, _device(device), mask, obstacle)


def _explain(
    reducer: Reducer,
    windows: Windows,
    size: tuple[int, ...],
    dtype: torch.dtype,
    where: torch.device,
    mask: bool,
    obstacle: str | None,
) -> Explanation:
    x, _, _ = prepared(torch.empty(size, dtype=dtype, device="meta"), windows, None, None, None)
    reducer.check(x)
    layouts = windows.outlines(size[2:])
    result = windows.assemble([x.new_empty((*size[:2], *layout.out)) for layout in layouts])
    implementation, reason, rejected = _implementation(reducer, windows, layouts, x, where, mask, obstacle)
    taps, work = windows.taps([size]) or [], reducer.work(len(size) - 2)
    held, filled = (sum(t.planes * getattr(t, name) for t in taps) for name in ("total", "windows"))
    numbers = math.prod(size[:1] + size[2:]) if mask else 0
    index = bool(getattr(reducer, "indices", False))
    costs = moved = None
    if work is not None:
        costs, moved = operations_of(work, taps), traffic(work, taps, x.numel(), dtype.itemsize, mask=numbers, index=index)
        if not dtype.is_floating_point:
            costs, moved = (costs[0], 0), (moved[0], 0)
    return Explanation(
        implementation,
        reason,
        rejected,
        output=tuple(tuple(y.shape) for y in (result if isinstance(result, tuple) else (result,))),
        elements=max((t.most for t in taps), default=0),
        mean_elements=held / filled if filled else 0.0,
        operations=costs,
        traffic=moved,
    )


def _size(shape: Any) -> tuple[int, ...]:
    rule = "(N, C, *spatial), non-negative ints, 1 to 3 spatial axes"
    if not isinstance(shape, (list, tuple)):
        raise check.wrong_type("shape", rule, shape)
    shape = tuple(map(_number, shape))
    if len(shape) not in (3, 4, 5):
        raise check.invalid("shape", rule, shape)
    size = check.ints("shape", shape, len(shape), 0)
    if math.prod(size) > MOST_ELEMENTS:
        raise check.invalid("shape", "of at most 2**56 elements", shape)
    return size


def _number(size: Any) -> Any:
    """Return a size of a recorded graph as the number that it has in the example."""
    if isinstance(size, torch.SymInt):
        return size.node.hint
    return int(size) if isinstance(size, Tensor) and size.dim() == 0 else size


def _device(device: Any) -> torch.device:
    try:
        return torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise check.invalid("device", "a device such as 'cpu' or 'cuda'", device) from error


Implementation = tuple[str, str, tuple[tuple[str, str], ...]]  # what runs, why, and why each other does not


def _implementation(
    reducer: Reducer,
    windows: Windows,
    layouts: list[Layout],
    x: Tensor,
    device: torch.device,
    mask: bool,
    obstacle: str | None,
) -> Implementation:
    choice = choose(device.type)
    library = cpu.library()
    if choice.name != "eager" and obstacle is not None:
        others = tuple(item for item in choice.rejected if item[0] not in ("eager", choice.name))
        if choice.named and x.numel() > 0:
            return "none", f"{choice.reason}, which is an error: {obstacle}", ((choice.name, obstacle), *others)
        return "eager", "the definition runs in every way of calling", ((choice.name, obstacle), *others)
    if choice.name == "triton":
        return _fused(reducer, layouts, x, mask, choice)
    if choice.name == "eager" or library is None:
        return choice.name, choice.reason, choice.rejected
    others = tuple(item for item in choice.rejected if item[0] not in ("eager", "cpu"))
    loops = library.__name__.rpartition("_")[2]
    if device.type != "cpu":
        why = f"the compiled loops are for the CPU, the input is on {device.type}"
        return "eager", "the definition runs on every device", (("cpu", why), *others)
    if any(max(layout.out) > MOST_WINDOWS for layout in layouts) and math.prod(x.shape[2:]) < NUMBERED:
        return "unknown", f"more than {MOST_WINDOWS} windows along one axis: only the call itself can tell", others
    refused, forbidden = _refused(reducer, windows, x, mask)
    if not any(refused):
        mine = tuple((f"cpu {name}", why) for name, why in cpu.missing().items())
        return f"cpu {loops}", choice.reason, (*mine, *choice.rejected)
    why = next(filter(None, refused))
    if choice.named and forbidden and x.numel() > 0:
        return "none", f"{choice.reason}, which is an error: {why}", (("cpu", why), *others)
    if all(refused):
        return "eager", "the definition does what the compiled loops do not", (("cpu", why), *others)
    parts = f"the compiled loops do {refused.count(None)} of {len(refused)} folds"
    return f"cpu {loops} and eager", parts, (("cpu", why), *others)


def _fused(reducer: Reducer, layouts: list[Layout], x: Tensor, mask: bool, choice: Choice) -> Implementation:
    """What the fused kernels do of a call, and why they do not do the rest."""
    some = x.new_empty((1,), dtype=torch.bool) if mask else None
    refused: list[str | None] = []
    for layout in layouts:
        try:
            triton.check(reducer.recipe(), layout, x, some)
            refused.append(None)
        except triton.Unsupported as error:
            refused.append(str(error))
    others = tuple(item for item in choice.rejected if item[0] != "eager")
    why = next(filter(None, refused), None)
    if why is None:
        return "triton", choice.reason, choice.rejected
    if choice.named and x.numel() > 0:
        return "none", f"{choice.reason}, which is an error: {why}", (("triton", why), *others)
    if all(refused):
        return "eager", "the definition does what the fused kernels do not", (("triton", why), *others)
    parts = f"the fused kernels do {refused.count(None)} of {len(refused)} folds"
    return "triton and eager", parts, (("triton", why), *others)


def _refused(reducer: Reducer, windows: Windows, x: Tensor, mask: bool) -> tuple[list[str | None], bool]:
    """Why the compiled loops leave each fold to the definition, None where they do it; and whether forcing them is an error."""
    if math.prod(x.shape[2:]) >= NUMBERED:
        return ["windows must be small enough to be numbered"], True
    recipe, shape = reducer.recipe(), tuple(x.shape)
    refused: list[str | None] = []
    forbidden = False
    for layout in windows.layouts(shape[2:], None):
        try:
            plan = cpu.make_plan(recipe, [layout], shape, x.dtype, False, int(mask))
        except cpu.Unsupported as error:
            refused.append(str(error))
            forbidden = True
            continue
        values = plan.recipe.parameter
        ready = values is None or cpu.Fold(plan, values)._ready()
        refused.append(None if ready else "only the definition takes a parameter near zero, infinite or on another device")
    return refused, forbidden
