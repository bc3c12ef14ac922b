"""What COCO's counting says: average precision and recall by overlap, class, area and limit.

A number that has no meaning (AP of a class without objects) is ``nan``, never 0.

Letters of the library's arrays: T overlap thresholds 0.50..0.95, R recall levels 0.00..1.00, K classes, A areas (all,
then those of the kind), M limits of detections per image and class.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgecrafter.types import Labels


@dataclass(frozen=True)
class Kind:
    """What COCO measures when it compares boxes, masks or keypoints."""

    limits: tuple[int, ...]
    """detections per image and class that the standard numbers look at; the last one is that of the others"""
    areas: dict[str, int]
    """suffix of a score -> index of its area: s below 32 x 32 pixels, m up to 96 x 96, l above"""
    recalls: dict[str, dict[str, int]]
    """the mean recalls that are reported, and what each of them is restricted to"""


_BOXES = Kind((1, 10, 100), {"s": 1, "m": 2, "l": 3}, {f"AR{n}": {"limit": i} for i, n in enumerate((1, 10, 100))})
KINDS = {
    "bbox": _BOXES,
    "segm": _BOXES,
    "keypoints": Kind((20,), {"m": 1, "l": 2}, {"AR": {}, "AR50": {"overlap": 0}, "AR75": {"overlap": 5}}),
}


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


@dataclass(frozen=True)
class CocoCount:
    """What the counting gave; -1 marks the undefined entries of the library's arrays. Classes are sorted by id."""

    labels: Labels
    kind: Kind
    limits: tuple[int, ...]
    """those of the kind, and perhaps a higher one"""
    objects: NDArray[np.int64]
    """[C] objects of every label, without those that are neither found nor missed"""
    precision: NDArray[np.float64]
    """[T, R, K, A, M]"""
    recall: NDArray[np.float64]
    """[T, K, A, M]"""
    confidence: NDArray[np.float64]
    """[T, R, K, A, M] the score at which a recall level is reached"""

    def scores(self) -> dict[str, float]:
        """COCO's numbers in 0..1, and ``AP@n`` and ``ARn`` for a higher limit.

        ``AP AP50 AP75 APs APm APl AR1 AR10 AR100 ARs ARm ARl`` of boxes and masks, ``AP AP50 AP75 APm APl AR AR50 AR75
        ARm ARl`` of keypoints.
        """
        named = {"AP": self._ap(), "AP50": self._ap(overlap=0), "AP75": self._ap(overlap=5)}
        named |= {f"AP{suffix}": self._ap(area=index) for suffix, index in self.kind.areas.items()}
        named |= {name: self._ar(**restricted) for name, restricted in self.kind.recalls.items()}
        named |= {f"AR{suffix}": self._ar(area=index) for suffix, index in self.kind.areas.items()}
        for index in range(len(self.kind.limits), len(self.limits)):
            limit = self.limits[index]
            named |= {f"AP@{limit}": self._ap(limit=index), f"AR{limit}": self._ar(limit=index)}
        return named

    def per_class(self) -> list[ClassScore]:
        """One row per class, in the order of ``labels.used``: a label that stands for no class has none."""
        return [self._class(label) for label in self.labels.used]

    def curve(self, label: int) -> NDArray[np.float64]:
        """Recall, precision (COCO's, never rising) and score of one class at an overlap of 0.5, [101, 3]."""
        at = (0, slice(None), self._column(label), 0, self._standard)
        recall = np.linspace(0.0, 1.0, self.precision.shape[1])
        return np.stack([recall, self.precision[at], self.confidence[at]], axis=1)

    @property
    def _standard(self) -> int:
        return len(self.kind.limits) - 1

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

    def _ap(self, **restricted: int) -> float:
        return self._mean(self.precision.swapaxes(0, 1), **restricted)

    def _ar(self, **restricted: int) -> float:
        return self._mean(self.recall[None], **restricted)

    def _mean(
        self,
        values: NDArray[np.float64],
        overlap: int | None = None,
        column: int | None = None,
        area: int = 0,
        limit: int | None = None,
    ) -> float:
        """The mean of the defined entries of values [.., T, K, A, M], nan when there is none."""
        values = values[:, :, :, area, self._standard if limit is None else limit]
        values = values if overlap is None else values[:, overlap]
        values = values if column is None else values[..., column]
        defined = values[values > -1]
        return float(defined.mean()) if defined.size else float("nan")


def count(
    truth: dict[str, Any], results: list[dict[str, Any]], limits: Sequence[int], kind: str, sigmas: Sequence[float]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Precision, recall and scores as the library accumulates them from a COCO object and results of a kind.

    The results belong to the library afterwards: it adds to them.
    """
    from faster_coco_eval import COCO
    from faster_coco_eval.core import COCOeval_faster

    known = COCO(truth, print_function=_silent)
    if kind == "bbox":
        for result in results:  # or else the library makes a polygon of every box, which nobody reads
            result["segmentation"] = []
    found = known.loadRes(results)
    options = {"kpt_oks_sigmas": np.asarray(sigmas)} if kind == "keypoints" else {}
    counter = COCOeval_faster(known, found, iouType=kind, print_function=_silent, **options)
    counter.params.maxDets = list(limits)
    counter.params.catIds = sorted(known.getCatIds())  # for keypoints it would take those with objects alone
    counter.evaluate()
    counter.accumulate()
    return counter.eval["precision"], counter.eval["recall"], counter.eval["scores"]


def _silent(*_: object) -> None:
    """The library reports its progress; we do not."""
