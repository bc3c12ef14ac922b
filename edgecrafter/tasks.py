"""Tasks as values: what a task adds to the one engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from edgecrafter.losses.denoising import BUDGET, denoising
from edgecrafter.losses.set_loss import SetLoss
from edgecrafter.models.detector import box_decoder
from edgecrafter.models.sizes import Size
from edgecrafter.types import Labels, QueryGroup, Target


@dataclass(frozen=True)
class Task:
    """Everything that differs between detection and the tasks to come."""

    name: str
    prefix: str
    """of the model names: ``ecdet`` + ``-`` + size"""
    scores: tuple[str, ...]
    """scores reported; the first picks the best checkpoint"""
    decoder: Callable[[Size, Labels], nn.Module]
    loss: Callable[[Labels], SetLoss]
    denoise: Callable[[Sequence[Target], Labels, torch.Generator | None, int], QueryGroup]
    """targets, labels, generator, budget of queries -> the denoising group of a batch"""
    budget: int = BUDGET
    """denoising queries per image"""


TASKS = {
    "detect": Task(
        name="detect",
        prefix="ecdet",
        scores=("AP", "AP50", "AP75", "APs", "APm", "APl"),
        decoder=lambda size, labels: box_decoder(size, len(labels)),
        loss=lambda labels: SetLoss(),
        denoise=lambda targets, labels, generator, budget: denoising(targets, len(labels), generator, budget),
    ),
}
