"""Annotations and pictures become training samples and batches, as pure functions of seed, epoch and number.

A ``Dataset`` is asked for whole batches by a ``Key`` that says everything there is to know, so that it keeps no state:
worker processes need not be told of a new epoch, and their number changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from itertools import groupby
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgecrafter.data import images, rasters
from edgecrafter.data.annotations import Annotations
from edgecrafter.data.colours import distortion
from edgecrafter.data.mixing import mixup, mosaic
from edgecrafter.data.objects import Objects, Shape, join
from edgecrafter.data.pasting import paste
from edgecrafter.data.placement import FILL, Placement, cover, paint, pixels_needed, place, whole
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
    """A sample before any pixel is read: which pictures lie where, the later on top, and in which colours."""

    indices: tuple[int, ...]
    placements: tuple[Placement, ...]
    colours: tuple[float, ...] | None = None


class RawBatch(NamedTuple):
    """A batch as it leaves a worker. One tensor, or two with masks: each costs a file descriptor, but no copying."""

    images: Tensor
    """[B, 3, H, W] uint8"""
    objects: list[Objects]
    """without their masks"""
    indices: tuple[int, ...]
    masks: Tensor | None = None
    """[N, H, W / 8] uint8, packed (``np.unpackbits``), of all objects of one picture after the other"""


class Dataset(torch.utils.data.Dataset[RawBatch]):
    """Batches of a data set at the input ``size`` (h, w) of a network. Crowd regions are left out, as when released."""

    def __init__(self, annotations: Annotations, size: tuple[int, int], seed: int = 0) -> None:
        self.annotations = annotations
        self.size = size
        self.seed = seed
        self.learnable = annotations.learnable()

    def __getitem__(self, key: Key) -> RawBatch:
        pictures = np.full((len(key.indices), 3, *self.size), FILL, np.uint8)
        objects = []
        for picture, index in zip(pictures, key.indices, strict=True):
            sketch = self.sketch(index, key.augment, generator(Draw.SAMPLE, self.seed, key.epoch, index))
            objects.append(self.render(sketch, picture.transpose(1, 2, 0)))
        rng = generator(Draw.BATCH, self.seed, key.epoch, key.step)
        if rng.random() < key.augment.mixup:
            objects = mixup(pictures, objects, rng)
        return raw_batch(pictures, objects, key.indices)

    def sample(self, index: int, epoch: int = 0, augment: Augment = Augment.NONE) -> Sample:
        """The picture ``index``, augmented as in ``epoch``, before MixUp."""
        canvas = np.full((*self.size, 3), FILL, np.uint8)
        sketch = self.sketch(index, augment, generator(Draw.SAMPLE, self.seed, epoch, index))
        return Sample(canvas, self.render(sketch, canvas))

    def render(self, sketch: Sketch, canvas: NDArray[np.uint8]) -> Objects:
        """Read the pictures of a sketch, paint them into ``canvas`` [H, W, 3] and return the objects on it."""
        found: list[Objects] = []
        for index, layers in groupby(zip(sketch.indices, sketch.placements, strict=True), key=lambda layer: layer[0]):
            placements, size = [placement for _, placement in layers], self.picture_size(index)
            picture = images.read(self.annotations.path(index), most_pixels_needed(placements, size, self.size))
            for placement in placements:
                paint(canvas, picture, size, placement, sketch.colours)
                found = [cover(below, placement.onto) for below in found]
                found.append(place(self.objects(index), placement))
        return rasters.fill(join(found), self.size)

    def sketch(self, index: int, augment: Augment, rng: np.random.Generator) -> Sketch:
        """Draw everything random about a sample."""
        is_mosaic = rng.random() < augment.mosaic
        sketch = self.mosaic_sketch(index, rng) if is_mosaic else self.single_sketch(index, augment, rng)
        if rng.random() < augment.flip:
            mirrored = tuple(placement.mirror(self.size[1]) for placement in sketch.placements)
            sketch = replace(sketch, placements=mirrored)
        # the last of all draws: with or without, the others stay the same
        if not is_mosaic and rng.random() < augment.paste:
            sketch = self.pasted(sketch, augment.flip, rng)
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

    def pasted(self, sketch: Sketch, flip: float, rng: np.random.Generator) -> Sketch:
        """A sketch of a single picture with objects of a random other one on top."""
        there = place(self.objects(sketch.indices[0]), sketch.placements[0]).boxes
        other = int(rng.integers(0, len(self.annotations)))
        placements = paste(self.objects(other), self.picture_size(other), there, self.size, flip, rng)
        indices = (*sketch.indices, *(other for _ in placements))
        return replace(sketch, indices=indices, placements=(*sketch.placements, *placements))

    def picture_size(self, index: int) -> tuple[int, int]:
        """(height, width) of the upright picture as the annotations state it."""
        height, width = self.annotations.sizes[index].tolist()
        return height, width

    def objects(self, index: int) -> Objects:
        """The objects of a picture that can be learned, in its pixels: no crowd, with keypoints if they are wanted."""
        known, rows = self.annotations, self.annotations.objects(index)
        shapes, points = None, None if known.keypoints is None else known.keypoints[rows]
        if known.masks is not None:
            size = self.picture_size(index)
            shapes = tuple(Shape(known.masks, row, size) for row in range(rows.start, rows.stop))
        found = Objects(
            known.boxes[rows],
            known.classes[rows],
            shapes=shapes,
            keypoints=points,
            areas=None if points is None else known.areas[rows],
            skeleton=None if points is None else known.labels.skeleton,
        )
        return found.take(self.learnable[rows])


def most_pixels_needed(
    placements: Sequence[Placement], size: tuple[int, int], canvas: tuple[int, int]
) -> tuple[int, int] | None:
    """As ``pixels_needed``, for several placements of one picture that is read once."""
    needs = [pixels_needed(placement, size, canvas) for placement in placements]
    known = [need for need in needs if need is not None]
    if len(known) < len(needs):
        return None
    return max(height for height, _ in known), max(width for _, width in known)


def raw_batch(pictures: NDArray[np.uint8], objects: Sequence[Objects], indices: tuple[int, ...]) -> RawBatch:
    """Move the masks of all objects into one tensor. ``pictures`` are [B, 3, H, W]."""
    masks = [found.masks for found in objects if found.masks is not None]
    return RawBatch(
        torch.from_numpy(pictures),
        [replace(found, masks=None) for found in objects],
        indices,
        torch.from_numpy(np.concatenate(masks)) if masks else None,
    )
