"""A chart of the results on a GPU: the share of the copy's bandwidth, and how many times as fast as torch."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

__all__ = ["chart"]

PASSES = {"forward": "#1f5fbf", "forward+backward": "#8fb4e3"}
RIVALS = {"eager": "torch eager", "compile": "torch.compile"}
MARKS = {"forward": "o", "forward+backward": "s"}
COLOURS = {"eager": "#7a818c", "compile": "#d08a2e"}


def chart(content: dict[str, Any], path: Path) -> None:
    """Draw all cases that have figures.

    Raises:
        ImportError: matplotlib is not installed.
    """
    plt: Any = importlib.import_module("matplotlib.pyplot")
    plt.rcParams.update({"font.size": 8, "svg.hashsalt": "everypool", "font.family": "DejaVu Sans"})
    found = {(r["name"], r["pass"]): r for r in content["cases"] if r["correct"] and r["share_of_copy"] is not None}
    names = list(dict.fromkeys(name for name, _ in found))
    if not names:
        raise SystemExit("the results hold no figures")
    figure, (shares, speeds) = plt.subplots(1, 2, sharey=True, figsize=(10.5, 1.2 + 0.27 * len(names)), layout="constrained")
    for place, name in enumerate(names):
        for number, (direction, colour) in enumerate(PASSES.items()):
            row = found.get((name, direction))
            if row is None:
                continue
            height = place - 0.2 + 0.4 * number
            shares.barh(height, row["share_of_copy"], height=0.38, color=colour)
            text = f"{row['share_of_copy']:.0%}" + ("" if row["fused"] else " (no fused kernel)")
            shares.annotate(text, (row["share_of_copy"], height), (2, 0), textcoords="offset points", va="center", fontsize=6)
            for rival, ratio in row["everypool_over"].items():
                speeds.plot(1 / ratio, height, MARKS[direction], color=COLOURS[rival], markersize=4)
    for direction, colour in PASSES.items():
        shares.barh(0, 0, color=colour, label=direction)
        for rival, title in RIVALS.items():
            speeds.plot([], [], MARKS[direction], color=COLOURS[rival], markersize=4, label=f"{title}, {direction}")
    shares.set_title("share of the bandwidth of a copy", loc="left", fontweight="bold")
    shares.set_xlim(0, max(1.05, 1.1 * max(r["share_of_copy"] for r in found.values())))
    shares.axvline(1, color="black", linewidth=0.8)
    shares.set_yticks(range(len(names)), names)
    shares.set_ylim(len(names) - 0.4, -0.6)  # the first on top
    speeds.set_title("times as fast as torch, log scale", loc="left", fontweight="bold")
    speeds.set_xscale("log")
    speeds.axvline(1, color="black", linewidth=0.8)
    ticks = (0.1, 0.3, 1, 3, 10, 30, 100)
    speeds.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    speeds.minorticks_off()
    for panel in (shares, speeds):
        panel.grid(axis="x", color="#e3e5e9", linewidth=0.6)
        panel.set_axisbelow(True)
        panel.tick_params(axis="y", length=0)
        for side in ("top", "right", "left"):
            panel.spines[side].set_visible(False)
    figure.legend(loc="outside upper right", ncols=3, fontsize=7, frameon=False)
    device, versions = content["device"], content["versions"]
    about = f"{device['name']}, copy {device['copy_gb_per_second']:.0f} GB/s, torch {versions['torch']}"
    figure.supxlabel(f"{about}, Triton {versions['triton']}", fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else None)
    plt.close(figure)
