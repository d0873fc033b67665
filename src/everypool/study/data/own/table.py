"""Parquet files: a column of labels beside one of images or of numbers."""

from __future__ import annotations

import importlib
import json
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from everypool import _check as check
from everypool.study.data.own.arrays import arranged
from everypool.study.data.own.images import decoded
from everypool.study.data.own.samples import MOST, Samples, encoded, error, fingerprint, is_hidden, samples

__all__ = ["parquet"]

ROWS = 1024  # at once
IMAGES = "image", "img"


def parquet(path: Path, size: int | None, layout: str | None, nd: int | None) -> Samples:
    """Labels in `label`, and in `image` an encoded image (bytes, or a struct with `bytes` as Hugging Face's) or in `values` a
    list of numbers, in lists of lists for more axes. Images that were in hidden folders or files, by their `path`, are not
    looked at.

    Raises:
        ValueError: it is no such file.
        ModuleNotFoundError: pyarrow is not installed.
    """
    module: Any = importlib.import_module("pyarrow.parquet")
    arrow: Any = importlib.import_module("pyarrow")
    try:
        with module.ParquetFile(path) as file:
            names = file.schema_arrow.names
            column = next((name for name in (*IMAGES, "values") if name in names), None)
            if column is None or "label" not in names:
                raise error("a table with columns label and image or values", ", ".join(names) or "none", path)
            labels: list[Any] = []
            parts: list[Any] = []
            total = 0
            for batch in file.iter_batches(ROWS, columns=["label", column]):
                total += batch.nbytes
                if total > 8 * MOST:
                    raise error(f"at most {MOST:,} numbers", "more", path)
                labels += batch.column("label").to_pylist()
                cells = batch.column(column)
                parts.append(regular(cells, path, arrow) if column == "values" else cells.to_pylist())
            known = class_names(file.schema_arrow.metadata)
    except check.InvalidValue:
        raise
    except Exception as problem:  # of Arrow's own, and of the text in it
        if isinstance(problem, OSError) and problem.filename is not None:
            raise
        raise error("a Parquet file that can be read", " ".join(str(problem).split())[:200], path) from problem
    if any(label is None for label in labels):
        raise error("labelled in every row", f"no label in row {labels.index(None)}", path)
    numbers, classes = encoded(labels, known, path)
    content = fingerprint([path])
    if column == "values":
        if len(shapes := {part.shape[1:] for part in parts}) > 1:
            raise error("of samples of one shape", " and ".join(map(str, sorted(shapes)[:3])), path)
        values = np.concatenate(parts) if parts else np.empty((0, 0))
        return samples(arranged(values, layout, nd, path), numbers, classes, source=path, fingerprint=content)
    items = [item for part in parts for item in part]
    rows = [number for number, item in enumerate(items) if not was_hidden(item)]
    inputs, kept, failed = decoded([content_of(items[row]) for row in rows], size, path)
    skipped = [(f"row {rows[number]}", why) for number, why in failed]
    there = [rows[number] for number in kept]
    return samples(inputs, numbers[there], classes, source=path, fingerprint=content, skipped=skipped)


def was_hidden(item: Any) -> bool:
    """Return whether an image came from a hidden file, or out of a hidden folder of the data's own."""
    name = item.get("path") if isinstance(item, dict) else None
    if not isinstance(name, str) or not name:
        return False
    place = PurePosixPath(name.replace("\\", "/"))
    folders = () if place.is_absolute() else place.parts[:-1]  # the data may lie anywhere
    return place.name.startswith(".") or any(is_hidden(part) for part in folders if part not in (".", ".."))


def content_of(item: Any) -> bytes:
    """The bytes of an image; of none at all, none."""
    found = item.get("bytes") if isinstance(item, dict) else item
    return found if isinstance(found, bytes) else b""


def regular(column: Any, path: Path, arrow: Any) -> np.ndarray:
    """Nested lists of equal lengths as one array."""
    if column.null_count:
        raise error("of values in every row", "a row without", path)
    if not (arrow.types.is_list(column.type) or arrow.types.is_large_list(column.type)
            or arrow.types.is_fixed_size_list(column.type)):  # fmt: skip
        return np.asarray(column.to_numpy(zero_copy_only=False))
    lengths = np.unique(column.value_lengths().to_numpy(zero_copy_only=False))
    if len(lengths) > 1:
        raise error("of lists of one length", f"{lengths[0]} and {lengths[-1]}", path)
    inner = regular(column.flatten(), path, arrow)
    return inner.reshape(len(column), int(lengths.max(initial=0)), *inner.shape[1:])


def class_names(metadata: dict[bytes, bytes] | None) -> tuple[str, ...]:
    """What Hugging Face's labels are called, if the file says so."""
    try:
        names = json.loads((metadata or {})[b"huggingface"])["info"]["features"]["label"]["names"]
    except (KeyError, TypeError, ValueError):
        return ()
    return tuple(map(str, names)) if isinstance(names, list) else ()
