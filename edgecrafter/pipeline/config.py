"""Every option of a pipeline, with a line of help each; what belongs to one stage is passed on to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from edgecrafter.geometry.sides import input_size
from edgecrafter.train.config import PRECISIONS, choice, unknown

TRANSFERS = ("segment", "pose")
FREE_ON_RESUME = ("data", "images", "device", "workers", "resume", "project", "name", "exist_ok")
"""options that may differ when a pipeline goes on"""


@dataclass
class PipelineConfig:
    """All stages in one go: adapt a teacher to your data, distil it into the detector's vision transformer, train the
    detector from that, and train the same detector without distillation to compare. Says before it starts how long
    each stage will take; goes on after an interruption; ends with one report."""

    model: str = "ecdet-s"
    """the detector: its name, or a weight file to start from"""
    data: str = ""
    """data set: a folder, a data.yaml or a COCO json; the format is recognised by looking at it"""
    teacher: str = "auto"
    """auto (ecteacher-s or -b, as the paper pairs them; ecdet-n for ecdet-p, ecdet-s for ecdet-n), ecteacher-s,
    ecteacher-b, a detector such as ecdet-n, a backbone (dinov2-s, timm:NAME, hf:OWNER/NAME), or a finished teacher: the
    folder of its run or a file"""
    adapt: bool = True
    """stage 1: train the teacher on the data; if false it teaches as it is"""
    backbone_weights: str = "pretrained"
    """weights of another library's backbone: pretrained (fetched by that library), none (random), or a file"""
    images: list[str] = field(default_factory=list)
    """pictures for stage 2 besides the training pictures of the data: folders, data sets, or text files of paths"""
    weights: str = "auto"
    """what the detector starts from, with and without distillation: auto (the released weights of the name, or the file
    given as `model`), none (random), or a file or name"""
    compare: bool = True
    """also train the detector without distillation, with the same options and epochs"""
    tasks: list[str] = field(default_factory=list)
    """further models, trained from the distilled detector: segment, pose; the data need masks or keypoints"""
    epochs: int | None = None
    """epochs of the detector in every arm; none: as `train` chooses"""
    imgsz: int | list[int] | None = None
    """input size of teacher and detector in pixels, one number or [height, width], multiples of 32; none: their own"""
    teach: list[str] = field(default_factory=list)
    """options of stage 1, such as teach=epochs=20,fused=1 (see edgecrafter teach --help)"""
    distill: list[str] = field(default_factory=list)
    """options of stage 2, such as distill=optimizer=adamw,teacher_blocks=3 (see edgecrafter distill --help); with fewer
    than 5000 steps the pipeline takes adamw at lr=0.03 unless one of the two is given"""
    train: list[str] = field(default_factory=list)
    """options of the detector in every arm, such as train=lr=1e-3 (see edgecrafter train --help)"""
    device: str = ""
    """cpu, cuda, cuda:1 or mps; empty: a GPU if there is one. Several GPUs: start with torchrun"""
    workers: int | None = None
    """processes that load pictures, 0 loads in the main process; none: up to 8, by the number of CPU cores"""
    seed: int = 0
    """of every stage"""
    precision: str = "auto"
    """auto, fp32, bf16 or fp16; auto is bf16 on GPUs that have it and fp32 on CPUs"""
    dry: bool = False
    """only say what would be done and how long it would take"""
    resume: bool | str = False
    """continue an interrupted pipeline: true for the newest one in `project`, or its folder"""
    project: str = "runs/pipeline"
    """folder in which pipelines are stored"""
    name: str = "pipeline"
    """name of this pipeline's folder; a number is appended when it exists"""
    exist_ok: bool = False
    """write into the folder even if it holds an earlier pipeline, whose files are replaced; an ablation from its
    `ablate.yaml` is removed"""

    def __post_init__(self) -> None:
        choice("precision", self.precision, PRECISIONS)
        for task in self.tasks:
            choice("tasks", task, TRANSFERS)
        if self.imgsz is not None:
            self.imgsz = list(input_size(self.imgsz))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as written to ``pipeline.json``."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> PipelineConfig:
        """The reverse of ``to_dict``. Raises ``ValueError`` for unknown names."""
        unknown(cls, values)
        return cls(**values)

    def given(self) -> dict[str, Any]:
        """The options that differ from their defaults."""
        plain = PipelineConfig()
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != getattr(plain, f.name)}
