"""BlurPool and MaxBlurPool against loops in float64, timm, and the sizes and values of torch.nn's max pooling."""

from __future__ import annotations

import copy
import io
import itertools
import math
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import everypool
from everypool import BlurPool1d, BlurPool2d, MaxBlurPool1d, MaxBlurPool2d

MODES = {"reflect": "reflect", "replicate": "edge", "circular": "wrap", "zeros": "constant"}  # as numpy.pad has them
BINOMIAL = {  # Pascal's triangle
    1: [1], 2: [1, 1], 3: [1, 2, 1], 4: [1, 3, 3, 1], 5: [1, 4, 6, 4, 1], 6: [1, 5, 10, 10, 5, 1], 7: [1, 6, 15, 20, 15, 6, 1],
}  # fmt: skip
SPATIAL = {1: (9,), 2: (7, 6), 3: (5, 4, 6)}


def per_axis(value: Any, nd: int) -> tuple[int, ...]:
    return value[:nd] if isinstance(value, tuple) else (value,) * nd


def layer(stem: str, nd: int) -> Any:
    return getattr(everypool, f"{stem}{nd}d")


def looped(x: np.ndarray, taps: Any, stride: Any, mode: str, mask: np.ndarray | None = None) -> np.ndarray:
    """Every result by its own sum over every tap; positions outside are those that numpy.pad puts there."""
    nd = x.ndim - 2
    taps, stride = per_axis(taps, nd), per_axis(stride, nd)
    out = [math.ceil(n / s) for n, s in zip(x.shape[2:], stride, strict=True)]
    y = np.zeros((*x.shape[:2], *out))
    exists = np.ones_like(x, dtype=bool) if mask is None else np.broadcast_to(mask, x.shape)
    padded = []
    for n, f in zip(x.shape[2:], taps, strict=True):
        more = {"constant_values": -1} if mode == "zeros" else {}
        padded.append(np.pad(np.arange(n), ((f - 1) // 2, math.ceil((f - 1) / 2)), mode=MODES[mode], **more))  # type: ignore[call-overload]
    for sample, channel, *place in np.ndindex(*y.shape):
        total = weight = number = 0.0
        for tap in np.ndindex(*taps):
            w = math.prod(BINOMIAL[f][t] / sum(BINOMIAL[f]) for f, t in zip(taps, tap, strict=True))
            at = tuple(int(p[i * s + t]) for p, i, s, t in zip(padded, place, stride, tap, strict=True))
            if -1 in at:  # a zero of the padding, which is a value
                weight += w
            elif exists[(sample, channel, *at)]:
                total, weight, number = total + w * x[(sample, channel, *at)], weight + w, number + 1
        y[(sample, channel, *place)] = total / weight if number else 0
    return y


def maxima(x: np.ndarray, kernel: int, padding: int, dilation: int, length: Any) -> np.ndarray:
    """The largest element of the windows at the first `length` positions of each axis."""
    y = np.full((*x.shape[:2], *length), -np.inf)
    for place in np.ndindex(*length):
        for tap in np.ndindex(*(kernel,) * len(length)):
            at = tuple(i - padding + t * dilation for i, t in zip(place, tap, strict=True))
            if all(0 <= p < n for p, n in zip(at, x.shape[2:], strict=True)):
                here = (slice(None), slice(None), *place)
                y[here] = np.maximum(y[here], x[(slice(None), slice(None), *at)])
    return y


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("nd", [1, 2, 3])
def test_blur_against_loops(nd: int, mode: str) -> None:
    for taps, stride in ((3, 2), (4, 2), (5, 3), ((2, 3, 1), (1, 2, 3))):
        module = layer("BlurPool", nd)(per_axis(taps, nd), per_axis(stride, nd), padding_mode=mode)
        x = torch.randn(2, 2, *SPATIAL[nd], dtype=torch.float64)
        np.testing.assert_allclose(module(x), looped(x.numpy(), taps, stride, mode), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("mode", MODES)
def test_every_size_down_to_one_element(mode: str) -> None:
    """ceil(n / stride) results, with a border that is wider than the map too."""
    for taps, stride, n in itertools.product(range(1, 8), (1, 2, 3), (1, 2, 3, 4, 8)):
        x = torch.randn(1, 1, n, dtype=torch.float64)
        y = BlurPool1d(taps, stride, padding_mode=mode)(x)
        np.testing.assert_allclose(y, looped(x.numpy(), taps, stride, mode), rtol=1e-12, atol=1e-14)


def test_what_a_blur_is() -> None:
    """A constant stays what it is, the fastest wave vanishes, and a step beyond the map leaves its first element."""
    for taps in range(1, 8):
        ones = torch.full((1, 2, 7, 5), 3.0)
        assert torch.equal(BlurPool2d(taps)(ones), torch.full((1, 2, 4, 3), 3.0))
        wave = torch.tensor([1.0, -1.0] * 8).reshape(1, 1, 16)
        if taps > 1:
            assert not BlurPool1d(taps, 1, padding_mode="circular")(wave).any()
    x = torch.randn(1, 2, 7, 5)
    assert torch.equal(BlurPool2d(1, 1)(x), x)
    assert torch.equal(BlurPool2d(1, 10**9)(x), x[..., :1, :1])
    assert torch.equal(BlurPool2d(1, (2, 3))(x), x[..., ::2, ::3])


def test_odd_filters_as_timm_has_them() -> None:
    pytest.importorskip("timm", exc_type=Exception)  # an installation of another torch breaks at import
    from timm.layers import BlurPool2d as Theirs

    x = torch.randn(2, 3, 9, 8)
    for taps in (3, 5, 7):
        torch.testing.assert_close(BlurPool2d(taps)(x), Theirs(3, taps, 2)(x), rtol=1e-5, atol=1e-6)


WINDOWS = [  # kernel, stride, padding, dilation, ceil_mode
    (2, 2, 0, 1, False),
    (2, 2, 0, 1, True),
    (3, 2, 1, 1, False),
    (3, 2, 1, 1, True),
    (3, 3, 0, 1, True),
    (2, 3, 1, 1, True),
    (4, 3, 2, 1, True),
    (1, 5, 0, 1, True),
    (3, 2, 1, 2, True),
    (5, 4, 2, 1, False),
]


@pytest.mark.parametrize("windows", WINDOWS, ids=str)
def test_sizes_and_maxima_are_those_of_torch(windows: Any) -> None:
    """At every size that torch takes; without a filter the values are torch's too, bit for bit."""
    kernel, stride, padding, dilation, ceil = windows
    theirs = nn.MaxPool2d(kernel, stride, padding, dilation, ceil_mode=ceil)
    taken = 0
    for height, width in itertools.product(range(1, 14), (3, 4, 9)):
        x = torch.randn(1, 2, height, width)
        modules = [MaxBlurPool2d(kernel, stride, padding, dilation, ceil_mode=ceil, filter_size=f) for f in (1, 3, 4)]
        try:
            expected = theirs(x)
        except RuntimeError:
            with pytest.raises(ValueError, match=r"^`kernel_size` must be .+, got "):
                modules[1](x)
            continue
        taken += 1
        expected = torch.where(expected.isinf(), 0, expected)  # dilated windows that jump over a small map hold nothing
        assert torch.equal(modules[0](x), expected)
        assert all(module(x).shape == expected.shape for module in modules[1:])
    assert taken > 20


def test_stride_and_other_paddings() -> None:
    x = torch.randn(2, 3, 9, 8)
    assert MaxBlurPool2d(3)(x).shape == nn.MaxPool2d(3)(x).shape
    assert repr(MaxBlurPool2d(3)).startswith("MaxBlurPool2d(kernel_size=3, stride=3, ")
    for n, stride, ceil in itertools.product(range(1, 9), (1, 2, 3), (False, True)):
        own = MaxBlurPool1d(3, stride, "same", ceil_mode=ceil)(x[:, :, 0, :1].expand(2, 3, n))
        assert own.shape[2] == math.ceil(n / stride)
    one_sided = MaxBlurPool2d(2, 2, ((0, 1), (1, 0)), filter_size=1)(x)
    assert torch.equal(one_sided, everypool.max_pool(x, 2, 2, ((0, 1), (1, 0))))


@pytest.mark.parametrize("nd", [1, 2, 3])
@pytest.mark.parametrize("mode", ["reflect", "zeros"])
def test_max_blur_against_loops(nd: int, mode: str) -> None:
    """The maxima at all positions from the first window to the last one, then the loops of the blur."""
    for kernel, stride, padding, dilation, ceil, length in (  # length: positions along axes of 7 and 6 elements
        (3, 2, 1, 1, False, (7, 6)),
        (2, 3, 0, 1, False, (6, 5)),
        (2, 3, 0, 1, True, (7, 5)),  # windows at 0, 3 and 6; at 0 and 3
        (3, 2, 1, 1, True, (7, 7)),  # at 0, 2, 4 and 6
        (2, 2, 1, 2, True, (7, 7)),
    ):
        module = layer("MaxBlurPool", nd)(kernel, stride, padding, dilation, ceil_mode=ceil, padding_mode=mode)
        x = torch.randn(1, 2, *(7, 6, 6)[:nd], dtype=torch.float64)
        dense = maxima(x.numpy(), kernel, padding, dilation, (*length, length[1])[:nd])
        np.testing.assert_allclose(module(x), looped(dense, 3, stride, mode), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("nd", [1, 2, 3])
@pytest.mark.parametrize("mode", MODES)
def test_masks_against_loops(nd: int, mode: str) -> None:
    """Weights of what is masked are dropped; a window of nothing else gives 0; all of it counts as if nothing were said."""
    x = torch.randn(2, 2, *SPATIAL[nd], dtype=torch.float64)
    for taps, channels in ((3, 1), (4, 2)):
        module = layer("BlurPool", nd)(taps, 2, padding_mode=mode)
        mask = torch.rand(2, channels, *SPATIAL[nd]) < 0.4
        assert torch.equal(module(x, mask=torch.ones_like(mask)), module(x))
        y = module(x.masked_fill(~mask, math.nan), mask=mask)
        np.testing.assert_allclose(y, looped(x.numpy(), taps, 2, mode, mask.numpy()), rtol=1e-11, atol=1e-13)
    leaf = x.clone().requires_grad_()
    y = module(leaf, mask=torch.zeros_like(mask))
    y.sum().backward()
    assert not y.any()
    assert leaf.grad is not None
    assert not leaf.grad.any()


def test_mask_of_maxima() -> None:
    """Positions without a valid element are left out of the blur, those with one count in full."""
    x = torch.tensor([[[5.0, 1.0, 9.0, 9.0, 2.0, 4.0]]])
    mask = torch.tensor([[[True, True, False, False, True, True]]])
    # maxima of two: 5, 1, nothing, 2, 4; blurred at 0, 2 and 4, mirrored at both ends
    expected = torch.tensor([[[(2 * 5 + 2 * 1) / 4, (1 + 2) / 2, (2 + 2 * 4 + 2) / 4]]])
    torch.testing.assert_close(MaxBlurPool1d(2, 2, ceil_mode=False)(x, mask=mask), expected)


MODULES: dict[str, tuple[str, dict[str, Any]]] = {
    "blur": ("BlurPool", {}),
    "blur 4, replicate": ("BlurPool", {"kernel_size": 4, "padding_mode": "replicate"}),
    "blur 7, stride 1": ("BlurPool", {"kernel_size": 7, "stride": 1}),
    "blur 6, circular": ("BlurPool", {"kernel_size": 6, "padding_mode": "circular"}),
    "blur 5, zeros": ("BlurPool", {"kernel_size": 5, "stride": 3, "padding_mode": "zeros"}),
    "max 3": ("MaxBlurPool", {"kernel_size": 3, "stride": 2, "padding": 1}),
    "max 2, ceil": ("MaxBlurPool", {"kernel_size": 2, "stride": 3, "ceil_mode": True, "filter_size": 4}),
    "max, same": ("MaxBlurPool", {"kernel_size": 3, "stride": 2, "padding": "same", "padding_mode": "zeros"}),
    "max, dilated": ("MaxBlurPool", {"kernel_size": 3, "stride": 2, "padding": 2, "dilation": 2, "ceil_mode": True}),
}
every = pytest.mark.parametrize(("stem", "settings"), MODULES.values(), ids=MODULES.keys())


@every
@pytest.mark.parametrize("nd", [1, 2, 3])
def test_with_sizes_each_sample_is_alone(stem: str, settings: Any, nd: int) -> None:
    """Its own border, forward and backward, whatever lies around it; the mask then says what counts within."""
    module = layer(stem, nd)(**settings)
    spatial = SPATIAL[nd]
    sizes = [list(spatial), [2, 4, 3][:nd], [spatial[0], 3, 4][:nd]]
    x = torch.randn(3, 2, *spatial, dtype=torch.float64)
    inside = torch.zeros(3, 1, *spatial, dtype=torch.bool)
    for own, size in zip(inside, sizes, strict=True):
        own[(slice(None), *(slice(n) for n in size))] = True
    for mask in (None, torch.rand(3, 1, *spatial) < 0.7):
        leaf = x.masked_fill(~inside, math.nan).requires_grad_()
        y = module(leaf, mask=mask, sizes=sizes)
        (grad,) = torch.autograd.grad(y.sin().sum(), leaf)
        rest = torch.ones_like(y, dtype=torch.bool)
        for i, size in enumerate(sizes):
            part = (slice(i, i + 1), slice(None), *(slice(n) for n in size))
            alone = x[part].clone().requires_grad_()
            wanted = module(alone, mask=None if mask is None else mask[part])
            valid = (slice(i, i + 1), slice(None), *(slice(n) for n in wanted.shape[2:]))
            rest[valid] = False
            torch.testing.assert_close(y[valid], wanted, rtol=1e-12, atol=1e-13)
            torch.testing.assert_close(grad[part], torch.autograd.grad(wanted.sin().sum(), alone)[0], rtol=1e-11, atol=1e-13)
        assert not y[rest].any()
        assert not grad.masked_fill(inside, 0).any()


@every
def test_derivatives(stem: str, settings: Any) -> None:
    module = layer(stem, 2)(**settings)
    x = torch.randn(2, 1, 4, 5, dtype=torch.float64, requires_grad=True)
    sizes, mask = torch.tensor([[4, 5], [3, 2]]), torch.rand(2, 1, 4, 5) < 0.7
    for call in (module, lambda x: module(x, sizes=sizes), lambda x: module(x, mask=mask)):
        assert torch.autograd.gradcheck(call, (x,), fast_mode=True)
        assert torch.autograd.gradgradcheck(call, (x,), fast_mode=True)


@every
def test_layout_batch_and_copies(stem: str, settings: Any) -> None:
    module = layer(stem, 2)(**settings)
    assert not list(module.parameters())
    assert not module.state_dict()
    x = torch.randn(2, 3, 7, 6)
    y = module(x)
    last = module(x.contiguous(memory_format=torch.channels_last))
    assert y.is_contiguous()
    assert last.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(last, y)
    assert torch.equal(module(x[0]), y[0])
    assert torch.equal(module(x[1], sizes=(7, 6)), y[1])
    assert torch.equal(module(x[1], mask=torch.ones(1, 7, 6, dtype=torch.bool)), y[1])
    assert torch.equal(module(x.mT.contiguous().mT), y)
    assert module(x[:0]).shape == (0, *y.shape[1:])
    assert module(x[:, :0]).shape == (2, 0, *y.shape[2:])
    torch.testing.assert_close(torch.func.vmap(module)(x.unsqueeze(1))[:, 0], y)
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(twin(x), y)
        assert repr(twin) == repr(module)


def test_the_result_is_no_view() -> None:
    x = torch.zeros(1, 1, 4, 4)
    BlurPool2d(1, 1)(x).add_(1)
    assert not x.any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_add_in_a_wider_one(dtype: torch.dtype) -> None:
    """Within half a unit in the last place of the float64 result, at the edge of the type's range too."""
    x = torch.randn(2, 2, 9, 9).to(dtype)
    for f in (3, 7):
        y = BlurPool2d(f)(x)
        assert y.dtype == dtype
        exact = torch.from_numpy(looped(x.double().numpy(), f, 2, "reflect"))
        assert torch.equal(y, exact.to(dtype))
    top = torch.full((1, 1, 5, 5), torch.finfo(dtype).max, dtype=dtype)
    assert torch.equal(BlurPool2d(5, 1)(top), top)


def test_compiles_whole_with_mask_and_sizes() -> None:
    torch._dynamo.reset()
    module = BlurPool1d(4)
    compiled = torch.compile(module, fullgraph=True, dynamic=True, backend="aot_eager")
    x, mask, sizes = torch.randn(3, 2, 11), torch.rand(3, 1, 11) < 0.5, torch.tensor([[11], [1], [4]])
    torch.testing.assert_close(compiled(x, mask, sizes), module(x, mask, sizes))


@pytest.mark.filterwarnings("ignore")
def test_onnx_at_sizes_never_seen() -> None:
    """Even filters and windows over the end; maps smaller than the border, which the graph has to mirror."""
    pytest.importorskip("onnxscript")
    ort = pytest.importorskip("onnxruntime")
    modules = nn.ModuleList([BlurPool1d(6), BlurPool1d(4, 3, padding_mode="circular"), MaxBlurPool1d(2, 3, ceil_mode=True)])

    class All(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return tuple(module(x) for module in modules)

    dynamic = {0: torch.export.Dim.DYNAMIC, 2: torch.export.Dim.DYNAMIC}
    buffer = io.BytesIO()
    torch.onnx.export(All(), (torch.randn(2, 2, 11),), dynamo=True, dynamic_shapes=(dynamic,), verbose=False).save(buffer)
    session = ort.InferenceSession(buffer.getvalue())
    for batch, n in ((1, 2), (3, 3), (2, 16), (1, 29)):
        x = torch.randn(batch, 2, n)
        for actual, module in zip(session.run(None, {session.get_inputs()[0].name: x.numpy()}), modules, strict=True):
            np.testing.assert_allclose(actual, module(x), rtol=1e-5, atol=1e-6)


def test_bad_input() -> None:
    x = torch.ones(1, 2, 5, 4)
    cases: list[tuple[Any, type[Exception], str]] = [
        (lambda: BlurPool2d(0), ValueError, "kernel_size"),
        (lambda: BlurPool2d(8), ValueError, "kernel_size"),
        (lambda: BlurPool2d((3, 3, 3)), ValueError, "kernel_size"),
        (lambda: BlurPool2d(3.0), TypeError, "kernel_size"),
        (lambda: BlurPool2d(3, 0), ValueError, "stride"),
        (lambda: BlurPool2d(padding_mode="reflec"), ValueError, "padding_mode"),
        (lambda: MaxBlurPool2d(3, 2, 2), ValueError, "padding"),
        (lambda: MaxBlurPool2d(3, 2, ceil_mode=1), TypeError, "ceil_mode"),
        (lambda: MaxBlurPool2d(3, filter_size=9), ValueError, "filter_size"),
        (lambda: MaxBlurPool2d(6)(x), ValueError, "kernel_size"),
        (lambda: MaxBlurPool2d(4)(x, sizes=[[5, 3]]), ValueError, "sizes"),
        (lambda: BlurPool2d()(x.int()), TypeError, "input"),
        (lambda: BlurPool2d()(x.to(torch.complex64)), TypeError, "input"),
        (lambda: BlurPool2d()([x[0]]), TypeError, "input"),
        (lambda: BlurPool2d()(x[0, 0]), ValueError, "input"),
        (lambda: BlurPool2d()(x[..., :0]), ValueError, "input"),
        (lambda: BlurPool2d()(x, mask=torch.ones(1, 1, 5, 4)), TypeError, "mask"),
        (lambda: BlurPool2d()(x, sizes=[[6, 4]]), ValueError, "sizes"),
    ]
    for made, error, name in cases:
        with pytest.raises(error, match=f"^`{name}` must be .+, got "):
            made()
