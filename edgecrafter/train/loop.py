"""The training loop, in the order in which things happen."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from edgecrafter.data.loader import Loader
from edgecrafter.train import distributed, optim
from edgecrafter.train.log import Journal
from edgecrafter.train.state import RunState
from edgecrafter.train.steps import Step, object_counts
from edgecrafter.types import Batch

BAD_STEPS = 10
"""so many steps in a row without finite losses end the training"""


def fit(
    step: Step,
    batches: Loader,
    score: Callable[[nn.Module], dict[str, float]],
    state: RunState,
    journal: Journal,
    *,
    watch: str = "AP",
    patience: int = 0,
    val_every: int = 1,
    worst: Batch | None = None,
    keep: Callable[[nn.Module, bool], None] | None = None,
) -> None:
    """Train by ``state.plan`` from wherever ``state`` is, and leave everything in ``state``. ``step`` makes named
    losses of a ``Batch``: ``SupervisedStep``, ``AlignStep``.

    Args:
        score: scores of a network; called with the averaged weights after every ``val_every`` epochs, after the last
            one, and before going back to the best weights.
        watch: the score that decides which epoch is the best.
        patience: evaluations without a better score after which training stops; 0: never.
        worst: a batch as large as any can be, tried before the first step, so that memory runs out now or never.
        keep: called after every epoch with the averaged network and whether it is the best so far.

    Raises:
        ValueError: no finite losses in ``BAD_STEPS`` steps in a row, or not enough memory.
    """
    plan, progress = state.plan, state.progress
    forward = distributed.wrap(step)
    update = Update(step, state)
    # back to the best weights for the last epochs, those without strong augmentation (as released)
    returns = plan.reload_best and plan.augment != plan.augment.gentle()
    judged = {plan.epochs, *range(val_every, plan.epochs, val_every), *([plan.plain_from] if returns else [])}
    if worst is not None:
        probe(forward, step, worst)
    for epoch in range(progress.epoch, plan.epochs):
        if patience and progress.stale >= patience:
            journal.say(f"stopped: no better {watch} in {progress.stale} evaluations")
            break
        if returns and epoch == plan.plain_from:
            state.reload_best()
        batches.set_epoch(epoch)
        step.train()
        update.buffers.remember()
        journal.begin(epoch, plan.steps)
        for parts in grouped(batches, plan.accumulate):
            factor = optim.set_rates(state.optimizer, plan, progress.step)
            losses = gradients(forward, parts, state)
            total, taken = update(losses, parts)
            progress.step += 1
            journal.step(losses, total, sum(len(part.targets) for part in parts), taken)
        facts = step.end_epoch(epoch)
        scores = score(state.average.network) if epoch + 1 in judged else None
        best = scores is not None and progress.note(scores[watch])
        progress.epoch += 1
        if keep is not None:
            keep(state.average.network, best)
        journal.end(progress.step, plan.lr * factor, scores, facts)
        state.save(best)


def grouped(batches: Iterable[Batch], size: int) -> Iterator[list[Batch]]:
    """Lists of ``size`` batches, one per optimiser step; what is left over at the end is dropped."""
    parts: list[Batch] = []
    for batch in batches:
        parts.append(batch)
        if len(parts) == size:
            yield parts
            parts = []


def gradients(forward: nn.Module, parts: list[Batch], state: RunState) -> dict[str, Tensor]:
    """Losses of a step, and their gradients left in the parameters: those of one batch made of all parts."""
    device = next(state.network.parameters()).device
    objects = object_counts(parts, device)
    losses: dict[str, Tensor] = {}
    for i, part in enumerate(parts):
        shared = None if objects is None else torch.stack([objects[i], objects.mean()])
        last = i == len(parts) - 1
        with nullcontext() if last else distributed.unsynchronised(forward):
            found = forward(part, state.progress.step, i, shared)
            found = {name: value / len(parts) for name, value in found.items()}
            state.scaler.scale(sum(found.values())).backward()
        losses = {name: value.detach() + losses.get(name, 0.0) for name, value in found.items()}
    return losses


class Update:
    """Clip, step and average; or leave everything as it was when losses or gradients are not finite."""

    def __init__(self, step: Step, state: RunState) -> None:
        self.step, self.state = step, state
        self.parameters = [p for p in step.parameters() if p.requires_grad]
        self.buffers = Buffers(step)
        self.bad = 0

    def __call__(self, losses: dict[str, Tensor], parts: list[Batch]) -> tuple[float, bool]:
        """The sum of the losses, and whether the step was taken. All processes decide together."""
        state = self.state
        state.scaler.unscale_(state.optimizer)
        norm = nn.utils.clip_grad_norm_(self.parameters, state.plan.clip or math.inf)
        total = torch.stack(list(losses.values())).sum()
        # the step's only wait for the device besides the matching's, when all of the backward pass is queued
        value, length = torch.stack([total, norm.to(total.dtype)]).tolist()
        sound = distributed.all_true(math.isfinite(value), total.device)
        stepped = sound and math.isfinite(length)  # the length is the same in all processes
        if stepped:
            self.step.after_backward()
            state.scaler.step(state.optimizer)
            state.average.update()
        state.scaler.update()
        state.optimizer.zero_grad(set_to_none=True)
        # overflow of half-precision gradients is the scaler's business, until it has nothing left to lower
        if stepped or (sound and state.scaler.is_enabled() and state.scaler.get_scale() > 1):
            self.bad = 0
            self.buffers.remember()
        else:
            self.bad += 1
            self.buffers.restore()
            self._complain(losses, parts, sound)
        return value, stepped

    def _complain(self, losses: dict[str, Tensor], parts: list[Batch], sound: bool) -> None:
        names = [name for name, value in losses.items() if not value.isfinite()]
        others = "gradients" if sound else "a loss of another process"
        paths = [target.path for part in parts for target in part.targets]
        text = (
            f"step {self.state.progress.step} skipped, not finite: {', '.join(names) or others}; "
            f"pictures of process {distributed.rank()}: {', '.join(paths)}"
        )
        if self.bad >= BAD_STEPS:
            raise ValueError(
                f"{text}. These were {self.bad} such steps in a row, training stops. Look at these pictures and their "
                "boxes, lower `lr`, or use precision=fp32."
            )
        if names or (sound and distributed.rank() == 0):
            print(text, flush=True)


class Buffers:
    """A copy of the buffers of a module (batch-norm statistics), to undo what a bad batch did to them."""

    def __init__(self, module: nn.Module) -> None:
        kinds = {buffer.dtype for buffer in module.buffers()}
        self.live = [[b for b in module.buffers() if b.dtype == kind] for kind in kinds]  # one kernel for each kind
        self.copies = [[buffer.clone() for buffer in group] for group in self.live]

    def remember(self) -> None:
        """Keep the present values."""
        for copies, live in zip(self.copies, self.live, strict=True):
            torch._foreach_copy_(copies, live)

    def restore(self) -> None:
        """Go back to the values kept last."""
        for copies, live in zip(self.copies, self.live, strict=True):
            torch._foreach_copy_(live, copies)


def probe(forward: nn.Module, step: nn.Module, batch: Batch) -> None:
    """Run a batch forward and backward and forget it: parameters, statistics and random states stay to the bit.

    Raises ``ValueError`` with the remedy when the memory of the device does not suffice.
    """
    buffers = Buffers(step)
    trained = [p for p in step.parameters() if p.requires_grad]
    held = [torch.empty_like(p) for p in trained for _ in range(2)]  # room for the optimiser's averages, made later
    gpu = [batch.images.device] if batch.images.device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=gpu):
            sum(forward(batch).values()).backward()
    except torch.OutOfMemoryError:
        count, _, height, width = batch.images.shape
        remedy = f"batch={count // 2} accumulate=2 (times what you have)" if count > 1 else "a smaller imgsz or model"
        raise ValueError(
            f"not enough memory on {batch.images.device} for a batch of {count} pictures of {height} x {width} with "
            f"{len(batch.targets[0].labels)} objects each. Try {remedy}."
        ) from None
    finally:
        buffers.restore()
        held.clear()
        for parameter in trained:
            parameter.grad = None
