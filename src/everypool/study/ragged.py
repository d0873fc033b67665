"""Samples of different sizes: batches that know each sample's own extent, and a network that minds it, or does not."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from everypool.backends.layout import prefix_mask
from everypool.blocks import SpatialPyramidHead
from everypool.factory import create
from everypool.study.measures import predicted
from everypool.study.nets import CONVOLUTIONS, STRIDED
from everypool.study.train import predict
from everypool.windows import Sliding

__all__ = ["PlaceNorm", "Ragged", "RaggedNet", "cropped", "drawn", "padded", "resized", "steadiness"]

INTERPOLATIONS = "linear", "bilinear", "trilinear"


def padded(samples: Sequence[Tensor], stretch: int = 1) -> tuple[Tensor, Tensor]:
    """A batch (N, C, *spatial) of samples (C, *own), zeros behind each, and their own sizes (N, nd).

    Args:
        samples: as many channels and axes each.
        stretch: how many times the largest size every axis of the batch has.

    >>> padded([torch.ones(1, 2), torch.ones(1, 3)])
    (tensor([[[1., 1., 0.]],
    <BLANKLINE>
            [[1., 1., 1.]]]), tensor([[2],
            [3]]))
    """
    sizes = torch.tensor([sample.shape[1:] for sample in samples])
    extent = [stretch * largest for largest in sizes.amax(0).tolist()]
    batch = samples[0].new_zeros(len(samples), samples[0].shape[0], *extent)
    for row, sample in zip(batch, samples, strict=True):
        row[(slice(None), *(slice(n) for n in sample.shape[1:]))] = sample
    return batch, sizes


@dataclass(frozen=True)
class Ragged:
    """Samples of different sizes as what `fit` and `predict` take: numbers in, a padded batch and its sizes out."""

    samples: Sequence[Tensor]
    stretch: int = 1

    def __call__(self, chosen: Tensor) -> tuple[Tensor, Tensor]:
        return padded([self.samples[i] for i in chosen.tolist()], self.stretch)


def windows_of(layer: Any) -> Sliding:
    """The windows of a convolution or a sliding pooling of everypool."""
    return Sliding(layer.kernel_size, layer.stride, layer.padding, layer.dilation, getattr(layer, "ceil_mode", False))


class PlaceNorm(nn.Module):
    """Layer norm over the channels of each place of (N, C, *spatial): what lies at other places has no say."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)

    def forward(self, input: Tensor) -> Tensor:
        result: Tensor = self.norm(input.movedim(1, -1)).movedim(-1, 1)
        return result


class RaggedNet(nn.Module):
    """Convolutions that halve the map, and a head that pools what is left over grids of bins and classifies it.

    Args:
        widths: channels of the input and behind each convolution.
        classes: how many.
        nd: spatial axes.
        levels: bins per axis of each grid; (1,) is a global pooling.
        reducer: of the head.
        inside: what halves: "stride", or a reducer over windows of 2 behind a convolution that does not.
        masked: each sample's own sizes count, in every layer; otherwise the padding is input like any other.

    Shape: (N, C, *spatial) and sizes (N, nd) to (N, classes).

    >>> net = RaggedNet((3, 8, 16), 5, nd=2, levels=(1, 2), reducer="max")
    >>> net(torch.ones(2, 3, 20, 30), torch.tensor([[20, 30], [9, 17]])).shape
    torch.Size([2, 5])
    """

    def __init__(
        self,
        widths: Sequence[int],
        classes: int,
        *,
        nd: int,
        levels: Sequence[int],
        reducer: str,
        inside: str = STRIDED,
        masked: bool = True,
    ) -> None:
        super().__init__()
        self.masked = masked
        step = 2 if inside == STRIDED else 1
        self.convolutions = nn.ModuleList(
            CONVOLUTIONS[nd - 1](before, after, 3, stride=step, padding=1) for before, after in itertools.pairwise(widths)
        )
        self.norms = nn.ModuleList(PlaceNorm(width) for width in widths[1:])
        # windows that overhang the end are kept, so that a map has the size that a convolution of step 2 leaves
        self.poolings = nn.ModuleList(
            nn.Identity() if inside == STRIDED else create(inside, nd=nd, kernel_size=2, stride=2, ceil_mode=True)
            for _ in widths[1:]
        )
        self.head = SpatialPyramidHead(widths[-1], classes, levels, reducer=reducer, nd=nd)

    def forward(self, input: Tensor, sizes: Tensor) -> Tensor:
        extent = torch.tensor(input.shape[2:], device=sizes.device)
        ragged = self.masked and bool((sizes != extent).any())
        x, own = input, sizes if ragged else None
        for convolution, norm, pooling in zip(self.convolutions, self.norms, self.poolings, strict=True):
            x = F.relu(norm(convolution(x)))
            own = None if own is None else windows_of(convolution).valid_sizes(own)
            if not isinstance(pooling, nn.Identity):
                x = pooling(x, sizes=own)
                own = None if own is None else windows_of(pooling).valid_sizes(own)
            if own is not None:  # the next convolution looks over the edge
                x = x * prefix_mask(own, tuple(x.shape[2:])).to(x.dtype)
        result: Tensor = self.head(x, sizes=own)
        return result


def resized(sample: Tensor, extent: Sequence[int]) -> Tensor:
    """The sample (C, *spatial) resampled to that extent, (bi-, tri-)linear; images are smoothed before they shrink."""
    nd = len(extent)
    mode = INTERPOLATIONS[nd - 1]
    return F.interpolate(sample[None], tuple(extent), mode=mode, align_corners=False, antialias=nd == 2)[0]


def cropped(sample: Tensor, extent: Sequence[int]) -> Tensor:
    """The middle of the sample (C, *spatial); zeros around it where the sample is the smaller.

    >>> cropped(torch.tensor([[1.0, 2.0, 3.0]]), [1]), cropped(torch.tensor([[1.0, 2.0, 3.0]]), [5])
    (tensor([[2.]]), tensor([[0., 1., 2., 3., 0.]]))
    """
    pads: list[int] = []
    for own, wanted in zip(reversed(sample.shape[1:]), reversed(extent), strict=True):
        before = (wanted - own) // 2 if wanted >= own else -((own - wanted) // 2)
        pads += [before, wanted - own - before]
    return F.pad(sample, pads)


def drawn(space: Tensor, sides: tuple[int, int], generator: torch.Generator) -> Tensor:
    """A box somewhere in (C, *spatial), every side of its own length between the two, both among them; no copy.

    >>> drawn(torch.zeros(3, 9, 9), (4, 4), torch.Generator()).shape
    torch.Size([3, 4, 4])
    """
    for axis, n in enumerate(space.shape[1:], 1):
        side = int(torch.randint(sides[0], sides[1] + 1, (), generator=generator))
        space = space.narrow(axis, int(torch.randint(n - side + 1, (), generator=generator)), side)
    return space


def steadiness(model: nn.Module, samples: Sequence[Tensor]) -> float:
    """The share of samples whose class is the same alone as inside a padded batch of many, in percent."""
    inputs = Ragged(samples)
    alone = predict(model, inputs, len(samples), batch=1).argmax(1)
    return 100 * (alone == predicted(model, inputs, len(samples))).to(torch.float64).mean().item()
