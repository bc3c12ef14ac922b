"""Hybrid encoder (RT-DETR, Zhao et al. 2024): attention on the coarsest level, convolutional fusion of all levels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgecrafter.nn.attention import PositionedAttention
from edgecrafter.nn.conv import CSP2, ELAN, ConvNorm, CSPStage
from edgecrafter.nn.mlp import Activation
from edgecrafter.nn.positions import sine_cosine


class AIFI(nn.Module):
    """Attention within the coarsest level: one post-norm transformer layer, [B, D, h, w] -> the same."""

    def __init__(self, width: int, hidden: int, activation: Activation = F.silu, heads: int = 8) -> None:
        super().__init__()
        self.activation = activation
        self.attention = PositionedAttention(width, heads)
        self.linear1 = nn.Linear(width, hidden)
        self.linear2 = nn.Linear(hidden, width)
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)

    def forward(self, level: Tensor) -> Tensor:
        B, D, h, w = level.shape
        x = level.flatten(2).transpose(1, 2)
        position = sine_cosine(h, w, D, x.device).to(x.dtype)
        x = self.norm1(x + self.attention(x, position))
        x = self.norm2(x + self.linear2(self.activation(self.linear1(x))))
        return x.transpose(1, 2).reshape(B, D, h, w)  # type: ignore[no-any-return]


class Down(nn.Module):
    """Halves a map: 1x1, then depthwise 3x3 of stride 2, neither with an activation."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.point = ConvNorm(width, width)
        self.depth = ConvNorm(width, width, 3, stride=2, groups=width)

    def forward(self, x: Tensor) -> Tensor:
        return self.depth(self.point(x))  # type: ignore[no-any-return]


def _sum(coarse: Tensor, fine: Tensor) -> Tensor:
    return coarse + fine


def _concat(coarse: Tensor, fine: Tensor) -> Tensor:
    return torch.cat([coarse, fine], dim=1)


def _lateral(width: int) -> nn.Module:
    return ConvNorm(width, width)


@dataclass(frozen=True)
class Fusion:
    """How the encoder of one architecture mixes its levels."""

    block: Callable[[int, int, int], nn.Module]
    """width, inner width, depth -> what follows on two joined levels"""
    join: Callable[[Tensor, Tensor], Tensor] = _concat
    """the resized level and the one that it meets, [B, D, h, w] each -> one map"""
    activation: Activation = F.gelu
    """of the attention layer's perceptron"""
    lateral: Callable[[int], nn.Module] = _lateral
    down: Callable[[int], nn.Module] = Down


def _silu_lateral(width: int) -> nn.Module:
    return ConvNorm(width, width, act=nn.SiLU())


def _silu_down(width: int) -> nn.Module:
    return ConvNorm(width, width, 3, stride=2, act=nn.SiLU())


def _csp_rep(width: int, hidden: int, depth: int) -> nn.Module:
    """One stage of inner width ``hidden``; a 1x1 convolution leads back to ``width`` where that is another one."""
    leave = nn.Identity() if hidden == width else ConvNorm(hidden, width, act=nn.SiLU())
    return CSPStage(2 * width, hidden, depth, leave)


_RT = Fusion(lambda width, hidden, depth: ELAN(2 * width, width, hidden, depth, CSPStage))
FUSIONS = {
    "ec": Fusion(lambda width, hidden, depth: ELAN(width, width, hidden, depth, CSP2), _sum, F.silu),
    "rt": _RT,
    "dfine": _RT,
    "rtdetrv2": Fusion(_csp_rep, lateral=_silu_lateral, down=_silu_down),
}
"""``Size.arch`` -> how its encoder fuses"""


class HybridEncoder(nn.Module):
    """Levels of stride 8, 16, 32, each [B, D, h, w] -> the same shapes, each aware of the others.

    ``forward`` also returns the coarsest level after attention, before fusion (F5).
    """

    def __init__(self, width: int, csp_width: int, csp_depth: int, hidden: int, fusion: str = "ec") -> None:
        super().__init__()
        kind = FUSIONS[fusion]
        self.join = kind.join
        self.aifi = AIFI(width, hidden, kind.activation)
        self.laterals = nn.ModuleList(kind.lateral(width) for _ in range(2))
        self.top_down = nn.ModuleList(kind.block(width, csp_width, csp_depth) for _ in range(2))
        self.downs = nn.ModuleList(kind.down(width) for _ in range(2))
        self.bottom_up = nn.ModuleList(kind.block(width, csp_width, csp_depth) for _ in range(2))

    def forward(self, levels: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
        fine, middle, coarse = levels
        attended = self.aifi(coarse)
        top5 = self.laterals[0](attended)
        top4 = self.laterals[1](self.top_down[0](self.join(F.interpolate(top5, scale_factor=2.0), middle)))
        out3 = self.top_down[1](self.join(F.interpolate(top4, scale_factor=2.0), fine))
        # the way up meets the lateral outputs top4 and top5, as in the released model
        out4 = self.bottom_up[0](self.join(self.downs[0](out3), top4))
        out5 = self.bottom_up[1](self.join(self.downs[1](out4), top5))
        return [out3, out4, out5], attended
