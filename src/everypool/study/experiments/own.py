"""The user's own data and network: a pooling put in the places named, and what shifts, turns and noise do to the answer."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from everypool import _check as check
from everypool.factory import find_named
from everypool.pool import split_settings
from everypool.study.data.own import Samples, load
from everypool.study.experiment import Experiment, Measure, Scale, register
from everypool.study.measures import accuracy, agreement, multiply_adds, parameters, predicted
from everypool.study.models import absolute, build_model, model_hash
from everypool.study.nets import build_stand_in, check_gradient
from everypool.study.train import fit
from everypool.study.transforms import noisy, rotated, shifted
from everypool.study.trial import Context, Trial, Value
from everypool.surgery.find import Pooling, chosen, find
from everypool.surgery.replacement import BLUR, Rule
from everypool.surgery.swap import swap

__all__ = ["EXPERIMENT", "ORIGINAL", "described", "prepared", "stratified"]

ORIGINAL = "original"  # beside names of poolings: the model as it is
WINDOW = "kernel_size", "stride", "padding", "dilation", "ceil_mode"
SHARE = 0.2
SHIFTS = 1, 2, 4
ANGLES = 10, 20, 30
NOISE = 0.5  # in standard deviations of the training samples
BATCH = 64


def prepared(
    data: str | Path,
    *,
    model: str = "small",
    where: str = "",
    epochs: int = 10,
    batch: int = BATCH,
    rate: float = 3e-3,
    size: int = 0,
    layout: str = "",
    nd: int = 0,
) -> tuple[dict[str, Value], Samples]:
    """The settings of all trials, and the samples, once everything has been found to fit together.

    Args:
        data: a path, or the name of an installed set; see `everypool.study.data.own.load`.
        model: see `everypool.study.models.build_model`.
        where: which of the model's poolings are replaced, see `everypool.surgery.find.chosen`; left out, those of its stem,
            stages and head.
        epochs: passes over the training samples.
        batch: samples per step, two at least.
        rate: the highest learning rate.
        size: pixels per side of images; 0 for the default.
        layout: of arrays; "" for what their shape says.
        nd: spatial axes of arrays; 0 for what their shape says.

    Raises:
        ValueError: something is wrong with one of them.
        RuntimeError: the user's model failed; its own error is the cause.
    """
    samples = load(data, size=size or None, layout=layout or None, nd=nd or None)
    check.positive_int("epochs", epochs)
    if check.positive_int("batch", batch) < 2:
        raise check.invalid("batch", "an int of at least 2", batch)
    check.number("rate", rate, "a positive number", above=0.0, finite=True)
    stratified(samples.labels, torch.Generator(), samples)
    if Path(data).exists():
        data = Path(data).resolve()
    model = absolute(model)
    settings: dict[str, Value] = {
        "data": str(data), "fingerprint": samples.fingerprint, "size": size, "layout": layout, "nd": nd, "model": model,
        "model_hash": model_hash(model), "where": where, "epochs": epochs, "batch": batch, "rate": rate,
    }  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        found = find(built(model, samples), samples.inputs[:2])
        if not where:
            settings["where"] = ",".join(p for p in ("stem", "stage", "head") if any(p == place.place for place in found))
        chosen(found, str(settings["where"]))
    return settings, samples


def described(settings: Mapping[str, Value], samples: Samples, *, seeds: int = 8) -> Experiment:
    """The experiment's record with what these settings and samples make of it; trials still find it by its name."""
    count, *spatial = len(samples.inputs), *samples.inputs.shape[2:]
    step = 100 / len(stratified(samples.labels, torch.Generator(), samples)[1])
    steps = {"shift": step / (2 * len(spatial)), "rotation": step / 2}
    measures = {
        name: dataclasses.replace(measure, step=steps.get(measure.curve, step if name in STEPPED else 0.0))
        for name, measure in EXPERIMENT.measures.items()
    }
    shape = " x ".join(map(str, samples.inputs.shape[1:]))
    skipped = f", {len(samples.skipped)} that could not be read left out" if samples.skipped else ""
    scale = Scale(seeds, dict(settings))
    return dataclasses.replace(
        EXPERIMENT,
        summary=f"Classify with {settings['model']}; the pooling stands in these places: {settings['where']}.",
        data=f"{samples.source}: {count:,} samples of {shape} in {len(samples.classes)} classes{skipped}; a fifth tests",
        measures=measures,
        full=scale,
        quick=scale,
        nd=samples.nd,
        check_variant=functools.partial(check_variant, settings=settings, samples=samples),
    )


@functools.lru_cache(maxsize=2)
def loaded(data: str, fingerprint: str, size: int, layout: str, nd: int) -> Samples:
    samples = load(data, size=size or None, layout=layout or None, nd=nd or None)
    if fingerprint not in ("", samples.fingerprint):
        got = f"{samples.fingerprint} in {data!r}"
        raise check.invalid("data", f"what they were when the trial was planned ({fingerprint})", check.Shown(got))
    return samples


def samples_of(trial: Trial) -> Samples:
    return loaded(trial["data"], trial["fingerprint"], trial["size"], trial["layout"], trial["nd"])


def built(model: str, samples: Samples) -> nn.Module:
    channels, *size = samples.inputs.shape[1:]
    return build_model(model, classes=len(samples.classes), channels=channels, nd=samples.nd, size=tuple(size))


def network(trial: Trial, samples: Samples) -> nn.Module:
    model = trial["model"]
    if trial["model_hash"] != (found := model_hash(model)):
        got = check.Shown(f"{found!r} of {model!r}")
        raise check.invalid("model", f"what it was when the trial was planned ({trial['model_hash']!r})", got)
    return with_pooling(built(model, samples), trial["where"], trial.variant, samples.inputs[:2])


def with_pooling(model: nn.Module, where: str, variant: str, example: Tensor) -> nn.Module:
    """Return the model with an operation in the places named, in which it has to fit."""
    if variant == ORIGINAL:
        return model
    rule: Rule = variant if variant == BLUR or is_reducer(variant) else functools.partial(stand_in, variant)
    swap(model, {where: rule}, example)
    return model


def is_reducer(variant: str) -> bool:
    return find_named(split_settings("pool", variant)[0])[0].kind == "reducer"


def stand_in(variant: str, place: Pooling) -> nn.Module:
    """Return the operation for one place of the model."""
    window: dict[str, Any] = {}
    if place.kind == "sliding":
        window = {name: place.window[name] for name in WINDOW if place.window.get(name) is not None}
    elif place.kind == "adaptive":
        window = {"output_size": place.window.get("output_size", tuple(place.output[2:]))}
    return build_stand_in(variant, place.input, place.output, window)


def check_variant(variant: str, *, settings: Mapping[str, Value], samples: Samples) -> None:
    """Raise if the operation does not fit into the places named, or lets nothing be learned."""
    with torch.random.fork_rng(devices=[]):
        model = with_pooling(built(str(settings["model"]), samples), str(settings["where"]), variant, samples.inputs[:2])
        check_gradient(variant, model.eval()(samples.inputs[:2].clone().requires_grad_()))


def stratified(labels: Tensor, generator: torch.Generator, samples: Samples) -> tuple[Tensor, Tensor]:
    """Which samples train and which test: `SHARE` of every class tests, one at least.

    Raises:
        ValueError: a class has one sample only.
    """
    train, test = [], []
    for number, name in enumerate(samples.classes):
        members = (labels == number).nonzero()[:, 0]
        if len(members) < 2:
            got = check.Shown(f"{len(members)} of {name!r} in {samples.source!r}")
            raise check.invalid("data", "of two samples of every class", got)
        members = members[torch.randperm(len(members), generator=generator)]
        tests = max(1, round(len(members) * SHARE))
        test.append(members[:tests])
        train.append(members[tests:])
    return torch.cat(train), torch.cat(test)


def standardised(inputs: Tensor, train: Tensor) -> Tensor:
    """Every channel with mean 0 and standard deviation 1 over the training samples."""
    axes = [0, *range(2, inputs.dim())]
    deviation, mean = torch.std_mean(inputs[train], axes, correction=0, keepdim=True)
    return (inputs - mean) / torch.where(deviation > 0, deviation, 1.0)


def batch_size(count: int, batch: int) -> int:
    """The largest up to `batch` that leaves no sample alone: batch norm cannot normalise one."""
    return next((size for size in range(min(batch, count), 1, -1) if count % size != 1), count)


def moved(inputs: Tensor, distance: int) -> list[Tensor]:
    """Both ways along every axis; nothing where an axis is no longer than that."""
    nd = inputs.dim() - 2
    if min(inputs.shape[2:]) <= distance:
        return []
    return [shifted(inputs, *(sign * distance * (axis == a) for a in range(nd))) for axis in range(nd) for sign in (1, -1)]


def balanced(model: nn.Module, inputs: Tensor, labels: Tensor) -> float:
    """The mean over the classes of the share of each one's samples that are recognised, in percent."""
    right = (predicted(model, inputs) == labels).to(torch.float64)
    return 100 * torch.stack([right[labels == number].mean() for number in labels.unique()]).mean().item()


def sample(trial: Trial) -> tuple[nn.Module, Tensor, Tensor]:
    samples = samples_of(trial)
    inputs = standardised(samples.inputs, torch.arange(len(samples.inputs)))
    some = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(0))[:BATCH]  # of many classes
    return network(trial, samples), inputs[some], samples.labels[some]


def run(trial: Trial, context: Context) -> dict[str, float]:
    generator = torch.Generator().manual_seed(trial.seed)
    samples = samples_of(trial)
    train, test = stratified(samples.labels, generator, samples)
    inputs, labels = standardised(samples.inputs, train), samples.labels
    model = network(trial, samples)
    counts = {"parameters": parameters(model), "multiply-adds": multiply_adds(model.eval(), inputs[:1])}
    fit(
        model, inputs[train], labels[train], epochs=trial["epochs"], generator=generator, context=context,
        batch=batch_size(len(train), trial["batch"]), rate=trial["rate"],
    )  # fmt: skip
    tests, own = inputs[test], labels[test]
    right = accuracy(model, tests, own)
    turns = {a: [rotated(tests, a), rotated(tests, -a)] if samples.nd == 2 else [] for a in ANGLES}
    shifts = {d: moved(tests, d) for d in SHIFTS}
    return {
        "accuracy": right,
        "balanced accuracy": balanced(model, tests, own),
        "gap": accuracy(model, inputs[train], labels[train]) - right,
        **{f"shift {d}": agreement(model, tests, others) if others else math.nan for d, others in shifts.items()},
        **{f"rotation {a}": agreement(model, tests, others) if others else math.nan for a, others in turns.items()},
        "noise": accuracy(model, noisy(tests, NOISE, generator), own),
        **counts,
    }


STEPPED = "accuracy", "noise"
DEFAULTS: dict[str, Value] = {
    "data": "digits", "fingerprint": "", "size": 0, "layout": "", "nd": 0, "model": "small", "model_hash": "",
    "where": "stem,stage,head", "batch": BATCH, "rate": 3e-3,
}  # fmt: skip
EXPERIMENT = register(
    Experiment(
        name="own",
        summary="Classify the user's samples with the user's network; the pooling stands in the places named.",
        data="a folder of images, arrays or a table; scikit-learn's digits if none are given; a fifth of every class tests",
        variants={
            "max": "the largest value",
            "avg": "the mean",
            "soft": "SoftPool",
            "gem:p=3": "the generalised mean, p learned from 3 on",
            ORIGINAL: "the network as it is",
        },
        measures={
            "accuracy": Measure("accuracy"),
            "balanced accuracy": Measure("balanced accuracy"),
            "gap": Measure("gap between training and test accuracy", "points", better=-1),
            **{f"shift {d}": Measure(f"agreement under a shift by {d}", curve="shift", at=d) for d in SHIFTS},
            **{f"rotation {a}": Measure(f"agreement under a turn by {a}°", curve="rotation", at=a) for a in ANGLES},
            "noise": Measure("accuracy under noise"),
            "parameters": Measure("parameters", "", better=-1, exact=True),
            "multiply-adds": Measure("multiply-adds of an answer", "", better=-1, exact=True),
        },
        run=run,
        recipe=2,
        full=Scale(seeds=12, settings={**DEFAULTS, "epochs": 10}),
        quick=Scale(seeds=8, settings={**DEFAULTS, "epochs": 3}),
        overlap=SHARE / (1 - SHARE),
        nd=2,
        sample=sample,
        judged=("accuracy", "shift 1"),
    )
)
