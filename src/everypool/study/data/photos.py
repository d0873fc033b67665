"""Twenty photographs, scans and micrographs that lie inside the installed scikit-image and scikit-learn."""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from everypool import _check as check

__all__ = ["CREDIT", "NAMES", "load"]

SKIMAGE, SKLEARN = ("skimage", "data"), ("sklearn", "datasets", "images")
FILES = {
    "astronaut": (*SKIMAGE, "astronaut.png"),
    "brick": (*SKIMAGE, "brick.png"),
    "camera": (*SKIMAGE, "camera.png"),
    "cell": (*SKIMAGE, "cell.png"),
    "chelsea": (*SKIMAGE, "chelsea.png"),
    "china": (*SKLEARN, "china.jpg"),
    "clock": (*SKIMAGE, "clock_motion.png"),
    "coffee": (*SKIMAGE, "coffee.png"),
    "coins": (*SKIMAGE, "coins.png"),
    "flower": (*SKLEARN, "flower.jpg"),
    "grass": (*SKIMAGE, "grass.png"),
    "gravel": (*SKIMAGE, "gravel.png"),
    "hubble": (*SKIMAGE, "hubble_deep_field.jpg"),
    "ihc": (*SKIMAGE, "ihc.png"),
    "moon": (*SKIMAGE, "moon.png"),
    "motorcycle": (*SKIMAGE, "motorcycle_left.png"),
    "page": (*SKIMAGE, "page.png"),
    "retina": (*SKIMAGE, "retina.jpg"),
    "rocket": (*SKIMAGE, "rocket.jpg"),
    "text": (*SKIMAGE, "text.png"),
}
NAMES = tuple(FILES)
CREDIT = "photographs that come with scikit-image and scikit-learn"


@functools.cache
def load(name: str) -> Tensor:
    """One of `NAMES` as it is in its file, (3, H, W) between 0 and 1; grey ones have three equal channels.

    Raises:
        ValueError: there is no photograph of that name.
        ModuleNotFoundError: the package that holds it is not installed.

    >>> load("coffee").shape
    torch.Size([3, 400, 600])
    """
    check.choice("name", name, list(NAMES))
    package, *parts = FILES[name]
    with Image.open(folder(package).joinpath(*parts)) as file:
        pixels = np.array(file.convert("RGB"))
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous().to(torch.float32) / 255


def folder(package: str) -> Path:
    """Where a package lies, found without importing it."""
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise ModuleNotFoundError(f"No module named {package!r}", name=package)
    return Path(found.submodule_search_locations[0])
