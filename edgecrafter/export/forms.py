"""A network in a form that tools can read: a fused copy, without operations in place."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgecrafter.models.fuse import fuse
from edgecrafter.models.network import Detector
from edgecrafter.models.vit import FusedBlock
from edgecrafter.nn.attention import attend


def deployable(network: Detector) -> Detector:
    """A fused copy in evaluation mode whose blocks write nothing in place; ``network`` is left as it is."""
    copied = fuse(network)
    _replace(copied)
    return copied.requires_grad_(False)


def _replace(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, FusedBlock):
            setattr(module, name, ExportedBlock(child))
        else:
            _replace(child)


class ExportedBlock(nn.Module):
    """A block of the ViT whose rotation is one product and one sum for queries and keys together.

    The halves (a, b) become (a cos - b sin, b cos + a sin): the heads times the cosines, plus the heads with their
    halves exchanged times the sines, the first half of which are negative.
    """

    def __init__(self, block: FusedBlock) -> None:
        super().__init__()
        self.norm1, self.attn, self.norm2 = block.norm1, block.attn, block.norm2
        self.fc1, self.fc2 = block.fc1, block.fc2

    def forward(self, x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        B, N, D = x.shape
        heads = self.attn.heads
        cosines, sines = torch.cat([cosine, cosine], dim=-1), torch.cat([-sine, sine], dim=-1)
        q, k, v = (part.unflatten(2, (heads, -1)).transpose(1, 2) for part in self.attn.qkv(self.norm1(x)).chunk(3, -1))
        q, k = (part * cosines + torch.cat(part.chunk(2, -1)[::-1], dim=-1) * sines for part in (q, k))
        x = x + self.attn.proj(attend(q, k, v).transpose(1, 2).reshape(B, N, D))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))  # type: ignore[no-any-return]
