"""A digit among many: how sequences are drawn, and which networks mind its place."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from everypool.study.data import digits
from everypool.study.experiments import witness
from everypool.study.experiments.witness import EXPERIMENT, HALF, LENGTH, Sequences, WitnessNet, drawn, found
from everypool.study.trial import Context, Trial


def sequences(count: int = 40, digit: int = 4, seed: int = 0) -> Sequences:
    return drawn(*digits.load(), digit, count, torch.Generator().manual_seed(seed))


def scans_of(digit: int) -> set[bytes]:
    images, labels = digits.load()
    return {image.numpy().tobytes() for image in images[labels == digit, 0]}


def places(rows: Tensor, scans: set[bytes]) -> list[list[int]]:
    return [[i for i, scan in enumerate(row) if scan.numpy().tobytes() in scans] for row in rows]


def test_only_every_second_sequence_has_the_digit() -> None:
    some = sequences()
    scans = scans_of(4)
    assert some.labels.tolist() == [0, 1] * 20
    for row, own in enumerate(places(some.made(), scans)):
        assert own == ([int(some.place[row])] if row % 2 else [])
    for row, own in enumerate(places(some.made(moved=HALF), scans)):
        assert own == ([int(some.place[row]) + HALF] if row % 2 else [])
    assert set(some.place.tolist()) == set(range(HALF))


def test_another_look_changes_the_digit_alone() -> None:
    some = sequences()
    before, after = some.made(), some.made(torch.full_like(some.witness, 0.5))
    changed = (before != after).flatten(2).any(2)
    for row in range(40):
        assert changed[row].nonzero().flatten().tolist() == ([int(some.place[row])] if row % 2 else [])
    assert after[1, some.place[1]].eq(0.5).all()
    assert sequences().made().equal(before)
    assert not sequences(seed=1).made().equal(before)


@pytest.mark.parametrize("variant", EXPERIMENT.variants)
def test_only_flatten_minds_the_place(variant: str) -> None:
    model = WitnessNet(variant).eval()
    given = sequences().made()
    before, after = model(given), model(given.flip(1))
    assert before.shape == (40, 2)
    assert torch.allclose(before, after, atol=1e-5) == (variant != "flatten")


def test_found_counts_the_largest_weights_on_the_digit() -> None:
    class Known(nn.Module):
        def weights(self, instances: Tensor, sizes: Tensor) -> Tensor:
            assert sizes.tolist() == [LENGTH] * 4
            return torch.nn.functional.one_hot(torch.tensor([1, 2, 3, 0]), LENGTH)

    model = WitnessNet("attention").eval()
    model.pool = Known()
    given = sequences(4).made()
    assert found(model, given, torch.tensor([1, 2, 3, 4])) == 75
    for variant in ("avg", "flatten"):
        assert math.isnan(found(WitnessNet(variant).eval(), given, torch.tensor([1, 2, 3, 4])))


def test_trial_repeats(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(witness, "TRAIN", 64)
    monkeypatch.setattr(witness, "TEST", 40)
    trial = Trial("witness", "hopfield", 0, (("epochs", 2),))
    torch.manual_seed(0)
    first = EXPERIMENT.run(trial, Context())
    assert set(first) == set(EXPERIMENT.measures)
    torch.manual_seed(0)
    again = EXPERIMENT.run(trial, Context())
    assert again == first
