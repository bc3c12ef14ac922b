"""Small numeric helpers whose epsilons are always explicit."""

from __future__ import annotations

from torch import Tensor

EPS_BOX = 1e-5  # as in the released detection model; pose uses 1e-3


def inverse_sigmoid(x: Tensor, eps: float) -> Tensor:
    """log(x / (1 - x)) of x clipped to [0, 1], with both parts at least ``eps``."""
    x = x.clamp(0, 1)
    return (x.clamp(min=eps) / (1 - x).clamp(min=eps)).log()
