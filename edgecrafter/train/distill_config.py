"""Every option of a distillation (stage 2), with a line of help each. Nothing heavy is imported: help is quick."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any

from edgecrafter.train.config import PRECISIONS, choice, unknown

OPTIMIZERS = ("lars", "adamw")


@dataclass
class DistillConfig:
    """Teach a small vision transformer to give the features of a teacher, from pictures without labels. It is what
    ``edgecrafter train --backbone`` starts from."""

    student: str = "ecvit-t"
    """the vision transformer that learns: ecvit-t, t+, s or s+ (of ecdet-s, m, l, x), ecvit-p or ecvit-n"""
    teacher: str = ""
    """a model file or the folder of a run (edgecrafter teach, or any detector), or a backbone as it is: dinov3-b,
    dinov2-s, timm:NAME, hf:OWNER/NAME"""
    images: list[str] = field(default_factory=list)
    """pictures, labels are not used: folders (read with all below), data sets (their training pictures), or text files
    with a path per line"""
    epochs: int | None = None
    """passes over the pictures; none: 50, more for few pictures"""
    batch: int | None = None
    """pictures per step and process; none: 128 in all, less for few pictures"""
    accumulate: int = 1
    """batches whose gradients are added up for one step"""
    imgsz: int = 224
    """side of the square views in pixels, a multiple of 16"""
    optimizer: str = "lars"
    """lars (the paper's) or adamw (Table 7)"""
    lr: float | None = None
    """base learning rate, multiplied by the root of the effective batch / 1536; none: 4.0 (9.0 for ecvit-s and s+) for
    lars, 0.0035 for adamw"""
    weight_decay: float | None = None
    """none: 1e-6 for lars, 1e-4 for adamw; norms and biases have none"""
    warmup: int = 5
    """epochs in which the learning rate rises, a tenth of all at most"""
    clip: float = 1.0
    """largest total norm of the gradients; 0 does not limit it"""
    teacher_blocks: int = 2
    """how many of the teacher's last blocks are targets (Table 6)"""
    student_blocks: int = 1
    """how many of the student's last blocks learn them (Table 6)"""
    norm: bool = True
    """whether the blocks of a timm or Hugging Face teacher are read through its own final norm"""
    teacher_weights: str = "pretrained"
    """weights of such a teacher: pretrained (fetched by that library), none (random: a control), or a file"""
    registers: int | None = None
    """register tokens of the student (Table 7); none: 1"""
    stem: str | None = None
    """its patch embedding (Table 8): conv or vanilla; none: conv"""
    dilation: int | None = None
    """dilation of the last convolution of its stem (Table 8); none: 1"""
    weights: str = "none"
    """what the student starts from: none (random), or the file or name of a vision transformer or a detector"""
    mixup: float = 1.0
    """probability that a batch is mixed with itself"""
    device: str = ""
    """cpu, cuda, cuda:1 or mps; empty: a GPU if there is one. Several GPUs: start with torchrun"""
    workers: int | None = None
    """processes that load pictures, 0 loads in the main process; none: up to 8, by the number of CPU cores"""
    seed: int = 0
    """the same seed, pictures and options give the same run (on a CPU to the bit)"""
    resume: bool | str = False
    """continue an interrupted run: true for the newest one in `project`, or the folder of the run"""
    project: str = "runs/distill"
    """folder in which runs are stored"""
    name: str = "distill"
    """name of this run's folder; a number is appended when it exists"""
    exist_ok: bool = False
    """write into the folder even if it holds an earlier run, whose files are replaced"""
    val_every: int = 1
    """epochs between two looks at pictures that are kept out"""
    precision: str = "auto"
    """auto, fp32, bf16 or fp16; auto is bf16 on GPUs that have it and fp32 on CPUs. The loss is always fp32"""
    compile: bool = False
    """compile teacher and student (torch.compile): slow start, faster steps on a GPU"""
    advise: list[str] = field(default_factory=list)
    """do not train: compare these teachers for the student on a sample of the pictures"""

    def __post_init__(self) -> None:
        choice("precision", self.precision, PRECISIONS)
        choice("optimizer", self.optimizer, OPTIMIZERS)
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if value is not None and not value >= least:
                raise ValueError(f"{name}={value}: expected a number of at least {least}")
        if self.imgsz < 32 or self.imgsz % 16:
            raise ValueError(f"imgsz={self.imgsz}: expected a multiple of 16, 32 or more")
        if not 0 <= self.mixup <= 1:
            raise ValueError(f"mixup={self.mixup}: expected a number between 0 and 1")

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as written to ``args.yaml`` and into checkpoints."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> DistillConfig:
        """The reverse of ``to_dict``. Raises ``ValueError`` for unknown names."""
        unknown(cls, values)
        return cls(**values)

    def given(self) -> dict[str, Any]:
        """The options that differ from their defaults."""
        plain = DistillConfig()
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != getattr(plain, f.name)}


_LEAST = {
    "epochs": 1, "batch": 1, "accumulate": 1, "lr": 0, "weight_decay": 0, "warmup": 0, "clip": 0, "teacher_blocks": 1,
    "student_blocks": 1, "registers": 0, "dilation": 1, "workers": 0, "seed": 0, "val_every": 1,
}  # fmt: skip
