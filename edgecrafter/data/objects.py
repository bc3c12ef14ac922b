"""What is known of the objects of one picture: boxes and labels, and masks and keypoints where the task wants them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import compress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgecrafter.data.annotations import Masks
from edgecrafter.types import Skeleton

Rect = tuple[float, float, float, float]
"""x0, y0, x1, y1"""
Affine = tuple[tuple[float, float], tuple[float, float]]
"""((scale, shift) of x, the same of y): ``x' = scale * x + shift``"""

COLUMNS = ("boxes", "labels", "masks", "keypoints", "areas")
"""the arrays of ``Objects``, one row per object"""


@dataclass(frozen=True, eq=False)
class Shape:
    """The mask of one object as the annotation has it, and where it comes to lie: not pixels yet (see ``rasters``)."""

    masks: Masks
    """of the whole data set, shared"""
    row: int
    """whose mask it is"""
    size: tuple[int, int]
    """height, width of the picture"""
    affine: Affine = ((1.0, 0.0), (1.0, 0.0))
    """from the picture to the input"""
    window: Rect = (-np.inf, -np.inf, np.inf, np.inf)
    """nothing is seen outside of it; in pixels of the input, whole-numbered"""
    covers: tuple[Rect, ...] = ()
    """what lies on top of the object, as ``window``"""


@dataclass(frozen=True, eq=False)
class Objects:
    """N objects, in pixels of their picture, or of the network's input once they are placed."""

    boxes: NDArray[np.float32]
    """[N, 4] xyxy"""
    labels: NDArray[np.int64]
    """[N] 0-based"""
    shapes: tuple[Shape, ...] | None = None
    """N masks to be, until ``rasters.fill`` makes ``masks`` of them"""
    masks: NDArray[np.uint8] | None = None
    """[N, H, W / 8] masks of the input, eight pixels of a row in a byte (``np.unpackbits``)"""
    keypoints: NDArray[np.float32] | None = None
    """[N, K, 3] x, y and visibility 0/1/2; zeros where not labelled"""
    areas: NDArray[np.float32] | None = None
    """[N] square pixels of the whole object, seen or not; there when ``keypoints`` are"""
    skeleton: Skeleton | None = None
    """what the keypoints are; there when ``keypoints`` are"""

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, chosen: NDArray[np.bool_]) -> Objects:
        """The chosen objects; ``chosen`` is [N] bool."""
        found: dict[str, Any] = {name: getattr(self, name) for name in COLUMNS}
        columns = {name: column[chosen] for name, column in found.items() if column is not None}
        shapes = None if self.shapes is None else tuple(compress(self.shapes, chosen.tolist()))
        return replace(self, shapes=shapes, **columns)


def join(parts: Sequence[Objects]) -> Objects:
    """The objects of several pictures as one list, in their order; all in one frame and with the same columns."""
    first = parts[0]
    if len(parts) == 1:
        return first
    filled = [name for name in COLUMNS if getattr(first, name) is not None]
    columns: dict[str, Any] = {name: np.concatenate([getattr(part, name) for part in parts]) for name in filled}
    shapes = None if first.shapes is None else tuple(shape for part in parts for shape in part.shapes or ())
    return replace(first, shapes=shapes, **columns)
