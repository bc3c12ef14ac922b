"""KITTI object detection, the left colour pictures: ``training/image_2/*.png`` and ``training/label_2/*.txt``.

A row of a label file has 15 fields: type, truncated, occluded, alpha, the box (left, top, right, bottom, in pixels from
0), and eight numbers in space that are not read; a 16th, the score of a result file, is not read either. Boxes are
clipped to their picture, and dropped where less than a pixel wide or high is left. Truncated and covered objects are
learned like others. Which types are classes is a preset; the other types and DontCare are regions to ignore: they are
no targets, and an evaluation takes each as a crowd region of every class, so that detections which lie mostly inside
are neither right nor wrong, or (``drop``) leaves them out.

What is not the default stands before the path, in any order: ``kitti:three:PATH``, ``kitti:eight,drop,drive:PATH``.

Format: https://www.cvlibs.net/datasets/kitti/eval_object.php (readme of the development kit)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgecrafter.data import images
from edgecrafter.data.annotations import Annotations
from edgecrafter.data.formats import classes, clean, kitti_splits
from edgecrafter.types import Labels

PREFIX = "kitti:"
TYPES = ("Car", "Van", "Truck", "Pedestrian", "Person_sitting", "Cyclist", "Tram", "Misc")
CLASSES = {"seven": TYPES[:7], "three": ("Car", "Pedestrian", "Cyclist"), "eight": TYPES}
"""presets; "seven" unless another one is named"""
IGNORED = ("crowd", "drop")
COUNTS = {
    "Car": 28742, "Van": 2914, "Truck": 1094, "Pedestrian": 4487, "Person_sitting": 222, "Cyclist": 1627, "Tram": 511,
    "Misc": 973, "DontCare": 11295,
}  # fmt: skip
"""objects of each type in all frames, as commonly reported"""
FRAMES = 7481
LEAST = 1.0
"""pixels that a box must be wide and high after clipping"""
FIELDS = "type truncated occluded alpha left top right bottom height width length x y z rotation"


@dataclass(frozen=True)
class Choice:
    """What a name of the data asks for; empty: the default."""

    root: Path
    classes: str = ""
    ignored: str = IGNORED[0]
    split: str = ""


def signs(root: Path) -> list[str]:
    """What in a folder says that it is in KITTI's layout; empty: it is not."""
    wanted = ("training/image_2", "training/label_2")
    return list(wanted) if all((root / name).is_dir() for name in wanted) else []


def chosen(path: Path) -> Choice:
    """``kitti:three,drop:PATH`` -> its parts; a path as it is. Raises ``ValueError`` for unknown words, two words of a
    kind, and a path that is missing or no such folder."""
    text = str(path)
    if not text.startswith(PREFIX):
        return Choice(path)
    head, colon, place = text.removeprefix(PREFIX).partition(":")
    place = place if colon else head
    kinds = {"classes": tuple(CLASSES), "ignored": IGNORED, "split": (kitti_splits.RANDOM, kitti_splits.DRIVE)}
    found: dict[str, str] = {}
    for word in head.split(",") if colon else ():
        kind = next((kind for kind, words in kinds.items() if word in words), "")
        if not kind or kind in found:
            known = "; ".join("|".join(words) for words in kinds.values())
            raise ValueError(
                f"data={text}: '{word}' is {'one word too many' if kind else 'unknown'}; one each of {known}"
            )
        found[kind] = word
    root = Path(place).expanduser()
    if not place or not signs(root):
        raise ValueError(
            f"data={text}: expected kitti:WORDS:FOLDER, the folder with training/image_2 and label_2 inside"
        )
    return Choice(root, **found)


def read(root: Path, split: str, labels: Labels | None = None, truth: str = "") -> Annotations:
    """Read one split. Without a word for the classes they are those of the preset that ``labels`` has, else seven.

    Raises ``FileNotFoundError`` for missing frames and lists, ``ValueError``, naming file and line, for whatever is not
    as the format says.
    """
    choice = chosen(root)
    if truth:
        raise ValueError(
            f"{choice.root}: KITTI has boxes only, and {truth} are wanted. Layouts that have them: COCO, YOLO"
        )
    preset = choice.classes or _preset_of(labels)
    names, how, notes = kitti_splits.frames(choice.root, split, choice.split)
    files, pictures = _files(choice.root, names)
    table = _read_all(files)
    sizes = clean.sizes_from_files(pictures)
    table, dropped = _clipped(table, sizes, files)
    own = classes.define(CLASSES[preset], range(1, 1 + len(CLASSES[preset])), f"kitti:{preset}")
    rows, lines, told = _rows(table, own, labels or own, choice.ignored)
    final, indices, renamed = classes.align(own, labels, rows.classes, str(choice.root))
    found = clean.store(
        root=choice.root / "training" / "image_2",
        labels=final,
        names=[picture.name for picture in pictures],
        image_ids=_ids(names),
        sizes=sizes,
        rows=rows.of(indices),
        notes=[*notes, *_counted(choice.root), *told, *dropped, *renamed],
        where=lambda row: f"{files[rows.image[row]].name}, line {lines[row]}",
    )
    return replace(found, conditions=f"KITTI: classes={preset}, ignored={choice.ignored}, split={how}")


@dataclass(frozen=True, eq=False)
class _Table:
    """The M rows of some label files."""

    types: list[str]
    image: NDArray[np.int64]
    """[M] number of the file"""
    line: NDArray[np.int64]
    """[M] from 1"""
    boxes: NDArray[np.float64]
    """[M, 4] xyxy pixels"""

    def take(self, keep: NDArray[np.bool_]) -> _Table:
        types = [self.types[row] for row in np.flatnonzero(keep)]
        return _Table(types, self.image[keep], self.line[keep], self.boxes[keep])


def _preset_of(labels: Labels | None) -> str:
    """The preset with exactly these classes, in any order; else the first."""
    names = set() if labels is None else set(labels.names)
    return next((preset for preset, types in CLASSES.items() if set(types) == names), next(iter(CLASSES)))


def _files(root: Path, names: Sequence[str]) -> tuple[list[Path], list[Path]]:
    """Label file and picture of each frame."""
    files = [root / "training" / "label_2" / f"{name}.txt" for name in names]
    there = {path.stem: path for path in images.listing(root / "training" / "image_2")}
    pictures = [there.get(name, root / "training" / "image_2" / f"{name}.png") for name in names]
    absent = [file for file in files if not file.is_file()]
    if absent:
        raise FileNotFoundError(
            f"{len(absent)} of {len(files)} label files are missing: {', '.join(map(str, absent[:5]))}. "
            "For a picture without objects write an empty file."
        )
    clean.require(pictures)
    return files, pictures


def _ids(names: Sequence[str]) -> NDArray[np.int64]:
    """The numbers of the frames, or 1, 2, ... where they are not numbered."""
    numbers = [int(name) if name.isdecimal() else -1 for name in names]
    plain = min(numbers) >= 0 and len(set(numbers)) == len(numbers)
    return np.array(numbers if plain else range(1, 1 + len(names)), dtype=np.int64)


def _read_all(files: Sequence[Path]) -> _Table:
    rows = [(index, *row) for index, file in enumerate(files) for row in _parse(file)]
    return _Table(
        [kind for _, _, kind, _ in rows],
        np.array([image for image, *_ in rows], dtype=np.int64),
        np.array([line for _, line, *_ in rows], dtype=np.int64),
        np.array([box for *_, box in rows], dtype=np.float64).reshape(-1, 4),
    )


def _parse(file: Path) -> list[tuple[int, str, list[float]]]:
    """Number, type and box of every line that is not blank."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{file}: not a text file in UTF-8; expected rows '{FIELDS}'") from None
    lines = enumerate(text.splitlines(), start=1)
    return [(number, *_row(line.split(), f"{file}:{number}")) for number, line in lines if line.strip()]


def _row(fields: list[str], place: str) -> tuple[str, list[float]]:
    if len(fields) not in (15, 16):
        raise ValueError(f"{place}: expected 15 fields ({FIELDS}), got {len(fields)}: '{' '.join(fields)[:60]}'")
    if fields[0] not in COUNTS:
        raise ValueError(f"{place}: type '{fields[0]}' is unknown; expected one of {', '.join(COUNTS)}")
    try:
        numbers = [float(field) for field in fields[1:]]
    except ValueError:
        raise ValueError(f"{place}: expected numbers behind the type, got '{' '.join(fields[1:])[:80]}'") from None
    if not all(map(isfinite, numbers[3:7])):
        raise ValueError(f"{place}: the box {' '.join(fields[4:8])} is not finite; correct or remove the row")
    return fields[0], numbers[3:7]


def _clipped(table: _Table, sizes: NDArray[np.int32], files: Sequence[Path]) -> tuple[_Table, list[str]]:
    """Boxes within their pictures, without those of which hardly anything is left; and a note. Pictures that cannot be
    read have no size: their boxes stay."""
    limits = sizes[table.image][:, [1, 0, 1, 0]].astype(np.float64)
    boxes = np.where(limits > 0, np.clip(table.boxes, 0, limits), table.boxes)
    small = np.any(boxes[:, 2:] - boxes[:, :2] < LEAST, axis=1) & np.all(limits > 0, axis=1)

    def where(row: int) -> str:
        return f"{files[table.image[row]].name}, line {table.line[row]}"

    cut = np.any(np.abs(boxes - table.boxes) > 0.5, axis=1) & ~small
    notes = clean.note(f"boxes less than {LEAST:g} pixel wide or high within their picture, skipped", small, where)
    notes += clean.note("boxes that leave their picture, clipped", cut, where)
    return replace(table, boxes=boxes).take(~small), notes


def _rows(
    table: _Table, labels: Labels, known: Labels, ignored: str
) -> tuple[clean.Rows, NDArray[np.int64], list[str]]:
    """Objects, and each region to ignore once for every class that is ``known``; the line of each; a note on the
    regions."""
    place = {name: index for index, name in enumerate(labels.names)}
    label = np.array([place.get(kind, -1) for kind in table.types], dtype=np.int64)
    scored = np.array([index for name, index in place.items() if name in known.names], dtype=np.int64)
    aside = label < 0
    copies = np.where(aside, len(scored) if ignored == "crowd" else 0, 1)
    index = np.repeat(np.arange(len(label)), copies)
    turn = np.arange(len(index)) - np.repeat(np.cumsum(copies) - copies, copies)
    crowd, found = aside[index], label[index]
    found[crowd] = scored[turn[crowd]]
    rows = clean.Rows(
        image=table.image[index],
        boxes=table.boxes[index],
        classes=found,
        ids=np.arange(1, len(index) + 1, dtype=np.int64),
        areas=np.full(len(index), np.nan),
        crowd=crowd,
    )
    kinds = Counter(kind for kind, region in zip(table.types, aside, strict=True) if region)
    listed = ", ".join(f"{kind} {count}" for kind, count in sorted(kinds.items()))
    what = f"each a crowd region of all {len(scored)} classes" if ignored == "crowd" else "left out (drop)"
    return rows, table.line[index], [f"regions to ignore: {int(aside.sum())} ({listed}), {what}"] if kinds else []


def _counted(root: Path) -> list[str]:
    """A note where the objects of all frames are not those that are commonly reported."""
    names = kitti_splits.labelled(root)
    if len(names) != FRAMES:
        return [f"{len(names)} of KITTI's {FRAMES} labelled frames are there: a part of the data, or other data"]
    found = Counter(_read_all(_files(root, names)[0]).types)
    differ = [f"{kind} {found[kind]} (reported: {count})" for kind, count in COUNTS.items() if found[kind] != count]
    return [f"objects of all frames differ from KITTI's: {', '.join(differ)}"] if differ else []
