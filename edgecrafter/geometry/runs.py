"""Masks as run lengths: what is kept of a mask instead of its pixels.

A mask is read column by column, each from top to bottom, as in COCO; its code is the lengths of runs of pixels that are
alternately out and in, beginning with out.

Letters: N masks, h x w cells of their logits, H x W pixels of the picture.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

Integers = NDArray[np.int64]

CHUNK = 1 << 23
"""interpolated values that are held at a time: 32 MB in float32, and about as much for the work on them"""


@dataclass(frozen=True, eq=False)
class Runs:
    """N masks of one picture of ``size`` (h, w)."""

    size: tuple[int, int]
    counts: tuple[Integers, ...]
    """run lengths of each mask; they add up to h x w"""

    def __len__(self) -> int:
        return len(self.counts)

    def __iter__(self) -> Iterator[Runs]:
        """The masks one by one, each as ``Runs`` of length 1."""
        return (self[row] for row in range(len(self)))

    def __getitem__(self, index: Tensor | Integers | NDArray[np.bool_] | Sequence[int] | slice | int) -> Runs:
        """The chosen masks: an int64 or bool vector, a list, a slice, or an int for one; IndexError beyond the end."""
        if isinstance(index, slice):
            return Runs(self.size, self.counts[index])
        chosen = np.atleast_1d(index.cpu().numpy() if isinstance(index, Tensor) else np.asarray(index))
        rows = np.arange(len(self))[chosen if chosen.size else np.zeros(0, np.int64)]
        return Runs(self.size, tuple(self.counts[row] for row in rows.tolist()))

    def array(self) -> NDArray[np.bool_]:
        """The pixels, [N, h, w]."""
        h, w = self.size
        pixels = np.zeros((len(self), w * h), dtype=bool)
        for mask, counts in zip(pixels, self.counts, strict=True):
            mask[:] = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
        found: NDArray[np.bool_] = pixels.reshape(-1, w, h).swapaxes(1, 2)
        return found

    def areas(self) -> Integers:
        """Pixels of each mask, [N]."""
        return np.array([counts[1::2].sum() for counts in self.counts], dtype=np.int64)

    def boxes(self) -> NDArray[np.float32]:
        """The box xyxy around the pixels of each mask, [N, 4]; zeros for an empty one."""
        rows = [_box(counts, self.size[0]) for counts in self.counts]
        return np.array(rows, dtype=np.float32).reshape(-1, 4)

    def to_coco(self) -> list[dict[str, Any]]:
        """``size`` [h, w] and ``counts`` (COCO's compressed string) of each mask."""
        return [{"size": list(self.size), "counts": code.decode("ascii")} for code in encode(self.counts)]


def from_array(pixels: NDArray[np.bool_]) -> Runs:
    """Run lengths of masks given as pixels, bool [N, h, w]."""
    N, h, w = pixels.shape
    flat = np.zeros((N, h * w + 1), dtype=bool)
    flat[:, 1:] = pixels.swapaxes(1, 2).reshape(N, h * w)
    edges = [np.flatnonzero(mask[1:] != mask[:-1]) for mask in flat]
    return Runs((h, w), tuple(np.diff(each, prepend=0, append=h * w) for each in edges))


def from_logits(logits: Tensor, size: tuple[int, int], chunk: int = CHUNK) -> Runs:
    """Run lengths of the masks ``bilinear(logits, size) > 0``, without the pixels of the picture.

    The logits are interpolated to the width of the picture only. Down a column they are then straight between the
    centres of two cells, and constant beyond the first and last: every edge is a crossing of zero, and its first pixel
    follows. The outcome is that of ``torch``'s bilinear resizing (not of corners) up to its rounding.

    Args:
        logits: [N, h, w] on any device, which does the interpolation; above 0 is in.
        size: (H, W) in pixels of the whole picture.
        chunk: interpolated values to hold at a time, at least those of one mask (h x W).

    Raises:
        ValueError: a logit is not finite.
    """
    if not logits.isfinite().all():
        raise ValueError("the logits of a mask are not finite. In fp16 try bf16 or fp32; else the weights are unusable")
    if not len(logits):
        return Runs(size, ())
    step = max(1, chunk // (logits.shape[1] * size[1]))
    parts = (logits[start : start + step].detach().float() for start in range(0, len(logits), step))
    return Runs(size, tuple(each for part in parts for each in _cut(part, size)))


def encode(counts: Sequence[Integers]) -> list[bytes]:
    """COCO's string for the run lengths of each mask.

    From the fourth on, a length is told as the difference to the one before the last; every number is cut into groups
    of five bits, low ones first, each a letter from ``0`` on; a sixth bit says that more follow.
    """
    lengths = np.array([len(each) for each in counts], dtype=np.int64)
    if not lengths.sum():
        return [b""] * len(counts)
    values = np.concatenate(counts)
    place = np.arange(len(values)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    numbers = values.copy()
    numbers[2:] -= np.where(place[2:] > 2, values[:-2], 0)
    size = numbers ^ (numbers >> 63)  # of a negative number -1 - n, so that its sign has room as well
    groups = np.ones(len(numbers), dtype=np.int64)
    for bits in range(4, int(size.max()).bit_length(), 5):
        groups += size >= 1 << bits
    stops = np.cumsum(groups)
    letters = np.empty(stops[-1], dtype=np.uint8)
    for group in range(int(groups.max())):
        rows = np.flatnonzero(groups > group)
        more = (groups[rows] > group + 1) * 32
        letters[stops[rows] - groups[rows] + group] = ((numbers[rows] >> 5 * group) & 31) + more + 48
    ends = stops[np.cumsum(lengths) - 1]
    return [letters[start:stop].tobytes() for start, stop in zip([0, *ends[:-1]], ends, strict=True)]


def decode(codes: Sequence[bytes]) -> list[Integers]:
    """The run lengths of each mask from its string, see ``encode``. What is no such string gives nonsense, no error."""
    letters = np.frombuffer(b"".join(codes), dtype=np.uint8).astype(np.int64) - 48
    last = np.flatnonzero(letters < 32)
    starts = np.concatenate([[0], last[:-1] + 1]).astype(np.int64)[: len(last)]
    shift = 5 * (np.arange(len(letters)) - np.repeat(starts, last - starts + 1))
    numbers = np.add.reduceat((letters & 31) << shift, starts) if len(letters) else letters
    numbers = numbers - np.where(letters[last] & 16, 1 << (shift[last] + 5), 0)
    parts = np.split(numbers, np.searchsorted(last, np.cumsum([len(code) for code in codes])[:-1]))
    for part in parts[: len(codes)]:
        part[1::2] = np.cumsum(part[1::2])
        part[2::2] = np.cumsum(part[2::2])
    return parts[: len(codes)]


def _cut(logits_NhW: Tensor, size: tuple[int, int]) -> Iterator[Integers]:
    """The run lengths of each of a few masks, from logits [N, h, w]."""
    H, W = size
    N, h, _ = logits_NhW.shape
    values = F.interpolate(logits_NhW.transpose(1, 2)[:, None], (W, h), mode="bilinear", align_corners=False)
    inside = (values > 0).view(N, W * h)
    changes = inside.clone()  # before the first value of a mask is out
    changes[:, 1:] ^= inside[:, :-1]
    at = changes.flatten().nonzero().flatten()
    flat = values.flatten()
    before, after = flat[at - 1].double().cpu().numpy(), flat[at].double().cpu().numpy()
    mask, place = np.divmod(at.cpu().numpy(), W * h)
    column, cell = np.divmod(place, h)
    row = _first_row(before, after, cell, H / h)
    # in the order of the changes, but for rounding; a number for each mask, so that its end is not the next one's start
    edges = _odd(np.maximum.accumulate(mask * (H * W + 1) + column * H + row))
    starts = np.arange(N) * (H * W + 1)
    for each, found in zip(starts, np.split(edges, np.searchsorted(edges, starts[1:])), strict=True):
        yield np.diff(found[found < each + H * W], prepend=each, append=each + H * W)


def _first_row(before: NDArray[np.float64], after: NDArray[np.float64], cell: Integers, scale: float) -> Integers:
    """The first pixel row of a new run: it has ``before`` in the cell above and ``after`` in ``cell``, about zero."""
    crossing = cell - 0.5 + before / np.where(cell == 0, 1.0, before - after)
    row = crossing * scale - 0.5
    first = np.where(after > 0, np.floor(row) + 1, np.ceil(row))  # zero itself is out
    return np.where(cell == 0, 0, first).astype(np.int64)  # above the first cell is another column


def _odd(edges: Integers) -> Integers:
    """Each of the sorted values that comes an odd number of times: two changes at one pixel are none."""
    starts = np.flatnonzero(np.diff(edges, prepend=-1))
    times = np.diff(starts, append=len(edges))
    kept: Integers = edges[starts[times % 2 == 1]]
    return kept


def _box(counts: Integers, height: int) -> tuple[float, float, float, float]:
    stops = np.cumsum(counts)
    starts, stops = stops[: len(stops) // 2 * 2 : 2], stops[1::2]
    filled = stops > starts
    if not filled.any():
        return 0.0, 0.0, 0.0, 0.0
    starts, lasts = starts[filled], stops[filled] - 1
    left, right = starts[0] // height, lasts[-1] // height + 1
    if (starts // height != lasts // height).any():  # a run over two columns holds a bottom and a top
        return left, 0.0, right, float(height)
    return left, float((starts % height).min()), right, float((lasts % height).max() + 1)
