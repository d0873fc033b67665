"""The photo that an operation is shown on: opened safely, and reduced to few enough cells to count."""

from __future__ import annotations

import importlib.util
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from everypool import _check as check

__all__ = ["Photo", "open_photo"]

FORMATS = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM")  # none that starts another program
MOST_PIXELS = 1 << 25  # decoded at once; JPEG files are reduced while they are read
LONGEST = 1024  # pixels kept along the longer side
LEAST = 8  # pixels along the shorter side
WHITE = 10.0  # values run from 0, black, to this, in steps of 0.1 that can be checked by hand


@dataclass(frozen=True, eq=False)
class Photo:
    """A colour photo, no longer than 3:2 either way, and its credit."""

    colour: NDArray[np.uint8]
    credit: str

    def cells(self, longest: int = 96) -> Tensor:
        """Brightness from 0 to 10 in steps of 0.1, float64 (1, 1, H, W), at most `longest` cells along the longer side."""
        height, width = self.colour.shape[:2]
        grey = Image.fromarray(self.colour).convert("L")
        if max(height, width) > longest:
            scale = longest / max(height, width)
            # whole numbers of eight keep windows of 2, 4 and 8 whole
            height, width = (max(LEAST, round(n * scale / 8) * 8) for n in (height, width))
            grey = grey.resize((width, height), Image.Resampling.LANCZOS)
        return torch.from_numpy(np.asarray(grey, dtype=np.float64) / 255 * WHITE).round(decimals=1)[None, None]


def open_photo(path: str | Path | None = None) -> Photo:
    """The photo in a file, or scikit-image's coffee cup (CC0, Rachel Michetti).

    Raises:
        ValueError: no such file, not an image, broken, too small or too large.
    """
    if path is None:
        return opened(default_photo(), "photo: coffee cup by Rachel Michetti, CC0, from scikit-image")
    path = Path(path)
    if not path.is_file():
        raise check.invalid("image", "an existing file", check.Shown(repr(str(path))))
    return opened(path, f"photo: {path.name if len(path.name) <= 48 else path.name[:45] + '...'}")


def default_photo() -> Path:
    """The file inside the installed scikit-image, found without importing it."""
    found = importlib.util.find_spec("skimage")
    places = [] if found is None else list(found.submodule_search_locations or [])
    for place in places:
        file = Path(place) / "data" / "coffee.png"
        if file.is_file():
            return file
    rule = "given where scikit-image is not installed (pip install 'everypool[cli]' brings it)"
    raise check.invalid("image", rule, None)


def opened(path: Path, credit: str) -> Photo:
    shown = check.Shown(repr(str(path)))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit below is the lower one
            warnings.simplefilter("ignore", UserWarning)  # Pillow's notes on odd metadata
            with Image.open(path, formats=FORMATS) as file:
                file.draft("RGB", (LONGEST, LONGEST))
                if file.width * file.height > MOST_PIXELS:
                    size = check.Shown(f"{file.width} x {file.height} in {shown}")
                    raise check.invalid("image", f"at most {MOST_PIXELS} pixels", size)
                picture = coloured(file)
    except UnidentifiedImageError as error:
        raise check.invalid("image", "an image file (PNG, JPEG, GIF, BMP, TIFF, WebP or PPM)", shown) from error
    except Image.DecompressionBombError as error:
        raise check.invalid("image", f"at most {MOST_PIXELS} pixels", shown) from error
    except PermissionError as error:
        raise check.invalid("image", "a file that may be read", shown) from error
    except (OSError, SyntaxError, EOFError, OverflowError, IndexError) as error:  # what Pillow raises for broken files
        reason = " ".join(str(error).split())[:80]
        raise check.invalid("image", "a whole image file", check.Shown(f"{shown} ({reason})")) from error
    picture = cropped(picture)
    if min(picture.size) < LEAST:
        raise check.invalid(
            "image", f"at least {LEAST} x {LEAST} pixels", check.Shown(f"{picture.width} x {picture.height} in {shown}")
        )
    return Photo(np.asarray(picture, dtype=np.uint8), credit)


def coloured(file: Image.Image) -> Image.Image:
    """Plain RGB of moderate size, whatever the file holds: transparency over white, deep greys stretched to their range."""
    picture: Image.Image = file
    if file.mode.startswith("I") or file.mode == "F":
        deep = np.nan_to_num(np.asarray(file, dtype=np.float32), posinf=0.0, neginf=0.0)
        low, high = float(deep.min()), float(deep.max())
        picture = Image.fromarray(((deep - low) * (255 / (high - low) if high > low else 0)).astype(np.uint8))
    elif file.mode in ("P", "PA", "1"):
        picture = file.convert("RGBA")
    picture.thumbnail((LONGEST, LONGEST), Image.Resampling.LANCZOS)
    ImageOps.exif_transpose(picture, in_place=True)
    if picture.mode in ("RGBA", "LA", "La", "RGBa") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return picture.convert("RGB")


def cropped(picture: Image.Image) -> Image.Image:
    """The middle of the photo, no longer than 3:2, so that every slide has the same arrangement."""
    width, height = picture.size
    return ImageOps.fit(picture, (min(width, height * 3 // 2), min(height, width * 3 // 2))) if width and height else picture
