"""Masks: matching costs and loss terms at random points, and the loss table of segmentation.

B images, Q queries, N objects, M objects of the fullest image, P pairs, S points of a mask. Logits are read bilinearly,
true masks at the nearest pixel, both in the coordinates of ``grid_sample`` without aligned corners.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from edgecrafter.losses import matching, terms
from edgecrafter.losses.matching import Cost
from edgecrafter.losses.set_loss import ALL, REFINED, STUDENTS, Term
from edgecrafter.losses.truth import Truth, View
from edgecrafter.types import LayerOutput, MaskMap, Match

CELLS_PER_POINT = 16
"""a mask of h x w cells is compared at h w / 16 points"""
CANDIDATES = 3
UNCERTAIN = 0.75
"""so many of the points are the least certain ones of three times as many candidates, the others are random"""


def cost(layers: Sequence[LayerOutput], truth: Truth) -> Tensor:
    """Binary cross-entropy plus Dice at points that all queries, objects and images share; drawn anew for each view.

    Views without masks (the encoder's proposals) have no such cost.
    """
    V, (B, Q) = len(layers), layers[0].logits.shape[:2]
    total = layers[0].logits.new_zeros(V, B, Q, max(truth.counts), dtype=torch.float32)
    for view, layer in zip(total, layers, strict=True):
        if layer.masks is not None:
            h, w = layer.masks.pixels.shape[2:]
            points = truth.uniform((1, h * w // CELLS_PER_POINT, 2))[0]
            labels = truth.padded(nearest(truth.masks, points.expand(len(truth.masks), -1, -1)))
            view += compared(shared_logits(layer.masks, points), labels)
    return total


def compared(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy plus Dice of all pairs, logits [B, Q, S] and labels [B, M, S] in 0..1 -> [B, Q, M]."""
    labels = labels.transpose(1, 2)
    inside = F.softplus(-logits) @ labels
    outside = F.softplus(logits) @ (1 - labels)
    p = logits.sigmoid()
    overlap = 2 * p @ labels + 1
    return (inside + outside) / logits.shape[-1] + 1 - overlap / (p.sum(-1)[..., None] + labels.sum(1)[:, None] + 1)


def shared_logits(masks: MaskMap, points: Tensor) -> Tensor:
    """Mask logits of every query at points [S, 2] in 0..1, [B, Q, S], no gradient.

    The pixels are read first: reading is linear, so that the product is the same and only takes S of the h w cells.
    """
    B, _, h, w = masks.pixels.shape
    grid = (2 * points - 1)[None, None]
    pixels = F.grid_sample(masks.pixels.detach().float(), grid.expand(B, -1, -1, -1), align_corners=False)[:, :, 0]
    inside = F.grid_sample(pixels.new_ones(1, 1, h, w), grid, align_corners=False)[0, 0]  # below 1 at the border
    return masks.queries.detach().float() @ pixels + masks.bias.detach().float() * inside


def nearest(masks: Tensor, points: Tensor) -> Tensor:
    """True masks [N, H, W / 8], packed, at points [N, S, 2] in 0..1 -> [N, S] float 0 or 1."""
    H, W = masks.shape[1], 8 * masks.shape[2]
    x = (points[..., 0] * W - 0.5).round().long().clamp(0, W - 1)
    y = (points[..., 1] * H - 0.5).round().long().clamp(0, H - 1)
    byte = masks.flatten(1).gather(1, (y * W + x) // 8).long()
    return ((byte >> (7 - x % 8)) & 1).float()


def mask_ce(view: View, truth: Truth, pairs: Match, count: Tensor) -> Tensor:
    """Mean binary cross-entropy at the points of each pair."""
    logits, labels = sampled(view, truth, pairs)
    return F.binary_cross_entropy_with_logits(logits, labels, reduction="none").mean(-1).sum() / count


def mask_dice(view: View, truth: Truth, pairs: Match, count: Tensor) -> Tensor:
    """1 - Dice at the points of each pair (Milletari et al. 2016)."""
    logits, labels = sampled(view, truth, pairs)
    p = logits.sigmoid()
    return (1 - (2 * (p * labels).sum(-1) + 1) / (p.sum(-1) + labels.sum(-1) + 1)).sum() / count


def sampled(view: View, truth: Truth, pairs: Match) -> tuple[Tensor, Tensor]:
    """Logits and labels at the points of each pair, [P, S] each; drawn once for all terms of a view."""
    if view.sampled is None:
        masks = view.layer.masks
        assert masks is not None, "mask terms need masks"
        assert pairs.counts is not None
        logits = masks.of(pairs.image, pairs.query, pairs.counts)
        h, w = logits.shape[1:]
        points = uncertain(logits.detach(), truth, count=max(h, h * w // CELLS_PER_POINT))
        view.sampled = (bilinear(logits, points), nearest(truth.masks[truth.index(pairs)], points))
    return view.sampled


def uncertain(logits: Tensor, truth: Truth, count: int) -> Tensor:
    """``count`` points where each mask [P, h, w] should be looked at, [P, count, 2]: mostly uncertain ones (PointRend,
    Kirillov et al. 2020)."""
    candidates = truth.uniform((len(logits), CANDIDATES * count, 2))
    certainty = bilinear(logits, candidates).abs()
    chosen = certainty.topk(int(UNCERTAIN * count), dim=1, largest=False).indices
    least = candidates.gather(1, chosen[..., None].expand(-1, -1, 2))
    return torch.cat([least, truth.uniform((len(logits), count - chosen.shape[1], 2))], dim=1)


def bilinear(logits: Tensor, points: Tensor) -> Tensor:
    """Maps [P, h, w] at points [P, S, 2] in 0..1 -> [P, S]; zero beyond the border."""
    return F.grid_sample(logits[:, None], (2 * points - 1)[:, None], align_corners=False)[:, 0, 0]


SEGMENT = (
    Term("mal", terms.mal, 2.0),
    Term("l1", terms.l1, 1.0, matched="union"),
    Term("giou", terms.giou, 1.0, matched="union"),
    Term("fgl", terms.fgl, 0.15, views=REFINED, matched="union"),
    Term("ddf", terms.ddf, 1.5, views=STUDENTS, matched="union"),
    Term("mask_ce", mask_ce, 5.0, views=ALL - {"encoder"}),
    Term("mask_dice", mask_dice, 5.0, views=ALL - {"encoder"}),
)
"""EdgeCrafter, Table 12."""

SEGMENT_COSTS = (
    Cost(matching.classes, 2.0),
    Cost(matching.l1, 1.0),
    Cost(matching.giou, 1.0),
    Cost(cost, 5.0),
)
"""As released: cross-entropy and Dice count 5 each."""
