"""What may raise NotImplementedError, why; and the tables of docs/ways.md."""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path

from . import contexts, recordings, tensors, transforms  # noqa: F401  they register the ways
from .registry import WAYS, Way
from .subjects import RECORDS, SUBJECTS, Subject

PAGE = Path(__file__).parents[2] / "docs/ways.md"
# (pattern of ways, pattern of subjects as in `Subject.id`): why
DOCUMENTED: dict[tuple[str, str], str] = {}
GROUPS = {"contexts": "Plain calls", "tensors": "Other tensors", "recordings": "Recorded graphs", "transforms": "Derivatives"}
MARK = "<!-- the tables are written by `PYTHONPATH=tests python -m ways.documented` -->"


def find_reason(way: Way, subject: Subject) -> str | None:
    """Why this cell raises NotImplementedError, None where it must be right."""
    for (ways, subjects), reason in DOCUMENTED.items():
        if fnmatchcase(way.name, ways) and fnmatchcase(subject.id, subjects):
            return reason
    return None


def count_cells(quick: bool | None = None) -> int:
    return sum(len(way.list_subjects(quick=quick)) for way in WAYS.values())


def render_tables() -> str:
    """Every record in every way: of how many settings."""
    reasons = list(dict.fromkeys(DOCUMENTED.values()))
    lines = [
        MARK,
        "",
        f"{len(RECORDS)} records with {len(SUBJECTS)} settings in {len(WAYS)} ways: {count_cells():,} cells, of which "
        f"`make test` runs {count_cells(True):,}, and `make test-slow` the others.",
    ]
    for group, title in GROUPS.items():
        ways = [way for way in WAYS.values() if way.group == group]
        lines += ["", f"## {title}", "", "| way | what |", "|---|---|"]
        lines += [f"| {way.name} | {way.summary.replace('|', chr(92) + '|')} |" for way in ways]
        lines += ["", f"| record | {' | '.join(way.name for way in ways)} |", f"|---|{'---|' * len(ways)}"]
        for record in RECORDS:
            lines.append(f"| `{record}` | {' | '.join(_render_cell(way, record, reasons) for way in ways)} |")
    lines += [""] if reasons else []
    lines += [f"{number}. {reason}" for number, reason in enumerate(reasons, 1)]
    return "\n".join(lines) + "\n"


def _render_cell(way: Way, record: str, reasons: list[str]) -> str:
    """How many settings are right, and the notes on those that are refused."""
    found = [find_reason(way, subject) for subject in way.list_subjects(record)]
    if not found:
        return "none"
    refused = sorted({reasons.index(reason) + 1 for reason in found if reason is not None})
    notes = f" ({', '.join(map(str, refused))})" if refused else ""
    return f"{found.count(None)}{notes}"


def write_page() -> None:
    text = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(text.partition(MARK)[0] + render_tables(), encoding="utf-8")


if __name__ == "__main__":
    write_page()
