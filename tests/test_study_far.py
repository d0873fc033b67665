"""The experiment on roads whose sign stands far away."""

from __future__ import annotations

import pytest
import torch
from sklearn.metrics import jaccard_score  # type: ignore[import-untyped]

pytest.importorskip("skimage")

from everypool import StripPoolingModule
from everypool.study.experiments import far
from everypool.study.measures import parameters
from everypool.study.trial import Context, Trial


def scene(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """One in which grass is 0, gravel 0.1, and the scan of sign k is full of (k + 1) / 5."""
    scans = [torch.full((1, 8, 8), (k + 1) / 5) for k in range(far.SIGNS)]
    return far.scene(torch.zeros(96, 96), torch.full((96, 96), 0.1), scans, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("seed", range(8))
def test_every_road_bears_the_sign_that_names_it(seed: int) -> None:
    picture, labels, distance = scene(seed)
    assert picture.shape == (48, 48)
    assert labels.shape == distance.shape == (12, 12)
    cells = picture.unfold(0, 4, 4).unfold(1, 4, 4).flatten(2)
    assert (cells == cells[..., :1]).all()  # every cell is one thing
    cells = cells[..., 0]
    assert torch.equal(cells > 0, labels > 0)
    assert torch.equal(labels > 0, distance != far.NOWHERE)
    signed = cells > 0.15
    torch.testing.assert_close(cells[signed], labels[signed] / 5)
    assert signed[distance == -1].all()  # roads with signs all along
    alone = labels[(distance >= 0) & (distance != far.NOWHERE)]
    near = signed & (distance >= 0)
    assert set(distance[near].tolist()) <= {0, 4}  # the first pixels of the sign's two cells are 4 and 0 from its middle
    assert set(alone.tolist()) == set(labels[near].tolist())  # no crossing hides a sign that stands alone
    assert distance[distance != far.NOWHERE].max() <= 44


def test_one_road_down_lies_under_two_across() -> None:
    counts = torch.zeros(12, dtype=torch.int64)
    for seed in range(20):
        road = scene(seed)[1] > 0
        rows, columns = road.all(1), road.all(0)
        assert (int(rows.sum()), int(columns.sum())) == (4, 2)
        for along in (rows, columns):
            assert not along[[0, 1, -2, -1]].any()
        counts += rows
    assert (counts[2:-2] > 0).all()


def test_tests_have_other_pictures() -> None:
    (pictures, labels, distance), (tests, _, _) = far.scenes(torch.Generator().manual_seed(0))
    assert pictures.shape == (far.TRAIN, 1, 48, 48)
    assert labels.shape == distance.shape == (far.TRAIN, 12, 12)
    assert tests.shape == (far.TEST, 1, 48, 48)
    assert not torch.equal(far.scenes(torch.Generator().manual_seed(1))[0][0], pictures)


def test_mean_intersection_over_union_is_that_of_scikit_learn() -> None:
    generator = torch.Generator().manual_seed(1)
    answer, labels = torch.randint(far.CLASSES, (2, 6, 12, 12), generator=generator)
    distance = torch.where(labels > 0, torch.randint(-1, 45, labels.shape, generator=generator), far.NOWHERE)
    found = far.scores(answer, labels, distance)
    assert found["iou"] == pytest.approx(100 * jaccard_score(labels.flatten(), answer.flatten(), average="macro"))
    assert found["accuracy"] == pytest.approx(100 * (labels == answer).double().mean().item())


def test_scores_by_distance() -> None:
    labels = torch.tensor([[1, 1, 1, 2, 2, 0, 0]])
    answer = torch.tensor([[1, 0, 2, 2, 1, 0, 3]])
    distance = torch.tensor([[0, 12, 24, -1, -1, far.NOWHERE, far.NOWHERE]])
    found = far.scores(answer, labels, distance)
    assert (found["near"], found["far"], found["local"]) == (50, 0, 50)
    assert found["road"] == pytest.approx(100 * 5 / 7)
    # class 0: 1 of 3; 1: 1 of 4; 2: 1 of 3; 3: 0 of 1
    assert found["iou"] == pytest.approx(100 * (1 / 3 + 1 / 4 + 1 / 3) / 4)


def test_the_window_module_differs_from_the_strip_module_in_its_windows_alone() -> None:
    strip, local, whole = (far.context_module(name).eval() for name in ("strip", "local", "global"))
    for module in (local, whole):
        assert isinstance(module, StripPoolingModule)
        assert parameters(module) == parameters(strip) == 7 * far.CHANNELS**2 + 5 * far.CHANNELS
        module.load_state_dict(strip.state_dict())
    same = torch.rand(2, far.CHANNELS, 1, 1).expand(2, far.CHANNELS, 12, 12)  # any window's mean is the same
    middle = (..., slice(3, -3), slice(3, -3))
    for module in (local, whole):
        torch.testing.assert_close(module(same)[middle], strip(same)[middle])


@pytest.mark.parametrize(("name", "reach"), [("local", 3), ("dilated", 4), ("strip", 11), ("global", 11)])
def test_how_far_a_module_sees(name: str, reach: int) -> None:
    module = far.context_module(name).eval()
    input = torch.rand(1, far.CHANNELS, 12, 12, generator=torch.Generator().manual_seed(0), requires_grad=True)
    (gradient,) = torch.autograd.grad(module(input)[0, :, 0, 0].sum(), input)
    assert int(gradient[0].abs().sum((0, 1)).nonzero().max()) == reach


def test_networks_are_of_about_the_same_size() -> None:
    counts = {name: parameters(far.build(name)) for name in far.EXPERIMENT.variants}
    assert counts["strip"] == counts["local"] == counts["global"]
    assert max(counts.values()) < 1.3 * min(counts.values())


def test_a_trial_gives_what_it_says_and_the_same_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(far, "TRAIN", 24)
    monkeypatch.setattr(far, "TEST", 16)
    outcomes = []
    for _ in range(2):
        torch.manual_seed(0)
        outcomes.append(far.EXPERIMENT.run(Trial("far", "mixed", 0, (("epochs", 1),)), Context()))
    assert set(outcomes[0]) == set(far.EXPERIMENT.measures)
    assert outcomes[0] == outcomes[1]
