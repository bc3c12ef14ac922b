"""The questions that CLoCKDistill puts to teacher and student alike (TCLD, section 3.3 of the paper; KD-DETR).

Three groups, each isolated from all other queries: *target* (the objects themselves), *specific* (the teacher's own
queries) and *general* (random places). A decoder is asked in its own way, which depends on where the contents of its
queries come from.

B images, G questions, K objects of the fullest image, C classes, D width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from edgecrafter.models.detr.dab import DabDecoder
from edgecrafter.models.detr.decoder import DeformableDecoder, DinoDecoder
from edgecrafter.types import Outputs, QueryGroup

SMALL = 0.02
"""deviation of class contents where the teacher has no table of labels"""


@dataclass
class Ways:
    """How a decoder is asked. ``contents`` of a query are "memory" (its own memory at the box), "learned" (a row of a
    table), "empty" (zeros), or "placed" (learned, with a learned position)."""

    contents: str
    width: int
    """of a content"""


def ways_of(decoder: nn.Module) -> Ways:
    """Raises ``ValueError`` for a decoder that answers without boxes."""
    if isinstance(decoder, DinoDecoder):
        return Ways("learned", decoder.queries.embedding_dim)
    if isinstance(decoder, DabDecoder):
        return Ways("empty", decoder.norm.normalized_shape[0])
    if isinstance(decoder, DeformableDecoder):
        return Ways("placed", decoder.queries.embedding_dim // 2)
    table = getattr(getattr(decoder, "groups", None), "table", None)
    if table is None:
        raise ValueError("answers are compared box by box: teacher and student must be detectors of boxes or masks")
    return Ways("memory", table.embedding_dim)


def asked(boxes: Tensor, content: Tensor | None = None, **more: Any) -> QueryGroup:
    """An isolated group at boxes [B, G, 4]."""
    B, G = boxes.shape[:2]
    nowhere = torch.zeros(G, dtype=torch.int64, device=boxes.device)
    labels = torch.zeros(B, G, dtype=torch.int64, device=boxes.device)
    return QueryGroup(labels, boxes, nowhere, sees_own=False, content=content, **more)


def specific(decoder: Any, answers: Outputs) -> QueryGroup:
    """The teacher's own queries as they were asked for ``answers``."""
    B, ways = len(answers.layers[-1].logits), ways_of(decoder)
    if ways.contents in ("memory", "learned"):
        assert answers.encoder is not None and answers.encoder.boxes is not None
        boxes = answers.encoder.boxes
        if ways.contents == "memory":
            return asked(boxes, from_memory=True)
        return asked(boxes, decoder.queries.weight[: boxes.shape[1]].expand(B, -1, -1))
    if ways.contents == "empty":
        boxes = decoder.queries.weight.sigmoid().expand(B, -1, -1)
        return asked(boxes, boxes.new_zeros(B, boxes.shape[1], ways.width))
    position, content = decoder.queries.weight.chunk(2, dim=-1)
    points = decoder.point(position).sigmoid().expand(B, -1, -1)
    return asked(_at(points), content.expand(B, -1, -1), position=position.expand(B, -1, -1))


def general(decoder: Any, images: int, count: int, rng: torch.Generator, device: torch.device) -> QueryGroup:
    """``count`` random questions, drawn anew in every step."""
    ways = ways_of(decoder)
    if ways.contents == "placed":
        points = torch.rand(images, count, 2, generator=rng).to(device)
        position, content = nearest(decoder, points)
        return asked(_at(points), content, position=position)
    boxes = torch.randn(images, count, 4, generator=rng).sigmoid().to(device)
    if ways.contents == "memory":
        return asked(boxes, from_memory=True)
    if ways.contents == "empty":
        return asked(boxes, boxes.new_zeros(images, count, ways.width))
    rows = torch.randint(decoder.queries.num_embeddings, (images, count), generator=rng).to(device)
    return asked(boxes, decoder.queries.weight[rows])


def target(decoder: Any, table: Tensor, labels: Tensor, boxes: Tensor, real: Tensor) -> QueryGroup:
    """The objects [B, K]: content by class from ``table`` [C, D], the true box as reference; ``real`` [B, K] bool."""
    boxes = torch.where(real[..., None], boxes, 0.5)
    content = table[labels] * real[..., None]
    if ways_of(decoder).contents != "placed":
        return asked(boxes, content, valid=real)
    position, near = nearest(decoder, boxes[..., :2])
    return asked(boxes, near + content, position=position, valid=real)


def class_table(decoder: Any, classes: int, rng: torch.Generator) -> Tensor:
    """Contents of the classes [C, D]: the teacher's own label table where it has one, else small random ones."""
    groups = getattr(decoder, "groups", None)
    if groups is not None:
        return groups.table.weight[:classes].detach().clone()  # type: ignore[no-any-return]
    return SMALL * torch.randn(classes, ways_of(decoder).width, generator=rng)


def nearest(decoder: Any, points: Tensor) -> tuple[Tensor, Tensor]:
    """Position and content [B, G, D] of the learned queries whose points are nearest to ``points`` [B, G, 2]."""
    position, content = decoder.queries.weight.chunk(2, dim=-1)
    own = decoder.point(position).sigmoid()
    chosen = torch.cdist(points.flatten(0, 1), own).argmin(-1).view(points.shape[:2])
    return position[chosen], content[chosen]


def translated(group: QueryGroup, student: Ways, project: nn.Module, kind: str) -> QueryGroup:
    """A question for the teacher as the student gets it. Targets carry their contents through ``project``; the others
    are asked with the student's own memory, if that is where its contents come from."""
    if kind != "target" and student.contents == "memory":
        return replace(group, content=None, position=None, from_memory=True)
    if group.content is None:
        raise ValueError(
            "the teacher's questions are made of its memory, and a student with learned queries cannot be asked with "
            "that: use specific=false,general=0"
        )
    content = project(group.content)
    position = None if group.position is None else project(group.position)
    if student.contents == "placed" and position is None:
        raise ValueError(
            "a Deformable DETR can only be taught by its own kind: other teachers have no learned positions"
        )
    return replace(group, content=content, position=position if student.contents == "placed" else None)


def _at(points: Tensor) -> Tensor:
    """Boxes of no importance around points [B, G, 2]."""
    return torch.cat([points, torch.full_like(points, 0.1)], dim=-1)
