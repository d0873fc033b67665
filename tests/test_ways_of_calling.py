"""Every record in every way that people call it: values, first and second derivatives are those of a plain call in float64.

A cell is one setting of one record in one way. It is right, or raises NotImplementedError and has its reason in
`ways.documented.DOCUMENTED`; where torch's own layers fail, the cell fails too, and has its reason in FAULTS_OF_TORCH.
docs/ways.md shows the whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

import pytest
from ways.documented import DOCUMENTED, FAULTS_OF_TORCH, MARK, PAGE, find_reason, render_tables
from ways.registry import WAYS, Way
from ways.subjects import RECORDS, SUBJECTS, Subject


def list_cells(quick: bool) -> list[tuple[str, str]]:
    """(way, record) of which there is at least one cell."""
    return [(way.name, record) for way in WAYS.values() for record in RECORDS if way.list_subjects(record, quick)]


def name_cell(cell: tuple[str, str]) -> str:
    return f"{cell[1]}-{cell[0]}".replace(" ", "_")


def find_fault(way: Way, subject: Subject) -> str | None:
    """Why a cell is not as it should be."""
    reason, fault = find_reason(way, subject), find_reason(way, subject, FAULTS_OF_TORCH)
    try:
        way.run(subject)
    except NotImplementedError as error:
        return None if reason and str(error) else f"NotImplementedError that is not in DOCUMENTED: {error}"
    except Exception as error:
        return None if fault else f"{type(error).__name__}: {error}"
    return None if reason is None and fault is None else f"no error, though the tables say: {reason or fault}"


def check_cells(way: Way, subjects: Sequence[Subject]) -> None:
    faults = {subject.id: find_fault(way, subject) for subject in subjects}
    told = [f"{name}: {fault}" for name, fault in faults.items() if fault is not None]
    assert not told, f"{len(told)} of {len(faults)} settings {way.name}:\n" + "\n".join(told)


@pytest.mark.parametrize("cell", list_cells(True), ids=name_cell)
def test_cells(cell: tuple[str, str]) -> None:
    check_cells(WAYS[cell[0]], WAYS[cell[0]].list_subjects(cell[1], True))


@pytest.mark.slow
@pytest.mark.parametrize("cell", list_cells(False), ids=name_cell)
def test_cells_that_take_long(cell: tuple[str, str]) -> None:
    check_cells(WAYS[cell[0]], WAYS[cell[0]].list_subjects(cell[1], False))


def test_every_record_is_called_in_every_way() -> None:
    """Masks and sizes make a cell only where a subject has them."""
    for way in WAYS.values():
        missing = {record for record in RECORDS if not way.list_subjects(record)}
        if way.name == "vmap second argument":
            missing -= {subject.record for subject in SUBJECTS if len(subject.arguments()) == 1}
        if way.name == "per-sample gradients":
            missing -= {"roi", "multi_level_roi", "panet_head"}
        assert not missing, way.name


def test_nothing_is_documented_that_is_not_there() -> None:
    for ways, subjects in (*DOCUMENTED, *FAULTS_OF_TORCH):
        assert any(fnmatchcase(way, ways) for way in WAYS), ways
        assert any(fnmatchcase(subject.id, subjects) for subject in SUBJECTS), subjects


def test_the_page_shows_the_matrix() -> None:
    assert PAGE.read_text(encoding="utf-8").partition(MARK)[1:] == (MARK, render_tables().removeprefix(MARK))
