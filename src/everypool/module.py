"""The base of every layer and block: it checks arguments by name, shows settings, and finds its first values again."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from everypool import _check as check
from everypool._overrides import record_as_leaf
from everypool.backends.context import can_read_values

__all__ = ["PoolingModule", "describe_setting", "keep_start"]

SHOWN_CHANNELS = 3  # values of a setting per channel that a repr writes out


class PoolingModule(nn.Module):
    """A module of this package: wrong arguments are named with its class, and `reset_parameters` reaches all that it holds."""

    first_values: dict[str, float | tuple[float, ...] | None]

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        init = inspect.unwrap(cls.__init__)
        if "forward" in cls.__dict__:
            cls.forward = record_as_leaf(cls.__dict__["forward"])
        if init.__module__.partition(".")[0] == "everypool":  # a constructor of the user's is left alone
            cls.__init__ = checked_constructor(cls, init)  # type: ignore[method-assign]

    def __prepare_scriptable__(self) -> Any:
        """Refuse torch.jit.script, whose language knows none of this."""
        rule = "traced or exported; torch.jit.script does not know its language"
        raise NotImplementedError(f"`obj` must be {rule}, got {type(self).__name__}")

    @classmethod
    def find_settings(cls) -> Callable[..., Any] | None:
        """Return what takes the keyword arguments that the constructor passes on; None where it passes on none."""
        return None

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
        """Take entries of the same elements with another number of axes: () for (1,), (1, C, 1, 1) for (C,)."""
        for name, own in (*self.named_parameters(recurse=False), *self.named_buffers(recurse=False)):
            entry = state_dict.get(prefix + name)
            if isinstance(entry, Tensor) and [n for n in entry.shape if n != 1] == [n for n in own.shape if n != 1]:
                state_dict[prefix + name] = entry.reshape(own.shape)
        super()._load_from_state_dict(state_dict, prefix, *arguments)

    def reset_parameters(self) -> None:
        """Give parameters and buffers the values of a new module of the same arguments, as is needed after `to_empty`.

        Raises:
            NotImplementedError: a module that was handed in has no `reset_parameters`, or a value was never known.
        """
        for child in self.children():
            reset_module(child)
        for name, start in vars(self).get("first_values", {}).items():
            tensor = getattr(self, name)
            if tensor.is_meta:
                continue
            if start is None:
                rule = "given as a number or a tensor with values, so that it can be set again"
                raise NotImplementedError(f"`{name}` must be {rule}, got a tensor on the device meta")
            values = torch.tensor(start, dtype=torch.float64, device="cpu")
            with torch.no_grad():
                tensor.copy_(values.expand(tensor.shape) if values.dim() == 0 else values.reshape(tensor.shape))


def reset_module(module: nn.Module) -> None:
    """Reset a module of any kind with all that it holds; what it does with its children comes after them."""
    if not isinstance(module, PoolingModule):
        for child in module.children():
            reset_module(child)
    reset = getattr(module, "reset_parameters", None)
    if reset is not None:
        reset()
        return
    own = [name for name, _ in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))]
    if own:
        kind = type(module).__name__
        raise NotImplementedError(f"`{own[0]}` must be of a module with reset_parameters, got that of {kind}, which has none")


def keep_start(module: PoolingModule, name: str, value: Tensor | float) -> None:
    """Remember what a parameter or buffer starts with: one number, or one for each element."""
    start: float | tuple[float, ...] | None
    if not isinstance(value, Tensor):
        start = float(value)
    elif not can_read_values(value):
        start = None
    else:
        numbers = value.detach().to("cpu", torch.float64).flatten().tolist()
        start = numbers[0] if len(numbers) == 1 else tuple(numbers)
    vars(module).setdefault("first_values", {})[name] = start


def describe_setting(value: Any) -> str:
    """Return a setting for a repr: a number rounded to four digits, (learned) where it is a parameter, channels counted.

    >>> describe_setting(2.99999), describe_setting(nn.Parameter(torch.tensor([4.0]))), describe_setting(torch.ones(64))
    ('3.0', '4.0 (learned)', '1.0 (64 channels)')
    """
    if not isinstance(value, Tensor):
        return round_number(value)
    marks = ["learned"] if isinstance(value, nn.Parameter) else []
    if not can_read_values(value):
        text = f"tensor of shape {tuple(value.shape)}"
    else:
        numbers = [round_number(number) for number in value.detach().flatten().tolist()]
        alike = len(set(numbers)) == 1
        more = ", ..." if len(numbers) > SHOWN_CHANNELS else ""
        text = numbers[0] if alike else f"[{', '.join(numbers[:SHOWN_CHANNELS])}{more}]"
        marks += [f"{len(numbers)} channels"] if len(numbers) > 1 else []
    return f"{text} ({', '.join(marks)})" if marks else text


def round_number(value: float) -> str:
    return str(float(f"{value:.4g}"))


def checked_constructor(cls: type[PoolingModule], init: Callable[..., None]) -> Callable[..., None]:
    """Return `init` with the class's whole signature, which names the class and its settings where arguments do not fit."""
    signature = whole_signature(init, cls.find_settings())
    of_class = signature.replace(parameters=list(signature.parameters.values())[1:])

    @functools.wraps(init)
    def __init__(self: PoolingModule, *arguments: Any, **settings: Any) -> None:
        check.arguments(cls.__name__, of_class, arguments, settings)
        init(self, *arguments, **settings)

    __init__.__qualname__ = f"{cls.__qualname__}.__init__"
    __init__.__signature__ = signature  # type: ignore[attr-defined]
    return __init__


def whole_signature(init: Callable[..., Any], settings: Callable[..., Any] | None) -> inspect.Signature:
    """Return the signature of `init` with its **keywords written out as those of what takes them."""
    own = inspect.signature(init)
    rest = [p for p in own.parameters.values() if p.kind is p.VAR_KEYWORD]
    if not rest or settings is None:
        return own
    taken = inspect.signature(settings).parameters.values()
    more = [p.replace(kind=p.KEYWORD_ONLY) for p in taken if p.name != "self" and p.name not in own.parameters]
    return own.replace(parameters=[p for p in own.parameters.values() if p.kind is not p.VAR_KEYWORD] + more)
