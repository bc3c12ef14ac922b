"""Batches depend on seed, epoch and step alone; ranks share the work; every picture of an evaluation comes once."""

from __future__ import annotations

import os
import pickle
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from small_data import annotations as annotate
from small_data import picture, random_objects

from edgecrafter.data import loader
from edgecrafter.data.annotations import Annotations, Masks
from edgecrafter.data.dataset import Dataset, Key
from edgecrafter.data.transforms import PRESETS, Augment
from edgecrafter.types import Batch, Labels

COUNT = 13
SIZE = (32, 64)


def always(augment: Augment, epoch: int) -> Augment:
    return augment


def weaker_later(epoch: int) -> Augment:
    return Augment.strong() if epoch < 2 else Augment.NONE


@pytest.fixture
def data(tmp_path) -> Annotations:
    rng = np.random.default_rng(0)
    sizes = [(int(h), int(w)) for h, w in rng.integers(20, 90, (COUNT, 2))]
    rows = [random_objects(rng, (0, 1, 2), size) for size in sizes]
    for i, size in enumerate(sizes):
        picture(size, i).save(tmp_path / f"{i}.png")
    return annotate(Labels(("a", "b", "c")), rows, sizes, tmp_path)


def train(data: Annotations, batch: int, augment: Augment = PRESETS["default"], **options) -> loader.Loader:
    return loader.batches(data, SIZE, batch, augment_of=partial(always, augment), **options)


def epoch_of(batches: loader.Loader, epoch: int) -> list[Batch]:
    batches.set_epoch(epoch)
    return list(batches)


def same(left: list[Batch], right: list[Batch]) -> bool:
    if len(left) != len(right) or not all(torch.equal(a.images, b.images) for a, b in zip(left, right, strict=True)):
        return False
    pairs = [pair for a, b in zip(left, right, strict=True) for pair in zip(a.targets, b.targets, strict=True)]
    return all(
        torch.equal(a.boxes, b.boxes) and torch.equal(a.labels, b.labels) and a.image_id == b.image_id for a, b in pairs
    )


def test_batches_look_as_promised(data):
    batches = train(data, 4, seed=1)
    assert len(batches) == 3
    for epoch in range(4):
        found = epoch_of(batches, epoch)
        assert len(found) == 3
        for batch in found:
            assert batch.images.shape == (4, 3, *SIZE) and batch.images.dtype == torch.uint8
            assert batch.images.is_contiguous()
            for target in batch.targets:
                assert target.boxes.dtype == torch.float32 and target.labels.dtype == torch.int64
                assert target.boxes.shape == (len(target.labels), 4)
                assert (target.boxes[:, 2:] > 0).all()
                half = target.boxes[:, 2:] / 2
                assert (target.boxes[:, :2] - half > -1e-6).all() and (target.boxes[:, :2] + half < 1 + 1e-6).all()
                index = target.image_id // 10 - 1
                assert target.path == str(data.path(index)) and target.size == tuple(data.sizes[index])


def test_workers_change_nothing(data):
    alone, helped = train(data, 4, seed=3), train(data, 4, seed=3, workers=2)
    for epoch in (0, 1, 5):
        assert same(epoch_of(alone, epoch), epoch_of(helped, epoch))


def test_epochs_differ_and_need_no_history(data):
    batches = train(data, 4, seed=3)
    epochs = [epoch_of(batches, epoch) for epoch in range(3)]
    assert not same(epochs[0], epochs[1])
    assert same(epochs[2], epoch_of(train(data, 4, seed=3), 2))
    assert not same(epochs[2], epoch_of(train(data, 4, seed=4), 2))


def test_the_phase_reaches_living_workers(data):
    batches = loader.batches(data, SIZE, 4, augment_of=weaker_later, workers=1)
    plain = train(data, 4, Augment.NONE)
    assert not same(epoch_of(batches, 1), epoch_of(plain, 1))
    assert same(epoch_of(batches, 2), epoch_of(plain, 2))


def test_an_epoch_left_early_does_not_disturb_the_next(data):
    batches = train(data, 4, workers=1)
    next(iter(batches))
    assert same(epoch_of(batches, 1), epoch_of(train(data, 4), 1))


def test_global_random_state_is_neither_used_nor_changed(data):
    torch.manual_seed(0)
    np.random.seed(0)
    first = epoch_of(train(data, 4), 0)
    after = torch.rand(1), np.random.rand()
    torch.manual_seed(0)
    np.random.seed(0)
    assert (torch.rand(1), np.random.rand()) == after
    assert same(first, epoch_of(train(data, 4), 0))


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("drop_last", [True, False])
def test_ranks_together_make_the_batch_of_one_process(data, world, drop_last):
    augment = replace(Augment.strong(), mixup=0.0)
    ranks = [train(data, 2, augment, rank=rank, world=world, drop_last=drop_last) for rank in range(world)]
    single = epoch_of(train(data, 2 * world, augment, drop_last=drop_last), 7)
    shares = [epoch_of(rank, 7) for rank in ranks]
    assert len({len(share) for share in shares}) == 1 and len(shares[0]) == len(single) == len(ranks[0])
    for step, joined in enumerate(single):
        counts = [len(share[step].targets) for share in shares]
        assert len(set(counts)) == 1
        for i, target in enumerate(joined.targets):
            part = shares[i % world][step]
            assert torch.equal(part.images[i // world], joined.images[i])
            assert torch.equal(part.targets[i // world].boxes, target.boxes)


def test_mixup_is_decided_for_all_ranks_alike(data):
    augment = Augment(mixup=0.5)
    plain = {target.image_id: len(target.labels) for b in loader.plain(data, SIZE, 4) for target in b.targets}
    ranks = [train(data, 2, augment, rank=rank, world=2) for rank in range(2)]
    decisions = []
    for epoch in range(8):
        for pair in zip(*(epoch_of(rank, epoch) for rank in ranks), strict=True):
            mixed = [any(len(t.labels) != plain[t.image_id] for t in batch.targets) for batch in pair]
            known = [sum(plain[t.image_id] for t in batch.targets) > 0 for batch in pair]
            if all(known):
                assert mixed[0] == mixed[1]
                decisions.append(mixed[0])
    assert 0.2 < np.mean(decisions) < 0.8


@pytest.mark.parametrize("batch, drop_last, sizes", [(5, True, [5, 5]), (5, False, [5, 5, 3]), (50, True, [13])])
def test_last_batch(data, batch, drop_last, sizes):
    batches = train(data, batch, Augment.NONE, drop_last=drop_last)
    found = epoch_of(batches, 0)
    assert [len(b.targets) for b in found] == sizes and len(batches) == len(sizes)
    seen = [target.image_id for b in found for target in b.targets]
    assert len(set(seen)) == len(seen) == sum(sizes)


def test_no_rank_is_left_without_a_picture(data):
    one = data.subset([4])
    shares = [epoch_of(train(one, 4, Augment.NONE, rank=rank, world=3), 0) for rank in range(3)]
    assert [[t.image_id for b in share for t in b.targets] for share in shares] == [[50]] * 3


@pytest.mark.parametrize("world", [1, 2, 5, 20])
@pytest.mark.parametrize("workers", [0, 1])
def test_evaluation_sees_every_picture_once_and_plain(data, world, workers):
    if workers and world > 2:
        pytest.skip("once is enough")
    shares = [list(loader.plain(data, SIZE, 3, workers, rank, world)) for rank in range(world)]
    ids = [[target.image_id for batch in share for target in batch.targets] for share in shares]
    assert sorted(key for row in ids for key in row) == data.image_ids.tolist()
    assert all(row == sorted(row) for row in ids)
    first = shares[0][0]
    expected = Dataset(data, SIZE).sample(0).image
    assert torch.equal(first.images[0], torch.from_numpy(expected).permute(2, 0, 1))


def test_crowds_are_not_learned(data):
    assert data.crowd.any()
    kept = sum(len(target.labels) for batch in loader.plain(data, (640, 640), 4) for target in batch.targets)
    assert kept == (~data.crowd).sum()


def test_pictures_without_objects_keep_their_shapes(tmp_path):
    for i in range(4):
        picture((20, 30), i).save(tmp_path / f"{i}.png")
    empty = annotate(Labels(("a",)), [[]] * 4, [(20, 30)] * 4, tmp_path)
    for epoch in range(10):
        for batch in epoch_of(train(empty, 2), epoch):
            assert all(t.boxes.shape == (0, 4) and t.labels.shape == (0,) for t in batch.targets)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_picture_is_named(data, workers):
    data.path(3).write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"3\.png"):
        epoch_of(train(data, 4, Augment.NONE, workers=workers, drop_last=False), 0)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"batch": 0}, "batch=0"),
        ({"seed": -1}, "seed=-1"),
        ({"rank": 2, "world": 2}, "rank=2"),
        ({"size": (1, 64)}, "size=\\(1, 64\\)"),
    ],
)
def test_numbers_out_of_range_are_refused(data, change, message):
    options = {"size": SIZE, "batch": 2, "augment_of": weaker_later, **change}
    with pytest.raises(ValueError, match=message):
        loader.batches(data, options.pop("size"), options.pop("batch"), **options)


def test_no_pictures_are_refused(data):
    with pytest.raises(ValueError, match="no pictures"):
        loader.plain(data.subset([]), SIZE, 2)


def test_workers_can_be_spawned(data):
    dataset, key = Dataset(data, SIZE), Key(1, 2, (3, 4), Augment.strong())
    there, sent = pickle.loads(pickle.dumps((dataset, key)))
    assert torch.equal(there[sent].images, dataset[key].images)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads the memory use from /proc")
def test_memory_does_not_grow(data):
    batches, used = train(data, 4, Augment.strong(1.0, 1.0)), []
    for epoch in range(60):
        epoch_of(batches, epoch)
        used.append(int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE"))
    assert used[-1] - used[20] < 2**20  # 117 batches in between, and a batch takes 24 kB


def test_a_worker_sends_one_tensor(data):
    raw = Dataset(data, SIZE)[Key(0, 0, (1, 2, 3), Augment.strong())]
    tensors = [item for item in (raw.images, raw.masks, *raw.indices, *raw.objects) if isinstance(item, torch.Tensor)]
    assert len(tensors) == 1
    assert all(isinstance(found.boxes, np.ndarray) for found in raw.objects)


def test_masks_are_sent_as_one_more_tensor_eight_pixels_in_a_byte(data):
    nothing = np.zeros(len(data.classes) + 1, np.int64)
    square = np.array([[2, 2], [17, 2], [17, 17], [2, 17]], np.float32)
    rows = np.arange(len(data.classes) + 1)
    masks = Masks(np.tile(square, (len(data.classes), 1)), rows * 4, rows, np.zeros(0, np.uint8), nothing)
    raw = Dataset(replace(data, masks=masks), SIZE)[Key(0, 0, (1, 2, 3), Augment.NONE)]
    assert raw.masks is not None and raw.masks.dtype == torch.uint8
    assert raw.masks.shape == (sum(len(found) for found in raw.objects), SIZE[0], SIZE[1] // 8)
    assert len(raw.masks) > 3 and all(found.masks is None and found.shapes is None for found in raw.objects)
