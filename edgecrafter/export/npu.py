"""The graph for neural processing units: two parts of static shapes, with the choice of the queries between them.

The ``encoder`` takes ``images`` [B, 3, H, W] (RGB in 0..1) and gives

* ``memory_0``, ``memory_1``, ``memory_2`` [B, D, h, w]: what the decoder reads;
* ``proposals`` [B, P]: the best class logit of each of the P memory tokens, level by level, row by row;
* ``tokens`` [B, P, D]: what becomes the content, or the place, of a query;
* ``mask_pixels`` [B, D, h, w]: an answer already, where the model finds masks.

The ``decoder`` takes ``memory_0`` to ``memory_2`` as they are, ``content`` [B, Q, D] and ``anchors`` [B, Q, 4], logits
of a box at each token's cell (poses: [B, Q, 2], of the cell's centre), and gives the outputs of the ``raw`` graph but
``mask_pixels``.

In between the host chooses the Q tokens with the best proposals, best first, equal ones in the order of the tokens
(``deployed.infer.choose``, fifteen lines of numpy). The networks do the same themselves: nothing is approximated.
``facts["choose"]`` says what the host needs: ``queries`` (Q), ``levels`` ([[h, w], ...]), ``anchor_sizes`` (the side of
a box per level; null for poses), ``margin`` (an anchor with a number below it or above 1 - margin is put out of reach)
and ``outside`` (what it becomes then).
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgecrafter.deployed.infer import choose
from edgecrafter.export.npu_forms import Sine, shapes, static
from edgecrafter.export.npu_sampling import Shape
from edgecrafter.export.parts import Graph, Part, examples
from edgecrafter.geometry import bins
from edgecrafter.geometry.numbers import corrected
from edgecrafter.hub import ModelInfo
from edgecrafter.models.decoder import HEADS, Decoder
from edgecrafter.models.fuse import fuse
from edgecrafter.models.mask_head import MaskHead
from edgecrafter.models.network import Detector
from edgecrafter.models.plain_decoder import PlainDecoder
from edgecrafter.models.pose_decoder import EPS, PoseDecoder, point_anchors, with_centre
from edgecrafter.models.queries import ANCHOR_SIZE, MARGIN, Queries
from edgecrafter.nn.deformable import split_heads

OUTSIDE = 100.0
"""the anchor of a token at the border, whose sigmoid is 1 like that of the infinity in ``queries.anchors``"""


def npu(network: Detector, info: ModelInfo, size: tuple[int, int], batch: int | None = 1) -> Graph:
    """The two parts, made of a copy of ``network``, fused or not, for ``batch`` images of ``size`` (height, width).

    Raises ValueError for a dynamic batch, for sides that are no multiples of 32, and for the classic detectors.
    """
    if batch is None:
        raise ValueError("graph=npu has static shapes: give the number of images, for example batch=1")
    if any(side % 32 for side in size):
        raise ValueError(f"input of {size[0]} x {size[1]} pixels: both must be multiples of 32")
    copied = fuse(network).cpu().requires_grad_(False)
    if not isinstance(copied.decoder, (Decoder, PlainDecoder, PoseDecoder)):
        raise ValueError(f"{info.name} has no npu graph: use graph=raw or graph=full")
    static(copied, size)
    encoder, decoder = EncoderPart(copied, info, size).eval(), DECODERS[type(copied.decoder)](copied.decoder).eval()
    images = {"images": examples(info, size, batch)["images"]}
    with torch.inference_mode():
        found = dict(zip(encoder.outputs, encoder(*images.values()), strict=True))
        facts = {"choose": _facts(copied.decoder, size)}
        given = chosen(found, facts["choose"])
    parts = [Part("encoder", encoder, images, encoder.outputs), Part("decoder", decoder, given, decoder.outputs)]
    masks = getattr(copied.decoder, "masks", None)
    return Graph("npu", parts, False, facts if masks is None else {**facts, "mask_bias": float(masks.bias)})


def _facts(decoder: Decoder | PlainDecoder | PoseDecoder, size: Shape) -> dict[str, Any]:
    levels = shapes(size)
    sizes = None if isinstance(decoder, PoseDecoder) else [ANCHOR_SIZE * 2.0**level for level in range(len(levels))]
    tokens = sum(h * w for h, w in levels)
    return {
        "queries": min(decoder.queries, tokens),
        "levels": [list(level) for level in levels],
        "anchor_sizes": sizes,
        "margin": MARGIN,
        "outside": OUTSIDE,
    }


def chosen(found: dict[str, Tensor], facts: dict[str, Any]) -> dict[str, Tensor]:
    """What the host does between the parts: the encoder's outputs -> the decoder's inputs."""
    given = choose({name: value.numpy() for name, value in found.items()}, facts)
    return {name: torch.from_numpy(np.ascontiguousarray(value, np.float32)) for name, value in given.items()}


class EncoderPart(nn.Module):
    """Images -> memory, proposals, tokens, and the pixels of masks."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: Detector, info: ModelInfo, size: Shape) -> None:
        super().__init__()
        self.backbone, self.encoder, self.decoder = network.backbone, network.encoder, network.decoder
        mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (info.input.mean, info.input.std))
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)
        inside = point_anchors(shapes(size), torch.device("cpu"))[1]
        self.register_buffer("inside", None if inside.all() else inside.float()[:, None])
        masks = getattr(network.decoder, "masks", None)
        self.outputs = ("memory_0", "memory_1", "memory_2", "proposals", "tokens", *(["mask_pixels"] if masks else []))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        features = self.backbone((images - self.mean) / self.std)
        memory, _ = self.encoder(features)
        decoder = cast(Decoder, self.decoder)
        enter = getattr(decoder, "enter", None)
        read = [layer(level) for layer, level in zip(enter, memory, strict=True)] if enter else memory
        tokens = torch.cat([level.flatten(2).transpose(1, 2) for level in read], dim=1)
        if self.inside is not None:
            tokens = tokens * cast(Tensor, self.inside)
        if hasattr(decoder, "enc_project"):
            tokens = decoder.enc_norm(decoder.enc_project(tokens))
        proposals = decoder.enc_score(tokens).amax(-1)
        masks = getattr(decoder, "masks", None)
        return *read, proposals, tokens, *([pixels(masks, memory[0])] if masks else [])


def pixels(masks: MaskHead, level: Tensor) -> Tensor:
    """The pixels of a mask head after the blocks that it uses."""
    x = F.interpolate(level, scale_factor=2.0, mode="bilinear", align_corners=False)
    for block in masks.blocks[: masks.used]:
        x = block(x)
    return masks.pixels(x)  # type: ignore[no-any-return]


class RefinementPart(nn.Module):
    """Memory, contents and anchors -> logits, boxes and what masks are made of, by a ``Decoder``."""

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        self.decoder = decoder
        self.outputs = ("logits", "boxes", *(["mask_queries"] if decoder.masks is not None else []))

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        *memory, content, anchors = inputs
        decoder = self.decoder
        queries = Queries(content, (decoder.enc_box(content) + anchors).sigmoid(), None)
        outputs, contents = decoder.refine(queries, split_heads(memory, HEADS))
        layer = outputs.layers[-1]
        assert layer.boxes is not None
        masks = [] if decoder.masks is None else [cast(MaskHead, decoder.masks).queries(contents[-1])]
        return layer.logits, layer.boxes, *masks


class PlainPart(nn.Module):
    """The same by a ``PlainDecoder``."""

    outputs = ("logits", "boxes")

    def __init__(self, decoder: PlainDecoder) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        *memory, content, anchors = inputs
        queries = Queries(content, (self.decoder.enc_box(content) + anchors).sigmoid(), None)
        layer = self.decoder.refine(queries, memory).layers[-1]
        assert layer.boxes is not None
        return layer.logits, layer.boxes


class PosePart(nn.Module):
    """Memory, contents and anchors -> logits and keypoints, by a ``PoseDecoder``, without a dimension for bins."""

    outputs = ("logits", "keypoints")

    def __init__(self, decoder: PoseDecoder) -> None:
        super().__init__()
        self.decoder = decoder
        self.sine = Sine(decoder.instance.weight.shape[1])
        ranks = decoder.ranks.weight[:, None] + decoder.keypoints.weight
        instance = decoder.instance.weight.expand(len(ranks), 1, -1)
        self.register_buffer("own", torch.cat([instance, ranks], dim=1)[None].detach())

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        *memory, content, anchors = inputs
        decoder = self.decoder
        B, Q = content.shape[:2]
        K = decoder.count
        x = cast(Tensor, self.own)[:, :Q].expand(B, -1, -1, -1)
        points = (decoder.enc_pose(content).view(B, Q, K, 2) + anchors[:, :, None]).sigmoid()
        values = split_heads(memory, HEADS)
        base, edges = points, torch.zeros(1)
        for i, layer in enumerate(decoder.layers):
            position = decoder.position(self.sine(points))
            position = torch.cat([torch.zeros_like(position[:, :, :1]), position], dim=2)
            before = x + position
            x = layer(before, position, with_centre(points), values, None)
            tokens = x[:, :, 1:]
            if i == 0:
                base = corrected(decoder.first_pose(tokens), points, EPS)
            heard = tokens + before[:, :, 1:] if i else tokens
            edges = decoder.poses[i](heard).reshape(B, 2 * Q * K, bins.BINS) + edges
            moves = bins.distances(edges, decoder.bin_values).view(B, Q, K, 2)  # type: ignore[arg-type]
            points = base + moves / bins.CURVATURE
        instance = x[:, :, :1].flatten(1, 2)
        return decoder.scores[-1](instance) + decoder.quality[-1](memory[0], points), points


DECODERS: dict[type[nn.Module], Any] = {Decoder: RefinementPart, PlainDecoder: PlainPart, PoseDecoder: PosePart}
