"""Location-and-context-aware memory distillation (CLoCKDistill, LCMD): the student's memory follows the teacher's,
mostly where objects are.

B images, K objects of the fullest image, L levels, P tokens of all levels, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

ALPHA, BETA = 5e-5, 1e-7
"""weights of objects and of the rest, as in the paper, for 256 channels on 4 levels"""
SLACK = 1e-4
"""a box that ends this close to the border of a cell does not reach into the next one (rounding of float32)"""
CHUNK = 64
"""boxes that are drawn at once"""


@dataclass
class Regions:
    """How much every token of one level counts, all [B, H, W] float32."""

    objects: Tensor
    """one over the area, in cells, of the smallest box that covers the token; 0 where none does"""
    rest: Tensor
    """one over the number of real tokens that no box covers, on these; 0 elsewhere"""


def bounds(low: Tensor, high: Tensor, cells: int) -> tuple[Tensor, Tensor]:
    """The cells that the interval [low, high] of 0..1 touches: first and end, half-open, at least one, as integers."""
    first = (low.float() * cells + SLACK).floor().clamp(0, cells - 1)
    end = torch.maximum((high.float() * cells - SLACK).ceil(), first + 1).clamp(max=cells)
    return first.long(), end.long()


def regions(boxes: Tensor, present: Tensor, shape: tuple[int, int], valid: Tensor | None = None) -> Regions:
    """Regions of one level of ``shape`` (H, W).

    ``boxes`` [B, K, 4] xyxy in 0..1 of the network's input, padding included; ``present`` [B, K] bool; ``valid``
    [B, H, W] bool is false on padded tokens, which count nothing.
    """
    H, W = shape
    left, right = bounds(boxes[..., 0], boxes[..., 2], W)
    top, bottom = bounds(boxes[..., 1], boxes[..., 3], H)
    area = ((right - left) * (bottom - top)).float()
    rows, columns = torch.arange(H, device=boxes.device), torch.arange(W, device=boxes.device)
    smallest = torch.full((len(boxes), H, W), torch.inf, device=boxes.device)
    for part in range(0, boxes.shape[1], CHUNK):
        some = slice(part, part + CHUNK)
        in_rows = (rows >= top[:, some, None]) & (rows < bottom[:, some, None]) & present[:, some, None]
        in_columns = (columns >= left[:, some, None]) & (columns < right[:, some, None])
        inside = in_rows[..., :, None] & in_columns[..., None, :]
        areas = torch.where(inside, area[:, some, None, None], torch.inf)
        smallest = torch.minimum(smallest, areas.amin(1))
    real = torch.ones_like(smallest, dtype=torch.bool) if valid is None else valid
    covered = smallest.isfinite() & real
    rest = ~covered & real
    count = rest.sum((1, 2), keepdim=True).clamp(min=1)
    return Regions(covered / smallest, rest / count)


def paired(strides: Sequence[float], given: Sequence[float]) -> list[int]:
    """Which of the ``given`` levels (teacher) belongs to each level of ``strides`` (student): the nearest stride, the
    finer one among equals."""
    distance = torch.log2(torch.tensor(strides)[:, None] / torch.tensor(given)[None]).abs()
    return [int(row.argmin()) for row in distance]


def fitted(x: Tensor, target: Tensor) -> Tensor:
    """A student's map on the grid of the teacher's, bilinear."""
    same = x.shape[2:] == target.shape[2:]
    return x if same else F.interpolate(x, size=target.shape[2:], mode="bilinear", align_corners=False)


def located(
    students: Sequence[Tensor], teachers: Sequence[Tensor], regions_of: Sequence[Regions]
) -> tuple[Tensor, Tensor]:
    """Squared differences of maps [B, D, H, W], summed over channels, tokens and levels with the weights of
    ``regions``, mean over images: of objects, and of the rest. Teachers have no gradient."""
    objects = rest = torch.zeros((), device=students[0].device)
    for student, teacher, region in zip(students, teachers, regions_of, strict=True):
        squares = (teacher.float() - fitted(student, teacher).float()).square().sum(1)
        objects = objects + (squares * region.objects).sum() / len(squares)
        rest = rest + (squares * region.rest).sum() / len(squares)
    return objects, rest


def plain(students: Sequence[Tensor], teachers: Sequence[Tensor], valid: Sequence[Tensor | None]) -> Tensor:
    """Mean squared difference of every level over real tokens and channels, summed over levels (Eq. 1)."""
    total = torch.zeros((), device=students[0].device)
    for student, teacher, real in zip(students, teachers, valid, strict=True):
        squares = (teacher.float() - fitted(student, teacher).float()).square().mean(1)
        total = total + (squares.mean() if real is None else squares[real].mean())
    return total
