"""Heads: global average pooling in place of fully connected layers, and GeM descriptors for retrieval."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from everypool import _check as check
from everypool.blocks._map_block import of_channels
from everypool.pool import Operation, Reducer, apply, parse, register
from everypool.reducers import GlobalGeMPool, Mean
from everypool.windows import Global

__all__ = ["FullyConnectedHead", "GeMHead", "GlobalAverageHead"]


class GlobalAverageHead(nn.Module):
    """Network in Network's head: one map per class, each averaged to its score, in place of fully connected layers.

    y_k = mean over places of relu(W_k x + b_k); without ReLU the same as W_k mean(x) + b_k, which is then what is computed.

    Args:
        channels: C of the input.
        classes: K.
        act_before_pool: ReLU on the class maps, as published; without it the head is that of ResNet and its heirs.
        reducer: what becomes of a class map; the mean, or any other reducer or its name.

    Shape: (N, C, *spatial) to (N, K), one to three spatial axes of any size. Parameters: C K + K.

    Raises:
        ValueError: an input of other channels, or an unknown reducer.

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
        of_channels("input", check.batched("input", input), self.channels)
        return F.linear(input.movedim(1, -1), self.classifier.weight).movedim(-1, 1)

    def forward(self, input: Tensor, mask: Tensor | None = None, sizes: Any = None) -> Tensor:
        """Classify (N, C, *spatial); what is masked has no say."""
        if not self.act_before_pool and isinstance(self.reducer, Mean):
            of_channels("input", check.batched("input", input), self.channels)
            pooled = apply(input, self.reducer, Global(), nd=None, mask=mask, sizes=sizes)
            score: Tensor = self.classifier(pooled)
            return score
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


class FullyConnectedHead(nn.Module):
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

    Source: LeCun et al. 1998; Krizhevsky et al. 2012.

    >>> sum(p.numel() for p in FullyConnectedHead(512, (7, 7), 10).parameters())
    250890
    """

    def __init__(self, channels: int, spatial: Sequence[int], classes: int, hidden: Sequence[int] = ()) -> None:
        super().__init__()
        if not isinstance(spatial, (list, tuple)) or not 1 <= len(spatial) <= 3:
            raise check.invalid("spatial", "one to three sizes", spatial)
        self.shape = (check.positive_int("channels", channels), *check.ints("spatial", spatial, len(spatial), 1))
        widths = [torch.Size(self.shape).numel(), *hidden, classes]
        layers: list[nn.Module] = []
        for i, after in enumerate(widths[1:]):
            layers += [nn.Linear(widths[i], check.positive_int("classes", after)), nn.ReLU()]
        self.classifier = nn.Sequential(*layers[:-1])

    def forward(self, input: Tensor) -> Tensor:
        """Classify (N, C, *spatial) of the one size."""
        check.batched("input", input, len(self.shape) - 1)
        if tuple(input.shape[1:]) != self.shape:
            raise check.invalid("input", f"of shape (N, {', '.join(map(str, self.shape))})", input)
        result: Tensor = self.classifier(input.flatten(1))
        return result


class GeMHead(nn.Module):
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
        of_channels("input", check.batched("input", input), self.channels)
        y = _unit(self.pool(input, mask=mask, sizes=sizes))
        return y if self.whiten is None else _unit(self.whiten(y))


def _unit(v: Tensor) -> Tensor:
    return v / (v.norm(dim=1, keepdim=True) + 1e-6)


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
