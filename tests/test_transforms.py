"""Augmentation: pixels and boxes move together, stay inside, and nothing happens when nothing is asked for."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgecrafter.data import images
from edgecrafter.data.annotations import Annotations, pack
from edgecrafter.data.colours import distortion, turn
from edgecrafter.data.dataset import Dataset
from edgecrafter.data.mixing import MIXUP_RATIO, mixup, mosaic
from edgecrafter.data.objects import Objects
from edgecrafter.data.placement import FILL, Placement, paint, pixels_needed, place, resize, whole
from edgecrafter.data.transforms import IOU_CHOICES, PRESETS, Augment, fits, iou_crop, zoom_out
from edgecrafter.types import Labels

PAINT = (250, 30, 40)
GEOMETRY = Augment(mosaic=0.3, zoom_out=0.5, iou_crop=0.8, flip=0.5)


def annotate(
    folder: Path, names: list[str], sizes: list[tuple[int, int]], boxes: list[list[list[float]]]
) -> Annotations:
    flat = [box for row in boxes for box in row]
    packed, name_offsets = pack(names)
    return Annotations(
        root=folder,
        labels=Labels(("thing", "other")),
        image_ids=np.arange(len(names)) + 100,
        sizes=np.array(sizes, np.int32),
        names=packed,
        name_offsets=name_offsets,
        offsets=np.cumsum([0] + [len(row) for row in boxes]),
        boxes=np.array(flat, np.float32).reshape(-1, 4),
        classes=np.arange(len(flat)) % 2,
        areas=np.ones(len(flat), np.float32),
        crowd=np.zeros(len(flat), bool),
        ids=np.arange(len(flat)),
    )


def painted(path: Path, size: tuple[int, int], box: tuple[int, int, int, int] | None) -> None:
    """A gray picture with one red rectangle, saved as its name says."""
    pixels = np.full((*size, 3), FILL, np.uint8)
    if box:
        pixels[box[1] : box[3], box[0] : box[2]] = PAINT
    Image.fromarray(pixels).save(path, **({"quality": 98, "subsampling": 0} if path.suffix == ".jpg" else {}))


def extent(pixels: np.ndarray) -> list[float]:
    """xyxy of what is more red than gray."""
    rows, columns = np.nonzero(pixels[..., 0].astype(int) - pixels[..., 1] > 110)
    return [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


@pytest.mark.parametrize(
    "view, onto, mirrored, box, expected",
    [
        ((0, 0, 10, 10), (0, 0, 20, 40), False, (1, 2, 3, 4), (2, 8, 6, 16)),  # stretch
        ((0, 0, 10, 10), (0, 0, 20, 40), True, (1, 2, 3, 4), (14, 8, 18, 16)),  # in the mirror
        ((4, 0, 14, 10), (0, 0, 10, 10), False, (2, 2, 8, 8), (0, 2, 4, 8)),  # cut off at the left
        ((5.5, 0, 15.5, 10), (0, 0, 10, 10), False, (2, 2, 8, 8), None),  # centre not seen
        ((-10, -10, 30, 30), (0, 0, 40, 40), False, (0, 0, 20, 20), (10, 10, 30, 30)),  # zoomed out
        ((0, 0, 10, 10), (20, 10, 30, 20), False, (0, 0, 5, 5), (20, 10, 25, 15)),  # a tile
        ((0, 0, 10, 10), (0, 0, 100, 100), False, (1, 1, 1.5, 5), None),  # half a pixel of the picture
        ((0, 0, 100, 100), (0, 0, 10, 10), False, (0, 0, 5, 50), None),  # half a pixel of the input
        ((0, 0, 100, 100), (0, 0, 10, 10), False, (0, 0, 10, 50), (0, 0, 1, 5)),  # a whole one
    ],
)
def test_boxes_are_placed(view, onto, mirrored, box, expected):
    found = place(Objects(np.array([box], np.float32), np.array([7])), Placement(view, onto, mirrored))
    assert found.boxes.dtype == np.float32
    assert found.boxes.tolist() == ([] if expected is None else [list(expected)])
    assert found.labels.tolist() == ([] if expected is None else [7])


def test_a_mirror_of_a_mirror_is_the_same():
    placement = Placement((0, 0, 7, 9), (0, 2, 3, 5))
    assert placement.mirror(10).onto == (7, 2, 10, 5) and placement.mirror(10).mirrored
    assert placement.mirror(10).mirror(10) == placement


@pytest.mark.parametrize("name", ["a.png", "a.jpg"])
@pytest.mark.parametrize("seed", range(40))
def test_pixels_and_boxes_move_together(tmp_path, name, seed):
    rng = np.random.default_rng(seed)
    h, w = rng.integers(60, 700, 2).tolist()
    x0, y0 = int(rng.integers(0, w * 0.6)), int(rng.integers(0, h * 0.6))
    x1, y1 = int(rng.integers(x0 + w * 0.2, w)), int(rng.integers(y0 + h * 0.2, h))
    painted(tmp_path / name, (h, w), (x0, y0, x1, y1))
    dataset = Dataset(annotate(tmp_path, [name], [(h, w)], [[[x0, y0, x1, y1]]]), (160, 224), seed)
    for epoch in range(4):
        sketch = dataset.sketch(0, GEOMETRY, np.random.default_rng([seed, epoch]))
        canvas = np.full((160, 224, 3), FILL, np.uint8)
        found = dataset.render(sketch, canvas)
        tiles = len(sketch.indices)
        assert len(found) == (4 if tiles == 4 else min(1, len(found)))
        for box, placement in zip(found.boxes, sketch.placements, strict=False):
            a, b, c, d = placement.onto
            seen = np.zeros_like(canvas)
            seen[b:d, a:c] = canvas[b:d, a:c]
            # half a pixel by rounding, and up to 1 / 0.65 / 2 by cutting at whole decoded pixels
            np.testing.assert_allclose(extent(seen), box, atol=2)


def test_a_crop_is_cut_where_its_boxes_say(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    picture = Image.fromarray(pixels)
    canvas = np.zeros((20, 20, 3), np.uint8)
    paint(canvas, picture, (40, 60), Placement((10, 5, 30, 25), (0, 0, 20, 20), mirrored=True))
    assert (canvas == pixels[5:25, 10:30][:, ::-1]).all()


@pytest.mark.parametrize(
    "size, target", [((1, 1), (3, 5)), ((4, 300), (64, 64)), ((97, 61), (33, 200)), ((9, 9), (9, 9))]
)
def test_fast_resize_is_that_of_pillow(size, target):
    picture = Image.fromarray(np.random.default_rng(1).integers(0, 256, (*size, 3), np.uint8))
    expected = np.asarray(picture.resize(target[::-1], Image.Resampling.BILINEAR)).astype(int)
    assert np.abs(resize(picture, target) - expected).max() <= 1


@pytest.mark.parametrize("name", ["a.png", "a.jpg"])
@pytest.mark.parametrize("size", [(480, 640), (1, 1), (4, 300), (427, 640), (601, 333)])
def test_none_returns_the_plainly_resized_picture(tmp_path, name, size):
    Image.fromarray(np.random.default_rng(2).integers(0, 256, (*size, 3), np.uint8)).save(tmp_path / name)
    dataset = Dataset(annotate(tmp_path, [name], [size], [[[0, 0, size[1], size[0]]]]), (96, 128))
    sample = dataset.sample(0, epoch=5, augment=Augment.NONE)
    expected = images.read(tmp_path / name).resize((128, 96), Image.Resampling.BILINEAR)
    assert (sample.image == np.asarray(expected)).all()
    assert sample.objects.boxes.tolist() == [[0, 0, 128, 96]]
    flipped = dataset.sample(0, augment=Augment(flip=1))
    assert np.abs(flipped.image[:, ::-1].astype(int) - expected).max() <= 1


def test_large_jpegs_are_decoded_small_only_when_parts_or_tiles_are_shown():
    size, canvas = (3000, 4000), (640, 640)
    full = whole(size, canvas)
    assert pixels_needed(full, size, canvas) is None
    assert pixels_needed(full.mirror(640), size, canvas) is None
    tile = mosaic([size] * 4, canvas)[3]
    assert pixels_needed(tile, size, canvas) == (208, 208)
    crop = Placement((0, 0, 2000, 3000), full.onto)
    assert pixels_needed(crop, size, canvas) == (416, 832)
    enlarged = Placement((0, 0, 20, 30), full.onto)
    assert pixels_needed(enlarged, size, canvas) == size


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("size", [(1, 1), (4, 3000), (3000, 4), (50, 70)])
def test_boxes_stay_inside_whatever_happens(tmp_path, preset, size):
    rng = np.random.default_rng(3)
    h, w = size
    corners = np.sort(rng.random((1000, 2, 2)) * (w, h), axis=1).reshape(-1, 4)
    Image.fromarray(rng.integers(0, 256, (h, w, 3), np.uint8)).save(tmp_path / "a.png")
    rows = [[], [[0, 0, w, h]], corners.tolist()]
    dataset = Dataset(annotate(tmp_path, ["a.png"] * 3, [size] * 3, rows), (64, 32), seed=1)
    for index in range(3):
        for epoch in range(12):
            sample = dataset.sample(index, epoch, PRESETS[preset])
            boxes = sample.objects.boxes
            assert sample.image.shape == (64, 32, 3) and sample.image.dtype == np.uint8
            assert boxes.shape == (len(sample.objects.labels), 4)
            assert (boxes[:, 2:] - boxes[:, :2] >= 0.99).all()
            assert (boxes >= 0).all() and (boxes <= (32, 64, 32, 64)).all()


def test_zoom_out_keeps_the_picture_in_view():
    rng = np.random.default_rng(4)
    views = np.array([zoom_out((0, 0, 200, 100), rng) for _ in range(500)])
    sides = (views[:, 2:] - views[:, :2]) / (200, 100)
    np.testing.assert_allclose(sides[:, 0], sides[:, 1])
    assert sides.min() >= 1 and 3.9 < sides.max() <= 4
    assert (views[:, :2] <= 1e-9).all() and (views[:, 2:] >= np.array((200, 100)) - 1e-9).all()


def test_iou_crop_holds_an_object_or_keeps_the_view():
    rng, view = np.random.default_rng(5), (-20.0, -10.0, 180.0, 90.0)
    boxes = np.array([[10, 10, 60, 50], [100, 20, 140, 80]], np.float32)
    crops = [iou_crop(view, boxes, rng) for _ in range(400)]
    kept = sum(crop == view for crop in crops)
    assert 400 / len(IOU_CHOICES) * 0.5 < kept < 400 * 0.5
    for crop in crops:
        assert fits(np.array([crop]), boxes, 0.0).all()
        assert crop[0] >= -20 and crop[1] >= -10 and crop[2] <= 180 + 1e-9 and crop[3] <= 90 + 1e-9
    nothing = [iou_crop(view, boxes[:0], rng) for _ in range(50)]
    assert any(crop != view for crop in nothing)


def test_fits_knows_centre_and_overlap():
    box = np.array([[0, 0, 10, 10]], np.float32)
    windows = np.array([[0, 0, 10, 10], [0, 0, 5, 5], [4, 4, 10, 10], [0, 0, 20, 10]], np.float64)
    assert fits(windows, box, 0.0).tolist() == [True, False, True, True]
    assert fits(windows, box, 0.5).tolist() == [True, False, False, True]
    assert fits(windows, box, 0.51).tolist() == [True, False, False, False]


def test_colours_leave_gray_alone_when_only_hue_and_saturation_change():
    np.testing.assert_allclose(turn(1, 0), np.eye(3), atol=1e-12)
    np.testing.assert_allclose(turn(0.7, 0.3) @ np.ones(3), np.ones(3), atol=1e-12)
    assert not np.allclose(turn(0.7, 0.3) @ (1, 0, 0), (1, 0, 0), atol=0.1)


def test_distortion_changes_colours_but_not_the_border():
    rng = np.random.default_rng(6)
    assert all(distortion(rng, 0.0) is None for _ in range(20))
    matrices = [distortion(rng, 0.5) for _ in range(400)]
    assert 0.03 < sum(matrix is None for matrix in matrices) / 400 < 0.1  # (1 - 0.5)^4
    middle = [np.reshape(matrix, (3, 4)) @ (114, 114, 114, 1) for matrix in matrices if matrix]
    assert 30 < np.abs(np.array(middle) - 114).max() <= 32 * 1.5  # brightness times contrast, nothing else
    canvas = np.full((40, 40, 3), FILL, np.uint8)
    picture = Image.new("RGB", (10, 10), (100, 150, 50))
    colours = (1.0, 0, 0, 20, 0, 1.0, 0, 20, 0, 0, 1.0, 20)
    paint(canvas, picture, (10, 10), Placement((-5, -5, 15, 15), (0, 0, 40, 40)), colours)
    assert canvas[20, 20].tolist() == [120, 170, 70] and (canvas[:9] == FILL).all()


@pytest.mark.parametrize("canvas", [(64, 64), (33, 65)])
def test_mosaic_tiles_cover_the_input_once(canvas):
    seen = np.zeros(canvas, int)
    for tile in mosaic([(5, 7)] * 4, canvas):
        x0, y0, x1, y1 = tile.onto
        seen[y0:y1, x0:x1] += 1
    assert (seen == 1).all()


def test_a_mosaic_shows_four_pictures_in_their_own_colours(tmp_path):
    for i in range(8):
        Image.new("RGB", (20, 20), (30 * i, 0, 0)).save(tmp_path / f"{i}.png")
    rows = [[[0, 0, 20, 20]] for _ in range(8)]
    dataset = Dataset(annotate(tmp_path, [f"{i}.png" for i in range(8)], [(20, 20)] * 8, rows), (32, 32))
    places = set()
    for epoch in range(30):
        sample = dataset.sample(5, epoch, Augment(mosaic=1, photometric=1, zoom_out=1, iou_crop=1, flip=0.5))
        tiles = sample.image.reshape(2, 16, 2, 16, 3).transpose(0, 2, 1, 3, 4).reshape(4, -1, 3)
        assert (tiles == tiles[:, :1]).all() and (tiles[:, 0, 0] % 30 == 0).all()
        assert 150 in tiles[:, 0, 0]  # the picture itself is one of them
        places.update(np.flatnonzero(tiles[:, 0, 0] == 150).tolist())
        assert len(sample.objects) == 4
    assert places == {0, 1, 2, 3}


def test_mixup_blends_neighbours_and_keeps_all_objects():
    pictures = np.random.default_rng(7).integers(0, 256, (3, 3, 8, 8), np.uint8)
    pictures[0], pictures[2] = 255, 255
    before = pictures.astype(float)
    objects = [Objects(np.full((i, 4), i, np.float32), np.full(i, i)) for i in range(3)]
    ratio = round(np.random.default_rng(8).uniform(*MIXUP_RATIO) * 256) / 256
    mixed = mixup(pictures, objects, np.random.default_rng(8))
    np.testing.assert_allclose(pictures, ratio * before + (1 - ratio) * np.roll(before, 1, axis=0), atol=0.51)
    assert (pictures[0] == 255).all()
    assert [found.labels.tolist() for found in mixed] == [[2, 2], [1], [2, 2, 1]]


def test_mixup_of_one_picture_changes_nothing():
    pictures = np.arange(48, dtype=np.uint8).reshape(1, 3, 4, 4)
    before, objects = pictures.copy(), [Objects(np.zeros((1, 4), np.float32), np.array([0]))]
    assert mixup(pictures, objects, np.random.default_rng(0)) == objects
    assert (pictures == before).all()


def test_phases_weaken_the_augmentation():
    strong = Augment.strong(1.0, 0.5)
    assert (strong.mosaic, strong.mixup, strong.iou_crop) == (1.0, 0.5, 0.8)
    assert strong.unmixed() == Augment(photometric=0.5, zoom_out=0.5, iou_crop=0.8, flip=0.5)
    assert strong.gentle() == Augment(flip=0.5)
    assert PRESETS["none"] == Augment.NONE == Augment.NONE.gentle()


@pytest.mark.parametrize("name", [item.name for item in fields(Augment)])
@pytest.mark.parametrize("value", [-0.1, 1.5, float("nan")])
def test_probabilities_are_checked(name, value):
    with pytest.raises(ValueError, match=f"{name}={value}"):
        Augment(**{name: value})
