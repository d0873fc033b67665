"""What the windows' own functions and layers add to `pool`: directions, corners, crosses, strips, pyramids, unpooling."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from cases import numbers
from torch import Tensor, nn

import everypool
from everypool import (
    BottomPool,
    BottomRightPool,
    CrossMaxPool,
    DirectionalPool,
    LeftPool,
    RightPool,
    SpatialPyramidPool,
    StripPool,
    TopLeftPool,
    TopPool,
    corner_pool,
    cross_max_pool,
    directional_pool,
    max_unpool,
    spatial_pyramid_pool,
    strip_pool,
)


def running(x: np.ndarray, axis: int, reverse: bool) -> np.ndarray:
    lines = np.flip(x, axis) if reverse else x
    result = np.maximum.accumulate(lines, axis)
    return np.flip(result, axis) if reverse else result


DIRECTIONS = [
    (TopPool, everypool.top_pool, -2, True),
    (BottomPool, everypool.bottom_pool, -2, False),
    (LeftPool, everypool.left_pool, -1, True),
    (RightPool, everypool.right_pool, -1, False),
]


@pytest.mark.parametrize(("layer", "function", "axis", "reverse"), DIRECTIONS)
def test_four_directions(layer: Any, function: Any, axis: int, reverse: bool) -> None:
    x = numbers((2, 3, 5, 7))
    expected = running(x, axis, reverse)
    for y in (function(torch.from_numpy(x)), layer()(torch.from_numpy(x)), layer()(torch.from_numpy(x)[1])[None]):
        np.testing.assert_array_equal(y.numpy(), expected[-len(y) :])
    # the published table: top takes what lies below, left what lies to the right
    if layer is TopPool:
        assert y[0, 0, 0, 0] == x[1, 0, :, 0].max()
    if layer is LeftPool:
        assert y[0, 0, 0, 0] == x[1, 0, 0, :].max()


@pytest.mark.parametrize("nd", [1, 2, 3])
def test_any_direction_of_any_reducer(nd: int) -> None:
    x = numbers((2, 2, *(4, 3, 5)[:nd]))
    for axis, reverse in itertools.product(range(nd), (False, True)):
        for name, partial in (("max", np.max), ("mean", np.mean), ("logsumexp", lambda v: np.log(np.mean(np.exp(v))))):
            expected = np.empty_like(x)
            for place in np.ndindex(*x.shape):
                line = x[(*place[: 2 + axis], slice(place[2 + axis], None) if reverse else slice(place[2 + axis] + 1))]
                expected[place] = partial(line[(slice(None), *place[3 + axis :])])
            for a in (axis, axis - nd):
                y = directional_pool(torch.from_numpy(x), a, reverse, reducer=name)
                np.testing.assert_allclose(y.numpy(), expected, rtol=1e-12)
                layer = DirectionalPool(a, reverse, reducer=name)
                assert torch.equal(layer(torch.from_numpy(x)), y)


def test_corners() -> None:
    x, other = numbers((2, 3, 5, 4)), numbers((2, 3, 5, 4), 1)
    wanted = {
        "top_left": running(x, 2, True) + running(other, 3, True),
        "bottom_right": running(x, 2, False) + running(other, 3, False),
    }
    layers: dict[str, nn.Module] = {"top_left": TopLeftPool(), "bottom_right": BottomRightPool()}
    a, b = torch.from_numpy(x), torch.from_numpy(other)
    for corner, expected in wanted.items():
        np.testing.assert_array_equal(corner_pool(a, corner, other=b).numpy(), expected)
        np.testing.assert_array_equal(layers[corner](a, b).numpy(), expected)
        assert torch.equal(layers[corner](a), corner_pool(a, corner, other=a))


@pytest.mark.parametrize("nd", [1, 2, 3])
def test_cross(nd: int) -> None:
    """The maxima of the lines through every place, added; in the plane one per column and one per row."""
    x = numbers((2, 3, *(4, 5, 3)[:nd]))
    expected = sum(np.max(x, axis=2 + axis, keepdims=True) for axis in range(nd)) + np.zeros_like(x)
    for y in (cross_max_pool(torch.from_numpy(x)), CrossMaxPool()(torch.from_numpy(x))):
        np.testing.assert_allclose(y.numpy(), expected, rtol=1e-15)


def test_cross_of_two_maps_and_its_ties() -> None:
    x, other = numbers((2, 3, 5, 4)), numbers((2, 3, 5, 4), 1)
    expected = x.max(2, keepdims=True) + other.max(3, keepdims=True)
    y = cross_max_pool(torch.from_numpy(x), other=torch.from_numpy(other))
    np.testing.assert_array_equal(y.numpy(), expected)
    # the published kernels run through the whole line and keep the last of equal values
    leaf = torch.ones(1, 1, 2, 3, requires_grad=True)
    cross_max_pool(leaf).sum().backward()
    assert leaf.grad is not None
    assert leaf.grad.flatten().tolist() == [0, 0, 3, 2, 2, 5]


@pytest.mark.parametrize("nd", [1, 2, 3])
def test_strips_keep_one_axis(nd: int) -> None:
    x = numbers((2, 3, *(4, 5, 3)[:nd]))
    for name, fold in (("mean", np.mean), ("max", np.max)):
        for strips in (strip_pool(torch.from_numpy(x), name), StripPool(name)(torch.from_numpy(x))):
            assert len(strips) == nd
            for i, strip in enumerate(strips):
                np.testing.assert_allclose(strip.numpy(), fold(x, axis=-1 - i, keepdims=True), rtol=1e-13)


@pytest.mark.parametrize("bins", ["adaptive", "sppnet", "caffe"])
def test_a_pyramid_is_level_major(bins: str) -> None:
    """Level by level, then channel, then bin: the order of the published layers, whatever the input's size."""
    for spatial in ((13, 13), (7, 9), (9,), (5, 4, 6)):
        x = numbers((2, 3, *spatial))
        levels = (1, 2)
        y = spatial_pyramid_pool(torch.from_numpy(x), levels, bins=bins)
        assert y.shape == (2, 3 * sum(n ** len(spatial) for n in levels))
        np.testing.assert_array_equal(y[:, :3].numpy(), x.max(axis=tuple(range(2, x.ndim))))
        half = tuple(slice(0, n // 2) for n in spatial)  # what the first bin of the second level surely holds
        assert (y[:, 3].numpy() >= x[:, 0][(slice(None), *half)].reshape(2, -1).max(1)).all()
        layer = SpatialPyramidPool(levels, "max", bins=bins)
        assert torch.equal(layer(torch.from_numpy(x)), y)


def test_the_published_pyramid_of_13() -> None:
    """He et al. table 2: a 13x13 map gives windows of 13, 7 and 5 at steps of 13, 6 and 4 for levels 1, 2 and 3."""
    x = torch.from_numpy(numbers((1, 2, 13, 13)))
    y = spatial_pyramid_pool(x, (1, 2, 3), bins="sppnet")
    windows = ((13, 13), (7, 6), (5, 4))
    expected = [nn.functional.max_pool2d(x, k, s).flatten() for k, s in windows]
    assert torch.equal(y[0], torch.cat(expected))


@pytest.mark.parametrize("nd", [1, 2, 3])
def test_unpooling_goes_back(nd: int) -> None:
    """What torch.nn gives where no position is named twice; pooling what was unpooled gives it back."""
    torch.use_deterministic_algorithms(False)  # torch's own unpooling refuses to be asked
    names = {1: nn.MaxUnpool1d, 2: nn.MaxUnpool2d, 3: nn.MaxUnpool3d}
    x = torch.from_numpy(numbers((2, 3, *(7, 6, 4)[:nd]), low=0.5)).requires_grad_()
    pooled, indices = everypool.max_pool(x, 2, return_indices=True)
    for size in (None, x.shape[2:], x.shape):
        y = max_unpool(pooled, indices, 2, output_size=size)
        expected = names[nd](2)(pooled, indices, output_size=None if size is None else list(x.shape[2:]))
        assert torch.equal(y, expected)
        layer = getattr(everypool, f"MaxUnpool{nd}d")(2)
        assert torch.equal(layer(pooled, indices, size), expected)
        assert torch.equal(layer(pooled[0], indices[0], None if size is None else x.shape[2:]), expected[0])
        assert torch.equal(everypool.max_pool(max_unpool(pooled, indices, 2), 2), pooled)
    (grad,) = torch.autograd.grad(max_unpool(pooled, indices, 2).square().sum(), pooled)
    assert torch.equal(grad, 2 * pooled)


def test_unpooling_of_overlapping_windows() -> None:
    """Two values at one place: the last one stays and has the gradient, or they are added."""
    x, indices = torch.tensor([[[1.0, 2.0, 5.0]]], requires_grad=True), torch.tensor([[[1, 1, -1]]])
    for overlap, y, grad in (("last", [0.0, 2.0, 0.0, 0.0], [0.0, 1.0, 0.0]), ("add", [0.0, 3.0, 0.0, 0.0], [1.0, 1.0, 0.0])):
        result = max_unpool(x, indices, 2, 1, output_size=(4,), overlap=overlap)
        assert result.flatten().tolist() == y
        assert torch.autograd.grad(result.sum(), x)[0].flatten().tolist() == grad


RAGGED = [[6, 5], [3, 5], [1, 2]]
NAMED: list[tuple[str, Any]] = [
    ("directional", lambda x, **options: directional_pool(x, 0, True, **options)),
    ("soft directional", lambda x, **options: directional_pool(x, 1, reducer="soft", **options)),
    ("even", lambda x, **options: directional_pool(x, 1, ties="even", **options)),
    ("top", everypool.top_pool),
    ("bottom", everypool.bottom_pool),
    ("left", everypool.left_pool),
    ("right", everypool.right_pool),
    ("corner", corner_pool),
    ("other corner", lambda x, **options: corner_pool(x, "bottom_right", other=x.sin(), **options)),
    ("cross", cross_max_pool),
    ("strips", lambda x, **options: strip_pool(x, "gem:signed=abs", **options)),
    ("pyramid", spatial_pyramid_pool),
    ("soft pyramid", lambda x, **options: spatial_pyramid_pool(x, (1, 3), "soft", **options)),
]


@pytest.mark.parametrize("function", [f for _, f in NAMED], ids=[name for name, _ in NAMED])
def test_ragged_batches(function: Any) -> None:
    """`sizes`, and the same as a mask: each sample as if alone, forward and gradient."""
    x = torch.from_numpy(numbers((3, 2, 6, 5))).requires_grad_()
    inside = torch.zeros(3, 1, 6, 5, dtype=torch.bool)
    for own, (height, width) in zip(inside, RAGGED, strict=True):
        own[:, :height, :width] = True
    for options in ({"sizes": RAGGED}, {"mask": inside}):
        result = function(x.masked_fill(~inside, float("nan")), **options)
        result = result if isinstance(result, tuple) else (result,)
        (grads,) = torch.autograd.grad(sum(y.sin().sum() for y in result), x)
        for i, (height, width) in enumerate(RAGGED):
            alone = x[i : i + 1, :, :height, :width].detach().requires_grad_()
            if result[0].dim() == 2 and "mask" in options:
                continue  # a mask leaves the bins where they are; only sizes make them the sample's own
            parts = function(alone)
            parts = parts if isinstance(parts, tuple) else (parts,)
            for y, part in zip(result, parts, strict=True):
                own = y[i : i + 1][(..., *(slice(n) for n in part.shape[2:]))]
                torch.testing.assert_close(own, part, rtol=1e-12, atol=1e-13)
            (grad,) = torch.autograd.grad(sum(y.sin().sum() for y in parts), alone)
            torch.testing.assert_close(grads[i : i + 1, :, :height, :width], grad, rtol=1e-11, atol=1e-12)
        assert not grads.masked_fill(inside, 0).any()


@pytest.mark.parametrize("function", [f for _, f in NAMED], ids=[name for name, _ in NAMED])
def test_second_derivatives(function: Any) -> None:
    x = torch.from_numpy(numbers((1, 2, 4, 3), 3)).requires_grad_()

    def all_of(x: Tensor) -> Tensor:
        y = function(x)
        return torch.cat([part.flatten() for part in y]) if isinstance(y, tuple) else y

    assert torch.autograd.gradcheck(all_of, (x,))
    assert torch.autograd.gradgradcheck(all_of, (x,), fast_mode=True)
