"""Multi-head self-attention; the product itself is in one place, ``attend``. And where a query looks, to see it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def attend(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None = None) -> Tensor:
    """Softmax attention, [B, heads, N, width] each -> the same; ``allowed`` is a bool mask, true = may look."""
    return F.scaled_dot_product_attention(q, k, v, attn_mask=allowed)


def shares(q: Tensor, k: Tensor, allowed: Tensor | None = None) -> Tensor:
    """The weights of ``attend``, [B, heads, Q, N] float32."""
    likeness = q.float() @ k.float().mT / math.sqrt(q.shape[-1])
    return (likeness if allowed is None else likeness.masked_fill(~allowed, -math.inf)).softmax(-1)


@dataclass(frozen=True)
class Looks:
    """Where the queries of a cross-attention look, and how much; ``looks`` of the attention modules gives it."""

    weights: Tensor
    """[B, Q, heads, n]; the n weights of a head add up to 1"""
    places: Tensor | None = None
    """[B, Q, heads, n, 2] (x, y) in 0..1 of the input; None: n are the tokens of the memory, row by row"""


def rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotary embedding of [..., width]: the two halves (a, b) become (a cos - b sin, b cos + a sin)."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cosine - b * sine, b * cosine + a * sine], dim=-1)


def rotate_in_place(x: Tensor, cosine: Tensor, sine: Tensor) -> None:
    """``rotate`` without new memory; for inference only."""
    a, b = x.chunk(2, dim=-1)
    kept = a * sine
    a.mul_(cosine).addcmul_(b, sine, value=-1)
    b.mul_(cosine).add_(kept)


class RotaryAttention(nn.Module):
    """Self-attention of the ViT: one projection to q, k, v, rotary positions on q and k."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        """x [B, N, D], cosine and sine [N, D / heads / 2] -> [B, N, D]."""
        B, N, D = x.shape
        q, k, v = self.qkv(x).view(B, N, 3, self.heads, D // self.heads).permute(2, 0, 3, 1, 4).unbind()
        cosine, sine = cosine.to(q.dtype), sine.to(q.dtype)
        q, k = rotate(q, cosine, sine), rotate(k, cosine, sine)
        # a copy of v frees the unrotated q and k, which share its memory, until the backward pass
        return self.proj(attend(q, k, v.contiguous()).transpose(1, 2).reshape(B, N, D))  # type: ignore[no-any-return]


class PositionedAttention(nn.Module):
    """Self-attention in which positions, if any, are added to queries and keys but not to values."""

    def __init__(self, width: int, heads: int = 8) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"attention width {width} is not a multiple of {heads} heads")
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, x: Tensor, position: Tensor | None = None, allowed: Tensor | None = None) -> Tensor:
        """x and position [B, N, D], allowed [N, N] bool -> [B, N, D]."""
        B, N, D = x.shape
        weight, bias = self.in_proj_weight, self.in_proj_bias
        if position is None:
            q, k, v = F.linear(x, weight, bias).chunk(3, dim=-1)
        else:
            q, k = F.linear(x + position, weight[: 2 * D], bias[: 2 * D]).chunk(2, dim=-1)
            v = F.linear(x, weight[2 * D :], bias[2 * D :])
        q, k, v = (t.view(B, N, self.heads, D // self.heads).transpose(1, 2) for t in (q, k, v))
        return self.out_proj(attend(q, k, v, allowed).transpose(1, 2).reshape(B, N, D))  # type: ignore[no-any-return]
