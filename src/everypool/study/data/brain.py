"""The MNI152 template, an average of 152 brains, and its maps of grey and white matter, that come with nilearn."""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["CREDIT", "load"]

CREDIT = "the MNI152 template (ICBM 2009a, nonlinear, symmetric; McConnell Brain Imaging Centre), as it comes with nilearn"
KINDS = "t1", "gm", "wm"


@functools.cache
def load() -> Tensor:
    """T1 intensity, share of grey and share of white matter, (3, 98, 116, 94), from 0 to 1, in cells of 2 mm.

    The axes go from left to right, from back to front and from bottom to top. The halves are mirror images but
    for half a cell.

    Raises:
        ModuleNotFoundError: nilearn or nibabel is not installed.
    """
    from nibabel.nifti1 import Nifti1Image

    found = importlib.util.find_spec("nilearn")  # importing it takes seconds
    if found is None or not found.submodule_search_locations:
        raise ModuleNotFoundError("No module named 'nilearn'", name="nilearn")
    folder = Path(found.submodule_search_locations[0], "datasets", "data")
    maps = []
    for kind in KINDS:
        image = Nifti1Image.from_filename(folder / f"mni_icbm152_{kind}_tal_nlin_sym_09a_converted.nii.gz")
        maps.append(torch.tensor(image.get_fdata(dtype="float32")) / 255)
    return F.avg_pool3d(torch.stack(maps), 2)  # from cells of 1 mm
