"""Checkpoints in the released layout (.pth): read, written, and recognised by names and shapes."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from edgecrafter import registry
from edgecrafter.families import FAMILIES, PROJECTOR, Family
from edgecrafter.files import written_beside
from edgecrafter.models import libraries, official
from edgecrafter.models.detector import detector
from edgecrafter.models.detr import convert
from edgecrafter.models.sizes import Size
from edgecrafter.types import Labels, Skeleton

SHOWN = 8
"""entries that a message lists"""


RT_LAYOUT = "encoder.input_proj.0.conv.weight"
"""an entry of RT-DETRv4's files, and of those of the detectors that it is built on"""


class Match(NamedTuple):
    """A model that a state dict fits."""

    family: Family
    size: str
    row: Size
    labels: Labels
    """the authors' classes; where the number is another one, numbers in place of names that are not known"""

    @property
    def name(self) -> str:
        return f"{self.family.prefix}-{self.size}"

    def build(self) -> nn.Module:
        """The network without memory for its weights."""
        with torch.device("meta"):
            vit = libraries.build(self.row.backbone) if self.row.backbone else None
            return detector(self.row, self.family.task.decoder(self.row, self.labels), vit)


def read(path: Path) -> tuple[dict[str, Tensor], str | None]:
    """The tensors of a checkpoint under its own names, and the text that ``write`` left in it. Never unpickles code.

    Raises ``ValueError`` for files that cannot be read or are something else.
    """
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # options of a training: plain attributes
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(
            f"{path}: not a readable checkpoint ({str(error).splitlines()[0]}). Files with anything but tensors and "
            "plain values are refused because loading them could run code. A file that was cut off: fetch it again"
        ) from None
    if {"network", "optimizer", "progress"} <= set(content):
        raise ValueError(
            f"{path} is the state of a training run, to go on with --resume; the model is "
            f"{path.with_suffix('.safetensors')}"
        )
    text = content.get("edgecrafter")
    return official.unwrap(content), text if isinstance(text, str) else None


def write(weights: Mapping[str, Tensor], text: str, path: Path) -> Path:
    """Writes weights under our names as ``model`` and ``ema.module``, with the released ones.

    ``text`` goes along under a key of its own.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    state = official.to_official(weights)
    with written_beside(path) as beside:
        about = {"date": "", "last_epoch": 0, "edgecrafter": text}
        torch.save({**about, "model": state, "ema": {"module": state, "updates": 0}}, beside)
    return path


def vit_alone(state: Mapping[str, Any]) -> bool:
    """Whether these are the names of a vision transformer without a detector around it."""
    return any(name.startswith("blocks.") for name in state)


def recognise(state: Mapping[str, Tensor], path: Path) -> tuple[dict[str, Tensor], Match]:
    """A released state dict -> weights under our names and the model they belong to, from keys and shapes.

    Raises ``ValueError`` that names the candidates when no model or more than one fits; ``path`` is for the message.
    """
    _refuse_hosts(state, path)
    ours, families = _known(state)
    shapes = {name: tuple(value.shape) for name, value in ours.items()}
    candidates = [_candidate(family, size, shapes) for family in families for size in family.sizes]
    fits: list[Match] = []
    nearest: tuple[str, list[str]] | None = None
    for each in candidates:
        wanted = {key: tuple(value.shape) for key, value in each.build().state_dict().items()}
        different = [key for key in {**wanted, **shapes} if wanted.get(key) != shapes.get(key)]
        if not different:
            fits.append(each)
        elif nearest is None or len(different) < len(nearest[1]):
            nearest = each.name, [_difference(key, wanted, shapes) for key in different]
    if len(fits) == 1:
        return ours, fits[0]
    if fits:
        raise ValueError(f"{path}: fits more than one model: {', '.join(each.name for each in fits)}")
    assert nearest is not None
    raise ValueError(
        f"{path}: fits no model of {', '.join(each.name for each in candidates)}; nearest is {nearest[0]} with "
        f"{len(nearest[1])} different entries, for example {', '.join(nearest[1][:SHOWN])}"
    )


def _known(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[Family]]:
    """Weights under our names, and the families that they may be of."""
    arch = convert.arch_of(state)
    if arch is not None:
        ours = convert.to_ours(state, registry.COCO_IDS)
        return ours, [f for f in FAMILIES.values() if any(row.arch == arch for row in f.sizes.values())]
    convert.refuse_early(state)
    signed = [f for f in FAMILIES.values() if f.sign and f.sign in state]  # others of the same shapes are told by it
    return official.to_ours(state), signed or [f for f in FAMILIES.values() if f.sign == ""]


def _difference(key: str, wanted: Mapping[str, tuple[int, ...]], there: Mapping[str, tuple[int, ...]]) -> str:
    """What is wrong with an entry, in words."""
    if key not in there:
        return f"{key} (missing)"
    return f"{key} ({list(there[key])} instead of {list(wanted[key])})" if key in wanted else f"{key} (not of it)"


def _refuse_hosts(state: Mapping[str, Tensor], path: Path) -> None:
    """Raises ``ValueError`` for a file laid out like RT-DETRv4's that does not say that it is one."""
    if RT_LAYOUT in state and PROJECTOR not in state:
        raise ValueError(
            f"{path}: looks like RT-DETRv4, DEIM or D-FINE, without RT-DETRv4's projector ({PROJECTOR}): these cannot "
            "be told apart by their entries. Only files of RT-DETRv4 as its authors offer them are read (edgecrafter "
            "models lists them); there is no reading of the others, but deim-* and dfine-* can be trained here"
        )


def _candidate(family: Family, size: str, shapes: Mapping[str, tuple[int, ...]]) -> Match:
    """What a file is if it is of this model."""
    labels = family.task.labels
    scores = (shapes[name] for name in ("decoder.enc_score.bias", "decoder.score.bias") if name in shapes)
    (classes,) = next(scores, (len(labels),))
    if classes != len(labels):
        labels = replace(labels, names=tuple(f"class {i}" for i in range(classes)), ids=(), unused=())
    points = shapes.get("decoder.keypoints.weight", (0,))[0]
    if labels.skeleton is not None and points not in (0, len(labels.skeleton)):
        labels = replace(labels, skeleton=Skeleton(tuple(f"keypoint {i}" for i in range(points))))
    return Match(family, size, family.row(size).changed(**family.task.released), labels)
