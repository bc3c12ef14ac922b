"""Backbones of other libraries inside our detectors: which one, with which weights, and what follows from it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from edgecrafter import registry, vits
from edgecrafter.download import cache_folder
from edgecrafter.hub import ModelInfo, build, described, parse
from edgecrafter.models import foreign, libraries
from edgecrafter.models.foreign import Foreign
from edgecrafter.models.network import Detector
from edgecrafter.models.sizes import Size

AUTO = "auto"
SHAPES = (*vits.OPTIONS, "fused", "fusion", "norm")
"""options of our ViT and of how its blocks are read, which a hierarchy does not have"""


def chosen(
    info: ModelInfo,
    backbone: str | Path | nn.Module | None,
    vit: Path | None,
    alone: bool,
    weights: str | Path,
    backbone_weights: str,
    options: Mapping[str, Any],
) -> tuple[Foreign | None, ModelInfo, list[str], bool]:
    """Another library's backbone where one has to be made: that of the family, when there are no other weights
    (``alone``), or one that was asked for. Also ``info`` of the detector around it, what to say, and whether it is
    random."""
    family = parse(info.name).row.backbone
    if family and (vit is not None or backbone is None):
        if vit is not None:
            raise ValueError(
                f"{info.name} is built around {family}: a vision transformer of ours has no place in it. It can teach: "
                f"distill=dsi,teacher={vit}"
            )
        _idle(info.size, family, [name for name in SHAPES if name in options])
        if not alone:
            return None, info, [], False
        kind = foreign.RANDOM if str(weights) == "none" else foreign.PRETRAINED
        kind = kind if backbone_weights == AUTO else backbone_weights
        found = libraries.build(info.size.backbone, info.size.fused, info.size.norm, kind)
        return found, info, _said(info, kind, weights), kind == foreign.RANDOM
    if backbone is None or vit is not None:
        return None, info, [], False
    kind = foreign.PRETRAINED if backbone_weights == AUTO else backbone_weights
    found, info = _foreign(backbone, info, kind)
    own = isinstance(backbone, nn.Module)
    lines = [
        f"{info.name} around {foreign.title(found.facts.spec)}, weights: {'its own' if own else kind}",
        f"  licence of the backbone: {found.facts.licence}",
    ]
    return found, info, lines, not own and kind == foreign.RANDOM


def _said(info: ModelInfo, kind: str, weights: str | Path) -> list[str]:
    """What a family starts from that has no weights to fetch."""
    lines = [f"{info.name} around {foreign.title(info.size.backbone)}, weights: {kind}; the rest is new"]
    row = registry.find(info.name)
    if str(weights) == "auto" and row is not None:
        lines.append(f"  not from the authors' weights: fetch {row.url} by hand to {cache_folder() / row.file}")
    return lines


def _foreign(backbone: str | Path | nn.Module, info: ModelInfo, weights: str) -> tuple[Foreign, ModelInfo]:
    """Another library's backbone or a module, and ``info`` of the detector around it."""
    row = info.size
    if isinstance(backbone, nn.Module):
        vit = foreign.adopt(backbone, row.fused)
    else:
        spec = registry.backbone(str(backbone))
        assert spec is not None
        vit = libraries.build(spec, row.fused, row.norm, weights)
    foreign.check(vit, row.fused if row.fusion == "concat" else 1)
    return vit, around(vit, info)


def around(vit: Foreign, info: ModelInfo) -> ModelInfo:
    """``info`` of a detector in which ``vit`` takes the place of its ViT: the pyramid follows its width, the pictures
    its mean and deviation. Raises ``ValueError`` for options of our ViT, which it does not have."""
    facts, row = vit.facts, info.size
    _idle(row, facts.spec, vits.OPTIONS if vit.plain else SHAPES)
    row = row.changed(backbone=facts.spec, vit=facts.widths[-1], project="all")
    spec = replace(info.input, mean=facts.mean, std=facts.std)
    return replace(info, size=row, input=spec, licence=f"{info.licence}; its backbone: {facts.licence}")


def _idle(row: Size, spec: str, names: Iterable[str]) -> None:
    """Raises ``ValueError`` for options that a backbone does not have."""
    for name in names:
        value, plain = getattr(row, name), getattr(Size, name)
        if value != plain:
            other = foreign.title(spec)
            raise ValueError(f"{name}={value} is of our vision transformers, not of {other}: leave {name}={plain}")


def untrained(teacher: str) -> tuple[Detector, ModelInfo]:
    """A teacher of the paper (``registry.TEACHERS``) with random weights, for the classes of COCO."""
    detector, backbone = registry.TEACHERS[teacher]
    info = described(detector)
    vit = libraries.build(registry.BACKBONES[backbone].spec, info.size.fused, info.size.norm)
    info = replace(around(vit, info), name=teacher, licence=registry.licence_of(teacher))
    return build(info, vit), info
