"""The questions that CLoCKDistill puts to teacher and student alike (TCLD, section 3.3 of the paper; KD-DETR).

Three groups, each isolated from all other queries: *target* (the objects themselves), *specific* (the teacher's own
queries) and *general* (random places). A decoder is asked in its own way, which depends on where the contents of its
queries come from.

B images, G questions, D width. The objects as questions are in ``distill.targets``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from edgecrafter.models.detr.dab import DabDecoder
from edgecrafter.models.detr.decoder import DeformableDecoder, DinoDecoder
from edgecrafter.types import Outputs, QueryGroup

BOXES = "answers are compared box by box: teacher and student must be detectors of boxes or masks"


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
        raise ValueError(BOXES)
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
    every = decoder.queries.num_embeddings
    rows = torch.rand(images, max(count, every), generator=rng).argsort(1)[:, :count] % every  # in random order
    return asked(boxes, decoder.queries.weight[rows.to(device)])


def nearest(decoder: Any, points: Tensor) -> tuple[Tensor, Tensor]:
    """Position and content [B, G, D] of the learned queries whose points are nearest to ``points`` [B, G, 2]."""
    position, content = decoder.queries.weight.chunk(2, dim=-1)
    own = decoder.point(position).sigmoid()
    chosen = torch.cdist(points.flatten(0, 1), own).argmin(-1).view(points.shape[:2])
    return position[chosen], content[chosen]


def check(teacher: Ways, student: Ways) -> None:
    """Raises ``ValueError`` for a student that cannot be asked what its teacher is asked."""
    if student.contents == "placed" and teacher.contents != "placed":
        raise ValueError(
            "the answers of a Deformable DETR can be taught by its own kind only: other teachers have no learned "
            "positions. With tcld=false its memory can be taught by any"
        )
    if teacher.contents == "memory" and student.contents != "memory":
        raise ValueError(
            "the teacher's questions are made of its memory, in pictures of one size, and a student with learned "
            "queries cannot be asked with that: with tcld=false it learns from the teacher's memory alone"
        )


def translated(group: QueryGroup, student: Ways, project: nn.Module, own: bool) -> QueryGroup:
    """A question for the teacher as the student gets it, its contents through ``project``; with ``own`` made of the
    student's own memory, if that is where its contents come from."""
    if own and student.contents == "memory":
        return replace(group, content=None, position=None, from_memory=True)
    placed = student.contents == "placed"
    position = project(group.position) if placed else None
    return replace(group, content=project(group.content), position=position)


def _at(points: Tensor) -> Tensor:
    """Boxes of no importance around points [B, G, 2]."""
    return torch.cat([points, torch.full_like(points, 0.1)], dim=-1)
