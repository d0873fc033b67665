"""Intervals, paired tests, their correction, and the sentence and verdicts that come of them."""

from __future__ import annotations

import itertools
import math
import re

import numpy as np
import pytest

from everypool.study import claims, statistics
from everypool.study.claims import Check, judge
from everypool.study.experiment import Experiment, Measure, Scale
from everypool.study.statistics import Difference, Interval, adjusted, chance, difference, interval
from everypool.study.summary import Study
from everypool.study.trial import Outcome, Trial

stats = pytest.importorskip("scipy.stats")

# --- intervals


def test_an_interval_without_overlap_is_students():
    values = [98.1, 99.3, 97.7, 98.8, 99.0]
    low, high = stats.t.interval(0.95, len(values) - 1, loc=np.mean(values), scale=stats.sem(values))
    found = interval(values)
    assert (found.low, found.high, found.count) == (pytest.approx(low), pytest.approx(high), 5)


def test_overlap_widens_as_nadeau_and_bengio_say():
    values = [1.0, 2.0, 4.0]
    # by hand: mean 7/3, s^2 = 7/3, t(0.975, 2) = 4.302653; 1/3 + 1/4 = 7/12
    assert interval(values, overlap=0.25).half == pytest.approx(4.302653 * math.sqrt(7 / 3 * 7 / 12), rel=1e-6)


def test_equal_differences_are_no_certainty():
    found = interval([0.5, 0.5, 0.5], resolution=0.5)
    assert found.half == pytest.approx(4.302653 * 0.5 / math.sqrt(12) * math.sqrt(1 / 3), rel=1e-6)


def test_one_seed_has_no_interval():
    found = interval([3.0])
    assert (found.mean, found.count, found.excludes_zero) == (3.0, 1, False)
    assert math.isnan(found.low)


# --- chance


def by_all_signs(values: list[float]) -> float:
    """The share of the 2^n ways to exchange the two of a pair whose mean is as far from 0."""
    sums = [sum(s * v for s, v in zip(signs, values, strict=True)) for signs in itertools.product((1, -1), repeat=len(values))]
    return sum(abs(total) >= abs(sum(values)) - 1e-9 for total in sums) / len(sums)


@pytest.mark.parametrize("values", [[1.0, 2.0, 3.0, 4.0], [1.5, -0.5, 2.0, 3.0, -1.0, 4.0], [1.0, 1.0, 0.0, -1.0, 2.0]])
def test_chance_is_the_share_of_all_exchanges(values: list[float]):
    assert chance(values) == pytest.approx(by_all_signs(values))


def test_chance_of_many_pairs_is_near_that_of_a_t_test():
    values = list(np.random.default_rng(3).normal(0.4, 1, 40))
    assert chance(values) == pytest.approx(stats.ttest_1samp(values, 0).pvalue, abs=0.01)
    assert chance(values) == chance(values)


def test_no_pairs_no_chance():
    assert math.isnan(chance([1.0]))
    assert chance([0.0, 0.0, 0.0]) == 1.0


def made(p: float, mean: float = 1.0) -> Difference:
    return Difference("a", "b", "m", Interval(mean, mean - 0.5, mean + 0.5, 8), p, p)


def test_the_correction_is_benjamini_and_hochbergs():
    ps = [0.01, 0.04, 0.03, 0.20]
    # by hand: sorted .01 .03 .04 .20; times 4/rank: .04 .06 .0533 .20; smallest from the right: .04 .0533 .0533 .20
    assert [d.adjusted for d in adjusted([made(p) for p in ps])] == pytest.approx([0.04, 0.16 / 3, 0.16 / 3, 0.20])


def test_a_find_needs_a_small_chance_and_an_interval_without_zero():
    assert made(0.01).found
    assert not made(0.06).found
    assert not made(0.01, mean=0.4).found  # -0.1 to 0.9


def test_counts_have_no_chance():
    found = difference("a", "b", "parameters", [(10.0, 30.0), (10.0, 30.0)], exact=True)
    assert (found.interval.mean, found.found, math.isnan(found.p)) == (-20.0, True, True)
    assert not difference("a", "b", "parameters", [(10.0, 10.0)], exact=True).found
    assert adjusted([found, made(0.04)])[1].adjusted == 0.04  # it takes no share of the correction


def test_pairs_with_a_missing_value_are_left_out():
    found = difference("a", "b", "m", [(1.0, 0.5), (math.nan, 1.0), (2.0, 0.5), (1.0, math.inf)])
    assert (found.interval.count, found.interval.mean) == (2, 1.0)


# --- studies

EXPERIMENT = Experiment(
    name="made up",
    summary="",
    data="",
    variants={"max": "", "avg": "", "center": ""},
    measures={
        "accuracy": Measure("accuracy"),
        "shift": Measure("shift agreement"),
        "parameters": Measure("parameters", "", exact=True),
    },
    run=lambda trial, context: {},
    recipe=1,
    full=Scale(8),
    quick=Scale(8),
)


def study(**columns: list[float]) -> Study:
    """One measure that varies; the others are alike."""
    seeds = max(map(len, columns.values()))
    made = Study(EXPERIMENT, Scale(seeds), tuple(columns), ("accuracy", "shift"))
    for variant, values in columns.items():
        for seed, value in enumerate(values):
            measures = {"accuracy": 99.0, "shift": value, "parameters": 100.0 if variant == "max" else 50.0}
            made.add(Trial("made up", variant, seed), Outcome(measures, 1.0, ""))
    return made


REFERENCE = [80.0, 82.0, 84.0, 81.0, 79.0, 83.0, 80.5, 81.5]
LIKE_IT = [83.0, 81.0, 82.0, 80.0, 80.0, 84.0, 80.0, 81.5]
LOWER = [v - 20 - 0.1 * i for i, v in enumerate(REFERENCE)]


def test_differences_are_taken_pair_by_pair():
    rows = study(max=REFERENCE, avg=[v + 1 + 0.1 * i for i, v in enumerate(REFERENCE)], center=[0.0, 1.0, 2.0]).rows()
    found = rows[1].differences["shift"]  # the noise that a pair shares is gone
    assert (found.interval.mean, found.p, found.found) == (pytest.approx(1.35), 2 / 2**8, True)
    assert (rows[1].mark("shift"), rows[1].mark("accuracy")) == ("▲", "")
    assert rows[2].differences["shift"].interval.count == 3  # the seeds that both have


def test_the_conclusion_claims_what_is_found_and_nothing_else():
    sentence = study(max=REFERENCE, center=LOWER, avg=LIKE_IT).conclusion()
    assert re.search(r"accuracy shows no difference, and shift agreement is lower for center \(−20\.\d points", sentence)
    assert "shows no difference for avg" in sentence
    assert "corrected for 4 comparisons" in sentence
    assert "avg shows no difference in accuracy or shift agreement" in study(max=REFERENCE, avg=LIKE_IT).conclusion()
    assert "none of the others shows a difference" in study(max=REFERENCE, avg=REFERENCE, center=LIKE_IT).conclusion()
    assert "higher for max" in study(center=LOWER, max=REFERENCE).conclusion()


VARIANTS = ("max", "avg", "center")
SEEDS = [(0,), (3, 5), tuple(range(8))]
FATES = [
    dict(zip(names, seeds, strict=True))
    for count in range(1, 4)
    for names in itertools.combinations(VARIANTS, count)
    for seeds in itertools.product(SEEDS, repeat=count)
]


@pytest.mark.parametrize("fate", FATES, ids=str)
@pytest.mark.parametrize("known_by", ["flag", "loss"])
def test_of_what_has_diverged_nothing_is_concluded(fate: dict[str, tuple[int, ...]], known_by: str):
    """Any of the variants in any of the seeds: it is named, marked, and neither different nor alike."""
    made = study(max=REFERENCE, avg=LIKE_IT, center=LOWER)
    for variant, seeds in fate.items():
        for seed in seeds:
            old = made.outcomes[variant][seed]
            loss = {"loss": math.nan} if known_by == "loss" else {}
            made.outcomes[variant][seed] = Outcome({**old.measures, **loss}, 1.0, "", known_by == "flag")
    assert made.diverged_seeds() == {v: fate[v] for v in VARIANTS if v in fate}
    assert [text.partition(":")[0] for text in made.divergences()] == [
        f"{v} diverged in {len(fate[v])} of 8 trials" for v in VARIANTS if v in fate
    ]
    said = made.conclusion()
    tested = [v for v in VARIANTS[1:] if v not in fate and "max" not in fate]
    assert {d.variant for d in made.differences()} == set(tested)
    assert ("difference" in said) == bool(tested), said
    assert "none of the others" not in said
    assert not any(f"{v} shows no" in said or f"difference for {v}" in said for v in fate), said
    assert ("lower for center" in said) == ("center" in tested), said
    assert all("diverged" in part for part in said.split(". ")[:1]), said
    assert ("No conclusion" in said) == (not tested)
    for row in made.rows():
        assert row.label == (f"{row.variant} (diverged)" if row.variant in fate else row.variant)
        assert (row.mark("shift") != "") == (row.variant == "center" and "center" in tested)
    assert made.has_only_diverged == (fate == dict.fromkeys(VARIANTS, tuple(range(8))))
    record = made.record()
    assert record["diverged"] == {v: list(seeds) for v, seeds in fate.items()}
    for result in record["results"]:
        marked = tuple(trial["seed"] for trial in result["trials"] if trial["diverged"])
        assert marked == fate.get(result["variant"], ())
    checks = [Check("C1", "", "made up", v, "max", "shift", -1) for v in VARIANTS[1:]]
    for check, verdict in zip(checks, judge(checks, {"made up": made}), strict=True):
        assert (verdict.verdict == claims.NOT_TESTED) == (check.treatment not in tested)
        assert ("diverged" in verdict.why) == (check.treatment not in tested)


def test_too_little_gives_no_conclusion():
    assert study(max=[1.0]).conclusion() == "There is only one variant, so there is nothing to compare."
    assert study(max=[1.0], avg=[50.0]).conclusion().startswith("No conclusion")
    assert study(max=REFERENCE[:5], center=LOWER[:5]).conclusion().startswith("No conclusion: 6 seeds are the fewest")
    assert "lower for center" in study(max=REFERENCE[:7], center=LOWER[:7]).conclusion()
    assert study(max=[], avg=[]).conclusion() == "No trial was finished, so there is nothing to conclude."


def test_verdicts_follow_the_find_and_its_direction():
    checks = [
        Check("C1", "", "made up", "center", "max", "shift", -1),
        Check("C1", "", "made up", "center", "max", "shift", 1),
        Check("C2", "", "made up", "avg", "max", "shift", 1),
        Check("C3", "", "made up", "avg", "max", "parameters", -1),
        Check("C4", "", "not run", "a", "b", "shift", 1),
    ]
    whole = study(max=REFERENCE, center=LOWER, avg=LIKE_IT)
    verdicts = [v.verdict for v in judge(checks, {"made up": whole})]
    assert verdicts == ["supported", "not supported", "no difference here", "supported", "not tested"]
    assert judge(checks[:1], {"made up": study(max=[1.0], center=[50.0])})[0].verdict == claims.NOT_TESTED


def identical(generator: np.random.Generator, seeds: int) -> Study:
    """Two names for one pooling. A split is easier or harder for both; then each network has its own luck on 359 test digits.

    As measured on the digits, accuracies lie near 98.5 % with splits 0.4 points apart, agreements near 72 % with 3 points.
    """
    made = Study(EXPERIMENT, Scale(seeds), ("max", "maximum"), ("accuracy", "shift"))
    for seed in range(seeds):
        rates = np.clip([98.5 + generator.normal(0, 0.4), 72 + generator.normal(0, 3)], 0, 100) / 100
        for variant in made.variants:
            luck = np.clip(rates + generator.normal(0, [0.003, 0.02]), 0, 1)
            accuracy, shift = 100 * generator.binomial([359, 4 * 359], luck) / [359, 4 * 359]
            measures = {"accuracy": accuracy, "shift": shift, "parameters": 100.0}
            made.add(Trial("made up", variant, seed), Outcome(measures, 1.0, ""))
    return made


@pytest.mark.parametrize("seeds", [8, 10])
def test_identical_poolings_under_two_names_show_no_difference(seeds: int):
    generator = np.random.default_rng(seeds)
    quiet = sum("shows no difference" in identical(generator, seeds).conclusion() for _ in range(200))
    assert quiet >= 190  # 95 % of 200


def test_a_real_difference_is_found():
    generator = np.random.default_rng(0)
    found = 0
    for _ in range(50):
        both = identical(generator, 10)
        for seed, outcome in both.outcomes["maximum"].items():
            both.outcomes["maximum"][seed] = Outcome({**outcome.measures, "shift": outcome.measures["shift"] - 10}, 1.0, "")
        found += "shift agreement is lower for maximum" in both.conclusion()
    assert found >= 48


def test_signed_has_a_true_minus():
    assert (statistics.signed(-1.25), statistics.signed(1234.5, 0)) == ("−1.2", "+1,234")
