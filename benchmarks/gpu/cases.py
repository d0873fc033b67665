"""What is measured on a GPU: each pooling with everypool and with torch, and the fewest bytes that it must move.

Bytes that must be moved, each number from shapes and types alone:

forward            every input read once, every output written once; masks, sizes, boxes and weights are inputs
forward+backward   besides, every gradient of an output read once, every gradient of an input written once, masks, sizes
                   and boxes read a second time, and what the operation must keep at its smallest: for a maximum the
                   winner, in whole bytes, written and read; for a running maximum a bit per element that says whether a
                   new maximum begins there, written and read; and where the gradient depends on values, the inputs and
                   weights read a second time. A mean keeps nothing.

Results between two steps (the columns' maxima of center pooling, the scores of an association) are nothing that must be
moved, and of samples with sizes only what lies within them is read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

import everypool
from benchmarks.gpu import composed
from everypool import HopfieldPooling

__all__ = ["CASES", "Case", "Inputs", "size_of", "traffic"]

Shape = tuple[int, ...]
Tensors = Sequence[Tensor]

KINDS = 256  # planes of values of their own; others are these scaled and moved
CLOSE = 1e-4  # levels of a pyramid nearer than this may change places in float32


def nothing(maps: Tensors, outputs: Tensors) -> int:
    """What means keep."""
    return 0


@dataclass(frozen=True)
class Case:
    """One pooling: `ours` and each of `rivals` are called with maps, then trained weights, then what has no gradient."""

    name: str
    shapes: tuple[Shape, ...]  # of the maps
    ours: Callable[..., Any]
    rivals: tuple[Callable[..., Any], ...]  # ways to write it, of which the fastest is the rival
    weights: Callable[[Shape, torch.Generator], list[Tensor]] | None = None
    given: Callable[[tuple[Shape, ...], torch.Generator], list[Tensor]] | None = None  # masks, sizes, boxes
    kept: Callable[[Tensors, Tensors], int] = nothing  # bytes, see above
    again: bool = False  # the gradient depends on values
    read: Callable[[Tensors, Tensors], int] | None = None  # bytes of the maps that are read, if not all
    undecided: Callable[..., Tensor] | None = None  # of the float64 inputs: where no gradient is to flow, see `CLOSE`
    whole: bool = False  # results do not belong to samples: checked for all or not at all
    allowance: int = 1  # times the tolerance, where sums of very many terms are exact only in float64
    values: str = "normal"  # "positive", or "summable": sums of two maps are exact in float32, and all different
    dtype: torch.dtype = torch.float32
    last: bool = False  # channels_last
    tiny: tuple[Shape, ...] = ()  # shapes for the interpreter, where the rule of `small` does not do
    quick: bool = False

    def small(self, batch: int = 2, channels: int = 2, along: tuple[int, ...] = (24, 13, 6)) -> Case:
        """The same on small maps."""
        most = [(batch, channels, *[along[len(shape) - 3]] * (len(shape) - 2)) for shape in self.shapes]
        shapes = [tuple(map(min, shape, limit)) for shape, limit in zip(self.shapes, most, strict=True)]
        return replace(self, shapes=self.tiny or tuple(shapes))


@dataclass(frozen=True)
class Inputs:
    """The tensors of a case, in the order in which its functions take them."""

    maps: list[Tensor]
    weights: list[Tensor]
    given: list[Tensor]

    @classmethod
    def make(cls, case: Case, device: torch.device) -> Inputs:
        generator = torch.Generator(device).manual_seed(1)
        maps = [
            laid_out(values(shape, case.values, seed, device).to(case.dtype), case.last)
            for seed, shape in enumerate(case.shapes)
        ]
        weights = [] if case.weights is None else [w.to(case.dtype) for w in case.weights(case.shapes[0], generator)]
        return cls(maps, weights, [] if case.given is None else case.given(case.shapes, generator))

    @property
    def trained(self) -> list[Tensor]:
        """Those that have gradients."""
        return self.maps + self.weights


def laid_out(x: Tensor, last: bool) -> Tensor:
    """x in the memory format of a case."""
    return x.contiguous(memory_format=torch.channels_last) if last and x.dim() == 4 else x.contiguous()


def values(shape: Shape, kind: str, seed: int, device: torch.device) -> Tensor:
    """Normal values, all of one plane different, so that a maximum and its gradient are unique."""
    generator = torch.Generator(device).manual_seed(seed)
    batch, channels, *spatial = shape
    planes, size = batch * channels, math.prod(spatial)
    kinds = min(planes, KINDS)
    levels = torch.special.ndtri((torch.arange(size, dtype=torch.float64, device=device) + 0.5) / size).float()
    base = levels[torch.rand(kinds, size, generator=generator, device=device).argsort(1)]
    x = base[torch.arange(planes, device=device) % kinds]
    x *= 0.5 + torch.rand(planes, 1, generator=generator, device=device)
    x += 0.5 * torch.randn(planes, 1, generator=generator, device=device)
    x = x.reshape(shape)
    if kind == "summable":  # the last bits tell rows (of the first map) or columns (of the second) apart
        along, bit = (-2, 2.0**-20) if seed == 0 else (-1, 2.0**-13)
        mark = torch.arange(shape[along], device=device) * bit
        return (x * 64).round().clamp(-500, 500) / 64 + (mark[:, None] if along == -2 else mark)
    return x.abs() + 1e-3 if kind == "positive" else x


# -- bytes -----------------------------------------------------------------------------------------------------------------


def size_of(tensors: Tensors) -> int:
    """Bytes of the elements."""
    return sum(t.numel() * t.element_size() for t in tensors)


def traffic(case: Case, inputs: Inputs, outputs: Tensors) -> tuple[int, int]:
    """The fewest bytes to move forward, and forward and backward; tensors without values will do, if none has sizes."""
    maps, trained, given = inputs.maps, size_of(inputs.trained), size_of(inputs.given)
    read = trained if case.read is None else case.read(maps, inputs.given) + size_of(inputs.weights)
    forward = read + given + size_of(outputs)
    back = size_of(outputs) + trained + given + 2 * case.kept(maps, outputs) + (read if case.again else 0)
    return forward, forward + back


def whole_bytes(taps: int) -> int:
    """Bytes of a number below `taps`."""
    return 1 if taps <= 1 << 8 else 2 if taps <= 1 << 16 else 4


def winners(*taps: int) -> Callable[[Tensors, Tensors], int]:
    """What maxima of so many elements keep: one number of taps for each output."""
    return lambda maps, outputs: sum(y.numel() * whole_bytes(k) for y, k in zip(outputs, taps, strict=True))


def bits(maps: Tensors, outputs: Tensors) -> int:
    """What running maxima keep."""
    return sum(-(-x.numel() // 8) for x in maps)


def valid(maps: Tensors, given: Tensors) -> int:
    """Bytes of maps (N, C, T) within their sizes (N,)."""
    return sum(int(given[0].sum()) * x.shape[1] * x.element_size() for x in maps)


# -- families --------------------------------------------------------------------------------------------------------------


def sliding(name: str, shape: Shape, kind: str, k: int, s: int, p: int = 0, **rest: Any) -> Case:
    """Maxima or means of sliding windows."""
    ours = {"max": everypool.max_pool, "avg": everypool.avg_pool}[kind]
    theirs = getattr(F, f"{kind}_pool{len(shape) - 2}d")
    kept = winners(k ** (len(shape) - 2)) if kind == "max" else nothing
    return Case(name, (shape,), lambda x: ours(x, k, s, p), (lambda x: theirs(x, k, s, p),), kept=kept, **rest)


def smooth(name: str, shape: Shape, kind: str, **rest: Any) -> Case:
    """Other reducers over windows of 2 by 2 with step 2."""
    ours: Callable[..., Any] = {
        "soft": lambda x: everypool.soft_pool(x, 2),
        "gem": lambda x: everypool.gem_pool(x, 2, p=3.0),
        "lp": lambda x: everypool.lp_pool(x, 2, 2),
        "lse": lambda x: everypool.logsumexp_pool(x, 2),
    }[kind]
    values = "positive" if kind in ("gem", "lp") else "normal"
    return Case(name, (shape,), ours, composed.SMOOTH[kind], again=True, values=values, **rest)


def whole(name: str, shape: Shape, kind: str, **rest: Any) -> Case:
    """Whole maps."""
    ours: Callable[..., Any] = {
        "mean": everypool.global_avg_pool,
        "gem": lambda x: everypool.global_gem_pool(x, p=3.0),
        "soft": everypool.global_soft_pool,
    }[kind]
    values = "positive" if kind == "gem" else "normal"
    return Case(name, (shape,), ours, composed.GLOBAL[kind], again=kind != "mean", values=values, **rest)


def pyramid(size: int, batch: int, channels: int, levels: tuple[int, ...], **rest: Any) -> Case:
    def kept(maps: Tensors, outputs: Tensors) -> int:
        planes, n = maps[0].shape[0] * maps[0].shape[1], maps[0].shape[-1]
        return planes * sum(level**2 * whole_bytes(math.ceil(n / level) ** 2) for level in levels)

    return Case(
        f"SPP max {','.join(map(str, levels))} of {size}x{size}",
        ((batch, channels, size, size),),
        lambda x: everypool.spatial_pyramid_pool(x, levels),
        (partial(composed.pyramid, levels=levels),),
        kept=kept,
        **rest,
    )


def thrice(x: Tensor) -> tuple[Tensor, ...]:
    """Maxima of 5 by 5, and of their results, and of theirs: those of 5, 9 and 13."""
    y = everypool.max_pool(x, 5, 1, 2)
    z = everypool.max_pool(y, 5, 1, 2)
    return y, z, everypool.max_pool(z, 5, 1, 2)


def yolo(name: str, shape: Shape, ours: Callable[..., Any], taps: tuple[int, ...]) -> Case:
    return Case(name, (shape,), ours, (composed.maxima, composed.chained_maxima), kept=winners(*taps), tiny=((1, 2, 8, 8),))


def scan(name: str, shape: Shape, ours: Callable[..., Any], axis: int, reverse: bool, **rest: Any) -> Case:
    return Case(name, (shape,), ours, (partial(composed.scan, axis=axis, reverse=reverse),), kept=bits, **rest)


def lines(maps: Tensors, outputs: Tensors) -> int:
    """What the maxima of the columns of one map and of the rows of the other keep."""
    planes, high, wide = maps[0].shape[0] * maps[0].shape[1], *maps[0].shape[2:]
    return planes * (wide * whole_bytes(high) + high * whole_bytes(wide))


SCALES = 1 / 4, 1 / 8, 1 / 16, 1 / 32
BOXED = (composed.levels,) if composed.roi_align is None else (composed.vision_levels, composed.levels)


def boxes(shapes: tuple[Shape, ...], generator: torch.Generator) -> list[Tensor]:
    """256 boxes in each image of 800 by 800, sides from 32 to 512; fewer in smaller ones, ordered by image."""
    images, _, high, wide = shapes[0]
    each = max(2, 256 * high * wide // 200**2)
    limit = torch.tensor([wide, high], device=generator.device) / SCALES[0]
    side = limit * 0.04 * 16 ** torch.rand(images, each, 2, generator=generator, device=generator.device)
    side = side.clamp(min=1 / SCALES[-1])  # a cell of the coarsest map
    low = (limit - 1 - side) * torch.rand(images, each, 2, generator=generator, device=generator.device)
    number = torch.arange(images, device=generator.device).repeat_interleave(each).float()[:, None]
    return [torch.cat([number, low.flatten(0, 1), (low + side).flatten(0, 1)], 1)]


def levels(*inputs: Tensor, fuse: str | None = "max") -> Tensor:
    *maps, boxes = inputs
    return everypool.multi_level_roi_pool(maps, boxes, 7, SCALES, fuse, sampling_ratio=2)


def near(*inputs: Tensor) -> Tensor:
    """Where the two largest levels are so close that rounding decides."""
    top = levels(*inputs, fuse=None).topk(2, 0).values
    return top[0] - top[1] < CLOSE


@cache
def layer(width: int, heads: int) -> tuple[HopfieldPooling, list[str]]:
    module = HopfieldPooling(width, num_heads=heads)
    return module, [name for name, _ in module.named_parameters()]


def associated(x: Tensor, *weights: Tensor, heads: int) -> Tensor:
    """The layer with these weights: in training where gradients are asked for."""
    module, names = layer(x.shape[-1], heads)
    module.train(torch.is_grad_enabled())
    result: Tensor = functional_call(module, dict(zip(names, weights, strict=True)), (x,))
    return result


def drawn(shape: Shape, generator: torch.Generator, heads: int) -> list[Tensor]:
    """Weights with which some patterns count more than others."""
    module, names = layer(shape[-1], heads)
    found = []
    for name, parameter in zip(names, module.parameters(), strict=True):
        noise = torch.randn(parameter.shape, generator=generator, device=generator.device)
        if "norm_" in name:
            noise = noise / 10 + name.endswith("weight")
        elif parameter.dim() > 1 and name != "pooling_weights":
            noise = noise / parameter.shape[1] ** 0.5
        found.append(noise)
    return found


def hopfield(heads: int, **rest: Any) -> Case:
    return Case(
        f"HopfieldPooling 512, {heads} head{'s' if heads > 1 else ''}",
        ((64, 1024, 512),),
        partial(associated, heads=heads),
        (partial(composed.attention, heads=heads),),
        weights=partial(drawn, heads=heads),
        again=True,
        allowance=16,
        tiny=((2, 9, 16),),
        **rest,
    )


def masks(shapes: tuple[Shape, ...], generator: torch.Generator) -> list[Tensor]:
    """Seven elements of ten."""
    batch, _, *spatial = shapes[0]
    return [torch.rand(batch, 1, *spatial, generator=generator, device=generator.device) < 0.7]


def lengths(shapes: tuple[Shape, ...], generator: torch.Generator) -> list[Tensor]:
    """From a quarter to all of the last axis."""
    batch, *_, longest = shapes[0]
    high, low = longest + 1, max(1, longest // 4)
    return [torch.randint(low, high, (batch,), generator=generator, device=generator.device)]


MAP, HALF = (64, 64, 112, 112), (128, 64, 112, 112)  # bfloat16 takes twice the batch: as many bytes
LATE, WIDE, CORNER, YOLO = (512, 2048, 7, 7), (32, 512, 64, 64), (8, 256, 128, 128), (128, 512, 20, 20)
BF16: dict[str, Any] = {"dtype": torch.bfloat16}

CASES: tuple[Case, ...] = (
    sliding("stem max k3s2p1", MAP, "max", 3, 2, 1, quick=True),
    sliding("stem max k3s2p1 BF16", HALF, "max", 3, 2, 1, **BF16),
    sliding("stem max k3s2p1 CL", MAP, "max", 3, 2, 1, last=True),
    sliding("stem max k3s2p1 BF16 CL", HALF, "max", 3, 2, 1, last=True, **BF16),
    sliding("max k2s2", MAP, "max", 2, 2, quick=True),
    sliding("max k2s2 BF16", HALF, "max", 2, 2, **BF16),
    sliding("max k2s2 CL", MAP, "max", 2, 2, last=True),
    sliding("avg k2s2", MAP, "avg", 2, 2),
    sliding("avg k2s2 BF16", HALF, "avg", 2, 2, **BF16),
    sliding("avg k2s2 CL", MAP, "avg", 2, 2, last=True),
    smooth("SoftPool k2s2", MAP, "soft", quick=True),
    smooth("SoftPool k2s2 BF16", HALF, "soft", **BF16),
    smooth("SoftPool k2s2 CL", MAP, "soft", last=True),
    smooth("GeM p3 k2s2", MAP, "gem"),
    smooth("GeM p3 k2s2 BF16", HALF, "gem", **BF16),
    smooth("Lp p2 k2s2", MAP, "lp"),
    smooth("log-mean-exp k2s2", MAP, "lse"),
    whole("global avg 7x7", LATE, "mean", quick=True),
    whole("global avg 7x7 BF16", (1024, *LATE[1:]), "mean", **BF16),
    whole("global avg 7x7 CL", LATE, "mean", last=True),
    whole("global GeM p3 7x7", LATE, "gem"),
    whole("global SoftPool 7x7", LATE, "soft"),
    whole("global avg 64x64", WIDE, "mean"),
    whole("global avg 64x64 BF16", (64, *WIDE[1:]), "mean", **BF16),
    whole("global GeM p3 64x64", WIDE, "gem"),
    whole("global SoftPool 64x64", WIDE, "soft"),
    pyramid(13, 640, 512, (1, 2, 4), quick=True),
    pyramid(13, 640, 512, (1, 2, 3, 6)),
    pyramid(40, 128, 256, (1, 2, 4)),
    pyramid(40, 128, 256, (1, 2, 3, 6)),
    yolo(
        "YOLO SPP max 5,9,13 same",
        YOLO,
        lambda x: tuple(everypool.max_pool(x, k, 1, k // 2) for k in (5, 9, 13)),
        (25, 81, 169),
    ),
    yolo("YOLO SPPF max 5+5+5 same", YOLO, thrice, (25, 25, 25)),
    Case("strip means 64x64", (WIDE,), everypool.strip_pool, (composed.strips,), quick=True),
    scan("TopPool 128x128", CORNER, everypool.top_pool, 2, True, quick=True),
    scan("TopPool 128x128 BF16", (16, *CORNER[1:]), lambda x: everypool.top_pool(x, ties="last"), 2, True, **BF16),
    scan("BottomPool 128x128", CORNER, everypool.bottom_pool, 2, False),
    scan("LeftPool 128x128", CORNER, everypool.left_pool, 3, True),
    scan("RightPool 128x128", CORNER, everypool.right_pool, 3, False),
    Case(
        "TopLeft top(x)+left(y)",
        (CORNER, CORNER),
        lambda x, y: everypool.corner_pool(x, other=y),
        (lambda x, y: composed.scan(x, 2, True) + composed.scan(y, 3, True),),
        kept=bits,
    ),
    Case(
        "cascade top(x+left(y))",
        (CORNER, CORNER),
        lambda x, y: everypool.top_pool(x + everypool.left_pool(y)),
        (lambda x, y: composed.scan(x + composed.scan(y, 3, True), 2, True),),
        kept=bits,
        values="summable",
    ),
    Case(
        "center columns(x)+rows(y)",
        (CORNER, CORNER),
        lambda x, y: everypool.cross_max_pool(x, other=y),
        (lambda x, y: x.amax(2, True) + y.amax(3, True),),
        kept=lines,
    ),
    Case(
        "RoI 4 levels 512 boxes max",
        tuple((2, 256, n, n) for n in (200, 100, 50, 25)),
        levels,
        tuple(partial(form, scales=SCALES) for form in BOXED),
        given=boxes,
        kept=winners(len(SCALES)),
        undecided=near,
        whole=True,
        tiny=tuple((1, 1, n, n) for n in (16, 8, 4, 2)),
    ),
    hopfield(8),
    hopfield(1),
    sliding("1-D audio max k4s4", (32, 64, 64000), "max", 4, 4, quick=True),
    sliding("3-D medical max k2s2", (4, 32, 64, 128, 128), "max", 2, 2),
    Case(
        "masked avg k2s2",
        (MAP,),
        lambda x, mask: everypool.avg_pool(x, 2, mask=mask),
        (composed.masked_avg,),
        given=masks,
        quick=True,
    ),
    Case(
        "masked SoftPool k2s2",
        (MAP,),
        lambda x, mask: everypool.soft_pool(x, 2, mask=mask),
        (composed.masked_soft,),
        given=masks,
        again=True,
    ),
    Case(
        "global avg, sizes 1k to 4k",
        ((64, 256, 4096),),
        lambda x, sizes: everypool.global_avg_pool(x, sizes=sizes),
        (composed.sized_avg,),
        given=lengths,
        read=valid,
    ),
)
