"""Detections drawn on a picture: boxes in a colour of their class, with a readable name."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from edgecrafter.geometry import boxes as box_ops
from edgecrafter.types import Detections

GOLDEN = 0.618033988749895
Colour = tuple[int, int, int]
Corners = tuple[int, int, int, int]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def draw(image: Image.Image, detections: Detections, names: Sequence[str], *, scores: bool = True) -> Image.Image:
    """A copy of ``image`` (RGB) with every box and its class name.

    Boxes are clipped to the picture; one with nothing left inside is skipped, as is one that is not finite. Where boxes
    crowd, the most certain ones lie on top and are named first; a name that would cover another one is left out. Line
    and letter size follow the size of the picture.

    Args:
        image: the picture that the boxes, xyxy in pixels, belong to.
        detections: on any device.
        names: ``names[label]`` is written at the box.
        scores: write the score behind the name; switch it off for the truth.
    """
    canvas = image.convert("RGB") if image.mode != "RGB" else image.copy()
    pen = ImageDraw.Draw(canvas)
    unit = (canvas.width * canvas.height) ** 0.5
    line, font = max(1, round(unit / 320)), ImageFont.load_default(max(10, round(unit / 42)))
    visible = _visible(detections, canvas.size)
    for corners, label, _ in reversed(visible):
        pen.rectangle(corners, outline=colour(label), width=line)
    taken: list[Corners] = []
    for corners, label, score in visible:
        text = f"{names[label]} {score:.2f}" if scores else names[label]
        plate = _free(corners, _extent(pen, text, font, line), canvas.size, taken)
        if plate is not None:
            taken.append(plate)
            _name(pen, plate, text, colour(label), font, line)
    return canvas


def colour(label: int) -> Colour:
    """The colour of a class: always the same, and far from those of its neighbours (hues a golden ratio apart)."""
    saturation, value = ((0.85, 1.0), (0.6, 0.95), (0.95, 0.8))[label % 3]
    red, green, blue = colorsys.hsv_to_rgb((0.02 + label * GOLDEN) % 1.0, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)


def ink(paint: Colour) -> Colour:
    """Black or white, whichever is easier to read on ``paint`` (relative luminance of WCAG 2)."""
    red, green, blue = ((part / 255) ** 2.2 for part in paint)
    return (0, 0, 0) if 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.18 else (255, 255, 255)


def _visible(detections: Detections, size: tuple[int, int]) -> list[tuple[Corners, int, float]]:
    """Corner pixels, label and score of what lies in a picture of ``size`` (width, height), most certain first."""
    boxes = box_ops.clip(detections.boxes.float().cpu(), size[::-1]).tolist()
    rows = zip(boxes, detections.labels.tolist(), detections.scores.tolist(), strict=True)
    inside = [(box, label, score) for box, label, score in rows if box[2] > box[0] and box[3] > box[1]]  # no nan either
    inside.sort(key=lambda row: -row[2])
    return [(_pixels(box, size), label, score) for box, label, score in inside]


def _pixels(box: Sequence[float], size: tuple[int, int]) -> Corners:
    """The first and last pixels that a box of positive size covers."""
    left, top = min(int(box[0]), size[0] - 1), min(int(box[1]), size[1] - 1)
    return left, top, max(left, round(box[2]) - 1), max(top, round(box[3]) - 1)


def _extent(pen: ImageDraw.ImageDraw, text: str, font: Font, line: int) -> tuple[int, int]:
    """Width and height of the plate for a name; all plates of a picture are equally high."""
    _, top, _, bottom = pen.textbbox((0, 0), "Ag", font=font)
    return round(pen.textlength(text, font=font)) + 4 * line, round(bottom - top) + 3 * line


def _free(corners: Corners, extent: tuple[int, int], size: tuple[int, int], taken: list[Corners]) -> Corners | None:
    """A place for a name that covers no other name: above the box, or inside of a tall one, or below."""
    wide, high = extent
    x = max(0, min(corners[0], size[0] - wide))
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
