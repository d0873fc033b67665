"""Heads: global average pooling in place of fully connected layers, and GeM descriptors for retrieval."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from everypool import _check as check
from everypool.backends.layout import prefix_mask
from everypool.blocks._map_block import features, refused
from everypool.module import PoolingModule
from everypool.pool import Operation, Reducer, apply, checked_mask, checked_sizes, parse, register
from everypool.reducers import GlobalGeMPool, Mean
from everypool.windows import Global

__all__ = ["FullyConnectedHead", "GeMHead", "GlobalAverageHead"]


def fully_connected(inputs: int, hidden: Sequence[int], classes: int) -> nn.Sequential:
    """Linear layers with ReLU between them."""
    if not isinstance(hidden, (list, tuple)):
        raise check.wrong_type("hidden", "a list of positive ints, one per hidden layer", hidden)
    check.positive_int("classes", classes)
    widths = [inputs, *(check.positive_int("hidden", width) for width in hidden), classes]
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class GlobalAverageHead(PoolingModule):
    """Network in Network's head: one map per class, each averaged to its score, in place of fully connected layers.

    y_k = mean over places of relu(W_k x + b_k); without ReLU the same as W_k mean(x) + b_k, which is then what is computed.

    Args:
        channels: C of the input.
        classes: K.
        act_before_pool: ReLU on the class maps, as published; without it the head is that of ResNet and its heirs.
        reducer: what becomes of a class map; the mean, or any other reducer or its name.

    Shape: (N, C, *spatial) to (N, K), one to three spatial axes of any size. Parameters: C K + K.

    Raises:
        ValueError: an input of other channels, a mask that is not the same for all of them, or an unknown reducer.
        TypeError: an input that is not floating point.

    Source: Lin et al. 2014, Network in network; Zhou et al. 2016 for the class activation map.

    >>> head = GlobalAverageHead(16, 10)
    >>> head(torch.ones(2, 16, 7, 7)).shape, head.class_activation_map(torch.ones(2, 16, 7, 7)).shape
    (torch.Size([2, 10]), torch.Size([2, 10, 7, 7]))
    """

    def __init__(self, channels: int, classes: int, *, act_before_pool: bool = True, reducer: str | Reducer = "mean") -> None:
        super().__init__()
        self.channels = check.positive_int("channels", channels)
        self.act_before_pool = check.boolean("act_before_pool", act_before_pool)
        self.reducer = parse(reducer)
        self.classifier = nn.Linear(channels, check.positive_int("classes", classes))

    def class_activation_map(self, input: Tensor) -> Tensor:
        """(N, K, *spatial): how much every place speaks for each class, W_k x, without bias."""
        features("input", input, self.channels)
        return F.linear(input.movedim(1, -1), self.classifier.weight).movedim(-1, 1)

    def forward(self, input: Tensor, mask: Tensor | None = None, sizes: Any = None) -> Tensor:
        """Classify (N, C, *spatial); what is masked (mask: (N, 1, *spatial)) has no say, and nothing at all scores 0."""
        features("input", input, self.channels)
        if mask is not None and checked_mask(mask, input).shape[1] != 1:
            raise check.invalid("mask", "the same for all channels, (N, 1, *spatial)", mask)
        if not self.act_before_pool and isinstance(self.reducer, Mean):
            pooled, exists = apply(input, self.reducer, Global(), nd=None, mask=mask, sizes=sizes, return_mask=True)
            score: Tensor = self.classifier(pooled)
            return score if mask is None else score.masked_fill(~exists[:, :1], 0)
        # padding may hold anything: NaN would reach the weights' gradient, where 0 * NaN is NaN
        if mask is not None:
            input = input.masked_fill(~mask, 0)
        if sizes is not None:
            sizes = checked_sizes(sizes, input)
            input = input.masked_fill(~prefix_mask(sizes, tuple(input.shape[2:])), 0)
        maps = self.class_activation_map(input)
        maps = maps + self.classifier.bias.reshape(-1, *[1] * (input.dim() - 2))
        maps = torch.relu(maps) if self.act_before_pool else maps
        result: Tensor = apply(maps, self.reducer, Global(), nd=None, mask=mask, sizes=sizes)
        return result

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
        key = f"{prefix}classifier.weight"
        if key in state_dict and state_dict[key].dim() > 2:  # the same weights as a 1x1 convolution
            state_dict[key] = state_dict[key].flatten(1)
        super()._load_from_state_dict(state_dict, prefix, *arguments)

    def extra_repr(self) -> str:
        return f"act_before_pool={self.act_before_pool}, reducer={self.reducer}"


class FullyConnectedHead(PoolingModule):
    """The head that global average pooling replaces: the map laid out as one vector, then fully connected layers.

    y = W flatten(x) + b, with a hidden layer and ReLU for each entry of `hidden`.

    Args:
        channels: C of the input.
        spatial: the one size of map it takes.
        classes: K.
        hidden: widths of the hidden layers (AlexNet and VGG: 4096, 4096).

    Shape: (N, C, *spatial) to (N, K). Parameters: C prod(spatial) K + K without hidden layers.

    Raises:
        ValueError: an input of another shape.
        TypeError: an input that is not floating point.
        NotImplementedError: a mask or sizes.

    Source: LeCun et al. 1998; Krizhevsky et al. 2012.

    >>> sum(p.numel() for p in FullyConnectedHead(512, (7, 7), 10).parameters())
    250890
    """

    def __init__(self, channels: int, spatial: Sequence[int], classes: int, hidden: Sequence[int] = ()) -> None:
        super().__init__()
        if not isinstance(spatial, (list, tuple)) or not 1 <= len(spatial) <= 3:
            raise check.invalid("spatial", "one to three sizes", spatial)
        self.shape = (check.positive_int("channels", channels), *check.ints("spatial", spatial, len(spatial), 1))
        self.classifier = fully_connected(torch.Size(self.shape).numel(), hidden, classes)

    def forward(self, input: Tensor, mask: None = None, sizes: None = None) -> Tensor:
        """Classify (N, C, *spatial) of the one size."""
        for name, value in (("mask", mask), ("sizes", sizes)):
            if value is not None:
                raise refused(name, "None, since places have weights of their own; GlobalAverageHead takes it", value)
        check.floating("input", check.batched("input", input, len(self.shape) - 1))
        if tuple(input.shape[1:]) != self.shape:
            raise check.invalid("input", f"of shape (N, {', '.join(map(str, self.shape))})", input)
        result: Tensor = self.classifier(input.flatten(1))
        return result


class GeMHead(PoolingModule):
    """Retrieval descriptor: GeM over the map, L2 norm, and whitening if asked for.

    y = norm(gem(x)), or norm(W norm(gem(x)) + b); norm(v) = v / (|v| + 1e-6).

    Args:
        channels: C of the input.
        descriptor: length of the whitened descriptor; None for no whitening.
        p: first value of the learned exponent.
        per_channel: one exponent for each channel.
        eps: least value of the input.

    Shape: (N, C, *spatial) to (N, C), or (N, descriptor). Parameters: 1 (or C), and C * descriptor + descriptor.

    Raises:
        ValueError: an input of other channels.

    Source: Radenovic et al. 2018. Reference: github filipradenovic/cnnimageretrieval-pytorch, whose pool and whitening load.

    >>> round(GeMHead(4)(torch.rand(1, 4, 5, 6)).norm().item(), 3)
    1.0
    """

    def __init__(
        self, channels: int, descriptor: int | None = None, *, p: float = 3.0, per_channel: bool = False, eps: float = 1e-6
    ) -> None:
        super().__init__()
        self.channels = check.positive_int("channels", channels)
        check.boolean("per_channel", per_channel)
        self.pool = GlobalGeMPool(p=p, channels=channels if per_channel else None, eps=eps)
        self.whiten = None if descriptor is None else nn.Linear(channels, check.positive_int("descriptor", descriptor))

    def forward(self, input: Tensor, mask: Tensor | None = None, sizes: Any = None) -> Tensor:
        """Describe (N, C, *spatial)."""
        features("input", input, self.channels)
        y = _unit(self.pool(input, mask=mask, sizes=sizes))
        return y if self.whiten is None else _unit(self.whiten(y))


def _unit(v: Tensor) -> Tensor:
    # in units of the largest element: the squares of 300 and of 1e20 overflow float16 and float32
    wide = v if v.dtype in (torch.float32, torch.float64) else v.float()
    scale = wide.detach().abs().amax(1, keepdim=True).clamp(min=1)
    wide = wide / scale
    return (wide / (wide.norm(dim=1, keepdim=True) + 1e-6 / scale)).to(v.dtype)


register(
    Operation(
        name="global_average_head",
        kind="block",
        summary="One map per class, each averaged to its score, in place of fully connected layers.",
        formula="y_k = mean(relu(W_k x + b_k))",
        source="Lin et al. 2014; Zhou et al. 2016",
        names=("GlobalAverageHead", "FullyConnectedHead"),
        parameters="C K + K",
        sample=lambda: (GlobalAverageHead(8, 3), (torch.randn(2, 8, 6, 5),)),
    )
)
register(
    Operation(
        name="gem_head",
        kind="block",
        summary="Retrieval descriptor: GeM over the map, L2 norm, whitening.",
        formula="y = gem(x) / |gem(x)|",
        source="Radenovic et al. 2018",
        names=("GeMHead",),
        parameters="1 or C",
        sample=lambda: (GeMHead(8), (torch.rand(2, 8, 6, 5),)),
    )
)
