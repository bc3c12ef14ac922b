"""Keypoints: similarity of poses (OKS), tolerances, extent. P pairs, K keypoints."""

from __future__ import annotations

import torch
from torch import Tensor

PERSON_KEYPOINTS = (
    "nose", "left_eye", "right_eye", "left_ear", "right_ear", "left_shoulder", "right_shoulder", "left_elbow",
    "right_elbow", "left_wrist", "right_wrist", "left_hip", "right_hip", "left_knee", "right_knee", "left_ankle",
    "right_ankle",
)  # fmt: skip
"""COCO's, in its order"""
PERSON_EDGES = (
    (15, 13), (13, 11), (16, 14), (14, 12), (11, 12), (5, 11), (6, 12), (5, 6), (5, 7), (6, 8), (7, 9), (8, 10), (1, 2),
    (0, 1), (0, 2), (1, 3), (2, 4), (3, 5), (4, 6),
)  # fmt: skip
PERSON_PAIRS = tuple((left, left + 1) for left in range(1, 17, 2))
COCO_SIGMAS = (
    0.026, 0.025, 0.025, 0.035, 0.035, 0.079, 0.079, 0.072, 0.072, 0.062, 0.062, 0.107, 0.107, 0.087, 0.087, 0.089,
    0.089,
)  # fmt: skip
"""of ``PERSON_KEYPOINTS``"""
SIGMA = 0.1
"""for keypoints that the data say nothing of: about that of COCO's hips and knees (0.107, 0.087); ours. A small one
makes learning from scratch slow: far from its keypoint a guess has no OKS to learn from"""


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
