"""`create` makes the module of every operation; poolings of every kind stand where `everypool compare` can put them."""

from __future__ import annotations

import inspect
import re
from typing import Any

import pytest
import torch
from modules import required
from torch import nn

import everypool
from everypool import Operation
from everypool.factory import find_classes
from everypool.study.experiments import digits, own
from everypool.study.nets import checked_pool
from everypool.study.trial import Trial, run

OPERATIONS = list(everypool.operations().values())
PLACES = [(op, name, nd) for op in OPERATIONS for name in (op.name, *op.aliases) for nd in op.nd]
ERROR = re.compile(r"^`[a-z_]+` must be .+, got .+")
HALVING = {  # what halves a map, beside the reducers
    "blur_pool", "max_blur_pool", "mixed_pool", "gated_pool", "lenet_subsampling",
}  # fmt: skip
HEADS = {"mixed_pool", "gem_head", "hopfield_pooling"}  # what makes (N, C) of a map, beside the reducers


def name_of(item: Any) -> str:
    return item.name if isinstance(item, Operation) else str(item)


@pytest.mark.parametrize(("operation", "name", "nd"), PLACES, ids=name_of)
def test_every_name_makes_its_module(operation: Operation, name: str, nd: int) -> None:
    """For all axes that it has, with what its constructor asks for, whatever the case of the name."""
    if operation.kind == "reducer":
        for arguments, stem in (
            ({"kernel_size": 2}, "{}Pool{}d"),
            ({"output_size": 2}, "Adaptive{}Pool{}d"),
            ({}, "Global{}Pool"),
        ):
            made = everypool.create(name.upper(), nd=nd, **arguments)
            assert type(made).__name__ == stem.format(operation.stem, nd)
        return
    classes = find_classes(operation)
    kind = next((kind for kind in classes if kind.__name__.endswith(f"{nd}d")), classes[0])
    made = everypool.create(f" {name.upper()} ", nd=nd, **required(kind))
    assert type(made) is kind
    assert getattr(made, "nd", nd) in (nd, None)


@pytest.mark.parametrize("kind", [kind for op in OPERATIONS if op.kind != "reducer" for kind in find_classes(op)],
                         ids=lambda kind: kind.__name__)  # fmt: skip
def test_every_module_has_its_own_name(kind: type[nn.Module]) -> None:
    assert type(everypool.create(kind.__name__, **required(kind))) is kind
    missing = [name for name in required(kind) if inspect.signature(kind).parameters[name].default is inspect.Parameter.empty]
    if missing:
        with pytest.raises(ValueError, match=f"^`{missing[0]}` must be given to {kind.__name__}") as caught:
            everypool.create(kind.__name__)
        assert all(f"`{name}`" in str(caught.value) for name in missing)


@pytest.mark.parametrize("operation", OPERATIONS, ids=name_of)
def test_what_does_not_fit_is_refused(operation: Operation) -> None:
    for nd in {1, 2, 3} - set(operation.nd):
        with pytest.raises(ValueError, match=r"^`nd` must be "):
            everypool.create(operation.name, nd=nd)
    if operation.name != "mixed_pool":  # which hands its arguments on
        with pytest.raises(ValueError, match=r"^`kernell` must be .*, got 3"):
            everypool.create(operation.name, kernell=3)
    with pytest.raises(ValueError, match=r"^`qqq` must be |^`first` must be given"):
        everypool.create(f"{operation.name}:qqq=3")
    with pytest.raises(ValueError, match=r"^`name` must be NAME or NAME:SETTING=VALUE"):
        everypool.create(f"{operation.name}:qqq")


def test_settings_in_the_name() -> None:
    assert everypool.create("spatial_pyramid:reducer=avg").chosen == "avg"
    assert everypool.create("gem:p=4,learnable=false", kernel_size=2).p == 4
    assert everypool.create("lp", norm_type=3, kernel_size=2).norm_type == 3
    assert everypool.create("lp:p=4").norm_type == 4
    assert everypool.create("hopfield_pooling:quantity=3", input_size=8).quantity == 3
    assert everypool.create("toppool").nd == 2
    assert everypool.create("blurpool1d").nd == 1
    with pytest.raises(ValueError, match=r"did you mean 'kernel_size'\?"):
        everypool.create("max", kernel=2)
    with pytest.raises(ValueError, match=r"^`kernel_size` must be given to MaxPool3d"):
        everypool.create("max", nd=3, stride=2)
    with pytest.raises(ValueError, match=r"^`reducer` must be 'gem' with settings of p, norm, signed, eps, got 'gem:q=3'"):
        everypool.pool(torch.ones(1, 1, 4), "gem:q=3", everypool.Global())


def can_halve(operation: Operation, nd: int) -> bool:
    return nd in operation.nd and (operation.kind == "reducer" or operation.name in HALVING)


@pytest.mark.parametrize("nd", [1, 2, 3])
@pytest.mark.parametrize("operation", OPERATIONS, ids=name_of)
def test_a_pooling_place_takes_what_halves_a_map(operation: Operation, nd: int) -> None:
    """All else is refused in one line that says why."""
    if can_halve(operation, nd):
        assert checked_pool(operation.name, nd) == operation.name
        return
    with pytest.raises(ValueError, match=ERROR) as caught:
        checked_pool(operation.name, nd)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("operation", [op for op in OPERATIONS if can_halve(op, 2)], ids=name_of)
def test_the_digits_can_be_learned_with_it(operation: Operation) -> None:
    model = digits.build(operation.name)
    loss = model(torch.rand(4, 1, 10, 10)).logsumexp(1).sum()
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.isfinite().all()), name
    assert model.eval()(torch.rand(4, 1, 10, 10)).shape == (4, 10)


@pytest.fixture(scope="module")
def places() -> dict[str, Any]:
    return {where: own.prepared("digits", where=where, epochs=1) for where in ("stem", "head")}


@pytest.mark.parametrize("where", ["stem", "head"])
@pytest.mark.parametrize("operation", OPERATIONS, ids=name_of)
def test_a_model_of_the_users_takes_what_fits(operation: Operation, where: str, places: dict[str, Any]) -> None:
    settings, samples = places[where]
    experiment = own.described(settings, samples)
    fits = operation.kind == "reducer" or operation.name in {"stem": HALVING, "head": HEADS}[where]
    assert experiment.check_variant is not None
    if fits:
        experiment.check_variant(operation.name)
        model, inputs, _ = own.sample(Trial("own", operation.name, 0, tuple(sorted(settings.items()))))
        assert model(inputs[:2]).shape == (2, 10)
        return
    with pytest.raises((ValueError, NotImplementedError), match=ERROR) as caught:
        experiment.check_variant(operation.name)
    assert "\n" not in str(caught.value)


def test_a_trial_with_a_block() -> None:
    outcome = run(Trial("digits", "mixed_pool:second=gem", 0, (("epochs", 1),)))
    assert outcome.measures["parameters"] == sum(p.numel() for p in digits.build("max").parameters()) + 2 * 2
    assert outcome.measures["accuracy"] > 30
