"""The few numbers of new poolings, fitted so that a model answers as it did before."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from everypool.surgery.trace import arguments, looking, one_tensor

if TYPE_CHECKING:
    from everypool.surgery.swap import Change

__all__ = ["Drift", "calibrated", "divergence", "drifted", "outputs"]

ITERATIONS = 30


@dataclass(frozen=True)
class Drift:
    """How far a model's answers have moved from what they were.

    Args:
        measure: "KL divergence" of the softmax of (N, classes), in nats; otherwise "relative squared error".
        raw: with the new poolings as they are.
        value: in the end; the same where nothing was fitted.
        same: share of equal labels in the end, of (N, classes) alone.
    """

    measure: str
    raw: float
    value: float
    same: float = math.nan

    def __str__(self) -> str:
        text = f"{self.measure} to the answers before: {self.value:.3g}"
        text += f" ({self.raw:.3g} before calibration)" if self.raw != self.value else ""
        return text if math.isnan(self.same) else f"{text}; {100 * self.same:.1f} % of the labels stay"


def outputs(model: nn.Module, batches: Sequence[Any]) -> list[Tensor]:
    """What the model answers, as it answers in evaluation."""
    with looking(model):
        return [one_tensor(answer(model, batch)).clone() for batch in batches]


def answer(model: nn.Module, batch: Any) -> Any:
    args, kwargs = arguments(batch)
    return model(*args, **kwargs)


def divergence(old: Sequence[Tensor], new: Sequence[Tensor]) -> Tensor:
    """KL(softmax(old) || softmax(new)) of (N, classes), the mean over samples; otherwise |new - old|^2 / |old|^2."""
    if is_logits(old[0]):
        a, b = (torch.cat([x.double().log_softmax(1) for x in xs]) for xs in (old, new))
        return (a.exp() * (a - b)).sum(1).mean()
    a, b = (torch.cat([x.double().flatten() for x in xs]) for xs in (old, new))
    return (b - a).square().sum() / a.square().sum().clamp(min=torch.finfo(a.dtype).tiny)


def is_logits(x: Tensor) -> bool:
    return x.dim() == 2 and x.shape[1] > 1


def drifted(old: Sequence[Tensor], new: Sequence[Tensor], raw: float | None = None) -> Drift:
    value = divergence(old, new).item()
    measure, same = "relative squared error", math.nan
    if is_logits(old[0]):
        measure = "KL divergence"
        same = torch.cat([(a.argmax(1) == b.argmax(1)).double() for a, b in zip(old, new, strict=True)]).mean().item()
    return Drift(measure, value if raw is None else raw, value, same)


def calibrated(model: nn.Module, changes: Sequence[Change], batches: Sequence[Any], old: Sequence[Tensor]) -> Drift:
    """Fit what each change leaves open; better numbers than the first are kept, and nothing else is.

    The search is L-BFGS on the divergence of the model's answers. What runs before the first new pooling runs once.
    """
    numbers = {f"{c.name} {name}": p for c in changes for name, p in c.open.items()}
    with only(model, list(numbers.values())), early_once(model, changes, batches) as run:
        raw = best = divergence(old, [run(n).detach() for n in range(len(batches))]).item()
        kept = {name: p.detach().clone() for name, p in numbers.items()}
        search = torch.optim.LBFGS(
            list(numbers.values()), max_iter=ITERATIONS, max_eval=2 * ITERATIONS, line_search_fn="strong_wolfe"
        )

        def closure() -> Tensor:
            nonlocal best, kept
            search.zero_grad()
            loss = divergence(old, [run(n) for n in range(len(batches))])
            if loss.item() < best:  # False for NaN
                best, kept = loss.item(), {name: p.detach().clone() for name, p in numbers.items()}
            loss.backward()
            return loss

        search.step(closure)
        with torch.no_grad():
            for name, p in numbers.items():
                p.copy_(kept[name])
    for change in changes:
        change.fitted = {name: p.item() for name, p in change.open.items()}
    return drifted(old, outputs(model, batches), raw)


@contextmanager
def early_once(model: nn.Module, changes: Sequence[Change], batches: Sequence[Any]) -> Iterator[Callable[[int], Tensor]]:
    """A function from a batch's number to the model's answer, in which what runs before the first change is remembered."""
    early = first_modules(model, {change.new for change in changes}, batches[0])
    answers: dict[nn.Module, list[list[Any]]] = {module: [[] for _ in batches] for module in early}
    batch, turns = 0, dict.fromkeys(early, 0)

    def remembering(module: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
        def remembered(*args: Any, **kwargs: Any) -> Any:
            known, turn = answers[module][batch], turns[module]
            turns[module] += 1
            if turn == len(known):
                known.append(forward(*args, **kwargs))
            return copied(known[turn])

        return remembered

    def run(number: int) -> Tensor:
        nonlocal batch, turns
        batch, turns = number, dict.fromkeys(early, 0)
        return one_tensor(answer(model, batches[number]))

    try:
        for module in early:
            module.__dict__["forward"] = remembering(module, module.forward)
        yield run
    finally:
        for module in early:
            del module.__dict__["forward"]


def first_modules(model: nn.Module, changed: set[nn.Module], batch: Any) -> list[nn.Module]:
    """The outermost modules that run before the first of the changed ones alone."""
    begun: dict[nn.Module, int] = {}
    ended: dict[nn.Module, int] = {}
    inside: dict[nn.Module, set[nn.Module]] = {}
    stack: list[nn.Module] = []
    clock = itertools.count()

    def enter(module: nn.Module, inputs: Any) -> None:
        begun.setdefault(module, next(clock))
        inside.setdefault(module, set()).update(stack)
        stack.append(module)

    def leave(module: nn.Module, inputs: Any, output: Any) -> None:
        ended[module] = next(clock)
        stack.pop()

    handles = [m.register_forward_pre_hook(enter) for m in model.modules()]
    handles += [m.register_forward_hook(leave) for m in model.modules()]
    try:
        with torch.no_grad():
            answer(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    start = min((begun[m] for m in changed if m in begun), default=0)
    early = {m for m, end in ended.items() if end < start and "forward" not in vars(m)}
    return [m for m in early if early.isdisjoint(inside[m])]


def copied(tree: Any) -> Any:
    """Tensors that may be changed in place."""
    if isinstance(tree, Tensor):
        return tree.detach().clone()
    if isinstance(tree, (tuple, list)) and type(tree) in (tuple, list):
        return type(tree)(copied(item) for item in tree)
    if isinstance(tree, Mapping):
        result = copy.copy(tree)
        for key, item in tree.items():
            result[key] = copied(item)  # type: ignore[index]
        return result
    return tree


@contextmanager
def only(model: nn.Module, numbers: Sequence[Tensor]) -> Iterator[None]:
    """Evaluation mode in which these numbers alone are learned; flags and gradients are left as they were."""
    flags = [(p, p.requires_grad, p.grad) for p in model.parameters()]
    with looking(model), torch.enable_grad():
        try:
            for p, _, _ in flags:
                p.requires_grad_(False)
            for number in numbers:
                number.requires_grad_(True)
            yield
        finally:
            for p, flag, grad in flags:
                p.requires_grad_(flag)
                p.grad = grad
