"""What a data set says, in flat arrays: the one form that all readers write and everything else reads.

I pictures, N objects. The objects of a picture lie next to each other; ``offsets`` says where. There is no Python
object per picture or box, so that worker processes share the memory of their parent instead of copying it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgecrafter.types import Labels, Skeleton


@dataclass(frozen=True, eq=False)
class Masks:
    """Masks of N objects: each has polygons (R rings of T points in all), or a run-length code, or neither."""

    points: NDArray[np.float32]
    """[T, 2] x, y in pixels"""
    rings: NDArray[np.int64]
    """[R + 1] ring r is points[rings[r]] .. points[rings[r + 1]], three points or more; the last joins the first"""
    objects: NDArray[np.int64]
    """[N + 1] object i has the rings objects[i] .. objects[i + 1]; its mask is their union"""
    codes: NDArray[np.uint8]
    """COCO's compressed run lengths (the text) of the objects that have one, one after the other"""
    code_offsets: NDArray[np.int64]
    """[N + 1]"""

    def __len__(self) -> int:
        return len(self.objects) - 1

    def polygons(self, index: int) -> list[NDArray[np.float32]]:
        """The rings of an object, [P, 2] each; none where it has a code."""
        edges = self.rings[self.objects[index] : self.objects[index + 1] + 1].tolist()
        return [self.points[start:stop] for start, stop in pairwise(edges)]

    def code(self, index: int) -> bytes:
        """The compressed run lengths of an object, for the size of its picture; empty where it has polygons."""
        return self.codes[self.code_offsets[index] : self.code_offsets[index + 1]].tobytes()

    def take(self, rows: NDArray[np.int64] | NDArray[np.bool_]) -> Masks:
        """The masks of the chosen objects: rows in the given order, or where a bool vector says so."""
        chosen = np.flatnonzero(rows) if rows.dtype == bool else rows.astype(np.int64)
        if np.array_equal(chosen, np.arange(len(self))):
            return self
        ring_rows, objects = _gather(self.objects, chosen)
        point_rows, rings = _gather(self.rings, ring_rows)
        letters, code_offsets = _gather(self.code_offsets, chosen)
        return Masks(self.points[point_rows], rings, objects, self.codes[letters], code_offsets)


@dataclass(frozen=True, eq=False)
class Annotations:
    """Pictures and their objects, columnar. Masks and keypoints are there where the task asked for them."""

    root: Path
    """the folder that the picture names are relative to"""
    labels: Labels
    image_ids: NDArray[np.int64]
    """[I]"""
    sizes: NDArray[np.int32]
    """[I, 2] height, width in pixels of the upright picture (EXIF orientation applied)"""
    names: NDArray[np.uint8]
    """file names, UTF-8, one after the other; ``name_offsets`` separates them, ``path`` reads them"""
    name_offsets: NDArray[np.int64]
    """[I + 1]"""
    offsets: NDArray[np.int64]
    """[I + 1] picture i has the objects offsets[i] .. offsets[i + 1]"""
    boxes: NDArray[np.float32]
    """[N, 4] xyxy in pixels, clipped to the picture, width and height above 0"""
    classes: NDArray[np.int64]
    """[N] index into ``labels.names``"""
    areas: NDArray[np.float32]
    """[N] square pixels; of the mask where the data say so, else of the box"""
    crowd: NDArray[np.bool_]
    """[N] regions that are neither learned nor counted as missed"""
    ids: NDArray[np.int64]
    """[N] annotation ids"""
    notes: tuple[str, ...] = ()
    """what was skipped, clipped or dropped, one line for each kind, with the count and an example"""
    masks: Masks | None = None
    """of N objects; a code belongs to a picture of ``sizes``"""
    keypoints: NDArray[np.float32] | None = None
    """[N, K, 3] x, y in pixels and visibility (0 not labelled, 1 covered, 2 visible) of the K keypoints of
    ``labels.skeleton``; zeros where not labelled"""
    conditions: str = ""
    """how these pictures and objects were chosen, where that is a matter of choice; stated beside every AP"""

    def __len__(self) -> int:
        return len(self.image_ids)

    def path(self, index: int) -> Path:
        """Where the picture lies."""
        start, stop = self.name_offsets[index], self.name_offsets[index + 1]
        return self.root / os.fsdecode(self.names[start:stop].tobytes())

    def objects(self, index: int) -> slice:
        """The rows of a picture's objects in ``boxes``, ``classes``, ``areas``, ``crowd``, ``ids``, masks, ..."""
        return slice(int(self.offsets[index]), int(self.offsets[index + 1]))

    def counts(self) -> NDArray[np.int64]:
        """Objects of each picture, [I], crowd regions among them."""
        return np.diff(self.offsets)

    def learnable_counts(self) -> NDArray[np.int64]:
        """Objects of each picture that can be learned, [I]."""
        return np.bincount(self.image_index()[self.learnable()], minlength=len(self))

    def image_index(self) -> NDArray[np.int64]:
        """The picture of each object, [N]."""
        return np.repeat(np.arange(len(self)), self.counts())

    def learnable(self) -> NDArray[np.bool_]:
        """Objects that can be learned, [N]: no crowd, and with a labelled keypoint where keypoints are wanted."""
        if self.keypoints is None:
            return ~self.crowd
        return ~self.crowd & (self.keypoints[..., 2] > 0).any(axis=1)

    def subset(self, indices: Sequence[int] | NDArray[np.int64] | NDArray[np.bool_]) -> Annotations:
        """The chosen pictures in the given order (or where a bool vector says so), with their objects."""
        chosen = np.asarray(indices)
        chosen = np.flatnonzero(chosen) if chosen.dtype == bool else chosen.astype(np.int64)
        rows, offsets = _gather(self.offsets, chosen)
        letters, name_offsets = _gather(self.name_offsets, chosen)
        return replace(
            self,
            image_ids=self.image_ids[chosen],
            sizes=self.sizes[chosen],
            names=self.names[letters],
            name_offsets=name_offsets,
            offsets=offsets,
            boxes=self.boxes[rows],
            classes=self.classes[rows],
            areas=self.areas[rows],
            crowd=self.crowd[rows],
            ids=self.ids[rows],
            masks=None if self.masks is None else self.masks.take(rows),
            keypoints=None if self.keypoints is None else self.keypoints[rows],
        )

    def noted(self, *notes: str) -> Annotations:
        """The same with more notes."""
        return replace(self, notes=(*self.notes, *notes))


def pack(names: Sequence[str]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """File names as one row of bytes and its offsets, the columns ``names`` and ``name_offsets``."""
    parts = [os.fsencode(name) for name in names]
    offsets = np.zeros(len(parts) + 1, dtype=np.int64)
    np.cumsum([len(part) for part in parts], out=offsets[1:])
    return np.frombuffer(b"".join(parts), dtype=np.uint8), offsets


def to_coco(annotations: Annotations) -> dict[str, Any]:
    """The data as a COCO object (``images``, ``annotations``, ``categories``) with the original category ids.

    Annotation ids are kept, unless one is below 1: COCO's counting takes an id of 0 for "not matched", so then all are
    numbered from 1. Masks become ``segmentation``; keypoints become ``keypoints`` and ``num_keypoints``, and their
    names, edges, left-right pairs and tolerances stand with every category. ``info`` says the ``conditions``, if any.
    """
    labels = annotations.labels
    ids = annotations.ids
    if len(ids) and ids.min() < 1:
        ids = np.arange(1, len(ids) + 1)
    image_ids = annotations.image_ids[annotations.image_index()]
    categories = np.asarray(labels.ids, dtype=np.int64)[annotations.classes]
    boxes = annotations.boxes.astype(np.float64)
    boxes[:, 2:] -= boxes[:, :2]
    columns = {
        "id": ids.tolist(),
        "image_id": image_ids.tolist(),
        "category_id": categories.tolist(),
        "bbox": boxes.tolist(),
        "area": annotations.areas.astype(np.float64).tolist(),
        "iscrowd": annotations.crowd.astype(int).tolist(),
        **_segmentations(annotations),
        **_keypoints(annotations),
    }
    shared = _skeleton(labels.skeleton) if annotations.keypoints is not None and labels.skeleton else {}
    return {
        **({"info": {"description": annotations.conditions}} if annotations.conditions else {}),
        "images": [_image(annotations, index) for index in range(len(annotations))],
        "annotations": [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)],
        "categories": [{"id": key, "name": name, **shared} for key, name in zip(labels.ids, labels.names, strict=True)],
    }


def _segmentations(annotations: Annotations) -> dict[str, list[Any]]:
    masks = annotations.masks
    if masks is None:
        return {}
    sizes = annotations.sizes[annotations.image_index()].tolist()
    found: list[Any] = []
    for index, size in enumerate(sizes):
        code = masks.code(index).decode("ascii")
        rings = [ring.flatten().tolist() for ring in masks.polygons(index)]
        found.append({"size": size, "counts": code} if code else rings)
    return {"segmentation": found}


def _keypoints(annotations: Annotations) -> dict[str, list[Any]]:
    points = annotations.keypoints
    if points is None:
        return {}
    labelled = (points[..., 2] > 0).sum(axis=1)
    return {"keypoints": points.reshape(len(points), -1).tolist(), "num_keypoints": labelled.tolist()}


def _skeleton(skeleton: Skeleton) -> dict[str, Any]:
    """What a category says of its keypoints; the edges count from 1, as COCO's do, the pairs from 0."""
    return {
        "keypoints": list(skeleton.names),
        "skeleton": [[start + 1, stop + 1] for start, stop in skeleton.edges],
        "flip_pairs": [list(pair) for pair in skeleton.flip_pairs],
        "sigmas": list(skeleton.sigmas),
    }


def _image(annotations: Annotations, index: int) -> dict[str, Any]:
    path = annotations.path(index)
    name = path.relative_to(annotations.root) if path.is_relative_to(annotations.root) else path
    height, width = annotations.sizes[index].tolist()
    return {"id": int(annotations.image_ids[index]), "file_name": name.as_posix(), "height": height, "width": width}


def _gather(offsets: NDArray[np.int64], chosen: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows of the chosen runs, one run after the other, and the new offsets."""
    counts = np.diff(offsets)[chosen]
    fresh = np.zeros(len(chosen) + 1, dtype=np.int64)
    np.cumsum(counts, out=fresh[1:])
    rows = np.arange(fresh[-1]) + np.repeat(offsets[chosen] - fresh[:-1], counts)
    return rows, fresh
