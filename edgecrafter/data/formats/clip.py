"""Cutting a polygon off at the borders of its picture (Sutherland and Hodgman, 1974)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_FAR = 1e7
"""Pixels; coordinates beyond are brought here first, so that no product of them overflows."""


def ring(points: NDArray[np.float64], width: float, height: float) -> NDArray[np.float64]:
    """The part of a closed ring [P, 2] inside the picture, [Q, 2]; no points where nothing is."""
    points = np.clip(points, -_FAR, _FAR)
    for axis, limit, side in ((0, 0.0, 1.0), (0, width, -1.0), (1, 0.0, 1.0), (1, height, -1.0)):
        points = _half(points, side * (points[:, axis] - limit))
    return points


def _half(points: NDArray[np.float64], depth: NDArray[np.float64]) -> NDArray[np.float64]:
    """What of a ring is not below a line; ``depth`` [P] is how far above it each point lies."""
    following, below = np.roll(points, -1, axis=0), np.roll(depth, -1)
    crossing = (depth >= 0) != (below >= 0)
    share = np.divide(depth, depth - below, out=np.zeros_like(depth), where=crossing)
    cuts = points + share[:, None] * (following - points)
    both = np.stack([points, cuts], axis=1)
    return np.asarray(both[np.stack([depth >= 0, crossing], axis=1)])
