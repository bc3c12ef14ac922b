"""How long a run will take, measured on a few of its own first steps; nothing is written."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from torch import nn

from edgecrafter.data.loader import Loader
from edgecrafter.train import distil, distributed, machine, optim, run
from edgecrafter.train.begin import prepared
from edgecrafter.train.config import TrainConfig
from edgecrafter.train.distill_config import DistillConfig
from edgecrafter.train.ema import Average
from edgecrafter.train.loop import Update, gradients, grouped
from edgecrafter.train.recipes import Plan
from edgecrafter.train.state import RunState
from edgecrafter.train.steps import Step
from edgecrafter.types import Batch

STEPS, SECONDS = 6, 4.0
"""a measurement ends after so many steps, or so long"""
PICTURES = 16
"""that are evaluated to measure an evaluation, at most"""


@dataclass(frozen=True)
class Timing:
    """What a run is expected to take."""

    plan: Plan
    step: float
    """seconds of an optimiser step, reading the pictures included"""
    look: float
    """seconds of an evaluation"""
    looks: int
    """evaluations"""

    @property
    def seconds(self) -> float:
        """Of the whole run, if nothing stops it early."""
        return self.plan.total * self.step + self.looks * self.look

    def __str__(self) -> str:
        return f"{self.plan.epochs} epochs of {self.plan.steps} steps of {self.plan.effective_batch} pictures"


def training(config: TrainConfig) -> Timing:
    """Time a few steps of a training of a detector, and the evaluation of a few pictures.

    Everything is as in the training itself: data, network, plan, loader, step and evaluation. Raises what the training
    would raise when it begins.
    """
    device = machine.device(config.device)
    precision = machine.precision(config.precision, device)
    begin = prepared(config)
    network = begin.network.to(device)
    step = run.step_of(begin, precision)
    average = Average(network, begin.plan.ema, begin.plan.ema_warmup)
    optimizer = optim.adamw(network, begin.plan, step.distillers)
    state = _state(network, average, optimizer, begin.plan, device, precision)
    each = _step(step, run.batches_of(begin, device), state)
    pictures = begin.val.subset(range(min(PICTURES, len(begin.val))))
    look = _second_time(lambda: run.evaluated(average.network, begin, pictures, precision))
    return Timing(begin.plan, each, look * len(begin.val) / len(pictures), _looks(begin.plan, config.val_every))


def distillation(config: DistillConfig) -> Timing:
    """Time a few steps of a distillation, and a look at pictures that are kept out of it."""
    device = machine.device(config.device)
    precision = machine.precision(config.precision, device)
    begin = distil.prepared(config)
    step = distil.step_of(begin, device, precision)
    average = Average(begin.alignment, begin.plan.ema, begin.plan.ema_warmup)
    optimizer = optim.alignment(begin.alignment, begin.plan, config.optimizer)
    state = _state(begin.alignment, average, optimizer, begin.plan, device, precision)
    batches, kept_out = distil.batches_of(begin, device)
    each = _step(step, batches, state)
    look = _second_time(lambda: step.explained(average.network, kept_out[:1])) * len(kept_out)
    return Timing(begin.plan, each, look, _looks(begin.plan, config.val_every))


def _state(
    network: nn.Module,
    average: Average,
    optimizer: torch.optim.Optimizer,
    plan: Plan,
    device: torch.device,
    precision: str,
) -> RunState:
    """As of a run, but never saved."""
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
    return RunState(network, average, optimizer, scaler, plan, Path())


def _step(step: Step, batches: Loader, state: RunState) -> float:
    """Mean seconds of an optimiser step; the first one, which is slow, counts only when there is no other."""
    update, device = Update(step, state), next(state.network.parameters()).device
    step.train()
    moments = [time.perf_counter()]
    for parts in islice(_endless(batches, state.plan.accumulate), STEPS):
        optim.set_rates(state.optimizer, state.plan, state.progress.step)
        update(gradients(step, parts, state), parts)
        state.progress.step += 1
        moments.append(time.perf_counter())
        if not distributed.all_true(moments[-1] - moments[0] < SECONDS, device):  # all processes end together
            break
    first = 1 if len(moments) > 2 else 0
    return (moments[-1] - moments[first]) / (len(moments) - 1 - first)


def _endless(batches: Loader, accumulate: int) -> Iterator[list[Batch]]:
    """The steps of epoch after epoch."""
    epoch = 0
    while True:
        batches.set_epoch(epoch)
        yield from grouped(batches, accumulate)
        epoch += 1


def _second_time(work: Callable[[], object]) -> float:
    """Seconds of a call, measured on the second one: the first one has to warm up."""
    work()
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _looks(plan: Plan, val_every: int) -> int:
    """Evaluations of a run, the last one, of the best weights, included."""
    return -(-plan.epochs // val_every) + 1
