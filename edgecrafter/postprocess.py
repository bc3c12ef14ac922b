"""From the answers of the last decoder layer to detections in pixels of the original pictures.

Letters: B images, Q queries, C classes, K detections kept per image.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from edgecrafter.geometry import boxes as box_ops
from edgecrafter.types import Detections, LayerOutput


def decode(layer: LayerOutput, sizes: Sequence[tuple[int, int]], top_k: int = 300) -> list[Detections]:
    """The ``top_k`` best pairs of query and class of every image, best first, on the device of the layer.

    One query may appear several times, with different classes. Boxes are scaled to the original picture and not
    clipped to it, as in the released post-processor (released behaviour, section 13).

    Args:
        layer: logits [B, Q, C] and boxes [B, Q, 4] (cxcywh in 0..1) of the last decoder layer.
        sizes: (height, width) in pixels of each of the B original pictures.
        top_k: detections to keep per image; at most Q x C are there.

    Returns:
        B ``Detections`` in float32, each with min(top_k, Q x C) entries.
    """
    B, Q, C = layer.logits.shape
    if len(sizes) != B:
        raise ValueError(f"{len(sizes)} picture sizes for a batch of {B} images: give one (height, width) per image")
    assert layer.boxes is not None
    scores, flat = layer.logits.float().sigmoid().flatten(1).topk(min(top_k, Q * C))
    queries, labels = flat // C, flat % C
    scale = torch.tensor([(w, h, w, h) for h, w in sizes], dtype=torch.float32, device=scores.device)
    boxes = _take(box_ops.cxcywh_to_xyxy(layer.boxes.float()), queries) * scale[:, None]
    return [Detections(scores[i], labels[i], boxes[i], size=sizes[i]) for i in range(B)]


def _take(values_BQX: Tensor, queries_BK: Tensor) -> Tensor:
    """The rows of the chosen queries, [B, K, X]."""
    return values_BQX.gather(1, queries_BK[..., None].expand(-1, -1, values_BQX.shape[-1]))
