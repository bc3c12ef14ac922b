"""Principal components of feature maps, to look at them in three colours.

D channels, N tokens (cells) of a map, h x w cells, K directions.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

NOTHING = 1e-10
"""share of the variance below which a direction is rounding and no direction"""
DARKEST, BRIGHTEST = 0.01, 0.99
"""quantiles of a coordinate that become black and full colour"""


def tokens(features: Tensor) -> Tensor:
    """A map [D, h, w] -> its cells [N, D] float64 on the CPU, less their mean and divided by their deviation.

    The mean is that of each channel; the deviation is one number for the map, so that the channels keep their
    proportions. A map that is the same everywhere gives zeros. Raises ``ValueError`` unless all is finite.
    """
    cells = features.detach().double().cpu().flatten(1).T
    if not cells.isfinite().all():
        raise ValueError("a feature map has values that are not finite: the weights are unusable")
    centred = cells - cells.mean(0)
    deviation = centred.square().sum(1).mean().sqrt()
    level = cells.square().sum(1).mean().sqrt()
    return centred / deviation if deviation > NOTHING**0.5 * level else torch.zeros_like(centred)


def directions(maps: Sequence[Tensor], count: int = 3) -> Tensor:
    """The principal directions of one or several maps together, [K, D], the strongest first.

    ``maps`` are tokens [N, D]; each map weighs alike, however many tokens it has. A direction points to where its
    largest entry is positive, so that two runs agree. Where there are fewer directions than ``count``, the rest is
    zero.
    """
    covariance = torch.stack([cells.T @ cells / len(cells) for cells in maps]).mean(0)
    values, vectors = torch.linalg.eigh(covariance)  # ascending
    values, axes = values.flip(0)[:count], vectors.T.flip(0)[:count]
    largest = axes.gather(1, axes.abs().argmax(1, keepdim=True))
    axes = axes * largest.sign() * (values > NOTHING * covariance.trace())[:, None]
    missing = count - len(axes)
    return torch.cat([axes, axes.new_zeros(missing, axes.shape[1])]) if missing > 0 else axes


def share(cells: Tensor, axes: Tensor) -> float:
    """How much of the variance of a map's tokens [N, D] lies in the directions [K, D], 0..1; 0 for a constant map."""
    whole = float(cells.square().sum())
    return float((cells @ axes.T).square().sum()) / whole if whole else 0.0


def colours(coordinates: Sequence[Tensor]) -> list[Tensor]:
    """Coordinates [N, K] of several maps -> bytes [N, K] on a common scale, for each coordinate by itself.

    From the lowest 1st to the highest 99th percentile of the maps, so that a small map is not cut off by the range of a
    large one; what does not vary at all becomes the middle.
    """
    ranked = [each.sort(0).values for each in coordinates]
    low = torch.stack([each[round(DARKEST * (len(each) - 1))] for each in ranked]).amin(0)
    high = torch.stack([each[round(BRIGHTEST * (len(each) - 1))] for each in ranked]).amax(0)
    extent = torch.where(high > low, high - low, 1.0)
    middle = torch.where(high > low, low, low - 0.5)
    return [((each - middle) / extent).clamp(0, 1).mul(255).round().to(torch.uint8) for each in coordinates]
