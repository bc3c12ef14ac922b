"""Every option of a training run, with a line of help each. ``None``: taken from the recipe (``recipes.py``)."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from typing import Any, TypeVar

from edgecrafter.geometry.sides import input_size

PRECISIONS = ("auto", "fp32", "bf16", "fp16")
C = TypeVar("C", bound="TrainConfig")
AUGMENTATIONS = ("default", "strong", "light", "none")


@dataclass
class TrainConfig:
    """Options of ``edgecrafter train`` and ``edgecrafter.train``."""

    model: str = "ecdet-s"
    """name of a model (see `edgecrafter models`), or a weight file to start from"""
    data: str = ""
    """data set: a folder, a data.yaml or a COCO json; the format is recognised by looking at it"""
    epochs: int | None = None
    """passes over the training pictures; every phase of the schedule follows from it"""
    batch: int | None = None
    """pictures per step and process; learning rates follow the effective batch (batch x accumulate x processes)"""
    accumulate: int = 1
    """batches whose gradients are added up for one step: a large effective batch in little memory"""
    imgsz: int | list[int] | None = None
    """input size in pixels, one number or [height, width], multiples of 32; models that keep the ratio of pictures take
    limits, one number for the short side or [short, long]; none: the model's own"""
    device: str = ""
    """cpu, cuda, cuda:1 or mps; empty: a GPU if there is one. Several GPUs: start with torchrun"""
    workers: int | None = None
    """processes that load pictures, 0 loads in the main process; none: up to 8, by the number of CPU cores"""
    seed: int = 0
    """the same seed, data and options give the same run (on a CPU to the bit)"""
    resume: bool | str = False
    """continue an interrupted run: true for the newest one in `project`, or the folder of the run"""
    project: str = ""
    """folder in which runs are stored; empty: runs/detect, runs/segment or runs/pose, by the model's task"""
    name: str = "train"
    """name of this run's folder; a number is appended when it exists"""
    exist_ok: bool = False
    """write into the folder even if it holds an earlier run, whose files are replaced"""
    weights: str = "auto"
    """what to start from: auto (the released weights of the name, or the file given as `model`; for names whose weights
    cannot be fetched the pretrained backbone, if it is another library's), none, or a file or name; a segmentation or
    pose model may start from a detector"""
    backbone: str | None = None
    """a distilled vision transformer to start from (its name, file or the folder of `edgecrafter distill`), or another
    library's image backbone to build the detector around: dinov3-s, dinov2-b, timm:NAME, hf:OWNER/NAME; the rest of
    the network is then new"""
    backbone_weights: str = "auto"
    """weights of another library's backbone, asked for or the model's own: pretrained (fetched by that library), none
    (random), or a file; auto: pretrained, but random for the model's own with weights=none"""
    norm: bool | None = None
    """whether its blocks are read through its own final norm; none: yes"""
    queries: int | None = None
    """number of queries, the largest number of objects that can be found in a picture; none: the model's own"""
    registers: int | None = None
    """register tokens of the vision transformer, 0 or more (Table 7 of the paper); none: 1, as published"""
    fused: int | None = None
    """how many of its last blocks make the feature map (Table 9); none: 2"""
    fusion: str | None = None
    """how they are fused (Table 9): mean or concat; none: mean"""
    stem: str | None = None
    """its patch embedding (Table 8): conv (four convolutions) or vanilla (one of 16 x 16); none: conv"""
    dilation: int | None = None
    """dilation of the last convolution of the stem (Table 8); none: 1"""
    enc_layers: int | None = None
    """layers of the encoder of dab-detr, deformable-detr and dino (Table 6 of CLoCKDistill); none: 6"""
    det_layers: int | None = None
    """layers of the decoder of boxes and masks; none: the model's own"""
    lr: float | None = None
    """learning rate of everything but the backbone, for the batch of the model's recipe (32 for ecdet-s, 64 for
    ecpose-s, 16 for sizes n and p); the plan that is printed says what it is with yours"""
    backbone_lr: float | None = None
    """learning rate of the backbone, a vision transformer or another library's network, for the same batch"""
    weight_decay: float | None = None
    """decay of AdamW; norms and biases have none"""
    warmup: int | None = None
    """steps in which the learning rate rises from 0"""
    clip: float | None = None
    """largest total norm of the gradients; 0 does not limit it"""
    ema: float | None = None
    """decay of the averaged weights, which are the ones evaluated and kept; 0 averages nothing"""
    augment: str = "default"
    """default (the recipe's), strong (every picture mixed), light (colours and flip) or none; the last epochs only
    flip"""
    mosaic: float | None = None
    """probability that a training picture is a mosaic of four, in the first half of the strong phase"""
    mixup: float | None = None
    """probability that a batch is mixed with itself, in the first half of the strong phase"""
    paste: float | None = None
    """probability that objects of another picture are pasted into a training picture, in the same phase"""
    distill: list[str] = field(default_factory=list)
    """distillation while training: a method and its options, such as dsi,teacher=dinov3-b (RT-DETRv4's Deep Semantic
    Injector); the trained model is the same without it. Methods and options are in docs/distillation.md"""
    qat: bool = False
    """quantisation-aware: fine-tune trained weights for INT8 (`export --int8`), which are rounded while they learn; 5
    epochs, light augmentation and a tenth of the learning rate unless given; scores are those in 8 bits"""
    noise: str = "paper"
    """denoising noise of pose models: paper (in every direction, as far as OKS says) or released (the authors' code)"""
    patience: int = 0
    """stop after so many evaluations without a better score; 0 never"""
    val_every: int = 1
    """epochs between two evaluations; the last epoch is always evaluated, and the last with strong augmentation"""
    reload_best: bool | None = None
    """go back to the best weights when the strong augmentation ends; none: as the recipe of the model does (yes for
    ecdet, ecinsseg and rtdetrv4; no for ecpose and most others)"""
    freeze: list[str] = field(default_factory=list)
    """parts that stay as they are: beginnings of parameter names (backbone, encoder, ...), or `norm` for all
    batch-norm statistics"""
    precision: str = "auto"
    """auto, fp32, bf16 or fp16; auto is bf16 on GPUs that have it and fp32 on CPUs. Losses are always fp32"""
    compile: bool = False
    """compile backbone and encoder (torch.compile): slow start, faster steps on a GPU"""
    deterministic: bool = False
    """ask torch for deterministic kernels on a GPU where they exist: slower"""

    def __post_init__(self) -> None:
        for name in ("distill", "freeze"):
            setattr(self, name, listed(getattr(self, name)))
        choice("precision", self.precision, PRECISIONS)
        choice("augment", self.augment, AUGMENTATIONS)
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if value is not None and not value >= least:  # also refuses nan
                raise ValueError(f"{name}={value}: expected a number of at least {least}")
        for name in ("mosaic", "mixup", "paste", "ema"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"{name}={value}: expected a number between 0 and 1")
        if self.qat and self.compile:
            raise ValueError("qat and compile do not go together: compiled layers cannot be rounded. Leave compile out")
        if self.imgsz is not None:
            self.imgsz = _early(self.imgsz, self.model)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as written to ``args.yaml`` and into checkpoints."""
        return asdict(self)

    @classmethod
    def from_dict(cls: type[C], values: Mapping[str, Any]) -> C:
        """The reverse of ``to_dict``. Raises ``ValueError`` for unknown names."""
        unknown(cls, values)
        return cls(**values)

    def given(self) -> dict[str, Any]:
        """The options that differ from their defaults."""
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != _default(f)}


def unknown(options: Any, values: Mapping[str, Any]) -> None:
    """Raises ``ValueError`` for a name that is no field of the dataclass ``options``; it names the nearest one."""
    known = [each.name for each in fields(options)]
    for name in values:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"Did you mean {near[0]!r}?" if near else f"Known: {', '.join(known)}."
            raise ValueError(f"unknown option {name!r}. {hint}")


ARCHITECTURE = ("queries", "registers", "fused", "fusion", "stem", "dilation", "norm", "enc_layers", "det_layers")
"""options that replace fields of the model's row in ``models.sizes``"""

_LEAST = {
    "epochs": 1, "batch": 1, "accumulate": 1, "workers": 0, "seed": 0, "queries": 1, "registers": 0, "fused": 1,
    "dilation": 1, "enc_layers": 1, "det_layers": 1, "lr": 0, "backbone_lr": 0, "weight_decay": 0, "warmup": 0,
    "clip": 0, "patience": 0, "val_every": 1,
}  # fmt: skip


def _early(imgsz: int | list[int], model: str) -> int | list[int]:
    """``imgsz`` of a model that is given by name, looked at before anything is read; of a file it is left for later."""
    from edgecrafter import families

    known = families.find(model)
    return imgsz if known is None else list(input_size(imgsz, known.family.input.resize))


def listed(value: list[str] | str | None) -> list[str]:
    """A list as it is, or written as ``a,b``; ``none`` is an empty one."""
    if isinstance(value, str):
        return [] if value.lower() in ("", "none") else [each.strip() for each in value.split(",")]
    return list(value or ())


def choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name}={value!r}: choose one of {', '.join(allowed)}")


def _default(option: Any) -> Any:
    return option.default if option.default is not MISSING else option.default_factory()
