"""Association without training: which of many stored scans is meant by a part of it, or by what noise has left of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from everypool import _check as check
from everypool.blocks.hopfield import Hopfield
from everypool.pool import pool
from everypool.study.data import mnist
from everypool.study.experiment import Experiment, Measure, Scale, register
from everypool.study.transforms import noisy, shifted
from everypool.study.trial import Context, Trial
from everypool.windows import Global

__all__ = ["EXPERIMENT", "damaged", "recall", "stored_for"]

STORED, PIXELS, SEEDS = 400, mnist.SIDE**2, 12
SHIFTS = 1, 2, 3
NOISE = 0.5, 1.0  # standard deviation, where ink is 1 and paper 0
BETA = 1 / math.sqrt(PIXELS)  # the published default; patterns are standardised, so that a scan scores sqrt(PIXELS) with itself
NETWORKS: MappingProxyType[str, dict[str, Any]] = MappingProxyType(
    {
        "hopfield": {"scaling": BETA, "update_steps_max": None},
        "hopfield once": {"scaling": BETA, "update_steps_max": 0},
        "hopfield sharp": {"scaling": 8 * BETA, "update_steps_max": None},
    }
)
SCORES: MappingProxyType[str, Callable[[Tensor, Tensor], Tensor]] = MappingProxyType(
    {
        "dot product": lambda queries, stored: queries @ stored.T,
        "correlation": lambda queries, stored: standard(queries) @ standard(stored).T,
        "euclid": lambda queries, stored: -torch.cdist(queries, stored),
    }
)


def standard(rows: Tensor) -> Tensor:
    """Each row with mean 0 and deviation 1, as layer normalisation makes it."""
    return torch.nn.functional.layer_norm(rows, rows.shape[1:])


def stored_for(seed: int) -> Tensor:
    """400 scans as rows (400, 784); no two seeds have one in common.

    Raises:
        ValueError: a seed for which no scans are left.
    """
    if seed >= SEEDS:
        raise check.invalid("seed", f"below {SEEDS}, so that no scan is in two seeds", seed)
    images, _ = mnist.load()
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    return images[order[seed * STORED : (seed + 1) * STORED]].flatten(1)


def damaged(stored: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
    """The scans (N, 784) as queries, by what is done to them."""
    images = stored.unflatten(1, (1, mnist.SIDE, mnist.SIDE))
    half = images.clone()
    half[:, :, mnist.SIDE // 2 :] = 0
    queries = {"whole": images, "half": half}
    queries |= {f"noise {d}": noisy(images, d, generator) for d in NOISE}
    queries |= {f"shift {d}": shifted(images, 0, d) for d in SHIFTS}
    return {name: some.flatten(1) for name, some in queries.items()}


@torch.no_grad()
def recall(variant: str, stored: Tensor, queries: Tensor) -> Tensor:
    """What each query (M, D) brings back of the stored patterns (N, D), as (M, D).

    Raises:
        ValueError: no such variant.
    """
    check.choice("variant", variant, list(EXPERIMENT.variants))
    if variant in SCORES:
        return stored[SCORES[variant](queries, stored).argmax(1)]
    if variant not in NETWORKS:  # a pooling of all patterns, whatever is asked for
        return pool(stored.T.unsqueeze(0), variant, Global()).flatten().expand(len(queries), -1)
    network = Hopfield(
        stored.shape[1],
        stored_pattern_as_static=True,
        state_pattern_as_static=True,
        pattern_projection_as_static=True,
        normalize_stored_pattern_affine=False,
        normalize_state_pattern_affine=False,
        normalize_pattern_projection=False,
        disable_out_projection=True,
        **NETWORKS[variant],
    )
    retrieved: Tensor = network((stored.unsqueeze(0), queries.unsqueeze(0), stored.unsqueeze(0)))
    return retrieved.squeeze(0)


def run(trial: Trial, context: Context) -> dict[str, float]:
    generator = torch.Generator().manual_seed(trial.seed)
    stored = stored_for(trial.seed)
    own = torch.arange(len(stored))
    measures: dict[str, float] = {}
    queries = damaged(stored, generator)
    for number, (name, some) in enumerate(queries.items(), 1):
        retrieved = recall(trial.variant, stored, some)
        right = torch.cdist(retrieved, stored).argmin(1) == own
        measures[name] = 100 * right.to(torch.float64).mean().item()
        if name == "half":
            measures["half error"] = 100 * (retrieved - stored).square().mean().sqrt().item()
        context.tick(number / len(queries))
    return measures


STEP = 100 / STORED
EXPERIMENT = register(
    Experiment(
        name="patterns",
        summary="Retrieve a stored scan by a damaged copy of it, without training; right if what comes back is nearest to it.",
        data=f"{mnist.CREDIT}; every seed stores {STORED} others",
        variants={
            "avg": "the mean of all stored scans, whatever is asked for",
            "max": "the largest value of all stored scans at each pixel, whatever is asked for",
            "dot product": "the stored scan with the largest dot product",
            "correlation": "the stored scan that correlates most",
            "euclid": "the stored scan at the least distance",
            "hopfield": "Hopfield association until it settles, beta = 1 / sqrt(pixels)",
            "hopfield once": "the same after one association",
            "hopfield sharp": "the same until it settles, beta eight times as large",
        },
        measures={
            "whole": Measure("right retrievals by the whole scan", step=STEP),
            "half": Measure("right retrievals by the upper half", step=STEP),
            **{f"noise {d}": Measure(f"right retrievals under noise of deviation {d}", step=STEP) for d in NOISE},
            **{
                f"shift {d}": Measure(f"right retrievals by a scan moved {d} px to the right", step=STEP, curve="shift", at=d)
                for d in SHIFTS
            },
            "half error": Measure("root mean square error of what the upper half brings back", "% of full ink", better=-1),
        },
        run=run,
        recipe=1,
        full=Scale(seeds=SEEDS),
        quick=Scale(seeds=8),
        needs=("mlxtend",),
    )
)
