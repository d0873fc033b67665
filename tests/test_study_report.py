"""The report: numbers against scipy, the page against the rules of HTML and WCAG, pictures against torch, and exports."""

from __future__ import annotations

import base64
import csv
import io
import json
import math
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from study_pages import HOST, MADE, SEEDS, Parsed, contrast, cost, rendered, schemes, study
from torch import nn

from everypool.study import export, figures, labels, plots, provenance, report, samples, tables
from everypool.study.experiment import Measure, Scale
from everypool.study.report import Page
from everypool.study.summary import Study
from everypool.study.trial import Outcome, Trial

stats = pytest.importorskip("scipy.stats")
Image = pytest.importorskip("PIL.Image")


@pytest.fixture(scope="module")
def single() -> tuple[Page, str]:
    return rendered("one")


@pytest.fixture(scope="module")
def many() -> tuple[Page, str]:
    return rendered("several")


@pytest.fixture(params=["single", "many"])
def made(request: pytest.FixtureRequest) -> tuple[Page, str]:
    return request.getfixturevalue(request.param)


def values(made: Study, variant: str, measure: str) -> np.ndarray[Any, Any]:
    return np.array([made.outcomes[variant][seed].measures[measure] for seed in range(SEEDS)])


def half(numbers: np.ndarray[Any, Any], overlap: float) -> float:
    """Of Nadeau and Bengio's interval."""
    n = len(numbers)
    return float(stats.t.ppf(0.975, n - 1) * numbers.std(ddof=1) * math.sqrt(1 / n + overlap))


# --- the page


def test_a_page_nests_and_refers_to_nothing_outside(made: tuple[Page, str]):
    _, text = made
    page = Parsed(text)
    assert not re.search(r"https?:|@import|url\((?!#)", text)
    inside = [reference for reference in page.references if not reference.startswith("data:image/png;base64,")]
    assert all(reference.startswith("#") and reference[1:] in page.ids for reference in inside)
    assert len(set(page.ids)) == len(page.ids)
    assert page.handlers == []
    policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"
    assert f'<meta http-equiv="Content-Security-Policy" content="{policy}">' in text


def test_every_figure_and_picture_has_words(made: tuple[Page, str]):
    page = Parsed(made[1])
    assert page.drawings
    assert all(drawing["role"] == "img" and drawing["aria-label"] for drawing in page.drawings)
    assert all(image["alt"] for image in page.images)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_have_the_contrast_of_wcag_aa(single: tuple[Page, str], scheme: str):
    colours = schemes(Parsed(single[1]).style)[scheme]
    letters = ["ink", "muted", "accent", "warn", "good", "bad"]
    assert min(contrast(colours[name], colours[ground]) for name in letters for ground in ("paper", "panel")) >= 4.5
    assert min(contrast(colours[f"series{i}"], colours["paper"]) for i in range(plots.SERIES)) >= 3
    assert len({colours[f"series{i}"] for i in range(plots.SERIES)}) == plots.SERIES


def test_the_table_has_the_numbers(single: tuple[Page, str]):
    page, text = single
    (only,) = page.studies
    heads, *rows = Parsed(text).tables[0]
    assert heads[:5] == [
        "variant", "accuracy, %", "agreement under a shift by 1 px, %", "agreement under a shift by 2 px, %", "last loss",
    ]  # fmt: skip
    assert [row[0] for row in rows] == list(MADE.variants)
    for row in rows:
        accuracy, loss = values(only, row[0], "accuracy"), values(only, row[0], "loss")
        assert row[1].split("▲")[0].split("▼")[0].strip() == f"{accuracy.mean():.1f} ± {half(accuracy, 0.25):.1f}"
        assert row[4] == f"{loss.mean():.4f} ± {half(loss, 0.25):.4f}"
    assert [row[heads.index("parameters")] for row in rows] == ["6,186", "7,186", "8,186", "9,186", "10,186"]
    assert heads.count("parameters") == 1  # the costs have it too
    # 100, 101, 102 µs: t(0.975, 2) = 4.3027; 4.3027 / sqrt(3) = 2.48
    assert rows[0][heads.index("time of a training step, per sample, µs")] == "101 ± 2"


def test_marks_say_where_a_difference_was_found(single: tuple[Page, str]):
    rows = Parsed(single[1]).tables[0][1:]
    marks = {row[0]: re.findall("[▲▼].*", row[1]) for row in rows}
    assert marks == {"max": [], "avg": [], "gem:p=4": ["▲above max"], "stride": ["▼below max"], "none": ["▲above max"]}


def test_the_answer_stands_first_and_the_command_is_there(single: tuple[Page, str]):
    page, text = single
    words = Parsed(text).words
    assert words.index(page.studies[0].conclusion()) < words.index("Results")
    assert "everypool compare made --seeds 8" in words
    for version in provenance.versions().items():
        assert " ".join(version) in words


def test_the_record_is_whole(made: tuple[Page, str]):
    page, text = made
    record = Parsed(text).record
    for own, shown in zip(page.studies, record["studies"], strict=True):
        expected = json.loads(json.dumps(own.record()))
        assert {**shown, "failures": 0} == {**expected, "failures": 0}
    assert [verdict["verdict"] for verdict in record["verdicts"]] == [verdict.verdict for verdict in page.verdicts]


def test_no_machine_is_named(made: tuple[Page, str]):
    page, text = made
    for shown in (text, export.markdown(page), export.csv(page.studies, page.costs)):
        assert HOST not in shown
    assert "x86_64 cpu" in text


def test_what_is_missing_is_said_at_the_top(many: tuple[Page, str]):
    words = Parsed(many[1]).words
    top = words[: words.index("what is checked")]
    assert "Partial: third: 20 of 40 trials were finished, as the budget was used up." in top
    assert "second: max, seeds 3 to 4, 6, failed: ValueError: <b>no</b>" in top
    assert "third: with 4 seeds no p value is below 0.125" in top


def test_a_whole_page_says_nothing_of_missing_parts(single: tuple[Page, str]):
    assert report.notices(single[0]) == []
    page = replace(single[0], interrupted="it was interrupted")
    assert report.notices(page) == ["All trials were finished, but it was interrupted before the rest was measured."]


def test_six_pairs_are_the_fewest_that_can_tell():
    # all signs alike: 2 of 2^n exchanges are as extreme
    assert 2.0 ** (1 - report.FEWEST) < 0.05 < 2.0 ** (2 - report.FEWEST)


def test_claims_stand_in_order_with_their_effects(many: tuple[Page, str]):
    page, text = many
    heads, *rows = Parsed(text).tables[0]
    assert [row[0] for row in rows] == ["C2", "C2", "C2", "C3", "C10"]
    verdicts = ["✓ supported", "✗ not supported", "✗ not supported", "· not tested", "○ no difference here"]
    assert [row[1] for row in rows] == verdicts
    gained = values(page.studies[0], "gem:p=4", "accuracy") - values(page.studies[0], "max", "accuracy")
    low, high = gained.mean() - half(gained, 0.25), gained.mean() + half(gained, 0.25)
    effect = heads.index("effect (95 % interval)")
    assert rows[0][effect] == f"+{gained.mean():.1f} points (+{low:.1f} to +{high:.1f})"
    assert rows[2][effect] == "+1,000"
    assert [row[effect + 1] for row in rows] == ["8", "8", "8", "0", "8"]
    assert "5 comparisons for 3 claims: 1 supported, 2 not supported, 1 no difference here, 1 not tested." in Parsed(text).words


def test_a_page_of_nothing_is_a_page():
    page = Parsed(report.render(Page([], [], "")))
    assert "nothing to conclude" in page.words
    empty = Parsed(report.render(Page([study(finished=0)], [], "x")))
    assert (empty.drawings, empty.tables) == ([], [])
    assert "0 of 40 trials were finished" in empty.words


def test_costs_are_those_of_the_same_trials():
    own = study()
    other = replace(MADE, name="other")
    longer = Study(MADE, Scale(SEEDS, {"epochs": 9}), own.variants, own.judged)
    right, wrong, elsewhere = cost(own), cost(longer, rounds=5), cost(study(other))
    page = Page([own], [wrong, elsewhere, right], "")
    assert report.cost_of(page, own) is right
    assert report.cost_of(Page([own], [wrong, elsewhere], ""), own) is wrong  # better than none
    assert report.cost_of(Page([own], [elsewhere], ""), own) is None


def test_a_report_is_replaced_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "report.html"
    report.write(path, "old")
    report.write(path, "new ± −")
    assert path.read_text(encoding="utf-8") == "new ± −"

    def refuse(*arguments: object) -> None:
        raise OSError("full")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OSError, match="full"):
        report.write(path, "newer")
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]
    assert path.read_text(encoding="utf-8") == "new ± −"


# --- figures


def test_figures_say_in_words_what_they_show(single: tuple[Page, str]):
    (only,) = single[0].studies
    drawn = figures.figures(only, only.rows(), single[0].costs[0], "x")
    titles = [drawing.title for drawing in drawn]
    assert titles == [
        "Accuracy", "Accuracy: difference from max",
        "Agreement under a shift by 1 px", "Agreement under a shift by 1 px: difference from max",
        "Accuracy against time", "Agreement under a shift",
    ]  # fmt: skip
    accuracy = values(only, "gem:p=4", "accuracy")
    assert f"gem:p=4 {accuracy.mean():.1f} ± {half(accuracy, 0.25):.1f}" in drawn[0].svg
    assert f"gem:p=4 {accuracy.mean():.1f} ± {half(accuracy, 0.25):.1f} % for 181 ± 2 µs" in drawn[4].svg


def test_counts_get_no_dots_and_short_series_no_line():
    exact = replace(MADE, judged=("size",), measures={k: replace(m, at=0, curve="") for k, m in MADE.measures.items()})
    only = study(exact)
    assert figures.figures(only, only.rows(), None, "x") == []


def test_every_line_of_a_curve_has_a_colour_and_a_name():
    only = study()
    lines = [(row.variant, [(at, row.intervals[f"shift {at}"]) for at in (1, 2)]) for row in only.rows()]
    svg = plots.figure_svg(plots.curves(lines * 2, "shift, px", "%"), "x", "words")
    for i in range(plots.SERIES):
        assert f"stroke: var(--series{i})" in svg
    assert svg.count(">gem:p=4<") == 2
    assert "#fe0" not in svg


def test_many_trials_are_thinned_out():
    spread = study().rows()[0].intervals["accuracy"]
    drawn = []
    for count in (plots.DOTS // 2, plots.DOTS, 1000):
        figure = plots.dots([("max", list(np.linspace(0, 1, count)), spread)], "%")
        drawn.append(plots.figure_svg(figure, "x", "words").count("fill-opacity: 0.5"))
    assert drawn[1] - drawn[0] == plots.DOTS // 2
    assert drawn[2] == drawn[1]


def test_words_of_a_figure_are_escaped():
    svg = plots.figure_svg(plots.dots([("a", [1.0], study().rows()[0].intervals["accuracy"])], "%"), "x", '<a> & "b"')
    assert 'aria-label="&lt;a> &amp; &quot;b&quot;"' in svg


def test_labels_keep_off_each_other_and_stay_inside():
    generator = np.random.default_rng(3)
    points = [(float(x), float(y)) for x, y in generator.uniform(60, 240, (8, 2))]
    sizes = [(50.0, 16.0)] * 8
    corners = labels.placed(points, sizes, (0, 0, 300, 300))
    for i, (left, bottom) in enumerate(corners):
        assert 0 <= left <= 250
        assert 0 <= bottom <= 284
        for other_left, other_bottom in corners[:i]:
            assert abs(left - other_left) >= 50 or abs(bottom - other_bottom) >= 16


@pytest.mark.parametrize(("low", "high"), [(3.0, 600.0), (110.0, 190.0), (0.02, 40.0), (1.0, 9e5), (99.0, 103.0)])
def test_an_axis_has_two_round_numbers_or_more(low: float, high: float):
    found = labels.ticks(low, high)
    assert 2 <= len(found) <= 9
    assert all(low <= v <= high for v in found)


# --- pictures


def decoded(address: str) -> np.ndarray[Any, Any]:
    raw = base64.b64decode(address.removeprefix("data:image/png;base64,"))
    return np.asarray(Image.open(io.BytesIO(raw)), dtype=float)


def grey(pair: list[torch.Tensor]) -> list[np.ndarray[Any, Any]]:
    low, high = min(p.min() for p in pair), max(p.max() for p in pair)
    return [((p - low) / (high - low) * 255).round().numpy() for p in pair]


def test_pictures_are_what_pooling_leaves(single: tuple[Page, str]):
    _, inputs, _ = MADE.sample(Trial("made", "max", 0))  # type: ignore[misc]
    shown = samples.pictures(inputs[:1], 2, tuple(MADE.variants), "x")
    assert [picture.title for picture in shown] == ["input", "max", "avg", "gem:p=4"]  # the others are no reducers
    moved = torch.zeros_like(inputs[:1])
    moved[..., 1:] = inputs[:1, ..., :-1]
    for picture, pool in zip(shown, (nn.Identity(), nn.MaxPool2d(2), nn.AvgPool2d(2)), strict=False):
        expected = grey([pool(inputs[:1])[0, 0], pool(moved)[0, 0]])
        for (address, _), numbers in zip(picture.images, expected, strict=True):
            np.testing.assert_allclose(decoded(address), numbers, atol=1)
    assert len(Parsed(single[1]).images) == 8


def test_colours_stay_colours():
    inputs = torch.rand(1, 3, 4, 6)
    shown = samples.pictures(inputs, 2, ("avg",), "x")
    low, high = min(inputs.min(), 0.0), inputs.max()
    expected = ((inputs[0].permute(1, 2, 0) - low) / (high - low) * 255).round().numpy()
    np.testing.assert_allclose(decoded(shown[0].images[0][0]), expected, atol=1)
    assert decoded(shown[1].images[0][0]).shape == (2, 3, 3)


def test_volumes_are_cut_in_the_middle_and_large_ones_to_their_middle():
    volume = torch.rand(1, 1, 5, 80, 80)
    (source, _), _ = samples.pictures(volume, 3, ("max",), "x")[0].images
    assert decoded(source).shape == (64, 64)
    slice_ = volume[0, 0, 2, 8:72, 8:72]
    moved = torch.cat([torch.zeros(64, 1), slice_[:, :-1]], 1)
    np.testing.assert_allclose(decoded(source), grey([slice_, moved])[0], atol=1)


def test_series_are_drawn():
    shown = samples.pictures(torch.rand(1, 2, 40), 1, ("max", "stride"), "x")
    assert [picture.title for picture in shown] == ["input", "max"]
    assert all(picture.drawing.startswith("<svg") and not picture.images for picture in shown)


def test_samples_that_are_gone_leave_a_page_without_pictures():
    def gone(trial: Trial) -> Any:
        raise FileNotFoundError("moved away")

    assert samples.shown(study(replace(MADE, sample=gone)), "x") == ("", [])
    assert samples.pictures(torch.rand(1, 1, 6, 6), 0, ("max",), "x") == []


# --- exports


def test_csv_has_a_line_for_every_number():
    own = study(finished=2)
    own.outcomes["max"][0] = Outcome({**own.outcomes["max"][0].measures, "loss": math.nan}, 1.0, "m, x")
    rows = list(csv.DictReader(io.StringIO(export.csv([own], [cost(own)]))))
    assert len(rows) == 2 * 5 * len(MADE.measures) + 3 * 5 * 7
    found = {(r["variant"], r["seed"], r["measure"]): r["value"] for r in rows if r["experiment"] == "made"}
    assert found["max", "0", "loss"] == ""
    assert float(found["gem:p=4", "1", "accuracy"]) == own.outcomes["gem:p=4"][1].measures["accuracy"]
    assert json.loads(rows[0]["settings"]) == {"epochs": 3}
    assert json.loads(rows[-1]["settings"]) == {"epochs": 3, "of": "made", "machine": "x86_64 cpu"}


def pipe_tables(text: str) -> list[list[list[str]]]:
    found: list[list[list[str]]] = [[]]
    for line in text.splitlines():
        if line.startswith("|"):
            cells = re.split(r"(?<!\\)\|", line)
            found[-1].append([cell.strip() for cell in cells[1:-1]])
        elif found[-1]:
            found.append([])
    return [table for table in found if table]


def test_markdown_has_the_same_tables(many: tuple[Page, str]):
    text = export.markdown(many[0])
    summary, claims, *others = pipe_tables(text)
    assert len(others) == 3
    for table in (summary, claims, *others):
        assert len({len(row) for row in table}) == 1
        assert set("".join(table[1])) <= set(":-")
    assert [row[0] for row in summary[2:]] == ["C2", "C3", "C10"]
    assert [row[0] for row in claims[2:]] == ["C2", "C2", "C2", "C3", "C10"]
    assert claims[3][1] == r"Strides are more accurate \| or not."
    assert claims[5][-1] == "not tested: its experiment was not run"
    shown = {row[0]: row[1:] for row in others[0]}  # more measures than variants
    accuracy = values(many[0].studies[0], "stride", "accuracy")
    assert shown["measure"] == list(MADE.variants)
    assert shown["accuracy, %"][3] == f"{accuracy.mean():.1f} ± {half(accuracy, 0.25):.1f} ▼"
    assert "```sh\neverypool claims --seeds 8\neverypool report runs\n```" in text
    assert "−" in claims[3][5]
    assert not re.search(r"[-]\d", claims[3][5])


def test_markdown_of_one_study_opens_with_the_answer(single: tuple[Page, str]):
    text = export.markdown(single[0])
    assert text.split("\n\n")[1] == single[0].studies[0].conclusion()
    assert [line for line in text.splitlines() if line.startswith("# ")] == ["# Which pooling, and what does it cost?"]


# --- words


def test_shares_that_are_small_keep_their_digits():
    share, plain = Measure("accuracy"), Measure("time", "µs")
    assert tables.decimals(share, [0.04, math.nan]) == 3
    assert tables.decimals(share, [12.0]) == 1
    assert tables.decimals(plain, [12.0]) == 1
    assert tables.decimals(plain, []) == 1


def test_hardware_names_models_and_other_machines():
    parts = provenance.hardware([study()])
    assert parts[0]
    assert "trials ran on 1 machine (x86_64), not all on this one" in parts
    assert not any("trials ran" in part for part in provenance.hardware())
