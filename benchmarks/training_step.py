"""One training step of a detector with a clock on every part."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from edgecrafter import hub
from edgecrafter.data import formats, loader
from edgecrafter.data.transforms import Augment
from edgecrafter.losses import matching
from edgecrafter.tasks import TASKS
from edgecrafter.train.steps import float32
from edgecrafter.types import Batch

PARTS = ("data", "forward", "matching", "loss", "backward", "optimiser")


class Step:
    """Calling it does a full step on ``next``: forward, matching, loss, backward, clip, AdamW.

    ``prepare`` loads another batch, with all augmentation, in this process. ``seconds[part]`` collects what each took.
    """

    def __init__(self, model: str, data: str, size: int, batch: int) -> None:
        annotations = formats.load(data, "train")
        self.network, info = hub.create(model, annotations.labels)
        self.task, self.labels, self.spec = TASKS[info.task], info.labels, info.input
        self.loss = self.task.loss(info.labels, info.size)
        self.parameters = [*self.network.train().parameters()]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=1e-4, fused=True)
        strength = Augment.strong(0.75, 0.75)
        batches = loader.batches(annotations, (size, size), batch, augment_of=lambda _: strength, workers=0)
        self.endless = _endless(batches)
        self.noise = torch.Generator().manual_seed(0)
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self.next = next(self.endless)

    def __call__(self) -> None:
        batch = self.next
        with self._clock("forward"):
            group = self.task.denoise(batch.targets, self.labels, self.noise, self.task.budget, self.task.noises[0])
            outputs = self.network(self.spec.normalise(batch.images), [group])
        with self._clock("loss"), self._clock_of(matching, ("hungarian", "union"), "matching"):
            total = torch.stack([*self.loss(float32(outputs), batch.targets).values()]).sum()
        self.seconds["loss"][-1] -= self.seconds["matching"][-1]
        with self._clock("backward"):
            total.backward()
        with self._clock("optimiser"):
            nn.utils.clip_grad_norm_(self.parameters, 0.1)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)

    def prepare(self) -> None:
        """Load the next batch."""
        with self._clock("data"):
            self.next = next(self.endless)

    @contextmanager
    def _clock(self, part: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[part].append(time.perf_counter() - start)

    @contextmanager
    def _clock_of(self, module: Any, names: tuple[str, ...], part: str) -> Iterator[None]:
        """Adds up the time spent in functions of a module, as one entry of ``part``."""
        originals = {name: getattr(module, name) for name in names}
        spent = [0.0]

        def clocked(function: Callable[..., Any]) -> Callable[..., Any]:
            def call(*args: Any, **kwargs: Any) -> Any:
                start = time.perf_counter()
                found = function(*args, **kwargs)
                spent[0] += time.perf_counter() - start
                return found

            return call

        try:
            for name, function in originals.items():
                setattr(module, name, clocked(function))
            yield
        finally:
            for name, function in originals.items():
                setattr(module, name, function)
            self.seconds[part].append(spent[0])


def _endless(batches: loader.Loader) -> Iterator[Batch]:
    epoch = 0
    while True:
        batches.set_epoch(epoch)
        yield from batches
        epoch += 1
