"""`everypool show`: a picture of what an operation does."""

from __future__ import annotations

from pathlib import Path

import click

from everypool import _check as check

__all__ = ["command"]


@click.command()
@click.argument("operation", metavar="[OP]", required=False)
@click.option("--all", "everything", is_flag=True, help="All operations on one contact sheet.")
@click.option("--image", type=click.Path(path_type=Path), help="The photo.  [default: scikit-image's coffee cup]")
@click.option("--kernel", default=2, show_default=True, type=click.IntRange(min=1),
              help="Windows of KERNEL x KERNEL, for reducers and unpooling.")  # fmt: skip
@click.option("-o", "--output", type=click.Path(path_type=Path), help="PNG or SVG file.  [default: OP.png or everypool.png]")
def command(operation: str | None, everything: bool, image: Path | None, kernel: int, output: Path | None) -> None:
    """Draw what operation OP does to a photo: input with windows, output, and where the gradient goes.

    OP is a name from `everypool list`, a reducer with its settings too, such as gem:p=10.
    """
    if everything == (operation is not None):
        raise check.invalid("OP", "the name of an operation, or left out with --all", operation)
    from everypool.study.picture import draw, gallery
    from everypool.study.picture.photo import open_photo

    path = output or Path("everypool.png" if operation is None else f"{file_name(operation)}.png")
    draw.checked_output(path)
    photo = open_photo(image)
    cells = photo.cells()
    if operation is None:
        scenes = [gallery.scene_of(name, cells, kernel) for name in gallery.drawable()]
        figure = draw.contact_sheet(scenes, photo)
    else:
        figure = draw.slide(gallery.scene_of(operation, cells, kernel), photo)
    print(draw.save(figure, path))


def file_name(operation: str) -> str:
    """gem:p=10 -> gem-p-10."""
    return "".join(c if c.isalnum() or c in "._" else "-" for c in operation.lower()).strip("-.") or "everypool"
