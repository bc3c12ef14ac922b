"""``segmentation`` of a COCO file: polygons, or run lengths as numbers (crowd regions) or as compressed text."""

from __future__ import annotations

from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgecrafter.data.formats import run_codes
from edgecrafter.data.formats.clean_masks import EMPTY, MISSING, OTHER_SIZE, UNDECODED, Drawn, Floats
from edgecrafter.data.formats.coco_fields import Record
from edgecrafter.geometry import runs

Ring = list[Any]


def read(objects: list[Record], sizes: NDArray[np.int32], known: NDArray[np.bool_]) -> tuple[Drawn, NDArray[np.bool_]]:
    """The masks, and the objects [N] some of whose polygons cannot be drawn.

    ``sizes`` [N, 2] and ``known`` [N] are of the objects' pictures; where the size is not known the mask is not read.
    """
    rings: list[Ring] = []
    owners: list[int] = []
    codes: dict[int, bytes] = {}
    faults = np.zeros(len(objects), dtype=np.int8)
    broken = np.zeros(len(objects), dtype=bool)
    for row in np.flatnonzero(known).tolist():
        value = objects[row].get("segmentation")
        if isinstance(value, dict):
            codes[row], faults[row] = _code(value, sizes[row].tolist())
        elif not isinstance(value, list) or not value:
            faults[row] = MISSING
        else:
            good = [ring for ring in value if _drawable(ring)]
            rings += good
            owners += [row] * len(good)
            broken[row] = len(good) < len(value)
    points, fine = _numbers(rings)
    owner = np.array(owners, dtype=np.int64)
    broken[owner[~fine]] = True
    counts = np.array([len(ring) // 2 for ring in rings], dtype=np.int64)
    return Drawn(points, counts[fine], owner[fine], codes, faults), broken


def undrawable(objects: list[Record]) -> NDArray[np.bool_]:
    """Objects [N] with a polygon of fewer than three points or of an odd count of numbers."""
    values = [record.get("segmentation") for record in objects]
    broken = [isinstance(value, list) and not all(_drawable(ring) for ring in value) for value in values]
    return np.array(broken, dtype=bool)


def _drawable(ring: Any) -> bool:
    return isinstance(ring, list) and len(ring) >= 6 and len(ring) % 2 == 0


def _code(value: Record, size: list[int]) -> tuple[bytes, int]:
    """The compressed text of a run-length mask, or why there is none."""
    height, width = size
    if value.get("size") != size:
        return b"", OTHER_SIZE
    counts = run_codes.lengths(value.get("counts"), height * width)
    if counts is None:
        return b"", UNDECODED
    if not counts[1::2].any():
        return b"", EMPTY
    return runs.encode([counts])[0], 0


def _numbers(rings: list[Ring]) -> tuple[Floats, NDArray[np.bool_]]:
    """The points [T, 2] of the rings that hold numbers only, and which these are, [R]."""
    try:
        return _flat(rings), np.ones(len(rings), dtype=bool)
    except (TypeError, ValueError, OverflowError):
        fine = np.array([all(type(number) in (int, float) for number in ring) for ring in rings], dtype=bool)
        return _flat([ring for ring, good in zip(rings, fine, strict=True) if good]), fine


def _flat(rings: list[Ring]) -> Floats:
    return np.fromiter(chain.from_iterable(rings), dtype=np.float64).reshape(-1, 2)
