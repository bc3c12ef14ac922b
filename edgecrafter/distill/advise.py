"""Cheap numbers that compare a teacher's features with a student, before anything is trained.

All take tokens: x [N, D_S] of the student's last block, and a list of y [N, D_T], one per block of the teacher, where
row n is the same place of the same picture in all of them. They are computed in float64.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

RIDGES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""penalties that are tried, in units of the mean variance of the student's channels"""


def tokens(maps: Tensor, size: tuple[int, int], places: Tensor) -> Tensor:
    """Some tokens of maps [B, D, h, w], brought to the grid ``size`` first: [B * P, D] for ``places`` [B, P] int64."""
    if maps.shape[2:] != size:  # as training does with the student where grids differ
        maps = F.interpolate(maps, size=size, mode="bilinear", align_corners=False)
    flat = maps.flatten(2).transpose(1, 2)
    return flat.gather(1, places[..., None].expand(-1, -1, flat.shape[2])).flatten(0, 1)


def places(pictures: int, size: tuple[int, int], count: int, seed: int) -> Tensor:
    """Up to ``count`` different places of a grid for every picture, at random: [pictures, P] int64."""
    generator = torch.Generator().manual_seed(seed)
    total = size[0] * size[1]
    return torch.rand(pictures, total, generator=generator).argsort(dim=1)[:, : min(count, total)]


def ceiling(targets: Sequence[Tensor], rank: int) -> float:
    """The largest share of the targets' variance that a linear layer can give whose input has ``rank`` channels.

    One answer has to serve all blocks, so their mean is the best there is, and of that the ``rank`` first principal
    directions. It is the bound of what a distillation reports as `explained`.
    """
    stack = torch.stack([y.double() for y in targets])
    mean = stack.mean(0)
    centred = mean - mean.mean(0)
    directions = torch.linalg.eigvalsh(centred.T @ centred).flip(0)
    lost = len(stack) * directions[rank:].clamp_min(0).sum() + ((stack - mean) ** 2).sum()
    return _share(lost, stack)


def ridge(x: Tensor, targets: Sequence[Tensor], new_x: Tensor, new_targets: Sequence[Tensor]) -> float:
    """Share of the variance of ``new_targets`` that a ridge regression fitted to ``x, targets`` gives; below 0
    where the mean would have been better.

    The penalty is chosen on the last quarter of the fitting rows, then all of them are fitted.
    """
    x, new_x, y = x.double(), new_x.double(), torch.stack([t.double() for t in targets])
    new_y, cut = torch.stack([t.double() for t in new_targets]), max(1, len(x) * 3 // 4)
    tried = [_share_of(_fit(x[:cut], y[:, :cut].mean(0), penalty), x[cut:], y[:, cut:]) for penalty in RIDGES]
    best = RIDGES[max(range(len(RIDGES)), key=tried.__getitem__)]
    return _share_of(_fit(x, y.mean(0), best), new_x, new_y)


def cka(x: Tensor, y: Tensor) -> float:
    """Linear centred kernel alignment (Kornblith et al. 2019): 1 where one is a rotation, scaling and shift of the
    other, near 0 where they have nothing to do with each other."""
    x, y = x.double() - x.double().mean(0), y.double() - y.double().mean(0)
    own = torch.linalg.matrix_norm(x.T @ x) * torch.linalg.matrix_norm(y.T @ y)
    return float(torch.linalg.matrix_norm(x.T @ y) ** 2 / own) if own > 0 else 0.0


def _fit(x: Tensor, y: Tensor, penalty: float) -> tuple[Tensor, Tensor, Tensor]:
    """Means of both and the weights [D_S, D_T] of a ridge regression."""
    means = x.mean(0), y.mean(0)
    a, b = x - means[0], y - means[1]
    gram = a.T @ a
    strength = penalty * gram.diagonal().mean().clamp_min(1e-300)
    weights = torch.linalg.solve(gram + strength * torch.eye(len(gram), dtype=x.dtype), a.T @ b)
    return *means, weights


def _share_of(fit: tuple[Tensor, Tensor, Tensor], x: Tensor, y: Tensor) -> float:
    """Share of the variance of all blocks ``y`` [blocks, N, D_T]."""
    answer = (x - fit[0]) @ fit[2] + fit[1]
    return _share(((answer - y) ** 2).sum(), y)


def _share(lost: Tensor, y: Tensor) -> float:
    variance = ((y - y.mean(1, keepdim=True)) ** 2).sum()
    return float(1 - lost / variance) if variance > 0 else 0.0
