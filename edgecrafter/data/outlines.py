"""From a mask to COCO polygons, exactly."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Point = tuple[int, int]
"""x, y of a pixel corner"""


def outlines(mask: NDArray[np.bool_]) -> list[list[int]]:
    """The borders of a mask [H, W] along the pixel edges, as polygons [x0, y0, x1, y1, ...] in pixels.

    One polygon per part, corners only; decoding them gives the same mask again. Parts that touch in a corner are kept
    apart. A hole gives a polygon of its own, which COCO would fill: keep to masks without holes.
    """
    steps = _edges(mask)
    found = []
    while steps:
        loop = _follow(steps, next(iter(steps)))
        found.append([number for point in _corners(loop) for number in point])
    return found


def _edges(mask: NDArray[np.bool_]) -> dict[Point, list[Point]]:
    """From every border corner to the next ones, the mask always on the right-hand side."""
    padded = np.pad(mask, 1).astype(np.int8)
    steps: dict[Point, list[Point]] = {}
    for axis, way in ((0, 1), (0, -1), (1, 1), (1, -1)):
        for y, x in np.argwhere(np.diff(padded, axis=axis) == way).tolist():
            ends = ((x - 1, y), (x, y)) if axis == 0 else ((x, y), (x, y - 1))
            start, stop = ends if way == 1 else ends[::-1]
            steps.setdefault(start, []).append(stop)
    return steps


def _follow(steps: dict[Point, list[Point]], start: Point) -> list[Point]:
    """Walk from ``start`` until back, taking used edges out of ``steps``; turns right where two ways lead on."""
    loop = [start]
    while True:
        here, ways = loop[-1], steps[loop[-1]]
        if len(ways) == 2 and len(loop) > 1:
            right = (here[0] - (here[1] - loop[-2][1]), here[1] + (here[0] - loop[-2][0]))
            ways.sort(key=lambda way: way != right)
        there = ways.pop(0)
        if not ways:
            del steps[here]
        if there == start:
            return loop
        loop.append(there)


def _corners(loop: list[Point]) -> list[Point]:
    """The points of a closed walk where the direction changes."""
    around = zip(loop[-1:] + loop[:-1], loop, loop[1:] + loop[:1], strict=True)
    return [here for before, here, after in around if (before[0] == here[0]) != (here[0] == after[0])]
