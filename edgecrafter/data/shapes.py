"""The things in the generated scenes: outlines, keypoints and paint of balls, crates, stars, kites and planes.

A shape lives in its own frame: ``u`` to the right, ``v`` down, its body roughly inside the unit circle. The outline is
a list of polygons, the paint a function of (u, v) to RGB, so that a scene can turn, scale and place it as it likes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Colours = tuple[Floats, Floats]
"""main and second colour, each [3] in 0..1"""

POINTS = ("nose", "left", "right", "base", "tail")
"""keypoints of every shape that has some; left and right are the tips of its wings"""
EDGES = ((0, 1), (0, 2), (1, 3), (2, 3), (3, 4))


@dataclass(frozen=True)
class Shape:
    """One thing before it is placed."""

    name: str
    outline: list[Floats]
    """polygons, each [P, 2] in (u, v)"""
    paint: Callable[[Floats, Floats, Colours], Floats]
    """(u [h, w], v [h, w], colours) -> [h, w, 3] in 0..1"""
    keypoints: Floats | None = None
    """[K, 2] in (u, v), named by ``POINTS``"""


def ball(rng: np.random.Generator) -> Shape:
    """A beach ball with six segments."""
    angle = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    return Shape("ball", [np.stack([np.cos(angle), np.sin(angle)], 1)], _segments)


def crate(rng: np.random.Generator) -> Shape:
    """A rectangle of planks with a frame, between two to three and three to two."""
    width = rng.uniform(0.66, 1.0)
    height = rng.uniform(0.66, 1.0)
    corners = np.array([[-width, -height], [width, -height], [width, height], [-width, height]])

    def planks(u: Floats, v: Floats, colours: Colours) -> Floats:
        frame = (np.abs(u) > width - 0.17) | (np.abs(v) > height - 0.17)
        gap = np.mod(v / height * 2.5, 1.0) < 0.12
        return _pick(colours, frame) * np.where(gap & ~frame, 0.55, 1.0)[..., None]

    return Shape("crate", [corners], planks)


def star(rng: np.random.Generator) -> Shape:
    """A five-pointed star, thin or thick, brighter in the middle."""
    angle = np.arange(10) * np.pi / 5 - np.pi / 2
    radius = np.where(np.arange(10) % 2 == 0, 1.0, rng.uniform(0.40, 0.55))
    return Shape("star", [np.stack([np.cos(angle), np.sin(angle)], 1) * radius[:, None]], _glow)


def kite(rng: np.random.Generator) -> Shape:
    """A kite with a waving tail; it has keypoints."""
    wing, cross = rng.uniform(0.55, 0.75), rng.uniform(-0.45, -0.15)
    nose, left, right, base = (np.array(p) for p in ((0.0, -1.0), (-wing, cross), (wing, cross), (0.0, 0.6)))
    along = np.linspace(0, 1, 24)
    wave = rng.choice([-1.0, 1.0]) * 0.16 * np.sin(along * rng.uniform(1.2, 2.2) * np.pi)
    tail = np.stack([wave, 0.55 + along * rng.uniform(0.7, 1.0)], 1)
    half = np.array([0.05, 0.0])
    ribbon = np.concatenate([tail - half, (tail + half)[::-1]])

    def sails(u: Floats, v: Floats, colours: Colours) -> Floats:
        checks = ((u > 0) ^ (v > cross)) | (v > 0.6)
        spar = ((np.abs(u) < 0.045) & (v < 0.6)) | (np.abs(v - cross) < 0.045)
        return _pick(colours, checks) * np.where(spar, 0.45, 1.0)[..., None]

    points = np.stack([nose, left, right, base, tail[-1]])
    return Shape("kite", [np.stack([nose, right, base, left]), ribbon], sails, points)


def plane(rng: np.random.Generator) -> Shape:
    """An aeroplane seen from above, with more or less swept wings; it has the keypoints of a kite."""
    span, sweep = rng.uniform(0.75, 1.0), rng.uniform(0.05, 0.55)
    half = [(0.13, -0.72), (0.15, -0.34), (span, sweep - 0.09), (span, sweep + 0.09), (0.15, 0.16), (0.11, 0.66)]
    half += [(0.4, 0.92), (0.4, 1.06), (0.07, 1.0)]
    tip, end = (0.0, -1.0), (0.0, 1.12)
    outline = np.array([tip, *half, end, *((-u, v) for u, v in reversed(half))])

    def stripes(u: Floats, v: Floats, colours: Colours) -> Floats:
        second = (np.abs(u) > span - 0.22) | (v > 0.72) | (v < -0.78)
        window = (np.abs(u) < 0.07) & (np.abs(v + 0.6) < 0.09)
        return _pick(colours, second) * np.where(window, 0.4, 1.0)[..., None]

    return Shape("plane", [outline], stripes, np.array([tip, (-span, sweep), (span, sweep), (0.0, 0.7), end]))


Maker = Callable[[np.random.Generator], Shape]
SHAPES: dict[str, Maker] = {"ball": ball, "crate": crate, "star": star, "kite": kite}
"""the usual things"""
POSED: dict[str, Maker] = {"kite": kite, "plane": plane}
"""all that have keypoints"""


def _segments(u: Floats, v: Floats, colours: Colours) -> Floats:
    """Six segments around an off-centre pole, and a highlight."""
    pole_u, pole_v = u + 0.25, v + 0.3
    odd = np.floor(np.arctan2(pole_v, pole_u) / (np.pi / 3)) % 2 == 0
    light = 1.25 - 0.55 * np.hypot(u + 0.35, v + 0.4)
    return _pick(colours, odd & (np.hypot(pole_u, pole_v) > 0.16)) * light[..., None]


def _glow(u: Floats, v: Floats, colours: Colours) -> Floats:
    share = np.clip(np.hypot(u, v), 0, 1)[..., None]
    return (1 - share) * (0.35 + 0.65 * colours[0]) + share * colours[0]


def _pick(colours: Colours, second: NDArray[np.bool_]) -> Floats:
    return np.where(second[..., None], colours[1], colours[0])
