"""Trainable modules: parameter counts, the published layouts and formulas, samples alone, compile, copies, ONNX."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import everypool
from everypool.module import PoolingModule
from everypool.pool import Operation

BLOCKS = [op for op in everypool.operations().values() if op.kind == "block"]


def name_of(operation: Operation) -> str:
    return operation.name


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def shuffled(module: nn.Module) -> nn.Module:
    """All parameters and statistics random, so that nothing hides behind a one or a zero."""
    generator = torch.Generator().manual_seed(5)
    for key, value in module.state_dict().items():
        if value.is_floating_point():
            random = torch.rand(value.shape, generator=generator, dtype=value.dtype)
            value.copy_(random + 0.5 if "var" in key else random - 0.4)
    return module


def outputs(result: Any) -> list[Tensor]:
    return list(result) if isinstance(result, (list, tuple)) else [result]


COUNTS = [
    (lambda: everypool.TopLeftCornerPool(256), 1_542_144),
    (lambda: everypool.BottomRightCornerPool(256), 1_542_144),
    (lambda: everypool.CenterNetCenterPool(256), 1_542_144),
    (lambda: everypool.CascadeTopLeftPool(256), 2_427_392),
    (lambda: everypool.CascadeBottomRightPool(256), 2_427_392),
    (lambda: everypool.StripPoolingModule(512), 7 * 512**2 + 5 * 512),
    (lambda: everypool.StripPoolingModule(64), 7 * 64**2 + 5 * 64),
    (lambda: everypool.MixedPoolingModule(256), 276_096),
    (lambda: everypool.MixedPoolingModule(1024), 4_397_568),
    (lambda: everypool.PyramidPoolingModule(2048), 4_198_400),
    (lambda: everypool.PANetBoxHead(), 52_444_160),
    (lambda: everypool.PANetConvBoxHead(), 16_978_432),
    (lambda: everypool.PANetMaskHead(), 4_394_752),
    (lambda: everypool.HopfieldPooling(512, num_heads=8), 1_054_208),
    (lambda: everypool.HopfieldLayer(512, num_heads=8, quantity=64), 1_086_464),
    (lambda: everypool.GlobalAverageHead(192, 10), 192 * 10 + 10),
    (lambda: everypool.GeMHead(512), 1),
    (lambda: everypool.GeMHead(512, per_channel=True), 512),
    (lambda: everypool.LeNetSubsampling(6), 12),
    (lambda: everypool.SpatialPyramidHead(256, 1000, (1, 2, 3, 6)), 256 * 50 * 1000 + 1000),
]


@pytest.mark.parametrize(("made", "expected"), COUNTS)
def test_parameter_counts(made: Any, expected: int) -> None:
    with torch.device("meta") if expected > 5_000_000 else torch.device("cpu"):
        assert count(made()) == expected


class Between(nn.Module):
    """A block within a model."""

    def __init__(self, block: nn.Module, arguments: int) -> None:
        super().__init__()
        self.block, self.arguments = block, arguments

    def forward(self, first: Any, second: Any = None) -> Any:
        return self.block(first) if self.arguments == 1 else self.block(first, second)


@pytest.mark.parametrize("operation", [op for op in everypool.operations().values() if op.sample is not None], ids=name_of)
def test_one_call_to_torch_fx(operation: Operation) -> None:
    """Every block and every module of windows, trained and pickled as well: one node, with the same parameters."""
    assert operation.sample is not None
    module, arguments = operation.sample()
    for block in (shuffled(module), pickle.loads(pickle.dumps(module)), copy.deepcopy(module).eval()):
        model = Between(block, len(arguments))
        graph = torch.fx.symbolic_trace(model)
        assert [node.target for node in graph.graph.nodes if node.op == "call_module"] == ["block"]
        assert list(graph.state_dict()) == list(model.state_dict())
        for got, expected in zip(outputs(graph(*arguments)), outputs(model(*arguments)), strict=True):
            torch.testing.assert_close(got, expected)


def test_every_module_is_one_call_to_torch_fx() -> None:
    """All that the records name, with samples or without."""
    names = [name for op in everypool.operations().values() for name in op.names]
    modules = [item for name in names if isinstance(item := getattr(everypool, name), type) and issubclass(item, nn.Module)]
    assert len(modules) > 40
    assert [item for item in modules if not issubclass(item, PoolingModule)] == []


@pytest.mark.parametrize("operation", BLOCKS, ids=name_of)
def test_train_copy_and_pickle(operation: Operation) -> None:
    """Every parameter gets a gradient; copies and what was pickled give the same bits."""
    module, arguments = operation.sample()  # type: ignore[misc]
    module = shuffled(module)
    loss = sum(y.square().sum() for y in outputs(module(*arguments)))
    if any(True for _ in module.parameters()):
        loss.backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.isfinite().all()), name
        assert parameter.grad.any() or "bias" in name or "norm" in name, name
    module.eval()
    expected = outputs(module(*arguments))
    other = shuffled(operation.sample()[0]).eval()  # type: ignore[misc]
    other.load_state_dict(module.state_dict())
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module)), other):
        for y, wanted in zip(outputs(twin(*arguments)), expected, strict=True):
            assert torch.equal(y, wanted)
    for name in operation.names:
        assert getattr(everypool, name)


@pytest.mark.parametrize("operation", [op for op in BLOCKS if op.onnx], ids=name_of)
@pytest.mark.filterwarnings("ignore")
def test_onnx_at_unseen_sizes(operation: Operation) -> None:
    pytest.importorskip("onnxscript")
    ort = pytest.importorskip("onnxruntime")
    module, (x,) = operation.sample()  # type: ignore[misc]
    module = shuffled(module).eval()
    spatial = range(2, x.dim()) if x.dim() > 3 else [1]
    dynamic = {axis: torch.export.Dim.DYNAMIC for axis in (0, *spatial)}
    buffer = io.BytesIO()
    torch.onnx.export(module, (x,), dynamo=True, dynamic_shapes=(dynamic,), verbose=False).save(buffer)
    session = ort.InferenceSession(buffer.getvalue())
    for size in ((3, 9, 7), (1, 12, 16), (2, 21, 5)):
        shape = (size[0], x.shape[1], *size[1:]) if x.dim() > 3 else (size[0], size[1], x.shape[2])
        sample = torch.rand(shape)
        (y,) = session.run(None, {session.get_inputs()[0].name: sample.numpy()})
        np.testing.assert_allclose(y, module(sample).detach().numpy(), rtol=2e-4, atol=1e-5)


MAPS = [op for op in BLOCKS if op.nd == (2,) and op.name != "panet_head"]
HEADS = [op for op in BLOCKS if op.name in ("spatial_pyramid_head", "global_average_head", "gem_head", "lenet_subsampling")]


@pytest.mark.parametrize("operation", MAPS + HEADS, ids=name_of)
def test_ragged_batches(operation: Operation) -> None:
    """With sizes each sample gives what it gives alone, forward and gradient, whatever lies around it."""
    module, (x,) = operation.sample()  # type: ignore[misc]
    module = shuffled(module).eval().double()
    x = x.double().requires_grad_()
    sizes = [[6, x.shape[3]], [4, 3]]
    inside = torch.zeros(2, 1, *x.shape[2:], dtype=torch.bool)
    for own, (height, width) in zip(inside, sizes, strict=True):
        own[:, :height, :width] = True
    y = module(x.masked_fill(~inside, float("nan")), sizes=sizes)
    (grad,) = torch.autograd.grad(y.sin().sum(), x)
    for i, (height, width) in enumerate(sizes):
        alone = x[i : i + 1, :, :height, :width].detach().requires_grad_()
        part = module(alone)
        own = y[i : i + 1][(..., *(slice(n) for n in part.shape[2:]))]
        torch.testing.assert_close(own, part, rtol=1e-9, atol=1e-10)
        wanted = torch.autograd.grad(part.sin().sum(), alone)[0]
        torch.testing.assert_close(grad[i : i + 1, :, :height, :width], wanted, rtol=1e-8, atol=1e-10)
    assert not grad.masked_fill(inside, 0).any()


def test_sizes_are_refused_where_statistics_join_the_samples() -> None:
    with pytest.raises(NotImplementedError, match="`sizes` must be None in training"):
        everypool.SPPF(8)(torch.ones(2, 8, 5, 5), sizes=[[5, 5], [3, 3]])


def test_bad_input() -> None:
    for module in (everypool.TopLeftCornerPool(8, 4), everypool.StripPoolingModule(8), everypool.SPPF(8)):
        for x in (torch.ones(1, 7, 5, 5), torch.ones(8, 5, 5), torch.ones(1, 8, 5)):
            with pytest.raises(ValueError, match="`input` must be "):
                module(x)
    for made, name in (
        (lambda: everypool.TopLeftCornerPool(0), "channels"),
        (lambda: everypool.MixedPoolingModule(6), "channels"),
        (lambda: everypool.YOLOSPP(8, kernels=(4,)), "kernels"),
        (lambda: everypool.SPPF(8, kernel=4), "kernel"),
        (lambda: everypool.PyramidPoolingModule(8, bins=()), "bins"),
        (lambda: everypool.PANetBoxHead(8, 33), "hidden"),
        (lambda: everypool.PANetBoxHead(8, 32, scales=()), "scales"),
        (lambda: everypool.PANetBoxHead(8, 32, fuse="mean"), "fuse"),
        (lambda: everypool.FullyConnectedHead(3, (2, 0), 4), "spatial"),
        (lambda: everypool.FullyConnectedHead(3, (2, 2), 4)(torch.ones(1, 3, 2, 3)), "input"),
        (lambda: everypool.GlobalAverageHead(3, 2, reducer="mena"), "reducer"),
        (lambda: everypool.LeNetSubsampling(3, 0), "kernel_size"),
        (lambda: everypool.LeNetSubsampling(3, activation="relu"), "activation"),
        (lambda: everypool.SpatialPyramidHead(3, 2)([torch.ones(4, 2, 2)]), "input"),
    ):
        with pytest.raises(ValueError, match=f"^`{name}` must be .+, got "):
            made()


# ---- the published formulas, written out --------------------------------------------------------------------------------


def convolved(
    x: Tensor, state: dict[str, Tensor], name: str, padding: int, norm: str | None = None, act: bool = True
) -> Tensor:
    """Convolution, batch normalisation with running statistics, ReLU, from the tensors of a state dict."""
    y = F.conv2d(x, state[f"{name}.weight"], state.get(f"{name}.bias"), padding=padding)
    if norm is not None:
        statistics = state[f"{norm}.running_mean"], state[f"{norm}.running_var"]
        y = F.batch_norm(y, *statistics, state[f"{norm}.weight"], state[f"{norm}.bias"], eps=1e-5)
    return y.relu() if act else y


def scan(x: Tensor, direction: str) -> Tensor:
    axis, flip = {"top": (2, True), "bottom": (2, False), "left": (3, True), "right": (3, False)}[direction]
    x = x.flip(axis) if flip else x
    x = x.cummax(axis).values
    return x.flip(axis) if flip else x


def block(x: Tensor, s: dict[str, Tensor], name: str) -> Tensor:
    return convolved(x, s, f"{name}.conv", 1, f"{name}.bn")


def two_directions(x: Tensor, s: dict[str, Tensor], pooled: Tensor) -> Tensor:
    y = convolved(pooled, s, "p_conv1", 1, "p_bn1", act=False)
    return block((y + convolved(x, s, "conv1", 0, "bn1", act=False)).relu(), s, "conv2")


@pytest.mark.parametrize(("name", "down", "across"), [("TopLeft", "top", "left"), ("BottomRight", "bottom", "right")])
def test_corner_modules(name: str, down: str, across: str) -> None:
    x = torch.randn(2, 8, 7, 6, dtype=torch.float64)
    plain = shuffled(getattr(everypool, f"{name}CornerPool")(8, 4)).eval().double()
    s = plain.state_dict()
    pooled = scan(block(x, s, "p1_conv1"), down) + scan(block(x, s, "p2_conv1"), across)
    torch.testing.assert_close(plain(x), two_directions(x, s, pooled))
    cascade = shuffled(getattr(everypool, f"Cascade{name}Pool")(8, 4)).eval().double()
    s = cascade.state_dict()
    first = block(x, s, "p1_conv1") + scan(block(x, s, "look_conv1"), across)
    second = block(x, s, "p2_conv1") + scan(block(x, s, "look_conv2"), down)
    pooled = scan(F.conv2d(first, s["P1_look_conv.weight"], padding=1), down)
    pooled = pooled + scan(F.conv2d(second, s["P2_look_conv.weight"], padding=1), across)
    torch.testing.assert_close(cascade(x), two_directions(x, s, pooled))


def test_center_module() -> None:
    x = torch.randn(2, 8, 7, 6, dtype=torch.float64)
    module = shuffled(everypool.CenterNetCenterPool(8, 4)).eval().double()
    s = module.state_dict()
    # the original runs two scans over each map, one each way
    pooled = scan(scan(block(x, s, "p1_conv1"), "top"), "bottom") + scan(scan(block(x, s, "p2_conv1"), "left"), "right")
    torch.testing.assert_close(module(x), two_directions(x, s, pooled))


def test_strip_module() -> None:
    x = torch.randn(2, 8, 7, 6, dtype=torch.float64)
    module = shuffled(everypool.StripPoolingModule(8)).eval().double()
    s = module.state_dict()
    rows, columns = x.mean(3, keepdim=True), x.mean(2, keepdim=True)
    rows = F.conv2d(rows, s["conv1.weight"], padding=(1, 0))
    columns = F.conv2d(columns, s["conv2.weight"], padding=(0, 1))
    norm = [
        F.batch_norm(y, s[f"{n}.running_mean"], s[f"{n}.running_var"], s[f"{n}.weight"], s[f"{n}.bias"]).expand(2, 8, 7, 6)
        for y, n in ((rows, "bn1"), (columns, "bn2"))
    ]
    gate = F.conv2d((norm[0] + norm[1]).relu(), s["conv3.weight"], s["conv3.bias"]).sigmoid()
    torch.testing.assert_close(module(x), x * gate)
    bare = everypool.StripPoolingModule(8, gated=False).eval().double()
    bare.load_state_dict(s)
    torch.testing.assert_close(bare(x), gate)


def test_mixed_pooling_module() -> None:
    x = torch.randn(2, 8, 9, 7, dtype=torch.float64)
    module = shuffled(everypool.MixedPoolingModule(8, (4, 3))).eval().double()
    s = module.state_dict()

    def layer(x: Tensor, name: str, padding: Any, act: bool = False) -> Tensor:
        return convolved(x, s, f"{name}.0", padding, f"{name}.1", act)

    def up(x: Tensor) -> Tensor:
        return F.interpolate(x, (9, 7), mode="bilinear", align_corners=True)

    x1, x2 = layer(x, "conv1_1", 0, True), layer(x, "conv1_2", 0, True)
    near = layer(x1, "conv2_0", 1)
    for bins, name in ((4, "conv2_1"), (3, "conv2_2")):
        near = near + up(layer(F.adaptive_avg_pool2d(x1, bins), name, 1))
    far = up(layer(F.adaptive_avg_pool2d(x2, (1, None)), "conv2_3", (0, 1)))
    far = far + up(layer(F.adaptive_avg_pool2d(x2, (None, 1)), "conv2_4", (1, 0)))
    both = torch.cat([layer(near.relu(), "conv2_5", 1, True), layer(far.relu(), "conv2_6", 1, True)], 1)
    torch.testing.assert_close(module(x), (x + layer(both, "conv3", 0)).relu())


def test_pyramid_pooling_module() -> None:
    x = torch.randn(2, 8, 9, 7, dtype=torch.float64)
    module = shuffled(everypool.PyramidPoolingModule(8)).eval().double()
    s = module.state_dict()
    assert "features.0.1.weight" in s
    parts = [x]
    for i, bins in enumerate((1, 2, 3, 6)):
        y = convolved(F.adaptive_avg_pool2d(x, bins), s, f"features.{i}.1", 0, f"features.{i}.2")
        parts.append(F.interpolate(y, (9, 7), mode="bilinear", align_corners=True))
    torch.testing.assert_close(module(x), torch.cat(parts, 1))


def test_yolo_pyramids() -> None:
    x = torch.randn(2, 8, 15, 14, dtype=torch.float64)
    slow, fast = shuffled(everypool.YOLOSPP(8)).eval().double(), everypool.SPPF(8, act=True).eval().double()
    fast.load_state_dict(slow.state_dict())
    s = slow.state_dict()

    def layer(x: Tensor, name: str) -> Tensor:
        y = F.conv2d(x, s[f"{name}.conv.weight"])
        n = f"{name}.bn"
        return F.silu(
            F.batch_norm(y, s[f"{n}.running_mean"], s[f"{n}.running_var"], s[f"{n}.weight"], s[f"{n}.bias"], eps=1e-3)
        )

    inner = layer(x, "cv1")
    expected = layer(torch.cat([inner, *(F.max_pool2d(inner, k, 1, k // 2) for k in (5, 9, 13))], 1), "cv2")
    torch.testing.assert_close(slow(x), expected)
    torch.testing.assert_close(fast(x), expected)


def test_spatial_pyramid_head_takes_any_size() -> None:
    head = everypool.SpatialPyramidHead(3, 5, (1, 2), hidden=(7,)).double()
    samples = [torch.randn(3, h, w, dtype=torch.float64) for h, w in ((5, 9), (4, 4), (13, 2))]
    together = head(samples)
    for sample, y in zip(samples, together, strict=True):
        vector = torch.cat([F.adaptive_max_pool2d(sample[None], n).flatten(1) for n in (1, 2)], 1)
        torch.testing.assert_close(y[None], head.classifier(vector))


@pytest.mark.parametrize("nd", [1, 2, 3])
def test_global_average_head(nd: int) -> None:
    x = torch.randn(2, 6, *(5, 4, 3)[:nd], dtype=torch.float64)
    for act in (True, False):
        head = everypool.GlobalAverageHead(6, 4, act_before_pool=act).double()
        w, b = head.classifier.weight, head.classifier.bias
        maps = torch.einsum("kc,nc...->nk...", w, x)
        torch.testing.assert_close(head.class_activation_map(x), maps)
        scores = maps + b.reshape(-1, *[1] * nd)
        expected = (scores.relu() if act else scores).flatten(2).mean(2)
        torch.testing.assert_close(head(x), expected)
        peak = everypool.GlobalAverageHead(6, 4, act_before_pool=act, reducer="max").double()
        peak.load_state_dict(head.state_dict())
        torch.testing.assert_close(peak(x), (scores.relu() if act else scores).flatten(2).amax(2))
    convolution = {"classifier.weight": w[..., None, None].detach(), "classifier.bias": b.detach()}
    loaded = everypool.GlobalAverageHead(6, 4, act_before_pool=False).double()
    loaded.load_state_dict(convolution)
    torch.testing.assert_close(loaded(x), expected)


def test_fully_connected_head() -> None:
    head = everypool.FullyConnectedHead(3, (4, 2), 5, hidden=(6,))
    x = torch.randn(2, 3, 4, 2)
    first, second = head.classifier[0], head.classifier[2]
    expected = F.linear(F.linear(x.reshape(2, 24), first.weight, first.bias).relu(), second.weight, second.bias)
    torch.testing.assert_close(head(x), expected)
    # the article's comparison: 7x7x512 to 4096, 4096, 1000 against a global average head
    with torch.device("meta"):
        assert count(everypool.FullyConnectedHead(512, (7, 7), 1000, (4096, 4096))) == 123_642_856
        assert count(everypool.GlobalAverageHead(512, 1000)) == 513_000


def test_gem_head() -> None:
    x = torch.rand(2, 4, 5, 3, dtype=torch.float64)
    head = everypool.GeMHead(4, 3).double()
    state = head.state_dict()
    assert set(state) == {"pool.p", "whiten.weight", "whiten.bias"}
    v = x.clamp(min=1e-6).pow(3.0).mean((2, 3)).pow(1 / 3.0)
    v = v / (v.norm(dim=1, keepdim=True) + 1e-6)
    v = F.linear(v, state["whiten.weight"], state["whiten.bias"])
    torch.testing.assert_close(head(x), v / (v.norm(dim=1, keepdim=True) + 1e-6))


@pytest.mark.parametrize("nd", [1, 2, 3])
def test_subsampling(nd: int) -> None:
    x = torch.randn(2, 3, *[6] * nd, dtype=torch.float64)
    module = everypool.LeNetSubsampling(3).double()
    total = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}[nd](x, 2) * 2**nd
    shape = (-1, *[1] * nd)
    expected = 1.7159 * torch.tanh(2 / 3 * (module.weight.reshape(shape) * total + module.bias.reshape(shape)))
    torch.testing.assert_close(module(x), expected)
    squashed = everypool.LeNetSubsampling(3, activation="sigmoid").double()
    squashed.load_state_dict(module.state_dict())
    torch.testing.assert_close(squashed(x), torch.sigmoid(module.weight.reshape(shape) * total + module.bias.reshape(shape)))


BOXES = torch.tensor([[0, 3.0, 2.0, 30.0, 40.0], [1, 8.0, 9.0, 20.0, 15.0], [1, 0.0, 0.0, 60.0, 47.0]], dtype=torch.float64)


def group(x: Tensor, s: dict[str, Tensor], name: str) -> Tensor:
    return F.group_norm(x, 32, s[f"{name}.weight"], s[f"{name}.bias"])


@pytest.mark.parametrize("fuse", ["max", "sum"])
def test_panet_heads(fuse: str) -> None:
    maps = [torch.randn(2, 5, 16, 12, dtype=torch.float64), torch.randn(2, 5, 8, 6, dtype=torch.float64)]
    scales = (0.25, 0.125)

    def fused(parts: list[Tensor]) -> Tensor:
        return torch.stack(parts).amax(0) if fuse == "max" else parts[0] + parts[1]

    def pooled(resolution: int) -> list[Tensor]:
        pairs = zip(maps, scales, strict=True)
        return [everypool.roi_align(x, BOXES, resolution, scale, sampling_ratio=2) for x, scale in pairs]

    box = shuffled(everypool.PANetBoxHead(5, 64, 3, scales, fuse)).double()
    s = box.state_dict()
    parts = [
        group(F.linear(x.flatten(1), s[f"fc1.{i}.0.weight"], s[f"fc1.{i}.0.bias"]), s, f"fc1.{i}.1").relu()
        for i, x in enumerate(pooled(3))
    ]
    expected = group(F.linear(fused(parts), s["fc2.0.weight"], s["fc2.0.bias"]), s, "fc2.1").relu()
    torch.testing.assert_close(box(maps, BOXES), expected)
    bare = everypool.PANetBoxHead(5, 64, 3, scales, fuse, first_norm=False)
    assert set(bare.state_dict()) == {key for key in s if not key.startswith(("fc1.0.1", "fc1.1.1"))}

    def conv(x: Tensor, s: dict[str, Tensor], first: str, second: str) -> Tensor:
        return group(F.conv2d(x, s[f"{first}.weight"], padding=1), s, second).relu()

    head = shuffled(everypool.PANetConvBoxHead(5, 16, 3, scales, fuse, convs=3, width=64)).double()
    s = head.state_dict()
    y = fused([conv(x, s, f"conv1_head.{i}.0", f"conv1_head.{i}.1") for i, x in enumerate(pooled(3))])
    y = conv(conv(y, s, "convs.0", "convs.1"), s, "convs.3", "convs.4")
    torch.testing.assert_close(head(maps, BOXES), F.linear(y.flatten(1), s["fc.weight"], s["fc.bias"]).relu())

    mask = shuffled(everypool.PANetMaskHead(5, 64, 4, scales, fuse, convs=2)).double()
    s = mask.state_dict()
    y = fused([conv(x, s, f"mask_conv1.{i}.0", f"mask_conv1.{i}.1") for i, x in enumerate(pooled(4))])
    y = conv(y, s, "conv_fcn.0", "conv_fcn.1")
    expected = F.conv_transpose2d(y, s["upconv.weight"], s["upconv.bias"], stride=2).relu()
    torch.testing.assert_close(mask(maps, BOXES), expected)
    assert mask(maps, BOXES[:0]).shape == (0, 64, 8, 8)


def test_panet_head_of_ragged_maps() -> None:
    maps = [torch.randn(2, 5, 16, 12, dtype=torch.float64), torch.randn(2, 5, 8, 6, dtype=torch.float64)]
    head = everypool.PANetBoxHead(5, 64, 3, (0.25, 0.125)).double()
    sizes = [[[16, 12], [9, 7]], [[8, 6], [5, 4]]]
    y = head(maps, BOXES, sizes=sizes)
    alone = [x[1:, :, : own[1][0], : own[1][1]] for x, own in zip(maps, sizes, strict=True)]
    boxes = BOXES[1:] * torch.tensor([0, 1, 1, 1, 1], dtype=torch.float64)
    torch.testing.assert_close(y[1:], head(alone, boxes))
