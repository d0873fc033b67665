"""Layers and blocks by name: `create("gem:p=4", nd=2, kernel_size=2)`."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn

from everypool import _check as check
from everypool.pool import Operation, operations, split_settings

__all__ = ["create", "find_classes", "find_named", "first_class"]


def create(name: str, *, nd: int | None = None, **arguments: Any) -> nn.Module:
    """Make the layer or block of any operation by its name.

    Args:
        name: an operation's name, with settings if any, such as "gem:p=4", "soft:beta=2" or "spatial_pyramid:reducer=avg";
            or, where an operation has several modules, the name of one of them, such as "TopPool" or "SPPF" (the first
            that `operations()` lists is made otherwise).
        nd: number of spatial axes, 1 to 3. Default: 2, or what the operation has.
        arguments: what the module takes. For a reducer `kernel_size` and the rest for sliding windows; `output_size` for
            adaptive ones; neither for the global layer (which takes `keepdim`).

    Returns:
        A module such as GeMPool2d.

    Raises:
        ValueError: no such operation or argument, the nearest name is suggested; or an argument is missing.

    >>> create("soft", nd=1, kernel_size=2)
    SoftPool1d(kernel_size=2, stride=2, padding=0, dilation=1, ceil_mode=False, beta=1.0)
    >>> create("strip"), create("sppf", channels=8).kernel
    (StripPool(reducer='mean'), 5)
    """
    if not isinstance(name, str):
        raise check.wrong_type("name", "the name of an operation", name)
    key, settings = split_settings("name", name)
    operation, named = find_named(key)
    nd = checked_axes(operation, getattr(named, "nd", None) if nd is None else nd)
    both = sorted(set(settings) & set(arguments))
    if both:
        raise check.invalid("name", "free of settings that are also arguments", check.Shown(", ".join(both)))
    given = {**settings, **arguments}
    if operation.name == "lp":
        given.setdefault("norm_type", given.pop("p", 2.0))
    kind = named or (reducer_class(operation, nd, given) if operation.kind == "reducer" else first_class(operation, nd))
    own = getattr(kind, "nd", nd)
    if own != nd and isinstance(own, int):
        raise check.invalid("nd", f"{own} for {kind.__name__}", nd)
    signature = inspect.signature(kind)
    if "nd" in signature.parameters:
        given["nd"] = nd
    try:
        check.arguments(kind.__name__, signature, (), given)
    except TypeError as error:
        raise check.InvalidValue(str(error)) from error
    return kind(**given)


def find_classes(operation: Operation) -> list[type[nn.Module]]:
    """Return the layers or blocks of an operation, in the order of its record.

    >>> [kind.__name__ for kind in find_classes(operations()["corner"])]
    ['TopLeftPool', 'BottomRightPool']
    """
    import everypool  # the blocks make layers by name too

    items = [getattr(everypool, name) for name in operation.names]
    return [item for item in items if isinstance(item, type) and issubclass(item, nn.Module)]


def find_named(key: str) -> tuple[Operation, type[nn.Module] | None]:
    """Return the operation of a name in lower case, and the module where it is the name of one.

    Raises:
        ValueError: there is none; the nearest is suggested.
    """
    known: dict[str, tuple[Operation, type[nn.Module] | None]] = {}
    for operation in operations().values():
        if operation.kind != "reducer":  # whose layers are found by their windows
            known |= {kind.__name__.lower(): (operation, kind) for kind in find_classes(operation)}
        known |= {name: (operation, None) for name in (operation.name, *operation.aliases)}
    if key not in known:
        got = check.Shown(repr(key) + check.nearest(key, known))
        raise check.invalid("name", "one of those that `everypool list` or everypool.operations() shows", got)
    return known[key]


def first_class(operation: Operation, nd: int) -> type[nn.Module]:
    """Return the module of windows or a block for that number of axes."""
    classes = find_classes(operation)
    return next((kind for kind in classes if kind.__name__.endswith(f"{nd}d")), classes[0])


def checked_axes(operation: Operation, nd: Any) -> int:
    """Return the number of spatial axes, one that the operation has."""
    if nd is None:
        return 2 if 2 in operation.nd else operation.nd[0]
    if check.positive_int("nd", nd) not in operation.nd:
        *most, last = map(str, operation.nd)
        raise check.invalid("nd", f"{', '.join(most)} or {last}" if most else f"{last} for {operation.name}", nd)
    return int(nd)


def reducer_class(operation: Operation, nd: int, given: Mapping[str, Any]) -> type[nn.Module]:
    """Return the sliding, adaptive or global layer of a reducer: the one that takes the arguments."""
    import everypool

    stem = operation.stem
    layers = [getattr(everypool, name) for name in (f"Global{stem}Pool", f"{stem}Pool{nd}d", f"Adaptive{stem}Pool{nd}d")]
    whole, sliding, adaptive = layers
    if "kernel_size" in given:
        return sliding
    if "output_size" in given:
        return adaptive
    takes = {layer: list(inspect.signature(layer).parameters) for layer in layers}
    options = list(dict.fromkeys(name for layer in (sliding, adaptive, whole) for name in takes[layer]))
    for name in given:
        if name not in options:
            owner = f"{sliding.__name__}, {adaptive.__name__} or {whole.__name__}"
            raise check.unknown_argument(name, owner, options, given[name])
    return next((layer for layer in layers if set(given) <= set(takes[layer])), sliding)
