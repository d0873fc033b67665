"""The rules every argument obeys, each with its one message: "`<parameter>` must be <rule>, got <value>"."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from inspect import Parameter, Signature
from typing import Any

import numpy as np
import torch
from torch import Tensor

from everypool.backends.context import fixed_shape

__all__ = [
    "InvalidValue",
    "arguments",
    "axes",
    "batched",
    "boolean",
    "choice",
    "floating",
    "ints",
    "invalid",
    "non_negative_int",
    "number",
    "positive_int",
    "tensor",
    "unknown_argument",
    "wrong_type",
]

FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
LARGEST = 1 << 40  # no size beyond this can mean anything, and products stay below 64 bits
INTEGRAL = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


class InvalidValue(ValueError, RuntimeError):
    """A value breaks its rule; also a RuntimeError, so code that catches torch.nn's errors keeps working."""


def shown(value: object) -> str:
    if isinstance(value, Tensor):
        if value.is_nested:
            return "a nested tensor"
        return f"a {str(value.dtype).removeprefix('torch.')} tensor of shape {fixed_shape(value)} on {value.device}"
    text = repr(value) if not isinstance(value, int) or abs(value) < 10**100 else f"an int of {value.bit_length()} bits"
    return text if len(text) <= 80 else text[:77] + "..."


def invalid(name: str, rule: str, value: object) -> InvalidValue:
    """The error for a value that breaks its rule."""
    return InvalidValue(f"`{name}` must be {rule}, got {value if isinstance(value, Shown) else shown(value)}")


def wrong_type(name: str, rule: str, value: object) -> TypeError:
    """The error for a value of the wrong type."""
    return TypeError(f"`{name}` must be {rule}, got {value if isinstance(value, Shown) else shown(value)}")


class Shown(str):
    """Text that is already the description of what was got."""


def is_int(value: object) -> bool:
    return isinstance(value, (int, torch.SymInt, np.integer)) and not isinstance(value, bool)


def plain(value: Any) -> Any:
    """NumPy's integers, which torch.nn takes too, as Python's, whose arithmetic never wraps."""
    if isinstance(value, (list, tuple)) and any(isinstance(item, (list, tuple, np.integer)) for item in value):
        return tuple(plain(item) for item in value)
    return int(value) if isinstance(value, np.integer) else value


def one_int(name: str, value: Any, minimum: int) -> int:
    rule = {0: "a non-negative int", 1: "a positive int"}.get(minimum, f"an int of at least {minimum}")
    if not is_int(value):
        raise wrong_type(name, rule, value)
    if value < minimum:
        raise invalid(name, rule, value)
    if value > LARGEST:
        raise invalid(name, f"{rule} of at most 2**40", value)
    return plain(value)


def axes(nd: Any) -> int | None:
    """A number of spatial axes, or None."""
    if nd is None or (type(nd) is int and 0 < nd < 4):
        return nd
    if not is_int(nd):
        raise wrong_type("nd", "None or an int from 1 to 3", nd)
    if not 0 < nd < 4:
        raise invalid("nd", "None or an int from 1 to 3", nd)
    return int(nd)


def positive_int(name: str, value: Any) -> int:
    """An int of at least one."""
    return one_int(name, value, 1)


def non_negative_int(name: str, value: Any) -> int:
    """An int of at least zero."""
    return one_int(name, value, 0)


def ints(name: str, value: Any, nd: int, minimum: int) -> tuple[int, ...]:
    """One int for every axis, or one int per axis; always returned as one per axis."""
    kind = {0: "non-negative", 1: "positive"}.get(minimum, f"at least {minimum}")
    rule = f"a {kind} int or {nd} of them"
    if is_int(value):
        values: tuple[Any, ...] = (value,) * nd
    elif isinstance(value, (list, tuple, torch.Size)):
        values = tuple(value) * nd if len(value) == 1 else tuple(value)
        if len(values) != nd:
            raise invalid(name, rule, value)
    else:
        raise wrong_type(name, rule, value)
    for item in values:
        if not is_int(item):
            raise wrong_type(name, rule, value)
        if item < minimum:
            raise invalid(name, rule, value)
        if item > LARGEST:
            raise invalid(name, f"{rule}, at most 2**40", value)
    return tuple(plain(item) for item in values)


def number(name: str, value: Any, rule: str = "a number", *, minimum: float | None = None, above: float | None = None,
           finite: bool = False) -> float:  # fmt: skip
    """A real number that is not NaN, within its bounds."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise wrong_type(name, rule, value)
    try:
        value = float(value)
    except OverflowError as error:
        raise invalid(name, f"{rule}, at most 1.8e308", value) from error
    outside = (minimum is not None and value < minimum) or (above is not None and value <= above)
    if value != value or outside or (finite and value in (float("inf"), float("-inf"))):
        raise invalid(name, rule, value)
    return value


def boolean(name: str, value: Any) -> bool:
    """True or False, nothing that merely behaves like it."""
    if not isinstance(value, bool):
        raise wrong_type(name, "a bool", value)
    return value


def nearest(value: object, options: Iterable[str]) -> str:
    near = difflib.get_close_matches(str(value), list(options), n=1, cutoff=0.6)
    return f" (did you mean {near[0]!r}?)" if near else ""


def choice(name: str, value: Any, options: Sequence[str]) -> str:
    """One of the named options; the nearest is suggested."""
    if not isinstance(value, str) or value not in options:
        rule = "one of " + ", ".join(repr(option) for option in options)
        got = Shown(shown(value) + nearest(value, options))
        raise invalid(name, rule, got) if isinstance(value, str) else wrong_type(name, rule, got)
    return value


def arguments(owner: str, signature: Signature, given: Sequence[Any], named: Mapping[str, Any]) -> None:
    """Raise, in words that name what was called, where arguments do not fit its signature."""
    try:
        signature.bind(*given, **named)
        return
    except TypeError:
        pass
    takes = {p.name: p for p in signature.parameters.values()}
    variable = {p.kind for p in takes.values()} & {Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD}
    options = [name for name, p in takes.items() if p.kind not in (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)]
    if Parameter.VAR_KEYWORD not in variable:
        for name in named:
            if name not in options:
                error = unknown_argument(name, owner, options, named[name])
                raise TypeError(str(error))
    by_place = [p.name for p in takes.values() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if len(given) > len(by_place) and Parameter.VAR_POSITIONAL not in variable:
        rule = f"at most {len(by_place)} without a name for {owner} ({', '.join(by_place) or 'none'})"
        raise wrong_type("arguments", rule, Shown(str(len(given))))
    filled = by_place[: len(given)]
    for name in filled:
        if name in named:
            raise wrong_type(name, f"given once to {owner}", Shown("two values"))
    missing = [name for name in options if takes[name].default is Parameter.empty and name not in (*filled, *named)]
    more = f", and so must {' and '.join(f'`{name}`' for name in missing[1:])}" if missing[1:] else ""
    raise wrong_type(missing[0], f"given to {owner}{more}", Shown("nothing"))


def unknown_argument(name: str, owner: str, options: Sequence[str], value: object) -> InvalidValue:
    """The error for an argument that `owner` does not have; the nearest that it has is suggested."""
    rule = f"an argument of {owner}: {', '.join(options)}" if options else f"left out, since {owner} takes no arguments"
    return invalid(name, rule, Shown(shown(value) + nearest(name, options)))


def tensor(name: str, value: Any, shape: str, dims: Sequence[int]) -> Tensor:
    """A tensor with one of the allowed numbers of dimensions."""
    rule = f"a tensor of shape {shape}"
    if not isinstance(value, Tensor):
        raise wrong_type(name, rule, value)
    if value.dim() not in tuple(dims):
        raise invalid(name, rule, value)
    return value


def floating(name: str, value: Tensor) -> Tensor:
    """A tensor of one of the four floating-point types that torch computes with."""
    if value.dtype not in FLOATING:
        raise wrong_type(name, "floating point", Shown(str(value.dtype)))
    return value


def batched(name: str, value: Any, nd: int | None = None) -> Tensor:
    """A batch (N, C, *spatial) with one to three spatial axes, or exactly `nd`."""
    dims = (3, 4, 5) if nd is None else (nd + 2,)
    shape = {1: "(N, C, W)", 2: "(N, C, H, W)", 3: "(N, C, D, H, W)"}.get(nd or 0, "(N, C, *spatial), 1 to 3 spatial axes")
    result = tensor(name, value, shape, dims)
    if result.is_nested:
        raise wrong_type(name, "a dense (strided) tensor", Shown("a nested tensor"))
    if result.layout != torch.strided:
        raise wrong_type(name, "a dense (strided) tensor", Shown(f"layout {result.layout}"))
    return result
