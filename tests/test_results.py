"""Results of segmentation and pose: plain values, files, and the same for supervision."""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np
import pytest
import torch
from small_data import picture

from edgecrafter.geometry import runs
from edgecrafter.results import Result
from edgecrafter.types import Skeleton

SIZE = (60, 90)
SKELETON = Skeleton(("nose", "left_ear", "right_ear"), edges=((0, 1), (0, 2)), flip_pairs=((1, 2),))
POINTS = torch.tensor([[[12.0, 14, 1], [30, 20, 1], [-3, 50, 1]], [[60, 8, 1], [55.5, 12, 1], [70, 12, 1]]])


def result(**extra: Any) -> Result:
    boxes = torch.tensor([[10.0, 10, 40, 50], [50, 5, 85, 30]])
    scores, labels = torch.tensor([0.9, 0.75]), torch.tensor([1, 0])
    return Result(scores, labels, boxes, SIZE, names=("cat", "dog"), picture=picture(SIZE), title="a.jpg", **extra)


def masks() -> np.ndarray:
    pixels = np.zeros((2, *SIZE), dtype=bool)
    pixels[0, 10:50, 10:40] = True
    pixels[0, 20:30, 15:20] = False
    pixels[1, 5:30, 50:85] = np.tri(25, 35, dtype=bool)
    return pixels


def test_masks_go_through_json_and_come_back_as_they_were() -> None:
    coco = pytest.importorskip("pycocotools.mask")
    pixels = masks()
    told = json.loads(json.dumps(result(masks=runs.from_array(pixels)).to_dict()))
    for entry, mask in zip(told["detections"], pixels, strict=True):
        assert entry["mask"]["size"] == list(SIZE)
        assert np.array_equal(coco.decode(entry["mask"]).astype(bool), mask)
        assert "keypoints" not in entry and "box_from" not in entry


def test_keypoints_are_named_in_json() -> None:
    told = json.loads(json.dumps(result(keypoints=POINTS, skeleton=SKELETON, boxes_from="keypoints").to_dict()))
    first, second = told["detections"]
    assert first["keypoints"][2] == {"name": "right_ear", "x": -3, "y": 50} and len(second["keypoints"]) == 3
    assert first["box_from"] == "keypoints" and "mask" not in first and first["name"] == "dog"
    lacking = result(keypoints=POINTS * torch.tensor([1, 0, 1])[:, None], skeleton=SKELETON).to_dict()["detections"]
    assert [[point["name"] for point in each["keypoints"]] for each in lacking] == [["nose", "right_ear"]] * 2
    unnamed = result(keypoints=POINTS).to_dict()["detections"][1]
    assert unnamed["keypoints"][1] == {"name": "1", "x": 55.5, "y": 12} and "box_from" not in unnamed


def test_choosing_keeps_masks_and_keypoints_together() -> None:
    found = result(masks=runs.from_array(masks()), keypoints=POINTS, skeleton=SKELETON)
    (sure,) = found.above(0.8).to_dict()["detections"]
    assert sure == found.to_dict()["detections"][0]
    assert found.above(0.8).summary() == "1 dog" and [name for name, _, _ in found] == ["dog", "cat"]
    assert found.above(1).to_dict()["detections"] == [] and found.above(1).plot().size == (90, 60)


@pytest.mark.parametrize("extra", [{"masks": runs.from_array(masks())}, {"keypoints": POINTS, "skeleton": SKELETON}])
def test_plot_shows_more_than_boxes(extra: dict[str, Any]) -> None:
    assert result(**extra).plot().tobytes() != result().plot().tobytes()


def test_skeletons_are_plotted_with_their_lines() -> None:
    lines, points = (result(keypoints=POINTS, skeleton=skeleton).plot() for skeleton in (SKELETON, None))
    assert lines.tobytes() != points.tobytes()


def test_masks_as_supervision_detections() -> None:
    pytest.importorskip("supervision")
    made = result(masks=runs.from_array(masks())).to_supervision()
    assert made.mask.dtype == bool and np.array_equal(made.mask, masks())
    assert made.xyxy.tolist()[1] == [50, 5, 85, 30] and made.class_id.tolist() == [1, 0]
    assert made.data["class_name"].tolist() == ["dog", "cat"] and result().to_supervision().mask is None
    assert np.array_equal(made[made.class_id == 0].mask, masks()[1:])
    empty = result(masks=runs.from_array(masks())).above(1).to_supervision()
    assert len(empty) == 0 and empty.mask.shape == (0, *SIZE)


def test_keypoints_as_supervision_keypoints() -> None:
    supervision = pytest.importorskip("supervision")
    made = result(keypoints=POINTS, skeleton=SKELETON).to_supervision_keypoints()
    assert isinstance(made, supervision.KeyPoints)
    assert np.array_equal(made.xy, POINTS[..., :2].numpy()) and made.class_id.tolist() == [1, 0]
    assert made.data["class_name"].tolist() == ["dog", "cat"]
    scores = getattr(made, "detection_confidence", None)
    scores = made.data["score"] if scores is None else scores
    assert scores.tolist() == pytest.approx([0.9, 0.75])
    drawn = supervision.VertexAnnotator().annotate(np.zeros((*SIZE, 3), np.uint8), made)
    assert drawn[12, 55].any() and not drawn[55, 10].any()
    empty = result(keypoints=POINTS, skeleton=SKELETON).above(1).to_supervision_keypoints()
    assert len(empty) == 0 and empty.xy.shape == (0, 3, 2)


def test_an_older_supervision_gets_the_scores_in_the_data(monkeypatch: pytest.MonkeyPatch) -> None:
    supervision = pytest.importorskip("supervision")

    class Older:
        __dataclass_fields__ = ("xy", "class_id", "confidence", "data")

        def __init__(self, xy: np.ndarray, class_id: np.ndarray, data: dict[str, np.ndarray]) -> None:
            self.data = data

    monkeypatch.setattr(supervision, "KeyPoints", Older)
    made = result(keypoints=POINTS).to_supervision_keypoints()
    assert made.data["score"].tolist() == pytest.approx([0.9, 0.75])


def test_supervision_keypoints_need_keypoints_and_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"a\.jpg: no keypoints in this result.*pose model"):
        result().to_supervision_keypoints()
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(ImportError, match=r"pip install 'edgecrafter\[supervision\]'"):
        result(keypoints=POINTS).to_supervision_keypoints()
