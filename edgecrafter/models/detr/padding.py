"""Pictures of different sizes in one batch: which tokens of a level are picture, where they are, and their positions.

B pictures, L levels, D width. Boxes are relative to the picture; padding is on the right and below.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

SCALE = 2 * math.pi


def masks_of(valid: Tensor | None, levels: Sequence[Tensor]) -> list[Tensor]:
    """The tokens of levels [B, D, h, w] that are picture, [B, h, w] bool each; ``valid`` [B, H, W] bool, None: all."""
    if valid is None:
        return [torch.ones_like(level[:, 0], dtype=torch.bool) for level in levels]
    pixels = valid[:, None].float()
    return [F.interpolate(pixels, size=level.shape[2:])[:, 0].bool() for level in levels]


def ratios_of(masks: Sequence[Tensor]) -> Tensor:
    """Share of each level's width and height that is picture, [B, L, 2] (x, y)."""
    shares = [torch.stack([mask[:, 0].float().mean(1), mask[:, :, 0].float().mean(1)], dim=-1) for mask in masks]
    return torch.stack(shares, dim=1)


def sine_of_mask(mask: Tensor, width: int, temperature: float, shift: float = 0.0) -> Tensor:
    """Positions of the tokens of a level [B, h, w] -> [B, D, h, w]: sines and cosines of y, then of x, each axis from 0
    to 2 pi over the picture. ``shift`` in tokens."""
    y, x = mask.cumsum(1, dtype=torch.float32), mask.cumsum(2, dtype=torch.float32)
    y = (y + shift) / (y[:, -1:] + 1e-6) * SCALE
    x = (x + shift) / (x[:, :, -1:] + 1e-6) * SCALE
    return torch.cat([_waves(y, width // 2, temperature), _waves(x, width // 2, temperature)], dim=-1).permute(
        0, 3, 1, 2
    )


def sine_of_boxes(places: Tensor, width: int, temperature: float = 10000.0) -> Tensor:
    """Sine codes of boxes [..., 4] cxcywh or points [..., 2] in 0..1: ``width`` numbers each for y, x, w, h."""
    order = [1, 0, *range(2, places.shape[-1])]
    return torch.cat([_waves(places[..., i] * SCALE, width, temperature) for i in order], dim=-1)


def _waves(x: Tensor, width: int, temperature: float) -> Tensor:
    """[...] -> [..., width], sine and cosine of each frequency side by side."""
    index = torch.arange(width // 2, dtype=torch.float32, device=x.device)
    angles = x[..., None] / temperature ** (2 * index / width)
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-2)


def centres(masks: Sequence[Tensor]) -> Tensor:
    """Centre (x, y) of every token of all levels in 0..1 of the picture, [B, P, 2]; more than 1 in the padding."""
    found = []
    for mask in masks:
        h, w = mask.shape[1:]
        y, x = torch.meshgrid(
            torch.arange(h, device=mask.device) + 0.5, torch.arange(w, device=mask.device) + 0.5, indexing="ij"
        )
        sides = torch.stack([mask[:, 0].sum(1), mask[:, :, 0].sum(1)], dim=-1).float().clamp(min=1)
        found.append((torch.stack([x, y], dim=-1)[None] / sides[:, None, None]).flatten(1, 2))
    return torch.cat(found, dim=1)


def flat(levels: Sequence[Tensor]) -> Tensor:
    """Levels [B, D, h, w] -> tokens [B, P, D], fine to coarse, row by row."""
    return torch.cat([level.flatten(2).transpose(1, 2) for level in levels], dim=1)


def unflat(tokens: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """The reverse of ``flat``, for levels of the shapes of ``like``."""
    shapes = [level.shape[2:] for level in like]
    parts = torch.split(tokens, [h * w for h, w in shapes], dim=1)
    return [part.mT.reshape(part.shape[0], -1, *shape) for part, shape in zip(parts, shapes, strict=True)]
