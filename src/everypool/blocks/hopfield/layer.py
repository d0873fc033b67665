"""The Hopfield layer: states retrieve what they resemble among stored patterns."""

from __future__ import annotations

import math
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn

from everypool import _check as check
from everypool.backends.context import can_compare_sizes, fixed_shape
from everypool.blocks.hopfield.core import HopfieldCore, Iteration, product
from everypool.blocks.hopfield.masks import association_mask, exists, softmax_over
from everypool.module import PoolingModule, describe_setting, keep_start
from everypool.pool import Operation, register
from everypool.pool.shards import refuse_shards

__all__ = ["Hopfield"]

ACTIVATIONS = ("abs", "exp", "relu", "selu", "sigmoid", "sin", "tanh")


class HopfieldWrapper(PoolingModule):
    """A module around a `Hopfield`, which shows the settings of that as its own."""

    hopfield: Hopfield

    batch_first = property(attrgetter("hopfield.batch_first"))
    scaling = property(attrgetter("hopfield.scaling"))
    stored_pattern_dim = property(attrgetter("hopfield.stored_pattern_dim"))
    state_pattern_dim = property(attrgetter("hopfield.state_pattern_dim"))
    pattern_projection_dim = property(attrgetter("hopfield.pattern_projection_dim"))
    input_size = property(attrgetter("hopfield.input_size"))
    hidden_size = property(attrgetter("hopfield.hidden_size"))
    output_size = property(attrgetter("hopfield.output_size"))
    pattern_size = property(attrgetter("hopfield.pattern_size"))
    update_steps_max = property(attrgetter("hopfield.update_steps_max"))
    update_steps_eps = property(attrgetter("hopfield.update_steps_eps"))
    stored_pattern_as_static = property(attrgetter("hopfield.stored_pattern_as_static"))
    state_pattern_as_static = property(attrgetter("hopfield.state_pattern_as_static"))
    pattern_projection_as_static = property(attrgetter("hopfield.pattern_projection_as_static"))
    normalize_stored_pattern = property(attrgetter("hopfield.normalize_stored_pattern"))
    normalize_stored_pattern_affine = property(attrgetter("hopfield.normalize_stored_pattern_affine"))
    normalize_state_pattern = property(attrgetter("hopfield.normalize_state_pattern"))
    normalize_state_pattern_affine = property(attrgetter("hopfield.normalize_state_pattern_affine"))
    normalize_pattern_projection = property(attrgetter("hopfield.normalize_pattern_projection"))
    normalize_pattern_projection_affine = property(attrgetter("hopfield.normalize_pattern_projection_affine"))
    normalize_hopfield_space = property(attrgetter("hopfield.normalize_hopfield_space"))
    normalize_hopfield_space_affine = property(attrgetter("hopfield.normalize_hopfield_space_affine"))


class Hopfield(PoolingModule):
    """Continuous modern Hopfield network: states retrieve what they resemble among stored patterns.

    xi = softmax(beta q k^T); q <- xi k and again, `update_steps_max` times or until converged; y = W_o concat_heads(xi v)
    + b_o, where q = W_q norm(state) + b_q, k = W_k norm(stored) + b_k and v = W_v norm(projection) + b_v.

    Args:
        input_size: D of the states.
        hidden_size: size of the association space per head. Default: input_size / num_heads.
        output_size: size of the result. Default: input_size.
        pattern_size: size per head of what is recalled. Default: hidden_size.
        num_heads: number of heads.
        scaling: beta, a number or a tensor of one or `num_heads`; a Parameter is learned. Default: 1 / sqrt(hidden_size).
        update_steps_max: updates of the states: 0 is attention, None until converged (at most 32), or one per head.
        update_steps_eps: a head of a sample stops when its associations change by no more (2-norm), or one per head. What
            the other samples of the batch do has no influence.
        normalize_stored_pattern, normalize_state_pattern, normalize_pattern_projection: layer normalisation of each input;
            with `..._affine` and `..._eps`.
        normalize_hopfield_space: layer normalisation of q and k, with `..._affine` and `..._eps`.
        stored_pattern_as_static, state_pattern_as_static, pattern_projection_as_static: use k, q or v as they come.
        pattern_projection_as_connected: v = W_v (W_k norm(projection) + b_k) + b_v.
        stored_pattern_size, pattern_projection_size: D of the stored patterns and of the projection. Default: input_size.
        batch_first: (N, S, D); False for (S, N, D).
        association_activation: applied to the result: "relu", "sigmoid", "tanh" or a few more.
        dropout: share of the associations dropped in training.
        input_bias: biases in all projections.
        concat_bias_pattern: one more stored pattern, learned in the association space.
        add_zero_association: one more stored pattern of zeros.
        disable_out_projection: no W_o and b_o.

    Shape: stored (N, S, D), state (N, L, D), projection (N, S, D) to (N, L, output_size).

    Raises:
        ValueError: sizes that do not fit, masks or settings that break their rule.
        TypeError: an input that is not floating point.

    Source: Ramsauer et al. 2021, Hopfield networks is all you need. Reference: github ml-jku/hopfield-layers, whose weights
    load; per-head scaling, static patterns with several heads and concat_bias_pattern do here what they say.

    >>> Hopfield(8, num_heads=2)((torch.ones(2, 5, 8), torch.ones(2, 3, 8), torch.ones(2, 5, 8))).shape
    torch.Size([2, 3, 8])
    """

    scaling: Any

    def __init__(
        self,
        input_size: int | None = None,
        hidden_size: int | None = None,
        output_size: int | None = None,
        pattern_size: int | None = None,
        num_heads: int = 1,
        scaling: float | Tensor | None = None,
        update_steps_max: Any = 0,
        update_steps_eps: Any = 1e-4,
        normalize_stored_pattern: bool = True,
        normalize_stored_pattern_affine: bool = True,
        normalize_stored_pattern_eps: float = 1e-5,
        normalize_state_pattern: bool = True,
        normalize_state_pattern_affine: bool = True,
        normalize_state_pattern_eps: float = 1e-5,
        normalize_pattern_projection: bool = True,
        normalize_pattern_projection_affine: bool = True,
        normalize_pattern_projection_eps: float = 1e-5,
        normalize_hopfield_space: bool = False,
        normalize_hopfield_space_affine: bool = False,
        normalize_hopfield_space_eps: float = 1e-5,
        stored_pattern_as_static: bool = False,
        state_pattern_as_static: bool = False,
        pattern_projection_as_static: bool = False,
        pattern_projection_as_connected: bool = False,
        stored_pattern_size: int | None = None,
        pattern_projection_size: int | None = None,
        batch_first: bool = True,
        association_activation: str | None = None,
        dropout: float = 0.0,
        input_bias: bool = True,
        concat_bias_pattern: bool = False,
        add_zero_association: bool = False,
        disable_out_projection: bool = False,
    ) -> None:
        super().__init__()
        for name, value in tuple(locals().items()):
            if name.endswith("_eps") and name != "update_steps_eps":
                check.number(name, value, "a positive finite number", above=0, finite=True)
            elif name.startswith("normalize_") or name.endswith(
                ("_static", "_connected", "batch_first", "_bias", "_association", "disable_out_projection")
            ):
                check.boolean(name, value)
        for name, size in (("input_size", input_size), ("stored_pattern_size", stored_pattern_size),
                           ("pattern_projection_size", pattern_projection_size)):  # fmt: skip
            if size is not None:
                check.positive_int(name, size)
        if check.number("dropout", dropout, "a number from 0 to 1", minimum=0) > 1:
            raise check.invalid("dropout", "a number from 0 to 1", dropout)
        affine = normalize_hopfield_space and normalize_hopfield_space_affine
        self.association_core = HopfieldCore(
            input_size,
            hidden_size,
            output_size,
            pattern_size,
            num_heads,
            stored_size=stored_pattern_size,
            projection_size=pattern_projection_size,
            static=(stored_pattern_as_static, state_pattern_as_static, pattern_projection_as_static),
            connected=pattern_projection_as_connected,
            bias=input_bias,
            concat_bias=check.boolean("concat_bias_pattern", concat_bias_pattern),
            add_zero=add_zero_association,
            out_projection=not disable_out_projection,
            normalize=normalize_hopfield_space,
            normalize_affine=affine,
            normalize_eps=normalize_hopfield_space_eps,
            dropout=dropout,
        )
        given = (normalize_stored_pattern, normalize_stored_pattern_affine, normalize_stored_pattern_eps)
        self.norm_stored_pattern = _norm("stored_pattern_size", stored_pattern_size or input_size, *given)
        given = (normalize_state_pattern, normalize_state_pattern_affine, normalize_state_pattern_eps)
        self.norm_state_pattern = _norm("input_size", input_size, *given)
        given = (normalize_pattern_projection, normalize_pattern_projection_affine, normalize_pattern_projection_eps)
        self.norm_pattern_projection = _norm("pattern_projection_size", pattern_projection_size or input_size, *given)
        if association_activation is not None:
            check.choice("association_activation", association_activation, ACTIVATIONS)
        self.association_activation = association_activation
        self.batch_first = batch_first
        self.update_steps_max, self.update_steps_eps = update_steps_max, update_steps_eps
        self._keep_scaling(scaling)
        self.iteration()  # the settings obey their rules

    def _keep_scaling(self, scaling: Any) -> None:
        heads, size = self.association_core.num_heads, self.association_core.head_dim
        if isinstance(scaling, nn.Parameter):
            self.scaling = scaling
        elif isinstance(scaling, Tensor):
            self.register_buffer("scaling", scaling.detach().clone(), persistent=False)
        else:
            default = 1.0 if size is None else 1 / math.sqrt(size)
            rule = "None, a finite number, or a tensor with one for each head"
            self.scaling = default if scaling is None else check.number("scaling", scaling, rule, finite=True)
        if isinstance(scaling, Tensor) and (scaling.shape not in ((), (1,), (heads,)) or not scaling.is_floating_point()):
            raise check.invalid("scaling", f"a number, or a floating-point tensor of {heads}, one for each head", scaling)
        if isinstance(scaling, Tensor) and not scaling.is_meta and not bool(scaling.isfinite().all()):
            raise check.invalid("scaling", "finite", check.Shown(str(scaling.tolist())[:80]))
        if isinstance(scaling, Tensor):
            keep_start(self, "scaling", scaling)

    # the names and meanings of the published properties

    @property
    def stored_pattern_dim(self) -> int | None:
        """D of the stored patterns."""
        return self.association_core.key_dim

    @property
    def state_pattern_dim(self) -> int | None:
        """D of the states."""
        return self.association_core.embed_dim

    @property
    def pattern_projection_dim(self) -> int | None:
        """D of the pattern projection."""
        return self.association_core.value_dim

    @property
    def input_size(self) -> int | None:
        """D of the states."""
        return self.state_pattern_dim

    @property
    def hidden_size(self) -> int | None:
        """Size of the association space per head."""
        return self.association_core.head_dim

    @property
    def output_size(self) -> int | None:
        """Size of the result."""
        return self.association_core.out_dim

    @property
    def pattern_size(self) -> int | None:
        """Size per head of what is recalled."""
        return self.association_core.pattern_dim

    @property
    def stored_pattern_as_static(self) -> bool:
        """Keys are used as they come."""
        return self.association_core.key_static

    @property
    def state_pattern_as_static(self) -> bool:
        """States are used as they come."""
        return self.association_core.query_static

    @property
    def pattern_projection_as_static(self) -> bool:
        """Values are used as they come."""
        return self.association_core.value_static

    @property
    def normalize_stored_pattern(self) -> bool:
        """Stored patterns are normalized."""
        return self.norm_stored_pattern is not None

    @property
    def normalize_stored_pattern_affine(self) -> bool:
        """That normalization has weights."""
        return self.norm_stored_pattern is not None and self.norm_stored_pattern.elementwise_affine

    @property
    def normalize_state_pattern(self) -> bool:
        """States are normalized."""
        return self.norm_state_pattern is not None

    @property
    def normalize_state_pattern_affine(self) -> bool:
        """That normalization has weights."""
        return self.norm_state_pattern is not None and self.norm_state_pattern.elementwise_affine

    @property
    def normalize_pattern_projection(self) -> bool:
        """The pattern projection is normalized."""
        return self.norm_pattern_projection is not None

    @property
    def normalize_pattern_projection_affine(self) -> bool:
        """That normalization has weights."""
        return self.norm_pattern_projection is not None and self.norm_pattern_projection.elementwise_affine

    @property
    def normalize_hopfield_space(self) -> bool:
        """States and stored patterns are normalized in the association space."""
        return self.association_core.normalize

    @property
    def normalize_hopfield_space_affine(self) -> bool:
        """That normalization has weights."""
        return self.association_core.p_norm_weight is not None

    def reset_parameters(self) -> None:
        """The published initial values, and the scaling that was given."""
        super().reset_parameters()

    def iteration(self) -> Iteration:
        """How the states settle."""
        return Iteration(self.association_core.num_heads, self.scaling, self.update_steps_max, self.update_steps_eps)

    def associations(
        self,
        stored: Tensor,
        state: Tensor,
        counts: Tensor | None,
        pairs: Tensor | None,
        watched: Tensor | None = None,
    ) -> Tensor:
        """Associations (N, heads, L, S and the patterns added to them) of checked inputs, batch first."""
        core = self.association_core
        k = core.key(_normed(self.norm_stored_pattern, stored))
        if core.add_zero:
            k = torch.cat([k, k.new_zeros((*k.shape[:2], 1, k.shape[3]))], 2)
        q = core.query(_normed(self.norm_state_pattern, state))
        if q.shape[3] != k.shape[3]:
            raise check.invalid("input", f"states of {k.shape[3]} elements as the stored patterns", state)
        allow = softmax_over(counts, pairs, k.shape[2] - stored.shape[1])
        return self.iteration().run(q, lambda x: product(x, k.transpose(2, 3)), lambda xi: product(xi, k), allow, watched)

    def values(self, projection: Tensor) -> Tensor:
        """(N, heads, S and the patterns added to them, pattern_dim) of checked inputs, batch first."""
        v = self.association_core.value(_normed(self.norm_pattern_projection, projection))
        return torch.cat([v, v.new_zeros((*v.shape[:2], 1, v.shape[3]))], 2) if self.association_core.add_zero else v

    def finish(self, recalled: Tensor, dtype: torch.dtype) -> Tensor:
        """(N, heads, L, pattern_dim) to the result (N, L, out)."""
        y = self.association_core.out(recalled, dtype)
        return y if self.association_activation is None else getattr(torch, self.association_activation)(y)

    def forward(
        self,
        input: Tensor | tuple[Tensor, Tensor, Tensor],
        stored_pattern_padding_mask: Tensor | None = None,
        association_mask: Tensor | None = None,
        *,
        mask: Tensor | None = None,
        sizes: Any = None,
    ) -> Tensor:
        """What every state retrieves.

        Args:
            input: one tensor for all three, or (stored pattern, state pattern, pattern projection).
            stored_pattern_padding_mask: (N, S), bool, True where a stored pattern is padding.
            association_mask: (L, S) or (N * heads, L, S), bool (True: not associated) or floating (added to the scores).
            mask: (N, S), bool, True where a stored pattern counts; with one tensor for all three, the result is 0 where
                it does not.
            sizes: (N,), int: the first `sizes` patterns of each sample count.
        """
        (stored, state, projection), counts, watched, pairs = self._prepared(
            input, stored_pattern_padding_mask, association_mask, mask, sizes
        )
        xi = self.associations(stored, state, counts, pairs, watched)
        y = self.finish(product(self.association_core.dropped(xi), self.values(projection)), state.dtype)
        if watched is not None:
            y = y.masked_fill(~watched[:, :, None], 0)
        return y if self.batch_first else y.transpose(0, 1)

    @torch.no_grad()
    def get_association_matrix(
        self,
        input: Tensor | tuple[Tensor, Tensor, Tensor],
        stored_pattern_padding_mask: Tensor | None = None,
        association_mask: Tensor | None = None,
        *,
        mask: Tensor | None = None,
        sizes: Any = None,
    ) -> Tensor:
        """How strongly every state is associated with every stored pattern, (N, heads, L, S)."""
        (stored, state, _), counts, watched, pairs = self._prepared(
            input, stored_pattern_padding_mask, association_mask, mask, sizes
        )
        return self.associations(stored, state, counts, pairs, watched)

    @torch.no_grad()
    def get_projected_pattern_matrix(
        self,
        input: Tensor | tuple[Tensor, Tensor, Tensor],
        stored_pattern_padding_mask: Tensor | None = None,
        association_mask: Tensor | None = None,
    ) -> Tensor:
        """What is recalled for every stored pattern, (N, heads, S, pattern_size); masks say what is, not what would be."""
        (_, state, projection), *_ = self._prepared(input, stored_pattern_padding_mask, association_mask, None, None)
        values = self.values(projection)
        return values.expand(max(state.shape[0], values.shape[0]), -1, -1, -1)

    def _prepared(
        self, input: Any, padding: Any, pairs: Any, mask: Any, sizes: Any
    ) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor | None, Tensor | None, Tensor | None]:
        alike = isinstance(input, Tensor)
        if not alike and not (isinstance(input, (list, tuple)) and len(input) == 3):
            rule = "a tensor, or three: stored pattern, state pattern, pattern projection"
            raise check.wrong_type("input", rule, check.Shown(type(input).__name__))
        parts = [input] * 3 if alike else list(input)
        refuse_shards("input", *parts)
        sizes_of = (self.stored_pattern_dim, self.input_size, self.association_core.value_dim)
        stored, state, projection = (
            checked_patterns(x, self.batch_first, size, static)
            for x, size, static in zip(parts, sizes_of, self._static(), strict=True)
        )
        rows, states = fixed_shape(stored)[0], fixed_shape(state)[0]
        samples = 0 if 0 in (rows, states) else stored.shape[0] if rows >= states else state.shape[0]
        if parts[2] is parts[0]:
            projection = stored  # shared, so that what is the same is computed once
        if fixed_shape(projection)[:2] != fixed_shape(stored)[:2]:
            raise check.invalid("input", f"a pattern projection for each of the {tuple(stored.shape[:2])} patterns", projection)
        if rows != states and 1 not in (rows, states):
            raise check.invalid("input", f"states of {stored.shape[0]} samples as the stored patterns", state)
        counts = exists(padding, mask, sizes, samples, stored.shape[1], stored.device)
        if counts is not None:  # padding may hold anything, NaN too
            shared = projection is stored
            stored = stored.masked_fill(~counts[:, :, None], 0)
            projection = stored if shared else projection.masked_fill(~counts[:, :, None], 0)
        watched = counts if alike and padding is None else None
        if watched is not None:
            state = state.masked_fill(~watched[:, :, None], 0)
        heads = self.association_core.num_heads
        shaped = association_mask(pairs, samples, heads, state.shape[1], stored.shape[1], stored.device)
        return (stored, state, projection), counts, watched, shaped

    def _static(self) -> tuple[bool, bool, bool]:
        core = self.association_core
        return core.key_static, core.query_static, core.value_static

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
        published = f"{prefix}_Hopfield__scaling"  # where it is learned
        if published in state_dict:
            state_dict[f"{prefix}scaling"] = state_dict.pop(published)
        super()._load_from_state_dict(state_dict, prefix, *arguments)

    def extra_repr(self) -> str:
        text = f"num_heads={self.association_core.num_heads}, scaling={describe_setting(self.scaling)}"
        return f"{text}, update_steps_max={self.update_steps_max}"


def checked_patterns(x: Any, batch_first: bool, size: int | None, static: bool) -> Tensor:
    """Patterns (N, T, D), batch first."""
    shape = "(N, S, D)" if batch_first else "(S, N, D)"
    check.floating("input", check.tensor("input", x, shape, (3,)))
    if x.layout != torch.strided:
        raise check.wrong_type("input", "a dense (strided) tensor", check.Shown(f"layout {x.layout}"))
    if not static and size is not None and fixed_shape(x)[2] != size:
        raise check.invalid("input", f"of shape {shape} with D = {size}", x)
    x = x if batch_first else x.transpose(0, 1)
    if can_compare_sizes() and x.shape[1] == 0:
        raise check.invalid("input", "one pattern or more for each sample", x)
    return x


def _normed(norm: nn.LayerNorm | None, x: Tensor) -> Tensor:
    if norm is None:
        return x
    if fixed_shape(x)[-1:] != norm.normalized_shape:
        raise check.invalid("input", f"of {norm.normalized_shape[0]} elements per pattern, as its normalisation", x)
    result: Tensor = norm(x)
    return result


def _norm(name: str, size: int | None, normalize: bool, affine: bool, eps: float) -> nn.LayerNorm | None:
    if not normalize:
        return None
    if size is None:
        raise check.invalid(name, "an int where the patterns are normalised", size)
    return nn.LayerNorm(size, eps=eps, elementwise_affine=affine)


register(
    Operation(
        name="hopfield",
        kind="block",
        summary="States retrieve what they resemble among stored patterns.",
        formula="xi = softmax(beta q k^T); q <- xi k, repeated; y = W_o (xi v) + b_o",
        source="Ramsauer et al. 2021, Hopfield networks is all you need",
        nd=(1,),
        names=("Hopfield",),
        parameters="4 D^2 + 10 D",
        sample=lambda: (Hopfield(8, num_heads=2, update_steps_max=2), (torch.randn(2, 5, 8),)),
    )
)
