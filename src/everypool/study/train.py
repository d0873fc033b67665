"""Training as all experiments do it: AdamW, one cycle of the learning rate, every sample once an epoch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from everypool.study.trial import Context

__all__ = ["Inputs", "fit", "predict"]

Inputs = Tensor | Callable[[Tensor], tuple[Any, ...]]
"""The samples of a set, or what makes a model's arguments of the samples' numbers (for ragged batches, say)."""


def fit(
    model: nn.Module,
    inputs: Inputs,
    targets: Tensor,
    *,
    epochs: int,
    generator: torch.Generator,
    context: Context,
    batch: int = 64,
    rate: float = 1e-2,
    decay: float = 1e-3,
    loss: Callable[[Any, Tensor], Tensor] = nn.functional.cross_entropy,
    epoch_done: Callable[[int], None] = lambda epoch: None,
) -> float:
    """Train the model in place, and leave it on the context's device in evaluation mode.

    The context is told of a loss or of weights that are not finite.

    Args:
        model: what to train.
        inputs: the training samples.
        targets: theirs; what `loss` takes after the model's output.
        epochs: passes over all samples.
        generator: draws their order, apart from torch's own, so that a model that draws changes no order.
        context: the trial's.
        batch: samples per step, over all processes.
        rate: the highest learning rate.
        decay: of the weights.
        loss: the mean loss of a batch.
        epoch_done: called after every epoch with its number from 1, the model in training mode.

    Returns:
        The loss of the last step.
    """
    fabric = context.fabric
    device = context.device if fabric is None else fabric.device
    model.to(device).train()
    optimizer: Any = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=decay, fused=True)
    batches = -(-len(targets) // batch)
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=epochs * batches)
    trained: Any = model
    if fabric is not None:
        trained, optimizer = fabric.setup(model, optimizer)
    value, finite = torch.zeros(()), torch.ones((), dtype=torch.bool, device=device)
    for epoch in range(1, epochs + 1):
        order = torch.randperm(len(targets), generator=generator)
        for chosen in order.split(batch):
            if fabric is not None and len(chosen) >= fabric.world_size:  # the last ones, if they are too few, go to all
                chosen = chosen[fabric.global_rank :: fabric.world_size]
            optimizer.zero_grad()
            value = loss(trained(*given(inputs, chosen, device)), targets[chosen].to(device))
            finite = finite & value.detach().isfinite()
            value.backward() if fabric is None else fabric.backward(value)
            optimizer.step()
            cycle.step()
        epoch_done(epoch)
        context.tick(epoch / epochs)
    model.eval()
    states = [state for state in (*model.parameters(), *model.buffers()) if state.is_floating_point()]
    if not (bool(finite) and all(bool(state.detach().isfinite().all()) for state in states)):
        context.mark_diverged()
    return value.item()


@torch.no_grad()
def predict(model: nn.Module, inputs: Inputs, count: int | None = None, *, batch: int = 256) -> Tensor:
    """The model's outputs for all samples, in batches, on the CPU.

    Args:
        model: what to ask, where it is.
        inputs: the samples.
        count: how many there are; not needed for a tensor.
        batch: how many at once.
    """
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    if count is None:
        if not isinstance(inputs, Tensor):
            raise TypeError("`count` must be given with inputs that are made batch by batch, got None")
        count = len(inputs)
    model.eval()
    return torch.cat([model(*given(inputs, chosen, device)).cpu() for chosen in torch.arange(count).split(batch)])


def given(inputs: Inputs, chosen: Tensor, device: torch.device) -> tuple[Any, ...]:
    """A model's arguments for the samples of these numbers."""
    arguments = (inputs[chosen],) if isinstance(inputs, Tensor) else inputs(chosen)
    return tuple(a.to(device) if isinstance(a, Tensor) else a for a in arguments)
