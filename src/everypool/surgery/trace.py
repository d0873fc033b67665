"""What runs in a model when it is given an example: modules, poolings called as functions, sums of maps."""

from __future__ import annotations

import functools
import itertools
import math
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from everypool import _check as check
from everypool import _overrides, functional, reducers
from everypool.pool import operations
from everypool.reducers._layer import AdaptiveLayer, GlobalLayer, SlidingLayer
from everypool.surgery.flow import Flow, Uses
from everypool.surgery.own import named
from everypool.surgery.rules.table import bound, dims

__all__ = [
    "Call",
    "Run",
    "Site",
    "arguments",
    "axes_of",
    "channels_last",
    "check_model",
    "is_doubtful",
    "is_known",
    "kind",
    "known_as",
    "looking",
    "one_tensor",
    "pads_same",
    "tensors",
    "traced",
]

SLIDING = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d,
           nn.LPPool1d, nn.LPPool2d, nn.LPPool3d, SlidingLayer)  # fmt: skip
WHOLE = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d,
         nn.AdaptiveMaxPool3d, AdaptiveLayer, GlobalLayer)  # fmt: skip
OTHERS = re.compile(r"(?i:pool)|^(?i:gem)(?![a-z])")  # in names of classes that pool, if they behave like it
MERGES = ("add", "add_", "__add__", "__iadd__", "__radd__", "cat", "concat")
REDUCTIONS = {"mean": "avg", "amax": "max", "max": "max", "logsumexp": "logsumexp"}  # over places these pool a map
STATISTICS = {  # over places these may pool it too, but no layer has the same words; what each takes after its input
    **dict.fromkeys(
        ("sum", "nansum", "nanmean", "amin", "min", "aminmax", "median", "nanmedian", "mode", "prod"), "dim keepdim"
    ),
    **dict.fromkeys(("std", "var", "std_mean", "var_mean"), "dim unbiased keepdim"),
    **dict.fromkeys(("norm", "vector_norm", "linalg_norm", "linalg_vector_norm"), "p dim keepdim"),
    **dict.fromkeys(("quantile", "nanquantile", "kthvalue"), "q dim keepdim"),
    "topk": "k dim",
}
WINDOWS = {  # what follows the input, by position
    "max": ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices"),
    "avg": ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override"),
    "lp": ("norm_type", "kernel_size", "stride", "ceil_mode"),
    "adaptive_max": ("output_size", "return_indices"),
    "adaptive_avg": ("output_size",),
}
NAMED = re.compile(r"((?:adaptive_)?(?:max|avg|lp))_pool([123])d(_with_indices)?")
FRACTIONAL = re.compile(r"fractional_max_pool[23]d(_with_indices)?")
MOVED: set[CodeType] = set()  # functions that a swap has made methods of
FORWARD = (nn.Module._call_impl.__code__,)  # where a module begins
LEAST = -1e9  # no value of a map, but what masks put there
DEEPEST = 16  # calls within calls that are looked at
INNER = (  # what is not the user's code
    *(f"{Path(file).parent}{os.sep}" for file in (torch.__file__, __file__)),
    _overrides.__file__,
    functional.__file__,
)


@dataclass(frozen=True)
class Site:
    """A call in somebody's source: the code that it stands in, and where in its file (lines from 1, columns from 0)."""

    code: CodeType
    line: int
    column: int | None  # None: Python before 3.11 does not say
    end: tuple[int, int] | None
    outer: Site | None = None  # the call of a function within which this one is made, as far as a method of the module

    @property
    def file(self) -> str:
        return self.code.co_filename

    def __str__(self) -> str:
        return f"{Path(self.file).name}:{self.line}"


@dataclass(frozen=True)
class Call:
    """A pooling called as a function.

    Args:
        function: its name, such as "max_pool2d" or "mean".
        method: it was called as a method of its input.
        reducer: "max", "avg", "lp" or "logsumexp"; "" where no reducer is the same.
        kind: "sliding", "adaptive" or "global", or "strip" where some of the spatial axes are reduced; "" where it is not sure
            that it is a pooling.
        window: its arguments by the names of torch.nn.
        axes: those that are reduced, where it is a reduction such as `mean`.
        keepdim: whether the reduced axes stay, of size 1.
        batch: the axis of samples.
        indices: it gives places beside values.
        site: where it stands.
    """

    function: str
    method: bool
    reducer: str
    kind: str
    window: Mapping[str, Any] = field(default_factory=dict)
    axes: tuple[int, ...] = ()
    keepdim: bool = False
    batch: int = 0
    indices: bool = False
    site: Site | None = None


@dataclass(frozen=True, eq=False)
class Run:
    """A module or a function has run; without either, a sum or a concatenation of maps.

    Args:
        owners: the modules around it, outermost first.
        like: an empty tensor of the input's type on its device.
        negative: the input has values below zero.
        uses: what became of the result, if it is a statistic of a map.
        reducer: what a module computes, as far as its type or its result says.
    """

    module: nn.Module | None = None
    call: Call | None = None
    input: torch.Size = torch.Size()  # noqa: RUF009
    output: torch.Size = torch.Size()  # noqa: RUF009
    owners: tuple[nn.Module, ...] = ()
    like: Tensor | None = None
    negative: bool = False
    uses: Uses | None = None
    reducer: str = ""


def channels_last(module: nn.Module) -> bool:
    """Whether it is one of timm's that pool (N, H, W, C)."""
    return getattr(module, "dim", None) in ((1, 2), [1, 2])


def kind(run: Run) -> str | None:
    """What kind of pooling has run, if it was one."""
    if run.call is not None:
        return run.call.kind or None
    module = run.module
    if isinstance(module, SLIDING):
        return "sliding"
    before, after = places_first(run)
    whole = len(after) == 2 or math.prod(after[2:]) == 1
    if isinstance(module, WHOLE):
        return "global" if whole else "adaptive"
    if not is_like_a_pooling(run):
        return None
    if all(isinstance(getattr(module, setting, None), (int, tuple)) for setting in ("kernel_size", "stride")):
        return "sliding"
    return "global" if whole and math.prod(before[2:]) > 1 else None


def places_first(run: Run) -> tuple[torch.Size, torch.Size]:
    """The shapes of input and output, (N, C, *spatial)."""
    before, after = run.input, run.output
    if run.module is not None and channels_last(run.module):
        before = torch.Size([before[0], before[-1], *before[1:-1]])
        after = torch.Size([after[0], after[-1], *after[1:-1]])
    return before, after


def is_like_a_pooling(run: Run) -> bool:
    """Whether a module is called a pooling and behaves like one: it has no parts, keeps channels, and gives no more places."""
    module = run.module
    if module is None or next(module.children(), None) is not None or not OTHERS.search(type(module).__name__):
        return False
    before, after = places_first(run)
    return len(before) >= 3 and before[:2] == after[:2] and math.prod(after[2:]) <= math.prod(before[2:])


def is_doubtful(run: Run) -> bool:
    """Whether it may be a pooling, which nothing here can replace."""
    if run.call is not None:
        return not run.call.kind
    fewer = math.prod(run.output[2:]) < math.prod(run.input[2:])
    return kind(run) is None and is_like_a_pooling(run) and fewer


def traced(model: nn.Module, example: Any) -> list[Run]:
    """What runs, in order: poolings, modules with parameters, and sums and concatenations of maps.

    Args:
        model: it is run once, in evaluation mode, and left as it is.
        example: a tensor, a tuple of arguments, or a mapping of arguments by name.
    """
    runs: list[Run] = []
    nd = axes_of(example)
    owners: list[nn.Module] = []
    flow = Flow(itertools.chain(model.parameters(), model.buffers()), nd)

    def enter(module: nn.Module, inputs: Any) -> None:
        owners.append(module)

    def leave(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        owners.pop()
        given, made = first(args, kwargs), first(output)
        if given is not None and made is not None:
            run = Run(module, None, given.shape, made.shape, tuple(owners), given[:0])
            if kind(run) is not None:
                runs.append(replace(run, negative=below(given), reducer=reducer_of(module, given, made)))
            elif next(module.parameters(recurse=False), None) is not None or is_doubtful(run):
                runs.append(run)

    class Functions(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = kwargs or {}
            output = func(*args, **kwargs)
            name = named(func)
            if name in MERGES and (not owners or next(owners[-1].children(), None) is not None):
                given = args[0] if name in ("cat", "concat") and args else args[:2]
                shapes = {item.shape[2:] if isinstance(item, Tensor) and item.dim() == nd + 2 else None for item in given}
                if len(given) > 1 and len(shapes) == 1 and math.prod(shapes.pop() or [0]) > 1:
                    runs.append(Run())
            x, made = args[0] if args else kwargs.get("input"), first(output)
            call = None
            if isinstance(x, Tensor) and made is not None and not flow.is_constant(x):
                call = called(func, name, x, made, args[1:], kwargs, flow, owners)
                if call is not None:
                    uses = flow.reduce(x, call.axes, call.keepdim, output) if call.axes else None
                    runs.append(Run(None, call, x.shape, made.shape, tuple(owners), x[:0], below(x), uses))
            if call is None or not call.axes:
                flow.follow(name, func, args, kwargs, output)
            return output

    with looking(model), ExitStack() as stack:
        for module in model.modules():
            stack.callback(module.register_forward_pre_hook(enter).remove)
            stack.callback(module.register_forward_hook(leave, with_kwargs=True).remove)
        args, kwargs = arguments(example)
        with Functions():
            output = model(*args, **kwargs)
    flow.finish(output)
    # what a pooling module calls is its own business
    pools = {run.module for run in runs if run.module is not None and (kind(run) is not None or is_doubtful(run))}
    runs = [run for run in runs if run.call is None or pools.isdisjoint(run.owners)]
    return [run for run in runs if run.uses is None or run.uses.is_pooled]


def is_filled(x: Tensor) -> bool:
    """Whether some elements hold what stands for nothing before a maximum is taken."""
    return x.is_floating_point() and x.numel() > 0 and bool((x <= LEAST).any())


def below(x: Tensor) -> bool:
    return x.is_floating_point() and x.numel() > 0 and bool((x < 0).any())


def called(
    func: Any, name: str, x: Tensor, made: Tensor, args: Any, kwargs: Mapping[str, Any], flow: Flow, owners: list[nn.Module]
) -> Call | None:
    """The pooling that a function of x is with these arguments, if it is one or may be one."""
    method = type(func).__name__ in ("method_descriptor", "wrapper_descriptor")
    if name in REDUCTIONS or name in STATISTICS:
        given = bound(STATISTICS.get(name, "dim keepdim"), args, dict(kwargs))
        axes = axes_in(given.get("dim", given.get("axis", -1 if name == "topk" else None)), x.dim())
        found = reduced(x, axes, flow)
        if found is None:
            return None
        more = any(value is not None for key, value in given.items() if key not in ("input", "dim", "axis", "keepdim"))
        reducer = "" if more or is_filled(x) else REDUCTIONS.get(name, "")
        batch = (flow.layout_of(x) or "n").find("n")
        keepdim = made.dim() == x.dim()
        return Call(name, method, reducer, found * bool(reducer), {}, axes, keepdim, batch, name == "max", site(owners))
    if FRACTIONAL.fullmatch(name) or (name == "interpolate" and kwargs.get("mode") == "area" and made.numel() < x.numel()):
        return Call(name, False, "", "", site=site(owners))
    match = NAMED.fullmatch(name)
    if match is None:
        is_own = (getattr(func, "__module__", None) or "").startswith("everypool.") and OTHERS.search(name)
        return Call(name, False, "", "", site=site(owners)) if is_own else None
    reducer = match[1].removeprefix("adaptive_")
    window = dict(zip(WINDOWS[match[1]], args, strict=False)) | {k: v for k, v in kwargs.items() if k != "input"}
    if any(window[key] is not None for key in window.keys() - set(WINDOWS[match[1]])):  # a mask
        return Call(name, False, "", "", site=site(owners))
    indices = bool(window.pop("return_indices", False) or match[3])
    found = "sliding"
    if "output_size" in window:
        size = window["output_size"]
        sizes = tuple(size) if isinstance(size, (tuple, list)) else (size,)
        window["output_size"] = sizes if len(sizes) > 1 else sizes[0]
        found = "global" if all(n == 1 for n in sizes) else "adaptive"
    return Call(name.removesuffix("_with_indices"), method, reducer, found, window, (), True, 0, indices, site(owners))


def axes_in(dim: Any, number: int) -> tuple[int, ...]:
    """The axes that an argument names, counted from the first."""
    axes = dim if isinstance(dim, (tuple, list, torch.Size)) else (dim,)
    is_named = all(isinstance(axis, int) and not isinstance(axis, bool) for axis in axes)
    return tuple(sorted(dims(tuple(axes), number))) if is_named else ()


def reduced(x: Tensor, axes: tuple[int, ...], flow: Flow) -> str | None:
    """Whether these axes of a tensor are places, all of them ("global") or some ("strip")."""
    if not axes:
        return None
    layout, nd = flow.layout_of(x) or "?" * x.dim(), flow.nd
    kinds = {layout[axis] for axis in axes} - {"1"}
    if "?" not in kinds and layout.count("n") == 1:
        places = [axis for axis, letter in enumerate(layout) if letter == "s"]
        return None if kinds != {"s"} else "global" if set(places) <= set(axes) else "strip"
    if x.dim() == nd + 2 and axes in (tuple(range(2, nd + 2)), tuple(range(1, nd + 1))):
        return "global"  # (N, C, *spatial) or (N, *spatial, C)
    return "global" if x.dim() == 3 and axes == (1,) else None  # (N, tokens, C)


@functools.cache
def known_types() -> dict[type, tuple[str, int]]:
    """The reducer and the spatial axes (0: any number) of the layers of torch and everypool."""
    known: dict[type, tuple[str, int]] = {}
    for nd in (1, 2, 3):
        for stem, reducer in (("Max", "max"), ("Avg", "avg"), ("LP", "lp"), ("AdaptiveMax", "max"), ("AdaptiveAvg", "avg")):
            known[getattr(nn, f"{stem}Pool{nd}d")] = reducer, nd
    for operation in operations().values():
        for text, nd in (("Global{}Pool", 0), *((f"{form}{{}}Pool{nd}d", nd) for form in ("", "Adaptive") for nd in (1, 2, 3))):
            layer = getattr(reducers, text.format(operation.stem), None) if operation.kind == "reducer" else None
            if layer is not None:
                known[layer] = operation.name, nd
    return known


def is_known(module: nn.Module) -> bool:
    """Whether it is a layer of torch or everypool itself, and no class made of one."""
    return type(module) in known_types()


def known_as(module: nn.Module) -> tuple[str, int]:
    """The reducer and the spatial axes as the module's type says."""
    return next((known_types()[kind] for kind in type(module).__mro__ if kind in known_types()), ("", 0))


def pads_same(module: nn.Module) -> bool:
    """Whether windows start at every `stride` whatever the size of a map, as TensorFlow pads."""
    nd, kernel, stride = known_as(module)[1], getattr(module, "kernel_size", 1), getattr(module, "stride", 1)
    if not nd or is_known(module):
        return False
    sides = [tuple(n) if isinstance(n, (tuple, list)) else (n,) * nd for n in (kernel, stride or kernel)]
    own = 0
    for more in range(max(sides[1]) + 1):
        extents = [n + more for n in sides[0]]
        like = next(module.parameters(), torch.empty(0))
        with torch.no_grad():
            made = module.forward(like.new_zeros(1, 1, *extents))
        if tuple(made.shape[2:]) != tuple(-(-n // step) for n, step in zip(extents, sides[1], strict=True)):
            return False
        own += tuple(made.shape[2:]) != tuple((n - k) // step + 1 for n, k, step in zip(extents, *sides, strict=True))
    return own > 0


def reducer_of(module: nn.Module, x: Tensor, y: Tensor) -> str:
    """What a pooling module computes: by its type, or as what it has made of x says; "" where neither does."""
    if known_as(module)[0]:
        return known_as(module)[0]
    if not x.is_floating_point():
        return ""
    axes = tuple(axis for axis in range(1, x.dim()) if axis != (x.dim() - 1 if channels_last(module) else 1))
    if y.numel() != x.shape[0] * x.shape[1 if axes[0] > 1 else -1]:
        return ""
    with torch._C.DisableTorchFunction():  # nobody looks
        alike = {"avg": x.mean(axes), "max": x.amax(axes)}
        same = [name for name, value in alike.items() if torch.allclose(value.flatten(), y.flatten().to(x.dtype))]
    return same[0] if len(same) == 1 else ""


def site(owners: Sequence[nn.Module]) -> Site | None:
    """The innermost call outside of torch and of this folder, and those around it up to a method of the module that runs."""
    frame: FrameType | None = sys._getframe(1)
    found: list[FrameType] = []
    while frame is not None and frame.f_code not in FORWARD and len(found) < DEEPEST:
        if not frame.f_code.co_filename.startswith(INNER):
            found.append(frame)
            if owners and is_method(frame, owners[-1]):
                break
        frame = frame.f_back
    result: Site | None = None
    for frame in reversed(found):
        result = stand(frame, result)
    return result


def is_method(frame: FrameType, owner: nn.Module) -> bool:
    """Whether it runs a method that the module's class had from the start."""
    code = frame.f_code
    return code not in MOVED and bool(code.co_argcount) and frame.f_locals.get(code.co_varnames[0]) is owner


def stand(frame: FrameType, outer: Site | None) -> Site:
    """Where a frame is in its source."""
    code = frame.f_code
    if hasattr(code, "co_positions"):
        line, end_line, column, end_column = next(itertools.islice(code.co_positions(), frame.f_lasti // 2, None))
        if line is not None and column is not None and end_line is not None and end_column is not None:
            return Site(code, line, column, (end_line, end_column), outer)
    return Site(code, frame.f_lineno, None, None, outer)


def tensors(tree: Any) -> Iterator[Tensor]:
    """The tensors in tuples, lists and mappings, in order."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, Mapping):
        for item in tree.values():
            yield from tensors(item)
    elif isinstance(tree, (tuple, list)):
        for item in tree:
            yield from tensors(item)


def first(*trees: Any) -> Tensor | None:
    """The first tensor with axes enough to be a map or a row of features."""
    return next((x for tree in trees for x in tensors(tree) if x.dim() >= 2), None)


def one_tensor(output: Any) -> Tensor:
    """The first tensor of what a model gives: its logits, as a rule."""
    return next(tensors(output))


def arguments(example: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What the model is called with."""
    if isinstance(example, Mapping):
        return (), dict(example)
    return (tuple(example) if isinstance(example, (tuple, list)) else (example,)), {}


def axes_of(example: Any) -> int:
    """Spatial axes of the first tensor (N, C, *spatial); 1 of rows of tokens."""
    x = next(tensors(example), None)
    if x is None:
        raise check.wrong_type("example", "a tensor, a tuple of arguments or a mapping of arguments by name", example)
    return max(x.dim() - 2, 1)


def check_model(model: Any) -> None:
    if not isinstance(model, nn.Module):
        raise check.wrong_type("model", "a torch.nn.Module", model)
    if hasattr(model, "_orig_mod"):
        raise check.wrong_type("model", "the module itself, before torch.compile", check.Shown(type(model).__name__))


@contextmanager
def looking(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; afterwards modes and the random numbers are as before."""
    modes = {module: module.training for module in model.modules()}
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        try:
            model.eval()
            yield
        finally:
            for module, mode in modes.items():
                module.training = mode
