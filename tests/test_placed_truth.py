"""Boxes, masks and keypoints stay together wherever a picture goes, and only what is seen is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from faster_coco_eval.core import mask as coco
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from small_data import annotations as annotate
from small_data import random_objects

from edgecrafter.data import formats, loader, pasting, rasters
from edgecrafter.data.annotations import Annotations, Masks
from edgecrafter.data.dataset import Dataset, Draw, Sketch, generator
from edgecrafter.data.objects import Objects, Shape
from edgecrafter.data.placement import FILL, Placement, cover, place, whole
from edgecrafter.data.transforms import PRESETS, Augment
from edgecrafter.types import Labels, Skeleton

CORNERS = Skeleton(
    ("left top", "right top", "left bottom", "right bottom", "middle"), flip_pairs=((0, 1), (2, 3)), sigmas=(0.05,) * 5
)
LABELS = Labels(("thing", "other"), skeleton=CORNERS)
RED = (250, 30, 40)
EVERYTHING = Augment(mosaic=0.3, zoom_out=0.5, iou_crop=0.8, flip=0.5, paste=0.5)
SIZE = (160, 224)
ALL = "left top, right top, left bottom, right bottom"
Ring = Sequence[tuple[float, float]] | NDArray[np.float32]


def ring_of(box: Sequence[float]) -> list[tuple[float, float]]:
    x0, y0, x1, y1 = box
    return [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]


def corners_of(box: Sequence[float]) -> NDArray[np.float32]:
    x0, y0, x1, y1 = box
    points = [(x0, y0), (x1, y0), (x0, y1), (x1, y1), ((x0 + x1) / 2, (y0 + y1) / 2)]
    return np.array([(*point, 2) for point in points], np.float32)


def code_of(rings: Sequence[Ring], size: tuple[int, int]) -> bytes:
    flat = [np.array(ring, float).ravel() for ring in rings]
    return coco.merge(coco.frPyObjects(flat, *size))["counts"]


def masks_of(objects: Sequence[Sequence[Ring] | bytes]) -> Masks:
    """Each object is a list of rings or a code."""
    rings = [np.array(ring, np.float32) for each in objects if not isinstance(each, bytes) for ring in each]
    codes = [each if isinstance(each, bytes) else b"" for each in objects]
    counts = [0 if isinstance(each, bytes) else len(each) for each in objects]
    return Masks(
        points=np.concatenate([np.zeros((0, 2), np.float32), *rings]),
        rings=np.cumsum([0, *map(len, rings)]),
        objects=np.cumsum([0, *counts]),
        codes=np.frombuffer(b"".join(codes), np.uint8),
        code_offsets=np.cumsum([0, *map(len, codes)]),
    )


def rectangles(
    folder: Path, boxes: Sequence[Sequence[Sequence[float]]], sizes: Sequence[tuple[int, int]], coded: bool = False
) -> Annotations:
    """Red rectangles on gray with masks, and keypoints in their corners; one list of boxes per picture."""
    for index, (row, size) in enumerate(zip(boxes, sizes, strict=True)):
        pixels = np.full((*size, 3), FILL, np.uint8)
        for x0, y0, x1, y1 in np.array(row, int).reshape(-1, 4):
            pixels[y0:y1, x0:x1] = RED
        Image.fromarray(pixels).save(folder / f"{index}.png")
    data = annotate(LABELS, [[(0, tuple(box), False) for box in row] for row in boxes], sizes, folder)
    flat = [(box, size) for row, size in zip(boxes, sizes, strict=True) for box in row]
    masks = masks_of([code_of([ring_of(box)], size) if coded else [ring_of(box)] for box, size in flat])
    points = np.array([corners_of(box) for box, _ in flat], np.float32).reshape(-1, 5, 3)
    return replace(data, masks=masks, keypoints=points)


def random_box(rng: np.random.Generator, size: tuple[int, int]) -> list[int]:
    h, w = size
    x0, y0 = int(rng.integers(0, w * 0.6)), int(rng.integers(0, h * 0.6))
    return [x0, y0, int(rng.integers(x0 + w * 0.2, w)), int(rng.integers(y0 + h * 0.2, h))]


def pixels_of(objects: Objects, width: int) -> NDArray[np.bool_]:
    assert objects.masks is not None
    return unpacked(objects.masks, width)


def unpacked(masks: NDArray[np.uint8], width: int) -> NDArray[np.bool_]:
    return np.unpackbits(masks, axis=-1, count=width).astype(bool)


def extent(mask: NDArray[np.bool_]) -> list[int]:
    rows, columns = np.nonzero(mask)
    return [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


def grown(mask: NDArray[np.bool_], by: int) -> NDArray[np.bool_]:
    """A mask with ``by`` pixels more to every side, or less."""
    kind = ImageFilter.MaxFilter if by > 0 else ImageFilter.MinFilter
    return np.asarray(Image.fromarray(mask.astype(np.uint8)).filter(kind(2 * abs(by) + 1))).astype(bool)


def alike(one: NDArray[np.bool_], other: NDArray[np.bool_], to: int = 1) -> bool:
    """Equal but for ``to`` pixels along the boundary."""
    return bool((one <= grown(other, to)).all() and (grown(other, -to) <= one).all())


# ---- one map for everything


@pytest.mark.parametrize("coded", [False, True])
@pytest.mark.parametrize("seed", range(12))
def test_box_mask_and_keypoints_stay_together(tmp_path, seed, coded):
    rng = np.random.default_rng(seed)
    sizes = [tuple(rng.integers(60, 500, 2).tolist()) for _ in range(3)]
    data = rectangles(tmp_path, [[random_box(rng, size)] for size in sizes], sizes, coded)
    dataset, seen = Dataset(data, SIZE, seed), 0
    for index in range(3):
        for epoch in range(4):
            sample = dataset.sample(index, epoch, EVERYTHING)
            found, masks = sample.objects, pixels_of(sample.objects, SIZE[1])
            red = sample.image[..., 0].astype(int) - sample.image[..., 1] > 110
            for box, mask, points in zip(found.boxes, masks, found.keypoints, strict=True):
                if mask.sum() > 0.95 * np.prod(np.round(box[2:] - box[:2])):  # else something was pasted on top of it
                    np.testing.assert_allclose(extent(mask), box, atol=1)
                assert (mask <= grown(red, 2)).all()
                for (x, y, visible), name in zip(points, CORNERS.names, strict=True):
                    if visible and name != "middle":
                        assert x == pytest.approx(box[0 if "left" in name else 2], abs=0.01)
                        assert y == pytest.approx(box[1 if "top" in name else 3], abs=0.01)
                seen += int((points[:, 2] > 0).sum())
    assert seen > 30


@pytest.mark.parametrize(
    "placement, box, seen",
    [
        (Placement((0, 0, 10, 10), (0, 0, 20, 40)), (0, 4, 8, 24), ALL),
        (Placement((2, 0, 12, 10), (0, 0, 20, 40)), (0, 4, 4, 24), "right top, right bottom"),  # cut off at the left
        (Placement((2, 0, 12, 10), (0, 0, 20, 40), mirrored=True), (16, 4, 20, 24), "left top, left bottom"),
        (Placement((-9, -9, 31, 31), (0, 0, 40, 40)), (9, 10, 13, 15), ALL),  # zoomed out
        (Placement((0, 0, 10, 3.5), (20, 20, 40, 27)), (20, 22, 28, 27), "left top, right top"),  # a tile, cut below
    ],
)
@pytest.mark.parametrize("coded", [False, True])
def test_where_a_rectangle_goes(tmp_path, placement, box, seen, coded):
    data = rectangles(tmp_path, [[[0, 1, 4, 6]]], [(10, 10)], coded)
    placed = place(Dataset(data, (40, 40)).objects(0), placement)
    found = rasters.fill(placed, (40, 40))
    assert found.boxes.tolist() == [list(box)]
    expected = np.zeros((40, 40), bool)
    expected[box[1] : box[3], box[0] : box[2]] = True
    assert (pixels_of(found, 40)[0] == expected).all()
    names = [name for name, (_, _, visible) in zip(CORNERS.names, found.keypoints[0], strict=True) if visible]
    assert [name for name in names if name != "middle"] == seen.split(", ")
    assert (found.keypoints[0][found.keypoints[0, :, 2] == 0] == 0).all()
    # the whole of it, by the scale, although a part is out of sight
    scale = np.prod([scale for scale, _ in placement.affine()])
    assert found.areas.tolist() == pytest.approx([4 * 5 * abs(scale)])


def test_zeros_of_unlabelled_keypoints_stay_zeros_and_visibility_is_kept(tmp_path):
    data = rectangles(tmp_path, [[[2, 2, 8, 8]]], [(10, 10)])
    data.keypoints[0, :, 2] = (2, 1, 0, 1, 2)
    data.keypoints[0, 2] = 0
    for mirrored, visible in ((False, [2, 1, 0, 1, 2]), (True, [1, 2, 1, 0, 2])):
        found = place(Dataset(data, (20, 20)).objects(0), Placement((-5, -5, 15, 15), (0, 0, 20, 20), mirrored))
        assert found.keypoints[0, :, 2].tolist() == visible
        assert found.keypoints[0, visible.index(0)].tolist() == [0, 0, 0]


def test_objects_lose_their_last_keypoint_and_are_dropped(tmp_path):
    data = rectangles(tmp_path, [[[0, 0, 8, 8], [2, 2, 6, 6]]], [(10, 10)])
    data.keypoints[0, 1:] = 0  # only the left top is labelled
    found = place(Dataset(data, (20, 20)).objects(0), Placement((1, 1, 9, 9), (0, 0, 20, 20)))
    assert found.boxes.tolist() == [[2.5, 2.5, 12.5, 12.5]] and len(found.keypoints) == len(found.areas) == 1


def test_objects_without_keypoints_are_not_learned_where_keypoints_are_wanted(tmp_path):
    data = rectangles(tmp_path, [[[0, 0, 8, 8], [2, 2, 6, 6]]], [(10, 10)])
    data.keypoints[0] = 0
    assert Dataset(data, (20, 20)).sample(0).objects.boxes.tolist() == [[4, 4, 12, 12]]
    assert len(Dataset(replace(data, keypoints=None), (20, 20)).sample(0).objects) == 2


# ---- mirrors


def test_a_flip_swaps_left_and_right(tmp_path):
    """Only the left keypoints are labelled; in the mirror they are the right ones."""
    data = rectangles(tmp_path, [[[10, 20, 30, 60]]], [(100, 100)])
    data.keypoints[0, (1, 3, 4)] = 0
    found = Dataset(data, (100, 100)).sample(0, augment=Augment(flip=1)).objects.keypoints[0]
    assert found.tolist() == [[0, 0, 0], [90, 20, 2], [0, 0, 0], [90, 60, 2], [0, 0, 0]]


def test_a_mirrored_mosaic_swaps_left_and_right_in_every_tile(tmp_path):
    boxes = [[[10 + index, 20, 30, 60 + index]] for index in range(5)]
    data = rectangles(tmp_path, boxes, [(100, 100)] * 5)
    data.keypoints[:, (1, 3, 4)] = 0
    for epoch in range(10):
        found = Dataset(data, (100, 100)).sample(0, epoch, Augment(mosaic=1, flip=1)).objects
        assert len(found) == 4
        for box, points in zip(found.boxes, found.keypoints, strict=True):
            assert points[:, 2].tolist() == [0, 2, 0, 2, 0]
            np.testing.assert_allclose(points[[1, 3], :2], [[box[2], box[1]], [box[2], box[3]]], atol=1e-4)


def test_a_pasted_mirror_image_swaps_left_and_right(tmp_path):
    data = rectangles(tmp_path, [[], [[10, 20, 40, 60]]], [(100, 100)] * 2)
    data.keypoints[:, (1, 3, 4)] = 0
    patch = Placement((5, 15, 45, 65), (20, 20, 60, 70), mirrored=True)
    sketch = Sketch((0, 1), (whole((100, 100), (100, 100)), patch))
    found = Dataset(data, (100, 100)).render(sketch, np.zeros((100, 100, 3), np.uint8))
    assert found.keypoints[0, :, 2].tolist() == [0, 2, 0, 2, 0]
    assert found.keypoints[0, [1, 3], :2].tolist() == [[55, 25], [55, 65]]


# ---- pixels of masks


def blob(rng: np.random.Generator, centre: tuple[float, float], radius: float, points: int = 40) -> NDArray[np.float32]:
    angles = np.linspace(0, 2 * np.pi, points, endpoint=False)
    lengths = radius * (1 + 0.25 * np.sin(3 * angles + rng.uniform(0, 6)) + 0.1 * rng.standard_normal(points))
    return (np.array(centre) + lengths[:, None] * np.stack([np.cos(angles), np.sin(angles)], 1)).astype(np.float32)


@pytest.mark.parametrize("seed", range(20))
def test_codes_and_polygons_of_a_shape_give_the_same_pixels(seed):
    rng = np.random.default_rng(seed)
    size = tuple(rng.integers(80, 300, 2).tolist())
    rings = [blob(rng, (size[1] * 0.4, size[0] * 0.5), min(size) * 0.3), blob(rng, (size[1] * 0.8, size[0] * 0.3), 12)]
    masks = masks_of([rings, code_of(rings, size)])
    view = (rng.uniform(-size[1], size[1] * 0.3), rng.uniform(-size[0], size[0] * 0.3), size[1] * 0.9, size[0] * 1.5)
    placement = Placement(view, (32, 0, 160, 120), mirrored=bool(seed % 2))
    shapes = [Shape(masks, row, size, placement.affine(), placement.onto) for row in range(2)]
    both = rasters.fill(Objects(np.zeros((2, 4), np.float32), np.arange(2), tuple(shapes)), (128, 160))
    polygon, code = pixels_of(both, 160)
    assert polygon.sum() > 100
    coarse = max(abs(scale) for scale, _ in placement.affine())  # input pixels of one pixel of the picture
    assert alike(code, polygon, int(np.ceil(1 + coarse)))


@pytest.mark.parametrize("seed", range(8))
def test_a_code_is_read_where_the_middle_of_each_pixel_lies(seed):
    rng = np.random.default_rng(seed)
    picture = rng.random((50, 70)) < 0.5
    view = (rng.uniform(-30, 40), rng.uniform(-30, 20), rng.uniform(45, 100), rng.uniform(25, 80))
    placement = Placement(view, (8, 0, 32, 40), mirrored=bool(seed % 2))
    masks = masks_of([coco.encode(np.asfortranarray(picture.astype(np.uint8)))["counts"]])
    x, y, pixels = rasters.patch(Shape(masks, 0, picture.shape, placement.affine(), placement.onto), (48, 64))
    found = np.zeros((48, 64), bool)
    found[y : y + pixels.shape[0], x : x + pixels.shape[1]] = pixels
    (x_scale, x_shift), (y_scale, y_shift) = placement.affine()
    for row, column in np.ndindex(48, 64):
        there = int(np.floor((row + 0.5 - y_shift) / y_scale)), int(np.floor((column + 0.5 - x_shift) / x_scale))
        known = 0 <= there[0] < 50 and 0 <= there[1] < 70 and row < 40 and 8 <= column < 32
        assert found[row, column] == (known and picture[there])


@pytest.mark.parametrize("seed", range(20))
def test_outlines_that_leave_the_window_are_cut_where_they_leave_it(seed):
    rng = np.random.default_rng(seed)
    rings = [blob(rng, tuple(rng.uniform(0, 200, 2)), rng.uniform(20, 150)) for _ in range(2)]
    window = (70, 40, 120, 150)
    expected = coco.decode(coco.merge(coco.frPyObjects([ring.ravel().astype(float) + 300 for ring in rings], 800, 800)))
    x, y, pixels = rasters.outline([ring.astype(float) for ring in rings], window)
    found, inside = np.zeros((2, 200, 200), bool)
    found[y : y + pixels.shape[0], x : x + pixels.shape[1]] = pixels
    inside[40:150, 70:120] = True
    expected = expected[300:500, 300:500].astype(bool) & inside
    assert not found[~inside].any()
    assert alike(found, expected) and (found != expected).sum() <= 10  # COCO rounds the ends of lines to a fifth


def test_far_away_points_cost_nothing():
    ring = np.array([(-1e9, -1e9), (1e9, -1e9), (1e9, 1e9), (-1e9, 1e9)])
    assert rasters.outline([ring], (3, 4, 8, 10)).pixels.all()
    assert rasters.outline([ring], (3, 4, 8, 10)).pixels.shape == (6, 5)
    assert rasters.outline([ring + 3e9], (3, 4, 8, 10)).pixels.size == 0


@pytest.mark.parametrize("size", [(64, 64), (33, 51)])
def test_what_lies_on_top_takes_pixels_away(tmp_path, size):
    data = rectangles(tmp_path, [[[0, 0, size[1], size[0]], [1, 1, 9, 9]]], [size])
    placed = place(Dataset(data, size).objects(0), whole(size, size))
    found = rasters.fill(cover(cover(placed, (0, 0, 20, 10)), (5, 5, 8, 30)), size)
    expected = np.ones(size, bool)
    expected[:10, :20] = expected[5:30, 5:8] = False
    assert (pixels_of(found, size[1]) == expected).all()
    assert found.boxes.tolist() == [[0, 0, size[1], size[0]]]  # the small one has no pixel left
    assert len(found.keypoints) == len(found.labels) == 1


def test_a_picture_whose_only_mask_is_out_of_sight(tmp_path):
    """The centre of the box is seen, but the mask is in a corner that is not."""
    data = rectangles(tmp_path, [[[0, 0, 100, 100]]], [(100, 100)])
    for corner in ([ring_of((0, 0, 20, 20))], code_of([ring_of((0, 0, 20, 20))], (100, 100)), []):
        dataset = Dataset(replace(data, masks=masks_of([corner])), (40, 48))
        found = dataset.render(
            Sketch((0,), (Placement((30, 30, 90, 90), (0, 0, 48, 40)),)), np.zeros((40, 48, 3), "u1")
        )
        target = loader.to_target(found, dataset, 0, (40, 48))
        assert target.masks.shape == (0, 40, 6) and target.keypoints.shape == (0, 5, 3)
        assert target.area.shape == (0,) and target.boxes.shape == (0, 4) and target.labels.shape == (0,)


# ---- batches


@pytest.mark.parametrize("workers", [0, 2])
def test_targets_are_what_the_samples_are(tmp_path, workers):
    boxes = [[[1, 2, 20, 18], [5, 5, 30, 39]], [], [[0, 0, 50, 40]], [[10, 10, 40, 30]] * 3]
    data = rectangles(tmp_path, boxes, [(40, 50)] * 4)
    dataset = Dataset(data, (64, 104), seed=2)
    augment = replace(EVERYTHING, mosaic=0.5)
    batches = loader.batches(
        data, (64, 104), 3, augment_of=lambda _: augment, seed=2, workers=workers, drop_last=False, shuffle=False
    )
    for epoch in range(3):
        batches.set_epoch(epoch)
        targets = [target for batch in batches for target in batch.targets]
        assert len(targets) == 4
        for index, target in enumerate(targets):
            found = dataset.sample(index, epoch, augment).objects
            assert str(target.masks.dtype) == "torch.uint8" and target.masks.shape == (len(found), 64, 13)
            assert (unpacked(target.masks.numpy(), 104) == pixels_of(found, 104)).all()
            np.testing.assert_allclose(target.keypoints.numpy() * (104, 64, 1), found.keypoints, atol=1e-4)
            np.testing.assert_allclose(target.area.numpy() * 104 * 64, found.areas, rtol=1e-5)
            assert target.keypoints.shape == (len(found), 5, 3)


def test_pictures_without_objects_keep_their_shapes(tmp_path):
    data = rectangles(tmp_path, [[], []], [(20, 30)] * 2)
    for batch in loader.batches(data, (32, 64), 2, augment_of=lambda _: PRESETS["strong"]):
        for target in batch.targets:
            assert target.masks.shape == (0, 32, 8) and target.keypoints.shape == (0, 5, 3)
            assert target.area.shape == (0,)


def test_mixup_keeps_masks_and_keypoints_of_both(tmp_path):
    data = rectangles(tmp_path, [[[0, 0, 10, 10]], [[20, 20, 40, 30]]], [(40, 50)] * 2)
    mixed = loader.batches(data, (40, 50), 2, augment_of=lambda _: Augment(mixup=1), shuffle=False)
    alone = [target for batch in loader.plain(data, (40, 50), 2) for target in batch.targets]
    for own, target in enumerate(next(iter(mixed)).targets):
        pair = (alone[own], alone[1 - own])
        assert target.masks.numpy().tolist() == [part.masks[0].numpy().tolist() for part in pair]
        assert target.keypoints.tolist() == [part.keypoints[0].tolist() for part in pair]
        assert target.area.tolist() == [part.area[0].item() for part in pair]


# ---- copy-paste


def test_pasted_objects_leave_the_others_to_be_seen():
    rng = np.random.default_rng(0)
    boxes = [[10, 10, 30, 40], [30, 50, 60, 70], [70, 0, 100, 100]]
    objects = Objects(np.array(boxes, np.float32), np.arange(3))
    there = np.array([[0, 0, 60, 60], [100, 20, 120, 50]], np.float32)
    counts, mirrors = [], []
    for _ in range(300):
        found = pasting.paste(objects, (100, 100), there, (128, 160), 0.5, rng)
        counts.append(len(found))
        mirrors += [placement.mirrored for placement in found]
        hidden = np.zeros((128, 160), bool)
        for placement in found:
            x0, y0, x1, y1 = placement.onto
            assert all(isinstance(side, int) for side in placement.onto)
            assert min(x0, y0) >= 0 and x1 <= 160 and y1 <= 128
            assert x1 - x0 <= 80 and y1 - y0 <= 64 and min(x1 - x0, y1 - y0) >= pasting.SMALLEST
            a, b, c, d = placement.view
            assert 0 <= a < c <= 100 and 0 <= b < d <= 100
            assert len(place(objects, placement)) >= 1
            hidden[y0:y1, x0:x1] = True
        for left, top, right, bottom in there.astype(int).tolist():
            assert hidden[top:bottom, left:right].mean() <= pasting.MOST_COVERED + 1e-9
        for one, other in pairwise(found):  # nor is a pasted object hidden by the next
            below = place(objects, one).boxes
            areas = (below[:, 2:] - below[:, :2]).prod(axis=1)
            assert (pasting.overlaps(np.array([other.onto]), below)[0] <= pasting.MOST_COVERED * areas).all()
    assert {1, 2, 3} <= set(counts) and 0.4 < np.mean(mirrors) < 0.6


def test_a_patch_is_as_large_as_plain_resizing_makes_it_times_a_factor():
    rng = np.random.default_rng(1)
    view = pasting.with_margin(np.array([20, 10, 40, 20], np.float32), (100, 200))
    assert view == (18, 9, 42, 21)
    sides = np.array([pasting.extent(view, (100, 200), (400, 400), rng) for _ in range(300)]) / (48, 48)
    assert 0.48 < sides.min() < 0.6 and 1.4 < sides.max() < 1.52


def test_without_room_nothing_is_pasted():
    objects = Objects(np.array([[0, 0, 100, 100]], np.float32), np.arange(1))
    full = np.array([[x, y, x + 8, y + 8] for x in range(0, 32, 8) for y in range(0, 32, 8)], np.float32)
    rng, nothing = np.random.default_rng(0), full[:0]
    for _ in range(20):
        assert pasting.paste(objects, (100, 100), full, (32, 32), 0.0, rng) == []
        assert len(pasting.paste(objects, (100, 100), nothing, (32, 32), 0.0, rng)) == 1
    assert pasting.paste(objects.take(np.array([False])), (100, 100), nothing, (32, 32), 0.0, rng) == []


def test_nothing_tiny_is_pasted():
    objects = Objects(np.array([[0, 0, 3, 3]], np.float32), np.arange(1))
    rng = np.random.default_rng(0)
    nowhere = np.zeros((0, 4), np.float32)
    assert all(pasting.paste(objects, (100, 100), nowhere, (100, 100), 0.0, rng) == [] for _ in range(20))


def test_what_lies_below_a_patch_is_covered(tmp_path):
    data = rectangles(tmp_path, [[[10, 10, 50, 50]], [[20, 20, 40, 40]]], [(60, 60)] * 2)
    patch = Placement((18, 18, 42, 42), (0, 0, 24, 24))
    canvas = np.full((60, 60, 3), FILL, np.uint8)
    found = Dataset(data, (60, 60)).render(Sketch((0, 1), (whole((60, 60), (60, 60)), patch)), canvas)
    assert found.boxes.tolist() == [[10, 10, 50, 50], [2, 2, 22, 22]]
    below, above = pixels_of(found, 60)
    assert not (below & above).any() and below.sum() == 40 * 40 - 14 * 14 and above.sum() == 400
    assert ((canvas[..., 0] > 200) == (below | above)).all()
    assert found.keypoints[0, :, 2].tolist() == [1, 2, 2, 2, 2] and found.keypoints[1, :, 2].tolist() == [2] * 5
    assert found.keypoints[0, 0, :2].tolist() == [10, 10]


def test_pasting_changes_no_other_draw_and_leaves_mosaics_alone(tmp_path):
    boxes = [[[10, 10, 30, 30]] for _ in range(6)]
    dataset = Dataset(rectangles(tmp_path, boxes, [(60, 60)] * 6), (64, 64))
    without, pasted = Augment.strong(0.5, 0.0), Augment.strong(0.5, 0.0, paste=1.0)
    patches = []
    for index in range(6):
        for epoch in range(10):
            plain, more = (dataset.sketch(index, augment, generator(Draw.SAMPLE, 0, epoch, index))
                           for augment in (without, pasted))  # fmt: skip
            count = len(plain.placements)
            assert more.placements[:count] == plain.placements and more.colours == plain.colours
            assert more.indices[:count] == plain.indices and len(set(more.indices[count:])) <= 1
            if count == 4:
                assert more == plain
            else:
                patches.append(len(more.placements) - count)
    assert min(patches) >= 0 and np.mean(patches) > 0.5


def test_pasting_ends_with_the_mosaic_phase():
    assert Augment.strong().paste == 0 and all(preset.paste == 0 for preset in PRESETS.values())
    assert Augment.strong(paste=0.5).paste == 0.5
    assert Augment.strong(paste=0.5).unmixed().paste == Augment.strong(paste=0.5).gentle().paste == 0


def test_draws_without_pasting_are_those_of_the_first_version():
    """Boxes and colours of trainings that began before masks, keypoints and copy-paste were known stay the same."""
    rng = np.random.default_rng(0)
    sizes = [(int(h), int(w)) for h, w in rng.integers(20, 90, (6, 2))]
    rows = [random_objects(rng, (0, 1, 2), size) for size in sizes]
    dataset = Dataset(annotate(Labels(("a", "b", "c")), rows, sizes), (64, 96), seed=4)
    sketches = [dataset.sketch(i, PRESETS["default"], generator(Draw.SAMPLE, 4, 2, i)) for i in range(4)]
    assert [sketch.indices for sketch in sketches] == [(0,), (0, 1, 0, 0), (5, 2, 2, 2), (3,)]
    assert all(sketch.placements[0].mirrored for sketch in sketches)
    views = [sketch.placements[0].view for sketch in sketches]
    np.testing.assert_allclose(views[0], (-53.6558, -71.397, 111.8954, 132.9552), atol=1e-3)
    np.testing.assert_allclose(views[3], (0.1108, 0.2016, 12.2243, 22.37), atol=1e-3)
    assert [sketch.placements[0].onto for sketch in sketches[1:]] == [(48, 0, 96, 32)] * 2 + [(0, 0, 96, 64)]
    colours = [0 if sketch.colours is None else sum(sketch.colours) for sketch in sketches]
    assert colours == pytest.approx([51.6027, 0, 0, 25.5134], abs=1e-3)


# ---- real data


@pytest.mark.parametrize("name", ["cats_seg", "coco_mini"])
def test_plain_masks_are_coco_s_own(shared_data, name):
    data = formats.load(shared_data / name, "train", truth="masks").subset(np.arange(25))
    for index in range(len(data)):
        size = tuple(data.sizes[index].tolist())
        found = rasters.fill(place(Dataset(data, size).objects(index), whole(size, size)), size)
        rows = np.arange(len(data.crowd))[data.objects(index)]
        expected = []
        for row in rows[~data.crowd[rows]]:
            rings = [ring.ravel().astype(float) for ring in data.masks.polygons(row)]
            code = {"size": list(size), "counts": data.masks.code(row)}
            expected.append(coco.decode(coco.merge(coco.frPyObjects(rings, *size)) if rings else code))
        assert (pixels_of(found, size[1]) == np.array(expected).reshape(-1, *size)).all()


@pytest.mark.parametrize("name", ["cats_seg", "coco_mini"])
def test_real_masks_lie_in_their_boxes(shared_data, name):
    data = formats.load(shared_data / name, "train", truth="masks").subset(np.arange(30))
    dataset, count = Dataset(data, (256, 320), seed=1), 0
    for index in range(len(data)):
        found = dataset.sample(index, 0, EVERYTHING).objects
        for box, mask in zip(found.boxes, pixels_of(found, 320), strict=True):
            frame = np.zeros((256, 320), bool)
            low, high = np.floor(box[:2]).astype(int), np.ceil(box[2:]).astype(int)
            frame[low[1] : high[1], low[0] : high[0]] = True
            assert (mask & ~grown(frame, 3)).sum() <= 0.01 * mask.sum()
            count += 1
    assert count > 50


@pytest.mark.parametrize("name", ["mouse_pose", "coco_mini"])
def test_real_keypoints_lie_in_their_boxes(shared_data, name):
    data = formats.load(shared_data / name, "train", truth="keypoints")
    dataset, count = Dataset(data, (256, 320), seed=1), 0
    for index in range(30):
        found = dataset.sample(index, 0, EVERYTHING).objects
        for box, points in zip(found.boxes, found.keypoints, strict=True):
            known = points[points[:, 2] > 0]
            assert len(known) and (known[:, :2] >= 0).all() and (known[:, :2] <= (320, 256)).all()
            inside = ((known[:, :2] >= box[:2] - 8) & (known[:, :2] <= box[2:] + 8)).all(axis=1)
            assert inside.mean() > 0.5
            count += len(known)
    assert count > 50
