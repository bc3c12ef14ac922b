"""Pictures without labels: folders read recursively, and the training pictures of any data set."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from edgecrafter.data import formats, images

TRIALS = 100
"""so many pictures in a row that cannot be read are too many"""


class Paths(Sequence[Path]):  # type: ignore[type-arg]
    """Many paths in two flat arrays: millions of Python objects would be copied into every worker process."""

    def __init__(self, paths: Iterable[str | os.PathLike[str]]) -> None:
        names = [os.fsencode(path) for path in paths]
        self._ends = np.cumsum([len(name) for name in names], dtype=np.int64)
        self._bytes = np.frombuffer(b"".join(names), np.uint8)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> Path:  # type: ignore[override]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        start = self._ends[index - 1] if index else 0
        return Path(os.fsdecode(self._bytes[start : self._ends[index]].tobytes()))

    def subset(self, rows: Iterable[int]) -> Paths:
        """Some of them, in the given order."""
        return Paths(self[int(row)] for row in rows)


def gather(sources: Sequence[str | Path]) -> tuple[Paths, list[str]]:
    """All pictures of ``sources``, and a line for each that says what was found.

    A source is a data set in a known layout (its training pictures; the labels are not used), any other folder (all
    pictures in it and below, links followed, hidden ones passed over), a picture, or a text file with a path per line,
    relative to the file. A picture that is found twice counts once. Nothing is opened.

    Raises ``FileNotFoundError`` for a source that is not there, ``ValueError`` for one without a picture.
    """
    if not sources:
        raise ValueError("no pictures given: images=FOLDER, a data set, or several of them")
    found: dict[str, None] = {}
    lines = []
    for source in sources:
        before = len(found)
        kind, paths = _of(Path(source).expanduser())
        found.update(dict.fromkeys(os.path.abspath(path) for path in paths))
        if len(found) == before:
            raise ValueError(f"{source}: no pictures there ({kind}), or all of them were named before")
        lines.append(f"{source}: {len(found) - before} pictures ({kind})")
    return Paths(found), lines


def readable(paths: Paths, order: Iterable[int], count: int) -> tuple[list[int], dict[str, str]]:
    """The first ``count`` of the numbers ``order`` whose pictures can be decoded, fewer when there are no more, and
    path -> reason of those that were tried in vain. Raises ``ValueError`` when the first ``TRIALS`` all fail."""
    found: list[int] = []
    failed: dict[str, str] = {}
    for number in map(int, order):
        if len(found) == count or (not found and len(failed) == TRIALS):
            break
        try:
            images.read(paths[number], (1, 1))
        except (ValueError, OSError) as error:
            failed[str(paths[number])] = reason(error, paths[number])
        else:
            found.append(number)
    if not found:
        path, why = next(iter(failed.items()))
        raise ValueError(f"none of {len(failed)} pictures can be read, the first: {path}: {why}")
    return found, failed


def reason(error: Exception, path: Path) -> str:
    """Why a picture cannot be read, in one line without its path."""
    return " ".join(str(error).removeprefix(f"{path}: ").split())


def _of(source: Path) -> tuple[str, Iterable[str | Path]]:
    stated = formats.named(source)
    if not stated and not source.exists():
        raise FileNotFoundError(f"images={source}: there is no such file or folder (from {Path.cwd()})")
    if source.is_file() and source.suffix.lower() in images.SUFFIXES:
        return "a picture", [source]
    if source.suffix.lower() == ".txt":
        lines = source.read_text(encoding="utf-8").splitlines()
        return "a list", (source.parent / line.strip() for line in lines if line.strip())
    if stated or source.is_file() or any(look(source) for look in formats.SIGNS.values()):
        data = formats.load(source, "train")
        return "training pictures of a data set", (data.path(index) for index in range(len(data)))
    return "a folder and what is below", _below(source)


def _below(folder: Path) -> Iterator[str]:
    """The pictures of a folder and of all below, in order of their names; every folder once, however it is linked."""
    seen = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        folders[:] = [] if real in seen else sorted(name for name in folders if not name.startswith("."))
        if real not in seen:
            shown = (name for name in sorted(names) if not name.startswith("."))
            yield from (os.path.join(place, n) for n in shown if os.path.splitext(n)[1].lower() in images.SUFFIXES)
        seen.add(real)
