"""The one idea: pooling is a reducer folded over windows; and the records from which names, tests and docs are made."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from everypool import _check as check
from everypool._memo import MOST, made, plain, token
from everypool.backends import counter, cpu, triton
from everypool.backends.axes import readable, traced
from everypool.backends.choose import Choice, choose
from everypool.backends.eager import Folds
from everypool.backends.layout import Layout, in_pixels
from everypool.backends.recipe import Recipe
from everypool.backends.work import Taps, Work, measured, operations_of

__all__ = ["Operation", "Reducer", "Windows", "find_operation", "operations", "parse", "pool", "register"]


LONGEST = 1 << 20  # of an axis whose tables are made only to count windows: without values that takes torch longer
Exists = Tensor | Callable[[], Tensor | None] | None  # which windows exist, if not all; found when asked for
Reduced = tuple[tuple[Tensor, ...], Exists]  # values (and indices)


class Reducer:
    """What becomes of the values that belong together; subclasses are small and hold only their parameters."""

    any_dtype: ClassVar[bool] = False  # integers and bool as well

    def check(self, input: Tensor) -> None:
        """Raise if this reducer has no meaning for this input."""
        if not self.any_dtype:
            check.floating("input", input)
        elif input.dtype not in (*check.FLOATING, *check.INTEGRAL, torch.bool):
            raise check.wrong_type("input", "floating point, integer or bool", check.Shown(str(input.dtype)))

    def recipe(self) -> Recipe | str:
        """This reducer for the compiled loops, or why they do not have it."""
        return "no compiled loop knows this reducer"

    def work(self, nd: int) -> Work | None:
        """What a window of K elements costs over `nd` axes, see `Work`; None where nobody has said."""
        return None

    def define(self, x: Tensor, folds: Folds) -> Reduced:
        """The values (N, C, *out), with an index if asked for; and which exist where it is not `folds.exists()`."""
        raise NotImplementedError


class Windows:
    """Which values belong together; the only place that knows size arithmetic."""

    fixed: ClassVar[bool] = False  # the output's size does not depend on the input's
    folds: ClassVar[bool] = True  # `layouts` says it all

    @property
    def many(self) -> bool:
        """The input is a list of maps, one per level."""
        return False

    @property
    def nd(self) -> int | None:
        """The number of spatial axes, where the arguments tell it."""
        return None

    def layouts(self, spatial: tuple[int, ...], sizes: Tensor | None) -> list[Layout]:
        """One layout, or several that are folded in turn (pyramid levels, strips)."""
        raise NotImplementedError

    def taps(self, shapes: Sequence[tuple[int, ...]]) -> list[Taps] | None:
        """How many elements the windows over inputs (N, C, *spatial) hold; None where nobody has said."""
        if not self.folds:
            return None
        return [measured(layout, shape[0] * shape[1]) for shape in shapes for layout in self.outlines(shape[2:])]

    def outlines(self, spatial: tuple[int, ...]) -> list[Layout]:
        """`layouts` whose tensors may lack values, so that a map may be of any size."""
        with torch.device("meta") if max(spatial) > LONGEST else nullcontext():
            return self.layouts(spatial, None)

    def assemble(self, parts: list[Tensor]) -> Any:
        """The result from what each layout gave."""
        return parts[0]

    def reduce(self, reducer: Reducer, input: Any, mask: Any, sizes: Any) -> list[Reduced]:
        """What the reducer makes of each layout; `mask` and `sizes` are None or tensors, or lists where the input is one."""
        return [
            run(reducer, input, Folds(layout, mask, input.device)) for layout in self.layouts(tuple(input.shape[2:]), sizes)
        ]


@dataclass(frozen=True)
class Operation:
    """Everything that the tests, the documentation, the tables and the command line know of one operation."""

    name: str
    kind: str  # "reducer", "windows" or "block"
    summary: str
    formula: str
    source: str
    names: tuple[str, ...]
    nd: tuple[int, ...] = (1, 2, 3)
    parameters: str = "none"
    dtypes: str = "floating"
    mask: bool = True
    onnx: bool = True
    # reducers: the class, its settings worth testing, the plain definition on one window (values, which exist), and the
    # stem of the layer names (SoftPool2d: "Soft")
    reducer: Callable[..., Reducer] | None = None
    variants: tuple[dict[str, Any], ...] = ({},)
    reference: Callable[..., float] | None = None
    stem: str = ""
    differentiable: bool = True
    # windows and blocks: a small module and the arguments of a call to it
    sample: Callable[[], tuple[torch.nn.Module, tuple[Any, ...]]] | None = None
    aliases: tuple[str, ...] = field(default=())


_OPERATIONS: dict[str, Operation] = {}


def register(operation: Operation) -> Operation:
    """Add an operation to the table.

    Raises:
        ValueError: an operation of that name exists.
    """
    for name in (operation.name, *operation.aliases):
        if any(name in (other.name, *other.aliases) for other in _OPERATIONS.values()):
            raise check.invalid("name", "new in the table of operations", name)
    _OPERATIONS[operation.name] = operation
    return operation


def operations() -> dict[str, Operation]:
    """All operations by name.

    >>> operations()["soft"].kind
    'reducer'
    """
    return dict(_OPERATIONS)


def find_operation(name: str, kind: str | None = None) -> Operation:
    """The operation of that name or alias, whatever the case.

    Raises:
        ValueError: there is none; the nearest name is suggested.
    """
    known = {alias: op for op in _OPERATIONS.values() for alias in (op.name, *op.aliases) if kind in (None, op.kind)}
    key = name.lower().strip() if isinstance(name, str) else name
    if key not in known:
        check.choice("name" if kind is None else kind, key, sorted(known))
    return known[key]


def parse(spec: str | Reducer) -> Reducer:
    """A reducer from text such as "max", "gem:p=4" or "soft:beta=2".

    Raises:
        ValueError: unknown name or parameter; the nearest is suggested.

    >>> parse("gem:p=4")
    Power(p=4, norm='mean', signed='clamp', eps=1e-06)
    """
    if isinstance(spec, Reducer):
        return spec
    if not isinstance(spec, str):
        raise check.wrong_type("reducer", "a Reducer or the name of one", spec)
    operation, settings = parse_settings(spec)
    if operation.reducer is None:
        raise check.invalid("reducer", "the name of a reducer", spec)
    try:
        return operation.reducer(**settings)
    except TypeError as error:
        if "argument" not in str(error):
            raise
        raise check.invalid("reducer", f"settings that {operation.name!r} takes", spec) from error


def parse_settings(spec: str) -> tuple[Operation, dict[str, Any]]:
    """The reducer operation and the settings in text such as "gem:p=4,eps=1e-3"."""
    name, _, rest = spec.partition(":")
    operation = find_operation(name, "reducer")
    settings: dict[str, Any] = {}
    for item in filter(None, rest.split(",")):
        key, equals, text = item.partition("=")
        if not equals:
            raise check.invalid("reducer", "NAME or NAME:SETTING=VALUE,...", spec)
        settings[key.strip()] = _value(text.strip())
    return operation, settings


def _value(text: str) -> Any:
    if text in ("True", "true", "False", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


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
    windows: Callable[..., Windows],
    arguments: tuple[Any, ...],
    *,
    nd: int | None = None,
    mask: Any = None,
    sizes: Any = None,
) -> Any:
    """`apply` to `reducer(*settings)` over `windows(*arguments)`, which a call like an earlier one need not make."""
    if mask is None and sizes is None and choose().name == "cpu" and cpu.suits(input):
        types = plain(settings + arguments)
        shape = input.shape
        key = (reducer, settings, windows, arguments, types, nd, shape, input.dtype, len(shape) > 3 and in_pixels(input))
        entry = CALLS.get(key) if types is not None else None
        if entry is not None:
            found = entry(input, entry.reducer)
            if found is not None:
                return found
        elif types is not None:
            if len(CALLS) >= MOST:
                CALLS.clear()
            CALLS[key] = new_plan(input, reducer(*settings), windows(*arguments), nd)
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
    choice = choose(input.device.type if isinstance(input, Tensor) else "cpu")
    reducer = reducer if isinstance(reducer, Reducer) else made(parse, reducer)
    if not isinstance(windows, Windows):
        raise check.wrong_type("windows", "a Windows object such as Sliding(2)", windows)
    nd = windows.nd if nd is None else nd
    if mask is None and sizes is None and not return_mask:
        found = None
        if choice.name == "cpu" and cpu.suits(input):
            found = planned(input, reducer, windows, nd)
        elif choice.name == "triton" and triton.direct(input) and triton.suits(input) and not counter.listening():
            found = fused_plan(input, reducer, windows, nd)
        if found is not None:
            return found
    if tells and counter.listening():
        return counted(input, reducer, windows, nd=nd, mask=mask, sizes=sizes, return_mask=return_mask)
    single = isinstance(input, Tensor) and nd is not None and input.dim() == nd + 1
    if single:
        input = input.unsqueeze(0)
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
    if single:
        results = [tuple(item.squeeze(0) for item in r) if isinstance(r, tuple) else r.squeeze(0) for r in results]
    return results[0] if len(results) == 1 else tuple(results)


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


@dataclass(frozen=True, eq=False)
class Planned:
    """What calls alike in all but their values have in common."""

    reducer: Reducer  # both held: their addresses may be in the key
    windows: Windows
    layouts: list[Layout]
    fold: cpu.Fold | None  # None: the loops do not do it all at once
    single: bool
    learned: bool  # the reducer's parameter is a tensor
    direct: bool  # the fold's only result is the call's

    def __call__(self, input: Tensor, reducer: Reducer) -> Any:
        """The result, or None where the values need the definition."""
        fold, windows = self.fold, self.windows
        if fold is None:
            return None
        if self.direct:
            return fold.linear(input)
        if self.learned:  # values that the reducer would refuse are none that the loops take
            recipe = reducer.recipe()
            if isinstance(recipe, str):
                return None
            fold = cpu.Fold(fold.plan, recipe.parameter, None, definition(reducer, self.layouts))
        results = fold.run(input.unsqueeze(0) if self.single else input)
        if results is None:
            return None
        number = len(self.layouts)
        parts = [windows.assemble(list(results[i : i + number])) for i in range(0, len(results), number)]
        if self.single:
            parts = [tuple(item.squeeze(0) for item in r) if isinstance(r, tuple) else r.squeeze(0) for r in parts]
        return parts[0] if len(parts) == 1 else tuple(parts)


PLANS: dict[tuple[Any, ...], Planned] = {}
CALLS: dict[tuple[Any, ...], Planned] = {}


def planned(input: Tensor, reducer: Reducer, windows: Windows, nd: int | None) -> Any:
    """The whole call by a plan kept from one like it; None where the loops do not do it all at once."""
    shape = input.shape
    tokens = (token(reducer), token(windows))
    key = (tokens, nd, shape, input.dtype, len(shape) > 3 and in_pixels(input))
    entry = PLANS.get(key)
    if entry is None:
        if None in tokens:
            return None
        entry = new_plan(input, reducer, windows, nd)
        if len(PLANS) >= MOST:
            PLANS.clear()
        PLANS[key] = entry
    return entry(input, reducer)


def new_plan(input: Tensor, reducer: Reducer, windows: Windows, nd: int | None) -> Planned:
    nothing = Planned(reducer, windows, [], None, False, False, False)
    if windows.many or not windows.folds:
        return nothing
    single = nd is not None and input.dim() == nd + 1
    x, _, _ = prepared(input.detach().unsqueeze(0) if single else input.detach(), windows, nd, None, None)
    reducer.check(x)
    layouts = windows.layouts(tuple(x.shape[2:]), None)
    try:
        plan = cpu.make_plan(reducer.recipe(), layouts, tuple(x.shape), x.dtype, in_pixels(x))
    except cpu.Unsupported:
        return nothing
    parameter = plan.recipe.parameter
    learned = isinstance(parameter, Tensor)
    direct = plan.linear and not single and type(windows).assemble is Windows.assemble
    fold = cpu.Fold(plan, None if learned else parameter, None, definition(reducer, layouts))
    return Planned(reducer, windows, layouts, fold, single, learned, direct)


@dataclass(frozen=True, eq=False)
class FusedPlan:
    """`Planned` for the fused kernels: a call for each layout."""

    reducer: Reducer
    windows: Windows
    layouts: list[Layout]
    calls: tuple[triton.Fused, ...]  # none: the kernels do not do it all
    single: bool

    def __call__(self, input: Tensor, reducer: Reducer) -> Any:
        """The result, or None where the call must be made as if for the first time."""
        if not self.calls:
            return None
        x = input.unsqueeze(0) if self.single else input
        calls = self.calls
        if isinstance(calls[0].recipe.parameter, Tensor):
            calls = fused_calls(reducer, self.layouts, x, calls)
            if not calls:
                return None
        results = [call(x) for call in calls]
        parts = [self.windows.assemble(list(items)) for items in zip(*results, strict=True)]
        if self.single:
            parts = [tuple(item.squeeze(0) for item in r) if isinstance(r, tuple) else r.squeeze(0) for r in parts]
        return parts[0] if len(parts) == 1 else tuple(parts)


FUSED: dict[tuple[Any, ...], FusedPlan] = {}


def fused_plan(input: Tensor, reducer: Reducer, windows: Windows, nd: int | None) -> Any:
    """The whole call by kernels that were prepared for one like it; None where they do not do it all."""
    shape = input.shape
    tokens = (token(reducer), token(windows))
    key = (tokens, nd, shape, input.dtype, len(shape) > 3 and in_pixels(input), input.device)
    entry = FUSED.get(key)
    if entry is None:
        if None in tokens:
            return None
        single = nd is not None and input.dim() == nd + 1
        x = input.detach().unsqueeze(0) if single else input.detach()
        layouts: list[Layout] = []
        calls: tuple[triton.Fused, ...] = ()
        if windows.folds and not windows.many and x.numel() > 0:
            x, _, _ = prepared(x, windows, nd, None, None)
            reducer.check(x)
            layouts = windows.layouts(tuple(x.shape[2:]), None)
            calls = fused_calls(reducer, layouts, x)
        if len(FUSED) >= MOST:
            FUSED.clear()
        entry = FUSED[key] = FusedPlan(reducer, windows, layouts, calls, single)
    return entry(input, reducer)


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
    if choice.name == "eager" or not cpu.suits(x):
        return None
    mask = None if folds.mask is folds.own else folds.mask
    channels = 0 if mask is None else mask.shape[1]
    recipe = reducer.recipe()
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
    if not triton.suits(x) or x.numel() == 0:
        return None
    recipe = reducer.recipe()
    # tables hold the samples' own sizes; along running windows, whose tables are not looked at, the mask does
    running = folds.layout.own_position and not isinstance(recipe, str) and recipe.op not in triton.LISTED
    mask = folds.mask if running or folds.mask is not folds.own else None
    define = None if traced() else lambda x: defined(reducer, x, folds)[0][0]
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
    if choice.named and x.numel() > 0:
        message = f"`EVERYPOOL_IMPL` must be an implementation that does this, got {choice.name!r}: {why}"
        raise NotImplementedError(message) from (why if isinstance(why, Exception) else None)


def run(reducer: Reducer, x: Tensor, folds: Folds) -> Reduced:
    """One reducer over one layout, by the implementation that suits."""
    if counter.listening():  # what is made again for a gradient must be made in the same way
        with counter.quiet():
            found = compiled(reducer, x, folds)
            return defined(reducer, x, folds) if found is None else found
    found = compiled(reducer, x, folds)
    return defined(reducer, x, folds) if found is None else found


def existing(exists: Exists) -> Tensor | None:
    """Which windows exist; None where all do."""
    return exists if exists is None or isinstance(exists, Tensor) else exists()


def defined(reducer: Reducer, x: Tensor, folds: Folds) -> Reduced:
    """One reducer over one layout; windows without a valid element give 0 (as an index -1) and no gradient."""
    parts, told = reducer.define(x, folds)
    exists = folds.exists() if told is None else existing(told)
    if exists is not None:
        parts = tuple(part.masked_fill(~exists, -i) for i, part in enumerate(parts))
    return (parts[0].to(x.dtype), *parts[1:]), exists


def finished(y: Tensor, input: Tensor) -> Tensor:
    """y in the input's memory layout."""
    last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(input.dim())
    if last is None or y.dim() != input.dim() or input.is_contiguous() or not input.is_contiguous(memory_format=last):
        return y.contiguous()
    return y.contiguous(memory_format=last)


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
        if not torch.compiler.is_exporting() and 0 in x.shape[2:]:
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
    fits = mask.dim() == x.dim() and mask.shape[0] == x.shape[0] and mask.shape[2:] == x.shape[2:]
    if not fits or (mask.shape[1] != 1 and mask.shape[1] != x.shape[1]):
        raise check.invalid("mask", mask_rule(x), mask)
    if mask.device != x.device:
        raise check.invalid("mask", f"on the device of the input, {x.device}", check.Shown(str(mask.device)))
    return mask


def mask_rule(x: Tensor) -> str:
    batch, channels, *spatial = x.shape
    return f"a bool tensor of shape (N, 1 or C, *spatial) = ({batch}, 1 or {channels}, {', '.join(map(str, spatial))})"


def checked_sizes(sizes: Any, x: Tensor) -> Tensor:
    nd = x.dim() - 2
    if not isinstance(sizes, Tensor):
        try:
            sizes = torch.as_tensor(sizes)
        except (TypeError, ValueError, RuntimeError) as error:
            raise check.wrong_type("sizes", sizes_rule(x), sizes) from error
        sizes = sizes.reshape(0, nd) if sizes.numel() == 0 else sizes
        sizes = sizes.to(x.device) if sizes.dtype in check.INTEGRAL or sizes.numel() else sizes.to(x.device, torch.int64)
    if sizes.dim() == 1 and nd == 1:
        sizes = sizes.unsqueeze(1)
    if sizes.dtype not in check.INTEGRAL:
        raise check.wrong_type("sizes", sizes_rule(x), sizes)
    if sizes.dim() != 2 or sizes.shape[0] != x.shape[0] or sizes.shape[1] != nd:
        raise check.invalid("sizes", sizes_rule(x), sizes)
    if sizes.device != x.device:
        raise check.invalid("sizes", f"on the device of the input, {x.device}", check.Shown(str(sizes.device)))
    sizes = sizes.to(torch.int64)
    if readable(sizes):
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
