"""`everypool.functional` in the place of torch.nn.functional's poolings, by position and by name, with a batch and without."""

from __future__ import annotations

import inspect
import itertools
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as theirs
from cases import DEFAULTS
from torch import Tensor

import everypool
import everypool.functional as ours

SPATIAL = {1: (12,), 2: (8, 10), 3: (6, 4, 8)}
ORDER: dict[str, tuple[str, ...]] = {  # torch.nn.functional's, as its documentation has it
    "max_pool": ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices"),
    "avg_pool": ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override"),
    "lp_pool": ("norm_type", "kernel_size", "stride", "ceil_mode"),
    "adaptive_max_pool": ("output_size", "return_indices"),
    "adaptive_avg_pool": ("output_size",),
}
VALUES: dict[str, tuple[tuple[Any, ...], ...]] = {
    "max_pool": (
        (2,), (3, 2), (3, 2, 1), (3, 1, 1, 2), (3, 2, 1, 1, True), (2, None, 0, 1, False, True), (3, 2, 1, 1, True, True),
    ),
    "avg_pool": ((2,), (3, 2), (3, 2, 1), (3, 2, 1, True), (3, 2, 1, True, False), (3, 2, 1, False, True)),
    "lp_pool": ((2.0, 2), (2.0, 3, 2), (1.0, 2, 2), (3.0, 3, 1, False)),
    "adaptive_max_pool": ((3,), (4, True)),
    "adaptive_avg_pool": ((3,), (1,)),
}  # fmt: skip
CASES = [
    pytest.param(name, nd, values, id=f"{name}{nd}d-{'-'.join(map(str, values))}")
    for name, many in VALUES.items()
    for nd, values in itertools.product((1, 2, 3), many)
]
EXPLICIT = [name for name in ours.__all__ if name[-2:] in ("1d", "2d", "3d")]


def sample(nd: int) -> Tensor:
    return torch.rand(2, 3, *SPATIAL[nd], dtype=torch.float64, generator=torch.Generator().manual_seed(nd))


def check_equal(actual: Any, expected: Any) -> None:
    assert isinstance(actual, tuple) == isinstance(expected, tuple)
    pairs = zip(actual, expected, strict=True) if isinstance(expected, tuple) else [(actual, expected)]
    for a, e in pairs:
        torch.testing.assert_close(a, e, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(("name", "nd", "values"), CASES)
def test_as_torch_gives_it(name: str, nd: int, values: tuple[Any, ...]) -> None:
    """By position, by name, and all but the input by name; for a batch and one sample; for an int and one per axis."""
    function, reference = getattr(ours, f"{name}{nd}d"), getattr(theirs, f"{name}{nd}d")
    named = dict(zip(ORDER[name], values, strict=False))
    x = sample(nd)
    for input in (x, x[0]):
        expected = reference(input, *values)
        check_equal(function(input, *values), expected)
        check_equal(function(input, **named), expected)
        check_equal(function(input=input, **named), expected)
    size = "kernel_size" if "kernel_size" in named else "output_size"
    spread = {**named, size: (named[size],) * nd}
    check_equal(function(x[0], **spread), reference(x[0], **spread) if nd > 1 or "lp" not in name else reference(x[0], *values))


@pytest.mark.parametrize("nd", [1, 2, 3])
def test_settings_that_one_or_two_of_torchs_lack(nd: int) -> None:
    x = sample(nd)
    if nd > 1:
        check_equal(getattr(ours, f"avg_pool{nd}d")(x, 2, divisor_override=3),
                    getattr(theirs, f"avg_pool{nd}d")(x, 2, divisor_override=3))  # fmt: skip
        out = (None, *[2] * (nd - 1))
        for name in ("adaptive_avg_pool", "adaptive_max_pool"):
            check_equal(getattr(ours, f"{name}{nd}d")(x[0], out), getattr(theirs, f"{name}{nd}d")(x[0], out))


@pytest.mark.parametrize("nd", [1, 2, 3])
@pytest.mark.parametrize("batched", [True, False])
def test_unpooling(nd: int, batched: bool) -> None:
    x = sample(nd) if batched else sample(nd)[0]
    torch.use_deterministic_algorithms(False)  # torch has no other unpooling
    values, places = getattr(theirs, f"max_pool{nd}d")(x, 2, 2, return_indices=True)
    function, reference = getattr(ours, f"max_unpool{nd}d"), getattr(theirs, f"max_unpool{nd}d")
    check_equal(function(values, places, 2), reference(values, places, 2))
    check_equal(function(values, places, 2, 2, 0, x.shape[-nd:]), reference(values, places, 2, 2, 0, x.shape[-nd:]))
    check_equal(
        function(values, places, kernel_size=2, output_size=x.shape), reference(values, places, 2, output_size=x.shape[-nd:])
    )


@pytest.mark.parametrize("name", EXPLICIT)
def test_every_function_fixes_its_axes(name: str) -> None:
    """The function of any number of axes, on a batch; one sample by itself; windows of other axes and inputs are refused."""
    nd, function = int(name[-2]), getattr(ours, name)
    general = getattr(everypool, name[:-2])
    x = sample(nd)
    arguments: dict[str, Any] = {"norm_type": 2.0} if "lp_" in name else {}
    size = "output_size" if "adaptive" in name else "kernel_size"
    if "unpool" in name:
        x, arguments["indices"] = everypool.max_pool(x, 2, return_indices=True)
    expected = general(x, **arguments, **{size: 2})
    check_equal(function(x, **arguments, **{size: 2}), expected)
    alone = {key: value[0] if isinstance(value, Tensor) else value for key, value in arguments.items()}
    check_equal(function(x[0], **alone, **{size: 2}), expected[0])
    check_equal(general(x[0], **alone, **{size: 2}, nd=nd), expected[0])
    for other in {1, 2, 3} - {nd}:
        with pytest.raises(ValueError, match=f"^`{size}` must be "):
            function(x, **arguments, **{size: (2,) * other if other > 1 else (2, 2, 2, 2)})
    for wrong in (x[0, 0], x[None]):
        there = {"indices": torch.zeros(wrong.shape, dtype=torch.int64)} if "unpool" in name else {}
        with pytest.raises(ValueError, match=r"^`input` must be "):
            function(wrong, **{**arguments, **there}, **{size: 2})
    if "unpool" not in name:
        mask = torch.rand(2, 1, *x.shape[2:]) > 0.4
        masked = general(x, **arguments, **{size: 2}, mask=mask)
        check_equal(function(x, **arguments, **{size: 2}, mask=mask), masked)
        check_equal(function(x[1], **arguments, **{size: 2}, mask=mask[1]), masked[1])


@pytest.mark.parametrize("name", EXPLICIT)
def test_signatures(name: str) -> None:
    function, general = getattr(ours, name), getattr(everypool, name[:-2])
    parameters = list(inspect.signature(general).parameters.values())
    assert list(inspect.signature(function).parameters.values()) == [p for p in parameters if p.name != "nd"]
    assert (function.__name__, function.__module__) == (name, "everypool.functional")
    assert pickle.loads(pickle.dumps(function)) is function
    assert f"`{name[:-2]}`" in (function.__doc__ or "")
    if name[:-2] in ORDER:
        by_position = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
        assert tuple(by_position) == ("input", *ORDER[name[:-2]])


def test_all_functions_are_there() -> None:
    functions: list[Callable[..., Any]] = [
        item
        for op in everypool.operations().values()
        for item in (getattr(everypool, name) for name in op.names)
        if not isinstance(item, type)
    ]
    for function in functions:
        assert getattr(ours, function.__name__) is function
        assert function.__name__ in ours.__all__
    for row in DEFAULTS:
        for nd in row.operation.nd:
            assert f"{row.operation.name}_pool{nd}d" in ours.__all__
            assert f"adaptive_{row.operation.name}_pool{nd}d" in ours.__all__
    assert ours.__all__ == sorted(ours.__all__)


def test_an_image_without_a_batch() -> None:
    """The function of any number of axes takes it for lines, and says how to say otherwise."""
    image = torch.rand(3, 8, 8)
    assert everypool.max_pool(image, 2).shape == (3, 8, 4)
    assert ours.max_pool2d(image, 2).shape == everypool.max_pool(image, 2, nd=2).shape == (3, 4, 4)
    for row in DEFAULTS:
        for name in (f"{row.operation.name}_pool", f"adaptive_{row.operation.name}_pool"):
            text = getattr(everypool, name).__doc__
            assert "everypool.functional" in text or f"see `{row.operation.name}_pool`" in text
