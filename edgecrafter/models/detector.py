"""The network of a size: its parts, put together."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from edgecrafter.models.decoder import Decoder
from edgecrafter.models.detr.detector import DECODERS as CLASSIC
from edgecrafter.models.detr.detector import classic
from edgecrafter.models.encoder import HybridEncoder
from edgecrafter.models.foreign import Foreign
from edgecrafter.models.mask_head import MaskHead
from edgecrafter.models.network import Detector
from edgecrafter.models.plain_decoder import PlainDecoder
from edgecrafter.models.pose_decoder import PoseDecoder
from edgecrafter.models.pyramid import Backbone, Projections, Pyramid
from edgecrafter.models.sizes import Size
from edgecrafter.models.vit import ECViT


def ecvit(size: Size) -> ECViT:
    """The ViT of a size."""
    return ECViT(
        size.vit, size.heads, size.ratio, size.depth, size.fused, size.registers, stem=size.stem, dilation=size.dilation
    )


def detector(size: Size, decoder: nn.Module, foreign: Foreign | None = None) -> Detector:
    """The network of one size around a decoder; ``foreign`` takes the place of its ViT."""
    if size.arch in CLASSIC:
        assert foreign is not None
        return classic(size, decoder, foreign)
    pyramid: nn.Module
    if foreign is not None and not foreign.plain:
        pyramid = Projections(foreign.facts.widths, size.width)
    else:
        pyramid = Pyramid(size.vit, size.width, size.fusion, size.fused, size.project)
    return Detector(
        backbone=Backbone(foreign or ecvit(size), pyramid),
        encoder=HybridEncoder(size.width, size.csp_width, size.csp_depth, size.enc_ffn, size.arch),
        decoder=decoder,
    )


def box_decoder(size: Size, classes: int, masks: nn.Module | None = None) -> nn.Module:
    """The decoder of the detection task."""
    return DECODERS[size.arch](size, classes, masks)


def _refining(size: Size, classes: int, masks: nn.Module | None) -> nn.Module:
    return Decoder(
        classes,
        size.dec_width or size.width,
        size.det_ffn,
        size.det_layers,
        size.queries,
        masks,
        kind=size.arch,
        inputs=size.width,
        curvature=size.curvature,
    )


def _plain(size: Size, classes: int) -> nn.Module:
    width = size.dec_width or size.width
    return PlainDecoder(classes, width, size.det_ffn, size.det_layers, size.queries, size.width)


def _boxes_only(make: Callable[[Size, int], nn.Module]) -> Callable[[Size, int, nn.Module | None], nn.Module]:
    """A decoder that takes no mask head."""

    def made(size: Size, classes: int, masks: nn.Module | None) -> nn.Module:
        if masks is not None:
            raise ValueError(f"arch={size.arch!r} has boxes only: its decoder takes no mask head")
        return make(size, classes)

    return made


DECODERS: dict[str, Callable[[Size, int, nn.Module | None], nn.Module]] = {
    "ec": _refining,
    "rt": _refining,
    "dfine": _refining,
    "rtdetrv2": _boxes_only(_plain),
    **{arch: _boxes_only(make) for arch, make in CLASSIC.items()},
}
"""``Size.arch`` -> its decoder of boxes"""


def mask_decoder(size: Size, classes: int) -> nn.Module:
    """The same with a head for masks: the decoder of the segmentation task."""
    return box_decoder(size, classes, MaskHead(size.width, size.det_layers, size.mask_blocks))


def pose_decoder(size: Size, classes: int, keypoints: int) -> PoseDecoder:
    """The decoder of the pose task."""
    return PoseDecoder(classes, keypoints, size.width, size.pose_ffn, size.pose_layers, size.queries, size.label_rows)
