"""What may raise NotImplementedError, why; and the tables of docs/ways.md."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path

from . import contexts, recordings, tensors, transforms  # noqa: F401  they register the ways
from .registry import WAYS, Way
from .subjects import RECORDS, SUBJECTS, Subject

PAGE = Path(__file__).parents[2] / "docs/ways.md"
HESSIAN_OF_NORM = "torch.func's second derivative of nn.LayerNorm by its weight and input is wrong"
_PLAIN = "boxes, unpooling, associations and joined levels want plain tensors: `full_tensor` first"
_SHARDED = "sharded over an axis that is pooled: `redistribute` it first"
_ELEMENTWISE = (
    "blur_pool",
    "yolo_spp",
    "mixed_pooling_module",
    "corner_module",
    "cascade_corner",
    "center_module",
)
_JOINED = "the levels of a pyramid are joined with the channels: `redistribute` them first"
# (pattern of ways, pattern of subjects as in `Subject.id`): why
DOCUMENTED: dict[tuple[str, str], str] = {
    ("jit.script", "*"): "torch.jit.script does not know the language; torch.jit.trace and torch.export do",
    **{
        ("DTensor *", pattern): _PLAIN
        for pattern in ("roi-*", "multi_level_roi-*", "panet_head-*", "max_unpool-*", "hopfield*", "pyramid_pooling_module-*")
    },
    **{("DTensor over space", f"{name}-*"): _SHARDED for name in RECORDS if name not in _ELEMENTWISE},
    ("DTensor over channels", "*-pyramid"): _JOINED,
    ("DTensor over channels", "spatial_pyramid-*"): _JOINED,
    ("DTensor over channels", "spatial_pyramid_head-*"): _JOINED,
}
# the same: what torch itself gets wrong there, without any pooling
_SECOND = "the second derivative of {} is recorded at one size alone"
_ALONE = "a convolution that is sharded asks a neighbor for its border, which gloo refuses a process that is alone"
_PADDED = ("corner_module", "cascade_corner", "center_module", "strip_module")  # with convolutions wider than one element
FAULTS_OF_TORCH: dict[tuple[str, str], str] = {
    ("wrapper subclass", "panet_head-*"): "the second derivative of nn.GroupNorm of a wrapper subclass has a wrong shape",
    ("hessian", "hopfield*"): HESSIAN_OF_NORM,
    ("jac* of jac*", "hopfield*"): HESSIAN_OF_NORM,
    ("autograd hessian", "panet_head-*"): "the batched derivative of nn.GroupNorm's gradient has a wrong shape",
    ("is_grads_batched", "panet_head-*"): "the batched derivative of nn.GroupNorm's gradient has a wrong shape",
    ("autograd hessian forward", "panet_head-*"): "the batched derivative of nn.GroupNorm's gradient has a wrong shape",
    ("make_fx symbolic twice", "lp-*"): _SECOND.format("torch.abs"),
    **{
        ("make_fx symbolic twice", f"{name}-*"): _SECOND.format("a convolution")
        for name in (*_PADDED, "gated_pool", "yolo_spp")
    },
    ("make_fx symbolic twice", "mixed_pooling_module-*"): _SECOND.format("a convolution"),
    **{("DTensor over channels", f"{name}-*"): _ALONE for name in _PADDED},
    **{("DTensor over space", f"{name}-*"): _ALONE for name in _PADDED[:3]},
}
GROUPS = {"contexts": "Plain calls", "tensors": "Other tensors", "recordings": "Recorded graphs", "transforms": "Derivatives"}
MARK = "<!-- the tables are written by `PYTHONPATH=tests python -m ways.documented` -->"


def find_reason(way: Way, subject: Subject, table: Mapping[tuple[str, str], str] = DOCUMENTED) -> str | None:
    """Why this cell raises, None where it must be right."""
    for (ways, subjects), reason in table.items():
        if fnmatchcase(way.name, ways) and fnmatchcase(subject.id, subjects):
            return reason
    return None


def count_cells(quick: bool | None = None) -> int:
    return sum(len(way.list_subjects(quick=quick)) for way in WAYS.values())


def render_tables() -> str:
    """Every record in every way: of how many settings."""
    reasons = list(dict.fromkeys([*DOCUMENTED.values(), *FAULTS_OF_TORCH.values()]))
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
            lines.append(f"| {record} | {' | '.join(_render_cell(way, record, reasons) for way in ways)} |")
    lines += [""] if reasons else []
    told = [
        f"{reason} (torch itself, without a pooling)" if reason in FAULTS_OF_TORCH.values() else reason for reason in reasons
    ]
    lines += [f"{number}. {reason}" for number, reason in enumerate(told, 1)]
    return "\n".join(lines) + "\n"


def _render_cell(way: Way, record: str, reasons: list[str]) -> str:
    """How many settings are right, and the notes on those that are refused."""
    cells = way.list_subjects(record)
    found = [find_reason(way, subject) or find_reason(way, subject, FAULTS_OF_TORCH) for subject in cells]
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
