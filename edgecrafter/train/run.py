"""A whole training: data, model, plan, loop, and the final evaluation of the best weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from edgecrafter import curves, hub
from edgecrafter.data import loader
from edgecrafter.data.annotations import Annotations
from edgecrafter.data.dataset import Dataset
from edgecrafter.evaluate import Scores, evaluate
from edgecrafter.geometry.sides import KEEP
from edgecrafter.infer import PRECISIONS
from edgecrafter.tasks import TASKS, Task
from edgecrafter.train import distributed, machine, optim, probe
from edgecrafter.train.begin import Begin, continued, fresh
from edgecrafter.train.config import TrainConfig
from edgecrafter.train.ema import Average
from edgecrafter.train.log import Journal
from edgecrafter.train.loop import fit
from edgecrafter.train.scales import Scales
from edgecrafter.train.state import WEIGHTS, RunState
from edgecrafter.train.steps import SupervisedStep, worst_batch
from edgecrafter.types import Batch

MOST_OBJECTS = 1000
"""objects per picture of the batch that tries the memory, at most"""


@dataclass(frozen=True)
class Trained:
    """What a training leaves behind."""

    folder: Path
    best: Path
    """weights of the best epoch: a model file"""
    last: Path
    """weights of the last epoch: a model file"""
    scores: Scores
    """the best weights on the validation pictures"""
    epochs: int
    """epochs trained"""


def train(config: TrainConfig, backbone: nn.Module | None = None) -> Trained:
    """Train a detector and evaluate the best weights.

    Writes into ``project/name``: ``args.yaml`` (all options and the plan), ``results.csv``, TensorBoard events when
    that is installed, ``weights/best.safetensors`` and ``weights/last.safetensors`` (models, with averaged weights),
    ``weights/*.pt`` (to go on from), and ``val/`` (scores of the best weights). ``backbone``: a module to build the
    detector around; it is needed again to load the files.

    Raises:
        ValueError, FileNotFoundError: options, data or weights that cannot be used, or a training without finite
            losses.
    """
    device = machine.device(config.device)
    with distributed.session(device):
        begin = continued(config, backbone) if config.resume else fresh(config, backbone)
        return _run(begin, device)


def _run(begin: Begin, device: torch.device) -> Trained:
    config, plan, task = begin.config, begin.plan, TASKS[begin.info.task]
    precision = machine.precision(config.precision, device)
    network = begin.network.to(device)
    step = step_of(begin, precision)
    state = _state(begin, step, device, precision)
    if config.compile:
        network.backbone.compile()
        network.encoder.compile()

    def score(averaged: nn.Module, pictures: Annotations = begin.val) -> dict[str, float]:
        with rounded(begin, averaged):
            return evaluated(averaged, begin, pictures, precision).overall

    _rehearse(score(state.average.network, begin.val.subset([0])), task)
    terms = (*(row.name for row in step.loss.table), *(distiller.name for distiller in begin.distillers))
    facts = [column for distiller in begin.distillers for column in distiller.columns]
    journal = Journal(begin.folder, terms, task.scores, plan.epochs, state.progress.epoch, facts)
    distributed.say(f"results in {begin.folder}; after an interruption go on with resume={begin.folder}")
    with closing(journal), machine.deterministic(config.deterministic):
        probe.ask(begin, device, state.progress.epoch)
        fit(
            step,
            batches_of(begin, device),
            score,
            state,
            journal,
            watch=task.scores[0],
            patience=config.patience,
            val_every=config.val_every,
            worst=_worst(begin, device) if device.type == "cuda" else None,
            keep=lambda averaged, best: _keep(averaged, begin, best),
        )
    return _finish(begin, state)


def _state(begin: Begin, step: SupervisedStep, device: torch.device, precision: str) -> RunState:
    """Optimiser, average and scaler; of a new run saved at once, so that a kill in the first epoch is no loss."""
    plan, network = begin.plan, step.network
    average = Average(network, plan.ema, plan.ema_warmup)
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
    optimizer = optim.adamw(network, plan, step.distillers)
    beside = step.distillers if step.quantiser is None else nn.ModuleList([*step.distillers, step.quantiser])
    state = RunState(network, average, optimizer, scaler, plan, begin.folder, begin.config.to_dict(), beside)
    if begin.saved is None:
        _keep(average.network, begin, False)
        state.save()
    else:
        state.load(begin.saved)
        begin.saved = None
    return state


def _finish(begin: Begin, state: RunState) -> Trained:
    """Score the best weights in full precision and say where everything is."""
    best, last = (begin.folder / WEIGHTS / name for name in ("best.safetensors", "last.safetensors"))
    network = state.average.network
    network.load_state_dict(distributed.broadcast(hub.read(best)[0] if distributed.rank() == 0 else {}))
    scores = evaluated(network, begin, begin.val, "fp32")
    if distributed.rank() == 0:
        scores.write(begin.folder / "val")
    distributed.say(
        f"best epoch {state.progress.best_epoch + 1}:\n{scores.table()}\nmodel: {best}\nscores: {begin.folder / 'val'}"
    )
    if distributed.rank() == 0:
        _draw(begin)
    return Trained(begin.folder, best, last, scores, state.progress.epoch)


def _draw(begin: Begin) -> None:
    """The curves of the methods that give numbers."""
    for name in (method.name for method in begin.distillers if method.columns):
        drawn = curves.method(begin.folder, name, begin.folder / f"{name}.png")
        distributed.say(f"curves: {drawn}" if drawn else curves.HINT)


def step_of(begin: Begin, precision: str) -> SupervisedStep:
    """The step of a run, around its network where that is; teachers go there."""
    config, info, plan = begin.config, begin.info, begin.plan
    task, device = TASKS[info.task], next(begin.network.parameters()).device
    for distiller in begin.distillers:
        distiller.to(device).prepare(device, PRECISIONS[precision])
    return SupervisedStep(
        begin.network,
        task,
        info.labels,
        info.input,
        loss=task.loss(info.labels, info.size),
        seed=config.seed,
        precision=precision,
        freeze=tuple(config.freeze),
        noise=config.noise,
        distillers=begin.distillers,
        scales=scales_of(begin) if plan.scales else None,
        quantiser=None if begin.quantiser is None else begin.quantiser.to(device),
    )


@contextmanager
def rounded(begin: Begin, network: nn.Module) -> Iterator[None]:
    """Inside, with ``qat``, the layers of a copy of the run's network compute in 8 bits; ranges stay as they are."""
    if begin.quantiser is None:
        yield
        return
    mode = begin.quantiser.training
    begin.quantiser.eval()
    try:
        with begin.quantiser.on(network):
            yield
    finally:
        begin.quantiser.train(mode)


def scales_of(begin: Begin) -> Scales:
    """At which input sizes a run trains. Raises ``ValueError`` for pictures that have sizes of their own."""
    plan, spec = begin.plan, begin.info.input
    if spec.resize == KEEP:
        raise ValueError(f"{begin.info.name} keeps the ratio of pictures: its recipe has Augment.shortest, no scales")
    return Scales(spec.size, plan.scales, plan.plain_from * plan.steps, begin.config.seed)


def batches_of(begin: Begin, device: torch.device) -> loader.Loader:
    """The training pictures of a run, this process' share."""
    spec = begin.info.input
    return loader.batches(
        begin.train,
        spec.size,
        begin.plan.batch,
        augment_of=begin.plan.augment_of,
        seed=begin.config.seed,
        workers=machine.workers(begin.config),
        rank=distributed.rank(),
        world=distributed.world(),
        pin=device.type == "cuda",
        resize=spec.resize,
    )


def _worst(begin: Begin, device: torch.device) -> Batch:
    """The largest batch that can come, for ``probe``."""
    augment, info, task = begin.plan.augment, begin.info, TASKS[begin.info.task]
    most = int(begin.train.learnable_counts().max()) * (4 if augment.mosaic else 1) * (2 if augment.mixup else 1)
    most = min(max(most, task.budget), MOST_OBJECTS)  # fewer objects can have fewer denoising queries
    spec = info.input
    own = Dataset(begin.train, spec.size, resize=spec.resize).largest(augment)
    size = scales_of(begin).sizes()[-1] if begin.plan.scales else own
    batch = worst_batch(size, begin.plan.batch, most, info.labels, device, task.truth)
    if spec.resize == KEEP:
        batch.valid = torch.ones(len(batch.images), *size, dtype=torch.bool, device=device)
    return batch


def evaluated(network: nn.Module, begin: Begin, pictures: Annotations, precision: str) -> Scores:
    """Scores of a network of a run on ``pictures``, over all processes."""
    return evaluate(
        network,
        begin.info,
        pictures,
        batch=begin.plan.batch,
        workers=min(machine.workers(begin.config), len(pictures) - 1),
        precision=precision,
        rank=distributed.rank(),
        world=distributed.world(),
        gather=distributed.gather,
    )


def _rehearse(scores: dict[str, float], task: Task) -> None:
    """One picture was evaluated before training: what fails in an evaluation fails now and not after an epoch."""
    missing = [name for name in task.scores if name not in scores]
    if missing:
        raise ValueError(f"the evaluation gives no {', '.join(missing)}; it gives {', '.join(scores)}")


def _keep(averaged: nn.Module, begin: Begin, best: bool) -> None:
    """Write the averaged weights as a model file."""
    if distributed.rank() == 0:
        for name in ("last", *(["best"] if best else [])):
            hub.save(averaged, begin.info, begin.folder / WEIGHTS / f"{name}.safetensors")
