"""Small pictures and annotations for tests, and an oracle that knows the answers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from edgecrafter.data.annotations import Annotations, pack
from edgecrafter.types import Labels, LayerOutput, Outputs

Row = tuple[int, tuple[float, float, float, float], bool]
"""label, box xyxy in pixels, crowd"""


def annotations(
    labels: Labels, objects: Sequence[Sequence[Row]], sizes: Sequence[tuple[int, int]], root: Path = Path("nowhere")
) -> Annotations:
    """One list of objects and one (height, width) per picture; image ids are 10, 20, ...; pictures are 0.png, 1.png."""
    rows = [row for each in objects for row in each]
    boxes = np.array([row[1] for row in rows], np.float32).reshape(-1, 4)
    names, name_offsets = pack([f"{index}.png" for index in range(len(objects))])
    return Annotations(
        root=root,
        labels=labels,
        image_ids=np.arange(1, len(objects) + 1, dtype=np.int64) * 10,
        sizes=np.array(sizes, np.int32).reshape(-1, 2),
        names=names,
        name_offsets=name_offsets,
        offsets=np.cumsum([0, *(len(each) for each in objects)], dtype=np.int64),
        boxes=boxes,
        classes=np.array([row[0] for row in rows], np.int64),
        areas=(boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]),
        crowd=np.array([row[2] for row in rows], bool),
        ids=np.arange(1, len(rows) + 1, dtype=np.int64),
    )


def picture(size: tuple[int, int], seed: int = 0) -> Image.Image:
    """Soft coloured noise of (height, width)."""
    rng = np.random.default_rng(seed)
    cells = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
    return cells.resize(size[::-1], Image.Resampling.BICUBIC)


def random_objects(
    rng: np.random.Generator, classes: Sequence[int], size: tuple[int, int], most: int = 12
) -> list[Row]:
    """Up to ``most`` objects of any size inside a picture, one in ten of them a crowd."""
    found: list[Row] = []
    for _ in range(rng.integers(0, most + 1)):
        extent = np.array(size[::-1]) * rng.uniform(0.02, 0.7, 2)
        low = rng.uniform(0, np.array(size[::-1]) - extent)
        box = tuple(float(value) for value in np.concatenate([low, low + extent]))
        found.append((int(rng.choice(classes)), box, bool(rng.random() < 0.1)))  # type: ignore[arg-type]
    return found


class Oracle(nn.Module):
    """Answers with the truth, picture by picture in the order of the annotations, sure of each object.

    ``renamed`` turns the labels of the data into those of the model that it plays.
    """

    def __init__(self, truth: Annotations, classes: int, renamed: Sequence[int] | None = None) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))
        self.truth, self.classes, self.next = truth, classes, 0
        self.renamed = list(range(classes)) if renamed is None else list(renamed)

    def forward(self, images: Tensor) -> Outputs:
        logits = torch.full((len(images), 20, self.classes), -9.0)
        boxes = torch.full((len(images), 20, 4), 0.5)
        for i in range(len(images)):
            height, width = self.truth.sizes[self.next]
            rows = self.truth.objects(self.next)
            for query, (label, box) in enumerate(zip(self.truth.classes[rows], self.truth.boxes[rows], strict=True)):
                x0, y0, x1, y1 = box / (width, height, width, height)
                logits[i, query, self.renamed[label]] = 4.0 - 0.1 * query
                boxes[i, query] = torch.tensor([(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0])
            self.next += 1
        return Outputs([LayerOutput(logits, boxes)])
