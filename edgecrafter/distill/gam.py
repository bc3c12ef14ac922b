"""Gradient-guided Adaptive Modulation (RT-DETRv4, section 3.3): the weight of a loss follows the share of the AIFI in
the gradients."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Band:
    """Which share of the AIFI is wanted. Shares are in percent of the L1 norm of all gradients."""

    rho: float
    """the target"""
    delta: float
    """how far from it a share may be without consequence"""
    initial: float
    """the weight of the first epoch"""
    default: float
    """the weight of the last epochs, and when there is no share at all (released rule)"""

    def __post_init__(self) -> None:
        if not 0 <= self.delta < self.rho < 100 or self.rho + self.delta >= 100:
            raise ValueError(
                f"rho={self.rho}, delta={self.delta}: expected a share in percent and a smaller tolerance, such as "
                "rho=11 delta=1"
            )

    @property
    def low(self) -> float:
        return self.rho - self.delta

    @property
    def high(self) -> float:
        return self.rho + self.delta


BANDS = {
    "s": Band(11, 1, 5, 20),
    "m": Band(3.5, 0.25, 5, 15),
    "l": Band(2, 0.1, 15, 15),
    "x": Band(2, 0.25, 20, 20),
}
"""The released settings of RT-DETRv4 (the paper gives none); size -> band"""


def paper(weight: float, share: float, band: Band) -> float:
    """The weight of the next epoch by Eq. 11; ``share`` is the epoch's mean in percent. A share of 0 changes nothing
    (the paper's rule would divide by it)."""
    if share <= 0 or band.low <= share <= band.high:
        return weight
    return weight * (band.low if share > band.high else band.high) / share


def released(weight: float, share: float, band: Band, ended: bool) -> float:
    """The same as the released training does it: a ratio of odds, limited to a factor of 10.

    Without a share, and at the end of epochs without strong augmentation (``ended``), the weight is the default.
    """
    if share < 1e-6 or ended:
        return band.default
    if band.low <= share <= band.high:
        return weight
    p, q = share / 100, (band.high if share < band.low else band.low) / 100
    if weight <= 1e-6 or abs(p * (1 - q)) < 1e-9:
        return weight
    ratio = max(q * (1 - p) / (p * (1 - q)), 0.1)
    return min(max(weight * ratio, weight / 10), 10 * weight)


def share(part: Iterable[nn.Parameter], whole: Iterable[nn.Parameter]) -> Tensor:
    """L1 norm of the gradients of ``part`` in percent of that of ``whole`` (Eqs. 7 to 9), without waiting for the
    device; clipping changes nothing about it."""
    return 100 * _length(part) / _length(whole).clamp(min=1e-30)


def _length(parameters: Iterable[nn.Parameter]) -> Tensor:
    gradients = [p.grad.detach() for p in parameters if p.grad is not None]
    if not gradients:
        return torch.zeros(())
    return torch.stack(torch._foreach_norm(gradients, 1)).float().sum()
