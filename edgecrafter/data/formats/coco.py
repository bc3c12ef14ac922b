"""COCO JSON: plain (``annotations/instances_train.json``, ``images/``), the 2017 tree, Roboflow's export, or one file.

Which categories are classes: all that the training file lists, in the order of their ids, whether they have objects or
not; except a category 0 without objects that is the ``supercategory`` of all others (Roboflow's name for the project).
Other splits follow the training split by name (``classes.align``).

Format: https://cocodataset.org/#format-data
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgecrafter.data import skeleton
from edgecrafter.data.annotations import Annotations
from edgecrafter.data.formats import classes, clean, clean_masks, coco_fields, coco_keypoints, coco_masks
from edgecrafter.data.formats.coco_fields import Record
from edgecrafter.data.formats.coco_files import find, picture_folder
from edgecrafter.types import Labels


def read(
    root: Path, split: str, labels: Labels | None = None, truth: str = "", images: Path | None = None
) -> Annotations:
    """Read one split of a COCO folder, or a JSON file. ``images``: the folder of the pictures, if it cannot be guessed.

    ``truth`` is what is wanted besides boxes: ``"masks"``, ``"keypoints"`` or nothing.
    Raises ``FileNotFoundError`` for a missing split or folder and ``ValueError``, naming file and record, for whatever
    is not as the format says. Annotation ids that occur twice are numbered anew, with a note.
    """
    file, notes = find(root, split, truth)
    data = coco_fields.load(file)
    pictures, objects, categories = data["images"], data["annotations"], data["categories"]
    if not pictures:
        raise ValueError(f"{file}: 'images' is empty: there is nothing to learn or to evaluate")
    names = [name.replace("\\", "/") for name in coco_fields.texts(file, "image", pictures, "file_name")]
    folder = images or picture_folder(file, split, names)
    image_ids = coco_fields.whole(file, "image", pictures, "id")
    _unique(file, "image", image_ids)
    if truth == "keypoints":
        posed = coco_keypoints.wanted(file, categories, objects)
        categories, objects, left = coco_keypoints.select(file, categories, objects, posed)
        notes = [*notes, *left]
    own, dropped = _labels(file, categories, objects)
    rows, renumbered = _rows(file, objects, image_ids, own)
    final, chosen, renamed = classes.align(own, labels, rows.classes, str(file))
    sizes = _sizes(file, folder, pictures, names)
    source = _Source(file, categories, objects, np.asarray(own.ids, dtype=np.int64)[rows.classes])
    final, rows, found = ADD[truth](source, final, rows.of(chosen), sizes[rows.image])
    return clean.store(
        root=folder,
        labels=final,
        names=names,
        image_ids=image_ids,
        sizes=sizes,
        rows=rows,
        notes=[*notes, *dropped, *renamed, *renumbered, *found],
        where=_where(file, rows),
    )


@dataclass(frozen=True)
class _Source:
    """What masks and keypoints are read from."""

    file: Path
    categories: list[Record]
    objects: list[Record]
    category: NDArray[np.int64]
    """[N] id of each object's category"""


def _plain(
    source: _Source, labels: Labels, rows: clean.Rows, sizes: NDArray[np.int32]
) -> tuple[Labels, clean.Rows, list[str]]:
    """Boxes only; the rest is checked all the same: what is broken is better known early."""
    where = _where(source.file, rows)
    what = "polygons of fewer than three points or of an odd count of numbers (the boxes are used)"
    notes = clean.note(what, coco_masks.undrawable(source.objects), where)
    names = coco_keypoints.listed(source.file, source.categories)
    if names:
        notes += coco_keypoints.faults(source.file, source.objects, source.category, names, sizes, where)
    return labels, rows, notes


def _with_masks(
    source: _Source, labels: Labels, rows: clean.Rows, sizes: NDArray[np.int32]
) -> tuple[Labels, clean.Rows, list[str]]:
    where = _where(source.file, rows)
    drawn, broken = coco_masks.read(source.objects, sizes, clean_masks.known_sizes(sizes))
    if len(rows.ids) and (rows.crowd | (drawn.faults == clean_masks.MISSING)).all() and not rows.crowd.all():
        raise ValueError(
            f"{source.file}: none of the {len(rows.ids)} objects has a mask ('segmentation' is absent or empty): "
            "nothing to learn masks from. Take the file with masks, or train a model that finds boxes (ecdet)."
        )
    what = "objects with polygons of fewer than three points, of an odd count of numbers or of other than numbers"
    notes = clean.note(f"{what}; these polygons are left out", broken, where)
    rows, found = clean_masks.attach(rows, drawn, sizes, where)
    return labels, rows, notes + found


def _with_keypoints(
    source: _Source, labels: Labels, rows: clean.Rows, sizes: NDArray[np.int32]
) -> tuple[Labels, clean.Rows, list[str]]:
    names = coco_keypoints.wanted(source.file, source.categories, source.objects)
    points, miscounted = coco_keypoints.points(source.file, source.objects, source.category, names)
    own, lost = coco_keypoints.form(source.file, source.categories, names)
    named = bool(coco_keypoints.listed(source.file, source.categories))
    final, points, followed = skeleton.follow(own, labels.skeleton, points, str(source.file), named)
    notes = [*miscounted, *lost, *followed]
    known = labels.skeleton is not None
    owned = labels.keypoints if known else coco_keypoints.owned(source.categories, names, labels.names)
    return replace(labels, skeleton=final, keypoints=owned), replace(rows, keypoints=points), notes


ADD = {"": _plain, "masks": _with_masks, "keypoints": _with_keypoints}
"""What each kind of truth adds to boxes: labels, rows and notes from those of the boxes."""


def _where(file: Path, rows: clean.Rows) -> Callable[[int], str]:
    return lambda row: f"{file.name}, annotation id {rows.ids[row]}"


def _labels(file: Path, categories: list[Record], objects: list[Record]) -> tuple[Labels, list[str]]:
    """Classes in the order of their ids, without the parent of all others if it has no objects."""
    ids = coco_fields.whole(file, "category", categories, "id")
    names = coco_fields.texts(file, "category", categories, "name")
    order = np.argsort(ids, kind="stable").tolist()
    first, *others = order or [-1]
    notes = []
    parent = bool(others) and all(categories[place].get("supercategory") == names[first] for place in others)
    if parent and ids[first] == 0 and not any(record.get("category_id") == 0 for record in objects):
        notes = [f"category 0 '{names[first]}' is the parent of all others and has no objects: it is no class"]
        order = others
    return classes.define([names[place] for place in order], [int(ids[place]) for place in order], str(file)), notes


def _rows(
    file: Path, objects: list[Record], image_ids: NDArray[np.int64], labels: Labels
) -> tuple[clean.Rows, list[str]]:
    """The objects as columns, and notes."""
    ids, notes = _annotation_ids(file, objects)
    boxes = coco_fields.rows(file, "annotation", objects, "bbox", 4, "four numbers [x, y, width, height]")
    boxes[:, 2:] += boxes[:, :2]
    rows = clean.Rows(
        image=_look_up(file, objects, "image_id", image_ids, "images"),
        boxes=boxes,
        classes=_look_up(file, objects, "category_id", np.asarray(labels.ids, dtype=np.int64), "categories"),
        ids=ids,
        areas=coco_fields.optional(file, "annotation", objects, "area", np.nan),
        crowd=coco_fields.optional(file, "annotation", objects, "iscrowd", 0) > 0,
    )
    return rows, notes


def _sizes(file: Path, folder: Path, pictures: list[Record], names: list[str]) -> NDArray[np.int32]:
    """Height and width of each picture, [I, 2]; from the picture itself where the JSON does not say."""
    sides = [coco_fields.optional(file, "image", pictures, key, np.nan) for key in ("height", "width")]
    sizes = np.stack(sides, axis=1)
    unsized = np.any(np.isnan(sizes), axis=1)
    strange = np.flatnonzero(~unsized & np.any((sizes < 1) | (sizes != np.floor(sizes)) | (sizes > 2**31 - 1), axis=1))
    if len(strange):
        height, width = sizes[strange[0]]
        record = coco_fields.name("image", pictures, int(strange[0]))
        raise ValueError(f"{file}: {record}: height {height:g} and width {width:g} must be whole numbers above 0")
    result = np.where(unsized[:, None], 0, sizes).astype(np.int32)
    if unsized.any():
        result[unsized] = clean.sizes_from_files([folder / names[place] for place in np.flatnonzero(unsized)])
    return result


def _annotation_ids(file: Path, objects: list[Record]) -> tuple[NDArray[np.int64], list[str]]:
    """Ids of the objects; 1..N with a note where one is absent or occurs twice."""
    fresh = np.arange(1, len(objects) + 1, dtype=np.int64)
    lacking = sum(record.get("id") is None for record in objects)
    if lacking:
        return fresh, [f"annotations without id: {lacking}; all were numbered anew"]
    ids = coco_fields.whole(file, "annotation", objects, "id")
    values, counts = np.unique(ids, return_counts=True)
    twice = values[counts > 1]
    if not len(twice):
        return ids, []
    found = f"{len(twice)} (first: {twice[0]} in {file.name})"
    return fresh, [f"annotation ids that occur more than once: {found}; all were numbered anew"]


def _unique(file: Path, what: str, ids: NDArray[np.int64]) -> None:
    values, counts = np.unique(ids, return_counts=True)
    if len(values) < len(ids):
        twice = values[counts > 1]
        raise ValueError(
            f"{file}: {what} id {twice[0]} occurs more than once ({len(twice)} such ids); each {what} needs its own"
        )


def _look_up(file: Path, objects: list[Record], key: str, known: NDArray[np.int64], where: str) -> NDArray[np.int64]:
    """The place among the known ids of the id that each object has under ``key``, [N]."""
    wanted = coco_fields.whole(file, "annotation", objects, key)
    order = np.argsort(known, kind="stable")
    found = order[np.searchsorted(known[order], wanted).clip(max=len(known) - 1)]
    strange = np.flatnonzero(known[found] != wanted)
    if len(strange):
        row = int(strange[0])
        raise ValueError(
            f"{file}: {coco_fields.name('annotation', objects, row)}: {key} {wanted[row]} is not listed in '{where}' "
            f"({len(strange)} such annotations). Add it there or remove the annotations."
        )
    return np.asarray(found, dtype=np.int64)
