"""Regions of interest equal a loop over boxes, bins and samples, on one level and on several."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from cases import numbers

import everypool
from everypool import Boxes, MultiLevelRoIPool, multi_level_roi_pool, pool, roi_align, roi_pool

SPATIAL = {1: (14,), 2: (9, 12), 3: (5, 7, 6)}


def boxes(nd: int) -> np.ndarray:
    """Inside, over the border, wholly outside, smaller than a cell, without extent; in x, y, z order."""
    corners = [(1.3, 2.2, 0.7, 9.1, 15.7, 8.4), (-3, -4, -2, 5, 6.5, 4), (18, 12, 3, 23.5, 17.9, 9), (1, 0, 2, 1.1, 0.1, 2.4)]
    corners += [(100, 100, 100, 120, 130, 110), (2.5, 3.5, 1.5, 2.5, 3.5, 1.5), (0, 0, 0, 28, 24, 16)]
    rows = [[i % 2, *c[:nd], *(max(a, b) for a, b in zip(c[:nd], c[3 : 3 + nd], strict=True))] for i, c in enumerate(corners)]
    return np.array(rows, dtype=float)


def sample(plane: np.ndarray, place: list[float], exists: np.ndarray) -> float | None:
    """Linear interpolation between the cells around a place, as the published kernel has it; None where no cell counts."""
    if any(v < -1 or v > n for v, n in zip(place, plane.shape, strict=True)):
        return 0.0
    pairs = []
    for v, n in zip(place, plane.shape, strict=True):
        v = min(max(v, 0.0), n - 1.0)
        low = int(v)
        pairs.append(((low, 1 - (v - low)), (min(low + 1, n - 1), v - low)))
    total = weight = 0.0
    for cells in itertools.product(*pairs):
        where = tuple(cell for cell, _ in cells)
        share = math.prod(w for _, w in cells)
        if exists[where] and share:
            total, weight = total + share * plane[where], weight + share
    return total / weight if weight else None


def align(x: np.ndarray, rois: np.ndarray, out: tuple[int, ...], scale: float, ratio: int, aligned: bool, fold: Any,
          mask: np.ndarray | None = None) -> np.ndarray:  # fmt: skip
    nd = x.ndim - 2
    y = np.zeros((len(rois), x.shape[1], *out))
    for r, row in enumerate(rois):
        low = row[1 : 1 + nd][::-1] * scale - 0.5 * aligned
        high = row[1 + nd :][::-1] * scale - 0.5 * aligned
        length = high - low if aligned else np.maximum(high - low, 1)
        for channel in range(x.shape[1]):
            plane = x[int(row[0]), channel]
            exists = np.ones(plane.shape, bool) if mask is None else mask[int(row[0]), channel % mask.shape[1]]
            for cell in np.ndindex(*out):
                size = length / np.array(out)
                number = [ratio if ratio > 0 else math.ceil(s) for s in size]  # none in a box without extent, as published
                places = itertools.product(*[
                    [low[a] + cell[a] * size[a] + (i + 0.5) * size[a] / number[a] for i in range(number[a])] for a in range(nd)
                ])  # fmt: skip
                values = [value for place in places if (value := sample(plane, list(place), exists)) is not None]
                y[(r, channel, *cell)] = fold(values) if values else 0.0
    return y


def rounded(x: np.ndarray, rois: np.ndarray, out: tuple[int, ...], scale: float, fold: Any) -> np.ndarray:
    nd = x.ndim - 2
    half_away = np.vectorize(lambda v: math.copysign(math.floor(abs(v) + 0.5), v))
    y = np.zeros((len(rois), x.shape[1], *out))
    for r, row in enumerate(rois):
        low, high = half_away(row[1 : 1 + nd][::-1] * scale), half_away(row[1 + nd :][::-1] * scale)
        size = np.maximum(high - low + 1, 1) / np.array(out)
        for cell in np.ndindex(*out):
            cut = []
            for a in range(nd):
                first = math.floor(cell[a] * size[a]) + low[a]
                after = math.ceil((cell[a] + 1) * size[a]) + low[a]
                cut.append(slice(int(min(max(first, 0), x.shape[2 + a])), int(min(max(after, 0), x.shape[2 + a]))))
            for channel in range(x.shape[1]):
                values = x[(int(row[0]), channel, *cut)].ravel()
                y[(r, channel, *cell)] = fold(values) if values.size else 0.0
    return y


def log_mean_exp(values: Any) -> float:
    return float(np.log(np.mean(np.exp(values))))


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("ratio", [2, 0])
@pytest.mark.parametrize("nd", [1, 2, 3])
def test_align(nd: int, ratio: int, aligned: bool) -> None:
    x, rois = numbers((2, 2, *SPATIAL[nd])), boxes(nd)
    out = (3, 2, 2)[:nd]
    for reducer, fold in (("mean", np.mean), ("max", np.max), ("logsumexp", log_mean_exp)):
        expected = align(x, rois, out, 0.5, ratio, aligned, fold)
        y = roi_align(torch.from_numpy(x), torch.from_numpy(rois), out, 0.5, ratio, aligned, reducer=reducer)
        np.testing.assert_allclose(y.numpy(), expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("nd", [1, 2, 3])
def test_rounded(nd: int) -> None:
    x, rois = numbers((2, 2, *SPATIAL[nd])), boxes(nd)
    out = (3, 2, 2)[:nd]
    for reducer, fold in (("max", np.max), ("mean", np.mean), ("logsumexp", log_mean_exp)):
        expected = rounded(x, rois, out, 0.5, fold)
        y = roi_pool(torch.from_numpy(x), torch.from_numpy(rois), out, 0.5, reducer=reducer)
        np.testing.assert_allclose(y.numpy(), expected, rtol=1e-12, atol=1e-13)
    whole = torch.from_numpy(numbers((2, 2, *SPATIAL[nd]))).mul(100).to(torch.int32)
    expected = rounded(whole.double().numpy(), rois, out, 0.5, np.max)
    assert (roi_pool(whole, torch.from_numpy(rois), out, 0.5).numpy() == expected).all()


def test_masks_exclude_cells() -> None:
    """Samples interpolate between the cells that count, and NaN in the others is never seen."""
    x = numbers((2, 2, 9, 12))
    mask = np.random.default_rng(0).random((2, 1, 9, 12)) < 0.7
    for ratio in (2, 0):
        expected = align(x, boxes(2), (3, 2), 0.5, ratio, False, np.mean, mask)
        leaf = torch.from_numpy(x).requires_grad_()
        hidden = leaf.masked_fill(~torch.from_numpy(mask), float("nan"))
        y = roi_align(hidden, torch.from_numpy(boxes(2)), (3, 2), 0.5, ratio, mask=torch.from_numpy(mask))
        np.testing.assert_allclose(y.detach().numpy(), expected, rtol=1e-11, atol=1e-12)
        (grad,) = torch.autograd.grad(y.sum(), leaf)
        assert bool(grad.isfinite().all())


@pytest.mark.parametrize("function", [roi_align, roi_pool])
@pytest.mark.parametrize("nd", [1, 2, 3])
def test_sizes_equal_each_sample_alone(nd: int, function: Any) -> None:
    sizes = [list(SPATIAL[nd]), [n // 2 for n in SPATIAL[nd]]]
    x = torch.from_numpy(numbers((2, 2, *SPATIAL[nd]))).requires_grad_()
    rois = torch.from_numpy(boxes(nd))
    y = function(x, rois, 2, 0.5, sizes=sizes)
    (grad,) = torch.autograd.grad(y.sin().sum(), x)
    for i, size in enumerate(sizes):
        cut = (slice(i, i + 1), slice(None), *(slice(n) for n in size))
        own = rois[rois[:, 0] == i].clone()
        own[:, 0] = 0
        alone = x[cut].detach().requires_grad_()
        part = function(alone, own, 2, 0.5)
        torch.testing.assert_close(y[rois[:, 0] == i], part, rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(grad[cut], torch.autograd.grad(part.sin().sum(), alone)[0], rtol=1e-11, atol=1e-12)
        outside = grad[i : i + 1].clone()
        outside[(..., *(slice(n) for n in size))] = 0
        assert not outside.any()


@pytest.mark.parametrize("nd", [1, 2, 3])
def test_several_levels(nd: int) -> None:
    maps = [numbers((2, 2, *SPATIAL[nd])), numbers((2, 2, *[n // 2 for n in SPATIAL[nd]]), 1)]
    rois = boxes(nd)
    levels = np.stack([align(x, rois, (2,) * nd, scale, 2, False, np.mean) for x, scale in zip(maps, (0.5, 0.25), strict=True)])
    tensors = [torch.from_numpy(x) for x in maps]
    for fuse, expected in ((None, levels), ("max", levels.max(0)), ("sum", levels.sum(0))):
        y = multi_level_roi_pool(tensors, torch.from_numpy(rois), 2, (0.5, 0.25), fuse)
        np.testing.assert_allclose(y.numpy(), expected, rtol=1e-11, atol=1e-12)
        layer = MultiLevelRoIPool(2, (0.5, 0.25), fuse)
        assert torch.equal(layer(tensors, torch.from_numpy(rois)), y)


def test_several_levels_of_different_sizes() -> None:
    """Each level has its own mask and sizes; every sample is as if alone."""
    maps = [
        torch.from_numpy(numbers((2, 2, 9, 12))).requires_grad_(),
        torch.from_numpy(numbers((2, 2, 5, 6), 1)).requires_grad_(),
    ]
    sizes = [[[9, 12], [6, 7]], [[5, 6], [3, 4]]]
    rois = torch.from_numpy(boxes(2))
    y = multi_level_roi_pool(maps, rois, 2, (0.5, 0.25), sizes=sizes)
    grads = torch.autograd.grad(y.sin().sum(), maps)
    for i in range(2):
        cuts = [(slice(i, i + 1), slice(None), slice(own[i][0]), slice(own[i][1])) for own in sizes]
        alone = [x[cut].detach().requires_grad_() for x, cut in zip(maps, cuts, strict=True)]
        own = rois[rois[:, 0] == i].clone()
        own[:, 0] = 0
        part = multi_level_roi_pool(alone, own, 2, (0.5, 0.25))
        torch.testing.assert_close(y[rois[:, 0] == i], part, rtol=1e-12, atol=1e-13)
        for grad, cut, wanted in zip(grads, cuts, torch.autograd.grad(part.sin().sum(), alone), strict=True):
            torch.testing.assert_close(grad[cut], wanted, rtol=1e-11, atol=1e-12)
    masks = []
    for x, own in zip(maps, sizes, strict=True):
        mask = torch.zeros(2, 1, *x.shape[2:], dtype=torch.bool)
        for one, (height, width) in zip(mask, own, strict=True):
            one[:, :height, :width] = True
        masks.append(mask)
    inside = torch.tensor([[0, 1.0, 1.0, 6.0, 7.0], [1, 1.0, 2.0, 8.0, 6.0]], dtype=torch.float64)
    by_mask = multi_level_roi_pool(maps, inside, 2, (0.5, 0.25), mask=masks)
    torch.testing.assert_close(by_mask, multi_level_roi_pool(maps, inside, 2, (0.5, 0.25), sizes=sizes))
    with pytest.raises(TypeError, match="`sizes` must be a list of 2, one per level"):
        multi_level_roi_pool(maps, rois, 2, (0.5, 0.25), sizes=sizes[:1])


def test_lists_of_boxes_and_none_at_all() -> None:
    x, rois = torch.from_numpy(numbers((2, 2, 9, 12))), torch.from_numpy(boxes(2))
    split = [rois[rois[:, 0] == i, 1:] for i in range(2)]
    together = torch.cat([rois[rois[:, 0] == i] for i in range(2)])
    assert torch.equal(roi_align(x, split, 2, 0.5), roi_align(x, together, 2, 0.5))
    assert roi_align(x, rois[:0], (2, 3)).shape == (0, 2, 2, 3)
    assert roi_pool(x, [rois[:0, 1:]] * 2, (2, 3)).shape == (0, 2, 2, 3)


def test_derivatives() -> None:
    x = torch.from_numpy(numbers((2, 1, 5, 6))).requires_grad_()
    rois = torch.from_numpy(boxes(2)[:4])
    for call in (
        lambda x: roi_align(x, rois, 2, 0.25),
        lambda x: roi_align(x, rois, 2, 0.25, 2, True, reducer="soft"),
        lambda x: roi_pool(x, rois, 2, 0.25),
        lambda x: roi_pool(x, rois, 2, 0.25, reducer="logsumexp"),
        lambda x: pool([x, x[..., ::2, ::2]], "mean", Boxes(rois, 2, (0.25, 0.125))),
    ):
        assert torch.autograd.gradcheck(call, (x,))
        assert torch.autograd.gradgradcheck(call, (x,), fast_mode=True)


def test_many_boxes_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Boxes are sampled a few at a time when there are many; value and gradient stay the same."""
    x, rois = torch.from_numpy(numbers((2, 2, 9, 12))).requires_grad_(), torch.from_numpy(boxes(2))
    together = roi_align(x, rois, 3, 0.5, 2)
    (grad,) = torch.autograd.grad(together.sin().sum(), x)
    monkeypatch.setattr(everypool.windows.boxes, "CHUNK", 100)
    in_turn = roi_align(x, rois, 3, 0.5, 2)
    torch.testing.assert_close(in_turn, together, rtol=1e-14, atol=0)
    torch.testing.assert_close(torch.autograd.grad(in_turn.sin().sum(), x)[0], grad, rtol=1e-13, atol=1e-14)
