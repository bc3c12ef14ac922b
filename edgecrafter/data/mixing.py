"""Steps that mix several pictures: the mosaic of four, and MixUp of a batch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edgecrafter.data.objects import Objects, join
from edgecrafter.data.placement import Placement

MIXUP_RATIO = (0.45, 0.55)


def mosaic(sizes: Sequence[tuple[int, int]], canvas: tuple[int, int]) -> list[Placement]:
    """Four whole pictures of ``sizes`` (h, w) as the 2 x 2 tiles of ``canvas`` (h, w), row by row."""
    h, w = canvas
    middle_y, middle_x = h // 2, w // 2
    tiles = [(x0, y0, x1, y1) for y0, y1 in ((0, middle_y), (middle_y, h)) for x0, x1 in ((0, middle_x), (middle_x, w))]
    return [Placement((0, 0, size[1], size[0]), tile) for size, tile in zip(sizes, tiles, strict=True)]


def mixup(images: NDArray[np.uint8], objects: Sequence[Objects], rng: np.random.Generator) -> list[Objects]:
    """Blend every image of a batch with the one before it (the first with the last), and keep the objects of both.

    ``images`` [B, 3, H, W] uint8 is changed in place. There is one ratio, uniform in ``MIXUP_RATIO``, for the batch;
    nothing is weighted by it later on. A batch of one image stays as it is. As in the released code.
    """
    share = float(rng.uniform(*MIXUP_RATIO))
    if len(images) == 1:
        return list(objects)
    mix(images, share)
    return [join([objects[i], objects[i - 1]]) for i in range(len(objects))]


def mix(images: NDArray[np.uint8], share: float) -> None:
    """Make every image of a batch [B, 3, H, W] consist of ``share`` of itself and the rest of the one before it (the
    first: of the last), in place."""
    last = images[-1].copy()
    for i in reversed(range(len(images))):
        for plane, other in zip(images[i], images[i - 1] if i else last, strict=True):
            blend(plane, other, round(share * 256))


def blend(image: NDArray[np.uint8], other: NDArray[np.uint8], ratio: int) -> None:
    """Make ``image`` consist of ``ratio`` 256ths of itself and the rest of the other, rounded.

    16 bit just hold it, so that no floats are needed; small arrays stay in the processor's cache.
    """
    total = np.multiply(image, np.uint16(ratio), dtype=np.uint16)
    total += np.multiply(other, np.uint16(256 - ratio), dtype=np.uint16)
    total += np.uint16(128)
    np.right_shift(total, 8, out=image, casting="unsafe")
