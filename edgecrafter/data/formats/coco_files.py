"""Where the JSON file of a split and its pictures lie in the usual COCO layouts."""

from __future__ import annotations

import re
from pathlib import Path

from edgecrafter.data.formats.splits import ALIASES

ROBOFLOW = "_annotations.coco.json"
_OTHER_KINDS = ("captions", "stuff", "panoptic", "image_info", "deprecated")


def signs(root: Path) -> list[str]:
    """What in a folder says that it is in a COCO layout; empty: it is not."""
    return [str(path.relative_to(root)) for path in _json_files(root)]


def find(root: Path, split: str, truth: str = "") -> tuple[Path, list[str]]:
    """The JSON file of a split, and notes. ``root`` is a folder or a JSON file; a folder may hold several kinds.

    For ``truth`` "keypoints" a file that has them in its name comes first, for anything else one that has not.

    A train file stands for its sibling where val or test is wanted, and the other way round; a file that names no
    split, or the other one of val and test, is taken as it is. A folder without a val split gives the test split, with
    a note.
    Raises ``FileNotFoundError`` that lists what is there, ``ValueError`` where several files fit equally well.
    """
    if root.is_file():
        return _sibling(root, split)
    files = _json_files(root)
    if found := _best(files, split, truth):
        return found, []
    if split == "val" and (found := _best(files, "test", truth)):
        return found, [f"there is no val split: {found.relative_to(root)} serves as val"]
    names = ", ".join(str(path.relative_to(root)) for path in files) or "none"
    raise FileNotFoundError(
        f"{root}: no COCO file for the split '{split}' (for instance annotations/instances_{split}.json or "
        f"{split}/{ROBOFLOW}). JSON files found: {names}. Pass the file itself if it is called otherwise."
    )


def picture_folder(file: Path, split: str, names: list[str]) -> Path:
    """The folder that the file names are relative to: the first usual one that has any of the first 20 pictures.

    Raises ``FileNotFoundError`` that lists the folders looked into.
    """
    near = file.parent
    base = near.parent if near.name.lower() == "annotations" else near
    words: list[str] = [*re.findall(r"[a-z]+\d*$", file.stem.lower()), *ALIASES.get(split, (split,))]
    own = [parent / word for word in words for parent in (base / "images", base)]
    usual = [*own, near, near / "images", base / "images", base, near.parent / "images", near.parent]
    folders = [folder for folder in dict.fromkeys(usual) if folder.is_dir()]
    for folder in folders:
        if any((folder / name).is_file() for name in names[:20]):
            return folder
    listed = ", ".join(str(folder) for folder in folders)
    raise FileNotFoundError(
        f"{file}: its pictures are not found: {names[0]} is in none of {listed}. "
        "Put the folder 'images' beside 'annotations', or say where the pictures are."
    )


def _json_files(root: Path) -> list[Path]:
    """Files that may be detection annotations: in annotations/, in the folder itself, or Roboflow's."""
    exports = [root / name / ROBOFLOW for names in ALIASES.values() for name in names]
    plain = [path for folder in (root / "annotations", root) for path in sorted(folder.glob("*.json"))]
    return [path for path in exports if path.is_file()] + [path for path in plain if _split_of(path)]


def _split_of(path: Path) -> str:
    """The split that a file's name, or for Roboflow its folder's, speaks of; empty if none or of another kind."""
    text = (path.parent.name if path.name == ROBOFLOW else path.stem).lower()
    if text.startswith(_OTHER_KINDS):
        return ""
    for split, names in ALIASES.items():
        if re.search(rf"(?<![a-z])({'|'.join(names)})(?![a-z])", text):
            return split
    return ""


def _best(files: list[Path], split: str, truth: str) -> Path | None:
    """The file of a split with the best name; ``ValueError`` if two are equally good."""
    fitting = [path for path in files if _split_of(path) == split]
    best = min((_rank(path, truth) for path in fitting), default=(0, 0))
    equals = [path for path in fitting if _rank(path, truth) == best]
    if len(equals) > 1:
        names = ", ".join(str(path) for path in equals)
        raise ValueError(f"several files fit the split '{split}' equally well: {names}. Pass the one that is meant.")
    return equals[0] if equals else None


def _rank(path: Path, truth: str) -> tuple[int, int]:
    """The least is best: first the kind that is wanted, then exact names before longer ones."""
    stem = path.stem.lower()
    split = "|".join(name for names in ALIASES.values() for name in names)
    kind = "person_keypoints" if "keypoint" in stem else "instances"
    patterns = (rf"{kind}_({split})", rf"{kind}_({split})\d+", rf"({split})|_annotations\.coco", rf"{kind}_.*")
    rank = next((place for place, pattern in enumerate(patterns) if re.fullmatch(pattern, stem)), len(patterns))
    return int((truth == "keypoints") != ("keypoint" in stem)), rank


def _sibling(file: Path, split: str) -> tuple[Path, list[str]]:
    named = _split_of(file)
    if named == split:
        return file, []
    if not named or "train" not in (named, split):
        return file, [f"{file.name} is read for '{split}' as it is"]
    for name in ALIASES[split]:
        swap = re.compile(rf"(?<![a-z])({'|'.join(ALIASES[named])})(?![a-z])", re.IGNORECASE)
        if file.name == ROBOFLOW:
            other = file.parent.with_name(name) / ROBOFLOW
        else:
            other = file.with_name(swap.sub(name, file.name))
        if other.is_file():
            return other, [f"{file.name} is of the split '{named}': {other} is read for '{split}'"]
    raise FileNotFoundError(
        f"{file}: this file is of the split '{named}', and there is none for '{split}' beside it. "
        "Pass the folder of the data set, or a file for each split."
    )
