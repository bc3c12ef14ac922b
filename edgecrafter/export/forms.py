"""A network in a form that tools can read and that runtimes are quick with: a fused copy, nothing in place."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgecrafter.models.fuse import fuse
from edgecrafter.models.network import Detector
from edgecrafter.models.vit import FusedBlock

ROWS = 1024
"""tokens whose shares of attention are held at a time"""


def deployable(network: Detector) -> Detector:
    """A fused copy in evaluation mode whose blocks write nothing in place; ``network`` is left as it is."""
    copied = fuse(network).cpu()
    _replace(copied)
    return copied.requires_grad_(False)


def _replace(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, FusedBlock):
            setattr(module, name, ExportedBlock(child))
        else:
            _replace(child)


class ExportedBlock(nn.Module):
    """A block of the ViT in the form that CPU runtimes take least time for (benchmarks/int8.md has what was tried).

    Queries, keys and values have a product each, since cutting one tensor in three is a copy on one thread. The
    queries' scale is in their weights. The halves (a, b) become (a cos - b sin, b cos + a sin): the heads times the
    cosines, plus the heads with their halves exchanged times the sines, the first half of which are negative. Attention
    goes in parts of at most ``ROWS`` queries, so that the shares stay in the processor's cache.
    """

    def __init__(self, block: FusedBlock) -> None:
        super().__init__()
        self.norm1, self.norm2, self.fc1, self.fc2 = block.norm1, block.norm2, block.fc1, block.fc2
        self.heads, self.proj = block.attn.heads, block.attn.proj
        qkv = block.attn.qkv
        scale = math.sqrt(self.heads / qkv.in_features)
        parts = zip(qkv.weight.chunk(3), qkv.bias.chunk(3), (scale, 1.0, 1.0), strict=True)
        self.query, self.key, self.value = (linear(weight * factor, bias * factor) for weight, bias, factor in parts)

    def forward(self, x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        """x [B, N, D], cosine and sine [N, D / heads / 2] -> [B, N, D]."""
        x = x + self.proj(self.attend(self.norm1(x), cosine, sine))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))  # type: ignore[no-any-return]

    def attend(self, x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        """Arguments as ``forward`` -> what the heads found, [B, N, D]."""
        cosines, sines = torch.cat([cosine, cosine], dim=-1), torch.cat([-sine, sine], dim=-1)
        q, k, v = (
            part(x).unflatten(2, (self.heads, -1)).transpose(1, 2) for part in (self.query, self.key, self.value)
        )
        q, k = (part * cosines + torch.cat(part.chunk(2, -1)[::-1], dim=-1) * sines for part in (q, k))
        found = [(rows @ k.mT).softmax(-1) @ v for rows in q.chunk(math.ceil(q.shape[2] / ROWS), dim=2)]
        return torch.cat(found, dim=2).transpose(1, 2).flatten(2)


def linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    """A linear layer with copies of these weights."""
    made = nn.Linear(weight.shape[1], weight.shape[0])
    made.weight, made.bias = nn.Parameter(weight.detach().clone()), nn.Parameter(bias.detach().clone())
    return made
