"""Arrays of NumPy: one .npz, or two .npy files."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from everypool import _check as check
from everypool.study.data.own.samples import MOST, Samples, encoded, error, fingerprint, samples, scaled

__all__ = ["LAYOUTS", "arranged", "npy", "npz"]

LAYOUTS = ("NL", "NCL", "NLC", "NHW", "NCHW", "NHWC", "NDHW", "NCDHW", "NDHWC")
COLOURS = 1, 3, 4
PARTS = "train", "val", "test"
KEYS = (  # the first of which both are there; sets in parts are put together, since every seed splits anew
    *([(x, y)] for x, y in (("x", "y"), ("X", "y"), ("images", "labels"), ("data", "labels"))),
    [(f"x_{part}", f"y_{part}") for part in PARTS],
    [(f"{part}_images", f"{part}_labels") for part in PARTS],
)


def npz(path: Path, layout: str | None, nd: int | None) -> Samples:
    """Samples and labels as `x` and `y`, `X` and `y`, `images` and `labels`, or `data` and `labels`; or in parts, as `x_train`
    and `y_train` or `train_images` and `train_labels`, with `val` and `test` beside them if they are there.
    """
    rule = "an .npz file that can be read without pickle"
    parts: list[tuple[np.ndarray, np.ndarray]] = []
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(item.file_size for item in archive.infolist()) > 8 * MOST:
                raise error(f"at most {MOST:,} numbers", "more", path)
        with np.load(path, allow_pickle=False) as file:
            names = set(file.files)
            for group in KEYS:
                parts = [(file[x], file[y]) for x, y in group if x in names and y in names]
                if parts:
                    break
    except check.InvalidValue:
        raise
    except Exception as problem:
        if isinstance(problem, OSError) and problem.filename is not None:  # not the file's content, but the way to it
            raise
        raise error(rule, f"{type(problem).__name__}: {problem}", path) from problem
    if not parts:
        raise error("an .npz file with x and y, or images and labels", ", ".join(sorted(names)) or "nothing", path)
    if len({x.shape[1:] for x, _ in parts}) > 1 or len({y.shape[1:] for _, y in parts}) > 1:
        raise error("in parts of one shape", " and ".join(str(x.shape) for x, _ in parts), path)
    if any(x.ndim == 0 or y.ndim == 0 or len(x) != len(y) for x, y in parts):
        raise error("one label per sample", " and ".join(f"{x.shape} with {y.shape}" for x, y in parts), path)
    return made(np.concatenate([x for x, _ in parts]), np.concatenate([y for _, y in parts]), [path], layout, nd)


def npy(path: Path, layout: str | None, nd: int | None) -> Samples:
    """Samples in NAME.npy, labels in NAME.labels.npy beside it."""
    beside = path.with_suffix(".labels.npy")
    if not beside.is_file():
        raise check.invalid("data", f"a .npy file with its labels beside it, in {beside.name}", str(path))
    return made(whole(path), whole(beside), [path, beside], layout, nd)


def whole(path: Path) -> np.ndarray:
    if path.stat().st_size > 8 * MOST:
        raise error(f"at most {MOST:,} numbers", "more", path)
    try:
        found: Any = np.load(path, allow_pickle=False)
    except Exception as problem:
        if isinstance(problem, OSError) and problem.filename is not None:
            raise
        raise error("a .npy file that can be read without pickle", f"{type(problem).__name__}: {problem}", path) from problem
    if not isinstance(found, np.ndarray) or found.ndim == 0:
        raise error("a .npy file with one value or more per sample", "something else", path)
    return found


def made(x: np.ndarray, y: np.ndarray, files: list[Path], layout: str | None, nd: int | None) -> Samples:
    source = files[0]
    labels, classes = encoded(y, (), source)
    inputs = arranged(x, layout, nd, source)
    return samples(inputs, labels, classes, source=source, fingerprint=fingerprint(files))


def arranged(values: np.ndarray, layout: str | None, nd: int | None, source: object) -> Tensor:
    """As (N, C, *spatial).

    Args:
        values: (N, L), (N, C, L), (N, H, W), (N, H, W, C), (N, C, H, W), (N, D, H, W), (N, C, D, H, W) or (N, D, H, W, C).
        layout: one of `LAYOUTS`. Left out, channels come last where the last extent is 1, 3 or 4 and the second is not;
            three axes are grey images if they are whole numbers or square, else series with channels; four axes are a
            volume if it is a cube.
        nd: spatial axes, which settles some of that too.
        source: for errors.
    """
    if layout is None:
        layout = guessed(values, nd, source)
    check.choice("layout", layout, LAYOUTS)
    if len(layout) != values.ndim or nd not in (None, len(layout.replace("C", "")) - 1):
        got = f"shape {values.shape}" + ("" if nd is None else f" and nd={nd}")
        raise error(f"of the layout {layout}", got, source)
    result = scaled(values, source)
    if "C" not in layout:
        return result.unsqueeze(1)
    return result.movedim(layout.index("C"), 1).contiguous()


def guessed(values: np.ndarray, nd: int | None, source: object) -> str:
    shape = values.shape
    last = len(shape) > 2 and shape[-1] in COLOURS and shape[1] not in COLOURS
    if len(shape) == 2:
        return "NL"
    if len(shape) == 3:
        images = values.dtype.kind in "iub" or shape[1] == shape[2]
        return "NHW" if nd == 2 or (nd is None and images) else "NCL"
    if len(shape) == 4:
        cube = shape[1] == shape[2] == shape[3] and shape[1] not in COLOURS
        return "NDHW" if nd == 3 or (nd is None and cube) else "NHWC" if last else "NCHW"
    if len(shape) == 5:
        return "NDHWC" if last else "NCDHW"
    raise error("of 2 to 5 axes, the samples' first", f"shape {shape}", source)
