"""Where a picture and its objects come to lie in the network's input: the only place where geometry is applied.

Every geometric step of the augmentation (zoom-out, crop, mosaic tile, resize, flip) is decided on paper first: it
changes a ``Placement``, which is a rectangle of the picture, the rectangle of the input that it is stretched onto, and
whether it is mirrored. Pixels are then touched once (``paint``), and everything known about the objects goes through
one function (``place``). Both use the same map per axis, ``x' = scale * x + shift``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn import functional

from edgecrafter.data.objects import Affine, Objects, Rect

FILL = 114
"""gray of the empty border of a zoomed-out picture: the mean of ImageNet, close to 0 after normalisation"""
ENOUGH = 0.65
"""a picture may be decoded with this share of the pixels that are wanted along a side: the half of a 3:2 photo as wide
as the input then does for a square tile of a mosaic"""
MIN_SIDE = 0.999
"""objects with less than one visible pixel along a side are dropped (less the rounding of float32)"""


@dataclass(frozen=True)
class Placement:
    """A view of a picture stretched onto a rectangle of the network's input.

    ``view`` is in pixels of the picture: inside it for a crop, larger than it for a zoom-out. ``onto`` is in pixels of
    the input and whole-numbered. ``mirrored`` turns left and right around.
    """

    view: Rect
    onto: Rect
    mirrored: bool = False

    def affine(self) -> Affine:
        """From picture to input pixels."""
        (a, b, c, d), (x0, y0, x1, y1) = self.view, self.onto
        if self.mirrored:
            x0, x1 = x1, x0
        x_scale, y_scale = (x1 - x0) / (c - a), (y1 - y0) / (d - b)
        return (x_scale, x0 - x_scale * a), (y_scale, y0 - y_scale * b)

    def mirror(self, width: int) -> Placement:
        """The same in an input of ``width`` pixels that is seen in a mirror."""
        x0, y0, x1, y1 = self.onto
        return replace(self, onto=(width - x1, y0, width - x0, y1), mirrored=not self.mirrored)

    def visible(self, size: tuple[int, int]) -> tuple[Rect, tuple[int, int, int, int]]:
        """What of a picture of ``size`` (h, w) is seen, in its pixels, and the whole input pixels that it fills.

        The second rectangle is empty when less than half an input pixel is seen.
        """
        x_map, y_map = self.affine()
        left, right, x0, x1 = _visible(*x_map, size[1], self.onto[0], self.onto[2])
        top, bottom, y0, y1 = _visible(*y_map, size[0], self.onto[1], self.onto[3])
        return (left, top, right, bottom), (x0, y0, x1, y1)


def _visible(scale: float, shift: float, length: int, low: float, high: float) -> tuple[float, float, int, int]:
    """One axis of ``Placement.visible``: the ends seen of 0..length, and the ends of what they fill in low..high."""
    start, stop = sorted((shift, scale * length + shift))
    first, last = (round(min(max(end, low), high)) for end in (start, stop))
    # there and back again: rounded, so that a whole picture ends exactly at its edge
    near, far = sorted(round((end - shift) / scale, 6) for end in (first, last))
    return max(near, 0.0), min(far, float(length)), first, last


def whole(size: tuple[int, int], canvas: tuple[int, int]) -> Placement:
    """The picture of ``size`` (h, w), stretched onto all of ``canvas`` (h, w): plain resizing."""
    return Placement((0, 0, size[1], size[0]), (0, 0, canvas[1], canvas[0]))


def valid(sizes: NDArray[np.int64]) -> torch.Tensor | None:
    """Where the pictures of a batch are, bool [B, H, W], when each has its (h, w) of ``sizes`` [B, 2] in the upper left
    of an input of the largest h and w; None if all fill it."""
    height, width = sizes.max(axis=0)
    if (sizes == (height, width)).all():
        return None
    below, right = np.arange(height) < sizes[:, :1], np.arange(width) < sizes[:, 1:]
    return torch.from_numpy(below[:, :, None] & right[:, None])


def stacked(pictures: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Pictures uint8 [3, h, w] as a batch [B, 3, H, W], padded as the loader does, and where they are, [B, H, W] bool;
    None: everywhere."""
    sizes = np.array([picture.shape[1:] for picture in pictures])
    height, width = sizes.max(axis=0).tolist()
    batch = torch.full((len(pictures), 3, height, width), FILL, dtype=torch.uint8)
    for room, picture in zip(batch, pictures, strict=True):
        room[:, : picture.shape[1], : picture.shape[2]] = picture
    return batch, valid(sizes)


def place(objects: Objects, placement: Placement) -> Objects:
    """The objects of a picture in pixels of the input, cut off at the edge of the placement.

    Dropped are objects whose centre is not seen, those of which less than one pixel is left along a side, be it a
    pixel of the picture or of the input, and those of whose keypoints none is seen.
    """
    scale, shift = np.array(placement.affine()).T  # each [2], x and y
    corners = np.sort(objects.boxes.reshape(-1, 2, 2) * scale + shift, axis=1)  # [N, 2 ends, 2 axes]
    low, high = np.array(placement.onto).reshape(2, 2)
    cut = np.minimum(np.maximum(corners, low), high)
    centre = corners.sum(axis=1) / 2
    is_large = cut[:, 1] - cut[:, 0] >= MIN_SIDE * np.maximum(1, np.abs(scale))
    keep = ((centre >= low) & (centre <= high) & is_large).all(axis=1)
    placed = replace(objects, boxes=cut.reshape(-1, 4).astype(np.float32)).take(keep)
    if placed.shapes is not None:  # pixels come later, when all is decided
        shapes = [replace(shape, affine=placement.affine(), window=placement.onto) for shape in placed.shapes]
        placed = replace(placed, shapes=tuple(shapes))
    return placed if placed.keypoints is None else _place_keypoints(placed, placement)


def _place_keypoints(objects: Objects, placement: Placement) -> Objects:
    """Keypoints that are not seen become unlabelled; in a mirror, left becomes right."""
    assert objects.keypoints is not None and objects.areas is not None and objects.skeleton is not None
    scale, shift = np.array(placement.affine()).T
    low, high = np.array(placement.onto).reshape(2, 2)
    points = objects.keypoints.astype(np.float64)
    if placement.mirrored:
        points = points[:, list(objects.skeleton.mirrored)]
    points[..., :2] = points[..., :2] * scale + shift
    seen = (points[..., 2] > 0) & ((points[..., :2] >= low) & (points[..., :2] <= high)).all(axis=-1)
    points[~seen] = 0
    # the scale of an object, by which OKS measures, does not change when a part of it is out of sight (ours)
    areas = objects.areas * np.float32(np.abs(scale).prod())
    return replace(objects, keypoints=points.astype(np.float32), areas=areas).take(np.asarray(seen.any(axis=1)))


def cover(objects: Objects, rect: Rect) -> Objects:
    """Placed objects below something that is painted later, onto ``rect``.

    Their masks lose those pixels; keypoints there stay labelled, but as covered. Boxes remain: whoever paints over
    objects leaves enough of them to be seen (see ``pasting``).
    """
    shapes, points = objects.shapes, objects.keypoints
    if shapes is not None:
        shapes = tuple(
            replace(shape, covers=(*shape.covers, rect)) if _meet(shape.window, rect) else shape for shape in shapes
        )
    if points is not None:
        low, high = np.array(rect).reshape(2, 2)
        below = ((points[..., :2] > low) & (points[..., :2] < high)).all(axis=-1)
        points = points.copy()
        points[..., 2] = np.where(below, np.minimum(points[..., 2], 1), points[..., 2])
    return replace(objects, shapes=shapes, keypoints=points)


def _meet(one: Rect, other: Rect) -> bool:
    """Do two rectangles share more than an edge?"""
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def pixels_needed(placement: Placement, size: tuple[int, int], canvas: tuple[int, int]) -> tuple[int, int] | None:
    """The (h, w) at which a picture of ``size`` may be decoded for this placement; None: only in full.

    A picture that is shown whole is decoded in full, so that training without augmentation sees the same pixels as
    evaluation does.
    """
    if replace(placement, mirrored=False) == whole(size, canvas):
        return None
    (x_scale, _), (y_scale, _) = placement.affine()
    return int(size[0] * min(1.0, abs(y_scale) * ENOUGH)), int(size[1] * min(1.0, abs(x_scale) * ENOUGH))


def paint(
    canvas: NDArray[np.uint8],
    picture: Image.Image,
    size: tuple[int, int],
    placement: Placement,
    colours: Sequence[float] | None = None,
) -> None:
    """Paint a picture into ``canvas`` [H, W, 3] uint8, in place: crop, resize, colours and flip in one go.

    ``size`` (h, w) is the frame of the placement; the picture itself may have been decoded smaller. ``colours`` is a
    colour matrix of 12 numbers (``colours.distortion``), applied to what is seen before it is resized: both are linear
    maps, the work is less than in the whole picture, and the empty border keeps its gray. Cuts lie on whole decoded
    pixels, so that the picture may be off by a fraction of an input pixel.
    """
    seen, (x0, y0, x1, y1) = placement.visible(size)
    if x1 <= x0 or y1 <= y0:
        return
    patch = _cut(picture, seen, size)
    if colours is not None:
        patch = patch.convert("RGB", tuple(colours))
    if placement.mirrored:
        patch = patch.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if (y1 - y0, x1 - x0) == canvas.shape[:2] and seen == (0, 0, size[1], size[0]):
        canvas[...] = np.asarray(patch.resize((x1, y1), Image.Resampling.BILINEAR))  # the very pixels of evaluation
    else:
        canvas[y0:y1, x0:x1] = resize(patch, (y1 - y0, x1 - x0))


def _cut(picture: Image.Image, seen: Rect, size: tuple[int, int]) -> Image.Image:
    """The part ``seen`` of a picture, in pixels of ``size`` (h, w), cut at whole pixels of the picture as decoded."""
    fx, fy = picture.width / size[1], picture.height / size[0]
    left, top = min(round(seen[0] * fx), picture.width - 1), min(round(seen[1] * fy), picture.height - 1)
    right, bottom = max(round(seen[2] * fx), left + 1), max(round(seen[3] * fy), top + 1)
    if (left, top, right, bottom) == (0, 0, *picture.size):
        return picture
    return picture.crop((left, top, right, bottom))


def resize(picture: Image.Image, size: tuple[int, int]) -> NDArray[np.uint8]:
    """A picture resized to ``size`` (h, w), [h, w, 3].

    As Pillow's bilinear resize to within 1 of 255, but in less time: torch works on several pixels at once.
    """
    planes = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None]
    resized = functional.interpolate(planes, size, mode="bilinear", antialias=True)
    return np.asarray(resized[0].permute(1, 2, 0).numpy())
