"""Look into an existing model and change its poolings."""

from __future__ import annotations

from everypool.surgery.calibrate import Drift as Drift
from everypool.surgery.export import Comparison as Comparison
from everypool.surgery.export import Exported as Exported
from everypool.surgery.export import export as export
from everypool.surgery.find import Missed as Missed
from everypool.surgery.find import Pooling as Pooling
from everypool.surgery.find import Poolings as Poolings
from everypool.surgery.find import find as find
from everypool.surgery.sizes import BorderEffect as BorderEffect
from everypool.surgery.sizes import border_effect as border_effect
from everypool.surgery.sizes import masked_forward as masked_forward
from everypool.surgery.sizes import propagate_sizes as propagate_sizes
from everypool.surgery.swap import Change as Change
from everypool.surgery.swap import Swap as Swap
from everypool.surgery.swap import swap as swap

__all__ = [
    "BorderEffect",
    "Change",
    "Comparison",
    "Drift",
    "Exported",
    "Missed",
    "Pooling",
    "Poolings",
    "Swap",
    "border_effect",
    "export",
    "find",
    "masked_forward",
    "propagate_sizes",
    "swap",
]
