"""Retrieval of stored scans: damage, and associations against numpy's."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist

pytest.importorskip("mlxtend")

from everypool.study.experiments.patterns import BETA, EXPERIMENT, SEEDS, STORED, damaged, recall, stored_for
from everypool.study.trial import Context, Trial


def some(count: int = 30) -> torch.Tensor:
    return stored_for(0)[:count]


def queries() -> torch.Tensor:
    return damaged(some(), torch.Generator().manual_seed(1))["noise 1.0"]


def standard(rows: np.ndarray) -> np.ndarray:
    return (rows - rows.mean(1, keepdims=True)) / np.sqrt(rows.var(1, keepdims=True) + 1e-5)


def softmax(scores: np.ndarray) -> np.ndarray:
    shares = np.exp(scores - scores.max(1, keepdims=True))
    return shares / shares.sum(1, keepdims=True)


def test_no_scan_is_in_two_seeds() -> None:
    every = [row.tobytes() for seed in range(SEEDS) for row in stored_for(seed).numpy()]
    assert len(every) == SEEDS * STORED
    assert len(set(every)) == len(every)
    with pytest.raises(ValueError, match="`seed` must be below 12"):
        stored_for(SEEDS)


def test_damage() -> None:
    stored = some()
    images = stored.numpy().reshape(-1, 28, 28)
    made = {name: rows.numpy().reshape(-1, 28, 28) for name, rows in damaged(stored, torch.Generator().manual_seed(1)).items()}
    np.testing.assert_array_equal(made["whole"], images)
    np.testing.assert_array_equal(made["half"][:, :14], images[:, :14])
    assert not made["half"][:, 14:].any()
    assert images[:, 14:].any()
    for distance in (1, 2, 3):
        np.testing.assert_array_equal(made[f"shift {distance}"][:, :, distance:], images[:, :, :-distance])
        assert not made[f"shift {distance}"][:, :, :distance].any()
    for deviation in (0.5, 1.0):
        noise = made[f"noise {deviation}"] - images
        assert noise.std() == pytest.approx(deviation, rel=0.05)
        assert abs(noise.mean()) < 0.05


@pytest.mark.parametrize(
    ("variant", "nearest"),
    [
        ("dot product", lambda q, s: (q @ s.T).argmax(1)),
        ("correlation", lambda q, s: np.corrcoef(q, s)[: len(q), len(q) :].argmax(1)),
        ("euclid", lambda q, s: cdist(q, s).argmin(1)),
    ],
)
def test_rivals_bring_back_the_nearest(variant: str, nearest: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> None:
    stored, asked = some(), queries()
    np.testing.assert_array_equal(recall(variant, stored, asked), stored[nearest(asked.numpy(), stored.numpy())])


def test_poolings_ask_for_nothing() -> None:
    stored, asked = some(), queries()
    torch.testing.assert_close(recall("avg", stored, asked), stored.mean(0).expand(len(asked), -1))
    torch.testing.assert_close(recall("max", stored, asked), stored.amax(0).expand(len(asked), -1))


@pytest.mark.parametrize(
    ("variant", "beta", "steps"), [("hopfield once", BETA, 0), ("hopfield", BETA, 32), ("hopfield sharp", 8 * BETA, 32)]
)
def test_association_is_the_published_formula(variant: str, beta: float, steps: int) -> None:
    stored, asked = some().double().numpy(), queries().double().numpy()
    keys = standard(stored)
    shares = softmax(beta * standard(asked) @ keys.T)
    for _ in range(steps):
        new = softmax(beta * shares @ keys @ keys.T)
        done = np.linalg.norm(new - shares) <= 1e-4
        shares = new
        if done:
            break
    found = recall(variant, torch.from_numpy(stored), torch.from_numpy(asked))
    np.testing.assert_allclose(found, shares @ stored, atol=1e-6)


def test_unknown_variant_is_refused() -> None:
    with pytest.raises(ValueError, match="`variant` must be"):
        recall("hopfild", some(), queries())


def test_trial_counts_right_retrievals() -> None:
    measures = EXPERIMENT.run(Trial("patterns", "avg", 3), Context())
    assert set(measures) == set(EXPERIMENT.measures)
    stored = stored_for(3)
    assert measures["half"] == measures["whole"] == 100 / STORED  # the mean is nearest to one of all
    assert measures["half error"] == pytest.approx(100 * stored.std(0, correction=0).square().mean().sqrt().item(), rel=1e-4)
    right = EXPERIMENT.run(Trial("patterns", "euclid", 3), Context())
    assert right["whole"] == 100
    assert EXPERIMENT.run(Trial("patterns", "euclid", 3), Context()) == right
