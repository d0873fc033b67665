"""What is known of the tensors in a running model: which of their axes are places, and what becomes of a statistic.

A mean over places is a pooling, unless all that becomes of it is that the map it was taken of is centered or scaled by it. So
normalization is told from a head by what it does, whatever the class is called.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from everypool.surgery.rules.elements import pointwise
from everypool.surgery.rules.table import HARMLESS

__all__ = ["Flow", "Uses", "find_tensors"]

CONVOLUTIONS = {f"conv{kind}{nd}d": nd for nd in (1, 2, 3) for kind in ("", "_transpose")}
MOVES = {"permute", "transpose", "swapaxes", "swapdims", "movedim", "moveaxis", "t", ".T", ".mT"}
VIEWS = {"flatten", "reshape", "view", "unflatten", "squeeze", "unsqueeze", "view_as", "reshape_as"}
COPIES = {"contiguous", "clone", "detach", "to", "type", "type_as", "float", "half", "double", "bfloat16", "cpu", "cuda",
          "expand", "expand_as", "getitem"}  # fmt: skip
LIKE = {"expand_as", "view_as", "reshape_as", "type_as"}  # only the first tensor's values count
PRODUCTS = {"matmul", "bmm", "baddbmm", "einsum", "scaled_dot_product_attention"}  # their axes are not followed
CENTERS = {"sub", "rsub", "subtract"}
SCALES = {"div", "truediv", "divide", "true_divide"}
INVERSES = {"rsqrt", "reciprocal", "rdiv", "rtruediv"}
MOMENTS = {  # what a statistic goes through before the map is normalized by it
    *(CENTERS | SCALES | INVERSES),
    *("add", "radd", "mul", "rmul", "multiply", "pow", "square", "sqrt", "neg", "negative", "clamp", "clamp_min", "clip"),
    *("maximum", "mean", "sum", "var", "std"),
}


@dataclass(eq=False)
class Uses:
    """What becomes of one statistic of a map."""

    normalizes: bool = False
    goes_on: bool = False  # into a layer, or into what the model gives

    @property
    def is_pooled(self) -> bool:
        """Whether it is more than a means to normalize."""
        return self.goes_on or not self.normalizes


@dataclass(frozen=True)
class Trail:
    """What the elements of a tensor come from: of maps one by one, or of statistics of these maps alone; of constants."""

    maps: frozenset[int] = frozenset()
    statistics: tuple[Uses, ...] = ()
    is_inverse: bool = False


class Flow:
    """What is known of the tensors that a model makes.

    Args:
        constants: its parameters and buffers, which are no maps.
        nd: spatial axes of the maps.
    """

    def __init__(self, constants: Iterator[Tensor], nd: int) -> None:
        self.nd = nd
        self.number = 0
        self.layouts: Any = WeakTensorKeyDictionary()  # a letter for each axis: n, c, s for places, ? for a mixture
        self.trails: Any = WeakTensorKeyDictionary()
        for x in constants:
            self.trails[x] = Trail()

    def finish(self, output: Any) -> None:
        """Take note of what the model gives: statistics among it are no means to an end."""
        for x in find_tensors(output):
            self.spend(self.trail_of(x))

    def spend(self, trail: Trail) -> None:
        for uses in trail.statistics:
            uses.goes_on = True

    def trail_of(self, x: Tensor) -> Trail:
        """Where a tensor comes from; one that nothing is known of is a map of its own."""
        if x.dim() == 0:
            return Trail()
        if x not in self.trails:
            self.number += 1
            self.trails[x] = Trail(frozenset([self.number]))
        trail: Trail = self.trails[x]
        return trail

    def is_constant(self, x: Tensor) -> bool:
        return self.trail_of(x) == Trail()

    def layout_of(self, x: Tensor) -> str | None:
        """What the axes are, as far as that is known; maps are (N, C, *spatial) unless they were moved."""
        layout: str | None = self.layouts.get(x)
        if layout is None and x.dim() == self.nd + 2 > 3:
            return "nc" + "s" * self.nd
        return layout

    def follow(self, name: str, func: Any, args: Any, kwargs: Mapping[str, Any], output: Any) -> None:
        """Take note of what a function has made of its tensors."""
        made = [y for y in find_tensors(output) if y.dim() > 0]
        if not made or name in HARMLESS:
            return
        base = stem(name)
        given = list(find_tensors((args, kwargs)))
        trail = self.carried(base, given, args)
        for y in made:
            layout = self.arranged(base, func, args, kwargs, given, y)
            self.layouts.pop(y, None)
            self.trails.pop(y, None)
            if layout is not None:
                self.layouts[y] = layout
            if trail is not None:
                self.trails[y] = trail

    def reduce(self, x: Tensor, axes: Sequence[int], keepdim: bool, output: Any) -> Uses:
        """Take note of a statistic of a map, taken over those of its axes."""
        trail, layout, uses = self.trail_of(x), self.layout_of(x), Uses()
        for y in find_tensors(output):
            self.trails[y] = Trail(trail.maps, (*trail.statistics, uses))
            if layout is not None:
                self.layouts[y] = layout if keepdim else "".join(letter for i, letter in enumerate(layout) if i not in axes)
        return uses

    # ---- statistics ------------------------------------------------------------------------------------------------------

    def carried(self, name: str, given: Sequence[Tensor], args: Any) -> Trail | None:
        """The trail of what a function has made of these tensors; None where something new begins."""
        trails = [trail for trail in map(self.trail_of, given[:1] if name in LIKE else given) if trail != Trail()]
        if not trails:
            return Trail()
        moving = name in COPIES or name in MOVES or name in VIEWS
        statistics = tuple(dict.fromkeys(uses for trail in trails for uses in trail.statistics))
        maps = {trail.maps for trail in trails}
        if not statistics:
            return trails[0] if len(maps) == 1 and (moving or pointwise(name)) else None
        inverse = any(trail.is_inverse for trail in trails)
        whole = [trail for trail in trails if not trail.statistics]
        if not whole and (moving or name in MOMENTS):
            turned = name in INVERSES or (name == "pow" and is_negative(args[1:2]))
            turned = turned or (name in SCALES and len(trails) == 1 and not self.leads(args))
            return Trail(frozenset().union(*maps), statistics, inverse != turned)
        if len({trail.maps for trail in whole}) == 1 and all(whole[0].maps & trail.maps for trail in trails):
            scaled = name in SCALES and bool(trails[-1].statistics)
            if name in CENTERS or scaled or (name in ("mul", "rmul", "multiply") and inverse):
                for uses in statistics:
                    uses.normalizes = True
                return whole[0]
        for trail in trails:
            self.spend(trail)
        return None

    def leads(self, args: Any) -> bool:
        """Whether a map or a statistic is divided, and nothing by it."""
        return bool(args) and isinstance(args[0], Tensor) and not self.is_constant(args[0])

    # ---- axes ------------------------------------------------------------------------------------------------------------

    def arranged(
        self, name: str, func: Any, args: Any, kwargs: Mapping[str, Any], given: Sequence[Tensor], y: Tensor
    ) -> str | None:
        """What the axes of y are, which a function has made."""
        if name in CONVOLUTIONS:
            return "nc" + "s" * CONVOLUTIONS[name] if y.dim() == CONVOLUTIONS[name] + 2 else None
        if name == "embedding":
            return "nsc" if y.dim() == 3 else None
        moving = name in MOVES or name in VIEWS or name == "getitem"
        x = next((x for x in given if moving or (x.dim() == y.dim() and not self.is_constant(x))), None)
        old = None if x is None else self.layout_of(x)
        if x is None or old is None or (name in PRODUCTS and sum(not self.is_constant(x) for x in given) > 1):
            return None
        if name in MOVES:
            named = {key: value for key, value in kwargs.items() if key not in ("input", "self")}
            order = func(torch.empty(tuple(range(2, 2 + x.dim())), device="meta"), *args[1:], **named).shape
            return "".join(old[n - 2] for n in order)
        if name in VIEWS:
            return viewed(old, tuple(x.shape), tuple(y.shape))
        if name == "getitem":
            return indexed(old, args[1], y.dim())
        kept = y.dim() == x.dim() and all(y.shape[i] == x.shape[i] for i, letter in enumerate(old) if letter == "n")
        return old if kept else None


def stem(name: str) -> str:
    """The operation behind a name: "sub" for "sub_", "__sub__" and "__isub__"."""
    if not name.startswith("__"):
        return name.removesuffix("_")
    base = name.strip("_")
    return base[1:] if base[:1] == "i" and base[1:] in MOMENTS else base


def is_negative(values: Sequence[Any]) -> bool:
    return any(isinstance(value, (int, float)) and value < 0 for value in values)


def find_tensors(tree: Any) -> Iterator[Tensor]:
    """The dense tensors in tuples, lists and mappings, in order."""
    if isinstance(tree, Tensor):
        if tree.layout == torch.strided and not tree.is_nested:
            yield tree
    elif isinstance(tree, Mapping):
        yield from find_tensors(tuple(tree.values()))
    elif isinstance(tree, (tuple, list)):
        for item in tree:
            yield from find_tensors(item)


def viewed(old: str, before: tuple[int, ...], after: tuple[int, ...]) -> str | None:
    """The axes of a view: what is split stays what it is, and what is joined of several kinds is a mixture."""
    if 0 in before or math.prod(before) != math.prod(after):
        return None
    letters, i = [""] * len(after), 0
    j = 0
    while i < len(before) or j < len(after):
        if i < len(before) and before[i] == 1 and (j == len(after) or after[j] != 1):
            i += 1  # an axis of one element goes
            continue
        if j < len(after) and after[j] == 1 and (i == len(before) or before[i] != 1):
            letters[j], j = "1", j + 1
            continue
        last, end = i + 1, j + 1
        while math.prod(before[i:last]) != math.prod(after[j:end]):
            if math.prod(before[i:last]) < math.prod(after[j:end]):
                last += 1
            else:
                end += 1
        kinds = {old[axis] for axis in range(i, last) if before[axis] > 1 or last == i + 1} - {"1"}
        kind = kinds.pop() if len(kinds) == 1 else "?" if kinds else "1"
        for axis in range(j, end):
            letters[axis] = kind if kind != "n" or axis == j else "?"  # frames of a video, say
        i, j = last, end
    return "".join(letters)


def indexed(old: str, index: Any, dims: int) -> str | None:
    """The axes that an index leaves."""
    items = list(index) if isinstance(index, tuple) else [index]
    if not all(item is None or item is Ellipsis or isinstance(item, (int, slice)) for item in items):
        return None
    used = sum(item is not None and item is not Ellipsis for item in items)
    if Ellipsis in items:
        at = items.index(Ellipsis)
        items[at : at + 1] = [slice(None)] * (len(old) - used)
    letters, axis = "", 0
    for item in items:
        letters += "1" if item is None else old[axis] if isinstance(item, slice) else ""
        axis += item is not None
    letters += old[axis:]
    return letters if len(letters) == dims else None
