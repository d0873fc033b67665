"""Rows and their summary, printed and as records for the file of results."""

from __future__ import annotations

import textwrap
from typing import Any

from benchmarks.gpu.measure import Row
from benchmarks.report import mean, number, rounded

__all__ = ["clipped", "header", "line", "record", "summary"]

WIDTH = 150  # columns of a terminal
NAMES = {"everypool": "everypool", "eager": "torch eager", "compile": "torch.compile"}


def header() -> str:
    return (
        f"{'':<50}{'milliseconds':>16}{'bytes at least':>16}{'everypool over':>18}{'peak memory, MiB':>28}\n"
        f"{'case':<30}{'pass':<8}{'right':<6}{'by':<6}{'GPU':>8}{'host':>8}{'GB/s':>8}{'of copy':>8}"
        f"{'eager':>9}{'compile':>9}{'everypool':>12}{'eager':>8}{'compile':>8}"
    )


def rate(row: Row | dict[str, Any]) -> float | None:
    """GB/s of the bytes that must be moved."""
    least, times = (row.bytes, row.milliseconds) if isinstance(row, Row) else (row["bytes"], row["milliseconds"])
    return least / times["everypool"] / 1e6 if "everypool" in times else None


def line(row: Row, copy: float | None) -> str:
    """One row; below it why a kernel did not run, and what became of rivals that failed."""
    start = f"{row.case.name:<30}{'f+b' if row.train else 'forward':<8}"
    if row.problem is not None:
        return clipped(f"{start}WRONG: {row.problem}")
    if row.skipped is not None:
        return clipped(f"{start}not measured: {row.skipped}")
    text = f"{start}{'yes':<6}{'torch' if row.refused else 'triton':<6}"
    notes = [f"no fused kernel: {row.refused}"] if row.refused else []
    notes += [f"{NAMES[name]} dropped: {why}" for name, why in row.dropped.items()]
    if copy is None:
        text += f"  {row.checked}"
    else:
        speed = rate(row)
        text += f"{number(row.milliseconds.get('everypool'), 8)}{number(row.host.get('everypool'), 8)}"
        text += f"{number(speed, 8)}{'-' if speed is None else f'{speed / copy:.0%}':>8}"
        text += f"{number(row.ratios.get('eager'), 9)}{number(row.ratios.get('compile'), 9)}"
        for name, width in (("everypool", 12), ("eager", 8), ("compile", 8)):
            text += f"{f'{row.peaks[name] / 2**20:.0f}' if name in row.peaks else '-':>{width}}"
    return "\n".join([text, *(clipped(f"    {note}") for note in notes)])


def clipped(text: str) -> str:
    """In as many lines as it takes."""
    return textwrap.fill(text, WIDTH, subsequent_indent="        ")


def record(row: Row, copy: float | None) -> dict[str, Any]:
    """One row for the file of results."""
    case, speed = row.case, rate(row)
    return {
        "name": case.name,
        "pass": row.direction,
        "shapes": [list(shape) for shape in case.shapes],
        "dtype": str(case.dtype).removeprefix("torch."),
        "memory_format": "channels_last" if case.last else "contiguous",
        "correct": row.problem is None,
        "checked": row.checked,
        "problem": row.problem,
        "fused": row.refused is None,
        "refused": row.refused,
        "skipped": row.skipped,
        "operators": list(row.operators),
        "bytes": row.bytes,
        "milliseconds": {name: rounded(value) for name, value in row.milliseconds.items()},
        "host_milliseconds": {name: rounded(value) for name, value in row.host.items()},
        "gb_per_second": None if speed is None else rounded(speed),
        "share_of_copy": None if speed is None or copy is None else rounded(speed / copy),
        "everypool_over": {name: rounded(value) for name, value in row.ratios.items()},
        "peak_bytes": dict(row.peaks),
        "dropped": dict(row.dropped),
    }


def summary(records: list[dict[str, Any]]) -> str:
    """Geometric means of the fused kernels' figures, where they are worst, and what is not one of them."""
    lines = []
    for direction in ("forward", "forward+backward"):
        found = [r for r in records if r["pass"] == direction and r["fused"] and r["share_of_copy"] is not None]
        if not found:
            continue
        lines.append(f"{direction}, {len(found)} cases with fused kernels; geometric means")
        lines.append(f"    share of the copy's bandwidth {mean(r['share_of_copy'] for r in found):.0%}")
        for name in ("eager", "compile"):
            ratios = {r["name"]: r["everypool_over"][name] for r in found if name in r["everypool_over"]}
            if ratios:
                slower = sorted((r for r in ratios.items() if r[1] > 1), key=lambda item: -item[1])
                worst = ", ".join(f"{case} {number(ratio, 0)}" for case, ratio in slower[:5])
                text = f"    over {NAMES[name]} {number(mean(ratios.values()), 0)}; slower in {len(slower)}"
                lines.append(clipped(f"{text}: {worst}" if worst else text))
        worst = ", ".join(f"{r['name']} {r['share_of_copy']:.0%}" for r in sorted(found, key=lambda r: r["share_of_copy"])[:5])
        lines.append(clipped(f"    least share: {worst}"))
    for title, chosen in (
        ("no fused kernel", [r for r in records if not r["fused"] and r["correct"] and not r["skipped"]]),
        ("not measured", [r for r in records if r["skipped"]]),
        ("WRONG", [r for r in records if not r["correct"]]),
    ):
        if chosen:
            names = ", ".join(f"{r['name']} ({r['pass']})" for r in chosen)
            lines.append(clipped(f"{title}: {names}"))
    return "\n".join(lines)
