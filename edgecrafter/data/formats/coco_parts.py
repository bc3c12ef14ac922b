"""Polygons and keypoints of a COCO file, checked while boxes are read: broken ones are better known before training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgecrafter.data.formats import coco_fields
from edgecrafter.data.formats.coco_fields import Record


def polygons(file: Path, objects: list[Record]) -> list[str]:
    """Notes on masks that cannot be drawn: fewer than three points, or half a point. Their boxes stay usable."""
    broken = [row for row, record in enumerate(objects) if not _drawable(record.get("segmentation"))]
    what = "polygons of fewer than three points or of an odd count of numbers (the boxes are used)"
    return _note(what, file, broken, objects)


def keypoints(file: Path, objects: list[Record], categories: list[Record], pictures: list[Record]) -> list[str]:
    """Notes on keypoints; ``ValueError`` for a wrong count of numbers or a visibility other than 0, 1 or 2.

    Only for categories that list keypoints. Counts that do not agree with the points, and visible points outside of
    their picture, are noted.
    """
    expected = {record.get("id"): len(record["keypoints"]) for record in categories if record.get("keypoints")}
    if not expected:
        return []
    sizes = {record.get("id"): (record.get("width"), record.get("height")) for record in pictures}
    miscounted, outside = [], []
    for row, record in enumerate(objects):
        if record.get("keypoints") is None or record.get("category_id") not in expected:
            continue
        points = _points(file, objects, row, expected[record["category_id"]])
        if record.get("num_keypoints") not in (None, int((points[:, 2] > 0).sum())):
            miscounted.append(row)
        limit = sizes.get(record.get("image_id"), (None, None))
        seen = points[points[:, 2] > 0, :2]
        if (seen < 0).any() or (None not in limit and (seen > np.array(limit)).any()):
            outside.append(row)
    return [
        *_note("objects whose num_keypoints is not the count of their labelled points", file, miscounted, objects),
        *_note("objects with a labelled keypoint outside of their picture", file, outside, objects),
    ]


def _points(file: Path, objects: list[Record], row: int, count: int) -> NDArray[np.float64]:
    """The keypoints of an object, [K, 3]."""

    def fault(text: str) -> ValueError:
        return coco_fields.wrong(file, "annotation", objects, row, "keypoints", text)

    values = objects[row]["keypoints"]
    if not isinstance(values, list) or len(values) != 3 * count or not all(isinstance(v, int | float) for v in values):
        raise fault(f"{3 * count} numbers (x, y and visibility of {count} keypoints)")
    points = np.array(values, dtype=np.float64).reshape(count, 3)
    if not np.isin(points[:, 2], (0, 1, 2)).all():
        raise fault("a visibility of 0, 1 or 2 for each keypoint")
    return points


def _drawable(segmentation: Any) -> bool:
    """Whether a segmentation is absent, a run-length mask, or polygons of three points or more."""
    if not isinstance(segmentation, list):
        return True
    return all(isinstance(part, list) and len(part) >= 6 and len(part) % 2 == 0 for part in segmentation)


def _note(what: str, file: Path, broken: list[int], objects: list[Record]) -> list[str]:
    if not broken:
        return []
    first = coco_fields.name("annotation", objects, broken[0])
    return [f"{what}: {len(broken)} (first: {file.name}, {first})"]
