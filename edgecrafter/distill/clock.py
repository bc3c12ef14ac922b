"""CLoCKDistill: memory where objects are (LCMD) and answers to the same questions (TCLD); KD-DETR is the latter without
the objects as questions.

B images, K objects of the fullest image, L levels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from edgecrafter.distill import logits, memory, questions
from edgecrafter.distill.base import Distiller, Student
from edgecrafter.distill.clock_options import ClockOptions
from edgecrafter.distill.detector import DetectorTeacher
from edgecrafter.distill.neck import STRIDES, objects_of
from edgecrafter.distill.questions import Ways
from edgecrafter.distill.targets import Targets
from edgecrafter.models.detr.padding import masks_of
from edgecrafter.types import Batch, LayerOutput, Outputs, QueryGroup


class Clock(Distiller):
    """Both parts, or one of them; the teacher looks at the pictures once."""

    name = "clock"
    title = "CLoCKDistill"
    seen: Tensor
    """batches, which decide about random questions"""
    sums: Tensor
    """of this epoch: squared differences of the memory on objects, of the rest, and the number of batches"""

    def __init__(self, options: ClockOptions, teacher: DetectorTeacher, student: Student, seed: int) -> None:
        super().__init__()
        self.options, self.teacher, self.seed = options, teacher, seed
        self.strides = STRIDES[student.row.levels]
        given = teacher.levels()["memory"]
        self.places = memory.paired(self.strides, [level.stride for level in given])
        wide, own = given[0].width, student.row.width
        self.alpha, self.beta = _weights(options, wide, len(self.places))
        self.adapter = nn.Linear(own, wide) if options.lcmd and own != wide else nn.Identity()
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        self.register_buffer("sums", torch.zeros(3))
        self.columns = (f"{self.name}/objects", f"{self.name}/rest") if options.lcmd and self.located else ()
        self.independent = options.classes == "sigmoid" or len(student.labels) == 1
        self.targets: Targets | None = None
        self.query_project: nn.Module = nn.Identity()
        self.general = 0
        if options.tcld:
            self._ask(options, student)
        self.said: Outputs | None = None
        self.importance: list[Tensor] = []

    def _ask(self, options: ClockOptions, student: Student) -> None:
        """What is needed for questions: all of it frozen, but the way from the teacher's contents to the student's."""
        self.teacher.same_classes(student.labels)
        theirs, self.ways = questions.ways_of(self.decoder), _student_ways(student)
        questions.check(theirs, self.ways)
        if options.target:
            self.targets = Targets(self.decoder, len(student.labels), options.mode, self.seed)
        carried = options.target or self.ways.contents != "memory"  # else no content of the teacher is needed
        if carried and theirs.width != self.ways.width:
            self.query_project = nn.Linear(theirs.width, self.ways.width)
        queries: Any = self.decoder.queries
        count = queries if isinstance(queries, int) else queries.num_embeddings
        self.general = count if options.general is None else options.general

    @property
    def decoder(self) -> Any:
        """The teacher's."""
        return self.teacher.network.get_submodule("decoder")

    @property
    def located(self) -> bool:
        """Whether the memory counts by objects."""
        return self.options.mask == "location"

    def prepare(self, device: torch.device, dtype: torch.dtype) -> None:
        self.teacher.prepare(device, dtype)

    def probes(self, batch: Batch) -> list[QueryGroup]:
        """Asks the teacher, and gives the same questions for the student."""
        self.seen += 1
        groups = self._questions(batch) if self.options.tcld else {}
        self.said = self.teacher(batch.images, [group for group, _ in groups.values()], batch.valid)
        if self.options.tcld and self.options.specific:
            own = questions.specific(self.decoder, self.said)
            groups = {"specific": (own, torch.ones_like(own.boxes[..., 0])), **groups}
        self.importance = [weight for _, weight in groups.values()]
        return [
            questions.translated(group, self.ways, self.query_project, own=not kind.startswith("target"))
            for kind, (group, _) in groups.items()
        ]

    def _questions(self, batch: Batch) -> dict[str, tuple[QueryGroup, Tensor]]:
        """General and target questions for the teacher, and how much each counts [B, G]."""
        options, device = self.options, batch.images.device
        rng = torch.Generator().manual_seed(1_000_003 * self.seed + int(self.seen))
        found: dict[str, tuple[QueryGroup, Tensor]] = {}
        if self.general:
            group = questions.general(self.decoder, len(batch.images), self.general, rng, device)
            found["general"] = group, torch.ones_like(group.boxes[..., 0])
        if self.targets is not None:
            copies = self.targets.copies(self.decoder, batch, options.copies, options.jitter, rng)
            found |= {f"target {i}": each for i, each in enumerate(copies)}
        return found

    def forward(self, student: Outputs, batch: Batch) -> dict[str, Tensor]:
        said, self.said = self.said, None
        assert said is not None, "probes come first"
        losses: dict[str, Tensor] = {}
        if self.options.lcmd:
            losses[f"{self.name}_memory"] = self.remembered(student.memory, said.memory, batch)
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
        if not self.located:
            return memory.plain(students, teachers, real)
        boxes, present = objects_of(batch)
        rows = zip(teachers, real, strict=True)
        regions = [memory.regions(boxes, present, (t.shape[2], t.shape[3]), mask) for t, mask in rows]
        objects, rest = memory.located(students, teachers, regions)
        self.sums += torch.stack([objects, rest, torch.ones_like(rest)]).detach()
        return self.alpha * objects + self.beta * rest

    def answered(
        self, teachers: Sequence[Sequence[LayerOutput]], students: Sequence[Sequence[LayerOutput]]
    ) -> dict[str, Tensor]:
        """TCLD (section 3.3, Eq. 9): differences of the answers of all groups, stage by stage, each stage divided by
        the sum of the weights of all its questions."""
        options, names = self.options, ("classes", "l1", "giou")
        totals = [torch.zeros((), device=students[0][0].logits.device) for _ in names]
        for t, s in logits.stages(teachers[0], students[0], options.stage == "final"):
            groups = zip(teachers, students, self.importance, strict=True)
            sums = [logits.compare(a[t], b[s], w, options.temperature, self.independent) for a, b, w in groups]
            joined = logits.joined(sums)
            weight = self.mean(joined.weight.detach()).clamp(min=1e-6)
            totals = [total + value / weight for total, value in zip(totals, joined[:3], strict=True)]
        weights = (options.cls, options.l1, options.giou)
        rows = zip(names, totals, weights, strict=True)
        return {f"{self.name}_{name}": weight * total for name, total, weight in rows}

    def end_epoch(self, epoch: int) -> dict[str, float]:
        """The mean of the unweighted sums of the memory over the batches of the epoch."""
        if not self.columns:
            return {}
        objects, rest, batches = self.mean(self.sums).tolist()
        self.sums.zero_()
        return {name: value / max(batches, 1) for name, value in zip(self.columns, (objects, rest), strict=True)}

    def settings(self) -> dict[str, Any]:
        return {**asdict(self.options), "alpha": self.alpha, "beta": self.beta, "general": self.general}

    def report(self) -> list[str]:
        weights = f"alpha {self.alpha:.3g}, beta {self.beta:.3g}" if self.located else "everywhere alike"
        asks = [*["specific"] * self.options.specific, *[f"{self.general} general"] * bool(self.general)]
        asks += [f"target ({self.options.mode})"] * self.options.target
        parts = [f"memory ({weights})"] * self.options.lcmd
        parts += [f"answers to {', '.join(asks)} questions"] * self.options.tcld
        lines = [f"{self.title}: {' and '.join(parts)} follow {self.teacher.name}"]
        if self.options.tcld and self.independent and self.options.classes == "softmax":
            lines.append("  one class: its scores are compared by sigmoid, a softmax would say nothing")
        return lines

    def licence(self) -> str:
        return f"taught by {self.teacher.name} ({self.title}): {self.teacher.licence or 'licence not stated'}"


class KDDETR(Clock):
    """The same under the name of KD-DETR: the options leave memory and targets out."""

    name = "kd-detr"
    title = "KD-DETR"


def _weights(options: ClockOptions, width: int, levels: int) -> tuple[float, float]:
    """Alpha and beta for memories of ``width`` channels compared on ``levels``. The paper's are for 256 channels, on
    four levels (Deformable DETR, DINO) and, with the same numbers, on one (DAB-DETR)."""
    factor = 1024 / (width * (4 if levels == 1 else levels))
    alpha = memory.ALPHA * factor if options.alpha is None else options.alpha
    return alpha, memory.BETA * factor if options.beta is None else options.beta


def _student_ways(student: Student) -> Ways:
    """How the student's decoder is asked. Raises ``ValueError`` for one that answers without boxes."""
    if student.task == "pose":
        raise ValueError(f"{student.name}: {questions.BOXES}; with tcld=false its memory can be taught")
    width = student.row.dec_width or student.row.width
    kinds = {"dab": "empty", "deformable": "placed", "dino": "learned"}
    return Ways(kinds.get(student.row.arch, "memory"), width)
