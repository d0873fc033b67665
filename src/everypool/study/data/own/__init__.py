"""The user's own data: a folder of images, arrays, a table; or a set that is installed, by its name."""

from __future__ import annotations

import hashlib
import importlib
from pathlib import Path

from torch import Tensor

from everypool import _check as check
from everypool.study.data.own.samples import Samples as Samples
from everypool.study.data.own.samples import samples

__all__ = ["NAMES", "Samples", "load"]

NAMES = {  # name -> module of everypool.study.data, function, arguments
    "digits": ("digits", "load"),
    "mnist": ("mnist", "load"),
    **{name: ("series", "equal", name) for name in ("ArrowHead", "GunPoint", "ItalyPowerDemand", "OSULeaf")},
}


def load(source: str | Path, *, size: int | None = None, layout: str | None = None, nd: int | None = None) -> Samples:
    """Labelled samples of one shape, from a path, or from an installed set if there is no such path.

    Args:
        source: a folder with one folder of images per class; an .npz file (see `npz`); NAME.npy with NAME.labels.npy beside
            it; a .parquet file (see `parquet`); or one of `NAMES`.
        size: pixels per side of images; see `decoded` for what is chosen if it is left out.
        layout: what the axes of an array are, such as "NHWC"; see `arranged`.
        nd: spatial axes of an array.

    Raises:
        ValueError: there is no such path or name, or the data cannot be used; the message says what is wrong in which file.
        ModuleNotFoundError: the package that reads or holds them is not installed.

    >>> digits = load("digits")
    >>> digits.inputs.shape, digits.classes[:3], digits.nd
    (torch.Size([1797, 1, 10, 10]), ('0', '1', '2'), 2)
    """
    path = Path(source)
    pictures = path.is_dir() or path.suffix.lower() == ".parquet"
    if size is not None and not pictures:
        raise check.invalid("size", "left out, since only images are resized", size)
    if (layout is not None or nd is not None) and (path.is_dir() or not path.exists()):
        raise check.invalid("layout", "left out, since only arrays have axes to be told apart", layout or nd)
    if path.is_dir():
        from everypool.study.data.own.images import folder

        return folder(path, size)
    if path.is_file():
        return from_file(path, size, layout, nd)
    if path.exists() or str(source) not in NAMES:
        names = ", ".join(NAMES)
        raise check.invalid("data", f"a folder, an .npz, .npy or .parquet file, or one of {names}", str(source))
    module, function, *arguments = NAMES[str(source)]
    inputs, labels = getattr(importlib.import_module(f"everypool.study.data.{module}"), function)(*arguments)
    classes = tuple(str(number) for number in range(int(labels.max()) + 1))
    return samples(inputs, labels, classes, source=source, fingerprint=of_tensors(inputs, labels))


def from_file(path: Path, size: int | None, layout: str | None, nd: int | None) -> Samples:
    kind = path.suffix.lower()
    if kind == ".parquet":
        from everypool.study.data.own.table import parquet

        return parquet(path, size, layout, nd)
    from everypool.study.data.own.arrays import npy, npz

    readers = {".npz": npz, ".npy": npy}
    if kind not in readers:
        raise check.invalid("data", "a folder, or an .npz, .npy or .parquet file", str(path))
    return readers[kind](path, layout, nd)


def of_tensors(*tensors: Tensor) -> str:
    total = hashlib.sha256()
    for tensor in tensors:
        total.update(tensor.contiguous().numpy().tobytes())
    return total.hexdigest()[:16]
