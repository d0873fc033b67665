"""Corner, cascade and center modules in training against the published modules, kernels and their rule for ties included."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import everypool

DIRECTIONS = {"top": (2, True), "bottom": (2, False), "left": (3, True), "right": (3, False)}


class Running(torch.autograd.Function):
    """The published kernel: a running maximum; the first that is met keeps the gradient of all that do not exceed it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, axis: int, reverse: bool) -> Tensor:
        steps = range(x.shape[axis])[::-1] if reverse else range(x.shape[axis])
        best = torch.full_like(x.select(axis, 0), float("-inf"))
        winner = torch.zeros_like(best, dtype=torch.long)
        y = torch.empty_like(x)
        where = torch.empty_like(x, dtype=torch.long)
        for i in steps:
            now = x.select(axis, i)
            winner = torch.where(now > best, i, winner)
            best = torch.where(now > best, now, best)
            y.select(axis, i).copy_(best)
            where.select(axis, i).copy_(winner)
        ctx.axis = axis
        ctx.save_for_backward(where)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (where,) = ctx.saved_tensors
        return torch.zeros_like(grad).scatter_add(ctx.axis, where, grad), None, None


def run(x: Tensor, direction: str) -> Tensor:
    return Running.apply(x, *DIRECTIONS[direction])


class Convolution(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x)).relu()


class Published(nn.Module):
    """`tl_pool`, `br_pool` and `center_pool` of the papers' code, in the order in which they make their layers."""

    def __init__(self, kind: str, dim: int, middle: int, down: str, across: str) -> None:
        super().__init__()
        self.kind, self.down, self.across = kind, down, across
        self.p1_conv1 = Convolution(dim, middle)
        self.p2_conv1 = Convolution(dim, middle)
        self.p_conv1 = nn.Conv2d(middle, dim, 3, padding=1, bias=False)
        self.p_bn1 = nn.BatchNorm2d(dim)
        self.conv1 = nn.Conv2d(dim, dim, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(dim)
        self.conv2 = Convolution(dim, dim)
        if kind == "cascade":
            self.look_conv1 = Convolution(dim, middle)
            self.look_conv2 = Convolution(dim, middle)
            self.P1_look_conv = nn.Conv2d(middle, middle, 3, padding=1, bias=False)
            self.P2_look_conv = nn.Conv2d(middle, middle, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.p1_conv1(x), self.p2_conv1(x)
        if self.kind == "cascade":
            first = self.P1_look_conv(first + run(self.look_conv1(x), self.across))
            second = self.P2_look_conv(second + run(self.look_conv2(x), self.down))
        pooled = run(first, self.down) + run(second, self.across)
        if self.kind == "center":  # there and back: every place has the whole line's maximum
            pooled = run(run(first, "top"), "bottom") + run(run(second, "left"), "right")
        return self.conv2((self.p_bn1(self.p_conv1(pooled)) + self.bn1(self.conv1(x))).relu())


MODULES = [
    ("TopLeftCornerPool", "corner", "top", "left"),
    ("BottomRightCornerPool", "corner", "bottom", "right"),
    ("CascadeTopLeftPool", "cascade", "top", "left"),
    ("CascadeBottomRightPool", "cascade", "bottom", "right"),
    ("CenterNetCenterPool", "center", "top", "left"),
]


@pytest.mark.parametrize(("name", "kind", "down", "across"), MODULES)
def test_trains_as_published(name: str, kind: str, down: str, across: str) -> None:
    """Output, all gradients and the running statistics, where maxima above zero repeat along both axes."""
    published = Published(kind, 6, 4, down, across).double().train()
    with torch.no_grad():  # small integers: equal neighbourhoods give equal sums, bit for bit
        for parameter in published.parameters():
            if parameter.dim() == 4:
                parameter.copy_(torch.randint(-2, 3, parameter.shape))
    module = getattr(everypool, name)(6, 4).double().train()
    x = torch.randint(-3, 4, (2, 6, 4, 4)).repeat(1, 1, 3, 3).double()
    weight = torch.randn_like(x)
    first = published.p1_conv1(x)
    assert ((first == first.amax(3, keepdim=True)) & (first > 0)).sum(3).max() > 1
    module.load_state_dict(published.state_dict(), strict=True)
    inputs = x.clone().requires_grad_(), x.clone().requires_grad_()
    y, expected = module(inputs[0]), published(inputs[1])
    torch.testing.assert_close(y, expected, rtol=1e-10, atol=1e-12)
    (y * weight).sum().backward()
    (expected * weight).sum().backward()
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad, rtol=1e-8, atol=1e-10)
    wanted = dict(published.named_parameters())
    for key, parameter in module.named_parameters():
        torch.testing.assert_close(parameter.grad, wanted[key].grad, rtol=1e-8, atol=1e-10, msg=key)
    wanted = published.state_dict()
    for key, value in module.state_dict().items():
        torch.testing.assert_close(value, wanted[key], rtol=1e-10, atol=1e-12, msg=key)


def test_kernel_gives_the_measured_gradients() -> None:
    """The oracle above against the gradients that the original kernels gave for this row."""
    row = torch.tensor([0.0, 2, 2, 1, 2, 3, 3])
    for direction, expected in (("right", [1, 4, 0, 0, 0, 2, 0]), ("left", [0, 0, 0, 0, 0, 0, 7])):
        for pool in (lambda x, d=direction: run(x, d), getattr(everypool, f"{direction}_pool")):
            x = row.reshape(1, 1, 1, 7).requires_grad_()
            (grad,) = torch.autograd.grad(pool(x).sum(), x)
            assert grad.flatten().tolist() == expected


@pytest.mark.parametrize("ties", ["first", "last", "even"])
def test_ties_change_gradients_alone(ties: str) -> None:
    module = everypool.CascadeTopLeftPool(6, 4, ties=ties).eval()
    other = everypool.CascadeTopLeftPool(6, 4).eval()
    other.load_state_dict(module.state_dict())
    x = torch.randn(1, 6, 5, 8)
    assert torch.equal(module(x), other(x))


def test_unknown_ties() -> None:
    with pytest.raises(ValueError, match=r"^`ties` must be .+, got 'frist'"):
        everypool.TopLeftCornerPool(6, 4, ties="frist")
