"""Each image's own extent, followed through a model: a function mode that knows it of every tensor, and the hooks beside it."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.overrides import TorchFunctionMode, _get_current_function_mode, _pop_mode, _push_mode
from torch.utils.weak import WeakTensorKeyDictionary

from everypool.layer import WindowLayer
from everypool.module import PoolingModule
from everypool.pool import Windows
from everypool.surgery.own import WAY_OUT, Extents, Own, Rows, named, parts, refused, shadows, valueless
from everypool.surgery.rules import HARMLESS, LIKE, SIZED, merged, rule_of

__all__ = ["Following"]

OPERATIONS = ("everypool.pool", "everypool.backends", "everypool.reducers", "everypool.windows")


@dataclass(eq=False)
class Running:
    """A module that runs."""

    module: nn.Module
    name: str
    extents: Extents | None = None  # of its input
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    how: str = ""  # "alone": image by image; "whole": as if there were no sizes; "told": it takes sizes itself
    again: bool = False  # what it did depends on that size, and is done again image by image
    popped: bool = False


class Following(TorchFunctionMode):
    """Runs a model on a padded batch, and knows each image's own extent in every map.

    Args:
        model: it is given hooks for as long as `watching` lasts.
        zero: what lies outside an image is zero wherever a convolution looks.
        values: the numbers matter, not the sizes alone.
        alone: types of modules, or patterns of names, that run image by image.
    """

    def __init__(self, model: nn.Module, *, zero: bool, values: bool, alone: Iterable[Any] = ()) -> None:
        super().__init__()
        self.model, self.zero, self.values = model, zero, values
        self.collecting = False  # the sizes behind every module, in `made`
        self.alone = tuple(alone)
        self.number, self.nd = 0, 0  # images, and spatial axes
        self.passing = 0  # above zero: functions run as they are
        self.running: list[Running] = []
        self.made: dict[str, Tensor] = {}
        self.table: Any = WeakTensorKeyDictionary()
        self.masks: dict[Any, Tensor] = {}
        self.probes: dict[Any, tuple[int, ...]] = {}
        self.shadows = {} if values else shadows(model)
        self.mine = {id(item) for module in model.modules() for item in held(module)} | set(map(id, self.shadows.values()))
        for module in model.modules():
            if isinstance(module, torch.jit.ScriptModule):
                raise refused("made of ordinary modules, whose steps can be seen", f"a {type(module).__name__}")

    # ---- what is known of a tensor ---------------------------------------------------------------------------------------

    def of(self, x: Any) -> Extents | None:
        """The extents in a tensor, if an image is smaller than it."""
        return self.table.get(x) if isinstance(x, Tensor) else None

    def note(self, x: Any, extents: Extents | None) -> Any:
        """x, of which the extents are now known."""
        if isinstance(x, Tensor):
            self.table[x] = extents if extents is not None and extents.ragged(x.shape) else None
        return x

    def settle(self, x: Any, extents: Extents | None) -> Any:
        """x, of which the extents are now known, with each image's first element in the place of all that lies outside.

        So whatever is done to single elements, it meets none that no image has: no gradient of a weight is 0 times NaN, and
        no logarithm is taken of a zero that was only padding.
        """
        if isinstance(x, Tensor) and extents is not None and self.zero and self.values and extents.ragged(x.shape):
            first = x.detach()
            for axis in extents.axes:
                first = first.narrow(axis, 0, 1)
            x = torch.where(self.inside(x, extents), x, first)
        return self.note(x, extents)

    def inside(self, x: Tensor, extents: Extents) -> Tensor:
        """True where an element of x belongs to an image, as small as it broadcasts."""
        key = (extents, x.dim(), tuple(x.shape[axis] for axis in extents.axes), x.device)
        if key not in self.masks:
            mask = torch.ones((), dtype=torch.bool, device=x.device)
            for axis in extents.axes:
                line, rows = [1] * x.dim(), [1] * x.dim()
                line[axis], rows[extents.batch] = x.shape[axis], len(extents.sizes)
                own = torch.tensor(extents.column(axis), device=x.device).reshape(rows)
                mask = mask & (torch.arange(x.shape[axis], device=x.device).reshape(line) < own)
            self.masks[key] = mask
        return self.masks[key]

    def masked(self, x: Tensor, extents: Extents | None, value: Any = 0) -> Tensor:
        """x with that value outside the images."""
        if extents is None or not self.values or not extents.ragged(x.shape):
            return x
        return x.masked_fill(~self.inside(x, extents), value)

    def apart(
        self, x: Tensor, extents: Extents, run: Callable[[Tensor, list[int]], Any], numbers: Sequence[Any] = ()
    ) -> Tensor:
        """What `run` makes of each image alone, as one padded batch; those of one size and with the same numbers together."""
        if extents.batch != 0:
            raise refused("one whose batch comes first", self.got("a map without"))
        groups: dict[Any, list[int]] = {}
        for index, row in enumerate(extents.sizes):
            groups.setdefault((row, *(n.own[index] for n in numbers if isinstance(n, Own))), []).append(index)
        return self.joined(x, extents, [(rows, run(self.crop(x, extents, rows), rows)) for rows in groups.values()])

    def crop(self, x: Tensor, extents: Extents, rows: list[int]) -> Tensor:
        """Images of one size alone."""
        piece = x.index_select(0, torch.tensor(rows, device=x.device))
        for axis, n in zip(extents.axes, extents.sizes[rows[0]], strict=True):
            piece = piece.narrow(axis, 0, n)
        return self.note(piece.contiguous(), None)

    def joined(self, x: Tensor, extents: Extents, found: list[tuple[list[int], Any]]) -> Tensor:
        """One padded batch of what the images gave."""
        outputs = [output for _, output in found]
        if not all(isinstance(y, Tensor) and y.dim() == outputs[0].dim() and len(y) == len(rows) for rows, y in found):
            raise refused("one in which what runs image by image gives one tensor", self.got("something else"))
        axes = extents.axes if outputs[0].dim() == x.dim() else ()
        largest = [max(y.shape[axis] for y in outputs) for axis in range(1, outputs[0].dim())]
        padded, order, sizes = [], [], {}
        for rows, y in found:
            if any(y.shape[axis] != largest[axis - 1] for axis in range(1, y.dim()) if axis not in axes):
                raise refused("one in which images give alike shapes besides the sizes of maps", self.got(str(tuple(y.shape))))
            lacking = [p for axis in reversed(range(1, y.dim())) for p in (0, largest[axis - 1] - y.shape[axis])]
            padded.append(nn.functional.pad(y, lacking))
            order += rows
            sizes.update({row: tuple(y.shape[axis] for axis in axes) for row in rows})
        places = torch.tensor([order.index(index) for index in range(len(order))], device=x.device)
        result = torch.cat(padded).index_select(0, places)
        return self.settle(result, Extents(tuple(sizes[i] for i in range(len(order))), axes) if axes else None)

    # ---- functions -------------------------------------------------------------------------------------------------------

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not self.values:
            args, kwargs = valueless(args), valueless(kwargs)
        if self.passing or (self.running and self.running[-1].again):
            return func(*args, **kwargs)
        name = named(func)
        if name == "forward" and args and isinstance(args[0], PoolingModule):  # what it does is followed
            with self:
                return func.__wrapped__(*args, **kwargs)
        ragged, sized = False, False
        for item in parts([*args, *kwargs.values()]):
            if isinstance(item, Tensor):
                if item in self.table:
                    ragged = ragged or self.table[item] is not None
                elif self.stranger(item):
                    raise refused("one whose every step is a function of torch", self.got(f"a tensor unknown before `{name}`"))
            else:
                sized = sized or isinstance(item, Own)
        if sized:
            if rule_of(name) is merged and any(isinstance(item, Tensor) for item in args):
                args, kwargs = self.spread(args, kwargs)
            elif name not in SIZED or not (ragged or name in LIKE):
                self.lost(f"`{name}` of the size of a map")
            if self.running and self.running[-1].again:
                return func(*args, **kwargs)
        if name in HARMLESS or name.startswith((".is_", "is_")) or not (ragged or (sized and name in LIKE)):
            result = func(*args, **kwargs)
            for item in parts([result]):
                self.note(item, None)
            return result
        if self.within():
            rule = "one that calls everypool's layers, which are told the sizes, and not its functions"
            raise refused(rule, self.got("a function of everypool"))
        apply = rule_of(name)
        if apply is None:
            raise refused(f"one whose maps are followed until they are pooled, {WAY_OUT}", self.got(f"`{name}`", args, kwargs))
        return apply(self, func, args, kwargs)

    def stranger(self, x: Tensor) -> bool:
        """Whether it may be a map that something unseen has made."""
        known = isinstance(x, nn.Parameter) or id(x) in self.mine or x.dim() < 2
        return not known and x.shape[0] == self.number

    def within(self) -> bool:
        """Whether a function of everypool makes the call."""
        frame: Any = sys._getframe(2)
        while frame is not None and frame.f_globals.get("__name__", "").startswith("torch"):
            frame = frame.f_back
        return frame is not None and frame.f_globals.get("__name__", "").startswith(OPERATIONS)

    def lost(self, what: str) -> None:
        """What the module that runs does is not the same for all images, or cannot be followed."""
        last = self.running[-1] if self.running else None
        if last is None or last.extents is None or next(last.module.children(), None) is not None:
            raise refused(f"one that does the same whatever the size of a map, {WAY_OUT}", self.got(what))
        last.again = True

    def spread(self, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """Arguments in which each image has its own size of a map, as a tensor that broadcasts."""
        x = next(item for item in args if isinstance(item, Tensor))
        extents = self.of(x)
        batch = extents.batch if extents is not None else 0
        if x.dim() == 0 or x.shape[batch] != self.number:
            self.lost("the size of a map among numbers")
            return args, kwargs
        shape = [1] * x.dim()
        shape[batch] = self.number

        def each(item: Any) -> Any:
            return torch.tensor(item.own, device=x.device).reshape(shape) if isinstance(item, Own) else item

        return tuple(map(each, args)), {key: each(item) for key, item in kwargs.items()}

    def where(self) -> str:
        """The module that runs."""
        if not self.running:
            return "the model"
        last = self.running[-1]
        return f"{last.name!r} ({type(last.module).__name__})" if last.name else f"the model ({type(last.module).__name__})"

    def got(self, what: str, args: Any = (), kwargs: Any = None) -> str:
        maps = [item for item in parts([*args, *(kwargs or {}).values()]) if self.of(item) is not None]
        shape = f" on a map {tuple(maps[0].shape)}" if maps else ""
        return f"{what}{shape} in {self.where()}"

    # ---- modules ---------------------------------------------------------------------------------------------------------

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Hooks in all modules and this mode, for a while."""
        with ExitStack() as stack:
            for name, module in self.model.named_modules():
                stack.callback(module.register_forward_pre_hook(self.entering(name), with_kwargs=True).remove)
                stack.callback(module.register_forward_hook(self.leave, with_kwargs=True, always_call=True).remove)
            stack.enter_context(self)
            stack.callback(self.restore)  # an error left a module without its hook
            yield

    def restore(self) -> None:
        while self.running:
            self.end(self.running.pop())

    def end(self, call: Running) -> None:
        if call.how in ("told", "whole"):
            self.passing -= 1
        if call.popped:
            _push_mode(self)

    def entering(self, name: str) -> Callable[..., Any]:
        def enter(module: nn.Module, args: Any, kwargs: Any) -> Any:
            call = Running(module, name, args=args, kwargs=kwargs)
            self.running.append(call)
            extents = call.extents = None if self.passing or not args else self.of(args[0])
            if extents is None:
                return None
            x = args[0]
            if self.is_alone(module, name):
                self.passing += 1
                if self.zero:
                    call.how = "alone"
                    piece = self.crop(x, extents, self.first(extents))
                    self.passing -= 1  # its modules run as they are on what is no map of several sizes
                    return (piece, *args[1:]), kwargs
                call.how = "whole"
            elif takes_sizes(module) and len(args) == 1 and kwargs.get("sizes") is None:
                call.how = "told"
                self.passing += 1
                if not self.values:
                    return None
                sizes = torch.tensor(self.standard(x, extents, type(module).__name__).sizes, device=x.device)
                if _get_current_function_mode() is self:  # the compiled loops run where nobody looks
                    _pop_mode()
                    call.popped = True
                return args, {**kwargs, "sizes": sizes}
            return None

        return enter

    def leave(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        call = self.running.pop()
        self.end(call)
        if output is None or self.passing or (self.running and self.running[-1].again):
            return None
        if call.extents is not None and (call.how or call.again):
            self.passing += 1
            try:
                output = self.behind(call, output)
            finally:
                self.passing -= 1
        self.keep(call.name, output)
        return output

    def behind(self, call: Running, output: Any) -> Any:
        """A module's output, with what is known of it."""
        module, (x, *rest) = call.module, call.args
        known = call.extents if call.extents is not None else Extents((), ())
        if call.again:
            self.alone += (type(module),)
        if call.how == "alone":
            first = self.first(known)
            return self.apart(
                x, known, lambda piece, rows: output if rows == first else module.forward(piece, *rest, **call.kwargs)
            )
        if call.again and self.zero:
            return self.apart(x, known, lambda piece, rows: module.forward(piece, *rest, **call.kwargs))
        windows = windows_of(module) if call.how == "told" else None
        if windows is not None:
            layouts = windows.layouts(tuple(x.shape[2:]), torch.tensor(known.sizes))
            if isinstance(output, (tuple, list)) and len(output) != len(layouts):
                raise refused("one whose poolings give no indices of places", self.got(f"{type(module).__name__}"))
            results = list(output) if isinstance(output, (tuple, list)) else [output]
            for number, layout in zip(range(len(results)), layouts, strict=False):
                own = layout.out_sizes if results[number].dim() == x.dim() else None
                extents = None if own is None else Extents(tuple(map(tuple, own.tolist())), known.axes)
                results[number] = self.settle(results[number], extents)
            return type(output)(results) if isinstance(output, (tuple, list)) else results[0]
        if not isinstance(output, Tensor):
            raise refused("one in which what takes sizes gives one tensor", self.got(type(module).__name__))
        if output.dim() != x.dim():
            return self.note(output, None)
        sizes = tuple(self.probed(call, x, row) for row in known.sizes)
        return self.settle(output, Extents(sizes, known.axes))

    def probed(self, call: Running, x: Tensor, row: tuple[int, ...]) -> tuple[int, ...]:
        """The extent that a module gives an image of that extent, found without computing it."""
        key, axes = (call.module, row), call.extents.axes if call.extents is not None else ()
        if key not in self.probes:
            shape = [1, *x.shape[1:]]
            for axis, n in zip(axes, row, strict=True):
                shape[axis] = n
            piece = torch.empty(shape, dtype=x.dtype, device="meta")
            with torch.no_grad():
                output = functional_call(call.module, shadows(call.module), (piece, *call.args[1:]), call.kwargs)
            self.probes[key] = tuple(int(output.shape[axis]) for axis in axes)
        return self.probes[key]

    def keep(self, name: str, output: Any) -> None:
        """The sizes behind a module that has made a map."""
        if not isinstance(output, Tensor) or not self.collecting or any(call.how == "alone" for call in self.running):
            return
        extents = self.of(output)
        nd = len(extents.axes) if extents is not None else self.nd
        if extents is None and output.dim() != nd + 2:
            return
        sizes = extents.sizes if extents is not None else (tuple(output.shape[2:]),) * self.number
        self.made.pop(name, None)
        self.made[name] = torch.tensor(sizes)

    def first(self, extents: Extents) -> list[int]:
        """The images that have the first one's size."""
        return [index for index, row in enumerate(extents.sizes) if row == extents.sizes[0]]

    def standard(self, x: Tensor, extents: Extents | None, name: str) -> Extents:
        """The extents of (N, C, *spatial)."""
        if extents is None or extents.batch != 0 or extents.axes != tuple(range(2, x.dim())):
            raise refused("one whose convolutions and poolings take (N, C, *spatial)", self.got(f"`{name}`", (x,)))
        return extents

    def is_alone(self, module: nn.Module, name: str) -> bool:
        return any(isinstance(module, item) if isinstance(item, type) else fnmatchcase(name, item) for item in self.alone)

    # ---- the whole -------------------------------------------------------------------------------------------------------

    def run(self, input: Tensor, sizes: Rows) -> Any:
        """The model's output for a padded batch."""
        self.number, self.nd = len(sizes), input.dim() - 2
        extents = Extents(sizes, tuple(range(2, input.dim())))
        if not self.collecting and not extents.ragged(input.shape):
            return self.model(input)
        input = self.settle(input, extents)
        with self.watching():
            return self.model(input) if self.values else functional_call(self.model, self.shadows, (input,))


def held(module: nn.Module) -> Iterator[Any]:
    """The tensors that a module has before it runs."""
    yield from parts([*module.__dict__.values(), *module._parameters.values(), *module._buffers.values()])


def windows_of(module: nn.Module) -> Windows | None:
    """A layer's windows, where they say what sizes there are behind them."""
    try:
        windows = module.windows if isinstance(module, WindowLayer) else None
    except NotImplementedError:  # it is made of several
        return None
    return windows if windows is not None and windows.folds and not windows.many else None


def takes_sizes(module: nn.Module) -> bool:
    """Whether it is a pooling or a block of everypool that can be told the sizes."""
    kind = type(module)
    return kind.__module__.startswith("everypool.") and "sizes" in inspect.signature(kind.forward).parameters
