"""Where a run begins: the data, the network and the plan of a new run, or of one that goes on."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import nn

from edgecrafter import hub
from edgecrafter.data import check, formats
from edgecrafter.data.annotations import Annotations
from edgecrafter.distill.base import Distiller
from edgecrafter.hub import ModelInfo
from edgecrafter.models import foreign
from edgecrafter.models.network import Detector
from edgecrafter.start import origin, start
from edgecrafter.tasks import TASKS, Task
from edgecrafter.train import distributed, qat, recipes
from edgecrafter.train.config import ARCHITECTURE, TrainConfig
from edgecrafter.train.log import CSV
from edgecrafter.train.methods import METHODS, distillers, parsed
from edgecrafter.train.qat import Quantiser
from edgecrafter.train.recipes import Plan
from edgecrafter.train.state import WEIGHTS, interrupted, new_folder, read_of, run_project
from edgecrafter.train.steps import freeze_parts

FREE_ON_RESUME = ("device", "workers", "resume", "project", "name", "exist_ok", "data")
"""options that may differ when a run goes on: they do not change its result. The data may have moved"""


@dataclass
class Begin:
    """Everything that a run starts with."""

    network: Detector
    info: ModelInfo
    train: Annotations
    val: Annotations
    plan: Plan
    folder: Path
    config: TrainConfig
    saved: dict[str, Any] | None = None
    """the state to go on from"""
    distillers: list[Distiller] = field(default_factory=list)
    quantiser: Quantiser | None = None
    """of a run with ``qat``"""


def fresh(config: TrainConfig, backbone: nn.Module | None = None) -> Begin:
    """Read the data, make the network, the plan, and the folder with ``args.yaml``. ``backbone``: a module to build the
    detector around."""
    begin = prepared(config, backbone)
    begin.folder = distributed.broadcast(
        new_folder(run_project(config.project, begin.info.task), config.name, config.exist_ok)
        if distributed.rank() == 0
        else Path()
    )
    if distributed.rank() == 0:
        clear(begin.folder)
        _write_args(begin)
    return begin


def prepared(config: TrainConfig, backbone: nn.Module | None = None) -> Begin:
    """The same without a folder: nothing is written."""
    parsed(config.distill)  # before anything is read or fetched
    given = origin(config.model)
    if config.noise not in given.task.noises:
        known = ", ".join(given.task.noises)
        raise ValueError(f"noise={config.noise}: the denoising of {given.task.name} models knows {known}")
    training, validation = _data(config, given.task)
    options = {name: getattr(config, name) for name in ARCHITECTURE if getattr(config, name) is not None}
    with torch.random.fork_rng(devices=[]), distributed.first_process_first():  # which may have to download
        torch.manual_seed(config.seed)
        network, info, lines, random_vit = start(
            given,
            training.labels,
            config.imgsz,
            config.weights,
            config.backbone if backbone is None else backbone,
            config.backbone_weights,
            **options,
        )
    freeze_parts(network, tuple(config.freeze))  # an unknown part is an error before anything is written
    recipe = recipes.recipe_for(info.name)
    if config.qat:
        config, recipe = qat.settings(config, recipe, info.source == hub.RANDOM)
    plan = recipes.resolve(config, recipe, len(training), distributed.world(), random_vit)
    with distributed.first_process_first():
        methods = distillers(config, info, plan)
    for method in methods:
        method.check(network)
    licences = [info.licence, *(m.licence() for m in methods if m.licence() and m.licence() not in info.licence)]
    info = replace(info, licence="; ".join(licences))
    told = [line for method in methods for line in method.report()]
    distributed.say("\n".join([*lines, *_crowded(training, info), plan.report(), *told]))
    quantiser = Quantiser(network, info.size.arch) if config.qat else None
    return Begin(network, info, training, validation, plan, Path(), config, distillers=methods, quantiser=quantiser)


def continued(asked: TrainConfig, backbone: nn.Module | None = None) -> Begin:
    """The run that ``asked.resume`` means, with its own options. Raises ``ValueError`` if other options were asked."""
    folder = distributed.broadcast(interrupted(asked.resume, asked.project) if distributed.rank() == 0 else Path())
    saved = read_of("train", folder)
    config = TrainConfig.from_dict(saved["config"])
    given = asked.given()
    for name, value in given.items():
        if name not in FREE_ON_RESUME and value != getattr(config, name):
            raise ValueError(
                f"{name}={value}: the run in {folder} was started with {getattr(config, name)} and goes on with "
                f"its own options. Leave it out, or start a new run with model={folder}/{WEIGHTS}/last.safetensors"
            )
    config = replace(
        config, device=asked.device, workers=given.get("workers", config.workers), data=given.get("data", config.data)
    )
    info = distributed.broadcast(
        hub.read(folder / WEIGHTS / "last.safetensors")[1] if distributed.rank() == 0 else None
    )
    assert info is not None
    plan = Plan.from_dict(saved["plan"])
    training, validation = _data(config, TASKS[info.task])
    if saved["world"] != distributed.world() or training.labels != info.labels or len(training) != plan.pictures:
        raise ValueError(
            f"{folder} was started with {saved['world']} processes, {plan.pictures} pictures and the classes "
            f"{', '.join(info.labels.names)}; now these are {distributed.world()}, {len(training)} and "
            f"{', '.join(training.labels.names)}. A run goes on with the same data and number of processes only"
        )
    distributed.say(f"going on after epoch {saved['progress']['epoch']}\n{plan.report()}")
    vit = None if backbone is None else foreign.adopt(backbone, info.size.fused)
    with distributed.first_process_first():
        methods = distillers(config, info, plan)
    network = hub.build(info, vit)
    quantiser = Quantiser(network, info.size.arch) if config.qat else None
    return Begin(network, info, training, validation, plan, folder, config, saved, methods, quantiser)


def _data(config: TrainConfig, task: Task) -> tuple[Annotations, Annotations]:
    """Training and validation pictures with the truth that the task wants, looked at and reported."""
    if not config.data:
        raise ValueError("no data given: data=FOLDER, or a data.yaml or COCO json file")
    training = check.usable(formats.load(config.data, "train", truth=task.truth))
    validation = check.usable(formats.load(config.data, "val", training.labels, truth=task.truth))
    if not task.background:
        training = _with_objects(training)
    for name, found in (("train", training), ("val", validation)):
        distributed.say("\n  ".join([f"{name}: {found.root}", *check.report(found)]))
        if not found.learnable().any():
            raise ValueError(f"{found.root}: no objects in the {name} pictures, nothing can be learned or scored")
    return training, validation


def _with_objects(found: Annotations) -> Annotations:
    """Without the pictures that have nothing to learn, and a note of how many there were."""
    learnable = np.bincount(found.image_index()[found.learnable()], minlength=len(found)) > 0
    if learnable.all() or not learnable.any():
        return found
    return found.subset(learnable).noted(f"pictures without objects to learn, left out: {int((~learnable).sum())}")


def _crowded(training: Annotations, info: ModelInfo) -> list[str]:
    """A warning when pictures have nearly as many objects as the model has queries."""
    many, queries = int(np.percentile(training.learnable_counts(), 99)), info.size.queries
    if many <= 0.6 * queries:
        return []
    return [
        f"note: one picture in a hundred has {many} objects or more; {queries} queries are few, try queries={2 * many}"
    ]


def clear(folder: Path) -> None:
    """Remove what an earlier run left in a folder that is used again."""
    pictures = (folder / f"{name}.png" for name in METHODS)
    for old in [*(folder / WEIGHTS).glob("*"), folder / CSV, *pictures, *(folder / "val").glob("*")]:
        if old.is_file():
            old.unlink()


def _write_args(begin: Begin) -> None:
    """All options and the plan, beside the weights."""
    content = {
        "options": begin.config.to_dict(),
        "plan": begin.plan.to_dict(),
        "classes": list(begin.info.labels.names),
        **({"distill": {method.name: method.settings() for method in begin.distillers}} if begin.distillers else {}),
    }
    (begin.folder / "args.yaml").write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), "utf-8")
