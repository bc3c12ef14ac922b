"""A training small enough for tests: model p, a few pictures of noise, everything else real."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from edgecrafter import hub
from edgecrafter.losses.set_loss import DETECT, SetLoss
from edgecrafter.tasks import TASKS
from edgecrafter.train import optim
from edgecrafter.train.config import TrainConfig
from edgecrafter.train.ema import Average
from edgecrafter.train.log import Journal
from edgecrafter.train.recipes import Plan, recipe_for, resolve
from edgecrafter.train.state import RunState
from edgecrafter.train.steps import SupervisedStep
from edgecrafter.types import Batch, Labels, Skeleton, Target

LABELS = Labels(("one", "two", "three"), skeleton=Skeleton(("left", "right"), flip_pairs=((0, 1),)))
PLAIN = SetLoss([term for term in DETECT if term.name != "ddf"])
"""without the self-distilled term, which averages over the queries of a batch"""


def batch(objects: Sequence[int], seed: int = 0, side: int = 64) -> Batch:
    """One picture of noise for each number of objects, which have boxes, masks (all of the picture) and keypoints."""
    random = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (len(objects), 3, side, side), dtype=torch.uint8, generator=random)
    targets = []
    for i, count in enumerate(objects):
        centres = torch.rand(count, 2, generator=random) * 0.6 + 0.2
        sides = torch.rand(count, 2, generator=random) * 0.3 + 0.05
        labels = torch.randint(len(LABELS), (count,), generator=random)
        points = torch.stack([centres - sides / 4, centres + sides / 4], 1)
        targets.append(
            Target(
                labels,
                torch.cat([centres, sides], 1),
                masks=torch.full((count, side, side // 8), 255, dtype=torch.uint8),
                keypoints=torch.cat([points, torch.full_like(points[..., :1], 2)], 2),
                area=sides.prod(1),
                image_id=i,
                path=f"{seed}-{i}.png",
            )
        )
    return Batch(images, targets)


def joined(batches: Sequence[Batch]) -> Batch:
    """Several batches as one."""
    return Batch(torch.cat([b.images for b in batches]), [target for b in batches for target in b.targets])


class Batches:
    """Looks like a loader: the same batches in every epoch."""

    def __init__(self, batches: Sequence[Batch]) -> None:
        self.batches, self.epoch = batches, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.batches)


def plan(epochs: int = 2, steps: int = 2, accumulate: int = 1, **changes: Any) -> Plan:
    """A plan for batches of two pictures."""
    config = TrainConfig(epochs=epochs, batch=2, accumulate=accumulate, warmup=0)
    made = resolve(config, recipe_for("ecdet-p"), 2 * steps * accumulate)
    return replace(made, **changes)


def training(
    folder: Path,
    made: Plan,
    seed: int = 0,
    precision: str = "fp32",
    budget: int = 10,
    done: int = 0,
    task: str = "detect",
    model: str = "",
    **options: Any,
) -> tuple[SupervisedStep, RunState, Journal]:
    """Step, state and journal of a run in ``folder``, the same weights for the same seed; ``model``: size P of the task
    unless given."""
    options |= {"precision": precision, "budget": budget}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network, info = hub.create(model or f"{TASKS[task].prefix}-p", LABELS, queries=20)
    step = SupervisedStep(network, TASKS[task], LABELS, info.input, **options)
    methods: list[Any] = list(step.distillers)
    scaler = torch.amp.GradScaler("cpu", enabled=precision == "fp16")
    average = Average(network, made.ema, made.ema_warmup)
    optimizer = optim.adamw(network, made, step.distillers)
    state = RunState(network, average, optimizer, scaler, made, folder, beside=step.distillers)
    terms = [*(term.name for term in step.loss.table), *(method.name for method in methods)]
    facts = [column for method in methods for column in method.columns]
    return step, state, Journal(folder, terms, ["AP"], made.epochs, done, facts)
