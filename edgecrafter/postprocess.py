"""From the answers of the last decoder layer to detections in pixels of the original pictures.

Letters: B images, Q queries, C classes, K detections kept per image, P keypoints, X numbers of a query.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgecrafter.geometry import boxes as box_ops
from edgecrafter.geometry import keypoints as keypoint_ops
from edgecrafter.geometry import runs
from edgecrafter.types import Detections, LayerOutput, MaskMap

MASKS = 64
"""masks of a picture whose logits are held at a time"""


def decode(
    layer: LayerOutput,
    sizes: Sequence[tuple[int, int]],
    top_k: int = 300,
    conf: float = 0.0,
    classes: Tensor | None = None,
    owned: Tensor | None = None,
) -> list[Detections]:
    """The ``top_k`` best pairs of query and class of every image, best first, on the device of the layer.

    One query may appear several times, with different classes. Boxes and keypoints are scaled to the original picture
    and not clipped to it, as in the released post-processor (released behaviour, section 13). A layer without boxes
    has those around its keypoints. Masks, where there are any, are computed last: of what is kept, each query once.

    Args:
        layer: logits [B, Q, C] of the last decoder layer and at least one of boxes [B, Q, 4] (cxcywh in 0..1) and
            keypoints [B, Q, P, 2] (in 0..1).
        sizes: (height, width) in pixels of each of the B original pictures.
        top_k: detections to keep per image; at most Q x C are there.
        conf: least score of those that are kept.
        classes: int64 labels to look for; None: all.
        owned: bool [C, P], the keypoints that each class has, at least one; the others become zeros and are not in the
            box around the keypoints. None: all.

    Returns:
        B ``Detections`` in float32, each with up to min(top_k, Q x C) entries.

    Raises:
        ValueError: not one size per image, or logits of a mask that are not finite.
    """
    logits_BQC = layer.logits if classes is None else layer.logits[..., classes.to(layer.logits.device)]
    B, Q, C = logits_BQC.shape
    if len(sizes) != B:
        raise ValueError(f"{len(sizes)} picture sizes for a batch of {B} images: give one (height, width) per image")
    scores_BK, flat_BK = logits_BQC.float().sigmoid().flatten(1).topk(min(top_k, Q * C))
    queries_BK, labels_BK = flat_BK // C, flat_BK % C
    if classes is not None:
        labels_BK = classes.to(labels_BK.device)[labels_BK]
    owned_BKP = None if owned is None else owned.to(labels_BK.device)[labels_BK]
    boxes_BK4, keypoints_BKP3 = _places(layer, sizes, queries_BK, owned_BKP)
    found = []
    for i, count in enumerate(_counts(scores_BK, conf)):
        each = Detections(scores_BK[i, :count], labels_BK[i, :count], boxes_BK4[i, :count], size=sizes[i])
        if keypoints_BKP3 is not None:
            each.keypoints = keypoints_BKP3[i, :count]
        if layer.boxes is None:
            each.boxes_from = "keypoints"
        if layer.masks is not None:
            each.masks = _masks(layer.masks, i, queries_BK[i, :count], sizes[i])
        found.append(each)
    return found


def _counts(scores_BK: Tensor, conf: float) -> list[int]:
    """How many of each image are kept: they are sorted, and what is not a number comes first and stays to be seen."""
    if conf <= 0:  # nothing to ask the device for
        return [scores_BK.shape[1]] * len(scores_BK)
    kept: list[int] = (~(scores_BK < conf)).sum(1).tolist()
    return kept


def _places(
    layer: LayerOutput, sizes: Sequence[tuple[int, int]], queries_BK: Tensor, owned_BKP: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Boxes xyxy [B, K, 4] and keypoints [B, K, P, 3] of the chosen queries in pixels."""
    scale_B2 = torch.tensor([(w, h) for h, w in sizes], dtype=torch.float32, device=queries_BK.device)
    points_BKP2 = None
    if layer.keypoints is not None:
        points_BKP2 = _take(layer.keypoints.float().flatten(2), queries_BK).unflatten(-1, (-1, 2))  # type: ignore[no-untyped-call]
        points_BKP2 = points_BKP2 * scale_B2[:, None, None]
    if layer.boxes is not None:
        boxes_BK4 = _take(box_ops.cxcywh_to_xyxy(layer.boxes.float()), queries_BK) * scale_B2.repeat(1, 2)[:, None]
    else:
        assert points_BKP2 is not None, "a layer answers with boxes, keypoints, or both"
        boxes_BK4 = _extent(points_BKP2, owned_BKP)
    if points_BKP2 is None:
        return boxes_BK4, None
    points_BKP3 = torch.cat([points_BKP2, torch.ones_like(points_BKP2[..., :1])], dim=-1)
    return boxes_BK4, points_BKP3 if owned_BKP is None else points_BKP3.where(owned_BKP[..., None], 0.0)


def _extent(points_BKP2: Tensor, owned_BKP: Tensor | None) -> Tensor:
    """The boxes xyxy [B, K, 4] around the keypoints that the labels have."""
    if owned_BKP is None:
        return keypoint_ops.extent(points_BKP2)
    lacking = ~owned_BKP[..., None]
    low, high = points_BKP2.masked_fill(lacking, torch.inf), points_BKP2.masked_fill(lacking, -torch.inf)
    return torch.cat([low.amin(-2), high.amax(-2)], dim=-1)


def _masks(masks: MaskMap, image: int, queries_K: Tensor, size: tuple[int, int]) -> runs.Runs:
    """The masks of some queries of an image; a query that comes again has its mask computed once."""
    own = replace(masks, queries=masks.queries[image : image + 1], pixels=masks.pixels[image : image + 1]).float()
    unique, rows = torch.unique(queries_K, return_inverse=True)
    counts: list[NDArray[np.int64]] = []
    for start in range(0, len(unique), MASKS):
        some = unique[start : start + MASKS]
        counts += runs.from_logits(own.of(torch.zeros_like(some), some, [len(some)]), size).counts
    return runs.Runs(size, tuple(counts))[rows]


def _take(values_BQX: Tensor, queries_BK: Tensor) -> Tensor:
    """The rows of the chosen queries, [B, K, X]."""
    return values_BQX.gather(1, queries_BK[..., None].expand(-1, -1, values_BQX.shape[-1]))
