"""Training at several input sizes (RT-DETR): the pictures of a step are resized to a size drawn for it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch.nn.functional as F
from torch import Tensor

STRIDE = 32
SPREAD = 0.25
"""sizes lie between 3/4 and 5/4 of the model's own (480 to 800 for 640)"""


@dataclass(frozen=True)
class Scales:
    """Which size the pictures of a step have: the same in all processes and all parts of an accumulated step."""

    size: tuple[int, int]
    """the model's own (h, w)"""
    repeats: int
    """how often the own size is in the hat, where every other one is once; 0: always the own size"""
    until: int
    """first step with the own size only"""
    seed: int

    def of(self, step: int) -> tuple[int, int]:
        """The size (h, w) at ``step``."""
        if not self.repeats or step >= self.until:
            return self.size
        hat = [size for size in self.sizes() if size != self.size] + [self.size] * self.repeats
        return hat[int(np.random.default_rng((self.seed, step)).integers(len(hat)))]

    def sizes(self) -> list[tuple[int, int]]:
        """All sizes, multiples of 32, smallest first; both sides grow alike."""
        long = max(self.size)
        low, high = (round(long * (1 + sign * SPREAD) / STRIDE) for sign in (-1, 1))
        sides = [STRIDE * k for k in range(max(1, low), high + 1)]
        return list(dict.fromkeys((_near(self.size[0] * s / long), _near(self.size[1] * s / long)) for s in sides))

    def apply(self, images: Tensor, step: int) -> Tensor:
        """Pictures [B, 3, H, W] of the own size at the size of ``step``, nearest pixel as released; others as they are,
        such as those that try the memory."""
        size = self.of(step)
        own = (images.shape[2], images.shape[3])
        return images if own != self.size or size == own else F.interpolate(images, size=size, mode="nearest")


def _near(side: float) -> int:
    return max(STRIDE, round(side / STRIDE) * STRIDE)
