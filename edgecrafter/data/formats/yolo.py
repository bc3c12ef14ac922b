"""YOLO: a ``data.yaml`` with the class names, pictures in ``images/`` and one text file for each in ``labels/``.

A row is ``class x y width height`` (centre and size in 0..1 of the picture), or ``class x1 y1 x2 y2 x3 y3 ...``, a
polygon whose extent is the box. With ``kpt_shape: [K, D]`` in the yaml rows are boxes with K x D more numbers. A
picture without a text file, or with an empty one, has no objects. A row that occurs twice in a file is taken once.

Format: https://docs.ultralytics.com/datasets/detect/
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgecrafter.data import skeleton
from edgecrafter.data.annotations import Annotations
from edgecrafter.data.formats import classes, clean, clean_masks, yolo_keypoints, yolo_rows
from edgecrafter.data.formats.yolo_files import Set, find
from edgecrafter.data.formats.yolo_rows import Table
from edgecrafter.types import Labels


def read(root: Path, split: str, labels: Labels | None = None, truth: str = "") -> Annotations:
    """Read one split of a folder with a ``data.yaml``, or of that file.

    ``truth`` is what is wanted besides boxes: ``"masks"``, ``"keypoints"`` or nothing.
    Raises ``FileNotFoundError`` for missing folders and pictures and ``ValueError``, naming file and line, for whatever
    is not as the format says.
    """
    found = find(root, split)
    sizes = clean.sizes_from_files(found.pictures)
    table = yolo_rows.read(found, sizes, tails=bool(truth))
    own = classes.define(found.names, found.ids, str(found.file))
    final, chosen, renamed = classes.align(own, labels, _classes(found, table), str(found.file))
    doubled = clean.note("rows that occur twice in their file, taken once", ~table.fresh, _where(found, table))
    rows = _rows(table, sizes).of(chosen)
    final, rows, added = ADD[truth](found, table, final, rows, sizes[rows.image])
    rows = rows.take(table.fresh[rows.ids - 1])
    return clean.store(
        root=found.root,
        labels=final,
        names=[str(path.relative_to(found.root)) for path in found.pictures],
        image_ids=np.arange(1, len(sizes) + 1, dtype=np.int64),
        sizes=sizes,
        rows=rows,
        notes=[*found.notes, *renamed, *table.notes, *doubled, *added],
        where=lambda row: _where(found, table)(int(rows.ids[row]) - 1),
    )


def _with_masks(
    found: Set, table: Table, labels: Labels, rows: clean.Rows, sizes: NDArray[np.int32]
) -> tuple[Labels, clean.Rows, list[str]]:
    boxed = np.array([found.extra > 0 or not len(tail) for tail in table.tails], dtype=bool)
    if len(boxed) and boxed.all():
        raise ValueError(
            f"{found.file}: none of the {len(boxed)} rows is a polygon (class x1 y1 x2 y2 x3 y3 ...): nothing to learn "
            "masks from. Take the labels with polygons, or train a model that finds boxes (ecdet)."
        )
    where = _where(found, table)
    notes = clean.note("box rows taken as rectangles", boxed, where)
    rings = clean_masks.rectangles(rows.boxes)
    scale = sizes[:, ::-1].astype(np.float64)
    parts = [rings[row] if boxed[row] else tail.reshape(-1, 2) * scale[row] for row, tail in enumerate(table.tails)]
    drawn = clean_masks.Drawn(
        points=np.concatenate([np.zeros((0, 2)), *parts]),
        counts=np.array([len(part) for part in parts], dtype=np.int64),
        owners=np.arange(len(parts)),
        codes={},
        faults=np.zeros(len(parts), dtype=np.int8),
    )
    rows, more = clean_masks.attach(rows, drawn, sizes, where)
    return labels, rows, notes + more


def _with_keypoints(
    found: Set, table: Table, labels: Labels, rows: clean.Rows, sizes: NDArray[np.int32]
) -> tuple[Labels, clean.Rows, list[str]]:
    own, notes = yolo_keypoints.form(found)
    assert found.keypoints is not None, "the skeleton was built from it"
    points = yolo_keypoints.points(table, found.keypoints, sizes, _where(found, table))
    named = yolo_keypoints.named(found)
    final, points, followed = skeleton.follow(own, labels.skeleton, points, str(found.file), named)
    return replace(labels, skeleton=final), replace(rows, keypoints=points), notes + followed


def _plain(
    found: Set, table: Table, labels: Labels, rows: clean.Rows, sizes: NDArray[np.int32]
) -> tuple[Labels, clean.Rows, list[str]]:
    return labels, rows, []


ADD = {"": _plain, "masks": _with_masks, "keypoints": _with_keypoints}
"""What each kind of truth adds to boxes: labels, rows and notes from those of the boxes."""


def _where(found: Set, table: Table) -> Callable[[int], str]:
    return lambda row: f"{found.label(int(table.numbers[row, 0]))}:{table.lines[row]}"


def _classes(found: Set, table: Table) -> NDArray[np.int64]:
    """The class index of each row; ``ValueError`` that names file and line for one that the yaml does not list."""
    known = np.asarray(found.ids, dtype=np.float64)
    given = table.numbers[:, 1]
    place = np.searchsorted(known, given).clip(max=len(known) - 1)
    strange = np.flatnonzero(known[place] != given)
    if len(strange):
        row = int(strange[0])
        raise ValueError(
            f"{_where(found, table)(row)}: class {given[row]:g} is not one of the "
            f"{len(known)} classes of {found.file} ({found.ids[0]}..{found.ids[-1]}); {len(strange)} such rows"
        )
    return np.asarray(place, dtype=np.int64)


def _rows(table: Table, sizes: NDArray[np.int32]) -> clean.Rows:
    """Rows in pixels, with class 0 for all; their ids count from 1."""
    numbers = table.numbers
    image = numbers[:, 0].astype(np.int64)
    scale = sizes[image][:, ::-1].astype(np.float64)
    centre, half = numbers[:, 2:4] * scale, numbers[:, 4:6] * scale / 2
    count = len(numbers)
    return clean.Rows(
        image=image,
        boxes=np.concatenate([centre - half, centre + half], axis=1),
        classes=np.zeros(count, dtype=np.int64),
        ids=np.arange(1, count + 1, dtype=np.int64),
        areas=np.full(count, np.nan),
        crowd=np.zeros(count, dtype=bool),
    )
