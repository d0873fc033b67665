"""Places in photographs, each seen upright, turned, nearer or farther, aside, and all of that at once."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from everypool.study.data import photos

__all__ = ["KINDS", "NAMES", "Views", "load", "look"]

SHORTEST = 300  # photographs with less along their shorter side are left out: views of them would be blurred
NAMES = tuple(name for name in photos.NAMES if name not in ("page", "text"))
SHORT = 512  # longer short sides are reduced to it
PART = 5  # an upright view shows a square whose side is the photograph's short one divided by it
APART = 1.6  # the least distance between two places, in sides of such a square
KINDS = "upright", "rotation", "scale", "shift", "mixed"
TURN = 45.0, 180.0  # degrees, either way
ZOOM = 1.25, 1.6  # times as wide, or as narrow
SHIFT = 0.25  # of the side, at most, along either axis
MARGIN = ZOOM[1] / math.sqrt(2) + SHIFT  # what the widest view needs around its place, however it is turned


@dataclass(frozen=True, eq=False)
class Views:
    """Images (N, 3, side, side) of one photograph, and of each the number of its place and of its kind."""

    images: Tensor
    place: Tensor
    kind: Tensor


@functools.lru_cache(maxsize=len(NAMES))
def load(number: int, side: int, draws: int) -> Views:
    """One upright view of every place in a photograph, and `draws` of each other kind.

    Args:
        number: of the photograph among `NAMES`; it draws the views, too.
        side: of every image, in pixels.
        draws: views of each kind, but upright ones.
    """
    generator = torch.Generator().manual_seed(number)
    photo = photos.load(NAMES[number])
    shortest = min(photo.shape[1:])
    if shortest > SHORT:
        size = [round(n * SHORT / shortest) for n in photo.shape[1:]]
        photo = F.interpolate(photo[None], size, mode="bilinear", antialias=True)[0]
    height, width = photo.shape[1:]
    images, places_, kinds = [], [], []
    for place, centre in enumerate(places(height, width)):
        for kind in range(len(KINDS)):
            for _ in range(draws if kind else 1):
                images.append(look(photo, *drawn(centre, min(height, width) / PART, kind, generator), pixels=side))
                places_.append(place)
                kinds.append(kind)
    return Views(torch.stack(images), torch.tensor(places_), torch.tensor(kinds))


def places(height: int, width: int) -> list[tuple[float, float]]:
    """Row and column of each, on a grid as wide as the margins let it be."""
    side = min(height, width) / PART
    axes = []
    for length in (height, width):
        room = length - 2 * MARGIN * side
        count = 1 + int(room / (APART * side))
        axes.append([length / 2 + room * (i / (count - 1) - 0.5) if count > 1 else length / 2 for i in range(count)])
    return [(row, column) for row in axes[0] for column in axes[1]]


def drawn(
    centre: tuple[float, float], side: float, kind: int, generator: torch.Generator
) -> tuple[tuple[float, float], float, float, bool]:
    """Where a view of that kind looks: middle, side, degrees, mirrored."""
    turn, sense, zoom, wider, down, right, mirror = torch.rand(7, generator=generator).tolist()
    name, (row, column), degrees, mirrored = KINDS[kind], centre, 0.0, False
    if name in ("rotation", "mixed"):
        degrees = (TURN[0] + (TURN[1] - TURN[0]) * turn) * (1 if sense < 0.5 else -1)
        mirrored = name == "mixed" and mirror < 0.5
    if name in ("shift", "mixed"):
        row, column = row + SHIFT * side * (2 * down - 1), column + SHIFT * side * (2 * right - 1)
    if name in ("scale", "mixed"):
        side *= (ZOOM[0] + (ZOOM[1] - ZOOM[0]) * zoom) ** (1 if wider < 0.5 else -1)
    return (row, column), side, degrees, mirrored


def look(
    photo: Tensor, centre: tuple[float, float], side: float, degrees: float, mirrored: bool = False, *, pixels: int
) -> Tensor:
    """The square around a point (row, column; 0 is the edge) of the photo (C, H, W), turned and mirrored, bilinear.

    >>> look(torch.arange(16.0).view(1, 4, 4), (2.0, 3.0), 2.0, 0.0, pixels=2)
    tensor([[[ 6.,  7.],
             [10., 11.]]])
    """
    height, width = photo.shape[-2:]
    angle, sign = math.radians(degrees), -1.0 if mirrored else 1.0
    cos, sin = side * math.cos(angle), side * math.sin(angle)
    theta = torch.tensor(
        [
            [sign * cos / width, -sin / width, 2 * centre[1] / width - 1],
            [sign * sin / height, cos / height, 2 * centre[0] / height - 1],
        ]
    )
    grid = F.affine_grid(theta[None], [1, 1, pixels, pixels], align_corners=False)
    return F.grid_sample(photo[None], grid, padding_mode="border", align_corners=False)[0]
