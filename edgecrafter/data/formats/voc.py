"""Pascal VOC: ``JPEGImages/``, ``Annotations/*.xml`` and ``ImageSets/Main/{train,val,test}.txt``.

Coordinates are taken as they are, corners in pixels without the "+1" of the original challenge, as labelling programs
write them. Classes: the lines of ``labels.txt`` if there is one, else the names in the train split, sorted; whichever
split is read. Objects marked ``difficult`` count as crowd: neither learned nor counted as missed.

Format: http://host.robots.ox.ac.uk/pascal/VOC/voc2012/htmldoc/devkit_doc.html
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from edgecrafter.data import images
from edgecrafter.data.annotations import Annotations
from edgecrafter.data.formats import classes, clean
from edgecrafter.data.formats.splits import ALIASES
from edgecrafter.types import Labels

CORNERS = ("xmin", "ymin", "xmax", "ymax")


@dataclass(frozen=True)
class _Page:
    """What one XML file says."""

    size: tuple[int, int]
    """height, width; zeros if the file does not say"""
    names: list[str]
    boxes: list[list[float]]
    difficult: list[bool]


def signs(root: Path) -> list[str]:
    """What in a folder says that it is in VOC layout; empty: it is not."""
    wanted = ("JPEGImages", "Annotations", "ImageSets/Main")
    found = [name for name in wanted if (root / name).is_dir()]
    return found if len(found) >= 2 else []


def read(root: Path, split: str, labels: Labels | None = None, truth: str = "") -> Annotations:
    """Read one split; val falls back to test with a note. The layout has neither masks nor keypoints.

    Raises ``FileNotFoundError`` for missing lists, XML files and pictures, ``ValueError``, naming the file and object,
    for whatever is not as the format says.
    """
    if truth:
        raise ValueError(
            f"{root}: Pascal VOC has boxes only, and {truth} are wanted. Layouts that have them: COCO, YOLO "
            f"({'rows with polygons' if truth == 'masks' else 'kpt_shape in the data.yaml'})."
        )
    listed, notes = _list(root, split)
    files, pictures = _files(root, listed)
    pages = [_page(file) for file in files]
    own, source = _labels(root, split, pages)
    image = np.repeat(np.arange(len(pages)), [len(page.names) for page in pages])
    number = _places(pages)
    place = _class_index(own, source, files, pages)
    final, chosen, renamed = classes.align(own, labels, place, str(root))
    difficult = np.array([mark for page in pages for mark in page.difficult], dtype=bool)

    def where(row: int) -> str:
        return f"{files[image[row]].name}, object {number[row]}"

    rows = clean.Rows(
        image=image,
        boxes=np.array([box for page in pages for box in page.boxes], dtype=np.float64).reshape(-1, 4),
        classes=chosen,
        ids=np.arange(1, len(image) + 1, dtype=np.int64),
        areas=np.full(len(image), np.nan),
        crowd=difficult,
    )
    marked = clean.note("objects marked difficult, ignored in training and scoring", difficult, where)
    return clean.store(
        root=root / "JPEGImages",
        labels=final,
        names=[picture.name for picture in pictures],
        image_ids=np.arange(1, len(pages) + 1, dtype=np.int64),
        sizes=_sizes(pages, pictures),
        rows=rows,
        notes=[*notes, *renamed, *marked],
        where=where,
    )


def _list(root: Path, split: str) -> tuple[list[str], list[str]]:
    """Names of the pictures of a split, without ending, and notes."""
    folder = root / "ImageSets" / "Main"
    options = (*ALIASES.get(split, (split,)), *(("test",) if split == "val" else ()))
    file = next((folder / f"{name}.txt" for name in options if (folder / f"{name}.txt").is_file()), None)
    if file is None:
        there = ", ".join(sorted(path.name for path in folder.glob("*.txt"))) or "no lists"
        raise FileNotFoundError(f"{folder / split}.txt is missing: it lists the pictures of '{split}'. Found: {there}")
    names = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    if not names:
        raise ValueError(f"{file}: lists no pictures")
    return names, [f"there is no val list: {file.name} serves as val"] if file.stem == "test" != split else []


def _files(root: Path, names: Sequence[str]) -> tuple[list[Path], list[Path]]:
    """XML file and picture of each name."""
    files = [root / "Annotations" / f"{name}.xml" for name in names]
    there = {path.stem: path for path in images.listing(root / "JPEGImages")}
    pictures = [there.get(name, root / "JPEGImages" / f"{name}.jpg") for name in names]
    clean.require(pictures)
    absent = [file for file in files if not file.is_file()]
    if absent:
        raise FileNotFoundError(
            f"{len(absent)} of {len(files)} annotation files are missing: {', '.join(map(str, absent[:5]))}. "
            "For a picture without objects write a file without <object>."
        )
    return files, pictures


def _page(file: Path) -> _Page:
    try:
        tree = ElementTree.parse(file).getroot()
    except ElementTree.ParseError as error:
        raise ValueError(f"{file}: not a whole XML file: {error}") from None
    size = tree.find("size")
    sides = [_number(file, size, side) if size is not None else 0.0 for side in ("height", "width")]
    page = _Page((int(sides[0]), int(sides[1])), [], [], [])
    for number, entry in enumerate(tree.iter("object"), start=1):
        place = f"{file}: object {number}"
        name, box = (entry.findtext("name") or "").strip(), entry.find("bndbox")
        if not name or box is None:
            raise ValueError(f"{place} has no <{'bndbox' if name else 'name'}>; give it one or remove the object")
        page.names.append(name)
        page.boxes.append([_number(place, box, corner) for corner in CORNERS])
        page.difficult.append((entry.findtext("difficult") or "0").strip() == "1")
    return page


def _number(place: Path | str, parent: ElementTree.Element, tag: str) -> float:
    text = (parent.findtext(tag) or "").strip()
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{place}: <{tag}> is '{text}'; expected a number") from None


def _labels(root: Path, split: str, pages: Sequence[_Page]) -> tuple[Labels, str]:
    """Classes, and the place that they are from."""
    file = root / "labels.txt"
    if file.is_file():
        names = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
        return classes.define(names, range(len(names)), str(file)), str(file)
    source = root / "ImageSets" / "Main" / "train.txt"
    if split != "train" and source.is_file():
        pages = [_page(path) for path in _files(root, _list(root, "train")[0])[0]]
    names = sorted({name for page in pages for name in page.names})
    return classes.define(names, range(len(names)), str(root)), f"the objects of the train split of {root}"


def _class_index(labels: Labels, source: str, files: Sequence[Path], pages: Sequence[_Page]) -> NDArray[np.int64]:
    place = {name: index for index, name in enumerate(labels.names)}
    for file, page in zip(files, pages, strict=True):
        for number, name in enumerate(page.names, start=1):
            if name not in place:
                known = ", ".join(labels.names)
                raise ValueError(f"{file}: object {number}: class '{name}' is not among those of {source} ({known})")
    return np.array([place[name] for page in pages for name in page.names], dtype=np.int64)


def _places(pages: Sequence[_Page]) -> list[int]:
    """The number of each object within its file, from 1."""
    return [number for page in pages for number in range(1, len(page.names) + 1)]


def _sizes(pages: Sequence[_Page], pictures: Sequence[Path]) -> NDArray[np.int32]:
    """Height and width of each picture, [I, 2], from the picture where the XML does not say."""
    sizes = np.array([page.size for page in pages], dtype=np.int32).reshape(-1, 2)
    unknown = np.any(sizes <= 0, axis=1)
    sizes[unknown] = clean.sizes_from_files([pictures[place] for place in np.flatnonzero(unknown).tolist()])
    return sizes
