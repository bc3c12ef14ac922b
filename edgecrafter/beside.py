"""Pictures with the truth and what a model finds beside each other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from edgecrafter.data import images, rasters
from edgecrafter.data.annotations import Annotations, Masks
from edgecrafter.draw import draw
from edgecrafter.geometry import runs
from edgecrafter.geometry.runs import Runs
from edgecrafter.model import Model
from edgecrafter.predict import distinct
from edgecrafter.types import Detections

PICTURES = 6
"""that are drawn"""
GAP = 6
"""pixels between the truth and the prediction"""


def side_by_side(model: Model, annotations: Annotations, folder: Path, count: int = PICTURES) -> list[Path]:
    """Draw truth and prediction of the first ``count`` pictures that have objects beside each other."""
    folder.mkdir(parents=True, exist_ok=True)
    chosen = annotations.counts().nonzero()[0][:count].tolist()
    paths = [annotations.path(index) for index in chosen]
    written = [folder / name for name in distinct(f"{path.stem}.jpg" for path in paths)]
    for index, path, target in zip(chosen, paths, written, strict=True):
        picture = images.read(path)
        labels = annotations.labels
        true = draw(picture, truth_of(annotations, index), labels.names, labels.skeleton, scores=False)
        found = model.predict(picture)[0].plot()
        _beside([true, found]).save(target, quality=92)
    return written


def truth_of(annotations: Annotations, index: int) -> Detections:
    """The objects of a picture as if they were found, to be drawn."""
    rows = annotations.objects(index)
    boxes = torch.from_numpy(annotations.boxes[rows].copy())
    found = Detections(torch.ones(len(boxes)), torch.from_numpy(annotations.classes[rows].copy()), boxes)
    if annotations.masks is not None:
        found.masks = _masks(annotations.masks, range(rows.start, rows.stop), annotations.sizes[index].tolist())
    if annotations.keypoints is not None:
        found.keypoints = torch.from_numpy(annotations.keypoints[rows] / np.array([1, 1, 2], np.float32))
    return found


def _masks(masks: Masks, rows: Sequence[int], size: Sequence[int]) -> Runs:
    """The masks of some objects of a picture of ``size`` (h, w); empty ones where there are none."""
    height, width = size
    counts: list[NDArray[np.int64]] = []
    for row in rows:
        code, rings = masks.code(row), [ring.astype(np.float64) for ring in masks.polygons(row)]
        pixels = np.zeros((1, height, width), bool)
        if rings:
            x, y, patch = rasters.outline(rings, (0, 0, width, height))
            pixels[0, y : y + patch.shape[0], x : x + patch.shape[1]] = patch
        counts += runs.decode([code]) if code and not rings else runs.from_array(pixels).counts
    return Runs((height, width), tuple(counts))


def _beside(pictures: Sequence[Image.Image]) -> Image.Image:
    sheet = Image.new("RGB", (sum(p.width for p in pictures) + GAP * (len(pictures) - 1), pictures[0].height), "white")
    left = 0
    for picture in pictures:
        sheet.paste(picture, (left, 0))
        left += picture.width + GAP
    return sheet
