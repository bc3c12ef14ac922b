"""KITTI: classes, regions to ignore, splits, errors, and the same targets as COCO files."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small_data import Oracle

from edgecrafter import hub
from edgecrafter.cli import main
from edgecrafter.data import check, formats, unlabelled
from edgecrafter.data.annotations import Annotations
from edgecrafter.data.dataset import Dataset
from edgecrafter.data.formats import kitti, kitti_splits
from edgecrafter.data.formats.kitti import TYPES
from edgecrafter.evaluate import evaluate
from edgecrafter.metrics.coco import CocoScorer
from edgecrafter.types import Detections, InputSpec, Labels

SEVEN, THREE = TYPES[:7], ("Car", "Pedestrian", "Cyclist")
SIZES = {"000000": (40, 120), "000001": (40, 120), "000002": (36, 110), "000003": (40, 120)}
"""height, width; one differs, as a few of the real ones do"""


def row(kind: str, *box: float) -> str:
    if kind == "DontCare":
        return f"DontCare -1 -1 -10 {' '.join(f'{x:.2f}' for x in box)} -1 -1 -1 -1000 -1000 -1000 -10\n"
    return f"{kind} 0.71 2 -1.57 {' '.join(f'{x:.2f}' for x in box)} 1.5 1.6 3.9 -3.28 1.70 5.44 1.43\n"


LABELS = {
    "000000": row("Car", 10, 5, 40, 25) + row("DontCare", 60, 5, 80, 15),
    "000001": row("Misc", 5, 5, 25, 30) + row("Pedestrian", 50, 4, 60, 34) + "\n" + row("Van", 70, 10, 100, 30),
    "000002": row("Cyclist", 90, 10, 140, 50) + row("Car", 130, 5, 160, 20) + row("Car", 109.4, 5, 130, 20),
    "000003": "",
}


def made(root: Path, labels: Mapping[str, str] = LABELS, train: Sequence[str] = (), val: Sequence[str] = ()) -> Path:
    """A folder in KITTI's layout; with lists if there are names for them."""
    for folder in ("image_2", "label_2"):
        (root / "training" / folder).mkdir(parents=True, exist_ok=True)
    for name, text in labels.items():
        height, width = SIZES.get(name, (40, 120))
        Image.new("RGB", (width, height), (90, 120, 150)).save(root / "training" / "image_2" / f"{name}.png")
        (root / "training" / "label_2" / f"{name}.txt").write_text(text)
    if train or val:
        (root / "ImageSets").mkdir()
        for split, names in (("train", train), ("val", val)):
            (root / "ImageSets" / f"{split}.txt").write_text("".join(f"{name}\n" for name in names))
    return root


def listed(root: Path, labels: Mapping[str, str] = LABELS) -> Path:
    """All frames for training, the first two to score."""
    return made(root, labels, tuple(labels), tuple(labels)[:2])


def objects(data: Annotations, crowd: bool = False) -> list[tuple[str, str, tuple[float, ...]]]:
    """Frame, class and box of each object (or each crowd region)."""
    rows = np.flatnonzero(data.crowd == crowd)
    frames = data.image_index()
    return [
        (data.path(frames[i]).stem, data.labels.names[data.classes[i]], tuple(data.boxes[i].round(2).tolist()))
        for i in rows
    ]


def test_what_is_read(tmp_path: Path) -> None:
    data = formats.load(listed(tmp_path), "train")
    assert data.labels.names == SEVEN and len(data) == 4
    assert data.image_ids.tolist() == [0, 1, 2, 3]
    assert [tuple(size) for size in data.sizes.tolist()] == list(SIZES.values()), "read from the files"
    assert objects(data) == [
        ("000000", "Car", (10, 5, 40, 25)),
        ("000001", "Pedestrian", (50, 4, 60, 34)),
        ("000001", "Van", (70, 10, 100, 30)),
        ("000002", "Cyclist", (90, 10, 110, 36)),  # clipped to 110 x 36
    ], "neither the car outside nor that of which 0.6 pixels are left"
    regions = objects(data, crowd=True)
    assert regions == [("000000", name, (60, 5, 80, 15)) for name in SEVEN] + [
        ("000001", name, (5, 5, 25, 30)) for name in SEVEN
    ], "DontCare and Misc, once for every class"
    assert len(set(data.ids.tolist())) == len(data.ids) and data.ids.min() == 1
    assert data.areas[~data.crowd].tolist() == [600, 300, 600, 520], "without a pixel more on each side"
    assert data.conditions == "KITTI: classes=seven, ignored=crowd, split=lists"
    told = "\n".join(data.notes)
    assert "regions to ignore: 2 (DontCare 1, Misc 1), each a crowd region of all 7 classes" in told
    assert "within their picture, skipped: 2 (first: 000002.txt, line 2)" in told
    assert "clipped: 1 (first: 000002.txt, line 1)" in told
    assert "4 of KITTI's 7481 labelled frames" in told
    lines = check.report(check.usable(data))
    assert lines[0] == "images: 4, 1 of them without objects" and "Car 1, Van 1, Truck 0, Pedestrian 1" in lines[2]


def test_regions_are_not_trained_on(tmp_path: Path) -> None:
    dataset = Dataset(formats.load(listed(tmp_path), "train"), (64, 64))
    assert [len(dataset.objects(index)) for index in range(4)] == [1, 2, 1, 0]
    assert dataset.annotations.learnable_counts().tolist() == [1, 2, 1, 0], "what the memory is planned for"


@pytest.mark.parametrize(
    "words, names, kept, regions",
    [
        ("seven", SEVEN, 4, 2 * 7),
        ("eight", TYPES, 5, 8),
        ("three", THREE, 3, 3 * 3),
        ("three,drop", THREE, 3, 0),
        ("drop", SEVEN, 4, 0),
    ],
)
def test_presets(tmp_path: Path, words: str, names: tuple[str, ...], kept: int, regions: int) -> None:
    data = formats.load(f"kitti:{words}:{listed(tmp_path)}", "train")
    assert data.labels.names == names
    assert (int((~data.crowd).sum()), int(data.crowd.sum())) == (kept, regions)
    preset = {3: "three", 7: "seven", 8: "eight"}[len(names)]
    assert f"classes={preset}, " in data.conditions
    assert ("ignored=drop" in data.conditions) == (regions == 0)


def test_the_preset_of_a_model_is_followed(tmp_path: Path) -> None:
    """Where none is named; so that `val RUN PATH` scores a model by the classes that it learned."""
    root = listed(tmp_path)
    data = formats.load(root, "val", Labels(("Cyclist", "Car", "Pedestrian")))
    assert data.labels.names == ("Cyclist", "Car", "Pedestrian") and "classes=three" in data.conditions
    assert [name for _, name, _ in objects(data)] == ["Car", "Pedestrian"]
    with pytest.raises(ValueError, match="objects of 'Van', which the training data or the model do not have"):
        formats.load(f"kitti:seven:{root}", "val", Labels(THREE))


@pytest.mark.parametrize(
    "name, message",
    [
        ("kitti:four:{}", "'four' is unknown; one each of seven|three|eight; crowd|drop; random|drive"),
        ("kitti:three,seven:{}", "'seven' is one word too many"),
        ("kitti:three:{}/training", "the folder with training/image_2 and label_2 inside"),
        ("kitti:three:", "the folder with training/image_2 and label_2 inside"),
        ("kitti:drive:{}", "its lists decide the split; leave 'drive' out"),
    ],
)
def test_names_that_are_refused(tmp_path: Path, name: str, message: str) -> None:
    listed(tmp_path)
    with pytest.raises(ValueError) as error:
        formats.load(name.format(tmp_path), "train")
    assert message in str(error.value)


BAD = row("Car", 10, 5, 40, 25)


@pytest.mark.parametrize(
    "line, message",
    [
        ("Car 0 0 0 1 2 3 4", "000000.txt:2: expected 15 fields (type truncated occluded alpha left top right bottom"),
        (BAD.replace("Car", "car"), "000000.txt:2: type 'car' is unknown; expected one of Car, Van"),
        (BAD.replace("40.00", "forty"), "000000.txt:2: expected numbers behind the type"),
        (BAD.replace("40.00", "nan"), "000000.txt:2: the box 10.00 5.00 nan 25.00 is not finite"),
    ],
)
def test_lines_that_are_refused(tmp_path: Path, line: str, message: str) -> None:
    with pytest.raises(ValueError) as error:
        formats.load(
            listed(tmp_path, {"000000": LABELS["000000"].splitlines()[0] + "\n" + line, "000003": ""}), "train"
        )
    assert message in str(error.value)


def test_a_score_behind_a_row_is_not_read(tmp_path: Path) -> None:
    data = formats.load(listed(tmp_path, {"000000": BAD.strip() + " 0.97\n", "000003": ""}), "train")
    assert objects(data) == [("000000", "Car", (10, 5, 40, 25))]


def test_missing_files(tmp_path: Path) -> None:
    root = listed(tmp_path)
    with pytest.raises(FileNotFoundError, match="no labels for its 'test' pictures"):
        formats.load(root, "test")
    with pytest.raises(ValueError, match="masks are wanted"):
        formats.load(root, "train", truth="masks")
    (root / "training" / "image_2" / "000001.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 4 listed pictures are missing: .*000001.png"):
        formats.load(root, "train")
    (root / "training" / "label_2" / "000000.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 4 label files are missing: .*000000.txt"):
        formats.load(root, "train")
    (root / "ImageSets" / "val.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"val.txt is missing beside its sibling"):
        formats.load(root, "train")


def test_counts_of_the_whole_only_warn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = listed(tmp_path)
    monkeypatch.setattr(kitti, "FRAMES", 4)
    (note,) = [note for note in formats.load(root, "val").notes if "differ" in note]
    assert "Car 3 (reported: 28742)" in note and "DontCare 1 (reported: 11295)" in note
    right = {"Car": 3, "Van": 1, "Pedestrian": 1, "Cyclist": 1, "Misc": 1, "DontCare": 1}
    monkeypatch.setattr(kitti, "COUNTS", {kind: right.get(kind, 0) for kind in kitti.COUNTS})
    assert not [note for note in formats.load(root, "val").notes if "differ" in note or "part of" in note]


def test_random_split(tmp_path: Path) -> None:
    names = [f"{index:06}" for index in range(7481)]
    train, val = kitti_splits.at_random(names)
    assert (len(train), len(val)) == (5985, 1496) and sorted(train + val) == names
    order = list(names)
    random.Random(0).shuffle(order)
    assert set(train) == set(order[:5985]) and train == sorted(train)
    assert kitti_splits.at_random(list(reversed(names))) == (train, val)
    assert val[:5] == ["000000", "000001", "000002", "000009", "000012"], "the same in every version of Python"
    root = made(tmp_path)
    parts = [formats.load(root, split) for split in ("train", "val")]
    assert [len(part) for part in parts] == [3, 1]
    assert all("split=random" in part.conditions for part in parts)
    assert "flatters AP" in parts[0].notes[0] and "3 frames for training, 1 for evaluation" in parts[0].notes[0]


def test_split_of_drives(tmp_path: Path) -> None:
    root = made(tmp_path, {f"{index:06}": BAD for index in range(10)})
    with pytest.raises(FileNotFoundError, match=r"no mapping/train_mapping.txt and train_rand.txt.*development kit"):
        formats.load(f"kitti:drive:{root}", "train")
    # frame n is the line order[n] (from 1) of the mapping: drives of 2, 3 and 5 frames
    drives = ["a"] * 2 + ["b"] * 3 + ["c"] * 5
    order = [3, 1, 10, 2, 9, 4, 8, 5, 7, 6]
    folder = root / "devkit_object" / "mapping"
    folder.mkdir(parents=True)
    (folder / "train_mapping.txt").write_text(
        "".join(f"2011_09_26 2011_09_26_drive_{drive}_sync {n:010}\n" for n, drive in enumerate(drives))
    )
    (folder / "train_rand.txt").write_text(",".join(map(str, order)) + "\n")
    drive_of = {f"{index:06}": drives[line - 1] for index, line in enumerate(order)}
    parts = [formats.load(f"kitti:drive:{root}", split) for split in ("train", "val")]
    found = [{part.path(i).stem for i in range(len(part))} for part in parts]
    assert found[0] | found[1] == set(drive_of) and not found[0] & found[1]
    sides = [{drive_of[name] for name in side} for side in found]
    assert not sides[0] & sides[1] and sides[1], "no drive is on both sides"
    assert 5 <= len(found[0]) <= 8
    assert "split=drive" in parts[0].conditions
    (folder / "train_rand.txt").write_text("1,2,3")
    with pytest.raises(ValueError, match="3 numbers in train_rand.txt and 10 lines"):
        formats.load(f"kitti:drive:{root}", "train")


def test_too_few_frames_to_split(tmp_path: Path) -> None:
    root = made(tmp_path, {"000000": BAD})
    with pytest.raises(ValueError, match="1 frames are too few to split"):
        formats.load(root, "val")


def same(one: Annotations, other: Annotations) -> None:
    """Everything that training and scoring read."""
    assert one.labels == other.labels
    for name in ("image_ids", "sizes", "names", "offsets", "boxes", "classes", "areas", "crowd", "ids"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), name)


@pytest.mark.parametrize("words", ["", "kitti:three:", "kitti:eight,drop:"])
def test_coco_files_have_the_same_targets(tmp_path: Path, capsys: pytest.CaptureFixture[str], words: str) -> None:
    root, target = listed(tmp_path / "kitti"), tmp_path / "coco"
    assert main(["kitti-to-coco", f"{words}{root}", str(target)]) == 0
    told = capsys.readouterr().out
    for split in ("train", "val"):
        data = formats.load(f"{words}{root}", split)
        assert data.conditions in told
        same(formats.load(target, split), data)
        written = json.loads((target / "annotations" / f"instances_{split}.json").read_text())
        assert written["info"]["description"] == data.conditions
        assert (target / "ImageSets" / f"{split}.txt").read_text() == (root / "ImageSets" / f"{split}.txt").read_text()
    assert len(check.usable(formats.load(target, "train"))) == 4, "its pictures are found"
    assert main(["kitti-to-coco", f"{words}{root}", str(target)]) == 0, "once more, over the first"
    assert main(["kitti-to-coco", str(root), str(root)]) == 1


def test_exported_lists_give_the_same_split(tmp_path: Path) -> None:
    root = made(tmp_path / "kitti")
    assert main(["kitti-to-coco", str(root), str(tmp_path / "coco")]) == 0
    before = formats.load(root, "val")
    (tmp_path / "coco" / "ImageSets").rename(root / "ImageSets")
    after = formats.load(root, "val")
    same(before, after)
    assert after.conditions.endswith("split=lists")


@pytest.mark.parametrize("words, ap", [("", 1.0), ("kitti:drop:", 0.5)])
def test_a_detection_in_a_region_is_neither_right_nor_wrong(tmp_path: Path, words: str, ap: float) -> None:
    """With the best score; where regions are dropped it is a mistake that halves the precision."""
    data = formats.load(f"{words}{listed(tmp_path)}", "val")
    scorer, car = CocoScorer(data), torch.tensor([0, 0])
    inside = [62.0, 6.0, 78.0, 14.0]  # in DontCare
    scorer.add(0, Detections(torch.tensor([0.9, 0.8]), car, torch.tensor([inside, [10.0, 5.0, 40.0, 25.0]])))
    scorer.add(1, Detections(torch.zeros(0), torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4)))
    assert scorer.count().per_class()[0].ap == pytest.approx(ap)


def test_the_setting_stands_beside_the_ap(tmp_path: Path) -> None:
    data = formats.load(listed(tmp_path / "kitti"), "val")
    info = hub.described("ecdet-p", data.labels, InputSpec((64, 64)))
    scores = evaluate(Oracle(data, 7), info, data, progress=False)
    lines = scores.table().splitlines()
    assert lines[0].startswith("AP ") and lines[1] == "KITTI: classes=seven, ignored=crowd, split=lists"
    written = json.loads((scores.write(tmp_path / "val") / "metrics.json").read_text())
    assert written["conditions"] == data.conditions


def test_pictures_without_labels(tmp_path: Path) -> None:
    """Stage 2 takes the training pictures by the same name."""
    root = made(tmp_path, train=("000000", "000002"), val=("000001",))
    paths, (line,) = unlabelled.gather([f"kitti:three:{root}"])
    assert [path.name for path in paths] == ["000000.png", "000002.png"] and "2 pictures" in line


def test_real_frames(shared_data: Path) -> None:
    root = shared_data / "kitti_mini"
    if not root.is_dir():
        pytest.skip(f"no KITTI frames at {root}")
    train, val = (check.usable(formats.load(root, split)) for split in ("train", "val"))
    assert (len(train), len(val)) == (3, 2)
    counts = np.bincount(np.concatenate([part.classes[~part.crowd] for part in (train, val)]), minlength=7)
    assert dict(zip(SEVEN, counts.tolist(), strict=True)) == {
        "Car": 8, "Van": 1, "Truck": 2, "Pedestrian": 9, "Person_sitting": 0, "Cyclist": 2, "Tram": 0,
    }  # fmt: skip
    assert int(train.crowd.sum() + val.crowd.sum()) == 7 * 7, "6 DontCare and 1 Misc"
    assert train.sizes.tolist() == [[370, 1224], [375, 1242], [375, 1242]]
