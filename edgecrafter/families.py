"""Model families: which names there are, and what task, sizes and input belong to them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from edgecrafter import registry
from edgecrafter.models import official
from edgecrafter.models.sizes import (
    DAB,
    DEFORMABLE,
    DEIM,
    DFINE,
    DINO,
    RTDETRV2,
    RTDETRV4,
    SIZES,
    Size,
)
from edgecrafter.tasks import DETECT, TASKS, Task
from edgecrafter.types import InputSpec

UNIT = InputSpec(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
"""pictures in 0..1 as they are"""

PLAIN = InputSpec()
PROJECTOR = official.TRAINING + "0.weight"
"""by which RT-DETRv4's files are told from those of DEIM and D-FINE"""

PADDED = InputSpec(size=(800, 1333), resize="keep")
"""pictures keep their aspect ratio"""


@dataclass(frozen=True)
class Family:
    """Models of one name in several sizes."""

    prefix: str
    """of the model names: ``ecdet`` + ``-`` + size"""
    task: Task
    sizes: Mapping[str, Size]
    input: InputSpec = PLAIN
    aliases: tuple[str, ...] = ()
    """other prefixes that are understood"""
    sign: str | None = ""
    """an entry (released name) by which the authors' files of this family are told from others of the same shapes;
    empty: the shapes are enough; None: there are no such files that we read, or ``models.detr.convert`` tells them"""
    licence: str = registry.EDGECRAFTER_LICENCE
    """of the authors' files"""

    def row(self, size: str) -> Size:
        """The row of a size as the task has it."""
        return self.task.size(self.sizes[size])

    def names(self) -> list[str]:
        """``ecdet-p`` and so on, smallest first."""
        return [f"{self.prefix}-{size}" for size in self.sizes]


class Known(NamedTuple):
    """What a model name means."""

    task: Task
    size: str
    family: Family

    @property
    def name(self) -> str:
        """As it is listed: ``ecseg-s`` is ``ecinsseg-s``."""
        return f"{self.family.prefix}-{self.size}"

    @property
    def row(self) -> Size:
        return self.family.row(self.size)


FAMILIES = {
    family.prefix: family
    for family in (
        *(Family(task.prefix, task, SIZES, aliases=task.aliases) for task in TASKS.values()),
        Family("rtdetrv4", DETECT, RTDETRV4, UNIT, ("rtv4",), PROJECTOR, registry.RTDETRV4_LICENCE),
        Family("deim", DETECT, DEIM, UNIT, sign=None),
        Family("dfine", DETECT, DFINE, UNIT, sign=None),
        Family("rtdetrv2", DETECT, RTDETRV2, UNIT, sign=None),
        Family("dab-detr", DETECT, DAB, PADDED, sign=None, licence=registry.CLASSIC_LICENCE),
        Family("deformable-detr", DETECT, DEFORMABLE, PADDED, sign=None, licence=registry.CLASSIC_LICENCE),
        Family("dino", DETECT, DINO, PADDED, sign=None, licence=registry.CLASSIC_LICENCE),
    )
}
"""A further family is one more line."""


def find(name: str) -> Known | None:
    """What a model name such as ``ecdet-s`` means; None when it means nothing."""
    prefix, _, size = name.lower().rpartition("-")
    for family in FAMILIES.values():
        if prefix in (family.prefix, *family.aliases) and size in family.sizes:
            return Known(family.task, size, family)
    return None


def names() -> list[str]:
    """All model names."""
    return [name for family in FAMILIES.values() for name in family.names()]
