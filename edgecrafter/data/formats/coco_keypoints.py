"""Keypoints of a COCO file. K is the number of different names that its categories list, in order of first appearance.

An object has the keypoints of its category; the others of the K are not labelled. Besides COCO's ``keypoints`` and
``skeleton`` a category may have ``flip_pairs`` (pairs of 0-based indices or names) and ``sigmas``. Where no category
lists names, 17 keypoints are those of COCO's person, unless ``flip_pairs`` has others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgecrafter.data import skeleton
from edgecrafter.data.formats import clean, coco_fields
from edgecrafter.data.formats.coco_fields import Record
from edgecrafter.geometry.keypoints import PERSON_EDGES, PERSON_KEYPOINTS, SIGMA
from edgecrafter.types import Skeleton

Names = dict[int, tuple[str, ...]]
"""category id -> names of its keypoints"""

BLOCK = 1 << 14
"""Objects that are read at a time."""


def listed(file: Path, categories: list[Record]) -> Names:
    """Names of the keypoints of each category that lists any; ``ValueError`` if they are no list of different texts."""
    ids = coco_fields.whole(file, "category", categories, "id").tolist()
    found: Names = {}
    for row, (key, record) in enumerate(zip(ids, categories, strict=True)):
        value = record.get("keypoints")
        if not value:
            continue
        texts = isinstance(value, list) and all(isinstance(name, str) for name in value)
        if not texts or len(set(value)) < len(value):
            raise coco_fields.wrong(file, "category", categories, row, "keypoints", "a list of different names")
        found[key] = tuple(value)
    return found


def wanted(file: Path, categories: list[Record], objects: list[Record]) -> Names:
    """As ``listed``; where no category lists keypoints, assumed names for those whose objects have any.

    Raises ``ValueError`` if there are no keypoints at all.
    """
    found = listed(file, categories)
    if found:
        return found
    counts: dict[int, int] = {}
    keys = coco_fields.whole(file, "annotation", objects, "category_id").tolist()
    for key, record in zip(keys, objects, strict=True):
        value = record.get("keypoints")
        if key not in counts and isinstance(value, list) and len(value) >= 3:
            counts[key] = len(value) // 3
    if not counts:
        raise ValueError(
            f"{file}: no keypoints: no category lists any and no object has any. A pose model learns from the file "
            "with keypoints (for instance annotations/person_keypoints_train.json); without one, train a model that "
            "finds boxes (ecdet) or masks (ecinsseg)."
        )
    return _assumed(file, categories, counts)


def select(
    file: Path, categories: list[Record], objects: list[Record], names: Names
) -> tuple[list[Record], list[Record], list[str]]:
    """The categories that have keypoints, their objects, and a note on what is left out."""
    left = [record for record in categories if record["id"] not in names]
    if not left:
        return categories, objects, []
    keys = coco_fields.whole(file, "annotation", objects, "category_id")
    gone = np.isin(keys, [record["id"] for record in left])
    note = f"categories without keypoints, left out: {len(left)} (first: {left[0].get('name')}; {gone.sum()} objects)"
    kept = [record for record, lost in zip(objects, gone.tolist(), strict=True) if not lost]
    return [record for record in categories if record["id"] in names], kept, [note]


def union(names: Names) -> tuple[str, ...]:
    """All keypoints, in order of first appearance."""
    return tuple(dict.fromkeys(name for each in names.values() for name in each))


def owned(categories: list[Record], names: Names, classes: tuple[str, ...]) -> tuple[tuple[int, ...], ...]:
    """Which keypoints of the ``union`` each of the classes has; nothing if all have all.

    A class that the file does not list has all.
    """
    order = union(names)
    every, place = tuple(range(len(order))), {name: index for index, name in enumerate(order)}
    own = {record.get("name"): tuple(sorted(place[name] for name in names[record["id"]])) for record in categories}
    found = tuple(own.get(name, every) for name in classes)
    return found if set(found) != {every} else ()


def points(
    file: Path, objects: list[Record], category: NDArray[np.int64], names: Names
) -> tuple[NDArray[np.float64], list[str]]:
    """x, y and visibility [N, K, 3] of the keypoints of the ``union``, zeros where an object has none; and notes.

    ``category`` [N] are the ids of the objects' categories. Raises ``ValueError``, naming the object, for a wrong
    count of numbers or a visibility other than 0, 1 or 2.
    """
    place = {name: index for index, name in enumerate(union(names))}
    found, counts = np.zeros((len(objects), len(place), 3)), np.full(len(objects), -1)
    for rows, own, table in _tables(file, objects, category, names):
        found[rows[:, None], [place[name] for name in own]] = table
        counts[rows] = (table[..., 2] > 0).sum(axis=1)
    return found, _miscounted(file, objects, counts)


def faults(
    file: Path,
    objects: list[Record],
    category: NDArray[np.int64],
    names: Names,
    sizes: NDArray[np.int32],
    where: Callable[[int], str],
) -> list[str]:
    """Notes and errors of ``points`` and of ``clean.inside``, without the points of the ``union``, which take memory.

    ``sizes`` [N, 2] are those of the objects' pictures.
    """
    counts = np.full(len(objects), -1)
    broken, outside = np.zeros((2, len(objects)), dtype=bool)
    for rows, _, table in _tables(file, objects, category, names):
        counts[rows] = (table[..., 2] > 0).sum(axis=1)
        _, broken[rows], outside[rows] = clean.marked(table, sizes[rows])
    return [*_miscounted(file, objects, counts), *clean.astray(broken, outside, where)]


def form(file: Path, categories: list[Record], names: Names) -> tuple[Skeleton, list[str]]:
    """The skeleton of the ``union``, and a note on edges that name no keypoint.

    A category that states no left-right pairs has those that the names tell. Tolerances go by name, the first counts.
    """
    order = union(names)
    place = {name: index for index, name in enumerate(order)}
    lines: list[tuple[int, int]] = []
    pairs: list[tuple[int, int]] = []
    sigmas: dict[str, float] = {}
    lost = 0
    for record in categories:
        own = names[record["id"]]
        source = _source(file, record)
        found, beyond = skeleton.edges(record.get("skeleton"), own, first=1)
        if not found and not record.get("keypoints") and own == PERSON_KEYPOINTS:
            found = PERSON_EDGES
        lost += beyond
        lines += [(place[own[a]], place[own[b]]) for a, b in found]
        pairs += [(place[own[a]], place[own[b]]) for a, b in _pairs(file, record, own)]
        sigmas = dict(_sigmas(record, own, source)) | sigmas
    tolerances = [sigmas.get(name, SIGMA) for name in order] if sigmas else []
    notes = [f"{file.name}: lines of 'skeleton' that join no two keypoints, left out: {lost}"] if lost else []
    unique = tuple(dict.fromkeys(lines))
    return skeleton.build(order, unique, tuple(dict.fromkeys(map(_sorted, pairs))), tolerances, str(file)), notes


def _assumed(file: Path, categories: list[Record], counts: dict[int, int]) -> Names:
    """Names for keypoints that have none, from how many each category has: COCO's only if they fit all of them."""
    posed = [record for record in categories if record.get("id") in counts]
    names = [skeleton.assumed_names(counts[record["id"]]) for record in posed]
    stated = [_stated_pairs(file, record, own) for record, own in zip(posed, names, strict=True)]
    same = [skeleton.assumed_names(len(own), pairs) == names[0] for own, pairs in zip(names, stated, strict=True)]
    fits = bool(same) and all(same)
    return {key: names[0] if fits else skeleton.default_names(count) for key, count in counts.items()}


def _tables(
    file: Path, objects: list[Record], category: NDArray[np.int64], names: Names
) -> Iterator[tuple[NDArray[np.int64], tuple[str, ...], NDArray[np.float64]]]:
    """Objects [M] of one category that have keypoints, the names of these, and the keypoints [M, k, 3]; all in turn."""
    has = np.array([bool(record.get("keypoints")) for record in objects], dtype=bool)
    for key, own in names.items():
        rows = np.flatnonzero(has & (category == key))
        for start in range(0, len(rows), BLOCK):
            some = rows[start : start + BLOCK]
            yield some, own, _table(file, objects, some.tolist(), len(own))


def _miscounted(file: Path, objects: list[Record], counts: NDArray[np.int64]) -> list[str]:
    """A note on objects that state another number of labelled points than ``counts`` [N]; -1: no points."""
    pairs = enumerate(zip(counts.tolist(), objects, strict=True))
    wrong = [row for row, (count, each) in pairs if count >= 0 and each.get("num_keypoints") not in (None, count)]
    if not wrong:
        return []
    first = coco_fields.name("annotation", objects, wrong[0])
    what = "objects whose num_keypoints is not the count of their labelled points"
    return [f"{what}: {len(wrong)} (first: {file.name}, {first})"]


def _table(file: Path, objects: list[Record], rows: list[int], count: int) -> NDArray[np.float64]:
    """The keypoints of some objects that have ``count`` each, [M, count, 3]."""

    def fault(place: int, text: str) -> ValueError:
        return coco_fields.wrong(file, "annotation", objects, rows[place], "keypoints", text)

    numbers = f"{3 * count} numbers (x, y and visibility of {count} keypoints)"
    values = [objects[row]["keypoints"] for row in rows]
    found = coco_fields.column(values, 3 * count, lambda place: fault(place, numbers)).reshape(-1, count, 3)
    strange = np.flatnonzero(~np.isin(found[..., 2], (0, 1, 2)).all(axis=1))
    if len(strange):
        raise fault(int(strange[0]), "a visibility of 0, 1 or 2 for each keypoint")
    return found


def _pairs(file: Path, record: Record, names: tuple[str, ...]) -> skeleton.Pairs:
    stated = _stated_pairs(file, record, names)
    return skeleton.mirror_pairs(names) if stated is None else stated


def _stated_pairs(file: Path, record: Record, names: tuple[str, ...]) -> skeleton.Pairs | None:
    if record.get("flip_pairs") is None:
        return None
    return skeleton.stated_pairs(record["flip_pairs"], names, f"{_source(file, record)}: flip_pairs")


def _source(file: Path, record: Record) -> str:
    return f"{file}: category {record['id']} '{record.get('name')}'"


def _sigmas(record: Record, names: tuple[str, ...], source: str) -> Iterable[tuple[str, float]]:
    for key in ("sigmas", "keypoint_sigmas"):
        if record.get(key) is not None:
            return zip(names, skeleton.sigmas(record[key], len(names), f"{source}: {key}"), strict=True)
    return ()


def _sorted(pair: tuple[int, int]) -> tuple[int, int]:
    return min(pair), max(pair)
