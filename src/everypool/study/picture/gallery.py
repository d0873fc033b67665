"""Which operation is drawn as which scene."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

import everypool
from everypool import _check as check
from everypool.pool import Operation, find_operation, operations, parse, parse_settings
from everypool.study.picture.folds import reducer_scene
from everypool.study.picture.modules import (
    blur_scene,
    cascade_scene,
    context_scene,
    gated_scene,
    max_blur_scene,
    mixed_scene,
    retrieval_scene,
    subsampling_scene,
    yolo_scene,
)
from everypool.study.picture.regions import levels_scene, region_scene
from everypool.study.picture.scene import Scene
from everypool.study.picture.shapes import (
    corner_scene,
    cross_scene,
    pyramid_scene,
    scan_scene,
    strip_scene,
    unpool_scene,
)

__all__ = ["drawable", "scene_of"]

KERNEL = 2
# in the order of the contact sheet
SCENES: dict[str, Callable[[Operation, Tensor], Scene]] = {
    "spatial_pyramid": pyramid_scene,
    "strip": strip_scene,
    "directional": scan_scene,
    "corner": corner_scene,
    "cascade_corner": cascade_scene,
    "cross_max": cross_scene,
    "roi": region_scene,
    "multi_level_roi": levels_scene,
    "hopfield": retrieval_scene,
    "blur_pool": blur_scene,
    "max_blur_pool": max_blur_scene,
    "mixed_pool": mixed_scene,
    "gated_pool": gated_scene,
    "lenet_subsampling": subsampling_scene,
    "yolo_spp": yolo_scene,
    "pyramid_pooling_module": context_scene,
}
INSIDE = {  # what is pooled in modules without a picture: it has one
    "corner_module": "corner",
    "center_module": "cross_max",
    "strip_module": "strip",
    "mixed_pooling_module": "strip",
    "spatial_pyramid_head": "spatial_pyramid",
    "panet_head": "multi_level_roi",
    "gem_head": "gem",
    "global_average_head": "avg",
    "hopfield_layer": "hopfield",
    "hopfield_pooling": "hopfield",
}


def drawable() -> list[str]:
    """The operations with a picture of their own: all reducers, and the windows and modules that have a scene."""
    reducers = sorted(name for name, op in operations().items() if op.kind == "reducer")
    return [*reducers, *SCENES, "max_unpool"]


def scene_of(text: str, x: Tensor, kernel: int = KERNEL) -> Scene:
    """The scene of an operation, or of a reducer with its settings, such as "gem:p=10".

    Raises:
        ValueError: no such operation or setting, one without a picture, or a kernel that does not fit the photo.
    """
    name, colon, _ = text.partition(":")
    operation = find_operation(name)
    if operation.kind == "reducer":
        return fold_scene(text, operation, x, kernel)
    if colon:
        raise check.invalid("OP", "a reducer where settings are given", text)
    if operation.name == "max_unpool":
        return unpool_scene(operation, x, kernel)
    if operation.name not in SCENES:
        inside = INSIDE.get(operation.name)
        hint = f"; `everypool show {inside}` draws the pooling inside" if inside is not None else ""
        raise check.invalid("OP", "an operation with a picture of its own", check.Shown(f"{text!r}, which has none{hint}"))
    return SCENES[operation.name](operation, x)


def fold_scene(text: str, operation: Operation, x: Tensor, kernel: int) -> Scene:
    reducer = parse(text)
    _, settings = parse_settings(text)
    title = f"{operation.stem} pooling"
    if settings:
        title += ", " + ", ".join(f"{key} = {value}" for key, value in settings.items())
    return reducer_scene(
        title,
        operation.formula,
        operation.summary,
        operation.source,
        lambda t: everypool.pool(t, reducer, everypool.Sliding(kernel)),
        x,
        kernel,
    )
