"""What a YOLO ``data.yaml`` says: class names, and where the pictures and text files of a split lie."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgecrafter.data import images
from edgecrafter.data.formats.splits import ALIASES

YAML_NAMES = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")

TEMPLATE = "path: .\ntrain: images/train\nval: images/val\nnames: [first class, second class]"
"""The least that a data.yaml has to say."""


@dataclass(frozen=True)
class Set:
    """One split, as found on the disk."""

    file: Path
    """the yaml"""
    root: Path
    """the folder that holds all pictures"""
    pictures: list[Path]
    names: list[str]
    ids: list[int]
    """class indices of the text files, ascending"""
    keypoints: tuple[int, int] | None
    """number of keypoints, and of numbers for each, at the end of each row; None: there are none"""
    data: dict[str, Any]
    """the yaml"""
    notes: list[str]

    @property
    def extra(self) -> int:
        """Keypoint numbers at the end of each row."""
        return self.keypoints[0] * self.keypoints[1] if self.keypoints else 0

    def label(self, index: int) -> Path:
        """The text file of a picture."""
        return label_of(self.pictures[index])


def signs(root: Path) -> list[str]:
    """What in a folder says that it is in YOLO layout; empty: it is not."""
    file = yaml_in(root)
    return [file.name] if file else []


def yaml_in(root: Path) -> Path | None:
    """The data.yaml of a folder: by name, or the only yaml that names classes and pictures."""
    for name in YAML_NAMES:
        if (root / name).is_file():
            return root / name
    others = [file for pattern in ("*.yaml", "*.yml") for file in sorted(root.glob(pattern)) if _describes(file)]
    return others[0] if len(others) == 1 else None


def find(root: Path, split: str) -> Set:
    """Read the yaml and list the pictures of a split; val falls back to test with a note.

    Raises ``FileNotFoundError`` for a missing yaml, split or folder, ``ValueError`` for a yaml that contradicts itself.
    """
    file = root if root.is_file() else yaml_in(root)
    if file is None:
        raise FileNotFoundError(f"{root}: no data.yaml. Write one, for instance:\n{TEMPLATE}")
    data = _load(file)
    names, ids = _names(file, data)
    key, notes = _split_key(file, data, split)
    base = _plain(file.parent / str(data.get("path") or "."))
    sources = data[key] if isinstance(data[key], list) else [data[key]]
    folders = [_place(file, base, key, str(source)) for source in sources]
    pictures = list(dict.fromkeys(path for folder in folders for path in _pictures(folder, base)))
    if not pictures:
        raise ValueError(f"{file}: '{key}' has no pictures in {', '.join(map(str, folders))}")
    notes += _orphans([folder for folder in folders if folder.is_dir()], pictures)
    return Set(file, _common(pictures), pictures, names, ids, _keypoints(file, data), data, notes)


def label_of(picture: Path) -> Path:
    """The text file of a picture: the last folder ``images`` of its path becomes ``labels``; else beside it."""
    parts = list(picture.parts)
    places = [place for place, part in enumerate(parts[:-1]) if part == "images"]
    beside = picture.with_suffix(".txt")
    if not places or beside.is_file():
        return beside
    parts[places[-1]] = "labels"
    return Path(*parts).with_suffix(".txt")


def _load(file: Path) -> dict[str, Any]:
    import yaml

    try:
        data = yaml.safe_load(file.read_text(encoding="utf-8-sig"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{file}: not a YAML file: {error}") from None
    if not isinstance(data, dict):
        raise ValueError(f"{file}: expected keys and values, for instance:\n{TEMPLATE}")
    return data


def _describes(file: Path) -> bool:
    try:
        data = _load(file)
    except ValueError:
        return False
    return "names" in data and ("train" in data or "val" in data)


def _names(file: Path, data: dict[str, Any]) -> tuple[list[str], list[int]]:
    """Class names by index, and the indices; a list or a table of names."""
    names = data.get("names")
    if isinstance(names, list):
        names = dict(enumerate(names))
    if not isinstance(names, dict) or not all(type(key) is int for key in names):
        raise ValueError(f"{file}: 'names' must list the classes, or give each index a name; got {names!r}")
    ids = sorted(names)
    if "nc" in data and data["nc"] != len(ids):
        raise ValueError(
            f"{file}: nc says {data['nc']} classes but 'names' has {len(ids)}; correct one (nc may be left out)"
        )
    return [str(names[key]) for key in ids], ids


def _split_key(file: Path, data: dict[str, Any], split: str) -> tuple[str, list[str]]:
    for key in ALIASES.get(split, (split,)):
        if data.get(key):
            return key, []
    if split == "val" and data.get("test"):
        return "test", [f"{file.name} has no val split: its test split serves as val"]
    raise FileNotFoundError(f"{file}: no split '{split}'; it has {[key for key in ALIASES if data.get(key)]}")


def _place(file: Path, base: Path, key: str, source: str) -> Path:
    """The folder or list that a split names, relative to ``path`` of the yaml."""
    inner = source
    while inner.startswith("../"):
        inner = inner[3:]
    # Roboflow writes ../train/images for what lies beside the yaml
    for place in (base / source, file.parent / source, file.parent / inner):
        if place.exists():
            return _plain(place)
    raise FileNotFoundError(
        f"{file}: '{key}: {source}' is not there (looked for {base / source}). "
        "Paths are relative to 'path', and that to the yaml; 'path: .' is the folder of the yaml."
    )


def _pictures(place: Path, base: Path) -> list[Path]:
    """Pictures below a folder, or of a text file with one on each line."""
    if place.is_dir():
        return images.listing(place, deep=True)
    if place.suffix.lower() != ".txt":
        raise ValueError(f"{place}: expected a folder of pictures or a .txt list of them")
    lines = [line.strip() for line in place.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    near = [place.parent / line for line in lines]
    return [path if path.exists() else base / line for path, line in zip(near, lines, strict=True)]


def _orphans(folders: list[Path], pictures: list[Path]) -> list[str]:
    """A note on text files, beside those of the pictures of these folders, that belong to no picture."""
    used = {label_of(path) for path in pictures}
    places = {label_of(folder / "x").parent for folder in folders}
    found = {file for place in places for file in place.rglob("*.txt") if file.name != "classes.txt"}
    lost = sorted(found - used)
    return [f"label files without a picture: {len(lost)} (first: {lost[0]})"] if lost else []


def _common(pictures: list[Path]) -> Path:
    """The deepest folder that holds all pictures."""
    return Path(os.path.commonpath([path.parent for path in pictures]))


def _plain(path: Path) -> Path:
    """Absolute, without ``..``; links stay, since ``labels`` is looked for beside the link."""
    return Path(os.path.abspath(path))


def _keypoints(file: Path, data: dict[str, Any]) -> tuple[int, int] | None:
    shape = data.get("kpt_shape")
    if shape is None:
        return None
    whole = isinstance(shape, list) and len(shape) == 2 and all(type(number) is int for number in shape)
    if not whole or shape[0] < 1 or shape[1] not in (2, 3):
        raise ValueError(f"{file}: 'kpt_shape' must be [keypoints, 2 or 3], got {shape!r}")
    return shape[0], shape[1]
