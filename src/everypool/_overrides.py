"""Functions and modules that torch.fx, tensor subclasses and function modes see as they see torch's own."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch._tensor import _convert
from torch.overrides import (
    handle_torch_function,
    has_torch_function,
    has_torch_function_unary,
    has_torch_function_variadic,
)
from torch.utils._device import DeviceContext
from torch.utils._pytree import tree_leaves

from everypool.backends.context import enter_mode_of, is_plain_type

__all__ = ["call_override", "handle_overrides", "has_override", "record_as_leaf"]

Function = TypeVar("Function", bound=Callable[..., Any])

_count_modes = torch._C._len_torch_function_stack
_get_mode = torch._C._get_function_stack_at
_inherited_handler: Any = getattr(Tensor.__torch_function__, "__func__")  # noqa: B009 (torch has no type for it)
_ordinary_types = (Tensor, nn.Parameter)
_inheriting: dict[type, bool] = dict.fromkeys(_ordinary_types, True)


def changes_nothing(input: Any, others: Sequence[Any] = ()) -> bool:
    """Return True if those who may handle the call only hand it on: `torch.device` as a mode, subclasses that inherit all.

    Asking them takes as long as pooling a small map.
    """
    modes = _count_modes()
    if modes > 1 or (modes and type(_get_mode(0)) is not DeviceContext) or torch.compiler.is_compiling():
        return False
    for other in others:
        if isinstance(other, (Tensor, list)) and type(other) not in _ordinary_types:
            return False
    return inherits_handler(type(input))


def inherits_handler(kind: type) -> bool:
    """Return True for torch.Tensor, parameters, and subclasses of either that handle nothing themselves."""
    found = _inheriting.get(kind)
    if found is None:
        handler = getattr(getattr(kind, "__torch_function__", None), "__func__", None)
        found = _inheriting[kind] = handler is _inherited_handler and is_plain_type(kind)
    return found


def call_undisturbed(function: Callable[..., Any], input: Any, *args: Any, **kwargs: Any) -> Any:
    """Call a function as those who change nothing would, and keep the subclass."""
    kind = type(input)
    with torch._C.DisableTorchFunction():
        result = function(input, *args, **kwargs)
        if kind in _ordinary_types:
            return result
        return result.as_subclass(kind) if type(result) is Tensor else _convert(result, kind)


def handle_overrides(function: Function) -> Function:
    """Let the first argument's `__torch_function__`, or an active function mode, handle the call."""

    @functools.wraps(function)
    def wrapper(input: Any, *args: Any, **kwargs: Any) -> Any:
        if type(input) is Tensor and not has_torch_function_unary(input):
            return function(input, *args, **kwargs)
        if has_torch_function_unary(input):
            if changes_nothing(input, (*args, *kwargs.values())):
                return call_undisturbed(function, input, *args, **kwargs)
            return handle_torch_function(wrapper, (input,), input, *args, **kwargs)
        if torch.compiler.is_compiling() or is_plain_type(type(input)):
            return function(input, *args, **kwargs)
        with enter_mode_of(input):
            return function(input, *args, **kwargs)

    return wrapper  # type: ignore[return-value]


def has_override(input: Any, mask: Any, sizes: Any) -> bool:
    """Return True if the `__torch_function__` of an argument, or a function mode, handles the call."""
    if torch.compiler.is_compiling():
        return False
    listed = isinstance(input, (list, tuple)) and has_torch_function(input)
    return listed or has_torch_function_variadic(input, mask, sizes)


def call_override(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Let the `__torch_function__` of an argument, or a function mode, handle the call."""
    return handle_torch_function(function, tree_leaves((args, kwargs)), *args, **kwargs)


def record_as_leaf(forward: Function) -> Function:
    """Make a module's `forward` one call for torch.fx, as that of a module of torch.nn is."""

    @functools.wraps(forward)
    def wrapper(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if len(args) == 1 and not kwargs:
            (input,) = args
            if type(input) is Tensor and not has_torch_function_unary(input):
                return forward(self, input)
            if is_plain_type(type(input)) and changes_nothing(input):
                return call_undisturbed(functools.partial(forward, self), input)
        leaves = tree_leaves((args, kwargs))
        if torch.compiler.is_compiling():
            return forward(self, *args, **kwargs)
        if not has_torch_function(leaves):
            with enter_mode_of(*leaves):
                return forward(self, *args, **kwargs)
        for proxy in leaves:
            if isinstance(proxy, torch.fx.Proxy):
                tracer: Any = proxy.tracer
                path = tracer.path_of_module(self)
                if path:  # without one, this is the module that is traced
                    return tracer.create_proxy("call_module", path, args, kwargs)
                return forward(self, *args, **kwargs)
        return handle_torch_function(wrapper, leaves, self, *args, **kwargs)

    return wrapper  # type: ignore[return-value]
