"""Images: of a folder of class folders, or bytes from elsewhere. What cannot be read is passed over and named."""

from __future__ import annotations

import io
import os
import statistics
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from everypool import _check as check
from everypool.study.data.own.samples import MOST, Samples, error, fingerprint, is_hidden, samples

__all__ = ["SIDE", "decoded", "folder"]

EXTENSIONS = {".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".avif", ".jp2", ".pgm",
              ".ppm", ".pbm", ".pnm"}  # fmt: skip
FORMATS = {"PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "AVIF", "JPEG2000", "PPM"}  # none runs another program
SIDE = 64  # the largest that is chosen when no size is asked for
PARTS = {"train", "training", "test", "testing", "val", "valid", "validation"}
Source = Path | bytes


def folder(root: Path, size: int | None) -> Samples:
    """Every folder in `root` is a class and bears its name; images may lie at any depth in it.

    Hidden folders and files at any depth, links to folders within a class, and files that do not have an image's extension
    are not looked at. A file that lies there by several names counts once, so that none both trains and tests.
    """
    kinds = sorted(entry for entry in root.iterdir() if entry.is_dir() and not is_hidden(entry.name))
    if kinds and {kind.name.lower() for kind in kinds} <= PARTS:
        got = ", ".join(kind.name for kind in kinds)
        raise error("a folder with one folder per class (is it one of these?)", got, root)
    if len(kinds) < 2:
        raise error("a folder with one folder per class, two at least", f"{len(kinds)} folder(s)", root)
    files: list[Path] = []
    labels: list[int] = []
    skipped: list[tuple[str, str]] = []
    first_names: dict[tuple[int, int], str] = {}
    for number, kind in enumerate(kinds):
        found: list[Path] = []
        for path in sorted(images_in(kind)):
            name = path.relative_to(root).as_posix()
            key = identity(path)
            known = name if key is None else first_names.setdefault(key, name)
            if known == name:
                found.append(path)
            else:
                skipped.append((readable(name), f"the same file as {readable(known)}"))
        if not found:
            raise error("of classes that have samples", f"no image in {kind.name!r}", root)
        files += found
        labels += [number] * len(found)
    names = [path.relative_to(root).as_posix() for path in files]
    inputs, kept, failed = decoded(files, size, root)
    skipped += [(readable(names[n]), why) for n, why in failed]
    there = torch.tensor(labels)[kept]
    for number, kind in enumerate(kinds):
        if not (there == number).any():
            first = next(why for n, why in failed if labels[n] == number)
            raise error("of classes that have samples", f"no readable image in {kind.name!r} ({first})", root)
    content = fingerprint([path for path in files if path.is_file()], names)
    classes = tuple(readable(kind.name) for kind in kinds)
    return samples(inputs, there, classes, source=root, fingerprint=content, skipped=skipped)


def images_in(kind: Path) -> Iterator[Path]:
    def stop(problem: OSError) -> None:
        raise problem

    for place, folders, names in os.walk(kind, onerror=stop):
        folders[:] = [name for name in folders if not is_hidden(name)]
        for name in names:
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in EXTENSIONS:
                yield Path(place, name)


def identity(path: Path) -> tuple[int, int] | None:
    """Return what tells a file from others whatever it is called; None of one that is not there."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def readable(name: str) -> str:
    return os.fsencode(name).decode("utf-8", "replace")


def decoded(sources: Sequence[Source], size: int | None, where: object) -> tuple[Tensor, list[int], list[tuple[int, str]]]:
    """Images (N, C, size, size) between 0 and 1, the numbers of those that could be read, and why the others could not.

    Each is turned as its EXIF tag says, scaled until its shorter side fits, and cut to the square in its middle. What is
    transparent becomes white. All are grey if every file is, else all have three channels. Of animations the first
    picture counts.

    Args:
        sources: files or their bytes.
        size: pixels per side; left out, the median of the shorter sides, `SIDE` at most.
        where: for errors.
    """
    if size is not None:
        check.positive_int("size", size)
    failed: dict[int, str] = {}
    sides: dict[int, int] = {}
    grey = True
    for number, source in enumerate(sources):
        with noted(failed, number), opened(source) as image:
            sides[number] = min(image.size)
            grey = grey and is_grey(image)
    if not sides:
        return torch.empty(0, 1, 1, 1), [], sorted(failed.items())
    side = size or min(SIDE, int(statistics.median(sides.values())))
    channels = 1 if grey else 3
    if len(sides) * channels * side * side > MOST:
        raise error(f"at most {MOST:,} numbers", f"{len(sides):,} images of {channels} x {side} x {side}", where)
    inputs = torch.empty(len(sides), channels, side, side)
    kept: list[int] = []
    for number in sides:
        with noted(failed, number), opened(sources[number]) as image:
            inputs[len(kept)] = pixels(image, side, channels)
            kept.append(number)
    return inputs[: len(kept)], kept, sorted(failed.items())


@contextmanager
def noted(failed: dict[int, str], number: int) -> Iterator[None]:
    """Whatever a broken file makes Pillow raise is a reason to pass over it."""
    try:
        yield
    except Exception as problem:
        failed[number] = " ".join(f"{type(problem).__name__}: {problem}".split())[:200]


@contextmanager
def opened(source: Source) -> Iterator[Image.Image]:
    if isinstance(source, Path) and not source.is_file():  # a pipe would be waited for
        raise ValueError("not a file")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        Image.init()
        formats = tuple(sorted(FORMATS & Image.OPEN.keys()))  # what this build of Pillow has
        file = source if isinstance(source, Path) else io.BytesIO(source)
        with Image.open(file, formats=formats) as image:
            yield image


def is_grey(image: Image.Image) -> bool:
    return image.mode in ("1", "L", "LA", "La", "I") or image.mode.startswith("I;16")


def pixels(image: Image.Image, side: int, channels: int) -> Tensor:
    """(channels, side, side)."""
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers, whose range is not known")
    image.draft(None, (2 * side, 2 * side))  # a JPEG is decoded no larger than needed
    deep = image.mode == "I" or image.mode.startswith("I;16")
    turned = ImageOps.exif_transpose(image)
    if deep:
        levels = np.asarray(turned, dtype=np.float32)
        if levels.min() < 0 or levels.max() >= 2**16:
            raise ValueError("its pixels have more than 16 bits, whose range is not known")
        turned = Image.fromarray(levels / (2**16 - 1))
    elif turned.has_transparency_data:
        layer = turned.convert("RGBA")
        turned = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    if not deep:
        turned = turned.convert("L" if channels == 1 else "RGB")
    fitted = np.array(ImageOps.fit(turned, (side, side), Image.Resampling.BILINEAR), dtype=np.float32)
    values = torch.from_numpy(fitted if deep else fitted / 255).reshape(side, side, -1).movedim(-1, 0)
    return values.clamp(0, 1).expand(channels, side, side)
