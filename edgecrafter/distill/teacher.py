"""A teacher: a frozen image network whose maps a student learns to imitate."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from edgecrafter.types import InputSpec


class Teacher:
    """Images in, maps out; never trained.

    It is no module on purpose: no state dict, no optimiser and no wrapper for several processes ever sees it. The
    network is put into evaluation mode and needs no gradients from then on.
    """

    def __init__(self, network: nn.Module, spec: InputSpec, name: str, licence: str = "", blocks: int = 2) -> None:
        """``network`` has ``features(images, keep)`` as our ViT and ``models.foreign.Foreign`` do: normalised images ->
        the maps of the last ``keep`` blocks. ``spec`` normalises the pictures the teacher's own way; the maps of its
        last ``blocks`` blocks are given."""
        if blocks < 1:
            raise ValueError(f"teacher_blocks={blocks}: expected 1 or more")
        self.network = network.eval().requires_grad_(False)
        self.spec, self.name, self.licence, self.blocks = spec, name, licence, blocks
        self.dtype = torch.float32
        self._features: Any = network.features

    def prepare(self, device: torch.device, dtype: torch.dtype, compiled: bool = False) -> Teacher:
        """Move to ``device`` with convolutions in channels-last order; ``dtype`` is that of autocast."""
        self.network.to(device).to(memory_format=torch.channels_last)
        self.dtype = dtype
        features: Any = self.network.features
        self._features = torch.compile(features) if compiled else features
        return self

    @torch.no_grad()
    def __call__(self, images: Tensor) -> list[Tensor]:
        """Images [B, 3, H, W], uint8 or float in 0..1 -> maps [B, D, h, w] float32 of the last blocks, the deepest
        last, on the teacher's own grid. One pass gives all of them."""
        x = self.spec.normalise(images).contiguous(memory_format=torch.channels_last)
        with torch.autocast(x.device.type, self.dtype, enabled=self.dtype != torch.float32):
            maps: list[Tensor] = self._features(x, self.blocks)
        return [each.float() for each in maps]

    @property
    def stride(self) -> int:
        """Input pixels per token of its maps; those of a hierarchy are of stride 16."""
        facts = getattr(self.network, "facts", None)
        return facts.stride if facts is not None else 16

    def widths(self, size: tuple[int, int]) -> list[int]:
        """Channels of each map for pictures of ``size`` (h, w). Raises ``ValueError`` when the network does not take
        them, or has fewer blocks than are asked for."""
        device = next(self.network.parameters()).device
        try:
            maps = self(torch.zeros(1, 3, *size, dtype=torch.uint8, device=device))
        except (AssertionError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"{self.name} does not take pictures of {size[0]} x {size[1]} ({reason})") from None
        if len(maps) < self.blocks:
            raise ValueError(
                f"teacher_blocks={self.blocks}: {self.name} gives {len(maps)} map(s) of stride 16; use {len(maps)}"
            )
        return [each.shape[1] for each in maps]
