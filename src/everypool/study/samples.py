"""What each pooling leaves of a real sample, and of the same sample moved by one step."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from everypool.study.nets import halving_layer
from everypool.study.plots import figure_svg, stretches
from everypool.study.summary import Study
from everypool.study.transforms import shifted
from everypool.study.trial import Trial

__all__ = ["Picture", "pictures", "shown"]

LARGEST = 64  # steps along each axis; of a larger sample the middle is shown


@dataclass(frozen=True)
class Picture:
    """The sample or what a pooling made of it: images as addresses with words for who cannot see them, or a drawing."""

    title: str
    images: list[tuple[str, str]]
    drawing: str = ""


def sample(study: Study) -> tuple[torch.nn.Module, Tensor] | None:
    """The untrained network of the first variant, and the first input of its batch."""
    experiment = study.experiment
    if experiment.sample is None:
        return None
    trial = Trial(experiment.name, study.variants[0], 0, tuple(sorted(study.scale.settings.items())))
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model, inputs, _ = experiment.sample(trial)
    except Exception:  # the data may have gone since the trials ran, in any way; a page without pictures is still one
        return None
    return model, inputs[:1].detach().cpu()


def shown(study: Study, name: str) -> tuple[str, list[Picture]]:
    """The network with the first variant as torch writes it, and the pictures; empty where there are none.

    Args:
        study: which.
        name: goes in front of all identifiers.
    """
    found = sample(study)
    return ("", []) if found is None else (str(found[0]), pictures(found[1], study.experiment.nd, study.variants, name))


def pictures(inputs: Tensor, nd: int, variants: Sequence[str], name: str) -> list[Picture]:
    """The sample itself, then one for every variant that is a reducer; none where windows do not slide over the sample."""
    if not nd or inputs.dim() != nd + 2:
        return []
    inputs = middle(inputs)
    pair = [inputs, shifted(inputs, *(0,) * (nd - 1), 1)]
    made = [picture("input", pair, f"{name}-picture")]
    for i, variant in enumerate(variants):
        pooled = apart(variant, pair, nd)
        if pooled:
            made.append(picture(variant, pooled, f"{name}-picture{i}"))
    return made if len(made) > 1 else []


def middle(inputs: Tensor) -> Tensor:
    for axis in range(2, inputs.dim()):
        length = min(LARGEST, inputs.shape[axis])
        inputs = inputs.narrow(axis, (inputs.shape[axis] - length) // 2, length)
    return inputs


def apart(variant: str, pair: Sequence[Tensor], nd: int) -> list[Tensor]:
    """What its windows of 2 leave of both; nothing if it is not the name of an operation that halves a map."""
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(0)
            layer = halving_layer(variant, pair[0].shape[1], nd).eval()
            return [layer(inputs) for inputs in pair]
    except (ValueError, TypeError, NotImplementedError, RuntimeError):
        return []


def picture(title: str, pair: Sequence[Tensor], name: str) -> Picture:
    """Of a pair (1, C, *spatial); one scale for both."""
    what = "the sample" if title == "input" else f"the sample after {title} pooling"
    if pair[0].dim() == 3:
        lines = [inputs[0, 0].tolist() for inputs in pair]
        words = f"A line of {what}, {len(lines[0])} steps, and dashed the same for the sample shifted by one step"
        return Picture(title, [], figure_svg(stretches(lines), name, words))
    flat = [plane(inputs) for inputs in pair]
    low, high = min(p.min() for p in flat), max(p.max() for p in flat)
    scale = (high - low).clamp_min(1e-12)
    height, width = flat[0].shape[-2:]
    said = [f"{what}, {height} × {width}", f"the same for the sample shifted by one to the right, {height} × {width}"]
    sources = [png((p - low) / scale) for p in flat]
    return Picture(title, list(zip(sources, (w[0].upper() + w[1:] for w in said), strict=True)))


def plane(inputs: Tensor) -> Tensor:
    """(1, C, *spatial) -> (1 or 3, H, W): the middle slice of a volume; the first channel unless they are colours."""
    values = inputs[0].to(torch.float32)
    if values.dim() == 4:
        values = values[:, values.shape[1] // 2]
    return values if len(values) == 3 else values[:1]


def png(values: Tensor) -> str:
    """An image (1 or 3, H, W) of values from 0 to 1 as a data address."""
    from PIL import Image

    numbers = (values * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    buffer = io.BytesIO()
    Image.fromarray(numbers[..., 0] if numbers.shape[2] == 1 else numbers).save(buffer, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
