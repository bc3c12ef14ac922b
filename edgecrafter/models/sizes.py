"""Sizes of the detectors: one row each, no subclass and no inheritance between them.

Rows s, m, l, x: EdgeCrafter, Table 1; the encoder's depth and expansion are those of the released models.
Rows n and p are ours, for small devices and quick work; no published accuracy belongs to them.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

CLASSIC = ("dab", "deformable", "dino")
"""``arch`` of the classic detectors of CLoCKDistill (``models.detr``)"""


@dataclass(frozen=True)
class Size:
    """Every number that shapes a detector; options of Tables 7-9 are fields with the paper's defaults."""

    vit: int
    """width of the ViT; head width is vit / heads"""
    heads: int
    ratio: int
    """hidden width of the ViT's perceptrons / vit"""
    width: int
    """width of encoder and decoder"""
    csp_depth: int
    csp_width: int
    enc_ffn: int
    det_ffn: int
    det_layers: int = 4
    depth: int = 12
    project: str = "all"
    """1x1 projections of the pyramid: "all" levels, or the coarsest only ("top", as released for s and m)"""
    queries: int = 300
    pose_ffn: int = 512
    pose_layers: int = 4
    label_rows: int = 0
    """rows of the class table of pose denoising; 0: one per class (released pose weights have 81)"""
    mask_blocks: int = 0
    """blocks of the mask head that evaluation applies; 0: all, as training does (released mask weights: 1)"""
    registers: int = 1
    """register tokens of the ViT, 0 or more (Table 7)"""
    stem: str = "conv"
    """"conv": four 3x3 convolutions; "vanilla": one 16x16 convolution (Table 8)"""
    dilation: int = 1
    """dilation of the last stem convolution (Table 8)"""
    fusion: str = "mean"
    """"mean" or "concat" of the last ``fused`` ViT blocks (Table 9)"""
    fused: int = 2
    backbone: str = ""
    """another library's backbone in place of the ViT (``models.libraries``); ``vit`` is then its width"""
    norm: bool = True
    """whether the blocks of such a backbone are read through its own final norm"""
    arch: str = "ec"
    """which encoder and decoder: "ec" (EdgeCrafter), "rt" (RT-DETRv4), "dfine" (D-FINE, DEIM), "rtdetrv2" """
    criterion: str = "mal"
    """which loss table (``losses.detection``)"""
    dec_width: int = 0
    """width of the decoder where it is another one than the encoder's"""
    curvature: float = 4.0
    """``c`` of the box edges: the larger, the finer (``geometry.bins``)"""
    enc_layers: int = 1
    """layers of the encoder (classic detectors)"""
    levels: int = 3
    """levels of the memory (classic detectors)"""
    dropout: float = 0.0
    frozen: bool = False
    """whether norms, stem and first stage of a convolutional backbone stay as they are (classic detectors)"""
    ours: bool = False
    """true for rows that are not of a paper"""

    def __post_init__(self) -> None:
        _expect("fusion", self.fusion, ("mean", "concat"))
        _expect("stem", self.stem, ("conv", "vanilla"))
        _expect("project", self.project, ("all", "top"))
        if not self.backbone and not 1 <= self.fused <= self.depth:
            raise ValueError(f"fused={self.fused}: choose between 1 and the {self.depth} blocks of the ViT")
        if self.registers < 0 or self.queries < 1 or self.dilation < 1:
            raise ValueError("registers must be 0 or more; queries and dilation 1 or more")
        if self.enc_layers > 1 and self.arch not in CLASSIC:
            raise ValueError(f"enc_layers={self.enc_layers}: only dab-detr, deformable-detr and dino have more than 1")

    def changed(self, **options: Any) -> Size:
        """This row with some fields replaced; an unknown name is an error that lists the known ones."""
        known = {field.name for field in fields(self)}
        for name in options:
            if name not in known:
                raise ValueError(f"unknown model option {name!r}; known: {', '.join(sorted(known))}")
        return replace(self, **options)


def _expect(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name}={value!r}: choose one of {', '.join(allowed)}")


#              vit  heads ratio width csp_depth csp_width enc_ffn det_ffn
SIZES = {
    "p": Size(
        96, 3, 4, 64, 1, 16, 128, 128, det_layers=3, depth=6, queries=100, pose_ffn=128, pose_layers=3, ours=True
    ),
    "n": Size(128, 2, 4, 128, 2, 32, 256, 256, det_layers=3, pose_ffn=256, pose_layers=3, ours=True),
    "s": Size(192, 3, 4, 192, 2, 32, 512, 512, project="top", pose_layers=3),
    "m": Size(256, 4, 4, 256, 2, 96, 512, 1024, project="top"),
    "l": Size(384, 6, 4, 256, 3, 96, 1024, 1024, pose_ffn=1024),
    "x": Size(384, 6, 6, 256, 3, 192, 2048, 2048, pose_ffn=2048),
}


def _rt(timm: str, csp_width: int, csp_depth: int, layers: int, **more: Any) -> Size:
    """A row around one of timm's convolutional networks."""
    plain: dict[str, Any] = {"width": 256, "enc_ffn": 1024, "det_ffn": 1024, "arch": "rt"}
    shape: dict[str, Any] = {"vit": 0, "heads": 1, "ratio": 1, "csp_width": csp_width, "csp_depth": csp_depth}
    return Size(**{**shape, **plain, "det_layers": layers, "backbone": f"timm:{timm}", "depth": 0, **more})


RTDETRV4 = {
    "p": _rt("hgnetv2_b0", 16, 1, 3, width=64, enc_ffn=128, det_ffn=128, queries=100, ours=True),
    "s": _rt("hgnetv2_b0", 64, 1, 3),
    "m": _rt("hgnetv2_b2", 128, 2, 4),
    "l": _rt("hgnetv2_b4", 128, 3, 6),
    "x": _rt("hgnetv2_b5", 192, 3, 6, width=384, enc_ffn=2048, dec_width=256, curvature=8.0),
}
"""RT-DETRv4 (released_behaviour 3.1, 4.1); row p is ours"""

DEIM = {name: row.changed(arch="dfine") for name, row in RTDETRV4.items() if not row.ours}
DFINE = {name: row.changed(criterion="vfl") for name, row in DEIM.items()}
"""the hosts of RT-DETRv4's Table 2 that share its parts"""

_V2: dict[str, Any] = {"arch": "rtdetrv2", "criterion": "plain"}
RTDETRV2 = {
    "r18": _rt("resnet18d", 128, 3, 3, **_V2),
    "r34": _rt("resnet34d", 128, 3, 4, **_V2),
    "r50": _rt("resnet50d", 256, 3, 6, **_V2),
    "r101": _rt("resnet101d", 384, 3, 6, width=384, enc_ffn=2048, dec_width=256, **_V2),
}
"""RT-DETRv2, another host: its own fusion and decoder (``models.plain_decoder``)"""


def _classic(depth: int, **more: Any) -> Size:
    """A row of a classic detector around a ResNet."""
    plain: dict[str, Any] = {"enc_layers": 6, "levels": 4, "frozen": True}
    return _rt(f"resnet{depth}.tv_in1k", 0, 0, 6, **{**plain, **more})


_DEPTHS = (18, 50, 101)
DAB = {f"r{n}": _classic(n, arch="dab", criterion="focal", levels=1, enc_ffn=2048, det_ffn=2048) for n in _DEPTHS}
DEFORMABLE = {f"r{n}": _classic(n, arch="deformable", criterion="focal2", dropout=0.1) for n in _DEPTHS}
DINO = {f"r{n}": _classic(n, arch="dino", criterion="focal", enc_ffn=2048, det_ffn=2048, queries=900) for n in _DEPTHS}
"""The classic detectors of CLoCKDistill in their standard settings (``models.detr``)"""

VITS = {"p": "p", "n": "n", "t": "s", "t+": "m", "s": "l", "s+": "x"}
"""Names of the ViTs, ecvit-t and so on as in the paper, and the rows that use them; p and n are ours."""
