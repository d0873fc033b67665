"""Every rule has its message: "`<parameter>` must be <rule>, got <value>"; nothing crashes, hangs or grows without bound."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch

import everypool
from everypool import (
    Adaptive,
    Boxes,
    Center,
    Global,
    InvalidValue,
    LogSumExp,
    Max,
    Mean,
    Power,
    Pyramid,
    Scan,
    Sliding,
    Soft,
    Strips,
    pool,
)
from everypool.backends import triton
from everypool.backends.choose import choose, forced

X = torch.arange(32.0).reshape(1, 2, 4, 4)
NAN, INF = float("nan"), float("inf")
FORM = re.compile(r"^`[A-Za-z_]+` must be .+, got .+", re.DOTALL)


def sliding(*arguments: Any, **options: Any) -> Callable[[], Any]:
    return lambda: pool(X, "max", Sliding(*arguments, **options))


def rejected(call: Callable[[], Any], error: type[Exception], name: str) -> str:
    with pytest.raises(error) as caught:
        call()
    text = str(caught.value)
    assert FORM.match(text), text
    assert text.startswith(f"`{name}`"), text
    assert len(text) < 400
    return text


SIZES: list[tuple[str, Any, type[Exception]]] = [
    ("zero", 0, ValueError),
    ("negative", -1, ValueError),
    ("huge", 2**63, ValueError),
    ("beyond any int", 10**40, ValueError),
    ("float", 2.0, TypeError),
    ("bool", True, TypeError),
    ("text", "2", TypeError),
    ("none", None, TypeError),
    ("empty", (), ValueError),
    ("nested", ((2, 2), 2), TypeError),
    ("float within", (2, 2.5), TypeError),
    ("nan", NAN, TypeError),
    ("array", torch.tensor([2, 2]), TypeError),
]


@pytest.mark.parametrize(("name", "value", "error"), SIZES, ids=[row[0] for row in SIZES])
def test_sizes(name: str, value: Any, error: type[Exception]) -> None:
    rejected(sliding(value), error, "kernel_size")
    if name not in ("none", "empty"):  # both say: as the kernel
        rejected(sliding(2, stride=value), error, "stride")
    rejected(sliding(2, dilation=value), error, "dilation")
    if name not in ("zero", "text", "nested", "none"):
        rejected(sliding(2, padding=value), error, "padding")
    if name != "none":
        rejected(lambda: pool(X, "max", Adaptive(value)), error, "output_size")
    rejected(lambda: pool(X, "max", Boxes(torch.zeros(1, 5), value)), error, "output_size")


@pytest.mark.parametrize("layer", ["MaxPool2d", "AvgPool2d", "SoftPool2d", "GeMPool2d", "LogSumExpPool2d", "CenterPool2d"])
def test_layers_refuse_when_they_are_made(layer: str) -> None:
    made = getattr(everypool, layer)
    for value, error in ((0, ValueError), (2.0, TypeError), ((1, 2, 3), ValueError), (True, TypeError)):
        rejected(lambda value=value: made(value), error, "kernel_size")
    rejected(lambda: made(2, padding="sane"), ValueError, "padding")
    rejected(lambda: made(2, ceil_mode=1), TypeError, "ceil_mode")
    adaptive = getattr(everypool, f"Adaptive{layer}")
    rejected(lambda: adaptive(0), ValueError, "output_size")
    rejected(lambda: adaptive(-3), ValueError, "output_size")
    rejected(lambda: getattr(everypool, f"Global{layer[:-2]}")(keepdim=1), TypeError, "keepdim")
    with pytest.raises(TypeError):
        made(2, unknown=3)


WINDOWS: list[tuple[str, Callable[[], Any], type[Exception], str]] = [
    ("padding over half the kernel", sliding(2, padding=2), ValueError, "padding"),
    ("padding over half the dilated kernel", sliding(2, padding=3, dilation=3), ValueError, "padding"),
    ("window over the padded map", sliding(7, padding=1), ValueError, "kernel_size"),
    ("dilated window over the map", sliding(3, dilation=2), ValueError, "kernel_size"),
    ("same with strides is fine, sane is not", sliding(2, padding="sane"), ValueError, "padding"),
    ("same in ceil mode", sliding(2, padding="same", ceil_mode=1), TypeError, "ceil_mode"),
    ("negative pair", sliding(2, padding=((0, -1), (0, 0))), ValueError, "padding"),
    ("adaptive text", lambda: pool(X, "max", Adaptive("2")), TypeError, "output_size"),
    ("global keepdim", lambda: pool(X, "max", Global(1)), TypeError, "keepdim"),
    ("no levels", lambda: pool(X, "max", Pyramid(())), ValueError, "levels"),
    ("level zero", lambda: pool(X, "max", Pyramid((1, 0))), ValueError, "levels"),
    ("level float", lambda: pool(X, "max", Pyramid((1.5,))), TypeError, "levels"),
    ("levels text", lambda: pool(X, "max", Pyramid("124")), TypeError, "levels"),
    ("unknown bins", lambda: pool(X, "max", Pyramid((1, 2), "sppnets")), ValueError, "bins"),
    ("axis", lambda: pool(X, "max", Scan(2)), ValueError, "axis"),
    ("negative axis", lambda: pool(X, "max", Scan(-3)), ValueError, "axis"),
    ("axis text", lambda: pool(X, "max", Scan("x")), TypeError, "axis"),
    ("axis bool", lambda: pool(X, "max", Scan(True)), TypeError, "axis"),
    ("reverse", lambda: pool(X, "max", Scan(0, "yes")), TypeError, "reverse"),
    ("strips along", lambda: pool(X, "max", Strips((3,))), ValueError, "along"),
    ("not windows", lambda: pool(X, "max", 2), TypeError, "windows"),
    ("windows class", lambda: pool(X, "max", Sliding), TypeError, "windows"),
    ("unknown corner", lambda: everypool.corner_pool(X, "topleft"), ValueError, "corner"),
    ("other shape", lambda: everypool.corner_pool(X, other=X[:, :1]), ValueError, "other"),
    ("corner of a volume", lambda: everypool.corner_pool(torch.ones(1, 2, 3, 4, 5)), ValueError, "input"),
    ("top of a line", lambda: everypool.top_pool(torch.ones(2, 3)), ValueError, "input"),
    ("ties", lambda: everypool.directional_pool(X, 0, ties="least"), ValueError, "ties"),
]


@pytest.mark.parametrize(("call", "error", "name"), [row[1:] for row in WINDOWS], ids=[row[0] for row in WINDOWS])
def test_windows(call: Callable[[], Any], error: type[Exception], name: str) -> None:
    rejected(call, error, name)


def reduce(reducer: Any, input: Any = X) -> Callable[[], Any]:
    return lambda: pool(input, reducer, Global())


REDUCERS: list[tuple[str, Callable[[], Any], type[Exception], str]] = [
    ("p nan", reduce(Power(NAN)), ValueError, "p"),
    ("p text", reduce(Power("3")), TypeError, "p"),
    ("p bool", reduce(Power(True)), TypeError, "p"),
    ("p tensor nan", reduce(Power(torch.tensor(NAN))), ValueError, "p"),
    ("p tensor int", reduce(Power(torch.tensor(3))), TypeError, "p"),
    ("p of other channels", reduce(Power(torch.ones(3))), ValueError, "p"),
    ("p per sample", reduce(Power(torch.ones(1, 2))), ValueError, "p"),
    ("p zero of a sum", reduce(Power(0.0, "sum", "abs")), ValueError, "p"),
    ("p negative of odd", reduce(Power(-1.0, signed="odd")), ValueError, "p"),
    ("eps zero", reduce(Power(eps=0.0)), ValueError, "eps"),
    ("eps negative", reduce(Power(eps=-1e-6)), ValueError, "eps"),
    ("eps nan", reduce(Power(eps=NAN)), ValueError, "eps"),
    ("eps text", reduce(Power(eps="small")), TypeError, "eps"),
    ("signed", reduce(Power(signed="clip")), ValueError, "signed"),
    ("norm", reduce(Power(norm="average")), ValueError, "norm"),
    ("beta nan", reduce(Soft(NAN)), ValueError, "beta"),
    ("beta infinite", reduce(Soft(INF)), ValueError, "beta"),
    ("beta of other channels", reduce(Soft(torch.ones(5))), ValueError, "beta"),
    ("grad", reduce(Soft(grad="author")), ValueError, "grad"),
    ("r nan", reduce(LogSumExp(NAN)), ValueError, "r"),
    ("r zero of a sum", reduce(LogSumExp(0.0, "sum")), ValueError, "r"),
    ("ties", reduce(Max("any")), ValueError, "ties"),
    ("indices with even ties", reduce(Max("even", True)), ValueError, "ties"),
    ("return_indices", reduce(Max(indices=1)), TypeError, "return_indices"),
    ("even", reduce(Center("middle")), ValueError, "even"),
    ("count_include_pad", reduce(Mean(count_include_pad=1)), TypeError, "count_include_pad"),
    ("divisor zero", reduce(Mean(divisor=0)), ValueError, "divisor_override"),
    ("divisor float", reduce(Mean(divisor=2.0)), TypeError, "divisor_override"),
    ("integers", reduce("soft", X.int()), TypeError, "input"),
    ("bool", reduce("gem", X > 2), TypeError, "input"),
    ("bool mean", reduce("mean", X > 2), TypeError, "input"),
    ("complex", reduce("max", X.to(torch.complex64)), TypeError, "input"),
    ("sparse", reduce("max", X.to_sparse()), TypeError, "input"),
    ("unknown", reduce("maxx"), ValueError, "reducer"),
    ("unknown setting", reduce("gem:q=3"), ValueError, "reducer"),
    ("no value", reduce("gem:p"), ValueError, "reducer"),
    ("windows as a reducer", reduce("strip"), ValueError, "reducer"),
    ("number as a reducer", reduce(3), TypeError, "reducer"),
    ("class as a reducer", reduce(Max), TypeError, "reducer"),
]


@pytest.mark.parametrize(("call", "error", "name"), [row[1:] for row in REDUCERS], ids=[row[0] for row in REDUCERS])
def test_reducers(call: Callable[[], Any], error: type[Exception], name: str) -> None:
    rejected(call, error, name)


INPUTS: list[tuple[str, Any, type[Exception]]] = [
    ("none", None, TypeError),
    ("list of numbers", [1.0, 2.0], TypeError),
    ("array", X.numpy(), TypeError),
    ("scalar", torch.tensor(1.0), ValueError),
    ("no spatial axis", torch.ones(2, 3), ValueError),
    ("four spatial axes", torch.ones(1, 1, 2, 2, 2, 2), ValueError),
    ("empty width", torch.ones(1, 2, 3, 0), ValueError),
    ("empty height", torch.ones(1, 2, 0, 3), ValueError),
    ("empty list", [], ValueError),
]


@pytest.mark.parametrize(("value", "error"), [row[1:] for row in INPUTS], ids=[row[0] for row in INPUTS])
def test_inputs(value: Any, error: type[Exception]) -> None:
    for windows in (Global(), Adaptive(1)):
        rejected(lambda windows=windows: pool(value, "max", windows), error, "input")
    if not isinstance(value, list):
        rejected(lambda: everypool.MaxPool2d(1)(value), error, "input")


def test_lists_of_samples() -> None:
    rejected(lambda: pool([X[0], X[0]], "max", Sliding(2)), TypeError, "input")
    rejected(lambda: pool([X[0], X[0, :1]], "max", Global()), ValueError, "input")
    rejected(lambda: pool([X[0], X[0].double()], "max", Global()), ValueError, "input")
    rejected(lambda: pool([X[0], X[0, 0]], "max", Global()), ValueError, "input")
    rejected(lambda: pool([X[0]], "max", Global(), sizes=[[2, 2]]), ValueError, "sizes")


MASK = torch.ones(1, 1, 4, 4, dtype=torch.bool)


@pytest.mark.parametrize(
    ("mask", "error"),
    [
        (MASK[..., :3], ValueError), (MASK[0], ValueError), (MASK.expand(2, 1, 4, 4), ValueError),
        (MASK.expand(1, 3, 4, 4), ValueError), (MASK.float(), TypeError), (MASK.to(torch.uint8), TypeError),
        (MASK.tolist(), TypeError), (MASK.to("meta"), ValueError),
    ],
    ids=["width", "unbatched", "batch", "channels", "float", "uint8", "list", "device"],
)  # fmt: skip
def test_masks(mask: Any, error: type[Exception]) -> None:
    for windows in (Sliding(2), Global(), Strips(), Scan(), Pyramid((1, 2))):
        rejected(lambda windows=windows: pool(X, "max", windows, mask=mask), error, "mask")


@pytest.mark.parametrize(
    ("sizes", "error"),
    [
        ([[4, 5]], ValueError), ([[0, 4]], ValueError), ([[-1, 4]], ValueError), ([[4]], ValueError), ([4, 4], ValueError),
        ([[4, 4], [4, 4]], ValueError), ([[2.0, 2.0]], TypeError), ("44", TypeError), ([["4", "4"]], TypeError),
        (torch.tensor([[4, 4]], device="meta"), ValueError), (torch.tensor([[True, True]]), TypeError), (4, ValueError),
        ([[4, 4], [4]], TypeError), ([[2**70, 4]], TypeError),
    ],
    ids=str,
)  # fmt: skip
def test_extents(sizes: Any, error: type[Exception]) -> None:
    for windows in (Sliding(2), Global(), Strips(), Scan(), Pyramid((1, 2))):
        rejected(lambda windows=windows: pool(X, "max", windows, sizes=sizes), error, "sizes")


def boxed(boxes: Any, input: Any = X, **options: Any) -> Callable[[], Any]:
    return lambda: pool(input, "max", Boxes(boxes, 2, **options))


GOOD = torch.tensor([[0.0, 0.0, 0.0, 2.0, 2.0]])
BOXES: list[tuple[str, Callable[[], Any], type[Exception], str]] = [
    ("shape", boxed(GOOD[:, :4]), ValueError, "boxes"),
    ("flat", boxed(GOOD[0]), ValueError, "boxes"),
    ("whole numbers", boxed(GOOD.long()), TypeError, "boxes"),
    ("nested list", boxed(GOOD.tolist()), ValueError, "boxes"),
    ("text", boxed("all"), TypeError, "boxes"),
    ("a list for another batch", boxed([GOOD[:, 1:]] * 2), ValueError, "boxes"),
    ("nan", boxed(GOOD * NAN), ValueError, "boxes"),
    ("infinite", boxed(GOOD + INF), ValueError, "boxes"),
    ("no such sample", boxed(GOOD + torch.tensor([1.0, 0, 0, 0, 0])), ValueError, "boxes"),
    ("negative sample", boxed(GOOD - torch.tensor([1.0, 0, 0, 0, 0])), ValueError, "boxes"),
    ("half a sample", boxed(GOOD + torch.tensor([0.5, 0, 0, 0, 0])), ValueError, "boxes"),
    ("inverted", boxed(torch.tensor([[0.0, 3.0, 0.0, 1.0, 2.0]])), ValueError, "boxes"),
    ("samples without bound", boxed(torch.tensor([[0.0, 0.0, 0.0, 1e9, 2.0]])), ValueError, "boxes"),
    ("scale zero", boxed(GOOD, spatial_scale=0.0), ValueError, "spatial_scale"),
    ("scale nan", boxed(GOOD, spatial_scale=NAN), ValueError, "spatial_scale"),
    ("ratio", boxed(GOOD, sampling_ratio=1.5), TypeError, "sampling_ratio"),
    ("sampling", boxed(GOOD, sampling="aligned"), ValueError, "sampling"),
    ("aligned", boxed(GOOD, aligned=1), TypeError, "aligned"),
    ("integers between cells", boxed(GOOD, X.int()), TypeError, "input"),
    ("one map for two levels", boxed(GOOD, X, spatial_scale=(1.0, 0.5)), ValueError, "input"),
    ("two maps for three levels", boxed(GOOD, [X, X], spatial_scale=(1.0, 0.5, 0.25)), ValueError, "input"),
    ("unlike maps", boxed(GOOD, [X, X.double()], spatial_scale=(1.0, 0.5)), ValueError, "input"),
    ("no level", lambda: everypool.multi_level_roi_pool([], GOOD, 2, ()), ValueError, "inputs"),
    ("levels", lambda: everypool.multi_level_roi_pool([X], GOOD, 2, (1.0, 0.5)), ValueError, "inputs"),
    ("scales", lambda: everypool.multi_level_roi_pool([X], GOOD, 2, 0.5), TypeError, "scales"),
    ("fusion", lambda: everypool.multi_level_roi_pool([X], GOOD, 2, (1.0,), "mean"), ValueError, "fuse"),
]


@pytest.mark.parametrize(("call", "error", "name"), [row[1:] for row in BOXES], ids=[row[0] for row in BOXES])
def test_boxes(call: Callable[[], Any], error: type[Exception], name: str) -> None:
    rejected(call, error, name)


def test_boxes_outside_the_map_are_no_error() -> None:
    """A sample further than a cell outside counts as 0, as published; a bin without a cell gives 0."""
    far = torch.tensor([[0.0, 90.0, 90.0, 95.0, 95.0], [0.0, -9.0, -9.0, -8.0, -8.0]])
    assert not everypool.roi_align(X, far, 2).any()
    assert not everypool.roi_pool(X, far, 2).any()


I = torch.tensor([[[1, 2]]])  # noqa: E741
UNPOOL: list[tuple[str, Callable[[], Any], type[Exception], str]] = [
    ("index too large", lambda: everypool.max_unpool(torch.ones(1, 1, 2), I + 2, 2), ValueError, "indices"),
    ("index too small", lambda: everypool.max_unpool(torch.ones(1, 1, 2), I - 4, 2), ValueError, "indices"),
    ("index shape", lambda: everypool.max_unpool(torch.ones(1, 1, 3), I, 2), ValueError, "indices"),
    ("index type", lambda: everypool.max_unpool(torch.ones(1, 1, 2), I.int(), 2), TypeError, "indices"),
    ("size", lambda: everypool.max_unpool(torch.ones(1, 1, 2), I, 2, output_size=(9,)), ValueError, "output_size"),
    ("memory", lambda: everypool.max_unpool(torch.ones(1, 1, 2), I, 2, 2**39), ValueError, "output_size"),
    ("overlap", lambda: everypool.max_unpool(torch.ones(1, 1, 2), I, 2, overlap="first"), ValueError, "overlap"),
    ("kernel", lambda: everypool.MaxUnpool2d(0), ValueError, "kernel_size"),
]


@pytest.mark.parametrize(("call", "error", "name"), [row[1:] for row in UNPOOL], ids=[row[0] for row in UNPOOL])
def test_unpooling(call: Callable[[], Any], error: type[Exception], name: str) -> None:
    rejected(call, error, name)


def test_names_suggest_the_nearest() -> None:
    assert "did you mean 'gem'" in rejected(lambda: everypool.create("gemm", kernel_size=2), ValueError, "name")
    assert "did you mean 'logsumexp'" in rejected(reduce("logsumexpp"), ValueError, "reducer")
    assert "did you mean 'same'" in rejected(sliding(2, padding="sane"), ValueError, "padding")
    assert "did you mean 'clamp'" in rejected(reduce(Power(signed="clampp")), ValueError, "signed")
    assert "did you mean 'top_left'" in rejected(lambda: everypool.corner_pool(X, "topleft"), ValueError, "corner")
    rejected(lambda: everypool.create("max", nd=4, kernel_size=2), ValueError, "nd")
    rejected(lambda: everypool.create("max", nd=True, kernel_size=2), TypeError, "nd")
    rejected(lambda: everypool.create(7), TypeError, "name")


def test_a_value_error_is_also_a_runtime_error() -> None:
    """Code that catches torch.nn's errors keeps working."""
    for error in (ValueError, RuntimeError, InvalidValue):
        with pytest.raises(error):
            everypool.max_pool(X, 0)


def test_an_implementation_asked_for_by_name_never_falls_back(monkeypatch: pytest.MonkeyPatch) -> None:
    with forced("eager"):
        assert everypool.max_pool(X, 2).shape == (1, 2, 2, 2)
        assert choose().name == "eager"
    assert "did you mean 'eager'" in rejected(lambda: forced("eagr").__enter__(), ValueError, "EVERYPOOL_IMPL")
    monkeypatch.setattr(triton, "INSTALLED", False)
    with pytest.raises(NotImplementedError, match="must be an implementation that is installed"):
        forced("triton").__enter__()
    command = [sys.executable, "-c", "import everypool"]
    result = subprocess.run(command, env={**os.environ, "EVERYPOOL_IMPL": "eagr"}, capture_output=True, text=True)
    assert result.returncode == 1
    assert "did you mean 'eager'" in result.stderr


def test_huge_windows_cost_no_more_than_the_map() -> None:
    """Windows are clipped to the map: neither time nor memory follows the number typed as kernel."""
    for reducer in ("max", "mean", "soft", "gem", "lp", "logsumexp", "center"):
        for half in (2**23, 2**32):
            y = pool(X, reducer, Sliding(2 * half, 1, half))
            assert y.shape == (1, 2, 5, 5)
            assert bool(y.isfinite().all())
    assert pool(X, "max", Sliding(2, 2**39)).shape == (1, 2, 1, 1)
    assert pool(X, "max", Sliding(3, 1, 1, 1)).shape == (1, 2, 4, 4)
    for call in (sliding(2, padding=2**39), lambda: pool(X, "max", Adaptive(2**39)), lambda: pool(X, "max", Pyramid((2**39,)))):
        with pytest.raises((ValueError, RuntimeError, MemoryError)):
            call()
    with pytest.raises((ValueError, RuntimeError)):
        pool(X, "max", Boxes(GOOD, 2**39))
