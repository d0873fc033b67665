"""Boxes from the maps of a corner detector, and how good they are."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["average_precision", "iou", "paired", "peaks", "suppressed"]

LIMIT = 0.5  # how far apart, in boxes, the centres may lie that two corners of one box point at
RECALLS = 101


def iou(boxes: Tensor, others: Tensor) -> Tensor:
    """Shared area over united area of every box (..., N, 4) with every other (..., M, 4); 0 for boxes without area.

    >>> iou(torch.tensor([[0.0, 0.0, 2.0, 2.0]]), torch.tensor([[1.0, 0.0, 3.0, 2.0], [2.0, 0.0, 4.0, 2.0]]))
    tensor([[0.3333, 0.0000]])
    """
    low = torch.maximum(boxes[..., :, None, :2], others[..., None, :, :2])
    high = torch.minimum(boxes[..., :, None, 2:], others[..., None, :, 2:])
    shared = (high - low).clamp(min=0).prod(-1)
    areas = [(b[..., 2:] - b[..., :2]).clamp(min=0).prod(-1) for b in (boxes, others)]
    return shared / (areas[0][..., :, None] + areas[1][..., None, :] - shared).clamp(min=1e-9)


def peaks(heat: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The highest places of maps (N, H, W) that are higher than their eight neighbours: values (N, K) and places (N, K).

    >>> peaks(torch.tensor([[[0.1, 0.9, 0.8], [0.0, 0.2, 0.3], [0.6, 0.1, 0.0]]]), 2)
    (tensor([[0.9000, 0.6000]]), tensor([[1, 6]]))
    """
    local = F.max_pool2d(heat.unsqueeze(1), 3, 1, 1).squeeze(1)
    values, places = torch.where(heat == local, heat, 0).flatten(1).topk(min(count, heat[0].numel()))
    return values, places


def paired(
    first: tuple[Tensor, Tensor, Tensor],
    last: tuple[Tensor, Tensor, Tensor],
    centers: tuple[Tensor, Tensor] | None = None,
    *,
    cell: float = 0.0,
    count: int = 40,
) -> tuple[Tensor, Tensor]:
    """Boxes from their top-left and bottom-right corners.

    Two corners make a box if the second one lies right of and below the first, and if the centres that they point at lie
    less than half a box apart. Its score is the mean of theirs, the less the further apart these are.

    Args:
        first: top-left corners: scores (N, K), places (N, K, 2), and the sides of their boxes (N, K, 2), in x and y.
        last: the same of bottom-right corners.
        centers: scores (N, C) and places (N, C, 2) of centres: a box keeps only if one lies in the middle third of it in
            both axes, as in CenterNet, and the score of the best such centre counts as a third corner's.
        cell: how exact these places are: the middle third is taken as at least that wide.
        count: boxes per image.

    Returns:
        Boxes (N, count, 4) and their scores (N, count), the best ones first; 0 is the score of no box.
    """
    (value, low, side), (other_value, high, other_side) = first, last
    low, high = low[:, :, None], high[:, None, :]
    size = high - low
    away = ((low + side[:, :, None] / 2) - (high - other_side[:, None, :] / 2)).abs() / size.clamp(min=1e-6)
    fits = (size > 0).all(-1) & (away < LIMIT).all(-1)
    score = (value[:, :, None] + other_value[:, None, :]) / 2
    if centers is not None:
        off = (centers[1][:, None, None] - ((low + high) / 2)[..., None, :]).abs()
        inside = (off <= (size[..., None, :] / 6).clamp(min=cell / 2)).all(-1)
        best = torch.where(inside, centers[0][:, None, None], 0).amax(-1)
        score, fits = (2 * score + best) / 3, fits & (best > 0)
    score = torch.where(fits, score * (1 - away.amax(-1) / LIMIT), 0).flatten(1)
    boxes = torch.cat([low.expand_as(size), high.expand_as(size)], -1).flatten(1, 2)
    score, order = score.topk(min(count, score.shape[1]))
    return boxes.gather(1, order[..., None].expand(-1, -1, 4)), score


def suppressed(boxes: Tensor, scores: Tensor, most: float) -> Tensor:
    """The scores (N, D), best first, 0 for boxes (N, D, 4) that share more than `most` with a better one that is left.

    >>> suppressed(torch.tensor([[[0.0, 0.0, 4.0, 4.0], [0.0, 0.0, 4.0, 3.0]]]), torch.tensor([[0.9, 0.8]]), 0.7)
    tensor([[0.9000, 0.0000]])
    """
    alike = iou(boxes, boxes) > most
    left = scores > 0
    for rank in range(scores.shape[1] - 1):
        left[:, rank + 1 :] &= ~(alike[:, rank, rank + 1 :] & left[:, rank, None])
    return torch.where(left, scores, 0)


def average_precision(
    boxes: Tensor,
    scores: Tensor,
    truths: Tensor,
    exists: Tensor,
    thresholds: Tensor,
    *,
    wanted: Tensor | None = None,
    within: Tensor | None = None,
) -> Tensor:
    """Average precision as COCO counts it: 101 recalls, boxes taken in the order of their scores, each truth found once.

    Args:
        boxes: (N, D, 4).
        scores: (N, D); 0 where there is no box.
        truths: (N, G, 4).
        exists: (N, G): which of these are true boxes.
        thresholds: (T,): the least intersection over union of a hit.
        wanted: (N, G): the true boxes that count, such as small ones; who finds another one is neither right nor wrong.
        within: (N, D): the boxes that are wrong if they find nothing, such as small ones.

    Returns:
        (T,) between 0 and 1; NaN if no true box counts.
    """
    scores, order = scores.sort(dim=1, descending=True, stable=True)
    boxes = boxes.gather(1, order[..., None].expand(-1, -1, 4))
    within = torch.ones_like(order, dtype=torch.bool) if within is None else within.gather(1, order)
    wanted = exists if wanted is None else wanted & exists
    right, wrong = matched(iou(boxes, truths), scores > 0, exists, wanted, within, thresholds)
    ranking = scores.flatten().argsort(descending=True, stable=True)
    hits, misses = (x.flatten(1)[:, ranking].to(torch.float64).cumsum(1) for x in (right, wrong))
    recall = hits / wanted.sum()
    precision = hits / (hits + misses).clamp(min=1)
    envelope = precision.flip(1).cummax(1).values.flip(1)
    levels = torch.linspace(0, 1, RECALLS, dtype=torch.float64).expand(len(thresholds), -1).contiguous()
    reached = torch.searchsorted(recall.contiguous(), levels - 1e-9)
    found = F.pad(envelope, (0, 1)).gather(1, reached).mean(1)
    return torch.where(wanted.any(), found, float("nan"))


def matched(
    overlaps: Tensor, given: Tensor, exists: Tensor, wanted: Tensor, within: Tensor, thresholds: Tensor
) -> tuple[Tensor, Tensor]:
    """Which boxes (T, N, D) are right and which are wrong at each threshold, the best box of each image choosing first."""
    levels = thresholds[:, None, None]
    free = exists.expand(len(thresholds), -1, -1).clone()
    right = torch.zeros(len(thresholds), *given.shape, dtype=torch.bool)
    wrong = right.clone()
    for rank in range(given.shape[1]):
        overlap = overlaps[:, rank].expand_as(free)
        hit = free & (overlap >= levels) & given[:, rank, None]
        # a truth that counts goes before one that does not, whatever their overlaps
        best, chosen = torch.where(hit, overlap + 2.0 * wanted, -1.0).max(2)
        right[:, :, rank] = best >= 2
        wrong[:, :, rank] = (best < 0) & given[:, rank] & within[:, rank]
        taken = F.one_hot(chosen, free.shape[2]).bool() & (best >= 0)[..., None]
        free &= ~taken
    return right, wrong
