"""Masks of COCO files become flat columns; those that cannot be used are counted, named and skipped."""

import json
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_truth import BLOB, HEIGHT, OTHER, SQUARE, WIDTH, coco, coded, masked, pixels, record

from edgecrafter.data import check, formats
from edgecrafter.data.annotations import to_coco
from edgecrafter.data.formats import clean_masks, run_codes
from edgecrafter.geometry import polygons


def runs(found: np.ndarray) -> list[int]:
    flat = np.concatenate([[0], found.T.flatten().astype(int), [1 - found[-1, -1]]])
    edges = np.flatnonzero(np.diff(flat))
    return np.diff(np.concatenate([[0], edges])).tolist()


def test_polygons_and_codes_are_columns(tmp_path: Path) -> None:
    data = masked(tmp_path, [SQUARE, OTHER])
    assert [len(data.masks.polygons(row)) for row in range(2)] == [1, 2]
    np.testing.assert_array_equal(data.masks.polygons(1)[1], np.reshape(OTHER, (-1, 2)))
    for value in (coded(BLOB), {"size": [HEIGHT, WIDTH], "counts": runs(BLOB)}):
        data = masked(tmp_path, value)
        assert data.masks.polygons(1) == [] and data.masks.code(0) == b""
        assert data.masks.code(1).decode() == coded(BLOB)["counts"]
        np.testing.assert_array_equal(pixels(data, 1), BLOB)
    assert not data.notes
    assert formats.load(tmp_path).masks is None


def test_masks_follow_their_pictures(tmp_path: Path) -> None:
    data = masked(tmp_path, coded(BLOB))
    thrice = data.subset([0, 0, 0])
    assert len(thrice.masks) == 6 and [len(thrice.masks.polygons(row)) for row in range(6)] == [1, 0, 1, 0, 1, 0]
    for row in (1, 3, 5):
        np.testing.assert_array_equal(pixels(thrice, row), BLOB)
    turned = data.masks.take(np.array([1, 0]))
    assert turned.code(0) == data.masks.code(1)
    np.testing.assert_array_equal(turned.polygons(1)[0], data.masks.polygons(0)[0])
    assert len(data.masks.take(np.array([False, False]))) == 0 == len(data.subset([]).masks)


SKIPPED = [
    (None, "objects without a mask, skipped: 1"),
    ([], "objects without a mask, skipped: 1"),
    ("text", "objects without a mask, skipped: 1"),
    ([[10, 10, 50, 50]], "no polygon that can be drawn, skipped: 1"),
    ([[10, 10, 50, 10, 50, 50, 10]], "no polygon that can be drawn, skipped: 1"),
    ([[10, 10, 50, 10, None, 50]], "number that is not finite, left out: 1"),
    ([[10, 10, 50, 10, float("inf"), 50]], "number that is not finite, left out: 1"),
    ([[10, 10, 50, 10, [5], 50]], "of other than numbers; these polygons are left out: 1"),
    ([10, 10, 50, 10, 50, 50], "no polygon that can be drawn, skipped: 1"),
    ([[200, 200, 300, 200, 300, 300]], "no polygon that can be drawn, skipped: 1"),
    ([[10, 10, 30, 10, 20, 10]], "covers no pixel, skipped: 1"),
    ([[10.1, 10.1, 10.2, 10.1, 10.2, 10.2]], "covers no pixel, skipped: 1"),
    ({"size": [WIDTH, HEIGHT], "counts": runs(BLOB)}, "picture of another size, skipped: 1"),
    ({"counts": runs(BLOB)}, "picture of another size, skipped: 1"),
    ({"size": [HEIGHT, WIDTH]}, "cannot be decoded .*skipped: 1"),
    ({"size": [HEIGHT, WIDTH], "counts": [HEIGHT * WIDTH]}, "covers no pixel, skipped: 1"),
    ({"size": [HEIGHT, WIDTH], "counts": [10, 5]}, "do not fill their picture, skipped: 1"),
    ({"size": [HEIGHT, WIDTH], "counts": [10, -5, HEIGHT * WIDTH - 5]}, "do not fill their picture, skipped: 1"),
    ({"size": [HEIGHT, WIDTH], "counts": [10.5, HEIGHT * WIDTH - 10.5]}, "do not fill their picture, skipped: 1"),
    ({"size": [HEIGHT, WIDTH], "counts": [2**70, 1 - 2**70]}, "do not fill their picture, skipped: 1"),
    ({"size": [HEIGHT, WIDTH], "counts": ""}, "cannot be decoded .*skipped: 1"),
    ({"size": [HEIGHT, WIDTH], "counts": "ä"}, "cannot be decoded .*skipped: 1"),
    ({"size": [HEIGHT, WIDTH], "counts": "P"}, "cannot be decoded .*skipped: 1"),  # a piece that never ends
    ({"size": [HEIGHT, WIDTH], "counts": "oooooooooooo?"}, "cannot be decoded .*skipped: 1"),  # a huge number
    ({"size": [HEIGHT, WIDTH], "counts": "om;8Q:7I8K4M4K4L4M1N3N"}, "cannot be decoded .*skipped: 1"),
]


@pytest.mark.parametrize("value, note", SKIPPED)
def test_masks_that_cannot_be_used_are_skipped(tmp_path: Path, value: Any, note: str) -> None:
    data = masked(tmp_path, value)
    assert data.ids.tolist() == [1] and len(data.masks) == 1
    assert any(re.search(note + r" \(first: instances_train\.json, annotation id 2\)", text) for text in data.notes)
    assert formats.load(tmp_path).ids.tolist() == [1, 2], "boxes do not need masks"


@pytest.mark.parametrize("value, note", SKIPPED)
def test_a_crowd_region_without_a_mask_gets_its_box(tmp_path: Path, value: Any, note: str) -> None:
    data = masked(tmp_path, value, iscrowd=1)
    assert data.ids.tolist() == [1, 2] and data.learnable().tolist() == [True, False]
    np.testing.assert_array_equal(data.masks.polygons(1), [[[10, 10], [60, 10], [60, 55], [10, 55]]])
    np.testing.assert_array_equal(data.masks.polygons(0), [np.reshape(SQUARE, (-1, 2))])
    assert any("get their box as mask: 1 (first: instances_train.json, annotation id 2)" in text for text in data.notes)


def test_a_mask_keeps_its_good_polygons(tmp_path: Path) -> None:
    data = masked(tmp_path, [[1, 2, 3, 4], SQUARE, [1, 2, 3, float("nan"), 5, 6]])
    assert len(data.masks.polygons(1)) == 1 and len(data.ids) == 2
    assert any("these polygons are left out: 1" in text for text in data.notes)
    assert any("not finite, left out: 1" in text for text in data.notes)


@pytest.mark.parametrize(
    "ring, expected",
    [
        ([-20, -20, 500, -20, 500, 400, -20, 400], (0, 80, 0, 60)),
        ([70, 10, 1e300, 10, 1e300, 30, 70, 30], (70, 80, 10, 30)),
        ([10, -1e9, 30, -1e9, 30, 1e9, 10, 1e9], (10, 30, 0, 60)),
    ],
)
def test_polygons_are_cut_off_at_the_border(
    tmp_path: Path, ring: list[float], expected: tuple[int, int, int, int]
) -> None:
    data = masked(tmp_path, [ring])
    left, right, top, bottom = expected
    inside = np.zeros((HEIGHT, WIDTH), dtype=bool)
    inside[top:bottom, left:right] = True
    np.testing.assert_array_equal(pixels(data, 1), inside)
    assert any("polygons that leave their picture, clipped: 1" in text for text in data.notes)


def test_clipping_keeps_the_part_inside() -> None:
    slanted = np.array([[-10.0, 5.0], [10.0, -15.0], [30.0, 5.0], [10.0, 25.0]])  # a diamond around (10, 5)
    inside = polygons.clip(slanted, (0.0, 0.0, 20.0, 10.0))
    following = np.roll(inside, -1, axis=0)
    area = abs((inside[:, 0] * following[:, 1] - inside[:, 1] * following[:, 0]).sum()) / 2
    assert (inside >= 0).all() and (inside <= [20, 10]).all()
    assert area == pytest.approx(200), "the rectangle lies inside of the diamond"
    assert len(polygons.clip(slanted + 100, (0.0, 0.0, 20.0, 10.0))) == 0
    window = (4.0, 2.0, 9.0, 7.0)
    assert {*map(tuple, polygons.clip(slanted, window).tolist())} == {(4, 2), (9, 2), (9, 7), (4, 7)}


def test_rounding_beyond_the_border_is_left_alone(tmp_path: Path) -> None:
    data = masked(tmp_path, [[60, 40, 80.6, 40, 80.6, 60.6, 60, 60.6]])
    assert data.masks.polygons(1)[0].max() == np.float32(80.6) and not data.notes


def test_areas_come_from_the_file_and_else_from_the_mask(tmp_path: Path) -> None:
    data = masked(tmp_path, coded(BLOB), area=None)
    assert data.areas.tolist() == [700, BLOB.sum()]
    assert masked(tmp_path, [SQUARE], area=None).areas.tolist() == [700, 400]
    assert formats.load(tmp_path).areas.tolist() == [700, 50 * 45]


def test_no_masks_at_all_is_an_error(tmp_path: Path) -> None:
    coco(tmp_path, [record(1), record(2, segmentation=[])])
    with pytest.raises(ValueError, match=r"none of the 2 objects has a mask .*finds boxes \(ecdet\)"):
        formats.load(tmp_path, truth="masks")
    assert len(formats.load(coco(tmp_path, []), truth="masks").masks) == 0


def test_float32_points_draw_the_same_pixels() -> None:
    """Tenths of a pixel lie halfway between the fifths that COCO rounds to; float32 may fall to either side."""
    given = np.round(np.random.default_rng(0).uniform(0, 640, (100_000, 2)), 1)
    kept = clean_masks.single(given)
    rounded = [np.floor(5 * points.astype(np.float64) + 0.5) for points in (given, kept, given.astype(np.float32))]
    np.testing.assert_array_equal(rounded[0], rounded[1])
    assert (rounded[0] != rounded[2]).any(), "plain float32 would do as well"
    assert np.abs(given - kept).max() < 1e-4


def test_codes_are_decoded_as_the_library_does() -> None:
    rng = np.random.default_rng(1)
    for _ in range(200):
        height, width = rng.integers(1, 60, 2)
        found = rng.random((height, width)) < rng.random()
        if rng.random() < 0.5:
            found[: height // 2] = rng.random() < 0.5
        counts = run_codes.lengths(coded(found)["counts"], height * width)
        assert counts is not None
        flat = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
        np.testing.assert_array_equal(flat.reshape(width, height).T, found)


def test_huge_pictures_take_no_memory(tmp_path: Path) -> None:
    """A file that says its picture is enormous is refused when the picture is looked at, not before by a crash."""
    sides = 2**31 - 1
    objects = [
        record(1, segmentation=[[0, 0, sides, 0, sides, sides, 0, 1]]),
        record(2, segmentation={"size": [sides, sides], "counts": [0, sides**2]}),
    ]
    file = coco(tmp_path, objects) / "annotations" / "instances_train.json"
    data = json.loads(file.read_text())
    data["images"][0].update(height=sides, width=sides)
    file.write_text(json.dumps(data))
    with pytest.raises(ValueError, match="the annotations say 2147483647 x 2147483647 pixels"):
        check.usable(formats.load(tmp_path, truth="masks"))


def test_masks_written_and_read_are_the_same(tmp_path: Path) -> None:
    data = masked(tmp_path, coded(BLOB))
    written = to_coco(data)
    assert [type(row["segmentation"]) for row in written["annotations"]] == [list, dict]
    assert written["annotations"][1]["segmentation"] == coded(BLOB)
    (tmp_path / "annotations" / "instances_train.json").write_text(json.dumps(written))
    again = formats.load(tmp_path, truth="masks")
    for name in ("points", "rings", "objects", "codes", "code_offsets"):
        np.testing.assert_array_equal(getattr(again.masks, name), getattr(data.masks, name))


def test_the_columns_are_flat(tmp_path: Path) -> None:
    data = masked(tmp_path, coded(BLOB)).subset(np.zeros(5000, dtype=np.int64))
    arrays = [value for part in (data, data.masks) for value in vars(part).values() if isinstance(value, np.ndarray)]
    assert len(pickle.dumps(data)) < sum(value.nbytes for value in arrays) + 4000
