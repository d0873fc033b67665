"""Settings of Sphinx. The pages in docs/reference are written here, from the records of all operations."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import everypool
from everypool import functional

if TYPE_CHECKING:
    from sphinx.application import Sphinx

project = "everypool"
author = "the everypool authors"
copyright = "the everypool authors, Apache License 2.0"
version = release = everypool.__version__
html_title = f"everypool {version}"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_copy_source = False
html_show_sourcelink = False
myst_heading_anchors = 3

smartquotes_action = "D"  # dashes only: "same" is a value to type
default_role = "py:obj"  # a `name` in a docstring becomes a link where there is such a name
add_module_names = False
python_maximum_signature_line_length = 160
toc_object_entries_show_parents = "hide"
autodoc_typehints = "none"  # most are Any; the text says what an argument may be
autodoc_inherit_docstrings = False
napoleon_numpy_docstring = False
napoleon_use_rtype = False

HERE = Path(__file__).parent
REFERENCE = HERE / "reference"
KINDS = {
    "reducer": ("reducers", "Reducers", "What becomes of the values that belong together."),
    "windows": ("windows", "Windows", "Which values belong together."),
    "block": ("blocks", "Blocks", "Trainable modules from papers, made of the above and of convolutions."),
}
COLUMNS = {  # of the tables of all kinds; the rest of a record is on the operation's own page
    "what it gives": lambda op: op.summary,
    "formula": lambda op: code(op.formula),
    "learned": lambda op: op.parameters,
}


# -- the reference, written from the records ------------------------------------------------------------------------------


def public_names() -> list[str]:
    """Everything that `everypool` offers, without the modules that happen to be reachable through it."""
    return [name for name, item in vars(everypool).items() if name[0] != "_" and not inspect.ismodule(item)]


def are(names: list[str], base: type) -> list[str]:
    """Those that are subclasses of `base`, without itself."""
    items = {name: getattr(everypool, name) for name in names}
    return sorted(
        name for name, item in items.items() if isinstance(item, type) and issubclass(item, base) and item is not base
    )


def code(text: str) -> str:
    return "`" + text.replace("|", r"\|") + "`"


def by_windows(name: str) -> tuple[bool, bool, str]:
    """Order of layers: sliding, adaptive, global."""
    return name.startswith("Global"), name.startswith("Adaptive"), name


def directives(names: list[str]) -> str:
    """One autodoc directive for each name; methods where they have a docstring and are for the user."""
    lines = []
    for name in names:
        item = getattr(everypool, name)
        kind = "class" if isinstance(item, type) else "function"
        inner = kind == "class" and name not in (*are([name], everypool.Reducer), *are([name], everypool.Windows))
        lines += [f".. auto{kind}:: everypool.{name}", *(["   :members:"] if inner else []), ""]
    return "\n".join(["```{eval-rst}", *lines, "```", ""])


def table(kind: str) -> str:
    """All operations of a kind, each with a link to its page."""
    folder = KINDS[kind][0]
    own = {name: op for name, op in sorted(everypool.operations().items()) if op.kind == kind}
    columns = {title: write for title, write in COLUMNS.items() if any(write(op) != "none" for op in own.values())}
    rows = [["name", *columns], ["---"] * (len(columns) + 1)]
    for name, op in own.items():
        rows.append([f"[{name}]({folder}/{name}.md)", *(write(op) for write in columns.values())])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n"


def toctree(entries: list[str]) -> str:
    return "\n".join(["```{toctree}", ":hidden:", "", *entries, "```", ""])


def learned(layer: str) -> list[str]:
    """What the layers say of their settings that may be learned."""
    settle = getattr(getattr(everypool, layer), "settle", None)
    settings = inspect.signature(settle).parameters if settle is not None else {}
    if "learnable" not in settings:
        return []
    state = "unless told not to" if settings["learnable"].default else "if `learnable=True`"
    name = next(name for name in settings if name != "self")
    return [f"The layers learn `{name}` {state}; `channels=C` gives every channel its own."]


def operation_page(op: everypool.Operation, names: list[str]) -> str:
    """One operation: its record, its functions, its layers."""
    facts = {
        "formula": code(op.formula),
        "source": op.source,
        "learned parameters": op.parameters,
        "spatial axes": ", ".join(str(nd) for nd in op.nd),
        "input": op.dtypes,
        "ragged batches": "yes" if op.mask else "no",  # not all modules take a mask; their signatures say which
        "ONNX at any size": "yes" if op.onnx else "no",
        "also called": ", ".join(code(alias) for alias in op.aliases),
    }
    rows = ["| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in facts.items() if value)]
    functions = [name for name in names if not isinstance(getattr(everypool, name), type)]
    layers = [name for name in names if name not in functions]
    parts = [f"# {op.name}", op.summary, "\n".join(rows)]
    if functions:
        parts += ["## Functions", directives(sorted(functions, key=lambda name: (name.count("_"), name)))]
    if layers:
        title = "## Modules" if op.kind == "block" else "## Layers"
        ordered = layers if op.kind == "block" else sorted(layers, key=by_windows)
        parts += [title, *learned(layers[0]), directives(ordered)]
    return "\n\n".join(parts) + "\n"


def pages() -> dict[str, str]:
    """The text of every page of the reference, by its path in docs/reference; every public name is on one of them."""
    rest = public_names()
    classes = {"reducer": are(rest, everypool.Reducer), "windows": are(rest, everypool.Windows), "block": []}
    rest = [name for name in rest if not any(name in names for names in classes.values())]
    written: dict[str, str] = {}
    tables = []
    for kind, (folder, title, what) in KINDS.items():
        entries = []
        for name, op in sorted(everypool.operations().items()):
            if op.kind == kind:
                own = [item for item in op.names if item in rest]
                rest = [item for item in rest if item not in own]
                written[f"{folder}/{name}.md"] = operation_page(op, own)
                entries.append(f"{folder}/{name}")
        parts = [f"# {title}", what, table(kind)]
        if classes[kind]:
            parts += [f"## Classes\n\nWhat `everypool.pool` takes as its {kind}.", directives(classes[kind])]
        written[f"{folder}.md"] = "\n\n".join([*parts, toctree(entries)])
        tables.append(f"## {title}\n\n{what}\n\n{table(kind)}")
    written["functional.md"] = functional_page()
    rest.sort(key=lambda name: (name != "pool", name[0].isupper(), name))
    written["pool.md"] = "# pool, create and the records\n\n" + directives(rest)
    intro = "Every operation that is registered, from its record. `everypool.operations()` gives the same at run time."
    order = toctree(["pool", "functional", *(folder for folder, _, _ in KINDS.values())])
    written["index.md"] = "\n\n".join(["# Reference", intro, *tables, order])
    return written


def functional_page() -> str:
    """The functions of a fixed number of axes; the others are on the pages of their operations."""
    names = [name for name in functional.__all__ if not hasattr(everypool, name)]
    lines = [f".. autofunction:: everypool.functional.{name}\n" for name in names]
    return "\n".join(["# everypool.functional", f"\n{functional.__doc__}", "```{eval-rst}", *lines, "```", ""])


def write_reference(app: Sphinx) -> None:
    """Write what has changed, and remove the pages of what is gone."""
    written = pages()
    for path in REFERENCE.rglob("*.md"):
        if path.relative_to(REFERENCE).as_posix() not in written:
            path.unlink()
    for name, text in written.items():
        path = REFERENCE / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")


# -- docstrings, which are plain text -------------------------------------------------------------------------------------


def escape_markup(app: Sphinx, what: str, name: str, item: Any, options: Any, lines: list[str]) -> None:
    """`(N, C, *spatial)` and `|x|^p` mean what they say; only `names` in backquotes and examples are markup."""
    example = False
    for i, line in enumerate(lines):
        example = line.lstrip().startswith(">>>") or (example and bool(line.strip()))
        if not example:
            pieces = re.split(r"(`[^`]*`)", line)
            lines[i] = "".join(p if p.startswith("`") else re.sub(r"([\\*|]|_\b(?!\w))", r"\\\1", p) for p in pieces)


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("builder-inited", write_reference)
    app.connect("autodoc-process-docstring", escape_markup, priority=400)  # before napoleon
    return {"parallel_read_safe": True}
