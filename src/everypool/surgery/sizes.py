"""Images of different sizes in one padded batch: their sizes behind every module, and what each would get alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from everypool import _check as check
from everypool.pool import checked_sizes, padded_batch
from everypool.surgery.extents import Following
from everypool.surgery.own import Rows
from everypool.surgery.trace import check_model, looking
from everypool.windows import Global

__all__ = ["BorderEffect", "Departure", "ValidSizes", "border_effect", "masked_forward", "propagate_sizes"]

CONVOLUTION = nn.modules.conv._ConvNd
BORDERS = "zero", "keep"


class ValidSizes(dict[str, Tensor]):
    """The images' own sizes (N, nd) behind every module that makes a map, by its name, in the order in which they end."""

    @property
    def last(self) -> Tensor:
        """Those behind the last one."""
        return self[next(reversed(self))]


@dataclass(frozen=True)
class Departure:
    """How far the outputs of a padded batch are from what each image gives alone.

    Args:
        largest: the largest difference, as a share of the largest output.
        mean: the mean difference, as a share of the mean output, both without sign.
        changed: the share of images with another class, where the outputs are (N, classes).
    """

    largest: float
    mean: float
    changed: float | None


@dataclass(frozen=True)
class BorderEffect:
    """What a padded batch changes, by what is done about it.

    Args:
        images: how many.
        naive: nothing; the padding is input like any other.
        keep: poolings and statistics are told the sizes, convolutions look over the border.
        zero: sizes are propagated, and what lies outside an image is zero before every convolution.
    """

    images: int
    naive: Departure
    keep: Departure
    zero: Departure

    def __str__(self) -> str:
        lines = [f"{f'{self.images} images against each alone':<34}{'largest':>10}{'mean':>10}{'labels':>10}"]
        rows = {"naive": self.naive, 'border="keep": poolings masked': self.keep, 'border="zero": propagated': self.zero}
        for name, row in rows.items():
            changed = "-" if row.changed is None else f"{row.changed:.1%}"
            lines.append(f"{name:<34}{row.largest:>10.2g}{row.mean:>10.2g}{changed:>10}")
        return "\n".join(lines)


def propagate_sizes(
    model: nn.Module, sizes: Any, input: Tensor | None = None, *, alone: Iterable[type[nn.Module] | str] = ()
) -> ValidSizes:
    """Each image's own size behind every module of a model that makes a map, in a padded batch.

    out = what the module makes of an input of that size; nothing is computed unless an input is given.

    Args:
        model: an ordinary module that takes (N, C, *spatial). It is looked at in evaluation mode and left as it is.
        sizes: (N, nd), int: each image's own extent.
        input: (N, C, *spatial), if the model has to run on real values.
        alone: types of modules, or patterns of their names, that are followed image by image; see `masked_forward`.

    Returns:
        (N, nd) int64 by the module's name, in the order in which the modules end; `.last` is behind the last of them. What
        lies inside a module that runs image by image, or inside a block of everypool, is not listed.

    Raises:
        ValueError: an image is too small for a window, or its maps do not fit together.
        NotImplementedError: the model mixes the places of a map by a function that has no rule.

    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU(), everypool.MaxPool2d(2))
    >>> found = propagate_sizes(model, [[32, 20], [17, 31]])
    >>> found["0"].tolist(), found.last.tolist()
    ([[16, 10], [9, 16]], [[8, 5], [4, 8]])
    """
    check_model(model)
    following = Following(model, zero=True, values=input is not None, alone=check_alone(alone))
    following.collecting = True
    if input is None:
        table = torch.as_tensor(sizes)
        rule = "ints of shape (N, nd), nd from 1 to 3"
        if table.dim() != 2 or table.shape[1] not in (1, 2, 3) or not len(table):
            raise check.invalid("sizes", rule, table if isinstance(sizes, Tensor) else sizes)
        like = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
        shape = (len(table), channels(model), *table.amax(0).tolist())
        rows = checked(table.cpu(), torch.empty((1,)).expand(shape))
        with looking(model):
            following.run(torch.empty(shape, dtype=like.dtype, device="meta"), rows)
    else:
        batch, rows = trimmed(check.batched("input", input), sizes)
        with looking(model):
            following.run(batch, rows)
    return ValidSizes(following.made)


def masked_forward(
    model: nn.Module, input: Tensor, sizes: Any, *, border: str = "zero", alone: Iterable[type[nn.Module] | str] = ()
) -> Any:
    """A model's output for a padded batch in which each image gets what it would get alone.

    y[i] = model(input[i, :, : sizes[i, 0], : sizes[i, 1]]).

    Poolings, means over a map and statistics of norms count what belongs to the images alone. Before a convolution all
    else is set to zero, which is what its own padding puts there; other paddings and resampling run image by image. So do
    modules without parts whose padding depends on the size of the map, such as TensorFlow's "same". What mixes the places
    of a map in another way is refused, never guessed.

    Args:
        model: an ordinary module that takes (N, C, *spatial); in training mode its statistics are those of all images'
            own places together. Nothing of it is changed but what a call changes.
        input: (N, C, *spatial), each image at the beginning of every axis; what lies outside has no say, NaN neither, in
            outputs and in gradients (with "keep" it has, wherever a convolution looks over a border).
        sizes: (N, nd), int: each image's own extent.
        border: "zero", or "keep" to let convolutions look over an image's border as they do without sizes.
        alone: types of modules, or patterns of their names, that run image by image, images of one size together:
            exact whatever they do.

    Returns:
        What the model returns for the batch, cut to the largest of `sizes`; maps are zero outside each image's own part.

    Raises:
        ValueError: an image is too small for a window, or its maps do not fit together.
        NotImplementedError: the model mixes the places of a map by a function that has no rule.

    >>> model = nn.Sequential(nn.Conv1d(1, 4, 3, padding=1), nn.MaxPool1d(2), nn.AdaptiveAvgPool1d(1), nn.Flatten())
    >>> batch = torch.rand(2, 1, 12)
    >>> y = masked_forward(model, batch, [[12], [7]])
    >>> torch.allclose(y[1], model(batch[1:, :, :7])[0], atol=1e-6)
    True
    """
    check_model(model)
    check.choice("border", border, BORDERS)
    following = Following(model, zero=border == "zero", values=True, alone=check_alone(alone))
    batch, rows = trimmed(check.batched("input", input), sizes)
    output = following.run(batch, rows)
    return tree_map(lambda y: following.masked(y, following.of(y)) if isinstance(y, Tensor) else y, output)


def border_effect(model: nn.Module, images: Sequence[Tensor], *, alone: Iterable[type[nn.Module] | str] = ()) -> BorderEffect:
    """How far a padded batch is from each image alone: naive, with masked poolings, and with propagated sizes.

    Args:
        model: an ordinary module that takes (N, C, *spatial) and gives one tensor; it runs in evaluation mode.
        images: tensors (C, *spatial) of different sizes.
        alone: as in `masked_forward`.

    Returns:
        A report, readable as text.

    Raises:
        ValueError: images unlike in channels, type or device, or too small for the model.
        NotImplementedError: the model mixes the places of a map by a function that has no rule.

    >>> model = nn.Sequential(nn.Conv1d(1, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten())
    >>> effect = border_effect(model, [torch.rand(1, n) for n in (9, 14, 20)])
    >>> effect.zero.largest < 1e-5 < effect.naive.largest
    True
    """
    check_model(model)
    items = check_alone(alone)
    batch, sizes = padded_batch(images, Global())
    with looking(model):
        truth = [model(image.unsqueeze(0)) for image in images]
        if not all(isinstance(y, Tensor) for y in truth):
            raise check.wrong_type("model", "one that gives one tensor", check.Shown(type(truth[0]).__name__))
        outputs = [
            model(batch),
            *(masked_forward(model, batch, sizes, border=border, alone=items) for border in ("keep", "zero")),
        ]
    naive, keep, zero = (departure(output, truth) for output in outputs)
    return BorderEffect(len(images), naive, keep, zero)


def departure(output: Tensor, truth: Sequence[Tensor]) -> Departure:
    """The difference between the rows of a batch and what each image gives, within what the image gives."""
    largest, total, size, scale, number = 0.0, 0.0, 0.0, 0.0, 0
    labels = []
    for row, own in zip(output, truth, strict=True):
        own = own[0].to(torch.float64)
        same = row[tuple(slice(n) for n in own.shape)].to(torch.float64)
        if same.shape != own.shape:
            raise check.invalid("model", "one that gives a padded batch as much as an image alone", same)
        difference = (same - own).abs()
        largest, scale = max(largest, difference.max().item()), max(scale, own.abs().max().item())
        total, size, number = total + difference.sum().item(), size + own.abs().sum().item(), number + own.numel()
        labels.append(own.dim() == 1 and bool(same.argmax() != own.argmax()))
    changed = sum(labels) / len(labels) if output.dim() == 2 else None
    return Departure(largest / (scale or 1), total / (size or 1), changed)


def check_alone(alone: Any) -> tuple[Any, ...]:
    """Types of modules and patterns of names."""
    rule = "types of modules or patterns of their names"
    if isinstance(alone, (str, type)) or not isinstance(alone, Iterable):
        raise check.wrong_type("alone", f"a sequence of {rule}", alone)
    items = tuple(alone)
    for item in items:
        if not isinstance(item, str) and not (isinstance(item, type) and issubclass(item, nn.Module)):
            raise check.wrong_type("alone", rule, item)
    return items


def channels(model: nn.Module) -> int:
    """What the first convolution takes."""
    for module in model.modules():
        if isinstance(module, CONVOLUTION):
            return module.in_channels
    raise check.invalid("input", "a batch, for a model that has no convolution to tell the channels", None)


def checked(sizes: Any, input: Tensor) -> Rows:
    table = checked_sizes(sizes.to(input.device) if isinstance(sizes, Tensor) else sizes, input)
    return tuple(tuple(row) for row in table.tolist())


def trimmed(input: Tensor, sizes: Any) -> tuple[Tensor, Rows]:
    """The batch as large as its largest images, and every image's own size."""
    rows = checked(sizes, input)
    for axis, n in enumerate(map(max, zip(*rows, strict=True)), 2):
        input = input.narrow(axis, 0, n)
    return input, rows
