"""Detections drawn on a picture: boxes, masks and skeletons in a colour of their class, with a readable name."""

from __future__ import annotations

import colorsys
import math
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from edgecrafter.geometry import boxes as box_ops
from edgecrafter.geometry.runs import Runs
from edgecrafter.types import Detections, Skeleton

GOLDEN = 0.618033988749895
Colour = tuple[int, int, int]
Corners = tuple[int, int, int, int]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

FILL, OUTLINE = 115, 235
"""how much of a mask's colour is seen over the picture, of 255: inside, and along its border"""
SHADES = (
    (0.0, 1.0, 1.0),
    (0.075, 0.7, 1.0),
    (-0.075, 1.0, 0.85),
    (0.04, 1.0, 0.68),
    (-0.045, 0.5, 1.0),
    (0.1, 0.85, 0.8),
)
"""change of hue, and factors of saturation and value, of the objects of one class in a picture"""
SIDES = ((255, 176, 0), (0, 170, 255))
"""colours of the left and the right side of a skeleton; what lies between has the colour of the object"""
DARK = (20, 20, 24)
SMOOTH = 2400
"""skeletons of pictures with shorter sides are drawn larger and averaged, for smooth lines"""
LEAST = 0.7
"""radius of a point in widths of a line, however small the object"""
RIM = 1.35
"""radius of the dark disc behind a point, of the point's"""
FAR = 1e5
"""pixels; points farther away than this are no points"""


class _Seen(NamedTuple):
    """One object that lies in the picture."""

    row: int
    corners: Corners
    label: int
    score: float
    paint: Colour


def draw(
    image: Image.Image,
    detections: Detections,
    names: Sequence[str],
    skeleton: Skeleton | None = None,
    *,
    scores: bool = True,
) -> Image.Image:
    """A copy of ``image`` (RGB) with every object and its class name.

    An object with a mask has no box, one with keypoints a thin one. Boxes are clipped to the picture; an object with
    nothing left inside is skipped, as is one that is not finite. Where objects crowd, the most certain boxes and
    skeletons lie on top and are named first, and small masks lie on large ones; a name that would cover another one is
    left out. Objects of one class that have masks or keypoints get shades of its colour. Line and letter size follow
    the size of the picture, points also that of the object.

    Args:
        image: the picture that the boxes, xyxy in pixels, belong to.
        detections: on any device. Of keypoints, the third number is 1, 0.5 for one that is covered (a hollow point) or
            0 for one that is not known; points outside the picture are left out.
        names: ``names[label]`` is written at the object.
        skeleton: says which keypoints are joined, and which are left and right; None: points only.
        scores: write the score behind the name; switch it off for the truth.

    Raises ValueError for masks of another size than the picture's.
    """
    canvas = image.convert("RGB") if image.mode != "RGB" else image.copy()
    unit = (canvas.width * canvas.height) ** 0.5
    line, font = max(1, round(unit / 320)), ImageFont.load_default(max(10, round(unit / 42)))
    seen = _seen(detections, canvas.size)
    if detections.masks is not None and detections.masks.size != (canvas.height, canvas.width):
        raise ValueError(f"masks of {detections.masks.size} (height, width) on a picture of {canvas.size[::-1]}")
    masked = {} if detections.masks is None else _fill(canvas, detections.masks, seen, line)
    pen, thin = ImageDraw.Draw(canvas), detections.keypoints is not None
    for each in reversed(seen):
        if each.row not in masked:
            pen.rectangle(each.corners, outline=each.paint, width=max(1, line // 2) if thin else line)
    if detections.keypoints is not None:
        points = detections.keypoints.float().cpu().numpy()
        canvas = _figures(canvas, points, skeleton or Skeleton(("",) * points.shape[1]), seen, line)
        if detections.boxes_from == "keypoints":  # points lie on the border, where names go
            seen = [_around(each, points.shape[1], line) for each in seen]
    _write(canvas, seen, masked, names, scores, font, line)
    return canvas


def colour(label: int, nth: int = 0) -> Colour:
    """The colour of a class: always the same, and far from those of its neighbours (hues a golden ratio apart).

    ``nth`` counts the objects of a class in a picture, to give each its own shade.
    """
    saturation, value = ((0.85, 1.0), (0.6, 0.95), (0.95, 0.8))[label % 3]
    turn, pale, dim = SHADES[nth % len(SHADES)]
    hue = (0.02 + label * GOLDEN + turn) % 1.0
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation * pale, value * dim)
    return round(255 * red), round(255 * green), round(255 * blue)


def ink(paint: Colour) -> Colour:
    """Black or white, whichever is easier to read on ``paint`` (relative luminance of WCAG 2)."""
    red, green, blue = ((part / 255) ** 2.2 for part in paint)
    return (0, 0, 0) if 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.18 else (255, 255, 255)


def _seen(detections: Detections, size: tuple[int, int]) -> list[_Seen]:
    """What lies in a picture of ``size`` (width, height), most certain first."""
    boxes = box_ops.clip(detections.boxes.float().cpu(), size[::-1])
    there = (boxes[:, 2:] > boxes[:, :2]).all(1)  # no nan either
    if detections.boxes_from == "keypoints":  # points in a line, or a single one, are something to see
        x0, y0, x1, y1 = detections.boxes.float().cpu().unbind(1)
        there = (x1 > 0) & (y1 > 0) & (x0 < size[0]) & (y0 < size[1])
    rows = zip(boxes.tolist(), detections.labels.tolist(), detections.scores.tolist(), there.tolist(), strict=True)
    inside = [(-score, row, box, label) for row, (box, label, score, seen) in enumerate(rows) if seen]
    shaded = detections.masks is not None or detections.keypoints is not None
    counts: Counter[int] = Counter()
    found = []
    for score, row, box, label in sorted(inside):
        found.append(_Seen(row, _pixels(box, size), label, -score, colour(label, counts[label] if shaded else 0)))
        counts[label] += 1
    return found


def _pixels(box: Sequence[float], size: tuple[int, int]) -> Corners:
    """The first and last pixels that a box of positive size covers."""
    left, top = min(int(box[0]), size[0] - 1), min(int(box[1]), size[1] - 1)
    return left, top, max(left, round(box[2]) - 1), max(top, round(box[3]) - 1)


def _fill(canvas: Image.Image, masks: Runs, seen: list[_Seen], line: int) -> dict[int, int]:
    """Masks in translucent colour with a darker outline; of several masks on a pixel the smallest is seen.

    Gives back the rows that have pixels, each with the column of its highest ones, where its name goes.
    """
    top = np.zeros((canvas.height, canvas.width), np.int16)  # 1 + the place in ``seen`` of what lies on top
    areas, boxes, highest = masks.areas(), masks.boxes(), {}
    for place in sorted(range(len(seen)), key=lambda place: -areas[seen[place].row]):
        row = seen[place].row
        x0, y0, x1, y1 = (int(side) for side in boxes[row])
        if areas[row]:
            mask = _cut(masks, row, (x0, y0, x1, y1))
            top[y0:y1, x0:x1][mask] = place + 1
            highest[row] = x0 + round(float(mask[0].nonzero()[0].mean()))
    paints = [(0, 0, 0), *(each.paint for each in seen)]
    table = np.array([[paint, [part * 2 // 3 for part in paint]] for paint in paints], np.uint8).reshape(-1, 3)
    strength = np.array([0, 0] + [FILL, OUTLINE] * len(seen), np.uint8)
    code = 2 * top + _border(top, max(1, round(0.7 * line)))
    canvas.paste(Image.fromarray(table[code]), mask=Image.fromarray(strength[code]))
    return highest


def _cut(masks: Runs, row: int, box: Corners) -> NDArray[np.bool_]:
    """The pixels of one mask inside a box xyxy, right and bottom exclusive; those outside are never made."""
    height, (x0, y0, x1, y1) = masks.size[0], box
    ends = np.clip(np.cumsum(masks.counts[row]), x0 * height, x1 * height)
    inside = np.arange(len(ends)) % 2 == 1
    columns = np.repeat(inside, np.diff(ends, prepend=x0 * height)).reshape(-1, height)
    cut: NDArray[np.bool_] = columns[:, y0:y1].T
    return cut


def _border(top: NDArray[np.int16], width: int) -> NDArray[np.bool_]:
    """Pixels of a map of labels that lie at most ``width`` from another label, along an axis or diagonally."""
    found = np.zeros(top.shape, np.uint8)
    down, right = top[1:] != top[:-1], top[:, 1:] != top[:, :-1]
    found[1:] |= down
    found[:-1] |= down
    found[:, 1:] |= right
    found[:, :-1] |= right
    if width == 1:
        return found > 0
    wide = Image.fromarray(found * np.uint8(255)).filter(ImageFilter.BoxBlur(min(width - 1, 7)))  # 15 x 15 < 255
    return np.asarray(wide) > 0


def _figures(
    canvas: Image.Image, points: NDArray[np.float32], skeleton: Skeleton, seen: list[_Seen], line: int
) -> Image.Image:
    """A copy with the skeletons [N, K, 3], drawn larger and averaged for smooth lines."""
    fine = max(1, min(4, SMOOTH // max(canvas.size)))
    large = canvas.resize((canvas.width * fine, canvas.height * fine), Image.Resampling.NEAREST)
    pen, sides = ImageDraw.Draw(large), _sides(skeleton)
    for each in reversed(seen):
        radius = _radius(each.corners, len(skeleton), line)
        found = points[each.row] * np.array([fine, fine, 1], np.float32)
        found[~(np.abs(found) < FAR).all(1)] = 0  # not known, as is nan
        paints = [(*SIDES, each.paint)[side] for side in sides]
        for width, dark in ((1.5 * radius, True), (0.9 * radius, False)):
            for a, b in skeleton.edges:
                if found[a, 2] > 0 and found[b, 2] > 0:
                    paint = DARK if dark else _between(paints[a], paints[b], each.paint)
                    pen.line([*found[a, :2].tolist(), *found[b, :2].tolist()], paint, max(1, round(width * fine)))
        _points(pen, found, paints, radius * fine, large.size)
    return large.reduce(fine)


def _radius(corners: Corners, count: int, line: int) -> float:
    """Of the points of an object that has ``count`` of them, in pixels, without their dark rim."""
    extent = math.hypot(corners[2] - corners[0], corners[3] - corners[1])
    alone = 2.0 * line  # such a point hides no other
    least = alone if count == 1 else max(LEAST * line, min(0.8 * line + 0.7, extent / 30))
    return min(max(extent / 70, least), 2.4 * line + 1)


def _around(each: _Seen, count: int, line: int) -> _Seen:
    """With corners that leave room for points on the border, at the top no farther than the picture."""
    (x0, y0, x1, y1), rim = each.corners, math.ceil(RIM * _radius(each.corners, count, line))
    return each._replace(corners=(x0 - rim, max(0, y0 - rim), x1 + rim, y1 + rim))


def _between(first: Colour, second: Colour, middle: Colour) -> Colour:
    """The colour of a line between points of two colours: that of a side, unless it joins both sides."""
    return second if first in (second, middle) else first if second == middle else middle


def _points(
    pen: ImageDraw.ImageDraw, points: NDArray[np.float32], paints: list[Colour], radius: float, size: tuple[int, int]
) -> None:
    """The keypoints [K, 3] that lie in a picture of ``size``: discs, or rings where they are covered."""
    for (x, y, sure), paint in zip(points.tolist(), paints, strict=True):
        if sure > 0 and 0 <= x <= size[0] and 0 <= y <= size[1]:
            pen.circle((x, y), RIM * radius, fill=DARK)
            pen.circle((x, y), radius, fill=paint)
            if sure < 1:
                pen.circle((x, y), 0.55 * radius, fill=DARK)


def _sides(skeleton: Skeleton) -> list[int]:
    """Of each keypoint 0 for the left side, 1 for the right one, 2 for neither.

    The names of a pair say which is left by the first letters in which they differ, l and r: left_eye, kneeL, LEye. If
    those are others, the first of the pair is.
    """
    sides = [2] * len(skeleton)
    for pair in skeleton.flip_pairs:
        first, second = (skeleton.names[index].lower() for index in pair)
        differ = next((letters for letters in zip(first, second, strict=False) if letters[0] != letters[1]), ())
        for side, index in enumerate(pair[::-1] if differ == ("r", "l") else pair):
            sides[index] = side
    return sides


def _write(
    canvas: Image.Image,
    seen: list[_Seen],
    masked: dict[int, int],
    names: Sequence[str],
    scores: bool,
    font: Font,
    line: int,
) -> None:
    """The names, as far as there is room for them: at the left end of a box, over the highest pixels of a mask."""
    pen, taken = ImageDraw.Draw(canvas), list[Corners]()
    for each in seen:
        text = f"{names[each.label]} {each.score:.2f}" if scores else names[each.label]
        extent = _extent(pen, text, font, line)
        left = masked[each.row] - extent[0] // 2 if each.row in masked else each.corners[0]
        plate = _free(each.corners, left, extent, canvas.size, taken)
        if plate is not None:
            taken.append(plate)
            _name(pen, plate, text, each.paint, font, line)


def _extent(pen: ImageDraw.ImageDraw, text: str, font: Font, line: int) -> tuple[int, int]:
    """Width and height of the plate for a name; all plates of a picture are equally high."""
    _, top, _, bottom = pen.textbbox((0, 0), "Ag", font=font)
    return round(pen.textlength(text, font=font)) + 4 * line, round(bottom - top) + 3 * line


def _free(
    corners: Corners, left: int, extent: tuple[int, int], size: tuple[int, int], taken: list[Corners]
) -> Corners | None:
    """A place for a name that covers no other name: above the box, or inside of a tall one, or below."""
    wide, high = extent
    x = max(0, min(left, size[0] - wide))
    above, inside, below = corners[1] - high, corners[1], corners[3] + 1
    tall = corners[3] - corners[1] > 3 * high
    for y in (above, inside, below) if tall else (above, below, inside):
        plate = (x, y, x + wide - 1, y + high - 1)
        if y >= 0 and plate[3] < size[1] and not any(_touch(plate, other) for other in taken):
            return plate
    return None


def _touch(a: Corners, b: Corners) -> bool:
    return a[0] <= b[2] and b[0] <= a[2] and a[1] <= b[3] and b[1] <= a[3]


def _name(pen: ImageDraw.ImageDraw, plate: Corners, text: str, paint: Colour, font: Font, line: int) -> None:
    """Write a name on a plate of the box's colour."""
    _, top, _, _ = pen.textbbox((0, 0), "Ag", font=font)
    pen.rectangle(plate, fill=paint)
    pen.text((plate[0] + 2 * line, plate[1] + 3 * line // 2 - round(top)), text, fill=ink(paint), font=font)
