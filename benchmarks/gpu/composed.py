"""The rivals: each pooling in torch's own operators, in the forms that are fastest or that everybody writes."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "GLOBAL",
    "SMOOTH",
    "attention",
    "chained_maxima",
    "levels",
    "masked_avg",
    "masked_soft",
    "maxima",
    "pyramid",
    "roi_align",
    "scan",
    "sized_avg",
    "strips",
    "vision_levels",
]

EPS = 1e-6  # GeM's


def from_vision() -> Any:
    """torchvision's operator, where torchvision is installed and fits this torch."""
    try:
        return importlib.import_module("torchvision.ops").roi_align
    except Exception:
        return None


roi_align = from_vision()


def soft(x: Tensor) -> Tensor:
    e = x.exp()
    return F.avg_pool2d(x * e, 2) / F.avg_pool2d(e, 2)


def log_mean_exp(x: Tensor) -> Tensor:
    return F.avg_pool2d(x.exp(), 2).log()


def stable_log_mean_exp(x: Tensor) -> Tensor:
    even = x[..., : x.shape[-2] // 2 * 2, : x.shape[-1] // 2 * 2]
    return even.unflatten(2, (-1, 2)).unflatten(4, (-1, 2)).logsumexp((3, 5)) - math.log(4)


SMOOTH: dict[str, tuple[Callable[..., Any], ...]] = {
    "soft": (soft,),
    "gem": (lambda x: F.avg_pool2d(x.clamp(min=EPS).pow(3), 2).pow(1 / 3),),
    "lp": (lambda x: F.lp_pool2d(x, 2, 2), lambda x: (F.avg_pool2d(x * x, 2) * 4).sqrt()),
    "lse": (log_mean_exp, stable_log_mean_exp),
}
GLOBAL: dict[str, tuple[Callable[..., Any], ...]] = {
    "mean": (lambda x: x.mean((2, 3)), lambda x: F.adaptive_avg_pool2d(x, 1).flatten(1)),
    "gem": (lambda x: x.clamp(min=EPS).pow(3).mean((2, 3)).pow(1 / 3),),
    "soft": (
        lambda x: (x.flatten(2).softmax(2) * x.flatten(2)).sum(2),
        lambda x: (x * x.exp()).sum((2, 3)) / x.exp().sum((2, 3)),
    ),
}


def pyramid(x: Tensor, levels: Sequence[int]) -> Tensor:
    return torch.cat([F.adaptive_max_pool2d(x, n).flatten(1) for n in levels], 1)


def maxima(x: Tensor) -> tuple[Tensor, ...]:
    return tuple(F.max_pool2d(x, k, 1, k // 2) for k in (5, 9, 13))


def chained_maxima(x: Tensor) -> tuple[Tensor, ...]:
    y = F.max_pool2d(x, 5, 1, 2)
    z = F.max_pool2d(y, 5, 1, 2)
    return y, z, F.max_pool2d(z, 5, 1, 2)


def strips(x: Tensor) -> tuple[Tensor, Tensor]:
    return x.mean(3, True), x.mean(2, True)


def scan(x: Tensor, axis: int, reverse: bool) -> Tensor:
    """The running maximum."""
    return x.flip(axis).cummax(axis).values.flip(axis) if reverse else x.cummax(axis).values


def masked_avg(x: Tensor, mask: Tensor) -> Tensor:
    m = mask.to(x.dtype)
    return F.avg_pool2d(x * m, 2) / F.avg_pool2d(m, 2).clamp(min=1 / 8)


def masked_soft(x: Tensor, mask: Tensor) -> Tensor:
    e = x.exp() * mask
    share = F.avg_pool2d(e, 2)
    return F.avg_pool2d(x * e, 2) / torch.where(share == 0, 1.0, share)


def sized_avg(x: Tensor, sizes: Tensor) -> Tensor:
    inside = torch.arange(x.shape[2], device=x.device) < sizes[:, None, None]
    return (x * inside).sum(2) / sizes[:, None]


def attention(x: Tensor, *weights: Tensor, heads: int) -> Tensor:
    """Learned states attend to normalised patterns, weights in the order of HopfieldPooling's."""
    states, packed, bias, out, out_bias, *norms = weights
    width = (x.shape[-1],)
    keys, query, value = (
        F.layer_norm(y, width, norms[i], norms[i + 1]) for y, i in ((x, 0), (states, 2), (x, 4))
    )  # fmt: skip
    parts = zip((query, keys, value), packed.chunk(3), bias.chunk(3), strict=True)
    q, k, v = (F.linear(y, w, b).unflatten(2, (heads, -1)).transpose(1, 2) for y, w, b in parts)
    found = F.scaled_dot_product_attention(q.expand(x.shape[0], -1, -1, -1), k, v)
    return F.linear(found.transpose(1, 2).flatten(2), out, out_bias).flatten(1)


def vision_levels(*inputs: Tensor, scales: Sequence[float]) -> Tensor:
    """The maximum over levels of what torchvision gives."""
    *maps, boxes = inputs
    parts = [roi_align(x, boxes, 7, scale, 2, False) for x, scale in zip(maps, scales, strict=True)]
    return reduce(torch.maximum, parts)


def levels(*inputs: Tensor, scales: Sequence[float]) -> Tensor:
    """The same by `grid_sample`, of boxes within the image, as many in each and ordered by image."""
    *maps, boxes = inputs
    parts = [aligned(x, boxes[:, 1:].unflatten(0, (x.shape[0], -1)) * scale) for x, scale in zip(maps, scales, strict=True)]
    return reduce(torch.maximum, parts)


def aligned(x: Tensor, boxes: Tensor, out: int = 7, samples: int = 2) -> Tensor:
    number = torch.arange(out * samples, device=x.device) + 0.5
    side = (boxes[..., 2:] - boxes[..., :2]).clamp(min=1) / (out * samples)
    place = boxes[..., None, :2] + number[:, None] * side[..., None, :]  # (N, boxes, samples, 2)
    across = place[..., None, :, 0] * (2 / (x.shape[3] - 1)) - 1
    along = place[..., :, None, 1] * (2 / (x.shape[2] - 1)) - 1
    grid = torch.stack(torch.broadcast_tensors(across, along), -1)  # (N, boxes, samples, samples, 2)
    found = F.grid_sample(x, grid.flatten(1, 2), padding_mode="border", align_corners=True)
    cells = found.unflatten(2, (boxes.shape[1], out, samples)).unflatten(5, (out, samples))
    return cells.mean((4, 6)).transpose(1, 2).flatten(0, 1)
