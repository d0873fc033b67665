"""The parameters of a Hopfield association under their published names, and its two ways of computing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from everypool import _check as check
from everypool.backends.context import can_read_values
from everypool.module import PoolingModule

__all__ = ["HopfieldCore", "Iteration", "by_head", "product", "wide32"]

STEPS_AT_MOST = 32  # where update_steps_max is None: until converged, but no longer than this


def wide32(x: Tensor) -> Tensor:
    """x in float32 at least: scores of half types overflow or lose what tells patterns apart."""
    return x.to(torch.float32) if x.dtype in (torch.float16, torch.bfloat16) else x


def by_head(x: Tensor, weight: Tensor) -> Tensor:
    """x (N, heads, T, a) times weight (heads, a, b), one product per head: a broadcast one would copy it for each sample."""
    rows = x.transpose(0, 1)
    return torch.bmm(rows.flatten(1, 2), weight.expand(rows.shape[0], -1, -1)).unflatten(1, rows.shape[1:3]).transpose(0, 1)


def product(x: Tensor, y: Tensor) -> Tensor:
    """x (N or 1, heads, T, a) times y (N or 1, heads, a, b)."""
    return by_head(x, y[0]) if y.shape[0] == 1 and x.shape[0] != 1 else x @ y


class Iteration:
    """How states settle: xi = softmax(beta * q k), then q = xi k and again, each sample and head until it has converged.

    Args:
        heads: number of heads.
        beta: a number, or one for each head.
        steps: updates after the first association; -1 (or None) for until converged, at most 32.
        eps: a head of a sample stops when its associations change by no more than this (2-norm).
    """

    def __init__(self, heads: int, beta: float | Tensor, steps: Any, eps: Any) -> None:
        self.heads, self.beta = heads, beta
        self.steps = _per_head("update_steps_max", -1 if steps is None else steps, heads, _step)
        self.eps = _per_head("update_steps_eps", eps, heads, _threshold)
        self.most = max(STEPS_AT_MOST if step < 0 else step for step in self.steps)

    def run(
        self,
        query: Tensor,
        score: Callable[[Tensor], Tensor],
        recall: Callable[[Tensor], Tensor],
        allow: Callable[[Tensor], Tensor],
        counts: Tensor | None = None,
    ) -> Tensor:
        """The associations xi (N, heads, L, S) on which the states settle.

        Args:
            query: (N or 1, heads, L, head_dim), the states in the association space.
            score: the similarity of states to all stored patterns, (N, heads, L, S).
            recall: the states that associations stand for.
            allow: the softmax over what may be associated.
            counts: (N, L), True for the states whose change is watched; all without.
        """
        beta: Any = self.beta
        if isinstance(beta, Tensor):
            beta = beta.to(query.dtype).reshape(-1, 1, 1) if beta.dim() else beta.to(query.dtype)
        device = query.device.type
        # autocast would compute the scores in half types after all
        if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
            with torch.autocast(device, enabled=False):
                return self._settled(query, beta, score, recall, allow, counts)
        return self._settled(query, beta, score, recall, allow, counts)

    def _settled(
        self,
        query: Tensor,
        beta: Any,
        score: Callable[[Tensor], Tensor],
        recall: Callable[[Tensor], Tensor],
        allow: Callable[[Tensor], Tensor],
        counts: Tensor | None,
    ) -> Tensor:
        xi = allow(score(query * beta))
        if self.most == 0:
            return xi
        limit = torch.tensor([STEPS_AT_MOST if s < 0 else s for s in self.steps], device=xi.device).reshape(-1, 1, 1)
        eps = torch.tensor(self.eps, device=xi.device, dtype=xi.dtype).reshape(-1, 1, 1)
        active = (limit > 0).expand(xi.shape[0], -1, -1, -1)
        for step in range(1, self.most + 1):
            new = torch.where(active, allow(score(recall(xi) * beta)), xi)
            if step < self.most:
                change = (new - xi).detach()
                if counts is not None:
                    change = change.masked_fill(~counts[:, None, :, None], 0)
                norm = change.square().sum((2, 3), keepdim=True).sqrt()
                active = active & (limit > step) & (norm > eps)
            xi = new
            if can_read_values(active) and not bool(active.any()):
                break
        return xi


def _step(name: str, value: Any) -> int:
    if not check.is_int(value):
        raise check.wrong_type(name, "None, an int, or one int per head", value)
    if value < -1 or value > 10_000:
        raise check.invalid(name, "None, or an int from 0 to 10000 (-1: until converged), for all heads or each", value)
    return int(value)


def _threshold(name: str, value: Any) -> float:
    return check.number(name, value, "a positive finite number, or one per head", above=0, finite=True)


def _per_head(name: str, value: Any, heads: int, one: Callable[[str, Any], Any]) -> tuple[Any, ...]:
    if isinstance(value, Tensor) and value.is_meta:
        raise check.invalid(name, "a number, or one for each head, with values", value)
    values = value.tolist() if isinstance(value, Tensor) else value
    if not isinstance(values, (list, tuple)):
        return (one(name, values),) * heads
    if len(values) != heads:
        raise check.invalid(name, f"one value, or one for each of the {heads} heads", value)
    return tuple(one(name, item) for item in values)


class HopfieldCore(PoolingModule):
    """Projections into the association space and out of it; see `Hopfield` for the settings."""

    in_proj_weight: nn.Parameter | None
    q_proj_weight: nn.Parameter | None
    k_proj_weight: nn.Parameter | None
    v_proj_weight: nn.Parameter | None
    in_proj_bias: nn.Parameter | None
    bias_k: nn.Parameter | None
    bias_v: nn.Parameter | None
    p_norm_weight: nn.Parameter | None
    p_norm_bias: nn.Parameter | None

    def __init__(
        self,
        input_size: int | None,
        hidden_size: int | None,
        output_size: int | None,
        pattern_size: int | None,
        num_heads: int,
        *,
        stored_size: int | None,
        projection_size: int | None,
        static: tuple[bool, bool, bool],
        connected: bool,
        bias: bool,
        concat_bias: bool,
        add_zero: bool,
        out_projection: bool,
        normalize: bool,
        normalize_affine: bool,
        normalize_eps: float,
        dropout: float,
    ) -> None:
        super().__init__()
        self.key_static, self.query_static, self.value_static = static
        self.connected, self.add_zero, self.dropout = connected, add_zero, dropout
        self.num_heads = check.positive_int("num_heads", num_heads)
        self.static_execution = all(static) and not (connected or normalize or out_projection)
        if self.static_execution:
            input_size = None
        elif input_size is None:
            raise check.invalid("input_size", "an int unless all patterns are static and nothing is projected", input_size)
        self.embed_dim = input_size
        self.key_dim = input_size if stored_size is None or self.static_execution else stored_size
        self.value_dim = input_size if projection_size is None or self.static_execution else projection_size
        if connected and self.key_dim != self.value_dim:
            raise check.invalid("pattern_projection_size", "that of the stored patterns where connected", projection_size)
        self.head_dim, self.pattern_dim = self._sizes(hidden_size, pattern_size)
        if concat_bias and (self.key_static or self.value_static):
            raise check.invalid("concat_bias_pattern", "False where stored patterns or projection are static", True)
        self.normalize, self.normalize_eps = normalize, normalize_eps
        for name in ("p_norm_weight", "p_norm_bias"):
            self._own(name, (self.head_dim,) if normalize_affine else None)
        wide, out = num_heads * (self.head_dim or 0), num_heads * (self.pattern_dim or 0)
        rows: tuple[int, ...] = (
            0 if self.query_static else wide,
            0 if self.key_static else wide,
            0 if self.value_static else out,
        )
        all_rows = rows[0] + rows[1] + rows[2]
        joined = self.key_dim == input_size and self.value_dim == input_size and pattern_size is None and not connected
        self._own("in_proj_weight", (all_rows, input_size) if joined and all_rows else None)
        self._own("q_proj_weight", (wide, input_size) if not joined and rows[0] else None)
        self._own("k_proj_weight", (wide, self.key_dim) if not joined and rows[1] else None)
        inner = wide if connected and not self.key_static else self.value_dim
        self._own("v_proj_weight", (out, inner) if not joined and rows[2] else None)
        self._rows, self._joined = rows, joined
        # the published layout has room for the value's bias even where values are static
        self._own("in_proj_bias", (rows[0] + rows[1] + out,) if bias and all_rows else None)
        self._own("bias_k", (1, 1, wide) if concat_bias else None)
        self._own("bias_v", (1, 1, out) if concat_bias else None)
        self.out_dim = input_size if output_size is None else check.positive_int("output_size", output_size)
        self.out_proj: nn.Linear | None = None
        if out_projection:
            self.out_proj = nn.Linear(out, self.out_dim or 0, bias=bias)
        self.reset_parameters()

    def _sizes(self, hidden_size: int | None, pattern_size: int | None) -> tuple[int | None, int | None]:
        if self.static_execution:
            return None, pattern_size
        width, heads = self.embed_dim or 0, self.num_heads
        if hidden_size is None and width % heads:
            raise check.invalid("num_heads", f"a divisor of input_size = {width} where hidden_size is None", heads)
        head = width // heads if hidden_size is None else check.positive_int("hidden_size", hidden_size)
        pattern = head if pattern_size is None else check.positive_int("pattern_size", pattern_size)
        if self.connected and pattern != head:
            raise check.invalid("pattern_size", f"None or hidden_size = {head} where connected", pattern_size)
        return head, pattern

    def _own(self, name: str, shape: tuple[Any, ...] | None) -> None:
        self.register_parameter(name, None if shape is None else nn.Parameter(torch.empty(shape)))

    def reset_parameters(self) -> None:
        """Normal weights of deviation 0.02, no bias, as published."""
        for name, parameter in self.named_parameters():
            if name == "p_norm_weight":
                nn.init.ones_(parameter)
            elif name in ("p_norm_bias", "in_proj_bias", "out_proj.bias"):
                nn.init.zeros_(parameter)
            else:
                nn.init.normal_(parameter, std=0.02)

    def projection(self, part: int) -> tuple[Tensor | None, Tensor | None]:
        """Weight and bias of the states (0), the stored patterns (1) or the pattern projection (2); None where static."""
        if not self._rows[part]:
            return None, None
        start = sum(self._rows[:part])
        stop = start + self._rows[part]
        bias = None if self.in_proj_bias is None else self.in_proj_bias[start:stop]
        if self._joined:
            return (None if self.in_proj_weight is None else self.in_proj_weight[start:stop]), bias
        return (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)[part], bias

    def heads(self, x: Tensor, part: int) -> Tensor:
        """x (N, T, D) projected, as (N, heads, T, d); static patterns are the same for every head."""
        weight, bias = self.projection(part)
        if weight is None:
            return x.unsqueeze(1).expand(-1, self.num_heads, -1, -1)
        return F.linear(x, weight, bias).unflatten(2, (self.num_heads, -1)).transpose(1, 2)

    def query(self, state: Tensor) -> Tensor:
        """The states (N, L, D) in the association space, (N, heads, L, head_dim)."""
        return self._normalized(wide32(self.heads(state, 0)))

    def key(self, stored: Tensor) -> Tensor:
        """The stored patterns (N, S, D) in the association space, (N, heads, S, head_dim)."""
        k = self._normalized(wide32(self.heads(stored, 1)))
        return k if self.bias_k is None else self._appended(k, self.bias_k)

    def value(self, projection: Tensor) -> Tensor:
        """What is recalled for each stored pattern, (N, heads, S, pattern_dim)."""
        if self.connected and not self.key_static:
            projection = self.heads(projection, 1).transpose(1, 2).flatten(2)
            if self.value_static:
                v = projection.unflatten(2, (self.num_heads, -1)).transpose(1, 2)
            else:
                v = self.heads(projection, 2)
        else:
            v = self.heads(projection, 2)
        v = wide32(v)
        return v if self.bias_v is None else self._appended(v, self.bias_v)

    def out(self, recalled: Tensor, dtype: torch.dtype) -> Tensor:
        """(N, heads, L, pattern_dim) to (N, L, out)."""
        y = recalled.transpose(1, 2).flatten(2)
        if self.out_proj is None:
            return y.to(dtype)
        result: Tensor = self.out_proj(y.to(self.out_proj.weight.dtype))
        return result

    def dropped(self, xi: Tensor) -> Tensor:
        """Dropout over associations."""
        return F.dropout(xi, self.dropout, self.training)

    def _normalized(self, x: Tensor) -> Tensor:
        if not self.normalize:
            return x
        weight = None if self.p_norm_weight is None else self.p_norm_weight.to(x.dtype)
        bias = None if self.p_norm_bias is None else self.p_norm_bias.to(x.dtype)
        return F.layer_norm(x, x.shape[-1:], weight, bias, self.normalize_eps)

    def _appended(self, x: Tensor, pattern: Tensor) -> Tensor:
        row = pattern.to(x.dtype).reshape(1, self.num_heads, 1, -1).expand(x.shape[0], -1, -1, -1)
        return torch.cat([x, row], 2)
