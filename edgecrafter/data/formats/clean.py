"""From the rows that a file states to ``Annotations``: the rules for boxes that no picture can have, for all formats.

* A coordinate that is not finite, or a width or height that is not above 0: the object is skipped.
* Wholly outside the picture: skipped. Partly outside: clipped.
* A labelled keypoint outside the picture: not labelled; up to ``SLACK`` pixels: clipped. (Masks: ``clean_masks``.)
* An area that is not above 0, where keypoints are wanted (it is their scale): that of the box.
* Pictures whose size is unknown because the file cannot be read: skipped with their objects.

Each kind is counted in one note with an example that names the file and the object.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgecrafter.data import images
from edgecrafter.data.annotations import Annotations, Masks, pack
from edgecrafter.types import Labels

SLACK = 1.0
"""Pixels that a mask or keypoint may leave its picture by without a word: rounding."""


@dataclass(frozen=True, eq=False)
class Rows:
    """Objects as a file states them."""

    image: NDArray[np.int64]
    """[N] index of the picture"""
    boxes: NDArray[np.float64]
    """[N, 4] xyxy pixels"""
    classes: NDArray[np.int64]
    """[N] 0-based"""
    ids: NDArray[np.int64]
    """[N]"""
    areas: NDArray[np.float64]
    """[N] square pixels, NaN: take the box's"""
    crowd: NDArray[np.bool_]
    """[N]"""
    masks: Masks | None = None
    """of N objects"""
    keypoints: NDArray[np.float64] | None = None
    """[N, K, 3] x, y in pixels and visibility"""

    def of(self, classes: NDArray[np.int64]) -> Rows:
        """The same objects with other class indices."""
        return replace(self, classes=classes)

    def take(self, index: NDArray[np.int64] | NDArray[np.bool_]) -> Rows:
        """The chosen objects."""
        columns: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        masks = columns.pop("masks")
        chosen = {name: column[index] for name, column in columns.items() if column is not None}
        return Rows(**chosen, masks=None if masks is None else masks.take(index))


def store(
    root: Path,
    labels: Labels,
    names: Sequence[str],
    image_ids: NDArray[np.int64],
    sizes: NDArray[np.int32],
    rows: Rows,
    notes: Sequence[str],
    where: Callable[[int], str],
) -> Annotations:
    """Apply the rules above and sort the objects by picture. ``where(i)`` names row ``i`` for a note."""
    boxes, keep, found = _boxes(rows.boxes, sizes[rows.image], where)
    if rows.keypoints is not None:
        points, outside = inside(rows.keypoints, sizes[rows.image], where)
        rows, found = replace(rows, keypoints=points), [*found, *outside]
    areas, strange = _areas(rows, boxes)
    if rows.keypoints is not None:
        what = "objects whose area is not a finite number above 0; that of the box is used"
        found = [*found, *note(what, strange & keep, where)]
    order = np.flatnonzero(keep)[np.argsort(rows.image[keep], kind="stable")]
    letters, name_offsets = pack(names)
    offsets = np.zeros(len(names) + 1, dtype=np.int64)
    np.cumsum(np.bincount(rows.image[keep], minlength=len(names)), out=offsets[1:])
    result = Annotations(
        root=root,
        labels=labels,
        image_ids=image_ids,
        sizes=sizes,
        names=letters,
        name_offsets=name_offsets,
        offsets=offsets,
        boxes=boxes[order],
        classes=rows.classes[order],
        areas=areas[order].astype(np.float32),
        crowd=rows.crowd[order],
        ids=rows.ids[order],
        notes=(*notes, *found),
        masks=None if rows.masks is None else rows.masks.take(order),
        keypoints=None if rows.keypoints is None else rows.keypoints[order].astype(np.float32),
    )
    return _known_sizes(result)


def sizes_from_files(paths: Sequence[Path]) -> NDArray[np.int32]:
    """Height and width of each picture from its header, [I, 2]; zeros where it cannot be read.

    Raises ``FileNotFoundError`` that lists up to five missing files.
    """
    require(paths)
    sizes = np.zeros((len(paths), 2), dtype=np.int32)
    for index, path in enumerate(paths):
        try:
            sizes[index] = images.size(path)
        except ValueError:
            continue
    return sizes


def require(paths: Sequence[Path]) -> None:
    """Raise ``FileNotFoundError`` that counts the absent pictures and lists up to five."""
    absent = [path for path in paths if not path.is_file()]
    if absent:
        raise missing(absent, len(paths))


def missing(absent: Sequence[Path], total: int) -> FileNotFoundError:
    """The error for pictures that the annotations list and the disk lacks."""
    listed = ", ".join(str(path) for path in absent[:5]) + (", ..." if len(absent) > 5 else "")
    return FileNotFoundError(
        f"{len(absent)} of {total} listed pictures are missing: {listed}. "
        "Put them there or take them out of the annotations."
    )


def inside(
    points: NDArray[np.float64], sizes: NDArray[np.int32], where: Callable[[int], str]
) -> tuple[NDArray[np.float64], list[str]]:
    """Keypoints [N, K, 3] of pictures of ``sizes`` [N, 2], zeros where not labelled or outside; and notes."""
    kept, broken, outside = marked(points, sizes)
    return kept, astray(broken, outside, where)


def marked(
    points: NDArray[np.float64], sizes: NDArray[np.int32]
) -> tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_]]:
    """Keypoints as ``inside`` gives them, and which objects [N] have one that is not finite, and one outside."""
    limits = sizes[:, None, ::-1].astype(np.float64)
    limits = np.where(limits > 0, limits, np.inf)
    places, labelled = points[..., :2], points[..., 2] > 0
    finite = np.all(np.isfinite(places), axis=-1)
    near = np.all((places >= -SLACK) & (places <= limits + SLACK), axis=-1)
    kept = labelled & near
    placed = np.concatenate([np.clip(places, 0, limits), points[..., 2:]], axis=-1)
    broken, outside = labelled & ~finite, labelled & finite & ~near
    return np.where(kept[..., None], placed, 0.0), broken.any(axis=1), outside.any(axis=1)


def astray(broken: NDArray[np.bool_], outside: NDArray[np.bool_], where: Callable[[int], str]) -> list[str]:
    """Notes on objects with a keypoint that is not finite, and with one outside."""
    return [
        *note("objects with a keypoint that is not finite, taken as not labelled", broken, where),
        *note("objects with a labelled keypoint outside of their picture, taken as not labelled", outside, where),
    ]


def note(what: str, chosen: NDArray[np.bool_], where: Callable[[int], str]) -> list[str]:
    """One line that counts the chosen rows and names the first; nothing where none is chosen."""
    index = np.flatnonzero(chosen)
    return [f"{what}: {len(index)} (first: {where(int(index[0]))})"] if len(index) else []


def _boxes(
    given: NDArray[np.float64], sizes: NDArray[np.int32], where: Callable[[int], str]
) -> tuple[NDArray[np.float32], NDArray[np.bool_], list[str]]:
    """Clipped boxes [N, 4], which of them to keep [N], and notes. Rows of pictures without size are kept."""
    limits = sizes[:, [1, 0, 1, 0]].astype(np.float64)
    finite = np.all(np.isfinite(given), axis=1)
    given = np.where(finite[:, None], given, 0.0)
    positive = np.all(given[:, 2:] > given[:, :2], axis=1)
    sized = np.all(sizes > 0, axis=1)
    clipped = np.clip(given, 0, limits).astype(np.float32)
    inside = np.all(clipped[:, 2:] > clipped[:, :2], axis=1)
    outside = positive & ~inside & sized
    cut = (
        positive & inside & np.any(np.abs(clipped - given) > 0.5, axis=1)
    )  # half a pixel: rounding is not worth a word
    thin = outside & np.all((given[:, :2] < limits[:, 2:]) & (given[:, 2:] > 0), axis=1)  # vanishes in float32
    keep = finite & ((positive & inside) | ~sized)
    notes = [
        *note("boxes with a coordinate that is not finite, skipped", ~finite, where),
        *note("boxes whose width or height is not above 0, skipped", (finite & ~positive & sized) | thin, where),
        *note("boxes outside of their picture, skipped", outside & ~thin, where),
        *note("boxes that leave their picture, clipped", cut, where),
    ]
    if len(given) and (cut | outside).sum() > max(2, 0.3 * len(given)):
        notes.append(
            f"{(cut | outside).mean():.0%} of the boxes leave their picture: is the box convention right? "
            "(COCO: x, y, width, height; VOC: xmin, ymin, xmax, ymax; YOLO: centre and size in 0..1)"
        )
    return clipped, keep, notes


def _known_sizes(annotations: Annotations) -> Annotations:
    """Without the pictures whose size could not be read."""
    unknown = np.any(annotations.sizes <= 0, axis=1)
    if unknown.any():
        what = "pictures that cannot be read, skipped"
        annotations = annotations.subset(~unknown).noted(*note(what, unknown, lambda i: str(annotations.path(i))))
    if not len(annotations):
        raise ValueError(f"{annotations.root}: no readable picture is left. " + " ".join(annotations.notes))
    return annotations


def _areas(rows: Rows, boxes: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Areas [N], the box's where there is none that can be used, and where the file states such a one [N]."""
    limits = np.finfo(np.float32)
    least = 0.0 if rows.keypoints is None else float(limits.tiny)
    usable = (rows.areas >= least) & (rows.areas <= float(limits.max))
    sides = boxes[:, 2:].astype(np.float64) - boxes[:, :2]
    return np.where(usable, rows.areas, sides[:, 0] * sides[:, 1]), ~usable & ~np.isnan(rows.areas)
