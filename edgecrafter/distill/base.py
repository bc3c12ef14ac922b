"""What a distillation method is: something that reads the outputs of a student in training and adds losses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from edgecrafter.models.sizes import Size
from edgecrafter.types import Batch, Labels, Outputs, QueryGroup

NO_LABELS = Labels(("object",))


class Student(NamedTuple):
    """What a method may know of the network that it teaches."""

    name: str
    """such as ``rtdetrv4-s``"""
    row: Size
    size: tuple[int, int]
    """height, width of the input in pixels"""
    stop: int
    """the first epoch without strong augmentation, counted from 0"""
    labels: Labels = NO_LABELS
    task: str = "detect"
    """name of its task"""


class Distiller(nn.Module):
    """One method with its teacher and its own trained parts, beside the student and never inside it.

    A teacher is no module (``distill.teacher``): it is in no state dict, no optimiser and no wrapper. What is trained
    here (projectors) is saved with the run's state, and in no model file.
    """

    name: str
    """of its losses, which are ``name`` or begin with it"""
    columns: tuple[str, ...] = ()
    """numbers that ``end_epoch`` gives, for ``results.csv``"""

    def check(self, network: nn.Module) -> None:
        """Raises ``ValueError`` when a network, as it will be trained, cannot be taught this way."""

    def prepare(self, device: torch.device, dtype: torch.dtype) -> None:
        """Moves what is no module; ``dtype`` is that of autocast."""

    def probes(self, batch: Batch) -> list[QueryGroup]:
        """Questions for the student's decoder, before it sees the batch (on the device); they must see nothing else."""
        return []

    def forward(self, student: Outputs, batch: Batch) -> dict[str, Tensor]:
        """Weighted losses of a batch, whose images are those that the student saw, uint8 on the device. The groups of
        ``student`` are its answers to the ``probes``."""
        raise NotImplementedError

    mean: Callable[[Tensor], Tensor] = staticmethod(lambda value: value)
    """mean over the processes, set by the training step"""

    def after_backward(self, network: nn.Module) -> None:
        """Called in every step that will be taken, when the gradients of all parts and processes are there."""

    def end_epoch(self, epoch: int) -> dict[str, float]:
        """Called at the end of every epoch (counted from 0), before the evaluation."""
        return {}

    def settings(self) -> dict[str, Any]:
        """What was decided, as plain values for ``args.yaml``."""
        return {}

    def report(self) -> list[str]:
        """Lines for the console: who teaches, what, and how strongly."""
        return []

    def licence(self) -> str:
        """What the student's file has to say of the teacher; may be empty."""
        return ""
