"""Calls with tensors of another kind: subclasses, fake ones, those without values, distributed ones."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_module, distribute_tensor
from torch.utils._pytree import tree_map_only

from .derivatives import (
    Outcome,
    check_outcome,
    compute_loss,
    derive,
    expect,
    get_leaves,
    list_parts,
    list_tensors,
    make_pure,
    put_leaves,
)
from .registry import add_way, choose_usual
from .subjects import Subject


class Plain(torch.Tensor):
    """A subclass that adds nothing, as for metadata."""


class Wrapper(torch.Tensor):
    """A tensor that holds another and sees every operator."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> Any:
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=inner.device,
            requires_grad=inner.requires_grad,
        )
        made.inner = inner
        return made

    def __init__(self, inner: Tensor) -> None:
        pass

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Wrapper({self.inner!r})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = tree_map_only(Wrapper, lambda x: x.inner, (args, kwargs or {}))
        return tree_map_only(Tensor, Wrapper, func(*args, **kwargs))


def run_on(subject: Subject, convert: Any, module: nn.Module | None = None, order: int = 2) -> Outcome:
    """Call with maps that `convert` makes of plain ones."""
    module = subject.module() if module is None else module
    arguments = subject.arguments()
    leaves = [convert(x.detach()).requires_grad_() for x in get_leaves(arguments)]
    return derive(lambda: module(*put_leaves(arguments, leaves)), [*leaves, *module.parameters()], order)


def unwrap(outcome: Outcome, kind: type, convert: Any) -> Outcome:
    """The same outcome in plain tensors; all values of the given kind but which windows exist, which a plain mask tells."""
    for part in outcome.values:
        if part.dtype is not torch.bool:
            assert type(part) is kind, f"a result is {type(part).__name__}, not {kind.__name__}"

    def change(items: Sequence[Tensor]) -> list[Tensor]:
        return [convert(x) if isinstance(x, kind) else x for x in items]

    return Outcome(change(outcome.values), change(outcome.firsts), change(outcome.seconds))


@add_way("parameter", kernels=True)
def call_with_parameter(subject: Subject) -> None:
    """the input is an nn.Parameter"""
    check_outcome(run_on(subject, nn.Parameter), expect(subject))


@add_way("plain subclass", kernels=True)
def call_with_plain_subclass(subject: Subject) -> None:
    """class Plain(torch.Tensor): pass; results are of that class, as those of torch.nn.functional"""
    found = run_on(subject, lambda x: x.as_subclass(Plain))
    check_outcome(unwrap(found, Plain, lambda x: x.as_subclass(Tensor)), expect(subject))


@add_way("wrapper subclass", kernels=False, quick=choose_usual)
def call_with_wrapper_subclass(subject: Subject) -> None:
    """a subclass with __torch_dispatch__ that wraps a tensor"""
    found = run_on(subject, Wrapper)
    check_outcome(unwrap(found, Wrapper, lambda x: x.inner), expect(subject))


def describe(x: Tensor) -> tuple[Any, ...]:
    """Shape, type, and strides of the axes that are longer than one: of others they say nothing."""
    return tuple(x.shape), tuple(step for step, n in zip(x.stride(), x.shape, strict=True) if n > 1), x.dtype


def list_layouts(x: Tensor) -> list[Tensor]:
    last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(x.dim())
    return [x] if last is None else [x, x.contiguous(memory_format=last)]


def _describe_all(
    subject: Subject, layout: int, convert: Any, mode: Any, derived: Any = None
) -> dict[str, list[tuple[Any, ...]]]:
    """Shapes, strides and types of results, shapes and types of gradients."""
    module, arguments = subject.module(), subject.arguments()
    leaves = [list_layouts(x)[layout] for x in get_leaves(arguments)]
    others = [convert(x) for x in arguments[1:]]
    given = put_leaves((arguments[0], *others), leaves)
    wanted = [convert(x).requires_grad_() for x in list_tensors(module, given)]
    call = make_pure(module, given, {name: convert(x) for name, x in module.named_buffers()})
    with mode:
        result = call(*wanted)
    with mode if derived is None else derived:
        firsts = torch.autograd.grad(compute_loss(result), wanted, allow_unused=True, materialize_grads=True)
    return {"results": [describe(x) for x in list_parts(result)], "gradients": [(tuple(x.shape), x.dtype) for x in firsts]}


@cache
def expect_descriptions(subject: Subject, layout: int) -> dict[str, list[tuple[Any, ...]]]:
    return _describe_all(subject, layout, lambda x: x, contextlib.nullcontext())


def _check_descriptions(subject: Subject, convert: Any, mode: Any, derived: Any = None) -> None:
    """They are those of a plain call, in both memory formats."""
    for layout in range(len(list_layouts(get_leaves(subject.arguments())[0]))):
        expected = expect_descriptions(subject, layout)
        found = _describe_all(subject, layout, convert, mode, derived)
        for name, items in expected.items():
            assert found[name] == items, f"{name}: {found[name]}, not {items}"


@add_way("meta", kernels=False, quick=choose_usual)
def call_on_meta(subject: Subject) -> None:
    """tensors on meta: shapes, types and strides of results; shapes and types of gradients"""
    _check_descriptions(subject, lambda x: x.to("meta"), contextlib.nullcontext())


@add_way("fake mode", kernels=False, quick=choose_usual)
def call_in_fake_mode(subject: Subject) -> None:
    """within FakeTensorMode: shapes, types and strides of results; shapes and types of gradients"""
    mode = FakeTensorMode()
    _check_descriptions(subject, mode.from_tensor, mode)


@add_way("fake tensors", kernels=False, quick=choose_usual)
def call_with_fake_tensors(subject: Subject) -> None:
    """FakeTensor inputs outside of their mode; gradients within it, since torch's own fail outside"""
    mode = FakeTensorMode()
    _check_descriptions(subject, mode.from_tensor, contextlib.nullcontext(), mode)


@cache
def make_mesh() -> Any:
    """One process, gloo."""
    if not torch.distributed.is_initialized():
        with tempfile.NamedTemporaryFile(delete=False) as file:
            store = torch.distributed.FileStore(file.name, 1)
        torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    return torch.distributed.init_device_mesh("cpu", (1,))


def _check_distributed(subject: Subject, placement: Any) -> None:
    mesh = make_mesh()
    expected = expect(subject)
    module = distribute_module(subject.module(), mesh)
    arguments = subject.arguments()
    leaves = [distribute_tensor(x.detach(), mesh, [placement]).requires_grad_() for x in get_leaves(arguments)]
    others = [distribute_tensor(x, mesh, [Replicate()]) for x in arguments[1:]]
    given = put_leaves((arguments[0], *others), leaves)
    found = derive(lambda: module(*given), [*leaves, *module.parameters()])
    check_outcome(unwrap(found, DTensor, lambda x: x.full_tensor()), expected)


@add_way("DTensor replicated", kernels=True)
def call_with_replicated(subject: Subject) -> None:
    """DTensor, Replicate"""
    _check_distributed(subject, Replicate())


@add_way("DTensor over samples", kernels=True)
def call_with_shards_of_samples(subject: Subject) -> None:
    """DTensor, Shard(0)"""
    _check_distributed(subject, Shard(0))


@add_way("DTensor over channels", kernels=True)
def call_with_shards_of_channels(subject: Subject) -> None:
    """DTensor, Shard(1)"""
    _check_distributed(subject, Shard(1))


@add_way("DTensor over space", kernels=False)
def call_with_shards_of_space(subject: Subject) -> None:
    """DTensor, Shard(2)"""
    _check_distributed(subject, Shard(2))
