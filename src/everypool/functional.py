"""Every pooling as a function; those with 1d, 2d or 3d in their names take one sample or a batch, as torch.nn.functional's do.

`import everypool.functional as F` stands in for the poolings of torch.nn.functional: same names, order and defaults, and
everypool's settings as keywords besides.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from everypool.pool import pool
from everypool.reducers import (
    adaptive_avg_pool,
    adaptive_center_pool,
    adaptive_gem_pool,
    adaptive_logsumexp_pool,
    adaptive_lp_pool,
    adaptive_max_pool,
    adaptive_median_pool,
    adaptive_soft_pool,
    avg_pool,
    center_pool,
    gem_pool,
    global_avg_pool,
    global_center_pool,
    global_gem_pool,
    global_logsumexp_pool,
    global_lp_pool,
    global_max_pool,
    global_median_pool,
    global_soft_pool,
    logsumexp_pool,
    lp_pool,
    max_pool,
    max_unpool,
    median_pool,
    soft_pool,
)
from everypool.windows import (
    bottom_pool,
    corner_pool,
    cross_max_pool,
    directional_pool,
    left_pool,
    multi_level_roi_pool,
    right_pool,
    roi_align,
    roi_pool,
    spatial_pyramid_pool,
    strip_pool,
    top_pool,
)

__all__ = [
    "adaptive_avg_pool",
    "adaptive_avg_pool1d",
    "adaptive_avg_pool2d",
    "adaptive_avg_pool3d",
    "adaptive_center_pool",
    "adaptive_center_pool1d",
    "adaptive_center_pool2d",
    "adaptive_center_pool3d",
    "adaptive_gem_pool",
    "adaptive_gem_pool1d",
    "adaptive_gem_pool2d",
    "adaptive_gem_pool3d",
    "adaptive_logsumexp_pool",
    "adaptive_logsumexp_pool1d",
    "adaptive_logsumexp_pool2d",
    "adaptive_logsumexp_pool3d",
    "adaptive_lp_pool",
    "adaptive_lp_pool1d",
    "adaptive_lp_pool2d",
    "adaptive_lp_pool3d",
    "adaptive_max_pool",
    "adaptive_max_pool1d",
    "adaptive_max_pool2d",
    "adaptive_max_pool3d",
    "adaptive_median_pool",
    "adaptive_median_pool1d",
    "adaptive_median_pool2d",
    "adaptive_median_pool3d",
    "adaptive_soft_pool",
    "adaptive_soft_pool1d",
    "adaptive_soft_pool2d",
    "adaptive_soft_pool3d",
    "avg_pool",
    "avg_pool1d",
    "avg_pool2d",
    "avg_pool3d",
    "bottom_pool",
    "center_pool",
    "center_pool1d",
    "center_pool2d",
    "center_pool3d",
    "corner_pool",
    "cross_max_pool",
    "directional_pool",
    "gem_pool",
    "gem_pool1d",
    "gem_pool2d",
    "gem_pool3d",
    "global_avg_pool",
    "global_center_pool",
    "global_gem_pool",
    "global_logsumexp_pool",
    "global_lp_pool",
    "global_max_pool",
    "global_median_pool",
    "global_soft_pool",
    "left_pool",
    "logsumexp_pool",
    "logsumexp_pool1d",
    "logsumexp_pool2d",
    "logsumexp_pool3d",
    "lp_pool",
    "lp_pool1d",
    "lp_pool2d",
    "lp_pool3d",
    "max_pool",
    "max_pool1d",
    "max_pool2d",
    "max_pool3d",
    "max_unpool",
    "max_unpool1d",
    "max_unpool2d",
    "max_unpool3d",
    "median_pool",
    "median_pool1d",
    "median_pool2d",
    "median_pool3d",
    "multi_level_roi_pool",
    "pool",
    "right_pool",
    "roi_align",
    "roi_pool",
    "soft_pool",
    "soft_pool1d",
    "soft_pool2d",
    "soft_pool3d",
    "spatial_pyramid_pool",
    "strip_pool",
    "top_pool",
]

P = ParamSpec("P")
R = TypeVar("R")
SHAPES = {1: "(N, C, L) or (C, L)", 2: "(N, C, H, W) or (C, H, W)", 3: "(N, C, D, H, W) or (C, D, H, W)"}


def fix_axes(function: Callable[P, R], nd: int) -> Callable[P, R]:
    """Return the function over inputs of that number of spatial axes, with a batch or without."""

    @functools.wraps(function)
    def fixed(*arguments: P.args, **settings: P.kwargs) -> R:
        return function(*arguments, nd=nd, **settings)  # type: ignore[arg-type]

    signature = inspect.signature(function)
    fixed.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[parameter for name, parameter in signature.parameters.items() if name != "nd"]
    )
    fixed.__name__ = fixed.__qualname__ = f"{function.__name__}{nd}d"
    fixed.__module__ = __name__
    summary = (function.__doc__ or "").partition("\n")[0].rstrip(".").partition(";")[0]
    fixed.__doc__ = f"{summary}, over {SHAPES[nd]}; see `{function.__name__}`."
    return fixed


def fix_each(function: Callable[P, R]) -> tuple[Callable[P, R], Callable[P, R], Callable[P, R]]:
    """Return the function over one, two and three spatial axes."""
    return fix_axes(function, 1), fix_axes(function, 2), fix_axes(function, 3)


max_pool1d, max_pool2d, max_pool3d = fix_each(max_pool)
avg_pool1d, avg_pool2d, avg_pool3d = fix_each(avg_pool)
lp_pool1d, lp_pool2d, lp_pool3d = fix_each(lp_pool)
gem_pool1d, gem_pool2d, gem_pool3d = fix_each(gem_pool)
soft_pool1d, soft_pool2d, soft_pool3d = fix_each(soft_pool)
logsumexp_pool1d, logsumexp_pool2d, logsumexp_pool3d = fix_each(logsumexp_pool)
median_pool1d, median_pool2d, median_pool3d = fix_each(median_pool)
center_pool1d, center_pool2d, center_pool3d = fix_each(center_pool)
adaptive_max_pool1d, adaptive_max_pool2d, adaptive_max_pool3d = fix_each(adaptive_max_pool)
adaptive_avg_pool1d, adaptive_avg_pool2d, adaptive_avg_pool3d = fix_each(adaptive_avg_pool)
adaptive_lp_pool1d, adaptive_lp_pool2d, adaptive_lp_pool3d = fix_each(adaptive_lp_pool)
adaptive_gem_pool1d, adaptive_gem_pool2d, adaptive_gem_pool3d = fix_each(adaptive_gem_pool)
adaptive_soft_pool1d, adaptive_soft_pool2d, adaptive_soft_pool3d = fix_each(adaptive_soft_pool)
adaptive_logsumexp_pool1d, adaptive_logsumexp_pool2d, adaptive_logsumexp_pool3d = fix_each(adaptive_logsumexp_pool)
adaptive_median_pool1d, adaptive_median_pool2d, adaptive_median_pool3d = fix_each(adaptive_median_pool)
adaptive_center_pool1d, adaptive_center_pool2d, adaptive_center_pool3d = fix_each(adaptive_center_pool)
max_unpool1d, max_unpool2d, max_unpool3d = fix_each(max_unpool)
