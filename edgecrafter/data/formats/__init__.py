"""Data set layouts: which one a folder has, and reading it.

A new layout is one file with ``read`` and ``signs`` and one line in each of the two tables.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from edgecrafter.data.annotations import Annotations
from edgecrafter.data.formats import coco, coco_files, kitti, voc, yolo, yolo_files
from edgecrafter.data.formats.splits import ALIASES
from edgecrafter.types import Labels

Read = Callable[[Path, str, Labels | None, str], Annotations]

FORMATS: dict[str, Read] = {"coco": coco.read, "yolo": yolo.read, "voc": voc.read, "kitti": kitti.read}
"""``read(root, split, labels, truth)``: ``labels`` are those of the training split or the model, to be followed by
name; ``truth`` is what is wanted besides boxes, one of ``TRUTHS``."""

TRUTHS = ("", "masks", "keypoints")

SIGNS: dict[str, Callable[[Path], list[str]]] = {
    "coco": coco_files.signs,
    "yolo": yolo_files.signs,
    "voc": voc.signs,
    "kitti": kitti.signs,
}
"""What in a folder speaks for a layout; an empty list: nothing."""

SPLITS = tuple(ALIASES)

_SOUGHT = (
    "COCO (annotations/instances_train.json, train/_annotations.coco.json), "
    "YOLO (data.yaml), Pascal VOC (JPEGImages, Annotations, ImageSets/Main), KITTI (training/image_2, training/label_2)"
)


def load(
    path: str | Path,
    split: str = "train",
    labels: Labels | None = None,
    images: str | Path | None = None,
    truth: str = "",
) -> Annotations:
    """Read a split (``train``, ``val`` or ``test``) of a data set of any known layout.

    ``path`` is a folder, a ``data.yaml``, a COCO ``.json`` file, or ``kitti:WORDS:FOLDER`` (``kitti``); ``images`` is
    the folder of the file's pictures if it is not in a usual place. ``labels``: the classes of the training split or
    the model; a val split is put into their order by name, and its keypoints too. Without a val split ``valid`` and
    then ``test`` serve, with a note. ``truth`` is what is wanted besides boxes: nothing, ``"masks"`` or
    ``"keypoints"``; only that is kept.

    Raises ``FileNotFoundError`` and ``ValueError`` that say what is wrong and what to do. The pictures are not opened,
    except for their size where the layout does not state it: see ``check.usable``.
    """
    if split not in SPLITS:
        raise ValueError(f"split '{split}' is unknown; choose one of {', '.join(SPLITS)}")
    if truth not in TRUTHS:
        raise ValueError(f"truth '{truth}' is unknown; choose one of {', '.join(map(repr, TRUTHS))}")
    root = Path(path).expanduser()
    name = sniff(root)
    if images is None:
        return FORMATS[name](root, split, labels, truth)
    if name != "coco":
        raise ValueError(f"{root}: images={images} goes with a COCO .json file only; this is {name}")
    return coco.read(root, split, labels, truth, Path(images).expanduser())


def sniff(path: str | Path) -> str:
    """The name of the layout, a key of ``FORMATS``.

    Raises ``FileNotFoundError`` if there is nothing, ``ValueError`` if nothing or more than one layout is recognised;
    the message lists what was looked for and what was found.
    """
    root = Path(path).expanduser()
    if named(root):
        return "kitti"
    if root.is_file():
        return _by_ending(root)
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: there is no such file or folder (from {Path.cwd()})")
    found = {name: signs for name, look in SIGNS.items() if (signs := look(root))}
    if len(found) == 1:
        return next(iter(found))
    if found:
        listed = "; ".join(f"{name} ({', '.join(signs[:3])})" for name, signs in found.items())
        raise ValueError(f"{root}: several layouts at once: {listed}. Pass the .json or .yaml file that is meant.")
    raise ValueError(f"{root}: no data set recognised. Looked for {_SOUGHT}. Found {_contents(root)}.{_hint(root)}")


def named(path: str | Path) -> bool:
    """Whether a data set says its layout itself, as ``kitti:WORDS:FOLDER`` does; it is no path then."""
    return str(path).startswith(kitti.PREFIX)


def _by_ending(file: Path) -> str:
    endings = {".json": "coco", ".yaml": "yolo", ".yml": "yolo"}
    if file.suffix.lower() not in endings:
        raise ValueError(f"{file}: expected a folder, a COCO .json or a YOLO .yaml file")
    return endings[file.suffix.lower()]


def _contents(root: Path, limit: int = 10) -> str:
    names = sorted(entry.name + ("/" if entry.is_dir() else "") for entry in root.iterdir())
    return (", ".join(names[:limit]) or "nothing") + (f" and {len(names) - limit} more" if len(names) > limit else "")


def _hint(root: Path) -> str:
    """What the folder might be instead."""
    if (root / "labels").is_dir() or any(root.glob("*/labels")):
        return f" labels/ looks like YOLO without its data.yaml. Write one:\n{yolo_files.TEMPLATE}"
    inside = [entry for entry in sorted(root.iterdir()) if entry.is_dir() and any(f(entry) for f in SIGNS.values())]
    return f" Perhaps {inside[0]} is meant?" if inside else ""
