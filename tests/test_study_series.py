"""Series of the study: the files against an independent reading, shifts by hand, and trials that repeat to the bit."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

from everypool.study.data import series as data
from everypool.study.experiments import series, speech
from everypool.study.trial import Context, Trial

pytestmark = pytest.mark.skipif(importlib.util.find_spec("sktime") is None, reason="sktime is not installed")

SIZES = {"ArrowHead": (211, 1, 3), "GunPoint": (200, 1, 2), "ItalyPowerDemand": (1096, 1, 2), "JapaneseVowels": (640, 12, 9),
         "OSULeaf": (442, 1, 6), "PLAID": (1074, 1, 11)}  # fmt: skip


@pytest.mark.parametrize("name", data.NAMES)
def test_sets_are_as_large_as_their_archive_says(name: str) -> None:
    samples, labels = data.load(name)
    count, channels, classes = SIZES[name]
    assert (len(samples), {s.shape[0] for s in samples}) == (count, {channels})
    assert labels.unique().tolist() == list(range(classes))
    assert all(s.isfinite().all() for s in samples)


def test_values_are_those_of_the_file() -> None:
    found = importlib.util.find_spec("sktime")
    assert found is not None
    assert found.submodule_search_locations
    file = Path(found.submodule_search_locations[0], "datasets/data/JapaneseVowels/JapaneseVowels_TEST.ts")
    last = file.read_text().strip().rsplit("\n", 1)[1]
    *channels, label = last.split(":")
    samples, labels = data.load("JapaneseVowels")
    expected = np.stack([np.fromstring(channel, sep=",") for channel in channels])
    np.testing.assert_allclose(samples[-1], expected, rtol=1e-6)
    assert labels[-1] == int(label) - 1
    assert torch.bincount(labels[:270]).tolist() == [30] * 9  # as the file's header says of the training set


def test_equal_lengths_are_stacked_and_others_are_not() -> None:
    samples, labels = data.equal("ItalyPowerDemand")
    assert samples.shape == (1096, 1, 24)
    assert labels.shape == (1096,)
    with pytest.raises(RuntimeError, match="equal size"):
        data.equal("JapaneseVowels")
    with pytest.raises(ValueError, match="did you mean 'OSULeaf'"):
        data.load("OSUleaf")


def test_an_outline_begins_elsewhere_and_nothing_is_lost() -> None:
    outline = torch.arange(5.0).reshape(1, 1, 5)
    later, earlier = series.turned(outline, 2)
    assert later.flatten().tolist() == [3, 4, 0, 1, 2]
    assert earlier.flatten().tolist() == [2, 3, 4, 0, 1]


def test_a_voice_moves_against_its_edge() -> None:
    voice = torch.tensor([[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]])
    assert speech.moved(voice, 2).tolist() == [[1, 1, 1, 2], [5, 5, 5, 6]]
    assert speech.moved(voice, -1).tolist() == [[2, 3, 4, 4], [6, 7, 8, 8]]


def test_forms_have_their_lengths() -> None:
    voices = [torch.rand(12, n) for n in (7, 20, 29)]
    assert [v.shape[1] for v in speech.fitted("resize", voices)] == [15] * 3
    assert [v.shape[1] for v in speech.fitted("crop", voices)] == [7] * 3
    assert torch.equal(speech.fitted("crop", voices)[2], voices[2][:, 11:18])
    assert all(a is b for a, b in zip(speech.fitted("avg", voices), voices, strict=True))


@pytest.mark.parametrize("experiment", [series.EXPERIMENT, speech.EXPERIMENT], ids=lambda e: e.name)
def test_every_variant_is_built(experiment: series.Experiment) -> None:
    build = {"series": series.build, "speech": speech.build}[experiment.name]
    for variant in experiment.variants:
        model = build(variant).eval()
        shape, rest = ((2, 1, 427), ()) if experiment is series.EXPERIMENT else ((2, 12, 9), (torch.tensor([[9], [7]]),))
        assert model(torch.rand(shape), *rest).shape == (2, 6 if experiment is series.EXPERIMENT else 9)


def test_a_leaf_trial_repeats_and_takes_what_it_says() -> None:
    trial = Trial("series", "soft", 3, (("epochs", 1),))
    results = []
    for _ in range(2):
        torch.manual_seed(3)
        results.append(series.EXPERIMENT.run(trial, Context()))
    assert results[0] == results[1]
    assert set(results[0]) == set(series.EXPERIMENT.measures)
    assert results[0]["accuracy"] > 100 / 6


def test_a_voice_trial_minds_no_padding_if_it_knows_the_lengths() -> None:
    done: list[float] = []
    masked, naive = (
        speech.EXPERIMENT.run(Trial("speech", variant, 0, (("epochs", 2),)), Context(tick=done.append))
        for variant in ("avg", "naive avg")
    )
    assert masked["accuracy"] == masked["padded"]
    assert masked["alone"] == 100
    assert naive["padded"] < naive["accuracy"] - 2
    assert set(masked) == set(speech.EXPERIMENT.measures)
    assert done == [0.5, 1.0] * 2
