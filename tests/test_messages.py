"""Whatever is wrong, the message names a parameter of what was called: functions, layers and blocks, generated."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from modules import CLASSES, required
from torch import nn

import everypool

FORM = re.compile(r"^`([A-Za-z_0-9]+)` must be .+, got .+", re.DOTALL)
X = torch.arange(128.0).reshape(1, 2, 8, 8)
BOXES = torch.tensor([[0.0, 1.0, 1.0, 5.0, 5.0]])
MAXIMA, PLACES = everypool.max_pool(X, 2, return_indices=True)
FUNCTIONS = [
    item
    for op in everypool.operations().values()
    for item in (getattr(everypool, name) for name in op.names)
    if not isinstance(item, type)
]
ARGUMENTS: dict[str, Any] = {
    "input": X, "inputs": [X], "kernel_size": 2, "output_size": 2, "norm_type": 2.0, "axis": -1, "boxes": BOXES,
    "scales": (1.0,), "indices": PLACES,
}  # fmt: skip
BAD: list[Any] = [
    "qqq", b"x", None, object(), True, {}, (), (2, 2), (1, 2, 3, 4), [1.5], [[5, 5]], (10**9,),
    -1, -2, 0, 2.5, 10**9, 2**70, float("nan"), float("inf"),
    torch.tensor([1, 2]), torch.tensor(float("nan")), torch.ones(3), torch.ones(1, 2, 8, 8, device="meta"),
]  # fmt: skip
WIDTHS = (  # of what is learned: any is right, as long as memory lasts
    "channels", "classes", "middle", "hidden", "width", "input_size", "descriptor", "outputs", "reduced", "quantity",
    "hidden_size", "pattern_size", "output_size", "stored_pattern_size", "pattern_projection_size", "resolution",
    "spatial", "convs", "num_heads",
)  # fmt: skip


def check_refusal(call: Callable[[], Any], names: list[str], what: str) -> None:
    """Nothing is raised, or an error of the form that names one of the parameters."""
    try:
        call()
    except Exception as error:
        raised = error
    else:
        return
    found = FORM.match(str(raised))
    assert found, f"{what}: {type(raised).__name__}: {raised}"
    assert found[1] in names, f"{what}: {raised}"
    assert isinstance(raised, (ValueError, TypeError, NotImplementedError)), what


def arguments_of(function: Callable[..., Any]) -> dict[str, Any]:
    parameters = inspect.signature(function).parameters.values()
    given = {p.name: ARGUMENTS[p.name] for p in parameters if p.default is p.empty}
    return {**given, "input": MAXIMA} if "indices" in given else given


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.__name__)
def test_functions(function: Callable[..., Any]) -> None:
    names = list(inspect.signature(function).parameters)
    good = arguments_of(function)
    function(**good)
    for name in names:
        for bad in BAD:
            check_refusal(lambda name=name, bad=bad: function(**{**good, name: bad}), names, f"{name}={bad!r}")


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_constructors(kind: type[nn.Module]) -> None:
    parameters = inspect.signature(kind).parameters.values()
    names = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    good = required(kind)
    for name in names:
        for bad in BAD:
            if name in WIDTHS and type(bad) is int and bad == 10**9:
                continue
            with torch.device("meta"):
                check_refusal(lambda name=name, bad=bad: kind(**{**good, name: bad}), names, f"{name}={bad!r}")


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_calls(kind: type[nn.Module]) -> None:
    """Of a layer: what the constructor let pass is named too."""
    module = kind(**required(kind))
    names = [*inspect.signature(module.forward).parameters, *inspect.signature(kind).parameters]
    for name in inspect.signature(module.forward).parameters:
        for bad in BAD:
            given = {p: ARGUMENTS.get(p) for p in inspect.signature(module.forward).parameters} | {name: bad}
            check_refusal(lambda given=given: module(**given), names, f"{name}={bad!r}")


def test_the_rows_of_the_issue() -> None:
    with pytest.raises(ValueError, match=r"^`norm_type` must be other than 0"):
        everypool.lp_pool(X, 0, 2)
    with pytest.raises(ValueError, match=r"^`norm_type` must be other than 0"):
        everypool.LPPool2d(0, 2)(X)
    with pytest.raises(ValueError, match=r"^`p` must be other than 0"):
        everypool.pool(X, "lp:p=0", everypool.Global())
    with pytest.raises(ValueError, match=r"^`levels` must be grids of at most"):
        everypool.spatial_pyramid_pool(X, (10**9,))
    with pytest.raises(ValueError, match=r"^`first` must be .*did you mean 'max'"):
        everypool.MixedPool("maxx", "avg")
