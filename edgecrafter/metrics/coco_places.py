"""Where detections are, as an evaluation keeps it: plain tensors, and how COCO's result format tells it.

Masks are kept as COCO's strings: about a kilobyte for one of 640 x 480 pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edgecrafter.geometry import runs
from edgecrafter.types import Detections

Columns = dict[str, Tensor]
"""what is kept of the N detections of an image"""


@dataclass(frozen=True)
class Places:
    """How one kind of place is kept and told."""

    name: str
    """in COCO's result format"""
    keep: Callable[[Detections], Columns]
    tell: Callable[[Columns, tuple[int, int]], list[Any]]
    """columns, (height, width) of the picture -> N values"""


def _keep_boxes(found: Detections) -> Columns:
    return {"boxes": found.boxes.cpu()}


def _tell_boxes(columns: Columns, _size: tuple[int, int]) -> list[Any]:
    boxes = columns["boxes"].double()
    told: list[Any] = torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], dim=1).tolist()
    return told


def _keep_masks(found: Detections) -> Columns:
    if found.masks is None:
        raise ValueError("these detections have no masks that could be scored. Is this a model of another task?")
    codes = runs.encode(found.masks.counts)
    letters = np.frombuffer(bytearray().join(codes), dtype=np.uint8)
    lengths = torch.tensor([len(code) for code in codes], dtype=torch.int64)
    return {"lengths": lengths, "letters": torch.from_numpy(letters)}


def _tell_masks(columns: Columns, size: tuple[int, int]) -> list[Any]:
    text, told, start = columns["letters"].numpy().tobytes().decode("ascii"), [], 0
    for length in columns["lengths"].tolist():
        told.append({"size": list(size), "counts": text[start : start + length]})
        start += length
    return told


def _keep_keypoints(found: Detections) -> Columns:
    if found.keypoints is None:
        raise ValueError("these detections have no keypoints that could be scored. Is this a model of another task?")
    return {"keypoints": found.keypoints.cpu()}


def _tell_keypoints(columns: Columns, _size: tuple[int, int]) -> list[Any]:
    """Keypoints that the class does not have are told, with visibility 0, where the first is that it has.

    COCO's tools take the area of a detection from all its points, and compare all with regions that are ignored.
    """
    points = columns["keypoints"].double()
    there = points[..., 2] > 0
    if not there.all():
        first = points[torch.arange(len(points)), there.int().argmax(1)] * points.new_tensor([1, 1, 0])
        points = torch.where(there[..., None], points, first[:, None])
    told: list[Any] = points.flatten(1).tolist()
    return told


PLACES = {
    "bbox": Places("bbox", _keep_boxes, _tell_boxes),
    "segm": Places("segmentation", _keep_masks, _tell_masks),
    "keypoints": Places("keypoints", _keep_keypoints, _tell_keypoints),
}


def nothing(keypoints: int) -> Detections:
    """No detections, with everything that detections can have."""
    labels = torch.zeros(0, dtype=torch.int64)
    points = torch.zeros(0, keypoints, 3)
    return Detections(torch.zeros(0), labels, torch.zeros(0, 4), masks=runs.Runs((0, 0), ()), keypoints=points)


def split(columns: Columns, counts: list[int]) -> list[Columns]:
    """The columns of several images, ``counts`` detections each, cut into those of every image."""
    shares = {name: counts for name in columns}
    if "letters" in columns:
        shares["letters"] = [int(lengths.sum()) for lengths in torch.split(columns["lengths"], counts)]
    parts = [torch.split(column, shares[name]) for name, column in columns.items()]
    return [dict(zip(columns, row, strict=True)) for row in zip(*parts, strict=True)]
