"""Whether a teacher understands the questions for the objects, and how to make them fit to it (specification of
CLoCKDistill, section 2.2: the paper does not say where the contents of the classes come from).

B images, K objects of the fullest image, C classes.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from edgecrafter.distill.detector import DetectorTeacher
from edgecrafter.distill.targets import Targets, collected
from edgecrafter.geometry import boxes as geometry
from edgecrafter.types import Batch, LayerOutput

ACCURACY, IOU = 0.9, 0.75
"""what a converged teacher should exceed"""
PICTURES, SECONDS = 200, 20.0
"""a probe ends at either"""
RATE = 1e-3
L1, GIOU = 5.0, 2.0


class Found(NamedTuple):
    """What a teacher answered to the questions for the objects."""

    accuracy: float
    """share of objects whose class has the best score"""
    iou: float
    """mean"""
    objects: int
    pictures: int

    def __str__(self) -> str:
        if not self.objects:
            return f"target questions: no objects in {self.pictures} pictures"
        told = (
            f"target questions: the teacher names {100 * self.accuracy:.1f} % of {self.objects} objects in "
            f"{self.pictures} pictures rightly, mean IoU {self.iou:.2f}"
        )
        if self.accuracy > ACCURACY and self.iou > IOU:
            return f"{told}: usable"
        return (
            f"{told}: weak (usable: above {100 * ACCURACY:.0f} % and {IOU}). Is the teacher trained on these data? If "
            "so, try mode=summed or fit_steps=500. Answers of which it is unsure count little"
        )


@torch.no_grad()
def probe(teacher: DetectorTeacher, targets: Targets, batches: Iterable[Batch]) -> Found:
    """How well the last layer of the teacher answers, on the first ``PICTURES`` pictures or for ``SECONDS``."""
    right, overlap, objects, pictures, begun = 0.0, 0.0, 0, 0, time.monotonic()
    for batch in batches:
        last, labels, boxes = _answers(teacher, targets, batch)[-1]
        right += float((last.logits.argmax(-1) == labels).sum())
        assert last.boxes is not None
        overlap += float(geometry.iou_paired(*_corners(last.boxes, boxes)).sum())
        objects, pictures = objects + len(labels), pictures + len(batch.images)
        if pictures >= PICTURES or time.monotonic() - begun > SECONDS:
            break
    return Found(right / max(objects, 1), overlap / max(objects, 1), objects, pictures)


def fit(teacher: DetectorTeacher, targets: Targets, batches: Iterable[Batch], steps: int) -> list[float]:
    """Fits what the questions are made of, and nothing else, to the frozen teacher: it should answer with the object.
    Frozen again afterwards. The loss of every step; pictures without objects are no step."""
    learned = [targets.table, *targets.parameters()]
    optimizer = torch.optim.Adam([part.requires_grad_() for part in learned], RATE)
    losses: list[float] = []
    for batch in _again(batches, steps):
        loss = torch.stack([_known(*layer) for layer in _answers(teacher, targets, batch)]).sum()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(float(loss.detach()))
    for part in learned:
        part.requires_grad_(False).grad = None
    return losses


def _again(batches: Iterable[Batch], steps: int) -> Iterator[Batch]:
    """Batches with objects, over and over."""
    while steps > 0:
        before = steps
        for batch in batches:
            if steps > 0 and any(len(target.labels) for target in batch.targets):
                steps -= 1
                yield batch
        if steps == before:
            raise ValueError("no objects in the training pictures to fit the questions to")


def _answers(teacher: DetectorTeacher, targets: Targets, batch: Batch) -> list[tuple[LayerOutput, Tensor, Tensor]]:
    """Of every layer the answers for all N objects of a batch, [N, C] and [N, 4], their labels [N] and boxes [N, 4]."""
    batch = batch.to(targets.table.device)
    labels, boxes, real = collected(batch, torch.Generator().manual_seed(0))
    group = targets(teacher.network.get_submodule("decoder"), labels, boxes, real)
    (said,) = teacher.answers(batch.images, [group], batch.valid).groups
    found = []
    for layer in said.layers:
        assert layer.boxes is not None
        found.append((LayerOutput(layer.logits[real], layer.boxes[real]), labels[real], boxes[real]))
    return found


def _known(found: LayerOutput, labels: Tensor, boxes: Tensor) -> Tensor:
    """The loss of detection where it is known which query is which object, mean over objects: classes each for itself,
    L1 of the coordinates, GIoU."""
    assert found.boxes is not None
    wanted = F.one_hot(labels, found.logits.shape[-1]).float()
    classes = F.binary_cross_entropy_with_logits(found.logits, wanted, reduction="sum") / len(labels)
    giou = 1 - geometry.giou_paired(*_corners(found.boxes, boxes)).mean()
    return classes + L1 * (found.boxes - boxes).abs().sum(-1).mean() + GIOU * giou


def _corners(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    return geometry.cxcywh_to_xyxy(one), geometry.cxcywh_to_xyxy(other)
