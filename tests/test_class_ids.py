"""Class ids are a matter of the files: training sees the same whatever they are, and in another layout."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from edgecrafter import hub
from edgecrafter.data import scenes
from edgecrafter.train.config import TrainConfig
from edgecrafter.train.log import read_rows
from edgecrafter.train.run import train

IDS = ((0, 1, 2), (1, 2, 3), (1, 7, 90))
TIMES = ("seconds", "images_per_second")


def three_classes(source: Path, target: Path, ids: tuple[int, ...]) -> Path:
    """The data set with its first three classes only, called by other ids."""
    shutil.copytree(source, target)
    for file in (target / "annotations").glob("instances_*.json"):
        content = json.loads(file.read_text())
        old = [category["id"] for category in content["categories"]][:3]
        content["categories"] = [
            {"id": new, "name": category["name"]} for new, category in zip(ids, content["categories"], strict=False)
        ]
        kept = [a for a in content["annotations"] if a["category_id"] in old]
        content["annotations"] = [a | {"category_id": ids[old.index(a["category_id"])]} for a in kept]
        file.write_text(json.dumps(content))
    return target


def as_yolo(source: Path, target: Path, ids: tuple[int, ...]) -> Path:
    """The same in the YOLO layout, with six decimals."""
    names = []
    for split in ("train", "val"):
        (target / "images" / split).mkdir(parents=True)
        (target / "labels" / split).mkdir(parents=True)
        content = json.loads((source / "annotations" / f"instances_{split}.json").read_text())
        names = [category["name"] for category in content["categories"]]
        for image in content["images"]:
            shutil.copy(source / "images" / image["file_name"], target / "images" / split)
            rows = []
            for a in content["annotations"]:
                if a["image_id"] == image["id"]:
                    x, y, w, h = a["bbox"]
                    numbers = (x + w / 2) / image["width"], (y + h / 2) / image["height"]
                    numbers += (w / image["width"], h / image["height"])
                    rows.append(f"{ids.index(a['category_id'])} " + " ".join(f"{v:.6f}" for v in numbers))
            (target / "labels" / split / f"{Path(image['file_name']).stem}.txt").write_text("\n".join(rows))
    (target / "data.yaml").write_text(yaml.safe_dump({"train": "images/train", "val": "images/val", "names": names}))
    return target


def losses(data: Path, project: Path) -> tuple[list[dict[str, str]], set[int], dict[str, torch.Tensor]]:
    """The rows of results.csv without times, the category ids in the written predictions, and the last weights."""
    small = {"model": "ecdet-p", "batch": 2, "epochs": 2, "imgsz": 64, "queries": 20, "workers": 0, "device": "cpu"}
    trained = train(TrainConfig(data=str(data), project=str(project), **small))
    rows = read_rows(trained.folder / "results.csv")
    found = json.loads((trained.folder / "val" / "predictions.json").read_text())
    kept = [{k: v for k, v in row.items() if k not in TIMES} for row in rows]
    return kept, {p["category_id"] for p in found}, hub.read(trained.last)[0]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return scenes.write(tmp_path_factory.mktemp("scenes"), train=6, val=3, size=96)


def test_ids_do_not_change_the_losses(source, tmp_path):
    curves, weights = [], []
    for ids in IDS:
        name = "-".join(map(str, ids))
        rows, written, last = losses(three_classes(source, tmp_path / name, ids), tmp_path / f"runs-{name}")
        assert written <= set(ids) and written
        curves.append(rows)
        weights.append(last)
    assert curves[0] == curves[1] == curves[2]
    for other in weights[1:]:
        assert all(torch.equal(value, other[name]) for name, value in weights[0].items())


def test_yolo_gives_the_same_losses(source, tmp_path):
    coco = three_classes(source, tmp_path / "coco", IDS[1])
    one, _, _ = losses(coco, tmp_path / "runs-coco")
    two, written, _ = losses(as_yolo(coco, tmp_path / "yolo", IDS[1]), tmp_path / "runs-yolo")
    assert written <= {0, 1, 2}
    for a, b in zip(one, two, strict=True):
        for name in ("loss", "mal", "l1", "giou", "fgl"):
            assert float(a[name]) == pytest.approx(float(b[name]), rel=1e-3), name
