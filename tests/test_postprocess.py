"""Scores, classes and boxes come out of the decoder's answers as in the released post-processor."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from edgecrafter.postprocess import decode
from edgecrafter.types import LayerOutput

GOLDEN = Path(__file__).parent / "golden"


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
