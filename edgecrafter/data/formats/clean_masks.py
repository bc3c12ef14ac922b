"""From the masks that a file states to the column ``Masks``: the rules for masks that no picture can have.

* A ring with a coordinate that is not finite is left out, one that leaves its picture is cut off at the border.
* An object whose mask is absent, not readable or without a pixel is skipped; a crowd region gets its box as mask.

Each kind is counted in one note with an example. The pixels of a mask are what COCO's mask functions make of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from edgecrafter.data import images
from edgecrafter.data.annotations import Masks
from edgecrafter.data.formats.clean import SLACK, Rows, note
from edgecrafter.geometry import polygons

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

MISSING, UNDRAWN, UNDECODED, OTHER_SIZE, EMPTY = range(1, 6)
FAULTS = {
    MISSING: "objects without a mask, skipped",
    UNDRAWN: "objects whose mask has no polygon that can be drawn, skipped",
    UNDECODED: "objects whose run lengths cannot be decoded or do not fill their picture, skipped",
    OTHER_SIZE: "objects whose run lengths are for a picture of another size, skipped",
    EMPTY: "objects whose mask covers no pixel, skipped",
}
"""Why an object has no mask, and the note on it."""

BLOCK = 1 << 16
"""Rings that are measured at a time."""


@dataclass(frozen=True, eq=False)
class Drawn:
    """Masks of N objects as a file states them: T points of R rings, and run-length codes.

    Objects of pictures that are not ``known_sizes`` have neither.
    """

    points: Floats
    """[T, 2] pixels"""
    counts: Ints
    """[R] points of each ring, three or more"""
    owners: Ints
    """[R] the object of each ring, ascending"""
    codes: dict[int, bytes]
    """object -> compressed run lengths, checked"""
    faults: NDArray[np.int8]
    """[N] a key of ``FAULTS``, or 0"""


def known_sizes(sizes: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Pictures [N] that a mask can be drawn for; others cannot be read, and go with their objects."""
    return np.asarray(np.all(sizes > 0, axis=1) & (np.prod(sizes.astype(np.float64), axis=1) <= images.MAX_PIXELS))


def attach(rows: Rows, drawn: Drawn, sizes: NDArray[np.int32], where: Callable[[int], str]) -> tuple[Rows, list[str]]:
    """The objects that have a mask, with it, and notes. ``sizes`` [N, 2] are those of the objects' pictures.

    An area that the file does not state becomes the count of the mask's pixels.
    """
    known = known_sizes(sizes)
    drawn, notes = _inside(drawn, sizes.astype(np.float64), where)
    masks = _pack(drawn, len(rows.ids))
    faults = drawn.faults.copy()
    lacking = (np.diff(masks.objects) == 0) & (np.diff(masks.code_offsets) == 0)
    faults[lacking & (faults == 0)] = UNDRAWN
    rows, bare = _measured(rows, masks, sizes, np.flatnonzero(known & (faults == 0)))
    faults[bare] = EMPTY
    faults[~known] = 0
    for fault, what in FAULTS.items():
        notes += note(what, (faults == fault) & ~rows.crowd, where)
    boxed = (faults > 0) & rows.crowd
    notes += note("crowd regions without a mask that can be used, which get their box as mask", boxed, where)
    keep = (faults == 0) | rows.crowd
    masks = _with_boxes(masks, np.flatnonzero(boxed), rows.boxes, sizes).take(keep)
    return replace(replace(rows, masks=None).take(keep), masks=masks), notes


def rectangles(boxes: Floats) -> Floats:
    """Boxes xyxy as rings of four points, [N, 4] -> [N, 4, 2]."""
    return boxes[:, [0, 1, 2, 1, 2, 3, 0, 3]].reshape(-1, 4, 2)


def single(points: Floats) -> NDArray[np.float32]:
    """Coordinates in float32 that COCO's mask functions round as they would the given ones.

    They draw on a grid of fifths of a pixel; many files have one or two decimals, often halfway between two fifths,
    where the next float32 can fall on the other side. That would change every third mask by a pixel or two.
    """
    found = points.astype(np.float32)
    for start in range(0, len(points), BLOCK):
        part = slice(start, start + BLOCK)
        wanted, got = (np.floor(5 * values[part].astype(np.float64) + 0.5) for values in (points, found))
        way = np.where(got < wanted, np.float32(np.inf), np.float32(-np.inf))
        found[part] = np.where(got == wanted, found[part], np.nextafter(found[part], way))
    return found


def _inside(drawn: Drawn, limits: Floats, where: Callable[[int], str]) -> tuple[Drawn, list[str]]:
    """Without rings that are not finite, cut off at the borders of the pictures [N, 2] (h, w); and notes."""
    if not len(drawn.counts):
        return drawn, []
    edges = _edges(drawn.counts)
    low, high = (reduce.reduceat(drawn.points, edges[:-1], axis=0) for reduce in (np.minimum, np.maximum))
    wide = limits[drawn.owners, ::-1]
    broken = ~np.all(np.isfinite(low) & np.isfinite(high), axis=1)
    leaving = ~broken & np.any((low < -SLACK) | (high > wide + SLACK), axis=1)
    fresh = {int(ring): np.zeros((0, 2)) for ring in np.flatnonzero(broken)}
    for ring in np.flatnonzero(leaving).tolist():
        width, height = wide[ring].tolist()
        cut = polygons.clip(drawn.points[edges[ring] : edges[ring + 1]], (0.0, 0.0, width, height))
        fresh[ring] = cut if len(cut) >= 3 else cut[:0]
    notes = [
        *note(
            "polygons with a number that is not finite, left out", broken, lambda ring: where(int(drawn.owners[ring]))
        ),
        *note("polygons that leave their picture, clipped", leaving, lambda ring: where(int(drawn.owners[ring]))),
    ]
    return _replaced(drawn, edges, fresh), notes


def _replaced(drawn: Drawn, edges: Ints, fresh: dict[int, Floats]) -> Drawn:
    """With other points for some rings, and without those that are left with none."""
    if not fresh:
        return drawn
    pieces, done, counts = [], 0, drawn.counts.copy()
    for ring in sorted(fresh):
        pieces += [drawn.points[edges[done] : edges[ring]], fresh[ring]]
        counts[ring], done = len(fresh[ring]), ring + 1
    pieces.append(drawn.points[edges[done] :])
    left = counts > 0
    return replace(drawn, points=np.concatenate(pieces), counts=counts[left], owners=drawn.owners[left])


def _pack(drawn: Drawn, count: int) -> Masks:
    """The masks of ``count`` objects as columns."""
    letters = [drawn.codes.get(row, b"") for row in range(count)] if drawn.codes else [b""] * count
    return Masks(
        points=single(drawn.points),
        rings=_edges(drawn.counts),
        objects=_edges(np.bincount(drawn.owners, minlength=count)),
        codes=np.frombuffer(b"".join(letters), dtype=np.uint8),
        code_offsets=_edges(np.array([len(text) for text in letters], dtype=np.int64)),
    )


def _with_boxes(masks: Masks, chosen: Ints, boxes: Floats, sizes: NDArray[np.int32]) -> Masks:
    """With the rectangle of its box for each of the chosen objects."""
    if not len(chosen):
        return masks
    limits = sizes[chosen][:, [1, 0, 1, 0]].astype(np.float64)
    corners = rectangles(np.clip(np.nan_to_num(boxes[chosen]), 0, limits)).reshape(-1, 2)
    more, none = np.arange(1, len(chosen) + 1), np.zeros(len(chosen), dtype=np.int64)
    joined = Masks(
        points=np.concatenate([masks.points, corners.astype(np.float32)]),
        rings=np.concatenate([masks.rings, masks.rings[-1] + 4 * more]),
        objects=np.concatenate([masks.objects, masks.objects[-1] + more]),
        codes=masks.codes,
        code_offsets=np.concatenate([masks.code_offsets, masks.code_offsets[-1] + none]),
    )
    order = np.arange(len(masks))
    order[chosen] = len(masks) + np.arange(len(chosen))
    return joined.take(order)


def _measured(rows: Rows, masks: Masks, sizes: NDArray[np.int32], good: Ints) -> tuple[Rows, Ints]:
    """The objects with areas counted where the file states none, and those whose mask covers no pixel.

    Only masks that could be empty, or whose area is wanted, are drawn: drawing takes 30 us each.
    """
    from faster_coco_eval.core import mask

    unsure = ~_roomy(masks) & (np.diff(masks.code_offsets) == 0)
    areas, bare = rows.areas.copy(), []
    for row in good[unsure[good] | np.isnan(areas[good])].tolist():
        height, width = sizes[row].tolist()
        if code := masks.code(row):
            pixels = mask.area({"size": [height, width], "counts": code})
        else:
            rings = [ring.flatten().tolist() for ring in masks.polygons(row)]
            pixels = mask.area(mask.merge(mask.frPyObjects(rings, height, width)))
        if not pixels:
            bare.append(row)
        areas[row] = pixels if np.isnan(areas[row]) else areas[row]
    return replace(rows, areas=areas), np.array(bare, dtype=np.int64)


def _roomy(masks: Masks) -> NDArray[np.bool_]:
    """Objects [N] with a ring that surely covers a pixel: its area is at least its circumference.

    Bonnesen: a figure of area A and circumference P holds a circle of radius A / P.
    """
    found = np.zeros(len(masks), dtype=bool)
    owners = np.repeat(np.arange(len(masks)), np.diff(masks.objects))
    for start in range(0, len(owners), BLOCK):
        edges = masks.rings[start : start + BLOCK + 1]
        points = masks.points[edges[0] : edges[-1]].astype(np.float64)
        edges = edges - edges[0]
        following = np.roll(points, -1, axis=0)
        following[edges[1:] - 1] = points[edges[:-1]]
        crossed = points[:, 0] * following[:, 1] - points[:, 1] * following[:, 0]
        area = np.abs(np.add.reduceat(crossed, edges[:-1])) / 2
        around = np.add.reduceat(np.hypot(*(following - points).T), edges[:-1])
        found[owners[start : start + BLOCK][(area >= around) & (area > 0)]] = True
    return found


def _edges(counts: Ints) -> Ints:
    """Where runs of these lengths begin and end, [R] -> [R + 1]."""
    return np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(counts, dtype=np.int64)])
