"""One trial at a time, its training spread over devices or nodes by Lightning Fabric."""

from __future__ import annotations

import functools
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from everypool import _check as check
from everypool.study.executors import Event
from everypool.study.trial import Context, Outcome, Trial, run

__all__ = ["Fabric"]

SETTINGS = ("accelerator", "devices", "nodes", "strategy", "precision")


@dataclass(frozen=True)
class Fabric:
    """Processes that Lightning Fabric starts, or that `torchrun` or a cluster's scheduler has started.

    Every process trains on its share of each batch; gradients are averaged, so one step is that of the whole batch.
    Batch statistics are each process's own, as everywhere in data-parallel training.

    Args:
        settings: "accelerator", "devices", "nodes", "strategy" and "precision", as `lightning.fabric.Fabric` takes them;
            "nodes" is its `num_nodes`. Without a strategy, processes are spawned.
    """

    settings: dict[str, Any]

    def __post_init__(self) -> None:
        for name in self.settings:
            check.choice("executor", name, list(SETTINGS))

    def run(self, trials: Iterable[Trial], stopped: Callable[[], bool] = lambda: False) -> Iterator[Event]:
        for trial in trials:
            if stopped():
                return
            said = self.launched(trial)
            yield Event(trial, outcome=said) if isinstance(said, Outcome) else Event(trial, failure=said)

    def launched(self, trial: Trial) -> Outcome | str:
        from lightning_fabric import Fabric as Lightning  # type: ignore[import-not-found, unused-ignore]

        chosen = {"accelerator": "auto", "devices": 1, "strategy": "ddp_spawn", **self.settings}
        chosen["num_nodes"] = chosen.pop("nodes", 1)
        if chosen["devices"] == 1 and chosen["num_nodes"] == 1:
            chosen["strategy"] = "auto"
        try:
            fabric: Any = Lightning(**chosen)
            said = fabric.launch(functools.partial(work, trial=trial))  # an argument of its own it would look into
        except Exception:
            return traceback.format_exc()
        return said if isinstance(said, str) else Outcome(**said)


def work(fabric: Any, trial: Trial) -> dict[str, Any] | str:
    """In each process; what the first one gives counts, as a plain dictionary, which Fabric can carry over."""
    try:
        return asdict(run(trial, Context(device=fabric.device, fabric=fabric)))
    except Exception:
        return traceback.format_exc()
