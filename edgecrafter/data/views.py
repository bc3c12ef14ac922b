"""Random views of pictures without labels, as students and teachers see them in distillation (EdgeCrafter, A.1).

Random resized crop, flip, colour jitter, grayscale, blur, then MixUp of the batch. The paper names the steps; their
strengths are ours (SimCLR's, Chen et al. 2020, with a crop of at least 14 %). A crop is drawn before the pixels are
read, so that a JPEG is decoded at 1/2, 1/4 or 1/8 where that still has enough of them, and colours are one matrix.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from torch import Tensor

from edgecrafter.data import images
from edgecrafter.data.colours import MIDDLE, turn
from edgecrafter.data.dataset import Draw, Key, generator
from edgecrafter.data.mixing import mix
from edgecrafter.data.placement import Placement, paint
from edgecrafter.data.unlabelled import TRIALS, Paths, reason
from edgecrafter.types import Batch, Target


@dataclass(frozen=True)
class Strength:
    """How strongly a view differs from its picture. Probabilities are in 0..1."""

    least_area: float = 0.14
    """share of the picture that a crop shows, at least"""
    aspect: float = 4 / 3
    """of a crop, at most, in either direction"""
    flip: float = 0.5
    jitter: float = 0.8
    """probability of the colour jitter as a whole"""
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.2
    """factors are drawn from 1 - x to 1 + x"""
    hue: float = 0.1
    """turns to either side, at most"""
    gray: float = 0.2
    blur: float = 0.5
    sigma: tuple[float, float] = (0.1, 2.0)
    """of the blur, in pixels of the view"""
    mixup: float = 1.0
    """probability that a batch is mixed with itself"""


class RawViews(NamedTuple):
    """A batch as it leaves a worker."""

    images: Tensor
    """[B, 3, H, W] uint8"""
    indices: tuple[int, ...]
    """of the pictures that are shown"""
    unreadable: tuple[tuple[str, str], ...]
    """path and reason of those that could not be"""


class Views(torch.utils.data.Dataset[RawViews]):
    """Batches of views of ``size`` (h, w): a function of seed, epoch and number.

    ``strength`` None shows the middle of every picture, as large as fits. An unreadable picture is replaced by the next
    one that can be read, and is listed in ``unreadable`` (path -> reason) of the process that uses the batches.
    """

    def __init__(self, paths: Paths, size: tuple[int, int], seed: int = 0, strength: Strength | None = None) -> None:
        self.paths, self.size, self.seed, self.strength = paths, size, seed, strength
        self.unreadable: dict[str, str] = {}

    def __getitem__(self, key: Key) -> RawViews:
        pictures = np.empty((len(key.indices), 3, *self.size), np.uint8)
        shown, failed = [], []
        for picture, index in zip(pictures, key.indices, strict=True):
            found, bad = self._show(index, key.epoch, picture.transpose(1, 2, 0))
            shown.append(found)
            failed += bad
        if self.strength is not None:
            rng = generator(Draw.BATCH, self.seed, key.epoch, key.step)
            if rng.random() < self.strength.mixup:
                mix(pictures, rng.uniform(0, 1))
        return RawViews(torch.from_numpy(pictures), tuple(shown), tuple(failed))

    def batch(self, raw: RawViews) -> Batch:
        """The batch that a step takes: its targets have no objects, only the path."""
        self.unreadable.update(raw.unreadable)
        return Batch(raw.images, [_nothing(str(self.paths[index])) for index in raw.indices])

    def _show(self, index: int, epoch: int, canvas: NDArray[np.uint8]) -> tuple[int, list[tuple[str, str]]]:
        """Paint a view of the picture, or of the next readable one, into ``canvas``; which, and what was not."""
        failed = []
        for step in range(min(TRIALS, len(self.paths))):
            number = (index + step) % len(self.paths)
            path = self.paths[number]
            try:
                self._paint(path, generator(Draw.SAMPLE, self.seed, epoch, number), canvas)
            except (ValueError, OSError) as error:
                failed.append((str(path), reason(error, path)))
            else:
                return number, failed
        raise ValueError(f"{len(failed)} pictures in a row cannot be read, the last: {': '.join(failed[-1])}")

    def _paint(self, path: Path, rng: np.random.Generator, canvas: NDArray[np.uint8]) -> None:
        size = images.size(path)
        if self.strength is None:
            placement, colours, sigma = middle(size, self.size), None, 0.0
        else:
            placement = crop(size, self.size, self.strength, rng)
            colours, sigma = jitter(self.strength, rng), blur(self.strength, rng)
        picture = images.read(path, needed(placement, size))
        paint(canvas, picture, size, placement, colours)
        if sigma:
            canvas[...] = np.asarray(Image.fromarray(canvas).filter(ImageFilter.GaussianBlur(sigma)))


def needed(placement: Placement, size: tuple[int, int]) -> tuple[int, int]:
    """The least (h, w) at which a picture of ``size`` may be decoded so that the view has a pixel for each of its own,
    or all that the picture has."""
    (x_scale, _), (y_scale, _) = placement.affine()
    return math.ceil(size[0] * min(1.0, abs(y_scale))), math.ceil(size[1] * min(1.0, abs(x_scale)))


def crop(size: tuple[int, int], canvas: tuple[int, int], strength: Strength, rng: np.random.Generator) -> Placement:
    """A random rectangle of a picture of ``size`` (h, w), stretched onto the canvas, mirrored or not (Szegedy et al.
    2015). Where no drawn rectangle fits, the middle of the picture."""
    height, width = size
    mirrored = bool(rng.random() < strength.flip)
    onto = (0, 0, canvas[1], canvas[0])
    limit = math.log(strength.aspect)
    for area, aspect, x, y in rng.random((10, 4)).tolist():
        pixels = height * width * (strength.least_area + (1 - strength.least_area) * area)
        ratio = math.exp((2 * aspect - 1) * limit) * canvas[1] / canvas[0]
        w, h = math.sqrt(pixels * ratio), math.sqrt(pixels / ratio)
        if w <= width and h <= height:
            left, top = x * (width - w), y * (height - h)
            return Placement((left, top, left + w, top + h), onto, mirrored)
    view = middle(size, canvas).view
    return Placement(view, onto, mirrored)


def middle(size: tuple[int, int], canvas: tuple[int, int]) -> Placement:
    """The largest centred rectangle with the aspect of the canvas."""
    height, width = size
    scale = min(height / canvas[0], width / canvas[1])
    h, w = scale * canvas[0], scale * canvas[1]
    left, top = (width - w) / 2, (height - h) / 2
    return Placement((left, top, left + w, top + h), (0, 0, canvas[1], canvas[0]))


def jitter(strength: Strength, rng: np.random.Generator) -> tuple[float, ...] | None:
    """Brightness, contrast, saturation, hue and grayscale as one colour matrix of 12 numbers; None: no change.

    All are linear maps of a colour. Contrast turns about a middle gray instead of the picture's own mean.
    """
    changed, gray = rng.random(2) < (strength.jitter, strength.gray)
    factors = rng.uniform(-1, 1, 4)
    if not (changed or gray):
        return None
    gain, contrast, chroma, angle = 1.0, 1.0, 1.0, 0.0
    if changed:
        gain = 1 + strength.brightness * factors[0]
        contrast = 1 + strength.contrast * factors[1]
        chroma = 1 + strength.saturation * factors[2]
        angle = 2 * math.pi * strength.hue * factors[3]
    matrix = gain * contrast * turn(0.0 if gray else chroma, angle)
    offset = (1 - contrast) * MIDDLE
    return tuple(np.column_stack([matrix, np.full(3, offset)]).ravel().tolist())


def blur(strength: Strength, rng: np.random.Generator) -> float:
    """Standard deviation of the blur in pixels; 0: none. Both draws are always made."""
    chance, place = rng.random(2)
    low, high = strength.sigma
    return float(low + (high - low) * place) if chance < strength.blur else 0.0


def _nothing(path: str) -> Target:
    return Target(labels=torch.empty(0, dtype=torch.int64), boxes=torch.empty(0, 4), path=path)
