"""`everypool explain`: which implementation runs an operation, why, and what it costs."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from typing import Any

import click
import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import Tensor, nn

from everypool import _check as check
from everypool import windows as kinds
from everypool.explain import Explanation, explain
from everypool.layer import WindowLayer
from everypool.pool import Operation, Reducer, Windows, find_operation, parse

__all__ = ["command"]

DTYPES = ("float32", "float64", "float16", "bfloat16", "int8", "uint8", "int16", "int32", "int64", "bool")
PREFIXES = ("", "k", "M", "G", "T", "P", "E")


@click.command("explain")
@click.argument("operation", metavar="OP")
@click.option("--shape", help="Of the input, such as 32x64x112x112. A module without it takes a small example of its own.")
@click.option("--kernel", "kernel_size", help="Sliding windows: 3, or 3x2 for each axis.")
@click.option("--stride", help="Of sliding windows.  [default: the kernel]")
@click.option("--padding", default="0", show_default=True, help="Of sliding windows; 'same' and 'valid' too.")
@click.option("--dilation", default="1", show_default=True, help="Of sliding windows.")
@click.option("--ceil", is_flag=True, help="Keep a last window that runs over the end.")
@click.option("--output", "output_size", help="Adaptive windows: bins, 7 or 7x5.")
@click.option("--windows", "named", metavar="KIND", help="global, strips, scan:AXIS, scan:AXIS:reverse or pyramid:1,2,4.")
@click.option("--dtype", default="float32", show_default=True, help="Of the input.")
@click.option("--device", default="cpu", show_default=True, help="Of the input.")
@click.option("--mask", is_flag=True, help="With a mask (N, 1, *spatial).")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def command(operation: str, **options: Any) -> None:
    """Which implementation runs OP, why, and what it costs: operations and bytes, forward and backward.

    OP is a reducer with its settings if any, such as gem:p=3, over sliding windows (--kernel), adaptive ones (--output),
    others (--windows) or else the whole map; or windows or a module from `everypool list`, such as strip or hopfield.
    No input is made, so its shape may be of any size.
    """
    as_json = options.pop("as_json")
    found = explained(operation, **options)
    if as_json:
        print(json.dumps(found, indent=1))
    else:
        show(found)


def explained(
    operation: str, *, shape: str | None, dtype: str, device: str, mask: bool, named: str | None, output_size: str | None,
    kernel_size: str | None, stride: str | None, padding: str, dilation: str, ceil: bool,
) -> dict[str, Any]:  # fmt: skip
    """What there is to say, ready for JSON."""
    size = None if shape is None else numbers("shape", shape)
    check.choice("dtype", dtype, DTYPES)
    place = {"dtype": getattr(torch, dtype), "device": device, "mask": mask}
    record = find_operation(operation.partition(":")[0])
    given = [
        name for name, value in (("kernel", kernel_size), ("output", output_size), ("windows", named)) if value is not None
    ]
    if record.kind == "reducer":
        if len(given) > 1:
            raise check.invalid(given[1], f"left out with --{given[0]}", check.Shown(f"--{given[1]} too"))
        sliding = {"stride": stride, "padding": padding, "dilation": dilation, "ceil": ceil}
        if kernel_size is None:
            for name, usual in (("stride", None), ("padding", "0"), ("dilation", "1"), ("ceil", False)):
                if sliding[name] != usual:
                    raise check.invalid(name, "left out without --kernel", sliding[name])
        if size is None:
            raise check.invalid("shape", "given with a reducer, such as 32x64x112x112", shape)
        reducer, over = parse(operation), windows(named, kernel_size, output_size, sliding)
        return facts(operation, reducer, over, size, place)
    if given:
        raise check.invalid(given[0], f"left out with {record.name!r}, which has its own windows", check.Shown(f"--{given[0]}"))
    return of_sample(record, size, place)


def numbers(name: str, text: str) -> tuple[int, ...]:
    """32x64 -> (32, 64)."""
    parts = text.lower().replace(",", "x").split("x")
    if not all(part.strip().isdecimal() for part in parts):
        raise check.invalid(name, "ints with x between them, such as 3 or 32x64x112x112", text)
    return tuple(map(int, parts))


def one_or_more(name: str, text: str) -> int | tuple[int, ...]:
    found = numbers(name, text)
    return found if len(found) > 1 else found[0]


def windows(named: str | None, kernel_size: str | None, output_size: str | None, sliding: dict[str, Any]) -> Windows:
    if kernel_size is not None:
        padding = sliding["padding"]
        return kinds.Sliding(
            one_or_more("kernel", kernel_size),
            None if sliding["stride"] is None else one_or_more("stride", sliding["stride"]),
            padding if padding in ("same", "valid") else one_or_more("padding", padding),
            one_or_more("dilation", sliding["dilation"]),
            sliding["ceil"],
        )
    if output_size is not None:
        return kinds.Adaptive(one_or_more("output", output_size))
    name, _, rest = (named or "global").partition(":")
    kind: Callable[[str], Windows] = KINDS[check.choice("windows", name, list(KINDS))]
    return kind(rest)


def scan(rest: str) -> Windows:
    axis, _, way = rest.partition(":")
    if way not in ("", "reverse") or not axis.removeprefix("-").isdecimal():
        raise check.invalid("windows", "scan:AXIS or scan:AXIS:reverse, such as scan:-1", f"scan:{rest}")
    return kinds.Scan(int(axis), bool(way))


def alone(name: str, made: Callable[[], Windows]) -> Callable[[str], Windows]:
    def windows_of(rest: str) -> Windows:
        if rest:
            raise check.invalid("windows", f"{name}, without more", f"{name}:{rest}")
        return made()

    return windows_of


KINDS = {
    "global": alone("global", kinds.Global),
    "strips": alone("strips", kinds.Strips),
    "scan": scan,
    "pyramid": lambda rest: kinds.Pyramid(numbers("windows", rest)),
}


def facts(name: str, reducer: Reducer, over: Windows, size: tuple[int, ...], place: dict[str, Any]) -> dict[str, Any]:
    """An `Explanation` with what it is of."""
    found: Explanation = explain(reducer, over, size, **place)
    asked = {"operation": name, "reducer": repr(reducer), "windows": repr(over), "shape": size}
    options = {"dtype": str(place["dtype"]).removeprefix("torch."), "device": place["device"], "mask": place["mask"]}
    return {**asked, **options, **dataclasses.asdict(found)}


def of_sample(record: Operation, size: tuple[int, ...] | None, place: dict[str, Any]) -> dict[str, Any]:
    """The same of windows that are a layer; of all else what torch counts, forward and backward, on a small example."""
    if record.sample is None:
        raise check.invalid(
            "OP", "a reducer, or an operation that makes an example; a call is counted by FlopCounterMode", record.name
        )
    module, inputs = record.sample()
    if isinstance(module, WindowLayer):
        return facts(record.name, module.reducer, module.windows, size or tuple(inputs[0].shape), place)
    if place["mask"] or place["dtype"] != torch.float32 or place["device"] != "cpu":
        raise check.invalid("OP", "a reducer or one layer where --mask, --dtype or --device are given", record.name)
    if size is not None:
        if len(inputs) != 1 or not isinstance(inputs[0], Tensor):
            raise check.invalid(
                "shape", f"left out with {record.name!r}, which takes more than one map", check.Shown(str(size))
            )
        module, inputs = module.to("meta"), (torch.empty(size, device="meta"),)
    return {"operation": record.name, "module": type(module).__name__, **counted(module, inputs)}


def counted(module: nn.Module, inputs: Sequence[Any]) -> dict[str, Any]:
    """Operations by operator, as `FlopCounterMode` counts them, forward and then with the gradient."""
    from torch.utils.flop_counter import FlopCounterMode

    for x in tensors(inputs):
        x.requires_grad_(x.is_floating_point())
    with FlopCounterMode(display=False) as counter:
        result = tensors(module(*inputs))
        forward = counter.get_total_flops()
        sums = [y.sum() for y in result if y.requires_grad]
        if sums:
            torch.stack(sums).sum().backward()
    return {
        "shape": [tuple(x.shape) for x in tensors(inputs)],
        "output": [tuple(y.shape) for y in result],
        "operations": (forward, counter.get_total_flops() - forward),
        "operators": {str(name): number for name, number in counter.get_flop_counts().get("Global", {}).items()},
    }


def tensors(item: Any) -> list[Tensor]:
    if isinstance(item, (list, tuple)):
        return [x for part in item for x in tensors(part)]
    return [item] if isinstance(item, Tensor) else []


def show(found: dict[str, Any]) -> None:
    """Two columns, within 80 characters and more."""
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(ratio=1)
    for name, text in rows(found):
        table.add_row(f"[bold]{escape(name)}[/bold]", escape(text))
    Console(highlight=False).print(table)


def rows(found: dict[str, Any]) -> list[tuple[str, str]]:
    shapes = ", ".join(map(str, found["output"]))
    if "module" in found:
        result = [("module", found["module"]), ("input", ", ".join(map(str, found["shape"]))), ("output", shapes)]
        result += [(name, large(number, "operations")) for name, number in found["operators"].items()]
        ways = zip(("forward", "backward"), found["operations"], strict=True)
        return [*result, *((way, large(number, "operations")) for way, number in ways)]
    asked = f"{found['shape']} {found['dtype']} on {found['device']}{', with a mask' if found['mask'] else ''}"
    result = [("reducer", found["reducer"]), ("windows", found["windows"]), ("input", asked), ("output", shapes)]
    result += [("runs", f"{found['implementation']}: {found['reason']}")]
    result += [(f"  not {name}", why) for name, why in found["rejected"]]
    mean = f"{found['mean_elements']:,.2f}".rstrip("0").rstrip(".")
    result.append(("elements", f"{found['elements']:,} in a window at most, {mean} on average"))
    if found["operations"] is None:
        return [*result, ("costs", "unknown: this reducer does not say")]
    for way, number, moved in zip(("forward", "backward"), found["operations"], found["traffic"], strict=True):
        if moved:
            each = f"{number / moved:.2g}" if number < 100 * moved else f"{number / moved:.0f}"
            result.append((way, f"{large(number, 'operations')}, {large(moved, 'B')} at least, {each} per byte"))
    return result


def large(number: int, unit: str) -> str:
    """1234567 -> 1.23 M."""
    power = 0
    while number >= 1000 ** (power + 1) and power + 1 < len(PREFIXES):
        power += 1
    if power == 0:
        return f"{number} {unit}"
    digits = f"{number / 1000**power:.4g}"
    return f"{digits} {PREFIXES[power]}{' ' if len(unit) > 1 else ''}{unit}"
