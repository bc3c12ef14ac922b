"""COCO's run-length masks as files state them, checked before anything is made of them: files may lie.

A mask is read column by column; runs of pixels are alternately out and in, beginning with out. The compressed form
writes each run (from the fourth on, its difference to the last but one) in pieces of five bits, the least first, as
characters from "0" on; 32 says that a piece follows, 16 in the last piece that the number is negative.

Source: the mask functions of the COCO API, https://github.com/cocodataset/cocoapi
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

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


def compress(counts: NDArray[np.int64], size: tuple[int, int]) -> bytes:
    """The compressed text of run lengths that ``lengths`` found good for a mask of ``size`` (h, w)."""
    from faster_coco_eval.core import mask

    code: bytes = mask.frPyObjects({"size": list(size), "counts": counts.tolist()}, *size)["counts"]
    return code


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
    first = np.concatenate([[0], last[:-1] + 1])
    widths = last - first + 1
    if widths.max() > _LONGEST:
        return None
    place = 5 * (np.arange(len(pieces)) - np.repeat(first, widths))
    numbers = np.add.reduceat((pieces & 31) << place, first)
    numbers -= np.where(pieces[last] & 16, np.int64(1) << (5 * widths), 0)
    numbers[2::2] = np.cumsum(numbers[2::2])  # differences, from the fourth number on
    numbers[1::2] = np.cumsum(numbers[1::2])
    return numbers
