"""Contrastive denoising queries (DINO, Zhang et al. 2023): noisy copies of the objects whose answers are known.

B images, N slots of a group's half, G groups. Each group holds N positives, then N negatives; images with fewer
objects are padded. The budget bounds the queries however many objects a picture has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from edgecrafter.geometry import boxes as geometry
from edgecrafter.types import Match, QueryGroup, Target

BUDGET = 100
LABEL_NOISE = 0.5
BOX_NOISE = 1.0


@dataclass
class Draws:
    """Random numbers of one batch, each in [0, 1)."""

    relabel: Tensor
    """[B, 2 N G] a label changes where this is below half of the label noise"""
    label: Tensor
    """[B, 2 N G] int64, the new labels"""
    sign: Tensor
    """[B, 2 N G, 4] bool, true = outward for the lower right corner"""
    move: Tensor
    """[B, 2 N G, 4] how far a corner moves, in halves of the box's side"""


def denoising(
    targets: Sequence[Target], classes: int, generator: torch.Generator | None = None, budget: int = BUDGET
) -> QueryGroup:
    """The denoising group of a batch; it has no queries when no image has an object or the budget is 0.

    ``generator`` is on the CPU, so that the draws do not depend on the device.
    """
    chosen, groups, shape = layout(targets, budget, generator)
    draws = Draws(
        relabel=torch.rand(shape, generator=generator),
        label=torch.randint(classes, shape, generator=generator),
        sign=torch.rand((*shape, 4), generator=generator) < 0.5,
        move=torch.rand((*shape, 4), generator=generator),
    )
    return build(targets, chosen, classes, groups, draws)


def build(targets: Sequence[Target], chosen: Sequence[Tensor], classes: int, groups: int, draws: Draws) -> QueryGroup:
    """The group from given draws; ``chosen`` are the objects of each image that are asked for."""
    device = targets[0].boxes.device
    slots = max(len(index) for index in chosen)
    labels = torch.full((len(targets), slots), classes, device=device)
    boxes = torch.zeros(len(targets), slots, 4, device=device)
    for row, (target, index) in enumerate(zip(targets, chosen, strict=True)):
        labels[row, : len(index)] = target.labels[index.to(device)]
        boxes[row, : len(index)] = target.boxes[index.to(device)].float()
    labels, boxes = labels.repeat(1, 2 * groups), boxes.repeat(1, 2 * groups, 1)
    negative, segment = halves(slots, groups, device)
    return QueryGroup(
        labels=relabelled(labels, classes, draws.relabel, draws.label),
        boxes=moved(boxes, draws.sign.to(device), draws.move.to(device) + negative[None, :, None]),
        segment=segment,
        answers=answers(chosen, slots, groups),
    )


def layout(
    targets: Sequence[Target], budget: int, generator: torch.Generator | None
) -> tuple[list[Tensor], int, tuple[int, int]]:
    """The objects of each image that are asked for, the number of groups, and the shape [B, 2 N G] of the queries."""
    chosen = [_chosen(len(target.labels), budget, generator) for target in targets]
    slots = max(len(index) for index in chosen)
    groups = max(1, budget // slots) if slots else 0
    return chosen, groups, (len(targets), 2 * slots * groups)


def halves(slots: int, groups: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Which of the 2 N G queries are negatives, bool, and the group of each, int64."""
    query = torch.arange(2 * slots * groups, device=device)
    return (query // max(slots, 1)) % 2 == 1, query // max(2 * slots, 1)


def relabelled(labels: Tensor, classes: int, relabel: Tensor, label: Tensor) -> Tensor:
    """Labels [B, 2 N G] of which some are replaced by drawn ones; padding (``classes``) stays."""
    change = (relabel.to(labels.device) < LABEL_NOISE / 2) & (labels != classes)
    return torch.where(change, label.to(labels.device), labels)


def moved(boxes: Tensor, outward: Tensor, distance: Tensor) -> Tensor:
    """Corners of cxcywh boxes [..., 4] moved by ``distance`` halves of their side and kept in the picture."""
    corners = geometry.cxcywh_to_xyxy(boxes)
    reach = torch.cat([boxes[..., 2:], boxes[..., 2:]], dim=-1) * 0.5 * BOX_NOISE
    corners = (corners + torch.where(outward, 1.0, -1.0) * distance * reach).clamp(0, 1)
    return geometry.xyxy_to_cxcywh(corners).abs()  # corners may have crossed


def _chosen(count: int, budget: int, generator: torch.Generator | None) -> Tensor:
    """Objects that are asked for: all, or a random choice when there are more than the budget allows."""
    if count <= budget:
        return torch.arange(count)
    return torch.randperm(count, generator=generator)[:budget].sort().values


def answers(chosen: Sequence[Tensor], slots: int, groups: int) -> Match:
    """Positive queries and their objects."""
    image, query, object_ = [], [], []
    for row, index in enumerate(chosen):
        for group in range(groups):
            image.append(torch.full_like(index, row))
            query.append(torch.arange(len(index)) + 2 * slots * group)
            object_.append(index)
    counts = tuple(groups * len(index) for index in chosen)
    if not image:
        none = torch.zeros(0, dtype=torch.int64)
        return Match(none, none, none, counts)
    return Match(torch.cat(image), torch.cat(query), torch.cat(object_), counts)
