"""Networks to train: a small one, timm's by name, and the user's own."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from everypool import _check as check

__all__ = ["absolute", "build_model", "model_hash"]

RULE = "small, timm:NAME, timm:NAME@WEIGHTS, FILE.py:FUNCTION or PACKAGE.MODULE:FUNCTION"


def build_model(spec: str, *, classes: int, channels: int, nd: int, size: tuple[int, ...]) -> nn.Module:
    """A network (N, channels, *size) -> (N, classes) with first weights from torch's random numbers.

    Args:
        spec: "small"; "timm:resnet18", with a file of weights if wanted ("timm:resnet18@resnet18.safetensors"); or a
            function that returns a module, in a file ("mine.py:build") or in a module that can be imported.
        classes: how many.
        channels: of the input.
        nd: spatial axes, 1 to 3.
        size: extents of the input.

    Raises:
        ValueError: there is no such network, or it does not take that input or give that output.
        RuntimeError: the user's code failed; its own error is the cause.

    >>> build_model("small", classes=3, channels=2, nd=1, size=(24,))(torch.rand(5, 2, 24)).shape
    torch.Size([5, 3])
    """
    if check.positive_int("nd", nd) > 3:
        raise check.invalid("nd", "1, 2 or 3", nd)
    if len(size) != nd:
        raise check.invalid("size", f"{nd} extents", size)
    model = builder(spec)(classes, channels, nd, size)
    check_output(spec, model, torch.zeros(2, channels, *size), classes)
    return model


def builder(spec: str) -> Callable[[int, int, int, tuple[int, ...]], nn.Module]:
    if spec == "small":
        from everypool.study.models.small import build

        return build
    if spec.startswith("timm:"):
        from everypool.study.models.timm import builder as timm_builder

        return timm_builder(spec)
    if ":" in spec:
        from everypool.study.models.user import builder as user_builder

        return user_builder(spec)
    raise check.invalid("model", RULE, spec)


def check_output(spec: str, model: nn.Module, example: Tensor, classes: int) -> None:
    modes = {module: module.training for module in model.modules()}
    shape = tuple(example.shape[1:])
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            output = model.eval()(example)
    except Exception as error:
        raise RuntimeError(f"{spec} does not run on samples of shape {shape}: {type(error).__name__}: {error}") from error
    finally:
        for module, mode in modes.items():
            module.training = mode
    if not isinstance(output, Tensor) or output.shape != (len(example), classes):
        got = f"a tensor of shape {tuple(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
        rule = f"a network that gives (N, {classes}) for samples of shape {shape}"
        raise check.invalid("model", rule, check.Shown(f"{got} from {spec!r}"))


def absolute(spec: str) -> str:
    """The same network from any working directory: with the whole path of its file, if it has one.

    >>> absolute("small"), absolute("timm:resnet18")
    ('small', 'timm:resnet18')
    """
    if spec.startswith("timm:"):
        name, at, weights = spec.partition("@")
        return f"{name}{at}{Path(weights).resolve()}" if at else spec
    name, colon, function = spec.rpartition(":")
    return f"{Path(name).resolve()}{colon}{function}" if name.endswith(".py") else spec


def model_hash(spec: str) -> str:
    """Of what lies in a file and not in a package: the file with the function, or the one with the weights; else "".

    Raises:
        ValueError: there is no such file or module.
    """
    path: Path | None = None
    if spec.startswith("timm:"):
        weights = spec.partition("@")[2]
        path = Path(weights) if weights else None
        if path is not None and not path.is_file():
            raise check.invalid("model", "a name with a file of weights after the @", spec)
    elif ":" in spec:
        from everypool.study.models.user import source

        path = source(spec)
    return "" if path is None else hashlib.sha256(path.read_bytes()).hexdigest()[:16]
