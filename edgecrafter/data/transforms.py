"""The augmentation of a training picture: how strong (``Augment``), and how each step is drawn.

Order, as in the released code: a mosaic with its probability, or else photometric
distortion, zoom-out and IoU crop; then objects without a visible pixel are dropped, flip, resize to the input size.
A mosaic therefore keeps its colours. Classic detectors have a random short side instead (``shortest``). Copy-paste puts
objects of another picture on top of a sample that is no mosaic (``pasting``; in Table 11 for pose, its definition is
ours). MixUp follows on the whole batch (``mixing.mixup``).

Everything is drawn before a picture is opened: a draw is a few ``Placement``s and a colour matrix, so that the loader
knows how many pixels it has to decode. All functions are pure; randomness is the generator passed in.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from edgecrafter.data.objects import Rect
from edgecrafter.geometry import boxes as box_geometry
from edgecrafter.geometry.sides import KEEP as KEEP_RATIO
from edgecrafter.types import InputSpec

ZOOM_OUT = 4.0
"""largest side of the canvas of a zoom-out, in sides of the picture (SSD)"""
KEEP = 2.0
IOU_CHOICES = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, KEEP)
"""least IoU of crop and object; an IoU that nothing can reach stands for no crop (SSD)"""
CROP_SIDES = (0.3, 1.0)
CROP_ASPECTS = (0.5, 2.0)
CROP_TRIALS = 40
SHORT = 800
"""limit of the short side for which these are published (DETR); for others they grow or shrink with it"""
SHORT_SIDES = tuple(range(480, SHORT + 1, 32))
CROPPED = 0.5
"""how often only a part is shown, of PART pixels a side when the short side of the picture has PART_OF"""
PART_OF = (400, 500, 600)
PART = (384, 600)


@dataclass(frozen=True)
class Augment:
    """The probability of every step of the augmentation, each in 0..1."""

    mosaic: float = 0.0
    """four pictures as tiles of half the size; such a sample gets no distortion, zoom-out or crop"""
    mixup: float = 0.0
    """of a whole batch"""
    photometric: float = 0.0
    """of each of brightness, contrast, saturation and hue"""
    zoom_out: float = 0.0
    iou_crop: float = 0.0
    flip: float = 0.0
    paste: float = 0.0
    """objects of another picture on top of a sample that is no mosaic"""
    shortest: float = 0.0
    """a random limit for the short side, and in half of these cases a random part of the picture (DETR)"""

    NONE: ClassVar[Augment]

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if not 0 <= value <= 1:
                raise ValueError(f"augmentation: {item.name}={value} is no probability, expected a number in 0..1")

    @staticmethod
    def strong(mosaic: float = 0.75, mixup: float = 0.75, paste: float = 0.0) -> Augment:
        """The augmentation of the paper; Table 10: 0.75 for S and M, 1.0 for L and X; pose: 0.5 each (Table 11)."""
        return Augment(mosaic, mixup, photometric=0.5, zoom_out=0.5, iou_crop=0.8, flip=0.5, paste=paste)

    @staticmethod
    def classic() -> Augment:
        """Flip, random short side and random parts: DETR and what follows it (for ``InputSpec.resize`` keep)."""
        return Augment(flip=0.5, shortest=1.0)

    def unmixed(self) -> Augment:
        """Without mosaic, MixUp and copy-paste: the second half of a training (Tables 10 and 11)."""
        return replace(self, mosaic=0.0, mixup=0.0, paste=0.0)

    def gentle(self) -> Augment:
        """Only the flip is left: the last epochs of a training (Table 10). Classic detectors keep their short sides."""
        return Augment(flip=self.flip, shortest=self.shortest)


Augment.NONE = Augment()

PRESETS = {
    "none": Augment.NONE,
    "light": Augment(photometric=0.5, flip=0.5),
    "default": Augment.strong(0.75, 0.75),
    "strong": Augment.strong(1.0, 1.0),
}


def zoom_out(view: Rect, rng: np.random.Generator, most: float = ZOOM_OUT) -> Rect:
    """A view 1 to ``most`` times as wide and high, with the old one anywhere inside: the picture gets smaller (SSD)."""
    x0, y0, x1, y1 = view
    grow = rng.uniform(1, most) - 1
    left, top = rng.random(2) * grow
    width, height = x1 - x0, y1 - y0
    return (
        x0 - left * width,
        y0 - top * height,
        x1 + (grow - left) * width,
        y1 + (grow - top) * height,
    )


def iou_crop(view: Rect, boxes: NDArray[np.float32], rng: np.random.Generator) -> Rect:
    """A smaller view that holds the centre of an object and overlaps with it by a drawn IoU (SSD).

    ``boxes`` [N, 4] xyxy are in the frame of the view. The choices of ``IOU_CHOICES`` are tried in random order until
    one of ``CROP_TRIALS`` windows fits or the choice is to keep the view. Without objects any window fits.
    """
    for least in rng.permutation(IOU_CHOICES):
        if least == KEEP:
            break
        windows = crop_windows(view, rng)
        fitting = windows[fits(windows, boxes, float(least))]
        if len(fitting):
            x0, y0, x1, y1 = fitting[0].tolist()
            return (x0, y0, x1, y1)
    return view


def shortest(view: Rect, spec: InputSpec, rng: np.random.Generator) -> tuple[Rect, InputSpec]:
    """The view or a part of it, and ``spec`` with a drawn limit of the short side; that of the long side stays (DETR).

    A ``spec`` that stretches gives inputs of its own size whatever is drawn.
    """
    if rng.random() < CROPPED:
        view = part(view, rng)
    if spec.resize == KEEP_RATIO:
        short = max(1, round(int(rng.choice(SHORT_SIDES)) * min(spec.size) / SHORT))
        spec = replace(spec, size=(short, max(spec.size)))
    return view, spec


def part(view: Rect, rng: np.random.Generator) -> Rect:
    """A part of the view of ``PART`` pixels a side, or as many as there are, when its short side has one of
    ``PART_OF``; anywhere inside (DETR)."""
    origin, extent = np.array(view[:2]), np.array([view[2] - view[0], view[3] - view[1]])
    pixel = extent.min() / int(rng.choice(PART_OF))
    low, high = (np.minimum(side * pixel, extent) for side in PART)
    sides = rng.uniform(low, high)
    x0, y0 = (origin + rng.random(2) * (extent - sides)).tolist()
    return (x0, y0, x0 + float(sides[0]), y0 + float(sides[1]))


def crop_windows(view: Rect, rng: np.random.Generator) -> NDArray[np.float64]:
    """Up to ``CROP_TRIALS`` random windows [T, 4] xyxy inside the view, with sides and aspects in the ranges above."""
    origin, extent = np.array(view[:2]), np.array([view[2] - view[0], view[3] - view[1]])
    sides = rng.uniform(*CROP_SIDES, (CROP_TRIALS, 2)) * extent
    corner = origin + rng.random((CROP_TRIALS, 2)) * (extent - sides)
    aspect = sides[:, 0] / sides[:, 1]
    allowed = (aspect >= CROP_ASPECTS[0]) & (aspect <= CROP_ASPECTS[1])
    return np.asarray(np.concatenate([corner, corner + sides], axis=1)[allowed])


def fits(windows: NDArray[np.float64], boxes: NDArray[np.float32], least: float) -> NDArray[np.bool_]:
    """Which windows [T, 4] hold the centre of a box [N, 4] and overlap with it by an IoU of ``least``; [T] bool."""
    if len(boxes) == 0:
        return np.ones(len(windows), bool)
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2
    inside = ((centre > windows[:, None, :2]) & (centre < windows[:, None, 2:])).all(axis=2)  # [T, N]
    overlap = box_geometry.iou(torch.from_numpy(windows.astype(np.float32)), torch.from_numpy(boxes)).numpy()
    return np.asarray((inside & (overlap >= least)).any(axis=1))
