"""docs/article.md: its sections, every name exists; the article's small examples. Its snippets run in test_docs.py."""

from __future__ import annotations

import itertools
import math
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import everypool

PAGE = Path(__file__).parents[1] / "docs" / "article.md"
TEXT = PAGE.read_text(encoding="utf-8")
SECTIONS = [
    "What pooling is",
    "Purpose",
    "Max pooling",
    "Average pooling",
    "Global average pooling",
    "Spatial pyramid pooling",
    "Center pooling",
    "Cascade corner pooling",
    "Adaptive feature pooling",
    "Generalized mean pooling",
    "Strip pooling",
    "SoftPool and the Hopfield layer",
    "What its references add",
]
BODIES = dict(zip(re.findall(r"^## (.+)$", TEXT, re.M), re.split(r"^## .+$", TEXT, flags=re.M)[1:], strict=True))


def test_every_section_in_order_with_names_and_a_snippet() -> None:
    assert list(BODIES) == SECTIONS
    for title, body in BODIES.items():
        assert "\nNames: " in body, title
        assert "```python\n" in body, title
    assert TEXT.count("```python\n") == TEXT.count("```text\n")


def listed_names() -> list[str]:
    names = []
    for paragraph in re.findall(r"^Names: (.*?)\n\n", TEXT, re.M | re.S):
        for name in re.findall(r"`([^`]+)`", paragraph):
            names += [name.replace("{1,2,3}", digit) for digit in "123"] if "{1,2,3}" in name else [name]
    return names


def test_every_name_on_the_page_exists() -> None:
    names = listed_names()
    assert len(names) > 100
    assert [name for name in names if not hasattr(everypool, name)] == []


# ---- the small examples -------------------------------------------------------------------------------------------------

GRID = [[1.0, 3.0, 2.0, 4.0], [5.0, 6.0, 1.0, 2.0], [7.0, 2.0, 8.0, 1.0], [3.0, 4.0, 0.0, 9.0]]


def windows_of_grid() -> list[list[list[float]]]:
    """The four values of each 2 x 2 window at a stride of 2, by hand."""
    return [[[GRID[r + i][c + j] for i in (0, 1) for j in (0, 1)] for c in (0, 2)] for r in (0, 2)]


def test_grid_of_four_by_four() -> None:
    grid = torch.tensor(GRID)[None, None]
    assert [[max(w) for w in row] for row in windows_of_grid()] == [[6, 4], [7, 9]]
    assert everypool.max_pool(grid, 2, 2).squeeze().tolist() == [[6, 4], [7, 9]]
    assert everypool.MaxPool2d(2, 2)(grid).squeeze().tolist() == [[6, 4], [7, 9]]
    assert [[sum(w) / 4 for w in row] for row in windows_of_grid()] == [[3.75, 2.25], [4, 4.5]]
    assert everypool.avg_pool(grid, 2, 2).squeeze().tolist() == [[3.75, 2.25], [4, 4.5]]
    assert everypool.AvgPool2d(2, 2)(grid).squeeze().tolist() == [[3.75, 2.25], [4, 4.5]]
    # the middle of an even window: the upper left of the four, unless asked otherwise
    assert everypool.center_pool(grid, 2, 2).squeeze().tolist() == [[1, 2], [7, 8]]
    soft = [[sum(v * math.exp(v) for v in w) / sum(math.exp(v) for v in w) for w in row] for row in windows_of_grid()]
    torch.testing.assert_close(everypool.soft_pool(grid, 2, 2).squeeze(), torch.tensor(soft))


def test_gradient_of_the_grid() -> None:
    grid = torch.tensor(GRID, requires_grad=True)
    everypool.max_pool(grid[None, None], 2, 2).sum().backward()
    winners = {(1, 1), (0, 3), (2, 0), (3, 3)}
    assert grid.grad is not None
    assert grid.grad.tolist() == [[float((r, c) in winners) for c in range(4)] for r in range(4)]


def test_seven_by_seven_to_one_number() -> None:
    x = torch.arange(1.0, 50).reshape(1, 1, 7, 7)
    assert everypool.global_avg_pool(x).tolist() == [[sum(range(1, 50)) / 49]] == [[25.0]]
    assert everypool.GlobalAvgPool()(x).shape == (1, 1)
    assert everypool.GlobalAvgPool(keepdim=True)(x).shape == (1, 1, 1, 1)
    deep = torch.randn(2, 5, 7, 7)
    torch.testing.assert_close(everypool.global_avg_pool(deep), deep.double().mean((2, 3)).float(), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("levels", [(1, 2, 4), (1, 2, 3, 4)])
def test_pyramid_from_one_by_one_to_four_by_four(levels: tuple[int, ...]) -> None:
    bins = {
        1: [16],
        2: [6, 8, 14, 16],
        3: [6, 7, 8, 10, 11, 12, 14, 15, 16],  # rows 0-1, 1-2, 2-3
        4: list(range(1, 17)),
    }
    grid = torch.arange(1.0, 17).reshape(1, 1, 4, 4)
    expected = [float(v) for level in levels for v in bins[level]]
    assert everypool.spatial_pyramid_pool(grid, levels).flatten().tolist() == expected
    length = 3 * sum(n * n for n in levels)
    for height, width in ((4, 4), (13, 9), (7, 30)):
        x = torch.randn(1, 3, height, width)
        y = everypool.spatial_pyramid_pool(x, levels)
        assert y.shape == (1, length)
        assert torch.equal(y, torch.cat([F.adaptive_max_pool2d(x, n).flatten(1) for n in levels], 1))


def test_generalized_mean_between_average_and_maximum() -> None:
    values = torch.tensor([[[0.5, 2.0, 3.0, 4.0, 1.5]]], dtype=torch.float64)
    n, largest = values.numel(), values.max().item()
    average = sum(values.flatten().tolist()) / n
    assert everypool.global_gem_pool(values, p=1.0).item() == pytest.approx(average, rel=1e-15)
    assert torch.equal(everypool.global_gem_pool(values, p=1.0), everypool.global_avg_pool(values))
    before = average
    for p in (1.5, 3.0, 10.0, 100.0, 1e4):
        # math.fsum of scaled powers, and the bounds of a power mean
        scaled = math.fsum((v / largest) ** p for v in values.flatten().tolist()) / n
        y = everypool.global_gem_pool(values, p=p).item()
        assert y == pytest.approx(largest * scaled ** (1 / p), rel=1e-13)
        assert before < y <= largest
        assert y >= largest * n ** (-1 / p) * (1 - 1e-15)
        before = y
    assert largest - before < 1e-3


def test_center_pooling_both_ways() -> None:
    rows = [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [9.0, 8.0, 7.0]]
    grid = torch.tensor(rows)[None, None]
    assert everypool.center_pool(grid, 3).item() == 5
    expected = [[max(row[w] for row in rows) + max(rows[h]) for w in range(3)] for h in range(3)]
    assert everypool.cross_max_pool(grid).squeeze().tolist() == expected


def test_corner_sees_both_edges() -> None:
    left_edge, top_edge = torch.zeros(2, 1, 1, 5, 5)
    left_edge[..., 3, 1] = 1
    top_edge[..., 1, 3] = 1
    y = everypool.corner_pool(left_edge, "top_left", other=top_edge).squeeze()
    for h, w in itertools.product(range(5), range(5)):
        assert y[h, w] == left_edge[0, 0, h:, w].max() + top_edge[0, 0, h, w:].max()
    assert (y == 2).nonzero().tolist() == [[1, 1]]


def test_adaptive_feature_pooling_both_ways() -> None:
    scan = torch.randn(1, 2, 12, 9, 10, dtype=torch.float64)
    y = everypool.adaptive_avg_pool(scan, (4, 3, 5))
    torch.testing.assert_close(y, scan.reshape(1, 2, 4, 3, 3, 3, 5, 2).mean((3, 5, 7)))
    maps = [torch.full((1, 1, size, size), value) for size, value in ((32, 2.0), (16, 5.0), (8, 1.0))]
    region = torch.tensor([[0.0, 20, 12, 90, 70]])
    for fuse, expected in (("max", 5.0), ("sum", 8.0)):
        fused = everypool.multi_level_roi_pool(maps, region, 2, (1 / 4, 1 / 8, 1 / 16), fuse)
        torch.testing.assert_close(fused, torch.full((1, 1, 2, 2), expected))


def test_strips_of_a_road() -> None:
    picture = torch.zeros(1, 1, 4, 8)
    picture[..., 2, :] = 1
    rows, columns = everypool.strip_pool(picture)
    assert rows.squeeze().tolist() == [0, 0, 1, 0]
    assert columns.squeeze().tolist() == [0.25] * 8


@pytest.mark.parametrize("start", range(4, 8))
def test_small_shift_of_a_sound(start: int) -> None:
    """Within one window nothing changes; over its border it does."""
    sound = torch.zeros(1, 1, 16)
    sound[..., start : start + 2] = torch.tensor([1.0, 3.0])
    assert everypool.max_pool(sound, 4).flatten().tolist() == ([0, 3, 0, 0] if start < 7 else [0, 1, 3, 0])
