"""Looking at the pictures themselves before training starts, and saying in words what a data set holds."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgecrafter.data import images
from edgecrafter.data.annotations import Annotations
from edgecrafter.data.formats.clean import missing
from edgecrafter.data.skeleton import describe

BLOCK = 64
"""Pictures that a thread takes at a time."""


@dataclass(frozen=True, eq=False)
class Scan:
    """What became known of the pictures of a data set."""

    sizes: NDArray[np.int32]
    """[I, 2] height and width of the upright picture as the file says; zeros where it cannot be read"""
    faults: dict[int, str]
    """picture index -> why it cannot be read"""
    missing: tuple[int, ...]
    """pictures that are not there"""
    animated: tuple[int, ...]
    """pictures with several frames or pages"""


@dataclass(frozen=True)
class _Look:
    size: tuple[int, int] = (0, 0)
    fault: str = ""
    missing: bool = False
    animated: bool = False


def readable(annotations: Annotations, decode: bool = False, workers: int | None = None) -> Scan:
    """Open every picture with threads (``workers``, default: as many as processors, at most 8).

    Without ``decode`` only the header and the end of each file are read (about 0.2 ms a picture): files that are empty,
    cut short, foreign or too large are found; a file whose end looks odd is decoded to be sure. With ``decode`` each is
    decoded, JPEG at an eighth of its size (about 1 ms for 640 x 480), which also finds damage in the middle that the
    decoder reports. Missing files are reported, never raised.
    """
    count = len(annotations)
    blocks = [range(start, min(start + BLOCK, count)) for start in range(0, count, BLOCK)]

    def scan(block: range) -> list[_Look]:
        return [_look(annotations.path(index), decode) for index in block]

    with ThreadPoolExecutor(workers or min(8, os.cpu_count() or 1)) as pool:
        looks = [look for part in pool.map(scan, blocks) for look in part]
    return Scan(
        sizes=np.array([look.size for look in looks], dtype=np.int32).reshape(-1, 2),
        faults={index: look.fault for index, look in enumerate(looks) if look.fault},
        missing=tuple(index for index, look in enumerate(looks) if look.missing),
        animated=tuple(index for index, look in enumerate(looks) if look.animated),
    )


def usable(annotations: Annotations, decode: bool = True, workers: int | None = None) -> Annotations:
    """The data set without the pictures that cannot be read, with a note on them; see ``readable`` for the options.

    Raises ``FileNotFoundError`` that counts missing pictures and lists up to five; ``ValueError`` if a picture has
    another size than the annotations say (boxes would land elsewhere), or if none is left.
    """
    scan = readable(annotations, decode, workers)
    if scan.missing:
        raise missing([annotations.path(index) for index in scan.missing], len(annotations))
    _same_sizes(annotations, scan)
    notes = []
    if scan.animated:
        first = annotations.path(scan.animated[0])
        notes = [f"pictures with several frames, of which the first is used: {len(scan.animated)} (first: {first})"]
    if not scan.faults:
        return annotations.noted(*notes)
    first_fault = next(iter(scan.faults.values()))
    notes.append(f"pictures that cannot be read, skipped: {len(scan.faults)} (first: {first_fault})")
    keep = np.ones(len(annotations), dtype=bool)
    keep[list(scan.faults)] = False
    if not keep.any():
        raise ValueError(f"none of the {len(annotations)} pictures can be read; the first: {first_fault}")
    return annotations.subset(keep).noted(*notes)


def report(annotations: Annotations) -> list[str]:
    """The data set in a few lines for people: counts, objects of each class, and what was noted while reading."""
    counts = np.bincount(annotations.image_index()[~annotations.crowd], minlength=len(annotations))
    crowd = int(annotations.crowd.sum())
    per_class = np.bincount(annotations.classes[~annotations.crowd], minlength=len(annotations.labels))
    classes = ", ".join(f"{name} {count}" for name, count in zip(annotations.labels.names, per_class, strict=True))
    lines = [
        f"images: {len(annotations)}, {int((counts == 0).sum())} of them without objects",
        f"objects: {len(annotations.ids)}" + (f", {crowd} of them crowd" if crowd else ""),
        f"objects of each of {len(annotations.labels)} classes: {classes}",
    ]
    if len(counts):
        lines.append(f"objects in an image: {counts.mean():.1f} on average, {counts.max()} at most")
    return [*lines, *_masks(annotations), *_keypoints(annotations), *(f"note: {note}" for note in annotations.notes)]


def _masks(annotations: Annotations) -> list[str]:
    masks = annotations.masks
    if masks is None:
        return []
    drawn, coded = (int((np.diff(offsets) > 0).sum()) for offsets in (masks.objects, masks.code_offsets))
    return [f"masks: {drawn + coded} objects, {drawn} of them as polygons, {coded} as run lengths"]


def _keypoints(annotations: Annotations) -> list[str]:
    points, skeleton = annotations.keypoints, annotations.labels.skeleton
    if points is None or skeleton is None:
        return []
    labelled = (points[..., 2] > 0).sum(axis=1)
    average = f"{labelled.mean():.1f} of {len(skeleton)} labelled in an object on average" if len(points) else "none"
    return [f"keypoints: {average}, {int((labelled == 0).sum())} objects without any", *describe(skeleton)]


def _look(path: Path, decode: bool) -> _Look:
    try:
        header = images.header(path)
        if decode or not images.whole(path):
            images.read(path, min_size=(1, 1))
    except FileNotFoundError:
        return _Look(missing=True)
    except ValueError as error:
        return _Look(fault=str(error))
    return _Look(header.size, animated=header.animated)


def _same_sizes(annotations: Annotations, scan: Scan) -> None:
    """Raise if a picture that can be read has another size than the annotations say."""
    differ = np.any(scan.sizes != annotations.sizes, axis=1) & np.all(scan.sizes > 0, axis=1)
    if not differ.any():
        return
    index = int(np.flatnonzero(differ)[0])
    (height, width), (real_height, real_width) = annotations.sizes[index], scan.sizes[index]
    turned = (height, width) == (real_width, real_height)
    why = "The file carries an EXIF rotation; sizes and boxes must be those of the upright view. " if turned else ""
    raise ValueError(
        f"{annotations.path(index)}: the annotations say {width} x {height} pixels, the file has {real_width} x "
        f"{real_height} ({int(differ.sum())} such pictures). {why}Correct the annotations or the file."
    )
