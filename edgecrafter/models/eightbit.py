"""Which layers stay in floating point when the others take 8 bits, by architecture.

A layer is called after its module, ``backbone.vit.blocks.3.attn.qkv``; the products of attention, of two tensors that
are both computed, after the module that they are in: ``backbone.vit.blocks.3.products``.
"""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase

PRODUCTS = "products"

_HEADS = (
    "*." + PRODUCTS, "backbone.vit.stem.*",
    "decoder.enc_*", "decoder.first_box*", "decoder.first_pose*",
    "decoder.position*", "decoder.boxes.*", "decoder.poses.*", "decoder.scores.*", "decoder.quality.*",
    "decoder.*cross_attn.offsets", "decoder.*cross_attn.weights",
)  # fmt: skip
KEPT: dict[str, tuple[str, ...]] = {"ec": _HEADS, "rt": _HEADS, "dfine": _HEADS, "rtdetrv2": _HEADS}
"""``Size.arch`` -> patterns of the names of layers.

Measured for ``ec`` (benchmarks/int8.md): the four convolutions of the stem cost nearly everything that 8 bits cost, and
the products of attention the most of all where there are 1600 tokens, since a share of attention is then smaller than a
step of 8 bits. Heads cost little; they stay because they are small. The other rows are taken from there, unmeasured.
"""
CLASSIC = ("*." + PRODUCTS, "decoder.*", "encoder.*")
"""of the classic detectors: 8 bits are for the backbone"""


def kept(arch: str) -> tuple[str, ...]:
    """The patterns of an architecture (``Size.arch``)."""
    return KEPT.get(arch, CLASSIC)


def stays(layer: str, patterns: Iterable[str]) -> bool:
    """Whether a layer stays in floating point."""
    return any(fnmatchcase(layer, pattern) for pattern in patterns)
