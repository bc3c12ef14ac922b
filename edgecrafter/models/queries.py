"""Where the decoder's queries come from: anchors, two-stage selection, and groups put in from outside."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from edgecrafter.geometry.numbers import EPS_BOX, inverse_sigmoid
from edgecrafter.types import QueryGroup

ANCHOR_SIZE = 0.05
MARGIN = 0.01


@dataclass
class Queries:
    """What the decoder starts from: groups first, the network's own queries last."""

    content: Tensor
    """[B, T, D]"""
    boxes: Tensor
    """[B, T, 4] cxcywh, no gradient"""
    allowed: Tensor | None
    """[T, T] bool, true = the row may look at the column; None when there are no groups"""
    counts: list[int]
    """queries of each group, then of the network's own"""


def anchors(shapes: Sequence[tuple[int, int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """One box per cell, as logits [P, 4], and whether it lies well inside the picture, [P] bool.

    Boxes are squares of 0.05 * 2^level around the cell's centre; those that touch the border are +inf and not valid.
    """
    boxes = []
    for level, (h, w) in enumerate(shapes):
        y, x = torch.meshgrid(torch.arange(h, device=device), torch.arange(w, device=device), indexing="ij")
        centre = torch.stack([(x + 0.5) / w, (y + 0.5) / h], dim=-1)
        boxes.append(torch.cat([centre, torch.full_like(centre, ANCHOR_SIZE * 2.0**level)], dim=-1).flatten(0, 1))
    every = torch.cat(boxes)
    valid = ((every > MARGIN) & (every < 1 - MARGIN)).all(-1)
    logits = torch.log(every / (1 - every))
    return logits.masked_fill(~valid[:, None], float("inf")), valid


def allowed_pairs(groups: Sequence[QueryGroup], own: int, device: torch.device) -> Tensor | None:
    """Who may look at whom, [T, T] bool; None when all may look at all.

    The network's own queries see themselves only. A group's query sees its segment, and the own queries if its group
    says so. The same rule serves detection, pose and distillation probes.
    """
    if not sum(group.labels.shape[1] for group in groups):
        return None
    segments, sees = [], []
    first = 0
    for group in groups:
        segments.append(group.segment.to(device) + first)
        sees.append(torch.full_like(segments[-1], group.sees_own, dtype=torch.bool))
        first += len(group.segment)  # at least the number of its segments, known without asking the device
    segment = torch.cat([*segments, torch.full((own,), -1, device=device)])
    see = torch.cat([*sees, torch.ones(own, dtype=torch.bool, device=device)])
    return (segment[:, None] == segment[None]) | (see[:, None] & (segment == -1)[None])


class GroupEmbedding(nn.Module):
    """Content and boxes of query groups; row ``classes`` of the table is padding."""

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        self.table = nn.Embedding(classes + 1, width, padding_idx=classes)

    def forward(self, groups: Sequence[QueryGroup]) -> tuple[list[Tensor], list[Tensor]]:
        """Contents [B, G, D] and boxes [B, G, 4]. A group without queries still ties the table to the graph."""
        contents = [self.table(g.labels) if g.content is None else g.content for g in groups]
        # through the logit and back, as in the released model: boxes are kept 1e-5 away from 0 and 1
        boxes = [inverse_sigmoid(g.boxes, EPS_BOX).sigmoid() for g in groups]
        return contents, boxes
