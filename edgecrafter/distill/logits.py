"""Target-aware consistent logit distillation (CLoCKDistill, TCLD): on the same questions, the student answers as the
teacher does.

B images, G questions, C classes, E stages (decoder layers).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from edgecrafter.geometry import boxes as geometry
from edgecrafter.types import LayerOutput

TEMPERATURE = 10.0
WEIGHTS = (1.0, 5.0, 2.0)
"""of classes, L1 and GIoU, as in the paper"""


class Sums(NamedTuple):
    """What one stage adds up over all questions, before it is divided by ``weight``."""

    classes: Tensor
    l1: Tensor
    giou: Tensor
    weight: Tensor


def divergence(teacher: Tensor, student: Tensor, temperature: float, independent: bool = False) -> Tensor:
    """Kullback-Leibler divergence of class logits [..., C] -> [...], times the temperature squared.

    Of the softmax over the classes, which says nothing with a single class and does not see a shift of all logits; or
    ``independent``: the sum over the classes of that of their sigmoids.
    """
    kind = torch.promote_types(teacher.dtype, torch.float32)
    t, s = teacher.to(kind) / temperature, student.to(kind) / temperature
    if independent:
        p = t.sigmoid()
        kept = p * (F.logsigmoid(t) - F.logsigmoid(s)) + (1 - p) * (F.logsigmoid(-t) - F.logsigmoid(-s))
        return kept.sum(-1) * temperature**2
    wanted, found = t.log_softmax(-1), s.log_softmax(-1)
    return (wanted.exp() * (wanted - found)).sum(-1) * temperature**2


def confidence(teacher: Tensor) -> Tensor:
    """How sure a teacher is of a question: its best score, logits [..., C] -> [...]."""
    return teacher.float().sigmoid().amax(-1)


def compare(
    teacher: LayerOutput, student: LayerOutput, importance: Tensor, temperature: float, independent: bool
) -> Sums:
    """One stage: differences of all questions, each counted by its ``importance`` [B, G] (0: padding) times the
    teacher's confidence."""
    assert teacher.boxes is not None and student.boxes is not None
    weight = importance * confidence(teacher.logits)
    wanted, found = teacher.boxes.float(), student.boxes.float()
    corners = geometry.cxcywh_to_xyxy(found).flatten(0, -2), geometry.cxcywh_to_xyxy(wanted).flatten(0, -2)
    giou = 1 - geometry.giou_paired(*corners).view(weight.shape)
    classes = divergence(teacher.logits, student.logits, temperature, independent)
    l1 = (found - wanted).abs().mean(-1)
    return Sums((weight * classes).sum(), (weight * l1).sum(), (weight * giou).sum(), weight.sum())


def stages(
    teacher: Sequence[LayerOutput], student: Sequence[LayerOutput], final: bool = False
) -> list[tuple[int, int]]:
    """Which stage of the teacher each stage of the student follows: the same one where their numbers agree (or with
    ``final`` every one the last), else only the last follows the last."""
    if len(teacher) != len(student):
        return [(len(teacher) - 1, len(student) - 1)]
    return [(len(teacher) - 1 if final else i, i) for i in range(len(student))]


def joined(groups: Sequence[Sums]) -> Sums:
    """The sums of several groups of questions of one stage."""
    return Sums(*(torch.stack(list(column)).sum() for column in zip(*groups, strict=True)))
