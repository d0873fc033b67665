"""What is measured of a network: its answers, its size, its arithmetic, its time and its memory."""

from __future__ import annotations

import math
import os
import statistics
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from everypool.study.train import Inputs, predict

__all__ = [
    "accuracy",
    "agreement",
    "costs",
    "multiply_adds",
    "parameters",
    "peak_memory",
    "predicted",
    "training_memory",
    "training_time",
]


def predicted(model: nn.Module, inputs: Inputs, count: int | None = None) -> Tensor:
    """The class of each sample (N,)."""
    return predict(model, inputs, count).argmax(1)


def accuracy(model: nn.Module, inputs: Inputs, labels: Tensor) -> float:
    """The share of samples whose predicted class is right, in percent."""
    return 100 * (predicted(model, inputs, len(labels)) == labels).to(torch.float64).mean().item()


def agreement(model: nn.Module, samples: Tensor, changed: Sequence[Tensor]) -> float:
    """The share of samples whose predicted class stays what it is without the change, averaged over the changes, in percent."""
    before = predicted(model, samples)
    same = [predicted(model, other) == before for other in changed]
    return 100 * torch.stack(same).to(torch.float64).mean().item()


def parameters(model: nn.Module) -> int:
    """How many numbers are learned."""
    return sum(p.numel() for p in model.parameters())


def multiply_adds(model: nn.Module, image: Tensor) -> int:
    """Multiply-adds of the convolutions and linear layers for one image (1, ...); what pools or scales is not counted."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(image)
    counts = counter.get_flop_counts().get("Global", {})
    return sum(int(number) for operator, number in counts.items() if not str(operator).startswith("everypool.")) // 2


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


def training_time(model: nn.Module, samples: Tensor, labels: Tensor, *, rounds: int = 5) -> float:
    """Processor time of a training step without the optimizer's part, in microseconds per sample: the best of some rounds.

    It leaves the model's parameters as they are, and its batch statistics moved.
    """
    step, _, _ = calls(model, samples, labels)
    step()
    times = []
    for _ in range(rounds):
        began = time.process_time()
        step()
        times.append(time.process_time() - began)
    return 1e6 * min(times) / len(samples)


def training_memory(model: nn.Module, samples: Tensor, labels: Tensor) -> float:
    """The most KiB per sample that a training step holds at once beyond weights and samples; NaN where it cannot be told."""
    step, _, _ = calls(model, samples, labels)
    model.zero_grad(set_to_none=True)  # freed before, or the profiler would see a block go that it never saw come
    held = peak_memory(step)
    return math.nan if held is None else held / 1024 / len(samples)


def costs(model: nn.Module, inputs: Tensor, labels: Tensor, *, budget: float = 0.03) -> dict[str, float]:
    """What one batch costs, per sample: microseconds of an answer, of a training step without the optimizer's part and of the
    pooling layers alone (forward and backward), and the most KiB held at once in an answer and in a training step.

    Args:
        model: trained a little on the way.
        inputs: one batch, on the model's device.
        labels: its classes.
        budget: seconds for each of the three times.
    """
    step, answer, pooling = calls(model, inputs, labels)
    step(), answer(), pooling()  # the first calls of all prepare what later ones reuse
    per_sample = 1e6 / len(inputs)
    times = {
        name: seconds_per_call(call, budget, inputs.device) * per_sample
        for name, call in (("answer", answer), ("training", step), ("pooling", pooling))
    }
    inference = peak_memory(answer)
    return {
        **times,
        "answer memory": math.nan if inference is None else inference / 1024 / len(inputs),
        "training memory": training_memory(model, inputs, labels),
        "parameters": parameters(model),
        "multiply-adds": multiply_adds(model.eval(), inputs[:1]),
    }


def calls(model: nn.Module, images: Tensor, labels: Tensor) -> tuple[Callable[[], None], ...]:
    """A training step without the optimizer's part; the answers to a batch; the pooling layers alone, forward and backward."""
    pooled = [(module, torch.rand(shape, device=images.device)) for module, shape in pooling_layers(model, images)]

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


def seconds_per_call(call: Callable[[], None], budget: float, device: torch.device) -> float:
    """The median over as many calls as fit into the budget, three at least."""
    spent: list[float] = []
    end = time.perf_counter() + budget
    while len(spent) < 3 or time.perf_counter() < end:
        began = time.perf_counter()
        call()
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        spent.append(time.perf_counter() - began)
    return statistics.median(spent)
