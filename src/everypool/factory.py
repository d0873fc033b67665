"""Layers by name: `create("gem:p=4", nd=2, kernel_size=2)`."""

from __future__ import annotations

from typing import Any

from torch import nn

import everypool.reducers as reducers
from everypool import _check as check
from everypool.pool import parse, parse_settings

__all__ = ["create"]


def create(name: str, *, nd: int = 2, **arguments: Any) -> nn.Module:
    """The layer of a reducer by its name: sliding, adaptive or global, by the arguments given.

    Args:
        name: an operation's name, with its settings if any, such as "gem:p=4" or "soft:beta=2".
        nd: number of spatial axes, 1 to 3.
        arguments: `kernel_size` and the rest for sliding windows; `output_size` for adaptive ones; neither for the
            global layer (which takes `keepdim`).

    Returns:
        A module such as GeMPool2d.

    Raises:
        ValueError: no such operation or setting; the nearest name is suggested.

    >>> create("soft", nd=1, kernel_size=2)
    SoftPool1d(kernel_size=2, stride=2, padding=0, dilation=1, ceil_mode=False, beta=1.0)
    """
    if not isinstance(name, str):
        raise check.wrong_type("name", "the name of a reducer", name)
    if check.positive_int("nd", nd) > 3:
        raise check.invalid("nd", "1, 2 or 3", nd)
    operation, settings = parse_settings(name)
    parse(name)  # its settings must be the reducer's
    if operation.name == "lp":
        settings["norm_type"] = settings.pop("p", 2.0)
    if "kernel_size" in arguments:
        layer = f"{operation.stem}Pool{nd}d"
    elif "output_size" in arguments:
        layer = f"Adaptive{operation.stem}Pool{nd}d"
    else:
        layer = f"Global{operation.stem}Pool"
    both = sorted(set(settings) & set(arguments))
    if both:
        raise check.invalid("name", "free of settings that are also arguments", check.Shown(", ".join(both)))
    made = getattr(reducers, layer)
    try:
        return made(**arguments, **settings)
    except TypeError as error:
        if "argument" not in str(error):
            raise
        raise check.invalid("arguments", f"arguments of {layer}", check.Shown(str({**arguments, **settings}))) from error
