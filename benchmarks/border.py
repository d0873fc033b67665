"""A padded batch against each image alone: `python -m benchmarks.border` prints the table of docs/sizes.md.

Images are patches of the photographs that come with scikit-image and scikit-learn. The networks are EfficientNet-Lite0 with
its ImageNet weights, and small ones that learn to tell twelve photographs apart, trained on patches of the other halves.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

import everypool
from everypool import border_effect, masked_forward
from everypool.study import backbone
from everypool.study.data import photos
from everypool.study.experiments.patches import NAMES, SEEN, halves, patches
from everypool.study.ragged import Ragged, drawn
from everypool.study.train import fit
from everypool.study.trial import Context

SIDES = 96, 160  # of the patches for the large network
EACH = 10  # patches of a photograph for the large network; a batch has one of each photograph
TRAINED, TESTED, EPOCHS, BATCH = 40, 20, 8, 48
VARIANTS = {"naive": "naive", "keep": "poolings masked", "zero": "sizes propagated"}


class Small(nn.Module):
    """Three convolutions that halve the map, by steps of 2 or by maxima behind them, and the mean of the last map."""

    def __init__(self, strided: bool) -> None:
        super().__init__()
        parts: list[nn.Module] = []
        for before, after in ((3, 16), (16, 24), (24, 32)):
            parts += [nn.Conv2d(before, after, 3, 2 if strided else 1, 1), nn.BatchNorm2d(after), nn.ReLU()]
            parts += [] if strided else [nn.MaxPool2d(2)]
        self.net = nn.Sequential(*parts, everypool.GlobalAvgPool(), nn.Linear(32, len(NAMES)))

    def forward(self, input: Tensor, sizes: Tensor | None = None) -> Tensor:
        result: Tensor = self.net(input) if sizes is None else masked_forward(self.net, input, sizes)
        return result


def effects(model: nn.Module, batches: Sequence[Sequence[Tensor]]) -> dict[str, tuple[float, float, float]]:
    """Over all batches the largest difference, the mean difference and the share of changed labels, by variant."""
    reports = [border_effect(model, batch) for batch in batches]
    number = sum(report.images for report in reports)
    found = {}
    for name in VARIANTS:
        rows = [(getattr(report, name), report.images) for report in reports]
        largest = max(row.largest for row, _ in rows)
        mean, changed = (sum(getattr(row, key) * n for row, n in rows) / number for key in ("mean", "changed"))
        found[name] = largest, mean, changed
    return found


def large(seed: int) -> dict[str, tuple[float, float, float]]:
    generator = torch.Generator().manual_seed(seed)
    sources = [photos.load(name) for name in photos.NAMES]
    return effects(backbone.load(), [[drawn(source, SIDES, generator) for source in sources] for _ in range(EACH)])


def small(seed: int, strided: bool) -> dict[str, tuple[float, float, float]]:
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    training, testing = halves(generator)
    samples, labels = patches(training, TRAINED, SEEN, generator)
    tests, _ = patches(testing, TESTED, SEEN, generator)
    model = Small(strided)
    fit(model, Ragged(samples), labels, epochs=EPOCHS, generator=generator, context=Context(), batch=32)
    order = torch.randperm(len(tests), generator=generator).tolist()
    return effects(model.eval(), [[tests[i] for i in order[start : start + BATCH]] for start in range(0, len(tests), BATCH)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=6)
    seeds = range(parser.parse_args().seeds)
    print("| network | padded batch | labels changed | mean difference | largest difference |")
    print("| :-- | :-- | --: | --: | --: |")
    runs: dict[str, Callable[[int], dict[str, tuple[float, float, float]]]] = {
        "small, steps of 2": lambda seed: small(seed, True),
        "small, maxima": lambda seed: small(seed, False),
        "EfficientNet-Lite0": large,
    }
    for title, run in runs.items():
        found = [run(seed) for seed in seeds]
        for name, text in VARIANTS.items():
            largest = max(one[name][0] for one in found)
            mean, changed = (sum(one[name][key] for one in found) / len(found) for key in (1, 2))
            span = [one[name][2] for one in found]
            share = f"{changed:.1%} ({min(span):.1%} to {max(span):.1%})"
            print(f"| {title} | {text} | {share} | {mean:.2g} | {largest:.2g} |", flush=True)


if __name__ == "__main__":
    main()
