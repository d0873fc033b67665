"""What the generated tests run over: every registered reducer with its settings, and windows that have gone wrong elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import oracle
import torch
from torch import Tensor

import everypool
from everypool.pool import Operation, Reducer


@dataclass(frozen=True)
class Row:
    """One reducer with one of its settings."""

    operation: Operation
    settings: dict[str, Any]

    @property
    def id(self) -> str:
        return ",".join([self.operation.name, *(f"{key}={value}" for key, value in self.settings.items())])

    @property
    def by_place(self) -> bool:
        """It picks an element by where it is."""
        return self.operation.name == "center"

    def reducer(self) -> Reducer:
        made = self.operation.reducer
        return made(**self.settings)  # type: ignore[misc]

    def reference(self, values: np.ndarray, exists: np.ndarray, **settings: Any) -> float:
        return self.operation.reference(values, exists, **settings)  # type: ignore[misc]

    def fold(self, x: np.ndarray, layout: oracle.Layout, mask: Any = None, *, own_place: bool = False) -> Any:
        return oracle.fold(x, layout, self.reference, self.settings, mask, by_place=self.by_place, own_place=own_place)


REDUCERS = [op for op in everypool.operations().values() if op.kind == "reducer"]
ROWS = [Row(op, dict(settings)) for op in REDUCERS for settings in op.variants]
DEFAULTS = [Row(op, {}) for op in REDUCERS]


def row_id(row: Row) -> str:
    return row.id


def per_axis(value: Any, nd: int) -> list[Any]:
    return list(value) if isinstance(value, tuple) else [value] * nd


@dataclass(frozen=True)
class Case:
    """Windows over a map of one size, and the same windows by counting."""

    id: str
    spatial: tuple[int, ...]
    windows: everypool.Windows
    layouts: Callable[[Sequence[int]], list[oracle.Layout]]
    own_place: bool = False

    @property
    def nd(self) -> int:
        return len(self.spatial)

    def join(self, parts: list[np.ndarray]) -> Any:
        """The oracle's layouts in the shape that `pool` gives."""
        if isinstance(self.windows, everypool.Pyramid):
            return np.concatenate([part.reshape(len(part), -1) for part in parts], axis=1)
        if isinstance(self.windows, everypool.Global) and not self.windows.keepdim:
            return parts[0].reshape(parts[0].shape[:2])
        return tuple(parts) if isinstance(self.windows, everypool.Strips) else parts[0]

    def expected(self, row: Row, x: np.ndarray, mask: np.ndarray | None = None) -> tuple[Any, Any]:
        """(values, which exist) by brute force."""
        folded = [row.fold(x, layout, mask, own_place=self.own_place) for layout in self.layouts(x.shape[2:])]
        return self.join([y for y, _ in folded]), self.join([exists for _, exists in folded])


def case_id(case: Case) -> str:
    return case.id


def sliding(
    spatial: tuple[int, ...], kernel: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1, ceil_mode: bool = False
) -> Case:
    def layouts(sizes: Sequence[int]) -> list[oracle.Layout]:
        rows = zip(sizes, *(per_axis(value, len(sizes)) for value in (kernel, stride, padding, dilation)), strict=True)
        return [[oracle.slide(n, k, s, p, d, ceil_mode) for n, k, s, p, d in rows]]

    name = f"k{kernel}s{stride}p{padding}d{dilation}" + ("ceil" if ceil_mode else "")
    return Case(_named(spatial, name), spatial, everypool.Sliding(kernel, stride, padding, dilation, ceil_mode), layouts)


def adaptive(spatial: tuple[int, ...], out: Any) -> Case:
    def layouts(sizes: Sequence[int]) -> list[oracle.Layout]:
        return [
            [
                oracle.keep(n) if o is None else oracle.adaptive(n, o)
                for n, o in zip(sizes, per_axis(out, len(sizes)), strict=True)
            ]
        ]

    return Case(_named(spatial, f"adaptive{out}"), spatial, everypool.Adaptive(out), layouts)


def whole(spatial: tuple[int, ...], keepdim: bool = False) -> Case:
    return Case(
        _named(spatial, f"global{keepdim}"),
        spatial,
        everypool.Global(keepdim),
        lambda sizes: [[oracle.whole(n) for n in sizes]],
    )


def pyramid(spatial: tuple[int, ...], levels: tuple[int, ...], bins: str = "adaptive") -> Case:
    def layouts(sizes: Sequence[int]) -> list[oracle.Layout]:
        return [[oracle.grid(n, level, bins) for n in sizes] for level in levels]

    return Case(_named(spatial, f"pyramid{levels}{bins}"), spatial, everypool.Pyramid(levels, bins), layouts)


def strips(spatial: tuple[int, ...]) -> Case:
    return Case(_named(spatial, "strips"), spatial, everypool.Strips(), oracle.strips)


def scan(spatial: tuple[int, ...], axis: int, reverse: bool) -> Case:
    def layouts(sizes: Sequence[int]) -> list[oracle.Layout]:
        along = axis % len(sizes)
        return [[oracle.running(n, reverse) if a == along else oracle.keep(n) for a, n in enumerate(sizes)]]

    return Case(
        _named(spatial, f"scan{axis}{'reverse' * reverse}"), spatial, everypool.Scan(axis, reverse), layouts, own_place=True
    )


def _named(spatial: tuple[int, ...], name: str) -> str:
    return f"{'x'.join(map(str, spatial))}-{name}".replace(" ", "").replace("'", "")


SLIDING = [
    sliding((7,), 2),  # floor and ceil differ
    sliding((7,), 2, ceil_mode=True),
    sliding((8,), 3, 2, 1),
    sliding((8,), 3, 2, ceil_mode=True),
    sliding((9,), 5, 1, 2),  # k > s
    sliding((11,), 2, 3),  # k < s
    sliding((11,), 2, 3, 1, ceil_mode=True),
    sliding((4,), 2, 3, 1, ceil_mode=True),  # the last window would start in the right padding
    sliding((9,), 3, 1, 2, 2),
    sliding((13,), 4, 2, ((1, 3),), 2),
    sliding((3,), 4, 1, 6, 4),  # dilation beyond the map: some windows hold nothing
    sliding((10,), 4, 3, "same"),
    sliding((10,), 3, None, "same", 2),
    sliding((10,), 3, 2, "valid"),
    sliding((40,), 17, 1, 8),
    sliding((50,), 17, 5, ((3, 8),), ceil_mode=True),
    sliding((45,), 17, 2, 0, 2),
    sliding((5,), 2, 9),  # stride > n
    sliding((7,), 5, 10**6, 2, ceil_mode=True),
    sliding((1,), 1),
    sliding((1,), 2, 1, 1),
    sliding((2,), 5, 1, 2),  # the window is larger than the map
    sliding((12,), 9, 9, 4, ceil_mode=True),
    sliding((6,), 4, 4),
    sliding((7, 6), (3, 2), (2, 1), (1, 0), (1, 2)),
    sliding((6, 9), 3, 2, 1, ceil_mode=True),
    sliding((5, 5), 2, 2, ceil_mode=True),
    sliding((1, 9), (1, 3)),
    sliding((9, 1), (4, 1), 1, (2, 0)),
    sliding((6, 5), 3, 1, "same"),
    sliding((6, 7), (2, 3), (2, 3), "same"),
    sliding((6, 7), (4, 3), 2, ((0, 2), (1, 0))),
    sliding((19, 8), (17, 5), 1, (8, 2)),
    sliding((20, 18), 17, (2, 20), 3, ceil_mode=True),
    sliding((5, 6), 5, 7, 2, ceil_mode=True),
    sliding((4, 5, 6), (2, 3, 2), (1, 2, 2), (1, 1, 0)),
    sliding((5, 4, 3), 2, 2, ceil_mode=True),
    sliding((4, 4, 4), 3, 1, 1),
    sliding((3, 4, 5), 2, 1, "same", (1, 2, 1)),
    sliding((1, 3, 18), (1, 2, 17), (1, 1, 1), (0, 1, 8)),
    sliding((5, 3, 4), (3, 2, 2), (2, 1, 3), (1, 1, 1), (2, 1, 1), True),
]
OTHERS = [
    adaptive((7,), 3),
    adaptive((3,), 5),
    adaptive((12,), 4),
    adaptive((5, 7), (2, None)),
    adaptive((5, 3), (3, 7)),
    adaptive((1, 6), 4),
    adaptive((4, 5, 3), (3, 1, 2)),
    adaptive((2, 3, 5), 3),
    whole((6,)),
    whole((5, 3), True),
    whole((3, 2, 4)),
    whole((1, 1)),
    pyramid((9,), (1, 2, 4)),
    pyramid((5, 7), (1, 2, 3)),
    pyramid((2, 2), (3, 1)),
    pyramid((4, 3, 2), (1, 2)),
    pyramid((13, 13), (1, 3, 4), "sppnet"),
    pyramid((7, 9), (3, 2), "caffe"),
    pyramid((10,), (4, 3), "caffe"),
    strips((6,)),
    strips((4, 5)),
    strips((3, 2, 4)),
    scan((7,), -1, False),
    scan((7,), 0, True),
    scan((4, 5), -2, True),
    scan((4, 5), 1, False),
    scan((3, 2, 4), 1, False),
    scan((2, 3, 3), 0, True),
]
CASES = SLIDING + OTHERS
CONTRACT = [  # one or two of each kind, for the tests that cost more
    sliding((8,), 3, 2, 1),
    sliding((7,), 2, 2, ceil_mode=True),
    sliding((5, 6), (3, 2), (2, 1), (1, 1), (1, 2)),
    sliding((5, 6), 3, 2, "same"),
    sliding((3, 4, 5), 2, 2, 1, ceil_mode=True),
    adaptive((7,), 3),
    adaptive((5, 3), (2, 4)),
    adaptive((3, 4, 2), 2),
    whole((6,)),
    whole((4, 3), True),
    pyramid((5, 4), (1, 2)),
    strips((4, 5)),
    scan((6,), -1, True),
    scan((4, 3), 0, False),
]


def numbers(shape: Sequence[int], seed: int = 0, low: float = -2.0, high: float = 2.3) -> np.ndarray:
    """Distinct float64 numbers between low and high in random order; not symmetric, so that no sum of odd powers vanishes."""
    count = int(np.prod(shape))
    grid = low + (high - low) * (np.arange(count) + 0.5) / max(count, 1)
    return np.random.default_rng(seed).permutation(grid).reshape(shape)


def pooled(row: Row, case: Case, x: Tensor, **options: Any) -> Any:
    return everypool.pool(x, row.reducer(), case.windows, **options)


def flat(result: Any) -> Tensor:
    """One tensor of everything in a result."""
    return torch.cat([item.reshape(-1) for item in result]) if isinstance(result, tuple) else result.reshape(-1)


def as_tuple(result: Any) -> tuple[Any, ...]:
    return result if isinstance(result, tuple) else (result,)


def steps(actual: Tensor, expected: np.ndarray) -> int:
    """By how many representable numbers `actual` is away from the float64 `expected` rounded to its type, at most."""
    rounded = torch.from_numpy(np.ascontiguousarray(expected, dtype=np.float64)).to(actual.dtype)
    both_nan = actual.isnan() & rounded.isnan()
    width = {2: torch.int16, 4: torch.int32, 8: torch.int64}[actual.element_size()]
    places = []
    for value in (actual, rounded):
        bits = value.contiguous().view(width).to(torch.int64)
        places.append(torch.where(bits < 0, torch.iinfo(width).min - bits, bits))
    away = (places[0] - places[1]).abs().masked_fill(both_nan, 0)
    return int(away.max()) if away.numel() else 0
