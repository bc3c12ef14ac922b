"""Loss terms of detection: pure functions of one view.

P pairs of a query and an object, B images, Q queries, C classes. Every term is summed and divided by a count, in
float32.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from edgecrafter.geometry import bins
from edgecrafter.geometry import boxes as geometry
from edgecrafter.geometry.numbers import on_device
from edgecrafter.losses.truth import Truth, View
from edgecrafter.types import LayerOutput, Match

GAMMA = 1.5
TEMPERATURE = 5.0
PER_IMAGE = 8.0
"""DDF weighs matched and other edges by the square root of their count for this many images."""


def mal(view: View, truth: Truth, pairs: Match, count: Tensor) -> Tensor:
    """Matchability-aware classification (DEIM, Huang et al. 2025): a match should score its IoU to the power 1.5."""
    logits = view.layer.logits.float()
    row = truth.index(pairs)
    quality = paired_iou(view.layer, truth, pairs)
    place = (pairs.image, pairs.query, truth.labels[row])
    target = torch.zeros_like(logits).index_put_(place, quality.pow(GAMMA))
    weight = logits.detach().sigmoid().pow(GAMMA).index_put_(place, torch.ones_like(quality))
    return F.binary_cross_entropy_with_logits(logits, target, weight, reduction="sum") / count


def vfl(view: View, truth: Truth, pairs: Match, count: Tensor) -> Tensor:
    """Varifocal classification (Zhang et al. 2021): a match should score its IoU (RT-DETR, D-FINE)."""
    quality = paired_iou(view.layer, truth, pairs)
    return varifocal(view.layer.logits.float(), truth, pairs, quality, alpha=0.75) / count


def focal(view: View, truth: Truth, pairs: Match, count: Tensor) -> Tensor:
    """Focal classification (Lin et al. 2017; alpha 0.25, gamma 2): a match should score 1 (Deformable DETR, DINO)."""
    logits = view.layer.logits.float()
    place = (pairs.image, pairs.query, truth.labels[truth.index(pairs)])
    target = torch.zeros_like(logits).index_put_(place, torch.ones_like(logits[place]))
    p = logits.sigmoid()
    wrong = (target - p).abs().square() * torch.where(target > 0, 0.25, 0.75)
    return (F.binary_cross_entropy_with_logits(logits, target, reduction="none") * wrong).sum() / count


def varifocal(logits: Tensor, truth: Truth, pairs: Match, quality: Tensor, alpha: float) -> Tensor:
    """Varifocal loss of logits [B, Q, C], summed; ``quality`` [P] is what the matched class should score and how much
    it counts, every other entry counts ``alpha`` times its score squared."""
    place = (pairs.image, pairs.query, truth.labels[truth.index(pairs)])
    target = torch.zeros_like(logits).index_put_(place, quality)
    weight = (alpha * logits.detach().sigmoid().square()).index_put_(place, quality)
    return F.binary_cross_entropy_with_logits(logits, target, weight, reduction="sum")


def l1(view: View, truth: Truth, pairs: Match, count: Tensor) -> Tensor:
    """Sum of the absolute differences of cx, cy, w, h."""
    return (_boxes(view.layer, pairs) - truth.boxes[truth.index(pairs)]).abs().sum() / count


def giou(view: View, truth: Truth, pairs: Match, count: Tensor) -> Tensor:
    """1 - GIoU of matched boxes."""
    found = geometry.cxcywh_to_xyxy(_boxes(view.layer, pairs))
    return (1 - geometry.giou_paired(found, truth.boxes_xyxy[truth.index(pairs)])).sum() / count


def fgl(view: View, truth: Truth, pairs: Match, count: Tensor, curvature: float = bins.CURVATURE) -> Tensor:
    """Fine-grained localisation (D-FINE): cross-entropy with the two bins around each true edge, times the IoU.

    ``curvature`` is the decoder's.
    """
    edges, base = view.layer.edges, view.base
    assert edges is not None and base is not None
    place = (pairs.image, pairs.query)
    values = on_device(bins.weighting(curvature=curvature), edges.device)
    index, upper = bins.encode(base[place], truth.boxes_xyxy[truth.index(pairs)], values, curvature)
    logs = edges[place].float().log_softmax(-1)
    low = logs.gather(-1, index[..., None])[..., 0]
    high = logs.gather(-1, index[..., None] + 1)[..., 0]
    entropy = -(low * (1 - upper) + high * upper).sum(-1)
    return (entropy * paired_iou(view.layer, truth, pairs)).sum() / count


def ddf(view: View, truth: Truth, pairs: Match, count: Tensor) -> Tensor:
    """Decoupled distillation focal (D-FINE): edge distributions follow those of the last layer.

    A matched query counts by its IoU, any other by the last layer's best class score; ``count`` is not used.
    """
    edges, teacher = view.layer.edges, view.teacher
    assert edges is not None and teacher is not None and teacher.edges is not None and view.balance is not None
    wanted = (teacher.edges.detach().float() / TEMPERATURE).log_softmax(-1)
    found = (edges.float() / TEMPERATURE).log_softmax(-1)
    divergence = (wanted.exp() * (wanted - found)).sum(-1).mean(-1) * TEMPERATURE**2
    weight = teacher.logits.detach().float().amax(-1).sigmoid()
    place = (pairs.image, pairs.query)
    weight = weight.index_put(place, paired_iou(view.layer, truth, pairs))
    matched = torch.zeros_like(weight).index_put_(place, torch.ones_like(weight[place]))
    terms = weight * divergence
    positive = (terms * matched).sum() / matched.sum().clamp(min=1)
    negative = (terms * (1 - matched)).sum() / (1 - matched).sum().clamp(min=1)
    share_positive, share_negative = view.balance
    return (positive * share_positive + negative * share_negative) / (share_positive + share_negative)


def balance(matched: int, queries: int, images: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Weights of matched and other edges for ``ddf``: square roots of their counts in eight images' worth."""
    scale = 4 * PER_IMAGE / images
    both = on_device([matched * scale, (queries * images - matched) * scale], like.device).sqrt()
    return both[0], both[1]


def paired_iou(layer: LayerOutput, truth: Truth, pairs: Match) -> Tensor:
    """IoU of each pair, no gradient, [P]."""
    found = geometry.cxcywh_to_xyxy(_boxes(layer, pairs).detach())
    return geometry.iou_paired(found, truth.boxes_xyxy[truth.index(pairs)])


def _boxes(layer: LayerOutput, pairs: Match) -> Tensor:
    assert layer.boxes is not None
    return layer.boxes[pairs.image, pairs.query].float()
