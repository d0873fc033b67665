"""Functions and modules that torch.fx, tensor subclasses and function modes see as they see torch's own."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import nn
from torch.overrides import (
    handle_torch_function,
    has_torch_function,
    has_torch_function_unary,
    has_torch_function_variadic,
)
from torch.utils._pytree import tree_leaves

from everypool.backends.context import enter_mode_of, is_plain_type

__all__ = ["call_override", "handle_overrides", "has_override", "record_as_leaf"]

Function = TypeVar("Function", bound=Callable[..., Any])


def handle_overrides(function: Function) -> Function:
    """Let the first argument's `__torch_function__`, or an active function mode, handle the call."""

    @functools.wraps(function)
    def wrapper(input: Any, *args: Any, **kwargs: Any) -> Any:
        if has_torch_function_unary(input):
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
        if len(args) == 1 and not kwargs and is_plain_type(type(args[0])) and not has_torch_function_unary(args[0]):
            return forward(self, args[0])
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
