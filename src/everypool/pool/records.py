"""The two base classes of an operation, reducers and windows, and the records from which names, tests and docs are made."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from everypool import _check as check
from everypool.backends.eager import Folds
from everypool.backends.layout import Layout
from everypool.backends.recipe import Recipe
from everypool.backends.work import Taps, Work, measured
from everypool.pool.folding import Reduced, run

__all__ = [
    "Operation",
    "Reducer",
    "Windows",
    "find_operation",
    "operations",
    "parse",
    "parse_settings",
    "register",
    "split_settings",
]

LONGEST = 1 << 20  # of an axis whose tables are made only to count windows: without values that takes torch longer


class Reducer:
    """What becomes of the values that belong together; subclasses are small and hold only their parameters."""

    any_dtype: ClassVar[bool] = False  # integers and bool as well
    selects: ClassVar[bool] = False  # results are elements of the input, and gradients are theirs as they are

    def check(self, input: Tensor) -> None:
        """Raise if this reducer has no meaning for this input."""
        if not self.any_dtype:
            check.floating("input", input)
        elif input.dtype not in (*check.FLOATING, *check.INTEGRAL, torch.bool):
            raise check.wrong_type("input", "floating point, integer or bool", check.Shown(str(input.dtype)))

    def recipe(self) -> Recipe | str:
        """This reducer for the compiled loops, or why they do not have it."""
        return "no compiled loop knows this reducer"

    def work(self, nd: int) -> Work | None:
        """What a window of K elements costs over `nd` axes, see `Work`; None where nobody has said."""
        return None

    def define(self, x: Tensor, folds: Folds) -> Reduced:
        """The values (N, C, *out), with an index if asked for; and which exist where it is not `folds.exists()`."""
        raise NotImplementedError


class Windows:
    """Which values belong together; the only place that knows size arithmetic."""

    fixed: ClassVar[bool] = False  # the output's size does not depend on the input's
    folds: ClassVar[bool] = True  # `layouts` says it all
    keeps_channels: ClassVar[bool] = True  # the result has the input's channels as axis 1

    @property
    def many(self) -> bool:
        """The input is a list of maps, one per level."""
        return False

    @property
    def nd(self) -> int | None:
        """The number of spatial axes, where the arguments tell it."""
        return None

    @staticmethod
    def axes_of(argument: Any) -> int | None:
        """Return the number of spatial axes that the first argument of the constructor tells, if it does."""
        return None

    def layouts(self, spatial: tuple[int, ...], sizes: Tensor | None) -> list[Layout]:
        """One layout, or several that are folded in turn (pyramid levels, strips)."""
        raise NotImplementedError

    def taps(self, shapes: Sequence[tuple[int, ...]]) -> list[Taps] | None:
        """How many elements the windows over inputs (N, C, *spatial) hold; None where nobody has said."""
        if not self.folds:
            return None
        return [measured(layout, shape[0] * shape[1]) for shape in shapes for layout in self.outlines(shape[2:])]

    def outlines(self, spatial: tuple[int, ...]) -> list[Layout]:
        """`layouts` whose tensors may lack values, so that a map may be of any size."""
        with torch.device("meta") if max(spatial) > LONGEST else nullcontext():
            return self.layouts(spatial, None)

    def assemble(self, parts: list[Tensor]) -> Any:
        """The result from what each layout gave."""
        return parts[0]

    def reduce(self, reducer: Reducer, input: Any, mask: Any, sizes: Any) -> list[Reduced]:
        """What the reducer makes of each layout; `mask` and `sizes` are None or tensors, or lists where the input is one."""
        return [
            run(reducer, input, Folds(layout, mask, input.device)) for layout in self.layouts(tuple(input.shape[2:]), sizes)
        ]


@dataclass(frozen=True)
class Operation:
    """Everything that the tests, the documentation, the tables and the command line know of one operation."""

    name: str
    kind: str  # "reducer", "windows" or "block"
    summary: str
    formula: str
    source: str
    names: tuple[str, ...]
    nd: tuple[int, ...] = (1, 2, 3)
    parameters: str = "none"
    dtypes: str = "floating"
    mask: bool = True
    onnx: bool = True
    # reducers: the class, its settings worth testing, the plain definition on one window (values, which exist), and the
    # stem of the layer names (SoftPool2d: "Soft")
    reducer: Callable[..., Reducer] | None = None
    variants: tuple[dict[str, Any], ...] = ({},)
    reference: Callable[..., float] | None = None
    stem: str = ""
    differentiable: bool = True
    # windows and blocks: a small module and the arguments of a call to it
    sample: Callable[[], tuple[torch.nn.Module, tuple[Any, ...]]] | None = None
    aliases: tuple[str, ...] = field(default=())


_OPERATIONS: dict[str, Operation] = {}


def register(operation: Operation) -> Operation:
    """Add an operation to the table.

    Raises:
        ValueError: an operation of that name exists.
    """
    for name in (operation.name, *operation.aliases):
        if any(name in (other.name, *other.aliases) for other in _OPERATIONS.values()):
            raise check.invalid("name", "new in the table of operations", name)
    _OPERATIONS[operation.name] = operation
    return operation


def operations() -> dict[str, Operation]:
    """All operations by name.

    >>> operations()["soft"].kind
    'reducer'
    """
    return dict(_OPERATIONS)


def find_operation(name: str, kind: str | None = None) -> Operation:
    """The operation of that name or alias, whatever the case.

    Raises:
        ValueError: there is none; the nearest name is suggested.
    """
    known = {alias: op for op in _OPERATIONS.values() for alias in (op.name, *op.aliases) if kind in (None, op.kind)}
    key = name.lower().strip() if isinstance(name, str) else name
    if key not in known:
        check.choice("name" if kind is None else kind, key, sorted(known))
    return known[key]


def parse(spec: str | Reducer) -> Reducer:
    """A reducer from text such as "max", "gem:p=4" or "soft:beta=2".

    Raises:
        ValueError: unknown name or parameter; the nearest is suggested.

    >>> parse("gem:p=4")
    Power(p=4, norm='mean', signed='clamp', eps=1e-06)
    """
    if isinstance(spec, Reducer):
        return spec
    if not isinstance(spec, str):
        raise check.wrong_type("reducer", "a Reducer or the name of one", spec)
    operation, settings = parse_settings(spec)
    if operation.reducer is None:
        raise check.invalid("reducer", "the name of a reducer", spec)
    try:
        return operation.reducer(**settings)
    except TypeError as error:
        options = inspect.signature(operation.reducer).parameters
        if set(settings) <= set(options):
            raise
        rule = f"{operation.name!r} with settings of {', '.join(options) or 'no kind'}"
        unknown = next(name for name in settings if name not in options)
        raise check.invalid("reducer", rule, check.Shown(repr(spec) + check.nearest(unknown, options))) from error


def parse_settings(spec: str) -> tuple[Operation, dict[str, Any]]:
    """The reducer operation and the settings in text such as "gem:p=4,eps=1e-3"."""
    operation = find_operation(spec.partition(":")[0], "reducer")
    return operation, split_settings("reducer", spec)[1]


def split_settings(parameter: str, spec: str) -> tuple[str, dict[str, Any]]:
    """Return the name and the settings in text such as "gem:p=4,eps=1e-3"; `parameter` is what gave the text."""
    name, _, rest = spec.partition(":")
    settings: dict[str, Any] = {}
    for item in filter(None, rest.split(",")):
        key, equals, text = item.partition("=")
        if not equals:
            raise check.invalid(parameter, "NAME or NAME:SETTING=VALUE,...", spec)
        settings[key.strip()] = _value(text.strip())
    return name.lower().strip(), settings


def _value(text: str) -> Any:
    if text in ("True", "true", "False", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
