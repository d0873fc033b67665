"""Scenes made of MNIST's handwritten digits at many sizes, pasted on an empty canvas, with their boxes and labels."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from everypool import _check as check
from everypool.study.data import mnist
from everypool.study.transforms import split

__all__ = ["CREDIT", "HEIGHTS", "MOST", "SIDE", "Scenes", "draw", "load"]

SIDE = 48  # of a canvas
MOST = 8  # digits in a scene
HEIGHTS = 8, 24  # of a digit, the same number of each octave
SPARSE, CROWDED = (2, 4), (5, MOST)  # the fewest and the most digits that are tried
GAP = 2  # empty pixels between the boxes of a sparse scene, at least
OVERLAP, HIDDEN = 0.3, 0.5  # the most of two boxes' union, and of the smaller one, that they may share
FRAGMENTS = 3  # pieces of digits that are no objects, at most
TRIES = 30
INK = 0.2  # what belongs to a digit, where ink is 1
CREDIT = (
    f"{mnist.CREDIT}, cut out, resized to heights of {HEIGHTS[0]} to {HEIGHTS[1]} px and pasted on {SIDE} x {SIDE} canvases"
)

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Scenes:
    """Canvases with what is on them.

    Args:
        images: (N, 1, SIDE, SIDE) between 0 and 1.
        boxes: (N, MOST, 4): left, top, right, bottom in pixels, the last two one past the digit; zeros where there is none.
        labels: (N, MOST): the digits; -1 where there is none.
        crowded: (N,): whether digits were made to touch or overlap.
    """

    images: Tensor
    boxes: Tensor
    labels: Tensor
    crowded: Tensor


@functools.lru_cache(maxsize=2)  # the variants of one seed follow each other
def load(seed: int, train: int, tests: int) -> tuple[Scenes, Scenes]:
    """Scenes to train with and to test with, half of them crowded, made of different digits: a fifth of all are for tests.

    Args:
        seed: draws which digits are for tests, and the scenes.
        train: how many scenes.
        tests: how many scenes.
    """
    generator = torch.Generator().manual_seed(seed)
    images, labels = mnist.load()
    mine, others = split(len(images), generator)
    return (
        draw(images[mine], labels[mine], train, generator),
        draw(images[others], labels[others], tests, generator),
    )


def draw(digits: Tensor, labels: Tensor, count: int, generator: torch.Generator, heights: tuple[int, int] = HEIGHTS) -> Scenes:
    """That many scenes of the digits (D, 1, H, W), every second one crowded.

    In a sparse scene the boxes keep apart. In a crowded one every digit but the first is put where its box touches or
    overlaps another's. Beside the digits there are fragments of digits, which are no objects and touch no box.

    Raises:
        ValueError: digits that do not fit on the canvas.
    """
    if not 1 <= heights[0] <= heights[1] <= SIDE:
        raise check.invalid("heights", f"two numbers from 1 to {SIDE}, the smaller one first", heights)
    images = torch.zeros(count, 1, SIDE, SIDE)
    boxes, names = torch.zeros(count, MOST, 4), torch.full((count, MOST), -1)
    for i in range(count):
        scene = _Scene(digits, labels, heights, generator)
        fewest, most = CROWDED if i % 2 else SPARSE
        for _ in range(scene.pick(fewest, most)):
            scene.add_digit(crowded=bool(i % 2))
        for _ in range(scene.pick(0, FRAGMENTS)):
            scene.add_fragment()
        images[i, 0] = scene.canvas
        boxes[i, : len(scene.boxes)] = torch.tensor(scene.boxes, dtype=boxes.dtype)
        names[i, : len(scene.labels)] = torch.tensor(scene.labels)
    return Scenes(images, boxes, names, torch.arange(count) % 2 == 1)


class _Scene:
    def __init__(self, digits: Tensor, labels: Tensor, heights: tuple[int, int], generator: torch.Generator) -> None:
        self.digits, self.names, self.heights, self.generator = digits, labels, heights, generator
        self.canvas = torch.zeros(SIDE, SIDE)
        self.boxes: list[Box] = []
        self.labels: list[int] = []

    def pick(self, low: int, high: int) -> int:
        """A whole number, both ends included."""
        return int(torch.randint(low, high + 1, (), generator=self.generator))

    def stamp(self) -> tuple[Tensor, int]:
        """A digit, cut out along its ink and resized, and its label."""
        number = self.pick(0, len(self.digits) - 1)
        low, high = self.heights
        height = round(low * math.exp(math.log(high / low) * float(torch.rand((), generator=self.generator))))
        ink = cut(self.digits[number, 0])
        width = min(SIDE, max(2, round(ink.shape[1] * height / ink.shape[0])))
        resized = F.interpolate(ink[None, None], (height, width), mode="bilinear", antialias=True)[0, 0]
        return resized, int(self.names[number])

    def paste(self, stamp: Tensor, box: Box) -> None:
        left, top, right, bottom = box
        place = self.canvas[top:bottom, left:right]
        place.copy_(torch.maximum(place, stamp))

    def add_digit(self, crowded: bool) -> None:
        """One more digit, unless no place is found."""
        stamp, label = self.stamp()
        height, width = stamp.shape
        for _ in range(TRIES):
            if crowded and self.boxes:
                left, top, right, bottom = self.boxes[self.pick(0, len(self.boxes) - 1)]
                x, y = self.pick(left - width, right), self.pick(top - height, bottom)
            else:
                x, y = self.pick(0, SIDE - width), self.pick(0, SIDE - height)
            box = x, y, x + width, y + height
            inside = x >= 0 and y >= 0 and box[2] <= SIDE and box[3] <= SIDE
            if inside and all(bearable(box, other) if crowded else apart(box, other, GAP) for other in self.boxes):
                self.paste(stamp, box)
                self.boxes.append(box)
                self.labels.append(label)
                return

    def add_fragment(self) -> None:
        """A piece of a digit, half as high and half as wide, unless no place is found."""
        stamp, _ = self.stamp()
        height, width = max(2, stamp.shape[0] // 2), max(1, stamp.shape[1] // 2)
        top, left = self.pick(0, stamp.shape[0] - height), self.pick(0, stamp.shape[1] - width)
        for _ in range(TRIES):
            x, y = self.pick(0, SIDE - width), self.pick(0, SIDE - height)
            box = x, y, x + width, y + height
            if all(apart(box, other, GAP) for other in self.boxes):
                self.paste(stamp[top : top + height, left : left + width], box)
                return


def cut(image: Tensor) -> Tensor:
    """The part of an image (H, W) that holds its ink.

    >>> cut(torch.tensor([[0.0, 0.0, 0.0], [0.0, 1.0, 0.5], [0.0, 0.0, 0.0]]))
    tensor([[1.0000, 0.5000]])
    """
    ink = image > INK
    rows, columns = ink.any(1).nonzero(), ink.any(0).nonzero()
    return image[int(rows[0]) : int(rows[-1]) + 1, int(columns[0]) : int(columns[-1]) + 1]


def apart(box: Box, other: Box, gap: int) -> bool:
    """Whether there are that many pixels between them, along an axis at least.

    >>> apart((0, 0, 4, 4), (6, 0, 9, 4), 2), apart((0, 0, 4, 4), (5, 0, 9, 4), 2)
    (True, False)
    """
    return box[2] + gap <= other[0] or other[2] + gap <= box[0] or box[3] + gap <= other[1] or other[3] + gap <= box[1]


def bearable(box: Box, other: Box) -> bool:
    """Whether two boxes overlap so little that both digits can be told.

    >>> bearable((0, 0, 4, 4), (3, 0, 7, 4)), bearable((0, 0, 4, 4), (1, 0, 5, 4))
    (True, False)
    """
    wide, high = min(box[2], other[2]) - max(box[0], other[0]), min(box[3], other[3]) - max(box[1], other[1])
    shared = max(0, wide) * max(0, high)
    areas = [(b[2] - b[0]) * (b[3] - b[1]) for b in (box, other)]
    return shared <= OVERLAP * (sum(areas) - shared) and shared <= HIDDEN * min(areas)
