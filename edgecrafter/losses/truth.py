"""The objects of a batch in the two forms that losses and matching read, and the answers that are held against them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import torch
from torch import Tensor

from edgecrafter.geometry import boxes as geometry
from edgecrafter.geometry.numbers import on_device
from edgecrafter.types import LayerOutput, Match, Target

Uniform = Callable[[Sequence[int]], Tensor]
"""a shape -> random numbers in [0, 1) on the device"""


class Truth:
    """All objects behind one another, N in total, or padded to the fullest image, [B, M].

    ``uniform`` are the random numbers of terms that look at random places.
    """

    def __init__(self, targets: Sequence[Target], uniform: Uniform = torch.rand) -> None:
        self.targets = targets
        self.uniform = uniform
        self.counts = [len(target.labels) for target in targets]
        ends = accumulate(self.counts, initial=0)
        self.first = on_device(list(ends), targets[0].labels.device, torch.int64)

    def index(self, pairs: Match) -> Tensor:
        """Row of each pair's object, [P]."""
        return self.first[pairs.image] + pairs.object

    def all(self, field: str) -> Tensor:
        """A field of the targets, [N, ...]."""
        return torch.cat([getattr(target, field) for target in self.targets])

    def padded(self, values: Tensor) -> Tensor:
        """Values of all objects [N, ...] as [B, M, ...], zero where an image has fewer objects."""
        return torch.nn.utils.rnn.pad_sequence(list(torch.split(values, self.counts)), batch_first=True)

    @cached_property
    def labels(self) -> Tensor:
        """[N] int64"""
        return self.all("labels")

    @cached_property
    def boxes(self) -> Tensor:
        """[N, 4] cxcywh"""
        return self.all("boxes").float()

    @cached_property
    def boxes_xyxy(self) -> Tensor:
        """[N, 4]"""
        return geometry.cxcywh_to_xyxy(self.boxes)

    @cached_property
    def masks(self) -> Tensor:
        """[N, H, W / 8] packed, see ``Target``"""
        return self.all("masks")

    @cached_property
    def points(self) -> Tensor:
        """[N, K, 2] keypoints"""
        return self.all("keypoints")[..., :2].float()

    @cached_property
    def visible(self) -> Tensor:
        """[N, K] 1.0 where a keypoint is labelled, covered ones too (as released)"""
        return (self.all("keypoints")[..., 2] > 0).float()

    @cached_property
    def area(self) -> Tensor:
        """[N] share of the input"""
        return self.all("area").float()


@dataclass
class View:
    """One answer that is to be supervised, with the pairs and counts that belong to it."""

    suffix: str
    """appended to the names of the terms"""
    kind: str
    """final, layer, first, encoder; group, group_final, group_first"""
    layer: LayerOutput
    own: Match
    """pairs of this view's own assignment"""
    union: Match
    """pairs of the union over all views (for groups: the known pairs)"""
    own_count: Tensor
    union_count: Tensor
    base: Tensor | None = None
    """[B, Q, 4] boxes that the edges refine; one for all layers"""
    teacher: LayerOutput | None = None
    """the last layer, for the distribution term"""
    balance: tuple[Tensor, Tensor] | None = None
    """weights of matched and other edges in the distribution term"""
    sampled: tuple[Tensor, Tensor] | None = None
    """logits and labels at random points of the masks, drawn by the first term that asks"""
