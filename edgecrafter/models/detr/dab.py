"""Decoder of DAB-DETR (Liu et al. 2022): every query is a box, whose sine code steers dense attention.

B pictures, T queries of all groups and the network's own, C classes, D width, P tokens of the one level.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgecrafter.geometry.numbers import corrected
from edgecrafter.models.detr.decoder import EPS_DINO, start_heads
from edgecrafter.models.detr.encoder import HEADS, FeedForward
from edgecrafter.models.detr.padding import flat, sine_of_boxes, sine_of_mask
from edgecrafter.models.queries import allowed_pairs, divided
from edgecrafter.nn.attention import Looks, attend, shares
from edgecrafter.nn.mlp import MLP
from edgecrafter.types import LayerOutput, Outputs, QueryGroup


class ConditionalSelfAttention(nn.Module):
    """Contents and positions have a projection each, and are added."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_content, self.q_position = nn.Linear(width, width), nn.Linear(width, width)
        self.k_content, self.k_position = nn.Linear(width, width), nn.Linear(width, width)
        self.value, self.output = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor, position: Tensor, allowed: Tensor | None) -> Tensor:
        q = self.q_content(x) + self.q_position(position)
        k = self.k_content(x) + self.k_position(position)
        q, k, v = (_heads(t, self.heads) for t in (q, k, self.value(x)))
        return self.output(_joined(attend(q, k, v, allowed)))  # type: ignore[no-any-return]


class ConditionalCrossAttention(nn.Module):
    """Contents and sine codes stand beside each other in every head. Only the first layer of a decoder also adds the
    positions to the contents (``first``)."""

    def __init__(self, width: int, heads: int, first: bool) -> None:
        super().__init__()
        self.heads = heads
        self.q_content, self.q_sine = nn.Linear(width, width), nn.Linear(width, width)
        self.k_content, self.k_position = nn.Linear(width, width), nn.Linear(width, width)
        self.value, self.output = nn.Linear(width, width), nn.Linear(width, width)
        self.q_position = nn.Linear(width, width) if first else None

    def forward(
        self, x: Tensor, position: Tensor, sine: Tensor, memory: Tensor, codes: Tensor, allowed: Tensor
    ) -> Tensor:
        """x, position and sine [B, T, D]; memory tokens and their codes [B, P, D]; allowed [B, 1, 1, P]."""
        q, k = self.compared(x, position, sine, memory, codes)
        return self.output(_joined(attend(q, k, _heads(self.value(memory), self.heads), allowed)))  # type: ignore[no-any-return]

    def looks(self, x: Tensor, position: Tensor, sine: Tensor, memory: Tensor, codes: Tensor, allowed: Tensor) -> Looks:
        """How much each token counts, for the arguments of ``forward``."""
        return Looks(shares(*self.compared(x, position, sine, memory, codes), allowed).transpose(1, 2))

    def compared(
        self, x: Tensor, position: Tensor, sine: Tensor, memory: Tensor, codes: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Queries [B, heads, T, 2 D / heads] and keys [B, heads, P, 2 D / heads]."""
        q, k, where = self.q_content(x), self.k_content(memory), self.k_position(codes)
        if self.q_position is not None:
            q, k = q + self.q_position(position), k + where
        q = torch.cat([_heads(q, self.heads), _heads(self.q_sine(sine), self.heads)], dim=-1)
        return q, torch.cat([_heads(k, self.heads), _heads(where, self.heads)], dim=-1)


class DabLayer(nn.Module):
    """Self-attention, cross-attention, feed-forward; each is added and then normalised."""

    def __init__(self, width: int, hidden: int, heads: int, first: bool) -> None:
        super().__init__()
        self.self_attn = ConditionalSelfAttention(width, heads)
        self.norm1 = nn.LayerNorm(width)
        self.cross_attn = ConditionalCrossAttention(width, heads, first)
        self.norm2 = nn.LayerNorm(width)
        self.ffn = FeedForward(width, hidden, nn.PReLU())

    def forward(
        self,
        x: Tensor,
        position: Tensor,
        sine: Tensor,
        memory: Tensor,
        codes: Tensor,
        real: Tensor,
        allowed: Tensor | None,
    ) -> Tensor:
        x = self.norm1(x + self.self_attn(x, position, allowed))
        return self.ffn(self.norm2(x + self.cross_attn(x, position, sine, memory, codes, real)))  # type: ignore[no-any-return]


class DabDecoder(nn.Module):
    """Learned boxes with empty contents; every layer corrects the boxes, with one head for all."""

    last_only = ()

    def __init__(
        self,
        classes: int,
        width: int,
        hidden: int,
        layers: int,
        queries: int,
        heads: int = HEADS,
        temperature: float = 20.0,
    ) -> None:
        super().__init__()
        self.temperature = temperature
        self.queries = nn.Embedding(queries, 4)
        """boxes as logits"""
        self.position = MLP(2 * width, width, width, 2, F.relu)
        self.scale = MLP(width, width, width, 2, F.relu)
        self.extent = MLP(width, width, 2, 2, F.relu)
        self.layers = nn.ModuleList(DabLayer(width, hidden, heads, first=i == 0) for i in range(layers))
        self.norm = nn.LayerNorm(width)
        self.score, self.box = nn.Linear(width, classes), MLP(width, width, 4, 3, F.relu)
        for part in self.layers.modules():
            if isinstance(part, nn.Linear):
                nn.init.xavier_uniform_(part.weight)
        start_heads([self.score], [self.box])

    def forward(self, memory: Sequence[Tensor], masks: Sequence[Tensor], groups: Sequence[QueryGroup] = ()) -> Outputs:
        tokens, real = flat(memory), masks[0].flatten(1)[:, None, None]
        B, _, width = tokens.shape
        codes = flat([sine_of_mask(masks[0], width, self.temperature)]).to(tokens.dtype)
        count = self.queries.num_embeddings
        asked = [group for group in groups if group.labels.shape[1]]
        assert all(group.content is not None for group in asked), "this decoder has no table of labels"
        contents = [group.content for group in asked if group.content is not None]
        x = torch.cat([*contents, tokens.new_zeros(B, count, width)], dim=1)
        own = self.queries.weight.sigmoid().expand(B, -1, -1)
        kept = seen = torch.cat([*(group.boxes for group in asked), own], dim=1)
        allowed = allowed_pairs(groups, count, x.device)
        layers: list[LayerOutput] = []
        for i, layer in enumerate(self.layers):
            code = sine_of_boxes(seen, width // 2).to(x.dtype)
            sine = code[..., :width] if i == 0 else code[..., :width] * self.scale(x)
            x = layer(x, self.position(code), self.modulated(sine, x, seen), tokens, codes, real, allowed)
            says = self.norm(x)
            if self.training or i == len(self.layers) - 1:
                found = corrected(self.box(says), kept, EPS_DINO)
                layers.append(LayerOutput(self.score(says), found))
            if i < len(self.layers) - 1:  # passed on from the state before its norm, as in the authors' code
                kept = corrected(self.box(x), seen, EPS_DINO)
                seen = kept.detach()
        return divided(Outputs(layers, None), groups, None, memory)

    def modulated(self, sine: Tensor, x: Tensor, boxes: Tensor) -> Tensor:
        """Sine codes [B, T, D] (half of y, half of x), the longer the box, the wider they look: each half times the
        extent that the state asks for, over that of the box."""
        wanted = self.extent(x).sigmoid()
        by_height = (wanted[..., 1] / boxes[..., 3])[..., None]
        by_width = (wanted[..., 0] / boxes[..., 2])[..., None]
        y, x_part = sine.chunk(2, dim=-1)
        return torch.cat([y * by_height, x_part * by_width], dim=-1)


def _heads(x: Tensor, heads: int) -> Tensor:
    """[B, N, D] -> [B, heads, N, D / heads]."""
    return x.reshape(*x.shape[:2], heads, -1).transpose(1, 2)


def _joined(x: Tensor) -> Tensor:
    """The reverse."""
    return x.transpose(1, 2).flatten(2)
