"""A step of stage 2: pictures without labels -> how far the student's features are from the teacher's."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgecrafter.distill.align import Alignment, Explained, losses
from edgecrafter.distill.teacher import Teacher
from edgecrafter.infer import PRECISIONS
from edgecrafter.train import distributed
from edgecrafter.train.steps import Step
from edgecrafter.types import Batch, InputSpec


class AlignStep(Step):
    """Teacher and student look at the same pixels, each normalised its own way: ``Batch`` -> ``align_0``, ...

    Only the alignment (student and adapters) is a part of the module; the teacher is beside it.
    """

    def __init__(self, alignment: Alignment, teacher: Teacher, spec: InputSpec, precision: str = "fp32") -> None:
        super().__init__()
        self.alignment = alignment
        self.teacher, self.spec, self.dtype = teacher, spec, PRECISIONS[precision]
        self.train()

    def forward(self, batch: Batch, step: int = 0, part: int = 0, objects: Tensor | None = None) -> dict[str, Tensor]:
        """Losses of one batch; the other arguments are those of every step and change nothing here."""
        adapted, targets = self.compare(self.alignment, batch)
        return losses(adapted, targets)

    def compare(self, alignment: nn.Module, batch: Batch) -> tuple[list[Tensor], list[Tensor]]:
        """What the student says through its adapters, and what the teacher says, of the same pictures."""
        device = next(self.parameters()).device
        images = batch.images.to(device, non_blocking=True)
        targets = self.teacher(images)
        with torch.autocast(device.type, self.dtype, enabled=self.dtype != torch.float32):
            return alignment(self.spec.normalise(images)), targets

    @torch.no_grad()
    def explained(self, alignment: nn.Module, batches: list[Batch]) -> float:
        """The share of the teacher's variance that ``alignment`` gives, over the batches of all processes."""
        measure = Explained()
        for batch in batches:
            measure.add(*self.compare(alignment.eval(), batch))
        sums, device = measure.sums(), next(self.parameters()).device
        if device.type == "cuda":  # processes on GPUs add up there
            sums = sums.to(device)
        return Explained.share(distributed.mean(sums).cpu())
