"""Before a training with CLoCKDistill: whether its teacher understands the questions for the objects."""

from __future__ import annotations

import torch

from edgecrafter.data import loader
from edgecrafter.data.transforms import Augment
from edgecrafter.distill import probe
from edgecrafter.distill.clock import Clock
from edgecrafter.train import distributed
from edgecrafter.train.begin import Begin


def ask(begin: Begin, device: torch.device, epoch: int) -> None:
    """Fits the questions of a run that has not trained yet (``epoch`` 0), if it was asked for, and says how well the
    teacher answers. The first process does it; the others get what was fitted."""
    if epoch > 0:
        return
    for method in begin.distillers:
        if not isinstance(method, Clock) or method.targets is None:
            continue
        steps, pictures = method.options.fit_steps, _pictures(begin, device)
        if steps:
            fitted = [_fitted(method, pictures)] if distributed.rank() == 0 else []
            method.targets.load_state_dict(distributed.broadcast(fitted)[0])
        if distributed.rank() == 0:
            pictures.set_epoch(0)
            distributed.say(str(probe.probe(method.teacher, method.targets, pictures)))


def _fitted(method: Clock, pictures: loader.Loader) -> dict[str, torch.Tensor]:
    """What the questions of ``method`` are made of once they are fitted, on the host."""
    assert method.targets is not None
    losses = probe.fit(method.teacher, method.targets, pictures, method.options.fit_steps)
    distributed.say(f"target questions: fitted in {len(losses)} steps, loss {losses[0]:.3g} -> {losses[-1]:.3g}")
    return {name: value.cpu() for name, value in method.targets.state_dict().items()}


def _pictures(begin: Begin, device: torch.device) -> loader.Loader:
    """Training pictures in random order, only resized."""
    spec = begin.info.input
    return loader.batches(
        begin.train,
        spec.size,
        min(begin.plan.batch, probe.PICTURES),
        augment_of=lambda _epoch: Augment.NONE,
        seed=begin.config.seed,
        workers=0,
        pin=device.type == "cuda",
        resize=spec.resize,
    )
