"""What an export is made of: graphs, and the files that they fall into."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from edgecrafter.geometry.sides import KEEP
from edgecrafter.hub import ModelInfo


@dataclass
class Part:
    """One file of an export."""

    name: str
    """``model``; of the npu graph ``encoder`` and ``decoder``"""
    module: nn.Module
    """a copy in evaluation mode; takes the inputs in order, gives a tuple of tensors"""
    inputs: dict[str, Tensor]
    """names and examples: of two images where the batch is dynamic"""
    outputs: tuple[str, ...]


@dataclass
class Graph:
    """What is exported of a model."""

    kind: str
    """``raw``, ``full`` or ``npu``"""
    parts: list[Part]
    dynamic: bool
    """whether any number of images goes in"""
    facts: dict[str, Any] = field(default_factory=dict)
    """what users of the files have to know besides: ``mask_bias``, ``top_k``, the host's share of the npu graph"""


def examples(info: ModelInfo, size: tuple[int, int], batch: int | None) -> dict[str, Tensor]:
    """Inputs to trace with."""
    count = batch or 2
    found = {"images": torch.rand(count, 3, *size, generator=torch.Generator().manual_seed(0))}
    if info.input.resize == KEEP:
        found["valid"] = torch.ones(count, *size)
        found["valid"][-1, :, size[1] * 3 // 4 :] = 0
    return found
