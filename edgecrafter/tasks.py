"""Tasks as values: what a task adds to the one engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from edgecrafter import registry
from edgecrafter.geometry.keypoints import PERSON_EDGES, PERSON_KEYPOINTS, PERSON_PAIRS
from edgecrafter.losses import denoising, masks, pose_denoising, poses
from edgecrafter.losses.set_loss import SetLoss, criterion
from edgecrafter.models.detector import box_decoder, mask_decoder, pose_decoder
from edgecrafter.models.sizes import Size
from edgecrafter.types import Labels, QueryGroup, Skeleton, Target

COCO = Labels(registry.COCO_NAMES, registry.COCO_IDS)
PERSON = Labels(
    ("(unused)", "person"),
    skeleton=Skeleton(PERSON_KEYPOINTS, PERSON_EDGES, PERSON_PAIRS),
    unused=(0,),
)
"""the two channels of the released pose weights: the first is trained as a negative and stands for nothing"""

Denoise = Callable[[Sequence[Target], Labels, torch.Generator | None, int, str], QueryGroup]


@dataclass(frozen=True)
class Task:
    """Everything that one task has of its own. A further task is one more value in ``TASKS``."""

    name: str
    prefix: str
    """of the model names: ``ecdet`` + ``-`` + size"""
    decoder: Callable[[Size, Labels], nn.Module]
    loss: Callable[[Labels, Size], SetLoss]
    denoise: Denoise
    """targets, labels, generator, budget of queries, noise -> the denoising group of a batch"""
    counts: tuple[str, ...]
    """COCO's kinds of overlap that are scored; the first one leads"""
    scores: tuple[str, ...] = ("AP", "AP50", "AP75", "APs", "APm", "APl")
    """scores reported; the first picks the best checkpoint"""
    aliases: tuple[str, ...] = ()
    """other prefixes that are understood"""
    truth: str = ""
    """what the data must have besides boxes: "masks" or "keypoints" """
    background: bool = True
    """whether pictures without objects are trained on"""
    family: str = "boxes"
    """tasks of one family share the decoder's weights"""
    budget: int = denoising.BUDGET
    """denoising queries per image"""
    noises: tuple[str, ...] = ("paper",)
    """kinds of denoising noise"""
    queries: int | None = None
    """of every size; None: the size's own number"""
    labels: Labels = COCO
    """the classes of the authors' files"""
    released: Mapping[str, Any] = field(default_factory=dict)
    """fields of the size's row that differ in the authors' files"""
    start_note: str = ""
    """said when a training starts from the authors' files"""
    options: tuple[str, ...] = ()
    """fields of the size's row that may be given when trained weights are loaded"""

    def size(self, row: Size) -> Size:
        """The row of a size as this task has it."""
        return row if self.queries is None else row.changed(queries=self.queries)


def _boxes(
    targets: Sequence[Target], labels: Labels, generator: torch.Generator | None, budget: int, _noise: str
) -> QueryGroup:
    return denoising.denoising(targets, len(labels), generator, budget)


def _poses(
    targets: Sequence[Target], labels: Labels, generator: torch.Generator | None, budget: int, noise: str
) -> QueryGroup:
    return pose_denoising.denoising(targets, len(labels), skeleton(labels).sigmas, generator, budget, noise)


def skeleton(labels: Labels) -> Skeleton:
    """The keypoints of the classes. Raises ``ValueError`` when there are none."""
    if labels.skeleton is None:
        raise ValueError(f"the classes {', '.join(labels.names[:5])} have no keypoints: a pose model needs some")
    return labels.skeleton


DETECT = Task(
    name="detect",
    prefix="ecdet",
    decoder=lambda size, labels: box_decoder(size, len(labels)),
    loss=lambda labels, size: criterion(size.criterion, size.curvature),
    denoise=_boxes,
    counts=("bbox",),
)
SEGMENT = Task(
    name="segment",
    prefix="ecinsseg",
    aliases=("ecseg",),
    decoder=lambda size, labels: mask_decoder(size, len(labels)),
    loss=lambda labels, size: SetLoss(masks.SEGMENT, masks.SEGMENT_COSTS),
    denoise=_boxes,
    counts=("segm", "bbox"),
    scores=("AP", "AP50", "AP75", "APs", "APm", "APl", "box_AP", "box_AP50", "box_AP75"),
    truth="masks",
    released={"mask_blocks": 1},
    start_note="all mask blocks are trained and evaluated (the authors' inference applies one)",
    options=("mask_blocks",),
)
POSE = Task(
    name="pose",
    prefix="ecpose",
    decoder=lambda size, labels: pose_decoder(size, len(labels), len(skeleton(labels))),
    loss=lambda labels, size: SetLoss(poses.table(skeleton(labels).sigmas), poses.costs(skeleton(labels).sigmas)),
    denoise=_poses,
    counts=("keypoints",),
    scores=("AP", "AP50", "AP75", "APm", "APl"),
    truth="keypoints",
    background=False,
    family="poses",
    budget=pose_denoising.BUDGET,
    noises=pose_denoising.NOISES,
    queries=60,
    labels=PERSON,
    released={"label_rows": 81},
)
TASKS = {task.name: task for task in (DETECT, SEGMENT, POSE)}
