"""Keypoints of COCO files become a column; skeletons are built and followed."""

import json
import re
import tracemalloc
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_truth import NAMES, POINTS, SQUARE, coco, posed, record

from edgecrafter.data import formats, skeleton
from edgecrafter.data.annotations import to_coco
from edgecrafter.data.formats import coco_fields
from edgecrafter.geometry.keypoints import COCO_SIGMAS, PERSON_EDGES, PERSON_KEYPOINTS, PERSON_PAIRS, SIGMA
from edgecrafter.types import Labels, Skeleton


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


@pytest.mark.parametrize("area", [0, -3, float("inf"), 1e300, 1e-300])
def test_keypoints_need_an_area_above_0(tmp_path: Path, area: float) -> None:
    data = posed(tmp_path, record(1, keypoints=POINTS), *(record(i, keypoints=POINTS, area=area) for i in (2, 3)))
    assert data.areas.tolist() == [700, 50 * 45, 50 * 45]
    assert data.notes == (
        "objects whose area is not a finite number above 0; that of the box is used: 2 "
        "(first: instances_train.json, annotation id 2)",
    )


def test_an_area_that_is_not_stated_is_the_box_without_a_note(tmp_path: Path) -> None:
    data = posed(tmp_path, record(1, keypoints=POINTS, area=None))
    assert data.areas.tolist() == [50 * 45] and not data.notes
    coco(tmp_path, [record(1, area=0)])
    plain = formats.load(tmp_path)
    assert plain.areas.tolist() == [0] and not plain.notes, "boxes are scored with the area of the file"


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
    assert data.labels.keypoints == ((0, 1), (0, 2, 3))
    assert data.labels.owned().tolist() == [[True, True, False, False], [True, False, True, True]]


def test_which_class_has_which_keypoints_follows_the_training_split(tmp_path: Path) -> None:
    dog = {"id": 1, "name": "dog", "keypoints": ["nose", "tail"]}
    bird = {"id": 4, "name": "bird", "keypoints": ["wing", "nose"]}
    objects = [record(1, 4, keypoints=[1, 1, 2, 2, 2, 2])]
    known = formats.load(several(tmp_path, [dog, bird], objects), truth="keypoints").labels
    assert known.skeleton is not None and known.skeleton.names == ("nose", "tail", "wing")
    assert known.keypoints == ((0, 1), (0, 2))
    turned = [{**bird, "id": 1, "keypoints": ["nose", "wing"]}, {**dog, "id": 4, "keypoints": ["tail", "nose"]}]
    data = formats.load(
        several(tmp_path, turned, [record(1, keypoints=[5, 5, 2, 6, 6, 1])]), "train", known, truth="keypoints"
    )
    assert data.labels.keypoints == known.keypoints and data.keypoints[0, :, 0].tolist() == [5, 0, 6]
    assert formats.load(tmp_path, labels=known).labels.keypoints == known.keypoints
    boxes = Labels(("cat", "bird", "dog"), (7, 8, 9))
    data = formats.load(tmp_path, "train", boxes, truth="keypoints")
    assert data.labels.keypoints == ((0, 1, 2), (0, 1), (0, 2)), "a class that the data lack has all"


def test_classes_with_the_same_keypoints_have_all(tmp_path: Path) -> None:
    categories = [{"id": i, "name": f"{i}", "keypoints": names} for i, names in ((1, ["a", "b"]), (2, ["b", "a"]))]
    data = formats.load(several(tmp_path, categories, [record(1, keypoints=[1, 1, 2, 2, 2, 2])]), truth="keypoints")
    assert data.labels.keypoints == () and data.labels.owned() is None


@pytest.mark.parametrize("keypoints", [((0, 1),), ((0,), ()), ((0,), (2,)), ((0,), (-1,))])
def test_keypoints_of_classes_must_fit(keypoints: tuple[tuple[int, ...], ...]) -> None:
    with pytest.raises(ValueError, match=r"keypoints of the classes .* 2 classes at least one of the 2 keypoints"):
        Labels(("a", "b"), skeleton=Skeleton(("x", "y")), keypoints=keypoints)


def test_boxes_do_not_pay_for_keypoints(tmp_path: Path) -> None:
    """All keypoints of all objects by name would be 34 MB, and more than one copy of them."""
    names = [[f"{key} {index}" for index in range(22)] for key in range(13)]
    categories = [{"id": key + 1, "name": f"{key}", "keypoints": names[key]} for key in range(13)]
    objects = [record(i + 1, i % 13 + 1, keypoints=[20, 20, 2] * 22, num_keypoints=22) for i in range(5000)]
    objects[70]["keypoints"] = [20, 20, 0, 90, 20, 1] + [float("nan"), 20, 2] * 20
    several(tmp_path, categories, objects)
    tracemalloc.start()
    try:
        coco_fields.load(tmp_path / "annotations" / "instances_train.json")
        text = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        data = formats.load(tmp_path)
        assert tracemalloc.get_traced_memory()[1] < text + 4e6
    finally:
        tracemalloc.stop()
    assert [re.sub(r" \(first.*id 71\)", "", note) for note in data.notes] == [
        "objects whose num_keypoints is not the count of their labelled points: 1",
        "objects with a keypoint that is not finite, taken as not labelled: 1",
        "objects with a labelled keypoint outside of their picture, taken as not labelled: 1",
    ]
    objects[80]["keypoints"] = [1, 2, 3]
    with pytest.raises(ValueError, match="annotation id 81: 'keypoints' .*expected 66 numbers"):
        formats.load(several(tmp_path, categories, objects))


def test_keypoints_without_names_are_numbered(tmp_path: Path) -> None:
    categories = [{"id": 1, "name": "fish"}, {"id": 2, "name": "car"}]
    objects = [record(1, keypoints=[4, 4, 2, 5, 5, 2]), record(2, 2), record(3)]
    data = formats.load(several(tmp_path, categories, objects), truth="keypoints")
    assert data.labels.names == ("fish",) and data.ids.tolist() == [1, 3]
    assert data.labels.skeleton == Skeleton(("keypoint 0", "keypoint 1"))


PERSON = Skeleton(PERSON_KEYPOINTS, PERSON_EDGES, PERSON_PAIRS)
SEVENTEEN = [9, 9, 2] * 17


@pytest.mark.parametrize(
    "stated, expected",
    [
        ({}, PERSON),
        ({"skeleton": [[1, 2]]}, replace(PERSON, edges=((0, 1),))),
        ({"flip_pairs": [[b, a] for a, b in PERSON_PAIRS]}, PERSON),
        ({"flip_pairs": [[0, 1]]}, Skeleton(skeleton.default_names(17), flip_pairs=((0, 1),))),
        ({"flip_pairs": []}, Skeleton(skeleton.default_names(17))),
        ({"keypoints": [f"part {index}" for index in range(17)]}, Skeleton(tuple(f"part {i}" for i in range(17)))),
    ],
)
def test_seventeen_without_names_are_a_person(tmp_path: Path, stated: dict[str, Any], expected: Skeleton) -> None:
    data = posed(tmp_path, record(1, keypoints=SEVENTEEN), **{"keypoints": [], "skeleton": [], **stated})
    assert data.labels.skeleton == expected
    assert (data.notes == ("17 keypoints without names: taken as COCO's person",)) == (expected.names == PERSON.names)


def test_seventeen_are_a_person_only_if_all_categories_have_as_many(tmp_path: Path) -> None:
    categories = [{"id": 1, "name": "person"}, {"id": 2, "name": "crab"}]
    objects = [record(1, keypoints=SEVENTEEN), record(2, 2, keypoints=SEVENTEEN[:6])]
    data = formats.load(several(tmp_path, categories, objects), truth="keypoints")
    assert data.labels.skeleton == Skeleton(skeleton.default_names(17))


def test_a_person_without_names_follows_by_position(tmp_path: Path) -> None:
    unnamed, plain = record(1, keypoints=SEVENTEEN), {"keypoints": [], "skeleton": []}
    for names in (tuple(f"part {index}" for index in range(17)), skeleton.default_names(17)):
        known = Labels(("person",), (1,), Skeleton(names))
        data = posed(tmp_path, unnamed, labels=known, **plain)
        assert data.labels == known and (data.keypoints[0] == (9, 9, 2)).all() and not data.notes


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


# Another split


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
