"""What a compiled implementation must know of a reducer: a name and a few settings, no code."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

__all__ = ["Recipe", "parameter_values"]


@dataclass(frozen=True, eq=False)
class Recipe:
    """A reducer in the words of the compiled loops and fused kernels."""

    op: str  # "max", "even_max", "mean", "power", "soft", "logsumexp", "centre" or "median"
    parameter: Any = None  # p, beta or r: a float, or a tensor of 1 or C elements
    last: bool = False  # of equal maxima the last wins
    index: bool = False  # maxima are returned with their positions
    divisor: int | None = None  # of a mean
    cells: bool = False  # a mean counts the cells of explicit padding
    absolute: bool = False  # |x| instead of max(x, eps)
    eps: float = 0.0
    sum: bool = False  # a sum instead of a mean inside
    plain_gradient: bool = False  # weights are constants to the gradient
    upper: bool = False  # the later of two middles
    both: bool = False  # the mean of both

    @property
    def key(self) -> tuple[Any, ...]:
        """Everything but the parameter's value."""
        return (
            self.op,
            self.last,
            self.index,
            self.divisor,
            self.cells,
            self.absolute,
            self.eps,
            self.sum,
            self.plain_gradient,
            self.upper,
            self.both,
        )


def parameter_values(parameter: Any, channels: int) -> list[float] | None:
    """A parameter's values, one or one per channel; None where it does not fit (the definition says what is wrong)."""
    if not isinstance(parameter, Tensor):
        return [float(parameter)]
    if not (parameter.is_cpu and parameter.is_floating_point() and parameter.numel() in (1, channels) and parameter.dim() <= 1):
        return None
    values: Any = parameter.tolist()
    return values if parameter.dim() == 1 else [values]
