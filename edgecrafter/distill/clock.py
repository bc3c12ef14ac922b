"""CLoCKDistill: memory where objects are (LCMD) and answers to the same questions (TCLD); KD-DETR is the latter without
the objects as questions.

B images, K objects of the fullest image, L levels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from edgecrafter.distill import logits, memory, questions
from edgecrafter.distill.base import Distiller, Student
from edgecrafter.distill.detector import DetectorTeacher, Level
from edgecrafter.distill.neck import STRIDES, at_least_zero, known, objects_of
from edgecrafter.distill.questions import Ways
from edgecrafter.models.detr.padding import masks_of
from edgecrafter.types import Batch, LayerOutput, Outputs, QueryGroup

MOST = 300
"""objects per image that are asked for, at most"""


@dataclass
class ClockOptions:
    """Options of ``--distill clock``, such as ``--distill clock,teacher=runs/detect/large``. Defaults are the paper's,
    or, where it gives none, those of ``spec/clockdistill``."""

    teacher: str = ""
    """who teaches: the run, file or name of a detector with the same classes"""
    teacher_weights: str = "pretrained"
    """pretrained (its own) or none (random, as a control)"""
    lcmd: bool = True
    """memory distillation"""
    alpha: float | None = None
    """weight of tokens on objects; none: 5e-5 for 256 channels on 4 levels (the paper), in proportion for others"""
    beta: float | None = None
    """weight of the other tokens; none: 1e-7, in proportion"""
    mask: str = "location"
    """location (by objects) or none (all tokens alike, weight 1; Table 1)"""
    tcld: bool = True
    """logit distillation"""
    cls: float = 1.0
    """weight of the classes"""
    l1: float = 5.0
    giou: float = 2.0
    temperature: float = 10.0
    """of the classes' softmax"""
    classes: str = "softmax"
    """softmax over the classes, or sigmoid (each for itself; with a single class always)"""
    stage: str = "same"
    """which layer of the teacher a layer follows: the same, or the final one"""
    target: bool = True
    """ask for the objects themselves"""
    copies: int = 3
    """how often they count"""
    specific: bool = True
    """ask what the teacher asks"""
    general: int | None = None
    """random questions per image; none: as many as the teacher has queries"""

    def __post_init__(self) -> None:
        known("mask", self.mask, ("location", "none"))
        known("classes", self.classes, ("softmax", "sigmoid"))
        known("stage", self.stage, ("same", "final"))
        at_least_zero(self, ["alpha", "beta", "cls", "l1", "giou", "general", "copies"])
        if not self.temperature > 0:
            raise ValueError(f"temperature={self.temperature}: expected a number above 0")


@dataclass
class KDDETROptions:
    """Options of ``--distill kd-detr``: TCLD without the objects as questions, and nothing else (KD-DETR, Wang et al.
    2024, in the form of ``clock``, so that a comparison isolates what is new in it)."""

    teacher: str = ""
    """who teaches: the run, file or name of a detector with the same classes"""
    teacher_weights: str = "pretrained"
    """pretrained (its own) or none (random, as a control)"""
    cls: float = 1.0
    """weight of the classes"""
    l1: float = 5.0
    giou: float = 2.0
    temperature: float = 10.0
    stage: str = "same"
    """which layer of the teacher a layer follows: the same, or the final one"""
    general: int | None = None
    """random questions per image; none: as many as the teacher has queries"""

    def as_clock(self) -> ClockOptions:
        """The same as options of ``clock``."""
        return ClockOptions(**asdict(self), lcmd=False, target=False)

    def __post_init__(self) -> None:
        self.as_clock()


class Clock(Distiller):
    """Both parts, or one of them; the teacher looks at the pictures once."""

    name = "clock"
    table: Tensor
    seen: Tensor

    def __init__(self, options: ClockOptions, teacher: DetectorTeacher, student: Student, seed: int) -> None:
        super().__init__()
        teacher.same_classes(student.labels)
        self.options, self.teacher, self.seed = options, teacher, seed
        self.strides = STRIDES[student.row.levels]
        given = teacher.levels()["memory"]
        self.places = memory.paired(self.strides, [level.stride for level in given])
        self.alpha, self.beta = _weights(options, given)
        wide, own = given[0].width, student.row.width
        self.adapter = nn.Linear(own, wide) if options.lcmd and own != wide else nn.Identity()
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        self._ask(options, student)
        self.said: Outputs | None = None
        self.importance: list[Tensor] = []

    def _ask(self, options: ClockOptions, student: Student) -> None:
        """What is needed for questions: all of it frozen, but the way from the teacher's contents to the student's."""
        decoder = self.teacher.network.get_submodule("decoder")
        self.ways = _student_ways(student)
        theirs = questions.ways_of(decoder) if options.tcld else self.ways
        same = theirs.width == self.ways.width
        self.query_project = nn.Identity() if same or not options.tcld else nn.Linear(theirs.width, self.ways.width)
        rng = torch.Generator().manual_seed(self.seed)
        table = questions.class_table(decoder, len(student.labels), rng) if options.tcld and options.target else None
        self.register_buffer("table", torch.zeros(0) if table is None else table)
        self.general = options.general
        if options.tcld and options.general is None:
            queries: Any = decoder.queries
            self.general = queries if isinstance(queries, int) else queries.num_embeddings

    def prepare(self, device: torch.device, dtype: torch.dtype) -> None:
        self.teacher.prepare(device, dtype)

    def probes(self, batch: Batch) -> list[QueryGroup]:
        """Asks the teacher, and gives the same questions for the student."""
        self.seen += 1
        groups = self._questions(batch) if self.options.tcld else {}
        self.said = self.teacher(batch.images, [group for group, _ in groups.values()], batch.valid)
        if self.options.tcld and self.options.specific:
            decoder = self.teacher.network.get_submodule("decoder")
            own = questions.specific(decoder, self.said)
            groups = {"specific": (own, torch.ones_like(own.boxes[..., 0])), **groups}
        self.importance = [weight for _, weight in groups.values()]
        return [questions.translated(g, self.ways, self.query_project, kind) for kind, (g, _) in groups.items()]

    def _questions(self, batch: Batch) -> dict[str, tuple[QueryGroup, Tensor]]:
        """General and target questions for the teacher, and how much each counts [B, G]."""
        decoder, device = self.teacher.network.get_submodule("decoder"), batch.images.device
        found: dict[str, tuple[QueryGroup, Tensor]] = {}
        if self.general:
            rng = torch.Generator().manual_seed(1_000_003 * self.seed + int(self.seen))
            group = questions.general(decoder, len(batch.images), self.general, rng, device)
            found["general"] = group, torch.ones_like(group.boxes[..., 0])
        counts = [min(len(t.labels), MOST) for t in batch.targets]
        if self.options.target and max(counts):
            pad = nn.utils.rnn.pad_sequence
            labels = pad([t.labels[:MOST] for t in batch.targets], batch_first=True)
            boxes = pad([t.boxes[:MOST].float() for t in batch.targets], batch_first=True)
            real = torch.arange(labels.shape[1], device=device) < torch.tensor(counts, device=device)[:, None]
            group = questions.target(decoder, self.table, labels, boxes, real)
            found["target"] = group, self.options.copies * real.float()
        return found

    def forward(self, student: Outputs, batch: Batch) -> dict[str, Tensor]:
        said, self.said = self.said, None
        assert said is not None, "probes come first"
        losses: dict[str, Tensor] = {}
        if self.options.lcmd:
            losses["clock_memory"] = self.remembered(student.memory, said.memory, batch)
        if self.options.tcld:
            answers = [said.layers] if self.options.specific else []
            pairs = [*answers, *(group.layers for group in said.groups)], [group.layers for group in student.groups]
            losses |= self.answered(*pairs)
        return losses

    def remembered(self, own: Sequence[Tensor], given: Sequence[Tensor], batch: Batch) -> Tensor:
        """LCMD (section 3.2): weighted squared differences of the memories."""
        teachers = [given[place] for place in self.places]
        students = [self.adapter(x.float().movedim(1, -1)).movedim(-1, 1) for x in own]
        real = [None] * len(teachers) if batch.valid is None else masks_of(batch.valid, teachers)
        if self.options.mask == "none":
            return memory.plain(students, teachers, real)
        boxes, present = objects_of(batch)
        rows = zip(teachers, real, strict=True)
        regions = [memory.regions(boxes, present, (t.shape[2], t.shape[3]), mask) for t, mask in rows]
        objects, rest = memory.located(students, teachers, regions)
        return self.alpha * objects + self.beta * rest

    def answered(
        self, teachers: Sequence[Sequence[LayerOutput]], students: Sequence[Sequence[LayerOutput]]
    ) -> dict[str, Tensor]:
        """TCLD (section 3.3, Eq. 9): differences of the answers of all groups, stage by stage, each stage divided by
        the sum of the weights of all its questions."""
        options, names = self.options, ("classes", "l1", "giou")
        independent = options.classes == "sigmoid" or students[0][0].logits.shape[-1] == 1
        totals = [torch.zeros((), device=students[0][0].logits.device) for _ in names]
        for t, s in logits.stages(teachers[0], students[0], options.stage == "final"):
            groups = zip(teachers, students, self.importance, strict=True)
            sums = [logits.compare(a[t], b[s], w, options.temperature, independent) for a, b, w in groups]
            joined = logits.joined(sums)
            weight = self.mean(joined.weight.detach()).clamp(min=1e-6)
            totals = [total + value / weight for total, value in zip(totals, joined[:3], strict=True)]
        weights = (options.cls, options.l1, options.giou)
        rows = zip(names, totals, weights, strict=True)
        return {f"clock_{name}": weight * total for name, total, weight in rows}

    def settings(self) -> dict[str, Any]:
        return {**asdict(self.options), "alpha": self.alpha, "beta": self.beta, "general": self.general}

    def report(self) -> list[str]:
        parts = [f"memory (alpha {self.alpha:.3g}, beta {self.beta:.3g}, mask {self.options.mask})"] * self.options.lcmd
        asks = [n for n in ("target", "specific") if getattr(self.options, n)] + ["general"] * bool(self.general)
        parts += [f"answers to {', '.join(asks)} questions"] * self.options.tcld
        return [f"CLoCKDistill: {' and '.join(parts)} follow {self.teacher.name}"]

    def licence(self) -> str:
        return f"taught by {self.teacher.name} (CLoCKDistill): {self.teacher.licence or 'licence not stated'}"


def _weights(options: ClockOptions, levels: Sequence[Level]) -> tuple[float, float]:
    """Alpha and beta; the paper's are for 256 channels on 4 levels."""
    factor = 1024 / (levels[0].width * len(levels))
    alpha = memory.ALPHA * factor if options.alpha is None else options.alpha
    return alpha, memory.BETA * factor if options.beta is None else options.beta


def _student_ways(student: Student) -> Ways:
    """How the student's decoder is asked."""
    width = student.row.dec_width or student.row.width
    kinds = {"dab": "empty", "deformable": "placed", "dino": "learned"}
    return Ways(kinds.get(student.row.arch, "memory"), width)
