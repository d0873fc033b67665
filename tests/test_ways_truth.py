"""In each way of calling: whether the compiled kernels run is what `explain` says, and what `forced("cpu")` insists on."""

from __future__ import annotations

from typing import Any

import pytest
from torch import Tensor, nn
from ways import documented
from ways.registry import WAYS, Way, choose_none
from ways.subjects import SUBJECTS, Subject, of_map

import everypool
from everypool import Sliding, explain
from everypool.backends import cpu
from everypool.backends.choose import forced

WINDOWS = Sliding(3, 2, 1)
TOLD: list[tuple[Any, Any]] = []  # what `explain` said of the tensor, and of its shape
# a shape does not tell what kind of tensor has it
BY_TENSOR = {"wrapper subclass", "meta", "fake tensors"} | {name for name in WAYS if name.startswith("DTensor")}
# torch.fx and TorchDynamo record what a module does, but not `explain`; TorchScript reads its text; a child has its own list
UNASKED = {"fx", "compile", "export strict", "inductor", "jit.script", "fork"}
# tracers that compare with a plain call of their own
ALSO_PLAIN = {"jit.trace", "jit.trace no_grad", "linearize"}
DECIDED = [way for way in WAYS.values() if way.has_kernels is not None and way.name != "DTensor over space"]


class Asked(nn.Module):
    """A pooling that asks what runs it."""

    def forward(self, x: Tensor) -> Any:
        TOLD.append((explain("max", WINDOWS, x), explain("max", WINDOWS, tuple(x.shape))))
        return everypool.pool(x, "max", WINDOWS)


ASKED = Subject("max", "asked", Asked, of_map(2))
POOLINGS = [next(s for s in SUBJECTS if s.id == name) for name in ("lp-masked2d", "avg-adaptive2d", "soft-2d", "max-2d")]


def answers(way: Way, subject: Subject) -> bool:
    """Whether the cell exists and is not refused for a reason of its own."""
    return way.fits(subject) and documented.find_reason(way, subject) is None


def name_item(item: Way | Subject) -> str:
    return item.id if isinstance(item, Subject) else item.name.replace(" ", "_")


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One item per call of the compiled loops."""
    library = cpu.library()
    assert library is not None
    calls: list[int] = []
    run = library.forward

    def count(*arguments: Any) -> Any:
        calls.append(1)
        return run(*arguments)

    monkeypatch.setattr(library, "forward", count)
    return calls


def run_twice(way: Way, subject: Subject, calls: list[int]) -> None:
    """The second time nothing else is called: outcomes to compare with are kept."""
    for _ in range(2):
        calls.clear()
        TOLD.clear()
        way.run(subject)


def list_pairs() -> list[tuple[Way, Subject]]:
    """Where a cell is run always; once at least for every way."""
    return [
        (way, subject)
        for way in DECIDED
        for subject in POOLINGS
        if answers(way, subject) and (way.is_quick(subject) or (subject.is_main and subject.record == "max"))
    ]


def is_refusal(error: BaseException | None) -> bool:
    """It is a NotImplementedError of the forced backend, or was raised from one; TorchDynamo has its own that names it."""
    while error is not None:
        if "EVERYPOOL_IMPL" in str(error) and (isinstance(error, NotImplementedError) or "NotImplementedError(" in str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False


@pytest.mark.parametrize(
    "way", [pytest.param(way, marks=[pytest.mark.slow] * (way.is_quick is choose_none)) for way in DECIDED], ids=name_item
)
def test_kernels_run_where_they_are_said_to(way: Way, kernels: list[int]) -> None:
    subject = next(subject for subject in reversed(POOLINGS) if answers(way, subject))
    run_twice(way, subject, kernels)
    assert bool(kernels) is way.has_kernels or way.name in ALSO_PLAIN


@pytest.mark.parametrize(
    "way",
    [way for way in DECIDED if way.name not in UNASKED and answers(way, ASKED)],
    ids=lambda way: way.name.replace(" ", "_"),
)
def test_explain_tells_the_truth(way: Way, kernels: list[int]) -> None:
    run_twice(way, ASKED, kernels)
    expected = "cpu" if way.has_kernels else "eager"
    told = [pair for pair in TOLD if way.name not in ALSO_PLAIN or pair[0].implementation == "eager"]
    assert told
    for by_tensor, by_shape in told:
        assert by_tensor.implementation.startswith(expected), by_tensor
        assert by_tensor.reason
        if way.name not in BY_TENSOR:
            assert by_shape.implementation.startswith(expected), by_shape
        if expected == "eager":
            assert "cpu" in dict(by_tensor.rejected)


@pytest.mark.parametrize(
    ("way", "subject"), list_pairs(), ids=lambda item: getattr(item, "id", None) or item.name.replace(" ", "_")
)
def test_a_forced_backend_never_falls_back(way: Way, subject: Subject) -> None:
    way.run(subject)  # what is compared with is made before
    if way.has_kernels:
        with forced("cpu"):
            way.run(subject)
        return
    with pytest.raises(Exception) as caught, forced("cpu"):  # noqa: PT011  tracers wrap it
        way.run(subject)
    assert is_refusal(caught.value), caught.value
