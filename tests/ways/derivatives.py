"""What a call gives, with its first and second derivatives, and whether two such outcomes agree."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from cases import numbers
from torch import Tensor, nn
from torch.func import functional_call

from .modules import Fronted, FrontedLevels, FrontedWithMore
from .subjects import BASE, Subject

DIRECTIONS = 4


def get_leaves(arguments: Sequence[Any]) -> list[Tensor]:
    """The maps of a call: its first argument, or that one's members."""
    return list(arguments[0]) if isinstance(arguments[0], list) else [arguments[0]]


def put_leaves(arguments: Sequence[Any], leaves: Sequence[Tensor]) -> tuple[Any, ...]:
    return (list(leaves) if isinstance(arguments[0], list) else leaves[0], *arguments[1:])


def list_parts(result: Any) -> list[Tensor]:
    if isinstance(result, (tuple, list)):
        return [part for item in result for part in list_parts(item)]
    return [result]


def list_floats(result: Any) -> list[Tensor]:
    return [part for part in list_parts(result) if part.is_floating_point()]


def compute_loss(result: Any) -> Tensor:
    """A number in which every value has a slope of its own, and a curvature."""
    return sum(part.sin().sum() for part in list_floats(result))  # type: ignore[return-value]


@dataclass(frozen=True)
class Outcome:
    values: list[Tensor]
    firsts: list[Tensor]
    seconds: list[Tensor]


def derive(run: Callable[[], Any], wanted: Sequence[Tensor], order: int = 2) -> Outcome:
    """Values, the loss's gradient, and its Hessian times a direction."""
    result = run()
    firsts: tuple[Tensor, ...] = ()
    seconds: tuple[Tensor, ...] = ()
    if order > 0:
        firsts = torch.autograd.grad(
            compute_loss(result), wanted, create_graph=order > 1, allow_unused=True, materialize_grads=True
        )
    if order > 1:
        along = sum((g * x.detach().cos()).sum() for g, x in zip(firsts, wanted, strict=True))
        seconds = torch.autograd.grad(along, wanted, allow_unused=True, materialize_grads=True)
    return Outcome([part.detach() for part in list_parts(result)], [g.detach() for g in firsts], list(seconds))


def run_plainly(
    subject: Subject,
    module: nn.Module | None = None,
    arguments: Sequence[Any] | None = None,
    size: int = BASE,
    order: int = 2,
    names: Sequence[str] | None = None,
) -> Outcome:
    """Call a module and derive it by its maps and parameters, which are taken in the order of `names`."""
    module = subject.module() if module is None else module
    arguments = subject.arguments(size) if arguments is None else arguments
    leaves = [x.detach().requires_grad_() for x in get_leaves(arguments)]
    parameters = dict(module.named_parameters())
    wanted = [*leaves, *(parameters[name] for name in names or parameters)]
    return derive(lambda: module(*put_leaves(arguments, leaves)), wanted, order)


@cache
def expect(subject: Subject, size: int = BASE) -> Outcome:
    """The outcome in plain eager mode."""
    return run_plainly(subject, size=size)


def make_front(subject: Subject) -> nn.Module:
    """A 1x1 convolution (a linear layer before what takes sequences), to which the subject belongs."""
    x = get_leaves(subject.arguments())[0]
    torch.manual_seed(1)
    if subject.record.startswith("hopfield"):
        return nn.Linear(x.shape[-1], x.shape[-1]).double()
    kind = {3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}[x.dim()]
    return kind(x.shape[1], x.shape[1], 1).double()


def make_network(subject: Subject) -> nn.Module:
    arguments = subject.arguments()
    kind = FrontedLevels if isinstance(arguments[0], list) else Fronted if len(arguments) == 1 else FrontedWithMore
    return kind(make_front(subject), subject.module()).train(subject.is_learning)


@cache
def expect_network(subject: Subject, size: int = BASE) -> Outcome:
    return run_plainly(subject, make_network(subject), size=size)


def list_tensors(module: nn.Module, arguments: Sequence[Any]) -> list[Tensor]:
    """Maps and parameters: what is derived by."""
    return [*get_leaves(arguments), *(p.detach() for p in module.parameters())]


def make_pure(module: nn.Module, arguments: Sequence[Any], buffers: Mapping[str, Tensor] | None = None) -> Callable[..., Any]:
    """A call as a function of `list_tensors`."""
    names = [name for name, _ in module.named_parameters()]
    count = len(get_leaves(arguments))

    def call(*tensors: Tensor) -> Any:
        state = {**(buffers or {}), **dict(zip(names, tensors[count:], strict=True))}
        return functional_call(module, state, put_leaves(arguments, tensors[:count]))

    return call


@dataclass(frozen=True)
class Family:
    """A call as a function of four numbers, by which maps and parameters are moved; three numbers come out."""

    module: nn.Module
    arguments: tuple[Any, ...]

    def compute_vector(self, t: Tensor) -> Tensor:
        moved = []
        for i, x in enumerate(list_tensors(self.module, self.arguments)):
            directions = torch.from_numpy(numbers((DIRECTIONS, *x.shape), i))
            moved.append(x + (t.reshape(-1, *[1] * x.dim()) * directions).sum(0))
        parts = [part.reshape(-1).sin() for part in list_floats(make_pure(self.module, self.arguments)(*moved))]
        y = torch.cat(parts)
        weights = torch.from_numpy(np.cos(np.arange(3 * y.numel())).reshape(3, -1))
        return weights @ y

    def compute_loss(self, t: Tensor) -> Tensor:
        return self.compute_vector(t).sum()


def make_family(subject: Subject) -> Family:
    return Family(subject.module(), subject.arguments())


def make_origin() -> Tensor:
    return torch.zeros(DIRECTIONS, dtype=torch.float64)


def derive_rows(result: Tensor, t: Tensor) -> Tensor:
    return torch.stack([torch.autograd.grad(part, t, retain_graph=True)[0] for part in result])


@cache
def expect_jacobian(subject: Subject) -> Tensor:
    """(3, 4) in plain eager mode, a row at a time."""
    t = make_origin().requires_grad_()
    return derive_rows(make_family(subject).compute_vector(t), t)


@cache
def expect_hessian(subject: Subject) -> Tensor:
    """(4, 4) in plain eager mode, a row at a time."""
    t = make_origin().requires_grad_()
    (first,) = torch.autograd.grad(make_family(subject).compute_loss(t), t, create_graph=True)
    return derive_rows(first, t)


def check_close(actual: Any, expected: Any) -> None:
    """Equal to 1e-9 in float64, NaN in the same places."""
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-11, equal_nan=True)


def check_all(actual: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    assert len(actual) == len(expected)
    for a, b in zip(actual, expected, strict=True):
        check_close(a, b)


def check_outcome(actual: Outcome, expected: Outcome, order: int = 2) -> None:
    check_all(actual.values, expected.values)
    if order > 0:
        check_all(actual.firsts, expected.firsts)
    if order > 1:
        check_all(actual.seconds, expected.seconds)
