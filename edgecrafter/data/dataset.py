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
from edgecrafter.data.objects import Objects, Rect, Shape, join
from edgecrafter.data.pasting import paste
from edgecrafter.data.placement import FILL, Placement, cover, paint, pixels_needed, place
from edgecrafter.data.transforms import Augment, iou_crop, shortest, zoom_out
from edgecrafter.geometry.sides import KEEP, STRETCH
from edgecrafter.types import InputSpec


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
    """One picture as it lies in the network's input, without padding, and its objects in pixels of it."""

    image: NDArray[np.uint8]
    """[H, W, 3] RGB"""
    objects: Objects


@dataclass(frozen=True)
class Sketch:
    """A sample before any pixel is read: which pictures lie where, the later on top, and in which colours."""

    indices: tuple[int, ...]
    placements: tuple[Placement, ...]
    colours: tuple[float, ...] | None = None

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of what the placements fill, in pixels of the input."""
        _, _, right, bottom = np.array([placement.onto for placement in self.placements]).max(axis=0).tolist()
        return round(bottom), round(right)


class RawBatch(NamedTuple):
    """A batch as it leaves a worker. One tensor, or two with masks: each costs a file descriptor, but no copying."""

    images: Tensor
    """[B, 3, H, W] uint8"""
    objects: list[Objects]
    """without their masks"""
    indices: tuple[int, ...]
    sizes: NDArray[np.int64]
    """[B, 2] height, width of the samples, which lie in the upper left of their images"""
    masks: Tensor | None = None
    """[N, H, W / 8] uint8, packed (``np.unpackbits``), of all objects of one picture after the other"""


class Dataset(torch.utils.data.Dataset[RawBatch]):
    """Batches of a data set for a network's input, see ``InputSpec`` for ``size`` and ``resize``: every sample has the
    size of its own (which with ``stretch`` is that of all), and a batch that of the largest. Crowd regions are left
    out, as when released. Raises ``ValueError`` for masks with ``keep``."""

    def __init__(self, annotations: Annotations, size: tuple[int, int], seed: int = 0, resize: str = STRETCH) -> None:
        self.annotations = annotations
        self.spec = InputSpec(size, resize=resize)
        if resize == KEEP and annotations.masks is not None:
            raise ValueError(f"{annotations.root}: no masks for resize={KEEP!r}: read the data without them (truth='')")
        self.seed = seed
        self.learnable = annotations.learnable()

    def __getitem__(self, key: Key) -> RawBatch:
        draws = (generator(Draw.SAMPLE, self.seed, key.epoch, index) for index in key.indices)
        sketches = [self.sketch(index, key.augment, rng) for index, rng in zip(key.indices, draws, strict=True)]
        sizes = np.array([sketch.size for sketch in sketches])
        rng = generator(Draw.BATCH, self.seed, key.epoch, key.step)
        if is_mixed := rng.random() < key.augment.mixup:
            sizes = np.maximum(sizes, np.roll(sizes, 1, axis=0))  # a mixture is as large as both
        pictures = np.full((len(sketches), 3, *sizes.max(axis=0)), FILL, np.uint8)
        objects = []
        for picture, sketch in zip(pictures, sketches, strict=True):
            height, width = sketch.size
            objects.append(self.render(sketch, picture[:, :height, :width].transpose(1, 2, 0)))
        if is_mixed:
            objects = mixup(pictures, objects, rng)
        return raw_batch(pictures, objects, key.indices, sizes)

    def largest(self, augment: Augment) -> tuple[int, int]:
        """Height and width that no batch exceeds with this augmentation."""
        if self.spec.resize == KEEP and (augment.mosaic or augment.iou_crop or augment.shortest):
            return max(self.spec.size), max(self.spec.size)  # parts of pictures may be upright or wide
        sizes = np.unique(self.annotations.sizes, axis=0).tolist()
        height, width = np.array([self.spec.fitted(h, w) for h, w in sizes]).max(axis=0).tolist()
        return height, width

    def sample(self, index: int, epoch: int = 0, augment: Augment = Augment.NONE) -> Sample:
        """The picture ``index``, augmented as in ``epoch``, before MixUp."""
        sketch = self.sketch(index, augment, generator(Draw.SAMPLE, self.seed, epoch, index))
        canvas = np.full((*sketch.size, 3), FILL, np.uint8)
        return Sample(canvas, self.render(sketch, canvas))

    def render(self, sketch: Sketch, canvas: NDArray[np.uint8]) -> Objects:
        """Read the pictures of a sketch, paint them into ``canvas`` [H, W, 3] and return the objects on it."""
        found: list[Objects] = []
        whole_canvas = (canvas.shape[0], canvas.shape[1])
        for index, layers in groupby(zip(sketch.indices, sketch.placements, strict=True), key=lambda layer: layer[0]):
            placements, size = [placement for _, placement in layers], self.picture_size(index)
            picture = images.read(self.annotations.path(index), most_pixels_needed(placements, size, whole_canvas))
            for placement in placements:
                paint(canvas, picture, size, placement, sketch.colours)
                found = [cover(below, placement.onto) for below in found]
                found.append(place(self.objects(index), placement))
        return rasters.fill(join(found), whole_canvas)

    def sketch(self, index: int, augment: Augment, rng: np.random.Generator) -> Sketch:
        """Draw everything random about a sample."""
        is_mosaic = rng.random() < augment.mosaic
        sketch = self.mosaic_sketch(index, rng) if is_mosaic else self.single_sketch(index, augment, rng)
        if rng.random() < augment.flip:
            mirrored = tuple(placement.mirror(sketch.size[1]) for placement in sketch.placements)
            sketch = replace(sketch, placements=mirrored)
        # the last of all draws: with or without, the others stay the same
        if not is_mosaic and rng.random() < augment.paste:
            sketch = self.pasted(sketch, augment.flip, rng)
        return sketch

    def mosaic_sketch(self, index: int, rng: np.random.Generator) -> Sketch:
        """The picture and three random others, in random places."""
        chosen = rng.permutation([index, *rng.integers(0, len(self.annotations), 3)]).tolist()
        return Sketch(tuple(chosen), tuple(mosaic([self.picture_size(i) for i in chosen], self.spec.size)))

    def single_sketch(self, index: int, augment: Augment, rng: np.random.Generator) -> Sketch:
        """The picture alone: colours, zoom-out, crop, short side. Its size follows from what is seen of it."""
        spec, (height, width) = self.spec, self.picture_size(index)
        view: Rect = (0, 0, width, height)
        colours = distortion(rng, augment.photometric)
        if rng.random() < augment.zoom_out:
            view = zoom_out(view, rng)
        if rng.random() < augment.iou_crop:
            view = iou_crop(view, self.objects(index).boxes, rng)
        if augment.shortest and rng.random() < augment.shortest:  # nothing is drawn where it is off
            view, spec = shortest(view, spec, rng)
        height, width = spec.fitted(view[3] - view[1], view[2] - view[0])
        return Sketch((index,), (Placement(view, (0, 0, width, height)),), colours)

    def pasted(self, sketch: Sketch, flip: float, rng: np.random.Generator) -> Sketch:
        """A sketch of a single picture with objects of a random other one on top."""
        there = place(self.objects(sketch.indices[0]), sketch.placements[0]).boxes
        other = int(rng.integers(0, len(self.annotations)))
        size = self.picture_size(other)
        placements = paste(self.objects(other), size, there, sketch.size, flip, rng, self.spec.fitted(*size))
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


def raw_batch(
    pictures: NDArray[np.uint8], objects: Sequence[Objects], indices: tuple[int, ...], sizes: NDArray[np.int64]
) -> RawBatch:
    """Move the masks of all objects into one tensor. ``pictures`` are [B, 3, H, W]."""
    masks = [found.masks for found in objects if found.masks is not None]
    return RawBatch(
        torch.from_numpy(pictures),
        [replace(found, masks=None) for found in objects],
        indices,
        sizes,
        torch.from_numpy(np.concatenate(masks)) if masks else None,
    )
