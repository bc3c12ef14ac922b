"""Average precision as COCO defines it, collected image by image and counted by faster-coco-eval.

The collected detections are plain tensors, so processes that share an evaluation can exchange and merge them. A number
that has no meaning (AP of a class without objects) is ``nan``, never 0.

Letters of the library's arrays: T overlap thresholds 0.50..0.95, R recall levels 0.00..1.00, K classes, A areas (all,
small, medium, large), M limits of detections per image and class.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgecrafter.data.annotations import Annotations, to_coco
from edgecrafter.types import Detections, Labels

LIMITS = (1, 10, 100)
"""detections per image and class that the standard numbers look at"""
STANDARD = LIMITS.index(100)
AREAS = {"": 0, "s": 1, "m": 2, "l": 3}
"""suffix of a score -> index of its area: all, below 32 x 32 pixels, up to 96 x 96, above"""


@dataclass(frozen=True)
class ClassScore:
    """How well one class was found. Undefined numbers are ``nan``.

    ``f1`` is the best F1 over all score thresholds at an overlap of 0.5; ``threshold`` is the score that reaches it,
    ``precision`` and ``recall`` belong to it (recall is read on COCO's grid, in steps of 0.01, rounded down).
    """

    name: str
    category_id: int
    objects: int
    ap: float
    ap50: float
    ar: float
    f1: float
    precision: float
    recall: float
    threshold: float


class CocoScorer:
    """Collects the detections of every image of ``annotations`` and counts them against the truth.

    Crowd regions are ignored as COCO does: a detection inside one is neither right nor wrong.

    Args:
        annotations: the truth; its labels are the labels of the detections.
        max_det: also score that many detections per image and class, for scenes with more than 100 objects of a class.
            The standard numbers keep their limits.
    """

    def __init__(self, annotations: Annotations, max_det: int | None = None) -> None:
        self.annotations = annotations
        self.limits = [*LIMITS, max_det] if max_det is not None and max_det > LIMITS[-1] else list(LIMITS)
        self._rows = {int(image): row for row, image in enumerate(annotations.image_ids)}
        self._found: dict[int, Detections] = {}

    def add(self, image_id: int, found: Detections) -> None:
        """Take the detections of one image: an empty ``found`` where nothing was found, boxes xyxy in pixels."""
        if image_id not in self._rows:
            raise ValueError(f"image id {image_id} is not among the {len(self._rows)} images that are scored")
        if image_id in self._found:
            raise ValueError(f"image id {image_id} was added before: every image counts once")
        self._found[image_id] = Detections(found.scores.cpu(), found.labels.cpu(), found.boxes.cpu())

    def state(self) -> dict[str, Tensor]:
        """What was collected, as CPU tensors: images [I], counts [I], scores [N], labels [N], boxes [N, 4]."""
        found = self._found.values()
        return {
            "images": torch.tensor(list(self._found), dtype=torch.int64),
            "counts": torch.tensor([len(each) for each in found], dtype=torch.int64),
            "scores": torch.cat([torch.zeros(0), *(each.scores for each in found)]),
            "labels": torch.cat([torch.zeros(0, dtype=torch.int64), *(each.labels for each in found)]),
            "boxes": torch.cat([torch.zeros(0, 4), *(each.boxes for each in found)]),
        }

    def merge(self, states: Iterable[Mapping[str, Tensor]]) -> None:
        """Take the states of other processes. An image that is already here, or comes twice, is counted once."""
        for state in states:
            counts = state["counts"].tolist()
            parts = zip(*(torch.split(state[name], counts) for name in ("scores", "labels", "boxes")), strict=True)
            for image, part in zip(state["images"].tolist(), parts, strict=True):
                if image not in self._found:
                    self.add(image, Detections(*part))

    def results(self) -> list[dict[str, Any]]:
        """The detections in COCO's result format, with the category ids of the data, in the order of the images."""
        ids = np.asarray(self.annotations.labels.ids)
        results = []
        for image in sorted(self._found, key=self._rows.__getitem__):
            found = self._found[image]
            corners = found.boxes.double().numpy()
            boxes = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)
            columns = zip(ids[found.labels.numpy()].tolist(), boxes.tolist(), found.scores.tolist(), strict=True)
            results += [{"image_id": image, "category_id": c, "bbox": b, "score": s} for c, b, s in columns]
        return results

    def count(self) -> CocoCount:
        """Match detections and objects. Raises ValueError when images are missing: they would pass as empty."""
        missing = self._rows.keys() - self._found.keys()
        if missing:
            raise ValueError(
                f"{len(missing)} of {len(self._rows)} images have no result (for example id {min(missing)}). "
                "Add every image, an empty one where nothing was found, or score a subset of the annotations."
            )
        arrays = _count(to_coco(self.annotations), self.results(), self.limits, "bbox")
        objects = np.bincount(self.annotations.classes[~self.annotations.crowd], minlength=len(self.annotations.labels))
        return CocoCount(self.annotations.labels, tuple(self.limits), objects, *arrays)


@dataclass(frozen=True)
class CocoCount:
    """What the counting gave; -1 marks the undefined entries of the library's arrays. Classes are sorted by id."""

    labels: Labels
    limits: tuple[int, ...]
    objects: NDArray[np.int64]
    """[C] objects of every label, without crowds"""
    precision: NDArray[np.float64]
    """[T, R, K, A, M]"""
    recall: NDArray[np.float64]
    """[T, K, A, M]"""
    confidence: NDArray[np.float64]
    """[T, R, K, A, M] the score at which a recall level is reached"""

    def scores(self) -> dict[str, float]:
        """``AP AP50 AP75 APs APm APl AR1 AR10 AR100 ARs ARm ARl`` in 0..1; ``AP@n`` and ``ARn`` for a higher limit."""
        named = {"AP": self._ap(), "AP50": self._ap(overlap=0), "AP75": self._ap(overlap=5)}
        named |= {f"AP{suffix}": self._ap(area=index) for suffix, index in AREAS.items() if suffix}
        named |= {f"AR{limit}": self._ar(limit=index) for index, limit in enumerate(LIMITS)}
        named |= {f"AR{suffix}": self._ar(area=index) for suffix, index in AREAS.items() if suffix}
        for index, limit in enumerate(self.limits[len(LIMITS) :], start=len(LIMITS)):
            named |= {f"AP@{limit}": self._ap(limit=index), f"AR{limit}": self._ar(limit=index)}
        return named

    def per_class(self) -> list[ClassScore]:
        """One row per class, in the order of the labels."""
        return [self._class(label) for label in range(len(self.labels))]

    def curve(self, label: int) -> NDArray[np.float64]:
        """Recall, precision (COCO's, never rising) and score of one class at an overlap of 0.5, [101, 3]."""
        at = (0, slice(None), self._column(label), 0, STANDARD)
        recall = np.linspace(0.0, 1.0, self.precision.shape[1])
        return np.stack([recall, self.precision[at], self.confidence[at]], axis=1)

    def _class(self, label: int) -> ClassScore:
        column = self._column(label)
        best = [float("nan")] * 4
        recall, precision, score = self.curve(label).T
        f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
        if f1.max() > 0:
            best = [float(values[f1.argmax()]) for values in (f1, precision, recall, score)]
        ap, ap50, ar = self._ap(column=column), self._ap(overlap=0, column=column), self._ar(column=column)
        count = int(self.objects[label])
        return ClassScore(self.labels.names[label], self.labels.ids[label], count, ap, ap50, ar, *best)

    def _column(self, label: int) -> int:
        return sorted(self.labels.ids).index(self.labels.ids[label])

    def _ap(self, overlap: int | None = None, column: int | None = None, area: int = 0, limit: int = STANDARD) -> float:
        values = self.precision[:, :, :, area, limit]
        values = values if overlap is None else values[overlap : overlap + 1]
        return _mean(values if column is None else values[:, :, column])

    def _ar(self, column: int | None = None, area: int = 0, limit: int = STANDARD) -> float:
        values = self.recall[:, :, area, limit]
        return _mean(values if column is None else values[:, column])


def _mean(values: NDArray[np.float64]) -> float:
    """The mean of the defined entries, nan when there is none."""
    defined = values[values > -1]
    return float(defined.mean()) if defined.size else float("nan")


def _count(
    truth: dict[str, Any], results: list[dict[str, Any]], limits: list[int], iou_type: str
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Precision, recall and scores as the library accumulates them."""
    from faster_coco_eval import COCO
    from faster_coco_eval.core import COCOeval_faster

    known = COCO(truth, print_function=_silent)
    for result in results:  # or else the library makes a polygon of every box, which nobody reads
        result["segmentation"] = []
    found = known.loadRes(results)
    counter = COCOeval_faster(known, found, iouType=iou_type, print_function=_silent)
    counter.params.maxDets = limits
    counter.evaluate()
    counter.accumulate()
    return counter.eval["precision"], counter.eval["recall"], counter.eval["scores"]


def _silent(*_: object) -> None:
    """The library reports its progress; we do not."""
