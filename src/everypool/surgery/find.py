"""The poolings of a model: which there are, where they stand, and what each of them is."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from everypool import _check as check
from everypool.surgery.costs import Cost
from everypool.surgery.costs import costs as measured
from everypool.surgery.trace import (
    SLIDING,
    WHOLE,
    Call,
    Run,
    axes_of,
    channels_last,
    check_model,
    is_doubtful,
    kind,
    known_as,
    traced,
)  # fmt: skip

__all__ = ["PLACES", "Missed", "Pooling", "Poolings", "chosen", "find"]

PLACES = {
    "stem": "sliding windows before the first residual stage",
    "stage": "all other sliding windows",
    "head": "what pools the last map",
    "inside": "a map pooled within the network, to gate a block for example",
}
WINDOW = ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "count_include_pad", "divisor_override", "output_size")


@dataclass(frozen=True)
class Pooling:
    """One pooling of a model.

    Args:
        name: of the module in the model; of a function that of the module that calls it, a dot, and its own.
        what: the class or the function.
        reducer: "max", "avg" and so on, as far as its type or what it gives says; otherwise "".
        kind: "sliding", "adaptive" (a fixed number of bins), "global" (one bin) or "strip" (whole rows or columns).
        place: "stem", "stage", "head" or "inside", see `PLACES`; "" without an example.
        window: its arguments by torch.nn's names.
        input: shape of what it was given first.
        output: shape of what it made of that.
        calls: how often it runs in one forward pass.
        before: the module with weights that ran last before it.
        after: the module with weights that runs next.
        source: file and line of a function's call.
        module: the module itself; None for a function.
        owner: the module whose method calls the function.
        call: what the function was called with.
        nd: spatial axes, where the type says them; otherwise 0.
        cost: its shares of time, memory and operations, if asked for.
    """

    name: str
    what: str
    reducer: str
    kind: str
    place: str
    window: Mapping[str, Any] = field(default_factory=dict)
    input: torch.Size = torch.Size()  # noqa: RUF009
    output: torch.Size = torch.Size()  # noqa: RUF009
    calls: int = 1
    before: str = ""
    after: str = ""
    source: str = ""
    module: nn.Module | None = field(default=None, repr=False)
    owner: nn.Module | None = field(default=None, repr=False)
    call: Call | None = field(default=None, repr=False)
    like: Tensor | None = field(default=None, repr=False)  # an empty tensor of the input's type on its device
    negative: bool = field(default=False, repr=False)  # the input has values below zero
    nd: int = field(default=0, repr=False)
    cost: Cost | None = None

    def described(self) -> str:
        """Its windows in a few characters, such as "3x3 s2 p1", "7x7 bins" or "all of 7x7".

        >>> find(nn.MaxPool2d(3, 2, 1), torch.rand(1, 1, 8, 8))[0].described()
        '3x3 s2 p1'
        """
        spatial = self.input[2:]
        if self.kind == "sliding":
            nd = len(spatial) or self.nd or 2
            parts = [sides(self.window["kernel_size"], nd)]
            for letter, name, plain in (("s", "stride", None), ("p", "padding", 0), ("d", "dilation", 1)):
                value = self.window.get(name, plain)
                if value is not None and value not in (plain, (plain,) * nd):
                    parts.append(f"{letter}{value if isinstance(value, (int, str)) else sides(value, nd)}")
            return " ".join(parts + ["ceil"] * bool(self.window.get("ceil_mode")))
        if self.kind == "adaptive":
            return f"{sides(self.window.get('output_size', tuple(self.output[2:])), len(spatial) or 2)} bins"
        reduced = [self.input[axis] for axis in self.call.axes] if self.call is not None and self.call.axes else spatial
        if self.kind == "global" and self.module is not None and channels_last(self.module):
            reduced = self.input[1:-1]
        return f"all of {'x'.join(map(str, reduced))}" if reduced else "all"


@dataclass(frozen=True)
class Missed:
    """What may be a pooling, but is none that could be described or swapped.

    Args:
        name: of the module, or of the one that calls the function.
        what: the class or the function.
        input: shape of what it was given first.
        output: shape of what it made of that.
        source: file and line of a function's call.
        calls: how often it runs in one forward pass.
    """

    name: str
    what: str
    input: torch.Size
    output: torch.Size
    source: str = ""
    calls: int = 1

    def __str__(self) -> str:
        source = f" ({self.source})" if self.source else ""
        times = f" x {self.calls}" if self.calls > 1 else ""
        return f"{self.what}{source}{times} in {self.name or 'the model'}, {sides(self.input, 0)} to {sides(self.output, 0)}"


class Poolings(tuple[Pooling, ...]):
    """What `find` has found; a table when printed.

    Args:
        found: the poolings.
        missed: what may be a pooling as well: sums, deviations and other statistics over places, such as the mean under a
            mask, and modules that are called poolings.
    """

    missed: tuple[Missed, ...]

    def __new__(cls, found: Iterable[Pooling] = (), missed: Iterable[Missed] = ()) -> Poolings:
        self = super().__new__(cls, found)
        self.missed = tuple(missed)
        return self

    def __str__(self) -> str:
        lines = [self.table() if self else "no pooling found", *(f"possibly missed: {item}" for item in self.missed)]
        return "\n".join(lines)

    def table(self) -> str:
        """The poolings, one in a line."""
        rows: list[tuple[str, ...]] = [("name", "what", "window", "input", "output", "place", "between")]
        for p in self:
            between = f"{p.before or 'input'} > {p.after or 'output'}" if p.place else ""
            what = p.what + (f" ({p.source})" if p.source else "") + (f" x {p.calls}" if p.calls > 1 else "")
            rows.append((p.name, what, p.described(), sides(p.input, 0), sides(p.output, 0), p.place, between))
        if any(p.cost is not None for p in self):
            rows = [
                (*row, *shares)
                for row, shares in zip(rows, [("time", "memory", "operations"), *map(percent, self)], strict=True)
            ]
        return aligned(rows)


def find(model: nn.Module, example: Any = None, *, costs: bool = False) -> Poolings:
    """Every pooling of a model, module or function, in the order in which they run first.

    Found are modules of torch.nn and of everypool; others with "pool" in the name of their class that take one map and keep
    its channels (a wrapper around a pooling is passed over for what is in it); and what is called as a function: max, average,
    Lp and adaptive pooling of torch.nn.functional, `mean`, `amax`, `max` and `logsumexp` over places of a map or over tokens,
    wherever they lie after it was flattened or moved. Attention and convolutions with a stride are not poolings, and neither
    is a mean by which nothing but its own map is centered or scaled. Other statistics over places (`sum`, `std`, the mean
    under a mask) are no poolings that could be swapped; `.missed` lists them.

    Args:
        model: it is run once, in evaluation mode without gradients, and left as it is.
        example: what the model takes: a tensor (N, C, *spatial), a tuple of arguments, or a mapping of arguments by name.
            Without one the model is not run: modules alone are found, without shapes and places, in the order of `modules()`.
        costs: also measure each pooling's share of time, memory and operations; the model then runs some ten times.

    Returns:
        A tuple of `Pooling`, printed as a table.

    Raises:
        TypeError: there is no tensor in the example, or the model is a compiled one.

    >>> model = nn.Sequential(nn.Conv1d(2, 4, 3), nn.MaxPool1d(2), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(4, 3))
    >>> print(find(model, torch.rand(1, 2, 8)))
    name  what               window    input  output  place  between
    1     MaxPool1d          2 s2      1x4x6  1x4x3   stem   0 > 4
    2     AdaptiveAvgPool1d  all of 3  1x4x3  1x4x1   head   0 > 4
    """
    check_model(model)
    names = {module: name for name, module in model.named_modules()}
    if example is None:
        modules = [m for m in names if isinstance(m, (*SLIDING, *WHOLE))]
        kinds = ["sliding" if isinstance(m, SLIDING) else whole(m) for m in modules]
        return Poolings(
            Pooling(names[m], type(m).__name__, known_as(m)[0], kind, "", window(m), module=m, nd=known_as(m)[1])
            for m, kind in zip(modules, kinds, strict=True)
        )
    runs = traced(model, example)
    first: dict[Any, int] = {}
    counts: dict[Any, int] = {}
    for number, run in enumerate(runs):
        if kind(run) is not None or is_doubtful(run):
            key = run.module if run.call is None else (run.owners[-1] if run.owners else model, run.call.site or number)
            first.setdefault(key, number)
            counts[key] = counts.get(key, 0) + 1
    stands = located(runs, [n for n in first.values() if kind(runs[n]) is not None], axes_of(example))
    found: list[Pooling] = []
    missed: list[Missed] = []
    taken: set[str] = set(names.values())
    for key, n in first.items():
        run = runs[n]
        if n not in stands:
            missed.append(doubted(run, names, counts[key]))
            continue
        shared: dict[str, Any] = {
            "kind": kind(run), "place": stands[n], "input": run.input, "output": run.output, "calls": counts[key],
            "before": neighbour(runs[:n][::-1], names), "after": neighbour(runs[n + 1 :], names), "like": run.like,
            "negative": any(r.negative for r in runs if same(r, run)),
        }  # fmt: skip
        if run.module is not None:
            module = run.module
            what, nd = type(module).__name__, known_as(module)[1]
            found.append(Pooling(names[module], what, run.reducer, window=window(module), module=module, nd=nd, **shared))
            continue
        if run.call is None:
            continue
        owner = run.owners[-1] if run.owners else model
        name = free(f"{names[owner]}.{run.call.function}".lstrip("."), owner, taken)
        what = written(run.call)
        source = str(run.call.site or "")
        found.append(
            Pooling(
                name, what, run.call.reducer, window=dict(run.call.window), source=source, owner=owner, call=run.call, **shared
            )
        )
    if costs:
        shares = measured(model, example, found)
        found = [replace(p, cost=shares[p.name]) for p in found]
    return Poolings(found, missed)


def doubted(run: Run, names: Mapping[nn.Module, str], calls: int) -> Missed:
    """What may be a pooling, with its place."""
    if run.call is None:
        name, what, source = names.get(run.module, ""), type(run.module).__name__, ""  # type: ignore[arg-type]
    else:
        name = names[run.owners[-1]] if run.owners else ""
        what, source = written(run.call), str(run.call.site or "")
    return Missed(name, what, run.input, run.output, source, calls)


def written(call: Call) -> str:
    """A function's name as it is called."""
    return f"{'.' if call.method else ''}{call.function}()"


def percent(pooling: Pooling) -> tuple[str, str, str]:
    if pooling.cost is None:
        return "", "", ""
    time, memory, operations = (f"{100 * share:.2g} %" for share in dataclasses.astuple(pooling.cost))
    return time, memory, operations


def same(first: Run, second: Run) -> bool:
    if first.call is None or second.call is None:
        return first.module is not None and first.module is second.module
    return first.call.site == second.call.site and first.owners == second.owners


def free(name: str, owner: nn.Module, taken: set[str]) -> str:
    """The name, numbered if the module has such an attribute already."""
    base, number = name, 1
    while name in taken or hasattr(owner, name.rpartition(".")[2]):
        number += 1
        name = f"{base}_{number}"
    taken.add(name)
    return name


def neighbour(runs: Sequence[Run], names: Mapping[nn.Module, str]) -> str:
    """The first of the modules with weights among the runs."""
    near = (run.module for run in runs if run.module is not None and kind(run) is None)
    return next((names[module] for module in near if module in names), "")


def window(module: nn.Module) -> dict[str, Any]:
    return {name: getattr(module, name) for name in WINDOW if getattr(module, name, None) is not None}


def whole(module: nn.Module) -> str:
    size = getattr(module, "output_size", 1)
    return "global" if all(n == 1 for n in (size if isinstance(size, (tuple, list)) else (size,))) else "adaptive"


def sides(value: Any, nd: int) -> str:
    """A size, written once for all axes as "3x3"."""
    if isinstance(value, (tuple, list)):
        return "x".join("-" if n is None else str(n) for n in value)
    return "x".join([str(value)] * max(nd, 1))


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """A table in plain text."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)


def located(runs: list[Run], pools: list[int], nd: int) -> dict[int, str]:
    """The place of each pooling, by the number of its run."""
    spread = {n: extent(run.output, nd) for n, run in enumerate(runs)}
    maps = [n for n, run in enumerate(runs) if run.module is not None and n not in pools and len(run.output) >= 3]
    # nothing larger comes after the head; what gates a block is followed by the block's map
    final = [n for n in pools if not any(later > n and spread[later] > spread[n] for later in maps)]
    heads = [n for n in final if kind(runs[n]) != "sliding"]
    if heads:
        heads = [n for n in heads if not any(n < between < heads[-1] for between in maps)]
    else:  # a sliding window that is as large as the map
        heads = [n for n in final[-1:] if spread[n] == 1 < math.prod(runs[n].input[2:])]
    sliding = [n for n in pools if kind(runs[n]) == "sliding" and n not in heads]
    stepping = [n for n in sliding if spread[n] < math.prod(runs[n].input[2:])]
    merge = next((n for n, run in enumerate(runs) if run.module is None and run.call is None), len(runs))
    stem = [n for n in stepping if n < merge]
    if all(n < merge for n in sliding):  # no stages with residuals between them: the first is the stem
        stem = stem[:1]
    return {
        n: "head" if n in heads else "stem" if n in stem else "stage" if n in sliding else "inside" for n in pools
    }  # fmt: skip


def extent(shape: torch.Size, nd: int) -> int:
    """Places of a map (N, C, *spatial); tokens of (N, tokens, C)."""
    return shape[1] if len(shape) == 3 and nd > 1 else math.prod(shape[2:])


def chosen(found: Sequence[Pooling], where: str | Sequence[str]) -> tuple[Pooling, ...]:
    """Those of the poolings that `where` names.

    Args:
        found: what `find` gives.
        where: "stem", "stage", "head" or "inside"; names of poolings or of modules around them, with wildcards (`*`, `?`,
            `[...]`) if need be. Several are a sequence, or have commas between them.

    Raises:
        ValueError: a part of `where` names no pooling.
    """
    parts = [part.strip() for part in where.split(",")] if isinstance(where, str) else list(where)
    picked: set[str] = set()
    for part in parts:
        here = [p.name for p in found if (p.place == part if part in PLACES else named(p.name, part))]
        if not here:
            raise check.invalid("where", f"places where the model pools ({there(found)})", part)
        picked.update(here)
    return tuple(p for p in found if p.name in picked)


def there(found: Sequence[Pooling]) -> str:
    """The poolings by place, for messages."""
    by_place = [f"{place or 'unknown'}: {', '.join(p.name for p in found if p.place == place)}" for place in (*PLACES, "")]
    by_place += [f"possibly missed: {item}" for item in getattr(found, "missed", ())]
    return "; ".join(text for text in by_place if not text.endswith(": ")) or "it has none"


def named(name: str, pattern: str) -> bool:
    """Whether the pattern fits the name or that of a module around it."""
    parts = name.split(".")
    return any(fnmatchcase(".".join(parts[:end]), pattern) for end in range(1, len(parts) + 1))


def picked(found: Sequence[Pooling], key: Any) -> Iterator[Pooling]:
    """Those that one key of the rules of a swap means: a class, a function, a name or place, or a test."""
    if isinstance(key, str):
        yield from chosen(found, key)
    elif isinstance(key, type):
        yield from (p for p in found if isinstance(p.module, key))
    elif isinstance(key, Callable):  # type: ignore[arg-type]
        name = getattr(key, "__name__", "")
        functions = [p for p in found if p.call is not None and p.call.function == name]
        yield from functions if is_torch(key) else (p for p in found if key(p))
    else:
        raise check.wrong_type("rules", "a mapping from names, places, classes, functions or tests to poolings", key)


def is_torch(function: Any) -> bool:
    """Whether it is one of torch's functions rather than a test of the user's."""
    name = getattr(function, "__name__", "")
    return any(getattr(space, name, None) is function for space in (torch, nn.functional, Tensor))
