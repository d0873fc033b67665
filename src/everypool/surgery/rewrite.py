"""A pooling that a module calls as a function becomes a module of its own: the call is replaced in a copy of the method.

`F.max_pool2d(x, 2)` in a forward becomes `self.max_pool2d(x)`, compiled from the same source with that one expression
changed. Where a function that the method calls does it, a copy of the function becomes a method, and the method calls that.
The module keeps its object, its attributes and the names of its parameters; its class becomes a subclass of what it was. So
nothing intercepts calls at run time, and torch.compile, torch.export, copies and pickles see ordinary code.
"""

from __future__ import annotations
import __future__

import ast
import functools
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from types import CellType, CodeType, FunctionType
from typing import Any

from torch import nn

from everypool import _check as check
from everypool.surgery.trace import MOVED, Call, Site

__all__ = ["Edit", "apply", "base_of", "edit", "edits_of"]


UNCHANGED: dict[CodeType, CodeType] = {}  # what edited code was made of


@dataclass(frozen=True)
class Spot:
    """A call in a function's source: the lines are those of the file, the text is what stands there."""

    function: str  # a name by which it is known where columns are not
    line: int
    column: int | None
    end: tuple[int, int] | None
    text: str = ""


@dataclass(frozen=True)
class Edit:
    """One call replaced.

    Args:
        method: of the module, in whose source the call stands or one of a function that calls it in turn.
        steps: the calls of functions on the way from the method to the pooling.
        spot: the pooling's own call.
        receiver: the input is what the pooling is called on.
        pair: it gives values and places, of which the values alone are used.
        attribute: what is called instead.
    """

    method: str
    steps: tuple[Spot, ...]
    spot: Spot
    receiver: bool
    pair: bool
    attribute: str

    @property
    def text(self) -> str:
        return self.spot.text


def base_of(module: nn.Module) -> type[nn.Module]:
    """The module's class before any edit."""
    base: type[nn.Module] = getattr(type(module), "_everypool_base", type(module))
    return base


def edits_of(module: nn.Module) -> tuple[Edit, ...]:
    edits: tuple[Edit, ...] = getattr(type(module), "_everypool_edits", ())
    return edits


def edit(module: nn.Module, call: Call, attribute: str) -> Edit:
    """The edit that replaces a call by one of the module's attributes.

    Raises:
        NotImplementedError: the call is not in the source of one of the module's methods or of a function that it calls, or
            the places that it gives beside values are used.
    """
    sites: list[Site] = []
    site = call.site
    while site is not None:
        sites.append(replace(site, code=UNCHANGED.get(site.code, site.code)))
        site = site.outer
    base = base_of(module)
    for depth, site in enumerate(sites if "forward" not in vars(module) else ()):
        for method, item in members(base):
            function = next((f for f in functions(item) if contains(f.__code__, site.code)), None)
            if function is None:
                continue
            path = steps_to(base, function, sites[: depth + 1], call)
            if path is None:
                raise refused(call)
            *steps, spot = path
            return Edit(method, tuple(steps), spot, call.method, call.indices, attribute)
    raise refused(call)


def steps_to(base: type[nn.Module], function: FunctionType, sites: list[Site], call: Call) -> list[Spot] | None:
    """The calls from a function, which the last of the sites is in, to the pooling, which is the first."""
    site, last = sites[-1], len(sites) == 1
    while not last and contains(function.__code__, sites[-2].code):  # a comprehension, or a function within it
        sites = sites[:-1]
        site, last = sites[-1], len(sites) == 1
    definition = parsed(function.__code__)
    spot = Spot(call.function if last else sites[-2].code.co_name, site.line, site.column, site.end)
    node = located(definition, spot)
    if definition is None or node is None:
        return None
    spot = replace(spot, text=ast.unparse(node))
    if last:
        if given(node, call.method) is None:
            return None
        if call.indices and values_of(definition, node) is None:
            rule = "a pooling of which the values alone are used"
            raise NotImplementedError(f"`{call.function}` must be {rule}, got places too ({call.site})")
        return [spot]
    called = called_function(base, function, node)
    for depth in range(len(sites) - 1):  # decorators may stand between
        inner = next((f for f in functions(called) if contains(f.__code__, sites[depth].code)), None)
        if inner is not None:
            # of calls within calls of the same function the outermost is meant
            depth = max(d for d in range(len(sites) - 1) if contains(inner.__code__, sites[d].code))
            rest = steps_to(base, inner, sites[: depth + 1], call)
            return None if rest is None else [spot, *rest]
    return None


def called_function(base: type[nn.Module], function: FunctionType, node: ast.Call) -> Any:
    """What a call in a function's source calls, as far as the source alone says."""
    names: list[str] = []
    part: ast.expr = node.func
    while isinstance(part, ast.Attribute):
        names.append(part.attr)
        part = part.value
    if not isinstance(part, ast.Name):
        return None
    code = function.__code__
    if part.id == code.co_varnames[0] and len(names) == 1:
        found = inspect.getattr_static(base, names[0], None)
        return found.__func__ if isinstance(found, staticmethod) else None
    cells = dict(zip(code.co_freevars, function.__closure__ or (), strict=True))
    found = contents(cells[part.id]) if part.id in cells else function.__globals__.get(part.id)
    for name in reversed(names):
        found = getattr(found, name, None)
    return found


def contains(code: CodeType, other: CodeType) -> bool:
    """Whether it is the code itself or that of a comprehension or a function within."""
    return code is other or any(contains(part, other) for part in code.co_consts if isinstance(part, CodeType))


def apply(module: nn.Module, edits: tuple[Edit, ...]) -> None:
    """Give the module these edits, and no others."""
    base = base_of(module)
    module.__class__ = changed(base, edits) if edits else base


def changed(base: type[nn.Module], edits: tuple[Edit, ...]) -> type[nn.Module]:
    """The subclass with the edits, the same for all modules that have them."""
    if (base, edits) not in CHANGED:
        CHANGED[base, edits] = made(base, edits)
    return CHANGED[base, edits]


CHANGED: dict[tuple[type[nn.Module], tuple[Edit, ...]], type[nn.Module]] = {}


def made(base: type[nn.Module], edits: tuple[Edit, ...]) -> type[nn.Module]:
    namespace: dict[str, Any] = {
        "__module__": base.__module__,
        "__qualname__": base.__qualname__,
        "__reduce_ex__": reduce,
        "_everypool_base": base,
        "_everypool_edits": edits,
    }
    for method in dict.fromkeys(e.method for e in edits):
        item = next(item for name, item in members(base) if name == method)
        here = [(e.steps, e) for e in edits if e.method == method]
        function = next(f for f in functions(item) if all(is_in(f, (*steps, e.spot)[0]) for steps, e in here))
        namespace[method] = substituted(item, function, rewritten(base, function, here, namespace))
    return type(base.__name__, (base,), namespace)


def is_in(function: FunctionType, spot: Spot) -> bool:
    return located(parsed(function.__code__), spot) is not None


def reduce(module: nn.Module, protocol: Any) -> Any:
    """For copies and pickles: the class is made again where it is loaded."""
    return restored, (base_of(module), edits_of(module)), module.__dict__


def restored(base: type[nn.Module], edits: tuple[Edit, ...]) -> nn.Module:
    try:
        cls = changed(base, edits)
    except (StopIteration, OSError) as error:
        rule = f"of the version of {base.__module__}.{base.__qualname__} whose poolings were swapped"
        raise check.invalid("module", rule, check.Shown("another")) from error
    return cls.__new__(cls)


def refused(call: Call) -> NotImplementedError:
    site = call.site
    where = "" if site is None else f" in {site.code.co_name} ({site})"
    rule = "called in the source of a method of its module, or of a function that it calls, where it can be replaced"
    return NotImplementedError(f"`{call.function}` must be {rule}, got a call{where}")


def members(cls: type) -> Iterator[tuple[str, Any]]:
    """The attributes of a class as they are stored, each from the class that wins."""
    seen: set[str] = set()
    for parent in cls.__mro__:
        if parent is nn.Module:
            return
        for name, item in vars(parent).items():
            if name not in seen:
                seen.add(name)
                yield name, item


def functions(item: Any, depth: int = 8) -> Iterator[FunctionType]:
    """A function, and those that its decorators hold."""
    if not isinstance(item, FunctionType) or depth == 0:
        return
    yield item
    for cell in item.__closure__ or ():
        yield from functions(contents(cell), depth - 1)


def contents(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # still empty
        return None


def substituted(item: Any, old: FunctionType, new: FunctionType) -> Any:
    """The decorated function with another one at its heart."""
    if item is old:
        return new
    if not isinstance(item, FunctionType) or old not in functions(item):
        return item
    closure = tuple(
        CellType(substituted(contents(cell), old, new)) if holds(cell, old) else cell for cell in item.__closure__ or ()
    )
    copy = FunctionType(item.__code__, item.__globals__, item.__name__, item.__defaults__, closure)
    copy.__dict__.update(item.__dict__)
    copy.__kwdefaults__ = item.__kwdefaults__
    if "__wrapped__" in copy.__dict__:
        copy.__wrapped__ = substituted(item.__wrapped__, old, new)  # type: ignore[attr-defined]
    return copy


def holds(cell: CellType, old: FunctionType) -> bool:
    return old in functions(contents(cell))


@functools.cache
def parsed(code: CodeType) -> ast.FunctionDef | None:
    """The definition, its lines those of the file."""
    try:
        lines, start = inspect.getsourcelines(code)
        tree = ast.parse("if True:\n" + "".join(lines) if lines[0][:1].isspace() else "\n" + "".join(lines))
    except (OSError, SyntaxError, IndexError):
        return None
    body = tree.body[0].body[0] if isinstance(tree.body[0], ast.If) else tree.body[0]
    ast.increment_lineno(tree, start - 2)
    return body if isinstance(body, ast.FunctionDef) else None


def located(definition: ast.FunctionDef | None, spot: Spot) -> ast.Call | None:
    """The call at that spot."""
    if definition is None:
        return None
    calls = [node for node in ast.walk(definition) if isinstance(node, ast.Call) and node.lineno == spot.line]
    if spot.column is not None:
        calls = [n for n in calls if n.col_offset == spot.column and (n.end_lineno, n.end_col_offset) == spot.end]
    else:
        calls = [n for n in calls if isinstance(n.func, (ast.Attribute, ast.Name)) and name_of(n.func) == spot.function]
    found = calls[0] if len(calls) == 1 else None
    return None if found is None or (spot.text and ast.unparse(found) != spot.text) else found


def name_of(node: ast.Attribute | ast.Name) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id


def given(node: ast.Call, receiver: bool) -> ast.expr | None:
    """The pooling's input."""
    if receiver:
        return node.func.value if isinstance(node.func, ast.Attribute) else None
    named = (keyword.value for keyword in node.keywords if keyword.arg == "input")
    return node.args[0] if node.args and not isinstance(node.args[0], ast.Starred) else next(named, None)


def values_of(definition: ast.FunctionDef, call: ast.Call) -> list[tuple[ast.expr, bool]] | None:
    """Where the values of a call that gives places too are taken: each expression, and whether it is the call itself.

    None where the places are used, or may be.
    """
    if above := taking(definition, call):
        return [(above, True)]
    for statement in ast.walk(definition):
        if not isinstance(statement, ast.Assign) or statement.value is not call or len(statement.targets) != 1:
            continue
        target = statement.targets[0]
        if isinstance(target, ast.Tuple) and len(target.elts) == 2 and isinstance(target.elts[1], ast.Name):
            others = named_in(definition, target.elts[1].id)
            return [(call, False)] if all(isinstance(name.ctx, ast.Store) for name in others) else None
        if isinstance(target, ast.Name):
            others = [name for name in named_in(definition, target.id) if name is not target]
            takers = [taking(definition, name) for name in others]
            known = [node for node in takers if node is not None]
            return [(call, True), *((node, True) for node in known)] if len(known) == len(takers) else None
    return None


def named_in(definition: ast.FunctionDef, name: str) -> list[ast.Name]:
    return [node for node in ast.walk(definition) if isinstance(node, ast.Name) and node.id == name]


def taking(definition: ast.FunctionDef, pair: ast.expr) -> ast.expr | None:
    """`pair[0]` or `pair.values`."""
    for node in ast.walk(definition):
        if isinstance(node, ast.Subscript) and node.value is pair:
            return node if isinstance(node.slice, ast.Constant) and node.slice.value == 0 else None
        if isinstance(node, ast.Attribute) and node.value is pair:
            return node if node.attr == "values" else None
    return None


class Replace(ast.NodeTransformer):
    """Puts other expressions in the place of some; each is made of the old one when what is in it has been replaced."""

    def __init__(self) -> None:
        self.new: dict[int, Callable[[], ast.expr]] = {}

    def visit(self, node: ast.AST) -> Any:
        make = self.new.get(id(node))
        self.generic_visit(node)
        return node if make is None else ast.fix_missing_locations(ast.copy_location(make(), node))


def rewritten(
    base: type[nn.Module],
    function: FunctionType,
    edits: list[tuple[tuple[Spot, ...], Edit]],
    namespace: dict[str, Any],
    owner: str = "",
) -> FunctionType:
    """The function with its calls replaced; everything else, defaults, globals and closure, is what it was.

    Args:
        base: the module's class.
        function: a method, or a function that becomes one.
        edits: each with the calls that are still on the way from here to the pooling.
        namespace: of the class that is made; functions become methods in it.
        owner: the name of a parameter that a function is given, for the module.
    """
    code = function.__code__
    parsed.cache_clear()  # the tree is changed below
    definition = parsed(code)
    parsed.cache_clear()
    if definition is None:
        raise OSError(code.co_filename)
    self = owner or code.co_varnames[0]
    changes = Replace()

    def attribute(name: str) -> ast.expr:
        return ast.Attribute(ast.Name(self, ast.Load()), name, ast.Load())

    def pooled(node: ast.Call, edit: Edit) -> ast.expr:
        value = given(node, edit.receiver)
        return ast.Call(attribute(edit.attribute), [value] if value is not None else [], [])

    further: dict[Spot, list[tuple[tuple[Spot, ...], Edit]]] = {}
    for steps, edit in edits:
        if steps:
            further.setdefault(steps[0], []).append((steps[1:], edit))
            continue
        node = located(definition, edit.spot)
        if node is None:
            raise OSError(code.co_filename)
        if not edit.pair:
            changes.new[id(node)] = partial(pooled, node, edit)
            continue
        for taker, alone in values_of(definition, node) or ():
            is_call = taker is node or taking(definition, node) is taker
            value = partial(pooled, node, edit) if is_call else partial(copy_of, taker)
            changes.new[id(taker)] = value if alone else partial(beside_nothing, value)
    for spot, rest in further.items():
        node = located(definition, spot)
        if node is None:
            raise OSError(code.co_filename)
        called = called_function(base, function, node)
        inner = next(f for f in functions(called) if all(is_in(f, (*steps, e.spot)[0]) for steps, e in rest))
        method = free_name(base, namespace, inner.__name__)
        namespace[method] = None  # taken
        namespace[method] = substituted(called, inner, rewritten(base, inner, rest, namespace, free_parameter(inner)))
        node.func = attribute(method)
    changes.visit(definition)
    definition.decorator_list = []
    if owner:
        definition.args.posonlyargs.insert(0, ast.arg(owner))
    result = compiled(function, ast.fix_missing_locations(definition))
    if owner:
        MOVED.add(result.__code__)
    return result


def copy_of(taker: ast.expr) -> ast.expr:
    """The name in `name[0]` or `name.values`."""
    return taker.value  # type: ignore[attr-defined]


def beside_nothing(make: Callable[[], ast.expr]) -> ast.expr:
    """Values, and None where there were places."""
    return ast.Tuple([make(), ast.Constant(None)], ast.Load())


def free_name(base: type[nn.Module], namespace: dict[str, Any], name: str) -> str:
    """A name for a method that the class does not have."""
    result, number = f"{name}_pooled", 1
    while result in namespace or hasattr(base, result):
        number += 1
        result = f"{name}_pooled_{number}"
    return result


def free_parameter(function: FunctionType) -> str:
    """A name for a parameter that the function does not know."""
    code, name = function.__code__, "self"
    while name in (*code.co_varnames, *code.co_freevars, *code.co_cellvars, *code.co_names):
        name += "_"
    return name


def compiled(function: FunctionType, definition: ast.FunctionDef) -> FunctionType:
    """A function of another source and all else alike."""
    code = function.__code__
    # free names must be free here too; a class around it mangles private names, and knows `super()`
    owner = function.__qualname__.rpartition(".")[0].rpartition(".")[2]
    owner = owner if owner.isidentifier() else ""
    free = ", ".join(name for name in code.co_freevars if name != "__class__")
    around = ast.parse(f"def outer({free}):\n" + (f" class {owner}:\n  pass" if owner else " pass"))
    body = around.body[0].body  # type: ignore[attr-defined]
    (body[0].body if owner else body)[:] = [definition]
    future = __future__.annotations.compiler_flag & code.co_flags
    made = compile(around, code.co_filename, "exec", flags=future, dont_inherit=True)
    for name in filter(None, ("outer", owner, code.co_name)):
        made = next(part for part in made.co_consts if isinstance(part, CodeType) and part.co_name == name)
    remember(made, code)
    cells = dict(zip(code.co_freevars, function.__closure__ or (), strict=True))
    closure = tuple(cells[name] for name in made.co_freevars)
    result = FunctionType(made, function.__globals__, function.__name__, function.__defaults__, closure)
    result.__kwdefaults__ = function.__kwdefaults__
    result.__qualname__, result.__module__, result.__doc__ = function.__qualname__, function.__module__, function.__doc__
    result.__dict__.update(function.__dict__)
    return result


def remember(made: CodeType, code: CodeType) -> None:
    """That edited code was made of another, and so was what is within it."""
    UNCHANGED[made] = code
    inner = [[part for part in c.co_consts if isinstance(part, CodeType)] for c in (made, code)]
    for new, old in zip(*inner, strict=False):
        remember(new, old)
