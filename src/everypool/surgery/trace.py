"""What runs in a model when it is given an example, and where in it each pooling stands."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from everypool.reducers._layer import AdaptiveLayer, GlobalLayer, SlidingLayer

__all__ = ["Run", "channels_last", "kind", "located", "looking", "traced"]

SLIDING = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d,
           nn.LPPool1d, nn.LPPool2d, nn.LPPool3d, SlidingLayer)  # fmt: skip
WHOLE = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d,
         nn.AdaptiveMaxPool3d, AdaptiveLayer, GlobalLayer)  # fmt: skip
OTHERS = re.compile("^gem|pool", re.IGNORECASE)  # names of classes that pool, if they behave like it
MERGES = (torch.ops.aten.add, torch.ops.aten.add_, torch.ops.aten.cat)


@dataclass(frozen=True)
class Run:
    """A module has run; None stands for a sum or a concatenation of maps."""

    module: nn.Module | None
    input: torch.Size = torch.Size()  # noqa: RUF009
    output: torch.Size = torch.Size()  # noqa: RUF009


def channels_last(module: nn.Module) -> bool:
    """Whether it is one of timm's that pool (N, H, W, C)."""
    return getattr(module, "dim", None) in ((1, 2), [1, 2])


def kind(run: Run) -> str | None:
    """What kind of pooling has run, if it was one."""
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


def located(runs: list[Run], pools: list[int], nd: int) -> dict[int, str]:
    """The place of each pooling, by the number of its run."""
    spread = {n: math.prod(run.output[2:]) for n, run in enumerate(runs)}
    maps = [n for n, run in enumerate(runs) if run.module is not None and n not in pools and len(run.output) == nd + 2]
    # nothing larger comes after the head; what gates a block is followed by the block's map
    final = [n for n in pools if not any(later > n and spread[later] > spread[n] for later in maps)]
    heads = [n for n in final if kind(runs[n]) != "sliding"]
    if heads:
        heads = [n for n in heads if not any(n < between < heads[-1] for between in maps)]
    else:  # a sliding window that is as large as the map
        heads = [n for n in final[-1:] if spread[n] == 1 < math.prod(runs[n].input[2:])]
    sliding = [n for n in pools if kind(runs[n]) == "sliding" and n not in heads]
    stepping = [n for n in sliding if spread[n] < math.prod(runs[n].input[2:])]
    merge = next((n for n, run in enumerate(runs) if run.module is None), len(runs))
    stem = [n for n in stepping if n < merge]
    if all(n < merge for n in sliding):  # no stages with residuals between them: the first is the stem
        stem = stem[:1]
    return {
        n: "head" if n in heads else "stem" if n in stem else "stage" if n in sliding else "inside" for n in pools
    }  # fmt: skip


def traced(model: nn.Module, example: Tensor) -> list[Run]:
    """What runs, in order: poolings, modules with parameters, and sums and concatenations of maps."""
    runs: list[Run] = []
    nd = example.dim() - 2
    inside: list[nn.Module] = []  # a module without parts: what it adds is its own business

    def enter(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        inside.append(module)

    def leave(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        inside.pop()

    def hear(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if inputs and isinstance(inputs[0], Tensor) and isinstance(output, Tensor):
            run = Run(module, inputs[0].shape, output.shape)
            if kind(run) is not None or next(module.parameters(recurse=False), None) is not None:
                runs.append(run)

    class Merges(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func.overloadpacket in MERGES and not inside:
                given = args[0] if func.overloadpacket is torch.ops.aten.cat else args[:2]
                shapes = {item.shape[2:] if isinstance(item, Tensor) and item.dim() == nd + 2 else None for item in given}
                if len(given) > 1 and len(shapes) == 1 and math.prod(shapes.pop() or [0]) > 1:
                    runs.append(Run(None))
            return func(*args, **(kwargs or {}))

    with looking(model), ExitStack() as stack:
        for module in model.modules():
            stack.callback(module.register_forward_hook(hear).remove)
            if next(module.children(), None) is None:
                stack.callback(module.register_forward_pre_hook(enter).remove)
                stack.callback(module.register_forward_hook(leave).remove)
        stack.enter_context(Merges())
        model(example)
    return runs


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
