"""Deep Semantic Injector (RT-DETRv4, section 3.2): the encoder's top level learns to say what a large model says."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgecrafter.distill import gam
from edgecrafter.distill.align import fitted
from edgecrafter.distill.base import Distiller, Student
from edgecrafter.distill.gam import BANDS, Band
from edgecrafter.distill.teacher import Teacher
from edgecrafter.models.detr.detector import DECODERS as CLASSIC
from edgecrafter.nn.conv import ConvNorm
from edgecrafter.nn.mlp import MLP
from edgecrafter.types import Batch, Outputs

PLACES = {
    "s3": ("s3",),
    "s4": ("s4",),
    "s5": ("s5",),
    "all": ("s3", "s4", "s5"),
    "f5": ("f5",),
    "hybrid": ("s3", "s4", "s5", "f5"),
}
"""Table 3: S3 to S5 are what the encoder receives, F5 is its top level after attention"""
RULES = ("auto", "released", "paper", "none")
SETTINGS = ("rho", "delta", "default")
"""of GAM alone"""


@dataclass
class DSIOptions:
    """Options of ``--distill dsi``, such as ``--distill dsi,teacher=dinov2-b,weight=10``."""

    teacher: str = "dinov3-b"
    """who teaches: dinov3-b, dinov2-s, timm:NAME (CLIP, MAE, ...), hf:OWNER/NAME, a file or run of ours"""
    teacher_weights: str = "pretrained"
    """pretrained, none (random, as a control) or a file, of another library's backbone"""
    norm: bool = True
    """whether the teacher's features pass through its own final norm"""
    pool: bool = True
    """whether the teacher sees the picture so small that its grid is that of F5 (half size for patches of 16, as
    released); if not, it sees it whole, at four times the cost, and its features are resized"""
    position: str = "f5"
    """where: s3, s4, s5, all (these three), f5, hybrid (these and f5) (Table 3)"""
    projector: str = "linear"
    """linear, conv1x1 (with batch norm, as all convolutions here) or mlp (Table 4)"""
    loss: str = "cosine"
    """cosine or mse (Table 5)"""
    gam: str = "auto"
    """how the weight follows the gradients: released or paper (Eq. 11); none keeps it as it is; auto is released where
    the settings are known (RT-DETRv4, DEIM, D-FINE) or rho is given, else none"""
    weight: float | None = None
    """weight of the loss, with GAM that of the first epoch; none: the settings of the size, else 20 (best fixed one of
    Table 6)"""
    rho: float | None = None
    """wanted share of the AIFI in the gradients, percent; none: the settings of the size"""
    delta: float | None = None
    """tolerance of it, percent; none: the settings of the size, else a tenth of rho"""
    default: float | None = None
    """weight of the last epochs (released rule); none: the settings of the size, else that of `weight`"""

    def __post_init__(self) -> None:
        allowed: dict[str, Iterable[str]] = {"position": PLACES, "projector": PROJECTORS, "loss": LOSSES, "gam": RULES}
        for name, values in allowed.items():
            if getattr(self, name) not in values:
                raise ValueError(f"{name}={getattr(self, name)}: choose one of {', '.join(values)}")
        for name in ("weight", "rho", "delta", "default"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise ValueError(f"{name}={value}: expected a number of at least 0")


STATIC = 20.0
"""the best fixed weight of Table 6"""
RUNAWAY = 50
"""so many times its first value a weight may be before a share that is still too small is spoken of (ours)"""


class DSI(Distiller):
    """Projected maps of the student and the teacher's map of the same pictures: one minus their mean cosine (Eq. 5 but
    for the constant), position by position."""

    weight: Tensor
    total: Tensor
    """sum of the AIFI's shares in this epoch, percent"""
    steps: Tensor

    name = "dsi"

    def __init__(self, options: DSIOptions, teacher: Teacher, student: Student) -> None:
        super().__init__()
        if student.row.arch in CLASSIC:
            raise ValueError(
                f"{student.name} has no attention on its top level alone (AIFI), into which DSI injects; fitnet, clock "
                "and the other methods between detectors are for it, too"
            )
        self.options, self.teacher, self.student = options, teacher, student
        self.places, self.loss = PLACES[options.position], LOSSES[options.loss]
        width = teacher.widths(self.seen_size(student.size))[-1]
        make = PROJECTORS[options.projector]
        self.projectors = nn.ModuleDict({place: make(student.row.width, width) for place in self.places})
        self.rule, self.band = _modulation(options, student)
        self.first = options.weight if options.weight is not None else self.band.initial if self.band else STATIC
        for name, value in (("weight", self.first), ("total", 0.0), ("steps", 0.0)):
            self.register_buffer(name, torch.tensor(float(value)))
        self.columns = ("dsi/weight", "dsi/share")

    def check(self, network: nn.Module) -> None:
        parts = network.get_submodule("encoder.aifi").parameters()
        if self.band is not None and not any(parameter.requires_grad for parameter in parts):
            raise ValueError("GAM looks at the gradients of the AIFI, which is frozen (freeze): use gam=none")

    def prepare(self, device: torch.device, dtype: torch.dtype) -> None:
        self.teacher.prepare(device, dtype)

    def seen_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """The size (h, w) in which the teacher sees pictures of ``size``: its grid is then that of F5."""
        if not self.options.pool:
            return size
        return size[0] // 32 * self.teacher.stride, size[1] // 32 * self.teacher.stride

    def seen(self, images: Tensor) -> Tensor:
        """Pictures [B, 3, H, W] uint8 as the teacher sees them, float in 0..1; half the size is an exact 2 x 2 mean."""
        x = images.float() / 255
        h, w = self.seen_size((images.shape[2], images.shape[3]))
        if (h, w) == (images.shape[2], images.shape[3]):
            return x
        if (2 * h, 2 * w) == (images.shape[2], images.shape[3]):
            return F.avg_pool2d(x, 2)
        return F.interpolate(x, size=(h, w), mode="bilinear", align_corners=False, antialias=True)

    def forward(self, student: Outputs, batch: Batch) -> dict[str, Tensor]:
        target = self.teacher(self.seen(batch.images))[-1]
        losses = [self.loss(self.projectors[place](_map(student, place).float()), target) for place in self.places]
        return {self.name: self.weight * torch.stack(losses).mean()}

    @torch.no_grad()
    def after_backward(self, network: nn.Module) -> None:
        """Adds up the share of the AIFI in the gradients of this step."""
        aifi = network.get_submodule("encoder.aifi")
        whole = [*network.parameters(), *(self.parameters() if self.rule == "released" else ())]
        self.total += gam.share(aifi.parameters(), whole)
        self.steps += 1

    def end_epoch(self, epoch: int) -> dict[str, float]:
        """Sets the weight of the next epoch; gives that of this one and its mean share in percent, nan for an epoch
        whose steps were all skipped: it changes nothing."""
        weight, total, steps = (float(getattr(self, name)) for name in ("weight", "total", "steps"))
        share, new = total / steps if steps else math.nan, weight
        if steps and self.band is not None:
            ended = epoch >= self.student.stop
            new = (
                gam.paper(weight, share, self.band)
                if self.rule == "paper"
                else gam.released(weight, share, self.band, ended)
            )
            if share < self.band.low and new > RUNAWAY * self.first:
                warnings.warn(
                    f"GAM: the AIFI has {share:.2g} % of the gradients even with weight {weight:.3g}; rho="
                    f"{self.band.rho:g} is out of reach, and a weight that only grows drowns the detection. Choose a "
                    "smaller rho",
                    stacklevel=2,
                )
        for name, value in (("weight", new), ("total", 0.0), ("steps", 0.0)):
            getattr(self, name).fill_(value)
        return {"dsi/weight": weight, "dsi/share": share}

    def settings(self) -> dict[str, Any]:
        """The options with what stands for their ``none`` and ``auto``."""
        band = {} if self.band is None else {key: getattr(self.band, key) for key in SETTINGS}
        return {**asdict(self.options), "gam": self.rule, "weight": self.first, **band}

    def report(self) -> list[str]:
        h, w = self.seen_size(self.student.size)
        where = ", ".join(self.places).upper()
        lines = [f"DSI: {where} follow{'s' if len(self.places) == 1 else ''} {self.teacher.name}, seen at {h} x {w}"]
        if self.band is None:
            return [*lines, f"  fixed weight {self.first:g}"]
        return [
            *lines,
            f"  GAM ({self.rule} rule): weight {self.first:g} at first, then such that the AIFI has "
            f"{self.band.low:g} to {self.band.high:g} % of the gradients",
        ]

    def licence(self) -> str:
        return f"taught by {self.teacher.name} (DSI): {self.teacher.licence or 'licence not stated'}"


def _map(student: Outputs, place: str) -> Tensor:
    """One of the student's maps, [B, D, h, w]."""
    if place != "f5":
        return student.features[int(place[1]) - 3]
    assert student.aifi is not None, "this detector has no AIFI"
    return student.aifi


def _modulation(options: DSIOptions, student: Student) -> tuple[str, Band | None]:
    """The rule of GAM and its settings; ("none", None) for a fixed weight. Raises ``ValueError`` for missing ones."""
    family, _, size = student.name.partition("-")
    reaches = "f5" in PLACES[options.position]  # else a larger weight makes the AIFI's share smaller
    known = BANDS.get(size) if family in FAMILIES and reaches else None
    rule = options.gam
    if not reaches and (rule in ("released", "paper") or options.rho is not None):
        raise ValueError(
            f"position={options.position}: GAM looks at the AIFI, which this loss does not reach; use position=f5 or "
            "hybrid, or gam=none and a fixed weight"
        )
    if rule == "auto":
        rule = "none" if known is None and options.rho is None else "released"
    idle = [] if rule == "released" else ["default"] if rule == "paper" else SETTINGS
    for name in idle:
        if getattr(options, name) is not None:
            raise ValueError(f"{name}={getattr(options, name):g} is nothing here: {_NEEDS[rule]}")
    if rule == "none":
        return rule, None
    if known is None and options.rho is None:
        raise ValueError(
            f"gam={rule}: no settings are known for {student.name}; give the wanted share of the AIFI in percent, for "
            "example rho=5. A run with gam=none writes the share that it has without (dsi/share in results.csv)"
        )
    rho = options.rho if options.rho is not None else known.rho if known else 0.0
    delta = options.delta if options.delta is not None else known.delta if known and options.rho is None else rho / 10
    first = options.weight if options.weight is not None else known.initial if known else STATIC
    if not first > 0:
        raise ValueError(f"weight={first:g}: GAM multiplies it and never leaves 0; expected a number above 0")
    last = options.default if options.default is not None else known.default if known else first
    return rule, Band(rho, delta, first, last)


_NEEDS = {
    "none": "the weight is fixed (gam=none, or no rho where none is known); give gam=released and rho, or leave it out",
    "paper": "the paper's rule has no default weight; leave it out, or gam=released",
}
FAMILIES = ("rtdetrv4", "deim", "dfine")
"""whose sizes the released settings are for: DEIM is RT-DETRv4 without a teacher, D-FINE DEIM with another loss"""


class PerPosition(nn.Module):
    """A module over the last axis, applied to a map: [B, D, h, w] -> [B, D', h, w]."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)  # type: ignore[no-any-return]


PROJECTORS: dict[str, Callable[[int, int], nn.Module]] = {
    "linear": lambda inputs, outputs: PerPosition(nn.Linear(inputs, outputs)),
    "conv1x1": lambda inputs, outputs: ConvNorm(inputs, outputs),
    "mlp": lambda inputs, outputs: PerPosition(MLP(inputs, outputs, outputs, 2, F.gelu)),
}
"""student's width, teacher's width -> the projector (Table 4)"""


def cosine(x: Tensor, target: Tensor) -> Tensor:
    """One minus the cosine at every position, mean; [B, D, h, w] each, the target resized to the student's grid."""
    return 1 - F.cosine_similarity(x, fitted(target, x), dim=1).mean()


def mse(x: Tensor, target: Tensor) -> Tensor:
    """Squared difference, mean over positions and channels."""
    return F.mse_loss(x, fitted(target, x))


LOSSES = {"cosine": cosine, "mse": mse}
