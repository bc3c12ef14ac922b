"""Pictures that keep their ratio: sizes, padding, and truth in the frame of the picture, wherever pixels are used."""

from __future__ import annotations

import hashlib
import pickle
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import small_training as small
import torch
from PIL import Image
from small_data import Oracle, Row, annotations, picture, random_objects
from torch import Tensor, nn

from edgecrafter import families, hub
from edgecrafter.data import loader, placement
from edgecrafter.data.annotations import Annotations, Masks
from edgecrafter.data.dataset import Dataset, Key
from edgecrafter.data.placement import FILL
from edgecrafter.data.transforms import PART, PART_OF, PRESETS, Augment, part
from edgecrafter.evaluate import evaluate
from edgecrafter.features import features
from edgecrafter.geometry.sides import fitted, input_size
from edgecrafter.model import Model
from edgecrafter.models.sizes import SIZES
from edgecrafter.predict import Predictor
from edgecrafter.start import origin, start
from edgecrafter.tasks import TASKS
from edgecrafter.train.config import TrainConfig
from edgecrafter.train.recipes import recipe_for, resolve
from edgecrafter.train.run import scales_of
from edgecrafter.train.steps import SupervisedStep
from edgecrafter.types import Batch, InputSpec, Labels, Outputs, Skeleton

LABELS = Labels(("cat", "dog", "bird"))
KITTI = (800, 1333)
SPEC = InputSpec((40, 60), resize="keep")
SIZES_OF = [(30, 90), (50, 50), (80, 30), (20, 30), (45, 60), (60, 90)]
FITTED = [(20, 60), (40, 40), (60, 23), (40, 60), (40, 53), (40, 60)]
"""by hand: 60 / 90, 40 / 50, 60 / 80 (23 of 22.5), 40 / 20, 40 / 45 (53 of 53.3), 40 / 60"""


def large(row: Row, size: tuple[int, int]) -> bool:
    """No crowd, and large enough to be there in every input."""
    x0, y0, x1, y1 = row[1]
    return not row[2] and x1 - x0 > size[1] / 10 and y1 - y0 > size[0] / 10


@pytest.fixture
def data(tmp_path: Path) -> Annotations:
    """Six pictures, lying and upright, with some objects."""
    rng = np.random.default_rng(2)
    rows = [[row for row in random_objects(rng, (0, 1, 2), size, 9) if large(row, size)] for size in SIZES_OF]
    assert sum(len(each) for each in rows) > 10
    for index, size in enumerate(SIZES_OF):
        picture(size, index).save(tmp_path / f"{index}.png")
    return annotations(LABELS, rows, SIZES_OF, tmp_path)


def always(augment: Augment, _epoch: int) -> Augment:
    return augment


def batches(data: Annotations, batch: int, augment: Augment, epoch: int = 0, **options: Any) -> list[Batch]:
    augment_of = partial(always, augment)
    found = loader.batches(data, SPEC.size, batch, augment_of=augment_of, resize=SPEC.resize, **options)
    found.set_epoch(epoch)
    return list(found)


def sizes_of(batch: Batch) -> list[tuple[int, int]]:
    """Read off ``valid``."""
    count, _, height, width = batch.images.shape
    valid = torch.ones(count, height, width, dtype=torch.bool) if batch.valid is None else batch.valid
    return [(int(rows.any(1).sum()), int(rows.any(0).sum())) for rows in valid]


# sizes


@pytest.mark.parametrize(
    "size, wanted",
    [
        ((375, 1242), (402, 1333)),  # KITTI; scale 1333 / 1242
        ((376, 1241), (404, 1333)),
        ((370, 1224), (403, 1333)),
        ((1242, 375), (1333, 402)),
        ((480, 640), (800, 1067)),
        ((640, 480), (1067, 800)),
        ((1600, 1600), (800, 800)),
        ((1, 4000), (1, 1333)),  # at least a pixel
        ((800, 1333), (800, 1333)),
    ],
)
def test_sizes_by_hand(size: tuple[int, int], wanted: tuple[int, int]) -> None:
    assert InputSpec(KITTI, resize="keep").fitted(*size) == wanted
    assert InputSpec(KITTI[::-1], resize="keep").fitted(*size) == wanted  # limits in either order
    assert InputSpec(KITTI).fitted(*size) == KITTI


def test_limits_hold_and_one_is_reached() -> None:
    rng = np.random.default_rng(0)
    for height, width in rng.integers(1, 3000, (500, 2)).tolist():
        found = fitted(height, width, KITTI)
        assert min(found) <= 800 and max(found) <= 1333 and (min(found) == 800 or max(found) == 1333)
        scale = found[0] / height if height > width else found[1] / width
        assert abs(found[0] - height * scale) <= 1 and abs(found[1] - width * scale) <= 1


def test_input_sizes_that_are_asked_for() -> None:
    assert [input_size(size, "keep") for size in (800, [402, 1333], (1333, 402))] == [
        (800, 1333),
        (402, 1333),
        (402, 1333),
    ]
    assert input_size(600, "keep") == (600, 1000)
    assert [input_size(640), input_size((384, 640))] == [(640, 640), (384, 640)]
    for wrong in (0, [800, 900, 1000], [16, 1333], []):
        with pytest.raises(ValueError, match="keeps the ratio"):
            input_size(wrong, "keep")
    with pytest.raises(ValueError, match="multiples of 32"):
        input_size([402, 1333])


def test_it_is_saved_with_the_model_and_others_are_refused() -> None:
    info = hub.described("ecdet-p", LABELS, SPEC)
    assert hub.ModelInfo.from_json(info.to_json()).input == SPEC
    assert hub.described("ecdet-p", LABELS).input.resize == "stretch"
    with pytest.raises(ValueError, match="letterbox.*knows stretch, keep, frame only"):
        InputSpec(resize="letterbox")


# evaluation and prediction


def test_pictures_of_an_evaluation(data: Annotations) -> None:
    first, second = loader.plain(data, SPEC.size, 3, resize="keep")
    assert first.images.shape == (3, 3, 60, 60) and second.images.shape == (3, 3, 40, 60)
    assert sizes_of(first) + sizes_of(second) == FITTED
    for batch, start_ in ((first, 0), (second, 3)):
        assert batch.valid is not None and batch.valid.dtype == torch.bool
        for i, (image, valid) in enumerate(zip(batch.images, batch.valid, strict=True)):
            height, width = FITTED[start_ + i]
            assert valid[:height, :width].all() and valid.sum() == height * width
            with Image.open(data.path(start_ + i)) as opened:
                wanted = np.asarray(opened.resize((width, height), Image.Resampling.BILINEAR))
            assert np.array_equal(image[:, :height, :width].permute(1, 2, 0), wanted)
            assert (image[:, ~valid] == FILL).all()


def test_the_padding_is_zero_for_the_network_and_the_picture_as_ever(data: Annotations) -> None:
    batch = next(iter(loader.plain(data, SPEC.size, 3, resize="keep")))
    assert batch.valid is not None
    found, wanted = SPEC.normalise(batch.images, batch.valid), SPEC.normalise(batch.images)
    inside = batch.valid[:, None].expand_as(found)
    assert (found[~inside] == 0).all() and (wanted[~inside] != 0).all()
    assert torch.equal(found[inside], wanted[inside])


def test_nothing_is_said_where_nothing_is_padded(data: Annotations) -> None:
    same = data.subset([3, 5])
    (batch,) = loader.plain(same, SPEC.size, 2, resize="keep")
    assert batch.valid is None and batch.images.shape == (2, 3, 40, 60)
    assert all(batch.valid is None for batch in loader.plain(data, SPEC.size, 1, resize="keep"))
    assert all(batch.valid is None for batch in loader.plain(data, (64, 96), 3))


class Seen(Oracle):
    """Keeps what it is given."""

    def __init__(self, truth: Annotations, classes: int = 3) -> None:
        super().__init__(truth, classes)
        self.inputs: list[tuple[Tensor, Tensor | None]] = []

    def forward(self, images: Tensor, **known: Tensor) -> Outputs:
        assert set(known) <= {"valid"} and all(value is not None for value in known.values())
        self.inputs.append((images, known.get("valid")))
        return super().forward(images)


@pytest.mark.parametrize("batch", [1, 3, 4, 6])
def test_true_boxes_score_one(data: Annotations, batch: int) -> None:
    network = Seen(data)
    scores = evaluate(network, hub.described("ecdet-p", LABELS, SPEC), data, batch=batch, progress=False)
    assert scores.overall["AP"] == pytest.approx(1) and scores.images == 6
    assert [valid is None for _, valid in network.inputs] == [batch == 1] * -(-6 // batch)
    boxes = torch.tensor([row["bbox"] for row in scores.scorer.results()])
    truth = np.concatenate([data.boxes[:, :2], data.boxes[:, 2:] - data.boxes[:, :2]], 1)
    for box in truth:  # in pixels of the original, exactly
        assert (boxes - torch.from_numpy(box)).abs().amax(1).min() < 1e-3


def test_networks_without_padding_are_called_as_before(data: Annotations) -> None:
    scores = evaluate(Oracle(data, 3), hub.described("ecdet-p", LABELS), data, batch=3, progress=False)
    assert scores.overall["AP"] == pytest.approx(1)
    with pytest.raises(TypeError, match="valid"):  # Oracle takes images only
        evaluate(Oracle(data, 3), hub.described("ecdet-p", LABELS, SPEC), data, batch=3, progress=False)


@pytest.mark.parametrize("size", [None, (35, 100)])
def test_prediction_shows_what_evaluation_shows(data: Annotations, size: tuple[int, int] | None) -> None:
    info = hub.described("ecdet-p", LABELS, SPEC)
    scored = Seen(data)
    evaluate(scored, info, data, batch=3, progress=False, size=size)
    (known, mask), _ = scored.inputs
    assert mask is not None and (known[~mask[:, None].expand_as(known)] == 0).all()
    files: list[Any] = [data.path(index) for index in range(6)]
    imgsz = None if size is None else size[::-1]
    with Image.open(files[1]) as opened:
        for sources in (files, [files[0], np.asarray(opened), *files[2:]]):
            asked = Seen(data)
            found = Predictor(asked, info, "cpu")(sources, conf=0.5, batch=3, imgsz=imgsz)
            for (images, valid), (wanted, where) in zip(asked.inputs, scored.inputs, strict=True):
                assert torch.equal(images, wanted)
                assert valid is not None and where is not None and torch.equal(valid, where)
    for index, each in enumerate(found):
        assert each.size == SIZES_OF[index]
        truth = data.boxes[data.objects(index)]
        np.testing.assert_allclose(np.sort(each.boxes, axis=0), np.sort(truth, axis=0), atol=1e-3)


# training


def painted(path: Path, size: tuple[int, int], box: tuple[int, int, int, int]) -> None:
    """A black picture with a white box."""
    pixels = np.zeros((*size, 3), np.uint8)
    pixels[box[1] : box[3], box[0] : box[2]] = 255
    Image.fromarray(pixels).save(path)


@pytest.mark.parametrize(
    "augment",
    [
        Augment.NONE,
        Augment.classic(),
        Augment(zoom_out=1, flip=0.5),
        Augment(iou_crop=1, flip=0.5),
        Augment(mosaic=0.5, flip=0.5),
        Augment(zoom_out=0.5, iou_crop=0.5, shortest=0.5, flip=0.5),
    ],
)
def test_boxes_lie_where_the_pixels_are(tmp_path: Path, augment: Augment) -> None:
    """Against the extent of what is white in the valid part of the image."""
    rng = np.random.default_rng(1)
    rows: list[Any] = []
    sizes = [(int(h), int(w)) for h, w in rng.integers(300, 700, (8, 2))]
    for index, (h, w) in enumerate(sizes):
        x0, y0 = int(rng.integers(0, w * 0.5)), int(rng.integers(0, h * 0.5))
        box = (x0, y0, int(rng.integers(x0 + w * 0.3, w)), int(rng.integers(y0 + h * 0.3, h)))
        painted(tmp_path / f"{index}.png", (h, w), box)
        rows.append([(0, box, False)])
    data = annotations(Labels(("a",)), rows, sizes, tmp_path)
    augment_of, count = partial(always, augment), 0
    found = loader.batches(data, (160, 240), 4, augment_of=augment_of, resize="keep")
    for epoch in range(6):
        found.set_epoch(epoch)
        for batch in found:
            for image, target, (h, w) in zip(batch.images, batch.targets, sizes_of(batch), strict=True):
                assert (image[:, h:] == FILL).all() and (image[:, :, w:] == FILL).all()
                low, high = (target.boxes[:, :2] + sign * target.boxes[:, 2:] / 2 for sign in (-1, 1))
                assert (low > -1e-6).all() and (high < 1 + 1e-6).all()
                if len(target.labels) != 1:  # of a mosaic
                    continue
                white = image[0, :h, :w] > 180
                columns, lines = (white.any(axis).nonzero().flatten() for axis in (0, 1))
                wanted = [int(columns[0]), int(lines[0]), int(columns[-1]) + 1, int(lines[-1]) + 1]
                found_box = torch.cat([low[0], high[0]]) * torch.tensor([w, h, w, h])
                # half a pixel by rounding, and what cutting at whole pixels of the file costs
                assert found_box.tolist() == pytest.approx(wanted, abs=2)
                count += 1
    assert count >= (12 if augment.mosaic else 30)


def test_plain_targets_are_those_of_the_original(data: Annotations) -> None:
    """The ratio is kept to a pixel, so that a box in 0..1 of the picture is a box in 0..1 of its frame."""
    for batch in [*loader.plain(data, SPEC.size, 4, resize="keep"), *batches(data, 4, Augment.NONE, shuffle=False)]:
        for target in batch.targets:
            index = target.image_id // 10 - 1
            rows, (h, w) = data.objects(index), SIZES_OF[index]
            corners = data.boxes[rows].astype(float) / (w, h, w, h)
            wanted = np.concatenate([(corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]], 1)
            np.testing.assert_allclose(target.boxes, wanted, atol=1e-6)
            assert target.size == SIZES_OF[index]


def test_a_mirror_turns_the_picture_inside_its_frame(data: Annotations) -> None:
    plain, flipped = (batches(data, 3, augment, shuffle=False) for augment in (Augment.NONE, Augment(flip=1)))
    for one, other in zip(plain, flipped, strict=True):
        assert one.valid is not None and other.valid is not None and torch.equal(one.valid, other.valid)
        for i, (h, w) in enumerate(sizes_of(one)):
            left, right = one.images[i, :, :h, :w].int(), other.images[i, :, :h, :w].int()
            assert (left - right.flip(2)).abs().max() <= 1
            mirrored = one.targets[i].boxes * torch.tensor([-1, 1, 1, 1]) + torch.tensor([1.0, 0, 0, 0])
            torch.testing.assert_close(other.targets[i].boxes, mirrored)


def test_zoom_and_crop_keep_the_ratio(data: Annotations) -> None:
    dataset = Dataset(data, (400, 600), resize="keep")
    for epoch in range(40):
        for index in range(6):
            rng = np.random.default_rng([epoch, index])
            sketch = dataset.sketch(index, Augment(zoom_out=0.5, iou_crop=0.5, shortest=0.5), rng)
            (x_scale, _), (y_scale, _) = sketch.placements[0].affine()
            assert x_scale / y_scale == pytest.approx(1, rel=0.02)  # sides of 60 pixels or more, rounded
            assert min(sketch.size) <= 400 and max(sketch.size) <= 600


def test_a_mosaic_fills_the_limits(data: Annotations) -> None:
    for batch in batches(data, 3, Augment(mosaic=1), drop_last=False):
        assert batch.images.shape == (3, 3, 40, 60) and batch.valid is None


def test_mixed_pictures_are_as_large_as_both(data: Annotations) -> None:
    plain = batches(data, 3, Augment.NONE, shuffle=False)
    for one, mixed in zip(plain, batches(data, 3, Augment(mixup=1), shuffle=False), strict=True):
        sizes = sizes_of(one)
        for i, (h, w) in enumerate(sizes_of(mixed)):
            (h0, w0), (h1, w1) = sizes[i], sizes[i - 1]
            assert (h, w) == (max(h0, h1), max(w0, w1))
            blend = (one.images[i].float() + one.images[i - 1].float()) / 2
            assert (mixed.images[i].float() - blend).abs().max() <= 0.05 * 255 + 1
            own, other = one.targets[i], one.targets[i - 1]
            boxes = torch.cat(
                [own.boxes * torch.tensor([w0, h0, w0, h0]), other.boxes * torch.tensor([w1, h1, w1, h1])]
            )
            torch.testing.assert_close(mixed.targets[i].boxes, boxes / torch.tensor([w, h, w, h]))


def test_keypoints_are_in_the_frame_of_the_picture(data: Annotations) -> None:
    labels = replace(LABELS, skeleton=Skeleton(("left", "right"), flip_pairs=((0, 1),)))
    low, high = data.boxes[:, :2], data.boxes[:, 2:]
    points = np.stack([low * 0.75 + high * 0.25, low * 0.25 + high * 0.75], 1)
    points = np.concatenate([points, np.full((*points.shape[:2], 1), 2)], 2).astype(np.float32)
    known = replace(data, labels=labels, keypoints=points)
    for augment, order in ((Augment.NONE, (0, 1)), (Augment(flip=1), (1, 0))):
        for batch in batches(known, 3, augment, shuffle=False):
            for target in batch.targets:
                assert target.keypoints is not None and target.area is not None
                found = target.keypoints[:, list(order), :2]
                sign = -1 if augment.flip else 1
                offset = target.boxes[:, 2:] / 4 * torch.tensor([sign, 1])
                torch.testing.assert_close(found[:, 0], target.boxes[:, :2] - offset)
                torch.testing.assert_close(found[:, 1], target.boxes[:, :2] + offset)
                torch.testing.assert_close(target.area, target.boxes[:, 2:].prod(1), rtol=0.05, atol=0)


def test_masks_are_refused(data: Annotations) -> None:
    count = len(data.boxes)
    nothing = np.zeros(count + 1, np.int64)
    masks = Masks(np.zeros((0, 2), np.float32), nothing[:1], nothing, np.zeros(0, np.uint8), nothing)
    with pytest.raises(ValueError, match="no masks for resize='keep'"):
        loader.plain(replace(data, masks=masks), SPEC.size, 2, resize="keep")
    with pytest.raises(ValueError, match="ecinsseg-p: models that find masks"):
        hub.described("ecinsseg-p", LABELS, SPEC)


# the random short side


def test_short_sides_of_the_classic_recipe(tmp_path: Path) -> None:
    """480 to 800 in steps of 32; KITTI's pictures are too wide for any of them to matter."""
    data = annotations(LABELS, [[], []], [(480, 640), (375, 1242)], tmp_path)
    dataset, seen, parts = Dataset(data, KITTI, resize="keep"), [], []
    for number in range(600):
        sketch, wide = (dataset.sketch(i, Augment.classic(), np.random.default_rng(number)) for i in range(2))
        if sketch.placements[0].view == (0, 0, 640, 480):
            seen.append(sketch.size)
            assert wide.size == (402, 1333)
        else:
            parts.append(wide.size)
    assert set(seen) == {fitted(480, 640, (short, 1333)) for short in range(480, 801, 32)}
    assert 250 < len(parts) < 350 and len(set(parts)) > 200
    assert Augment.classic().gentle() == Augment.classic(), "their recipes have one strength"
    assert Augment.strong().gentle() == Augment(flip=0.5)


@pytest.mark.parametrize("size", [(480, 640), (375, 1242), (1000, 300)])
def test_parts_have_the_published_sides(size: tuple[int, int]) -> None:
    """384 to 600 pixels, or what there is, of a picture with a short side of 400, 500 or 600."""
    h, w = size
    rng = np.random.default_rng(0)
    parts = np.array([part((0, 0, w, h), rng) for _ in range(500)])
    assert (parts >= -1e-9).all() and (parts[:, 2] <= w + 1e-6).all() and (parts[:, 3] <= h + 1e-6).all()
    sides = parts[:, 2:] - parts[:, :2]
    for axis, length in enumerate((w, h)):
        lengths = [length * short / min(size) for short in PART_OF]
        low = min(min(PART[0], each) / each for each in lengths)
        high = max(min(PART[1], each) / each for each in lengths)
        shares = sides[:, axis] / length
        assert shares.min() >= low - 1e-9 and shares.max() <= high + 1e-9
        assert shares.min() < low + 0.1 and shares.max() > high - 0.1


def test_limits_of_another_size_have_short_sides_of_their_own(data: Annotations) -> None:
    dataset = Dataset(data, (100, 167), resize="keep")
    drawn = {min(dataset.sketch(1, Augment(shortest=1), np.random.default_rng(number)).size) for number in range(400)}
    assert drawn == set(range(60, 101, 4))


def test_the_classic_recipe_and_what_else_may_be_asked_for() -> None:
    recipe = replace(recipe_for("ecdet-p"), classic=True, mosaic=0.0, mixup=0.0, plain_epochs=0)
    plan = resolve(TrainConfig(batch=4), recipe, 100)
    assert {plan.augment_of(epoch) for epoch in range(plan.epochs)} == {Augment.classic()}
    assert "random short sides" in plan.report() and type(plan).from_dict(plan.to_dict()) == plan
    assert resolve(TrainConfig(batch=4, augment="none"), recipe, 100).augment == Augment.NONE
    assert resolve(TrainConfig(batch=4), recipe_for("ecdet-p"), 100).augment.shortest == 0


# batches


def test_workers_seeds_and_ranks(data: Annotations) -> None:
    augment = replace(Augment.classic(), photometric=0.5, zoom_out=0.3, mixup=0.5)
    alone, helped = (batches(data, 2, augment, epoch=3, seed=4, workers=workers) for workers in (0, 2))
    other = batches(data, 2, augment, epoch=3, seed=5)
    for one, two in zip(alone, helped, strict=True):
        assert torch.equal(one.images, two.images) and sizes_of(one) == sizes_of(two)
        assert all(torch.equal(a.boxes, b.boxes) for a, b in zip(one.targets, two.targets, strict=True))
    assert any(sizes_of(one) != sizes_of(two) for one, two in zip(alone, other, strict=True))
    dataset, key = Dataset(data, SPEC.size, resize="keep"), Key(1, 0, (0, 1, 2), augment)
    there, sent = pickle.loads(pickle.dumps((dataset, key)))
    assert torch.equal(there[sent].images, dataset[key].images)
    plain = replace(augment, mixup=0.0)
    whole = batches(data, 4, plain, seed=4)[0]
    shares = [batches(data, 2, plain, seed=4, rank=rank, world=2)[0] for rank in range(2)]
    for i, (h, w) in enumerate(sizes_of(whole)):
        share = shares[i % 2]
        assert sizes_of(share)[i // 2] == (h, w)
        assert torch.equal(share.images[i // 2, :, :h, :w], whole.images[i, :, :h, :w])


@pytest.mark.parametrize("augment", [Augment.NONE, Augment(flip=1), *PRESETS.values(), Augment.classic()])
def test_no_batch_is_larger_than_the_one_that_tries_the_memory(data: Annotations, augment: Augment) -> None:
    height, width = Dataset(data, SPEC.size, resize="keep").largest(augment)
    found = [batch.images.shape[2:] for epoch in range(8) for batch in batches(data, 3, augment, epoch)]
    assert all(h <= height and w <= width for h, w in found)
    lying = data.subset([0, 3])
    assert Dataset(lying, SPEC.size, resize="keep").largest(Augment.NONE) == (40, 60)
    assert Dataset(data, (64, 96)).largest(augment) == (64, 96)


def test_stretched_batches_are_what_they_were(tmp_path: Path) -> None:
    """The boxes of fifteen epochs, as they were before pictures could keep their ratio: the random draws are the
    same."""
    rng = np.random.default_rng(0)
    sizes = [(int(h), int(w)) for h, w in rng.integers(20, 90, (13, 2))]
    rows = [random_objects(rng, (0, 1, 2), size) for size in sizes]
    for i, size in enumerate(sizes):
        Image.new("RGB", size[::-1]).save(tmp_path / f"{i}.png")
    data, drawn = annotations(Labels(("a", "b", "c")), rows, sizes, tmp_path), hashlib.sha256()
    for augment in (*PRESETS.values(), Augment.strong(0.5, 0.5, paste=0.5)):
        found = loader.batches(data, (32, 64), 4, augment_of=partial(always, augment), seed=3)
        for epoch in range(3):
            found.set_epoch(epoch)
            for batch in found:
                assert batch.valid is None
                for target in batch.targets:
                    boxes = np.round(target.boxes.numpy().astype(float) * 1000).astype(np.int64)
                    drawn.update(boxes.tobytes() + target.labels.numpy().tobytes() + str(target.image_id).encode())
    assert drawn.hexdigest() == "848d1582a81d79208b0a787e991d94585c6b1a6b9d53ae2ae07b0d55e5d8bc37"


# a step, and what is asked for by name


class Taken(nn.Module):
    """A detector that is told where pictures are."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.seen: list[tuple[Tensor, Tensor]] = []

    def forward(self, images: Tensor, groups: Any, valid: Tensor) -> Outputs:
        self.seen.append((images, valid))
        found: Outputs = self.inner(images, groups)
        return found


def test_a_step_tells_its_network_where_pictures_are() -> None:
    torch.manual_seed(0)
    network, info = hub.create("ecdet-p", small.LABELS, queries=20)
    batch = small.batch([2, 1])
    plain = SupervisedStep(network, TASKS["detect"], small.LABELS, info.input, budget=10)
    assert all(value.isfinite() for value in plain(batch).values())  # it takes no such argument
    valid = placement.valid(np.array([[64, 64], [64, 40]]))
    assert valid is not None
    taken = Taken(network)
    step = SupervisedStep(taken, TASKS["detect"], small.LABELS, info.input, budget=10)
    losses = step(replace(batch, valid=valid))
    assert all(value.isfinite() for value in losses.values())
    ((images, told),) = taken.seen
    assert torch.equal(told, valid) and (images[1, :, :, 40:] == 0).all()
    assert torch.equal(images[0], info.input.normalise(batch.images)[0])


@pytest.fixture
def family(monkeypatch: pytest.MonkeyPatch) -> str:
    spec = InputSpec((96, 160), resize="keep")
    row = families.Family("keepdet", TASKS["detect"], SIZES, spec, sign=None)
    monkeypatch.setitem(families.FAMILIES, "keepdet", row)
    return "keepdet-p"


def test_sizes_are_limits_for_such_models(family: str) -> None:
    assert TrainConfig(model=family, imgsz=100).imgsz == [100, 167]
    assert TrainConfig(model=family, imgsz=[300, 100]).imgsz == [100, 300]
    with pytest.raises(ValueError, match="keeps the ratio"):
        TrainConfig(model=family, imgsz=10)
    assert TrainConfig(model="a/file.safetensors", imgsz=402).imgsz == 402  # known when it is read
    made = [start(origin(family), LABELS, size).info.input for size in (None, 100, (100, 300))]
    assert [each.size for each in made] == [(96, 160), (100, 167), (100, 300)]
    assert {each.resize for each in made} == {"keep"}
    with pytest.raises(ValueError, match="multiples of 32"):
        start(origin("ecdet-p"), LABELS, 100)
    model = Model(*hub.create(family, LABELS))
    assert model.summary().size == (96, 160) and model.summary((128, 64)).size == (64, 128)
    begin: Any = SimpleNamespace(plan=small.plan(), info=model.info)
    with pytest.raises(ValueError, match="keepdet-p keeps the ratio"):
        scales_of(begin)


@pytest.mark.parametrize(
    "size, imgsz, wanted",
    [((60, 100), None, (96, 160)), ((50, 100), (64, 128), (64, 128)), ((250, 100), (160, 64), (160, 64))],
)
def test_features_are_of_the_picture_in_its_ratio(family: str, size: Any, imgsz: Any, wanted: tuple[int, int]) -> None:
    model = Model(*hub.create(family, LABELS))
    seen: list[tuple[int, ...]] = []
    model.network.register_forward_pre_hook(lambda _, inputs: seen.append(tuple(inputs[0].shape[2:])))
    features(model, picture(size), device="cpu", imgsz=imgsz)
    assert seen == [wanted]
