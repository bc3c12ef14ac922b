"""Annotations and pictures become training samples and batches, as pure functions of seed, epoch and number.

A ``Dataset`` is asked for whole batches by a ``Key`` that says everything there is to know, so that it keeps no state:
worker processes need not be told of a new epoch, and their number changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgecrafter.data import images
from edgecrafter.data.annotations import Annotations
from edgecrafter.data.colours import distortion
from edgecrafter.data.mixing import mixup, mosaic
from edgecrafter.data.placement import FILL, Objects, Placement, join, paint, pixels_needed, place, whole
from edgecrafter.data.transforms import Augment, iou_crop, zoom_out


class Draw(IntEnum):
    """What random numbers are for; the first number of their seed."""

    ORDER = 1
    SAMPLE = 2
    BATCH = 3


def generator(purpose: Draw, seed: int, epoch: int, number: int = 0) -> np.random.Generator:
    """The random numbers for one order, sample or batch of an epoch; ``seed`` must not be negative."""
    return np.random.default_rng([purpose, seed, epoch, number])


class Key(NamedTuple):
    """One batch of an epoch: its number, the pictures in it and how they are augmented."""

    epoch: int
    step: int
    indices: tuple[int, ...]
    augment: Augment


@dataclass(frozen=True)
class Sample:
    """One picture in the size of the network's input and its objects in pixels of it."""

    image: NDArray[np.uint8]
    """[H, W, 3] RGB"""
    objects: Objects


@dataclass(frozen=True)
class Sketch:
    """A sample before any pixel is read: which pictures lie where, and in which colours."""

    indices: tuple[int, ...]
    placements: tuple[Placement, ...]
    colours: tuple[float, ...] | None = None


class RawBatch(NamedTuple):
    """A batch as it leaves a worker. One tensor, so that it costs one file descriptor and not one per object list."""

    images: Tensor
    """[B, 3, H, W] uint8"""
    objects: list[Objects]
    indices: tuple[int, ...]


class Dataset(torch.utils.data.Dataset[RawBatch]):
    """Batches of a data set at the input ``size`` (h, w) of a network. Crowd regions are left out, as when released."""

    def __init__(self, annotations: Annotations, size: tuple[int, int], seed: int = 0) -> None:
        self.annotations = annotations
        self.size = size
        self.seed = seed

    def __getitem__(self, key: Key) -> RawBatch:
        pictures = np.full((len(key.indices), 3, *self.size), FILL, np.uint8)
        objects = []
        for picture, index in zip(pictures, key.indices, strict=True):
            sketch = self.sketch(index, key.augment, generator(Draw.SAMPLE, self.seed, key.epoch, index))
            objects.append(self.render(sketch, picture.transpose(1, 2, 0)))
        rng = generator(Draw.BATCH, self.seed, key.epoch, key.step)
        if rng.random() < key.augment.mixup:
            objects = mixup(pictures, objects, rng)
        return RawBatch(torch.from_numpy(pictures), objects, key.indices)

    def sample(self, index: int, epoch: int = 0, augment: Augment = Augment.NONE) -> Sample:
        """The picture ``index``, augmented as in ``epoch``, before MixUp."""
        canvas = np.full((*self.size, 3), FILL, np.uint8)
        sketch = self.sketch(index, augment, generator(Draw.SAMPLE, self.seed, epoch, index))
        return Sample(canvas, self.render(sketch, canvas))

    def render(self, sketch: Sketch, canvas: NDArray[np.uint8]) -> Objects:
        """Read the pictures of a sketch, paint them into ``canvas`` [H, W, 3] and return the objects on it."""
        found = []
        for index, placement in zip(sketch.indices, sketch.placements, strict=True):
            size = self.picture_size(index)
            picture = images.read(self.annotations.path(index), pixels_needed(placement, size, self.size))
            paint(canvas, picture, size, placement, sketch.colours)
            found.append(place(self.objects(index), placement))
        return join(found)

    def sketch(self, index: int, augment: Augment, rng: np.random.Generator) -> Sketch:
        """Draw everything random about a sample."""
        if rng.random() < augment.mosaic:
            sketch = self.mosaic_sketch(index, rng)
        else:
            sketch = self.single_sketch(index, augment, rng)
        if rng.random() < augment.flip:
            mirrored = tuple(placement.mirror(self.size[1]) for placement in sketch.placements)
            sketch = Sketch(sketch.indices, mirrored, sketch.colours)
        return sketch

    def mosaic_sketch(self, index: int, rng: np.random.Generator) -> Sketch:
        """The picture and three random others, in random places."""
        chosen = rng.permutation([index, *rng.integers(0, len(self.annotations), 3)]).tolist()
        return Sketch(tuple(chosen), tuple(mosaic([self.picture_size(i) for i in chosen], self.size)))

    def single_sketch(self, index: int, augment: Augment, rng: np.random.Generator) -> Sketch:
        """The picture alone: colours, zoom-out, crop."""
        full = whole(self.picture_size(index), self.size)
        colours = distortion(rng, augment.photometric)
        view = zoom_out(full.view, rng) if rng.random() < augment.zoom_out else full.view
        if rng.random() < augment.iou_crop:
            view = iou_crop(view, self.objects(index).boxes, rng)
        return Sketch((index,), (Placement(view, full.onto),), colours)

    def picture_size(self, index: int) -> tuple[int, int]:
        """(height, width) of the upright picture as the annotations state it."""
        height, width = self.annotations.sizes[index].tolist()
        return height, width

    def objects(self, index: int) -> Objects:
        """The objects of a picture, in its pixels, without crowd regions."""
        rows = self.annotations.objects(index)
        found = Objects(self.annotations.boxes[rows], self.annotations.classes[rows])
        return found.take(~self.annotations.crowd[rows])
