"""Which query answers for which object: one optimal assignment per view, and the union of all views.

V views (layers and heads), B images, Q queries, C classes, M objects of the fullest image.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from edgecrafter.geometry import boxes as geometry
from edgecrafter.losses.truth import Truth
from edgecrafter.types import LayerOutput, Match

ALPHA = 0.25
EPS = 1e-8


def class_cost(logits: Tensor) -> Tensor:
    """Focal cost of giving a class with these logits (gamma 2, alpha 0.25), any shape -> the same."""
    p = logits.sigmoid()
    found = ALPHA * (1 - p).square() * -(p + EPS).log()
    return found - (1 - ALPHA) * p.square() * -(1 - p + EPS).log()


@dataclass(frozen=True)
class Cost:
    """One row of a table of matching costs.

    ``fn`` maps views and truth to the cost of every pair for every view, [V, B, Q, M]; objects beyond an image's own
    count are meaningless.
    """

    fn: Callable[[Sequence[LayerOutput], Truth], Tensor]
    weight: float


def classes(layers: Sequence[LayerOutput], truth: Truth) -> Tensor:
    """Focal cost of the object's class."""
    logits = torch.stack([layer.logits.detach().float() for layer in layers])
    labels = truth.padded(truth.labels)
    index = labels[None, :, None].expand(len(logits), -1, logits.shape[2], -1)
    return class_cost(logits.gather(-1, index))


def l1(layers: Sequence[LayerOutput], truth: Truth) -> Tensor:
    """Sum of the absolute differences of cx, cy, w, h."""
    found, boxes = _boxes(layers), truth.padded(truth.boxes)
    return torch.cdist(found, boxes[None].expand(len(found), -1, -1, -1), p=1)


def giou(layers: Sequence[LayerOutput], truth: Truth) -> Tensor:
    """Minus the generalised IoU."""
    found, boxes = _boxes(layers), truth.padded(truth.boxes)
    return -geometry.giou(geometry.cxcywh_to_xyxy(found), geometry.cxcywh_to_xyxy(boxes)[None])


def total(layers: Sequence[LayerOutput], truth: Truth, costs: Sequence[Cost]) -> Tensor:
    """The weighted sum of the costs, [V, B, Q, M]. What is not a number becomes 1, as in the released matcher."""
    return torch.stack([cost.weight * cost.fn(layers, truth) for cost in costs]).sum(0).nan_to_num(nan=1.0)


def hungarian(layers: Sequence[LayerOutput], truth: Truth, costs: Sequence[Cost]) -> list[Match]:
    """The cheapest one-to-one assignment of each view, on the CPU; one transfer for all views together."""
    from scipy.optimize import linear_sum_assignment

    if not sum(truth.counts):
        return [_match([], [], [])] * len(layers)
    matches = []
    for view in total(layers, truth, costs).cpu().numpy():
        pairs = [linear_sum_assignment(view[b, :, :count]) for b, count in enumerate(truth.counts)]
        images = [np.full(len(query), b) for b, (query, _) in enumerate(pairs)]
        matches.append(_match(images, [query for query, _ in pairs], [object_ for _, object_ in pairs]))
    return matches


def union(matches: Sequence[Match]) -> Match:
    """All pairs of all views, each query once: it keeps its most frequent object, the smaller index among equals.

    An object may own several queries (DEIM / D-FINE's union set; released behaviour 10.1 with a stable sort).
    """
    rows = [torch.cat([getattr(m, name) for m in matches]).numpy() for name in ("image", "query", "object")]
    pairs, times = np.unique(np.stack(rows), axis=1, return_counts=True)
    order = np.lexsort((pairs[2], pairs[1], -times, pairs[0]))
    walk = pairs[:, order]
    _, first = np.unique(walk[:2], axis=1, return_index=True)
    kept = walk[:, np.sort(first)]
    counts = tuple(np.bincount(kept[0]).tolist())
    image, query, object_ = (torch.from_numpy(np.ascontiguousarray(row)) for row in kept)
    return Match(image, query, object_, counts)


def _match(
    image: Sequence[np.ndarray], query: Sequence[np.ndarray], object_: Sequence[np.ndarray]
) -> Match:  # numpy parts, one per image
    parts = (np.concatenate(p) if len(p) else np.zeros(0) for p in (image, query, object_))
    images, queries, objects = (torch.from_numpy(part.astype(np.int64)) for part in parts)
    return Match(images, queries, objects, tuple(len(part) for part in query))


def _boxes(layers: Sequence[LayerOutput]) -> Tensor:
    found = []
    for layer in layers:
        assert layer.boxes is not None, "box matching needs boxes"
        found.append(layer.boxes.detach().float())
    return torch.stack(found)
