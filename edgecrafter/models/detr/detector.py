"""The classic detectors of CLoCKDistill: DAB-DETR, Deformable DETR and DINO, of the same three parts as all others.

They read pictures of every size, padded to the largest of a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from edgecrafter.models.detr.dab import DabDecoder
from edgecrafter.models.detr.decoder import DeformableDecoder, DinoDecoder
from edgecrafter.models.detr.encoder import DeformableEncoder, DenseEncoder
from edgecrafter.models.detr.neck import Neck, Top
from edgecrafter.models.detr.padding import masks_of
from edgecrafter.models.foreign import Foreign
from edgecrafter.models.network import Detector
from edgecrafter.models.pyramid import Backbone
from edgecrafter.models.sizes import Size
from edgecrafter.types import Outputs, QueryGroup

STILL = ("conv1", "bn1", "layer1")
"""parts of a ResNet that are not trained"""


class ClassicDetector(Detector):
    """Normalised images [B, 3, H, W], zero in the padding, and where they are pictures -> ``Outputs``, whose boxes are
    relative to the picture. There is no AIFI. ``features`` are what the encoder receives, ``memory`` what it gives."""

    def forward(self, images: Tensor, groups: Sequence[QueryGroup] = (), valid: Tensor | None = None) -> Outputs:
        """``valid`` [B, H, W] bool; None: everything is picture."""
        features = self.backbone(images)
        masks = masks_of(valid, features)
        outputs: Outputs = self.decoder(self.encoder(features, masks), masks, groups)
        outputs.features = features
        return outputs


def classic(size: Size, decoder: nn.Module, foreign: Foreign) -> ClassicDetector:
    """The network of one size around a decoder and another library's backbone."""
    if foreign.plain:
        raise ValueError(f"{foreign.facts.spec}: {size.arch} needs a backbone with maps of stride 8, 16 and 32")
    if size.frozen:
        freeze(foreign.network)
    widths = foreign.facts.widths
    neck, encoder = _PARTS[size.arch](size, widths)
    return ClassicDetector(Backbone(foreign, neck), encoder, decoder)


def freeze(network: nn.Module) -> None:
    """Batch norms keep their statistics, scales and shifts; stem and first stage are not trained (as DETR has it)."""
    from timm.layers import freeze_batch_norm_2d

    freeze_batch_norm_2d(network)
    for name, parameter in network.named_parameters():
        if name.startswith(STILL):
            parameter.requires_grad_(False)


def _dab(size: Size, widths: Sequence[int]) -> tuple[nn.Module, nn.Module]:
    return Top(widths, size.width), DenseEncoder(size.width, size.enc_ffn, size.enc_layers)


def _deformable(size: Size, widths: Sequence[int]) -> tuple[nn.Module, nn.Module]:
    encoder = DeformableEncoder(size.width, size.enc_ffn, size.enc_layers, size.levels, dropout=size.dropout)
    return Neck(widths, size.width, size.levels), encoder


def _dino(size: Size, widths: Sequence[int]) -> tuple[nn.Module, nn.Module]:
    encoder = DeformableEncoder(size.width, size.enc_ffn, size.enc_layers, size.levels, temperature=20.0, shift=0.0)
    return Neck(widths, size.width, size.levels), encoder


_PARTS: dict[str, Callable[[Size, Sequence[int]], tuple[nn.Module, nn.Module]]] = {
    "dab": _dab,
    "deformable": _deformable,
    "dino": _dino,
}
"""``Size.arch`` -> neck and encoder"""


def dab_decoder(size: Size, classes: int) -> nn.Module:
    return DabDecoder(classes, size.width, size.det_ffn, size.det_layers, size.queries)


def deformable_decoder(size: Size, classes: int) -> nn.Module:
    return DeformableDecoder(
        classes, size.width, size.det_ffn, size.det_layers, size.queries, size.levels, dropout=size.dropout
    )


def dino_decoder(size: Size, classes: int) -> nn.Module:
    return DinoDecoder(classes, size.width, size.det_ffn, size.det_layers, size.queries, size.levels)


DECODERS: dict[str, Callable[[Size, int], nn.Module]] = {
    "dab": dab_decoder,
    "deformable": deformable_decoder,
    "dino": dino_decoder,
}
