"""Each image's own extent in a padded tensor, and as a number that Python computes with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

__all__ = ["WAY_OUT", "Extents", "Own", "Rows", "named", "parts", "refused", "shadows", "valueless"]

Rows = tuple[tuple[int, ...], ...]
WAY_OUT = "or whose modules that mix places are named in `alone`"


@dataclass(frozen=True)
class Extents:
    """What of a tensor is an image: its first `sizes[i]` elements along `axes`, for the i-th image along `batch`."""

    sizes: Rows
    axes: tuple[int, ...]
    batch: int = 0

    def column(self, axis: int) -> tuple[int, ...]:
        """Every image's own extent along an axis of the tensor."""
        number = self.axes.index(axis)
        return tuple(row[number] for row in self.sizes)

    def ragged(self, shape: Sequence[int]) -> bool:
        """Whether some image is smaller than the tensor."""
        return any(n < shape[axis] for row in self.sizes for axis, n in zip(self.axes, row, strict=True))

    def moved(self, place: Callable[[int], int]) -> Extents:
        """The same of a tensor whose axes lie elsewhere."""
        return Extents(self.sizes, tuple(map(place, self.axes)), place(self.batch))


class Own(int):
    """The extent of a padded axis, which knows what it is for each image alone; sums and products know it, too.

    Where a comparison is not the same for all images, or what is computed can no longer be followed, `lost` is called.
    """

    own: tuple[int, ...]
    lost: Callable[[str], None]

    def __new__(cls, value: int, own: tuple[int, ...], lost: Callable[[str], None]) -> Own:
        self = super().__new__(cls, value)
        self.own, self.lost = own, lost
        return self

    __hash__ = int.__hash__


def _watched(name: str, followed: bool) -> Callable[..., Any]:
    plain = getattr(int, name)

    def operate(self: Own, *others: Any) -> Any:
        value = plain(int.__add__(self, 0), *others)
        if value is NotImplemented:
            return value
        other = others[0].own if others and isinstance(others[0], Own) else (*others, *[()] * (not others)) * len(self.own)
        own = tuple(plain(mine, *([theirs] if others else [])) for mine, theirs in zip(self.own, other, strict=True))
        if not followed and set(own) != {value}:
            self.lost(f"`{name}` of the size of a map")
        return value if set(own) == {value} or not followed else Own(value, own, self.lost)

    return operate


_FOLLOWED = [*(f"{side}{name}" for side in ("", "r") for name in ("add", "sub", "mul", "floordiv", "mod")), "neg", "pos", "abs"]
_ENDS = ["lt", "le", "gt", "ge", "eq", "ne", "bool", "int", "float", "ceil", "floor", "trunc", "invert", "truediv", "rtruediv",
         *(f"{side}{name}" for side in ("", "r") for name in ("pow", "divmod", "and", "or", "xor", "lshift", "rshift")),
         ]  # fmt: skip
for _name in (*_FOLLOWED, *_ENDS):
    setattr(Own, f"__{_name}__", _watched(f"__{_name}__", _name in _FOLLOWED))


def parts(items: Any) -> Iterator[Any]:
    """What is in arguments, and in lists and tuples among them."""
    for item in items:
        if isinstance(item, (list, tuple)):
            yield from parts(item)
        else:
            yield item


def named(func: Any) -> str:
    """A function's name; that of a property begins with a dot."""
    name = getattr(func, "__name__", str(func))
    return f".{func.__self__.__name__}" if name == "__get__" else name


def refused(rule: str, got: str) -> NotImplementedError:
    """The error for a model that cannot be followed; the rule says the way out."""
    return NotImplementedError(f"`model` must be {rule}, got {got}")


def valueless(items: Any) -> Any:
    """Arguments of which no tensor has values if one has none."""
    tensors = [item for item in parts(items.values() if isinstance(items, dict) else items) if isinstance(item, Tensor)]
    if len({x.device for x in tensors}) < 2 or not any(x.is_meta for x in tensors):
        return items
    return tree_map(lambda item: item.to("meta") if isinstance(item, Tensor) and not item.is_meta else item, items)


def shadows(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers without values, for a run that asks for sizes alone."""
    named = (*module.named_parameters(), *module.named_buffers())
    return {name: torch.empty_like(item, device="meta", requires_grad=False) for name, item in named}
