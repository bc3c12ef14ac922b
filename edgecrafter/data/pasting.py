"""Copy-paste: objects of another picture on top of a sample. The paper names only its probability; this is ours.

After Ghiasi et al. (2021), but for any kind of truth and without a mask to cut along: one to three objects of one other
picture are taken as rectangles with a small margin. Each is brought to the size that plain resizing would give it,
times a random factor, but to no more than half of the input, is mirrored as often as the sample itself, and put where
no object loses more than ``MOST_COVERED`` of its box to all patches together; after ``TRIALS`` places in vain it is
left out. What else is in the rectangle comes along as in a crop. What lies below loses pixels of its mask, and
keypoints there count as covered; boxes stay. The patch has the colours of the sample.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgecrafter.data.objects import Objects, Rect
from edgecrafter.data.placement import Placement, place

MOST = 3
"""objects that are pasted"""
MARGIN = 0.1
"""of the sides of the box, to every side"""
SCALES = (0.5, 1.5)
"""of the size after plain resizing"""
LARGEST = 0.5
"""side of a patch in sides of the input"""
SMALLEST = 8
"""side of a patch in pixels of the input"""
MOST_COVERED = 0.3
TRIALS = 10


def paste(
    objects: Objects,
    size: tuple[int, int],
    there: NDArray[np.float32],
    canvas: tuple[int, int],
    flip: float,
    rng: np.random.Generator,
    plain: tuple[int, int] | None = None,
) -> list[Placement]:
    """Where some of the objects of a picture of ``size`` (h, w) go in an input ``canvas`` (h, w); may be none.

    ``there`` [M, 4] xyxy are the boxes that are already in the input; ``flip`` is the probability of a mirror image;
    ``plain`` (h, w) is what plain resizing would make of the picture, None: the canvas.
    """
    covered = np.zeros(len(there))
    found: list[Placement] = []
    for box in rng.permutation(objects.boxes)[: rng.integers(1, MOST + 1)]:
        view = with_margin(box, size)
        corners = places(extent(view, size, canvas, rng, plain or canvas), canvas, rng)
        costs = overlaps(corners, there)  # [T, M] pixels
        areas = (there[:, 2:] - there[:, :2]).prod(axis=1)
        fitting = np.flatnonzero((covered + costs <= MOST_COVERED * areas).all(axis=1))
        mirrored = bool(rng.random() < flip)
        if len(fitting) == 0:
            continue
        x0, y0, x1, y1 = corners[fitting[0]].tolist()
        placement = Placement(view, (x0, y0, x1, y1), mirrored)
        fresh = place(objects, placement).boxes
        found.append(placement)
        there = np.concatenate([there, fresh])
        covered = np.concatenate([covered + costs[fitting[0]], np.zeros(len(fresh))])
    return found


def with_margin(box: NDArray[np.float32], size: tuple[int, int]) -> Rect:
    """A box xyxy with its margin, inside the picture of ``size`` (h, w)."""
    margin = MARGIN * (box[2:] - box[:2])
    x0, y0 = np.maximum(box[:2] - margin, 0).tolist()
    x1, y1 = np.minimum(box[2:] + margin, size[::-1]).tolist()
    return x0, y0, x1, y1


def extent(
    view: Rect,
    size: tuple[int, int],
    canvas: tuple[int, int],
    rng: np.random.Generator,
    plain: tuple[int, int] | None = None,
) -> NDArray[np.int64]:
    """A random width and height in the input for a part of a picture; the aspect is that of plain resizing."""
    room = np.array(canvas[::-1])
    natural = np.array([view[2] - view[0], view[3] - view[1]]) * (plain or canvas)[::-1] / size[::-1]
    factor = min(rng.uniform(*SCALES), (LARGEST * room / natural).min())
    return np.asarray(np.round(natural * factor).astype(np.int64))


def places(extent: NDArray[np.int64], canvas: tuple[int, int], rng: np.random.Generator) -> NDArray[np.int64]:
    """Rectangles [T, 4] xyxy of some width and height anywhere in the input; none when that is too small."""
    if extent.min() < SMALLEST:
        return np.zeros((0, 4), np.int64)
    corners = rng.integers(0, canvas[::-1] - extent + 1, (TRIALS, 2))
    return np.concatenate([corners, corners + extent], axis=1)


def overlaps(rects: NDArray[np.int64], boxes: NDArray[np.float32]) -> NDArray[np.float64]:
    """Square pixels that rectangles [T, 4] share with boxes [M, 4], both xyxy, [T, M]."""
    low = np.maximum(rects[:, None, :2], boxes[:, :2])
    high = np.minimum(rects[:, None, 2:], boxes[:, 2:])
    return np.asarray(np.maximum(high - low, 0).prod(axis=2), np.float64)
