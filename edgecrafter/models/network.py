"""A detector: backbone, encoder, decoder."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from edgecrafter.types import Outputs, QueryGroup

STRIDE = 32
"""Input sides must be multiples of this."""


class Detector(nn.Module):
    """Normalised images [B, 3, H, W] -> ``Outputs``. H and W may be any multiple of 32, in training and evaluation."""

    def __init__(self, backbone: nn.Module, encoder: nn.Module, decoder: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.encoder = encoder
        self.decoder = decoder

    def forward(self, images: Tensor, groups: Sequence[QueryGroup] = ()) -> Outputs:
        if images.shape[2] % STRIDE or images.shape[3] % STRIDE:
            raise ValueError(
                f"input of {images.shape[2]} x {images.shape[3]} pixels: both must be multiples of {STRIDE}"
            )
        features = self.backbone(images)
        memory, attended = self.encoder(features)
        outputs: Outputs = self.decoder(memory, groups)
        outputs.features, outputs.aifi = features, attended
        return outputs
