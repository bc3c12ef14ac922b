"""Generated scenes: a small data set in COCO format with boxes, masks and keypoints, for trying things out.

Balls, crates, stars and kites of many sizes and colours lie on soft backgrounds, cover one another and cast shadows;
for keypoints there are scenes of kites and planes.
The pictures depend on the seed only. What the annotations say is what can be seen: boxes and polygons belong to the
visible part, and the polygon of an object decodes to exactly the pixels that show it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from edgecrafter.data.outlines import outlines
from edgecrafter.data.shapes import EDGES, POINTS, POSED, SHAPES, Floats, Maker, Shape

Window = tuple[slice, slice]
"""rows and columns of a picture"""

FINE = 4
"""outlines are drawn this many times larger and averaged, for smooth edges"""
LEAST_VISIBLE = 0.55
"""share of every object that has to stay visible"""
PALETTE = np.array(
    [
        *([226, 74, 60], [244, 162, 58], [250, 214, 90], [88, 170, 92], [52, 138, 186]),
        *([86, 84, 168], [190, 92, 160], [246, 240, 226], [58, 66, 84], [120, 200, 200]),
    ],
    dtype=np.float64,
)


@dataclass(frozen=True)
class Kind:
    """What a scene is like."""

    most: int
    """things in it"""
    least: float
    """radius of a thing in sides of the picture; the largest are 3.4 times as large"""


CROWDED = Kind(most=7, least=0.065)
CALM = Kind(most=2, least=0.1)
"""a few large things"""


@dataclass
class Thing:
    """A shape in its place, in pixels of the picture."""

    shape: Shape
    mask: NDArray[np.bool_]
    """[H, W] what can be seen of it"""
    whole: float
    """pixels it would show if nothing covered it and the picture did not end"""
    keypoints: Floats | None
    """[K, 3] x, y and COCO visibility (0 outside, 1 covered, 2 visible)"""


@dataclass
class Scene:
    """One picture [H, W, 3] uint8 and what is in it, from back to front."""

    image: NDArray[np.uint8]
    things: list[Thing]


def write(
    folder: str | Path,
    train: int = 480,
    val: int = 40,
    size: int = 320,
    seed: int = 0,
    shapes: Mapping[str, Maker] | None = None,
    kind: Kind | None = None,
) -> Path:
    """Write ``train`` and ``val`` pictures of ``size`` x ``size`` pixels as a COCO data set; gives back the folder.

    Makes ``images/*.jpg`` and ``annotations/instances_{train,val}.json``. ``shapes`` are the classes and what draws
    them, each as often as the others; None: ``shapes.SHAPES``. With ``shapes.POSED`` everything has keypoints. ``kind``
    says how many things there are and how large; None: ``CROWDED``. Raises ValueError when the folder holds other
    files.
    """
    shapes = SHAPES if shapes is None else shapes
    folder = Path(folder)
    if folder.is_dir() and any(entry.name not in ("images", "annotations") for entry in folder.iterdir()):
        raise ValueError(f"{folder} holds other files. Give an empty or new folder for the generated scenes.")
    for part in ("images", "annotations"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for number, (split, count) in enumerate((("train", train), ("val", val))):
        coco = _Coco(list(shapes))
        for index in range(count):
            found = scene(np.random.default_rng([seed, number, index]), size, shapes, kind or CROWDED)
            name = f"{split}_{index:05d}.jpg"
            Image.fromarray(found.image).save(folder / "images" / name, quality=90)
            coco.add(name, found)
        (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(coco.tree()))
    return folder


def scene(
    rng: np.random.Generator, size: int = 320, shapes: Mapping[str, Maker] = SHAPES, kind: Kind = CROWDED
) -> Scene:
    """Draw one scene of ``size`` x ``size`` pixels; about one in thirty is empty."""
    canvas = background(rng, size)
    things: list[Thing] = []
    wanted = 0 if rng.random() < 1 / 30 else int(rng.integers(1, kind.most + 1))
    for _ in range(3 * wanted):
        if len(things) < wanted:
            _place(canvas, things, rng, shapes, kind.least)
    noisy = canvas + rng.uniform(1, 6) * rng.standard_normal(canvas.shape, dtype=np.float32)
    return Scene(np.clip(noisy, 0, 255).astype(np.uint8), things)


def background(rng: np.random.Generator, size: int) -> Floats:
    """A gradient between two muted colours with cloudy patches, [size, size, 3] in 0..255."""
    first, second = rng.uniform(60, 225, (2, 3)) * 0.6 + rng.uniform(40, 90, (2, 1))
    angle = rng.uniform(0, 2 * np.pi)
    along = np.arange(size) / size - 0.5
    share = np.clip(0.5 + along * np.cos(angle) + along[:, None] * np.sin(angle), 0, 1)[..., None]
    clouds = np.zeros((size, size))
    for cells in (3, 7, 17):
        coarse = Image.fromarray(rng.normal(0, 45 / cells**0.5, (cells, cells)).astype(np.float32))
        clouds += np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC))
    mixed: Floats = first + (second - first) * share + clouds[..., None]
    return mixed


def _place(
    canvas: Floats, things: list[Thing], rng: np.random.Generator, shapes: Mapping[str, Maker], least: float
) -> None:
    """Put one more thing in front, or change nothing when there is no room for it."""
    size = len(canvas)
    shape = shapes[str(rng.choice(list(shapes)))](rng)
    radius = size * least * 3.4 ** rng.random()
    centre = rng.uniform(0.04 * size, 0.96 * size, 2)
    turn = rng.uniform(-np.pi / 5, np.pi / 5)
    rotation = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    polygons = [outline @ rotation * radius + centre for outline in shape.outline]
    window = _window(polygons, size)
    alpha = _coverage(polygons, window)
    mask = np.zeros((size, size), dtype=bool)
    mask[window] = alpha > 0.5
    whole = sum(_area(polygon) for polygon in polygons)
    if mask.sum() < LEAST_VISIBLE * whole or not _fits(mask, things):
        return
    for thing in things:
        _cover(thing, mask)
    points = None if shape.keypoints is None else _seen(shape.keypoints @ rotation * radius + centre, size)
    things.append(Thing(shape, mask, whole, points))
    y, x = np.mgrid[window] + 0.5
    local = (np.stack([x, y], -1) - centre) @ rotation.T / radius
    main, second = PALETTE[rng.choice(len(PALETTE), 2, replace=False)] / 255
    paint = np.clip(shape.paint(local[..., 0], local[..., 1], (main, second)), 0, 1.15) * 255
    _drop_shadow(canvas, alpha, window, radius)
    canvas[window] += (paint - canvas[window]) * alpha[..., None]


def _window(polygons: list[Floats], size: int) -> Window:
    """The rows and columns of the picture that the polygons reach, with a pixel around them."""
    points = np.concatenate(polygons)
    low = np.clip(np.floor(points.min(0)).astype(int) - 1, 0, size - 1)
    high = np.clip(np.ceil(points.max(0)).astype(int) + 1, low + 1, size)
    return slice(int(low[1]), int(high[1])), slice(int(low[0]), int(high[0]))


def _coverage(polygons: list[Floats], window: Window) -> Floats:
    """Share of every pixel of the window that the polygons cover, [h, w] in 0..1."""
    rows, columns = window
    fine = Image.new("L", ((columns.stop - columns.start) * FINE, (rows.stop - rows.start) * FINE))
    for polygon in polygons:
        inside = (polygon - (columns.start, rows.start)) * FINE
        ImageDraw.Draw(fine).polygon([(x, y) for x, y in inside.tolist()], fill=255)
    return np.asarray(fine.reduce(FINE), dtype=np.float64) / 255


def _area(polygon: Floats) -> float:
    x, y = polygon.T
    return float(abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2)


def _drop_shadow(canvas: Floats, alpha: Floats, window: Window, radius: float) -> None:
    """Darken the canvas below and to the right of a thing."""
    step, soft = max(1, round(0.12 * radius)), round(0.3 * radius)
    rows, columns = window
    top, left = max(0, rows.start + step - soft), max(0, columns.start + step - soft)
    part = canvas[top : rows.stop + step + soft, left : columns.stop + step + soft]
    sheet = Image.new("L", (part.shape[1], part.shape[0]))
    sheet.paste(Image.fromarray((alpha * 255).astype(np.uint8)), (columns.start + step - left, rows.start + step - top))
    dark = np.asarray(sheet.filter(ImageFilter.GaussianBlur(0.12 * radius)), dtype=np.float64) / 255
    part *= 1 - 0.4 * dark[..., None]


def _fits(mask: NDArray[np.bool_], things: list[Thing]) -> bool:
    """Whether everything behind stays visible enough, in one frame (no holes: a polygon cannot say them)."""
    box = _box(mask)
    for thing in things:
        left = thing.mask & ~mask
        x0, y0, x1, y1 = _box(thing.mask)
        inside = box[0] >= x0 and box[1] >= y0 and box[2] <= x1 and box[3] <= y1
        if inside or left.sum() < LEAST_VISIBLE * thing.whole:
            return False
    return True


def _box(mask: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """xyxy in pixels, right and bottom exclusive."""
    columns, rows = np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _seen(points: Floats, size: int) -> Floats:
    """[K, 2] -> [K, 3] with visibility 2 inside the picture; COCO writes 0, 0, 0 outside."""
    inside = np.all((points >= 0) & (points < size), axis=1, keepdims=True)
    return np.where(inside, np.column_stack([points, np.full(len(points), 2.0)]), 0.0)


def _cover(thing: Thing, mask: NDArray[np.bool_]) -> None:
    """Take what lies below the mask out of a thing's sight."""
    thing.mask &= ~mask
    if thing.keypoints is not None:
        x, y, visible = thing.keypoints.T
        below = mask[y.astype(int), x.astype(int)] & (visible == 2)
        thing.keypoints[below, 2] = 1


class _Coco:
    """Collects scenes into the tree of one COCO file; category ids count from 1."""

    def __init__(self, names: list[str]) -> None:
        self.names = names
        self.images: list[dict[str, Any]] = []
        self.annotations: list[dict[str, Any]] = []

    def add(self, name: str, found: Scene) -> None:
        height, width = found.image.shape[:2]
        number = len(self.images) + 1
        self.images.append({"id": number, "file_name": name, "height": height, "width": width})
        for thing in found.things:
            self.annotations.append({"id": len(self.annotations) + 1, "image_id": number, **self._object(thing)})

    def tree(self) -> dict[str, Any]:
        posed = {"keypoints": list(POINTS), "skeleton": [[a + 1, b + 1] for a, b in EDGES]}
        categories = [
            {"id": i + 1, "name": name, **(posed if name in POSED else {})} for i, name in enumerate(self.names)
        ]
        return {"images": self.images, "annotations": self.annotations, "categories": categories}

    def _object(self, thing: Thing) -> dict[str, Any]:
        x0, y0, x1, y1 = _box(thing.mask)
        found = {
            "category_id": self.names.index(thing.shape.name) + 1,
            "bbox": [x0, y0, x1 - x0, y1 - y0],
            "area": int(thing.mask.sum()),
            "segmentation": outlines(thing.mask),
            "iscrowd": 0,
        }
        if thing.keypoints is not None:
            found["keypoints"] = [round(float(number), 2) for number in thing.keypoints.ravel()]
            found["num_keypoints"] = int((thing.keypoints[:, 2] > 0).sum())
        return found
