"""Launches that are made once and repeated: what Triton finds out of a kernel's arguments takes longer than many a kernel."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

from torch import Tensor

from everypool.backends.triton.registry import on

__all__ = ["Known", "Launch", "repeated"]

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


Known = dict[Hashable, Launch]


def repeated(
    known: Known,
    key: Hashable,
    tensors: dict[str, Tensor | None],
    make: Callable[[], tuple[Any, int, dict[str, Any]]],
    like: Tensor,
) -> None:
    """Launch what `make` gives, kernel, programs and arguments but `tensors`; made once for each key.

    The key tells all that the arguments depend on: strides, and which tensors there are.
    """
    launch = known.get(key)
    if launch is None:
        launch = known[key] = Launch(*make(), tensors)
    with on(like):
        launch(tensors)
