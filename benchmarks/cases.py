"""What is measured: the poolings of well known networks, at the sizes at which they occur there."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

import everypool
from benchmarks.ops import TorchOps
from everypool import Pyramid, pool

__all__ = ["CASES", "Case", "Data", "outputs"]


@dataclass(frozen=True)
class Case:
    """One pooling of one shape, written with everypool and as a composition of the operations of `ops`."""

    name: str
    shape: tuple[int, ...]
    ours: Callable[..., Any]
    composed: Callable[..., Any] | None  # takes the operations first
    maps: int = 1  # how many inputs of that shape
    parameters: tuple[float, ...] = ()  # trained, such as the p of GeM
    dtype: torch.dtype = torch.float32
    last: bool = False  # channels_last
    values: str = "random"  # "smooth" as an image, "positive", or "summable": unique maxima also of sums of two maps
    quick: bool = False
    section: str = "table"
    rivals: tuple[str, ...] = ("eager", "compile", "onnxruntime", "openvino", "jax")
    check: Callable[[Tensor, Tensor], str | None] | None = None  # what is wrong with an output, besides

    def small(self) -> Case:
        """The same with a small batch of small maps, for torch's eager operators alone."""
        batch, channels, *spatial = self.shape
        shape = (min(batch, 2), min(channels, 8), *(min(n, 32) for n in spatial))
        return replace(self, shape=shape, rivals=("eager",))


@dataclass(frozen=True)
class Data:
    """The inputs of a case, what flows back into its outputs, and what is right for both."""

    case: Case
    maps: list[Tensor]
    parameters: list[Tensor]
    flow: list[Tensor]  # gradients with respect to the outputs
    results: list[Tensor]  # float64
    gradients: list[Tensor]  # float64, of maps and parameters

    @classmethod
    def make(cls, case: Case) -> Data:
        maps = [laid_out(values(case.shape, case.values, seed), case) for seed in range(case.maps)]
        parameters = [torch.full((1,), p) for p in case.parameters]
        leaves = [x.double().requires_grad_() for x in (*maps, *parameters)]
        # without a composition, everypool's own float64 stands for it; the case's `check` then looks at the outputs
        function = case.ours if case.composed is None else partial(case.composed, TorchOps())
        results = outputs(function(*leaves))
        flow = [laid_out(normal(y.shape, 100 + seed), case) for seed, y in enumerate(results)]
        gradients = torch.autograd.grad(results, leaves, [g.double() for g in flow])
        return cls(case, maps, parameters, flow, [y.detach() for y in results], list(gradients))

    @property
    def inputs(self) -> list[Tensor]:
        return self.maps + self.parameters

    def least(self, train: bool) -> tuple[int, int]:
        """Bytes that must be read and written at least: inputs and outputs, and the gradients of both."""
        inward = sum(x.numel() * x.element_size() for x in self.maps)
        outward = sum(g.numel() * g.element_size() for g in self.flow)
        return (inward + outward, outward + inward) if train else (inward, outward)


def normal(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def laid_out(x: Tensor, case: Case) -> Tensor:
    """x in the type and the memory layout of the case."""
    x = x.to(case.dtype)
    return x.contiguous(memory_format=torch.channels_last) if case.last and x.dim() == 4 else x


def values(shape: tuple[int, ...], kind: str, seed: int) -> Tensor:
    """Normal values, all of one plane different, so that a maximum and its gradient are unique."""
    generator = torch.Generator().manual_seed(seed)
    batch, channels, *spatial = shape
    planes, size = batch * channels, math.prod(spatial)
    kinds = min(planes, 32)
    if kind == "smooth":
        coarse = [max(2, n // 8) for n in spatial]
        base = torch.nn.functional.interpolate(
            torch.randn(1, kinds, *coarse, generator=generator), spatial, mode="bicubic", align_corners=True
        ).reshape(kinds, size)
    else:
        quantiles = torch.special.ndtri((torch.arange(size, dtype=torch.float64) + 0.5) / size).float()
        base = quantiles[torch.rand(kinds, size, generator=generator).argsort(1)]
    x = base[torch.arange(planes) % kinds]
    x = x * (0.5 + torch.rand(planes, 1, generator=generator)) + 0.5 * torch.randn(planes, 1, generator=generator)
    x = x.reshape(shape)
    if kind == "summable":  # exact in float32; the last bits tell rows (of the first map) or columns (of others) apart
        along, bit = (-2, 2.0**-20) if seed == 0 else (-1, 2.0**-13)
        mark = torch.arange(shape[along]) * bit
        return (x * 64).round().clamp(-500, 500) / 64 + (mark[:, None] if along == -2 else mark)
    return x.abs() + 1e-3 if kind == "positive" else x


def outputs(result: Any) -> list[Any]:
    """One result, or several, as a list."""
    return list(result) if isinstance(result, (tuple, list)) else [result]


def sliding(name: str, shape: tuple[int, ...], kind: str, k: int, s: int, p: int = 0, **rest: Any) -> Case:
    """Maxima or means of sliding windows."""
    ours = {"max": everypool.max_pool, "avg": everypool.avg_pool}[kind]
    return Case(name, shape, lambda x: ours(x, k, s, p), lambda o, x: getattr(o, kind)(x, k, s, p), **rest)


def yolo(k: int) -> Case:
    return sliding(f"yolo k{k}s1 same max", (8, 512, 20, 20), "max", k, 1, k // 2)


def thrice(once: Callable[[Any], Any], x: Any) -> tuple[Any, ...]:
    y = once(x)
    z = once(y)
    return y, z, once(z)


def sppf() -> Case:
    return Case(
        "yolo SPPF 5/9/13 (3 outputs)",
        (8, 512, 20, 20),
        lambda x: thrice(lambda y: everypool.max_pool(y, 5, 1, 2), x),
        lambda o, x: thrice(lambda y: o.max(y, 5, 1, 2), x),
    )


def whole(name: str, shape: tuple[int, ...], kind: str, **rest: Any) -> Case:
    """The mean or the maximum of whole maps."""
    if kind == "mean":
        return Case(name, shape, everypool.global_avg_pool, lambda o, x: o.mean(x, (2, 3)), **rest)
    return Case(name, shape, everypool.global_max_pool, lambda o, x: o.amax(x, (2, 3)), **rest)


def gem(name: str, shape: tuple[int, ...], trained: bool, **rest: Any) -> Case:
    if trained:
        return Case(
            f"GeM p tensor {name}",
            shape,
            lambda x, p: everypool.global_gem_pool(x, p=p),
            lambda o, x, p: o.power(o.mean(o.power(o.clamp(x, 1e-6), p), (2, 3)), 1 / p),
            parameters=(3.0,),
            values="positive",
            **rest,
        )
    return Case(
        f"GeM p=3 const {name}",
        shape,
        everypool.global_gem_pool,
        lambda o, x: o.power(o.mean(o.power(o.clamp(x, 1e-6), 3), (2, 3)), 1 / 3),
        values="positive",
        **rest,
    )


def soft(name: str, shape: tuple[int, ...], k: int, s: int, **rest: Any) -> Case:
    return Case(
        f"SoftPool {name}",
        shape,
        lambda x: everypool.soft_pool(x, k, s),
        lambda o, x: o.avg(x * o.exp(x), k, s) / o.avg(o.exp(x), k, s),
        **rest,
    )


def pyramid(size: int, levels: tuple[int, ...], **rest: Any) -> Case:
    return Case(
        f"SPP max {levels} {size}x{size}",
        (16, 256, size, size),
        lambda x: everypool.spatial_pyramid_pool(x, levels),
        lambda o, x: o.vector([o.adaptive_max(x, n) for n in levels]),
        **rest,
    )


def grids(x: Tensor, levels: tuple[int, ...]) -> list[Tensor]:
    """The grids of a pyramid, each as a map."""
    channels = x.shape[1]
    parts = pool(x, "avg", Pyramid(levels)).split([channels * n * n for n in levels], 1)
    return [part.unflatten(1, (channels, n, n)) for part, n in zip(parts, levels, strict=True)]


LEVELS = (1, 2, 3, 6)
STEM, VGG, WIDE, LATE, MAP, CORNER = (
    (32, 64, 112, 112),
    (32, 64, 56, 56),
    (32, 256, 56, 56),
    (32, 2048, 7, 7),
    (8, 512, 64, 64),
    (4, 256, 128, 128),
)
ONE = (1, 256, 28, 28)
BF16 = torch.bfloat16
AUDIO = (32, 64, 16000)

CASES: tuple[Case, ...] = (
    sliding("resnet stem k3s2p1 max", STEM, "max", 3, 2, 1, quick=True),
    sliding("resnet stem k3s2p1 max smooth", STEM, "max", 3, 2, 1, values="smooth"),
    sliding("resnet stem k3s2p1 max b1", (1, *STEM[1:]), "max", 3, 2, 1),
    sliding("vgg k2s2 max", VGG, "max", 2, 2),
    sliding("vgg k2s2 max b1", (1, *VGG[1:]), "max", 2, 2),
    sliding("vgg k2s2 avg", VGG, "avg", 2, 2, quick=True),
    sliding("densenet k2s2 avg b1", ONE, "avg", 2, 2),
    sliding("k3s1p1 max", WIDE, "max", 3, 1, 1),
    sliding("k3s1p1 max b1", ONE, "max", 3, 1, 1),
    sliding("k3s1p1 avg (inception)", (8, 256, 35, 35), "avg", 3, 1, 1),
    yolo(5),
    yolo(9),
    yolo(13),
    sppf(),
    sliding("avg k7s1 same", (8, 256, 56, 56), "avg", 7, 1, 3),
    sliding("CL resnet stem k3s2p1 max", STEM, "max", 3, 2, 1, last=True, quick=True),
    sliding("CL vgg k2s2 max", VGG, "max", 2, 2, last=True),
    sliding("CL vgg k2s2 avg", VGG, "avg", 2, 2, last=True),
    sliding("CL k3s1p1 max b1", ONE, "max", 3, 1, 1, last=True),
    sliding("BF16 resnet stem k3s2p1 max", STEM, "max", 3, 2, 1, dtype=BF16),
    sliding("BF16 vgg k2s2 max", VGG, "max", 2, 2, dtype=BF16, quick=True),
    sliding("BF16 CL resnet stem k3s2p1 max", STEM, "max", 3, 2, 1, dtype=BF16, last=True),
    whole("BF16 GAP 7x7", LATE, "mean", dtype=BF16),
    whole("GAP 7x7", LATE, "mean"),
    whole("GAP 7x7 b1", (1, *LATE[1:]), "mean"),
    whole("GAP 64x64", MAP, "mean"),
    Case("GMP 7x7", LATE, everypool.global_max_pool, lambda o, x: o.adaptive_max(x, 1)[:, :, 0, 0]),
    whole("GMP 7x7, amax form", LATE, "amax"),
    whole("CL GAP 7x7", LATE, "mean", last=True),
    gem("7x7", LATE, False),
    gem("7x7", LATE, True, quick=True),
    gem("64x64", MAP, False),
    gem("64x64", MAP, True),
    Case("strip means 64x64", MAP, everypool.strip_pool, lambda o, x: (o.mean(x, (3,), True), o.mean(x, (2,), True))),
    pyramid(13, (1, 2, 4), quick=True),
    pyramid(40, (1, 2, 4)),
    pyramid(13, LEVELS),
    pyramid(40, LEVELS),
    Case(
        "PPM avg (1, 2, 3, 6) 40x40",
        (16, 256, 40, 40),
        lambda x: grids(x, LEVELS),
        lambda o, x: [o.adaptive_avg(x, n) for n in LEVELS],
    ),
    Case(
        "adaptive avg 7x7 from 14",
        (32, 512, 14, 14),
        lambda x: everypool.adaptive_avg_pool(x, 7),
        lambda o, x: o.adaptive_avg(x, 7),
    ),
    Case(
        "adaptive max 7x7 from 20",
        (32, 512, 20, 20),
        lambda x: everypool.adaptive_max_pool(x, 7),
        lambda o, x: o.adaptive_max(x, 7),
    ),
    soft("k2s2", VGG, 2, 2),
    soft("k2s2 b1", (1, *VGG[1:]), 2, 2),
    soft("k3s2", VGG, 3, 2, quick=True),
    soft("k3s2 b1", (1, *VGG[1:]), 3, 2),
    Case("LPPool p2 k2s2", VGG, lambda x: everypool.lp_pool(x, 2, 2), lambda o, x: o.lp(x, 2, 2)),
    Case("TopPool", CORNER, everypool.top_pool, lambda o, x: o.scan(x, 2, True), quick=True),
    Case("LeftPool", CORNER, everypool.left_pool, lambda o, x: o.scan(x, 3, True)),
    Case(
        "corner TL = top(x1)+left(x2)",
        CORNER,
        lambda x, y: everypool.corner_pool(x, other=y),
        lambda o, x, y: o.scan(x, 2, True) + o.scan(y, 3, True),
        maps=2,
    ),
    Case(
        "center pool (CenterNet)",
        CORNER,
        lambda x, y: everypool.cross_max_pool(x, other=y),
        lambda o, x, y: o.scan(o.scan(x, 2, False), 2, True) + o.scan(o.scan(y, 3, False), 3, True),
        maps=2,
    ),
    Case(
        "center pool, amax form",
        CORNER,
        lambda x, y: everypool.cross_max_pool(x, other=y),
        lambda o, x, y: o.amax(x, (2,), True) + o.amax(y, (3,), True),
        maps=2,
    ),
    Case(
        "cascade top(x1+left(x2))",
        CORNER,
        lambda x, y: everypool.top_pool(x + everypool.left_pool(y)),
        lambda o, x, y: o.scan(x + o.scan(y, 3, True), 2, True),
        maps=2,
        values="summable",
    ),
    sliding("1-D audio k4s4 max", AUDIO, "max", 4, 4, quick=True),
    sliding("3-D video k2s2 max", (2, 64, 16, 56, 56), "max", 2, 2),
)
