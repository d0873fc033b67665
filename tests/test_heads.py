"""Global average, fully connected and GeM heads: masks, derivatives, published layouts, extremes."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import everypool
from everypool import FullyConnectedHead, GeMHead, GlobalAverageHead


@pytest.mark.parametrize("act", [True, False])
def test_the_two_readings_of_global_average_pooling(act: bool) -> None:
    """Without ReLU, averaging class maps is a linear layer after averaging; with it (as published) it is not."""
    torch.manual_seed(2)
    x = torch.randn(3, 6, 7, 5, dtype=torch.float64)
    head = GlobalAverageHead(6, 4, act_before_pool=act).double()
    linear = F.linear(x.mean((2, 3)), head.classifier.weight, head.classifier.bias)
    assert torch.allclose(head(x), linear) != act


@pytest.mark.parametrize("act", [True, False])
@pytest.mark.parametrize("reducer", ["mean", "max", "gem:p=2", "logsumexp"])
def test_masked_places_have_no_say(reducer: str, act: bool) -> None:
    head = GlobalAverageHead(5, 3, act_before_pool=act, reducer=reducer).double()
    x = torch.randn(2, 5, 4, 6, dtype=torch.float64)
    mask = torch.rand(2, 1, 4, 6) < 0.5
    mask[:, :, 0, 0] = True
    y = head(x.masked_fill(~mask, float("nan")), mask=mask)
    for i in range(2):
        places = x[i][:, mask[i, 0]][None]  # the places that count, in a row
        torch.testing.assert_close(y[i : i + 1], head(places))


@pytest.mark.parametrize("act", [True, False])
@pytest.mark.parametrize("reducer", ["mean", "max"])
def test_padding_does_not_reach_the_weights(reducer: str, act: bool) -> None:
    """Gradients of weight and bias are those of the samples alone, whatever the padding holds."""
    head = GlobalAverageHead(5, 3, act_before_pool=act, reducer=reducer).double()
    x = torch.randn(2, 5, 4, 6, dtype=torch.float64)
    inside = torch.ones(2, 1, 4, 6, dtype=torch.bool)
    inside[1, :, 3:] = False
    inside[1, :, :, 2:] = False
    parameters = [*head.parameters()]
    alone = torch.cat([head(x[:1]), head(x[1:, :, :3, :2])])
    expected = torch.autograd.grad(alone.sin().sum(), parameters)
    for hidden in (math.nan, math.inf, -math.inf):
        padded = x.masked_fill(~inside, hidden)
        for y in (head(padded, mask=inside), head(padded, sizes=[[4, 6], [3, 2]])):
            torch.testing.assert_close(y, alone)
            for grad, wanted in zip(torch.autograd.grad(y.sin().sum(), parameters), expected, strict=True):
                torch.testing.assert_close(grad, wanted)


def test_nothing_at_all_scores_zero() -> None:
    """One sample without any place: 0 and no gradient, by every way of computing the head."""
    x, mask = torch.randn(2, 5, 3, 3), torch.ones(2, 1, 3, 3, dtype=torch.bool)
    mask[1] = False
    for act in (True, False):
        for reducer in ("mean", "max", "gem:p=2"):
            head = GlobalAverageHead(5, 3, act_before_pool=act, reducer=reducer)
            y = head(x, mask=mask)
            torch.testing.assert_close(y[:1], head(x[:1]))
            assert not y[1].any()
            assert not any(grad.any() for grad in torch.autograd.grad(y[1].sum(), [*head.parameters()]))


def test_class_activation_map_explains_the_score() -> None:
    """Zhou et al.: the score of the linear head is the mean of its map, plus the bias."""
    head = GlobalAverageHead(6, 4, act_before_pool=False).double()
    x = torch.randn(2, 6, 5, 7, dtype=torch.float64)
    maps = head.class_activation_map(x)
    assert maps.shape == (2, 4, 5, 7)
    torch.testing.assert_close(maps.mean((2, 3)) + head.classifier.bias, head(x))


def test_published_layouts() -> None:
    """NIN's last 1x1 convolution; ResNet's linear layer; the pooling and whitening of cnnimageretrieval."""
    x = torch.randn(2, 6, 5, 5)
    convolution = nn.Conv2d(6, 4, 1)
    head = GlobalAverageHead(6, 4)
    head.load_state_dict({f"classifier.{key}": value for key, value in convolution.state_dict().items()})
    torch.testing.assert_close(head(x), F.avg_pool2d(convolution(x).relu(), 5).flatten(1))
    gem = GeMHead(6, 6)
    whiten = nn.Linear(6, 6)
    gem.load_state_dict({"pool.p": torch.tensor([2.5]), **{f"whiten.{key}": v for key, v in whiten.state_dict().items()}})

    def norm(v: Tensor) -> Tensor:
        return v / (v.norm(p=2, dim=1, keepdim=True) + 1e-6)

    pooled = F.avg_pool2d(x.clamp(min=1e-6).pow(2.5), 5).pow(1 / 2.5).flatten(1)
    torch.testing.assert_close(gem(x), norm(whiten(norm(pooled))))


def test_gem_per_channel() -> None:
    head = GeMHead(3, per_channel=True).double()
    p = torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64)
    head.load_state_dict({"pool.p": p})
    x = torch.rand(2, 3, 4, 4, dtype=torch.float64) + 0.1
    v = x.flatten(2).pow(p[:, None]).mean(2).pow(1 / p)
    torch.testing.assert_close(head(x), v / (v.norm(dim=1, keepdim=True) + 1e-6))


def test_a_blank_image_has_a_descriptor_and_a_gradient() -> None:
    """All zero, masked away or huge: no NaN on the way, as x^p of float32 would give."""
    for x, mask in (
        (torch.zeros(1, 4, 3, 3), None),
        (torch.ones(1, 4, 3, 3), torch.zeros(1, 1, 3, 3, dtype=torch.bool)),
        (torch.full((1, 4, 3, 3), 1e15), None),
    ):
        x.requires_grad_()
        head = GeMHead(4, p=20.0)
        y = head(x, mask=mask)
        y.sum().backward()
        assert bool(y.isfinite().all())
        assert bool(x.grad.isfinite().all())
        assert bool(head.pool.p.grad.isfinite().all())
    torch.testing.assert_close(y, torch.full((1, 4), 0.5))


def test_norms_do_not_overflow() -> None:
    """The squares of 2000 and of 1e20 are beyond float16 and float32; the descriptor was 0 there."""
    torch.manual_seed(0)
    x = torch.rand(2, 2048, 2, 2, dtype=torch.float64) + 0.5
    expected = GeMHead(2048).double()(x * 2000)
    y = GeMHead(2048).half()((x * 2000).half())
    assert y.dtype == torch.float16
    torch.testing.assert_close(y.double(), expected, rtol=2e-3, atol=1e-5)
    torch.testing.assert_close(GeMHead(2048)((x * 1e20).float()).double(), expected, rtol=1e-5, atol=1e-7)
    # small ones as published, where 1e-6 is more than the norm
    tiny = torch.tensor([[1e-7, 2e-7]], dtype=torch.float64)[..., None]
    norm = tiny[..., 0] / (tiny.norm() + 1e-6)
    torch.testing.assert_close(GeMHead(2, eps=1e-12).double()(tiny), norm)


def test_derivatives() -> None:
    x = (torch.rand(2, 4, 3, 2, dtype=torch.float64) + 0.2).requires_grad_()
    heads: list[Any] = [GlobalAverageHead(4, 3), GlobalAverageHead(4, 3, act_before_pool=False), GeMHead(4, 3)]
    for head in [*heads, FullyConnectedHead(4, (3, 2), 3, (5,))]:
        head.double()
        names = [name for name, _ in head.named_parameters()]

        def call(x: Tensor, *values: Tensor, head: nn.Module = head, names: list[str] = names) -> Any:
            return torch.func.functional_call(head, dict(zip(names, values, strict=True)), (x,))

        values = [p.detach().clone().requires_grad_() for p in head.parameters()]
        assert torch.autograd.gradcheck(call, (x, *values))


def test_bad_input() -> None:
    x = torch.ones(1, 4, 3, 3)
    cases: list[tuple[Any, type[Exception], str]] = [
        (lambda: GlobalAverageHead(0, 3), ValueError, "channels"),
        (lambda: GlobalAverageHead(4, 0), ValueError, "classes"),
        (lambda: GlobalAverageHead(4, 3, act_before_pool=1), TypeError, "act_before_pool"),
        (lambda: GlobalAverageHead(5, 3)(x), ValueError, "input"),
        (lambda: GlobalAverageHead(5, 3).class_activation_map(x), ValueError, "input"),
        (lambda: GlobalAverageHead(4, 3)(x, mask=torch.ones(1, 1, 3, 2).bool()), ValueError, "mask"),
        (lambda: FullyConnectedHead(4, (), 3), ValueError, "spatial"),
        (lambda: FullyConnectedHead(4, (3, 3), 3)(torch.ones(1, 4, 3)), ValueError, "input"),
        (lambda: GeMHead(4, 0), ValueError, "descriptor"),
        (lambda: GeMHead(4, p=float("nan")), ValueError, "p"),
        (lambda: GeMHead(4, eps=0.0), ValueError, "eps"),
        (lambda: GeMHead(5)(x), ValueError, "input"),
        (lambda: GeMHead(4)(x, sizes=[[4, 3]]), ValueError, "sizes"),
        (lambda: GeMHead(4)(x.int()), TypeError, "input"),
        (lambda: GlobalAverageHead(4, 3)(x.int()), TypeError, "input"),
        (lambda: GlobalAverageHead(4, 3, act_before_pool=False)(x.int()), TypeError, "input"),
        (lambda: GlobalAverageHead(4, 3).class_activation_map(x.bool()), TypeError, "input"),
        (lambda: GlobalAverageHead(4, 3)(x, mask=torch.ones(1, 4, 3, 3).bool()), ValueError, "mask"),
        (lambda: GlobalAverageHead(4, 4)(x, mask=torch.ones(1, 4, 3, 3).bool()), ValueError, "mask"),
        (lambda: FullyConnectedHead(4, (3, 3), 3)(x.int()), TypeError, "input"),
        (lambda: FullyConnectedHead(4, (3, 3), 3)(x, sizes=[[3, 3]]), NotImplementedError, "sizes"),
        (lambda: FullyConnectedHead(4, (3, 3), 3)(x, mask=x.bool()), NotImplementedError, "mask"),
        (lambda: FullyConnectedHead(4, (3, 3), 0), ValueError, "classes"),
        (lambda: FullyConnectedHead(4, (3, 3), 3, 5), TypeError, "hidden"),
        (lambda: FullyConnectedHead(4, (3, 3), 3, (5, 0)), ValueError, "hidden"),
        (lambda: everypool.SpatialPyramidHead(4, 3, hidden=None), TypeError, "hidden"),
        (lambda: everypool.SpatialPyramidHead(4, 3, hidden=(0,)), ValueError, "hidden"),
        (lambda: everypool.SpatialPyramidHead(4, 0), ValueError, "classes"),
        (lambda: everypool.SpatialPyramidHead(4, 3, nd=4), ValueError, "nd"),
        (lambda: everypool.SpatialPyramidHead(4, 3)(x.int()), TypeError, "input"),
    ]
    for made, error, name in cases:
        with pytest.raises(error, match=f"^`{name}` must be .+, got "):
            made()


def test_registered() -> None:
    known = everypool.operations()
    assert {"global_average_head", "gem_head"} <= set(known)
