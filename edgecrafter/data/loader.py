"""Batches for training and evaluation, over any number of worker processes and ranks.

What is in a batch depends on the seed, the epoch and the number of the batch only: not on the workers, nor on where a
training was resumed. The ranks' batches of a step are together the batch of a single process of their joint size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from edgecrafter.data import placement
from edgecrafter.data.annotations import Annotations
from edgecrafter.data.dataset import Dataset, Draw, Key, RawBatch, generator
from edgecrafter.data.objects import Objects
from edgecrafter.data.transforms import Augment
from edgecrafter.data.unlabelled import Paths
from edgecrafter.data.views import Strength, Views
from edgecrafter.geometry.sides import STRETCH
from edgecrafter.types import Batch, Target


class TrainOrder:
    """The batches of one rank in an epoch: a shuffled order of all pictures, cut into steps, dealt out to the ranks."""

    def __init__(
        self,
        count: int,
        batch: int,
        augment_of: Callable[[int], Augment],
        seed: int,
        rank: int = 0,
        world: int = 1,
        shuffle: bool = True,
        drop_last: bool = True,
    ) -> None:
        self.count, self.batch, self.rank, self.world = count, batch, rank, world
        self.augment_of, self.seed, self.shuffle = augment_of, seed, shuffle
        self.epoch = 0
        together = batch * world
        # a data set smaller than one batch is trained on, too
        self.steps = count // together if drop_last and count >= together else -(-count // together)

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[Key]:
        epoch, augment = self.epoch, self.augment_of(self.epoch)
        order = np.arange(self.count)
        if self.shuffle:
            order = generator(Draw.ORDER, self.seed, epoch).permutation(self.count)
        together = self.batch * self.world
        for step in range(self.steps):
            chosen = order[step * together : (step + 1) * together]
            # a last, smaller batch is filled up from the start of the order until every rank has the same share
            missing = -len(chosen) % self.world
            chosen = np.concatenate([chosen, np.resize(order, missing)])
            yield Key(epoch, step, tuple(chosen[self.rank :: self.world].tolist()), augment)


class PlainOrder:
    """Every picture once, in order, dealt out to the ranks; the last batch may be smaller, a rank may have no batch."""

    def __init__(self, count: int, batch: int, rank: int = 0, world: int = 1) -> None:
        self.indices, self.batch = range(rank, count, world), batch
        self.epoch = 0

    def __len__(self) -> int:
        return -(-len(self.indices) // self.batch)

    def __iter__(self) -> Iterator[Key]:
        for step in range(len(self)):
            chosen = self.indices[step * self.batch : (step + 1) * self.batch]
            yield Key(0, step, tuple(chosen), Augment.NONE)


class Loader:
    """Iterates over the batches of an epoch, see ``batches`` and ``plain``.

    Workers stay alive between epochs if ``persistent``. They run one thread each and keep nothing; a batch comes back
    as one shared tensor, or two, so that few file descriptors are open at any time.
    """

    def __init__(
        self,
        dataset: torch.utils.data.Dataset[Any],
        order: TrainOrder | PlainOrder,
        unpack: Callable[[Any], Batch],
        workers: int,
        pin: bool,
        persistent: bool,
    ) -> None:
        """``unpack`` makes a batch of what ``dataset`` gives for a key, in the process that uses it."""
        self.dataset, self.order, self.unpack = dataset, order, unpack
        self.batches: DataLoader[Any] = DataLoader(
            dataset,
            batch_size=None,  # a key of the order is a whole batch
            sampler=order,
            num_workers=workers,
            collate_fn=_as_it_is,
            pin_memory=pin,
            worker_init_fn=_one_thread,
            persistent_workers=persistent and workers > 0,
            generator=torch.Generator(),  # its own: the global random state stays untouched
        )

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch (from 0) that the next iteration goes through; it decides the order and the augmentation."""
        self.order.epoch = epoch

    def __len__(self) -> int:
        """Batches per epoch of this rank."""
        return len(self.order)

    def __iter__(self) -> Iterator[Batch]:
        for raw in self.batches:
            yield self.unpack(raw)


def batches(
    annotations: Annotations,
    size: tuple[int, int],
    batch: int,
    *,
    augment_of: Callable[[int], Augment],
    seed: int = 0,
    workers: int = 0,
    rank: int = 0,
    world: int = 1,
    shuffle: bool = True,
    drop_last: bool = True,
    pin: bool = False,
    resize: str = STRETCH,
) -> Loader:
    """Training batches: images uint8 [batch, 3, h, w] of ``size`` (h, w), and their targets; with ``resize`` keep
    images of their own size, padded to the largest of the batch, and ``size`` is their limit (``InputSpec``).

    ``augment_of`` says how strong the augmentation of an epoch is; ``batch`` is the size per rank. A data set smaller
    than ``batch * world`` makes one smaller batch per epoch. ValueError: no pictures, a number out of range, or masks
    for pictures that keep their ratio.
    """
    _check(annotations, size, batch, seed, rank, world)
    order = TrainOrder(len(annotations), batch, augment_of, seed, rank, world, shuffle, drop_last)
    dataset = Dataset(annotations, size, seed, resize)
    return Loader(dataset, order, partial(to_batch, dataset), workers, pin, persistent=True)


def plain(
    annotations: Annotations,
    size: tuple[int, int],
    batch: int,
    workers: int = 0,
    rank: int = 0,
    world: int = 1,
    pin: bool = False,
    resize: str = STRETCH,
) -> Loader:
    """Batches for evaluation: every picture once over all ranks, in order, only resized; ``size`` and ``resize`` as in
    ``batches``.

    The last batch may be smaller. ValueError as ``batches``.
    """
    _check(annotations, size, batch, 0, rank, world)
    order = PlainOrder(len(annotations), batch, rank, world)
    dataset = Dataset(annotations, size, resize=resize)
    return Loader(dataset, order, partial(to_batch, dataset), workers, pin, persistent=False)


def views(
    paths: Paths,
    size: tuple[int, int],
    batch: int,
    *,
    seed: int = 0,
    strength: Strength | None = None,
    workers: int = 0,
    rank: int = 0,
    world: int = 1,
    pin: bool = False,
) -> Loader:
    """Batches of views of pictures without labels: random ones, shuffled, or with ``strength`` None the middle of each
    picture once, in order. ``loader.dataset.unreadable`` lists the pictures that could not be read so far."""
    dataset = Views(paths, size, seed, strength)
    order: TrainOrder | PlainOrder = PlainOrder(len(paths), batch, rank, world)
    if strength is not None:
        order = TrainOrder(len(paths), batch, lambda _epoch: Augment.NONE, seed, rank, world)
    return Loader(dataset, order, dataset.batch, workers, pin, persistent=strength is not None)


def to_batch(dataset: Dataset, raw: RawBatch) -> Batch:
    """A batch of a data set in the form that a step takes."""
    rows = zip(with_masks(raw), raw.indices, raw.sizes.tolist(), strict=True)
    targets = [to_target(found, dataset, index, (h, w)) for found, index, (h, w) in rows]
    return Batch(raw.images, targets, placement.valid(raw.sizes))


def with_masks(raw: RawBatch) -> list[Objects]:
    """The objects of every picture of a batch, with their share of its masks, still packed."""
    if raw.masks is None:
        return raw.objects
    ends = np.cumsum([len(found) for found in raw.objects])[:-1]
    shares = np.split(raw.masks.numpy(), ends)
    return [replace(found, masks=share) for found, share in zip(raw.objects, shares, strict=True)]


def to_target(objects: Objects, dataset: Dataset, index: int, size: tuple[int, int]) -> Target:
    """The truth of a sample of ``size`` (h, w) as the losses want it; of a mosaic or MixUp, id and path are those of
    its own picture."""
    h, w = size
    corners = objects.boxes.astype(np.float64) / (w, h, w, h)
    low, high = corners[:, :2], corners[:, 2:]
    boxes = np.concatenate([(low + high) / 2, high - low], axis=1).astype(np.float32)
    points, areas = objects.keypoints, objects.areas
    return Target(
        labels=torch.from_numpy(objects.labels),
        boxes=torch.from_numpy(boxes),
        masks=None if objects.masks is None else torch.from_numpy(objects.masks),
        keypoints=None if points is None else torch.from_numpy(points / np.array((w, h, 1), np.float32)),
        area=None if areas is None else torch.from_numpy(areas / np.float32(h * w)),
        image_id=int(dataset.annotations.image_ids[index]),
        size=dataset.picture_size(index),
        path=str(dataset.annotations.path(index)),
    )


def _check(annotations: Annotations, size: tuple[int, int], batch: int, seed: int, rank: int, world: int) -> None:
    if len(annotations) == 0:
        raise ValueError(f"{annotations.root}: no pictures to load. Check the path and the split.")
    if batch < 1:
        raise ValueError(f"batch={batch}: expected at least 1 picture per batch")
    if min(size) < 2:
        raise ValueError(f"size={size}: expected height and width of at least 2 pixels")
    if seed < 0:
        raise ValueError(f"seed={seed}: expected a number of 0 or more")
    if not 0 <= rank < world:
        raise ValueError(f"rank={rank} of world={world}: expected 0 <= rank < world")


def _as_it_is(batch: Any) -> Any:
    return batch


def _one_thread(_worker: int) -> None:
    torch.set_num_threads(1)  # the workers are the parallelism
