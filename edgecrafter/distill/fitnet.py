"""FitNet (Romero et al. 2015) between detectors: a student's maps equal the teacher's, everywhere alike.

With ``features`` it is also what CLoCKDistill's Table 1 compares: maps before the encoder ("backbone features"), behind
it ("DETR memory"), or both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from edgecrafter.distill.base import Student
from edgecrafter.distill.detector import DetectorTeacher
from edgecrafter.distill.memory import plain
from edgecrafter.distill.neck import NeckDistiller, Pair, at_least_zero, known
from edgecrafter.types import Batch

PLACES = {"neck": ("features",), "memory": ("memory",), "both": ("features", "memory")}
"""``features`` -> the maps of ``Outputs`` that are compared"""


@dataclass
class FitNetOptions:
    """Options of ``--distill fitnet``, such as ``--distill fitnet,teacher=runs/detect/large``.

    | option | default | source |
    | --- | --- | --- |
    | weight | 1 | ours: CLoCKDistill gives none |
    | features | neck | CLoCKDistill, Table 4; memory and both: its Table 1 |
    """

    teacher: str = ""
    """who teaches: the run, file or name of a detector"""
    teacher_weights: str = "pretrained"
    """pretrained (its own) or none (random, as a control)"""
    features: str = "neck"
    """neck (what the encoder receives), memory (what the decoder reads) or both"""
    weight: float = 1.0
    """weight of the mean squared difference, which is summed over levels"""

    def __post_init__(self) -> None:
        known("features", self.features, PLACES)
        at_least_zero(self, ["weight"])


class FitNet(NeckDistiller):
    """Mean squared difference over channels and cells, padding left out; summed over levels."""

    name = "fitnet"
    options: FitNetOptions

    def __init__(self, options: FitNetOptions, teacher: DetectorTeacher, student: Student) -> None:
        super().__init__(options, teacher, student, PLACES[options.features])

    def compare(self, pairs: Sequence[Pair], batch: Batch) -> dict[str, Tensor]:
        return {self.name: self.options.weight * differences(pairs)}

    def told(self) -> list[str]:
        return [f"  weight {self.options.weight:g}"]


def differences(pairs: Sequence[Pair]) -> Tensor:
    """Mean squared difference of each pair over channels and real cells, summed over the pairs (Eq. 1)."""
    return plain([p.student for p in pairs], [p.teacher for p in pairs], [p.real for p in pairs])
