"""Average precision as COCO defines it, collected image by image and counted by faster-coco-eval.

What is collected are plain tensors, so processes that share an evaluation can exchange and merge them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edgecrafter.data.annotations import Annotations, to_coco
from edgecrafter.metrics import coco_count
from edgecrafter.metrics.coco_count import KINDS, CocoCount
from edgecrafter.metrics.coco_places import PLACES, Columns, nothing, split
from edgecrafter.types import Detections


class CocoScorer:
    """Collects the detections of every image of ``annotations`` and counts them against the truth.

    Crowd regions are ignored as COCO does: a detection inside one is neither right nor wrong.

    Args:
        annotations: the truth; its labels are the labels of the detections.
        max_det: also score that many detections per image and class, for scenes with more objects of a class than
            COCO's limit (100, of keypoints 20). The standard numbers keep their limits.
        kind: what is compared: ``bbox``, ``segm`` or ``keypoints``. The annotations and the detections have it.
    """

    def __init__(self, annotations: Annotations, max_det: int | None = None, kind: str = "bbox") -> None:
        self.annotations, self.kind = annotations, kind
        self.limits = KINDS[kind].limits
        if max_det is not None and max_det > self.limits[-1]:
            self.limits = (*self.limits, max_det)
        self._places = PLACES[kind]
        self._rows = {int(image): row for row, image in enumerate(annotations.image_ids)}
        self._found: dict[int, Columns] = {}

    def add(self, image_id: int, found: Detections) -> None:
        """Take the detections of one image: an empty ``found`` where nothing was found, places in its pixels."""
        if image_id not in self._rows:
            raise ValueError(f"image id {image_id} is not among the {len(self._rows)} images that are scored")
        if image_id in self._found:
            raise ValueError(f"image id {image_id} was added before: every image counts once")
        size = tuple(self.annotations.sizes[self._rows[image_id]].tolist())
        if found.masks is not None and len(found) and found.masks.size != size:
            raise ValueError(f"image id {image_id}: masks of a picture of {found.masks.size}, but it has {size} pixels")
        self._found[image_id] = self._columns(found if len(found) else self._nothing())

    def _columns(self, found: Detections) -> Columns:
        return {"scores": found.scores.cpu(), "labels": found.labels.cpu(), **self._places.keep(found)}

    def _nothing(self) -> Detections:
        skeleton = self.annotations.labels.skeleton
        return nothing(len(skeleton) if skeleton else 0)

    def state(self) -> dict[str, Tensor]:
        """What was collected, as CPU tensors, one image after the other.

        images [I], counts [I], scores [N], labels [N], and boxes [N, 4], keypoints [N, K, 3] or the strings of the
        masks: their lengths [N] and letters.
        """
        found, none = list(self._found.values()), self._columns(self._nothing())
        return {
            "images": torch.tensor(list(self._found), dtype=torch.int64),
            "counts": torch.tensor([len(each["scores"]) for each in found], dtype=torch.int64),
            **{name: torch.cat([none[name], *(each[name] for each in found)]) for name in none},
        }

    def merge(self, states: Iterable[Mapping[str, Tensor]]) -> None:
        """Take the states of other processes. An image that is already here, or comes twice, is counted once."""
        for state in states:
            columns = {name: column for name, column in state.items() if name not in ("images", "counts")}
            parts = split(columns, state["counts"].tolist())
            for image, part in zip(state["images"].tolist(), parts, strict=True):
                self._found.setdefault(image, part)

    def results(self) -> list[dict[str, Any]]:
        """The detections in COCO's result format, with the category ids of the data, in the order of the images.

        Places are ``bbox``, ``segmentation`` or ``keypoints`` and nothing besides: where there is a box as well, COCO's
        tools take the area of a detection from it, which changes the numbers by area.
        """
        ids = np.asarray(self.annotations.labels.ids)
        results = []
        for image in sorted(self._found, key=self._rows.__getitem__):
            found, (height, width) = self._found[image], self.annotations.sizes[self._rows[image]].tolist()
            places = self._places.tell(found, (height, width))
            rows = zip(ids[found["labels"].numpy()].tolist(), places, found["scores"].tolist(), strict=True)
            results += [{"image_id": image, "category_id": c, self._places.name: p, "score": s} for c, p, s in rows]
        return results

    def count(self) -> CocoCount:
        """Match detections and objects. Raises ValueError when images are missing: they would pass as empty."""
        missing = self._rows.keys() - self._found.keys()
        if missing:
            raise ValueError(
                f"{len(missing)} of {len(self._rows)} images have no result (for example id {min(missing)}). "
                "Add every image, an empty one where nothing was found, or score a subset of the annotations."
            )
        truth, labels = self.annotations, self.annotations.labels
        sigmas = labels.skeleton.sigmas if labels.skeleton else ()
        arrays = coco_count.count(to_coco(truth), self.results(), self.limits, self.kind, sigmas)
        counted = truth.learnable() if self.kind == "keypoints" else ~truth.crowd
        objects = np.bincount(truth.classes[counted], minlength=len(labels))
        return CocoCount(labels, KINDS[self.kind], self.limits, objects, *arrays)
