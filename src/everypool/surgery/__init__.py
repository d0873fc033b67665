"""Look into an existing model and change its poolings."""

from __future__ import annotations

from everypool.surgery.places import Place as Place
from everypool.surgery.places import places as places
from everypool.surgery.places import replaced as replaced

__all__ = ["Place", "places", "replaced"]
