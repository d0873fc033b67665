"""The same object for the same settings: what a small call needs is then made once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["MOST", "made", "plain", "token"]

MOST = 4096  # then the memory is cleared: whoever has inputs of so many shapes waits for more than this
PLAIN = {int, float, bool, str, type(None)}
WITH_TUPLES = PLAIN | {tuple}
ALL_PLAIN: set[tuple[type, ...]] = set()  # types of settings seen before: of few functions, so that these are few too
MADE: dict[tuple[Any, ...], Any] = {}
KNOWN: dict[int, Any] = {}  # what was made, by address


def plain(values: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """The types of values that may stand in a key, those in tuples too: 2.0 equals 2, and yet is no kernel size."""
    types = tuple(map(type, values))
    if types in ALL_PLAIN:
        return types
    if PLAIN.issuperset(types):
        ALL_PLAIN.add(types)
        return types
    inner = tuple(type(part) for value in values if type(value) is tuple for part in value)
    return types + inner if PLAIN.issuperset(inner) and WITH_TUPLES.issuperset(types) else None


def made(kind: Callable[..., Any], *settings: Any) -> Any:
    """`kind(*settings)`, the same object for the same settings."""
    types = None if torch.compiler.is_compiling() else plain(settings)  # a recorded graph knows no addresses
    if types is None:
        return kind(*settings)
    key = (kind, settings, types)
    found = MADE.get(key)
    if found is None:
        if len(MADE) >= MOST:
            MADE.clear()
            KNOWN.clear()
        found = MADE[key] = kind(*settings)
        KNOWN[id(found)] = found
    return found


def token(item: Any) -> Any:
    """What tells an object from others by its settings, whatever the values of tensors; None where that is not plain to see.

    An address belongs to one object only while that object lives: whoever keeps a token keeps the object too.
    """
    if id(item) in KNOWN:
        return id(item)
    values = tuple([None if isinstance(value, Tensor) else value for value in item.__dict__.values()])
    types = plain(values)
    return None if types is None else (type(item), values, types)
