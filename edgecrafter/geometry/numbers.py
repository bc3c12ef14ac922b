"""Small numeric helpers whose epsilons are always explicit."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

EPS_BOX = 1e-5  # as in the released detection model; pose uses 1e-3


def on_device(values: Sequence[float], device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
    """A small tensor made on the host and sent to the device without waiting for what the device is doing."""
    return torch.tensor(values, dtype=dtype).to(device, non_blocking=True)


def inverse_sigmoid(x: Tensor, eps: float) -> Tensor:
    """log(x / (1 - x)) of x clipped to [0, 1], with both parts at least ``eps``."""
    x = x.clamp(0, 1)
    return (x.clamp(min=eps) / (1 - x).clamp(min=eps)).log()


def corrected(change: Tensor, places: Tensor, eps: float) -> Tensor:
    """Boxes or points in 0..1 moved by a change of their logits, in float32; ``eps`` as in ``inverse_sigmoid``."""
    return (change.float() + inverse_sigmoid(places, eps)).sigmoid()
