"""The rows of YOLO's text files: what each says, and what is wrong with it."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgecrafter.data.formats.yolo_files import Set

TOLERANCE = 0.01
"""How far a coordinate may lie beyond 1 by rounding; further out it is no share of the picture."""

Row = tuple[tuple[float, ...], tuple[float, ...]]
"""class, x, y, width, height; and the numbers of the polygon or of the keypoints"""


@dataclass(frozen=True, eq=False)
class Table:
    """The N rows of all files."""

    numbers: NDArray[np.float64]
    """[N, 6] picture, class, x, y, width, height; shares of the picture"""
    lines: list[int]
    """[N] from 1"""
    fresh: NDArray[np.bool_]
    """[N] not a row that stood in the same file before"""
    tails: list[NDArray[np.float64]]
    """[N] the numbers of a polygon or of keypoints, none for a plain box; an empty list where nobody asked"""
    notes: list[str]


def read(found: Set, sizes: NDArray[np.int32], tails: bool) -> Table:
    """All rows; pictures that cannot be read have no size and so no rows. ``tails``: whether polygons are kept."""
    rows: list[tuple[float, ...]] = []
    rests: list[NDArray[np.float64]] = []
    lines: list[int] = []
    fresh: list[bool] = []
    absent = 0
    for index in range(len(found.pictures)):
        label = found.label(index)
        if not label.is_file():
            absent += 1
        elif sizes[index].all():
            seen: set[Row] = set()
            for line, row in _parse(label, found.extra):
                rows.append((index, *row[0]))
                lines.append(line)
                fresh.append(row not in seen)
                seen.add(row)
                if tails:
                    rests.append(np.array(row[1]))
    if absent == len(found.pictures):
        raise ValueError(
            f"{found.file}: none of the {absent} pictures has a label file; the first should be {found.label(0)}. "
            "For pictures without objects write empty files."
        )
    notes = [f"pictures without a label file, taken as background: {absent}"] if absent else []
    return Table(np.array(rows, dtype=np.float64).reshape(-1, 6), lines, np.array(fresh, dtype=bool), rests, notes)


def _parse(label: Path, extra: int) -> list[tuple[int, Row]]:
    """Line numbers and rows of a text file."""
    try:
        text = label.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{label}: not a text file in UTF-8; expected rows 'class x y width height'") from None
    return [
        (number, _row(parts, extra, f"{label}:{number}"))
        for number, line in enumerate(text.splitlines(), start=1)
        if (parts := line.split())
    ]


def _row(parts: list[str], extra: int, place: str) -> Row:
    try:
        values = tuple(float(part) for part in parts)
    except ValueError:
        raise ValueError(
            f"{place}: expected numbers, got '{' '.join(parts)[:80]}'; classes are given by index"
        ) from None
    if not all(map(isfinite, values)):
        raise ValueError(f"{place}: a number is not finite: '{' '.join(parts)[:80]}'")
    largest = max(values[1:5] if extra else values[1:], default=0)
    if largest > 1 + TOLERANCE:
        raise ValueError(
            f"{place}: {largest:g} is above 1; expected centre and size as shares of the picture's width and "
            "height, not pixels"
        )
    if len(values) == 5 + extra:
        return values[:5], values[5:]
    if not extra and len(values) >= 7 and len(values) % 2:
        return (values[0], *_extent(values[1::2], values[2::2])), values[1:]
    raise ValueError(
        f"{place}: expected {5 + extra} numbers (class x y width height{', keypoints' if extra else ''}) "
        f"{'' if extra else 'or a polygon (class x1 y1 x2 y2 x3 y3 ...)'}, got {len(values)}. "
        "Keypoint files need kpt_shape in the yaml; a confidence column must go."
    )


def _extent(xs: tuple[float, ...], ys: tuple[float, ...]) -> tuple[float, float, float, float]:
    """The box around a polygon as centre and size."""
    return (min(xs) + max(xs)) / 2, (min(ys) + max(ys)) / 2, max(xs) - min(xs), max(ys) - min(ys)
