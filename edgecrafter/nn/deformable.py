"""Multi-scale deformable attention (Zhu et al. 2021).

In the refinement decoders there is neither a value nor an output projection: values are the memory itself, split into
heads. ``Projected`` puts both around it, as in the original form.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgecrafter.geometry.numbers import on_device
from edgecrafter.nn.attention import Looks


class _Deformable(nn.Module):
    """Every query reads a few points on each level; subclasses say where the points lie."""

    def __init__(self, width: int, heads: int, points: Sequence[int]) -> None:
        super().__init__()
        self.heads, self.points = heads, tuple(points)
        self.offsets = nn.Linear(width, heads * sum(points) * 2)
        self.weights = nn.Linear(width, heads * sum(points))
        self._initialise()

    def _initialise(self) -> None:
        """Offsets start on eight rays, one per head, further out with the point's number; equal weights."""
        angles = torch.arange(self.heads) * (2 * math.pi / self.heads)
        rays = torch.stack([angles.cos(), angles.sin()], dim=-1)
        rays = rays / rays.abs().amax(-1, keepdim=True)
        numbers = torch.cat([torch.arange(1, n + 1) for n in self.points])
        nn.init.zeros_(self.offsets.weight)
        with torch.no_grad():
            self.offsets.bias.copy_((rays[:, None] * numbers[None, :, None]).flatten())
        nn.init.zeros_(self.weights.weight)
        nn.init.zeros_(self.weights.bias)

    def per_point(self, places: Tensor) -> Tensor:
        """Places [B, Q, n], or of each level [B, Q, L, n], for every point: [B, Q, 1, 1 or points, n]."""
        if places.dim() == 3:
            return places[:, :, None, None]
        levels = places.unbind(2)
        return torch.stack([level for level, n in zip(levels, self.points, strict=True) for _ in range(n)], 2)[
            :, :, None
        ]

    def spots(self, query: Tensor, places: Tensor, values: Sequence[Tensor]) -> Tensor:
        """The points that are read, [B, Q, heads, points, 2] (x, y) in 0..1; arguments as ``forward`` takes them."""
        raise NotImplementedError

    def shares(self, query: Tensor) -> Tensor:
        """How much each point counts, [B, Q, heads, points]; adds up to 1."""
        return self.weights(query).unflatten(-1, (self.heads, -1)).softmax(-1)  # type: ignore[no-any-return]

    def looks(self, query: Tensor, places: Tensor, values: Sequence[Tensor]) -> Looks:
        """Both, for the arguments of ``forward``."""
        return Looks(self.shares(query), self.spots(query, places, values))

    def forward(self, query: Tensor, places: Tensor, values: Sequence[Tensor]) -> Tensor:
        """query [B, Q, D], places as ``spots`` wants them, values of ``split_heads`` -> [B, Q, D]."""
        return self.read(query, self.spots(query, places, values), values)

    def read(self, query: Tensor, places: Tensor, values: Sequence[Tensor]) -> Tensor:
        """query [B, Q, D], places [B, Q, heads, points, 2] in 0..1, values of ``split_heads`` -> [B, Q, D]."""
        B, Q, D = query.shape
        weights = self.shares(query)
        grid = (2 * places - 1).transpose(1, 2).flatten(0, 1)  # [B * heads, Q, points, 2]
        found = sample(values, grid, self.points)
        mixed = (found * weights.transpose(1, 2).flatten(0, 1)[:, None]).sum(-1)
        return mixed.view(B, D, Q).transpose(1, 2)  # type: ignore[no-any-return]


class DeformableAttention(_Deformable):
    """The points lie around the query's box, in units of its half sides."""

    def __init__(self, width: int, heads: int, points: Sequence[int]) -> None:
        super().__init__(width, heads, points)
        self.register_buffer("scale", torch.cat([torch.full((n,), 1 / n) for n in points]))

    def spots(self, query: Tensor, places: Tensor, values: Sequence[Tensor]) -> Tensor:
        """``places`` are boxes cxcywh, [B, Q, 4] or one per level, [B, Q, L, 4]."""
        offsets = self.offsets(query).unflatten(-1, (self.heads, -1, 2)) * self.scale[:, None]  # type: ignore[index]
        around = self.per_point(places)
        return around[..., :2] + offsets * around[..., 2:] * 0.5  # type: ignore[no-any-return]


class PointAttention(_Deformable):
    """The points lie around the query's own point, in units of each level's cells."""

    def spots(self, query: Tensor, places: Tensor, values: Sequence[Tensor]) -> Tensor:
        """``places`` are points, [B, Q, 2] or one per level, [B, Q, L, 2]."""
        cells = [(value.shape[3], value.shape[2]) for value in values]
        sides = on_device([side for cell, n in zip(cells, self.points, strict=True) for side in cell * n], query.device)
        offsets = self.offsets(query).unflatten(-1, (self.heads, -1, 2)) / sides.view(-1, 2)
        return self.per_point(places) + offsets  # type: ignore[no-any-return]


class Projected(nn.Module):
    """Attention between a projection of the values and one of the result, as Zhu et al. have it."""

    def __init__(self, points: DeformableAttention | PointAttention, width: int) -> None:
        super().__init__()
        self.points = points
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width)
        for layer in (self.value, self.output):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def looks(
        self, query: Tensor, places: Tensor, memory: Sequence[Tensor], masks: Sequence[Tensor] | None = None
    ) -> Looks:
        """Where and how much is read, for the arguments of ``forward``."""
        return self.points.looks(query, places, memory)

    def forward(
        self, query: Tensor, places: Tensor, memory: Sequence[Tensor], masks: Sequence[Tensor] | None = None
    ) -> Tensor:
        """query [B, Q, D], places as ``points`` wants them, memory levels [B, D, h, w] each -> [B, Q, D].

        ``masks`` [B, h, w] bool: tokens that are no picture give zeros.
        """
        levels = [self.value(level.flatten(2).mT).mT.unflatten(2, level.shape[2:]) for level in memory]
        if masks is not None:
            levels = [level * mask[:, None] for level, mask in zip(levels, masks, strict=True)]
        return self.output(self.points(query, places, split_heads(levels, self.points.heads)))  # type: ignore[no-any-return]


def split_heads(memory: Sequence[Tensor], heads: int) -> list[Tensor]:
    """Levels [B, D, h, w] -> float32 [B * heads, D / heads, h, w] each: what every decoder layer samples from.

    In half precision the places would be rounded to a tenth of a cell.
    """
    return [level.float().reshape(level.shape[0] * heads, -1, *level.shape[2:]) for level in memory]


def sample(values: Sequence[Tensor], grid: Tensor, points: Sequence[int]) -> Tensor:
    """Bilinear values at grid [N, Q, sum(points), 2] in -1..1 (x, y), level by level -> [N, D, Q, sum(points)].

    Outside of a map the value is zero.
    """
    parts = torch.split(grid, list(points), dim=2)
    return torch.cat(
        [
            F.grid_sample(value, part.float(), mode="bilinear", padding_mode="zeros", align_corners=False)
            for value, part in zip(values, parts, strict=True)
        ],
        dim=-1,
    )
