"""Prediction sees the same pixels as evaluation, takes what users have, and says what is wrong with the rest."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from small_data import annotations, picture

from edgecrafter import hub
from edgecrafter.data import images
from edgecrafter.evaluate import evaluate
from edgecrafter.infer import choose_device
from edgecrafter.predict import Predictor, _inside, distinct
from edgecrafter.results import Result
from edgecrafter.types import Detections, InputSpec, Labels

LABELS = Labels(("RBC", "WBC", "platelet"), (3, 1, 2))


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    torch.manual_seed(0)
    return Predictor(*hub.create("ecdet-p", LABELS, InputSpec(size=(64, 96))), device="cpu")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three pictures, a text file, and a folder that is named like a picture."""
    root = tmp_path / "photos"
    root.mkdir()
    for index, name in enumerate(("b.png", "a.jpg", "c.PNG")):
        picture((60 + 20 * index, 90), index).save(root / name)
    (root / "notes.txt").write_text("no picture")
    (root / "d.jpg").mkdir()
    return root


def same(a: Result, b: Result) -> bool:
    return torch.equal(a.scores, b.scores) and torch.equal(a.labels, b.labels) and torch.equal(a.boxes, b.boxes)


@pytest.mark.parametrize("suffix, orientation", [("png", None), ("jpg", None), ("jpg", 6)])
def test_a_file_gives_the_detections_of_evaluation(
    predictor: Predictor, tmp_path: Path, suffix: str, orientation: int | None
) -> None:
    exif = Image.Exif()
    if orientation:
        exif[0x0112] = orientation
    file = tmp_path / f"0.{suffix}"
    picture((700, 450)).save(file, exif=exif)
    size = images.size(file)
    truth = annotations(LABELS, [[(0, (1, 1, 9, 9), False)]], [size], tmp_path)
    if suffix == "jpg":
        file.rename(tmp_path / "0.png")  # the name of the annotations; formats are told by content
    scored = evaluate(predictor.network, predictor.info, truth, progress=False).scorer.results()
    (found,) = predictor(tmp_path / "0.png", conf=0)
    assert found.size == size == ((450, 700) if orientation else (700, 450))
    height, width = size
    clipped = []
    for row in scored:
        x, y, w, h = row["bbox"]
        box = [max(x, 0), max(y, 0), min(x + w, width), min(y + h, height)]
        if box[2] > box[0] and box[3] > box[1]:
            clipped.append((row["score"], row["category_id"], box))
    assert len(clipped) == len(found) > 250
    assert found.scores.tolist() == [score for score, _, _ in clipped]
    assert [LABELS.ids[label] for label in found.labels] == [category for _, category, _ in clipped]
    assert found.boxes.tolist() == [pytest.approx(box, abs=1e-3) for _, _, box in clipped]


def test_every_kind_of_source_gives_the_same(predictor: Predictor, folder: Path) -> None:
    file = folder / "b.png"
    with Image.open(file) as opened:
        array = np.asarray(opened)
        (wanted,) = predictor(str(file), conf=0)
        for source in (file, [file], (str(file),), str(folder / "b*"), opened, array, [array], [[opened]]):
            (found,) = predictor(source, conf=0)  # type: ignore[arg-type]
            assert same(found, wanted)


def test_gray_arrays_and_pictures(predictor: Predictor) -> None:
    gray = picture((60, 90)).convert("L")
    sources: list[Any] = [np.asarray(gray), np.asarray(gray)[..., None], gray, gray.convert("RGB")]
    found = predictor(sources, conf=0)
    assert all(same(each, found[3]) for each in found)


def test_a_picture_in_memory_is_turned_upright(predictor: Predictor, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    picture((60, 90)).save(tmp_path / "turned.png", exif=exif)
    with Image.open(tmp_path / "turned.png") as opened:
        (memory,), (file,) = predictor(opened, conf=0), predictor(tmp_path / "turned.png", conf=0)
    assert memory.size == file.size == (90, 60) and same(memory, file)


def test_a_folder_lists_pictures_only(predictor: Predictor, folder: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = predictor(folder)
    assert [result.title for result in found] == ["a.jpg", "b.png", "c.PNG"]
    assert [result.size for result in found] == [(80, 90), (60, 90), (100, 90)]
    assert [result.title for result in predictor(str(folder / "*.png"))] == ["b.png"]


def test_pictures_of_one_name_get_titles_that_can_be_saved_in_one_folder(predictor: Predictor, folder: Path) -> None:
    found = predictor([folder / "a.jpg", folder / "b.png", str(folder / "a.*")])
    assert [result.title for result in found] == ["a.jpg", "b.png", "a_2.jpg"]
    assert [result.path for result in found][::2] == [folder / "a.jpg"] * 2
    names = ["a.gif", "a.jpg", "A.JPG", "a.png", "a_2.jpg", "a.jpg"]
    assert list(distinct(names)) == ["a.gif", "a_2.jpg", "A_3.JPG", "a.png", "a_2_2.jpg", "a_4.jpg"]


def test_broken_files_of_a_folder_are_skipped_and_named(predictor: Predictor, folder: Path) -> None:
    (folder / "broken.jpg").write_bytes((folder / "a.jpg").read_bytes()[:400])
    (folder / "empty.png").touch()
    with pytest.warns(UserWarning, match=r"skipped 2 files.*broken\.jpg.*empty\.png"):
        found = predictor(folder, batch=2)
    assert [result.title for result in found] == ["a.jpg", "b.png", "c.PNG"]


def test_a_broken_file_that_was_named_is_an_error(predictor: Predictor, folder: Path) -> None:
    (folder / "broken.jpg").write_bytes((folder / "a.jpg").read_bytes()[:400])
    for source in (folder / "broken.jpg", [folder / "a.jpg", folder / "broken.jpg"]):
        with pytest.raises(ValueError, match=r"broken\.jpg"):
            predictor(source)


@pytest.mark.parametrize(
    "source, error, says",
    [
        ("missing.jpg", FileNotFoundError, "missing.jpg: there is no such file"),
        ("none/*.jpg", FileNotFoundError, "no pictures found"),
        (".", FileNotFoundError, "no pictures found"),
        ("https://example.org/street.jpg", ValueError, "Download it first"),
        (np.zeros((4, 4, 3), np.float32), ValueError, r"array of float32 \[4, 4, 3\]: expected uint8"),
        (np.zeros((3, 40, 40), np.uint8), ValueError, r"\[3, 40, 40\]: expected"),
        (np.zeros((2, 4, 4, 3), np.uint8), ValueError, "given as a list"),
        (np.zeros((0, 4, 3), np.uint8), ValueError, "expected"),
        (Image.new("F", (4, 4)), ValueError, "mode F"),
        (torch.zeros(3, 4, 4), ValueError, "cannot predict on a Tensor"),
        (None, ValueError, "cannot predict on a NoneType"),
    ],
)
def test_what_cannot_be_used_is_explained(
    predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: Any, error: type, says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=says):
        predictor(source)


@pytest.mark.parametrize(
    "options, says",
    [
        ({"conf": 1.5}, "conf=1.5"),
        ({"batch": 0}, "batch=0"),
        ({"max_det": 0}, "max_det=0"),
        ({"imgsz": (64, 64, 3)}, "expected a number of pixels or"),
        ({"classes": ["RBC", "cat"]}, "class 'cat' is not one of the model's: 0 RBC, 1 WBC, 2 platelet"),
        ({"classes": 3}, "class 3 is not"),
        ({"classes": []}, "classes is empty"),
    ],
)
def test_arguments_are_checked_before_work_begins(predictor: Predictor, options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        predictor.stream(picture((60, 90)), **options)


def test_only_the_classes_that_were_asked_for(predictor: Predictor) -> None:
    shot = picture((60, 90))
    (every,) = predictor(shot, conf=0, max_det=10_000)
    for classes, wanted in (("WBC", {1}), (2, {2}), (["RBC", 2], {0, 2}), (["0", "WBC"], {0, 1})):
        (found,) = predictor(shot, conf=0, max_det=10_000, classes=classes)  # type: ignore[arg-type]
        assert same(found, every.take(torch.tensor([label in wanted for label in every.labels.tolist()])))
    # the limit counts what was asked for
    (rare,) = predictor(shot, conf=0, max_det=5, classes="platelet")
    (whole,) = predictor(shot, conf=0, max_det=10_000, classes="platelet")
    assert len(rare) == 5 and torch.equal(rare.scores, whole.scores[:5])


def test_labels_that_stand_for_no_class_are_never_reported(predictor: Predictor) -> None:
    labels = replace(LABELS, unused=(1,))
    partly = Predictor(predictor.network, replace(predictor.info, labels=labels), device="cpu")
    shot = picture((60, 90))
    (wanted,) = predictor(shot, conf=0, max_det=200, classes=["RBC", "platelet"])
    (found,) = partly(shot, conf=0, max_det=200)
    assert same(found, wanted) and set(found.labels.tolist()) == {0, 2}
    for name in ("WBC", 1):
        with pytest.raises(ValueError, match="is not one of the model's: 0 RBC, 2 platelet"):
            partly(shot, classes=name)


def test_least_score(predictor: Predictor) -> None:
    shot = picture((60, 90))
    (every,) = predictor(shot, conf=0)
    middle = float(every.scores.median())
    (found,) = predictor(shot, conf=middle)
    assert 0 < len(found) < len(every) and float(found.scores.min()) >= middle
    (nothing,) = predictor(shot, conf=1.0)
    assert len(nothing) == 0 and nothing.boxes.shape == (0, 4)


def test_batches_of_pictures_of_different_sizes(predictor: Predictor) -> None:
    shots = [picture((60, 90), 1), picture((200, 40), 2), picture((64, 64), 3)]
    singles, together = predictor(shots, conf=0), predictor(shots, conf=0, batch=2)
    assert [result.size for result in together] == [(60, 90), (200, 40), (64, 64)]
    for a, b in zip(singles, together, strict=True):
        assert torch.allclose(a.scores, b.scores, atol=1e-5)


def test_input_size_is_rounded_up(predictor: Predictor) -> None:
    seen = []
    hook = predictor.network.register_forward_pre_hook(lambda _, inputs: seen.append(tuple(inputs[0].shape[2:])))
    with pytest.warns(UserWarning, match=r"imgsz=70 is not a multiple of 32: using 96 x 96"):
        predictor(picture((60, 90)), imgsz=70)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        predictor(picture((60, 90)))
        predictor(picture((60, 90)), imgsz=(32, 128))
    hook.remove()
    assert seen == [(96, 96), (64, 96), (32, 128)]


def test_stream_reads_a_picture_when_its_turn_comes(
    predictor: Predictor, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    read: Callable[..., Image.Image] = images.read
    monkeypatch.setattr(images, "read", lambda path: (opened.append(Path(path).name), read(path))[1])
    stream = predictor.stream(folder)
    assert opened == []
    next(stream)
    assert opened == ["a.jpg"]


@pytest.mark.parametrize("name", ["cuda:99", "gpu", "99", 99])
def test_devices_that_are_not_there(name: str | int) -> None:
    with pytest.raises(ValueError, match="device"):
        choose_device(name)


def test_the_best_device_is_chosen() -> None:
    best = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    assert choose_device().type == choose_device("").type == best
    assert choose_device("cpu") == torch.device("cpu")


def result(size: tuple[int, int] = (60, 90), path: Path | None = None, **values: Any) -> Result:
    boxes = torch.tensor([[10.0, 10, 40, 50], [50, 5, 85, 30], [0, 0, 90, 60]])
    labels = torch.tensor([0, 1, 0])
    base = {"scores": torch.tensor([0.9, 0.75, 0.5]), "labels": labels, "boxes": boxes, "size": size, "title": "a.jpg"}
    return Result(**{**base, "names": LABELS.names, "picture": picture(size), "path": path, **values})  # type: ignore[arg-type]


def test_a_result_in_words_and_plain_values() -> None:
    found = result()
    assert found.summary() == "2 RBC, 1 WBC" and repr(found) == "Result(a.jpg, 2 RBC, 1 WBC)"
    assert len(found) == 3 and [name for name, _, _ in found] == ["RBC", "WBC", "RBC"]
    assert next(iter(found)).box == (10, 10, 40, 50)
    few = found.above(0.6)
    assert isinstance(few, Result) and few.summary() == "1 RBC, 1 WBC" and found.above(1).summary() == "nothing found"
    told = json.loads(json.dumps(found.to_dict()))
    assert told["size"] == [60, 90] and told["path"] is None
    assert told["detections"][1] == {"label": 1, "name": "WBC", "score": 0.75, "box": [50, 5, 85, 30]}


def test_a_result_as_supervision_detections(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("supervision")
    made = result().to_supervision()
    assert made.xyxy.tolist()[0] == [10, 10, 40, 50] and made.class_id.tolist() == [0, 1, 0]
    assert made.data["class_name"].tolist() == ["RBC", "WBC", "RBC"] and made.confidence[0] == pytest.approx(0.9)
    assert len(result().above(1).to_supervision()) == 0
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(ImportError, match=r"pip install 'edgecrafter\[supervision\]'"):
        result().to_supervision()


def test_saving_finds_a_place_and_spares_the_picture(predictor: Predictor, folder: Path, tmp_path: Path) -> None:
    before = (folder / "a.jpg").read_bytes()
    (found,) = predictor(folder / "a.jpg")
    assert found.picture is None and found.plot().size == (90, 80)
    assert found.save() == folder / "a_found.jpg"
    assert found.save(tmp_path / "out") == tmp_path / "out" / "a.jpg"
    assert found.save(str(tmp_path / "deep" / "er" / "x.png")) == tmp_path / "deep" / "er" / "x.png"
    for suffix in (".webp", ".tiff", ".bmp", ".jpeg"):
        with Image.open(found.save(tmp_path / f"x{suffix}")) as saved:
            assert saved.size == (90, 80)
    for target in (folder / "a.jpg", folder):
        with pytest.raises(ValueError, match="is the picture itself"):
            found.save(target)
    with pytest.raises(ValueError, match=r"cannot write '\.txt'"):
        found.save(tmp_path / "x.txt")
    assert (folder / "a.jpg").read_bytes() == before
    assert not [path for path in tmp_path.rglob(".*")], "nothing unfinished is left behind"


def test_saving_a_picture_from_memory(predictor: Predictor, tmp_path: Path) -> None:
    found = predictor([picture((60, 90)), np.asarray(picture((60, 90)))])
    assert [each.save(tmp_path).name for each in found] == ["picture_0000.jpg", "picture_0001.jpg"]
    with pytest.raises(ValueError, match="no place of its own"):
        found[0].save()
    with pytest.raises(ValueError, match="neither a picture nor a file"):
        result(picture=None).plot()


def test_what_lies_outside_is_left_out_but_poses_in_a_line_are_kept() -> None:
    boxes = torch.tensor([[-5.0, 3, 20, 30], [10, 10, 10, 40], [7, 7, 7, 7], [-9, 5, -2, 9], [20, 60, 30, 70]])
    found = Detections(torch.linspace(0.9, 0.5, 5), torch.zeros(5, dtype=torch.int64), boxes, (60, 90))
    assert _inside(replace(found)).boxes.tolist() == [[0, 3, 20, 30]]
    points = torch.cat([boxes.reshape(5, 2, 2), torch.ones(5, 2, 1)], -1)
    kept = _inside(replace(found, keypoints=points, boxes_from="keypoints"))
    assert kept.scores.tolist() == pytest.approx([0.9, 0.8, 0.7])
    assert kept.keypoints is not None and kept.keypoints[0, 0].tolist() == [-5, 3, 1], "keypoints are not clipped"
