"""What a mask or a size excludes, and what no window looks at, might as well be zero: values and gradients to the last bit."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import oracle
import pytest
import torch
from cases import CASES, CONTRACT, ROWS, Case, Row, case_id, flat, numbers, pooled, pyramid, row_id, sliding
from test_generated_masks import RAGGED, learnable
from torch import Tensor

import everypool
from everypool.backends.choose import forced
from everypool.backends.layout import Layout

INF, NAN = float("inf"), float("nan")
GAPS = [  # some elements lie in no window
    sliding((7,), 2),
    sliding((11,), 2, 3),
    sliding((13,), 4, 2, ((1, 3),), 2),
    sliding((7,), 2, 3, 0, 2),
    sliding((5,), 2, 9),
    sliding((40,), 17, 20),
    sliding((9,), 2, 4, 1, 2, ceil_mode=True),
    sliding((8, 7), (2, 3), (3, 4)),
    sliding((5, 6), 2, (3, 2), 0, (2, 1)),
    sliding((5, 4, 6), 2, (3, 2, 5)),
    pyramid((8,), (3,), "sppnet"),
]
LEARNED = [row for row in ROWS if learnable(row)]


def in_windows(case: Case, spatial: tuple[int, ...]) -> Tensor:
    """True for the elements of a map that lie in a window, by counting."""
    found = np.zeros(spatial, dtype=bool)
    for layout in case.layouts(spatial):
        lines = [np.isin(np.arange(n), [j for taps in axis for j in taps]) for axis, n in zip(layout, spatial, strict=True)]
        found |= functools.reduce(np.logical_and.outer, lines)
    return torch.from_numpy(found)


def excluded(case: Case) -> tuple[Tensor, dict[str, Any], Tensor]:
    shape = (3, 2, *case.spatial)
    mask = torch.from_numpy(np.random.default_rng(len(case.id)).random((3, 1 + len(case.id) % 2, *case.spatial)) < 0.6)
    mask[1] = False
    return torch.from_numpy(numbers(shape)), {"mask": mask}, mask.expand(shape)


def beyond(case: Case, sizes: list[list[int]]) -> tuple[Tensor, dict[str, Any], Tensor]:
    """Beyond each sample, and in it between and behind its own windows."""
    inside = torch.zeros((len(sizes), 2, *case.spatial), dtype=torch.bool)
    for own, size in zip(inside, sizes, strict=True):
        own[(slice(None), *map(slice, size))] = in_windows(case, tuple(size))
    return torch.from_numpy(numbers(tuple(inside.shape))), {"sizes": sizes}, inside


def between(case: Case) -> tuple[Tensor, dict[str, Any], Tensor]:
    x = torch.from_numpy(numbers((2, 2, *case.spatial)))
    inside = in_windows(case, case.spatial)
    assert not inside.all()
    return x, {}, inside.expand(x.shape)


def around_boxes() -> Iterator[tuple[Case, Tensor, dict[str, Any], Tensor]]:
    boxes = torch.tensor([[0.0, 1.0, 1.0, 4.0, 3.0], [1.0, 2.0, 0.0, 4.0, 4.0]], dtype=torch.float64)
    for sampling in ("align", "pool"):
        case = Case(f"boxes-{sampling}", (8, 9), everypool.Boxes(boxes, 2, sampling=sampling), lambda sizes: [])
        x = torch.from_numpy(numbers((2, 2, 8, 9)))
        inside = torch.zeros(x.shape, dtype=torch.bool)
        inside[..., :6, :6] = True
        yield case, x, {}, inside
        mask = torch.from_numpy(np.random.default_rng(0).random((2, 1, 8, 9)) < 0.6)
        yield case, x, {"mask": mask}, inside & mask
        smaller = inside.clone()
        smaller[0, :, 3:], smaller[..., 4:] = False, False
        yield case, x, {"sizes": [[3, 4], [8, 4]]}, smaller


KINDS: dict[str, Callable[[], list[tuple[Case, Tensor, dict[str, Any], Tensor]]]] = {
    "mask": lambda: [(case, *excluded(case)) for case in CONTRACT],
    "sizes": lambda: [(case, *beyond(case, sizes)) for case, sizes in RAGGED],
    "gaps": lambda: [(case, *between(case)) for case in GAPS],
    "boxes": lambda: list(around_boxes()),
}


def derivatives(row: Row, case: Case, x: Tensor, options: dict[str, Any]) -> list[Tensor]:
    """The result, its gradient, the same with a graph of its own, and a gradient of that, by autograd."""
    leaf = x.clone().requires_grad_()
    y = flat(pooled(row, case, leaf, **options))
    (plain,) = torch.autograd.grad(y, leaf, waves(y), retain_graph=True)
    (grad,) = torch.autograd.grad(y, leaf, waves(y), create_graph=True)
    (again,) = torch.autograd.grad(grad, leaf, waves(grad), allow_unused=True) if grad.requires_grad else (None,)
    return [y.detach(), plain, grad.detach(), torch.zeros_like(x) if again is None else again]


def transforms(row: Row, case: Case, x: Tensor, options: dict[str, Any]) -> list[Tensor]:
    """The same by torch.func."""

    def weighted(x: Tensor) -> Tensor:
        y = flat(pooled(row, case, x, **options))
        return (y * waves(y)).sum()

    grad = torch.func.grad(weighted)
    return [flat(pooled(row, case, x, **options)), grad(x), torch.func.grad(lambda x: (grad(x) * waves(x)).sum())(x)]


def waves(like: Tensor) -> Tensor:
    return torch.arange(1.0, 1 + like.numel(), dtype=like.dtype, device=like.device).reshape(like.shape).sin()


@contextmanager
def way(name: str) -> Iterator[Callable[..., list[Tensor]]]:
    with nullcontext() if name.startswith("chosen") else forced("eager"):
        yield transforms if name == "transforms" else derivatives


@pytest.mark.parametrize("name", ["chosen", "chosen float32", "definition", "transforms"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("row", ROWS, ids=row_id)
def test_what_does_not_count_might_be_anything(row: Row, kind: str, name: str) -> None:
    """NaN and infinities there change no bit, and get no gradient: 0 times what lies outside is 0."""
    wrong = []
    # next to NaN, loops may compute what a window holds in a wider type
    agree = functools.partial(torch.allclose, rtol=1e-5, atol=1e-6) if "chosen" in name and kind == "gaps" else torch.equal
    with way(name) as derive:
        for case, given, options, inside in KINDS[kind]()[:: 2 if name == "transforms" else 1]:
            x = given.float() if "float32" in name else given
            expected = derive(row, case, x.masked_fill(~inside, 0.0), options)
            for rest in (torch.full_like(x, NAN), torch.where(waves(x) > 0, INF, -INF)):
                found = derive(row, case, torch.where(inside, x, rest), options)
                same = [agree(y, wanted) for y, wanted in zip(found, expected, strict=True)]
                same += [not bool(grad.masked_fill(inside, 0).any()) for grad in found[1:]]
                if not all(same):
                    wrong.append((case.id, float(rest.flatten()[0]), same))
    assert not wrong


@pytest.mark.parametrize("name", ["chosen", "definition"])
@pytest.mark.parametrize("row", LEARNED, ids=row_id)
def test_parameters_do_not_see_it(row: Row, name: str) -> None:
    """The slopes of what is learned are those of what counts alone."""
    for kind in KINDS.values():
        for case, x, options, inside in kind()[::2]:
            grads = []
            for rest in (0.0, NAN, INF):
                settings = learnable(row)
                with way(name):
                    y = flat(
                        pooled(Row(row.operation, {**row.settings, **settings}), case, x.masked_fill(~inside, rest), **options)
                    )
                    grads.append(torch.autograd.grad(y, list(settings.values()), waves(y)))
            assert all(map(torch.equal, grads[1], grads[0])), case.id
            assert all(map(torch.equal, grads[2], grads[0])), case.id


@pytest.mark.parametrize("case", [*CASES, *GAPS], ids=case_id)
def test_elements_in_windows(case: Case) -> None:
    """Which elements lie in a window, in closed form and by counting."""
    found = torch.zeros(case.spatial, dtype=torch.bool)
    for layout in case.windows.layouts(case.spatial, None):
        found |= product_of_axes(layout)[0]
    assert torch.equal(found, in_windows(case, case.spatial))


@pytest.mark.parametrize(("case", "sizes"), RAGGED, ids=[case.id for case, _ in RAGGED])
def test_elements_in_windows_of_each_sample(case: Case, sizes: list[list[int]]) -> None:
    found = torch.zeros((len(sizes), *case.spatial), dtype=torch.bool)
    for layout in case.windows.layouts(case.spatial, torch.tensor(sizes)):
        found |= product_of_axes(layout)
    for own, size in zip(found, sizes, strict=True):
        cut = tuple(map(slice, size))
        assert torch.equal(own[cut], in_windows(case, tuple(size)))


def product_of_axes(layout: Layout) -> Tensor:
    """(1 or N, *spatial) of what `Axis.seen` says along each axis."""
    result = torch.ones((1, *layout.spatial), dtype=torch.bool)
    for axis, along in enumerate(layout.axes):
        seen = along.seen(torch.device("cpu"), None if layout.out_sizes is None else layout.out_sizes[:, axis])
        if seen is not None:
            result = result & seen.reshape(-1, *[along.n if a == axis else 1 for a in range(len(layout.axes))])
    return result


def test_strides_and_dilations_of_all_sorts() -> None:
    """Windows that share elements, that do not, and that leave some out."""
    cpu = torch.device("cpu")
    for n in range(1, 14):
        for kernel in range(1, 5):
            for stride in range(1, 8):
                for dilation in range(1, 5):
                    for left in range(min(n, (kernel * dilation - dilation + 1) // 2 + 1)):
                        if n + 2 * left < dilation * (kernel - 1) + 1:
                            continue
                        windows = everypool.Sliding(kernel, stride, left, dilation)
                        (axis,) = windows.layouts((n,), None)[0].axes
                        seen = axis.seen(cpu, None)
                        counted = {j for taps in oracle.slide(n, kernel, stride, left, dilation) for j in taps}
                        expected = [j in counted for j in range(n)]
                        assert ([True] * n if seen is None else seen[0].tolist()) == expected
