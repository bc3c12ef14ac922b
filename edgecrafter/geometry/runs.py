"""Masks as run lengths: what is kept of a mask instead of its pixels.

A mask is read column by column, each from top to bottom, as in COCO; its code is the lengths of runs of pixels that are
alternately out and in, beginning with out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Runs:
    """N masks of one picture of ``size`` (h, w)."""

    size: tuple[int, int]
    counts: tuple[NDArray[np.int64], ...]
    """run lengths of each mask; they add up to h x w"""

    def __len__(self) -> int:
        return len(self.counts)

    def __getitem__(self, index: Tensor | NDArray[np.int64] | NDArray[np.bool_] | Sequence[int] | slice) -> Runs:
        """The chosen masks: an int64 or bool vector, a list or a slice."""
        rows = np.arange(len(self))[np.asarray(index) if not isinstance(index, slice) else index]
        return Runs(self.size, tuple(self.counts[row] for row in rows.tolist()))

    def array(self) -> NDArray[np.bool_]:
        """The pixels, [N, h, w]."""
        h, w = self.size
        pixels = np.zeros((len(self), w * h), dtype=bool)
        for mask, counts in zip(pixels, self.counts, strict=True):
            mask[:] = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
        return pixels.reshape(-1, w, h).swapaxes(1, 2)
