"""COCO's run-length masks as files state them, checked before anything is made of them: files may lie.

What a code means is said in ``geometry.runs``. Format: the mask functions of https://github.com/cocodataset/cocoapi
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgecrafter.geometry import runs

_LONGEST = 7
"""pieces of a number: 35 bits, more than any picture has pixels"""


def lengths(counts: Any, pixels: int) -> NDArray[np.int64] | None:
    """The run lengths of a mask of that many pixels, from the list or the compressed text; None if it is neither."""
    if isinstance(counts, str):
        found = _decompressed(counts)
    elif isinstance(counts, list):
        found = _plain(counts)
    else:
        return None
    if found is None or not len(found) or found.min() < 0 or found.max() > pixels or found.sum() != pixels:
        return None
    return found


def _plain(counts: list[Any]) -> NDArray[np.int64] | None:
    if not all(type(count) is int for count in counts):
        return None
    try:
        return np.array(counts, dtype=np.int64)
    except OverflowError:
        return None


def _decompressed(text: str) -> NDArray[np.int64] | None:
    """The numbers of a compressed text; None if a character or a number has no meaning."""
    if not text or not text.isascii():
        return None
    pieces = np.frombuffer(text.encode("ascii"), dtype=np.uint8).astype(np.int64) - 48
    last = np.flatnonzero((pieces & 32) == 0)
    if pieces.min() < 0 or pieces.max() > 63 or not len(last) or last[-1] != len(pieces) - 1:
        return None
    if np.diff(last, prepend=-1).max() > _LONGEST:
        return None
    return runs.decode([text.encode("ascii")])[0]
