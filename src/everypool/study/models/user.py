"""The user's own network: a function in a Python file or in a module that can be imported."""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from everypool import _check as check

__all__ = ["builder", "source"]

ARGUMENTS = "num_classes", "in_channels", "nd", "input_size"


def builder(spec: str) -> Callable[[int, int, int, tuple[int, ...]], nn.Module]:
    """What builds "FILE.py:FUNCTION" or "PACKAGE.MODULE:FUNCTION"; a class will do too.

    The function is called with those of `num_classes`, `in_channels`, `nd` and `input_size` that its signature has.

    Raises:
        ValueError: no such file, module or function, or one that wants other arguments.
        RuntimeError: the user's code failed; its own error is the cause.
    """
    path, attribute = source(spec), spec.rpartition(":")[2]
    with imports(path.parent if is_file(spec) else Path.cwd()), blamed(spec):
        module = loaded(path) if is_file(spec) else importlib.import_module(spec.rpartition(":")[0])
    function = getattr(module, attribute, None)
    if not callable(function):
        names = [n for n, item in vars(module).items() if callable(item) and getattr(item, "__module__", "") == module.__name__]
        there = ", ".join(names) or "nothing callable"
        raise check.invalid("model", f"a function that is in {spec.rpartition(':')[0]} ({there})", attribute)

    def build(classes: int, channels: int, nd: int, size: tuple[int, ...]) -> nn.Module:
        given = dict(zip(ARGUMENTS, (classes, channels, nd, size), strict=True))
        taken = wanted(function, given, spec)
        with imports(path.parent if is_file(spec) else Path.cwd()), blamed(spec):
            made = function(**taken)
        if not isinstance(made, nn.Module):
            got = check.Shown(f"{type(made).__name__} from {spec!r}")
            raise check.wrong_type("model", "a function that returns a torch.nn.Module", got)
        return made

    return build


def source(spec: str) -> Path:
    """The file that holds the function.

    Raises:
        ValueError: there is none.
    """
    name, _, attribute = spec.rpartition(":")
    if not attribute.isidentifier():
        raise check.invalid("model", "a file or module and, after the colon, the name of a function", spec)
    if is_file(spec):
        path = Path(name)
        if not path.is_file():
            raise check.invalid("model", "a Python file that exists and the name of a function", spec)
        return path.resolve()
    try:
        with imports(Path.cwd()), blamed(spec):
            found = importlib.util.find_spec(name)
    except RuntimeError as error:
        if not isinstance(error.__cause__, (ModuleNotFoundError, ValueError)):
            raise
        found = None
    if found is None or found.origin is None or not Path(found.origin).is_file():
        raise check.invalid("model", "a Python file or a module that can be imported", spec)
    return Path(found.origin)


def is_file(spec: str) -> bool:
    return spec.rpartition(":")[0].endswith(".py")


def loaded(path: Path) -> ModuleType:
    return executed(path, hashlib.sha256(path.read_bytes()).hexdigest()[:16])


@functools.cache
def executed(path: Path, version: str) -> ModuleType:
    """The module of a file, made once for every content that the file has."""
    name = f"_everypool_user_{version}"
    found = importlib.util.spec_from_file_location(name, path)
    if found is None or found.loader is None:
        raise check.invalid("model", "a Python file", str(path))
    module = importlib.util.module_from_spec(found)
    sys.modules[name] = module  # before it runs: dataclasses and pickle look it up
    try:
        found.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def wanted(function: Callable[..., Any], given: dict[str, Any], spec: str) -> dict[str, Any]:
    """Those of the arguments that the function takes."""
    rule = f"a function that needs no other arguments than {', '.join(ARGUMENTS)}"
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError) as error:
        raise check.invalid("model", rule, spec) from error
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return given
    for name, parameter in parameters.items():
        optional = parameter.default is not parameter.empty or parameter.kind is parameter.VAR_POSITIONAL
        if not optional and (name not in given or parameter.kind is parameter.POSITIONAL_ONLY):
            raise check.invalid("model", rule, check.Shown(f"{name} in {spec!r}"))
    by_name = {name for name, parameter in parameters.items() if parameter.kind is not parameter.POSITIONAL_ONLY}
    return {name: value for name, value in given.items() if name in by_name}


@contextmanager
def imports(folder: Path) -> Iterator[None]:
    """The folder's modules can be imported meanwhile."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        if str(folder) in sys.path:
            sys.path.remove(str(folder))


@contextmanager
def blamed(spec: str) -> Iterator[None]:
    """An error of the user's code, even one that would end the program, as the cause of one that names the code."""
    try:
        yield
    except (Exception, SystemExit) as error:
        raise RuntimeError(f"the code of {spec} failed: {type(error).__name__}: {error}") from error
