"""The layer that takes a pooling's place: its reducer from the rule, its windows and layout from what stands there."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from torch import nn

from everypool import _check as check
from everypool import blocks
from everypool.factory import create
from everypool.pool import parse_settings
from everypool.surgery.find import Pooling
from everypool.surgery.layers import OverAxes
from everypool.surgery.trace import channels_last, is_known, known_as, pads_same

__all__ = ["BLUR", "OPEN", "Rule", "made"]

BLUR = "blur"
AVERAGES = ("count_include_pad", "divisor_override")
STARTS = {  # where a reducer with a parameter is the mean
    "gem": {"p": 1.0},
    "soft": {"beta": 0.0, "learnable": True},
    "logsumexp": {"r": 0.0, "learnable": True},
}
OPEN = {"gem": "p", "soft": "beta", "logsumexp": "r"}  # what calibration fits unless the rule names it
Rule = str | nn.Module | Callable[[Pooling], nn.Module]


def made(place: Pooling, rule: Rule, preserve: bool, fit: bool) -> tuple[nn.Module, tuple[str, ...]]:
    """The layer that takes the pooling's place, and what should be known of it."""
    if isinstance(rule, nn.Module):
        return copy.deepcopy(rule), ()
    if not isinstance(rule, str):
        new = rule(place) if callable(rule) else None
        if not isinstance(new, nn.Module):
            raise check.wrong_type("rules", "to poolings by name, modules, or functions that return a module", rule)
        return new, ()
    if rule == BLUR:
        return antialiased(place), ()
    operation, settings = parse_settings(rule)
    start: dict[str, Any] = {}
    if preserve:
        if operation.name == place.reducer and not settings and is_plain(place):
            return layer(place, rule, {}), ()
        start = STARTS.get(operation.name, {})
        if place.reducer != "avg" or not is_plain(place) or counts_padding(place) or not start or set(start) & set(settings):
            return blocks.MixedPool(kept(place), layer(place, rule, {}), alpha=0.0), ()
        if operation.name == "gem" and place.negative and "signed" not in settings:
            start = start | {"signed": "odd"}
    elif fit and OPEN.get(operation.name) not in settings and operation.name in ("soft", "logsumexp"):
        start = {"learnable": True}
    notes: tuple[str, ...] = ()
    if operation.name == "gem" and place.negative and {**settings, **start}.get("signed", "clamp") == "clamp":
        notes = ("values below 0 come in, which GeM takes for 0; signed=odd keeps them",)
    return layer(place, rule, start), notes


def is_plain(place: Pooling) -> bool:
    """Whether its reducer says all that it does; a class made of a known one may do more."""
    module = place.module
    return module is None or is_known(module) or (bool(place.reducer) and not known_as(module)[0])


def kept(place: Pooling) -> nn.Module:
    """The pooling that stands there, as a layer that knows of masks if there is one."""
    if place.module is not None and not is_plain(place):
        return copy.deepcopy(place.module)
    return layer(place, place.reducer, {})


def counts_padding(place: Pooling) -> bool:
    """Whether an average divides by something else than the number of its elements."""
    padding = place.window.get("padding", 0)
    padded = any(padding) if isinstance(padding, (tuple, list)) else padding not in (0, "valid")
    return bool(place.window.get("divisor_override")) or (padded and place.window.get("count_include_pad", True))


def antialiased(place: Pooling) -> nn.Module:
    if place.kind != "sliding" or place.reducer not in ("max", "avg"):
        raise check.invalid("rules", "'blur' for sliding windows of a maximum or an average", place.name)
    nd = dimensions(place)
    window = {"stride": place.window.get("stride") or place.window["kernel_size"]}
    if place.reducer == "avg":
        blur: nn.Module = getattr(blocks, f"BlurPool{nd}d")(**window)
        return blur
    window |= {name: place.window[name] for name in ("padding", "dilation", "ceil_mode") if name in place.window}
    result: nn.Module = getattr(blocks, f"MaxBlurPool{nd}d")(place.window["kernel_size"], **window)
    return result


def dimensions(place: Pooling) -> int:
    return place.nd or max(len(place.input) - 2, 1)


def layer(place: Pooling, pool: str, start: dict[str, Any]) -> nn.Module:
    """The layer of a reducer with the pooling's windows."""
    call, old = place.call, place.module
    if place.kind == "sliding":
        arguments: dict[str, Any] = {"stride": place.window.get("stride") or place.window["kernel_size"]}
        arguments |= {name: place.window[name] for name in ("padding", "dilation", "ceil_mode") if name in place.window}
        if old is not None and pads_same(old):
            arguments["padding"] = "same"
        operation, settings = parse_settings(pool)
        if operation.name == "avg" and place.reducer == "avg":
            arguments |= {name: place.window[name] for name in AVERAGES if name in place.window and name not in settings}
        return create(pool, nd=dimensions(place), kernel_size=place.window["kernel_size"], **arguments, **start)
    if call is not None and call.axes:
        spatial = tuple(range(2, len(place.input)))
        if call.axes == spatial and call.batch == 0:
            return create(pool, nd=len(spatial), keepdim=call.keepdim, **start)
        return OverAxes(create(pool, nd=len(call.axes), **start), call.axes, call.keepdim, call.batch)
    size = place.window.get("output_size", tuple(place.output[2:]))
    if place.kind == "adaptive" or not place.input:
        return create(pool, nd=dimensions(place), output_size=size, **start)
    keepdim = len(place.output) == len(place.input)
    if old is not None and channels_last(old):
        return OverAxes(create(pool, nd=2, **start), (1, 2), keepdim)
    return create(pool, nd=dimensions(place), keepdim=keepdim, **start)
