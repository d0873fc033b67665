"""Ways that record a graph, which then runs with other values and at other sizes."""

from __future__ import annotations

import pickle
import warnings
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim
from torch.fx.experimental.proxy_tensor import make_fx

from .derivatives import (
    check_all,
    check_outcome,
    derive,
    expect,
    expect_network,
    get_leaves,
    list_parts,
    list_tensors,
    make_network,
    make_pure,
    run_plainly,
)
from .registry import (
    add_way,
    choose_few,
    choose_main,
    choose_main_evaluated,
    choose_none,
    choose_usual,
    choose_usual_evaluated,
)
from .subjects import BASE, OTHER, TALLER, Subject


def trace(module: nn.Module, arguments: tuple[Any, ...]) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of torch.jit itself
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        return torch.jit.trace(module, arguments)


@add_way("jit.trace", kernels=False, quick=choose_usual)
def call_traced(subject: Subject) -> None:
    """torch.jit.trace, run at two sizes"""
    traced = trace(subject.module(), subject.arguments())
    for size in (BASE, OTHER):
        check_outcome(run_plainly(subject, traced, size=size), expect(subject, size))


@add_way("jit.trace no_grad", kernels=False, quick=choose_main)
def call_traced_network(subject: Subject) -> None:
    """torch.jit.trace of convolution + pooling under no_grad, run at two sizes"""
    expected = {size: expect_network(subject, size) for size in (BASE, OTHER)}
    with torch.no_grad():
        traced = trace(make_network(subject), subject.arguments())
        for size, outcome in expected.items():
            check_all(list_parts(traced(*subject.arguments(size))), outcome.values)


@add_way("fx", kernels=True)
def call_symbolic(subject: Subject) -> None:
    """torch.fx.symbolic_trace of convolution + pooling, pickled, run at two sizes"""
    traced = fx.symbolic_trace(make_network(subject))
    for module in (traced, pickle.loads(pickle.dumps(traced))):
        for size in (BASE, OTHER):
            check_outcome(run_plainly(subject, module, size=size), expect_network(subject, size))


def _record_derivatives(subject: Subject, mode: str, sizes: tuple[int, ...], order: int = 2) -> None:
    """Record values and derivatives as a function of maps, parameters, buffers, masks and sizes."""
    module, arguments = subject.module(), subject.arguments()
    buffers = dict(module.named_buffers())
    count = len(list_tensors(module, arguments))

    def compute(*tensors: Tensor) -> list[Tensor]:
        wanted = [x.detach().requires_grad_() for x in tensors[:count]]
        others = tensors[count + len(buffers) :]
        given = dict(zip(buffers, tensors[count:], strict=False))
        call = make_pure(module, (arguments[0], *others), given)
        found = derive(lambda: call(*wanted), wanted, order)
        return [*found.values, *found.firsts, *found.seconds]

    def list_inputs(size: int) -> list[Tensor]:
        given = subject.arguments(size)
        return [*list_tensors(module, given), *buffers.values(), *given[1:]]

    graph = make_fx(compute, tracing_mode=mode)(*list_inputs(BASE))
    for size in sizes:
        expected = expect(subject, size)
        derived = (*expected.firsts, *expected.seconds)[: order * count]
        check_all(graph(*list_inputs(size)), [*expected.values, *derived])


@add_way("make_fx real", kernels=False, fits=choose_usual_evaluated, quick=choose_few)
def call_recorded(subject: Subject) -> None:
    """make_fx, of values and both derivatives"""
    _record_derivatives(subject, "real", (BASE,))


@add_way("make_fx fake", kernels=False, fits=choose_usual_evaluated, quick=choose_few)
def call_recorded_with_fakes(subject: Subject) -> None:
    """make_fx(tracing_mode="fake"), of values and both derivatives"""
    _record_derivatives(subject, "fake", (BASE,))


@add_way("make_fx symbolic", kernels=False, fits=choose_main_evaluated, quick=choose_few)
def call_recorded_with_symbols(subject: Subject) -> None:
    """make_fx(tracing_mode="symbolic"), of values and first derivatives, run at two sizes"""
    _record_derivatives(subject, "symbolic", (BASE, OTHER), 1)


@add_way("make_fx symbolic twice", kernels=False, fits=choose_main_evaluated, quick=choose_few)
def call_recorded_twice_with_symbols(subject: Subject) -> None:
    """the same with second derivatives"""
    _record_derivatives(subject, "symbolic", (BASE, OTHER))


def _check_compiled(subject: Subject, backend: str, sizes: tuple[int, ...]) -> None:
    torch._dynamo.reset()
    for size in sizes:
        module = subject.module()
        if size == BASE:
            compiled = torch.compile(module, backend=backend, fullgraph=True, dynamic=len(sizes) > 1)
        arguments = subject.arguments(size)
        leaves = [x.detach().requires_grad_() for x in get_leaves(arguments)]
        wanted = [*leaves, *compiled.parameters()]
        given = (leaves if isinstance(arguments[0], list) else leaves[0], *arguments[1:])
        found = derive(lambda compiled=compiled, given=given: compiled(*given), wanted, 1)
        check_outcome(found, expect(subject, size), 1)
    torch._dynamo.reset()


@add_way("compile", kernels=False, fits=choose_main, quick=choose_none)
def call_compiled(subject: Subject) -> None:
    """torch.compile(backend="aot_eager", fullgraph=True, dynamic=True), forward and backward, two sizes"""
    _check_compiled(subject, "aot_eager", (BASE, OTHER))


@add_way("inductor", kernels=False, fits=choose_main, quick=choose_none)
def call_compiled_by_inductor(subject: Subject) -> None:
    """torch.compile with Inductor, forward and backward"""
    _check_compiled(subject, "inductor", (BASE,))


def _make_dynamic(arguments: tuple[Any, ...]) -> Any:
    """The first spatial axis has a name and bounds."""
    height = Dim("h", min=8, max=512)

    def name_axes(x: Tensor) -> dict[int, Any]:
        return {2 if x.shape[-1] != 8 or x.dim() != 3 else 1: height}

    first = arguments[0]
    if isinstance(first, list):
        return ([{2: Dim(f"h{i}", min=4, max=512)} for i in range(len(first))], *({} for _ in arguments[1:]))
    axes = name_axes(first)
    others = [axes if x.shape[-1:] == first.shape[-1:] and x.dim() == first.dim() else {} for x in arguments[1:]]
    return (axes, *others)


def _check_exported(subject: Subject, strict: bool) -> None:
    arguments, holder = subject.arguments(), Holder(subject.module())
    names = [name for name, _ in holder.named_parameters()]  # a strict program lists them as they are used
    program = torch.export.export(holder, arguments, dynamic_shapes=(_make_dynamic(arguments),), strict=strict).module()
    for size in (BASE, TALLER):
        check_outcome(run_plainly(subject, program, size=size, names=names), expect(subject, size))


class Holder(nn.Module):
    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, *inputs: Any) -> Any:
        return self.body(*inputs)


@add_way("export", kernels=False, fits=choose_usual, quick=choose_few)
def call_exported(subject: Subject) -> None:
    """torch.export with Dim("h", min=8, max=512), run at two heights"""
    _check_exported(subject, False)


@add_way("export strict", kernels=False, fits=choose_main, quick=choose_few)
def call_strictly_exported(subject: Subject) -> None:
    """the same with strict=True"""
    _check_exported(subject, True)
