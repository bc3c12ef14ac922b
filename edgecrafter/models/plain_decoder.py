"""Decoder with plain box heads: every layer corrects the boxes before it (RT-DETR, Zhao et al. 2024; RT-DETRv2).

B images, T queries of all groups and the network's own, C classes, D width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from edgecrafter.geometry.numbers import EPS_BOX, corrected
from edgecrafter.models.queries import PRIOR, GroupEmbedding, Queries, divided, select
from edgecrafter.nn.attention import PositionedAttention
from edgecrafter.nn.conv import ConvNorm
from edgecrafter.nn.deformable import DeformableAttention, Projected
from edgecrafter.nn.mlp import MLP, FeedForward, zero
from edgecrafter.types import LayerOutput, Outputs, QueryGroup

HEADS = 8
POINTS = (4, 4, 4)


class PlainLayer(nn.Module):
    """Self-attention, deformable cross-attention, feed-forward; each is added and then normalised."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.self_attn = PositionedAttention(width, HEADS)
        self.norm1 = nn.LayerNorm(width)
        self.cross_attn = Projected(DeformableAttention(width, HEADS, POINTS), width)
        self.norm2 = nn.LayerNorm(width)
        self.ffn = FeedForward(width, hidden, F.relu)

    def forward(
        self, x: Tensor, position: Tensor, boxes: Tensor, memory: Sequence[Tensor], allowed: Tensor | None
    ) -> Tensor:
        x = self.norm1(x + self.self_attn(x, position, allowed))
        x = self.norm2(x + self.cross_attn(x + position, boxes, memory))
        return self.ffn(x)  # type: ignore[no-any-return]


class PlainDecoder(nn.Module):
    """Memory levels and optional query groups -> ``Outputs``: all layers in training, the last one otherwise.

    Its layers have neither edges nor a head before the first one. ``inputs`` is the width of the memory.
    """

    last_only = ("scores",)
    """heads of which inference reads the last layer's only; ``fuse`` drops the others"""

    def __init__(self, classes: int, width: int, hidden: int, layers: int, queries: int, inputs: int) -> None:
        super().__init__()
        self.queries = queries
        self.enter = nn.ModuleList(ConvNorm(inputs, width) for _ in range(3))  # also between equal widths
        self.groups = GroupEmbedding(classes, width)
        self.enc_project, self.enc_norm = nn.Linear(width, width), nn.LayerNorm(width)
        self.enc_score = nn.Linear(width, classes)
        self.enc_box = MLP(width, width, 4, 3, F.relu)
        self.position = MLP(4, 2 * width, width, 2, F.relu)
        self.layers = nn.ModuleList(PlainLayer(width, hidden) for _ in range(layers))
        self.scores = nn.ModuleList(nn.Linear(width, classes) for _ in range(layers))
        self.boxes = nn.ModuleList(MLP(width, width, 4, 3, F.relu) for _ in range(layers))
        self._initialise()

    def _initialise(self) -> None:
        for score in (self.enc_score, *self.scores):
            nn.init.constant_(score.bias, PRIOR)
        for box in (self.enc_box, *self.boxes):
            assert isinstance(box, MLP)
            zero(box.layers[-1])
        for layer in (self.enc_project, *self.position.layers):
            nn.init.xavier_uniform_(layer.weight)  # type: ignore[arg-type]

    def forward(self, memory: Sequence[Tensor], groups: Sequence[QueryGroup] = ()) -> Outputs:
        read = [enter(level) for enter, level in zip(self.enter, memory, strict=True)]
        queries, proposals = select(
            read,
            groups,
            self.queries,
            project=lambda tokens: self.enc_norm(self.enc_project(tokens)),
            score=self.enc_score,
            box=self.enc_box,
            embed=self.groups,
        )
        return divided(self.refine(queries, read), groups, proposals, memory)

    def refine(self, queries: Queries, memory: Sequence[Tensor]) -> Outputs:
        """All queries through all layers. A layer's boxes have no gradient in the next one."""
        x, boxes = queries.content, queries.places
        layers: list[LayerOutput] = []
        for i, layer in enumerate(self.layers):
            x = layer(x, self.position(boxes), boxes, memory, queries.allowed)
            moved = corrected(self.boxes[i](x), boxes, EPS_BOX)
            if self.training or i == len(self.layers) - 1:
                layers.append(LayerOutput(self.scores[i](x), moved))
            boxes = moved.detach()
        return Outputs(layers, None)
