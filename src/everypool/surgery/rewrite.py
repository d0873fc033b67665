"""A pooling that a module calls as a function becomes a module of its own: the call is replaced in a copy of the method.

`F.max_pool2d(x, 2)` in a forward becomes `self.max_pool2d(x)`, compiled from the same source with that one expression
changed. The module keeps its object, its attributes and the names of its parameters; its class becomes a subclass of what it
was. So nothing intercepts calls at run time, and torch.compile, torch.export, copies and pickles see ordinary code.
"""

from __future__ import annotations
import __future__

import ast
import functools
import inspect
from collections.abc import Iterator
from dataclasses import dataclass, replace
from types import CellType, CodeType, FunctionType
from typing import Any

from torch import nn

from everypool import _check as check
from everypool.surgery.trace import Call, Site

__all__ = ["Edit", "apply", "base_of", "edit", "edits_of"]


UNCHANGED: dict[CodeType, CodeType] = {}  # what edited code was made of


@dataclass(frozen=True)
class Edit:
    """One call replaced: in which method, where, what it was, and the attribute that is called instead."""

    method: str
    function: str
    line: int
    column: int | None
    end: tuple[int, int] | None
    receiver: bool  # the input is what the method is called on
    text: str
    attribute: str


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
        NotImplementedError: the call is not in the source of one of the module's methods.
    """
    site = call.site
    if site is None or not site.direct or "forward" in vars(module):
        raise refused(call, site)
    code = UNCHANGED.get(site.code, site.code)
    made = Edit("", call.function, site.line, site.column, site.end, call.method, "", attribute)
    for method, item in members(base_of(module)):
        if any(function.__code__ is code for function in functions(item)):
            node = located(parsed(code), made)
            if node is not None:
                return replace(made, method=method, text=ast.unparse(node))
    raise refused(call, site)


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
        here = [e for e in edits if e.method == method]
        function = next(f for f in functions(item) if all(located(parsed(f.__code__), e) is not None for e in here))
        namespace[method] = substituted(item, function, rewritten(function, here))
    return type(base.__name__, (base,), namespace)


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


def refused(call: Call, site: Site | None) -> NotImplementedError:
    where = "" if site is None else f" in {site.code.co_name} ({site})"
    rule = "called in the source of a method of its module, where it can be replaced"
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


def located(definition: ast.FunctionDef | None, edit: Edit) -> ast.Call | None:
    """The call that the edit is about."""
    if definition is None:
        return None
    calls = [node for node in ast.walk(definition) if isinstance(node, ast.Call) and node.lineno == edit.line]
    if edit.column is not None:
        calls = [n for n in calls if n.col_offset == edit.column and (n.end_lineno, n.end_col_offset) == edit.end]
    else:
        calls = [n for n in calls if isinstance(n.func, ast.Attribute) and n.func.attr == edit.function]
    found = calls[0] if len(calls) == 1 else None
    if found is None or given(found, edit) is None or (edit.text and ast.unparse(found) != edit.text):
        return None
    return found


def given(node: ast.Call, edit: Edit) -> ast.expr | None:
    """The pooling's input."""
    if edit.receiver:
        return node.func.value if isinstance(node.func, ast.Attribute) else None
    named = (keyword.value for keyword in node.keywords if keyword.arg == "input")
    return node.args[0] if node.args and not isinstance(node.args[0], ast.Starred) else next(named, None)


def rewritten(function: FunctionType, edits: list[Edit]) -> FunctionType:
    """The function with its calls replaced; everything else, defaults, globals and closure, is what it was."""
    code = function.__code__
    parsed.cache_clear()  # the tree is changed below
    definition = parsed(code)
    parsed.cache_clear()
    calls = {id(located(definition, e)): e for e in edits}

    class Replace(ast.NodeTransformer):
        def visit_Call(self, node: ast.Call) -> ast.expr:
            edit = calls.get(id(node))
            self.generic_visit(node)
            if edit is None:
                return node
            value = given(node, edit)
            own = ast.Attribute(ast.Name(code.co_varnames[0], ast.Load()), edit.attribute, ast.Load())
            new = ast.Call(own, [value] if value is not None else [], [])
            return ast.fix_missing_locations(ast.copy_location(new, node))

    if definition is None:
        raise OSError(code.co_filename)
    Replace().visit(definition)
    definition.decorator_list = []
    # free names must be free here too; a class around it mangles private names, and knows `super()`
    owner = function.__qualname__.rpartition(".")[0].rpartition(".")[2] or "Module"
    free = ", ".join(name for name in code.co_freevars if name != "__class__")
    around = ast.parse(f"def outer({free}):\n class {owner}:\n  pass")
    around.body[0].body[0].body = [definition]  # type: ignore[attr-defined]
    future = __future__.annotations.compiler_flag & code.co_flags
    made = compile(around, code.co_filename, "exec", flags=future, dont_inherit=True)
    for name in ("outer", owner, code.co_name):
        made = next(part for part in made.co_consts if isinstance(part, CodeType) and part.co_name == name)
    UNCHANGED[made] = code
    cells = dict(zip(code.co_freevars, function.__closure__ or (), strict=True))
    closure = tuple(cells[name] for name in made.co_freevars)
    result = FunctionType(made, function.__globals__, function.__name__, function.__defaults__, closure)
    result.__kwdefaults__ = function.__kwdefaults__
    result.__qualname__, result.__module__, result.__doc__ = function.__qualname__, function.__module__, function.__doc__
    result.__dict__.update(function.__dict__)
    return result
