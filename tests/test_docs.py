"""README and the pages in docs: snippets print what is shown; tables, names and links lead to what exists."""

from __future__ import annotations

import ast
import contextlib
import importlib.util
import io
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import everypool

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXTS = {page.relative_to(ROOT).as_posix(): page.read_text(encoding="utf-8") for page in PAGES}
FENCES = re.compile(r"^```(\S*)\n(.*?)^```$", re.M | re.S)
KINDS = ["reducer", "windows", "block"]
THEIRS = {  # names in the papers' code and in torch.nn, which a page has to give
    "tl_pool", "br_pool", "StripPooling", "FractionalMaxPool2d", "FractionalMaxPool3d",
}  # fmt: skip


def prose(text: str) -> str:
    return FENCES.sub("", text)


# ---- snippets ------------------------------------------------------------------------------------------------------------


def snippets() -> list[Any]:
    """(page, line, code, output) of every python block; the output is the text block that follows, if one does."""
    found = []
    for name, text in TEXTS.items():
        for match in FENCES.finditer(text):
            if match[1] != "python":
                continue
            line = text.count("\n", 0, match.start()) + 2
            shown = re.match(r"\n\n```text\n(.*?)^```$", text[match.end() :], re.M | re.S)
            # exporters of ONNX warn of their own affairs
            marks = [pytest.mark.filterwarnings("ignore")] if "onnx" in match[2] else []
            found.append(pytest.param(name, line, match[2], shown[1] if shown else "", id=f"{name}:{line}", marks=marks))
    return found


SNIPPETS = snippets()


def shapes(value: Any) -> list[tuple[int, ...]]:
    return [tuple(item.shape) for item in (value if isinstance(value, tuple) else (value,))]


@pytest.mark.parametrize(("page", "line", "code", "shown"), SNIPPETS)
def test_snippets_print_what_the_page_shows(page: str, line: int, code: str, shown: str) -> None:
    """Also where a comment behind a statement says what shape it gives, as in `soft_pool(x, 2)  # (2, 64, 28, 28)`."""
    torch.manual_seed(20261124)  # a reader has some other seed; nothing that is shown may depend on it
    torch.use_deterministic_algorithms(False)  # torch's default, since pages show what torch.nn does too
    names: dict[str, Any] = {"__name__": "__main__"}
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        for node in ast.parse(code).body:
            said = re.search(r"  # (\(\d.*)$", code.splitlines()[(node.end_lineno or 1) - 1])
            if said and isinstance(node, (ast.Expr, ast.Assign)):
                value = eval(compile(ast.Expression(node.value), page, "eval"), names)
                assert re.findall(r"\([\d, ]+\)", said[1]) == [str(shape) for shape in shapes(value)], f"{page}:{line}"
            exec(compile(ast.Module([node], []), page, "exec"), names)
    assert printed.getvalue() == shown


def test_an_existing_model_as_pasted_with_the_packages_of_the_command_line(tmp_path: Path) -> None:
    """In an interpreter of its own, warnings as errors, and nothing of what the other extras install."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    extras = re.findall(r"^(\w+) = (\[.*\])$", text[text.index("[project.optional-dependencies]") :].partition("\n[")[0], re.M)
    named = {extra: {re.split(r"[\s;<>=\[]", entry)[0].lower() for entry in ast.literal_eval(row)} for extra, row in extras}
    others = set().union(*named.values()) - named["cli"] - {"everypool", "setuptools"}
    assert {"onnx", "mlxtend", "transformers"} <= others
    (code,) = [s.values[2] for s in SNIPPETS if s.values[0] == "README.md" and "everypool.swap" in s.values[2]]
    hidden = [name.replace("-", "_") for name in sorted(others)]
    script = f"import sys\nfor name in {hidden}:\n    sys.modules[name] = None\n{code}"
    environment = {**os.environ, "PYTHONPATH": str(Path(everypool.__file__).parents[1])}
    command = [sys.executable, "-W", "error", "-c", script]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_every_output_belongs_to_a_snippet() -> None:
    outputs = sum(language == "text" for text in TEXTS.values() for language, _ in FENCES.findall(text))
    assert outputs == sum(bool(snippet.values[3]) for snippet in SNIPPETS)
    assert len(SNIPPETS) > 25


# ---- tables --------------------------------------------------------------------------------------------------------------


def table(text: str, start: str) -> dict[str, list[str]]:
    """The rows of the first table behind `start`, by their first cell."""
    rows = re.search(r"((?:^\|[^\n]*\n)+)", text[text.index(start) :], re.M)
    assert rows is not None, start
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows[1].splitlines()[2:]]
    assert len({row[0] for row in cells}) == len(cells)
    return {row[0]: row[1:] for row in cells}


def operations_of(kind: str) -> dict[str, everypool.Operation]:
    return {name: op for name, op in everypool.operations().items() if op.kind == kind}


@pytest.mark.parametrize("kind", KINDS)
def test_readme_names_operations_that_exist(kind: str) -> None:
    """Not all of them: a new operation is one file and one line; `everypool list` and the reference have them all."""
    rows = table(TEXTS["README.md"], f"<!-- operations: {kind} -->")
    operations = operations_of(kind)
    assert set(rows) <= set(operations)
    for name, row in rows.items():
        named = re.findall(r"`(\w+)`", row[-1])
        assert named
        assert set(named) <= set(operations[name].names)


@pytest.mark.parametrize("stem", [op.stem for op in operations_of("reducer").values()])
def test_reducers_have_the_layers_that_readme_promises(stem: str) -> None:
    for layer in (f"{stem}Pool{{}}d", f"Adaptive{stem}Pool{{}}d", f"Global{stem}Pool"):
        for nd in (1, 2, 3):
            assert issubclass(getattr(everypool, layer.format(nd)), torch.nn.Module)


def test_page_of_blocks_names_every_module_with_its_parameters() -> None:
    text = TEXTS["docs/blocks.md"]
    rows = table(text, "## What there is")
    operations = operations_of("block")
    assert set(rows) == set(operations)
    for name, row in rows.items():
        assert set(re.findall(r"`(\w+)`", row[0])) == set(operations[name].names)
    told = {number for row in rows.values() for number in re.findall(r"[\d,]*\d", row[2])}
    assert told == set(re.findall(r"^\w+: ([\d,]+)$", text, re.M))


# ---- the reference -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def conf() -> ModuleType:
    spec = importlib.util.spec_from_file_location("everypool_docs_conf", ROOT / "docs" / "conf.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_reference_has_every_public_name_once(conf: ModuleType) -> None:
    pages = conf.pages()
    documented = Counter(
        name for text in pages.values() for name in re.findall(r"^\.\. auto\w+:: everypool\.(\w+)$", text, re.M)
    )
    assert documented == Counter(conf.public_names())
    for op in everypool.operations().values():
        folder = conf.KINDS[op.kind][0]
        assert f"{folder}/{op.name}.md" in pages
        assert f"[{op.name}]({folder}/{op.name}.md)" in pages["index.md"]


def test_every_public_name_has_a_docstring(conf: ModuleType) -> None:
    assert [name for name in conf.public_names() if not (getattr(everypool, name).__doc__ or "").strip()] == []


def test_docstrings_become_plain_text(conf: ModuleType) -> None:
    lines = ["(N, C, *spatial), |x|^p and `soft_pool(*x)` of W_ and W_o", "", ">>> f(*x)", "[*x]", "", "a * b"]
    conf.escape_markup(None, "function", "f", None, None, lines)
    assert lines == [
        "(N, C, \\*spatial), \\|x\\|^p and `soft_pool(*x)` of W\\_ and W_o", "", ">>> f(*x)", "[*x]", "", "a \\* b"
    ]  # fmt: skip


# ---- names, links, length ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", TEXTS)
def test_every_operation_named_in_prose_exists(page: str) -> None:
    named: set[str] = set()
    for text in re.findall(r"`([^`\n]+)`", prose(TEXTS[page])):
        for name in re.findall(r"(?<![\w*<>.-])[A-Za-z]\w*(?:\{1,2,3\}d)?(?![\w*{>])", text):
            if re.search(r"_pool$|_align$|[a-z]Pool|Head$|Module$", name):
                named |= {name.replace("{1,2,3}", digit) for digit in "123"}
    assert sorted(name for name in named - THEIRS if not hasattr(everypool, name)) == []


@pytest.mark.parametrize("page", TEXTS)
def test_relative_links_lead_somewhere(page: str, conf: ModuleType) -> None:
    folder = (ROOT / page).parent
    for target in re.findall(r"\]\(([^)#\s]+)", prose(TEXTS[page])):
        if target.startswith("https://"):
            continue
        reference, _, rest = target.partition("/")
        if reference == "reference":  # written when the documentation is built
            assert rest in conf.pages(), target
        else:
            assert (folder / target).exists(), target


def test_readme_is_short_and_shows_an_example_early() -> None:
    lines = TEXTS["README.md"].splitlines()
    assert len(lines) <= 150
    assert lines.index("```python") <= 30
