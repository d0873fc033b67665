"""Every layer and block: first values after `to_empty`, repr, and the words in which wrong arguments are refused."""

from __future__ import annotations

import inspect
import re
from typing import Any

import numpy as np
import pytest
import torch
from modules import CLASSES, MADE, Made, made_id, required
from scipy import stats
from torch import nn

import everypool

DRAWS = 12  # instances whose values are compared as two samples
FORM = re.compile(r"^`[A-Za-z_0-9]+` must be .+, got .+", re.DOTALL)


def tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


@pytest.mark.parametrize("made", MADE, ids=made_id)
def test_first_values_come_back_after_to_empty(made: Made) -> None:
    """What is the same in every new module is so to the bit, and what is drawn has the same distribution."""
    fresh = [{name: value.detach().clone() for name, value in tensors(made.build()).items()} for _ in range(DRAWS)]
    with torch.device("meta"):
        module = made.build()
    module.to_empty(device="cpu")
    assert {name: value.shape for name, value in tensors(module).items()} == {n: v.shape for n, v in fresh[0].items()}
    again = []
    for _ in range(DRAWS):
        with torch.no_grad():
            for value in tensors(module).values():
                value.fill_(float("nan") if value.is_floating_point() else 77)
        module.reset_parameters()
        again.append({name: value.detach().clone() for name, value in tensors(module).items()})
    for name in fresh[0]:
        ours, theirs = (torch.stack([values[name] for values in many]) for many in (again, fresh))
        if bool((theirs == theirs[:1]).all()):
            assert torch.equal(ours, theirs), name
        else:
            assert bool(ours.isfinite().all()), name
            assert stats.ks_2samp(ours.flatten().numpy(), theirs.flatten().numpy()).pvalue > 1e-4, name
    assert [p.requires_grad for p in module.parameters()] == [p.requires_grad for p in made.build().parameters()]


@pytest.mark.parametrize("made", MADE, ids=made_id)
def test_what_is_held_is_reset_by_those_who_hold_it(made: Made) -> None:
    """Whoever walks the tree and resets each module that owns tensors finds the method in all of ours."""
    module = made.build()
    for part in module.modules():
        owns = [*part.parameters(recurse=False), *part.buffers(recurse=False)]
        if owns and type(part).__module__.startswith("everypool."):
            assert callable(part.reset_parameters)
    module.apply(lambda part: part.reset_parameters() if hasattr(part, "reset_parameters") else None)
    assert all(bool(value.isfinite().all()) for value in tensors(module).values())


def test_a_trained_setting_goes_back_to_its_start() -> None:
    layer = everypool.GeMPool2d(2, p=4.5, channels=3)
    mixed = everypool.MixedPool("max", layer, 0.25, channels=2)
    with torch.no_grad():
        layer.p.add_(torch.arange(3.0))
        mixed.alpha.zero_()
    mixed.reset_parameters()
    assert layer.p.tolist() == [4.5] * 3
    assert mixed.alpha.tolist() == [0.25] * 2


def test_what_is_handed_in_is_reset_too() -> None:
    inner = nn.Sequential(nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2))
    module = everypool.MixedPool(inner, everypool.GeMPool2d(1))
    with torch.no_grad():
        for value in tensors(module).values():
            value.fill_(77)
    module.reset_parameters()
    assert bool((inner[0].weight.detach().abs() < 1).all())
    assert inner[1].running_mean.tolist() == [0, 0]
    assert inner[1].num_batches_tracked.item() == 0


class NoReset(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))


def test_what_cannot_be_reset_is_refused() -> None:
    with pytest.raises(NotImplementedError, match=r"^`weight` must be of a module with reset_parameters, got that of NoReset"):
        everypool.MixedPool(NoReset(), "max").reset_parameters()
    with torch.device("meta"):
        layer = everypool.GeMPool2d(2, p=torch.tensor([3.0, 4.0]))
    layer.reset_parameters()  # nothing to write into
    with pytest.raises(NotImplementedError, match=r"^`p` must be given as a number or a tensor with values"):
        layer.to_empty(device="cpu").reset_parameters()


NUMBER = r"-?(?:\d+\.\d+(?:e[+-]\d+)?|\d+e[+-]\d+|inf)"


@pytest.mark.parametrize("made", MADE, ids=made_id)
def test_repr_shows_values(made: Made) -> None:
    """One short line for a module of its own, in which settings are numbers, and what is learned is marked."""
    module = made.build()
    text = f"{type(module).__name__}({module.extra_repr()})"
    assert len(text) < 200
    assert "tensor(" not in text
    assert "Parameter" not in text
    assert not re.search(r"\d\.\d{5,}", text), text
    for name in ("p", "beta", "r", "alpha", "scaling"):
        if isinstance(getattr(type(module), name, None), property):
            continue  # the module inside shows it
        value = getattr(module, name, None)
        if not isinstance(value, (int, float, torch.Tensor)):
            continue
        found = re.search(rf"\b{name}=(\[?{NUMBER}(?:, {NUMBER})*(?:, \.\.\.)?\]?)(?: \((.*?)\))?", text)
        assert found, text
        numbers = [float(number) for number in re.findall(NUMBER, found[1])]
        values = value.detach().flatten().tolist() if isinstance(value, torch.Tensor) else [value]
        np.testing.assert_allclose(numbers, values[: len(numbers)], rtol=5e-4)
        assert len(numbers) in (len(values), 3) or len(set(values)) == 1
        marks = found[2] or ""
        assert ("learned" in marks) == isinstance(value, nn.Parameter)
        assert (f"{len(values)} channels" in marks) == (len(values) > 1)


@pytest.mark.parametrize("made", MADE, ids=made_id)
def test_repr_without_values(made: Made) -> None:
    with torch.device("meta"):
        module = made.build()
    assert repr(module.to("meta")).startswith(type(module).__name__)


def refusal(kind: type[nn.Module], *arguments: Any, **settings: Any) -> str:
    with pytest.raises(TypeError) as caught:
        kind(*arguments, **settings)
    text = str(caught.value)
    assert FORM.match(text), text
    assert kind.__name__ in text, text
    return text


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_wrong_arguments_name_the_class_and_its_settings(kind: type[nn.Module]) -> None:
    parameters = inspect.signature(kind).parameters
    least = required(kind)
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    if not open_ended:
        text = refusal(kind, **least, qqq=1)
        assert text.startswith("`qqq` must be")
        assert all(name in text for name in parameters if parameters[name].kind is not inspect.Parameter.VAR_POSITIONAL)
        for name in parameters:
            if len(name) > 4 and parameters[name].kind in (
                inspect.Parameter.KEYWORD_ONLY,
                inspect.Parameter.POSITIONAL_OR_KEYWORD,
            ):
                assert "did you mean" in refusal(kind, **least, **{f"{name}x": 1}), name
    for name in (name for name in least if parameters[name].default is inspect.Parameter.empty):
        missing = {key: value for key, value in least.items() if key != name}
        assert refusal(kind, **missing).startswith(f"`{name}` must be given to {kind.__name__}")
    if not any(p.kind is p.VAR_POSITIONAL for p in parameters.values()):
        assert refusal(kind, *range(40)).startswith("`arguments` must be at most ")
    if least and next(iter(parameters)) in least:
        assert "given once" in refusal(kind, next(iter(least.values())), **least)


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_signatures_are_whole(kind: type[nn.Module]) -> None:
    """What help() shows is all there is, except where arguments go on to `create`."""
    parameters = inspect.signature(kind).parameters
    assert "self" not in parameters
    keywords = [p.name for p in parameters.values() if p.kind is p.VAR_KEYWORD]
    assert keywords == (["windows"] if kind is everypool.MixedPool else [])


def test_a_class_of_the_users_keeps_its_own_constructor() -> None:
    class Own(everypool.GeMPool2d):
        def __init__(self, size: int, *, extra: int = 1) -> None:
            super().__init__(size, p=extra)

    class Named(everypool.GeMPool2d):
        pass

    assert Own(2, extra=4).p.item() == 4
    assert list(inspect.signature(Own).parameters) == ["size", "extra"]
    with pytest.raises(TypeError, match="unexpected keyword argument 'q'"):
        Own(2, q=1)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match=r"^`q` must be an argument of Named: kernel_size"):
        Named(2, q=1)
