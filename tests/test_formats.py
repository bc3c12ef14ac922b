"""The same tiny data set in every layout reads the same; classes, notes and errors are as documented."""

import json
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgecrafter.data import check, formats
from edgecrafter.data.annotations import Annotations, to_coco
from edgecrafter.types import Labels

NAMES = ("ant", "bee", "cat")
SIZES = {"a.jpg": (60, 80), "b.jpg": (50, 100), "empty.jpg": (40, 40)}
OBJECTS = [  # picture, class, x, y, width, height
    ("b.jpg", 2, 10, 5, 20, 25),
    ("a.jpg", 0, 8, 6, 16, 12),
    ("a.jpg", 1, 40, 30, 20, 15),
    ("b.jpg", 0, 50, 10, 30, 40),
]
EXPECTED = {  # picture -> classes, xyxy
    "a.jpg": ([0, 1], [[8, 6, 24, 18], [40, 30, 60, 45]]),
    "b.jpg": ([2, 0], [[10, 5, 30, 30], [50, 10, 80, 50]]),
    "empty.jpg": ([], []),
}


def pictures(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, (height, width) in SIZES.items():
        Image.new("RGB", (width, height), (90, 120, 150)).save(folder / name)


def coco_data(ids: tuple[int, ...] = (1, 2, 3)) -> dict[str, Any]:
    place = {name: 10 + index for index, name in enumerate(SIZES)}
    return {
        "images": [{"id": place[n], "file_name": n, "height": h, "width": w} for n, (h, w) in SIZES.items()],
        "annotations": [
            {
                "id": 100 + row,
                "image_id": place[name],
                "category_id": ids[label],
                "bbox": box,
                "area": 7.5,
                "iscrowd": 0,
            }
            for row, (name, label, *box) in enumerate(OBJECTS)
        ],
        "categories": [{"id": key, "name": name} for key, name in zip(ids, NAMES, strict=True)],
    }


def write_json(path: Path, data: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data), encoding="utf-8")
    return path


def coco_plain(root: Path, split: str = "train") -> Path:
    pictures(root / "images")
    write_json(root / "annotations" / f"instances_{split}.json", coco_data())
    return root


def coco_2017(root: Path) -> Path:
    pictures(root / "train2017")
    for kind in ("instances", "person_keypoints", "captions"):
        data = coco_data() if kind == "instances" else {"wrong": "file"}
        write_json(root / "annotations" / f"{kind}_train2017.json", data)
    return root


def roboflow(root: Path) -> Path:
    pictures(root / "train")
    data = coco_data()
    for category in data["categories"]:
        category["supercategory"] = "animals"
    data["categories"].insert(0, {"id": 0, "name": "animals", "supercategory": "none"})
    write_json(root / "train" / "_annotations.coco.json", data)
    return root


def explicit_json(root: Path) -> Path:
    pictures(root / "photos" / "images")
    return write_json(root / "photos" / "things.json", coco_data())


def yolo(root: Path) -> Path:
    pictures(root / "images" / "train")
    labels = root / "labels" / "train"
    labels.mkdir(parents=True)
    for name, (height, width) in SIZES.items():
        rows = [
            f"{label} {(x + w / 2) / width:.6f} {(y + h / 2) / height:.6f} {w / width:.6f} {h / height:.6f}\n"
            for picture, label, x, y, w, h in OBJECTS
            if picture == name
        ]
        if rows:
            (labels / name).with_suffix(".txt").write_text("".join(rows))
    (root / "data.yaml").write_text("path: .\ntrain: images/train\nnames:\n  0: ant\n  1: bee\n  2: cat\n")
    return root


def voc(root: Path) -> Path:
    pictures(root / "JPEGImages")
    (root / "Annotations").mkdir()
    for name in SIZES:
        objects = "".join(
            f"<object><name>{NAMES[label]}</name><bndbox><xmin>{x}</xmin><ymin>{y}</ymin>"
            f"<xmax>{x + w}</xmax><ymax>{y + h}</ymax></bndbox></object>"
            for picture, label, x, y, w, h in OBJECTS
            if picture == name
        )
        (root / "Annotations" / name).with_suffix(".xml").write_text(f"<annotation>{objects}</annotation>")
    (root / "ImageSets" / "Main").mkdir(parents=True)
    (root / "ImageSets" / "Main" / "train.txt").write_text("".join(f"{Path(name).stem}\n" for name in SIZES))
    return root


LAYOUTS = {
    "coco_plain": coco_plain,
    "coco_2017": coco_2017,
    "roboflow": roboflow,
    "explicit_json": explicit_json,
    "yolo": yolo,
    "voc": voc,
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_read_the_same(tmp_path: Path, layout: str) -> None:
    data = formats.load(LAYOUTS[layout](tmp_path), "train")
    assert data.labels.names == NAMES
    assert sorted(data.path(i).name for i in range(len(data))) == sorted(SIZES)
    for index in range(len(data)):
        name, rows = data.path(index).name, data.objects(index)
        assert data.path(index).is_file()
        assert tuple(data.sizes[index]) == SIZES[name]
        assert data.classes[rows].tolist() == EXPECTED[name][0]
        np.testing.assert_allclose(data.boxes[rows], np.reshape(EXPECTED[name][1], (-1, 4)), atol=1e-3)
    assert len(check.usable(data)) == 3
    dtypes = {
        name: getattr(data, name).dtype.name for name in ("boxes", "classes", "sizes", "offsets", "areas", "crowd")
    }
    assert list(dtypes.values()) == ["float32", "int64", "int32", "int64", "float32", "bool"]


@pytest.mark.parametrize("ids", [(0, 1, 2), (1, 2, 3), (1, 7, 90)])
def test_category_ids_do_not_matter(tmp_path: Path, ids: tuple[int, int, int]) -> None:
    reference = formats.load(coco_plain(tmp_path), "train")
    data = formats.load(write_json(tmp_path / "annotations" / "other.json", coco_data(ids)), "train")
    for name in ("image_ids", "sizes", "names", "name_offsets", "offsets", "boxes", "classes", "areas", "crowd", "ids"):
        np.testing.assert_array_equal(getattr(data, name), getattr(reference, name))
    assert data.labels == Labels(NAMES, ids)
    written = to_coco(data)
    assert [category["id"] for category in written["categories"]] == list(ids)
    assert sorted(a["category_id"] for a in written["annotations"]) == sorted([ids[0], ids[0], ids[1], ids[2]])


def test_categories_in_any_order_follow_their_ids(tmp_path: Path) -> None:
    data = coco_data()
    data["categories"].reverse()
    coco_plain(tmp_path)
    assert formats.load(write_json(tmp_path / "annotations" / "x.json", data), "train").labels.names == NAMES


def test_coco_written_and_read_is_the_identity(tmp_path: Path) -> None:
    data = formats.load(coco_plain(tmp_path), "train")
    written = to_coco(data)
    first = written["annotations"][0]
    assert first == {"id": 101, "image_id": 10, "category_id": 1, "bbox": [8, 6, 16, 12], "area": 7.5, "iscrowd": 0}
    again = formats.load(write_json(tmp_path / "annotations" / "again.json", written), "train")
    for name in ("boxes", "classes", "ids", "areas", "offsets", "image_ids", "names"):
        np.testing.assert_array_equal(getattr(again, name), getattr(data, name))


def test_annotation_id_zero_is_not_written(tmp_path: Path) -> None:
    data = coco_data()
    for row, annotation in enumerate(data["annotations"]):
        annotation["id"] = row
    coco_plain(tmp_path)
    read = formats.load(write_json(tmp_path / "annotations" / "zero.json", data), "train")
    assert sorted(read.ids) == [0, 1, 2, 3]
    assert [a["id"] for a in to_coco(read)["annotations"]] == [1, 2, 3, 4]


def edited(root: Path, change: Callable[[dict[str, Any]], object]) -> Annotations:
    """The plain set, read after a change of its JSON."""
    coco_plain(root)
    data = coco_data()
    change(data)
    return formats.load(write_json(root / "annotations" / "edited.json", data), "train")


def with_box(box: list[Any]) -> Callable[[dict[str, Any]], object]:
    return lambda data: data["annotations"][1].update(bbox=box)


@pytest.mark.parametrize(
    "box, inside",
    [
        ((-4, 2, 10, 9), (0, 2, 6, 11)),  # left
        ((70, 50, 30, 30), (70, 50, 80, 60)),  # lower right
        ((-5, -5, 500, 500), (0, 0, 80, 60)),  # larger than the picture
    ],
)
def test_boxes_are_clipped_with_a_note(tmp_path: Path, box: tuple[int, ...], inside: tuple[int, ...]) -> None:
    data = edited(tmp_path, with_box(list(box)))
    assert tuple(data.boxes[data.ids == 101][0]) == inside
    assert any("clipped: 1 (first: edited.json, annotation id 101)" in note for note in data.notes)


@pytest.mark.parametrize(
    "box, why",
    [
        ([5, 5, 0, 4], "not above 0"),
        ([5, 5, 4, -1], "not above 0"),
        ([5, 5, 1e-12, 4], "not above 0"),
        ([float("nan"), 5, 4, 4], "not finite"),
        ([5, 5, float("inf"), 4], "not finite"),
        ([80, 5, 4, 4], "outside"),
        ([-9, -9, 4, 4], "outside"),
    ],
)
def test_impossible_boxes_are_skipped_with_a_note(tmp_path: Path, box: list[float], why: str) -> None:
    data = edited(tmp_path, with_box(box))
    assert sorted(data.ids) == [100, 102, 103]
    assert len(data) == 3 and data.counts().tolist() == [1, 2, 0]
    assert any(why in note and "skipped: 1 (first: edited.json, annotation id 101)" in note for note in data.notes)


def test_area_falls_back_to_the_clipped_box(tmp_path: Path) -> None:
    def change(data: dict[str, Any]) -> None:
        data["annotations"][1].update(bbox=[70, 50, 30, 30])
        del data["annotations"][1]["area"]
        data["annotations"][2].update(area=None, iscrowd=1)

    data = edited(tmp_path, change)
    assert data.areas[data.ids == 101] == 100
    assert data.areas[data.ids == 102] == 300
    assert data.crowd.tolist() == (data.ids == 102).tolist()


def test_unused_categories_stay_and_a_parent_goes(tmp_path: Path) -> None:
    data = edited(tmp_path, lambda d: d["categories"].append({"id": 9, "name": "dog"}))
    assert data.labels.names == (*NAMES, "dog")
    exported = formats.load(roboflow(tmp_path / "r"), "train")
    assert exported.labels == Labels(NAMES, (1, 2, 3))
    assert any("'animals' is the parent" in note for note in exported.notes)


def test_a_parent_with_objects_stays(tmp_path: Path) -> None:
    root = roboflow(tmp_path)
    file = root / "train" / "_annotations.coco.json"
    data = json.loads(file.read_text())
    data["annotations"][0]["category_id"] = 0
    write_json(file, data)
    assert formats.load(root, "train").labels.names == ("animals", *NAMES)


def test_parent_and_class_of_the_same_name(tmp_path: Path) -> None:
    """What Roboflow writes for a project 'cat' with the one class 'cat'."""
    data = coco_data()
    data["annotations"] = [{**a, "category_id": 1} for a in data["annotations"]]
    data["categories"] = [
        {"id": 0, "name": "cat", "supercategory": "none"},
        {"id": 1, "name": "cat", "supercategory": "cat"},
    ]
    pictures(tmp_path)
    read = formats.load(write_json(tmp_path / "x.json", data), "train")
    assert read.labels == Labels(("cat",), (1,)) and set(read.classes) == {0}


def test_val_follows_the_classes_of_train_by_name(tmp_path: Path) -> None:
    train = formats.load(coco_plain(tmp_path), "train")
    data = coco_data((8, 5, 3))  # other ids, so another order
    data["categories"] = [c for c in data["categories"] if c["name"] != "bee"] + [{"id": 1, "name": "stranger"}]
    data["annotations"] = [a for a in data["annotations"] if a["category_id"] != 5]
    write_json(tmp_path / "annotations" / "instances_val.json", data)
    val = formats.load(tmp_path, "val", train.labels)
    assert val.labels.names == NAMES
    assert val.labels.ids == (8, 2, 3)
    assert sorted(val.classes.tolist()) == [0, 0, 2]
    assert any("go by name" in note for note in val.notes)


def test_a_class_that_train_does_not_know(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"objects of 'cat', which the training data or the model do not have"):
        formats.load(coco_plain(tmp_path), "train", Labels(("ant", "bee")))


def test_val_falls_back_to_valid_and_test(tmp_path: Path) -> None:
    root = roboflow(tmp_path)
    shutil.copytree(root / "train", root / "test")
    data = formats.load(root, "val")
    assert data.root == root / "test" and any("no val split" in note for note in data.notes)
    (root / "test").rename(root / "valid")
    data = formats.load(root, "val")
    assert data.root == root / "valid" and not any("no val split" in note for note in data.notes)
    with pytest.raises(FileNotFoundError, match=r"split 'test'.*found: train/_annotations"):
        formats.load(root, "test")


def test_a_json_file_stands_for_its_sibling(tmp_path: Path) -> None:
    file = coco_plain(tmp_path) / "annotations" / "instances_train.json"
    with pytest.raises(FileNotFoundError, match=r"of the split 'train', and there is none for 'val'"):
        formats.load(file, "val")
    smaller = coco_data()
    smaller["images"].pop()
    write_json(tmp_path / "annotations" / "instances_val.json", smaller)
    val = formats.load(file, "val")
    assert len(val) == 2 and any("instances_val.json is read" in note for note in val.notes)


def test_exact_names_win_and_ties_are_named(tmp_path: Path) -> None:
    root = coco_plain(tmp_path)
    for name in ("instances_train_mini", "person_keypoints_train", "captions_train"):
        write_json(root / "annotations" / f"{name}.json", {})
    assert len(formats.load(root, "train")) == 3
    (root / "annotations" / "instances_train.json").rename(root / "annotations" / "instances_train_full.json")
    with pytest.raises(ValueError, match=r"several files fit.*instances_train_full\.json.*instances_train_mini\.json"):
        formats.load(root, "train")


def test_keypoint_files_alone_are_read(tmp_path: Path) -> None:
    root = coco_plain(tmp_path)
    (root / "annotations" / "instances_train.json").rename(root / "annotations" / "person_keypoints_train.json")
    assert len(formats.load(root, "train").ids) == 4


def test_pictures_elsewhere(tmp_path: Path) -> None:
    file = write_json(tmp_path / "notes" / "train.json", coco_data())
    with pytest.raises(FileNotFoundError, match=r"a\.jpg is in none of"):
        formats.load(file, "train")
    pictures(tmp_path / "far")
    assert formats.load(file, "train", images=tmp_path / "far").path(0) == tmp_path / "far" / "a.jpg"


@pytest.mark.parametrize(
    "files, message",
    [
        ([], "no data set recognised.*Found nothing"),
        (["images/a.jpg", "labels/a.txt"], "YOLO without its data.yaml"),
        (["readme.md", "stuff/x.bin"], r"Found readme.md, stuff/"),
        (["data.yaml", "annotations/instances_train.json"], "several layouts at once: coco .*; yolo"),
        (["inner/data.yaml"], "Perhaps .*inner is meant"),
    ],
)
def test_folders_that_are_not_recognised(tmp_path: Path, files: list[str], message: str) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match=message):
        formats.load(tmp_path, "train")


def test_unknown_paths_and_splits(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        formats.load(tmp_path / "gone", "train")
    with pytest.raises(ValueError, match="choose one of train, val, test"):
        formats.load(tmp_path, "valid")


@pytest.mark.parametrize(
    "text, message",
    [
        ("3 .5 .5 .1 .1", r"a\.txt:1: class 3 is not one of the 3 classes"),
        ("-1 .5 .5 .1 .1", r"a\.txt:1: class -1"),
        ("0.5 .5 .5 .1 .1", r"a\.txt:1: class 0\.5"),
        ("0 .5 .5 .1 .1\n\n0 .5 .5 .1", r"a\.txt:3: expected 5 numbers .* got 4"),
        ("0 .5 .5 .1 .1 .9", r"got 6\..*confidence"),
        ("0 40 30 20 20", r"40 is above 1; expected .* not pixels"),
        ("0 nan .5 .1 .1", r"not finite"),
        ("cat .5 .5 .1 .1", r"expected numbers, got 'cat"),
    ],
)
def test_yolo_lines_that_are_refused(tmp_path: Path, text: str, message: str) -> None:
    root = yolo(tmp_path)
    (root / "labels" / "train" / "a.txt").write_text(text)
    with pytest.raises(ValueError, match=message):
        formats.load(root, "train")


@pytest.mark.parametrize(
    "text, boxes, note",
    [
        ("0 .5 .5 .1 .1\n0 .5 .5 .1 .1\n1 .5 .5 .1 .1", 2, r"a\.txt:2\)"),
        ("0 .5 .5 .1 -.1", 0, "not above 0, skipped: 1"),
        ("0 .1 .1 .4 .1 .4 .3", 1, ""),
        ("", 0, ""),
    ],
)
def test_yolo_lines_that_are_taken(tmp_path: Path, text: str, boxes: int, note: str) -> None:
    root = yolo(tmp_path)
    (root / "labels" / "train" / "a.txt").write_text(text)
    data = formats.load(root, "train")
    assert len(data.boxes[data.objects(0)]) == boxes
    notes = "\n".join(data.notes)
    assert "without a label file, taken as background: 1" in notes
    assert re.search(note, notes)


def test_yolo_polygons_and_keypoints_give_boxes(tmp_path: Path) -> None:
    root = yolo(tmp_path)
    (root / "labels" / "train" / "a.txt").write_text("1 .1 .2 .5 .2 .5 .7 .3 .4")
    np.testing.assert_allclose(formats.load(root, "train").boxes[0], [8, 12, 40, 42], atol=1e-4)
    with (root / "data.yaml").open("a") as file:
        file.write("kpt_shape: [2, 3]\n")
    for name in ("a", "b"):
        (root / "labels" / "train" / f"{name}.txt").write_text("1 .5 .5 .5 .5 .1 .1 2 .2 .2 1")
    np.testing.assert_allclose(formats.load(root, "train").boxes[0], [20, 15, 60, 45], atol=1e-4)


@pytest.mark.parametrize(
    "yaml, message",
    [
        ("train: images/train\nnc: 2\nnames: [ant, bee, cat]", "nc says 2 classes but 'names' has 3"),
        ("train: images/train", "'names' must list the classes"),
        ("train: images/train\nnames: [ant, bee, ant]", "class name 'ant' is used by two classes"),
        ("train: images/train\nnames: {a: ant}", "'names' must list the classes"),
        ("train: nowhere\nnames: [ant]", "'train: nowhere' is not there"),
        ("names: [ant]\nval: images/train", "no split 'train'"),
        ("just text", "expected keys and values"),
        ("train: [images", "not a YAML file"),
        ("train: images/none\nnames: [ant]", "has no pictures"),
        ("train: labels_only\nnames: [ant]", r"none of the 3 pictures has a label file; the first should be .*a\.txt"),
    ],
)
def test_yaml_that_is_refused(tmp_path: Path, yaml: str, message: str) -> None:
    root = yolo(tmp_path)
    (root / "images" / "none").mkdir()
    pictures(root / "labels_only")
    (root / "data.yaml").write_text(yaml)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        formats.load(root, "train")


@pytest.mark.parametrize(
    "lines",
    [
        "train: ../train/images",  # Roboflow
        "train: [train/images]",
        "path: train\ntrain: images",
        "train: list.txt",
    ],
)
def test_ways_to_name_the_pictures(tmp_path: Path, lines: str) -> None:
    root = yolo(tmp_path)
    (root / "train").mkdir()
    for kind in ("images", "labels"):
        shutil.move(root / kind / "train", root / "train" / kind)
    (root / "list.txt").write_text("".join(f"./train/images/{name}\n" for name in SIZES))
    (root / "data.yaml").unlink()
    (root / "data.yml").write_text(f"{lines}\nnames: [ant, bee, cat]\n")
    assert len(formats.load(root, "train").ids) == 4


def test_yolo_val_falls_back(tmp_path: Path) -> None:
    root = yolo(tmp_path)
    (root / "data.yaml").write_text("train: images/train\ntest: images/train\nnames: [ant, bee, cat]")
    assert any("its test split serves as val" in note for note in formats.load(root, "val").notes)


def test_orphan_label_files_are_noted(tmp_path: Path) -> None:
    root = yolo(tmp_path)
    (root / "labels" / "train" / "lost.txt").write_text("0 .5 .5 .1 .1")
    notes = formats.load(root, "train").notes
    assert any("label files without a picture: 1" in note and "lost.txt" in note for note in notes)


def test_voc_classes_are_those_of_train_for_every_split(tmp_path: Path) -> None:
    root = voc(tmp_path)
    (root / "ImageSets" / "Main" / "val.txt").write_text("b\n")
    val = formats.load(root, "val")
    assert val.labels.names == NAMES and val.classes.tolist() == [2, 0]
    (root / "labels.txt").write_text("cat\nant\nbee\n")
    assert formats.load(root, "val").classes.tolist() == [0, 1]
    (root / "labels.txt").write_text("ant\nbee\n")
    with pytest.raises(ValueError, match=r"b\.xml: object 1: class 'cat' is not among"):
        formats.load(root, "val")


def test_voc_difficult_objects_are_crowd(tmp_path: Path) -> None:
    root = voc(tmp_path)
    file = root / "Annotations" / "b.xml"
    file.write_text(file.read_text().replace("</name>", "</name><difficult>1</difficult>", 1))
    data = formats.load(root, "train")
    assert data.crowd.tolist() == [False, False, True, False]
    assert any("difficult" in note for note in data.notes)


def test_subset_keeps_objects_with_their_pictures(tmp_path: Path) -> None:
    data = formats.load(coco_plain(tmp_path), "train")
    part = data.subset([2, 1])
    assert [part.path(i).name for i in range(2)] == ["empty.jpg", "b.jpg"]
    assert part.counts().tolist() == [0, 2] and part.ids.tolist() == [100, 103]
    assert part.image_index().tolist() == [1, 1]
    masked = data.subset(np.array([False, True, False]))
    assert masked.ids.tolist() == [100, 103]
    assert len(data.subset([])) == 0


def test_store_is_flat(tmp_path: Path) -> None:
    """No object per picture: its pickle holds the arrays and hardly anything else."""
    data = formats.load(coco_plain(tmp_path), "train")
    many = data.subset(np.zeros(10_000, dtype=np.int64))
    arrays = sum(value.nbytes for value in vars(many).values() if isinstance(value, np.ndarray))
    assert len(pickle.dumps(many)) < arrays + 4000


def test_report(tmp_path: Path) -> None:
    lines = check.report(edited(tmp_path, with_box([5, 5, 0, 4])))
    assert lines[0] == "images: 3, 1 of them without objects"
    assert lines[1] == "objects: 3"
    assert lines[2] == "objects of each of 3 classes: ant 1, bee 1, cat 1"
    assert any(line.startswith("note: boxes whose width") for line in lines)


def test_unreadable_pictures_are_skipped_with_a_note(tmp_path: Path) -> None:
    data = formats.load(coco_plain(tmp_path), "train")
    path = tmp_path / "images" / "a.jpg"
    path.write_bytes(path.read_bytes()[:-40])
    for decode in (True, False):  # the end of the file is looked at in any case
        left = check.usable(data, decode=decode)
        assert [left.path(i).name for i in range(len(left))] == ["b.jpg", "empty.jpg"]
        assert sorted(left.ids) == [100, 103]
        assert any("cannot be read, skipped: 1" in note and "a.jpg" in note for note in left.notes)
    scan = check.readable(data)
    assert list(scan.faults) == [0] and scan.sizes.tolist() == [[0, 0], [50, 100], [40, 40]]
    for name in SIZES:
        (tmp_path / "images" / name).write_bytes(b"")
    with pytest.raises(ValueError, match="none of the 3 pictures can be read"):
        check.usable(data)


def test_data_behind_a_jpeg_do_no_harm(tmp_path: Path) -> None:
    """Some telephones append a film to a picture."""
    data = formats.load(coco_plain(tmp_path), "train")
    with (tmp_path / "images" / "a.jpg").open("ab") as file:
        file.write(b"film" * 100)
    assert len(check.usable(data, decode=False)) == 3


def test_missing_pictures_are_listed(tmp_path: Path) -> None:
    def change(data: dict[str, Any]) -> None:
        data["images"] += [{"id": 50 + i, "file_name": f"gone{i}.jpg", "height": 9, "width": 9} for i in range(7)]

    with pytest.raises(FileNotFoundError, match=r"7 of 10 listed pictures are missing: .*gone0.*gone4\.jpg, \.\.\."):
        check.usable(edited(tmp_path, change))


def test_sizes_of_the_stored_frame_are_refused(tmp_path: Path) -> None:
    data = formats.load(coco_plain(tmp_path), "train")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (80, 60)).save(tmp_path / "images" / "a.jpg", exif=exif)
    with pytest.raises(ValueError, match=r"a\.jpg: the annotations say 80 x 60 pixels, the file has 60 x 80 .*EXIF"):
        check.usable(data)


def test_animations_are_noted(tmp_path: Path) -> None:
    data = formats.load(coco_plain(tmp_path), "train")
    frames = [Image.new("L", (80, 60), shade) for shade in (0, 255)]
    frames[0].save(tmp_path / "images" / "a.jpg", "GIF", save_all=True, append_images=frames[1:])
    assert any("several frames, of which the first is used: 1" in note for note in check.usable(data).notes)


# Real data


def boxes_by_name(data: Annotations) -> dict[str, list[tuple[float, ...]]]:
    return {
        data.path(i).name: sorted(
            (int(c), *np.round(b, 1).tolist())
            for c, b in zip(data.classes[data.objects(i)], data.boxes[data.objects(i)], strict=True)
        )
        for i in range(len(data))
    }


@pytest.mark.parametrize("split", ["train", "val"])
def test_three_layouts_of_the_blood_cells_agree(shared_data: Path, split: str) -> None:
    coco = formats.load(shared_data / "bccd" / "annotations" / f"instances_{split}_mini.json", split)
    for name in ("bccd_yolo", "bccd_voc"):
        other = formats.load(shared_data / name, split)
        assert other.labels.names == coco.labels.names == ("Platelets", "RBC", "WBC")
        assert boxes_by_name(other) == boxes_by_name(coco)


@pytest.mark.parametrize(
    "name, split, images, objects, classes",
    [
        ("bccd", "train", 205, 2804, 3),
        ("bccd", "test", 72, 945, 3),
        ("coco_mini", "train", 77, 776, 80),
        ("coco_mini", "val", 83, 648, 80),
        ("cats_seg", "val", 195, 785, 1),
        ("chess_roboflow", "train", 202, 2108, 13),
        ("chess_roboflow", "val", 58, 386, 13),
        ("mouse_pose", "val", 24, 24, 1),
    ],
)
def test_real_data(shared_data: Path, name: str, split: str, images: int, objects: int, classes: int) -> None:
    data = formats.load(shared_data / name, split)
    assert (len(data), len(data.ids), len(data.labels)) == (images, objects, classes)
    assert (data.boxes[:, 2:] > data.boxes[:, :2]).all()
    assert len(check.usable(data, decode=False)) == images
