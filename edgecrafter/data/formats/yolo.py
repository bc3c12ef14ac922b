"""YOLO: a ``data.yaml`` with the class names, pictures in ``images/`` and one text file for each in ``labels/``.

A row is ``class x y width height`` (centre and size in 0..1 of the picture), or ``class x1 y1 x2 y2 x3 y3 ...``, a
polygon whose extent is the box. With ``kpt_shape: [K, D]`` in the yaml rows carry K x D more numbers. A picture without
a text file, or with an empty one, has no objects. A row that occurs twice in a file is taken once.

Format: https://docs.ultralytics.com/datasets/detect/
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgecrafter.data.annotations import Annotations
from edgecrafter.data.formats import classes, clean
from edgecrafter.data.formats.yolo_files import Set, find
from edgecrafter.types import Labels

TOLERANCE = 0.01
"""How far a coordinate may lie beyond 1 by rounding; further out it is no share of the picture."""


def read(root: Path, split: str, labels: Labels | None = None) -> Annotations:
    """Read one split of a folder with a ``data.yaml``, or of that file.

    Raises ``FileNotFoundError`` for missing folders and pictures and ``ValueError``, naming file and line, for whatever
    is not as the format says.
    """
    found = find(root, split)
    sizes = clean.sizes_from_files(found.pictures)
    table, lines, background = _table(found, sizes)
    own = classes.define(found.names, found.ids, str(found.file))
    final, chosen, renamed = classes.align(own, labels, _classes(found, table, lines), str(found.file))
    rows = _rows(table, sizes).of(chosen)
    fresh = _first_of_equals(table)

    def where(row: int) -> str:
        return f"{found.label(int(table[row, 0]))}:{lines[row]}"

    doubled = clean.note("rows that occur twice in their file, taken once", ~fresh, where)
    kept = np.flatnonzero(fresh)
    return clean.store(
        root=found.root,
        labels=final,
        names=[str(path.relative_to(found.root)) for path in found.pictures],
        image_ids=np.arange(1, len(sizes) + 1, dtype=np.int64),
        sizes=sizes,
        rows=rows.take(kept),
        notes=[*found.notes, *renamed, *background, *doubled],
        where=lambda row: where(int(kept[row])),
    )


def _table(found: Set, sizes: NDArray[np.int32]) -> tuple[NDArray[np.float64], list[int], list[str]]:
    """Rows of all files as [N, 6] picture, class, x, y, width, height; their line numbers; notes on background.

    Pictures that cannot be read have no size and so no rows.
    """
    rows: list[tuple[float, ...]] = []
    lines: list[int] = []
    absent = 0
    for index in range(len(found.pictures)):
        label = found.label(index)
        if not label.is_file():
            absent += 1
        elif sizes[index].all():
            for line, row in _parse(label, found.extra):
                rows.append((index, *row))
                lines.append(line)
    if absent == len(found.pictures):
        raise ValueError(
            f"{found.file}: none of the {absent} pictures has a label file; the first should be {found.label(0)}. "
            "For pictures without objects write empty files."
        )
    notes = [f"pictures without a label file, taken as background: {absent}"] if absent else []
    return np.array(rows, dtype=np.float64).reshape(-1, 6), lines, notes


def _parse(label: Path, extra: int) -> list[tuple[int, tuple[float, ...]]]:
    """Line numbers and rows (class, x, y, width, height) of a text file."""
    try:
        text = label.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{label}: not a text file in UTF-8; expected rows 'class x y width height'") from None
    return [
        (number, _row(parts, extra, f"{label}:{number}"))
        for number, line in enumerate(text.splitlines(), start=1)
        if (parts := line.split())
    ]


def _row(parts: list[str], extra: int, place: str) -> tuple[float, ...]:
    """One row as class, x, y, width, height."""
    try:
        values = [float(part) for part in parts]
    except ValueError:
        raise ValueError(
            f"{place}: expected numbers, got '{' '.join(parts)[:80]}'; classes are given by index"
        ) from None
    if not all(np.isfinite(values)):
        raise ValueError(f"{place}: a number is not finite: '{' '.join(parts)[:80]}'")
    largest = max(values[1:5] if extra else values[1:], default=0)
    if largest > 1 + TOLERANCE:
        raise ValueError(
            f"{place}: {largest:g} is above 1; expected centre and size as shares of the picture's width and "
            "height, not pixels"
        )
    if len(values) == 5 + extra:
        return tuple(values[:5])
    if not extra and len(values) >= 7 and len(values) % 2:
        return (values[0], *_extent(values[1::2], values[2::2]))
    raise ValueError(
        f"{place}: expected {5 + extra} numbers (class x y width height{', keypoints' if extra else ''}) "
        f"{'' if extra else 'or a polygon (class x1 y1 x2 y2 x3 y3 ...)'}, got {len(values)}. "
        "Keypoint files need kpt_shape in the yaml; a confidence column must go."
    )


def _extent(xs: list[float], ys: list[float]) -> tuple[float, float, float, float]:
    """The box around a polygon as centre and size."""
    return (min(xs) + max(xs)) / 2, (min(ys) + max(ys)) / 2, max(xs) - min(xs), max(ys) - min(ys)


def _classes(found: Set, table: NDArray[np.float64], lines: list[int]) -> NDArray[np.int64]:
    """The class index of each row; ``ValueError`` that names file and line for one that the yaml does not list."""
    known = np.asarray(found.ids, dtype=np.float64)
    place = np.searchsorted(known, table[:, 1]).clip(max=len(known) - 1)
    strange = np.flatnonzero(known[place] != table[:, 1])
    if len(strange):
        row = int(strange[0])
        raise ValueError(
            f"{found.label(int(table[row, 0]))}:{lines[row]}: class {table[row, 1]:g} is not one of the "
            f"{len(known)} classes of {found.file} ({found.ids[0]}..{found.ids[-1]}); {len(strange)} such rows"
        )
    return np.asarray(place, dtype=np.int64)


def _rows(table: NDArray[np.float64], sizes: NDArray[np.int32]) -> clean.Rows:
    """Rows in pixels, with class 0 for all."""
    image = table[:, 0].astype(np.int64)
    scale = sizes[image][:, ::-1].astype(np.float64)
    centre, half = table[:, 2:4] * scale, table[:, 4:6] * scale / 2
    count = len(table)
    return clean.Rows(
        image=image,
        boxes=np.concatenate([centre - half, centre + half], axis=1),
        classes=np.zeros(count, dtype=np.int64),
        ids=np.arange(1, count + 1, dtype=np.int64),
        areas=np.full(count, np.nan),
        crowd=np.zeros(count, dtype=bool),
    )


def _first_of_equals(table: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which rows of [N, 6] are the first of their kind, [N]."""
    fresh = np.zeros(len(table), dtype=bool)
    fresh[np.unique(table, axis=0, return_index=True)[1]] = True
    return fresh
