"""Denoising queries for poses: copies of the objects with moved keypoints, whose answers are known.

B images, N slots of a group's half, G groups, K keypoints. The layout is that of ``denoising``: each group holds N
positives, then N negatives.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from edgecrafter.geometry.numbers import on_device
from edgecrafter.losses.denoising import answers, halves, layout, relabelled
from edgecrafter.types import QueryGroup, Target

BUDGET = 20
POSITIVE, NEGATIVE = (0.0, math.log(2)), (math.log(2), math.log(10))
"""minus the logarithm of a moved keypoint's share of OKS: 0.5 to 1 for positives, 0.1 to 0.5 for negatives"""
NOISES = ("paper", "released")


@dataclass
class Draws:
    """Random numbers of one batch, each in [0, 1)."""

    relabel: Tensor
    """[B, 2 N G] a label changes where this is below half of the label noise"""
    label: Tensor
    """[B, 2 N G] int64, the new labels"""
    far: Tensor
    """[B, 2 N G, K] how far a keypoint moves, within its range"""
    direction: Tensor
    """[B, 2 N G, 1 + K, 2] where to; the first is the centre, which the released noise counts"""


def denoising(
    targets: Sequence[Target],
    classes: int,
    sigmas: Sequence[float],
    generator: torch.Generator | None = None,
    budget: int = BUDGET,
    noise: str = "paper",
) -> QueryGroup:
    """The denoising group of a batch; it has no queries when no image has an object or the budget is 0.

    ``generator`` is on the CPU, so that the draws do not depend on the device. ``noise`` as in ``build``.
    """
    chosen, groups, shape = layout(targets, budget, generator)
    draws = Draws(
        relabel=torch.rand(shape, generator=generator),
        label=torch.randint(classes, shape, generator=generator),
        far=torch.rand((*shape, len(sigmas)), generator=generator),
        direction=torch.rand((*shape, len(sigmas) + 1, 2), generator=generator),
    )
    return build(targets, chosen, classes, groups, draws, sigmas, noise)


def build(
    targets: Sequence[Target],
    chosen: Sequence[Tensor],
    classes: int,
    groups: int,
    draws: Draws,
    sigmas: Sequence[float],
    noise: str = "paper",
) -> QueryGroup:
    """The group from given draws; ``chosen`` are the objects of each image that are asked for.

    Each labelled keypoint moves by ``sqrt(2 rho area) 2 sigma``, so that its share of OKS is ``exp(-rho)``. ``noise``
    "paper": in a random direction, around the object's true centre. "released": by the authors' vector, which points to
    the lower right and is tens of times as long, around ``((cx + w) / 2, (cy + h) / 2)``, a box read as corners.
    """
    device = targets[0].boxes.device
    slots = max(len(index) for index in chosen)
    labels = torch.full((len(targets), slots), classes, device=device)
    boxes = torch.full((len(targets), slots, 4), 0.5, device=device)
    points = torch.full((len(targets), slots, len(sigmas), 2), 0.5, device=device)
    spread = torch.zeros(len(targets), slots, len(sigmas), device=device)
    tolerance = 2 * on_device(list(sigmas), device)
    for row, (target, index) in enumerate(zip(targets, chosen, strict=True)):
        assert target.keypoints is not None and target.area is not None, "pose denoising needs keypoints and areas"
        count, index = len(index), index.to(device)
        labels[row, :count] = target.labels[index]
        boxes[row, :count] = target.boxes[index].float()
        points[row, :count] = target.keypoints[index, :, :2].float()
        labelled = target.keypoints[index, :, 2] > 0
        spread[row, :count] = (2 * target.area[index].float()).sqrt()[:, None] * tolerance * labelled
    labels = labels.repeat(1, 2 * groups)
    boxes, points, spread = (value.repeat(1, 2 * groups, *[1] * (value.dim() - 2)) for value in (boxes, points, spread))
    negative, segment = halves(slots, groups, device)
    if noise == "released":
        padded = (labels == classes)[..., None]
        boxes = torch.cat([torch.where(padded, 0.5, (boxes[..., :2] + boxes[..., 2:]) / 2), boxes[..., 2:]], dim=-1)
    way = (_released if noise == "released" else _unit)(draws.direction.to(device))
    distance = spread * _rho(draws.far.to(device), negative).sqrt()
    return QueryGroup(
        labels=relabelled(labels, classes, draws.relabel, draws.label),
        boxes=boxes,
        segment=segment,
        keypoints=points + distance[..., None] * way,
        answers=answers(chosen, slots, groups),
    )


def _rho(far: Tensor, negative: Tensor) -> Tensor:
    """Numbers in 0..1 [B, 2 N G, K] -> the range of positives, or of negatives [2 N G]."""
    low = torch.where(negative, NEGATIVE[0], POSITIVE[0])[:, None]
    high = torch.where(negative, NEGATIVE[1], POSITIVE[1])[:, None]
    return low + far * (high - low)


def _unit(draw: Tensor) -> Tensor:
    """A unit vector in a uniformly drawn direction for each keypoint, [.., 1 + K, 2] -> [.., K, 2]."""
    angle = 2 * math.pi * draw[..., 1:, 0]
    return torch.stack([angle.cos(), angle.sin()], dim=-1)


def _released(draw: Tensor) -> Tensor:
    """The authors' vector: each coordinate times the sum of the inverses over all points, [.., 1 + K, 2] -> K."""
    draw = draw.clamp(min=2**-24)  # a draw of 0 would be infinitely far
    return (draw * (1 / draw).sum(-2, keepdim=True))[..., 1:, :]
