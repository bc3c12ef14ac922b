"""Masks and keypoints of YOLO, the report of both, and real data: the same scores as on the file itself."""

import contextlib
import io
import json
import re
from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from small_truth import BLOB, HEIGHT, POINTS, WIDTH, coded, masked, pixels, posed, record

from edgecrafter.data import check, formats
from edgecrafter.data.annotations import to_coco
from edgecrafter.data.skeleton import default_names
from edgecrafter.geometry.keypoints import PERSON_EDGES, PERSON_KEYPOINTS, PERSON_PAIRS
from edgecrafter.types import Skeleton

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
    "more, names, edges, pairs",
    [
        ("", PERSON_KEYPOINTS, PERSON_EDGES, PERSON_PAIRS),
        (f"flip_idx: [0, {', '.join(f'{i + 1}, {i}' for i in range(1, 17, 2))}]", PERSON_KEYPOINTS, PERSON_EDGES, None),
        ("skeleton: [[0, nose], [0, 5]]", PERSON_KEYPOINTS, ((0, 5),), PERSON_PAIRS),
        (f"flip_idx: [1, 0, {', '.join(map(str, range(2, 17)))}]", default_names(17), (), ((0, 1),)),
        (f"flip_idx: [{', '.join(map(str, range(17)))}]", default_names(17), (), ()),
        (f"kpt_names: [{', '.join(f'p{i}' for i in range(17))}]", tuple(f"p{i}" for i in range(17)), (), ()),
    ],
)
def test_yolo_seventeen_without_names_are_a_person(
    tmp_path: Path, more: str, names: tuple[str, ...], edges: tuple[Any, ...], pairs: tuple[Any, ...] | None
) -> None:
    root = yolo(tmp_path, "1 .5 .5 .5 .5" + " .5 .5" * 17, f"kpt_shape: [17, 2]\n{more}\n")
    data = formats.load(root, truth="keypoints")
    assert data.labels.skeleton == Skeleton(names, edges, PERSON_PAIRS if pairs is None else pairs)
    assert any("taken as COCO's person" in text for text in data.notes) == (names == PERSON_KEYPOINTS)


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


DOCS = Path(__file__).parents[1] / "docs" / "data.md"


def test_the_examples_of_the_documentation_are_read(tmp_path: Path) -> None:
    text = DOCS.read_text(encoding="utf-8")
    example = next(block for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL) if "kpt_shape" in block)
    row = "0 .5 .5 .5 .5" + " .5 .5 2" * 4
    for kind in ("images", "labels"):
        (tmp_path / kind / "train").mkdir(parents=True)
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "images" / "train" / "a.png")
    (tmp_path / "labels" / "train" / "a.txt").write_text(row)
    (tmp_path / "data.yaml").write_text(example)
    found = formats.load(tmp_path, truth="keypoints").labels.skeleton
    category = next(block for block in re.findall(r"```json\n(.*?)```", text, re.DOTALL) if "flip_pairs" in block)
    stated, _ = json.JSONDecoder().raw_decode(category)
    assert found == posed(tmp_path / "coco", record(1, keypoints=[9, 9, 2] * 4), **stated).labels.skeleton


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
    far = 0.03 if len(points) == 17 else 0.1  # some more than a mean tolerance
    points[:, :2] += rng.normal(0, far * row["area"] ** 0.5, (len(points), 2))
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
