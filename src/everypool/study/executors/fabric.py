"""One trial at a time, its training spread over devices or nodes by Lightning Fabric."""

from __future__ import annotations

import functools
import os
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch.distributed

from everypool import _check as check
from everypool.study.executors import Event
from everypool.study.trial import Context, Outcome, Trial, run

__all__ = ["Fabric"]

SETTINGS = ("accelerator", "devices", "nodes", "strategy", "precision")
# strategies whose processes Fabric starts for one call, and which end with it
STARTED = ("ddp_spawn", "ddp_fork", "ddp_notebook")


@dataclass(frozen=True)
class Fabric:
    """Processes that Lightning Fabric starts for each trial, or that `torchrun` has started for all.

    Every process trains on its share of each batch; gradients are averaged, so one step is that of the whole batch.
    Batch statistics are each process's own, as everywhere in data-parallel training. Among the processes of `torchrun`
    the first one plans, keeps and reports; the others follow.

    Args:
        settings: "accelerator", "devices", "nodes", "strategy" and "precision", as `lightning.fabric.Fabric` takes them;
            "nodes" is its `num_nodes`. The strategy is "ddp_spawn"; under `torchrun`, which says how many devices and nodes
            there are, "ddp".

    Raises:
        ValueError: a setting is unknown, or the strategy would start this program over again.
    """

    settings: dict[str, Any]

    def __post_init__(self) -> None:
        for name in self.settings:
            check.choice("executor", name, list(SETTINGS))
        strategy = self.settings.get("strategy", "ddp_spawn")
        if rank() is None and strategy not in STARTED:
            raise check.invalid("executor", f"started by torchrun, or have one of the strategies {STARTED}", strategy)

    def run(self, trials: Iterable[Trial], stopped: Callable[[], bool] = lambda: False) -> Iterator[Event]:
        if rank() is None:
            for trial in trials:
                if stopped():
                    return
                yield ended(trial, self.launched(trial))
            return
        fabric = self.joined()
        try:
            for trial in trials:
                if stopped():
                    return
                fabric.broadcast(trial)
                yield ended(trial, work(fabric, trial))
        finally:
            fabric.broadcast(None)

    def follow(self) -> bool:
        if not rank():  # the first, or the only one
            return False
        fabric = self.joined()
        while (trial := fabric.broadcast(None)) is not None:
            work(fabric, trial)
        return True

    def launched(self, trial: Trial) -> dict[str, Any] | str:
        """What comes of the trial in processes of its own."""
        chosen = {"devices": 1, "strategy": "ddp_spawn", **self.settings}
        if chosen["devices"] == 1 and chosen.get("nodes", 1) == 1:
            chosen["strategy"] = "auto"
        try:
            said: dict[str, Any] | str = fabric_of(chosen).launch(functools.partial(work, trial=trial))
        except Exception:
            return traceback.format_exc()
        return said

    def joined(self) -> Any:
        """The processes that run already, brought together."""
        all_of_them, here = int(os.environ["WORLD_SIZE"]), int(os.environ["LOCAL_WORLD_SIZE"])
        fabric = fabric_of({"devices": here, "nodes": all_of_them // here, "strategy": "ddp", **self.settings})
        fabric.launch()
        return fabric


def rank() -> int | None:
    """Which one of the processes of `torchrun` this is; None if it was not started by it."""
    return int(os.environ["RANK"]) if torch.distributed.is_torchelastic_launched() else None


def fabric_of(settings: dict[str, Any]) -> Any:
    from lightning_fabric import Fabric as Lightning  # type: ignore[import-not-found, unused-ignore]

    chosen = {"accelerator": "auto", **settings}
    chosen["num_nodes"] = chosen.pop("nodes", 1)
    return Lightning(**chosen)


def ended(trial: Trial, said: dict[str, Any] | str) -> Event:
    return Event(trial, failure=said) if isinstance(said, str) else Event(trial, outcome=Outcome(**said))


def work(fabric: Any, trial: Trial) -> dict[str, Any] | str:
    """In each process; what the first one gives counts, as a plain dictionary, which Fabric can carry over."""
    try:
        return asdict(run(trial, Context(device=fabric.device, fabric=fabric)))
    except Exception:
        return traceback.format_exc()
