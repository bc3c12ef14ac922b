"""An evaluation pairs pictures, answers and truth, writes what it found, and leaves the network as it was."""

from __future__ import annotations

import copy
import csv
import json
import math
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_data import Oracle, annotations, picture
from torch import Tensor, nn

from edgecrafter import hub
from edgecrafter.data.annotations import Annotations, Masks, to_coco
from edgecrafter.evaluate import Scores, evaluate
from edgecrafter.types import InputSpec, Labels, LayerOutput, MaskMap, Outputs, Skeleton

LABELS = Labels(("cat", "dog", "bird"), (90, 7, 1))
SIZES = [(60, 90), (64, 64), (120, 50), (33, 77), (64, 128)]
SPEC = InputSpec(size=(64, 96))


@pytest.fixture
def truth(tmp_path: Path) -> Annotations:
    """Five pictures of different sizes; the fourth is empty, no bird anywhere."""
    for index, size in enumerate(SIZES):
        picture(size, index).save(tmp_path / f"{index}.png")
    objects = [[(i % 2, (3.0, 4.0, 30.0 + i, 28.0), False), (0, (10.0, 12.0, 45.0, 30.0), False)] for i in range(5)]
    objects[3] = []
    return annotations(LABELS, objects, SIZES, tmp_path)


def network(labels: Labels = LABELS) -> tuple[nn.Module, hub.ModelInfo]:
    torch.manual_seed(0)
    return hub.create("ecdet-p", labels, SPEC)


def with_masks(truth: Annotations) -> Annotations:
    """Every box as a polygon."""
    corners = truth.boxes[:, [0, 1, 2, 1, 2, 3, 0, 3]].reshape(-1, 2)
    count = len(truth.boxes)
    rings, ones = np.arange(count + 1) * 4, np.arange(count + 1)
    return replace(truth, masks=Masks(corners, rings, ones, np.zeros(0, np.uint8), np.zeros(count + 1, np.int64)))


class MaskOracle(Oracle):
    """Masks are the boxes of the truth, moved by ``shift`` pixels; the boxes themselves are wrong if ``lost``."""

    def __init__(self, truth: Annotations, classes: int, shift: float = 0.0, lost: bool = False) -> None:
        super().__init__(truth, classes)
        self.shift, self.lost = shift, lost

    def forward(self, images: Tensor) -> Outputs:
        first = self.next
        layer = super().forward(images).layers[0]
        cells = torch.full((len(images), 20, 48, 64), -1.0)
        for i in range(len(images)):
            height, width = self.truth.sizes[first + i].tolist()
            y = ((torch.arange(48) + 0.5) / 48 * height)[:, None]
            x = (torch.arange(64) + 0.5) / 64 * width - self.shift
            for query, (x0, y0, x1, y1) in enumerate(self.truth.boxes[self.truth.objects(first + i)].tolist()):
                inside = [(x - x0).expand(48, -1), (x1 - x).expand(48, -1), (y - y0).expand(-1, 64)]
                cells[i, query] = torch.stack([*inside, (y1 - y).expand(-1, 64)]).amin(0)  # to the nearest side
        pixels = torch.eye(48 * 64).reshape(1, -1, 48, 64).expand(len(images), -1, -1, -1)
        boxes = torch.full_like(layer.boxes, 0.01) if self.lost else layer.boxes  # type: ignore[arg-type]
        return Outputs([LayerOutput(layer.logits, boxes, masks=MaskMap(cells.flatten(2), pixels, torch.zeros(1)))])


POSE = Labels(("cat", "dog", "bird"), (90, 7, 1), Skeleton(("head", "tail", "paw"), flip_pairs=((0, 1),)))


def with_keypoints(truth: Annotations) -> Annotations:
    """Three keypoints in every box; the third is not labelled in every other object, the last object has none."""
    x0, y0, x1, y1 = truth.boxes.T
    twos = np.full_like(x0, 2)
    points = np.stack([x0, y0, twos, x1, y1, twos, (x0 + x1) / 2, y1, twos], axis=1).reshape(-1, 3, 3)
    points[::2, 2] = points[-1] = 0
    return replace(truth, labels=POSE, keypoints=points.astype(np.float32))


class PoseOracle(Oracle):
    """Knows the keypoints, and is surest of a class that stands for nothing."""

    def forward(self, images: Tensor) -> Outputs:
        points = torch.full((len(images), 20, 3, 2), 0.5)
        first = self.next
        logits = super().forward(images).layers[0].logits
        for i in range(len(images)):
            rows = self.truth.objects(first + i)
            size = self.truth.sizes[first + i][::-1].copy()
            known = torch.from_numpy(self.truth.keypoints[rows, :, :2] / size)  # type: ignore[index]
            points[i, : len(known)] = known
        logits[..., 0] = 6.0
        return Outputs([LayerOutput(logits, keypoints=points)])


def run(net: nn.Module, info: hub.ModelInfo, truth: Annotations, **options: object) -> Scores:
    return evaluate(net, info, truth, progress=False, **{"batch": 2, **options})  # type: ignore[arg-type]


def test_perfect_answers_score_one(truth: Annotations) -> None:
    scores = run(Oracle(truth, 3), network()[1], truth)
    assert scores.overall["AP"] == pytest.approx(1) and scores.images == 5 and scores.images_per_second > 0
    assert [row.objects for row in scores.per_class] == [7, 1, 0]


def test_classes_are_matched_by_name(truth: Annotations) -> None:
    info = network(Labels(("car", "dog", "bird", "tree", "cat")))[1]
    scores = run(Oracle(truth, 5, renamed=[4, 1, 2]), info, truth)
    assert scores.overall["AP"] == pytest.approx(1)
    assert {row["category_id"] for row in scores.scorer.results()} <= {90, 7, 1}


def test_objects_that_the_model_cannot_know_are_an_error(truth: Annotations) -> None:
    with pytest.raises(ValueError, match="the model does not know: dog"):
        run(*network(Labels(("cat", "bird"))), truth)


def test_what_is_written(truth: Annotations, tmp_path: Path) -> None:
    net, info = network()
    scores = run(net, info, truth)
    folder = scores.write(tmp_path / "out" / "val")
    assert {path.name for path in folder.iterdir()} == {
        "metrics.json",
        "per_class.csv",
        "curves.csv",
        "predictions.json",
    }
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["model"] == "ecdet-p" and metrics["overall"]["APl"] is None
    assert metrics["overall"]["AP"] == scores.overall["AP"]
    rows = list(csv.DictReader((folder / "per_class.csv").open()))
    assert [row["name"] for row in rows] == list(LABELS.names) and rows[2]["ap"] == "n/a"
    assert float(rows[0]["ap"]) == pytest.approx(scores.per_class[0].ap)
    curves = list(csv.DictReader((folder / "curves.csv").open()))
    assert [sum(row["name"] == name for row in curves) for name in LABELS.names] == [101, 101, 0]
    table = scores.table()
    assert "n/a" in table and "nan" not in table and all(name in table for name in LABELS.names)


def test_written_predictions_give_the_same_numbers_elsewhere(truth: Annotations, tmp_path: Path) -> None:
    coco, cocoeval = pytest.importorskip("pycocotools.coco"), pytest.importorskip("pycocotools.cocoeval")
    scores = run(Oracle(truth, 3), network()[1], truth)
    known = coco.COCO()
    known.dataset = {"info": {}, **to_coco(truth)}
    known.createIndex()
    predicted = known.loadRes(str(scores.write(tmp_path) / "predictions.json"))
    counter = cocoeval.COCOeval(known, predicted, "bbox")
    counter.evaluate()
    counter.accumulate()
    counter.summarize()
    assert counter.stats[0] == pytest.approx(scores.overall["AP"])
    assert [row["image_id"] for row in scores.scorer.results()] == sorted(
        r["image_id"] for r in predicted.anns.values()
    )


def test_modes_and_weights_are_left_alone(truth: Annotations) -> None:
    net, info = network()
    net.train()
    frozen = next(module for module in net.modules() if isinstance(module, nn.BatchNorm2d)).eval()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    run(net, info, truth)
    modes = [module.training for module in net.modules() if module is not frozen]
    assert all(modes) and not frozen.training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_batch_and_workers_do_not_change_the_answers(truth: Annotations) -> None:
    net, info = network()
    one, many = run(net, info, truth, batch=1), run(net, info, truth, batch=4, workers=2)
    for a, b in zip(one.scorer.results(), many.scorer.results(), strict=True):
        assert a["image_id"] == b["image_id"] and a["score"] == pytest.approx(b["score"], abs=1e-5)


def test_processes_share_the_images(truth: Annotations) -> None:
    net, info = network()
    alone = run(net, info, truth)
    scores: dict[int, Scores] = {}
    states: list[object] = [None, None]
    barrier = threading.Barrier(2, timeout=60)

    def process(rank: int) -> None:
        def gather(state: object) -> list[object]:
            states[rank] = state
            barrier.wait()
            return states

        scores[rank] = run(copy.deepcopy(net), info, truth, rank=rank, world=2, gather=gather)

    threads = [threading.Thread(target=process, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert scores[0].overall == pytest.approx(scores[1].overall, nan_ok=True)
    for a, b in zip(scores[0].scorer.results(), alone.scorer.results(), strict=True):
        assert a["image_id"] == b["image_id"] and a["score"] == pytest.approx(b["score"], abs=1e-5)


def test_the_size_can_be_another(truth: Annotations) -> None:
    net, info = network()
    seen = []
    net.register_forward_pre_hook(lambda _, inputs: seen.append(tuple(inputs[0].shape)))
    run(net, info, truth, size=(96, 32), batch=5)
    assert seen == [(5, 3, 96, 32)]


def test_the_network_runs_in_the_precision_that_was_asked_for(truth: Annotations) -> None:
    net, info = network()
    kinds = []
    net.register_forward_hook(lambda _module, _inputs, outputs: kinds.append(outputs.layers[-1].logits.dtype))
    exact, half = (run(net, info, truth, batch=5, precision=each).scorer.results() for each in ("fp32", "bf16"))
    assert kinds == [torch.float32, torch.bfloat16]
    assert half[0]["score"] == pytest.approx(exact[0]["score"], rel=0.2)


def test_more_detections_on_request(truth: Annotations) -> None:
    net, info = network()
    scores = run(net, info, truth, max_det=150)
    assert len(scores.scorer.results()) == 5 * 150 and "AP@150" in scores.overall
    assert len(run(net, info, truth, max_det=20).scorer.results()) == 5 * 20


def test_an_unusable_network_is_an_error(truth: Annotations) -> None:
    net, info = network()
    with torch.no_grad():
        next(net.parameters()).fill_(math.nan)
    with pytest.raises(ValueError, match="not finite"):
        run(net, info, truth)


def test_arguments_are_checked(truth: Annotations) -> None:
    net, info = network()
    with pytest.raises(ValueError, match="fp32, bf16, fp16"):
        run(net, info, truth, precision="int8")
    for wrong in ({"max_det": -1}, {"max_det": 0}, {"batch": 0}):
        with pytest.raises(ValueError, match="at least 1"):
            run(net, info, truth, **wrong)
    with pytest.raises(ValueError, match="no images"):
        run(net, info, truth.subset([]))


def created(name: str, labels: Labels) -> hub.ModelInfo:
    return hub.create(name, labels, SPEC)[1]


def test_segmentation_is_scored_by_masks_and_by_boxes(truth: Annotations, tmp_path: Path) -> None:
    info, drawn = created("ecinsseg-p", LABELS), with_masks(truth)
    scores = run(MaskOracle(drawn, 3), info, drawn)
    assert scores.overall["AP"] > 0.95 and scores.overall["box_AP"] == pytest.approx(1)
    assert {"AP50", "APs", "AR100", "box_AP50", "box_APs", "box_AR100"} <= scores.overall.keys()
    lost = run(MaskOracle(drawn, 3, lost=True), info, drawn)
    assert lost.overall["AP"] == pytest.approx(scores.overall["AP"]) and lost.overall["box_AP"] < 0.1
    moved = run(MaskOracle(drawn, 3, shift=8.0), info, drawn)
    assert moved.overall["AP"] < 0.6 and moved.overall["box_AP"] == pytest.approx(1)
    assert moved.per_class[0].ap < 0.6
    first, second = moved.table().splitlines()[:2]
    assert first.startswith(f"AP {moved.overall['AP']:.3f}") and second.startswith("boxes: AP 1.000")
    written = json.loads((moved.write(tmp_path) / "predictions.json").read_text())
    assert written == moved.scorer.results() and set(written[0]) == {"image_id", "category_id", "segmentation", "score"}


def test_poses_are_scored_by_keypoints_and_not_by_an_unused_class(truth: Annotations, tmp_path: Path) -> None:
    drawn = with_keypoints(truth)
    labels = Labels(("(unused)", "dog", "bird", "cat"), skeleton=POSE.skeleton, unused=(0,))
    scores = run(PoseOracle(drawn, 4, (3, 1, 2)), created("ecpose-p", labels), drawn)
    assert scores.overall["AP"] == pytest.approx(1) and "APs" not in scores.overall and "box_AP" not in scores.overall
    assert [row.objects for row in scores.per_class] == [6, 1, 0]  # one cat has no keypoints
    assert scores.table().startswith("AP 1.000  AP50 1.000  AP75 1.000  APm ")
    written = json.loads((scores.write(tmp_path) / "predictions.json").read_text())
    assert len(written[0]["keypoints"]) == 9 and {row["category_id"] for row in written} == {90, 7, 1}
    assert len(scores.scorer.results()) == 5 * 20 * 3, "the class that stands for nothing was found"


def test_a_class_that_stands_for_nothing_is_not_matched_by_name(truth: Annotations) -> None:
    drawn = with_keypoints(truth)
    labels = replace(POSE, unused=(1,))
    with pytest.raises(ValueError, match=r"does not know: dog. The model knows: cat, bird\."):
        run(PoseOracle(drawn, 3), created("ecpose-p", labels), drawn)


@pytest.mark.parametrize("name, word", [("ecinsseg-p", "masks"), ("ecpose-p", "keypoints")])
def test_the_truth_of_the_task_is_needed(name: str, word: str, truth: Annotations) -> None:
    with pytest.raises(ValueError, match=f"no {word} to score {name} by"):
        run(Oracle(truth, 3), created(name, POSE), truth)


def test_processes_share_what_segmentation_finds(truth: Annotations) -> None:
    drawn, states = with_masks(truth), []
    info = created("ecinsseg-p", LABELS)

    class Missing(Exception):
        pass

    def first(state: object) -> list[object]:
        states.append(state)
        raise Missing

    options: dict[str, Any] = {"world": 2, "batch": 1}
    with pytest.raises(Missing):
        run(Every(MaskOracle(drawn, 3), 2, 1), info, drawn, rank=1, gather=first, **options)
    scores = run(Every(MaskOracle(drawn, 3), 2, 0), info, drawn, rank=0, gather=lambda s: [s, *states], **options)
    assert scores.overall == pytest.approx(run(MaskOracle(drawn, 3), info, drawn).overall, nan_ok=True)


class Every(nn.Module):
    """An oracle that sees every ``step``-th picture from ``start`` on, one at a time."""

    def __init__(self, oracle: Oracle, step: int, start: int) -> None:
        super().__init__()
        self.oracle, self.step, self.following = oracle, step, start

    def forward(self, images: Tensor) -> Outputs:
        self.oracle.next = self.following % len(self.oracle.truth)
        self.following += self.step
        found: Outputs = self.oracle(images)
        return found
