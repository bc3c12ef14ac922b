"""Parts of networks for neural processing units: products in place of sampling and sorting, at most four dimensions.

Every form has the inputs and outputs of the module that it is made of, for maps of known sizes, and shares its weights.
B images, Q queries, D width, N = B x heads, h x w cells of a level, n points of a level.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgecrafter.models.decoder import LocationQuality
from edgecrafter.models.encoder import AIFI
from edgecrafter.models.network import Detector
from edgecrafter.models.pose_decoder import PoseQuality, sine_periods
from edgecrafter.models.pyramid import Pyramid
from edgecrafter.models.vit import Block, ECViT, FusedBlock
from edgecrafter.nn.attention import PositionedAttention
from edgecrafter.nn.deformable import DeformableAttention, PointAttention
from edgecrafter.nn.positions import rotary_angles, sine_cosine

Shape = tuple[int, int]
LOWEST = -60000.0  # within the range of float16
CELLS = 1 << 23
"""numbers of a product of rows and columns that are held at a time: 32 MiB in float32"""


def static(network: Detector, size: Shape) -> None:
    """Replace the modules of ``network``, a copy that is nobody else's, by forms for inputs of ``size`` pixels."""
    levels = shapes(size)
    backbone, encoder = network.backbone, network.encoder
    if isinstance(backbone.vit, ECViT):
        backbone.vit = StaticViT(backbone.vit, size)
    if isinstance(backbone.pyramid, Pyramid):
        backbone.pyramid = StaticPyramid(backbone.pyramid)
    encoder.aifi = StaticAIFI(cast(AIFI, encoder.aifi), levels[-1])
    _replace(network.decoder, levels)


def shapes(size: Shape) -> list[Shape]:
    """Height and width of the three levels."""
    return [(size[0] // stride, size[1] // stride) for stride in (8, 16, 32)]


def _replace(module: nn.Module, levels: Sequence[Shape]) -> None:
    forms: dict[type[nn.Module], Callable[[nn.Module], nn.Module]] = {
        PositionedAttention: lambda found: StaticAttention(cast(PositionedAttention, found)),
        DeformableAttention: lambda found: Products(cast(DeformableAttention, found), levels),
        PointAttention: lambda found: Products(cast(PointAttention, found), levels),
        LocationQuality: lambda found: Quality(cast(LocationQuality, found)),
        PoseQuality: lambda found: QualityOfPose(cast(PoseQuality, found), levels[0]),
    }
    for name, child in module.named_children():
        if type(child) in forms:
            setattr(module, name, forms[type(child)](child))
        else:
            _replace(child, levels)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax attention, [B, heads, N, width] each -> [B, N, heads * width]."""
    shares = ((q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)).softmax(-1)
    return (shares @ v).transpose(1, 2).flatten(2)


def heads(x: Tensor, count: int) -> Tensor:
    """[B, N, count * width] -> [B, count, N, width]."""
    B, N, D = x.shape
    return x.view(B, N, count, D // count).transpose(1, 2)


class StaticAttention(nn.Module):
    """``PositionedAttention`` whose weights are parted already."""

    def __init__(self, attention: PositionedAttention) -> None:
        super().__init__()
        width = attention.in_proj_weight.shape[1]
        self.heads = attention.heads
        self.look = linear(attention.in_proj_weight[: 2 * width], attention.in_proj_bias[: 2 * width])
        self.value = linear(attention.in_proj_weight[2 * width :], attention.in_proj_bias[2 * width :])
        self.out_proj = attention.out_proj

    def forward(self, x: Tensor, position: Tensor | None = None, allowed: Tensor | None = None) -> Tensor:
        assert allowed is None, "the network's own queries all see each other"
        q, k = self.look(x if position is None else x + position).chunk(2, dim=-1)
        return self.out_proj(attend(*(heads(part, self.heads) for part in (q, k, self.value(x)))))  # type: ignore[no-any-return]


def linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    """A linear layer with copies of these weights."""
    made = nn.Linear(weight.shape[1], weight.shape[0])
    made.weight, made.bias = nn.Parameter(weight.detach().clone()), nn.Parameter(bias.detach().clone())
    return made


class StaticBlock(nn.Module):
    """A block of the ViT; queries and keys are rotated together by cosines and sines [N, 1, width / 2]."""

    def __init__(self, block: Block | FusedBlock, cosine: Tensor, sine: Tensor) -> None:
        super().__init__()
        self.norm1, self.attn, self.norm2 = block.norm1, block.attn, block.norm2
        self.fc1, self.fc2 = block.fc1, block.fc2
        self.register_buffer("cosine", torch.cat([cosine, cosine], dim=-1))
        self.register_buffer("sine", torch.cat([-sine, sine], dim=-1))

    def forward(self, x: Tensor) -> Tensor:
        count = self.attn.heads
        both, value = self.attn.qkv(self.norm1(x)).split([2 * x.shape[2], x.shape[2]], dim=-1)
        both = heads(both, 2 * count)
        a, b = both.chunk(2, dim=-1)
        q, k = (both * self.cosine + torch.cat([b, a], dim=-1) * self.sine).chunk(2, dim=1)
        x = x + self.attn.proj(attend(q, k, heads(value, count)))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))  # type: ignore[no-any-return]


class StaticViT(nn.Module):
    """``ECViT`` with its angles worked out."""

    def __init__(self, vit: ECViT, size: Shape) -> None:
        super().__init__()
        self.keep, self.stem, self.registers = vit.keep, vit.stem, vit.registers
        self.skip = 0 if vit.registers is None else vit.registers.shape[1]
        angles = rotary_angles(size[0] // 16, size[1] // 16, vit.periods)  # type: ignore[arg-type]
        angles = F.pad(angles, (0, 0, self.skip, 0))
        blocks = cast("list[Block | FusedBlock]", vit.blocks)
        self.blocks = nn.ModuleList(StaticBlock(block, angles.cos(), angles.sin()) for block in blocks)

    def forward(self, images: Tensor) -> list[Tensor]:
        patches = self.stem(images)
        x = patches.flatten(2).transpose(1, 2)
        if self.registers is not None:
            x = torch.cat([self.registers.expand(len(x), -1, -1), x], dim=1)
        maps = []
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i >= len(self.blocks) - self.keep:
                maps.append(x[:, self.skip :].transpose(1, 2).reshape(patches.shape))
        return maps


class StaticPyramid(nn.Module):
    """``Pyramid`` whose mean is a sum: stacked maps have five dimensions."""

    def __init__(self, pyramid: Pyramid) -> None:
        super().__init__()
        self.pyramid = pyramid

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        joined = torch.cat(list(maps), dim=1) if self.pyramid.concat else maps[0]
        if not self.pyramid.concat and len(maps) > 1:
            for each in maps[1:]:
                joined = joined + each
            joined = joined * (1 / len(maps))
        return self.pyramid([joined])  # type: ignore[no-any-return]


class StaticAIFI(nn.Module):
    """``AIFI`` with its positions worked out."""

    def __init__(self, aifi: AIFI, shape: Shape) -> None:
        super().__init__()
        self.attention = StaticAttention(aifi.attention)
        self.linear1, self.linear2, self.activation = aifi.linear1, aifi.linear2, aifi.activation
        self.norm1, self.norm2 = aifi.norm1, aifi.norm2
        weight = aifi.linear1.weight
        self.register_buffer("position", sine_cosine(*shape, weight.shape[1], weight.device)[None])

    def forward(self, level: Tensor) -> Tensor:
        x = level.flatten(2).transpose(1, 2)
        x = self.norm1(x + self.attention(x, self.position))
        x = self.norm2(x + self.linear2(self.activation(self.linear1(x))))
        return x.transpose(1, 2).reshape(level.shape)  # type: ignore[no-any-return]


class Hat(nn.Module):
    """How much each of ``side`` cells in a row has in what is read at some places: 1 - their distance, or 0."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side
        self.register_buffer("cells", torch.arange(side, dtype=torch.float32) + 0.5)

    def forward(self, places: Tensor) -> Tensor:
        """places [..., 1] in 0..1 of the row -> [..., side]."""
        return F.relu(1 - (places * self.side - self.cells).abs())  # type: ignore[operator]


class Products(nn.Module):
    """Deformable attention as products of matrices, equal to sampling with zeros outside of the map.

    What a query reads of a level is a sum over its points of rows x columns, [h, w], times the values of all cells.
    """

    def __init__(self, attention: DeformableAttention | PointAttention, levels: Sequence[Shape]) -> None:
        super().__init__()
        self.heads, self.points = attention.heads, attention.points
        self.boxes = isinstance(attention, DeformableAttention)
        self.shares = attention.weights
        self.x, self.y = (self._offsets(attention, levels, axis) for axis in (0, 1))
        self.columns = nn.ModuleList(Hat(w) for _, w in levels)
        self.rows = nn.ModuleList(Hat(h) for h, _ in levels)

    def _offsets(self, attention: DeformableAttention | PointAttention, levels: Sequence[Shape], axis: int) -> nn.Linear:
        """The layer of one coordinate, [heads * points] in half sides of the box or in 0..1 of the map."""
        if isinstance(attention, DeformableAttention):
            scale = cast(Tensor, attention.scale) * 0.5
        else:
            sides = [1 / shape[1 - axis] for shape, n in zip(levels, self.points, strict=True) for _ in range(n)]
            scale = torch.tensor(sides)
        scale = scale.repeat(self.heads)
        weight, bias = attention.offsets.weight[axis::2], attention.offsets.bias[axis::2]
        return linear(weight * scale[:, None], bias * scale)

    def forward(self, query: Tensor, places: Tensor, values: Sequence[Tensor]) -> Tensor:
        """query [B, Q, D], places [B, Q, 4] cxcywh or [B, Q, 2], values of ``split_heads`` -> [B, Q, D]."""
        B, Q, D = query.shape
        x, y = self.x(query), self.y(query)
        if self.boxes:
            x, y = x * places[..., 2:3], y * places[..., 3:4]
        x, y = heads(x + places[..., :1], self.heads), heads(y + places[..., 1:2], self.heads)
        shares = heads(self.shares(query), self.heads).softmax(-1)
        spots = [part.flatten(0, 1).split(list(self.points), dim=-1) for part in (x, y, shares)]
        found = [self._level(i, *(part[i] for part in spots), value) for i, value in enumerate(values)]
        mixed = sum(found[1:], found[0])
        return mixed.view(B, self.heads, Q, D // self.heads).transpose(1, 2).flatten(2)

    def _level(self, i: int, x: Tensor, y: Tensor, shares: Tensor, value: Tensor) -> Tensor:
        """x, y and shares [N, Q, n], value [N, d, h, w] -> [N, Q, d]."""
        N, Q = x.shape[:2]
        cells = value.shape[2] * value.shape[3]
        parts = math.ceil(Q / max(1, CELLS // (N * cells)))
        tokens = value.flatten(2).transpose(1, 2)
        size = math.ceil(Q / parts)
        found = [
            (
                (self.rows[i](b[..., None]) * s[..., None]).transpose(2, 3) @ self.columns[i](a[..., None])
            ).flatten(2) @ tokens
            for a, b, s in zip(x.split(size, 1), y.split(size, 1), shares.split(size, 1), strict=True)
        ]
        return found[0] if parts == 1 else torch.cat(found, dim=1)


class Largest(nn.Module):
    """The ``top`` largest of the last axis in order, [..., n] -> [..., top], as ``topk`` has them.

    One maximum after the other is taken and pushed down. Equal numbers go together, and count as often as they are
    there, so that ties are exact as well.
    """

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
            filled = (count - self.places).clamp(0, 1)  # type: ignore[operator]  # 1 for the places taken by now
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

    def forward(self, level: Tensor, points: Tensor) -> Tensor:
        """level [B, D, h, w], points [B, Q, K, 2] in 0..1 -> [B, Q, 1]."""
        flat = points.flatten(1, 2)
        x, y = self.columns(flat[..., :1]), self.rows(flat[..., 1:])  # [B, Q * K, w] and h
        cells = (y[..., None] * x[:, :, None]).flatten(2)
        best = self.largest(cells @ level.flatten(2).transpose(1, 2))
        best = torch.cat([best, best.mean(-1, keepdim=True)], dim=-1)
        return self.mlp(best.view(*points.shape[:2], -1))  # type: ignore[no-any-return]


class Sine(nn.Module):
    """``pose_decoder.sine``: points [..., 2] -> [..., width]; a cosine is a sine a quarter of a turn later."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("turns", 2 * math.pi / sine_periods(width, torch.device("cpu")))
        self.register_buffer("start", torch.tensor([0, math.pi / 2]).repeat(width // 2))

    def forward(self, points: Tensor) -> Tensor:
        angles = torch.cat([points[..., 1:] * self.turns, points[..., :1] * self.turns], dim=-1)  # type: ignore[operator]
        return (angles + self.start).sin()
