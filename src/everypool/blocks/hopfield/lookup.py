"""Hopfield lookup: inputs retrieve among patterns that the layer has learned."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from everypool import _check as check
from everypool.blocks.hopfield.core import product
from everypool.blocks.hopfield.layer import Hopfield, HopfieldWrapper
from everypool.blocks.hopfield.masks import exists
from everypool.pool import Operation, register

__all__ = ["HopfieldLayer"]


class HopfieldLayer(HopfieldWrapper):
    """Lookup: every input pattern retrieves among `quantity` learned patterns.

    y = W_o (softmax(beta q k^T) v) + b_o with q from the input, k from `lookup_weights`, and v from them or `target_weights`.
    The learned patterns are projected once per call, not once per sample.

    Args:
        input_size: D of the input.
        lookup_weights_as_separated: v from weights of its own.
        lookup_targets_as_trainable: learn those.
        quantity: number of learned patterns.
        trainable: learn the patterns.
        settings: as in `Hopfield`.

    Shape: (N, L, D) to (N, L, output_size). Parameters: 1,086,464 at D = 512 with 8 heads and 64 patterns.

    Raises:
        ValueError: sizes that do not fit, masks or settings that break their rule.
        TypeError: an input that is not floating point.

    Source: Ramsauer et al. 2021, Hopfield networks is all you need. Reference: github ml-jku/hopfield-layers, whose weights
    load.

    >>> HopfieldLayer(8, quantity=4)(torch.ones(2, 5, 8)).shape
    torch.Size([2, 5, 8])
    """

    def __init__(
        self,
        input_size: int,
        *sizes: Any,
        lookup_weights_as_separated: bool = False,
        lookup_targets_as_trainable: bool = True,
        quantity: int = 1,
        trainable: bool = True,
        **settings: Any,
    ) -> None:
        super().__init__()
        if len(sizes) > 7:  # the published order goes on with lookup settings, that of `Hopfield` with others
            raise check.wrong_type("lookup_weights_as_separated", "given by its name, as all after update_steps_eps", sizes[7])
        self.quantity = check.positive_int("quantity", quantity)
        check.boolean("trainable", trainable)
        check.boolean("lookup_targets_as_trainable", lookup_targets_as_trainable)
        self.hopfield = Hopfield(input_size, *sizes, **settings)
        core = self.hopfield.association_core
        size = core.head_dim if core.key_static else core.key_dim
        self.lookup_weights = self._weights(size or input_size, trainable)
        self.target_weights: nn.Parameter | None = None
        if check.boolean("lookup_weights_as_separated", lookup_weights_as_separated):
            target = settings.get("pattern_projection_size") or self.lookup_weights.shape[2]
            self.target_weights = self._weights(target, lookup_targets_as_trainable)
        self.reset_parameters()

    def _weights(self, size: int, trainable: bool) -> nn.Parameter:
        shape = (1, self.quantity, size) if self.hopfield.batch_first else (self.quantity, 1, size)
        return nn.Parameter(torch.empty(shape), requires_grad=trainable)

    @classmethod
    def find_settings(cls) -> Callable[..., Any]:
        """Return what takes `settings`."""
        return Hopfield.__init__

    def reset_parameters(self) -> None:
        """The published initial values."""
        self.hopfield.reset_parameters()
        for weights in (self.lookup_weights, self.target_weights):
            if weights is not None:
                nn.init.normal_(weights, std=0.02)

    def _patterns(self, input: Any) -> tuple[Any, Any, Any]:
        targets = self.lookup_weights if self.target_weights is None else self.target_weights
        return self.lookup_weights, input, targets

    def forward(
        self,
        input: Tensor,
        stored_pattern_padding_mask: Tensor | None = None,
        association_mask: Tensor | None = None,
        *,
        mask: Tensor | None = None,
        sizes: Any = None,
    ) -> Tensor:
        """Look up every pattern of (N, L, D).

        Args:
            input: the states.
            stored_pattern_padding_mask: (N, quantity), bool, True where a sample may not use a learned pattern.
            association_mask: as in `Hopfield`.
            mask: (N, L), bool, True where an input pattern counts; the result is 0 elsewhere.
            sizes: (N,), int: the first `sizes` patterns of each sample count.
        """
        hopfield = self.hopfield
        (stored, state, projection), counts, _, pairs = hopfield._prepared(
            self._patterns(input), stored_pattern_padding_mask, association_mask, None, None
        )
        watched = exists(None, mask, sizes, state.shape[0], state.shape[1], state.device)
        if watched is not None:
            state = state.masked_fill(~watched[:, :, None], 0)
        xi = hopfield.associations(stored, state, counts, pairs, watched)
        y = hopfield.finish(product(hopfield.association_core.dropped(xi), hopfield.values(projection)), state.dtype)
        if watched is not None:
            y = y.masked_fill(~watched[:, :, None], 0)
        return y if hopfield.batch_first else y.transpose(0, 1)

    def get_association_matrix(
        self, input: Tensor, stored_pattern_padding_mask: Tensor | None = None, association_mask: Tensor | None = None
    ) -> Tensor:
        """How strongly every input pattern is associated with every learned one, (N, heads, L, quantity)."""
        return self.hopfield.get_association_matrix(self._patterns(input), stored_pattern_padding_mask, association_mask)

    def get_projected_pattern_matrix(
        self, input: Tensor, stored_pattern_padding_mask: Tensor | None = None, association_mask: Tensor | None = None
    ) -> Tensor:
        """What is recalled for every learned pattern, (N, heads, quantity, pattern_size), the same for all samples."""
        return self.hopfield.get_projected_pattern_matrix(self._patterns(input), stored_pattern_padding_mask, association_mask)

    def extra_repr(self) -> str:
        return f"quantity={self.quantity}"


register(
    Operation(
        name="hopfield_layer",
        kind="block",
        summary="Every input pattern retrieves among learned patterns.",
        formula="y = W_o (softmax(beta q k^T) v) + b_o, k and v from learned patterns",
        source="Ramsauer et al. 2021, Hopfield networks is all you need",
        nd=(1,),
        names=("HopfieldLayer",),
        parameters="4 D^2 + 10 D + quantity * D",
        sample=lambda: (HopfieldLayer(8, num_heads=2, quantity=3), (torch.randn(2, 5, 8),)),
    )
)
