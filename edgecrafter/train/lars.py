"""LARS: every weight moves by a share of its own length (You et al. 2017, Algorithm 1)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

TRUST = 0.001


class LARS(torch.optim.Optimizer):
    """``v = momentum v + lr rate (g + decay w);  w = w - v`` with ``rate = trust |w| / (|g| + decay |w|)``.

    Groups with ``adapt=False`` have a rate of 1, and so has a tensor whose length or gradient is 0. Biases and norms
    belong in such a group, with a decay of 0. No Nesterov momentum.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1.0,
        momentum: float = 0.9,
        weight_decay: float = 1e-6,
        trust: float = TRUST,
        adapt: bool = True,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust": trust, "adapt": adapt}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step; parameters without a gradient stay where they are."""
        assert closure is None, "LARS takes no closure"
        for group in self.param_groups:
            weights = [p for p in group["params"] if p.grad is not None]
            if not weights:
                continue
            gradients = [p.grad for p in weights]
            rates = _rates(weights, gradients, group) if group["adapt"] else None
            changes = torch._foreach_add(gradients, weights, alpha=group["weight_decay"])
            torch._foreach_mul_(changes, group["lr"])
            if rates is not None:
                torch._foreach_mul_(changes, rates)
            velocities = [self._velocity(p) for p in weights]
            torch._foreach_mul_(velocities, group["momentum"])
            torch._foreach_add_(velocities, changes)
            torch._foreach_sub_(weights, velocities)

    def _velocity(self, parameter: Tensor) -> Tensor:
        state = self.state[parameter]
        if "velocity" not in state:
            state["velocity"] = torch.zeros_like(parameter)
        velocity: Tensor = state["velocity"]
        return velocity


def _rates(weights: list[Tensor], gradients: list[Tensor], group: dict[str, Any]) -> list[Tensor]:
    """The local learning rate of every tensor, a scalar each; nothing is read back from the device."""
    lengths, slopes = (torch.stack(torch._foreach_norm(tensors)) for tensors in (weights, gradients))
    rates = group["trust"] * lengths / (slopes + group["weight_decay"] * lengths).clamp_min(1e-30)
    rates = torch.where((lengths > 0) & (slopes > 0), rates, torch.ones_like(rates))
    return list(rates.unbind())
