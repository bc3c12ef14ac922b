"""Masks and keypoints are read from every layout that has them; what is broken is counted, named and left out."""

import contextlib
import io
import json
import pickle
import re
from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgecrafter.data import check, formats, skeleton
from edgecrafter.data.annotations import Annotations, to_coco
from edgecrafter.data.formats import clean_masks, clip, run_codes
from edgecrafter.geometry.keypoints import COCO_SIGMAS, SIGMA
from edgecrafter.types import Labels, Skeleton

SQUARE = [10, 10, 30, 10, 30, 30, 10, 30]
OTHER = [40, 40, 60, 40, 60, 55]
HEIGHT, WIDTH = 60, 80


def record(key: int, category: int = 1, **more: Any) -> dict[str, Any]:
    return {"id": key, "image_id": 1, "category_id": category, "bbox": [10, 10, 50, 45], "area": 700, **more}


def coco(
    folder: Path, objects: list[dict[str, Any]], split: str = "train", kind: str = "instances", **person: Any
) -> Path:
    """One picture with a good object (id 1) and others; ``person`` goes to the only category."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (WIDTH, HEIGHT)).save(folder / "images" / "a.png")
    data = {
        "images": [{"id": 1, "file_name": "a.png", "height": HEIGHT, "width": WIDTH}],
        "annotations": objects,
        "categories": [{"id": 1, "name": "person", **person}],
    }
    file = folder / "annotations" / f"{kind}_{split}.json"
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(data))
    return folder


def masked(folder: Path, segmentation: Any, **more: Any) -> Annotations:
    """A good object and one (id 2) with this segmentation."""
    objects = [record(1, segmentation=[SQUARE]), record(2, segmentation=segmentation, **more)]
    return formats.load(coco(folder, objects), truth="masks")


def pixels(data: Annotations, row: int) -> np.ndarray:
    from faster_coco_eval.core import mask

    size = data.sizes[data.image_index()[row]].tolist()
    if code := data.masks.code(row):
        return mask.decode({"size": size, "counts": code}).astype(bool)
    rings = [ring.flatten().tolist() for ring in data.masks.polygons(row)]
    return mask.decode(mask.merge(mask.frPyObjects(rings, *size))).astype(bool)


def coded(found: np.ndarray) -> dict[str, Any]:
    from faster_coco_eval.core import mask

    code = mask.encode(np.asfortranarray(found.astype(np.uint8)))
    return {"size": list(found.shape), "counts": code["counts"].decode("ascii")}


def runs(found: np.ndarray) -> list[int]:
    flat = np.concatenate([[0], found.T.flatten().astype(int), [1 - found[-1, -1]]])
    edges = np.flatnonzero(np.diff(flat))
    return np.diff(np.concatenate([[0], edges])).tolist()


BLOB = np.zeros((HEIGHT, WIDTH), dtype=bool)
BLOB[20:40, 5:30] = True
BLOB[25:30, 10:20] = False


# Masks of COCO


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
    inside = clip.ring(slanted, 20.0, 10.0)
    following = np.roll(inside, -1, axis=0)
    area = abs((inside[:, 0] * following[:, 1] - inside[:, 1] * following[:, 0]).sum()) / 2
    assert (inside >= 0).all() and (inside <= [20, 10]).all()
    assert area == pytest.approx(200), "the rectangle lies inside of the diamond"
    assert len(clip.ring(slanted + 100, 20.0, 10.0)) == 0


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


# Keypoints of COCO

NAMES = ["nose", "left_eye", "right_eye"]
POINTS = [20, 20, 2, 25, 15, 1, 0, 0, 0]


def posed(folder: Path, *objects: dict[str, Any], labels: Labels | None = None, **person: Any) -> Annotations:
    """A data set whose category has ``NAMES``, unless ``person`` says otherwise."""
    person = {"keypoints": NAMES, "skeleton": [[1, 2], [1, 3]]} | person
    return formats.load(coco(folder, list(objects), **person), labels=labels, truth="keypoints")


def test_keypoints_are_a_column(tmp_path: Path) -> None:
    data = posed(tmp_path, record(1, keypoints=POINTS), record(2), record(3, iscrowd=1, keypoints=POINTS))
    assert data.keypoints.dtype == np.float32 and data.keypoints.shape == (3, 3, 3)
    np.testing.assert_array_equal(data.keypoints[0], np.reshape(POINTS, (3, 3)))
    assert not data.keypoints[1].any()
    assert data.learnable().tolist() == [True, False, False]
    assert data.labels.skeleton == Skeleton(tuple(NAMES), ((0, 1), (0, 2)), ((1, 2),), (SIGMA,) * 3)
    assert data.subset([0, 0]).keypoints.shape == (6, 3, 3)
    plain = formats.load(tmp_path)
    assert (
        plain.keypoints is None and plain.labels.skeleton is None and plain.learnable().tolist() == [True, True, False]
    )


@pytest.mark.parametrize("points", [[9, 9, 2], [9, 9, 2, 1, 1, 2, 0, 0], "text", [9, 9, 2, "1", 1, 2, 0, 0, 0], 7])
def test_wrong_counts_of_numbers_are_refused(tmp_path: Path, points: Any) -> None:
    with pytest.raises(ValueError, match=r"annotation id 1: 'keypoints' .*expected 9 numbers"):
        posed(tmp_path, record(1, keypoints=points))


@pytest.mark.parametrize("seen", [3, -1, 0.5, float("nan")])
def test_other_visibilities_are_refused(tmp_path: Path, seen: float) -> None:
    with pytest.raises(ValueError, match=r"annotation id 1: 'keypoints' .*a visibility of 0, 1 or 2"):
        posed(tmp_path, record(1, keypoints=[*POINTS[:6], 5, 5, seen]))


@pytest.mark.parametrize(
    "point, kept, note",
    [
        ([80.5, 30, 2], [80, 30, 2], ""),
        ([-0.9, 60.8, 1], [0, 60, 1], ""),
        ([82, 30, 2], [0, 0, 0], "outside of their picture, taken as not labelled: 1"),
        ([900, 900, 1], [0, 0, 0], "outside of their picture, taken as not labelled: 1"),
        ([float("nan"), 3, 2], [0, 0, 0], "not finite, taken as not labelled: 1"),
        ([7, 7, 0], [0, 0, 0], ""),
        ([900, 900, 0], [0, 0, 0], ""),
    ],
)
def test_keypoints_outside_are_not_labelled(tmp_path: Path, point: list[float], kept: list[float], note: str) -> None:
    data = posed(tmp_path, record(1, keypoints=[*POINTS[:6], *point]))
    assert data.keypoints[0, 2].tolist() == kept
    assert any(note in text for text in data.notes) if note else not data.notes


def test_other_counts_than_stated_are_noted(tmp_path: Path) -> None:
    data = posed(tmp_path, record(1, keypoints=POINTS, num_keypoints=3), record(2, keypoints=POINTS, num_keypoints=2))
    assert data.notes == (
        "objects whose num_keypoints is not the count of their labelled points: 1 "
        "(first: instances_train.json, annotation id 1)",
    )


@pytest.mark.parametrize(
    "stated, message",
    [
        ({"keypoints": ["a", "b", "a"]}, "category id 1: 'keypoints' .*a list of different names"),
        ({"keypoints": 17}, "category id 1: 'keypoints' is 17"),
        ({"flip_pairs": [[1, 3]]}, r"'person': flip_pairs: expected pairs .*of the 3 keypoints, got \[\[1, 3\]\]"),
        ({"flip_pairs": [["nose", "tail"]]}, "flip_pairs: expected pairs"),
        ({"flip_pairs": "eyes"}, "flip_pairs: expected pairs"),
        ({"flip_pairs": [[0, 1], [1, 2]]}, r"instances_train\.json: skeleton: a keypoint is in two"),
        ({"sigmas": [0.1, 0.2]}, "sigmas: expected one number above 0 for each of the 3 keypoints"),
        ({"keypoint_sigmas": [0.1, 0, 0.1]}, "keypoint_sigmas: expected one number above 0"),
    ],
)
def test_what_a_category_must_not_say(tmp_path: Path, stated: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        posed(tmp_path, record(1, keypoints=POINTS), **stated)


@pytest.mark.parametrize(
    "stated, pairs, sigmas",
    [
        ({"flip_pairs": [[0, 2]]}, ((0, 2),), (SIGMA,) * 3),
        ({"flip_pairs": [["right_eye", "nose"]]}, ((0, 2),), (SIGMA,) * 3),
        ({"flip_pairs": []}, (), (SIGMA,) * 3),
        ({"sigmas": [0.1, 0.2, 1]}, ((1, 2),), (0.1, 0.2, 1.0)),
        ({"keypoint_sigmas": [0.1, 0.2, 0.3]}, ((1, 2),), (0.1, 0.2, 0.3)),
    ],
)
def test_stated_pairs_and_sigmas(
    tmp_path: Path, stated: dict[str, Any], pairs: tuple[tuple[int, int], ...], sigmas: tuple[float, ...]
) -> None:
    found = posed(tmp_path, record(1, keypoints=POINTS), **stated).labels.skeleton
    assert found is not None and (found.flip_pairs, found.sigmas) == (pairs, sigmas)


def test_seventeen_keypoints_have_the_sigmas_of_coco(tmp_path: Path) -> None:
    names = [f"part {index}" for index in range(17)]
    found = posed(tmp_path, record(1, keypoints=[9, 9, 2] * 17), keypoints=names, skeleton=[]).labels.skeleton
    assert found is not None and found.sigmas == COCO_SIGMAS


def test_lines_that_join_nothing_are_left_out(tmp_path: Path) -> None:
    data = posed(tmp_path, record(1, keypoints=POINTS), skeleton=[[0, 1], [1, 2], [3, 4], [2, 2], "x"])
    assert data.labels.skeleton is not None and data.labels.skeleton.edges == ((0, 1),)
    assert any("join no two keypoints, left out: 4" in text for text in data.notes)


def several(folder: Path, categories: list[dict[str, Any]], objects: list[dict[str, Any]]) -> Path:
    file = coco(folder, objects) / "annotations" / "instances_train.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"categories": categories}))
    return folder


def test_keypoints_of_several_categories_go_by_name(tmp_path: Path) -> None:
    categories = [
        {"id": 1, "name": "dog", "keypoints": ["nose", "tail"], "skeleton": [[1, 2]], "sigmas": [0.1, 0.2]},
        {"id": 2, "name": "car"},
        {"id": 4, "name": "bird", "keypoints": ["wing_l", "wing_r", "nose"], "skeleton": [[1, 3]]},
    ]
    objects = [
        record(1, 4, keypoints=[1, 1, 2, 2, 2, 2, 3, 3, 1]),
        record(2, 2),
        record(3, 1, keypoints=[4, 4, 2, 5, 5, 2]),
    ]
    data = formats.load(several(tmp_path, categories, objects), truth="keypoints")
    assert data.labels.names == ("dog", "bird") and data.labels.ids == (1, 4)
    assert data.ids.tolist() == [1, 3]
    assert data.keypoints[..., 0].tolist() == [[3, 0, 1, 2], [4, 5, 0, 0]]
    assert data.keypoints[..., 2].tolist() == [[1, 0, 2, 2], [2, 2, 0, 0]]
    assert data.labels.skeleton == Skeleton(
        ("nose", "tail", "wing_l", "wing_r"), ((0, 1), (2, 0)), ((2, 3),), (0.1, 0.2, SIGMA, SIGMA)
    )
    assert any("without keypoints, left out: 1 (first: car; 1 objects)" in text for text in data.notes)


def test_keypoints_without_names_are_numbered(tmp_path: Path) -> None:
    categories = [{"id": 1, "name": "fish"}, {"id": 2, "name": "car"}]
    objects = [record(1, keypoints=[4, 4, 2, 5, 5, 2]), record(2, 2), record(3)]
    data = formats.load(several(tmp_path, categories, objects), truth="keypoints")
    assert data.labels.names == ("fish",) and data.ids.tolist() == [1, 3]
    assert data.labels.skeleton == Skeleton(("keypoint 0", "keypoint 1"))


def test_no_keypoints_at_all_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no keypoints: no category lists any .*person_keypoints_train\.json"):
        formats.load(coco(tmp_path, [record(1)]), truth="keypoints")


def test_keypoints_written_and_read_are_the_same(tmp_path: Path) -> None:
    data = posed(tmp_path, record(1, keypoints=POINTS), record(2), sigmas=[0.1, 0.2, 0.3])
    written = to_coco(data)
    assert [row["num_keypoints"] for row in written["annotations"]] == [2, 0]
    assert written["categories"][0]["skeleton"] == [[1, 2], [1, 3]]
    (tmp_path / "annotations" / "instances_train.json").write_text(json.dumps(written))
    again = formats.load(tmp_path, truth="keypoints")
    np.testing.assert_array_equal(again.keypoints, data.keypoints)
    assert again.labels == data.labels


def test_which_file_is_read(tmp_path: Path) -> None:
    coco(tmp_path, [record(1, segmentation=[SQUARE])])
    coco(tmp_path, [record(2, keypoints=POINTS)], kind="person_keypoints", keypoints=NAMES)
    assert [formats.load(tmp_path, truth=truth).ids.tolist() for truth in formats.TRUTHS] == [[1], [1], [2]]
    (tmp_path / "annotations" / "person_keypoints_train.json").rename(tmp_path / "annotations" / "keypoints_train.json")
    assert [formats.load(tmp_path, truth=truth).ids.tolist() for truth in formats.TRUTHS] == [[1], [1], [2]]
    (tmp_path / "annotations" / "instances_train.json").unlink()
    assert formats.load(tmp_path).ids.tolist() == [2]
    with pytest.raises(ValueError, match="truth 'mask' is unknown; choose one of '', 'masks', 'keypoints'"):
        formats.load(tmp_path, truth="mask")


# Keypoints of another split


def test_other_splits_follow_by_name(tmp_path: Path) -> None:
    known = posed(tmp_path / "a", record(1, keypoints=POINTS), sigmas=[0.1, 0.2, 0.3]).labels
    turned = record(1, keypoints=[1, 1, 2, 2, 2, 2])
    data = posed(tmp_path / "b", turned, labels=known, keypoints=["right_eye", "nose"], skeleton=[])
    assert data.labels == known
    assert data.keypoints[0, :, 0].tolist() == [2, 0, 1]
    assert any("they go by name" in text for text in data.notes)


def test_unknown_keypoints_are_refused_if_labelled(tmp_path: Path) -> None:
    known = posed(tmp_path / "a", record(1, keypoints=POINTS)).labels
    with pytest.raises(
        ValueError, match=r"keypoints 'tail', which the training data or the model do not have .*'nose'"
    ):
        posed(tmp_path / "b", record(1, keypoints=POINTS), labels=known, keypoints=["tail", "left_eye", "right_eye"])
    hidden = record(1, keypoints=[0, 0, 0, *POINTS[3:]])
    data = posed(tmp_path / "c", hidden, labels=known, keypoints=["tail", "left_eye", "right_eye"])
    assert data.keypoints[0, :, 2].tolist() == [0, 1, 0]


@pytest.mark.parametrize("own, known", [("abc", None), (None, "abc"), (None, None)])
def test_unnamed_keypoints_follow_by_position(own: str | None, known: str | None) -> None:
    ours, theirs = (Skeleton(tuple(names) if names else skeleton.default_names(3)) for names in (own, known))
    points = np.arange(9, dtype=np.float64).reshape(1, 3, 3)
    found, ordered, notes = skeleton.follow(ours, theirs, points, "x.json")
    assert found is theirs and ordered is points and not notes


def test_other_sigmas_are_noted() -> None:
    ours, theirs = Skeleton(("a",), sigmas=(0.2,)), Skeleton(("a",), sigmas=(0.1,))
    found, _, notes = skeleton.follow(ours, theirs, np.zeros((0, 1, 3)), "x.json")
    assert found.sigmas == (0.1,) and "sigmas differ" in notes[0]


def test_labels_of_a_model_keep_what_is_unused(tmp_path: Path) -> None:
    known = Labels(("-", "person"), (0, 1), unused=(0,))
    data = posed(tmp_path, record(1, keypoints=POINTS), labels=known)
    assert data.labels.unused == (0,) and data.classes.tolist() == [1]


# Left and right


@pytest.mark.parametrize(
    "names, pairs",
    [
        (["left_eye", "right_eye"], [(0, 1)]),
        (["snout", "leftear", "rightear"], [(1, 2)]),
        (["eye_l", "nose", "eye_r"], [(0, 2)]),
        (["R_eye", "L_eye"], [(0, 1)]),
        (["eyeL", "eyeR"], [(0, 1)]),
        (["LEye", "REye", "LKnee", "RKnee"], [(0, 1), (2, 3)]),
        (["eyeLInner", "eyeRInner"], [(0, 1)]),
        (["EyeLeft", "EyeRight"], [(0, 1)]),
        (["LEFT HIP", "RIGHT HIP"], [(0, 1)]),
        (["L1", "R1", "L2", "R2"], [(0, 1), (2, 3)]),
        (["front-left-paw", "front-right-paw", "back-left-paw"], [(0, 1)]),
        (["left", "right"], [(0, 1)]),
        (["Left Ear", "right ear"], [(0, 1)]),
        (["lip", "rip"], []),
        (["Lip", "Rip"], []),
        (["lear", "rear"], []),
        (["LIP", "RIP"], []),
        (["left_eye", "left_ear"], []),
        (["bright", "a"], []),
        (["model", "moder"], []),
        (["eyel", "eyer"], []),
        ([], []),
    ],
)
def test_pairs_by_name(names: Sequence[str], pairs: list[tuple[int, int]]) -> None:
    assert list(skeleton.mirror_pairs(names)) == pairs


# YOLO


def yolo(folder: Path, rows: str, more: str = "") -> Path:
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (WIDTH, HEIGHT)).save(folder / "images" / "a.png")
    (folder / "labels" / "a.txt").write_text(rows)
    (folder / "data.yaml").write_text(f"train: images\nnames: [ant, bee]\n{more}")
    return folder


def test_yolo_polygons(tmp_path: Path) -> None:
    rows = "1 .5 .5 1 .5 1 1\n0 .5 .5 .5 .5\n0 .25 .25 .75 .25 .75 .75 .25 .75"
    data = formats.load(yolo(tmp_path, rows), truth="masks")
    np.testing.assert_allclose(data.masks.polygons(0), [[[40, 30], [80, 30], [80, 60]]])
    for row in (1, 2):
        np.testing.assert_allclose(data.masks.polygons(row), [[[20, 15], [60, 15], [60, 45], [20, 45]]])
    assert data.areas.tolist() == [pixels(data, row).sum() for row in range(3)]
    assert [text for text in data.notes if "rectangles: 1 (first:" in text and "a.txt:2)" in text]
    assert formats.load(tmp_path).areas[0] == 40 * 30, "without masks the area is the box's"


def test_yolo_faults_of_masks(tmp_path: Path) -> None:
    data = formats.load(yolo(tmp_path, "1 .5 .5 1 .5 1 1\n0 .1 .1 .2 .2 .3 .3\n1 .5 .5 1 .5 1 1"), truth="masks")
    assert data.ids.tolist() == [1] and len(data.masks) == 1
    assert any(re.search(r"covers no pixel, skipped: 1 \(first: .*a\.txt:2\)", text) for text in data.notes)
    assert any(
        re.search(r"occur twice in their file, taken once: 1 \(first: .*a\.txt:3\)", text) for text in data.notes
    )


@pytest.mark.parametrize("more", ["", "kpt_shape: [1, 3]\n"])
def test_yolo_without_polygons_has_no_masks(tmp_path: Path, more: str) -> None:
    rows = "0 .5 .5 .5 .5" + (" .5 .5 2" if more else "")
    with pytest.raises(ValueError, match=r"data\.yaml: none of the 1 rows is a polygon"):
        formats.load(yolo(tmp_path, rows, more), truth="masks")


def test_yolo_keypoints(tmp_path: Path) -> None:
    more = (
        "kpt_shape: [3, 3]\nflip_idx: [0, 2, 1]\nkpt_names: [n, a, b]\nskeleton: [[0, 1], [n, b]]\n"
        "kpt_sigmas: [0.1, 0.2, 0.3]\n"
    )
    data = formats.load(yolo(tmp_path, "1 .5 .5 .5 .5 .5 .5 2 .25 .5 1 .9 .9 0", more), truth="keypoints")
    np.testing.assert_allclose(data.keypoints[0], [[40, 30, 2], [20, 30, 1], [0, 0, 0]])
    assert data.labels.skeleton == Skeleton(("n", "a", "b"), ((0, 1), (0, 2)), ((1, 2),), (0.1, 0.2, 0.3))
    assert formats.load(tmp_path).keypoints is None


def test_yolo_keypoints_of_two_numbers(tmp_path: Path) -> None:
    data = formats.load(yolo(tmp_path, "1 .5 .5 .5 .5 .5 0 0 0", "kpt_shape: [2, 2]\n"), truth="keypoints")
    assert data.keypoints[0].tolist() == [[40, 0, 2], [0, 0, 0]]
    assert data.labels.skeleton == Skeleton(("keypoint 0", "keypoint 1"))


@pytest.mark.parametrize(
    "names, expected, note",
    [
        ("{0: [left, right], 1: [left, right]}", ("left", "right"), ""),
        ("{0: [left, right], 1: [a, b]}", ("left", "right"), "kpt_names differ"),
    ],
)
def test_yolo_names_of_each_class(tmp_path: Path, names: str, expected: tuple[str, ...], note: str) -> None:
    root = yolo(tmp_path, "1 .5 .5 .5 .5 .5 .5 .1 .1", f"kpt_shape: [2, 2]\nkpt_names: {names}\n")
    data = formats.load(root, truth="keypoints")
    assert data.labels.skeleton is not None and data.labels.skeleton.names == expected
    assert data.labels.skeleton.flip_pairs == ((0, 1),), "found by name where flip_idx is absent"
    assert any(note in text for text in data.notes) if note else not data.notes


@pytest.mark.parametrize(
    "more, tail, message",
    [
        ("", "", r"data\.yaml: no kpt_shape.*'kpt_shape: \[17, 3\]'"),
        ("kpt_shape: [2, 4]", "", r"'kpt_shape' must be \[keypoints, 2 or 3\], got \[2, 4\]"),
        ("kpt_shape: 17", "", "'kpt_shape' must be"),
        ("kpt_shape: [2, 2]\nflip_idx: [0]", " .1 .1 .2 .2", r"flip_idx \[0\] must name"),
        ("kpt_shape: [3, 2]\nflip_idx: [1, 2, 0]", " .1 .1 .2 .2 .3 .3", "swapping twice"),
        ("kpt_shape: [2, 2]\nflip_idx: [1, 1]", " .1 .1 .2 .2", "every index once"),
        ("kpt_shape: [2, 2]\nkpt_names: [a]", " .1 .1 .2 .2", "kpt_names must list 2 different names"),
        ("kpt_shape: [2, 2]\nkpt_names: [a, a]", " .1 .1 .2 .2", "kpt_names must list 2 different names"),
        ("kpt_shape: [2, 2]\nsigmas: [1]", " .1 .1 .2 .2", "sigmas: expected one number above 0"),
        ("kpt_shape: [1, 3]", " .1 .1 3", r"a\.txt:1: a keypoint's visibility is not 0, 1 or 2"),
        ("kpt_shape: [1, 3]", " 20 .1 2", r"a\.txt:1: a keypoint's coordinate is above 2; .*not pixels"),
        ("kpt_shape: [1, 3]", " .1 .1", r"a\.txt:1: expected 8 numbers .*got 7"),
    ],
)
def test_yolo_keypoints_that_are_refused(tmp_path: Path, more: str, tail: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        formats.load(yolo(tmp_path, f"0 .5 .5 .5 .5{tail}", more), truth="keypoints")


def test_voc_has_boxes_only(tmp_path: Path) -> None:
    for name in ("JPEGImages", "Annotations"):
        (tmp_path / name).mkdir()
    for truth in ("masks", "keypoints"):
        with pytest.raises(ValueError, match=f"Pascal VOC has boxes only, and {truth} are wanted. .*COCO, YOLO"):
            formats.load(tmp_path, truth=truth)


# What is said before a training


def test_report_of_masks_and_keypoints(tmp_path: Path) -> None:
    assert "masks: 2 objects, 1 of them as polygons, 1 as run lengths" in check.report(masked(tmp_path, coded(BLOB)))
    lines = check.report(posed(tmp_path, record(1, keypoints=POINTS), record(2)))
    assert "keypoints: 1.0 of 3 labelled in an object on average, 1 objects without any" in lines
    assert "3 keypoints: nose, left_eye, right_eye" in lines
    assert "left-right pairs: left_eye - right_eye" in lines
    lines = check.report(posed(tmp_path, flip_pairs=[]))
    assert "no left-right pairs: a mirrored picture keeps its keypoints" in lines
    assert "keypoints: none, 0 objects without any" in lines


# Real data: the same AP as pycocotools counts on the file itself


def average(truth: dict[str, Any], found: list[dict[str, Any]], kind: str, sigmas: Sequence[float]) -> list[float]:
    """The summary of pycocotools."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        known = COCO()
        known.dataset = truth
        known.createIndex()
        scorer = COCOeval(known, known.loadRes(deepcopy(found)), kind)
        if kind == "keypoints":
            scorer.params.kpt_oks_sigmas = np.array(sigmas)
        scorer.evaluate()
        scorer.accumulate()
        scorer.summarize()
    return list(scorer.stats)


def moved_mask(rng: np.random.Generator, row: dict[str, Any], size: tuple[int, int]) -> dict[str, Any]:
    from faster_coco_eval.core import mask

    value = row["segmentation"]
    if isinstance(value, list):
        value = mask.merge(mask.frPyObjects(value, *size))
    elif isinstance(value["counts"], list):
        value = mask.frPyObjects(value, *size)
    way = rng.integers(-4, 5, 2)
    return {"segmentation": coded(np.roll(mask.decode(value), way, axis=(0, 1)))}


def moved_points(rng: np.random.Generator, row: dict[str, Any], size: tuple[int, int]) -> dict[str, Any]:
    points = np.reshape(row["keypoints"], (-1, 3)).astype(float)
    points[:, :2] += rng.normal(0, 0.03 * row["area"] ** 0.5, (len(points), 2))
    return {"keypoints": points.flatten().tolist()}


@pytest.mark.parametrize(
    "name, file, kind, move",
    [
        ("cats_seg", "instances_val", "segm", moved_mask),
        ("coco_mini", "instances_val", "segm", moved_mask),
        ("coco_mini", "instances_val_rle", "segm", moved_mask),
        ("coco_mini", "person_keypoints_val", "keypoints", moved_points),
        ("mouse_pose", "person_keypoints_val", "keypoints", moved_points),
    ],
)
def test_scores_equal_those_on_the_file(
    shared_data: Path, name: str, file: str, kind: str, move: Callable[..., dict[str, Any]]
) -> None:
    path = shared_data / name / "annotations" / f"{file}.json"
    data = formats.load(path, "val", truth="masks" if kind == "segm" else "keypoints")
    given = json.loads(path.read_text())
    sizes = {image["id"]: (image["height"], image["width"]) for image in given["images"]}
    rng = np.random.default_rng(0)
    found = [
        {"image_id": row["image_id"], "category_id": row["category_id"], "score": float(rng.random())}
        | move(rng, row, sizes[row["image_id"]])
        for row in given["annotations"]
    ]
    sigmas = data.labels.skeleton.sigmas if data.labels.skeleton else ()
    expected = average(given, found, kind, sigmas)
    assert 0.1 < expected[0] < 0.95
    np.testing.assert_allclose(average(to_coco(data), found, kind, sigmas), expected, atol=1e-6)


def test_codes_and_polygons_of_the_same_objects(shared_data: Path) -> None:
    folder = shared_data / "coco_mini" / "annotations"
    drawn, code = (formats.load(folder / f"instances_val{end}.json", "val", truth="masks") for end in ("", "_rle"))
    np.testing.assert_array_equal(drawn.areas, code.areas)
    assert (np.diff(code.masks.code_offsets) > 0).all() and (np.diff(drawn.masks.objects) > 0).sum() == 641
    for row in range(0, 648, 20):
        np.testing.assert_array_equal(pixels(drawn, row), pixels(code, row))


@pytest.mark.parametrize("name, people, learned, K", [("coco_mini", 162, 83, 17), ("mouse_pose", 92, 92, 4)])
def test_poses_of_real_data(shared_data: Path, name: str, people: int, learned: int, K: int) -> None:
    train = formats.load(shared_data / name, truth="keypoints")
    assert train.keypoints.shape == (people, K, 3) and train.learnable().sum() == learned
    val = formats.load(shared_data / name, "val", train.labels, truth="keypoints")
    assert val.labels == train.labels and not val.notes
    assert train.labels.skeleton is not None and len(train.labels.skeleton.flip_pairs) == K // 2 - (K == 4)
    assert all(
        (train.keypoints[..., axis] <= train.sizes[train.image_index(), 1 - axis, None]).all() for axis in (0, 1)
    )
