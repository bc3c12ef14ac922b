"""Scores, classes, boxes, masks and keypoints come out of the decoder's answers as in the released post-processor."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from edgecrafter import hub
from edgecrafter.data import formats
from edgecrafter.data.annotations import Annotations
from edgecrafter.evaluate import evaluate
from edgecrafter.postprocess import MASKS, decode
from edgecrafter.predict import Predictor
from edgecrafter.types import InputSpec, LayerOutput, MaskMap, Outputs

GOLDEN = Path(__file__).parent / "golden"
sys.path.insert(0, str(GOLDEN))
from checkpoint import released_state  # noqa: E402
from fill import network_input  # noqa: E402


@pytest.mark.parametrize("model", ["ecdet_s", "ecdet_l"])
def test_golden_same_detections_as_released(model: str) -> None:
    stored = np.load(GOLDEN / f"{model}.npz")
    layer = LayerOutput(torch.from_numpy(stored["pred_logits"]), torch.from_numpy(stored["pred_boxes"]))
    (found,) = decode(layer, [(375, 500)])
    assert found.size == (375, 500) and len(found) == 300
    scores = np.abs(found.scores.numpy() - stored["post_scores"]).max()
    # entries of equal score may change places: each is looked up among the stored ones of its class
    boxes = 0.0
    for score, label, box in zip(found.scores.numpy(), found.labels.numpy(), found.boxes.numpy(), strict=True):
        same = (stored["post_class_index"] == label) & (np.abs(stored["post_scores"] - score) < 1e-6)
        assert same.any()
        boxes = max(boxes, float(np.abs(stored["post_boxes"][same] - box).max(axis=1).min()))
    moved = int((found.labels.numpy() != stored["post_class_index"]).sum())
    print(f"{model}: largest difference of scores {scores:.1e}, boxes {boxes:.1e} pixels, {moved} in another place")
    assert scores < 1e-6 and boxes < 1e-3 and moved <= 6


def test_golden_same_masks_as_released(tmp_path: Path) -> None:
    """The stored detections show other queries than the stored logits, so the network answers once more."""
    torch.save({"model": released_state("ecseg_s", GOLDEN)}, tmp_path / "released.pth")
    network = hub.load(tmp_path / "released.pth")[0]
    seed = json.loads((GOLDEN / "ecseg_s.keys.json").read_text())["image_seed"]
    with torch.inference_mode():
        answer = network(torch.from_numpy(network_input(seed, 640, 640, True))).layers[-1]
    stored = np.load(GOLDEN / "ecseg_s.npz")
    logits, boxes = torch.from_numpy(stored["pred_logits"]), torch.from_numpy(stored["pred_boxes"])
    assert torch.allclose(answer.logits, logits, atol=2e-3), "the queries are in another order"
    (found,) = decode(replace(answer, logits=logits, boxes=boxes), [(375, 500)])
    assert np.abs(found.scores.numpy() - stored["post_scores"]).max() < 1e-6
    assert found.masks is not None and len(found.masks) == 300
    packed = stored["post_masks_first4_packed"]
    released = np.unpackbits(packed, axis=1, count=375 * 500).reshape(4, 375, 500).astype(bool)
    differ = (found.masks[:4].array() != released).sum(axis=(1, 2))
    print(f"ecseg_s: {differ.tolist()} of {375 * 500} pixels differ, areas {released.sum(axis=(1, 2)).tolist()}")
    assert differ.max() < 40


def test_golden_same_poses_as_released() -> None:
    stored = np.load(GOLDEN / "ecpose_s.npz")
    points = torch.from_numpy(stored["pred_keypoints"]).unflatten(-1, (17, 2))
    (found,) = decode(LayerOutput(torch.from_numpy(stored["pred_logits"]), keypoints=points), [(375, 500)], top_k=60)
    assert found.keypoints is not None and found.boxes_from == "keypoints"
    moved = int((found.labels.numpy() != stored["post_labels"]).sum())
    keypoints = np.abs(found.keypoints.flatten(1).numpy() - stored["post_keypoints"]).max()
    scores = np.abs(found.scores.numpy() - stored["post_scores"]).max()
    print(f"ecpose_s: largest difference of scores {scores:.1e}, keypoints {keypoints:.1e} pixels, {moved} moved")
    assert scores < 1e-6 and keypoints < 1e-3 and not moved


def layer(seed: int = 0, images: int = 2, queries: int = 7, classes: int = 3) -> LayerOutput:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(images, queries, classes, generator=generator)
    return LayerOutput(logits, torch.rand(images, queries, 4, generator=generator))


def test_one_query_may_answer_with_two_classes() -> None:
    logits = torch.tensor([[[2.0, 1.0, -9.0], [-9.0, -9.0, 1.5]]])
    boxes = torch.tensor([[[0.5, 0.5, 0.2, 0.4], [0.25, 0.75, 0.5, 0.5]]])
    (found,) = decode(LayerOutput(logits, boxes), [(100, 200)], top_k=3)
    assert found.labels.tolist() == [0, 2, 1]
    assert found.scores.tolist() == pytest.approx(torch.tensor([2.0, 1.5, 1.0]).sigmoid().tolist())
    assert found.boxes.tolist() == [
        pytest.approx([80, 30, 120, 70]),
        pytest.approx([0, 50, 100, 100]),
        pytest.approx([80, 30, 120, 70]),
    ]


def test_boxes_are_not_clipped() -> None:
    (found,) = decode(LayerOutput(torch.zeros(1, 1, 1), torch.tensor([[[0.0, 1.0, 0.5, 0.5]]])), [(100, 200)])
    assert found.boxes.tolist() == [[-50, 75, 50, 125]]


@pytest.mark.parametrize("top_k, kept", [(1, 1), (21, 21), (300, 21)])
def test_at_most_all_pairs_of_query_and_class(top_k: int, kept: int) -> None:
    found = decode(layer(), [(10, 20), (30, 40)], top_k)
    assert [len(each) for each in found] == [kept, kept]
    assert all(bool((each.scores.diff() <= 0).all()) for each in found)


def test_a_batch_is_decoded_as_its_images_one_by_one() -> None:
    both = layer()
    together = decode(both, [(10, 20), (30, 40)])
    for i, size in enumerate([(10, 20), (30, 40)]):
        (alone,) = decode(LayerOutput(both.logits[i : i + 1], both.boxes[i : i + 1]), [size])  # type: ignore[index]
        assert torch.equal(alone.boxes, together[i].boxes) and torch.equal(alone.labels, together[i].labels)


def test_half_precision_answers_are_decoded_in_float32() -> None:
    exact = layer()
    half = LayerOutput(exact.logits.bfloat16(), exact.boxes.bfloat16())  # type: ignore[union-attr]
    found = decode(half, [(1000, 2000), (1000, 2000)])[0]
    assert found.scores.dtype == found.boxes.dtype == torch.float32
    again = decode(LayerOutput(half.logits.float(), half.boxes.float()), [(1000, 2000)] * 2)[0]  # type: ignore[union-attr]
    assert torch.equal(found.boxes, again.boxes)


def test_one_size_per_image() -> None:
    with pytest.raises(ValueError, match="1 picture sizes for a batch of 2"):
        decode(layer(), [(10, 20)])


def test_a_threshold_keeps_the_best_and_nothing_else() -> None:
    both = layer()
    sizes = [(10, 20), (30, 40)]
    for few, every in zip(decode(both, sizes, conf=0.5), decode(both, sizes), strict=True):
        assert 0 < len(few) < len(every) and torch.equal(few.boxes, every.above(0.5).boxes)
    assert [len(each) for each in decode(both, sizes, top_k=2, conf=0.5)] == [
        2,
        2,
    ]  # first the best, then the threshold
    assert [len(each) for each in decode(both, sizes, conf=1.1)] == [0, 0]


def test_what_is_not_a_number_is_not_lost_below_a_threshold() -> None:
    broken = layer(images=1)
    broken.logits[0, 3, 1] = float("nan")
    (found,) = decode(broken, [(10, 20)], conf=0.9)
    assert found.scores.isnan().sum() == 1


def test_only_the_classes_asked_for_compete() -> None:
    logits = torch.tensor([[[5.0, 1.0, 2.0], [6.0, 3.0, -1.0]]])
    some = LayerOutput(logits, torch.rand(1, 2, 4))
    (found,) = decode(some, [(10, 10)], top_k=3, classes=torch.tensor([2, 1]))
    assert found.labels.tolist() == [1, 2, 1]
    assert found.scores.tolist() == pytest.approx(torch.tensor([3.0, 2.0, 1.0]).sigmoid().tolist())


def test_keypoints_are_scaled_and_give_the_box() -> None:
    points = torch.tensor([[[[0.5, 0.25], [0.75, -0.1]], [[0.1, 0.2], [0.3, 0.4]]]])
    (found,) = decode(LayerOutput(torch.tensor([[[0.0], [1.0]]]), keypoints=points), [(100, 200)])
    assert found.keypoints is not None and found.masks is None
    assert found.keypoints[1].tolist() == [pytest.approx([100, 25, 1]), pytest.approx([150, -10, 1])]
    assert found.boxes.tolist() == [pytest.approx([20, 20, 60, 40]), pytest.approx([100, -10, 150, 25])]
    boxed = LayerOutput(torch.zeros(1, 2, 1), torch.rand(1, 2, 4), keypoints=points)
    assert decode(boxed, [(100, 200)])[0].boxes_from == "query"


OWNED = torch.tensor([[True, True, False], [False, True, True]])


def two_kinds(seed: int = 0, queries: int = 6) -> LayerOutput:
    """Poses of three keypoints, of which each of two classes has two."""
    generator = torch.Generator().manual_seed(seed)
    points = torch.rand(2, queries, 3, 2, generator=generator)
    return LayerOutput(torch.randn(2, queries, 2, generator=generator), keypoints=points)


@pytest.mark.parametrize("classes", [None, torch.tensor([1]), torch.tensor([1, 0])])
def test_keypoints_that_a_class_lacks_are_zero_and_not_in_its_box(classes: Tensor | None) -> None:
    answer, sizes = two_kinds(), [(100, 200), (30, 40)]
    every = decode(answer, sizes, classes=classes)
    for found, plain in zip(decode(answer, sizes, classes=classes, owned=OWNED), every, strict=True):
        assert torch.equal(found.labels, plain.labels) and torch.equal(found.scores, plain.scores)
        assert found.keypoints is not None and plain.keypoints is not None
        for label, box, points, all_points in zip(
            found.labels, found.boxes, found.keypoints, plain.keypoints, strict=True
        ):
            own = OWNED[label]
            assert torch.equal(points[own], all_points[own]) and not points[~own].any()
            places = points[own, :2]
            assert torch.equal(box, torch.cat([places.amin(0), places.amax(0)]))
        assert not torch.equal(found.boxes, plain.boxes)
    assert classes is None or set(found.labels.tolist()) == set(classes.tolist())


def test_boxes_of_a_query_stay_whatever_its_class_has() -> None:
    answer = replace(two_kinds(), boxes=torch.rand(2, 6, 4))
    for found, plain in zip(decode(answer, [(9, 9)] * 2, owned=OWNED), decode(answer, [(9, 9)] * 2), strict=True):
        assert torch.equal(found.boxes, plain.boxes) and found.boxes_from == "query"
        assert found.keypoints is not None and torch.equal(found.keypoints[..., 2] > 0, OWNED[found.labels])


TRUTH = [[60.0, 40, 2, 100, 80, 2], [120.0, 10, 2, 170, 60, 1]]


@pytest.fixture
def ant_and_bee(tmp_path: Path) -> Annotations:
    """A picture with one object of each of two classes, whose keypoints are ``OWNED``."""
    (tmp_path / "images").mkdir()
    Image.new("RGB", (200, 100)).save(tmp_path / "images" / "a.png")
    kinds = [{"id": 1, "name": "ant", "keypoints": ["a", "b"]}, {"id": 2, "name": "bee", "keypoints": ["b", "c"]}]
    plain = {"image_id": 1, "bbox": [0, 0, 99, 99], "area": 2000}
    data = {
        "images": [{"id": 1, "file_name": "a.png", "height": 100, "width": 200}],
        "categories": kinds,
        "annotations": [{"id": i, "category_id": i, "keypoints": TRUTH[i - 1], **plain} for i in (1, 2)],
    }
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "person_keypoints_train.json").write_text(json.dumps(data))
    return formats.load(tmp_path, truth="keypoints")


class Knowing(nn.Module):
    """Finds the two objects exactly, and puts the keypoint that each of them lacks far away."""

    def __init__(self) -> None:
        super().__init__()
        self.points = nn.Parameter(torch.full((1, 2, 3, 2), 0.9))
        for i, row in enumerate(TRUTH):
            self.points.data[0, i, i : i + 2] = torch.tensor(row).view(2, 3)[:, :2] / torch.tensor([200.0, 100])

    def forward(self, _images: Tensor) -> Outputs:
        return Outputs([LayerOutput(torch.tensor([[[4.0, -9], [-9, 3]]]), keypoints=self.points)])


def test_different_keypoints_are_scored_and_told_by_their_own(ant_and_bee: Annotations) -> None:
    """What a class lacks is neither compared nor part of an area, whichever classes are looked for."""
    labels = ant_and_bee.labels
    owned = labels.owned()
    assert owned is not None and torch.equal(owned, OWNED)
    info = replace(hub.create("ecpose-p", labels)[1], input=InputSpec((64, 64)))
    scores = evaluate(Knowing(), info, ant_and_bee, progress=False)
    assert scores.overall["AP"] == pytest.approx(1)
    for row, told in zip(TRUTH, sorted(scores.scorer.results(), key=lambda row: -row["score"])[:2], strict=True):
        points = np.reshape(told["keypoints"], (3, 3))
        assert sorted(points[:, 2]) == [0, 1, 1]
        assert [*points[:, :2].min(0), *points[:, :2].max(0)] == pytest.approx([row[0], row[1], row[3], row[4]])
    for only in (None, "bee"):
        (found,) = Predictor(Knowing(), info)(np.zeros((100, 200, 3), np.uint8), classes=only)
        assert found.boxes[-1].tolist() == pytest.approx([120, 10, 170, 60])
        assert [point["name"] for point in found.to_dict()["detections"][-1]["keypoints"]] == ["b", "c"]


class Counted(MaskMap):
    """Mask factors that note which masks are computed."""

    asked: ClassVar[list[int]] = []
    most: ClassVar[int] = 0

    def of(self, image: Tensor, query: Tensor, counts: Sequence[int]) -> Tensor:
        Counted.asked += query.tolist()
        Counted.most = max(Counted.most, len(query))
        return super().of(image, query, counts)

    def float(self) -> MaskMap:
        return self


def masked(images: int, queries: int, classes: int) -> LayerOutput:
    """Answers with smooth masks of 12 x 16 cells."""
    generator = torch.Generator().manual_seed(1)
    pixels = F.interpolate(torch.randn(images, 8, 3, 4, generator=generator), (12, 16), mode="bicubic")
    masks = MaskMap(torch.randn(images, queries, 8, generator=generator), pixels, torch.full((1,), 0.3))
    return replace(layer(2, images, queries, classes), masks=masks)


def test_masks_are_those_of_the_chosen_queries_at_the_size_of_each_picture() -> None:
    answer, sizes = masked(2, 7, 3), [(50, 70), (9, 31)]
    assert answer.masks is not None
    dense = answer.masks.dense()
    for i, found in enumerate(decode(answer, sizes, top_k=12)):
        query = answer.logits[i].flatten().topk(12).indices // 3
        pixels = F.interpolate(dense[i, query][:, None], sizes[i], mode="bilinear")[:, 0]
        assert found.masks is not None and found.masks.size == sizes[i] and len(found.masks) == 12
        wrong = (pixels > 0).numpy() != found.masks.array()
        assert not wrong[pixels.abs().numpy() > 1e-4].any()
        assert 0.1 < found.masks.array().mean() < 0.9
    alone = decode(LayerOutput(answer.logits[1:], answer.boxes[1:], masks=row(answer.masks, 1)), sizes[1:])[0]  # type: ignore[index]
    both = decode(answer, sizes)[1]
    assert alone.masks is not None and both.masks is not None
    assert (alone.masks.array() == both.masks.array()).all()


def row(masks: MaskMap, image: int) -> MaskMap:
    return MaskMap(masks.queries[image : image + 1], masks.pixels[image : image + 1], masks.bias)


def test_only_masks_of_what_is_kept_are_computed_and_each_once() -> None:
    answer = masked(1, 100, 3)
    assert answer.masks is not None
    counted = Counted(answer.masks.queries, answer.masks.pixels, answer.masks.bias)
    Counted.asked = []
    answer = replace(answer, masks=counted)
    (found,) = decode(answer, [(20, 30)], top_k=300, conf=0.8)
    queries = (answer.logits[0].sigmoid() >= 0.8).nonzero()[:, 0].tolist()
    assert len(found) == len(queries) > len(set(queries)), "no query answers twice"
    assert sorted(Counted.asked) == sorted(set(queries))
    Counted.asked = []
    decode(answer, [(20, 30)], conf=1.1)
    assert not Counted.asked
    decode(answer, [(20, 30)])
    assert len(Counted.asked) == 100 and Counted.most == MASKS


def test_half_precision_masks_are_multiplied_in_float32() -> None:
    answer = masked(1, 7, 3)
    assert answer.masks is not None
    half = MaskMap(answer.masks.queries.half(), answer.masks.pixels.half(), answer.masks.bias.half())
    (found,), (same,) = (decode(replace(answer, masks=each), [(50, 70)]) for each in (half, half.float()))
    assert found.masks is not None and same.masks is not None
    assert (found.masks.array() == same.masks.array()).all()


def test_masks_that_are_not_finite_are_an_error() -> None:
    answer = masked(1, 7, 3)
    assert answer.masks is not None
    answer.masks.pixels[0, 0, 5, 5] = float("inf")
    with pytest.raises(ValueError, match="logits of a mask are not finite"):
        decode(answer, [(10, 20)])
