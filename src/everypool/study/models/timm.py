"""timm's networks by name, without weights or with those of a local file."""

from __future__ import annotations

import difflib
import functools
import importlib
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from everypool import _check as check

__all__ = ["builder", "package"]

WRAPPERS = "state_dict_ema", "model_ema", "state_dict", "model"  # where training scripts put the weights, in this order


@functools.cache
def package() -> Any:
    """The module timm.

    torchvision, which timm imports, may be built for another torch than the one installed. It then stops at operators that
    its library should have defined. They are declared, with nothing behind them: no network here calls them.

    Raises:
        ModuleNotFoundError: timm is not installed.
    """
    for _ in range(32):
        try:
            importlib.import_module("torchvision")
        except ModuleNotFoundError:
            break
        except RuntimeError as error:
            found = re.search(r"operator torchvision::(\w+) does not exist", str(error))
            if found is None:
                raise
            for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
                del sys.modules[name]
            declare(found[1])
        else:
            break
    return importlib.import_module("timm")


def declare(name: str) -> None:
    library = torch.library.Library("torchvision", "FRAGMENT")
    library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    DECLARED.append(library)


DECLARED: list[torch.library.Library] = []  # they last as long as they are held


def builder(spec: str) -> Callable[[int, int, int, tuple[int, ...]], nn.Module]:
    """What builds "timm:NAME" or "timm:NAME@WEIGHTS".

    Raises:
        ValueError: timm has no network of that name, or there is no such file.
    """
    name, at, weights = spec.removeprefix("timm:").partition("@")
    timm = package()
    if not timm.is_model(name.partition(".")[0]):  # no name of a hub, which would be asked for the network
        near = difflib.get_close_matches(name, timm.list_models(), n=1, cutoff=0.5)
        got = f"{spec!r}" + (f" (did you mean timm:{near[0]}?)" if near else "")
        raise check.invalid("model", "timm: with one of the names of timm.list_models()", check.Shown(got))
    if at and not Path(weights).is_file():
        raise check.invalid("model", "a name with a file of weights after the @", spec)

    def build(classes: int, channels: int, nd: int, size: tuple[int, ...]) -> nn.Module:
        if nd != 2:
            raise check.invalid("model", f"one for {nd} spatial axes (timm's have 2)", spec)
        try:
            known = timm.get_pretrained_cfg(name)
            fixed = {"img_size": size} if known is not None and known.fixed_input_size else {}
            made: nn.Module = timm.create_model(name, pretrained=False, num_classes=classes, in_chans=channels, **fixed)
        except Exception as error:
            rule = f"one that timm builds for samples of shape {(channels, *size)}"
            raise check.invalid("model", rule, check.Shown(f"{spec!r}: {error}")) from error
        if at:
            load(made, read(Path(weights)), channels, spec)
        return made

    return build


def read(path: Path) -> dict[str, Tensor]:
    """The weights of a file by name; nothing in it is executed."""
    try:
        if path.suffix == ".safetensors":
            found: Any = importlib.import_module("safetensors.torch").load_file(path)
        else:
            found = torch.load(path, map_location="cpu", weights_only=True)
    except ModuleNotFoundError:
        raise
    except Exception as error:
        raise check.invalid("model", "one whose file of weights can be read", check.Shown(f"{path}: {error}")) from error
    for key in WRAPPERS:
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
            break
    if not isinstance(found, Mapping) or not all(isinstance(value, Tensor) for value in found.values()):
        raise check.invalid("model", "one whose file holds tensors by name", str(path))
    return {key.removeprefix("module."): value for key, value in found.items()}


def load(model: nn.Module, weights: dict[str, Tensor], channels: int, spec: str) -> None:
    """Weights into the model; the classifier's are left out if it has other classes, the first convolution's are adapted."""
    config: Any = getattr(model, "pretrained_cfg", {})
    classifiers, firsts = ((names,) if isinstance(names, str) else tuple(names or ()) for names in
                           (config.get("classifier"), config.get("first_conv")))  # fmt: skip
    own = model.state_dict()
    taken = dict(weights)
    dropped = set()
    for key, value in weights.items():
        module = key.rpartition(".")[0]
        if key not in own or value.shape == own[key].shape:
            continue
        if module in classifiers:
            dropped.add(key)
            del taken[key]
        elif module in firsts and key.endswith("weight"):
            taken[key] = importlib.import_module("timm.models").adapt_input_conv(channels, value)
    try:
        missing, unexpected = model.load_state_dict(taken, strict=False)
    except RuntimeError as error:
        raise check.invalid("model", "one that the weights fit", check.Shown(f"{spec!r}: {error}")) from error
    wrong = sorted({*missing, *unexpected} - dropped)
    if wrong:
        raise check.invalid("model", "one that the weights fit", check.Shown(f"{spec!r}: {', '.join(wrong[:5])} do not"))
