"""Photometric distortion in the manner of SSD (Liu et al. 2016), composed into one colour matrix per picture.

Brightness, contrast, saturation and hue are all linear maps of a colour, so their product is drawn first and applied
once, in bytes. Three things differ from SSD: contrast turns about a middle gray, so that bright pictures do not become
white; saturation and hue act on the chroma plane of YIQ instead of HSV; clipping to 0..255 happens once, at the end.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

BRIGHTNESS = 32.0
"""added to all channels, at most, of 255"""
CONTRAST = (0.5, 1.5)
MIDDLE = 114.0
"""gray that contrast leaves alone, of 255: the mean of ImageNet"""
SATURATION = (0.5, 1.5)
HUE = 18.0
"""degrees, at most, to either side"""

YIQ = np.array([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
"""RGB to luma and chroma (NTSC)"""
RGB = np.linalg.inv(YIQ)


def distortion(rng: np.random.Generator, probability: float) -> tuple[float, ...] | None:
    """A random colour matrix, the 12 numbers [3, 4] that ``PIL.Image.Image.convert`` takes; None: leave it as it is.

    Each of the four parts is drawn with ``probability`` on its own (SSD: 0.5).
    """
    brightness, contrast, saturation, hue = rng.random(4) < probability
    if not (brightness or contrast or saturation or hue):
        return None
    added = rng.uniform(-BRIGHTNESS, BRIGHTNESS) if brightness else 0.0
    gain = rng.uniform(*CONTRAST) if contrast else 1.0
    chroma = rng.uniform(*SATURATION) if saturation else 1.0
    angle = np.deg2rad(rng.uniform(-HUE, HUE)) if hue else 0.0
    offset = gain * added + (1 - gain) * MIDDLE
    return tuple(np.column_stack([gain * turn(chroma, angle), np.full(3, offset)]).ravel().tolist())


def turn(chroma: float, angle: float) -> NDArray[np.float64]:
    """[3, 3] map of RGB that scales the chroma and turns the hue by ``angle`` (radians); grays stay as they are."""
    cos, sin = chroma * np.cos(angle), chroma * np.sin(angle)
    return np.asarray(RGB @ np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]]) @ YIQ)
