"""Which layers stay in floating point when the others take 8 bits, by architecture.

A layer is called after its module, ``backbone.vit.blocks.3.attn.qkv``; the products of attention, of two tensors that
are both computed, after the module that they are in: ``backbone.vit.blocks.3.products``.
"""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase

PRODUCTS = "products"

_HEADS = (
    "*." + PRODUCTS,
    "decoder.enc_score", "decoder.enc_box*", "decoder.enc_pose*", "decoder.first_box*", "decoder.first_pose*",
    "decoder.position*", "decoder.boxes.*", "decoder.poses.*", "decoder.scores.*", "decoder.quality.*",
    "decoder.*cross_attn.offsets", "decoder.*cross_attn.weights",
)  # fmt: skip
KEPT: dict[str, tuple[str, ...]] = {"ec": _HEADS, "rt": _HEADS, "dfine": _HEADS, "rtdetrv2": _HEADS}
"""``Size.arch`` -> patterns of the names of layers"""
CLASSIC = ("*." + PRODUCTS, "decoder.*", "encoder.*")
"""of the classic detectors: 8 bits are for the backbone"""


def kept(arch: str) -> tuple[str, ...]:
    """The patterns of an architecture (``Size.arch``)."""
    return KEPT.get(arch, CLASSIC)


def stays(layer: str, patterns: Iterable[str]) -> bool:
    """Whether a layer stays in floating point."""
    return any(fnmatchcase(layer, pattern) for pattern in patterns)
