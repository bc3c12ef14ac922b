"""Class names and ids: from whatever a file uses to 0-based contiguous indices, the same for every split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from edgecrafter.types import Labels

Ints = NDArray[np.int64]


def define(names: Sequence[str], ids: Sequence[int], source: str) -> Labels:
    """Labels in the given order; ``ValueError`` naming ``source`` if a name or an id occurs twice, or there is none."""
    if not names:
        raise ValueError(f"{source}: no classes are listed; name at least one")
    for what, values in (("category id", ids), ("class name", names)):
        twice = next((value for place, value in enumerate(values) if value in values[:place]), None)
        if twice is not None:
            rows = ", ".join(f"{key}: {name}" for key, name in zip(ids, names, strict=True) if twice in (key, name))
            raise ValueError(f"{source}: {what} {twice!r} is used by two classes ({rows}); each class needs its own")
    return Labels(tuple(names), tuple(int(key) for key in ids))


def align(own: Labels, known: Labels | None, classes: Ints, source: str) -> tuple[Labels, Ints, list[str]]:
    """Put a file's classes into the order that the model or the training split already has, by name.

    ``own`` are the labels of the file, ``classes`` [N] index them; ``known`` is what has to be followed, if anything.
    Returns labels with the names of ``known`` and the ids of the file, ``classes`` in their terms, and notes. A class
    of the file that ``known`` lacks is a ``ValueError`` if it has objects, else it is left out.
    """
    if known is None:
        return own, classes, []
    place = {name: index for index, name in enumerate(known.names)}
    used = np.bincount(classes, minlength=len(own)) > 0
    strangers = [name for name, seen in zip(own.names, used, strict=True) if seen and name not in place]
    if strangers:
        raise ValueError(
            f"{source}: objects of {_listed(strangers)}, which the training data or the model do not have "
            f"(they have {_listed(known.names)}). Add the class to the training split or correct its name."
        )
    table = np.array([place.get(name, -1) for name in own.names], dtype=np.int64)
    ids = _file_ids(own, known)
    notes = [] if ids == known.ids else ["category ids differ from those of the training data: classes go by name"]
    return replace(known, ids=ids), table[classes], notes


def _file_ids(own: Labels, known: Labels) -> tuple[int, ...]:
    """Ids of the known classes as the file has them; classes that the file lacks keep theirs or get an unused one."""
    listed = dict(zip(own.names, own.ids, strict=True))
    free = max(*own.ids, *known.ids, 0) + 1
    ids: list[int] = []
    for name, known_id in zip(known.names, known.ids, strict=True):
        spare = known_id if known_id not in own.ids else free + len(ids)
        ids.append(listed.get(name, spare))
    return tuple(ids)


def _listed(names: Sequence[str], limit: int = 10) -> str:
    shown = ", ".join(repr(name) for name in names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"
