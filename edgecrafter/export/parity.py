"""The proof of an export: the same pictures through torch and through the runtime."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edgecrafter.geometry import boxes as box_ops
from edgecrafter.predict import Predictor, Source
from edgecrafter.results import Result

SURE, LEAST, MOST = 0.1, 5, 50
"""compared are detections of at least this score, at least so many of a picture, and at most so many"""


@dataclass(frozen=True)
class Tolerance:
    """The largest differences that are accepted."""

    box: float
    """of box sides and keypoints, in pixels of the network's input"""
    score: float
    mask: float
    """least overlap (IoU) of two masks of at least 64 pixels"""


TOLERANCES = {"fp32": Tolerance(0.5, 0.01, 0.98), "fp16": Tolerance(3.0, 0.05, 0.9)}
"""int8 has none: what it costs is said in AP"""


@dataclass
class Parity:
    """What came out of a comparison; differences are the largest over all pictures."""

    images: int
    detections: int
    """compared"""
    missing: int
    """of torch's that the runtime does not have: same label, boxes overlapping by at least a half"""
    box_px: float
    """in pixels of the network's input, keypoints included"""
    score: float
    mask_iou: float | None
    """the least"""
    worst: str
    """the picture with the largest difference"""
    passed: bool

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        masks = "" if self.mask_iou is None else f", masks overlap by {self.mask_iou:.3f} at least"
        missing = f"{self.missing} missing of " if self.missing else ""
        return (
            f"parity {'passed' if self.passed else 'FAILED'}: {missing}{self.detections} detections in {self.images} "
            f"pictures; boxes differ by {self.box_px:.2g} px of the input at most, scores by {self.score:.2g}{masks}; "
            f"worst picture: {self.worst}"
        )


def compare(
    reference: Predictor, exported: Predictor, pictures: Source, size: tuple[int, int], tolerance: Tolerance | None
) -> Parity:
    """Predict on the same pictures with both, whose input is of ``size``. ``tolerance`` None: everything passes that is
    finite.

    Raises FileNotFoundError and ValueError for pictures that cannot be read, as prediction does.
    """
    rows: list[tuple[str, _Differences]] = []
    answers = zip(reference.stream(pictures, conf=0.0, max_det=MOST), exported.stream(pictures, conf=0.0), strict=True)
    for ours, theirs in answers:
        kept = ours.take((ours.scores >= SURE) | (torch.arange(len(ours)) < LEAST))
        rows.append((ours.title, _differences(kept, theirs, size)))
    limit = tolerance or Tolerance(float("inf"), float("inf"), 0.0)
    worst, _ = max(rows, key=lambda row: row[1].badness(tolerance or Tolerance(1.0, 0.01, 0.98)))
    every = [row for _, row in rows]
    overlaps = [row.mask_iou for row in every if row.mask_iou is not None]
    found = Parity(
        images=len(rows),
        detections=sum(row.compared for row in every),
        missing=sum(row.missing for row in every),
        box_px=max(row.box for row in every),
        score=max(row.score for row in every),
        mask_iou=min(overlaps) if overlaps else None,
        worst=worst,
        passed=False,
    )
    masks = found.mask_iou is None or found.mask_iou >= limit.mask
    close = found.box_px <= limit.box and found.score <= limit.score and masks  # false for what is not a number
    found.passed = close and (found.missing == 0 or tolerance is None)
    return found


@dataclass
class _Differences:
    """Of one picture."""

    compared: int
    missing: int
    box: float = 0.0
    score: float = 0.0
    mask_iou: float | None = None

    def badness(self, tolerance: Tolerance) -> float:
        masks = 0.0 if self.mask_iou is None else (1 - self.mask_iou) / max(1 - tolerance.mask, 1e-9)
        return float(self.missing * 1e6 + self.box / tolerance.box + self.score / tolerance.score + masks)


def _differences(ours: Result, theirs: Result, size: tuple[int, int]) -> _Differences:
    """Every detection of ours against the one of the same label that overlaps it most; each partner once."""
    if not len(ours):
        return _Differences(0, 0)
    scale = torch.tensor([size[1] / ours.size[1], size[0] / ours.size[0]] * 2)
    partners, taken = _partners(ours, theirs)
    mine, other = ours.take(taken), theirs.take(partners)
    found = _Differences(len(ours), int((~taken).sum()))
    if not len(mine):
        return found
    found.box = float(((mine.boxes - other.boxes).abs() * scale).max())
    found.score = float((mine.scores - other.scores).abs().max())
    if mine.keypoints is not None and other.keypoints is not None:
        found.box = max(found.box, float(((mine.keypoints - other.keypoints)[..., :2].abs() * scale[:2]).max()))
    if mine.masks is not None and other.masks is not None:
        a, b = mine.masks.array(), other.masks.array()
        union = (a | b).sum((1, 2))
        large = union >= 64
        found.mask_iou = float(np.min((a & b).sum((1, 2))[large] / union[large])) if large.any() else None
    return found


def _partners(ours: Result, theirs: Result) -> tuple[Tensor, Tensor]:
    """Index of the partner of each of ours that has one, and which of ours those are (bool)."""
    if not len(theirs):
        return torch.zeros(0, dtype=torch.int64), torch.zeros(len(ours), dtype=torch.bool)
    likeness = _likeness(ours, theirs)
    likeness -= (ours.scores[:, None] - theirs.scores[None]).abs()  # of several alike, the one with the same score
    likeness = likeness.masked_fill(ours.labels[:, None] != theirs.labels[None], -1.0)
    partners, taken = [], torch.zeros(len(ours), dtype=torch.bool)
    for row in range(len(ours)):
        best = int(likeness[row].argmax())
        if likeness[row, best] >= 0.5 or bool((ours.boxes[row] == theirs.boxes[best]).all()):
            partners.append(best)
            taken[row] = True
            likeness[:, best] = -2.0
    return torch.tensor(partners, dtype=torch.int64), taken


def _likeness(ours: Result, theirs: Result) -> Tensor:
    """How much alike two detections are, [N, M]: the overlap of their boxes; of poses, whose boxes may have no size,
    1 for the same keypoints and a half for a mean distance of 1/64 of the picture."""
    if ours.keypoints is None or theirs.keypoints is None:
        return box_ops.iou(ours.boxes, theirs.boxes)
    far = torch.cdist(ours.keypoints[..., :2].flatten(1), theirs.keypoints[..., :2].flatten(1), p=1)
    return 1 / (1 + 64 * far / (2 * ours.keypoints.shape[1] * max(ours.size)))


def pictures(given: Sequence[str], found: Sequence[str]) -> Source:
    """Which pictures prove an export: those that are given, else those found in the data, else generated ones."""
    if given or found:
        return list(given or found)
    from PIL import Image

    from edgecrafter.data import scenes

    rng = [np.random.default_rng([20, index]) for index in range(4)]
    return [Image.fromarray(np.asarray(scenes.scene(each, 320).image)) for each in rng]
