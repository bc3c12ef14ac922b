"""ECViT: a compact plain vision transformer with a convolutional stem (EdgeCrafter, section 3.2)."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgecrafter.nn.attention import RotaryAttention, attend, rotate_in_place
from edgecrafter.nn.conv import ConvNorm
from edgecrafter.nn.positions import rotary_angles, rotary_periods

STRIDE = 16
EPS = 1e-6  # layer norms of the ViT; the decoder's have 1e-5


class ConvStem(nn.Module):
    """Four 3x3 convolutions of stride 2; the last has a bias and neither norm nor activation (Table 8)."""

    def __init__(self, width: int, dilation: int = 1) -> None:
        super().__init__()
        widths = [3, width // 8, width // 4, width // 2]
        pairs = pairwise(widths)
        self.convs = nn.Sequential(*(ConvNorm(a, b, 3, stride=2, act=nn.ReLU(inplace=True)) for a, b in pairs))
        self.proj = nn.Conv2d(width // 2, width, 3, stride=2, padding=dilation, dilation=dilation)

    def forward(self, images: Tensor) -> Tensor:
        return self.proj(self.convs(images))  # type: ignore[no-any-return]


class PatchStem(nn.Module):
    """One 16x16 convolution of stride 16: the "vanilla" row of Table 8."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, STRIDE, stride=STRIDE)

    def forward(self, images: Tensor) -> Tensor:
        return self.proj(images)  # type: ignore[no-any-return]


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, width: int, heads: int, ratio: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=EPS)
        self.attn = RotaryAttention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=EPS)
        self.fc1 = nn.Linear(width, ratio * width)
        self.fc2 = nn.Linear(ratio * width, width)

    def forward(self, x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x), cosine, sine)
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))  # type: ignore[no-any-return]

    def fused(self) -> nn.Module:
        """The same block for inference."""
        return FusedBlock(self)


class FusedBlock(nn.Module):
    """A block for inference: rotates, activates and adds in place, since fresh memory costs more than the work."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.norm1, self.attn, self.norm2 = block.norm1, block.attn, block.norm2
        self.fc1, self.fc2 = block.fc1, block.fc2

    def forward(self, x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        B, N, D = x.shape
        heads = self.attn.heads
        qkv = self.attn.qkv(self.norm1(x)).view(B, N, 3, heads, D // heads)
        rotate_in_place(qkv[:, :, :2], cosine.to(qkv.dtype)[:, None, None], sine.to(qkv.dtype)[:, None, None])
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind()
        x = _added(x, self.attn.proj(attend(q, k, v).transpose(1, 2).reshape(B, N, D)))
        return _added(x, self.fc2(torch.ops.aten.gelu_(self.fc1(self.norm2(x)))))


def _added(x: Tensor, change: Tensor) -> Tensor:
    """x + change, in the memory of ``change`` unless it is of another precision (under autocast)."""
    return change.add_(x) if change.dtype == x.dtype else x + change


class ECViT(nn.Module):
    """Images [B, 3, H, W] -> maps of the last ``keep`` blocks, each [B, width, H / 16, W / 16].

    Register tokens stand in front of the patches, take part in attention without a position, and are dropped.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        ratio: int,
        depth: int = 12,
        keep: int = 2,
        registers: int = 1,
        stem: str = "conv",
        dilation: int = 1,
    ) -> None:
        super().__init__()
        self.width, self.keep = width, keep
        self.stem: nn.Module = ConvStem(width, dilation) if stem == "conv" else PatchStem(width)
        self.registers = nn.Parameter(torch.empty(1, registers, width)) if registers else None
        self.blocks = nn.ModuleList(Block(width, heads, ratio) for _ in range(depth))
        self.register_buffer("periods", rotary_periods(width // heads))
        self._initialise()

    def _initialise(self) -> None:
        for block in self.blocks:
            for module in block.modules():
                if isinstance(module, nn.Linear):
                    nn.init.trunc_normal_(module.weight, std=0.02)
                    nn.init.zeros_(module.bias)
        if self.registers is not None:
            nn.init.trunc_normal_(self.registers, std=0.02)

    def forward(self, images: Tensor) -> list[Tensor]:
        return self.features(images, self.keep)

    def features(self, images: Tensor, keep: int) -> list[Tensor]:
        """The maps of the last ``keep`` blocks."""
        # channels last: convolutions on a CPU take three quarters of the time, and tokens need no copy
        patches = self.stem(images.contiguous(memory_format=torch.channels_last))
        B, D, h, w = patches.shape
        x = patches.flatten(2).transpose(1, 2)
        angles = rotary_angles(h, w, self.periods)  # type: ignore[arg-type]
        skip = 0
        if self.registers is not None:
            skip = self.registers.shape[1]
            # under autocast this makes the tokens float32, as in the released model
            x = torch.cat([self.registers.expand(B, -1, -1), x], dim=1)
            angles = F.pad(angles, (0, 0, skip, 0))  # angle 0: registers are not rotated
        cosine, sine = angles.cos(), angles.sin()
        maps = []
        for i, block in enumerate(self.blocks):
            x = block(x, cosine, sine)
            if i >= len(self.blocks) - keep:
                maps.append(x[:, skip:].transpose(1, 2).reshape(B, D, h, w))
        return maps
