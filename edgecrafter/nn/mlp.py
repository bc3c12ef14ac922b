"""Multi-layer perceptrons and the gate of the decoder layers."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LIMIT = 65504.0  # as in the released model: activations stay within the range of float16


class MLP(nn.Module):
    """Linear layers with SiLU between them, [..., inputs] -> [..., outputs]."""

    def __init__(self, inputs: int, hidden: int, outputs: int, depth: int) -> None:
        super().__init__()
        widths = [inputs, *[hidden] * (depth - 1), outputs]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = F.silu(layer(x))
        return self.layers[-1](x)  # type: ignore[no-any-return]


class FeedForward(nn.Module):
    """Residual two-layer perceptron with post-normalisation, values limited to the range of float16."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.linear1 = nn.Linear(width, hidden)
        self.linear2 = nn.Linear(hidden, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm((x + self.linear2(F.silu(self.linear1(x)))).clamp(-LIMIT, LIMIT))  # type: ignore[no-any-return]


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
