"""Encoders of the classic detectors: deformable attention over several levels, and dense attention over one.

B pictures, L levels, P tokens of all levels, D width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgecrafter.models.detr.padding import centres, flat, ratios_of, sine_of_mask, unflat
from edgecrafter.nn.attention import PositionedAttention
from edgecrafter.nn.deformable import PointAttention, Projected
from edgecrafter.nn.mlp import MLP

HEADS, POINTS = 8, 4


class FeedForward(nn.Module):
    """Two linear layers, added and normalised; ``activation`` is a module because DAB-DETR learns it."""

    def __init__(self, width: int, hidden: int, activation: nn.Module, dropout: float = 0.0) -> None:
        super().__init__()
        self.linear1, self.linear2 = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.activation, self.dropout = activation, nn.Dropout(dropout)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.dropout(self.activation(self.linear1(x)))
        return self.norm(x + self.dropout(self.linear2(inner)))  # type: ignore[no-any-return]


class DeformableLayer(nn.Module):
    """Every token reads a few places around itself on all levels."""

    def __init__(self, width: int, hidden: int, levels: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.attention = Projected(PointAttention(width, heads, (POINTS,) * levels), width)
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(width)
        self.ffn = FeedForward(width, hidden, nn.ReLU(), dropout)

    def forward(
        self, x: Tensor, position: Tensor, places: Tensor, like: Sequence[Tensor], masks: Sequence[Tensor]
    ) -> Tensor:
        read = self.attention(x + position, places, unflat(x, like), masks)
        return self.ffn(self.norm(x + self.dropout(read)))  # type: ignore[no-any-return]


class DeformableEncoder(nn.Module):
    """Levels [B, D, h, w] -> the same shapes (Deformable DETR, Zhu et al. 2021; DINO)."""

    def __init__(
        self,
        width: int,
        hidden: int,
        layers: int,
        levels: int,
        *,
        temperature: float = 10000.0,
        shift: float = -0.5,
        heads: int = HEADS,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.temperature, self.shift = temperature, shift
        self.level = nn.Parameter(torch.randn(levels, width))
        self.layers = nn.ModuleList(DeformableLayer(width, hidden, levels, heads, dropout) for _ in range(layers))

    def forward(self, levels: Sequence[Tensor], masks: Sequence[Tensor]) -> list[Tensor]:
        width = levels[0].shape[1]
        rows = zip(masks, self.level, strict=True)
        position = flat([sine_of_mask(m, width, self.temperature, self.shift) + e[:, None, None] for m, e in rows])
        places = centres(masks)[:, :, None] * ratios_of(masks)[:, None]  # [B, P, L, 2]
        x = flat(levels)
        position = position.to(x.dtype)
        for layer in self.layers:
            x = layer(x, position, places, levels, masks)
        return unflat(x, levels)


class DenseLayer(nn.Module):
    """Every token looks at all others that are picture."""

    def __init__(self, width: int, hidden: int, heads: int) -> None:
        super().__init__()
        self.attention = PositionedAttention(width, heads)
        self.norm = nn.LayerNorm(width)
        self.ffn = FeedForward(width, hidden, nn.PReLU())

    def forward(self, x: Tensor, position: Tensor, allowed: Tensor) -> Tensor:
        return self.ffn(self.norm(x + self.attention(x, position, allowed)))  # type: ignore[no-any-return]


class DenseEncoder(nn.Module):
    """One level -> the same (DAB-DETR, Liu et al. 2022): positions are scaled by what a token says."""

    def __init__(self, width: int, hidden: int, layers: int, heads: int = HEADS, temperature: float = 20.0) -> None:
        super().__init__()
        self.temperature = temperature
        self.scale = MLP(width, width, width, 2, F.relu)
        self.layers = nn.ModuleList(DenseLayer(width, hidden, heads) for _ in range(layers))

    def forward(self, levels: Sequence[Tensor], masks: Sequence[Tensor]) -> list[Tensor]:
        x = flat(levels)
        position = flat([sine_of_mask(masks[0], x.shape[2], self.temperature)]).to(x.dtype)
        allowed = masks[0].flatten(1)[:, None, None]
        for layer in self.layers:
            x = layer(x, position * self.scale(x), allowed)
        return unflat(x, levels)
