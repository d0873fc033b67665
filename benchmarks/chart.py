"""A chart of the results: how many times faster than torch eager everypool and the best rival are."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from benchmarks.report import NAMES

__all__ = ["chart"]

SHOWN = {  # case: what it is called in the chart
    "resnet stem k3s2p1 max": "max 3×3 / 2, ResNet stem",
    "resnet stem k3s2p1 max b1": "max 3×3 / 2, batch of 1",
    "CL resnet stem k3s2p1 max": "max 3×3 / 2, channels_last",
    "BF16 resnet stem k3s2p1 max": "max 3×3 / 2, bfloat16",
    "vgg k2s2 max": "max 2×2 / 2",
    "vgg k2s2 avg": "average 2×2 / 2",
    "k3s1p1 max": "max 3×3 / 1",
    "yolo k13s1 same max": "max 13×13 / 1, YOLO",
    "GAP 7x7": "global average, 7×7",
    "GeM p tensor 7x7": "GeM, p learned, 7×7",
    "SPP max (1, 2, 3, 6) 13x13": "pyramid 1, 2, 3, 6 of maxima",
    "adaptive max 7x7 from 20": "adaptive max, 20 to 7",
    "SoftPool k2s2": "SoftPool 2×2 / 2",
    "LPPool p2 k2s2": "L2 norm 2×2 / 2",
    "strip means 64x64": "strip means, 64×64",
    "corner TL = top(x1)+left(x2)": "corner pooling, 128×128",
    "center pool, amax form": "CenterNet's center pooling",
    "1-D audio k4s4 max": "max 4 / 4, audio",
}
OURS, THEIRS = "#1f5fbf", "#b9bec7"


def speeds(record: dict[str, Any]) -> tuple[float, float, str] | None:
    """everypool's and the best rival's speed, torch eager's being 1, and the rival's name."""
    over = record["everypool_over"]
    best = record["best_rival"]
    if not record["correct"] or best is None or "eager" not in over:
        return None
    return 1 / over["eager"], over[best] / over["eager"], NAMES[best]


def chart(content: dict[str, Any], path: Path) -> None:
    """Draw the chosen cases of a file of results."""
    plt: Any = importlib.import_module("matplotlib.pyplot")
    plt.rcParams.update({"font.size": 9, "svg.hashsalt": "everypool", "font.family": "DejaVu Sans"})
    found = {(r["name"], r["pass"]): speeds(r) for r in content["cases"]}
    names = [name for name in SHOWN if found.get((name, "forward"))]
    if not names:
        raise SystemExit("the results hold none of the cases of the chart")
    figure, panels = plt.subplots(1, 2, sharey=True, figsize=(10.5, 0.8 + 0.42 * len(names)), layout="constrained")
    for panel, direction in zip(panels, ("forward", "forward+backward"), strict=True):
        values = [found.get((name, direction)) for name in names]
        draw(panel, values)
        panel.set_title(direction.replace("+", " + "), loc="left", fontweight="bold")
    panels[0].set_yticks(range(len(names)), [SHOWN[name] for name in names])
    panels[0].set_ylim(len(names) - 0.4, -0.6)  # the first on top
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=2, frameon=False)
    versions = content["versions"]
    about = f"{content['processor']}, {content['instructions']}, {content['threads']} thread, torch {versions['torch']}"
    figure.supxlabel(f"times as fast as torch eager, log scale ({about})", fontsize=9)
    metadata = {"Date": None} if path.suffix == ".svg" else None
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150, metadata=metadata)
    plt.close(figure)


def draw(panel: Any, values: list[tuple[float, float, str] | None]) -> None:
    """Two bars per case, from 1, torch eager's speed."""
    panel.set_xscale("log")
    for place, value in enumerate(values):
        if value is None:
            continue
        for bar, (speed, colour, name) in enumerate(zip(value[:2], (OURS, THEIRS), ("", value[2]), strict=True)):
            label = ("everypool", "best rival")[bar] if place == 0 else None
            height = place - 0.2 + 0.4 * bar
            panel.barh(height, speed - 1, left=1, height=0.36, color=colour, label=label)
            figure = f"{speed:.0f}×" if speed >= 10 else f"{speed:.1f}×"
            text = figure if not name else f"{figure} {name}" if name != NAMES["eager"] else "none faster than torch eager"
            weight = "bold" if bar == 0 else "normal"
            panel.annotate(
                text, (max(speed, 1), height), (3, 0), textcoords="offset points", va="center", fontsize=7, fontweight=weight
            )
    most = max((max(value[:2]) for value in values if value), default=10)
    panel.set_xlim(0.8, most * 4)
    panel.axvline(1, color="black", linewidth=0.8)
    ticks = [tick for tick in (1, 3, 10, 30, 100, 300, 1000) if tick < most * 4]
    panel.set_xticks(ticks, [str(tick) for tick in ticks])
    panel.minorticks_off()
    panel.grid(axis="x", color="#e3e5e9", linewidth=0.6)
    panel.set_axisbelow(True)
    for side in ("top", "right", "left"):
        panel.spines[side].set_visible(False)
    panel.tick_params(axis="y", length=0)
