"""The generated scenes: the same every time, and annotations that say what can be seen."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgecrafter.data import scenes
from edgecrafter.data.outlines import outlines
from edgecrafter.data.shapes import POINTS, POSED, SHAPES


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return scenes.write(tmp_path_factory.mktemp("scenes"), train=25, val=5, size=160, seed=3)


@pytest.fixture(scope="module")
def truth(folder: Path) -> dict:
    return json.loads((folder / "annotations" / "instances_train.json").read_text())


def test_the_same_seed_gives_the_same_files(folder: Path, tmp_path: Path) -> None:
    again = scenes.write(tmp_path / "again", train=25, val=5, size=160, seed=3)
    files = sorted(path.relative_to(folder) for path in folder.rglob("*.*"))
    assert len(files) == 32
    for name in files:
        assert (folder / name).read_bytes() == (again / name).read_bytes()


def test_another_seed_and_another_split_give_other_pictures(folder: Path, tmp_path: Path) -> None:
    other = scenes.write(tmp_path / "other", train=1, val=1, size=160, seed=4)
    first = (folder / "images" / "train_00000.jpg").read_bytes()
    assert (other / "images" / "train_00000.jpg").read_bytes() != first
    assert (folder / "images" / "val_00000.jpg").read_bytes() != first


def test_every_class_occurs_and_kites_have_keypoints(truth: dict) -> None:
    names = {entry["id"]: entry["name"] for entry in truth["categories"]}
    assert names == {1: "ball", 2: "crate", 3: "star", 4: "kite"}
    found = [entry["category_id"] for entry in truth["annotations"]]
    assert set(found) == set(names)
    kite = truth["categories"][3]
    assert len(kite["keypoints"]) == 5 and max(max(edge) for edge in kite["skeleton"]) == 5
    for entry in truth["annotations"]:
        assert ("keypoints" in entry) == (entry["category_id"] == 4)


def test_everything_in_posed_scenes_has_the_same_keypoints(tmp_path: Path) -> None:
    folder = scenes.write(tmp_path / "posed", train=12, val=1, size=160, seed=1, shapes=POSED)
    tree = json.loads((folder / "annotations" / "instances_train.json").read_text())
    assert [entry["name"] for entry in tree["categories"]] == ["kite", "plane"]
    assert all(entry["keypoints"] == list(POINTS) for entry in tree["categories"])
    assert {entry["category_id"] for entry in tree["annotations"]} == {1, 2}
    assert all(entry["num_keypoints"] > 0 for entry in tree["annotations"])


@pytest.mark.parametrize("name", POSED)
def test_left_and_right_of_a_shape_mirror_each_other(name: str) -> None:
    for seed in range(5):
        shape = POSED[name](np.random.default_rng(seed))
        assert shape.keypoints is not None
        left, right = (shape.keypoints[POINTS.index(side)] for side in ("left", "right"))
        assert left[0] < 0 and np.array_equal(left * (-1, 1), right)


def test_polygons_decode_to_the_visible_pixels(folder: Path, truth: dict) -> None:
    coco = pytest.importorskip("pycocotools.coco").COCO(folder / "annotations" / "instances_train.json")
    for entry in truth["annotations"]:
        mask = coco.annToMask(entry)
        ys, xs = np.nonzero(mask)
        assert mask.sum() == entry["area"]
        x0, y0, x1, y1 = xs.min(), ys.min(), xs.max() + 1, ys.max() + 1
        assert entry["bbox"] == [x0, y0, x1 - x0, y1 - y0]


def test_masks_of_one_picture_never_overlap() -> None:
    for seed in range(20):
        things = scenes.scene(np.random.default_rng(seed), 160).things
        if things:
            assert np.sum([thing.mask for thing in things], axis=0).max() == 1


def test_visible_keypoints_lie_in_or_beside_the_mask(truth: dict, folder: Path) -> None:
    seen = {0: 0, 1: 0, 2: 0}
    for entry in (entry for entry in truth["annotations"] if "keypoints" in entry):
        x, y, w, h = entry["bbox"]
        for px, py, flag in np.reshape(entry["keypoints"], (-1, 3)):
            seen[int(flag)] += 1
            if flag == 2:
                assert x - 2 <= px <= x + w + 2 and y - 2 <= py <= y + h + 2
            if flag == 0:
                assert px == py == 0
        assert entry["num_keypoints"] == sum(flag > 0 for flag in entry["keypoints"][2::3])
    assert seen[2] > seen[1] + seen[0]


def test_pictures_have_the_size_and_some_are_empty(folder: Path) -> None:
    with Image.open(folder / "images" / "val_00004.jpg") as picture:
        assert picture.size == (160, 160) and picture.mode == "RGB"
    counts = [len(scenes.scene(np.random.default_rng([9, i]), 64).things) for i in range(150)]
    assert min(counts) == 0 and max(counts) >= 6


def test_a_folder_with_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(ValueError, match="empty or new folder"):
        scenes.write(tmp_path, train=1, val=1)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("name", SHAPES | POSED)
def test_every_shape_is_about_as_large_as_the_unit_circle(name: str) -> None:
    shape = (SHAPES | POSED)[name](np.random.default_rng(0))
    reach = np.abs(np.concatenate(shape.outline)).max()
    assert 0.6 < reach < 1.7


def test_outlines_of_two_parts_that_touch_in_a_corner() -> None:
    mask = np.array([[1, 0], [0, 1]], dtype=bool)
    assert sorted(outlines(mask)) == sorted([[0, 0, 1, 0, 1, 1, 0, 1], [1, 1, 2, 1, 2, 2, 1, 2]])


def test_outline_of_a_step_keeps_only_corners() -> None:
    mask = np.array([[1, 1, 1], [1, 0, 0]], dtype=bool)
    (polygon,) = outlines(mask)
    assert len(polygon) == 12
    assert outlines(np.zeros((3, 3), dtype=bool)) == []
