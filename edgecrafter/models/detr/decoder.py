"""Decoders of Deformable DETR (plain: learned queries around points, no refinement) and DINO (boxes chosen from the
encoder, corrected by every layer; Zhang et al. 2023).

B pictures, T queries of all groups and the network's own, C classes, D width, L levels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgecrafter.geometry.numbers import corrected, inverse_sigmoid
from edgecrafter.models.detr.encoder import HEADS, POINTS, FeedForward
from edgecrafter.models.detr.padding import centres, flat, ratios_of, sine_of_boxes
from edgecrafter.models.queries import ANCHOR_SIZE, MARGIN, PRIOR, GroupEmbedding, allowed_pairs, divided, pick
from edgecrafter.nn.attention import PositionedAttention
from edgecrafter.nn.deformable import DeformableAttention, PointAttention, Projected
from edgecrafter.nn.mlp import MLP, zero
from edgecrafter.types import LayerOutput, Outputs, QueryGroup

EPS_POINT = 1e-5
EPS_DINO = 1e-3


class Layer(nn.Module):
    """Self-attention, deformable cross-attention, feed-forward; each is added and then normalised."""

    def __init__(self, width: int, hidden: int, attention: nn.Module, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.self_attn = PositionedAttention(width, heads)
        self.norm1 = nn.LayerNorm(width)
        self.cross_attn = attention
        self.norm2 = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)
        self.ffn = FeedForward(width, hidden, nn.ReLU(), dropout)

    def forward(
        self,
        x: Tensor,
        position: Tensor,
        places: Tensor,
        memory: Sequence[Tensor],
        masks: Sequence[Tensor],
        allowed: Tensor | None,
    ) -> Tensor:
        x = self.norm1(x + self.dropout(self.self_attn(x, position, allowed)))
        x = self.norm2(x + self.dropout(self.cross_attn(x + position, places, memory, masks)))
        return self.ffn(x)  # type: ignore[no-any-return]


class DeformableDecoder(nn.Module):
    """Learned queries, each around a point of its own; one head reads boxes off every layer, none is passed on."""

    last_only = ()

    def __init__(
        self,
        classes: int,
        width: int,
        hidden: int,
        layers: int,
        queries: int,
        levels: int,
        heads: int = HEADS,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.queries = nn.Embedding(queries, 2 * width)
        """position, then content"""
        self.point = nn.Linear(width, 2)

        def attention() -> nn.Module:
            return Projected(PointAttention(width, heads, (POINTS,) * levels), width)

        self.layers = nn.ModuleList(Layer(width, hidden, attention(), heads, dropout) for _ in range(layers))
        self.score, self.box = nn.Linear(width, classes), MLP(width, width, 4, 3, F.relu)
        nn.init.xavier_uniform_(self.point.weight)
        nn.init.zeros_(self.point.bias)
        start_heads([self.score], [self.box])
        with torch.no_grad():
            self.box.layers[-1].bias[2:] = -2.0  # type: ignore[index,operator]

    def forward(self, memory: Sequence[Tensor], masks: Sequence[Tensor], groups: Sequence[QueryGroup] = ()) -> Outputs:
        B, count = memory[0].shape[0], self.queries.num_embeddings
        position, content = self.queries.weight.expand(B, -1, -1).chunk(2, dim=-1)
        points = self.point(position).sigmoid()
        asked = [group for group in groups if group.labels.shape[1]]
        for group in asked:
            assert group.content is not None and group.position is not None, "this decoder has no table of labels"
        x = torch.cat([*(g.content for g in asked if g.content is not None), content], dim=1)
        where = torch.cat([*(g.position for g in asked if g.position is not None), position], dim=1)
        points = torch.cat([*(g.boxes[..., :2] for g in asked), points], dim=1)
        allowed = allowed_pairs(groups, count, x.device)
        places = points[:, :, None] * ratios_of(masks)[:, None]
        layers: list[LayerOutput] = []
        for i, layer in enumerate(self.layers):
            x = layer(x, where, places, memory, masks, allowed)
            if self.training or i == len(self.layers) - 1:
                moved = self.box(x).float()
                centre = moved[..., :2] + inverse_sigmoid(points, EPS_POINT)
                layers.append(LayerOutput(self.score(x), torch.cat([centre, moved[..., 2:]], dim=-1).sigmoid()))
        return divided(Outputs(layers, None), groups, None, memory)


class DinoDecoder(nn.Module):
    """The best places of the encoder with learned contents (mixed query selection); every layer corrects the boxes, and
    a correction is also learned through the prediction of the next layer (look forward twice)."""

    last_only = ("scores",)
    """heads of which inference reads the last layer's only; ``fuse`` drops the others"""

    def __init__(
        self, classes: int, width: int, hidden: int, layers: int, queries: int, levels: int, heads: int = HEADS
    ) -> None:
        super().__init__()
        self.queries = nn.Embedding(queries, width)
        self.groups = GroupEmbedding(classes, width)
        self.enc_project, self.enc_norm = nn.Linear(width, width), nn.LayerNorm(width)
        self.enc_score, self.enc_box = nn.Linear(width, classes), MLP(width, width, 4, 3, F.relu)
        self.position = MLP(2 * width, width, width, 2, F.relu)

        def attention() -> nn.Module:
            return Projected(DeformableAttention(width, heads, (POINTS,) * levels), width)

        self.layers = nn.ModuleList(Layer(width, hidden, attention(), heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.scores = nn.ModuleList(nn.Linear(width, classes) for _ in range(layers))
        self.boxes = nn.ModuleList(MLP(width, width, 4, 3, F.relu) for _ in range(layers))
        for layer in (self.enc_project, *self.position.layers):
            nn.init.xavier_uniform_(layer.weight)  # type: ignore[arg-type]
        start_heads([self.enc_score, *self.scores], [self.enc_box, *self.boxes])

    def forward(self, memory: Sequence[Tensor], masks: Sequence[Tensor], groups: Sequence[QueryGroup] = ()) -> Outputs:
        proposals = self.propose(memory, masks)
        assert proposals.boxes is not None
        count, ratios = proposals.boxes.shape[1], ratios_of(masks)
        own = self.queries.weight[:count].expand(memory[0].shape[0], -1, -1)
        contents, boxes = self.groups(groups)
        x = torch.cat([*contents, own], dim=1)
        kept = seen = torch.cat([*boxes, proposals.boxes.detach()], dim=1)
        allowed = allowed_pairs(groups, count, x.device)
        width, layers = x.shape[2], []
        for i, layer in enumerate(self.layers):
            places = seen[:, :, None] * torch.cat([ratios, ratios], dim=-1)[:, None]  # [B, T, L, 4]
            position = self.position(sine_of_boxes(places[:, :, 0], width // 2).to(x.dtype))
            x = layer(x, position, places, memory, masks, allowed)
            says = self.norm(x)
            if self.training or i == len(self.layers) - 1:
                # from the boxes before, through which gradients pass (look forward twice)
                found = corrected(self.boxes[i](says), kept, EPS_DINO)
                layers.append(LayerOutput(self.scores[i](says), found))
            if i < len(self.layers) - 1:  # passed on from the state before its norm, as in the authors' code
                kept = corrected(self.boxes[i](x), seen, EPS_DINO)
                seen = kept.detach()
        return divided(Outputs(layers, None), groups, proposals, memory)

    def propose(self, memory: Sequence[Tensor], masks: Sequence[Tensor]) -> LayerOutput:
        """The best-scored tokens and their boxes; tokens too near to the border or outside of the picture have none."""
        tokens = flat(memory)
        sizes = [torch.full_like(m.flatten(1), ANCHOR_SIZE * 2.0**i, dtype=torch.float32) for i, m in enumerate(masks)]
        side = torch.cat(sizes, dim=1)[..., None]
        anchor = torch.cat([centres(masks), side, side], dim=-1)
        inside = ((anchor > MARGIN) & (anchor < 1 - MARGIN)).all(-1) & torch.cat([m.flatten(1) for m in masks], dim=1)
        start = torch.log(anchor / (1 - anchor)).masked_fill(~inside[..., None], math.inf)
        tokens = self.enc_norm(self.enc_project(tokens * inside[..., None]))
        logits = self.enc_score(tokens)
        chosen = logits.amax(-1).topk(min(self.queries.num_embeddings, tokens.shape[1]), dim=1).indices
        boxes = (self.enc_box(pick(tokens, chosen)) + pick(start, chosen)).float().sigmoid()
        return LayerOutput(pick(logits, chosen), boxes)


def start_heads(scores: Sequence[nn.Module] | nn.ModuleList, boxes: Sequence[nn.Module] | nn.ModuleList) -> None:
    """Scores begin at 0.01, boxes where they are given."""
    for score in scores:
        nn.init.constant_(score.bias, PRIOR)  # type: ignore[arg-type]
    for box in boxes:
        zero(box.layers[-1])  # type: ignore[index,arg-type,union-attr]
