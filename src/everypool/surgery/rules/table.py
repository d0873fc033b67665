"""The rules by the names of torch's functions, and what needs none."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from everypool.surgery.own import WAY_OUT, named, refused

if TYPE_CHECKING:
    from everypool.surgery.extents import Following

__all__ = [
    "ALONG",
    "CREATED",
    "HARMLESS",
    "IDENTITY",
    "LIKE",
    "RULES",
    "SIZED",
    "Rule",
    "bound",
    "dims",
    "rule",
    "source",
    "unruled",
]

Rule = Callable[..., Any]  # of the mode, the function and its arguments
RULES: dict[str, Rule] = {}

# what gives no map: facts about a tensor, and new tensors of a given shape
HARMLESS = {
    *("dim", "ndimension", "stride", "element_size", "get_device", "storage_offset", "data_ptr", "__hash__", "__repr__"),
    *("requires_grad_", "retain_grad", "register_hook", "_set_grad_enabled", "new_tensor", "result_type", "can_cast"),
    *(".dtype", ".device", ".ndim", ".layout", ".requires_grad", ".grad_fn", ".grad", ".itemsize", ".names"),
}
CREATED = {"zeros", "ones", "empty", "rand", "randn", "new_zeros", "new_ones", "new_empty"}
LIKE = {"interpolate", "upsample", "expand", *CREATED}  # they may be given the size of another map
SIZED = {  # what may be given the size of a map: it makes something of that size, or its rule knows
    *LIKE,
    *("view", "reshape", "unflatten", "pad", "__getitem__"),
    *(f"{name}_pool{nd}d" for name in ("max", "avg", "lp") for nd in (1, 2, 3)),
}
IDENTITY = {"sum": 0.0, "mean": 0.0, "norm": 0.0, "vector_norm": 0.0, "linalg_vector_norm": 0.0, "prod": 1.0,
            "amax": -math.inf, "max": -math.inf, "logsumexp": -math.inf, "argmax": -math.inf,
            "amin": math.inf, "min": math.inf, "argmin": math.inf,
            "std": 0.0, "var": 0.0, "std_mean": 0.0, "var_mean": 0.0}  # fmt: skip
ALONG = {"softmax": -math.inf, "log_softmax": -math.inf, "normalize": 0.0, "cumsum": 0.0, "glu": None}


def rule(*names: str) -> Callable[[Rule], Rule]:
    def add(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        return function

    return add


def bound(names: str, args: Sequence[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments by name."""
    return {**dict(zip(names.split(), args, strict=False)), **kwargs}


def source(args: Any, kwargs: Any) -> Any:
    """The function's first argument."""
    return args[0] if args else kwargs.get("input", kwargs.get("self"))


def dims(value: Any, d: int) -> tuple[int, ...]:
    """Axes, counted from 0."""
    return tuple(item % d for item in (value if isinstance(value, (list, tuple)) else (value,)))


def unruled(mode: Following, func: Any, args: Any, kwargs: Any, why: str) -> NotImplementedError:
    """The error for a function that has no rule for what it is given."""
    return refused(f"one {why}, {WAY_OUT}", mode.got(f"`{named(func)}`", args, kwargs))
