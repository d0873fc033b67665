"""Small networks, in which only the pooling under test changes."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from everypool import _check as check
from everypool.factory import create, find_named, first_class
from everypool.pool import split_settings

__all__ = ["STRIDED", "UNPOOLED", "build_stand_in", "check_gradient", "checked_pool", "convolution", "halving", "halving_layer"]

STRIDED, UNPOOLED = "stride", "none"  # beside names of poolings: a convolution that steps by two; nothing in its place
CONVOLUTIONS = nn.Conv1d, nn.Conv2d, nn.Conv3d
CHANNELS = 8  # of the map that a pooling is tried on
NORMS = nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d


def convolution(
    inputs: int, outputs: int, *, nd: int = 2, kernel: int = 3, padding: int = 1, stride: int = 1
) -> list[nn.Module]:
    """A convolution, batch norm and ReLU."""
    made = CONVOLUTIONS[nd - 1](inputs, outputs, kernel, stride=stride, padding=padding)
    return [made, NORMS[nd - 1](outputs), nn.ReLU()]


def halving(inputs: int, outputs: int, pool: str, *, nd: int = 2, padding: int = 1) -> list[nn.Module]:
    """Convolution, batch norm, ReLU, and what halves the map.

    Args:
        inputs: channels.
        outputs: channels.
        pool: an operation with its settings, with windows of 2 that step by 2; "stride" lets the convolution step by two
            instead; "none" leaves the map as large as it is.
        nd: spatial axes.
        padding: of the convolution.
    """
    layers = convolution(inputs, outputs, nd=nd, padding=padding, stride=2 if pool == STRIDED else 1)
    return layers if pool in (STRIDED, UNPOOLED) else [*layers, halving_layer(pool, outputs, nd)]


def halving_layer(pool: str, channels: int, nd: int) -> nn.Module:
    """Return the layer of an operation that halves a map: of a reducer with windows of 2 that step by 2.

    Raises:
        ValueError: it makes something else of a map.
    """
    shapes = (2, channels, *(4,) * nd), (2, channels, *(2,) * nd)
    return build_stand_in(pool, *shapes, {"kernel_size": 2, "stride": 2})


def checked_pool(pool: str, nd: int = 2) -> str:
    """The text as it is, if it names an operation that halves a map, and that a network can be trained with.

    Raises:
        ValueError: it does not.
    """
    with torch.random.fork_rng(devices=[]):
        output = halving_layer(pool, CHANNELS, nd)(torch.rand(2, CHANNELS, *(4,) * nd, requires_grad=True))
        check_gradient(pool, output)
    return pool


def check_gradient(pool: str, output: Tensor) -> None:
    """Raise if nothing can be learned through what a pooling gave."""
    if output.grad_fn is None:
        raise check.invalid("pool", "an operation with a gradient", pool)
    output.sum().backward()


def build_stand_in(pool: str, input: Sequence[int], output: Sequence[int], window: Mapping[str, Any]) -> nn.Module:
    """Return the layer of any operation in the place of a pooling.

    Args:
        pool: its name, with settings if any.
        input: shape of what the pooling is given, (N, C, *spatial).
        output: shape of what it makes of that.
        window: its arguments: `kernel_size` and so on, `output_size`, or none of them. What the operation takes of these is
            given to it, and so are channels; two poolings that are mixed are the maximum and the average.

    Raises:
        ValueError: no such operation, or it asks for more, or makes something else of its input.
    """
    nd, channels = len(input) - 2, input[1]
    key, settings = split_settings("pool", pool)
    operation, named = find_named(key)
    if operation.kind == "reducer":
        return create(pool, nd=nd, **window)
    parameters = inspect.signature(named or first_class(operation, nd)).parameters
    known = {"channels": channels, "input_size": channels, "channels_first": True, "first": "max", "second": "avg"}
    offered = {name: known[name] for name, p in parameters.items() if name in known and p.default is not None}
    offered |= {name: value for name, value in window.items() if name in parameters}
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        offered |= window
    if operation.name == "blur_pool":  # its kernel is that of the blur
        offered.pop("kernel_size", None)
    axes = None if "channels_first" in parameters else nd  # patterns of any number of axes
    layer = create(pool, nd=axes, **{name: value for name, value in offered.items() if name not in settings})
    made = try_on(pool, layer, input, output)
    return layer if made == tuple(output) else nn.Sequential(layer, nn.Unflatten(1, tuple(output[1:])))


def try_on(pool: str, layer: nn.Module, input: Sequence[int], output: Sequence[int]) -> tuple[int, ...]:
    """Return the shape that the layer gives, if it is that of `output` but for axes of size 1 at the end.

    Raises:
        ValueError: it is another, or there is more than one result, or none.
    """
    rule = f"an operation that makes {tuple(output)} of {tuple(input)}, as the pooling in its place does"
    modes = [(module, module.training) for module in layer.modules()]
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            made = layer.eval()(torch.rand(tuple(input)))
    except (ValueError, TypeError, RuntimeError, NotImplementedError) as error:
        why = " ".join(str(error).split())
        raise check.invalid("pool", rule, check.Shown(f"{pool!r}, which takes no such map: {why}")) from error
    finally:
        for module, mode in modes:
            module.training = mode
    if not isinstance(made, Tensor):
        raise check.invalid("pool", rule, check.Shown(f"{pool!r}, which gives a tuple of {len(made)}"))
    shape = tuple(made.shape)
    if shape + (1,) * (len(output) - len(shape)) != tuple(output):
        raise check.invalid("pool", rule, check.Shown(f"{pool!r}, which gives {shape}"))
    return shape
