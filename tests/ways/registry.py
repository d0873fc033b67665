"""The ways of calling, by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .subjects import SUBJECTS, Subject

Choose = Callable[[Subject], bool]


@dataclass(frozen=True)
class Way:
    """One way of calling: it runs a subject and compares the outcome with that of plain eager mode."""

    name: str
    summary: str
    group: str
    run: Callable[[Subject], None]
    has_kernels: bool | None  # whether the compiled kernels run there; None where in part
    fits: Choose  # which subjects it takes
    is_quick: Choose  # of these: which are cheap enough to be run always, the others being marked slow

    def list_subjects(self, record: str | None = None, quick: bool | None = None) -> list[Subject]:
        return [
            subject
            for subject in SUBJECTS
            if record in (None, subject.record) and self.fits(subject) and quick in (None, self.is_quick(subject))
        ]


WAYS: dict[str, Way] = {}


def choose_all(subject: Subject) -> bool:
    return True


def choose_usual(subject: Subject) -> bool:
    """Every kind of windows, learned parameters, masks and sizes, for ways that take a tenth of a second."""
    return subject.is_usual


def choose_main(subject: Subject) -> bool:
    """One setting of each record, for ways that take a second."""
    return subject.is_main


def choose_few(subject: Subject) -> bool:
    """For ways that take ten seconds."""
    return subject.id in ("max-2d", "soft-2d", "directional-sample", "roi-sample", "mixed_pool-sample")


def choose_none(subject: Subject) -> bool:
    return False


def choose_evaluated(subject: Subject) -> bool:
    """All but training: torch's batch norm writes its statistics in place, which transforms refuse."""
    return not subject.is_learning


def choose_usual_evaluated(subject: Subject) -> bool:
    return subject.is_usual and not subject.is_learning


def choose_main_evaluated(subject: Subject) -> bool:
    return subject.is_main and not subject.is_learning


def add_way(
    name: str, *, kernels: bool | None, fits: Choose = choose_all, quick: Choose = choose_all
) -> Callable[[Callable[[Subject], None]], Callable[[Subject], None]]:
    """Register a function as a way of calling; its docstring becomes the line in the table."""

    def add(run: Callable[[Subject], None]) -> Callable[[Subject], None]:
        assert name not in WAYS
        assert run.__doc__
        WAYS[name] = Way(name, run.__doc__.strip(), run.__module__.rpartition(".")[2], run, kernels, fits, quick)
        return run

    return add
