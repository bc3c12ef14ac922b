"""Poses: matching costs, loss terms, and the loss table of the pose task (EdgeCrafter, section 3.4.1).

V views, B images, Q queries, M objects of the fullest image, P pairs, K keypoints. ``sigmas`` are OKS's tolerances.
Covered keypoints count as visible ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from edgecrafter.geometry import keypoints as geometry
from edgecrafter.geometry.numbers import on_device
from edgecrafter.losses import matching, terms
from edgecrafter.losses.matching import Cost
from edgecrafter.losses.set_loss import Term
from edgecrafter.losses.truth import Truth, View
from edgecrafter.types import LayerOutput, Match

LEAST = 1e-6
"""OKS is not counted below this, and has no gradient there"""
ALPHA = 0.25

Sigmas = tuple[float, ...]


def l1_cost(layers: Sequence[LayerOutput], truth: Truth) -> Tensor:
    """Sum of |dx| + |dy| over the visible keypoints, [V, B, Q, M]."""
    true, visible = (truth.padded(value)[:, None] for value in (truth.points, truth.visible))
    distances = ((found - true).abs().sum(-1) * visible for found in _found(layers))
    return torch.stack([distance.sum(-1) for distance in distances])


def oks_cost(layers: Sequence[LayerOutput], truth: Truth, sigmas: Sigmas) -> Tensor:
    """1 - OKS, [V, B, Q, M]."""
    true, visible, area = (truth.padded(value)[:, None] for value in (truth.points, truth.visible, truth.area))
    tolerance = on_device(sigmas, true.device)
    likeness = [geometry.oks(found, true, visible, area, tolerance) for found in _found(layers)]
    return 1 - torch.stack(likeness).clamp(min=LEAST)


def _found(layers: Sequence[LayerOutput]) -> Iterator[Tensor]:
    """The points of one view after the other, [B, Q, 1, K, 2]: all at once against all objects would be large."""
    for layer in layers:
        yield _points(layer).detach().float()[:, :, None]


def vfl(view: View, truth: Truth, pairs: Match, count: Tensor, sigmas: Sigmas) -> Tensor:
    """Varifocal classification (Zhang et al. 2021): a matched query should score its OKS."""
    quality = similarity(view, truth, pairs, sigmas).detach()
    return terms.varifocal(view.layer.logits.float(), truth, pairs, quality, ALPHA) / count


def l1(view: View, truth: Truth, pairs: Match, count: Tensor) -> Tensor:
    """Sum of |dx| + |dy| over the visible keypoints."""
    row = truth.index(pairs)
    distance = (_points(view.layer)[pairs.image, pairs.query].float() - truth.points[row]).abs().sum(-1)
    return (distance * truth.visible[row]).sum() / count


def oks(view: View, truth: Truth, pairs: Match, count: Tensor, sigmas: Sigmas) -> Tensor:
    """1 - OKS of matched poses."""
    return (1 - similarity(view, truth, pairs, sigmas)).sum() / count


def similarity(view: View, truth: Truth, pairs: Match, sigmas: Sigmas) -> Tensor:
    """OKS of each pair, at least ``LEAST``, [P]."""
    row = truth.index(pairs)
    found = _points(view.layer)[pairs.image, pairs.query].float()
    tolerance = on_device(sigmas, found.device)
    return geometry.oks(found, truth.points[row], truth.visible[row], truth.area[row], tolerance).clamp(min=LEAST)


def table(sigmas: Sigmas) -> tuple[Term, ...]:
    """EdgeCrafter, Table 11. No term looks at the distributions of the bins, as in the released training."""
    return (
        Term("vfl", partial(vfl, sigmas=sigmas), 2.0),
        Term("keypoints", l1, 10.0, matched="union"),
        Term("oks", partial(oks, sigmas=sigmas), 4.0, matched="union"),
    )


def costs(sigmas: Sigmas) -> tuple[Cost, ...]:
    """As released."""
    return Cost(matching.classes, 2.0), Cost(l1_cost, 10.0), Cost(partial(oks_cost, sigmas=sigmas), 4.0)


def _points(layer: LayerOutput) -> Tensor:
    assert layer.keypoints is not None, "pose terms need keypoints"
    return layer.keypoints
