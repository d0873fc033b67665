"""Hopfield pooling: learned states retrieve from the input; computed without keys and values wherever that is cheaper."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from everypool import _check as check
from everypool.backends import triton
from everypool.backends.choose import choose
from everypool.backends.context import fixed_shape, is_tracing
from everypool.backends.layout import prefix_mask
from everypool.blocks.hopfield.core import by_head, wide32
from everypool.blocks.hopfield.layer import Hopfield, HopfieldWrapper
from everypool.blocks.hopfield.masks import softmax_over
from everypool.pool import Operation, checked_mask, checked_sizes, padded_batch, refuse, register
from everypool.windows import Global

__all__ = ["HopfieldPooling"]

FORMS = ("auto", "folded", "plain")


class HopfieldPooling(HopfieldWrapper):
    """Attention pooling by `quantity` learned states, after any number of Hopfield updates.

    y = W_o concat_heads(softmax(beta q k^T) v) + b_o, with q from `pooling_weights`, k and v from the input.

    The states are the same for all samples, so W_k folds into them and W_v comes after the weighted sum:
    q k^T = (W_k^T q) x^T + constant and sum(xi W_v x) = W_v sum(xi x). This folded form gives the same result (for any
    number of updates, heads and masks) and neither keys nor values; it is taken where it needs fewer multiply-adds, see
    `cost`. It is not exact with normalize_hopfield_space, and not made for static or connected patterns or added ones.

    Args:
        input_size: D of the states.
        quantity: number of learned states.
        trainable: learn the states.
        form: "auto" for the cheaper one, or "folded" or "plain".
        channels_first: the input is a map (N, C, *spatial), one pattern per place.
        settings: as in `Hopfield`, in its order.

    Shape: (N, S, D), or (N, C, *spatial) with channels_first, to (N, quantity * output_size). Parameters: 1,054,208 at
    D = 512 with 8 heads.

    Raises:
        ValueError: sizes that do not fit, masks or settings that break their rule.
        TypeError: an input that is not floating point.

    Source: Ramsauer et al. 2021, Hopfield networks is all you need. Reference: github ml-jku/hopfield-layers, whose weights
    load.

    >>> pooling = HopfieldPooling(512, num_heads=8)
    >>> sum(p.numel() for p in pooling.parameters()), pooling(torch.ones(2, 5, 512)).shape
    (1054208, torch.Size([2, 512]))
    >>> pooling.cost(samples=1, patterns=196)
    {'plain': 103223296, 'folded': 2392064}
    """

    def __init__(
        self,
        input_size: int,
        *sizes: Any,
        quantity: int = 1,
        trainable: bool = True,
        form: str = "auto",
        channels_first: bool = False,
        **settings: Any,
    ) -> None:
        super().__init__()
        self.quantity = check.positive_int("quantity", quantity)
        check.boolean("trainable", trainable)
        self.channels_first = check.boolean("channels_first", channels_first)
        self.hopfield = Hopfield(input_size, *sizes, **settings)
        self.form = check.choice("form", form, FORMS)
        if form == "folded" and not self.foldable:
            raise check.invalid("form", "'auto' or 'plain' with these settings, which do not fold", form)
        if channels_first and not self.hopfield.batch_first:
            raise check.invalid("batch_first", "True with channels_first", False)
        core = self.hopfield.association_core
        size = (core.head_dim if core.query_static else core.embed_dim) or input_size
        shape = (1, quantity, size) if self.hopfield.batch_first else (quantity, 1, size)
        self.pooling_weights = nn.Parameter(torch.empty(shape), requires_grad=trainable)
        self.reset_parameters()

    @classmethod
    def find_settings(cls) -> Callable[..., Any]:
        """Return what takes `settings`."""
        return Hopfield.__init__

    def reset_parameters(self) -> None:
        """The published initial values."""
        self.hopfield.reset_parameters()
        nn.init.normal_(self.pooling_weights, std=0.02)

    @property
    def foldable(self) -> bool:
        """The settings allow the folded form: keys and values are affine in the input, and there are no others."""
        core = self.hopfield.association_core
        static = core.key_static or core.value_static
        return not (static or core.connected or core.normalize or core.add_zero or core.bias_k is not None)

    def cost(self, samples: int, patterns: int) -> dict[str, int]:
        """Multiply-adds of either form before the output projection; only "plain" where the settings do not fold.

        Args:
            samples: N.
            patterns: S.
        """
        core = self.hopfield.association_core
        width, value = core.key_dim or fixed_shape(self.pooling_weights)[2], core.value_dim or 0
        heads, states, steps = core.num_heads, self.quantity, self.hopfield.iteration().most
        wide, out = heads * (core.head_dim or width), heads * (core.pattern_dim or value)
        query = 0 if core.query_static else states * fixed_shape(self.pooling_weights)[2] * wide
        projections = patterns * ((0 if core.key_static else width * wide) + (0 if core.value_static else value * out))
        plain = query + samples * (projections + patterns * states * ((1 + 2 * steps) * wide + out))
        if not self.foldable:
            return {"plain": plain}
        sums = patterns * heads * states * ((1 + 2 * steps) * width + value)
        changes = 2 * steps * states * width * wide + states * value * out
        return {"plain": plain, "folded": query + states * width * wide + samples * (sums + changes)}

    def chosen(self, samples: int, patterns: int) -> str:
        """The form in which an input of that size is computed."""
        if self.form != "auto":
            return self.form
        cost = self.cost(samples, patterns)
        return "folded" if cost.get("folded", cost["plain"]) < cost["plain"] else "plain"

    def forward(
        self,
        input: Tensor | list[Tensor] | tuple[Tensor, Tensor],
        stored_pattern_padding_mask: Tensor | None = None,
        association_mask: Tensor | None = None,
        *,
        mask: Tensor | None = None,
        sizes: Any = None,
    ) -> Tensor:
        """Pool patterns.

        Args:
            input: (N, S, D); a pair (stored pattern, pattern projection) of such; or a list of (S_i, D) of different sizes.
                With channels_first (N, C, *spatial), or a list of (C, *spatial).
            stored_pattern_padding_mask: (N, S), bool, True where a pattern is padding.
            association_mask: (quantity, S) or (N * heads, quantity, S), see `Hopfield`.
            mask: (N, S), bool, True where a pattern counts; (N, 1, *spatial) with channels_first.
            sizes: (N,), int: the first `sizes` patterns of each sample count; (N, nd) with channels_first.
        """
        stored, projection, counts, pairs = self._prepared(input, stored_pattern_padding_mask, association_mask, mask, sizes)
        # a recorded graph serves inputs of every size, so there the cost of very many patterns decides
        many = is_tracing()
        if self.chosen(1 << 20 if many else stored.shape[0], 1 << 20 if many else stored.shape[1]) == "folded":
            recalled = self._folded(stored, projection, counts, pairs)
        else:
            xi = self.hopfield.associations(stored, self._states(), counts, pairs)
            recalled = self.hopfield.association_core.dropped(xi) @ self.hopfield.values(projection)
        return self.hopfield.finish(recalled, stored.dtype).flatten(1)

    @torch.no_grad()
    def get_association_matrix(
        self,
        input: Tensor | list[Tensor] | tuple[Tensor, Tensor],
        stored_pattern_padding_mask: Tensor | None = None,
        association_mask: Tensor | None = None,
        *,
        mask: Tensor | None = None,
        sizes: Any = None,
    ) -> Tensor:
        """How strongly every learned state is associated with every pattern, (N, heads, quantity, S)."""
        stored, _, counts, pairs = self._prepared(input, stored_pattern_padding_mask, association_mask, mask, sizes)
        return self.hopfield.associations(stored, self._states(), counts, pairs)

    @torch.no_grad()
    def get_projected_pattern_matrix(
        self,
        input: Tensor | list[Tensor] | tuple[Tensor, Tensor],
        stored_pattern_padding_mask: Tensor | None = None,
        association_mask: Tensor | None = None,
    ) -> Tensor:
        """What is recalled for every pattern, (N, heads, S, pattern_size); masks say what is, not what would be."""
        _, projection, *_ = self._prepared(input, stored_pattern_padding_mask, association_mask, None, None)
        return self.hopfield.values(projection)

    def _states(self) -> Tensor:
        return self.pooling_weights if self.hopfield.batch_first else self.pooling_weights.transpose(0, 1)

    def _prepared(
        self, input: Any, padding: Any, pairs: Any, mask: Any, sizes: Any
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        if isinstance(input, list):
            if any(item is not None for item in (padding, mask, sizes)):
                raise check.invalid("sizes", "None when the input is a list of tensors", check.Shown("masks or sizes"))
            input, sizes = self._joined(input)
        if self.channels_first:
            input, mask = self._tokens(input, mask, sizes)
            sizes = None
        if isinstance(input, tuple) and len(input) != 2:
            raise check.wrong_type("input", "a tensor, a pair of tensors or a list of tensors", check.Shown(f"{len(input)}"))
        stored, projection = input if isinstance(input, tuple) else (input, input)
        three = (stored, self.pooling_weights, projection)
        (stored, _, projection), counts, _, shaped = self.hopfield._prepared(three, padding, pairs, mask, sizes)
        return stored, projection, counts, shaped

    def _joined(self, samples: list[Any]) -> tuple[Tensor, Tensor]:
        if self.channels_first:
            return padded_batch(samples, Global())
        for x in samples:
            check.tensor("input", x, "(S, D) in a list", (2,))
        padded, sizes = padded_batch([x.transpose(0, 1) for x in samples], Global())
        return (padded.transpose(1, 2) if self.hopfield.batch_first else padded.permute(2, 0, 1)), sizes

    def _tokens(self, input: Any, mask: Any, sizes: Any) -> tuple[Any, Tensor | None]:
        """Maps (N, C, *spatial) and their masks as patterns (N, S, C)."""
        maps = input if isinstance(input, tuple) else (input,)
        for x in maps:
            check.batched("input", x)
        if mask is not None and sizes is not None:
            raise check.invalid("sizes", "None where mask is given", check.Shown("both"))
        inside = None if mask is None else checked_mask(mask, maps[0])
        if inside is not None and inside.shape[1] != 1:
            raise check.invalid("mask", "the same for all channels, (N, 1, *spatial)", mask)
        if sizes is not None:
            inside = prefix_mask(checked_sizes(sizes, maps[0]), tuple(maps[0].shape[2:]))
        tokens = tuple(x.flatten(2).transpose(1, 2) for x in maps)
        return (tokens if len(tokens) > 1 else tokens[0]), (None if inside is None else inside.flatten(1))

    def _folded(self, stored: Tensor, projection: Tensor, counts: Tensor | None, pairs: Tensor | None) -> Tensor:
        """What is recalled, (N, heads, L, pattern_dim), without a key or value for any pattern."""
        hopfield, core = self.hopfield, self.hopfield.association_core
        q = core.query(self._normed_states())
        kernel = self._kernel(stored, projection, counts, pairs)
        if kernel is not None:
            return self._retrieved(q, stored, kernel)
        z, gain, shift = _standard(hopfield.norm_stored_pattern, stored)
        weight, bias = self._folding(1, z.dtype)
        states = (core.num_heads, self.quantity)

        def score(q: Tensor) -> Tensor:
            u = by_head(q, weight)  # (N or 1, heads, L, D)
            constant = (u * shift).sum(-1, keepdim=True) + (q * bias.transpose(1, 2)).sum(-1, keepdim=True)
            u = (u * gain).flatten(1, 2)
            scores = F.linear(z, u[0]).transpose(1, 2) if u.shape[0] == 1 else u @ z.transpose(1, 2)
            return scores.unflatten(1, states) + constant

        def recall(xi: Tensor) -> Tensor:
            return _unfolded(xi, z, gain, shift, weight, bias)

        xi = hopfield.iteration().run(q, score, recall, softmax_over(counts, pairs, 0))
        same = projection is stored and _alike(hopfield.norm_stored_pattern, hopfield.norm_pattern_projection)
        standard = _standard(hopfield.norm_pattern_projection, projection, z if same else None)
        return _unfolded(core.dropped(xi), *standard, *self._folding(2, z.dtype))

    def _kernel(
        self, stored: Tensor, projection: Tensor, counts: Tensor | None, pairs: Tensor | None
    ) -> triton.Retrieval | None:
        """The fused kernel, where it was asked for and gives the same."""
        choice = choose(stored.device.type)
        if choice.name != "triton":
            return None
        if stored.is_cpu and not triton.interpreted():
            refuse(choice, stored, "the fused kernels are for GPUs, the input is on the CPU")
        if not triton.suits(stored) or stored.numel() == 0:
            return None
        norm, states = self.hopfield.norm_stored_pattern, (self.hopfield.association_core.num_heads, self.quantity)

        def define(x: Tensor, u: Tensor) -> Tensor:
            z, *_ = _standard(norm, x)
            return softmax_over(counts, pairs, 0)((u @ z.transpose(1, 2)).unflatten(1, states)).flatten(1, 2) @ z

        eps = None if norm is None else norm.eps
        kernel = triton.Retrieval(states[0], eps, counts, pairs, None if is_tracing() else define)
        why = self._refusal(stored, projection) or kernel.refusal(stored)
        if why is not None:
            refuse(choice, stored, why)
            return None
        return kernel

    def _refusal(self, stored: Tensor, projection: Tensor) -> str | None:
        """Why the fused kernel would not give the same."""
        hopfield, core = self.hopfield, self.hopfield.association_core
        first, second = hopfield.norm_stored_pattern, hopfield.norm_pattern_projection
        if hopfield.iteration().most > 1:
            return "more than one update has no fused kernel: associations tell whether states have converged"
        if core.training and core.dropout > 0:
            return "dropout of associations has no fused kernel"
        if projection is not stored:
            return "a pattern projection other than the stored patterns has no fused kernel"
        if not _alike(first, second) and first is not second:
            return "two normalisations that differ have no fused kernel"
        return None

    def _retrieved(self, q: Tensor, stored: Tensor, kernel: triton.Retrieval) -> Tensor:
        """`_folded` by the kernel, where mean patterns stand for associations."""
        hopfield, states = self.hopfield, (self.hopfield.association_core.num_heads, self.quantity)
        gain, shift = _affine(hopfield.norm_stored_pattern, q)
        weight, bias = self._folding(1, q.dtype)
        totals: list[Tensor] = []  # the same after each update

        def retrieve(q: Tensor) -> Tensor:
            # what shift and bias add to the scores of a state is the same for all patterns: no association depends on it
            mean, total = kernel(stored, (by_head(q, weight) * gain).flatten(1, 2), shift, bias)
            totals.append(total.unflatten(1, states).unsqueeze(-1))
            return mean.unflatten(1, states)

        def recall(mean: Tensor) -> Tensor:
            return _summed(mean, totals[-1], gain, shift, weight, bias)

        mean = hopfield.iteration().run(q, lambda q: q, recall, retrieve)
        return _summed(mean, totals[-1], *_affine(hopfield.norm_pattern_projection, q), *self._folding(2, q.dtype))

    def _normed_states(self) -> Tensor:
        norm = self.hopfield.norm_state_pattern
        if norm is not None and norm.normalized_shape != self.pooling_weights.shape[-1:]:
            raise check.invalid("normalize_state_pattern", "False where the states are static and of another size", True)
        return self._states() if norm is None else norm(self._states())

    def _folding(self, part: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """A projection per head: (heads, d, D) and (heads, d, 1)."""
        core = self.hopfield.association_core
        weight, bias = core.projection(part)
        if weight is None:
            raise check.invalid("form", "'plain' where patterns are static", self.form)
        weight = weight.to(dtype).unflatten(0, (core.num_heads, -1))
        if bias is None:
            return weight, weight.new_zeros((*weight.shape[:2], 1))
        return weight, bias.to(dtype).reshape(core.num_heads, -1, 1)


def _standard(norm: nn.LayerNorm | None, x: Tensor, made: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """x standardised, and the gain and shift that complete its normalisation."""
    z = wide32(x)
    if norm is not None:
        z = F.layer_norm(z, z.shape[-1:], eps=norm.eps) if made is None else made
    return (z, *_affine(norm, z))


def _affine(norm: nn.LayerNorm | None, like: Tensor) -> tuple[Tensor, Tensor]:
    """Gain and shift that complete a normalisation."""
    if norm is None or norm.weight is None:
        return like.new_ones(()), like.new_zeros(())
    return norm.weight.to(like.dtype), norm.bias.to(like.dtype)


def _alike(first: nn.LayerNorm | None, second: nn.LayerNorm | None) -> bool:
    """Both standardise in the same way."""
    return first is not None and second is not None and first.eps == second.eps


def _unfolded(xi: Tensor, z: Tensor, gain: Tensor, shift: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Sum of xi (W (z * gain + shift) + b) over patterns, the sum first: (N, heads, L, d)."""
    mean = (xi.flatten(1, 2) @ z).unflatten(1, xi.shape[1:3])
    return _summed(mean, xi.sum(-1, keepdim=True), gain, shift, weight, bias)


def _summed(mean: Tensor, total: Tensor, gain: Tensor, shift: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`_unfolded` from sums of xi z and of xi."""
    return by_head(mean * gain + shift * total, weight.transpose(1, 2)) + bias.transpose(1, 2) * total

    def extra_repr(self) -> str:
        return f"quantity={self.quantity}, form={self.form!r}, channels_first={self.channels_first}"


register(
    Operation(
        name="hopfield_pooling",
        kind="block",
        summary="Learned states retrieve from the input: attention pooling, iterated.",
        formula="y = W_o (softmax(beta q k^T) v) + b_o, q learned",
        source="Ramsauer et al. 2021, Hopfield networks is all you need",
        nd=(1,),
        names=("HopfieldPooling",),
        parameters="4 D^2 + 10 D + quantity * D; 1,054,208 at D = 512 with 8 heads",
        sample=lambda: (HopfieldPooling(8, num_heads=2, update_steps_max=1), (torch.randn(2, 5, 8),)),
    )
)
