"""A detector as teacher: frozen, and it says everything that a student can learn from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgecrafter.geometry.sides import KEEP
from edgecrafter.types import InputSpec, Labels, Outputs, QueryGroup

T = TypeVar("T")
STEP = 32
"""sides of the pictures of detectors that do not keep ratios are multiples of this"""
PROBE = (128, 128)
"""height, width of the picture that shows the levels of a network"""


class Level(NamedTuple):
    """One level of a pyramid."""

    width: int
    """channels"""
    stride: int
    """pixels of the input per cell"""


class DetectorTeacher:
    """Images in, ``Outputs`` of every decoder layer out; never trained.

    It is no module on purpose, as ``distill.teacher.Teacher``. The network is in evaluation mode and needs no gradients
    from then on; only the decoder itself, and a mask head, hold the training flag, which makes them give all layers:
    their parts stay in evaluation mode. A mask head then applies all of its blocks, whatever ``mask_blocks`` says.
    """

    def __init__(self, network: nn.Module, spec: InputSpec, labels: Labels, name: str, licence: str = "") -> None:
        """``network`` has a ``decoder`` and is called ``network(images, groups)``, with ``valid=`` for padded images
        where ``spec`` keeps ratios; ``spec`` normalises pictures the teacher's own way; ``labels`` are its classes."""
        self.network = network.eval().requires_grad_(False)
        self.spec, self.labels, self.name, self.licence = spec, labels, name, licence
        self.dtype = torch.float32
        decoder: Any = network.decoder
        for part in (decoder, getattr(decoder, "masks", None)):
            if part is not None:
                part.training = True

    def prepare(self, device: torch.device, dtype: torch.dtype) -> DetectorTeacher:
        """Move to ``device`` with convolutions in channels-last order; ``dtype`` is that of autocast."""
        self.network.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.dtype = dtype
        return self

    @torch.no_grad()
    def __call__(self, images: Tensor, groups: Sequence[QueryGroup] = (), valid: Tensor | None = None) -> Outputs:
        """Images [B, 3, H, W], uint8 or float in 0..1, and questions -> the answers of all layers, the features before
        the encoder, the memory behind it; everything in float32. ``valid`` [B, H, W] bool where images are padded."""
        return self.answers(images, groups, valid)

    def answers(self, images: Tensor, groups: Sequence[QueryGroup] = (), valid: Tensor | None = None) -> Outputs:
        """The same with gradients, of what the questions are made of."""
        x = self.spec.normalise(images, valid)
        more = {} if valid is None else {"valid": valid}
        if self.spec.resize != KEEP:  # knows no padding, and a student that keeps ratios has pictures of any size
            more = {}
            x = F.pad(x, (0, -x.shape[3] % STEP, 0, -x.shape[2] % STEP))
        x = x.contiguous(memory_format=torch.channels_last)
        with torch.autocast(x.device.type, self.dtype, enabled=self.dtype != torch.float32):
            outputs: Outputs = self.network(x, groups, **more)
        if x.shape != images.shape:
            outputs.features, outputs.memory = (_cut(each, x, images) for each in (outputs.features, outputs.memory))
        return _float32(outputs)

    def levels(self) -> dict[str, list[Level]]:
        """The levels of its ``features`` and of its ``memory``."""
        device = next(self.network.parameters()).device
        outputs = self(torch.zeros(1, 3, *PROBE, dtype=torch.uint8, device=device))
        maps = {"features": outputs.features, "memory": outputs.memory}
        return {name: [Level(x.shape[1], PROBE[0] // x.shape[2]) for x in found] for name, found in maps.items()}

    def same_classes(self, labels: Labels) -> None:
        """Raises ``ValueError`` unless the classes of a student are those of the teacher, in the same order: methods
        that compare answers need that, those that compare features do not."""
        if labels.names == self.labels.names:
            return
        place = next(
            (i for i, pair in enumerate(zip(labels.names, self.labels.names, strict=False)) if pair[0] != pair[1]),
            min(len(labels), len(self.labels)),
        )
        own, other = (names[place] if place < len(names) else "none" for names in (labels.names, self.labels.names))
        raise ValueError(
            f"{self.name} has {len(self.labels)} classes and the student {len(labels)}; class {place} is '{other}' "
            f"there and '{own}' here. Answers can be compared between the same classes in the same order only: train "
            "the teacher on these data"
        )


def _cut(maps: Sequence[Tensor], padded: Tensor, images: Tensor) -> list[Tensor]:
    """Maps of padded images without the cells that are padding alone."""
    h, w = images.shape[2:]
    strides = [padded.shape[2] // each.shape[2] for each in maps]
    return [each[:, :, : -(-h // n), : -(-w // n)] for each, n in zip(maps, strides, strict=True)]


def _float32(value: T) -> T:
    """Outputs with every floating tensor, in lists and dataclasses too, in float32; query groups as they are."""
    found: Any = value
    if isinstance(value, Tensor):
        found = value.float() if value.is_floating_point() else value
    elif isinstance(value, list):
        found = [_float32(each) for each in value]
    elif is_dataclass(value) and not isinstance(value, QueryGroup):
        found = replace(value, **{f.name: _float32(getattr(value, f.name)) for f in fields(value)})  # type: ignore[type-var]
    return found  # type: ignore[no-any-return]
