"""Sizes of network inputs: what a user may ask for, and what becomes of a picture. Whole numbers, without torch."""

from __future__ import annotations

from collections.abc import Sequence

STRIDE = 32
STRETCH, KEEP, FRAME = "stretch", "keep", "frame"
RESIZES = (STRETCH, KEEP, FRAME)
"""what ``InputSpec.resize`` may be; the last one is of exported models only"""
LONGEST = 1333 / 800
"""limit of the long side, in limits of the short one, where only that is given (as usual since Faster R-CNN)"""


def input_size(imgsz: int | Sequence[int], resize: str = STRETCH) -> tuple[int, int]:
    """``InputSpec.size`` from one number of pixels or two.

    ``stretch``: (height, width), multiples of 32. ``keep``: the limits of the short and the long side, any numbers from
    32; one number is that of the short side, and 800 gives (800, 1333). Raises ``ValueError`` for anything else.
    """
    sides = (imgsz,) if isinstance(imgsz, int) else tuple(imgsz)
    if resize == KEEP:
        if len(sides) not in (1, 2) or min(sides) < STRIDE:
            raise ValueError(
                f"imgsz={imgsz}: this model keeps the ratio of pictures; expected the limit of the short side, such as "
                f"800, or those of both, such as [800, 1333], of {STRIDE} or more"
            )
        return min(sides), max(sides) if len(sides) == 2 else round(sides[0] * LONGEST)
    sides = sides * 2 if len(sides) == 1 else sides
    if len(sides) != 2 or any(side < STRIDE or side % STRIDE for side in sides):
        near = [max(STRIDE, round(side / STRIDE) * STRIDE) for side in sides]
        raise ValueError(f"imgsz={imgsz}: expected one or two multiples of {STRIDE}, for example {near}")
    return sides[0], sides[1]


def fitted(height: float, width: float, limits: tuple[int, int]) -> tuple[int, int]:
    """The (height, width) of a picture that is resized, with its aspect ratio, to the largest size whose short side is
    at most ``min(limits)`` and whose long side is at most ``max(limits)``; each at least 1 pixel.

    375 x 1242 becomes 402 x 1333 for limits of (800, 1333).
    """
    return _scaled(height, width, min(min(limits) / min(height, width), max(limits) / max(height, width)))


def framed(height: float, width: float, frame: tuple[int, int]) -> tuple[int, int]:
    """The same for the largest size that lies inside a frame of (height, width)."""
    return _scaled(height, width, min(frame[0] / height, frame[1] / width))


def _scaled(height: float, width: float, scale: float) -> tuple[int, int]:
    return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))
