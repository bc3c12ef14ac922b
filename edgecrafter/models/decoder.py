"""Refinement decoder for boxes, and for masks if it has a head for them (EdgeCrafter, 3.2; D-FINE, Peng et al. 2025).

B images, T queries of all groups and the network's own, C classes, D width, P memory tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgecrafter.geometry import bins
from edgecrafter.geometry.numbers import EPS_BOX, corrected
from edgecrafter.models.queries import PRIOR, GroupEmbedding, Queries, divided, select
from edgecrafter.nn.attention import PositionedAttention
from edgecrafter.nn.conv import ConvNorm
from edgecrafter.nn.deformable import DeformableAttention, split_heads
from edgecrafter.nn.mlp import MLP, Activation, FeedForward, Gate, zero
from edgecrafter.types import LayerOutput, Outputs, QueryGroup

HEADS = 8
POINTS = (3, 6, 3)


@dataclass(frozen=True)
class Refinement:
    """What the refinement decoders of the architectures do differently."""

    projected: bool
    """whether memory is projected and normalised before it is scored and becomes the content of a query"""
    follows: bool
    """whether a query's position is made anew in every layer, from the box so far"""
    activation: Activation = F.silu


REFINEMENTS = {
    "ec": Refinement(projected=False, follows=False),
    "rt": Refinement(projected=True, follows=True),
    "dfine": Refinement(projected=True, follows=True, activation=F.relu),
}
"""EdgeCrafter; RT-DETRv4; D-FINE and DEIM"""


class DecoderLayer(nn.Module):
    """Self-attention, deformable cross-attention mixed in by a gate, feed-forward."""

    def __init__(self, width: int, hidden: int, activation: Activation = F.silu) -> None:
        super().__init__()
        self.self_attn = PositionedAttention(width, HEADS)
        self.norm1 = nn.LayerNorm(width)
        self.cross_attn = DeformableAttention(width, HEADS, POINTS)
        self.gate = Gate(width)
        self.ffn = FeedForward(width, hidden, activation)

    def forward(
        self, x: Tensor, position: Tensor, boxes: Tensor, values: Sequence[Tensor], allowed: Tensor | None
    ) -> Tensor:
        x = self.norm1(x + self.self_attn(x, position, allowed))
        return self.ffn(self.gate(x, self.cross_attn(x + position, boxes, values)))  # type: ignore[no-any-return]


class LocationQuality(nn.Module):
    """Confidence from the shape of the edge distributions, added to all class logits of a query."""

    def __init__(self, activation: Activation = F.silu, hidden: int = 64, top: int = 4) -> None:
        super().__init__()
        self.top = top
        self.mlp = MLP(4 * (top + 1), hidden, 1, 2, activation)
        zero(self.mlp.layers[-1])

    def forward(self, edges: Tensor) -> Tensor:
        """edges [B, T, 4, bins] logits -> [B, T, 1]."""
        best = edges.softmax(-1).topk(self.top, dim=-1).values
        return self.mlp(torch.cat([best, best.mean(-1, keepdim=True)], dim=-1).flatten(2))  # type: ignore[no-any-return]


class Decoder(nn.Module):
    """Memory levels and optional query groups -> ``Outputs``: all layers in training, the last one otherwise.

    ``masks`` maps the finest level and the contents of the layers to one ``MaskMap`` for each (``MaskHead``).
    ``inputs`` is the width of the memory, where it is another one.
    """

    last_only = ("scores", "quality")
    """heads of which inference reads the last layer's only; ``fuse`` drops the others"""

    def __init__(
        self,
        classes: int,
        width: int,
        hidden: int,
        layers: int,
        queries: int,
        masks: nn.Module | None = None,
        *,
        kind: str = "ec",
        inputs: int | None = None,
        curvature: float = bins.CURVATURE,
    ) -> None:
        super().__init__()
        self.queries = queries
        self.masks = masks
        self.kind = REFINEMENTS[kind]
        act = self.kind.activation
        enters = inputs not in (None, width)
        self.enter = nn.ModuleList(ConvNorm(inputs or width, width) for _ in (range(3) if enters else ()))
        self.groups = GroupEmbedding(classes, width)
        if self.kind.projected:
            self.enc_project, self.enc_norm = nn.Linear(width, width), nn.LayerNorm(width)
        self.enc_score = nn.Linear(width, classes)
        self.enc_box = MLP(width, width, 4, 3, act)
        self.position = MLP(4, 2 * width, width, 2, act) if self.kind.follows else MLP(4, width, width, 3, act)
        self.first_box = MLP(width, width, 4, 3, act)
        self.layers = nn.ModuleList(DecoderLayer(width, hidden, act) for _ in range(layers))
        self.scores = nn.ModuleList(nn.Linear(width, classes) for _ in range(layers))
        self.boxes = nn.ModuleList(MLP(width, width, 4 * bins.BINS, 3, act) for _ in range(layers))
        self.quality = nn.ModuleList(LocationQuality(act) for _ in range(layers))
        self.spread = nn.Parameter(torch.tensor([bins.SPREAD]), requires_grad=False)
        self.curvature = nn.Parameter(torch.tensor([int(curvature)]), requires_grad=False)
        self.curve = curvature
        self.register_buffer("bin_values", torch.tensor(bins.weighting(curvature=curvature)), persistent=False)
        self._initialise()

    def _initialise(self) -> None:
        for score in (self.enc_score, *self.scores):
            nn.init.constant_(score.bias, PRIOR)
        for box in (self.enc_box, self.first_box, *self.boxes):
            assert isinstance(box, MLP)
            zero(box.layers[-1])
        projections = [*self.position.layers]
        if self.kind.projected:
            ffns = [layer.ffn for layer in self.layers]
            projections += [self.enc_project, *(linear for ffn in ffns for linear in (ffn.linear1, ffn.linear2))]  # type: ignore[union-attr]
        for layer in projections:
            nn.init.xavier_uniform_(layer.weight)  # type: ignore[arg-type]

    def forward(self, memory: Sequence[Tensor], groups: Sequence[QueryGroup] = ()) -> Outputs:
        read = [enter(level) for enter, level in zip(self.enter, memory, strict=True)] if self.enter else memory
        queries, proposals = self.start(read, groups)
        outputs, contents = self.refine(queries, split_heads(read, HEADS))
        if self.masks is not None:
            for layer, masks in zip(outputs.layers, self.masks(memory[0], contents), strict=True):
                layer.masks = masks
            if outputs.first is not None:
                outputs.first.masks = outputs.layers[-1].masks  # as in the released training
        return divided(outputs, groups, proposals, memory)

    def start(self, memory: Sequence[Tensor], groups: Sequence[QueryGroup]) -> tuple[Queries, LayerOutput]:
        """The queries, and the proposals that the network's own ones come from (``select``)."""

        def project(tokens: Tensor) -> Tensor:
            return self.enc_norm(self.enc_project(tokens)) if self.kind.projected else tokens

        return select(
            memory, groups, self.queries, project=project, score=self.enc_score, box=self.enc_box, embed=self.groups
        )

    def refine(self, queries: Queries, values: Sequence[Tensor]) -> tuple[Outputs, list[Tensor]]:
        """All queries through all layers; the edge logits of the layers add up. Also the contents after each layer."""
        x, boxes = queries.content, queries.places
        position = self.position(boxes).clamp(-10, 10)
        previous: Tensor | float = 0.0
        edges = torch.zeros((), device=x.device)
        layers: list[LayerOutput] = []
        contents: list[Tensor] = []
        for i, layer in enumerate(self.layers):
            if i and self.kind.follows:  # EdgeCrafter keeps that of the first boxes, as in the released model
                position = self.position(boxes).clamp(-10, 10)
            x = layer(x, position, boxes, values, queries.allowed)
            contents.append(x)
            if i == 0:
                base = corrected(self.first_box(x), boxes, EPS_BOX)
                first = LayerOutput(self.scores[0](x), base) if self.training else None
            edges = self.boxes[i](x + previous).unflatten(-1, (4, bins.BINS)) + edges
            moves = bins.distances(edges.float(), self.bin_values)  # type: ignore[arg-type]
            refined = bins.decode(base.detach(), moves, self.curve)
            if self.training or i == len(self.layers) - 1:
                logits = self.scores[i](x) + self.quality[i](edges)
                layers.append(LayerOutput(logits, refined, edges, base.detach()))
            boxes, previous = refined.detach(), x.detach()
        return Outputs(layers, first), contents
