"""Positions on a grid: rotary angles for the ViT, sine-cosine vectors for the hybrid encoder."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def rotary_periods(head_width: int, base: float = 100.0) -> Tensor:
    """Periods of the rotary embedding, [head_width / 4]: ``base ** (2 j / (head_width / 2))``."""
    count = head_width // 4
    return base ** (2 * torch.arange(count, dtype=torch.float32) / (head_width // 2))


def rotary_angles(height: int, width: int, periods: Tensor) -> Tensor:
    """Angle of every cell of a grid, row-major, [height * width, 2 len(periods)]: first of y, then of x.

    Each axis is normalised by its own length to (-1, 1).
    """
    device = periods.device
    y = 2 * (torch.arange(height, device=device, dtype=torch.float32) + 0.5) / height - 1
    x = 2 * (torch.arange(width, device=device, dtype=torch.float32) + 0.5) / width - 1
    grid = torch.stack(torch.meshgrid(y, x, indexing="ij"), dim=-1).reshape(-1, 2)
    return (2 * math.pi * grid[:, :, None] / periods).flatten(1)


def sine_cosine(height: int, width: int, channels: int, device: torch.device, temperature: float = 10000.0) -> Tensor:
    """Fixed position vectors of a grid, row-major, [height * width, channels].

    Four blocks: sine and cosine of the row, sine and cosine of the column. The released table lists its cells column
    by column and is added to row-major tokens; on square maps that is the same as this.
    """
    quarter = channels // 4
    omega = temperature ** (-torch.arange(quarter, dtype=torch.float32, device=device) / quarter)
    rows = torch.arange(height, dtype=torch.float32, device=device)[:, None] * omega
    columns = torch.arange(width, dtype=torch.float32, device=device)[:, None] * omega
    row_part = torch.cat([rows.sin(), rows.cos()], dim=1)[:, None].expand(-1, width, -1)
    column_part = torch.cat([columns.sin(), columns.cos()], dim=1)[None].expand(height, -1, -1)
    return torch.cat([row_part, column_part], dim=2).flatten(0, 1)
