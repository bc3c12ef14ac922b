"""Keypoints of a YOLO data set: what the ``data.yaml`` says of them, and their places from the rows.

``kpt_shape: [K, 2 or 3]`` must be there. ``flip_idx``, ``kpt_names`` (a list, or one for each class), ``skeleton``
(pairs of 0-based indices or names) and ``kpt_sigmas`` (or ``sigmas``) may be. 17 keypoints without names are those of
COCO's person, unless ``flip_idx`` has other pairs.

Format: https://docs.ultralytics.com/datasets/pose/
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgecrafter.data import skeleton
from edgecrafter.data.formats.yolo_files import Set
from edgecrafter.data.formats.yolo_rows import Table
from edgecrafter.geometry.keypoints import PERSON_EDGES, PERSON_KEYPOINTS
from edgecrafter.types import Skeleton

_FAR = 2.0
"""A keypoint with a larger coordinate was surely written in pixels; smaller ones may just lie outside."""


def form(found: Set) -> tuple[Skeleton, list[str]]:
    """The skeleton that the yaml describes, and notes. ``ValueError`` for parts that do not fit ``kpt_shape``."""
    if found.keypoints is None:
        raise ValueError(
            f"{found.file}: no kpt_shape, so there are no keypoints. For rows with keypoints write, for instance, "
            "'kpt_shape: [17, 3]'; without them train a model that finds boxes (ecdet) or masks (ecinsseg)."
        )
    data, (count, _), source = found.data, found.keypoints, str(found.file)
    swap = data.get("flip_idx")
    stated_pairs = None if swap is None else skeleton.flip_index(swap, count, source)
    names, notes = _names(data.get("kpt_names"), skeleton.assumed_names(count, stated_pairs), source)
    lines, lost = skeleton.edges(data.get("skeleton"), names, first=0)
    if lost:
        notes.append(f"{found.file.name}: lines of 'skeleton' that join no two keypoints, left out: {lost}")
    if not lines and not named(found) and names == PERSON_KEYPOINTS:
        lines = PERSON_EDGES
    pairs = skeleton.mirror_pairs(names) if stated_pairs is None else stated_pairs
    stated = next((key for key in ("kpt_sigmas", "sigmas") if data.get(key) is not None), "")
    sigmas = skeleton.sigmas(data[stated], count, f"{source}: {stated}") if stated else ()
    return skeleton.build(names, lines, pairs, sigmas, source), notes


def named(found: Set) -> bool:
    """Whether the yaml names the keypoints."""
    return found.data.get("kpt_names") is not None


def points(
    table: Table, shape: tuple[int, int], sizes: NDArray[np.int32], where: Callable[[int], str]
) -> NDArray[np.float64]:
    """x, y in pixels and visibility of the keypoints of each row, [N, K, 3]; ``sizes`` [N, 2] of the rows' pictures.

    Where the rows have two numbers for a keypoint it is visible unless both are 0.
    """
    count, width = shape
    given = np.array(table.tails, dtype=np.float64).reshape(-1, count, width)
    places = given[..., :2]
    seen = given[..., 2] if width == 3 else 2.0 * np.any(places != 0, axis=-1)
    _check(~np.isin(seen, (0, 1, 2)), "a keypoint's visibility is not 0, 1 or 2", where)
    _check(
        (seen > 0) & np.any(np.abs(places) > _FAR, axis=-1),
        f"a keypoint's coordinate is above {_FAR:g}; expected shares of the picture's width and height, not pixels",
        where,
    )
    return np.concatenate([places * sizes[:, None, ::-1], seen[..., None]], axis=-1)


def _names(value: Any, assumed: tuple[str, ...], source: str) -> tuple[tuple[str, ...], list[str]]:
    """Names of the keypoints; those of the first class where each class has its own, with a note if they differ."""
    count = len(assumed)
    if value is None:
        return assumed, []
    lists = list(value.values()) if isinstance(value, dict) else [value]
    for names in lists or [None]:
        whole = isinstance(names, list) and all(isinstance(name, str) for name in names)
        if not whole or len(set(names)) != count or len(names) != count:
            raise ValueError(f"{source}: kpt_names must list {count} different names (kpt_shape), got {names!r}")
    differ = any(names != lists[0] for names in lists)
    return tuple(lists[0]), ["kpt_names differ between classes: those of the first are used"] if differ else []


def _check(wrong: NDArray[np.bool_], what: str, where: Callable[[int], str]) -> None:
    rows = np.flatnonzero(wrong.any(axis=1))
    if len(rows):
        raise ValueError(f"{where(int(rows[0]))}: {what} ({len(rows)} such rows)")
