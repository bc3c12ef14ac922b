"""KITTI's labels as COCO files, so that any tool for COCO can read what is trained on here and check the score."""

from __future__ import annotations

import json
from pathlib import Path

from edgecrafter.data import check
from edgecrafter.data.annotations import Annotations, to_coco
from edgecrafter.data.formats import kitti
from edgecrafter.files import written_beside


def write(source: str | Path, target: str | Path) -> list[str]:
    """Write both splits of ``source`` (a folder, or ``kitti:WORDS:FOLDER``) into the folder ``target``; lines that say
    what was written.

    ``annotations/instances_train.json`` and ``instances_val.json`` have the same objects as the reader gives, regions
    to ignore included; ``ImageSets/*.txt`` are the lists of the split; ``images`` becomes a link to the pictures, where
    there is no such name yet and links can be made. Raises as ``kitti.read`` does, and ``ValueError`` for a source that
    is no KITTI folder or is the target.
    """
    root, target = kitti.chosen(Path(source).expanduser()).root, Path(target).expanduser()
    if not kitti.signs(root):
        raise ValueError(f"{root}: expected a folder with training/image_2 and training/label_2")
    if target.resolve() == root.resolve():
        raise ValueError(f"{target}: is the source; choose another folder, or the data would have two layouts")
    lines = []
    for split in ("train", "val"):
        data = kitti.read(Path(source).expanduser(), split)
        file = target / "annotations" / f"instances_{split}.json"
        _write(file, json.dumps(to_coco(data)))
        names = [data.path(index).stem for index in range(len(data))]
        _write(target / "ImageSets" / f"{split}.txt", "".join(f"{name}\n" for name in names))
        lines += [f"written to {file} ({data.conditions})", *(f"  {line}" for line in check.report(data))]
    return [*lines, _linked(target / "images", data)]


def _write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with written_beside(file) as beside:
        beside.write_text(text, encoding="utf-8")


def _linked(link: Path, data: Annotations) -> str:
    """Make the link to the pictures and say so."""
    pictures = data.root.resolve()
    if link.exists() or link.is_symlink():
        return f"{link} is there already and is left as it is; the pictures are in {pictures}"
    try:
        link.symlink_to(pictures, target_is_directory=True)
    except OSError:
        return f"{link} cannot be a link here: copy the pictures of {pictures} there"
    return f"{link} is a link to {pictures}"
