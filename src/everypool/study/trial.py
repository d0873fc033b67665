"""One training of one network: what defines it, and what comes of it."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from everypool.study.data import Digits, split
from everypool.study.measures import accuracy, shift_agreement
from everypool.study.model import build

__all__ = ["RECIPE", "Outcome", "Trial", "run"]

RECIPE = 1  # goes up with every change of data, network or training: older results no longer count as the same trial
BATCH = 64
RATE = 1e-2
DECAY = 1e-3


@dataclass(frozen=True)
class Trial:
    """One pooling and one seed. The seed draws the split, the first weights and the order of the images."""

    pool: str
    seed: int
    epochs: int

    def spec(self) -> dict[str, Any]:
        """All that decides the outcome."""
        from everypool import __version__

        made_by = {"everypool": __version__, "torch": torch.__version__}
        return {"data": "digits", "recipe": RECIPE, **asdict(self), **made_by}

    def key(self) -> str:
        """The name of this trial in a file of results."""
        return hashlib.sha256(json.dumps(self.spec(), sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Outcome:
    """Shares of the test images in percent, the last training loss, and the processor time spent."""

    accuracy: float
    shift: float
    loss: float
    seconds: float


def run(trial: Trial, digits: Digits, epoch_done: Callable[[], None] = lambda: None) -> Outcome:
    """Train and test one network. On one thread the same trial gives the same outcome, whatever runs beside it.

    Args:
        trial: what to train.
        digits: all images; the trial's seed splits them.
        epoch_done: called after every epoch.
    """
    began = time.process_time()
    torch.manual_seed(trial.seed)
    generator = torch.Generator().manual_seed(trial.seed)  # apart, so that a pooling that draws changes no split or order
    train, test = split(len(digits.images), generator)
    model = build(trial.pool)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=DECAY, fused=True)
    steps = trial.epochs * -(-len(train) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)
    loss = torch.zeros(())
    for _ in range(trial.epochs):
        for batch in train[torch.randperm(len(train), generator=generator)].split(BATCH):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(digits.images[batch]), digits.labels[batch])
            loss.backward()
            optimizer.step()
            schedule.step()
        epoch_done()
    model.eval()
    images, labels = digits.images[test], digits.labels[test]
    return Outcome(
        accuracy=100 * accuracy(model, images, labels),
        shift=100 * shift_agreement(model, images),
        loss=loss.item(),
        seconds=time.process_time() - began,
    )
