"""What the methods share that compare a student's maps with those of a detector: which levels belong together, in
common channels, on the teacher's grid.

B images, K objects of the fullest image, D width, h x w cells of a map.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from edgecrafter.distill.base import Distiller, Student
from edgecrafter.distill.detector import DetectorTeacher, Level
from edgecrafter.distill.memory import fitted, paired
from edgecrafter.geometry.boxes import cxcywh_to_xyxy
from edgecrafter.models.detr.padding import masks_of
from edgecrafter.types import Batch, Outputs

STRIDES = {1: (32,), 3: (8, 16, 32), 4: (8, 16, 32, 64)}
"""levels of a network (``Size.levels``) -> their strides"""


class Pair(NamedTuple):
    """A level of the student and its teacher's, [B, D, h, w] float32 each."""

    student: Tensor
    teacher: Tensor
    real: Tensor | None
    """[B, h, w] bool, cells that are picture; None: all"""


class Neck(nn.Module):
    """Pairs levels by stride. Where widths differ, a 1x1 convolution of its own takes a student's level to the
    teacher's channels: it is trained, and no part of the student."""

    def __init__(self, student: Sequence[Level], teacher: Sequence[Level]) -> None:
        super().__init__()
        self.places = paired([level.stride for level in student], [level.stride for level in teacher])
        self.widths = [teacher[place].width for place in self.places]
        """channels of the pairs"""
        self.project = nn.ModuleList(
            nn.Identity() if level.width == width else nn.Conv2d(level.width, width, 1)
            for level, width in zip(student, self.widths, strict=True)
        )

    def forward(self, students: Sequence[Tensor], teachers: Sequence[Tensor], valid: Tensor | None) -> list[Pair]:
        """Levels of both -> one pair for each level of the student; ``valid`` [B, H, W] bool of the input."""
        assert len(students) == len(self.places), f"{len(self.places)} levels were expected, not {len(students)}"
        chosen = [teachers[place].float() for place in self.places]
        real = [None] * len(chosen) if valid is None else masks_of(valid, chosen)
        own = [fitted(f(x.float()), t) for f, x, t in zip(self.project, students, chosen, strict=True)]
        return [Pair(*pair) for pair in zip(own, chosen, real, strict=True)]


class NeckDistiller(Distiller):
    """A method that compares maps of student and teacher, of the same pictures."""

    def __init__(
        self, options: Any, teacher: DetectorTeacher, student: Student, places: Sequence[str] = ("features",)
    ) -> None:
        """``places``: which maps of ``Outputs``, ``features`` (what the encoder receives) or ``memory`` (what the
        decoder reads), or both, one after the other."""
        super().__init__()
        self.options, self.teacher = options, teacher
        self.strides = STRIDES[student.row.levels]
        own, others = [Level(student.row.width, stride) for stride in self.strides], teacher.levels()
        self.necks = nn.ModuleDict({place: Neck(own, others[place]) for place in places})
        self.widths = [width for neck in self.necks.values() for width in neck.widths]  # type: ignore[union-attr]
        """channels of all pairs"""

    def prepare(self, device: torch.device, dtype: torch.dtype) -> None:
        self.teacher.prepare(device, dtype)

    def forward(self, student: Outputs, batch: Batch) -> dict[str, Tensor]:
        found = self.teacher(batch.images, valid=batch.valid)
        pairs: list[Pair] = []
        for place, neck in self.necks.items():
            pairs += neck(getattr(student, place), getattr(found, place), batch.valid)
        return self.compare(pairs, batch)

    def compare(self, pairs: Sequence[Pair], batch: Batch) -> dict[str, Tensor]:
        """Weighted losses of the pairs of all levels."""
        raise NotImplementedError

    def settings(self) -> dict[str, Any]:
        return asdict(self.options)

    def report(self) -> list[str]:
        what = " and ".join(self.necks)
        strides = ", ".join(map(str, self.strides))
        return [f"{self.name}: {what} of stride {strides} follow {self.teacher.name}", *self.told()]

    def told(self) -> list[str]:
        """Further lines for the console."""
        return []

    def licence(self) -> str:
        return f"taught by {self.teacher.name} ({self.name}): {self.teacher.licence or 'licence not stated'}"


def objects_of(batch: Batch) -> tuple[Tensor, Tensor]:
    """The boxes of a batch, [B, K, 4] xyxy in 0..1 of the network's input, padding included, and which of them are
    there, [B, K] bool."""
    boxes = [cxcywh_to_xyxy(target.boxes.float()) for target in batch.targets]
    padded = nn.utils.rnn.pad_sequence(boxes, batch_first=True)
    counts = torch.tensor([len(each) for each in boxes], device=padded.device)
    present = torch.arange(padded.shape[1], device=padded.device) < counts[:, None]
    if batch.valid is not None:
        share = torch.stack([batch.valid[:, 0].float().mean(1), batch.valid[:, :, 0].float().mean(1)], dim=-1)
        padded = padded * share.repeat(1, 2)[:, None]
    return padded, present


def at_least_zero(options: Any, names: Iterable[str]) -> None:
    """Raises ``ValueError`` for an option that is neither none nor a number of at least 0."""
    for name in names:
        value = getattr(options, name)
        if value is not None and not 0 <= value < math.inf:
            raise ValueError(f"{name}={value}: expected a number of at least 0")


def known(name: str, value: str, allowed: Iterable[str]) -> None:
    """Raises ``ValueError`` for a word that is not allowed."""
    if value not in allowed:
        raise ValueError(f"{name}={value}: choose one of {', '.join(allowed)}")
