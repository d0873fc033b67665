"""What each pooling of a model costs: its share of the time, of the memory that training keeps, and of the operations."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from everypool.explain import explain
from everypool.surgery.trace import Site, arguments, looking, pads_same, site, tensors
from everypool.windows import Adaptive, Global, Sliding

if TYPE_CHECKING:
    from everypool.surgery.find import Pooling

__all__ = ["Cost", "costs"]

REPEATS = 5


@dataclass(frozen=True)
class Cost:
    """Shares of one forward pass, between 0 and 1.

    Args:
        time: of the seconds that it takes, the median of a few runs.
        memory: of the bytes that are kept for the backward pass; what an earlier module keeps anyway is that module's.
        operations: of the floating point operations: the pooling's by the formula of `everypool.explain`, those of
            convolutions and matrix products as torch.utils.flop_counter counts them.
    """

    time: float
    memory: float
    operations: float


def costs(model: nn.Module, example: Any, found: Sequence[Pooling]) -> dict[str, Cost]:
    """The cost of each pooling by its name; the model is run a few times and left as it is."""
    args, kwargs = arguments(example)
    with looking(model):
        seconds = timed(model, args, kwargs, found)
        kept, total = remembered(model, args, kwargs, found)
        work = {p.name: p.calls * operations(p) for p in found}
        everything = counted(model, args, kwargs) + sum(work[p.name] for p in found if not own(p))
    return {
        p.name: Cost(seconds[p.name], kept.get(p.name, 0) / max(total, 1), work[p.name] / max(everything, 1)) for p in found
    }  # fmt: skip


def timed(model: nn.Module, args: Any, kwargs: Any, found: Sequence[Pooling]) -> dict[str, float]:
    synchronize = next((torch.cuda.synchronize for x in tensors([args, kwargs]) if x.is_cuda), lambda: None)
    shares: dict[str, list[float]] = {p.name: [] for p in found}
    for _ in range(REPEATS + 1):
        spent = dict.fromkeys(shares, 0.0)
        begun: list[float] = []

        def start(name: str, begun: list[float] = begun) -> None:
            synchronize()
            begun.append(time.perf_counter())

        def stop(name: str, begun: list[float] = begun, spent: dict[str, float] = spent) -> None:
            synchronize()
            spent[name] += time.perf_counter() - begun.pop()

        with watched(found, start, stop):
            synchronize()
            first = time.perf_counter()
            model(*args, **kwargs)
            synchronize()
            whole = time.perf_counter() - first
        for name, list_ in shares.items():
            list_.append(spent[name] / whole)
    return {name: statistics.median(list_[1:]) for name, list_ in shares.items()}  # the first run warms up


def remembered(model: nn.Module, args: Any, kwargs: Any, found: Sequence[Pooling]) -> tuple[dict[str, int], int]:
    """Bytes kept for the backward pass by each pooling, and by all modules."""
    parameters = {p.untyped_storage().data_ptr() for p in [*model.parameters(), *model.buffers()]}
    seen: set[int] = set()
    held: list[Tensor] = []  # storages must not be freed, or an address would come twice
    bytes_: dict[str, int] = {}
    inside: list[str] = []

    def pack(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in parameters and storage.data_ptr() not in seen:
            seen.add(storage.data_ptr())
            held.append(x)
            name = inside[-1] if inside else ""
            bytes_[name] = bytes_.get(name, 0) + x.numel() * x.element_size()
        return x

    with (
        torch.enable_grad(),
        torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x),
        watched(found, inside.append, lambda name: inside.pop() and None),
    ):
        model(*args, **kwargs)
    return bytes_, sum(bytes_.values())


def counted(model: nn.Module, args: Any, kwargs: Any) -> int:
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        model(*args, **kwargs)
    return counter.get_total_flops()


def own(pooling: Pooling) -> bool:
    """Whether it is everypool's, which the counter knows."""
    return pooling.module is not None and type(pooling.module).__module__.startswith("everypool.")


def operations(pooling: Pooling) -> int:
    """Operations of one call, from the shapes alone."""
    window, shape = pooling.window, pooling.input
    windows: Any = Global()
    call = pooling.call
    if call is not None and call.axes:
        others = [n for axis, n in enumerate(shape) if axis not in (call.batch, *call.axes)]
        shape = torch.Size([shape[call.batch], math.prod(others), *(shape[axis] for axis in call.axes)])
    elif pooling.kind == "sliding":
        names = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")
        padding = {"padding": "same"} if pooling.module is not None and pads_same(pooling.module) else {}
        windows = Sliding(**{name: window[name] for name in names if name in window} | padding)
    elif pooling.kind == "adaptive":
        windows = Adaptive(window.get("output_size", tuple(pooling.output[2:])))
    found = explain(pooling.reducer or "avg", windows, tuple(shape)).operations
    return 0 if found is None else found[0]


@contextmanager
def watched(found: Sequence[Pooling], start: Callable[[str], None], stop: Callable[[str], Any]) -> Iterator[None]:
    """Call `start` and `stop` around every pooling: modules by hooks, functions in a mode if there are any."""
    calls: dict[tuple[nn.Module | None, Site | None], str] = {
        (p.owner, p.call.site): p.name for p in found if p.call is not None
    }
    functions = {p.call.function for p in found if p.call is not None}
    owners: list[nn.Module] = []

    class Functions(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            name = None
            if getattr(func, "__name__", "") in functions and owners:
                name = calls.get((owners[-1], site(owners)))
            if name is not None:
                start(name)
            output = func(*args, **(kwargs or {}))
            if name is not None:
                stop(name)
            return output

    with ExitStack() as stack:
        for p in found:
            if p.module is not None:
                stack.callback(p.module.register_forward_pre_hook(lambda *_, name=p.name: start(name)).remove)
                stack.callback(p.module.register_forward_hook(lambda *_, name=p.name: stop(name)).remove)
        for owner in {id(p.owner): p.owner for p in found if p.owner is not None}.values():
            # what other modules call within an owner has another site
            stack.callback(owner.register_forward_pre_hook(lambda module, _: owners.append(module)).remove)
            stack.callback(owner.register_forward_hook(lambda *_: owners.pop() and None).remove)
        if calls:
            stack.enter_context(Functions())
        yield
