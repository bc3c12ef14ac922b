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

from edgecrafter.export.forms import linear
from edgecrafter.export.npu_sampling import Products, Quality, QualityOfPose, Shape, heads
from edgecrafter.models.decoder import LocationQuality
from edgecrafter.models.encoder import AIFI
from edgecrafter.models.network import Detector
from edgecrafter.models.pose_decoder import PoseQuality, sine_periods
from edgecrafter.models.pyramid import Pyramid
from edgecrafter.models.vit import Block, ECViT, FusedBlock
from edgecrafter.nn.attention import PositionedAttention
from edgecrafter.nn.deformable import DeformableAttention, PointAttention
from edgecrafter.nn.positions import rotary_angles, sine_cosine


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
    return (shares @ v).transpose(1, 2).flatten(2)  # type: ignore[no-any-return]


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


class StaticBlock(nn.Module):
    """A block of the ViT; queries and keys are rotated together by cosines and sines [N, 1, width / 2]."""

    cosine: Tensor
    sine: Tensor

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


class Sine(nn.Module):
    """``pose_decoder.sine``: points [..., 2] -> [..., width]; a cosine is a sine a quarter of a turn later."""

    turns: Tensor
    start: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("turns", 2 * math.pi / sine_periods(width, torch.device("cpu")))
        self.register_buffer("start", torch.tensor([0, math.pi / 2]).repeat(width // 2))

    def forward(self, points: Tensor) -> Tensor:
        angles = torch.cat([points[..., 1:] * self.turns, points[..., :1] * self.turns], dim=-1)
        return (angles + self.start).sin()
