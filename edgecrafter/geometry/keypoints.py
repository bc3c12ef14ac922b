"""Keypoints: similarity of poses (OKS), tolerances, extent. P pairs, K keypoints."""

from __future__ import annotations

import torch
from torch import Tensor

COCO_SIGMAS = (
    0.026, 0.025, 0.025, 0.035, 0.035, 0.079, 0.079, 0.072, 0.072, 0.062, 0.062, 0.107, 0.107, 0.087, 0.087, 0.089,
    0.089,
)  # fmt: skip
"""of nose, eyes, ears, shoulders, elbows, wrists, hips, knees, ankles"""
SIGMA = 0.05
"""for keypoints that the data say nothing of: between COCO's eyes (0.025) and hips (0.107); ours"""


def default_sigmas(count: int) -> tuple[float, ...]:
    """COCO's tolerances for 17 keypoints, ``SIGMA`` for each of any other number."""
    return COCO_SIGMAS if count == len(COCO_SIGMAS) else (SIGMA,) * count


def oks(found: Tensor, true: Tensor, visible: Tensor, area: Tensor, sigmas: Tensor) -> Tensor:
    """Object keypoint similarity in 0..1 of poses that broadcast against one another.

    ``found`` and ``true`` [..., K, 2] and ``area`` [...] are in the same units (0..1 and shares of the picture, or
    pixels and square pixels), ``visible`` [..., K] is 0 or 1, ``sigmas`` [K]. Without a visible keypoint it is 0.
    """
    distance = (found - true).square().sum(-1)
    spread = 2 * area[..., None] * (2 * sigmas).square() + torch.finfo(found.dtype).tiny
    return ((-distance / spread).exp() * visible).sum(-1) / (visible.sum(-1) + 1e-6)


def extent(points: Tensor) -> Tensor:
    """The box xyxy around points, [..., K, 2] -> [..., 4]."""
    return torch.cat([points.amin(-2), points.amax(-2)], dim=-1)
