"""Studies made up for tests of the report, and what pages are checked with."""

from __future__ import annotations

import functools
import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import torch
from torch import Tensor, nn

from everypool.study.claims import Check, judge
from everypool.study.experiment import Experiment, Measure, Scale
from everypool.study.experiments import costs
from everypool.study.report import Page, render
from everypool.study.summary import Study
from everypool.study.trial import Outcome, Trial

HOST = "secret-host"
SEEDS = 8


def image(trial: Trial) -> tuple[nn.Module, Tensor, Tensor]:
    """A picture without symmetry."""
    inputs = torch.arange(36.0).reshape(1, 1, 6, 6).square().remainder(37)
    return nn.Sequential(nn.Conv2d(1, 2, 3)), inputs.expand(4, 1, 6, 6), torch.zeros(4, dtype=torch.long)


MADE = Experiment(
    name="made",
    summary="Numbers that were made up.",
    data="none at all",
    variants={"max": "the largest value", "avg": "the mean", "gem:p=4": "a | b", "stride": "no <pooling>", "none": "nothing"},
    measures={
        "accuracy": Measure("accuracy", step=0.1),
        "shift 1": Measure("agreement under a shift by 1 px", curve="shift", at=1),
        "shift 2": Measure("agreement under a shift by 2 px", curve="shift", at=2),
        "loss": Measure("last loss", "", better=-1),
        "size": Measure("parameters", "", better=-1, exact=True),
    },
    run=lambda trial, context: {},
    recipe=1,
    full=Scale(SEEDS, {"epochs": 3}),
    quick=Scale(SEEDS, {"epochs": 3}),
    overlap=0.25,
    nd=2,
    sample=image,
    judged=("accuracy", "shift 1"),
)
LIFT = {"max": 0.0, "avg": 0.02, "gem:p=4": 2.0, "stride": -20.0, "none": 1.0}


def study(experiment: Experiment = MADE, seeds: int = SEEDS, finished: int | None = None) -> Study:
    """Variants that share their noise; "avg" differs from "max" by less than that, "gem:p=4" and "stride" by more."""
    made = Study(experiment, Scale(seeds, {"epochs": 3}), tuple(experiment.variants), experiment.judged)
    for seed in range(seeds if finished is None else finished):
        for k, variant in enumerate(experiment.variants):
            own = math.sin(7.0 * seed + 3.0 * k)
            accuracy = 90 + 2 * math.cos(seed) + LIFT[variant] + 0.3 * own
            measures = {
                "accuracy": accuracy,
                "shift 1": accuracy - 10 - own,
                "shift 2": accuracy - 25,
                "loss": 0.0321 + 0.001 * own,
                "size": 6186 + 1000 * k,
            }
            made.add(Trial(experiment.name, variant, seed), Outcome(measures, 1.5, f"{HOST}, x86_64"))
    return made


def cost(of: Study, rounds: int = 3) -> Study:
    settings = {**of.scale.settings, costs.OF: of.experiment.name, costs.MACHINE: f"{HOST} x86_64 cpu"}
    made = Study(costs.EXPERIMENT, Scale(rounds, settings), of.variants, ("training", "training memory"))
    for seed in range(rounds):
        for k, variant in enumerate(of.variants):
            values = {name: 100.0 + 40 * k + seed for name in costs.EXPERIMENT.measures}
            made.add(Trial("costs", variant, seed), Outcome(values, 0.1, f"{HOST}, x86_64"))
    return made


def one() -> Page:
    only = study()
    return Page([only], [cost(only)], "everypool compare made --seeds 8")


def several() -> Page:
    """Three studies, one of them cut short, with verdicts."""
    first, second, third = (replace(MADE, name=n, sample=None, judged=("accuracy",)) for n in ("first", "second", "third"))
    studies = [study(first), study(second), study(third, finished=4)]
    studies[1].failures += [(Trial("second", "max", seed), "Traceback\n  File\nValueError: <b>no</b>") for seed in (3, 4, 6)]
    checks = [
        Check("C10", "Averages are less accurate.", "first", "avg", "max", "accuracy", -1),
        Check("C2", "Powers are more accurate.", "first", "gem:p=4", "max", "accuracy", 1),
        Check("C2", "Strides are more accurate | or not.", "second", "stride", "max", "accuracy", 1),
        Check("C2", "There are fewer parameters.", "second", "avg", "max", "size", -1),
        Check("C3", "Nobody has looked.", "nowhere", "avg", "max", "accuracy", 1),
    ]
    verdicts = judge(checks, {made.experiment.name: made for made in studies})
    command = "everypool claims --seeds 8\neverypool report runs"
    return Page(studies, [cost(studies[0])], command, verdicts, interrupted="the budget was used up")


@functools.cache
def rendered(name: str) -> tuple[Page, str]:
    """The page called "one" or "several", and its text."""
    page = {"one": one, "several": several}[name]()
    return page, render(page)


class Parsed(HTMLParser):
    """Checks that elements nest, and keeps what a page says and refers to."""

    VOID = frozenset({"meta", "link", "br", "img", "hr", "input"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.references: list[str] = []
        self.handlers: list[str] = []
        self.drawings: list[dict[str, str | None]] = []
        self.images: list[dict[str, str | None]] = []
        self.tables: list[list[list[str]]] = []
        self.values: list[list[float]] = []
        self.words = ""
        self.record: dict[str, Any] = {}
        self.style = re.search(r"<style>(.*?)</style>", text, re.DOTALL)[1]  # type: ignore[index]
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        values = dict(attrs)
        self.ids += [values["id"]] if values.get("id") else []
        self.references += [value for name, value in attrs if name in ("href", "src", "xlink:href", "action") and value]
        self.handlers += [name for name, _ in attrs if name.startswith("on")]
        if tag == "svg":
            self.drawings.append(values)
        elif tag == "img":
            self.images.append(values)
        elif tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("th", "td"):
            self.tables[-1][-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        inside = self.open[-1] if self.open else ""
        if inside == "script" and data.lstrip().startswith("{") and not self.record and "data" in self.ids:
            self.record = json.loads(data)
        elif inside not in ("script", "style"):
            self.words += data
            if {"th", "td"} & set(self.open):
                self.tables[-1][-1][-1] += data


def schemes(style: str) -> dict[str, dict[str, str]]:
    """The colours of the page by name: those of the light scheme and, over them, those of the dark one."""
    found = {}
    for scheme, block in zip(("light", "dark"), re.findall(r":root \{(.*?)\}", style, re.DOTALL), strict=False):
        found[scheme] = {**found.get("light", {}), **dict(re.findall(r"--([a-z0-9]+): (#[0-9a-f]+)", block))}
    return found


def contrast(one: str, other: str) -> float:
    """The ratio of WCAG 2.

    >>> contrast("#fff", "#000")
    21.0
    """
    lights = sorted(luminance(color) for color in (one, other))
    return (lights[1] + 0.05) / (lights[0] + 0.05)


def luminance(color: str) -> float:
    digits = color.lstrip("#")
    digits = "".join(2 * d for d in digits) if len(digits) == 3 else digits
    shares = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in shares]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
