"""Drawings show what they should, on pictures and boxes of any size."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image

from edgecrafter.draw import colour, draw, ink
from edgecrafter.types import Detections

NAMES = tuple(f"class {label}" for label in range(90))
GRAY = (128, 128, 128)


def detections(
    *boxes: tuple[float, float, float, float], labels: list[int] | None = None, scores: list[float] | None = None
) -> Detections:
    count = len(boxes)
    return Detections(
        torch.tensor(scores if scores is not None else [0.9] * count),
        torch.tensor(labels if labels is not None else [0] * count, dtype=torch.int64),
        torch.tensor(boxes).reshape(-1, 4),
    )


def canvas(width: int = 200, height: int = 150) -> Image.Image:
    return Image.new("RGB", (width, height), GRAY)


def letters(drawn: Image.Image) -> np.ndarray:
    """Where names are written: neither background nor the colour of the boxes (letters are smoothed), [H, W] bool."""
    pixels = np.asarray(drawn)
    return (pixels != GRAY).any(-1) & (pixels != colour(0)).any(-1)


def test_a_box_is_drawn_in_the_colour_of_its_class_on_a_copy() -> None:
    blank = canvas()
    drawn = draw(blank, detections((50, 60, 150, 120), labels=[7]), NAMES)
    assert drawn.getpixel((50, 100)) == drawn.getpixel((149, 100)) == drawn.getpixel((100, 119)) == colour(7)
    assert drawn.getpixel((100, 90)) == GRAY and drawn.getpixel((49, 100)) == drawn.getpixel((150, 100)) == GRAY
    assert np.asarray(blank).std() == 0


def test_the_name_is_on_a_plate_above_the_box() -> None:
    scored = draw(canvas(), detections((50, 60, 150, 120)), NAMES)
    above = np.asarray(scored)[40:60, 50:]
    assert (above == colour(0)).all(-1).sum() > 200 and letters(scored)[40:60, 50:].sum() > 100
    assert letters(scored).sum() == letters(scored)[40:60, 50:].sum()
    named = draw(canvas(), detections((50, 60, 150, 120)), NAMES, scores=False)
    assert 0 < letters(named).sum() < letters(scored).sum()


@pytest.mark.parametrize("box", [(0, 0, 150, 150), (120, 0, 200, 40), (0, 130, 200, 150), (190, 140, 199, 149)])
def test_the_name_stays_inside_the_picture(box: tuple[float, float, float, float]) -> None:
    found = letters(draw(canvas(), detections(box), NAMES))
    free = letters(draw(canvas(), detections((50, 60, 150, 120)), NAMES))
    assert found.sum() == free.sum(), "letters are not cut off"


@pytest.mark.parametrize(
    "box",
    [
        (5, 5, 5, 50),  # no width
        (50, 50, 20, 20),  # inverted
        (-50, -50, -10, -10),  # outside
        (300, 10, 400, 90),
        (math.nan, 0, 10, 10),
        (0, 0, 0, 0),
    ],
)
def test_a_box_with_nothing_inside_is_skipped(box: tuple[float, float, float, float]) -> None:
    drawn = draw(canvas(), detections(box, (50, 60, 150, 120)), NAMES)
    assert drawn.tobytes() == draw(canvas(), detections((50, 60, 150, 120)), NAMES).tobytes()


def test_boxes_are_clipped() -> None:
    drawn = draw(canvas(), detections((-1e9, -20, 1e9, 1e9)), NAMES)
    assert drawn.tobytes() == draw(canvas(), detections((0, 0, 200, 150)), NAMES).tobytes()
    assert drawn.getpixel((0, 100)) == drawn.getpixel((199, 149)) == colour(0)
    infinite = draw(canvas(), detections((-math.inf, -20, math.inf, math.inf)), NAMES)
    assert infinite.tobytes() == drawn.tobytes()


@pytest.mark.parametrize("width, height", [(1, 1), (3, 200), (272, 272), (4000, 3000)])
def test_any_size_of_picture(width: int, height: int) -> None:
    drawn = draw(canvas(width, height), detections((0, 0, width, height), (0.2, 0.2, 0.4, 0.4)), NAMES)
    assert drawn.size == (width, height) and np.asarray(drawn).std() > 0


def test_lines_and_letters_grow_with_the_picture() -> None:
    def line(side: int) -> int:
        drawn = np.asarray(draw(canvas(side, side), detections((0, 0, side, side)), NAMES))
        return int((drawn[side // 2, : side // 2] == colour(0)).all(-1).sum())

    assert line(272) == 1 < line(640) < line(3000) == 9


def test_the_most_certain_is_on_top() -> None:
    tall, wide = (50, 10, 100, 140), (10, 60, 190, 100)
    for order in ([0, 1], [1, 0]):
        boxes = [(tall, wide)[i] for i in order]
        drawn = draw(canvas(), detections(*boxes, labels=order, scores=[(0.9, 0.3)[i] for i in order]), NAMES)
        assert drawn.getpixel((50, 99)) == colour(0), "where the two lines cross"


def test_no_name_covers_another() -> None:
    crowd = [(60.0 + i, 60.0 + i, 120.0 + i, 90.0 + i) for i in range(12)]
    plates = []
    for count in (1, 12):
        drawn = np.asarray(
            draw(canvas(), detections(*crowd[:count], scores=[0.99 - 0.01 * i for i in range(count)]), NAMES)
        )
        plates.append(drawn[40:59, 60:130])
    assert np.array_equal(*plates), "the name of the most certain one stays whole"


def test_nothing_to_draw_and_gray_pictures() -> None:
    blank = canvas()
    assert draw(blank, detections(), NAMES).tobytes() == blank.tobytes()
    assert draw(blank.convert("L"), detections((5, 5, 90, 90)), NAMES).mode == "RGB"


def test_colours_are_stable_and_differ() -> None:
    first = [colour(label) for label in range(80)]
    assert first == [colour(label) for label in range(80)] and len(set(first)) == 80
    near = [math.dist(first[i], first[j]) for i in range(80) for j in range(i + 1, min(i + 6, 80))]
    assert min(near) > 60, "neighbouring classes are told apart at a glance"


def test_letters_are_readable_on_every_colour() -> None:
    def luminance(paint: tuple[int, int, int]) -> float:
        linear = [v / 12.92 if (v := part / 255) <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for part in paint]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for label in range(300):
        light, dark = sorted((luminance(colour(label)), luminance(ink(colour(label)))), reverse=True)
        assert (light + 0.05) / (dark + 0.05) > 4.4  # WCAG 2 asks for 4.5
