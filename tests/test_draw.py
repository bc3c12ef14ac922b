"""Drawings show what they should, on pictures and boxes of any size."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from edgecrafter.draw import DARK, SIDES, colour, draw, ink
from edgecrafter.geometry import runs
from edgecrafter.types import Detections, Skeleton

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


BIG, SMALL = (20, 30, 120, 130), (60, 60, 100, 90)
FIGURE = Skeleton(("nose", "left_hand", "right_hand", "tail"), edges=((0, 1), (0, 2), (0, 3)), flip_pairs=((1, 2),))
POSE = [[100.0, 40, 1], [60, 70, 1], [140, 70, 1], [100, 110, 1]]


def masked(*boxes: tuple[int, int, int, int], labels: list[int] | None = None) -> Detections:
    """Objects whose masks fill their boxes."""
    pixels = np.zeros((len(boxes), 150, 200), dtype=bool)
    for mask, (x0, y0, x1, y1) in zip(pixels, boxes, strict=True):
        mask[y0:y1, x0:x1] = True
    found = detections(*boxes, labels=labels, scores=[0.9 - 0.1 * i for i in range(len(boxes))])
    return replace(found, masks=runs.from_array(pixels))


def posed(*poses: list[list[float]]) -> Detections:
    points = torch.tensor(poses)
    boxes = torch.cat([points[..., :2].amin(1), points[..., :2].amax(1)], 1)
    found = detections(*(tuple(box) for box in boxes.tolist()), scores=[0.9 - 0.1 * i for i in range(len(poses))])
    return replace(found, keypoints=points, boxes_from="keypoints")


def near(pixel: object, paint: tuple[int, int, int]) -> bool:
    return math.dist(pixel, paint) < 40  # type: ignore[arg-type]


def test_a_mask_is_translucent_with_a_darker_line_around_and_nothing_else_changes() -> None:
    picture = canvas()
    picture.paste((160, 160, 160), (70, 0, 200, 150))
    drawn = draw(picture, masked(BIG), NAMES)
    before, after = np.asarray(picture).astype(int), np.asarray(drawn).astype(int)
    inside = np.zeros((150, 200), bool)
    inside[30:130, 20:120] = True
    assert (after[inside] != before[inside]).any(-1).all()
    assert np.array_equal(after[~inside][:, :][30 * 200 :], before[~inside][30 * 200 :]), "only the name, above"
    dark, light, line = after[80, 50], after[80, 90], after[80, 20]
    assert 10 < (light - dark).mean() < 32, "the picture shows through"
    share = (dark - GRAY) / (np.array(colour(0)) - GRAY)
    assert share == pytest.approx([0.45] * 3, abs=0.02)
    assert line.sum() < dark.sum() and line.sum() < sum(colour(0))


def test_masks_of_one_class_are_told_apart_and_of_another_too() -> None:
    apart = [(10, 40, 60, 120), (70, 40, 120, 120), (130, 40, 190, 120)]
    drawn = draw(canvas(), masked(*apart, labels=[0, 0, 1]), NAMES)
    paints = [drawn.getpixel(((x0 + x1) // 2, 80)) for x0, _, x1, _ in apart]
    assert min(math.dist(paints[a], paints[b]) for a, b in ((0, 1), (0, 2), (1, 2))) > 25
    assert colour(0) == colour(0, 0) != colour(0, 1)


def test_a_small_mask_is_seen_on_a_large_one_whatever_the_scores() -> None:
    boxes = [BIG, SMALL]
    paints = []
    for order in ([0, 1], [1, 0]):
        drawn = draw(canvas(), masked(*(boxes[i] for i in order), labels=order), ("", " "))
        assert not near(drawn.getpixel((80, 75)), drawn.getpixel((40, 110)))
        paints.append((drawn.getpixel((80, 75)), drawn.getpixel((40, 110))))
    assert paints[0] == paints[1]


def test_an_object_with_an_empty_mask_shows_its_box() -> None:
    found = masked(BIG, SMALL)
    pixels = found.masks.array()  # type: ignore[union-attr]
    pixels[1] = False
    drawn = draw(canvas(), replace(found, masks=runs.from_array(pixels)), NAMES)
    assert drawn.getpixel((60, 75)) == colour(0, 1) and drawn.getpixel((80, 75)) == drawn.getpixel((40, 110))


def test_masks_of_another_picture_are_refused() -> None:
    with pytest.raises(ValueError, match=r"masks of \(150, 200\).*on a picture of \(200, 150\)"):
        draw(canvas(150, 200), masked(BIG), NAMES)


def test_a_skeleton_has_a_colour_for_each_side() -> None:
    pose = posed([[x * 4, y * 4, sure] for x, y, sure in POSE])
    drawn = draw(canvas(800, 600), pose, NAMES, FIGURE)
    assert near(drawn.getpixel((240, 280)), SIDES[0]) and near(drawn.getpixel((560, 280)), SIDES[1])
    assert near(drawn.getpixel((320, 220)), SIDES[0]) and near(drawn.getpixel((480, 220)), SIDES[1]), "lines"
    assert near(drawn.getpixel((400, 440)), colour(0)) and near(drawn.getpixel((400, 300)), colour(0)), "the middle"
    assert drawn.getpixel((280, 360)) == GRAY
    turned = Skeleton(FIGURE.names, FIGURE.edges, flip_pairs=((2, 1),))
    assert draw(canvas(800, 600), pose, NAMES, turned).tobytes() == drawn.tobytes(), "names say which side is left"


def test_without_a_skeleton_there_are_only_points() -> None:
    drawn = draw(canvas(), posed(POSE), NAMES)
    assert near(drawn.getpixel((60, 70)), colour(0)) and drawn.getpixel((80, 55)) == GRAY


@pytest.mark.parametrize("x, y, sure", [(60.0, 70.0, 0.0), (-20, 70, 1), (60, 400, 1), (math.nan, 70, 1), (1e30, 0, 1)])
def test_what_is_not_known_or_not_in_the_picture_is_not_drawn(x: float, y: float, sure: float) -> None:
    whole = posed(POSE)
    points = whole.keypoints.clone()  # type: ignore[union-attr]
    points[0, 1] = torch.tensor([x, y, sure])
    drawn = np.asarray(draw(canvas(), replace(whole, keypoints=points), NAMES, replace(FIGURE, edges=())))
    points[0, 1] = 0
    without = np.asarray(draw(canvas(), replace(whole, keypoints=points), NAMES, replace(FIGURE, edges=())))
    assert np.array_equal(drawn, without)
    assert not (np.abs(without[62:78, 52:68].astype(int) - SIDES[0]).sum(-1) < 30).any()


def test_a_covered_point_is_hollow() -> None:
    large = [[x * 4, y * 4, sure] for x, y, sure in POSE]
    hollow = [large[0], [*large[1][:2], 0.5], *large[2:]]
    full, ring = (draw(canvas(800, 600), posed(each), NAMES, FIGURE) for each in (large, hollow))
    assert near(full.getpixel((240, 280)), SIDES[0]) and near(ring.getpixel((240, 280)), DARK)
    assert full.getpixel((560, 280)) == ring.getpixel((560, 280))


def test_points_grow_with_the_object() -> None:
    def point(scale: float) -> int:
        pose = [[(x - 60) * scale + 100, (y - 70) * scale + 300, sure] for x, y, sure in POSE]
        drawn = np.asarray(draw(canvas(800, 800), posed(pose), NAMES, replace(FIGURE, edges=())))
        return int((np.abs(drawn.astype(int) - SIDES[0]).sum(-1) < 60).sum())

    assert 0 < point(0.3) < point(5)


@pytest.mark.parametrize("width, height", [(1, 1), (3, 200), (100, 100), (2500, 1800)])
def test_masks_and_skeletons_on_any_size_of_picture(width: int, height: int) -> None:
    pixels = np.zeros((1, height, width), dtype=bool)
    pixels[:, : -(-height // 2)] = True
    found = detections((0, 0, width, height))
    for extra in (
        {"masks": runs.from_array(pixels)},
        {"keypoints": torch.tensor([[[width / 2, height / 2, 1.0], [width, height, 1]]])},
    ):
        drawn = draw(canvas(width, height), replace(found, **extra), NAMES)  # type: ignore[arg-type]
        assert drawn.size == (width, height) and drawn.tobytes() != canvas(width, height).tobytes()
    assert draw(canvas(), replace(masked(BIG), keypoints=None).above(1), NAMES).tobytes() == canvas().tobytes()


def test_poses_in_a_line_are_seen_but_not_those_outside() -> None:
    for pose in ([[100.0, 40, 1]], [[50.0, 60, 1], [150, 60, 1]]):
        assert near(draw(canvas(), posed(pose), NAMES).getpixel((int(pose[0][0]), int(pose[0][1]))), colour(0))
    for pose in ([[-100.0, 40, 1]], [[math.nan, 60, 1]]):
        assert draw(canvas(), posed(pose), NAMES).tobytes() == canvas().tobytes()


@pytest.mark.parametrize("side, line", [(272, 1), (640, 2), (3000, 9)])
def test_a_single_point_is_seen_below_its_name(side: int, line: int) -> None:
    x, y = side // 2, side // 4
    pose = posed([[float(x), float(y), 1.0]])
    drawn = np.asarray(draw(canvas(side, side), pose, (" ",), Skeleton(("tip",)), scores=False)).astype(int)
    disc = np.abs(drawn - colour(0)).sum(-1) < 60
    assert disc[y : y + 3 * line, x - 3 * line : x + 3 * line].sum() > 3 * line**2
    dark = (drawn[:, x] < 100).all(-1)  # smoothed
    assert dark[y - 3 * line : y].any() and dark[y : y + 3 * line].any(), "no name covers its rim"


def test_a_point_at_the_top_has_its_name_below() -> None:
    drawn = draw(canvas(), posed([[100.0, 2, 1]]), NAMES, scores=False)
    assert near(drawn.getpixel((100, 2)), colour(0)) and (np.asarray(drawn)[6:25] == colour(0)).all(-1).sum() > 100


@pytest.mark.parametrize("apart", [0.0, 0.4, 3])
def test_points_close_together_are_seen(apart: float) -> None:
    pose = posed([[300 + apart * i, 300 + apart * i, 1.0] for i in range(3)])
    drawn = np.asarray(draw(canvas(640, 640), pose, (" ",), scores=False))
    assert (drawn[301:310] < 100).all(-1).sum() > 1, "a rim below the name"


@pytest.mark.parametrize(
    "left, right",
    [
        ("left_eye", "right_eye"),
        ("eyeL", "eyeR"),
        ("l_eye", "r_eye"),
        ("LEye", "REye"),
        ("Hand-L", "Hand-R"),
        ("a", "b"),
    ],
)
def test_names_say_which_side_is_left(left: str, right: str) -> None:
    pose = posed([[x * 4, y * 4, sure] for x, y, sure in POSE])
    skeleton = Skeleton(("nose", left, right, "tail"), flip_pairs=((1, 2),))
    orders = [skeleton] if left == "a" else [skeleton, replace(skeleton, flip_pairs=((2, 1),))]
    for order in orders:
        drawn = draw(canvas(800, 600), pose, NAMES, order)
        assert near(drawn.getpixel((240, 280)), SIDES[0]) and near(drawn.getpixel((560, 280)), SIDES[1])
    if left == "a":  # these say nothing: the first is left
        other = draw(canvas(800, 600), pose, NAMES, replace(skeleton, flip_pairs=((2, 1),)))
        assert near(other.getpixel((240, 280)), SIDES[1]) and near(other.getpixel((560, 280)), SIDES[0])
