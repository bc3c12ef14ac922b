"""The objects themselves as questions (target-aware queries of CLoCKDistill, section 3.3, Eq. 6-8). What they are made
of never learns with the student.

B images, K objects of the fullest image, C classes, D width.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgecrafter.distill.questions import asked, nearest, ways_of
from edgecrafter.losses.denoising import moved
from edgecrafter.models.detr.dab import DabDecoder
from edgecrafter.models.detr.decoder import DinoDecoder
from edgecrafter.models.detr.padding import sine_of_boxes
from edgecrafter.nn.mlp import MLP
from edgecrafter.types import Batch, QueryGroup

MODES = ("native", "summed")
MOST = 300
"""objects per image that are asked for; of more, a random choice"""
SMALL = 0.02
"""deviation of class contents where the teacher has no table of labels"""
SIZE = 0.1
"""root mean square of positions where the teacher makes none of boxes"""


class Targets(nn.Module):
    """Makes the questions: content by class from a table, the true box as reference.

    ``native``: a decoder that reads boxes makes the position itself, so that content and position are summed in its
    first attention; ``summed``: a position is made here, once for teacher and student, and added to the content.
    """

    table: Tensor
    """[C, D]"""

    def __init__(self, decoder: Any, classes: int, mode: str, seed: int) -> None:
        """``decoder`` is the teacher's; it is not kept."""
        super().__init__()
        rng = torch.Generator().manual_seed(seed)
        self.ways = ways_of(decoder)
        self.register_buffer("table", class_table(decoder, classes, rng))
        self.place = Positions(decoder, self.ways.width, rng) if mode == "summed" else None

    def forward(self, decoder: Any, labels: Tensor, boxes: Tensor, real: Tensor) -> QueryGroup:
        """The objects [B, K] as questions for the teacher; ``real`` [B, K] bool is false for padding."""
        boxes = torch.where(real[..., None], boxes, 0.5)
        content, position = self.table[labels], None
        if self.place is not None and self.ways.contents == "placed":
            position = self.place(boxes)
        elif self.place is not None:
            content = content + self.place(boxes)
        elif self.ways.contents == "placed":
            position, near = nearest(decoder, boxes[..., :2])
            content = content + near
        return asked(boxes, content * real[..., None], position=position, valid=real)

    def copies(
        self, decoder: Any, batch: Batch, count: int, jitter: float, rng: torch.Generator
    ) -> list[tuple[QueryGroup, Tensor]]:
        """The questions for the objects of a batch, and how much each counts [B, K]. Equal copies are one that counts
        ``count``; with ``jitter`` all but the first are noisy. Without objects K is 0."""
        labels, boxes, real = collected(batch, rng)
        if not jitter:
            return [(self(decoder, labels, boxes, real), count * real.float())]
        shape, found = boxes.shape, []
        for i in range(count):
            outward = (torch.rand(shape, generator=rng) < 0.5).to(boxes.device)
            noise = torch.rand(shape, generator=rng).to(boxes.device) * jitter
            found.append((self(decoder, labels, moved(boxes, outward, noise) if i else boxes, real), real.float()))
        return found


class Positions(nn.Module):
    """Boxes [..., 4] -> positions [..., D] (Eq. 7), frozen: a copy of the layers by which the teacher does that; for
    Deformable DETR, which has none, two random layers."""

    def __init__(self, decoder: Any, width: int, rng: torch.Generator) -> None:
        super().__init__()
        own = getattr(decoder, "position", None)
        self.waves = width // 2 if isinstance(decoder, (DinoDecoder, DabDecoder)) else 0
        self.mlp = _random(width, rng) if own is None else copy.deepcopy(own)
        self.requires_grad_(False)

    def forward(self, boxes: Tensor) -> Tensor:
        return self.mlp(sine_of_boxes(boxes, self.waves) if self.waves else boxes)  # type: ignore[no-any-return]


def _random(width: int, rng: torch.Generator) -> MLP:
    mlp = MLP(4, width, width, 2, F.relu)
    for layer in mlp.layers:
        nn.init.xavier_uniform_(layer.weight, generator=rng)  # type: ignore[arg-type]
        nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    with torch.no_grad():
        size = mlp(torch.rand(1000, 4, generator=rng)).square().mean().sqrt()
        mlp.layers[-1].weight *= SIZE / size
    return mlp


def class_table(decoder: Any, classes: int, rng: torch.Generator) -> Tensor:
    """Contents of the classes [C, D]: the teacher's own label table where it has one, else small random ones."""
    groups = getattr(decoder, "groups", None)
    if groups is not None:
        return groups.table.weight[:classes].detach().clone()  # type: ignore[no-any-return]
    return SMALL * torch.randn(classes, ways_of(decoder).width, generator=rng)


def collected(batch: Batch, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Labels [B, K], boxes [B, K, 4] and which of them are there [B, K] bool."""
    labels, boxes, real = [], [], []
    for target in batch.targets:
        count = len(target.labels)
        some = torch.randperm(count, generator=rng)[:MOST].to(target.labels.device) if count > MOST else slice(None)
        labels.append(target.labels[some])
        boxes.append(target.boxes[some].float())
        real.append(torch.ones_like(labels[-1], dtype=torch.bool))
    return tuple(nn.utils.rnn.pad_sequence(each, batch_first=True) for each in (labels, boxes, real))  # type: ignore[return-value,arg-type]
