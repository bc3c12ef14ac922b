"""COCO's numbers equal pycocotools', whatever the data look like, and undefined ones are not zero."""

from __future__ import annotations

import csv
import json
import logging
import math
import pickle
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_data import Row, annotations, random_objects

from edgecrafter.data import formats
from edgecrafter.data.annotations import Annotations, to_coco
from edgecrafter.evaluate import Scores
from edgecrafter.geometry import keypoints as keypoint_ops
from edgecrafter.geometry import runs
from edgecrafter.metrics.coco import CocoScorer
from edgecrafter.types import Detections, Labels, Skeleton

STANDARD = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
POSES = ("AP", "AP50", "AP75", "APm", "APl", "AR", "AR50", "AR75", "ARm", "ARl")
"""pycocotools' numbers of keypoints, in its order"""
LABELS = Labels(("cat", "dog", "bird", "nothing"), (90, 7, 1, 44))


def guesses(truth: Annotations, seed: int = 0, scale: float = 0.1) -> dict[int, Detections]:
    """Objects found nearly in place, some not, some twice, some as another class, and inventions, per image id."""
    rng = np.random.default_rng(seed)
    found = {}
    for index, image in enumerate(truth.image_ids.tolist()):
        rows = truth.objects(index)
        boxes, labels = truth.boxes[rows], truth.classes[rows]
        pick = rng.integers(0, len(boxes), rng.integers(0, 2 * len(boxes) + 1)) if len(boxes) else np.zeros(0, int)
        sides = np.concatenate([boxes[:, 2:] - boxes[:, :2]] * 2, axis=1)
        moved = boxes[pick] + rng.normal(0, scale, (len(pick), 4)) * sides[pick]
        named = np.where(rng.random(len(pick)) < 0.15, rng.integers(0, len(truth.labels), len(pick)), labels[pick])
        corner = rng.uniform(0, 200, (rng.integers(0, 6), 2))
        invented = np.concatenate([corner, corner + rng.uniform(5, 150, corner.shape)], axis=1)
        every = np.concatenate([moved, invented]).astype(np.float32)
        classes = np.concatenate([named, rng.integers(0, len(truth.labels), len(invented))])
        scores = rng.random(len(every)).round(2).astype(np.float32)  # with ties
        order = np.argsort(-scores, kind="stable")
        found[image] = Detections(*(torch.from_numpy(column[order]) for column in (scores, classes, every)))
    return found


def shapes(truth: Annotations, seed: int = 0) -> dict[int, Detections]:
    """``guesses`` with masks: of each object one that is moved and frayed, or none of its pixels; and inventions."""
    tool = pytest.importorskip("pycocotools.mask")
    rng = np.random.default_rng(seed)
    drawn = to_coco(truth)["annotations"]
    found = {}
    for index, image in enumerate(truth.image_ids.tolist()):
        h, w = truth.sizes[index].tolist()
        rows = np.arange(len(truth.ids))[truth.objects(index)]
        chosen = rng.permutation(np.repeat(rows, 2))[: rng.integers(0, 2 * len(rows) + 1)]
        masks = np.zeros((len(chosen) + 3, h, w), bool)
        for mask, row in zip(masks, chosen, strict=False):
            code = drawn[row]["segmentation"]
            code = tool.merge(tool.frPyObjects(code, h, w)) if isinstance(code, list) else code
            moves = rng.normal(0, 0.05, 2) * np.sqrt(truth.areas[row])
            mask[:] = np.roll(tool.decode(code).astype(bool), moves.round().astype(int), axis=(0, 1))
            mask &= rng.random((h, w)) > rng.choice([0, 0, 0.1, 0.4, 1])
        for mask in masks[len(chosen) :]:
            y, x = rng.integers(0, h), rng.integers(0, w)
            mask[y : y + rng.integers(1, 90), x : x + rng.integers(1, 90)] = True
        named = np.concatenate([truth.classes[chosen], rng.choice(truth.classes, 3)])
        scores, labels = scored(rng, named, len(truth.labels))
        codes = runs.from_array(masks)
        found[image] = Detections(scores, labels, torch.from_numpy(codes.boxes()), size=(h, w), masks=codes)
    return found


def poses(truth: Annotations, seed: int = 0) -> dict[int, Detections]:
    """Poses of every object, near and far, some far away, labelled keypoints or not."""
    rng = np.random.default_rng(seed)
    assert truth.keypoints is not None
    found = {}
    for index, image in enumerate(truth.image_ids.tolist()):
        rows = np.arange(len(truth.ids))[truth.objects(index)]
        chosen = rng.permutation(np.repeat(rows, 2))[: rng.integers(0, 2 * len(rows) + 1)]
        points = truth.keypoints[chosen].copy()
        noise = rng.normal(0, rng.choice([0.01, 0.03, 0.1], (len(chosen), 1, 1)), (*points.shape[:2], 2))
        points[..., :2] += noise * np.sqrt(truth.areas[chosen])[:, None, None]
        invented = rng.uniform(0, 300, (2, *points.shape[1:]))
        points = np.concatenate([points, invented]).astype(np.float32)
        points[..., 2] = 1
        scores, labels = scored(rng, np.concatenate([truth.classes[chosen], [0, 0]]), len(truth.labels))
        keypoints = torch.from_numpy(points)
        found[image] = Detections(scores, labels, keypoint_ops.extent(keypoints[..., :2]), keypoints=keypoints)
    return found


def scored(rng: np.random.Generator, named: Any, classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores with ties, best first, and the classes, some of them wrong."""
    wrong = rng.random(len(named)) < 0.1
    labels = np.where(wrong, rng.integers(0, classes, len(named)), named)
    scores = np.sort(rng.random(len(named)).round(2))[::-1].astype(np.float32).copy()
    return torch.from_numpy(scores), torch.from_numpy(labels)


def scorer(
    truth: Annotations, found: dict[int, Detections], max_det: int | None = None, kind: str = "bbox"
) -> CocoScorer:
    filled = CocoScorer(truth, max_det, kind)
    for image, detections in found.items():
        filled.add(image, detections)
    return filled


def reference(
    truth: dict[str, Any], results: list[dict[str, Any]], kind: str = "bbox", sigmas: Sequence[float] = ()
) -> Any:
    """pycocotools' evaluation of the same."""
    tool = pytest.importorskip("pycocotools.cocoeval")
    known = pytest.importorskip("pycocotools.coco").COCO()
    known.dataset = {"info": {}, **truth}
    known.createIndex()
    counter = tool.COCOeval(known, known.loadRes(results), kind)
    if sigmas:
        counter.params.kpt_oks_sigmas = np.array(sigmas)
    counter.evaluate()
    counter.accumulate()
    counter.summarize()
    return counter


def assert_equal(ours: CocoScorer, truth: dict[str, Any]) -> float:
    """Every standard number and every class against pycocotools; gives back the largest difference."""
    skeleton = ours.annotations.labels.skeleton
    counter = reference(truth, ours.results(), ours.kind, skeleton.sigmas if skeleton else ())
    count = ours.count()
    assert tuple(count.scores()) == (POSES if ours.kind == "keypoints" else STANDARD)
    wanted = [float("nan") if value == -1 else float(value) for value in counter.stats]
    pairs = list(zip(count.scores().values(), wanted, strict=True))
    for row in count.per_class():
        column = counter.params.catIds.index(row.category_id)
        precision, recall = counter.eval["precision"][:, :, column, 0, -1], counter.eval["recall"][:, column, 0, -1]
        for value, array in ((row.ap, precision), (row.ap50, precision[0]), (row.ar, recall)):
            pairs.append((value, float(array[array > -1].mean()) if (array > -1).any() else float("nan")))
    assert all(math.isnan(a) == math.isnan(b) for a, b in pairs)
    largest = max((abs(a - b) for a, b in pairs if not math.isnan(a)), default=0.0)
    assert largest < 1e-6
    return largest


@pytest.mark.parametrize("seed", range(5))
def test_same_as_pycocotools_on_made_up_data(seed: int) -> None:
    rng = np.random.default_rng(seed)
    sizes = [(int(h), int(w)) for h, w in rng.integers(60, 400, (25, 2))]
    truth = annotations(LABELS, [random_objects(rng, (0, 1, 2), size) for size in sizes], sizes)
    ours = scorer(truth, guesses(truth, seed))
    assert_equal(ours, to_coco(truth))
    assert 0.02 < ours.count().scores()["AP"] < 0.9


@pytest.mark.parametrize("scale", [0.02, 0.1, 0.3])
def test_same_as_pycocotools_on_real_annotations(scale: float, shared_data: Path) -> None:
    truth = formats.load(shared_data / "coco_mini", "val")
    ours = scorer(truth, guesses(truth, 1, scale))
    file = json.loads((shared_data / "coco_mini" / "annotations" / "instances_val.json").read_text())
    print(f"coco_mini, noise {scale}: AP {ours.count().scores()['AP']:.3f}, differs by {assert_equal(ours, file):.1e}")


@pytest.mark.parametrize(
    "name, file, kind, crowds",
    [
        ("coco_mini", "instances_val", "segm", 7),
        ("coco_mini", "instances_val_rle", "segm", 7),
        ("coco_mini", "person_keypoints_val", "keypoints", 2),
        ("cats_seg", "instances_test", "segm", 0),
        ("mouse_pose", "person_keypoints_val", "keypoints", 0),
    ],
)
def test_masks_and_keypoints_same_as_pycocotools(
    name: str, file: str, kind: str, crowds: int, shared_data: Path
) -> None:
    path = shared_data / name / "annotations" / f"{file}.json"
    truth = formats.load(path, "val", truth="masks" if kind == "segm" else kind)
    assert truth.crowd.sum() == crowds
    ours = scorer(truth, (shapes if kind == "segm" else poses)(truth), kind=kind)
    largest = max(assert_equal(ours, to_coco(truth)), assert_equal(ours, json.loads(path.read_text())))
    scores = ours.count().scores()
    print(f"{name}, {file}, {kind}: AP {scores['AP']:.3f}, differs by {largest:.1e}")
    assert 0.05 < scores["AP"] < 0.9
    boxes = scorer(truth, (shapes if kind == "segm" else poses)(truth))
    assert_equal(boxes, to_coco(truth))


def test_limits_above_100_are_added_and_the_standard_stays() -> None:
    objects: list[Row] = [
        (0, (20.0 * i, 20.0 * j, 20.0 * i + 18, 20.0 * j + 18), False) for i in range(15) for j in range(10)
    ]
    truth = annotations(LABELS, [objects], [(200, 300)])
    boxes = torch.from_numpy(truth.boxes)
    found = {10: Detections(torch.linspace(0.9, 0.1, len(boxes)), torch.zeros(len(boxes), dtype=torch.int64), boxes)}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dense, standard = (scorer(truth, found, limit).count().scores() for limit in (300, None))
    assert {name: dense[name] for name in STANDARD} == pytest.approx(standard, nan_ok=True)
    assert dense["AR100"] == pytest.approx(100 / 150) and dense["AR300"] == pytest.approx(1)
    assert dense["AP@300"] == pytest.approx(1) and dense["AP"] < 0.68
    assert set(standard) == set(STANDARD)


def test_ranks_are_merged_and_images_count_once() -> None:
    rng = np.random.default_rng(3)
    sizes = [(200, 300)] * 11
    truth = annotations(LABELS, [random_objects(rng, (0, 1), size) for size in sizes], sizes)
    found = guesses(truth)
    whole = scorer(truth, found)
    ids = truth.image_ids.tolist()
    shares = [ids[0::3], ids[1::3], [*ids[2::3], ids[0]]]  # the last rank was filled up with the first image
    states = [scorer(truth, {image: found[image] for image in share}).state() for share in shares]
    states = pickle.loads(pickle.dumps(states))
    assert all(isinstance(value, torch.Tensor) for state in states for value in state.values())
    merged = CocoScorer(truth)
    merged.merge(states)
    assert merged.results() == whole.results()
    assert merged.count().scores() == pytest.approx(whole.count().scores(), nan_ok=True)


@pytest.mark.parametrize("name, kind, guess", [("cats_seg", "segm", shapes), ("mouse_pose", "keypoints", poses)])
def test_masks_and_keypoints_of_ranks_are_merged(name: str, kind: str, guess: Any, shared_data: Path) -> None:
    truth = formats.load(shared_data / name, "val", truth="masks" if kind == "segm" else kind).subset(range(7))
    found = guess(truth)
    ids = truth.image_ids.tolist()
    nothing = Detections(torch.zeros(0), torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4))
    found[ids[2]] = nothing
    whole = scorer(truth, found, kind=kind)
    shares = [ids[:2], [ids[2]], [], ids[3:]]
    states = [scorer(truth, {image: found[image] for image in share}, kind=kind).state() for share in shares]
    states = pickle.loads(pickle.dumps(states))
    assert all(isinstance(value, torch.Tensor) for state in states for value in state.values())
    merged = CocoScorer(truth, kind=kind)
    merged.merge(states)
    assert merged.results() == whole.results() and len(whole.results()) > 5
    assert merged.count().scores() == pytest.approx(whole.count().scores(), nan_ok=True)


def test_what_a_kind_needs() -> None:
    truth = annotations(LABELS, [[(0, (0, 0, 5, 5), False)]], [(10, 20)])
    found = Detections(torch.ones(1), torch.zeros(1, dtype=torch.int64), torch.zeros(1, 4))
    for kind, word in (("segm", "masks"), ("keypoints", "keypoints")):
        with pytest.raises(ValueError, match=f"no {word}"):
            CocoScorer(truth, kind=kind).add(10, found)
    turned = runs.from_array(np.ones((1, 20, 10), bool))
    with pytest.raises(ValueError, match=r"masks of a picture of \(20, 10\), but it has \(10, 20\)"):
        CocoScorer(truth, kind="segm").add(10, replace(found, masks=turned))


def test_poses_have_a_limit_of_twenty_and_every_class_its_column() -> None:
    skeleton = Skeleton(("a", "b"))
    labels = replace(LABELS, skeleton=skeleton)
    places = [(20.0 * i, 0.0, 20.0 * i + 15, 40.0) for i in range(30)]
    truth = annotations(labels, [[(2, box, False) for box in places]], [(50, 600)])
    keypoints = np.array([[(x0, y0, 2), (x1, y1, 2)] for x0, y0, x1, y1 in places], np.float32)
    keypoints[29] = 0  # not labelled: neither found nor missed
    truth = replace(truth, keypoints=keypoints)
    found = Detections(
        torch.linspace(0.9, 0.1, 30),
        torch.full((30,), 2),
        torch.from_numpy(truth.boxes),
        keypoints=torch.tensor(keypoints),
    )
    count = scorer(truth, {10: found}, max_det=60, kind="keypoints").count()
    assert count.scores()["AR"] == pytest.approx(20 / 29) and count.scores()["AR60"] == pytest.approx(1)
    rows = {row.name: row for row in count.per_class()}
    assert rows["bird"].objects == 29 and rows["bird"].ar == pytest.approx(20 / 29)
    assert all(math.isnan(rows[name].ap) for name in ("cat", "dog", "nothing"))


def test_a_label_that_stands_for_no_class_has_no_row(tmp_path: Path) -> None:
    labels = Labels(("(unused)", "person", "dog"), unused=(0,))
    truth = annotations(labels, [[(1, (0, 0, 20, 20), False), (2, (50, 50, 90, 90), False)]], [(100, 100)])
    boxes = torch.tensor([[0.0, 0, 20, 20], [50, 50, 90, 90]])
    found = {10: Detections(torch.tensor([0.9, 0.8]), torch.tensor([1, 2]), boxes)}
    ours = scorer(truth, found)
    count = ours.count()
    rows = count.per_class()
    assert [(row.name, row.category_id, row.objects) for row in rows] == [("person", 1, 1), ("dog", 2, 1)]
    assert [row.threshold for row in rows] == pytest.approx([0.9, 0.8]) and count.scores()["AP"] == pytest.approx(1)
    scores = Scores("a model", count.scores(), rows, 1, 1.0, count, ours)
    for file in scores.write(tmp_path).iterdir():
        assert "(unused)" not in file.read_text()
    assert "(unused)" not in scores.table()
    curves = [row for row in csv.DictReader((tmp_path / "curves.csv").open()) if row["recall"] == "1.0"]
    assert [(row["name"], float(row["score"])) for row in curves] == [
        ("person", pytest.approx(0.9)),
        ("dog", pytest.approx(0.8)),
    ], "every curve is that of its class"


def test_every_image_is_needed_once() -> None:
    truth = annotations(LABELS, [[], [(0, (0, 0, 5, 5), False)]], [(10, 10)] * 2)
    nothing = Detections(torch.zeros(0), torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4))
    ours = scorer(truth, {10: nothing})
    with pytest.raises(ValueError, match=r"1 of 2 images have no result \(for example id 20\)"):
        ours.count()
    with pytest.raises(ValueError, match="id 10 was added before"):
        ours.add(10, nothing)
    with pytest.raises(ValueError, match="id 17 is not among the 2 images"):
        ours.add(17, nothing)
    ours.add(20, nothing)
    assert ours.count().scores()["AP"] == 0.0


def test_crowds_are_neither_right_nor_wrong() -> None:
    truth = annotations(LABELS, [[(0, (0, 0, 20, 20), False), (0, (50, 50, 100, 100), True)]], [(100, 100)])
    boxes = torch.tensor([[55.0, 55, 70, 70], [60, 60, 90, 90], [0, 0, 20, 20]])
    found = {10: Detections(torch.tensor([0.9, 0.8, 0.7]), torch.zeros(3, dtype=torch.int64), boxes)}
    count = scorer(truth, found).count()
    assert count.scores()["AP"] == pytest.approx(1)
    assert count.per_class()[0].objects == 1


def test_undefined_numbers_are_not_zero() -> None:
    truth = annotations(LABELS, [[(1, (0, 0, 20, 20), False)]], [(100, 100)])
    found = {10: Detections(torch.tensor([0.9]), torch.tensor([0]), torch.tensor([[0.0, 0, 20, 20]]))}
    count = scorer(truth, found).count()
    assert count.scores()["AP"] == 0.0
    assert math.isnan(count.scores()["APl"]) and math.isnan(count.scores()["ARm"])
    cat, dog, *_ = count.per_class()
    assert (cat.name, cat.category_id, cat.objects) == ("cat", 90, 0) and math.isnan(cat.ap) and math.isnan(cat.f1)
    assert (dog.name, dog.objects, dog.ap, dog.ar) == ("dog", 1, 0.0, 0.0) and math.isnan(dog.threshold)


def test_no_object_at_all_leaves_every_number_undefined() -> None:
    truth = annotations(LABELS, [[], []], [(10, 10)] * 2)
    ours = scorer(truth, guesses(truth))
    assert all(math.isnan(value) for value in ours.count().scores().values())


def test_best_threshold_of_a_class() -> None:
    places = [(40.0 * i, 0.0, 40.0 * i + 20, 20.0) for i in range(4)]
    truth = annotations(LABELS, [[(2, box, False) for box in places]], [(100, 200)])
    miss = (0.0, 60.0, 20.0, 80.0)
    boxes = torch.tensor([places[0], places[1], miss, places[2], miss, miss])
    scores = torch.tensor([0.9, 0.8, 0.7, 0.6, 0.5, 0.4])
    found = {10: Detections(scores, torch.full((6,), 2), boxes)}
    count = scorer(truth, found).count()
    bird = count.per_class()[2]
    # by hand: 3 of 4 found with one mistake; F1 is 2/3 at 0.8 and 0.75 at 0.6
    assert bird.threshold == pytest.approx(0.6) and bird.precision == pytest.approx(0.75)
    assert bird.recall == pytest.approx(0.75, abs=0.011) and bird.f1 == pytest.approx(0.75, abs=0.006)
    curve = count.curve(2)
    assert curve.shape == (101, 3) and curve[10].tolist() == pytest.approx([0.1, 1.0, 0.9])
    assert curve[60].tolist() == pytest.approx([0.6, 0.75, 0.6]) and curve[90].tolist() == pytest.approx([0.9, 0, 0])


def test_results_have_the_category_ids_of_the_data() -> None:
    truth = annotations(LABELS, [[(1, (0, 0, 20, 20), False)]], [(100, 100)])
    found = {
        10: Detections(torch.tensor([0.5, 0.25]), torch.tensor([0, 2]), torch.tensor([[1.0, 2, 4, 8], [0, 0, 1, 1]]))
    }
    assert scorer(truth, found).results() == [
        {"image_id": 10, "category_id": 90, "bbox": [1, 2, 3, 6], "score": 0.5},
        {"image_id": 10, "category_id": 1, "bbox": [0, 0, 1, 1], "score": 0.25},
    ]


def test_counting_is_silent(capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    truth = annotations(LABELS, [[(1, (0, 0, 20, 20), False)]], [(100, 100)])
    with caplog.at_level(logging.INFO):
        scorer(truth, guesses(truth)).count()
    assert capsys.readouterr() == ("", "") and not caplog.records
