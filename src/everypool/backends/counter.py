"""What poolings tell torch's counter of operations, `torch.utils.flop_counter.FlopCounterMode`.

The counter sees operators. The compiled loops are none, and the definition is made of many that it has no formula for. So
while a counter listens, and only then, each pooling calls `everypool::fold` once, which does nothing and names the number of
operations; its gradient calls `everypool::fold_backward`. What is pooled is what it is without a counter, to the last bit.
Recorded graphs never hold these operators: while a graph is recorded nothing is told.

Operators and formulas come into being with the first pooling that is counted: importing the counter may import Triton.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.utils._python_dispatch import _disable_current_modes, _get_current_dispatch_mode_stack

from everypool.backends.context import is_tracing

__all__ = ["listening", "quiet", "told"]

NAMES = ("fold", "fold_backward")


def listening() -> bool:
    """Whether a counter is active and no graph is recorded."""
    return not is_tracing() and _modes() > 0 and bool(_counters()) and _recorder(_RECORDER) is None


_modes = torch._C._len_torch_dispatch_stack
_recorder = torch._C._get_dispatch_mode
_compiler = torch._C._dynamo.eval_frame.get_eval_frame_callback
_RECORDER = torch._C._TorchDispatchModeKey.PROXY


def _counters() -> list[Any]:
    module = sys.modules.get("torch.utils.flop_counter")
    if module is None:
        return []
    return [mode for mode in _get_current_dispatch_mode_stack() if isinstance(mode, module._FlopCounterMode)]


@contextmanager
def quiet() -> Iterator[None]:
    """No counter listens, so that a pooling runs as it does without one; beside other modes counters stay.

    They stay within a compiled function, too: they are why torch does not compile it.
    """
    if _modes() == len(_counters()) and _compiler() is None:
        with _disable_current_modes():
            yield
    else:
        yield


def told(results: list[Tensor], forward: int, backward: int) -> list[Tensor]:
    """The results of a pooling of so many operations, both directions of which every active counter hears of."""
    _tell("fold", results[0], forward)
    learning = [y for y in results if y.requires_grad]
    if not learning or torch.autograd.forward_ad._current_level >= 0:
        return results
    copies = iter(_Told.apply(backward, *learning))
    return [next(copies) if y.requires_grad else y for y in results]


class _Told(Function):
    """The results; who asks for their gradient tells so. Copies, since a view of a Function must not be written to."""

    generate_vmap_rule = True

    @staticmethod
    def forward(operations: int, *results: Tensor) -> tuple[Tensor, ...]:
        return tuple(y.clone() for y in results)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.operations = inputs[0]
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        there = [g for g in grads if g is not None]
        if there and listening():
            _tell("fold_backward", there[0], ctx.operations)
        return None, *grads


def _tell(name: str, x: Tensor, operations: int) -> None:
    _, packets = _operators()
    for mode in _counters():  # a counter has copied the formulas that there were when it was made
        for packet in packets.values():
            mode.counter.flop_registry.setdefault(packet, _formula)
    with torch.no_grad():
        packets[name](x, str(operations))


def _formula(x: Any, operations: str, *args: Any, **kwargs: Any) -> int:
    return int(operations)


def _operators() -> tuple[Any, dict[str, Any]]:
    with _ONCE:
        return _registered()


_ONCE = threading.Lock()


@cache
def _registered() -> tuple[Any, dict[str, Any]]:
    """The operators by name, with formulas; and their library, as long as which they live.

    A number is text, for it may need more than 64 bits.
    """
    from torch.utils.flop_counter import register_flop_formula

    library = torch.library.Library("everypool", "FRAGMENT")
    packets = {}
    for name in NAMES:
        library.define(f"{name}(Tensor x, str operations) -> ()")
        library.impl(name, lambda x, operations: None, "CompositeExplicitAutograd")
        packet = packets[name] = getattr(torch.ops.everypool, name)
        register_flop_formula(packet)(_formula)
        torch.library.register_vmap(packet.default, _of_a_batch(packet), lib=library)
    return library, packets


def _of_a_batch(packet: Any) -> Any:
    def told_for_all(info: Any, in_dims: Any, x: Tensor, operations: str) -> tuple[None, None]:
        packet(x, str(int(operations) * (1 if in_dims[0] is None else info.batch_size)))
        return None, None

    return told_for_all
