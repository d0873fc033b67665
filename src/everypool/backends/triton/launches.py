"""Launches that are made once and repeated: what Triton finds out of a kernel's arguments takes longer than many a kernel."""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

from torch import Tensor

from everypool.backends.triton.registry import on

__all__ = ["Choice", "Known", "Launch", "Made", "repeated"]

TUNE = "EVERYPOOL_TUNE"

ALIGNED = 16  # bytes: compiled kernels rely on it where they have found it


class Launch:
    """A kernel with all its arguments but the tensors of a call."""

    def __init__(self, kernel: Any, programs: int, constants: dict[str, Any], tensors: dict[str, Tensor | None]) -> None:
        taken = kernel.arg_names
        self.kernel, self.programs, self.constants = kernel, (programs, 1, 1), constants
        self.names = [name for name in tensors if name in taken]
        self.arguments = [constants.get(name) for name in taken]
        self.places = [(taken.index(name), name) for name in self.names]
        self.compiled: Any = None

    def __call__(self, tensors: dict[str, Tensor | None]) -> None:
        own = {name: tensors[name] for name in self.names}
        aligned = all([t is None or t.data_ptr() % ALIGNED == 0 for t in own.values()])
        if self.compiled is not None and aligned:
            arguments = self.arguments.copy()
            for place, name in self.places:
                arguments[place] = own[name]
            self.compiled[self.programs](*arguments)
            return
        found = self.kernel[self.programs](**self.constants, **own)
        if aligned:
            self.compiled = found  # nothing, in the interpreter


class Choice(NamedTuple):
    """Elements that a program writes, and its warps."""

    lanes: int
    warps: int


Known = dict[Hashable, Launch]
Made = tuple[Any, int, dict[str, Any]]  # kernel, programs and arguments but tensors


def repeated(
    known: Known,
    key: Hashable,
    tensors: dict[str, Tensor | None],
    make: Callable[[Choice | None], Made],
    like: Tensor,
) -> None:
    """Launch what `make` gives, kernel, programs and arguments but `tensors`; made once for each key.

    The key tells all that the arguments depend on: strides, and which tensors there are.
    """
    with on(like):
        launch = known.get(key)
        if launch is None:
            launch = known[key] = Launch(*_made(make, tensors, like), tensors)
        launch(tensors)


def _made(make: Callable[[Choice | None], Made], tensors: dict[str, Tensor | None], like: Tensor) -> Made:
    """With the usual tile, or where the environment asks for it with the fastest."""
    if os.environ.get(TUNE, "0") in ("", "0"):
        return make(None)
    from everypool.backends.triton.tuning import tuned

    return tuned(make, lambda made: Launch(*made, tensors)(tensors), like)
