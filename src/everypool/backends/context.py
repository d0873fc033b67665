"""How a call is run: eagerly, recorded into a graph, transformed, or under a mode.

Every other part of the package asks here, so that a new way of calling is learned in one place.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

__all__ = [
    "can_compare_sizes",
    "can_read_values",
    "enter_mode_of",
    "find_obstacle",
    "fixed_shape",
    "force_differentiable_ops",
    "has_address",
    "has_transforms",
    "is_forward_mode",
    "is_jit_tracing",
    "is_plain_type",
    "is_tracing",
    "needs_differentiable_ops",
    "pause_jit_tracing",
    "resolve_batch",
]

_jit_state = torch._C._get_tracing_state
_set_jit_state: Any = getattr(torch._C, "_set_tracing_state")  # noqa: B009 (torch has no type for it)
_dispatch_modes = torch._C._len_torch_dispatch_stack
_get_mode = torch._C._get_dispatch_mode
_KEYS = torch._C._TorchDispatchModeKey
has_transforms = torch._C._are_functorch_transforms_active
_is_legacy_batch = torch._C._functorch.is_legacy_batchedtensor
_forward_ad = torch.autograd.forward_ad
_is_compiling = torch.compiler.is_compiling
_strided = torch.strided
_no_dispatch: Any = Tensor.__torch_dispatch__


_ordinary = torch.empty(0, device="cpu")


class _State(threading.local):
    differentiable = False


_state = _State()
_plain_types: dict[type, bool] = {Tensor: True, torch.nn.Parameter: True}


def is_tracing() -> bool:
    """Return True while a graph is recorded, whose sizes may be symbols or tensors: nothing may branch on them.

    torch.compile and torch.export, torch.jit.trace, make_fx, and fake tensors, which stand for others.
    """
    return torch.compiler.is_compiling() or _jit_state() is not None or (_dispatch_modes() > 0 and _records())


def _records() -> bool:
    return _get_mode(_KEYS.PROXY) is not None or _get_mode(_KEYS.FAKE) is not None or _get_mode(_KEYS.FUNCTIONAL) is not None


def is_jit_tracing() -> bool:
    """Return True inside torch.jit.trace, where sizes are tensors."""
    return not torch.compiler.is_compiling() and _jit_state() is not None


@contextmanager
def pause_jit_tracing() -> Iterator[None]:
    """Record nothing for torch.jit.trace, so that sizes are numbers."""
    state = _jit_state()
    _set_jit_state(None)
    try:
        yield
    finally:
        _set_jit_state(state)


def fixed_shape(x: Tensor) -> tuple[int, ...]:
    """Return sizes that a recorded graph may rely on, as numbers inside torch.jit.trace too: channels, and those of weights."""
    if not is_jit_tracing():
        return tuple(x.shape)
    with pause_jit_tracing():
        return tuple(x.shape)


def can_compare_sizes() -> bool:
    """Return True unless a graph is recorded that must hold for other sizes: export makes a rule of a comparison."""
    return not torch.compiler.is_exporting() and not is_jit_tracing()


def needs_differentiable_ops() -> bool:
    """Return True where a computation must consist of torch operators alone, without autograd functions of its own.

    While a graph is recorded, under the transforms of torch.func, and for derivatives in forward mode.
    """
    return is_tracing() or _state.differentiable or has_transforms() or _forward_ad._current_level >= 0


def resolve_batch(*grads: Tensor | None) -> AbstractContextManager[None]:
    """Compute by torch operators alone if one of the incoming gradients stands for several (`is_grads_batched`)."""
    batched = any(grad is not None and _is_legacy_batch(grad) for grad in grads)
    return force_differentiable_ops() if batched else nullcontext()


def is_forward_mode() -> bool:
    """Return True inside of `torch.autograd.forward_ad.dual_level`, which torch.func.jvp enters too."""
    return _forward_ad._current_level >= 0


@contextmanager
def force_differentiable_ops() -> Iterator[None]:
    """Compute by torch operators alone, for a gradient whose incoming gradient stands for several."""
    before, _state.differentiable = _state.differentiable, True
    try:
        yield
    finally:
        _state.differentiable = before


def can_read_values(*tensors: Tensor) -> bool:
    """Return True if the values may be looked at: nothing records or transforms the computation, and there are values."""
    return not (is_tracing() or has_transforms() or any(t.is_meta or not is_plain_type(type(t)) for t in tensors))


def is_plain_type(kind: type) -> bool:
    """Return True for torch.Tensor and subclasses whose memory is their own: torch's operators see nothing else in them."""
    found = _plain_types.get(kind)
    if found is None:
        plain = issubclass(kind, Tensor) and kind.__torch_dispatch__ is _no_dispatch
        found = _plain_types[kind] = plain and not issubclass(kind, (UninitializedParameter, UninitializedBuffer))
    return found


def has_address(*tensors: Tensor) -> bool:
    """Return True if kernels can take the addresses of gradients, even while a mode looks on."""
    return not needs_differentiable_ops() and all(
        is_plain_type(type(t)) and t.layout is torch.strided and not _is_legacy_batch(t) for t in tensors
    )


def enter_mode_of(*tensors: Any) -> AbstractContextManager[Any]:
    """Enter the mode that a fake tensor was made in, without which it meets no tensor made on the way."""
    if "torch._subclasses.fake_tensor" in sys.modules and not _dispatch_modes():
        from torch._subclasses.fake_tensor import FakeTensor

        for x in tensors:
            if isinstance(x, FakeTensor):
                return x.fake_mode
    return nullcontext()


def find_obstacle(x: Any = _ordinary) -> str | None:
    """Return why kernels that take addresses cannot have x now; None if they can. Without x, of an ordinary tensor."""
    if _is_compiling():
        return "torch.compile or torch.export records the graph"
    if not _plain_types.get(type(x)) and not is_plain_type(type(x)):
        return f"{type(x).__name__} handles operators itself, or is no tensor"
    if _jit_state() is not None:
        return "torch.jit.trace records the graph"
    if has_transforms():
        return "a transform of torch.func is active"
    if _forward_ad._current_level >= 0:
        return "derivatives are computed in forward mode"
    if _dispatch_modes() > 0:
        return f"a dispatch mode is active, {_mode_name()}"
    if _state.differentiable:
        return "a gradient is computed for several incoming gradients at once"
    if x.layout is not _strided or x.is_nested:
        return "the tensor is not dense (strided)"
    if _is_legacy_batch(x):
        return "the tensor stands for several at once"
    return None


def _mode_name() -> str:
    from torch.utils._python_dispatch import _get_current_dispatch_mode

    mode = _get_current_dispatch_mode()
    return type(mode).__name__ if mode is not None else "one of torch's own"
