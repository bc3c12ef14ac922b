"""COCO's numbers equal pycocotools', whatever the data look like, and undefined ones are not zero."""

from __future__ import annotations

import json
import logging
import math
import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_data import Row, annotations, random_objects

from edgecrafter.data.annotations import Annotations, to_coco
from edgecrafter.metrics.coco import CocoScorer
from edgecrafter.types import Detections, Labels

COCO_MINI = Path(__file__).parents[2] / "shared" / "data" / "coco_mini"
STANDARD = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
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


def scorer(truth: Annotations, found: dict[int, Detections], max_det: int | None = None) -> CocoScorer:
    filled = CocoScorer(truth, max_det)
    for image, detections in found.items():
        filled.add(image, detections)
    return filled


def reference(truth: dict[str, Any], results: list[dict[str, Any]], limits: tuple[int, ...] = (1, 10, 100)) -> Any:
    """pycocotools' evaluation of the same."""
    tool = pytest.importorskip("pycocotools.cocoeval")
    known = pytest.importorskip("pycocotools.coco").COCO()
    known.dataset = {"info": {}, **truth}
    known.createIndex()
    counter = tool.COCOeval(known, known.loadRes(results), "bbox")
    counter.params.maxDets = list(limits)
    counter.evaluate()
    counter.accumulate()
    if len(limits) == 3:
        counter.summarize()
    return counter


def assert_equal(ours: CocoScorer, truth: dict[str, Any]) -> float:
    """Every standard number and every class against pycocotools; gives back the largest difference."""
    counter = reference(truth, ours.results())
    count = ours.count()
    wanted = [float("nan") if value == -1 else float(value) for value in counter.stats]
    pairs = list(zip([count.scores()[name] for name in STANDARD], wanted, strict=True))
    for row in count.per_class():
        column = counter.params.catIds.index(row.category_id)
        precision, recall = counter.eval["precision"][:, :, column, 0, 2], counter.eval["recall"][:, column, 0, 2]
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


@pytest.mark.skipif(not COCO_MINI.is_dir(), reason="needs the shared data set coco_mini")
@pytest.mark.parametrize("scale", [0.02, 0.1, 0.3])
def test_same_as_pycocotools_on_real_annotations(scale: float) -> None:
    from edgecrafter.data.formats import coco

    truth = coco.read(COCO_MINI, "val")
    ours = scorer(truth, guesses(truth, 1, scale))
    file = json.loads((COCO_MINI / "annotations" / "instances_val.json").read_text())
    print(f"coco_mini, noise {scale}: AP {ours.count().scores()['AP']:.3f}, differs by {assert_equal(ours, file):.1e}")


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
