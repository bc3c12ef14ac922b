"""Masks become pixels: once per sample, straight at the size of the network's input, and only where they are seen.

Polygons are moved as points and filled by COCO's own rule; run-length codes are decoded at the size of their picture
and read at the nearest pixel. Masks stay packed, eight pixels in a byte: the losses read single pixels of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgecrafter.data.objects import Affine, Objects, Rect, Shape
from edgecrafter.geometry import polygons


class Patch(NamedTuple):
    """The pixels [h, w] of a mask in the part of the input that starts at x, y; outside there are none."""

    x: int
    y: int
    pixels: NDArray[np.bool_]


NOTHING = Patch(0, 0, np.zeros((0, 0), bool))


def fill(objects: Objects, size: tuple[int, int]) -> Objects:
    """Placed objects with pixels (``masks``) of an input of ``size`` (h, w) instead of ``shapes``.

    Objects of which no pixel is left are dropped, with all that is known of them. Boxes stay those of the annotation,
    cut at the edge of what is seen: they do not depend on whether masks are asked for.
    """
    if objects.shapes is None:
        return objects
    packed = np.zeros((len(objects), size[0], -(-size[1] // 8)), np.uint8)
    left = [draw(shape, rows, size) for shape, rows in zip(objects.shapes, packed, strict=True)]
    return replace(objects, shapes=None, masks=packed).take(np.array(left, bool))


def draw(shape: Shape, packed: NDArray[np.uint8], size: tuple[int, int]) -> bool:
    """Write a mask into ``packed`` [h, w / 8], all zero, of an input of ``size`` (h, w). Is any pixel of it left?"""
    x, y, pixels = patch(shape, size)
    height, width = pixels.shape
    rows = np.zeros((height, size[1]), bool)
    rows[:, x : x + width] = pixels
    for x0, y0, x1, y1 in shape.covers:
        rows[max(int(y0) - y, 0) : max(int(y1) - y, 0), int(x0) : int(x1)] = False
    packed[y : y + height] = np.packbits(rows, axis=-1)
    return bool(rows.any())


def patch(shape: Shape, size: tuple[int, int]) -> Patch:
    """What is seen of a mask in an input of ``size`` (h, w)."""
    x0, y0, x1, y1 = shape.window
    window = (max(x0, 0), max(y0, 0), min(x1, size[1]), min(y1, size[0]))
    rings, code = shape.masks.polygons(shape.row), shape.masks.code(shape.row)
    if rings:
        scale, shift = np.array(shape.affine).T
        return outline([ring * scale + shift for ring in rings], window)
    return runs(code, shape.size, shape.affine, window) if code else NOTHING


def outline(rings: Sequence[NDArray[np.float64]], window: Rect) -> Patch:
    """What is inside any of the closed lines [P, 2] and inside the window, by COCO's rule.

    Lines that leave the window are cut first, so that the work is bounded by what is seen.
    """
    from faster_coco_eval.core import mask as coco

    points = np.concatenate(rings)
    x0, y0, x1, y1 = _meet(np.floor(points.min(axis=0)), np.ceil(points.max(axis=0)), window)
    cut = [polygons.clip(ring, (x0, y0, x1, y1)) - (x0, y0) for ring in rings]
    flat = [ring.ravel() for ring in cut if len(ring) > 2]
    if x1 <= x0 or y1 <= y0 or not flat:
        return NOTHING
    return Patch(x0, y0, coco.decode(coco.merge(coco.frPyObjects(flat, y1 - y0, x1 - x0))).view(np.bool_))


def runs(code: bytes, size: tuple[int, int], affine: Affine, window: Rect) -> Patch:
    """What is seen in the window of the run lengths of a picture of ``size`` (h, w), each pixel as the nearest there.

    The code is decoded at the size of the picture, one byte per pixel, and forgotten again.
    """
    from faster_coco_eval.core import mask as coco

    known = {"size": list(size), "counts": code}
    box = coco.toBbox(known).reshape(2, 2)  # x, y; width, height
    scale, shift = np.array(affine).T
    low, high = np.sort(np.stack([box[0], box[0] + box[1]]) * scale + shift, axis=0)
    # the pixels whose middle is inside
    x0, y0, x1, y1 = _meet(np.ceil(low - 0.5), np.ceil(high - 0.5), window)
    columns, rows = nearest(x0, x1, *affine[0], size[1]), nearest(y0, y1, *affine[1], size[0])
    return Patch(x0, y0, coco.decode(known)[rows[:, None], columns].view(np.bool_))


def nearest(start: int, stop: int, scale: float, shift: float, length: int) -> NDArray[np.int64]:
    """Along one axis: the pixel of a picture of ``length`` that each of the pixels start .. stop of the input shows."""
    middle = (np.arange(start, stop) + 0.5 - shift) / scale
    return np.asarray(np.clip(np.floor(middle), 0, length - 1).astype(np.int64))


def _meet(low: NDArray[np.float64], high: NDArray[np.float64], window: Rect) -> tuple[int, int, int, int]:
    """x0, y0, x1, y1 of what a rectangle and the window share; of no width or height where that is nothing."""
    x0, y0, x1, y1 = np.clip(np.stack([low, high]), window[:2], window[2:]).astype(int).ravel().tolist()
    return x0, y0, x1, y1
