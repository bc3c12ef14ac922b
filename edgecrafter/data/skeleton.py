"""What data say of keypoints, put together: names, edges, left-right pairs, tolerances; and following another split."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgecrafter.geometry.keypoints import PERSON_KEYPOINTS, PERSON_PAIRS, default_sigmas
from edgecrafter.types import Skeleton

Pairs = tuple[tuple[int, int], ...]

_OTHER = {"left": "right", "right": "left", "l": "r", "r": "l"}
_SIDE = re.compile(
    r"[Ll]eft|[Rr]ight|LEFT|RIGHT"  # anywhere: left_eye, eyeLeft, frontrightpaw
    r"|(?<![A-Za-z])[LRlr](?![A-Za-z])"  # a letter that stands alone: l_eye, eye-R, L1
    r"|(?<=[a-z0-9])[LR](?![a-z])"  # a capital behind small letters: eyeL, eyeLInner
    r"|(?<![A-Za-z])[LR](?=[A-Z][a-z])"  # a capital before a capitalised word: LEye
)
"""What says a side in a name. An "l" or "r" inside a word says nothing: lip and rip are no pair."""


def default_names(count: int) -> tuple[str, ...]:
    """Names of keypoints that the data do not name."""
    return tuple(f"keypoint {index}" for index in range(count))


def assumed_names(count: int, pairs: Pairs | None = None) -> tuple[str, ...]:
    """Names of keypoints that the data do not name: those of COCO's person for 17, else numbers.

    ``pairs`` are the left-right pairs that the data state, ascending; others than COCO's tell another order.
    """
    person = count == len(PERSON_KEYPOINTS) and (pairs is None or {*pairs} == {*PERSON_PAIRS})
    return PERSON_KEYPOINTS if person else default_names(count)


def mirror_pairs(names: Sequence[str]) -> Pairs:
    """Left-right pairs that the names tell: two names that differ in their side only, e.g. ``left_eye``, ``eyeR``."""
    place = {name.lower(): index for index, name in enumerate(names)}
    other = [place.get(_mirror(name).lower(), index) for index, name in enumerate(names)]
    return tuple((a, b) for a, b in enumerate(other) if a < b and other[b] == a)


def stated_pairs(value: Any, names: Sequence[str], source: str) -> Pairs:
    """Ascending pairs from pairs of 0-based indices or names, as a file lists them.

    Raises ``ValueError`` naming ``source`` for anything else.
    """
    found = [_pair(each, names) for each in value] if isinstance(value, list) else [None]
    if None in found:
        raise ValueError(
            f"{source}: expected pairs of 0-based indices or names of the {len(names)} keypoints, got {value!r}"
        )
    return tuple((min(pair), max(pair)) for pair in found if pair is not None)


def edges(value: Any, names: Sequence[str], first: int) -> tuple[Pairs, int]:
    """Edges between keypoints that exist, and how many entries name none and are left out (they are only drawn).

    The entries are pairs of names, or of indices that count from ``first``.
    """
    entries = value if isinstance(value, list) else []
    found = [_pair(each, names, first) for each in entries]
    return tuple(pair for pair in found if pair is not None), found.count(None)


def flip_index(value: Any, count: int, source: str) -> Pairs:
    """Pairs from the list that says which keypoint each one becomes in a mirror; ``ValueError`` if it is no swap."""
    whole = isinstance(value, list) and all(type(index) is int for index in value)
    if not whole or sorted(value) != list(range(count)) or any(value[other] != own for own, other in enumerate(value)):
        raise ValueError(
            f"{source}: flip_idx {value!r} must name, for each of the {count} keypoints, the one it becomes in a "
            "mirror image: every index once, and swapping twice must give the first order again"
        )
    return tuple((own, other) for own, other in enumerate(value) if own < other)


def sigmas(value: Any, count: int, source: str) -> tuple[float, ...]:
    """Tolerances as a file lists them; ``ValueError`` naming ``source`` unless they are one number above 0 each."""
    fits = isinstance(value, list) and len(value) == count and all(_positive(number) for number in value)
    if not fits:
        raise ValueError(f"{source}: expected one number above 0 for each of the {count} keypoints, got {value!r}")
    return tuple(float(number) for number in value)


def build(names: Sequence[str], lines: Pairs, pairs: Pairs, tolerances: Sequence[float], source: str) -> Skeleton:
    """A skeleton; ``ValueError`` that names ``source`` for parts that do not fit one another."""
    try:
        return Skeleton(tuple(names), lines, pairs, tuple(tolerances))
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None


def follow(
    own: Skeleton, known: Skeleton | None, points: NDArray[np.float64], source: str, named: bool = True
) -> tuple[Skeleton, NDArray[np.float64], list[str]]:
    """Put a file's keypoints into the order that the model or the training split already has.

    ``points`` [N, K, 3] are in the order of ``own``, the skeleton of the file, whose names are assumed unless it is
    ``named``. Keypoints go by name; where one side has no names and both have the same number, by position. Returns the
    skeleton, the points in its order and notes. A labelled keypoint that ``known`` lacks is a ``ValueError``, one
    without labels is left out; one that only ``known`` has is not labelled.
    """
    person = not named and own.names == PERSON_KEYPOINTS and (known is None or known.names == own.names)
    notes = [f"{len(own)} keypoints without names: taken as COCO's person"] if person else []
    if known is None:
        return own, points, notes
    notes += _differences(own, known)
    if own.names == known.names or _by_position(own, known, named):
        return known, points, notes
    place = {name: index for index, name in enumerate(known.names)}
    labelled: NDArray[np.bool_] = np.any(points[..., 2] > 0, axis=0)
    strangers = [name for name, seen in zip(own.names, labelled.tolist(), strict=True) if seen and name not in place]
    if strangers:
        raise ValueError(
            f"{source}: keypoints {_listed(strangers)}, which the training data or the model do not have "
            f"(they have {_listed(known.names)}). Add them to the training split or correct their names."
        )
    ordered = np.zeros((len(points), len(known), 3))
    shared = [(place[name], index) for index, name in enumerate(own.names) if name in place]
    for to, origin in shared:
        ordered[:, to] = points[:, origin]
    return known, ordered, [*notes, "keypoints differ from those of the training data: they go by name"]


def describe(skeleton: Skeleton) -> list[str]:
    """The keypoints and what a mirror does to them, for people."""
    pairs = ", ".join(f"{skeleton.names[a]} - {skeleton.names[b]}" for a, b in skeleton.flip_pairs)
    return [
        f"{len(skeleton)} keypoints: {', '.join(skeleton.names)}",
        f"left-right pairs: {pairs}" if pairs else "no left-right pairs: a mirrored picture keeps its keypoints",
    ]


def _mirror(name: str) -> str:
    return _SIDE.sub(lambda found: _in_case(_OTHER[found[0].lower()], found[0]), name)


def _in_case(word: str, model: str) -> str:
    return word.upper() if model.isupper() else word.title() if model[0].isupper() else word


def _pair(value: Any, names: Sequence[str], first: int = 0) -> tuple[int, int] | None:
    """A pair as 0-based indices; None if it is no pair of two different keypoints."""
    if not isinstance(value, list | tuple) or len(value) != 2:
        return None
    place: Mapping[Any, int] = {name: index for index, name in enumerate(names)}
    found = [
        place.get(each, -1) if isinstance(each, str) else each - first if type(each) is int else -1 for each in value
    ]
    return (found[0], found[1]) if all(0 <= each < len(names) for each in found) and found[0] != found[1] else None


def _positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < float("inf")


def _by_position(own: Skeleton, known: Skeleton, named: bool) -> bool:
    return len(own) == len(known) and (not named or default_names(len(own)) in (own.names, known.names))


def _differences(own: Skeleton, known: Skeleton) -> list[str]:
    """A note on tolerances that are not those of the training data, where the file states its own."""
    if own.sigmas == default_sigmas(len(own)):
        return []
    tolerance = dict(zip(own.names, own.sigmas, strict=True))
    same = all(tolerance.get(name, sigma) == sigma for name, sigma in zip(known.names, known.sigmas, strict=True))
    return [] if same else ["keypoint sigmas differ from those of the training data, which are used"]


def _listed(names: Sequence[str], limit: int = 20) -> str:
    shown = ", ".join(repr(name) for name in names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"
