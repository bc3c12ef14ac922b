"""Multi-layer perceptrons and the gate of the decoder layers."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LIMIT = 65504.0  # as in the released model: activations stay within the range of float16


Activation = Callable[[Tensor], Tensor]


class MLP(nn.Module):
    """Linear layers with an activation between them, [..., inputs] -> [..., outputs]."""

    def __init__(self, inputs: int, hidden: int, outputs: int, depth: int, activation: Activation = F.silu) -> None:
        super().__init__()
        self.activation = activation
        widths = [inputs, *[hidden] * (depth - 1), outputs]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = self.activation(layer(x))
        return self.layers[-1](x)  # type: ignore[no-any-return]


class FeedForward(nn.Module):
    """Residual two-layer perceptron with post-normalisation, values limited to the range of float16."""

    def __init__(self, width: int, hidden: int, activation: Activation = F.silu) -> None:
        super().__init__()
        self.activation = activation
        self.linear1 = nn.Linear(width, hidden)
        self.linear2 = nn.Linear(hidden, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm((x + self.linear2(self.activation(self.linear1(x)))).clamp(-LIMIT, LIMIT))  # type: ignore[no-any-return]


class Gate(nn.Module):
    """Learned mixture of a stream and its update, in place of residual addition: LN(g1 * x + g2 * z)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(2 * width, 2 * width)
        self.norm = nn.LayerNorm(width)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        keep, take = self.linear(torch.cat([x, z], dim=-1)).sigmoid().chunk(2, dim=-1)
        return self.norm(keep * x + take * z)  # type: ignore[no-any-return]


def zero(layer: nn.Module) -> None:
    """Start a linear layer at zero: what it adds to begins unchanged."""
    nn.init.zeros_(layer.weight)  # type: ignore[arg-type]
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
