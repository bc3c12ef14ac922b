"""Which frames of KITTI are for training and which for evaluation; the benchmark itself publishes no such split.

Lists win where there are any: ``ImageSets/train.txt`` and ``val.txt``, a frame number in each line. Else 8 to 2 at
random: of frames, or of whole drives. Neighbouring frames of a drive look alike, so a split of frames flatters the
result; that of drives needs the mapping of the development kit (``mapping/train_rand.txt``, ``train_mapping.txt``).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

SHARE, SEED = 0.8, 0
RANDOM, DRIVE, LISTS = "random", "drive", "lists"
MAPPINGS = ("mapping", "devkit_object/mapping", "devkit/mapping")
"""where the mapping of the development kit is looked for"""


def frames(root: Path, split: str, wanted: str = "") -> tuple[list[str], str, list[str]]:
    """Sorted names of the frames of ``split`` (train or val), how the split was made (``lists``, ``random`` or
    ``drive``), and notes. ``wanted`` is ``random``, ``drive`` or nothing.

    Raises ``FileNotFoundError`` for frames, lists or mappings that are missing, and for other splits; ``ValueError``
    for a way of splitting that is asked for in vain and for a split without a frame.
    """
    if split not in ("train", "val"):
        raise FileNotFoundError(f"{root}: KITTI has no labels for its '{split}' pictures; take train or val")
    lists = root / "ImageSets"
    if (lists / "train.txt").is_file() or (lists / "val.txt").is_file():
        if wanted:
            raise ValueError(
                f"{lists}: its lists decide the split; leave '{wanted}' out of the data's name, or move the lists away"
            )
        names, notes = _listed(lists, split)
        return names, LISTS, notes
    everything = labelled(root)
    parts = by_drive(everything, _drives(root, everything)) if wanted == DRIVE else at_random(everything)
    chosen = parts[split == "val"]
    if not chosen:
        raise ValueError(f"{root}: {len(everything)} frames are too few to split; write {lists}/train.txt and val.txt")
    leak = "frames of a drive are on both sides, which flatters AP (kitti:drive:PATH splits whole drives)"
    how = f"seed {SEED}, {len(parts[0])} frames for training, {len(parts[1])} for evaluation"
    notes = [f"split of whole drives: {how}" if wanted == DRIVE else f"random split of frames: {how}; {leak}"]
    return chosen, wanted or RANDOM, notes


def labelled(root: Path) -> list[str]:
    """The sorted names of all frames that have a label file."""
    found = sorted(path.stem for path in (root / "training" / "label_2").glob("*.txt") if path.is_file())
    if not found:
        raise FileNotFoundError(f"{root / 'training' / 'label_2'}: no label files (000000.txt, 000001.txt, ...)")
    return found


def at_random(names: Sequence[str]) -> tuple[list[str], list[str]]:
    """80 % of the frames and the others, both sorted; the same for the same names."""
    order = sorted(names)
    random.Random(SEED).shuffle(order)
    count = round(SHARE * len(order))
    return sorted(order[:count]), sorted(order[count:])


def by_drive(names: Sequence[str], drives: Sequence[str]) -> tuple[list[str], list[str]]:
    """The frames of some drives and those of the others: in random order, every drive is for training that does not
    take it above 80 % of the frames. ``drives`` are those of the frames."""
    order = sorted(set(drives))
    random.Random(SEED).shuffle(order)
    sizes = {drive: drives.count(drive) for drive in order}
    training: set[str] = set()
    room = round(SHARE * len(names))
    for drive in order:
        if sizes[drive] <= room:
            training.add(drive)
            room -= sizes[drive]
    pairs = sorted(zip(names, drives, strict=True))
    return [name for name, drive in pairs if drive in training], [name for name, d in pairs if d not in training]


def _listed(folder: Path, split: str) -> tuple[list[str], list[str]]:
    found = {}
    for name in ("train", "val"):
        file = folder / f"{name}.txt"
        if not file.is_file():
            raise FileNotFoundError(f"{file} is missing beside its sibling: it lists the frames of '{name}'")
        found[name] = sorted({line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines()} - {""})
    if not found[split]:
        raise ValueError(f"{folder / split}.txt: lists no frames")
    both = sorted(set(found["train"]) & set(found["val"]))
    return found[split], [f"frames that are in train and val: {len(both)} (first: {both[0]})"] if both else []


def _drives(root: Path, names: Sequence[str]) -> list[str]:
    """The drive of each frame. Frame n is line ``rand[n]`` (from 1) of the mapping, says the development kit."""
    folder = next((root / name for name in MAPPINGS if (root / name / "train_mapping.txt").is_file()), None)
    if folder is None or not (folder / "train_rand.txt").is_file():
        raise FileNotFoundError(
            f"{root}: no {MAPPINGS[0]}/train_mapping.txt and train_rand.txt, which say the drive of a frame; they are "
            "in KITTI's development kit (devkit_object.zip). Put its folder 'mapping' there, or leave 'drive' out"
        )
    lines = [line.split() for line in (folder / "train_mapping.txt").read_text("utf-8").splitlines() if line.strip()]
    places = (folder / "train_rand.txt").read_text("utf-8").replace(",", " ").split()
    try:
        return [lines[_above_zero(places[int(name)]) - 1][1] for name in names]
    except (IndexError, ValueError):
        raise ValueError(
            f"{folder}: {len(places)} numbers in train_rand.txt and {len(lines)} lines in train_mapping.txt do not "
            f"give a drive for each of the {len(names)} frames (last: {names[-1]})"
        ) from None


def _above_zero(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError(text)
    return number
