"""Linear maps of compiled kernels as torch operators, for gradients that stand for several (`is_grads_batched`, vmap).

A kernel takes addresses, which such a tensor does not have. torch calls an operator for each of the gradients instead. A map
is known to its operator by a number, and lives as long as the autograd node that holds it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor

__all__ = ["LinearMap"]

_numbers = itertools.count()
_maps: WeakValueDictionary[int, LinearMap] = WeakValueDictionary()


@dataclass(eq=False)
class LinearMap:
    """A linear map between tuples of tensors, and its transpose."""

    forward: Callable[..., Sequence[Tensor]]
    transpose: Callable[..., Sequence[Tensor]]
    inputs: Sequence[tuple[int, ...]]  # shapes
    outputs: Sequence[tuple[int, ...]]
    number: int = field(default_factory=lambda: next(_numbers))

    def __post_init__(self) -> None:
        _maps[self.number] = self

    def __call__(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        return self._apply(tensors, len(self.outputs), False)

    def apply_transpose(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Map outputs back to inputs."""
        return self._apply(tensors, len(self.inputs), True)

    def _apply(self, tensors: Sequence[Tensor], count: int, back: bool) -> tuple[Tensor, ...]:
        # one tensor in, one out: what torch's fallback for batches takes
        parts = [[_apply_part(x, self.number, i, o, back) for i, x in enumerate(tensors)] for o in range(count)]
        return tuple(sum(row[1:], row[0]) for row in parts)

    def part(self, x: Tensor, source: int, target: int, back: bool) -> Tensor:
        """Return one of the results, where all but one of the arguments are zero."""
        shapes = self.outputs if back else self.inputs
        arguments = [x if i == source else x.new_zeros(shape) for i, shape in enumerate(shapes)]
        return (self.transpose if back else self.forward)(*arguments)[target]


def _run_part(x: Tensor, number: int, source: int, target: int, back: bool) -> Tensor:
    return _maps[number].part(x.contiguous(), source, target, back)


def _remember(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, number, source, target, back = inputs
    ctx.map, ctx.arguments = _maps[number], (number, target, source, not back)


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    return _apply_part(grad, *ctx.arguments), None, None, None, None


def _run_batch(info: Any, in_dims: Any, x: Tensor, *arguments: Any) -> tuple[Tensor, int]:
    return torch.stack([_apply_part(one, *arguments) for one in x.unbind(in_dims[0])]), 0


_library = torch.library.Library("everypool", "FRAGMENT")
_library.define("linear_part(Tensor x, int number, int source, int target, bool back) -> Tensor")
_library.impl("linear_part", _run_part, "CPU")
_apply_part: Any = torch.ops.everypool.linear_part.default
torch.library.register_autograd("everypool::linear_part", _differentiate, setup_context=_remember, lib=_library)
torch.library.register_vmap("everypool::linear_part", _run_batch, lib=_library)
