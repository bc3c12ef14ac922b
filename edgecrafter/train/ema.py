"""The averaged weights: what is evaluated, kept and given to users."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn


class Average:
    """Exponential moving average of every floating-point entry of a network's state, batch-norm statistics included.

    Update u = 1, 2, ... uses ``decay * (1 - exp(-u / warmup))``: the first ones mostly copy. Integer entries keep
    their first value (EdgeCrafter as released). A decay of 0 keeps a plain copy.
    """

    def __init__(self, network: nn.Module, decay: float, warmup: int) -> None:
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        self.decay, self.warmup = decay, warmup
        self.updates = 0
        self._average, self._current = _floats(self.network), _floats(network)

    def rate(self, update: int) -> float:
        """Decay used by update number ``update``, counted from 1."""
        return self.decay * (1 - math.exp(-update / self.warmup))

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the network it was made from."""
        self.updates += 1
        keep = self.rate(self.updates)
        torch._foreach_mul_(self._average, keep)
        torch._foreach_add_(self._average, self._current, alpha=1 - keep)

    def state_dict(self) -> dict[str, Any]:
        """Averaged state and the number of updates."""
        return {"network": self.network.state_dict(), "updates": self.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The reverse of ``state_dict``; strict."""
        self.network.load_state_dict(state["network"])
        self.updates = state["updates"]


def _floats(network: nn.Module) -> list[Tensor]:
    """The entries themselves, not copies: they follow every in-place change."""
    return [value for value in network.state_dict().values() if value.is_floating_point()]
