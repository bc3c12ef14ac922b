"""The quickstart leaves what it promises; the full one learns."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import edgecrafter as ec
from edgecrafter import curves, hub
from edgecrafter.beside import GAP, PICTURES, side_by_side, truth_of
from edgecrafter.data import formats, scenes
from edgecrafter.quickstart import COURSES, Outcome, _epochs, _forecast, _report
from edgecrafter.tasks import TASKS
from edgecrafter.types import InputSpec


@pytest.mark.parametrize("task", COURSES)
def test_a_short_one_on_own_data_leaves_everything(
    task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    data = scenes.write("own", train=8, val=8, size=96, shapes=COURSES[task].shapes)
    outcome = ec.quickstart(data, "here", epochs=2, imgsz=64, device="cpu", task=task)
    said = capsys.readouterr().out
    assert not (tmp_path / "here" / "scenes").exists()
    assert len(outcome.pictures) == PICTURES and outcome.model.is_file()
    with Image.open(outcome.pictures[0]) as picture:
        assert picture.size == (2 * 96 + GAP, 96)
    staged, prefix = task == "detect", TASKS[task].prefix
    assert (
        json.loads(Path(f"here/{'stages/plain' if staged else 'training'}/val/metrics.json").read_text())["images"] == 8
    )
    for line in (
        f"find {COURSES[task].finds} on 8 pictures",
        "2 epochs of 1 steps" if staged else "2 epochs at 64 x 64",
        "pipeline --resume here/stages" if staged else "train --resume here/training",
        *(
            (
                "no pretrained weights",
                "| with distillation |",
                "| without distillation |",
                "optimizer=adamw lr=0.03",
                "report.md",
            )
            if staged
            else ()
        ),
        f"edgecrafter train {prefix}-n YOUR_DATA",
        f"runs/{task}/train",
        "here/model.safetensors",
        f"of {COURSES[task].finds}",
    ):
        assert line in said
    model = ec.load(outcome.model)
    assert model.names == formats.load(data, "train").labels.names and model.info.name == f"{prefix}-p"
    again = ec.quickstart(data, "here", epochs=1, imgsz=64, device="cpu", task=task)  # replaces the first
    run = again.folder / ("stages/detector" if staged else "training")
    assert len((run / "results.csv").read_text().splitlines()) == 2


def test_many_pictures_are_seen_once_and_the_time_is_foretold() -> None:
    course = COURSES["detect"]
    assert [_epochs(count, course.seen) for count in (480, 960, 1000, 118_000, 1)] == [5, 5, 2, 1, course.seen]
    assert "2 min" in _forecast("to find boxes", 864, 5, 128, Path("run"), course)
    assert "4 hours" in _forecast("to find boxes", 118_000, 1, 256, Path("run"), course)


@pytest.mark.parametrize("task", COURSES)
def test_the_closing_words_fit_the_task(task: str, tmp_path: Path) -> None:
    scored = {"AP": 0.5, "AP50": 0.75} | ({"box_AP50": 0.8} if task == "segment" else {})
    scores = SimpleNamespace(overall=scored)
    outcome = Outcome(tmp_path, tmp_path / "model.safetensors", scores, [], None)  # type: ignore[arg-type]
    text = _report(outcome, tmp_path / "training", tmp_path / "scenes", False, 90, task)
    assert f"scenes it has not seen: AP50 0.75, AP 0.50 of {COURSES[task].finds}" in text
    assert ("AP50 0.80 of boxes" in text) == (task == "segment")
    assert f"edgecrafter train {TASKS[task].prefix}-n YOUR_DATA" in text and f"val runs/{task}/train" in text
    assert "1.5 minutes" in text


def test_an_unknown_task_is_refused() -> None:
    with pytest.raises(ValueError, match="task 'classify' is not known: choose one of detect, segment, pose"):
        ec.quickstart(task="classify")


def test_the_truth_is_drawn_as_it_is_annotated(tmp_path: Path) -> None:
    coco = pytest.importorskip("pycocotools.coco")
    folder = scenes.write(tmp_path / "scenes", train=6, val=1, size=96, seed=2, shapes=COURSES["pose"].shapes)
    file = folder / "annotations/instances_train.json"
    known = coco.COCO(file)
    for truth in ("masks", "keypoints"):
        data = formats.load(folder, "train", truth=truth)
        for index, image in enumerate(data.image_ids.tolist()):
            entries = known.loadAnns(known.getAnnIds(image))
            found = truth_of(data, index)
            assert len(found) == len(entries)
            for row, entry in enumerate(entries):
                if truth == "masks":
                    assert found.masks is not None
                    assert np.array_equal(found.masks[[row]].array()[0], known.annToMask(entry).astype(bool))
                else:
                    assert found.keypoints is not None
                    wanted = np.reshape(entry["keypoints"], (-1, 3)) / (1, 1, 2)  # a covered point is half sure
                    assert found.keypoints[row].numpy() == pytest.approx(wanted, abs=1e-3)


def test_run_lengths_of_the_truth_are_kept(shared_data: Path) -> None:
    polygons, codes = (
        formats.load(shared_data / f"coco_mini/annotations/instances_val{suffix}.json", "val", truth="masks")
        for suffix in ("", "_rle")
    )
    for index in (0, 3):
        first, second = (truth_of(data, index).masks for data in (polygons, codes))
        assert first is not None and second is not None and len(first) == len(second) > 0
        assert all(np.array_equal(a, b) for a, b in zip(first.counts, second.counts, strict=True))


def test_drawings_of_pictures_of_one_name_are_all_kept(tmp_path: Path) -> None:
    data = scenes.write(tmp_path / "own", train=1, val=2, size=64)
    truth = data / "annotations/instances_val.json"
    content = truth.read_text()
    for index, folder in enumerate(("s1", "s2")):
        (data / "images" / folder).mkdir()
        (data / f"images/val_{index:05d}.jpg").rename(data / "images" / folder / "a.jpg")
        content = content.replace(f"val_{index:05d}.jpg", f"{folder}/a.jpg")
    truth.write_text(content)
    both = formats.load(data, "val")
    model = ec.Model(*hub.create("ecdet-p", both.labels, InputSpec(size=(64, 64))))
    written = side_by_side(model, both, tmp_path / "drawn")
    assert [path.name for path in written] == ["a.jpg", "a_2.jpg"] and all(path.is_file() for path in written)


@pytest.mark.parametrize(
    "task, kind, trade",
    [
        ("detect", "box", "precision at a box overlap of 0.5"),
        ("segment", "mask", "precision at a mask overlap of 0.5"),
        ("pose", "OKS", "precision at an OKS of 0.5"),
    ],
)
def test_curves_of_a_run(task: str, kind: str, trade: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    kept = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *_, **__: kept.append(self))
    columns = [f"val/{name}" for name in TASKS[task].scores]
    values = ["1,9,0.1,3,2" + "," * len(columns), "2,18,0.1,2,1" + ",0.3" * len(columns)]
    (tmp_path / "results.csv").write_text("\n".join([f"epoch,step,lr,loss,mal,{','.join(columns)}", *values, ""]))
    assert curves.plot(tmp_path, tmp_path / "curves.png") == tmp_path / "curves.png"
    losses, scores, precision = kept[0].axes
    assert [line.get_label() for line in losses.lines] == ["loss", "mal"]
    assert scores.get_title() == f"validation: {kind} AP" and precision.get_title() == trade
    widths = {line.get_label(): line.get_linewidth() for line in scores.lines}
    further = {"box"} if task == "segment" else set()
    assert set(widths) == {f"{each} {name}" for each in {kind} | further for name in ("AP", "AP50", "AP75")}
    if task == "segment":
        assert widths["box AP"] < widths["mask AP"]


def test_curves_are_a_wide_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    (tmp_path / "results.csv").write_text(
        "epoch,step,lr,loss,mal,val/AP,val/AP50,val/AP75\n1,9,0.1,3,2,,,\n2,18,0.1,2,1,0.1,0.3,0\n"
    )
    target = curves.plot(tmp_path, tmp_path / "curves.png")
    assert target is not None
    with Image.open(target) as picture:
        assert picture.width > 3 * picture.height
    with pytest.raises(FileNotFoundError):
        curves.plot(tmp_path / "nowhere", tmp_path / "curves.png")


LEAST = {"detect": 0.3, "segment": 0.3, "pose": 0.3}
"""AP50 of the scenes"""


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("task", COURSES)
def test_the_full_one_learns(task: str, tmp_path: Path) -> None:
    outcome = ec.quickstart(folder=tmp_path / "quickstart", device="cpu", task=task)
    assert outcome.scores.overall["AP50"] > LEAST[task]
    assert (tmp_path / "quickstart" / "scenes" / "annotations" / "instances_train.json").is_file()
    result = ec.load(outcome.model).predict(tmp_path / "quickstart/scenes/images/val_00000.jpg")[0]
    assert len(result) > 0
