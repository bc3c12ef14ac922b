"""Focal and Global Knowledge Distillation (FGD, Yang et al. 2022): objects and the rest apart, each where the teacher
looks, and how all places of a map relate to one another.

B images, D width, h x w cells of a map. One difference to the authors' code: the cells of a box are those of our
rasteriser (``distill.memory.bounds``); theirs takes one more cell on the right and below.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from edgecrafter.distill.base import Student
from edgecrafter.distill.detector import DetectorTeacher
from edgecrafter.distill.memory import Regions, regions
from edgecrafter.distill.neck import NeckDistiller, Pair, at_least_zero, known, objects_of
from edgecrafter.types import Batch


class Weights(NamedTuple):
    """What the four parts of the loss are multiplied by, and the temperature of attention."""

    alpha: float
    """differences where objects are"""
    beta: float
    """differences elsewhere"""
    gamma: float
    """difference of the attention itself"""
    relation: float
    """difference of the global context; lambda in the paper"""
    temperature: float


PRESETS = {
    "one_stage": Weights(1e-3, 5e-4, 5e-4, 5e-6, 0.5),
    "two_stage": Weights(5e-5, 2.5e-5, 5e-5, 5e-7, 0.5),
    "anchor_free": Weights(1.6e-3, 8e-4, 8e-4, 8e-6, 0.8),
}
"""the authors' settings for RetinaNet and GFL (here the default), for Faster R-CNN, and for FCOS"""


@dataclass
class FGDOptions:
    """Options of ``--distill fgd``, such as ``--distill fgd,teacher=runs/detect/large``.

    | preset | alpha | beta | gamma | relation | temperature |
    | --- | --- | --- | --- | --- | --- |
    | one_stage (default, ours: the authors have none for DETR) | 1e-3 | 5e-4 | 5e-4 | 5e-6 | 0.5 |
    | two_stage | 5e-5 | 2.5e-5 | 5e-5 | 5e-7 | 0.5 |
    | anchor_free | 1.6e-3 | 8e-4 | 8e-4 | 8e-6 | 0.8 |
    """

    teacher: str = ""
    """who teaches: the run, file or name of a detector"""
    teacher_weights: str = "pretrained"
    """pretrained (its own) or none (random, as a control)"""
    preset: str = "one_stage"
    """the authors' settings for one_stage, two_stage or anchor_free detectors"""
    alpha: float | None = None
    """weight where objects are; none: the preset's"""
    beta: float | None = None
    """weight elsewhere; none: the preset's"""
    gamma: float | None = None
    """weight of the difference of attention; none: the preset's"""
    relation: float | None = None
    """weight of the global context (lambda); none: the preset's"""
    temperature: float | None = None
    """of attention; none: the preset's"""

    def __post_init__(self) -> None:
        known("preset", self.preset, PRESETS)
        at_least_zero(self, Weights._fields)
        if self.temperature == 0:
            raise ValueError("temperature=0: expected a number above 0")

    def weights(self) -> Weights:
        """The preset with what was given."""
        given = {name: getattr(self, name) for name in Weights._fields if getattr(self, name) is not None}
        return PRESETS[self.preset]._replace(**given)


class ContextBlock(nn.Module):
    """Global context (GcBlock, Cao et al. 2019): what the map says where it matters, added to every cell."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.score = nn.Conv2d(width, 1, 1)
        self.narrow = nn.Linear(width, width // 2)
        self.norm = nn.LayerNorm(width // 2)
        self.widen = nn.Linear(width // 2, width)
        nn.init.zeros_(self.widen.weight)
        nn.init.zeros_(self.widen.bias)

    def forward(self, x: Tensor, real: Tensor | None = None) -> Tensor:
        """[B, D, h, w] -> the same; ``real`` [B, h, w] bool: cells that are picture."""
        score = self.score(x)[:, 0]
        share = (score if real is None else score.masked_fill(~real, -torch.inf)).flatten(1).softmax(1)
        context = torch.einsum("bdp,bp->bd", x.flatten(2), share)
        return x + self.widen(self.norm(self.narrow(context)).relu())[:, :, None, None]  # type: ignore[no-any-return]


class FGD(NeckDistiller):
    """Differences weighted by the teacher's attention, of objects and of the rest; difference of the attention; and of
    the maps behind a context block, one of the student's and one of the teacher's for every level, both trained."""

    name = "fgd"
    options: FGDOptions

    def __init__(self, options: FGDOptions, teacher: DetectorTeacher, student: Student) -> None:
        super().__init__(options, teacher, student)
        self.weights = options.weights()
        self.own = nn.ModuleList(ContextBlock(width) for width in self.widths)
        self.other = nn.ModuleList(ContextBlock(width) for width in self.widths)

    def compare(self, pairs: Sequence[Pair], batch: Batch) -> dict[str, Tensor]:
        boxes, present = objects_of(batch)
        sums: list[Tensor] = []
        for pair, own, other in zip(pairs, self.own, self.other, strict=True):
            size = (pair.teacher.shape[2], pair.teacher.shape[3])
            attention = attended(pair.teacher, self.weights.temperature, pair.real)
            found = attended(pair.student, self.weights.temperature, pair.real)
            focal = focused(pair, attention, regions(boxes, present, size, pair.real))
            related = relation(own(pair.student, pair.real), other(pair.teacher, pair.real), pair.real)
            sums.append(torch.stack([*focal, looking(found, attention), related]))
        total = torch.stack(sums).sum(0)
        parts = zip(("objects", "rest", "attention", "relation"), self.weights, total.unbind(), strict=False)
        return {f"{self.name}_{part}": weight * value for part, weight, value in parts}

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), **self.weights._asdict()}

    def told(self) -> list[str]:
        return ["  " + ", ".join(f"{name} {value:g}" for name, value in self.weights._asdict().items())]


def attended(x: Tensor, temperature: float, real: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Where and in which channels a map [B, D, h, w] is large: [B, h, w] and [B, D], each with a mean of 1 (over the
    ``real`` cells [B, h, w] bool; padding has 0)."""
    size = x.abs()
    flat = torch.ones_like(x[:, 0]) if real is None else real.to(x.dtype)
    count = flat.sum((1, 2)).clamp(min=1)
    where = size.mean(1) / temperature
    where = (where if real is None else where.masked_fill(~real, -torch.inf)).flatten(1).softmax(1).view_as(flat)
    channels = (size * flat[:, None]).sum((2, 3)) / count[:, None] / temperature
    return where * count[:, None, None], channels.softmax(1) * x.shape[1]


def focused(pair: Pair, attention: tuple[Tensor, Tensor], region: Regions) -> tuple[Tensor, Tensor]:
    """Squared differences, weighted by the teacher's attention: summed where objects are and elsewhere, each object and
    the rest with a total weight of 1; mean over images."""
    where, channels = attention
    squares = ((pair.teacher - pair.student).square() * channels[:, :, None, None]).sum(1) * where
    return (squares * region.objects).sum() / len(squares), (squares * region.rest).sum() / len(squares)


def looking(student: tuple[Tensor, Tensor], teacher: tuple[Tensor, Tensor]) -> Tensor:
    """Absolute differences of both kinds of attention, summed; mean over images."""
    parts = [(own - other).abs().sum() for own, other in zip(student, teacher, strict=True)]
    return torch.stack(parts).sum() / len(student[0])


def relation(student: Tensor, teacher: Tensor, real: Tensor | None = None) -> Tensor:
    """Squared differences of two maps, summed over channels and real cells; mean over images."""
    squares = (student - teacher).square().sum(1)
    return (squares if real is None else squares * real).sum() / len(squares)
