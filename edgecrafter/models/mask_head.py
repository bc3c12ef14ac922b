"""Instance masks from queries and the finest level (EdgeCrafter, section 3.4.2; in the manner of Mask DINO).

B images, Q queries, D width, h x w cells of the mask: a quarter of the input's sides.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgecrafter.types import MaskMap


class PixelBlock(nn.Module):
    """Residual depthwise 3x3 and a linear layer over the channels, [B, D, h, w] -> the same."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.depth = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.point = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        update = self.point(self.norm(self.depth(x).permute(0, 2, 3, 1)))
        return x + F.gelu(update).permute(0, 3, 1, 2)


class QueryBlock(nn.Module):
    """Residual perceptron on normalised query contents, then a projection, [B, Q, D] -> the same."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.linear1 = nn.Linear(width, 4 * width)
        self.linear2 = nn.Linear(4 * width, width)
        self.project = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.project(x + self.linear2(F.gelu(self.linear1(self.norm(x)))))  # type: ignore[no-any-return]


class MaskHead(nn.Module):
    """The level of stride 8 and the contents of decoder layers -> the masks of these layers.

    In training layer ``i`` sees the pixels after the first ``i + 1`` blocks. Otherwise there is only the last layer,
    and it sees them after ``used`` blocks (0: all, as in training). The released inference uses one block of its four.
    """

    def __init__(self, width: int, layers: int, used: int = 0) -> None:
        super().__init__()
        if not 0 <= used <= layers:
            raise ValueError(f"mask_blocks={used}: the mask head has {layers} blocks; give 1 to {layers}, or 0 for all")
        self.used = used or layers
        self.blocks = nn.ModuleList(PixelBlock(width) for _ in range(layers))
        self.pixels = nn.Conv2d(width, width, 1)
        self.queries = QueryBlock(width)
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, level: Tensor, contents: Sequence[Tensor]) -> list[MaskMap]:
        """level [B, D, H / 8, W / 8], contents of [B, Q, D]: of all layers in training, of the last one otherwise."""
        x = F.interpolate(level, scale_factor=2.0, mode="bilinear", align_corners=False)
        if self.training:
            maps = []
            for block, content in zip(self.blocks, contents, strict=True):
                x = block(x)
                maps.append(MaskMap(self.queries(content), self.pixels(x), self.bias))
            return maps
        for block in self.blocks[: self.used]:
            x = block(x)
        return [MaskMap(self.queries(contents[-1]), self.pixels(x), self.bias)]
