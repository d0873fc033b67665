"""Valid sizes through models, and masked runs: a padded batch against each image alone, forward and backward."""

from __future__ import annotations

import copy
import importlib.util
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import everypool
from everypool import border_effect, masked_forward, propagate_sizes
from everypool.study import backbone
from everypool.study.models.timm import package


class Residual(nn.Module):
    """A block with a shortcut of step 2, and a gate if `gated`."""

    def __init__(self, inputs: int, outputs: int, stride: int = 2, gated: bool = False) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm = nn.BatchNorm2d(outputs)
        self.second = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.short = nn.Conv2d(inputs, outputs, 1, stride)
        self.gate = nn.Conv2d(outputs, outputs, 1) if gated else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.second(F.relu(self.norm(self.first(x)), inplace=True))
        if self.gate is not None:
            y = y * self.gate(y.mean((2, 3), keepdim=True)).sigmoid()
        y += self.short(x)
        return F.silu(y)


class Dense(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.second = nn.Conv2d(7, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.cat([x, F.relu(self.first(x))], 1)
        y = torch.cat([y, F.relu(self.second(y))], dim=1)
        y = F.avg_pool2d(y, 3, 2, 1, True, False)
        return F.max_pool2d(y, 2, ceil_mode=True).flatten(2).flatten(1) if y.shape[2] == 2 else y.amax((-1, -2))


class Next(nn.Module):
    """ConvNeXt's block: channels last between two permutes; response normalisation as in its second version."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 4, stride=4)
        self.wide = nn.Conv2d(6, 6, 7, padding=3, groups=6)
        self.norm, self.up, self.down = nn.LayerNorm(6), nn.Linear(6, 12), nn.Linear(12, 6)
        self.scale = nn.Parameter(torch.rand(6))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = F.gelu(self.up(self.norm(self.wide(x).permute(0, 2, 3, 1))))
        size = y.norm(p=2, dim=(1, 2), keepdim=True)
        y = y * (size / (size.mean(dim=-1, keepdim=True) + 1e-6)) + y
        x = x + (self.down(y) * self.scale).permute(0, 3, 1, 2)
        return F.avg_pool2d(x, x.shape[2:]).flatten(1)


class Decoder(nn.Module):
    """Down and up again, with skipped maps of odd and even sizes; the result is a map."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(3, 4, 3, 2, 1)
        self.up = nn.ConvTranspose2d(4, 4, 3, 2, 1, output_padding=1)
        self.join = nn.Conv2d(7, 2, 5, padding=2)
        self.far = nn.Conv2d(4, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        h, w = x.shape[-2:]
        deep = self.down(x)
        deep = deep + F.interpolate(deep.mean((2, 3), keepdim=True), size=deep.shape[2:], mode="bilinear")
        y = self.join(torch.cat([self.up(deep)[:, :, :h, :w], x], 1))
        far = F.interpolate(self.far(deep), size=(h, w), mode="bilinear", align_corners=True)
        return F.softmax(y, 1).sum(1, keepdim=True) * far + F.group_norm(far, 3)


class Same(nn.Conv2d):
    """Pads as TensorFlow does."""

    def forward(self, x: Tensor) -> Tensor:
        pads: list[int] = []
        for n, k, s in zip(x.shape[:1:-1], self.kernel_size, self.stride, strict=True):
            total = max((-(-n // s) - 1) * s + k - n, 0)
            pads += [total // 2, total - total // 2]
        return F.conv2d(F.pad(x, pads), self.weight, self.bias, self.stride)


class Functions(nn.Module):
    """Many functions of torch in a row."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(12, 6, (3, 2), padding=(1, 0), padding_mode="reflect")
        self.norm = nn.InstanceNorm2d(6, affine=True)

    def forward(self, x: Tensor) -> Tensor:
        b, c = x.shape[:2]
        x = torch.cat([x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2]], 1)  # YOLO's focus
        y = self.norm(self.conv(F.pad(x, (1, 0, 2, 1), value=0.5)))
        y = y.view(b, 2, c, *y.shape[2:]).transpose(1, 2).reshape(b, 6, *y.shape[2:])  # channels shuffled
        first, second = y.chunk(2, 1)
        y = torch.where(first > 0, first, second * 0.1).clamp(-3, 3).div(2)
        y = F.pixel_shuffle(F.pad(y, (0, 0, 0, 0, 0, 1)), 2) * torch.ones(1, 1, 1, 1)
        y = y.expand(-1, 3, -1, -1).contiguous() * torch.rsqrt(1 + x.std((2, 3)).mean(1)).reshape(b, 1, 1, 1)
        weight = torch.softmax(y.mean(1, keepdim=True), -1)
        rows = (y * weight).sum(-1)  # (N, 3, H)
        return torch.cat(
            [rows.max(2).values, rows.logsumexp(2), y.amin((2, 3)), rows.var(2), y.transpose(2, 3).mean((1, 3)).amax(1, True)],
            1,
        )


def sequential(*parts: nn.Module, features: int, nd: int = 2) -> nn.Sequential:
    pool = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)[nd - 1]
    return nn.Sequential(*parts, pool(1), nn.Flatten(), nn.Linear(features, 5))


MODELS: dict[str, tuple[int, Callable[[], nn.Module]]] = {
    "residual": (2, lambda: sequential(nn.Conv2d(3, 6, 7, 2, 3), nn.MaxPool2d(3, 2, 1), Residual(6, 8), Residual(8, 8),
                                       features=8)),
    "gates": (2, lambda: sequential(Residual(3, 6, gated=True), nn.PReLU(6), Residual(6, 6, 1, gated=True), features=6)),
    "vgg": (2, lambda: nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(True), nn.MaxPool2d(2), nn.Conv2d(4, 4, 3, padding=1),
        nn.MaxPool2d(2, ceil_mode=True), nn.AdaptiveAvgPool2d(7), nn.Flatten(), nn.Dropout(0.0), nn.Linear(196, 5))),
    "dense": (2, Dense),
    "dilated": (2, lambda: sequential(nn.Conv2d(3, 4, 3, padding=4, dilation=4), nn.Conv2d(4, 4, 2, 2), nn.Hardswish(),
                                      nn.Conv2d(4, 4, 3, padding="same", dilation=2), nn.LPPool2d(2, 2), features=4)),
    "next": (2, Next),
    "everypool": (2, lambda: nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), everypool.SoftPool2d(2), nn.Conv2d(4, 4, 3, padding=1),
        everypool.MedianPool2d(3, 2, padding=1), everypool.GeMPool2d(2, stride=1, padding="same"),
        nn.Conv2d(4, 4, 3, padding=1),
        everypool.SpatialPyramidPool((1, 2)))),
    "blocks": (2, lambda: nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), everypool.TopPool(), everypool.YOLOSPP(4, 4),
                                        nn.Conv2d(4, 4, 3, padding=1), everypool.GlobalGeMPool())),
    "functions": (2, Functions),
    "same": (2, lambda: sequential(Same(3, 4, 3, 2), nn.ReLU(), Same(4, 4, 5, 2), Same(4, 4, 2, 1), features=4)),
    "circular": (2, lambda: sequential(nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular"), nn.ReflectionPad2d(2),
                                       nn.Conv2d(4, 4, 3), nn.Upsample(scale_factor=1.5), nn.Conv2d(4, 4, 3), features=4)),
    "series": (1, lambda: sequential(nn.Conv1d(3, 6, 5, 2, 2), nn.GroupNorm(2, 6), nn.GELU(), nn.AvgPool1d(3, 2, 1),
                                     nn.Conv1d(6, 6, 3, padding=2, dilation=2), nn.MaxPool1d(2), features=6, nd=1)),
    "volumes": (3, lambda: sequential(nn.Conv3d(3, 4, 3, padding=1), nn.InstanceNorm3d(4), nn.ELU(), nn.MaxPool3d(2),
                                      nn.Conv3d(4, 4, 3, padding=1), nn.AvgPool3d(2, ceil_mode=True), features=4, nd=3)),
}  # fmt: skip
SIZES = {1: [[40], [23], [31], [12]], 2: [[33, 40], [28, 21], [41, 32], [28, 28]], 3: [[9, 12, 8], [12, 7, 9], [8, 9, 13]]}


def batch(nd: int, seed: int = 0, outside: float = 3.0) -> tuple[Tensor, list[list[int]]]:
    """Images among numbers that must have no say, in float64."""
    sizes = SIZES[nd]
    generator = torch.Generator().manual_seed(seed)
    extent = [max(column) + 2 for column in zip(*sizes, strict=True)]
    x = torch.full((len(sizes), 3, *extent), outside, dtype=torch.float64)
    for row, own in zip(x, sizes, strict=True):
        part = (slice(None), *map(slice, own))
        row[part] = torch.randn(row[part].shape, generator=generator, dtype=torch.float64)
    return x, sizes


def own(x: Tensor, i: int, sizes: list[list[int]]) -> Tensor:
    return x[(slice(i, i + 1), slice(None), *map(slice, sizes[i]))]


def even(sizes: list[list[int]]) -> list[list[int]]:
    return [[n - n % 2 for n in row] for row in sizes]


def model_of(name: str) -> tuple[int, nn.Module]:
    nd, build = MODELS[name]
    torch.manual_seed(1)
    model = build().double()
    for module in model.modules():  # fresh statistics would hide a mistake
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.uniform_(-1, 1)  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
    return nd, model.eval()


def gradients(model: nn.Module, loss: Tensor) -> list[Tensor]:
    found = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    return [torch.zeros(()) if g is None else g for g in found]


@pytest.mark.parametrize("name", MODELS)
def test_each_image_gets_what_it_gets_alone(name: str) -> None:
    nd, model = model_of(name)
    x, sizes = batch(nd)
    sizes = even(sizes) if name == "functions" else sizes
    x.requires_grad_()
    output = masked_forward(model, x, sizes)
    alone = [model(own(x, i, sizes)) for i in range(len(sizes))]
    for row, y in zip(output, alone, strict=True):
        assert (row - y[0]).abs().max() < 1e-10
    weights = [torch.randn(y[0].shape, dtype=y.dtype) for y in alone]
    masked = sum((row * w).sum() for row, w in zip(output, weights, strict=True))
    truth = sum((y[0] * w).sum() for y, w in zip(alone, weights, strict=True))
    assert isinstance(masked, Tensor)
    assert isinstance(truth, Tensor)
    for ours, theirs in zip(gradients(model, masked), gradients(model, truth), strict=True):
        assert (ours - theirs).abs().max() <= 1e-9 * (1 + theirs.abs().max())
    ours, theirs = (torch.autograd.grad(loss, x, retain_graph=False)[0] for loss in (
        sum((r * w).sum() for r, w in zip(masked_forward(model, x, sizes), weights, strict=True)),
        sum((model(own(x, i, sizes))[0] * w).sum() for i, w in enumerate(weights)),
    ))  # fmt: skip
    assert (ours - theirs).abs().max() < 1e-9


def test_a_map_as_output_is_zero_outside_and_equal_inside() -> None:
    torch.manual_seed(0)
    model = Decoder().double()
    x, sizes = batch(2)
    output = masked_forward(model, x, even(sizes))
    assert output.shape[2:] == (40, 40)
    for i, (h, w) in enumerate(even(sizes)):
        assert (output[i, :, :h, :w] - model(own(x, i, even(sizes)))[0]).abs().max() < 1e-10
        assert not output[i, :, h:].any()
        assert not output[i, :, :, w:].any()
    with pytest.raises(
        ValueError, match=r"`sizes` must be such that the maps joined by `cat` in the model \(Skip\) agree for each"
    ):
        masked_forward(Skip().double(), x, sizes)


class Skip(nn.Module):
    """Takes for granted that sizes are even."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(3, 3, 2, 2), nn.ConvTranspose2d(3, 3, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.up(self.down(x)), x[:, :, :40, :40]], 1)


# ---- sizes ---------------------------------------------------------------------------------------------------------------


def shapes_of(model: nn.Module, image: Tensor) -> dict[str, list[int]]:
    """What every module makes of an image alone."""
    found: dict[str, list[int]] = {}
    nd = image.dim() - 2

    def hear(name: str) -> Callable[..., None]:
        def note(module: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor) and output.dim() == nd + 2:
                found[name] = list(output.shape[2:])

        return note

    handles = [module.register_forward_hook(hear(name)) for name, module in model.named_modules()]
    with torch.no_grad():
        model(image)
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.parametrize("name", [name for name in MODELS if name != "next"])
def test_sizes_behind_every_module_are_those_of_each_image_alone(name: str) -> None:
    nd, model = model_of(name)
    x, sizes = batch(nd)
    sizes = even(sizes) if name == "functions" else sizes
    alone = [shapes_of(model, own(x, i, sizes)) for i in range(len(sizes))]
    runs = [propagate_sizes(model, torch.tensor(sizes), x)]
    if name != "functions":  # whose first convolution does not tell the channels of the input
        runs.append(propagate_sizes(model, sizes))
    for found in runs:
        assert {key: value.tolist() for key, value in found.items()} == {
            key: [shapes[key] for shapes in alone] for key in alone[0] if not key.startswith("2.") or name != "blocks"
        }
        assert all(value.dtype == torch.int64 for value in found.values())
        assert found.last is list(found.values())[-1]


def test_maps_with_channels_last_have_their_sizes_too() -> None:
    found = propagate_sizes(Next(), [[32, 24], [17, 21]])
    assert list(found) == ["stem", "wide", "norm", "up", "down"]
    assert all(value.tolist() == [[8, 6], [4, 5]] for value in found.values())


def test_sizes_leave_the_model_as_it_is() -> None:
    model = sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), everypool.MaxPool2d(2), features=4).train()
    model[1].eval()
    before, flags = copy.deepcopy(model.state_dict()), [module.training for module in model.modules()]
    state = torch.get_rng_state()
    propagate_sizes(model, [[9, 8], [7, 11]])
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in model.modules()] == flags
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


# ---- training ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("momentum", [0.3, None])
def test_statistics_in_training_are_those_of_all_images_places(momentum: float | None) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4, momentum=momentum), nn.ReLU()).double().train()
    x, sizes = batch(2)
    twin = copy.deepcopy(model)
    output = masked_forward(model, x, sizes)
    maps = [twin[0](own(x, i, sizes))[0] for i in range(len(sizes))]
    values = torch.cat([y.flatten(1) for y in maps], 1)  # (4, all places)
    norm = twin[1]
    normal = F.batch_norm(values.T, norm.running_mean, norm.running_var, norm.weight, norm.bias, True, momentum or 1.0).T
    for i, y in enumerate(normal.relu().split([y[0].numel() for y in maps], 1)):
        h, w = sizes[i]
        assert (output[i, :, :h, :w].flatten(1) - y).abs().max() < 1e-10
    for name in ("running_mean", "running_var"):
        assert torch.allclose(getattr(model[1], name), getattr(twin[1], name))
    assert model[1].num_batches_tracked.item() == 1


def test_gradients_flow_as_through_each_image_in_training() -> None:
    model = sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), features=4).double().train()
    x, sizes = batch(2)
    assert torch.autograd.gradcheck(
        lambda weight: torch.func.functional_call(Masked(model, sizes), {"model.0.weight": weight}, (x,)),
        (model[0].weight.detach().clone().requires_grad_(),),
        fast_mode=True,
    )


class Masked(nn.Module):
    def __init__(self, model: nn.Module, sizes: list[list[int]], **settings: Any) -> None:
        super().__init__()
        self.model, self.sizes, self.settings = model, sizes, settings

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = masked_forward(self.model, x, self.sizes, **self.settings)
        return result


# ---- what remains, and what is refused -----------------------------------------------------------------------------------


def conv() -> nn.Module:
    return nn.Conv2d(3, 6, 3, padding=1)


class Applied(nn.Module):
    """A function of a map as a module, with a weight for each channel."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function
        self.weight = nn.Parameter(torch.rand(1, 6, 1, 1) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, self.weight)


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "batch norm": lambda: nn.BatchNorm2d(6),
    "batch norm without statistics": lambda: nn.BatchNorm2d(6, track_running_stats=False),
    "group norm": lambda: nn.GroupNorm(3, 6),
    "group norm of one group": lambda: nn.GroupNorm(1, 6),
    "instance norm": lambda: nn.InstanceNorm2d(6, affine=True),
    "local response": lambda: nn.LocalResponseNorm(2),
    "one weight": lambda: nn.PReLU(),
    "a weight per channel": lambda: nn.PReLU(6),
    "convolution": lambda: nn.Conv2d(6, 6, 3, padding=1),
    "strided": lambda: nn.Conv2d(6, 6, 3, 2, 1),
    "mirrored": lambda: nn.Conv2d(6, 6, 3, padding=1, padding_mode="reflect"),
    "transposed": lambda: nn.ConvTranspose2d(6, 6, 2, 2),
    "upsampled": lambda: nn.Upsample(scale_factor=2, mode="bilinear"),
    "shuffled": lambda: nn.Sequential(nn.Conv2d(6, 24, 1), nn.PixelShuffle(2)),
    "dropout": lambda: nn.Dropout2d(0.0),
    "padded": lambda: nn.ZeroPad2d((1, 2, 0, 1)),
    "soft pool": lambda: everypool.SoftPool2d(2),
    "lp pool": lambda: nn.LPPool2d(2, 2),
    "square root": lambda: Applied(lambda x, w: (w * x.abs() + 1e-3).sqrt()),
    "logarithm": lambda: Applied(lambda x, w: (w * x.abs() + 1e-30).log()),
    "exponential": lambda: Applied(lambda x, w: (w * x).exp()),
    "power": lambda: Applied(lambda x, w: (x.abs() + 0.01).pow(w)),
    "inverse": lambda: Applied(lambda x, w: w / x),
    "divided by a map": lambda: Applied(lambda x, w: (x * w) / x.square().mean(1, keepdim=True)),
    "inverse root": lambda: Applied(lambda x, w: w * torch.rsqrt(x.square().sum(1, keepdim=True))),
    "unit length": lambda: Applied(lambda x, w: F.normalize(x, dim=1, eps=1e-30) * w),
    "length": lambda: Applied(lambda x, w: x * x.norm(dim=1, keepdim=True) * w),
    "softmax of channels": lambda: Applied(lambda x, w: (x * w).softmax(1)),
    "softmax of places": lambda: Applied(lambda x, w: (x * w).softmax(3).clamp(min=1e-30).log()),
    "logarithm of softmax": lambda: Applied(lambda x, w: (x * w).softmax(2).log()),
    "of deviations": lambda: Applied(lambda x, w: x / x.std((2, 3), keepdim=True) * w),
    "of rows": lambda: Applied(lambda x, w: x * (x.square().mean(3, keepdim=True) * w).log()),
    "in place": lambda: Applied(lambda x, w: (x * w).mul_(2).abs_().add_(1e-3).log_()),
    "last": lambda: Applied(lambda x, w: F.layer_norm(x.movedim(1, 3), (6,), w.flatten(), w.flatten()).movedim(3, 1)),
    "parts": lambda: Applied(lambda x, w: torch.cat([(x[:, 3:] * w[:, 3:]).abs().log(), x[:, :3]], 1)),
    "gated": lambda: Applied(lambda x, w: x * F.glu(torch.cat([x, x * w], 1), 1)),
    **{f"activation {name}": getattr(nn, name) for name in (
        "CELU", "ELU", "GELU", "Hardshrink", "Hardsigmoid", "Hardswish", "Hardtanh", "LeakyReLU", "LogSigmoid", "Mish", "ReLU",
        "ReLU6", "SELU", "SiLU", "Sigmoid", "Softplus", "Softshrink", "Softsign", "Tanh", "Tanhshrink")},
    "rectified in place": lambda: nn.Sequential(nn.Conv2d(6, 6, 1), nn.ReLU(inplace=True)),
}  # fmt: skip
OUTSIDE = (float("nan"), float("inf"), -float("inf"), 3e38)


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_what_lies_outside_has_no_say(name: str, training: bool, first: bool) -> None:
    """NaN, infinities and huge numbers outside the images: outputs and all gradients are those of the images alone."""
    torch.manual_seed(0)
    layer = LAYERS[name]()
    if training and isinstance(layer, nn.BatchNorm2d):  # its statistics are of all images: another test compares them
        layer.weight.data.uniform_(0.5, 1.5)
    width = 3 if first else 6
    before: list[nn.Module] = [conv()] if first else []
    model = nn.Sequential(*before, layer, nn.Conv2d(6, 2, 3, padding=1), nn.AdaptiveAvgPool2d(1)).double().train(training)
    sizes = [[9, 7], [5, 8], [8, 8]]
    images = [torch.randn(1, width, *size, dtype=torch.float64, requires_grad=True) for size in sizes]
    together = isinstance(layer, nn.BatchNorm2d) and (training or layer.running_mean is None)
    if together:  # a batch of clean padding says what is right
        alone = masked_forward(copy.deepcopy(model), padded(images, 0.0), sizes)
    else:
        alone = torch.cat([model(image) for image in images])
    weight = torch.randn_like(alone)
    for value in OUTSIDE:
        batch = padded([image.detach() for image in images], value).requires_grad_()
        y = masked_forward(model, batch, sizes)
        torch.testing.assert_close(y, alone, rtol=1e-9, atol=1e-9)
        if together:
            clean = padded([image.detach() for image in images], 0.0).requires_grad_()
            expected = torch.autograd.grad((masked_forward(model, clean, sizes) * weight).sum(), [clean, *model.parameters()])
        else:
            wanted = torch.cat([model(image) for image in images])
            own = torch.autograd.grad((wanted * weight).sum(), [*images, *model.parameters()])
            expected = (padded(own[:3], 0.0), *own[3:])
        gradients = torch.autograd.grad((y * weight).sum(), [batch, *model.parameters()])
        for got, right in zip(gradients, expected, strict=True):
            torch.testing.assert_close(got, right, rtol=1e-7, atol=1e-9)


def padded(images: Any, value: float) -> Tensor:
    """A batch of images with that value outside."""
    extents = [max(image.shape[axis] for image in images) for axis in (2, 3)]
    return torch.cat(
        [F.pad(image, (0, extents[1] - image.shape[3], 0, extents[0] - image.shape[2]), value=value) for image in images]
    )


def test_keep_lets_convolutions_look_over_the_border_and_zero_does_not() -> None:
    torch.manual_seed(0)
    model = sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1), features=4).double()
    x, sizes = batch(2)
    kept = masked_forward(model, x, sizes, border="keep")
    means = [model[:3](x[:, :, :41, :40])[i, :, :h, :w].mean((1, 2)) for i, (h, w) in enumerate(sizes)]
    assert (kept - model[5](torch.stack(means))).abs().max() < 1e-10
    images = [own(x, i, sizes)[0] for i in range(len(sizes))]
    effect = border_effect(model, images)
    assert effect.zero.largest < 1e-12 < 1e-4 < effect.keep.largest < effect.naive.largest
    assert effect.zero.changed == 0.0
    alone = torch.cat([model(image[None]) for image in images])
    padded = x[:, :, :41, :40].clone()
    for i, (h, w) in enumerate(sizes):
        padded[i, :, h:], padded[i, :, :, w:] = 0, 0
    difference = (model(padded) - alone).abs()
    assert effect.naive.largest == pytest.approx((difference.max() / alone.abs().max()).item())
    assert effect.naive.mean == pytest.approx((difference.sum() / alone.abs().sum()).item())
    assert effect.naive.changed == (model(padded).argmax(1) != alone.argmax(1)).double().mean().item()
    assert str(effect).splitlines()[0].split() == ["4", "images", "against", "each", "alone", "largest", "mean", "labels"]
    assert len(str(effect).splitlines()) == 4


class Attention(nn.Module):
    """A vision transformer's beginning."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = Patches()
        self.attend = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.embed(x)
        return self.attend(y, y, y, need_weights=False)[0].mean(1)


class Patches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Conv2d(3, 8, 4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.project(x).flatten(2).transpose(1, 2)


def test_a_transformer_is_refused_where_it_mixes_places_and_runs_when_named() -> None:
    torch.manual_seed(0)
    model = Attention().double().eval()
    x, sizes = batch(2)
    rule = "`model` must be one whose maps keep their axes until they are pooled, or whose modules that mix places are named in"
    with pytest.raises(NotImplementedError) as error:
        masked_forward(model, x, sizes)
    assert str(error.value) == f"{rule} `alone`, got `flatten` on a map (4, 8, 10, 10) in 'embed' (Patches)"
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert torch.overrides._get_current_function_mode() is None
    outer = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), model).double()
    for alone in ([Attention], ["1"]):
        output = masked_forward(outer, x, sizes, alone=alone)
        for i, row in enumerate(output):
            assert (row - outer(own(x, i, sizes))[0]).abs().max() < 1e-10
    assert [value.tolist() for value in propagate_sizes(outer, sizes, alone=["1"]).values()] == [sizes]
    with pytest.raises(NotImplementedError, match=r"got `flatten` on a map .* in '1\.embed' \(Patches\)"):
        propagate_sizes(outer, sizes)


class Steps(nn.Module):
    """One function between a convolution and a mean."""

    def __init__(self, step: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.step = nn.Conv2d(3, 3, 3, padding=1), step

    def forward(self, x: Tensor) -> Tensor:
        y = self.step(self.conv(x))
        return y.mean((2, 3)) if y.dim() == 4 else y


REFUSED: dict[str, Callable[[Tensor], Tensor]] = {
    "flip": lambda x: x.flip(-1),
    "last": lambda x: x[..., -1].mean(2),
    "middle": lambda x: x[:, :, x.shape[2] // 2].mean(2),
    "flatten": lambda x: x.flatten(2).amax(2),
    "batch": lambda x: x - x.mean(0, keepdim=True),
    "all": lambda x: x / x.std(),
    "attention": lambda x: F.scaled_dot_product_attention(x, x, x),
    "unfold": lambda x: F.unfold(x, 3).mean(2),
    "assigned": lambda x: x.new_zeros(x.shape).copy_(x.roll(1, 2)),
    "positions": lambda x: x + torch.linspace(0, 1, 40, dtype=x.dtype),
    "numbers": lambda x: x.numel() * x,
    "branch": lambda x: x if x.shape[2] % 2 else x * 2,
    "list": lambda x: torch.stack([image.mean((1, 2)) for image in x]),
    "function": lambda x: everypool.global_avg_pool(x),
    "indices": lambda x: F.max_pool2d(x, 2, return_indices=True)[0],
}
EXACT: dict[str, Callable[[Tensor], Tensor]] = {
    "by hand": lambda x: x.sum((2, 3)) / (x.shape[2] * x.shape[3]),
    "by tensor": lambda x: x.sum((2, 3)) / x.new_ones(x.shape).sum((2, 3)),
    "same branch": lambda x: x if x.shape[2] > 2 else x * 2,
    "to 8": lambda x: F.pad(x, (0, -x.shape[3] % 8, 0, -x.shape[2] % 8), value=1.0),
    "resized": lambda x: F.interpolate(x, scale_factor=0.7, mode="bicubic", antialias=True),
    "fixed": lambda x: F.interpolate(x, size=(5, 7), mode="bilinear").flatten(1),
    "corner": lambda x: x[:, :, :4, 1:5].flatten(1),
    "cross": lambda x: x.mean(3, keepdim=True) + x.mean(2, keepdim=True),
    "prefix sums": lambda x: x.cumsum(2),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_followed_is_refused_and_changes_nothing(name: str) -> None:
    model = Steps(REFUSED[name]).double()
    x, sizes = batch(2)
    with pytest.raises(NotImplementedError, match=r"^`model` must be one .*, got .* in the model \(Steps\)$"):
        masked_forward(model, x, sizes)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert torch.overrides._get_current_function_mode() is None
    full = [[41, 40]] * 4
    if name != "indices":
        assert torch.equal(masked_forward(model, x, full), model(x[:, :, :41, :40]))


@pytest.mark.parametrize("name", EXACT)
def test_numbers_made_of_sizes_are_each_images_own(name: str) -> None:
    model = Steps(EXACT[name]).double()
    x, sizes = batch(2)
    output = masked_forward(model, x, sizes)
    for i, row in enumerate(output):
        assert (row - model(own(x, i, sizes))[0]).abs().max() < 1e-10


def test_a_step_that_nobody_sees_is_refused() -> None:
    with pytest.warns(DeprecationWarning, match="script"):
        scripted = torch.jit.script(nn.ReLU())
    x, sizes = batch(2)
    with pytest.raises(NotImplementedError, match="`model` must be made of ordinary modules, whose steps can be seen"):
        masked_forward(nn.Sequential(nn.Conv2d(3, 3, 1), scripted), x, sizes)
    function = scripted.forward
    with pytest.raises(NotImplementedError, match=r"`model` must be one whose every step is a function of torch"):
        masked_forward(Steps(lambda y: function(y)).double(), x, sizes)


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda m, x: masked_forward(m, x, [[9, 9]]), ValueError, r"`sizes` must be ints of shape \(N, 2\)"),
        (lambda m, x: masked_forward(m, x, [[99, 9]] * 4), ValueError, "`sizes` must be between 1 and the input's size"),
        (lambda m, x: masked_forward(m, x, [[9, 9]] * 3 + [[2, 9]]), ValueError, "`sizes` must be large enough"),
        (lambda m, x: masked_forward(m, x, [[9, 9]] * 4, border="wrap"), ValueError, "`border` must be one of 'zero', 'keep'"),
        (lambda m, x: masked_forward(m, x, [[9, 9]] * 4, alone=nn.Conv2d), TypeError, "`alone` must be a sequence of types"),
        (lambda m, x: masked_forward(m, x, [[9, 9]] * 4, alone=[3]), TypeError, "`alone` must be types of modules or patterns"),
        (lambda m, x: masked_forward(3, x, [[9, 9]] * 4), TypeError, "`model` must be a torch.nn.Module, got 3"),  # type: ignore[arg-type]
        (lambda m, x: masked_forward(m, x[0, 0], [[9, 9]] * 4), ValueError, "`input` must be a tensor of shape"),
        (lambda m, x: propagate_sizes(nn.ReLU(), [[9, 9]]), ValueError, "`input` must be a batch, for a model that"),
        (lambda m, x: propagate_sizes(m, [9, 9]), ValueError, r"`sizes` must be ints of shape \(N, nd\)"),
        (lambda m, x: propagate_sizes(m, [[2, 9], [9, 9]]), ValueError, "`sizes` must be large enough for the windows in '0'"),
        (lambda m, x: border_effect(m, []), ValueError, "`input` must be a list of tensors"),
    ],
)  # fmt: skip
def test_bad_arguments(call: Callable[..., Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        call(nn.Sequential(nn.Conv2d(3, 3, 3)).double(), batch(2)[0])


# ---- real models ---------------------------------------------------------------------------------------------------------

REAL = ["timm:resnet18", "timm:convnext_atto", "timm:mobilenetv3_small_050", "timm:regnety_002"]


@pytest.mark.parametrize("name", [*REAL, "torchvision:DenseNet"])
def test_real_models(name: str) -> None:
    kind, _, architecture = name.partition(":")
    if importlib.util.find_spec("timm") is None or importlib.util.find_spec(kind) is None:
        pytest.skip(f"timm or {kind} is not installed")
    timm = package()  # torchvision comes with it
    made = timm.create_model(architecture) if kind == "timm" else sys.modules["torchvision"].models.DenseNet(8, (2, 3), 8)
    sizes = [[64, 71], [50, 64]]
    x = torch.randn(2, 3, 66, 72)
    model = made.eval()
    with torch.no_grad():
        output = masked_forward(model, x, sizes)
        for i, row in enumerate(output):
            alone = model(own(x, i, sizes))[0]
            assert (row - alone).abs().max() <= 1e-5 * alone.abs().max()
    found = propagate_sizes(model, sizes)
    alone_shapes = [shapes_of(model, own(x, i, sizes)) for i in range(2)]
    assert all(value.tolist() == [shapes[key] for shapes in alone_shapes] for key, value in found.items())


def test_tensorflows_padding_runs_image_by_image() -> None:
    torch.manual_seed(0)
    model = backbone.EfficientNetLite0().double().eval()
    sizes = [[64, 47], [33, 80]]
    x = torch.rand(2, 3, 64, 80, dtype=torch.float64)
    with torch.no_grad():
        output = masked_forward(model, x, sizes)
        for i, row in enumerate(output):
            alone = model(own(x, i, sizes))[0]
            assert (row - alone).abs().max() <= 1e-9 * alone.abs().max()
