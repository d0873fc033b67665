"""What is measured of a network: its answers, its size, its arithmetic, its time and its memory."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from everypool.study.data import SHIFTS, shifted

__all__ = [
    "Cost",
    "accuracy",
    "measure_costs",
    "multiply_adds",
    "parameters",
    "peak_memory",
    "predicted",
    "shift_agreement",
]


@dataclass(frozen=True)
class Cost:
    """What one pooling costs; times and bytes are per image."""

    parameters: int
    multiply_adds: int
    inference_us: float
    training_us: float
    pooling_us: float
    inference_bytes: float | None
    training_bytes: float | None


@torch.inference_mode()
def predicted(model: nn.Module, images: Tensor) -> Tensor:
    """The class of each image (N,)."""
    classes: Tensor = model(images).argmax(1)
    return classes


def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """The share of images whose predicted class is right."""
    return (predicted(model, images) == labels).to(torch.float64).mean().item()


def shift_agreement(model: nn.Module, images: Tensor) -> float:
    """The share of images whose predicted class stays the same under a shift by one pixel, averaged over four directions."""
    before = predicted(model, images)
    same = [predicted(model, shifted(images, *shift)) == before for shift in SHIFTS]
    return torch.stack(same).to(torch.float64).mean().item()


def parameters(model: nn.Module) -> int:
    """How many numbers are learned."""
    return sum(p.numel() for p in model.parameters())


def multiply_adds(model: nn.Module, image: Tensor) -> int:
    """Multiply-adds of the convolutions and linear layers for one image (1, ...); what pools or scales is not counted."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(image)
    return int(counter.get_total_flops()) // 2


def peak_memory(call: Callable[[], object]) -> int | None:
    """The most bytes held at once of all that `call` allocates, or None where torch was built without its profiler.

    >>> peak_memory(lambda: torch.empty(1000).neg())
    8000
    """
    if not torch.profiler.kineto_available():
        return None
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it writes to standard error otherwise
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True, acc_events=True) as profile:
        call()
    results = profile.profiler.kineto_results if profile.profiler is not None else None
    if results is None:
        return None
    events = sorted((e for e in results.events() if e.name() == "[memory]"), key=lambda event: event.start_ns())
    held = highest = 0
    for event in events:
        held += event.nbytes()
        highest = max(highest, held)
    return highest


def measure_costs(
    models: dict[str, nn.Module],
    images: Tensor,
    labels: Tensor,
    *,
    rounds: int = 3,
    budget: float = 0.05,
    stopped: Callable[[], bool] = lambda: False,
) -> dict[str, Cost]:
    """The cost of each model on one batch. Call it when nothing else runs.

    The models take turns, and each one's best turn counts, so that a machine that is slow for a while does no one wrong.

    Args:
        models: by name; they are trained a little on the way.
        images: one batch.
        labels: its classes.
        rounds: how often each one's turn comes.
        budget: seconds for each of three times in each turn.
        stopped: asked between turns; once it says yes only what is complete is returned.
    """
    times: dict[str, list[tuple[float, float, float]]] = {name: [] for name in models}
    for turn in range(rounds + 1):
        for name, model in models.items():
            if stopped():
                return {}
            step, answer, pooling = calls(model, images, labels)
            if turn == 0:  # the first calls of all prepare what later ones reuse
                step(), answer(), pooling()
                continue
            per_image = 1e6 / len(images)
            times[name].append(
                (
                    seconds_per_call(answer, budget) * per_image,
                    seconds_per_call(step, budget) * per_image,
                    seconds_per_call(pooling, budget) * per_image,
                )
            )
    costs = {}
    for name, model in models.items():
        step, answer, _ = calls(model, images, labels)
        inference = peak_memory(answer)
        model.zero_grad(set_to_none=True)  # freed before, or the profiler would see a block go that it never saw come
        training = peak_memory(step)
        answer_us, step_us, pooling_us = (min(column) for column in zip(*times[name], strict=True))
        costs[name] = Cost(
            parameters=parameters(model),
            multiply_adds=multiply_adds(model.eval(), images[:1]),
            inference_us=answer_us,
            training_us=step_us,
            pooling_us=pooling_us,
            inference_bytes=None if inference is None else inference / len(images),
            training_bytes=None if training is None else training / len(images),
        )
    return costs


def calls(model: nn.Module, images: Tensor, labels: Tensor) -> tuple[Callable[[], None], ...]:
    """A training step without the optimizer's part; the answers to a batch; the pooling layers alone, forward and backward."""
    pooled = [(module, torch.rand(shape)) for module, shape in pooling_layers(model, images)]

    def step() -> None:
        model.train()
        model.zero_grad(set_to_none=True)
        nn.functional.cross_entropy(model(images), labels).backward()

    def answer() -> None:
        model.eval()
        predicted(model, images)

    def pooling() -> None:
        for module, input in pooled:
            module(input.requires_grad_()).sum().backward()
            input.grad = None

    return step, answer, pooling


def pooling_layers(model: nn.Module, images: Tensor) -> list[tuple[nn.Module, torch.Size]]:
    """The layers that pool, with the shape that each is given."""
    from everypool.layer import Layer

    found: list[tuple[nn.Module, torch.Size]] = []
    hooks = [
        module.register_forward_hook(lambda module, inputs, output: found.append((module, inputs[0].shape)))
        for module in model.modules()
        if isinstance(module, Layer)
    ]
    with torch.no_grad():
        model.eval()(images)
    for hook in hooks:
        hook.remove()
    return found


def seconds_per_call(call: Callable[[], None], budget: float) -> float:
    """The median over as many calls as fit into the budget, three at least."""
    spent: list[float] = []
    end = time.perf_counter() + budget
    while len(spent) < 3 or time.perf_counter() < end:
        began = time.perf_counter()
        call()
        spent.append(time.perf_counter() - began)
    return statistics.median(spent)
