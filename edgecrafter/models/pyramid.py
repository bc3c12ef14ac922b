"""One ViT map becomes three levels (EdgeCrafter, section 3.2): bilinear resizing, then 1x1 projections."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgecrafter.nn.conv import ConvNorm


class Pyramid(nn.Module):
    """Maps of the last ViT blocks, each [B, vit, h, w] -> levels of stride 8, 16, 32, [B, width, ...].

    The maps are averaged, or concatenated ("concat" of Table 9, which always projects every level). With
    ``project="top"`` the two finer levels pass on unprojected, as in the released s and m.
    """

    def __init__(self, vit: int, width: int, fusion: str = "mean", fused: int = 2, project: str = "all") -> None:
        super().__init__()
        self.concat = fusion == "concat"
        inputs = vit * fused if self.concat else vit
        everywhere = self.concat or project == "all"
        if not everywhere and vit != width:
            raise ValueError(
                f'project="top" needs equal widths of ViT ({vit}) and encoder ({width}); use project="all"'
            )
        self.projections = nn.ModuleList(ConvNorm(inputs, width) for _ in range(3 if everywhere else 1))

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        fused = torch.cat(list(maps), dim=1) if self.concat else mean(maps)
        h, w = fused.shape[2:]
        sizes = [(2 * h, 2 * w), (h, w), (h // 2, w // 2)]
        levels = [
            fused if size == (h, w) else F.interpolate(fused, size=size, mode="bilinear", align_corners=False)
            for size in sizes
        ]
        first = len(levels) - len(self.projections)
        return levels[:first] + [p(x) for p, x in zip(self.projections, levels[first:], strict=True)]


def mean(maps: Sequence[Tensor]) -> Tensor:
    """Mean of equally shaped maps."""
    return maps[0] if len(maps) == 1 else torch.stack(list(maps)).mean(0)


class Projections(nn.Module):
    """Maps of stride 8, 16 and 32 of a hierarchical backbone -> the same levels, [B, width, ...]."""

    def __init__(self, inputs: Sequence[int], width: int) -> None:
        super().__init__()
        self.projections = nn.ModuleList(ConvNorm(channels, width) for channels in inputs)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        return [project(x) for project, x in zip(self.projections, maps, strict=True)]


class Backbone(nn.Module):
    """ViT and pyramid: images [B, 3, H, W] -> three levels."""

    def __init__(self, vit: nn.Module, pyramid: nn.Module) -> None:
        super().__init__()
        self.vit = vit
        self.pyramid = pyramid

    def forward(self, images: Tensor) -> list[Tensor]:
        return self.pyramid(self.vit(images))  # type: ignore[no-any-return]
