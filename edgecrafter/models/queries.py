"""Where the decoder's queries come from: anchors, two-stage selection, and groups put in from outside."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from edgecrafter.geometry.numbers import EPS_BOX, inverse_sigmoid
from edgecrafter.types import LayerOutput, MaskMap, Outputs, QueryGroup

ANCHOR_SIZE = 0.05
MARGIN = 0.01
PRIOR = -math.log(99)  # class bias that starts every score at 0.01


@dataclass
class Queries:
    """What the decoder starts from: groups first, the network's own queries last."""

    content: Tensor
    """[B, T, D]; pose: [B, T, 1 + K, D]"""
    places: Tensor
    """[B, T, 4] boxes cxcywh; pose: [B, T, 1 + K, 2] points; no gradient"""
    allowed: Tensor | None
    """[T, T] bool, true = the row may look at the column; None when there are no groups"""


def anchors(shapes: Sequence[tuple[int, int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """One box per cell, as logits [P, 4], and whether it lies well inside the picture, [P] bool.

    Boxes are squares of 0.05 * 2^level around the cell's centre; those that touch the border are +inf and not valid.
    """
    boxes = []
    for level, (h, w) in enumerate(shapes):
        centre = grid(h, w, device)
        boxes.append(torch.cat([centre, torch.full_like(centre, ANCHOR_SIZE * 2.0**level)], dim=-1).flatten(0, 1))
    every = torch.cat(boxes)
    valid = ((every > MARGIN) & (every < 1 - MARGIN)).all(-1)
    logits = torch.log(every / (1 - every))
    return logits.masked_fill(~valid[:, None], float("inf")), valid


def grid(h: int, w: int, device: torch.device) -> Tensor:
    """Centres (x, y) of the cells of a map in 0..1, [h, w, 2]."""
    y, x = torch.meshgrid(torch.arange(h, device=device), torch.arange(w, device=device), indexing="ij")
    return torch.stack([(x + 0.5) / w, (y + 0.5) / h], dim=-1)


def allowed_pairs(groups: Sequence[QueryGroup], own: int, device: torch.device) -> Tensor | None:
    """Who may look at whom, [T, T] bool; None when all may look at all.

    The network's own queries see themselves only. A group's query sees its segment, and the own queries if its group
    says so. The same rule serves detection, pose and distillation probes. Where a group has padding, it is one mask per
    image, [B, 1, T, T]: padding is seen by itself only.
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
    pairs = (segment[:, None] == segment[None]) | (see[:, None] & (segment == -1)[None])
    if all(group.valid is None for group in groups):
        return pairs
    images = len(groups[0].labels)
    here = [torch.ones_like(g.labels, dtype=torch.bool) if g.valid is None else g.valid for g in groups]
    real = torch.cat([*here, torch.ones(images, own, dtype=torch.bool, device=device)], dim=1)
    itself = torch.eye(len(segment), dtype=torch.bool, device=device)
    return ((pairs & real[:, None]) | itself)[:, None]


class GroupEmbedding(nn.Module):
    """Content and boxes of query groups; row ``classes`` of the table is padding."""

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        self.table = nn.Embedding(classes + 1, width, padding_idx=classes)

    def forward(self, groups: Sequence[QueryGroup]) -> tuple[list[Tensor], list[Tensor]]:
        """Contents [B, G, D] and boxes [B, G, 4]. A group without queries still ties the table to the graph."""
        contents = [self.table(g.labels) if g.content is None else g.content for g in groups]  # replaced from_memory
        # through the logit and back, as in the released model: boxes are kept 1e-5 away from 0 and 1
        boxes = [inverse_sigmoid(g.boxes, EPS_BOX).sigmoid() for g in groups]
        return contents, boxes


def select(
    memory: Sequence[Tensor],
    groups: Sequence[QueryGroup],
    queries: int,
    *,
    project: Callable[[Tensor], Tensor],
    score: Callable[[Tensor], Tensor],
    box: Callable[[Tensor], Tensor],
    embed: GroupEmbedding,
) -> tuple[Queries, LayerOutput]:
    """The best-scored memory tokens become the network's own queries, behind those of the groups.

    ``memory`` are the levels, [B, D, h, w]; ``project``, ``score`` and ``box`` map tokens [B, P, D] to what becomes the
    content of a query, to class logits, and to a change of the anchor. Also gives the chosen proposals.
    """
    tokens = torch.cat([level.flatten(2).transpose(1, 2) for level in memory], dim=1)
    shapes = [(level.shape[2], level.shape[3]) for level in memory]
    anchor, valid = anchors(shapes, tokens.device)
    tokens.masked_fill_(~valid[:, None], 0.0)  # only here: cross-attention reads the unmasked memory
    tokens = project(tokens)
    logits = score(tokens)
    count = min(queries, tokens.shape[1])
    chosen = logits.amax(-1).topk(count, dim=1).indices
    content = pick(tokens, chosen)
    boxes = (box(content) + anchor[chosen]).float().sigmoid()
    proposals = LayerOutput(pick(logits, chosen), boxes)
    contents, group_boxes = embed(groups)
    for i, group in enumerate(groups):
        if group.from_memory:
            contents[i] = pick(tokens, cells(group.boxes, shapes)).detach()
    found = Queries(
        content=torch.cat([*contents, content.detach()], dim=1),
        places=torch.cat([*group_boxes, boxes.detach()], dim=1),
        allowed=allowed_pairs(groups, count, tokens.device),
    )
    return found, proposals


def cells(boxes: Tensor, shapes: Sequence[tuple[int, int]]) -> Tensor:
    """The memory token at the centre of each box [B, G, 4], on the level whose anchors are nearest
    to it in size; [B, G] int64 in the order of the levels."""
    width, height = boxes[..., 2], boxes[..., 3]
    wanted = (width * height).clamp(min=1e-8).sqrt().log2()
    anchors = torch.tensor([ANCHOR_SIZE * 2.0**level for level in range(len(shapes))], device=boxes.device).log2()
    level = (wanted[..., None] - anchors).abs().argmin(-1)
    h, w = (torch.tensor([shape[i] for shape in shapes], device=boxes.device)[level] for i in (0, 1))
    first = torch.tensor([0, *(a * b for a, b in shapes)], device=boxes.device).cumsum(0)[level]
    x = (boxes[..., 0] * w).long().clamp(min=0).minimum(w - 1)
    y = (boxes[..., 1] * h).long().clamp(min=0).minimum(h - 1)
    return first + y * w + x


def pick(x: Tensor, index: Tensor) -> Tensor:
    """Rows of x [B, P, D] at index [B, Q] -> [B, Q, D]."""
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[-1]))


def divided(
    outputs: Outputs,
    groups: Sequence[QueryGroup],
    proposals: LayerOutput | None,
    memory: Sequence[Tensor],
) -> Outputs:
    """Outputs of all queries -> those of the network's own queries, which hold those of each group."""
    sizes = [group.labels.shape[1] for group in groups]
    counts = [*sizes, outputs.layers[-1].logits.shape[1] - sum(sizes)]
    ends = [sum(counts[: i + 1]) for i in range(len(counts))]
    parts = [_part(outputs, end - count, count) for end, count in zip(ends, counts, strict=True)]
    for part, group in zip(parts, groups, strict=False):
        part.group = group
    own = parts[-1]
    own.encoder, own.groups, own.memory = proposals, parts[:-1], list(memory)
    return own


def _part(outputs: Outputs, start: int, count: int) -> Outputs:
    """The same outputs for some of the queries."""

    def cut(layer: LayerOutput) -> LayerOutput:
        taken = {name: _cut(value, start, count) for name, value in vars(layer).items()}
        return LayerOutput(**taken)  # type: ignore[arg-type]

    first = None if outputs.first is None else cut(outputs.first)
    return Outputs([cut(layer) for layer in outputs.layers], first)


def _cut(value: Tensor | MaskMap | None, start: int, count: int) -> Tensor | MaskMap | None:
    if isinstance(value, Tensor):
        return value[:, start : start + count]
    return value and value.cut(start, count)
