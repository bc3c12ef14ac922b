"""Masked Generative Distillation (MGD, Yang et al. 2022): from a part of its own map a student makes the teacher's.

B images, D width, h x w cells of a map.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from edgecrafter.distill.base import Student
from edgecrafter.distill.detector import DetectorTeacher
from edgecrafter.distill.fgd import relation
from edgecrafter.distill.neck import NeckDistiller, Pair, at_least_zero, known
from edgecrafter.types import Batch


class Weights(NamedTuple):
    """The two numbers of the method."""

    alpha: float
    """weight of the loss"""
    masked: float
    """share of the cells that are hidden; lambda in the paper"""


PRESETS = {"one_stage": Weights(2e-5, 0.65), "two_stage": Weights(5e-7, 0.45)}
"""the authors' settings"""


@dataclass
class MGDOptions:
    """Options of ``--distill mgd``, such as ``--distill mgd,teacher=runs/detect/large``.

    | preset | alpha | masked |
    | --- | --- | --- |
    | one_stage (default, ours: the authors have none for DETR) | 2e-5 | 0.65 |
    | two_stage | 5e-7 | 0.45 |
    """

    teacher: str = ""
    """who teaches: the run, file or name of a detector"""
    teacher_weights: str = "pretrained"
    """pretrained (its own) or none (random, as a control)"""
    preset: str = "one_stage"
    """the authors' settings for one_stage or two_stage detectors"""
    alpha: float | None = None
    """weight of the squared difference, which is summed over channels, cells and levels; none: the preset's"""
    masked: float | None = None
    """share of the student's cells that are hidden, 0 to 1; none: the preset's"""

    def __post_init__(self) -> None:
        known("preset", self.preset, PRESETS)
        at_least_zero(self, Weights._fields)
        if self.masked is not None and self.masked > 1:
            raise ValueError(f"masked={self.masked}: expected a share between 0 and 1")

    def weights(self) -> Weights:
        """The preset with what was given."""
        given = {name: getattr(self, name) for name in Weights._fields if getattr(self, name) is not None}
        return PRESETS[self.preset]._replace(**given)


class MGD(NeckDistiller):
    """Cells of the student's map are hidden at random, in all channels; two convolutions, trained for every level, make
    the teacher's map of what is left.

    Which cells are hidden is a function of the seed and the number of batches seen, which is kept with the run: a run
    that goes on hides what it would have hidden.
    """

    name = "mgd"
    options: MGDOptions
    seen: Tensor
    """batches"""

    def __init__(self, options: MGDOptions, teacher: DetectorTeacher, student: Student, seed: int = 0) -> None:
        super().__init__(options, teacher, student)
        self.weights, self.seed = options.weights(), seed
        self.generators = nn.ModuleList(generator(width) for width in self.widths)
        self.register_buffer("seen", torch.tensor(0))

    def compare(self, pairs: Sequence[Pair], batch: Batch) -> dict[str, Tensor]:
        rng = np.random.default_rng([self.seed, int(self.seen)])
        losses = []
        for pair, make in zip(pairs, self.generators, strict=True):
            B, _, h, w = pair.student.shape
            shown = kept(rng, (B, 1, h, w), self.weights.masked).to(pair.student.device)
            if pair.real is not None:
                shown = shown * pair.real[:, None]  # nothing is made of padding
            losses.append(relation(make(pair.student * shown), pair.teacher, pair.real))
        self.seen += 1
        return {self.name: self.weights.alpha * torch.stack(losses).sum()}

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), **self.weights._asdict()}

    def told(self) -> list[str]:
        return [f"  weight {self.weights.alpha:g}, {100 * self.weights.masked:g} % of the cells hidden"]


def generator(width: int) -> nn.Sequential:
    """Two 3x3 convolutions with a ReLU between, [B, D, h, w] -> the same."""
    first, second = (nn.Conv2d(width, width, 3, padding=1) for _ in range(2))
    return nn.Sequential(first, nn.ReLU(), second)


def kept(rng: np.random.Generator, shape: tuple[int, ...], masked: float) -> Tensor:
    """Zeros with the probability ``masked``, else ones, float32."""
    return torch.from_numpy((rng.random(shape) >= masked).astype(np.float32))
