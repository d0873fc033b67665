"""What runs in a model when it is given an example: modules, poolings called as functions, sums of maps."""

from __future__ import annotations

import itertools
import math
import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from everypool import _check as check
from everypool.reducers._layer import AdaptiveLayer, GlobalLayer, SlidingLayer

__all__ = [
    "Call",
    "Run",
    "Site",
    "arguments",
    "axes_of",
    "channels_last",
    "check_model",
    "kind",
    "looking",
    "one_tensor",
    "tensors",
    "traced",
]

SLIDING = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d,
           nn.LPPool1d, nn.LPPool2d, nn.LPPool3d, SlidingLayer)  # fmt: skip
WHOLE = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d,
         nn.AdaptiveMaxPool3d, AdaptiveLayer, GlobalLayer)  # fmt: skip
OTHERS = re.compile("^gem|pool", re.IGNORECASE)  # names of classes that pool, if they behave like it
MERGES = ("add", "add_", "__add__", "__iadd__", "__radd__", "cat", "concat")
REDUCTIONS = ("mean", "amax", "max", "logsumexp")  # over the axes of a map these pool it whole, or in strips
WINDOWS = {  # what follows the input, by position
    "max": ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices"),
    "avg": ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override"),
    "lp": ("norm_type", "kernel_size", "stride", "ceil_mode"),
    "adaptive_max": ("output_size", "return_indices"),
    "adaptive_avg": ("output_size",),
}
NAMED = re.compile(r"((?:adaptive_)?(?:max|avg|lp))_pool([123])d(_with_indices)?")
INNER = tuple(f"{Path(file).parent}{os.sep}" for file in (torch.__file__, __file__))  # what is not the user's code


@dataclass(frozen=True)
class Site:
    """A call in somebody's source: the code that it stands in, and where in its file (lines from 1, columns from 0)."""

    code: CodeType
    line: int
    column: int | None  # None: Python before 3.11 does not say
    end: tuple[int, int] | None
    direct: bool  # in a method of the module that runs, not in a function that the method calls

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
        reducer: "max", "avg", "lp" or "logsumexp".
        kind: "sliding", "adaptive" or "global", or "strip" where some of the spatial axes are reduced.
        window: its arguments by the names of torch.nn.
        axes: those that are reduced, where it is a reduction such as `mean`.
        keepdim: whether the reduced axes stay, of size 1.
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
    indices: bool = False
    site: Site | None = None


@dataclass(frozen=True, eq=False)
class Run:
    """A module or a function has run; without either, a sum or a concatenation of maps."""

    module: nn.Module | None = None
    call: Call | None = None
    input: torch.Size = torch.Size()  # noqa: RUF009
    output: torch.Size = torch.Size()  # noqa: RUF009
    owners: tuple[nn.Module, ...] = ()  # the modules around it, outermost first
    like: Tensor | None = None  # an empty tensor of the input's type on its device
    negative: bool = False  # the input has values below zero


def channels_last(module: nn.Module) -> bool:
    """Whether it is one of timm's that pool (N, H, W, C)."""
    return getattr(module, "dim", None) in ((1, 2), [1, 2])


def kind(run: Run) -> str | None:
    """What kind of pooling has run, if it was one."""
    if run.call is not None:
        return run.call.kind
    module = run.module
    if isinstance(module, SLIDING):
        return "sliding"
    before, after = run.input, run.output
    if channels_last(module) if module is not None else False:
        before = torch.Size([before[0], before[-1], *before[1:-1]])
        after = torch.Size([after[0], after[-1], *after[1:-1]])
    whole = len(after) == 2 or math.prod(after[2:]) == 1
    if isinstance(module, WHOLE):
        return "global" if whole else "adaptive"
    if module is None or len(before) < 3 or before[:2] != after[:2] or next(module.children(), None) is not None:
        return None
    name = type(module).__name__
    if not OTHERS.search(name) or "unpool" in name.lower():
        return None
    if all(isinstance(getattr(module, setting, None), (int, tuple)) for setting in ("kernel_size", "stride")):
        return "sliding"
    return "global" if whole and math.prod(before[2:]) > 1 else None


def traced(model: nn.Module, example: Any) -> list[Run]:
    """What runs, in order: poolings, modules with parameters, and sums and concatenations of maps.

    Args:
        model: it is run once, in evaluation mode, and left as it is.
        example: a tensor, a tuple of arguments, or a mapping of arguments by name.
    """
    runs: list[Run] = []
    nd = axes_of(example)
    owners: list[nn.Module] = []

    def enter(module: nn.Module, inputs: Any) -> None:
        owners.append(module)

    def leave(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        owners.pop()
        given, made = first(args, kwargs), first(output)
        if given is not None and made is not None:
            run = Run(module, None, given.shape, made.shape, tuple(owners), given[:0])
            if kind(run) is not None:
                runs.append(replace(run, negative=below(given)))
            elif next(module.parameters(recurse=False), None) is not None:
                runs.append(run)

    class Functions(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            output = func(*args, **(kwargs or {}))
            name = getattr(func, "__name__", "")
            if name in MERGES and (not owners or next(owners[-1].children(), None) is not None):
                given = args[0] if name in ("cat", "concat") and args else args[:2]
                shapes = {item.shape[2:] if isinstance(item, Tensor) and item.dim() == nd + 2 else None for item in given}
                if len(given) > 1 and len(shapes) == 1 and math.prod(shapes.pop() or [0]) > 1:
                    runs.append(Run())
            elif name in REDUCTIONS or NAMED.fullmatch(name):
                x, made = args[0] if args else (kwargs or {}).get("input"), first(output)
                if not isinstance(x, Tensor) or made is None:
                    return output
                call = called(func, name, x, args[1:], kwargs or {}, nd, owners)
                if call is not None:
                    runs.append(Run(None, call, x.shape, made.shape, tuple(owners), x[:0], below(x)))
            return output

    with looking(model), ExitStack() as stack:
        for module in model.modules():
            stack.callback(module.register_forward_pre_hook(enter).remove)
            stack.callback(module.register_forward_hook(leave, with_kwargs=True).remove)
        args, kwargs = arguments(example)
        with Functions():
            model(*args, **kwargs)
    pools = {run.module for run in runs if run.module is not None and kind(run) is not None}
    # what a pooling module calls is its own business
    return [run for run in runs if run.call is None or pools.isdisjoint(run.owners)]


def below(x: Tensor) -> bool:
    return x.is_floating_point() and x.numel() > 0 and bool((x < 0).any())


def called(
    func: Any, name: str, x: Tensor, args: Any, kwargs: Mapping[str, Any], nd: int, owners: list[nn.Module]
) -> Call | None:
    """The pooling that a function of x is with these arguments, if it is one."""
    method = type(func).__name__ in ("method_descriptor", "wrapper_descriptor")
    if name in REDUCTIONS:
        dim = kwargs.get("dim", args[0] if args else None)
        keepdim = bool(kwargs.get("keepdim", args[1] if len(args) > 1 else False))
        numbers = (dim,) if isinstance(dim, int) else tuple(dim) if isinstance(dim, (tuple, list, torch.Size)) else ()
        axes = tuple(sorted(axis % x.dim() for axis in numbers)) if all(isinstance(axis, int) for axis in numbers) else ()
        found = reduced(tuple(x.shape), axes, nd)
        if found is None or (owners and "norm" in type(owners[-1]).__name__.lower()):  # statistics
            return None
        reducer = {"mean": "avg", "logsumexp": "logsumexp"}.get(name, "max")
        return Call(name, method, reducer, found, {}, axes, keepdim, name == "max", site(owners))
    match = NAMED.fullmatch(name)
    if match is None:
        return None
    reducer = match[1].removeprefix("adaptive_")
    window = dict(zip(WINDOWS[match[1]], args, strict=False)) | {k: v for k, v in kwargs.items() if k != "input"}
    indices = bool(window.pop("return_indices", False) or match[3])
    found = "sliding"
    if "output_size" in window:
        size = window["output_size"]
        sizes = tuple(size) if isinstance(size, (tuple, list)) else (size,)
        window["output_size"] = sizes if len(sizes) > 1 else sizes[0]
        found = "global" if all(n == 1 for n in sizes) else "adaptive"
    return Call(name.removesuffix("_with_indices"), method, reducer, found, window, (), True, indices, site(owners))


def reduced(shape: tuple[int, ...], axes: tuple[int, ...], nd: int) -> str | None:
    """Whether the axes of such a tensor are places, all of them ("global") or some ("strip")."""
    spatial = tuple(range(2, nd + 2))
    if not axes:
        return None
    if len(shape) == nd + 2 and set(axes) <= set(spatial):
        return "global" if axes == spatial else "strip"
    if len(shape) == nd + 2 and axes == tuple(range(1, nd + 1)):
        return "global"  # (N, *spatial, C)
    return "global" if len(shape) == 3 and axes == (1,) else None  # (N, tokens, C)


def site(owners: list[nn.Module]) -> Site | None:
    """The innermost call outside of torch and of this folder."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename.startswith(INNER):
        frame = frame.f_back
    if frame is None:
        return None
    code = frame.f_code
    direct = bool(owners) and bool(code.co_argcount) and frame.f_locals.get(code.co_varnames[0]) is owners[-1]
    if not hasattr(code, "co_positions"):
        return Site(code, frame.f_lineno, None, None, direct)
    line, end_line, column, end_column = next(itertools.islice(code.co_positions(), frame.f_lasti // 2, None))
    if line is None or column is None or end_line is None or end_column is None:
        return Site(code, frame.f_lineno, None, None, direct)
    return Site(code, line, column, (end_line, end_column), direct)


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
