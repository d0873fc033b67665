"""torch.func, batched gradients and forward mode: each against derivatives taken row by row in plain eager mode."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Any

import torch
import torch.autograd.forward_ad as forward
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, linearize, vjp, vmap

from .derivatives import (
    DIRECTIONS,
    check_all,
    check_close,
    check_outcome,
    compute_loss,
    derive,
    expect,
    expect_hessian,
    expect_jacobian,
    get_leaves,
    list_floats,
    list_parts,
    list_tensors,
    make_family,
    make_network,
    make_origin,
    make_pure,
    put_leaves,
)
from .registry import add_way, choose_evaluated, choose_few, choose_main_evaluated
from .subjects import Subject

COPIES = 3


def vary(x: Tensor, number: int) -> Tensor:
    """Another map of the same shape."""
    return x.roll(number, -1) + 0.01 * number


def make_copies(subject: Subject) -> list[tuple[Tensor, ...]]:
    """Several sets of maps."""
    return [tuple(vary(x, number) for x in get_leaves(subject.arguments())) for number in range(COPIES)]


def make_map_call(subject: Subject) -> Callable[..., Any]:
    """The module as a function of maps alone."""
    module, arguments = subject.module(), subject.arguments()
    return lambda *leaves: tuple(list_parts(module(*put_leaves(arguments, leaves))))


def derive_loss(call: Callable[..., Any], inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The loss's gradient in plain eager mode."""
    wanted = [x.detach().requires_grad_() for x in inputs]
    return torch.autograd.grad(compute_loss(call(*wanted)), wanted, allow_unused=True, materialize_grads=True)


def make_pure_call(subject: Subject) -> tuple[Callable[..., Any], list[Tensor]]:
    """The module as a function of maps and parameters, and these."""
    module, arguments = subject.module(), subject.arguments()
    return make_pure(module, arguments), list_tensors(module, arguments)


def stack_parts(results: Iterable[Any]) -> list[Tensor]:
    """Each part of several results, stacked."""
    return [torch.stack(parts).detach() for parts in zip(*map(list_parts, results), strict=True)]


def stack_maps(copies: Iterable[Sequence[Tensor]], axis: int = 0) -> list[Tensor]:
    return [torch.stack(items, axis) for items in zip(*copies, strict=True)]


def to_pixels(x: Tensor) -> Tensor:
    """x with its channels side by side."""
    return x.contiguous(memory_format={4: torch.channels_last, 5: torch.channels_last_3d}[x.dim()]) if x.dim() > 3 else x


@cache
def expect_copies(subject: Subject) -> tuple[list[Tensor], list[Tensor]]:
    """Values of several sets of maps, and the loss's gradients, one set at a time."""
    call, copies = make_map_call(subject), make_copies(subject)
    return stack_parts(call(*leaves) for leaves in copies), stack_parts(derive_loss(call, leaves) for leaves in copies)


@add_way("vmap", kernels=False, fits=choose_evaluated)
def call_mapped(subject: Subject) -> None:
    """torch.func.vmap over every axis, and of gradients"""
    values, slopes = expect_copies(subject)
    call, copies = make_map_call(subject), make_copies(subject)
    for axis in range(-2, copies[0][0].dim() + 1):
        check_all(vmap(call, in_dims=axis)(*stack_maps(copies, axis)), values)
    derived = grad(lambda *leaves: compute_loss(call(*leaves)), argnums=tuple(range(len(copies[0]))))
    for axis in (0, 1):
        check_all(vmap(derived, in_dims=axis)(*stack_maps(copies, axis)), slopes)


@add_way("vmap channels_last", kernels=False, fits=choose_evaluated)
def call_mapped_pixels(subject: Subject) -> None:
    """torch.func.vmap over channels_last maps"""
    values, _ = expect_copies(subject)
    call = make_map_call(subject)
    copies = [tuple(map(to_pixels, leaves)) for leaves in make_copies(subject)]
    for axis in (0, 1, -1):
        check_all(vmap(call, in_dims=axis)(*stack_maps(copies, axis)), values)
    flat = [to_pixels(torch.cat(items)).unflatten(0, (COPIES, -1)) for items in zip(*copies, strict=True)]
    check_all(vmap(call)(*flat), values)


def takes_more(subject: Subject) -> bool:
    return len(subject.arguments()) > 1 and not subject.is_learning


def make_call_with_more(subject: Subject) -> Callable[..., Any]:
    """The module as a function of its second argument and maps."""
    module, arguments = subject.module(), subject.arguments()
    return lambda other, *leaves: tuple(list_parts(module(*put_leaves((arguments[0], other), leaves))))


def vary_more(subject: Subject) -> list[Tensor]:
    """Several second arguments."""
    other = subject.arguments()[1]
    return [other, other.flip(0), other.roll(1, 0)]


@cache
def expect_more(subject: Subject) -> list[Tensor]:
    """Values of several sets of maps, each with a second argument of its own."""
    call = make_call_with_more(subject)
    pairs = zip(vary_more(subject), make_copies(subject), strict=True)
    return stack_parts(call(other, *leaves) for other, leaves in pairs)


@add_way("vmap second argument", kernels=False, fits=takes_more)
def call_mapped_with_more(subject: Subject) -> None:
    """torch.func.vmap over masks, sizes, boxes or indices too"""
    expected = expect_more(subject)
    found = vmap(make_call_with_more(subject))(torch.stack(vary_more(subject)), *stack_maps(make_copies(subject)))
    check_all(found, expected)


def make_weight_call(subject: Subject) -> tuple[Callable[[Tensor], Any], Tensor]:
    """The module as a function of the weights that its map is computed from, and several of them."""
    call, (x, *others) = make_map_call(subject), get_leaves(subject.arguments())
    torch.manual_seed(4)
    if subject.record.startswith("hopfield"):
        weights = torch.randn((COPIES, x.shape[-1], x.shape[-1]), dtype=x.dtype)
        return lambda weight: call(F.linear(x, weight), *others), weights
    project: Callable[..., Tensor] = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}[x.dim()]
    weights = torch.randn((COPIES, x.shape[1], x.shape[1], *[1] * (x.dim() - 2)), dtype=x.dtype)
    return lambda weight: call(project(x, weight), *others), weights


@cache
def expect_weights(subject: Subject) -> tuple[list[Tensor], list[Tensor]]:
    """Values and the loss's gradients, the weights of one convolution at a time."""
    call, weights = make_weight_call(subject)
    return stack_parts(map(call, weights)), stack_parts(derive_loss(call, [weight]) for weight in weights)


@add_way("vmap weights", kernels=False, fits=choose_evaluated)
def call_mapped_weights(subject: Subject) -> None:
    """torch.func.vmap of inputs computed from weights, and of gradients"""
    values, slopes = expect_weights(subject)
    call, weights = make_weight_call(subject)
    check_all(vmap(call)(weights), values)
    check_all([vmap(grad(lambda weight: compute_loss(call(weight))))(weights)], slopes)


def vary_parameters(module: nn.Module) -> list[dict[str, Tensor]]:
    """Parameters of an ensemble."""
    return [{name: p.detach() * (1 + i / 8) for name, p in module.named_parameters()} for i in range(COPIES)]


@cache
def expect_ensemble(subject: Subject) -> list[Tensor]:
    module, arguments = make_network(subject), subject.arguments()
    return stack_parts(functional_call(module, parameters, arguments) for parameters in vary_parameters(module))


@add_way("vmap ensemble", kernels=False, fits=choose_evaluated)
def call_ensemble(subject: Subject) -> None:
    """torch.func.vmap over the parameters of convolution + pooling"""
    expected = expect_ensemble(subject)
    module, arguments = make_network(subject), subject.arguments()
    states = vary_parameters(module)
    stacked = {name: torch.stack([state[name] for state in states]) for name in states[0]}
    found = vmap(lambda parameters: tuple(list_parts(functional_call(module, parameters, arguments))))(stacked)
    check_all(found, expected)


def pools_samples(subject: Subject) -> bool:
    """Samples do not share boxes."""
    first, *others = subject.arguments()
    return not subject.is_learning and not isinstance(first, list) and all(len(x) == len(first) for x in others)


@cache
def expect_samples(subject: Subject) -> list[Tensor]:
    """The gradients by parameters, a sample at a time."""
    module, arguments = make_network(subject), subject.arguments()
    parameters = list(module.parameters())
    options = {"allow_unused": True, "materialize_grads": True}
    samples = zip(*(x.split(1) for x in arguments), strict=True)
    return stack_parts(torch.autograd.grad(compute_loss(module(*sample)), parameters, **options) for sample in samples)


@add_way("per-sample gradients", kernels=False, fits=pools_samples)
def call_per_sample(subject: Subject) -> None:
    """vmap(grad(functional_call)) of convolution + pooling, a sample at a time"""
    expected = expect_samples(subject)
    module, arguments = make_network(subject), subject.arguments()

    def compute(parameters: dict[str, Tensor], *sample: Tensor) -> Tensor:
        return compute_loss(functional_call(module, parameters, tuple(x.unsqueeze(0) for x in sample)))

    parameters = {name: p.detach() for name, p in module.named_parameters()}
    found = vmap(grad(compute), in_dims=(None, *[0] * len(arguments)))(parameters, *arguments)
    check_all(list(found.values()), expected)


@add_way("grad vjp jvp", kernels=False, fits=choose_evaluated)
def call_transformed(subject: Subject) -> None:
    """torch.func.grad, vjp and jvp by maps and parameters"""
    expected = expect(subject)
    call, tensors = make_pure_call(subject)
    numbers = tuple(range(len(tensors)))

    def compute(*tensors: Tensor) -> Tensor:
        return compute_loss(call(*tensors))

    check_all(grad(compute, argnums=numbers)(*tensors), expected.firsts)
    value, pull = vjp(lambda *tensors: tuple(list_floats(call(*tensors))), *tensors)
    check_all(value, [part for part in expected.values if part.is_floating_point()])
    check_all(pull(tuple(part.cos() for part in value)), expected.firsts)
    directions = tuple(x.cos() for x in tensors)
    _, slope = jvp(compute, tuple(tensors), directions)
    check_close(slope, sum((g * d).sum() for g, d in zip(expected.firsts, directions, strict=True)))


@add_way("linearize", kernels=False, fits=choose_main_evaluated, quick=choose_few)
def call_linearized(subject: Subject) -> None:
    """torch.func.linearize (which calls plainly, too)"""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Attempted to insert a get_attr Node")  # of torch.func.linearize itself
        _, push = linearize(make_family(subject).compute_vector, make_origin())
    found = torch.stack([push(direction) for direction in torch.eye(DIRECTIONS, dtype=torch.float64)], 1)
    check_close(found, expect_jacobian(subject))


JACOBIANS: dict[str, Callable[..., Any]] = {"jacrev": jacrev, "jacfwd": jacfwd}
HESSIANS: dict[str, Callable[..., Any]] = {
    "hessian": hessian,
    "jacrev of jacrev": lambda f: jacrev(jacrev(f)),
    "jacrev of jacfwd": lambda f: jacrev(jacfwd(f)),
    "jacfwd of jacrev": lambda f: jacfwd(jacrev(f)),
    "jacfwd of jacfwd": lambda f: jacfwd(jacfwd(f)),
    "autograd hessian": lambda f: lambda t: torch.autograd.functional.hessian(f, t, vectorize=True),
    "autograd hessian forward": lambda f: (
        lambda t: torch.autograd.functional.hessian(f, t, vectorize=True, outer_jacobian_strategy="forward-mode")
    ),
}
JACOBIANS["autograd jacobian"] = lambda f: lambda t: torch.autograd.functional.jacobian(f, t, vectorize=True)
JACOBIANS["autograd jacobian forward"] = lambda f: (
    lambda t: torch.autograd.functional.jacobian(f, t, vectorize=True, strategy="forward-mode")
)


def _add_jacobian(name: str, transform: Callable[..., Any]) -> None:
    def run(subject: Subject) -> None:
        check_close(transform(make_family(subject).compute_vector)(make_origin()), expect_jacobian(subject))

    run.__doc__ = f"torch.func.{name}" if " " not in name else f"torch.autograd.functional, vectorize=True: {name}"
    add_way(name, kernels=None if name == "autograd jacobian" else False, fits=choose_evaluated)(run)


def _add_hessian(name: str, transform: Callable[..., Any]) -> None:
    def run(subject: Subject) -> None:
        check_close(transform(make_family(subject).compute_loss)(make_origin()), expect_hessian(subject))

    run.__doc__ = f"torch.autograd.functional, vectorize=True: {name}" if "autograd" in name else f"torch.func: {name}"
    add_way(name, kernels=None if name == "autograd hessian" else False, fits=choose_evaluated)(run)


for _name, _transform in JACOBIANS.items():
    _add_jacobian(_name, _transform)
for _name, _transform in HESSIANS.items():
    _add_hessian(_name, _transform)


@add_way("is_grads_batched", kernels=None)
def call_with_batched_gradients(subject: Subject) -> None:
    """torch.autograd.grad(is_grads_batched=True), of values and of gradients"""
    module, arguments = subject.module(), subject.arguments()
    leaves = [x.detach().requires_grad_() for x in get_leaves(arguments)]
    wanted = [*leaves, *module.parameters()]
    options: dict[str, Any] = {"retain_graph": True, "allow_unused": True, "materialize_grads": True}
    parts = list_floats(module(*put_leaves(arguments, leaves)))
    batch = [torch.stack([(part + number).cos() for number in range(COPIES)]).detach() for part in parts]
    found = torch.autograd.grad(parts, wanted, batch, is_grads_batched=True, **options)
    rows = [torch.autograd.grad(parts, wanted, [g[i] for g in batch], **options) for i in range(COPIES)]
    check_all(found, [torch.stack(items) for items in zip(*rows, strict=True)])
    loss = sum(part.sin().sum() for part in parts)
    firsts = torch.autograd.grad(loss, leaves, create_graph=True)
    batch = [torch.stack([(x + number).sin() for number in range(COPIES)]).detach() for x in leaves]
    found = torch.autograd.grad(firsts, wanted, batch, is_grads_batched=True, **options)
    rows = [torch.autograd.grad(firsts, wanted, [g[i] for g in batch], **options) for i in range(COPIES)]
    check_all(found, [torch.stack(items) for items in zip(*rows, strict=True)])


@add_way("double backward", kernels=True)
def call_twice_backward(subject: Subject) -> None:
    """create_graph=True, then a gradient of the gradient by maps, parameters and the outer gradient"""
    expected = expect(subject)
    module, arguments = subject.module(), subject.arguments()
    leaves = [x.detach().requires_grad_() for x in get_leaves(arguments)]
    wanted = [*leaves, *module.parameters()]
    check_outcome(derive(lambda: module(*put_leaves(arguments, leaves)), wanted), expected)
    parts = list_floats(subject.module()(*put_leaves(arguments, leaves)))
    outer = [part.detach().cos().requires_grad_() for part in parts]
    firsts = torch.autograd.grad(parts, leaves, outer, create_graph=True)
    check_all(list(firsts), expected.firsts[: len(leaves)])
    found = torch.autograd.grad(sum(g.sum() for g in firsts), outer)
    call, tensors = make_pure_call(subject)
    ones = [torch.ones_like(x) if i < len(leaves) else torch.zeros_like(x) for i, x in enumerate(tensors)]
    # the gradient is linear in the outer one: its derivative is the Jacobian times ones, found by a third way
    zeros = [torch.zeros_like(part).requires_grad_() for part in parts]
    again = list_floats(call(*(wide := [x.detach().requires_grad_() for x in tensors])))
    pulled = torch.autograd.grad(again, wide, zeros, create_graph=True, allow_unused=True, materialize_grads=True)
    check_all(found, torch.autograd.grad(sum((g * one).sum() for g, one in zip(pulled, ones, strict=True)), zeros))


@add_way("forward mode", kernels=False, fits=choose_evaluated)
def call_with_duals(subject: Subject) -> None:
    """torch.autograd.forward_ad, of maps and parameters"""
    expected = expect(subject)
    call, tensors = make_pure_call(subject)
    directions = [x.cos() for x in tensors]
    with forward.dual_level():
        duals = [forward.make_dual(x, d) for x, d in zip(tensors, directions, strict=True)]
        result = call(*duals)
        check_all([forward.unpack_dual(part).primal for part in list_parts(result)], expected.values)
        slope = forward.unpack_dual(compute_loss(result)).tangent
    check_close(slope, sum((g * d).sum() for g, d in zip(expected.firsts, directions, strict=True)))


@add_way("forward over reverse", kernels=False, fits=choose_evaluated)
def call_forward_over_reverse(subject: Subject) -> None:
    """forward_ad through torch.autograd.grad: the Hessian times a direction"""
    expected = expect(subject)
    call, tensors = make_pure_call(subject)
    wanted = [x.detach().requires_grad_() for x in tensors]
    with forward.dual_level():
        duals = [forward.make_dual(x, x.detach().cos()) for x in wanted]
        firsts = torch.autograd.grad(
            compute_loss(call(*duals)), wanted, create_graph=True, allow_unused=True, materialize_grads=True
        )
        pairs = [forward.unpack_dual(g) for g in firsts]
        tangents = [torch.zeros_like(x) if p.tangent is None else p.tangent for p, x in zip(pairs, wanted, strict=True)]
    check_all([p.primal.detach() for p in pairs], expected.firsts)
    check_all([x.detach() for x in tangents], expected.seconds)
