"""Weights of others: what has another form is taken, what does not say its meaning is asked for, what differs is refused."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import everypool
from everypool.surgery.layers import Scaled


class PublishedBlur(nn.Module):
    """A blur with its filter as a buffer, one for each channel, as published and as in timm."""

    def __init__(self, channels: int | None, taps: int = 3, stride: int = 2, nd: int = 2) -> None:
        super().__init__()
        row = torch.tensor([1.0])
        for _ in range(taps - 1):
            row = F.conv1d(row.reshape(1, 1, -1), torch.tensor([[[1.0, 1.0]]]), padding=1).flatten()
        filter = row
        for _ in range(nd - 1):
            filter = filter[..., None] * row
        self.register_buffer("filt", (filter / filter.sum()).expand(channels or 1, 1, *[taps] * nd).clone())
        self.stride, self.pads = stride, [(taps - 1) // 2, taps // 2] * nd

    def forward(self, x: Tensor) -> Tensor:
        weight = self.filt.expand(x.shape[1], *self.filt.shape[1:])
        conv: Callable[..., Tensor] = (F.conv1d, F.conv2d)[x.dim() - 3]
        return conv(F.pad(x, self.pads, mode="reflect"), weight, stride=self.stride, groups=x.shape[1])


@pytest.mark.parametrize("taps", range(2, 8))
@pytest.mark.parametrize("channels", [None, 4])
@pytest.mark.parametrize("nd", [1, 2])
def test_filters_of_blurs(taps: int, channels: int | None, nd: int) -> None:
    published = nn.Sequential(PublishedBlur(channels, taps, 2, nd))
    own = nn.Sequential(getattr(everypool, f"BlurPool{nd}d")(taps))
    for dtype in (torch.float32, torch.float16):
        own.load_state_dict({key: value.to(dtype) for key, value in published.state_dict().items()}, strict=True)
    x = torch.randn(2, 4, *[13, 12][:nd])
    torch.testing.assert_close(own(x), published(x))
    assert list(own.state_dict()) == []

    maximum = nn.Sequential(nn.MaxPool1d(2, 1) if nd == 1 else nn.MaxPool2d(2, 1), PublishedBlur(channels, taps, 2, nd))
    blurred = getattr(everypool, f"MaxBlurPool{nd}d")(2, 2, filter_size=taps)
    blurred.load_state_dict(maximum.state_dict(), strict=True)  # behind a maximum in a sequence
    torch.testing.assert_close(blurred(x[:, :, 1:])[:, :, :3], maximum(x[:, :, 1:])[:, :, :3])
    blurred.load_state_dict(published[0].state_dict(), strict=True)

    other = getattr(everypool, f"BlurPool{nd}d")(taps + 1 if taps < 7 else 3)
    with pytest.raises(RuntimeError, match=r"`kernel_size` must be \("):
        other.load_state_dict(published[0].state_dict())
    with pytest.raises(RuntimeError, match=r"`filt` must be the binomial filter, which is the only one here"):
        own[0].load_state_dict({"filt": torch.rand_like(published[0].filt)})


def test_a_network_of_blurs() -> None:
    """Filters among weights, in a network that was swapped to the published form."""

    def built(blur: Callable[[], nn.Module]) -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.MaxPool2d(2, 1), blur(), nn.Sequential(nn.Conv2d(4, 4, 3), blur()))

    published, own = built(lambda: PublishedBlur(4)), built(everypool.BlurPool2d)
    checkpoint = published.state_dict()
    own.load_state_dict(checkpoint)
    assert [key for key in checkpoint if key.endswith("filt")] == ["2.filt", "3.1.filt"]  # what was given is as it was
    x = torch.randn(1, 3, 17, 16)
    torch.testing.assert_close(own(x), published(x))
    with pytest.raises(RuntimeError, match=r"Unexpected key.*3\.1\.weight"):
        own.load_state_dict({**checkpoint, "3.1.weight": torch.ones(1)})


SCALARS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "sliding gem": (lambda: everypool.GeMPool2d(2), "p"),
    "adaptive gem": (lambda: everypool.AdaptiveGeMPool2d(2), "p"),
    "global gem": (lambda: everypool.GlobalGeMPool(), "p"),
    "gem of one axis": (lambda: everypool.GeMPool1d(2), "p"),
    "gem over axes": (lambda: everypool.surgery.layers.OverAxes(everypool.GlobalGeMPool(), (1,)), "pool.p"),
    "soft": (lambda: everypool.SoftPool2d(2, learnable=True), "beta"),
    "log-sum-exp": (lambda: everypool.LogSumExpPool2d(2, learnable=True), "r"),
    "head": (lambda: everypool.GeMHead(4), "pool.p"),
    "mixed": (lambda: everypool.MixedPool("max", "avg", kernel_size=2), "alpha"),
    "mixed with gem": (lambda: everypool.MixedPool("gem", "avg", kernel_size=2), "first.p"),
    "scaled": (lambda: Scaled(everypool.MaxPool2d(2)), "scale"),
    "scaled gem": (lambda: Scaled(everypool.GeMPool2d(2)), "pool.p"),
    "hopfield": (lambda: everypool.Hopfield(4, scaling=nn.Parameter(torch.ones(1))), "scaling"),
}


@pytest.mark.parametrize("shape", [(), (1,), (1, 1), (1, 1, 1, 1)])
@pytest.mark.parametrize("name", SCALARS)
def test_numbers_of_any_number_of_axes(name: str, shape: tuple[int, ...]) -> None:
    """A learned number of shape () or (1,) is the same, in whichever direction it is loaded."""
    made, key = SCALARS[name]
    module, value = nn.Sequential(made()), torch.full(shape, 2.5)
    checkpoint = {**module.state_dict(), f"0.{key}": value}
    before = module.get_parameter(f"0.{key}")
    module.load_state_dict(checkpoint, strict=True)
    assert module.get_parameter(f"0.{key}") is before
    assert before.detach().flatten().tolist() == [2.5]
    assert checkpoint[f"0.{key}"] is value
    module.load_state_dict({**checkpoint, f"0.{key}": value + 1}, strict=True, assign=True)
    assert module.get_parameter(f"0.{key}").detach().flatten().tolist() == [3.5]
    assert module.get_parameter(f"0.{key}").shape == before.shape

    class Other(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.p = nn.Parameter(torch.zeros(()))

    if before.dim() == 1:  # torch itself takes it where there are no axes
        other = Other()
        other.load_state_dict({"p": module.state_dict()[f"0.{key}"]}, strict=True)
        assert other.p.item() == 3.5
    with pytest.raises(RuntimeError, match="size mismatch"):
        module.load_state_dict({**checkpoint, f"0.{key}": torch.ones(2)})


@pytest.mark.parametrize("shape", [(4,), (1, 4), (1, 4, 1, 1), (4, 1, 1)])
def test_numbers_for_each_channel(shape: tuple[int, ...]) -> None:
    module = everypool.GeMPool2d(2, channels=4)
    module.load_state_dict({"p": torch.arange(1.0, 5.0).reshape(shape)})
    assert module.p.tolist() == [1, 2, 3, 4]
    with pytest.raises(RuntimeError, match="size mismatch"):
        module.load_state_dict({"p": torch.ones(1, 5, 1, 1)})


# SPPF, whose weights do not say which function they belong to


def weights(act: bool = True, shortcut: bool = False, channels: int = 8, n: int = 3) -> dict[str, Any]:
    """As of ultralytics: entries alone."""
    made = everypool.SPPF(channels, act=act, shortcut=shortcut, n=n)
    return dict(made.state_dict())


def test_weights_that_do_not_say_what_they_mean() -> None:
    for settings, name in (({}, "act"), ({"shortcut": True}, "act"), ({"act": False}, "shortcut")):
        with pytest.warns(UserWarning, match=rf"^`{name}` must be True .*or False .*YOLO26, which alone do not tell, got None"):
            everypool.SPPF(8, **settings).load_state_dict(weights())
        network = nn.Sequential(everypool.SPPF(8, **settings))
        with pytest.warns(UserWarning, match=rf"^`{name}` must be"):
            network.load_state_dict({f"0.{key}": value for key, value in weights().items()})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        everypool.SPPF(8, act=True).load_state_dict(weights())
        everypool.SPPF(8, act=False, shortcut=True).load_state_dict(weights())
        everypool.SPPF(8, act=False, shortcut=False).load_state_dict(weights())
        everypool.SPPF(8, 8, 5, 2, act=True).load_state_dict(weights(n=2))
    with pytest.raises(RuntimeError, match="size mismatch"):
        everypool.SPPF(8, act=True).load_state_dict(weights(n=2))
    with pytest.raises(ValueError, match=r"^`shortcut` must be False where outputs = 4 differ from channels = 8, got True"):
        everypool.SPPF(8, 4, shortcut=True)


@pytest.mark.parametrize("settings", [{}, {"act": False}, {"act": False, "shortcut": True}, {"act": True}, {"kernel": 3}])
def test_own_weights_say_what_they_mean(settings: dict[str, Any]) -> None:
    """Saved and loaded they carry it beside the entries, which are the published ones."""
    saved = nn.Sequential(everypool.SPPF(8, **settings))
    file = io.BytesIO()
    torch.save(saved.state_dict(), file)
    file.seek(0)
    checkpoint = torch.load(file, weights_only=True)
    assert list(checkpoint) == [f"0.{key}" for key in weights()]
    nn.Sequential(everypool.SPPF(8, **settings)).load_state_dict(checkpoint)
    for other in ({"act": settings.get("act") is False}, {"shortcut": not settings.get("shortcut")}, {"kernel": 7}):
        (name,) = other
        with pytest.raises(RuntimeError, match=rf"`{name}` must be .*, as it was when '0.' was saved, got {other[name]}"):
            nn.Sequential(everypool.SPPF(8, **{**settings, **other})).load_state_dict(checkpoint)
