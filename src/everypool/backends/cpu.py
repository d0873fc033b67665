"""The compiled loops on CPU: which of them is loaded, plans for them, and their gradients.

A plan is what the loops need to know of windows, reducer and shape; plans are kept, so that a small call costs no more
than torch's own. Tensors cross as addresses. Whatever the loops do not do (`Unsupported` says why) the definition does.
"""

from __future__ import annotations

import ctypes
import importlib
import math
import os
from array import array
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from everypool import _check as check
from everypool.backends.axes import Axis, Rule
from everypool.backends.context import find_obstacle, force_differentiable_ops, has_address
from everypool.backends.gradients import by_definition
from everypool.backends.layout import Cells, Layout, compute_strides, lay_out
from everypool.backends.linear import LinearMap
from everypool.backends.recipe import Recipe, parameter_values

__all__ = ["INSTRUCTIONS", "Fold", "Plan", "Unsupported", "library", "make_plan", "missing", "unsupported_reason"]

INSTRUCTIONS = ("avx2", "baseline", "avx512")  # best first; AVX-512 has not run on a machine that has it: only on request
VARIABLE = "EVERYPOOL_ISA"

CPU = torch.device("cpu")
TYPES = {
    torch.float32: 0,
    torch.float64: 1,
    torch.bfloat16: 2,
    torch.float16: 3,
    torch.int8: 4,
    torch.uint8: 5,
    torch.int16: 6,
    torch.int32: 7,
    torch.int64: 8,
    torch.bool: 5,
}
OPS = {"max": 0, "mean": 1, "power": 2, "soft": 3, "logsumexp": 4, "centre": 0}
NO_LOOP = {"even_max": "equal maxima share the gradient", "median": "no compiled loop puts values in order"}
PLAIN = ("max", "mean", "centre")  # their gradients need no values
NO_MEMORY = "the gradient of a linear reducer needs nothing but memory, and there was none"
NEAR_ZERO = 1e-2  # parameters below need the series of the definition


class Unsupported(Exception):
    """Why the compiled loops do not do something."""


def library() -> Any | None:
    """The extension module in use, or None."""
    return _LIBRARY


def missing() -> dict[str, str]:
    """Why each instruction set that is not in use is not."""
    return dict(_MISSING)


def _load() -> Any | None:
    forced = os.environ.get(VARIABLE)
    if forced:
        check.choice(VARIABLE, forced, INSTRUCTIONS)
    modules: dict[str, Any] = {}
    for name in INSTRUCTIONS:
        try:
            modules[name] = importlib.import_module(f"everypool._cpu_{name}")
        except ImportError as error:
            _MISSING[name] = f"not built: {error}"
    found = None
    for name, module in modules.items():
        if not module.supports(name):
            _MISSING[name] = "this machine does not have it"
        elif found is not None:
            _MISSING[name] = "a better one is in use"
        elif forced and name != forced:
            _MISSING[name] = f"not asked for: {VARIABLE}={forced}"
        else:
            found = module
    if forced and found is None:
        raise NotImplementedError(
            f"`{VARIABLE}` must be an instruction set that works here, got {forced!r}: {_MISSING[forced]}"
        )
    if found is not None:
        found.use_threads(_parallel_for())
    return found


def _parallel_for() -> int:
    """Address of torch's own loop over its threads; 0 where this torch has none."""
    folder = Path(torch.__file__).parent / "lib"
    for name in ("libtorch_cpu.so", "libtorch_cpu.dylib"):
        try:
            function = ctypes.CDLL(str(folder / name)).torch_parallel_for
        except (OSError, AttributeError):
            continue
        return ctypes.cast(function, ctypes.c_void_p).value or 0
    return 0


_MISSING: dict[str, str] = {}
_LIBRARY = _load()


def unsupported_reason(x: Any) -> str | None:
    """Return why the loops cannot have this tensor now; None for an ordinary CPU tensor in plain eager mode."""
    if _LIBRARY is None:
        return "the compiled loops are not installed"
    found = find_obstacle(x)
    return found if found is not None or x.is_cpu else f"the compiled loops are for the CPU, the input is on {x.device}"


Place = tuple[tuple[int, ...], tuple[int, ...]]  # shape and strides of a tensor to be made


def place(shape: tuple[int, ...], pixels: bool) -> Place:
    return shape, compute_strides(shape, pixels)


@dataclass(frozen=True, eq=False)
class Plan:
    """One reducer over some layouts of one shape and type, ready to run."""

    recipe: Recipe
    library: Any
    handle: Any
    back: Any  # the plan of the gradient
    dtype: torch.dtype
    pixels: bool  # channels lie side by side
    shape: tuple[int, ...]
    place: Place  # of the gradient
    outs: tuple[Place, ...]
    kept: tuple[int, ...]  # bytes to keep for the gradient, per layout
    bands: int
    by_axis: bool  # folded axis by axis instead of element by element
    linear: bool  # one layout, only its values are asked for, and a gradient needs none of them

    def empty(self, like: Tensor, place: Place) -> Tensor:
        """Return memory for a result or a gradient; to name the type of `like` would take as long again as to allocate it."""
        return like.new_empty_strided(*place)

    def keep(self, like: Tensor, number: int) -> Tensor:
        """Return memory for so many bytes, in numbers of the type of `like`."""
        return like.new_empty_strided((-(-number // like.itemsize),), (1,))

    def laid_out(self, x: Tensor) -> Tensor:
        """x in the memory layout of this plan."""
        return lay_out(x, True) if self.pixels else x.contiguous()


def make_plan(
    recipe: Recipe | str,
    layouts: Sequence[Layout],
    shape: tuple[int, ...],
    dtype: torch.dtype,
    pixels: bool,
    mask_channels: int = 0,
) -> Plan:
    """A plan for an input of that shape (N, C, *spatial).

    Raises:
        Unsupported: no compiled loop does this, with the reason.
    """
    module = _LIBRARY
    if module is None:
        raise Unsupported("the compiled loops are not installed")
    if isinstance(recipe, str):
        raise Unsupported(recipe)
    if recipe.op in NO_LOOP:
        raise Unsupported(NO_LOOP[recipe.op])
    if recipe.both:
        raise Unsupported("the mean of two middles has no compiled loop")
    if dtype not in TYPES or (recipe.op not in ("max", "centre") and not dtype.is_floating_point):
        raise Unsupported(f"{dtype} has no compiled loop for this reducer")
    if 0 in shape:
        raise Unsupported("the input is empty")
    if recipe.op == "centre" and mask_channels:
        raise Unsupported("the value in the middle with a mask has no compiled loop")
    tables: list[Tensor] = []  # kept alive until the plan has copied them
    axes: list[int] = [len(layouts)]
    for layout in layouts:
        axes += [int(layout.own_position), 0, *_axes(layout, recipe, tables)]
    index = 2 if recipe.index else 0
    settings = [int(recipe.absolute), int(recipe.last), int(recipe.sum), int(recipe.plain_gradient), mask_channels]
    divisor = 1 if recipe.divisor is not None else 2 if recipe.cells else 0
    reals = (recipe.eps, float(recipe.divisor or 1))
    start = [shape[0], shape[1], TYPES[dtype], int(pixels and shape[1] > 1)]  # the planes of one channel lie as pixels do
    try:
        handle = module.plan((*start, OPS[recipe.op], index, divisor, *settings, *axes), reals)
        back = handle
        if recipe.op == "centre" and dtype.is_floating_point:
            back = module.plan((*start, OPS["mean"], 0, 0, *settings, *axes), reals)
    except ValueError as error:
        raise Unsupported(str(error)) from error
    kept, bands, by_axis, _ = module.describe(handle)
    bands = module.describe(back)[1]
    linear = len(layouts) == 1 and not recipe.index and recipe.op in PLAIN and dtype is not torch.bool
    linear = linear and not (recipe.op == "mean" and dtype is torch.float64)  # whose sum may overflow
    outs = tuple(place((*shape[:2], *layout.out), pixels) for layout in layouts)
    kept = (0,) * len(layouts) if recipe.op == "centre" else kept
    return Plan(
        recipe, module, handle, back, dtype, pixels, shape, place(shape, pixels), outs, kept, bands, bool(by_axis), linear
    )


ALONE = (1, 1, Rule.SLIDING, 1, 1, 1, 0, 0, 1, 0, 0, 1, 0, 0, 0)  # an axis of one element, for lines and planes


def _axes(layout: Layout, recipe: Recipe, tables: list[Tensor]) -> list[int]:
    """Three axes in numbers; the missing ones of a line or a plane hold one element."""
    numbers = [*ALONE] * (3 - len(layout.axes))
    for at, axis in enumerate(layout.axes):
        cells = None if layout.extents is None else layout.extents[at]
        if layout.sizes is None and axis.rule is not None:
            numbers += _described(axis, axis.rule, cells, recipe)
        else:
            numbers += _listed(layout, at, cells, recipe, tables)
    return numbers


def _described(axis: Axis, rule: Rule, cells: Cells | None, recipe: Recipe) -> list[int]:
    """An axis whose windows are numbers."""
    right, middle = 0 if cells is None else int(cells.right), 0 if recipe.op != "centre" else 2 if recipe.upper else 1
    sliding = [rule.step, rule.kernel, rule.stride, rule.left, right, int(cells is not None)]
    return [axis.n, axis.out, rule.kind, *sliding, middle, 0, 1, 0, 0, 0]


def _listed(layout: Layout, at: int, cells: Cells | None, recipe: Recipe, tables: list[Tensor]) -> list[int]:
    """An axis whose windows are tables, a row for each sample where samples differ."""
    axis, size = layout.axes[at], None if layout.sizes is None else layout.sizes[:, at]
    spans = axis.spans(size)
    start, count, step, run = spans.start, spans.count, spans.step, spans.run
    if layout.out_sizes is not None:
        count = torch.where(torch.arange(axis.out) < layout.out_sizes[:, at].reshape(-1, 1), count, 0)
    if recipe.op == "centre":
        middle = axis.centre(torch.device("cpu"), recipe.upper, size).reshape(-1, axis.out)
        start, count = torch.broadcast_tensors(middle, (count > 0).to(torch.int64))
        step, run = 1, 0
    rows = start.shape[0]
    found = [start.to(torch.int64).contiguous(), count.to(torch.int64).contiguous()]
    if cells is not None:
        found.append(cells.count(torch.device("cpu")).reshape(-1, axis.out).expand(rows, axis.out).contiguous())
    tables += found
    addresses = [table.data_ptr() for table in found] + [0] * (3 - len(found))
    return [axis.n, axis.out, Rule.LISTED, step, 1, 1, 0, 0, int(cells is not None), 0, run, rows, *addresses]


@dataclass(eq=False)
class Fold:
    """One call: a plan with its tensors. `define` computes the same by the definition."""

    plan: Plan
    parameter: Any = None  # a number, or a tensor that may want a gradient
    mask: Tensor | None = None
    define: Callable[[Tensor], tuple[Tensor, ...]] | None = None
    values: array[float] | None = None  # the parameter's, one or one per channel

    def run(self, x: Tensor) -> tuple[Tensor, ...] | None:
        """The results (each layout's values, then each one's positions); None where the definition must do it."""
        plan = self.plan
        recipe = plan.recipe
        if recipe.parameter is not None and self.values is None and not self._ready():
            return None
        if x.dtype is torch.bool:
            x = x.view(torch.uint8)
        x = plan.laid_out(x)
        parameter = self.parameter
        learns = torch.is_grad_enabled() and (x.requires_grad or (isinstance(parameter, Tensor) and parameter.requires_grad))
        ys = [plan.empty(x, out) for out in plan.outs]
        positions = [torch.empty_strided(*out, dtype=torch.int64, device=CPU) for out in plan.outs] if recipe.index else []
        kept = [plan.keep(x, n) if learns and n else None for n in plan.kept]
        if not self._call(x, 1 if learns and recipe.op not in ("mean", "centre") else 0, ys, kept, positions):
            return None
        if recipe.op == "mean" and plan.dtype is torch.float64 and not all(map(_is_finite, ys)):
            return None  # no wider type could hold the sum
        results = (*ys, *positions)
        if learns:
            needed = parameter if isinstance(parameter, Tensor) else None
            results = _Graph.apply(x, needed, self, kept, results)
        if plan.dtype is torch.bool:
            results = tuple(y.view(torch.bool) if y.dtype is torch.uint8 else y for y in results)
        return results

    def linear(self, x: Tensor) -> Tensor:
        """`run` for a plan that is `linear`: small calls are common."""
        if x.requires_grad and torch.is_grad_enabled():
            return _attach(x, self)
        plan = self.plan
        x, y = plan.laid_out(x), plan.empty(x, plan.outs[0])
        plan.library.forward(plan.handle, x.data_ptr(), 0, 0, 0, 0, 0, y.data_ptr(), 0, 0)
        return y

    def _ready(self) -> bool:
        values = parameter_values(self.parameter, self.plan.shape[1])
        least = 0.0 if self.plan.recipe.op == "soft" else NEAR_ZERO
        if values is None or not all([least <= abs(v) < math.inf for v in values]):
            return False
        self.values = array("d", values)
        return True

    def _parameter(self) -> tuple[int, int]:
        """Address and number of the parameter's values."""
        return (0, 0) if self.values is None else self.values.buffer_info()

    def _call(self, x: Tensor, what: int, ys: list[Tensor], kept: Sequence[Tensor | None], positions: list[Tensor]) -> bool:
        plan, mask = self.plan, self.mask
        addresses: list[int] = []
        for i, y in enumerate(ys):
            keep = kept[i]
            addresses += (y.data_ptr(), 0 if keep is None else keep.data_ptr(), positions[i].data_ptr() if positions else 0)
        return plan.library.forward(
            plan.handle,
            x.data_ptr(),
            0 if mask is None else mask.data_ptr(),
            *self._parameter(),
            what,
            0,
            *addresses,
        )

    def gradient(
        self, x: Tensor | None, kept: Sequence[Tensor | None], grads: Sequence[Tensor], slope: bool
    ) -> tuple[Tensor, Tensor | None] | None:
        """Gradients of the input and of the parameter's values; None where the definition must do it."""
        plan, mask = self.plan, self.mask
        dx = plan.empty(grads[0], plan.place)
        slopes = torch.zeros((plan.bands, plan.shape[0], plan.shape[1]), dtype=torch.float64, device=CPU) if slope else None
        addresses: list[int] = []
        held = [plan.laid_out(g) for g in grads]
        for g, keep in zip(held, kept, strict=True):
            addresses += (g.data_ptr(), 0 if keep is None else keep.data_ptr(), 0)
        done = plan.library.backward(
            plan.back,
            dx.data_ptr() if x is None else x.data_ptr(),
            0 if mask is None else mask.data_ptr(),
            *self._parameter(),
            dx.data_ptr(),
            0 if slopes is None else slopes.data_ptr(),
            *addresses,
        )
        if not done:
            return None
        return dx, None if slopes is None else slopes.sum((0, 1))

    def linear_map(self, kept: Sequence[Tensor | None]) -> LinearMap:
        """Return the map of a reducer that is linear once its maxima are known, for gradients without an address."""
        outs = [shape for shape, _ in self.plan.outs]
        back: Callable[..., Sequence[Tensor]] = lambda *grads: (_linear(self, kept, grads),)  # noqa: E731
        return LinearMap(lambda x: self.again(x, kept), back, [self.plan.shape], outs)

    def again(self, x: Tensor, kept: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
        """A reducer that is linear once its maxima are known, of other values: of those at the same places."""
        ys = [self.plan.empty(x, out) for out in self.plan.outs]
        self._call(self.plan.laid_out(x), 2 if self.plan.recipe.op == "max" else 0, ys, kept, [])
        return tuple(ys)


class _Graph(Function):
    """Results that the loops have made, with their gradient."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, parameter: Tensor | None, fold: Fold, kept: list[Tensor | None], results: tuple[Tensor, ...]
    ) -> tuple[Tensor, ...]:
        ctx.fold = fold
        plain = fold.plan.recipe.op in PLAIN
        ctx.save_for_backward(*(() if plain else (x, parameter)), *kept)
        positions = results[len(fold.plan.outs) :]
        if positions:
            ctx.mark_non_differentiable(*positions)
        return results

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        fold: Fold = ctx.fold
        grads = grads[: len(fold.plan.outs)]
        addressable = has_address(*grads)
        if fold.plan.recipe.op in PLAIN:
            if not addressable:
                return fold.linear_map(ctx.saved_tensors).apply_transpose(*grads)[0], None, None, None, None
            if not torch.is_grad_enabled():
                return _linear(fold, ctx.saved_tensors, grads), None, None, None, None
            return _Back.apply(fold, ctx.saved_tensors, *grads), None, None, None, None
        x, parameter, *kept = ctx.saved_tensors
        slope = ctx.needs_input_grad[1]
        if addressable and not torch.is_grad_enabled():
            found = fold.gradient(x, kept, grads, slope)
            if found is not None:
                dx, slopes = found
                return dx, None if slopes is None else _like(slopes, parameter), None, None, None
        with nullcontext() if addressable else force_differentiable_ops():
            return *_defined(fold, x, parameter, ctx.needs_input_grad, grads), None, None, None


def _like(slopes: Tensor, parameter: Tensor) -> Tensor:
    total = slopes.sum() if parameter.numel() == 1 else slopes
    return total.reshape(parameter.shape).to(parameter.dtype)


def _defined(
    fold: Fold, x: Tensor, parameter: Tensor | None, needs: Sequence[bool], grads: Sequence[Tensor]
) -> list[Tensor | None]:
    """The gradients by the definition, with a graph of their own where one is recorded."""
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        if not again:
            x = x.detach().requires_grad_()
        ys = fold.define(x)  # type: ignore[misc]
        return by_definition(ys, (x, parameter), needs[:2], grads, again=again)


class _Linear(Function):
    """`_Graph` with the call inside, for one result: as little as autograd asks for."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, fold: Fold) -> Tensor:
        plan = fold.plan
        x, y = plan.laid_out(x), plan.empty(x, plan.outs[0])
        kept = plan.keep(x, plan.kept[0]) if plan.kept[0] else None
        what, to = (0, 0) if kept is None else (1, kept.data_ptr())
        plan.library.forward(plan.handle, x.data_ptr(), 0, 0, 0, what, 0, y.data_ptr(), to, 0)
        ctx.fold = fold
        ctx.save_for_backward(kept)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        fold: Fold = ctx.fold
        if not has_address(grad):
            return fold.linear_map(ctx.saved_tensors).apply_transpose(grad)[0], None
        if torch.is_grad_enabled():
            return _Back.apply(fold, ctx.saved_tensors, grad), None
        plan = fold.plan
        (kept,) = ctx.saved_tensors
        grad, dx = plan.laid_out(grad), plan.empty(grad, plan.place)
        to, from_ = dx.data_ptr(), 0 if kept is None else kept.data_ptr()
        if not plan.library.backward(plan.back, to, 0, 0, 0, to, 0, grad.data_ptr(), from_, 0):
            raise MemoryError(NO_MEMORY)
        return dx, None


# `Function.apply` without its search for torch.func's wrappers, a third of its time: `suits` has seen that there are none
_attach: Callable[[Tensor, Fold], Tensor] = super(Function, _Linear).apply


def _is_finite(y: Tensor) -> bool:
    return math.isfinite(float(y.sum())) or bool(y.isfinite().all())  # a sum reads once and writes nothing


def _linear(fold: Fold, kept: Sequence[Tensor | None], grads: Sequence[Tensor]) -> Tensor:
    found = fold.gradient(None, kept, grads, False)
    if found is None:
        raise MemoryError(NO_MEMORY)
    return found[0]


class _Back(Function):
    """The gradient of a reducer that is linear once its maxima are known; its own gradient is the reducer again."""

    @staticmethod
    def forward(ctx: Any, fold: Fold, kept: Sequence[Tensor | None], *grads: Tensor) -> Tensor:
        ctx.fold, ctx.kept = fold, kept
        return _linear(fold, kept, grads)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        if not has_address(grad):
            return None, None, *ctx.fold.linear_map(ctx.kept)(grad)
        return None, None, *_Forth.apply(ctx.fold, ctx.kept, grad)


class _Forth(Function):
    @staticmethod
    def forward(ctx: Any, fold: Fold, kept: Sequence[Tensor | None], x: Tensor) -> tuple[Tensor, ...]:
        ctx.fold, ctx.kept = fold, kept
        return fold.again(x, kept)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        if not has_address(*grads):
            return None, None, *ctx.fold.linear_map(ctx.kept).apply_transpose(*grads)
        return None, None, _Back.apply(ctx.fold, ctx.kept, *grads)
