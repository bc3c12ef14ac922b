"""Box edges as distributions over 33 bins (fine-grained distribution refinement, D-FINE, Peng et al. 2025).

A box is refined from a base box (cx, cy, w, h). Each edge (left, top, right, bottom) moves by a distance that is the
mean of the bin values ``W`` under a distribution; distances are in units of w / c or h / c with the curvature ``c``.
"""

from __future__ import annotations

import torch
from torch import Tensor

BINS = 33
HALF = (BINS - 1) // 2
SPREAD = 0.5
"""``a`` of the weighting function: the outermost bins are at +-2 a c."""
CURVATURE = 4.0
"""``c`` of the weighting function and of the decoding"""


def weighting(spread: float = SPREAD, curvature: float = CURVATURE) -> list[float]:
    """The 33 bin values W: fine around zero, coarse outside, the two ends at +-2 a c."""
    step = (spread * curvature + 1) ** (2 / (BINS - 3))
    right = [step**k - 1 for k in range(1, HALF)]
    end = 2 * spread * curvature
    return [-end, *(-v for v in reversed(right)), 0.0, *right, end]


def distances(edges: Tensor, values: Tensor) -> Tensor:
    """Mean bin value of each distribution: logits [..., bins] and W [bins] -> [...]."""
    return (edges.softmax(-1) * values).sum(-1)


def decode(base: Tensor, moves: Tensor, curvature: float = CURVATURE) -> Tensor:
    """Base boxes [..., 4] cxcywh moved by distances [..., 4] (left, top, right, bottom) -> boxes cxcywh."""
    cx, cy, w, h = base.unbind(-1)
    left, top, right, bottom = moves.unbind(-1)
    half, w, h = curvature / 2, w / curvature, h / curvature
    x1, y1 = cx - (half + left) * w, cy - (half + top) * h
    x2, y2 = cx + (half + right) * w, cy + (half + bottom) * h
    return torch.stack([(x1 + x2) * 0.5, (y1 + y2) * 0.5, x2 - x1, y2 - y1], dim=-1)


def encode(base: Tensor, boxes_xyxy: Tensor, values: Tensor, curvature: float = CURVATURE) -> tuple[Tensor, Tensor]:
    """Where the edges of true boxes lie between the bins: the lower bin and the weight of the bin above it.

    base [P, 4] cxcywh and boxes [P, 4] xyxy -> bins [P, 4] int64 in 0..31 and weights [P, 4] in 0..1. Distances beyond
    the ends belong wholly to the nearest end bin (the last pair of bins with weight 1 at the upper end).
    """
    cx, cy, w, h = base.unbind(-1)
    x1, y1, x2, y2 = boxes_xyxy.unbind(-1)
    w, h = w / curvature + 1e-16, h / curvature + 1e-16
    moves = torch.stack([(cx - x1) / w, (cy - y1) / h, (x2 - cx) / w, (y2 - cy) / h], dim=-1) - curvature / 2
    index = torch.searchsorted(values, moves.detach().contiguous(), right=True) - 1
    inside = index.clamp(0, BINS - 2)
    low, high = values[inside], values[inside + 1]
    upper = (moves - low).abs() / ((moves - low).abs() + (high - moves).abs())
    upper = torch.where(index < 0, torch.zeros_like(upper), upper)
    return inside, torch.where(index >= BINS - 1, torch.ones_like(upper), upper)
