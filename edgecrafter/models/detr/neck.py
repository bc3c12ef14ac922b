"""Maps of a backbone become levels of one width for the classic detectors."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

GROUPS = 32


class Neck(nn.Module):
    """1x1 convolutions with group norm on the maps of stride 8, 16 and 32, and further levels by 3x3 convolutions of
    stride 2, the first of them on the last map itself (Deformable DETR, DINO)."""

    def __init__(self, inputs: Sequence[int], width: int, levels: int) -> None:
        super().__init__()
        self.projections = nn.ModuleList(_normed(nn.Conv2d(channels, width, 1), width) for channels in inputs)
        starts = [inputs[-1], *[width] * levels][: levels - len(inputs)]
        self.further = nn.ModuleList(_normed(nn.Conv2d(c, width, 3, 2, 1), width) for c in starts)
        for part in (*self.projections, *self.further):
            conv = part[0]  # type: ignore[index]
            nn.init.xavier_uniform_(conv.weight)  # type: ignore[arg-type]
            nn.init.zeros_(conv.bias)  # type: ignore[arg-type]

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        levels = [project(x) for project, x in zip(self.projections, maps, strict=True)]
        last = maps[-1]
        for further in self.further:
            last = further(last)
            levels.append(last)
        return levels


def _normed(conv: nn.Conv2d, width: int) -> nn.Sequential:
    return nn.Sequential(conv, nn.GroupNorm(min(GROUPS, width), width))


class Top(nn.Module):
    """The last map alone, through one 1x1 convolution (DAB-DETR)."""

    def __init__(self, inputs: Sequence[int], width: int) -> None:
        super().__init__()
        self.projection = nn.Conv2d(inputs[-1], width, 1)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        return [self.projection(maps[-1])]
