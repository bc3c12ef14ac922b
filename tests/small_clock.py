"""Small teachers and students of every family, and batches, for the tests of CLoCKDistill."""

from __future__ import annotations

import copy
import functools
from collections.abc import Sequence
from typing import Any

import small_training as small
import torch
from torch import Tensor, nn

from edgecrafter import hub
from edgecrafter.distill.base import Student
from edgecrafter.distill.clock import KDDETR, Clock
from edgecrafter.distill.clock_options import ClockOptions
from edgecrafter.distill.detector import DetectorTeacher
from edgecrafter.hub import ModelInfo
from edgecrafter.types import Batch, InputSpec, Labels, LayerOutput, Outputs, QueryGroup, Target

LABELS = Labels(("one", "two", "three"))
CLASSIC: dict[str, Any] = {
    "width": 32, "enc_layers": 1, "det_layers": 2, "enc_ffn": 48, "det_ffn": 48, "queries": 20, "dropout": 0.0,
    "frozen": False,
}  # fmt: skip
V2: dict[str, Any] = {"width": 32, "csp_width": 32, "csp_depth": 1, "enc_ffn": 48, "det_ffn": 48, "queries": 20}
FAMILIES = ("ecdet-p", "rtdetrv4-p", "rtdetrv2-r18", "dino-r18", "dab-detr-r18", "deformable-detr-r18")
PAIRS = [
    ("ecdet-p", "ecdet-n"), ("rtdetrv4-p", "ecdet-p"), ("rtdetrv2-r18", "dino-r18"), ("ecdet-p", "dino-r18"),
    ("dino-r18", "dino-r18"), ("dab-detr-r18", "dab-detr-r18"), ("deformable-detr-r18", "deformable-detr-r18"),
    ("dab-detr-r18", "deformable-detr-r18"),
]  # fmt: skip
"""student, teacher"""


def options(name: str) -> dict[str, Any]:
    """Of a small network."""
    if name.startswith(("dino", "dab", "deformable")):
        return CLASSIC
    return V2 if name.startswith("rtdetrv2") else {"queries": 20}


def network(name: str, seed: int = 0, labels: Labels = LABELS, **more: Any) -> tuple[nn.Module, ModelInfo]:
    """A small network with random weights, heads included, and its description."""
    made, info = _made(name, seed, labels, tuple(more.items()))
    return copy.deepcopy(made), info  # a copy is quicker than random numbers


@functools.lru_cache(maxsize=32)
def _made(name: str, seed: int, labels: Labels, more: tuple[tuple[str, Any], ...]) -> tuple[nn.Module, ModelInfo]:
    spec = None if name.startswith(("dino", "dab", "deformable")) else InputSpec((64, 64))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made, info = hub.create(name, labels, spec, **{**options(name), **dict(more)})
        with torch.no_grad():
            for parameter in made.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn_like(parameter) * 0.02)
    return made, info


def teacher(name: str, seed: int = 1, labels: Labels = LABELS, **more: Any) -> DetectorTeacher:
    made, info = network(name, seed, labels, **more)
    return DetectorTeacher(made, info.input, info.labels, name, "ask the owner")


def student(name: str, labels: Labels = LABELS, **more: Any) -> Student:
    info = hub.described(name, labels, **{**options(name), **more})
    return Student(name, info.size, (64, 64), 99, labels, info.task)


def clock(pupil: str, who: str | DetectorTeacher, seed: int = 0, kind: type[Clock] = Clock, **given: Any) -> Clock:
    """CLoCKDistill between small networks; ``kind`` KDDETR: KD-DETR."""
    who = teacher(who) if isinstance(who, str) else who
    given = {"lcmd": False, "target": False, **given} if kind is KDDETR else given
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return kind(ClockOptions(**given), who, student(pupil), seed)


def target(labels: Sequence[int], seed: int) -> Target:
    """Objects of these classes at random places."""
    rng = torch.Generator().manual_seed(seed)
    boxes = torch.cat(
        [torch.rand(len(labels), 2, generator=rng) * 0.4 + 0.3, torch.rand(len(labels), 2, generator=rng) * 0.3 + 0.1],
        1,
    )
    return Target(torch.tensor(labels, dtype=torch.int64), boxes, size=(64, 64))


def batch(counts: Sequence[int], seed: int = 0, valid: bool = False) -> Batch:
    """One picture of noise for each number of objects; with ``valid`` the right part of the last is padding."""
    found = small.batch(list(counts), seed)
    mask = None
    if valid:
        mask = torch.ones(len(counts), 64, 64, dtype=torch.bool)
        mask[-1, :, 40:] = False
        found.images[-1, :, :, 40:] = 0
    targets = [Target(t.labels, t.boxes, size=(64, 64)) for t in found.targets]
    return Batch(found.images, targets, mask)


class Fake:
    """Looks like a teacher and its questions: answers with the class for the first ``named`` objects, and with boxes
    of half the width."""

    def __init__(self, named: int) -> None:
        self.named, self.network, self.targets = named, nn.Module(), Asked()
        self.network.decoder = nn.Identity()

    def answers(self, images: Tensor, groups: Sequence[QueryGroup], valid: Tensor | None) -> Outputs:
        (group,) = groups
        assert group.valid is not None
        labels, real = group.labels.clone(), group.valid.nonzero()
        for row, column in real[self.named :].tolist():
            labels[row, column] = (labels[row, column] + 1) % 3
        boxes = group.boxes * torch.tensor([1, 1, 0.5, 1])
        logits = nn.functional.one_hot(labels, 3).float()
        wrong = LayerOutput(-logits, boxes * 0.5)  # an earlier layer
        return Outputs([], groups=[Outputs([wrong, LayerOutput(logits, boxes)])])


class Asked(nn.Module):
    """Questions that carry their labels."""

    table = torch.zeros(3, 1)

    def forward(self, decoder: nn.Module, labels: Tensor, boxes: Tensor, real: Tensor) -> QueryGroup:
        return QueryGroup(labels, boxes, torch.zeros(labels.shape[1], dtype=torch.int64), valid=real)
