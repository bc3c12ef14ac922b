"""Closed lines around areas."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_FAR = 1e7
"""Pixels; coordinates beyond are brought here first, so that no product of them overflows."""


def clip(ring: NDArray[np.float64], window: tuple[float, float, float, float]) -> NDArray[np.float64]:
    """The part of a closed line [P, 2] inside the window xyxy, with its edge where it was cut off, [Q, 2].

    Sutherland and Hodgman (1974): side by side, points outside are left out and crossings put in. No points are left
    where nothing is.
    """
    ring = np.clip(ring, -_FAR, _FAR)
    for axis, limit, sign in ((0, window[0], 1), (1, window[1], 1), (0, window[2], -1), (1, window[3], -1)):
        depth = sign * (ring[:, axis] - limit)
        inside = depth >= 0
        if inside.all():
            continue
        crosses = inside != np.roll(inside, -1)
        share = depth / np.where(crosses, depth - np.roll(depth, -1), 1)
        crossing = ring + share[:, None] * (np.roll(ring, -1, axis=0) - ring)
        both, wanted = np.stack([ring, crossing], axis=1), np.stack([inside, crosses], axis=1)
        ring = both[wanted]
    return ring
