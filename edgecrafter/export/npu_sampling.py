"""Sampling and sorting as products and maxima, for neural processing units.

B images, Q queries, D width, N = B x heads, h x w cells of a level, n points of a level.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgecrafter.export.forms import linear
from edgecrafter.models.decoder import LocationQuality
from edgecrafter.models.pose_decoder import PoseQuality
from edgecrafter.nn.deformable import DeformableAttention, PointAttention

Shape = tuple[int, int]
LOWEST = -60000.0  # within the range of float16
CELLS = 1 << 23
"""numbers of a product of rows and columns that are held at a time: 32 MiB in float32"""


def heads(x: Tensor, count: int) -> Tensor:
    """[B, N, count * width] -> [B, count, N, width]."""
    B, N, D = x.shape
    return x.view(B, N, count, D // count).transpose(1, 2)


class Hat(nn.Module):
    """How much each of ``side`` cells in a row has in what is read at some places: 1 - their distance, or 0."""

    cells: Tensor

    def __init__(self, side: int) -> None:
        super().__init__()
        self.register_buffer("cells", torch.arange(side, dtype=torch.float32) + 0.5)

    def forward(self, places: Tensor) -> Tensor:
        """places [..., 1] in cells from the start of the row -> [..., side]."""
        return F.relu(1 - (places - self.cells).abs())


class Along(nn.Module):
    """Where deformable attention reads along x (``axis`` 0) or y (1), in cells of the levels."""

    cells: Tensor

    def __init__(self, attention: DeformableAttention | PointAttention, levels: Sequence[Shape], axis: int) -> None:
        super().__init__()
        self.axis = axis
        self.boxes = isinstance(attention, DeformableAttention)
        sides = [shape[1 - axis] for shape in levels]
        self.hats = nn.ModuleList(Hat(side) for side in sides)
        every = [float(side) for side, n in zip(sides, attention.points, strict=True) for _ in range(n)]
        self.register_buffer("cells", torch.tensor(every).repeat(attention.heads))
        weight, bias = attention.offsets.weight[axis::2], attention.offsets.bias[axis::2]
        if isinstance(attention, DeformableAttention):  # in half sides of the box; those of points are in cells already
            scale = 0.5 * cast(Tensor, attention.scale).repeat(attention.heads) * self.cells
            weight, bias = weight * scale[:, None], bias * scale
        self.offsets = linear(weight, bias)

    def forward(self, query: Tensor, places: Tensor) -> Tensor:
        """query [B, Q, D], places [B, Q, 4] cxcywh or [B, Q, 2], both in 0..1 -> [B, Q, heads * points]."""
        offsets: Tensor = self.offsets(query)
        if self.boxes:
            offsets = offsets * places[..., self.axis + 2 : self.axis + 3]
        return places[..., self.axis : self.axis + 1] * self.cells + offsets


class Products(nn.Module):
    """Deformable attention as products of matrices, equal to sampling with zeros outside of the map.

    What a query reads of a level is a sum over its points of rows x columns, [h, w], times the values of all cells.
    """

    def __init__(self, attention: DeformableAttention | PointAttention, levels: Sequence[Shape]) -> None:
        super().__init__()
        self.heads, self.points = attention.heads, attention.points
        self.shares = attention.weights
        self.x, self.y = Along(attention, levels, 0), Along(attention, levels, 1)

    def forward(self, query: Tensor, places: Tensor, values: Sequence[Tensor]) -> Tensor:
        """query [B, Q, D], places [B, Q, 4] cxcywh or [B, Q, 2], values of ``split_heads`` -> [B, Q, D]."""
        x, y = heads(self.x(query, places), self.heads), heads(self.y(query, places), self.heads)
        shares = heads(self.shares(query), self.heads).softmax(-1)
        # [N, Q, n] of each level
        spots = [torch.split(part.flatten(0, 1), list(self.points), dim=-1) for part in (x, y, shares)]
        found = [self._level(i, value, *(part[i] for part in spots)) for i, value in enumerate(values)]
        mixed = found[0] + found[1] + found[2]
        return mixed.unflatten(0, (-1, self.heads)).transpose(1, 2).flatten(2)  # type: ignore[no-untyped-call,no-any-return]

    def _level(self, i: int, value: Tensor, *spots: Tensor) -> Tensor:
        """value [N, d, h, w], x, y and shares [N, Q, n] -> [N, Q, d]; some queries at a time (``CELLS``)."""
        tokens = value.flatten(2).transpose(1, 2)
        count, Q = tokens.shape[0] * tokens.shape[1], spots[0].shape[1]
        size = math.ceil(Q / math.ceil(Q * count / CELLS))
        found = []
        for x, y, shares in zip(*(torch.split(part, size, dim=1) for part in spots), strict=True):
            rows, columns = self.y.hats[i](y[..., None]) * shares[..., None], self.x.hats[i](x[..., None])
            found.append((rows.transpose(2, 3) @ columns).flatten(2) @ tokens)
        return found[0] if len(found) == 1 else torch.cat(found, dim=1)


class Largest(nn.Module):
    """The ``top`` largest of the last axis in order, [..., n] -> [..., top], as ``topk`` has them.

    One maximum after the other is taken and pushed down. Equal numbers go together, and count as often as they are
    there, so that ties are exact as well.
    """

    places: Tensor

    def __init__(self, top: int) -> None:
        super().__init__()
        self.top = top
        self.register_buffer("places", torch.arange(top, dtype=torch.float32))

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor | float = 0.0
        count: Tensor | float = 0.0
        before: Tensor | float = 0.0
        for i in range(self.top):
            best = x.amax(-1, keepdim=True)
            equal = x >= best
            count = count + equal.to(x.dtype).sum(-1, keepdim=True)
            filled = (count - self.places).clamp(0, 1)  # 1 for the places taken by now
            found = found + best * (filled - before)
            before = filled
            if i < self.top - 1:
                x = x.masked_fill(equal, LOWEST)
        assert isinstance(found, Tensor)
        return found


class Quality(nn.Module):
    """``LocationQuality`` by maxima."""

    def __init__(self, quality: LocationQuality) -> None:
        super().__init__()
        self.largest, self.mlp = Largest(quality.top), quality.mlp

    def forward(self, edges: Tensor) -> Tensor:
        """edges [B, Q, 4, bins] logits -> [B, Q, 1]."""
        best = self.largest(edges.softmax(-1))
        return self.mlp(torch.cat([best, best.mean(-1, keepdim=True)], dim=-1).flatten(2))  # type: ignore[no-any-return]


class QualityOfPose(nn.Module):
    """``PoseQuality`` by products and maxima."""

    def __init__(self, quality: PoseQuality, shape: Shape) -> None:
        super().__init__()
        self.largest, self.mlp = Largest(quality.top), quality.mlp
        self.rows, self.columns = Hat(shape[0]), Hat(shape[1])
        self.height, self.width = shape

    def forward(self, level: Tensor, points: Tensor) -> Tensor:
        """level [B, D, h, w], points [B, Q, K, 2] in 0..1 -> [B, Q, 1]."""
        flat = points.flatten(1, 2)
        x, y = self.columns(flat[..., :1] * self.width), self.rows(flat[..., 1:] * self.height)  # [B, Q * K, w] and h
        cells = (y[..., None] * x[:, :, None]).flatten(2)
        best = self.largest(cells @ level.flatten(2).transpose(1, 2))
        best = torch.cat([best, best.mean(-1, keepdim=True)], dim=-1)
        return self.mlp(best.view(*points.shape[:2], -1))  # type: ignore[no-any-return]
