"""torch's own samples for its poolings, those of its OpInfo and ModuleInfo tables, give what torch gives.

Values, types, shapes, strides and indices; gradients and their gradients; every type that torch pools on a CPU; and each
sample in memory of many kinds. Where torch answers otherwise, the difference is listed here and in docs/torch.md.
"""

from __future__ import annotations

import functools
import sys
import types
import unittest
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from memories import find_strides, make_memories
from torch import Tensor

import everypool
from everypool import functional

# torch's tables of samples import a package for tests that are not run here
STUB = types.ModuleType("expecttest")
STUB.TestCase = unittest.TestCase  # type: ignore[attr-defined]

POOLINGS = ("max_pool", "avg_pool", "adaptive_max_pool", "adaptive_avg_pool", "max_unpool")
LAYERS = ("MaxPool", "AvgPool", "AdaptiveMaxPool", "AdaptiveAvgPool", "LPPool")
OPERATIONS = [f"nn.functional.{name}{nd}d" for name in POOLINGS for nd in (1, 2, 3)]
MODULES = [f"nn.{name}{nd}d" for name in LAYERS for nd in (1, 2, 3)]
NAMES = OPERATIONS + MODULES
WITHOUT_COUNTERPART = {
    "nn.functional.fractional_max_pool2d", "nn.functional.fractional_max_pool3d", "nn.FractionalMaxPool2d",
    "nn.FractionalMaxPool3d", "max_pool2d_with_indices_backward",
}  # fmt: skip
HALVES = (torch.bfloat16, torch.float16)
NOT_REFUSED = {("max_pool1d", (0, 10)), ("max_pool3d", (0, 1, 2, 10))}  # lone samples without a channel
FEW = dict.fromkeys(OPERATIONS[:3], 7)  # of torch's hundreds of samples every seventh goes through what takes long
OTHER_FORMATS = {  # where torch's kernels do not give what `suggest_memory_format` says, on a CPU
    "max_pool1d": "contiguous where neither a gradient nor indices are asked for",
    "max_pool3d": "those of a lone volume keep channels last",
    "avg_pool3d": "always contiguous",
    "lp_pool3d": "always contiguous",
    "adaptive_max_pool3d": "always contiguous",
    "adaptive_avg_pool3d": "always contiguous, but for one bin",
    "max_unpool1d": "always contiguous, but for one channel",
    "max_unpool3d": "always contiguous",
}


@functools.cache
def tables() -> dict[str, Any]:
    """torch's OpInfo and ModuleInfo entries for poolings, by name."""
    sys.modules.setdefault("expecttest", STUB)
    from torch.testing._internal.common_methods_invocations import op_db
    from torch.testing._internal.common_modules import module_db

    torch.backends.__allow_nonbracketed_mutation_flag = True  # which that import forbids to all that comes after it
    entries = [entry for entry in (*op_db, *module_db) if "pool" in entry.name.lower()]
    return {entry.name: entry for entry in entries if not getattr(entry, "variant_test_name", "")}


@dataclass(frozen=True)
class Sample:
    """One call of a pooling: the input, and the other arguments of torch's function, which are those of its layer."""

    name: str  # of torch's function without its module, such as max_pool2d
    input: Tensor
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def __str__(self) -> str:
        args = [tuple(arg.shape) if isinstance(arg, Tensor) else arg for arg in self.args]
        return f"{self.name} of {tuple(self.input.shape)}, {self.input.dtype}, by {args}, {self.kwargs}"

    @property
    def nd(self) -> int:
        return int(self.name[-2])

    @property
    def kind(self) -> str:
        return self.name[:-2]

    @property
    def is_single(self) -> bool:
        return self.input.dim() == self.nd + 1

    def call_torch(self, input: Tensor) -> Any:
        """Call torch's function."""
        return getattr(torch.nn.functional, self.name)(input, *self.args, **self.kwargs)

    def call_function(self, input: Tensor) -> Any:
        """Call everypool's function, which knows a lone sample by windows with a size per axis."""
        args, kwargs = list(self.args), dict(self.kwargs)
        if self.is_single:
            at = 1 if self.kind == "lp_pool" else 0
            name = next((key for key in ("kernel_size", "output_size") if key in kwargs), None)
            if name is not None:
                kwargs[name] = self.per_axis(kwargs[name])
            else:
                args[at] = self.per_axis(args[at])
        return getattr(everypool, self.kind)(input, *args, **kwargs)

    def call_layer(self, input: Tensor) -> Any:
        """Call everypool's layer."""
        words = {"lp": "LP"}
        name = "".join(words.get(word, word.title()) for word in self.kind.split("_"))
        layer = getattr(everypool, f"{name}{self.nd}d")
        if self.kind != "max_unpool":
            return layer(*self.args, **self.kwargs)(input)
        kwargs = dict(self.kwargs)
        size = kwargs.pop("output_size", None)
        return layer(**kwargs)(input, *self.args, output_size=size)

    def per_axis(self, value: Any) -> tuple[Any, ...]:
        return value if isinstance(value, (tuple, list)) else (value,) * self.nd

    def call_torchs_name(self, input: Tensor) -> Any:
        """Call everypool's function of torch's name."""
        return getattr(functional, self.name)(input, *self.args, **self.kwargs)


Call = Callable[[Sample, Tensor], Any]


def list_calls(sample: Sample) -> list[Call]:
    """Return everypool's ways to do it: a function of any number of axes cannot tell a lone line (C, L) from a batch."""
    named: list[Call] = [Sample.call_torchs_name, Sample.call_layer]
    return named if sample.is_single and sample.nd == 1 else [Sample.call_function, *named]


def make_samples(name: str, dtype: torch.dtype = torch.float64) -> list[Sample]:
    """Return torch's samples of that name and type."""
    entry = tables()[name]
    torch.manual_seed(0)
    if name in OPERATIONS:
        found = entry.sample_inputs("cpu", dtype, requires_grad=False)
        return [Sample(name.split(".")[-1], sample.input, sample.args, sample.kwargs) for sample in found]
    function = "lp_pool" if "LP" in name else {"MaxPool": "max_pool", "AvgPool": "avg_pool"}.get(name[3:-2], "")
    function = function or "adaptive_" + name[11:14].lower() + "_pool"
    found = entry.module_inputs_func(entry, "cpu", dtype, False, True)
    pairs = [(given.constructor_input, given.forward_input.args[0]) for given in found]
    pairs = [(made, x.abs() if "LP" in name else x) for made, x in pairs]  # torch's norm of other numbers is none
    return [Sample(f"{function}{name[-2:]}", x, made.args, made.kwargs) for made, x in pairs]


def list_types(name: str) -> list[torch.dtype]:
    """Return the types that torch pools on a CPU."""
    entry = tables()[name]
    return sorted(entry.supported_dtypes("cpu") if name in OPERATIONS else entry.dtypes, key=str)


def as_tuple(result: Any) -> tuple[Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)


def check_values(sample: Sample, actual: Any, expected: Any) -> None:
    """Values, types, shapes and indices are torch's."""
    actual, expected = as_tuple(actual), as_tuple(expected)
    assert len(actual) == len(expected)
    for ours, theirs in zip(actual, expected, strict=True):
        if ours.dtype == theirs.dtype and torch.equal(ours, theirs):  # the rest takes a hundred times as long
            continue
        torch.testing.assert_close(ours, theirs, equal_nan=True, check_stride=False, msg=lambda text: f"{sample}: {text}")


@pytest.fixture(autouse=True)
def allow_unpooling(request: pytest.FixtureRequest) -> None:
    """Let torch unpool, which refuses where it is told to be deterministic, as in all tests."""
    if "unpool" in request.node.name:
        torch.use_deterministic_algorithms(False)


def test_every_pooling_of_torch_is_here() -> None:
    """torch has no samples for lp_pool and MaxUnpool alone: its layers' and its functions' stand for both."""
    assert set(tables()) == {*NAMES, *WITHOUT_COUNTERPART}


@pytest.mark.parametrize("name", NAMES)
def test_values(name: str) -> None:
    """Every type that torch pools; torch's samples need no exception to their memory format."""
    for dtype in list_types(name):
        for sample in make_samples(name, dtype)[:: 1 if dtype == torch.float32 else FEW.get(name, 1)]:
            x = sample.input
            wide = x.double() if sample.name == "adaptive_avg_pool3d" and dtype in HALVES else x  # where torch is wrong
            expected = sample.call_torch(wide)
            expected = expected.to(dtype) if wide is not x else expected
            for call in list_calls(sample):
                actual = call(sample, x)
                check_values(sample, actual, expected)
                assert [y.stride() for y in as_tuple(actual)] == [y.stride() for y in as_tuple(expected)], str(sample)


@pytest.mark.parametrize("name", NAMES)
def test_memory(name: str) -> None:
    """In memory of every kind the results are torch's, in the format that torch's rule names."""
    others = 0
    for sample in make_samples(name)[:: FEW.get(name, 1)]:
        for kind, x in make_memories(sample.input, sample.is_single):
            if kind == "no sample" and (sample.is_single or "max_unpool" in name):
                continue
            expected = sample.call_torch(x)
            for call in list_calls(sample):
                actual = call(sample, x)
                check_values(sample, actual, expected)
                for ours, theirs in zip(as_tuple(actual), as_tuple(expected), strict=True):
                    strides = find_strides(ours, x, sample.nd)
                    assert ours.stride() == strides, (kind, x.shape, x.stride(), sample)
                    others += theirs.stride() != strides
    assert not others or sample.name in OTHER_FORMATS, others


@pytest.mark.parametrize("name", NAMES)
def test_gradients(name: str) -> None:
    """First and second derivatives, in memory of three kinds."""
    for sample in make_samples(name)[:: FEW.get(name, 1)]:
        memories = dict(make_memories(sample.input, sample.is_single))
        for kind in ("as it is", "channels last, whole", "channels last, every second channel"):
            calls = list_calls(sample)
            if sample.kind == "max_unpool" and sample.args[0].unique().numel() < sample.args[0].numel():
                # torch gives the gradient to all values that name one place, which is right for their sum
                calls = [lambda sample, x: Sample.call_function(replace(sample, kwargs=sample.kwargs | {"overlap": "add"}), x)]
            expected = differentiate(sample, Sample.call_torch, memories[kind])
            for call in calls:
                for ours, theirs in zip(differentiate(sample, call, memories[kind]), expected, strict=True):
                    torch.testing.assert_close(ours, theirs, equal_nan=True, check_stride=False, msg=f"{kind}, {sample}")


def differentiate(sample: Sample, call: Call, x: Tensor) -> tuple[Tensor, ...]:
    """Return the gradient, and the gradients of that gradient."""
    generator = torch.Generator().manual_seed(1)
    x = x.detach().requires_grad_()
    y = as_tuple(call(sample, x))[0]
    v = torch.randn(y.shape, generator=generator, dtype=y.dtype, requires_grad=True)
    (first,) = torch.autograd.grad(y, x, v, create_graph=True)
    w = torch.randn(x.shape, generator=generator, dtype=x.dtype)
    return first, *torch.autograd.grad(first, (x, v), w, materialize_grads=True)


@pytest.mark.parametrize("name", OPERATIONS)
def test_errors(name: str) -> None:
    """What torch refuses is refused, but for lone samples without a channel, whose results have none either."""
    for error in tables()[name].error_inputs("cpu"):
        given = error.sample_input
        sample = Sample(name.split(".")[-1], given.input, given.args, given.kwargs)
        with pytest.raises((error.error_type, ValueError), match=error.error_regex):
            sample.call_torch(sample.input)
        if (sample.name, tuple(sample.input.shape)) in NOT_REFUSED:
            assert sample.call_layer(sample.input).numel() == 0
            continue
        known = sample.input.dim() in (sample.nd + 1, sample.nd + 2)  # to a function every number of axes is right
        for call in list_calls(sample) if known else [Sample.call_torchs_name, Sample.call_layer]:
            with pytest.raises((ValueError, TypeError, NotImplementedError)):
                call(sample, sample.input)
