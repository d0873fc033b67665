"""Rows and their summary, printed and written as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.measure import Row

__all__ = ["header", "line", "record", "summary", "write"]

NAMES = {
    "eager": "torch eager",
    "compile": "torch.compile",
    "onnxruntime": "ONNX Runtime",
    "openvino": "OpenVINO",
    "jax": "JAX",
}


def number(value: float | None, width: int = 10) -> str:
    """Three digits, or a dash."""
    if value is None:
        return f"{'-':>{width}}"
    digits = 0 if value >= 100 else 1 if value >= 10 else 2 if value >= 1 else 3 if value >= 0.01 else 4
    return f"{value:>{width}.{digits}f}"


def header() -> str:
    return (
        f"{'milliseconds; ratios of times, below 1: everypool is faster':<68}{'ratio of everypool to':>42}\n"
        f"{'case':<32}{'pass':<8}{'everypool':>10}{'eager':>10}{'best':>10} {'best rival':<15}"
        f"{'vs eager':>10}{'vs best':>10}{'vs floor':>10}"
    )


def line(row: Row) -> str:
    """One row; below it what became of rivals that failed or were wrong."""
    start = f"{row.case.name:<32}{'f+b' if row.train else 'forward':<8}"
    if row.problem:
        return f"{start}  WRONG: {row.problem}"
    best = row.best
    times, ratios = row.milliseconds, row.ratios
    text = (
        f"{start}{number(times['everypool'])}{number(times.get('eager'))}{number(times.get(best or ''))} "
        f"{NAMES.get(best or '', '-'):<15}"
        f"{number(ratios.get('eager'))}{number(ratios.get(best or ''))}{number(ratios.get('floor'))}"
    )
    return "\n".join([text, *(f"    {NAMES[name]} dropped: {why}" for name, why in row.dropped.items())])


def record(row: Row) -> dict[str, Any]:
    """A row for the file of results."""
    case = row.case
    best = row.best
    return {
        "name": case.name,
        "section": case.section,
        "pass": row.direction,
        "shape": list(case.shape),
        "dtype": str(case.dtype).removeprefix("torch."),
        "memory_format": "channels_last" if case.last else "contiguous",
        "values": case.values,
        "correct": row.problem is None,
        "problem": row.problem,
        "milliseconds": {name: rounded(value) for name, value in row.milliseconds.items()},
        "everypool_over": {name: rounded(value) for name, value in row.ratios.items()},
        "best_rival": best,
        "skipped": row.skipped,
        "dropped": row.dropped,
    }


def rounded(value: float) -> float:
    """To four digits."""
    return float(f"{value:.4g}")


def mean(values: Iterable[float]) -> float:
    """The geometric mean."""
    logs = [math.log(value) for value in values]
    return math.exp(sum(logs) / len(logs))


def summary(rows: list[Row]) -> str:
    """Geometric means, and where a rival is faster."""
    lines = []
    for section in dict.fromkeys(row.case.section for row in rows):
        for train in (False, True):
            chosen = [row for row in rows if row.case.section == section and row.train == train and row.best]
            if not chosen:
                continue
            lines.append(f"{section}, {chosen[0].direction}, {len(chosen)} cases; geometric means of everypool's time over")
            against_eager = [row.ratios["eager"] for row in chosen if "eager" in row.ratios]
            if against_eager:
                lines.append(f"    torch eager {number(mean(against_eager), 0)}")
            against = {row.case.name: (row.ratios[row.best], row.best) for row in chosen if row.best}
            lines.append(f"    best rival  {number(mean(value for value, _ in against.values()), 0)}")
            lines.append(f"    floor       {number(mean(row.ratios['floor'] for row in chosen), 0)}")
            slower = sum(value > 1 for value, _ in against.values())
            worst = sorted(against.items(), key=lambda item: -item[1][0])[:5]
            names = ", ".join(f"{name} {number(value, 0)} ({NAMES[best]})" for name, (value, best) in worst)
            lines.append(f"    slower than the best rival in {slower}; nearest or worst: {names}")
    return "\n".join(lines)


def write(path: Path, content: dict[str, Any]) -> None:
    """Replace the file as a whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.part")
    partial.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    partial.replace(path)
