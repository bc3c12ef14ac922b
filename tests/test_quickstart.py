"""The quickstart leaves what it promises; the full one learns."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

import edgecrafter as ec
from edgecrafter import curves, hub
from edgecrafter.data import formats, scenes
from edgecrafter.quickstart import GAP, PICTURES, SEEN, _epochs, _forecast, side_by_side
from edgecrafter.types import InputSpec


def test_a_short_one_on_own_data_leaves_everything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    data = scenes.write("own", train=8, val=8, size=96)
    outcome = ec.quickstart(data, "here", epochs=2, imgsz=64, device="cpu")
    said = capsys.readouterr().out
    assert not (tmp_path / "here" / "scenes").exists()
    assert len(outcome.pictures) == PICTURES and outcome.model.is_file()
    with Image.open(outcome.pictures[0]) as picture:
        assert picture.size == (2 * 96 + GAP, 96)
    assert json.loads(Path("here/training/val/metrics.json").read_text())["images"] == 8
    for line in (
        "8 pictures, 2 epochs at 64 x 64",
        "--resume here/training",
        "edgecrafter train ecdet-n YOUR_DATA",
        "here/model.safetensors",
        "AP50",
    ):
        assert line in said
    assert ec.load(outcome.model).names == formats.load(data, "train").labels.names
    again = ec.quickstart(data, "here", epochs=1, imgsz=64, device="cpu")  # a second one replaces the first
    assert len((again.folder / "training" / "results.csv").read_text().splitlines()) == 2


def test_many_pictures_are_seen_once_and_the_time_is_foretold() -> None:
    assert [_epochs(count) for count in (864, 1728, 2000, 118_000, 1)] == [5, 5, 2, 1, SEEN]
    assert "3 min" in _forecast(864, 5, 160, Path("run"))
    assert "3 hours" in _forecast(118_000, 1, 256, Path("run"))


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


def test_curves_of_a_run(tmp_path: Path) -> None:
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


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_the_full_one_learns(tmp_path: Path) -> None:
    outcome = ec.quickstart(folder=tmp_path / "quickstart", device="cpu")
    assert outcome.scores.overall["AP50"] > 0.6
    assert (tmp_path / "quickstart" / "scenes" / "annotations" / "instances_train.json").is_file()
    result = ec.load(outcome.model).predict(tmp_path / "quickstart/scenes/images/val_00000.jpg")[0]
    assert len(result) > 0
