"""A whole distillation (EdgeCrafter, stage 2): pictures, teacher and student, the loop, and the file that it leaves."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import nn

from edgecrafter import vits
from edgecrafter.data import loader, unlabelled
from edgecrafter.data.loader import Loader
from edgecrafter.data.unlabelled import Paths
from edgecrafter.data.views import Strength, Views
from edgecrafter.distill.align import TERM, Alignment, in_words
from edgecrafter.distill.teacher import Teacher
from edgecrafter.infer import PRECISIONS
from edgecrafter.models.sizes import Size
from edgecrafter.teachers import teacher as find_teacher
from edgecrafter.train import distributed, machine, optim
from edgecrafter.train.align import AlignStep
from edgecrafter.train.begin import clear
from edgecrafter.train.distill_config import DistillConfig
from edgecrafter.train.distill_plan import report, resolve
from edgecrafter.train.ema import Average
from edgecrafter.train.log import Journal
from edgecrafter.train.loop import fit
from edgecrafter.train.recipes import Plan
from edgecrafter.train.state import WEIGHTS, RunState, interrupted, new_folder, read_of
from edgecrafter.types import Batch, InputSpec

SHARE, MOST = 50, 256
"""one picture in so many is kept out of the training to measure what was learned, and at most so many"""
FEW_SHARE, FEW = 5, 16
"""of few pictures: one in so many, up to so many"""
SCORE = "explained"
UNREADABLE = "unreadable.txt"
FREE_ON_RESUME = ("device", "workers", "resume", "project", "name", "exist_ok", "images", "teacher", "teacher_weights")
"""options that may differ when a run goes on: files may have moved"""


@dataclass(frozen=True)
class Distilled:
    """What a distillation leaves behind."""

    folder: Path
    backbone: Path
    """the vision transformer alone, in the released layout: what ``train --backbone`` takes"""
    explained: float
    """share of the variance of the teacher's features that the student gives, on pictures that were kept out"""
    epochs: int


@dataclass
class Begin:
    """Everything that a run starts with."""

    alignment: Alignment
    teacher: Teacher
    row: Size
    train: Paths
    kept_out: Paths
    plan: Plan
    folder: Path
    config: DistillConfig
    saved: dict[str, Any] | None = None
    """the state to go on from"""
    unreadable: dict[str, str] = field(default_factory=dict)
    """path -> reason of pictures that are left out"""


def distill(config: DistillConfig, teacher: nn.Module | None = None) -> Distilled:
    """Distil a teacher into a vision transformer, without labels.

    Writes into ``project/name``: ``args.yaml`` (all options and the plan), ``results.csv``, TensorBoard events when
    that is installed, ``weights/backbone.safetensors`` (the student alone, after every epoch), ``weights/last.pt`` (to
    go on from; the teacher is not in it) and ``unreadable.txt`` when pictures could not be read. ``teacher``: a module
    instead of the one that the options name.

    Raises:
        ValueError, FileNotFoundError: options, pictures or weights that cannot be used, or no finite losses.
    """
    device = machine.device(config.device)
    with distributed.session(device):
        begin = _continued(config, teacher) if config.resume else _fresh(config, teacher)
        return _run(begin, device)


def _fresh(config: DistillConfig, module: nn.Module | None) -> Begin:
    begin = prepared(config, module)
    begin.folder = distributed.broadcast(
        new_folder(config.project, config.name, config.exist_ok) if distributed.rank() == 0 else Path()
    )
    if distributed.rank() == 0:
        clear(begin.folder)
        (begin.folder / UNREADABLE).unlink(missing_ok=True)
        content = {"options": config.to_dict(), "plan": begin.plan.to_dict(), "teacher": begin.teacher.name}
        (begin.folder / "args.yaml").write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), "utf-8")
    return begin


def prepared(config: DistillConfig, module: nn.Module | None = None) -> Begin:
    """Pictures, networks and plan of a new run; nothing is written."""
    vit, row = vits.changed(config.student, config.to_dict())
    train, kept_out, unreadable, lines = _pictures(config)
    with distributed.first_process_first():
        alignment, teacher, said = _networks(config, row, module)
    plan = resolve(config, vit, len(train), distributed.world())
    distributed.say("\n".join([*lines, *said, report(plan, config.optimizer)]))
    return Begin(alignment, teacher, row, train, kept_out, plan, Path(), config, None, unreadable)


def _continued(asked: DistillConfig, module: nn.Module | None) -> Begin:
    """The run that ``asked.resume`` means, with its own options. Raises ``ValueError`` if others were asked for."""
    folder = distributed.broadcast(interrupted(asked.resume, asked.project) if distributed.rank() == 0 else Path())
    saved = read_of("distill", folder)
    config, given = DistillConfig.from_dict(saved["config"]), asked.given()
    for name, value in given.items():
        if name not in FREE_ON_RESUME and value != getattr(config, name):
            raise ValueError(
                f"{name}={value}: the run in {folder} was started with {getattr(config, name)} and goes on with its "
                f"own options. Leave it out, or start a new run with weights={folder}/{WEIGHTS}/{vits.BACKBONE}"
            )
    moved = {name: given[name] for name in ("workers", "images", "teacher", "teacher_weights") if name in given}
    config = replace(config, device=asked.device, **moved)
    train, kept_out, unreadable, _ = _pictures(config)
    plan = Plan.from_dict(saved["plan"])
    if saved["world"] != distributed.world() or len(train) != plan.pictures:
        raise ValueError(
            f"{folder} was started with {saved['world']} processes and {plan.pictures} pictures; now these are "
            f"{distributed.world()} and {len(train)}. A run goes on with the same pictures and processes only"
        )
    _, row = vits.changed(config.student, config.to_dict())
    alignment, teacher, _ = _networks(replace(config, weights="none"), row, module)
    distributed.say(f"going on after epoch {saved['progress']['epoch']}\n{report(plan, config.optimizer)}")
    return Begin(alignment, teacher, row, train, kept_out, plan, folder, config, saved, unreadable)


def _pictures(config: DistillConfig) -> tuple[Paths, Paths, dict[str, str], list[str]]:
    """Pictures to train on, those kept out of it, those that were found unreadable, and what to say.

    The first process looks and decides for all: what is on their disks may differ.
    """
    found = distributed.broadcast(_looked(config) if distributed.rank() == 0 else None)
    assert found is not None
    return found


def to_keep_out(pictures: int) -> int:
    """How many of so many pictures are kept out."""
    return min(MOST, max(1, min(FEW, pictures // FEW_SHARE), pictures // SHARE))


def _looked(config: DistillConfig) -> tuple[Paths, Paths, dict[str, str], list[str]]:
    paths, lines = unlabelled.gather(config.images)
    count = to_keep_out(len(paths))
    order = np.random.default_rng([config.seed, len(paths)]).permutation(len(paths))
    kept, unreadable = unlabelled.readable(paths, order, count)
    used = np.sort(order[len(kept) + len(unreadable) :])
    if not len(used):
        raise ValueError(f"images={config.images}: {len(kept)} pictures that can be read are not enough")
    lines.append(f"{len(used)} pictures to learn from, {len(kept)} kept out to measure with")
    return paths.subset(used), paths.subset(sorted(kept)), unreadable, lines


def _networks(config: DistillConfig, row: Size, module: nn.Module | None) -> tuple[Alignment, Teacher, list[str]]:
    given: str | nn.Module = config.teacher if module is None else module
    teacher = find_teacher(given, config.teacher_blocks, config.norm, config.teacher_weights, config.seed)
    widths = teacher.widths((config.imgsz, config.imgsz))
    if not 1 <= config.student_blocks <= row.depth:
        raise ValueError(f"student_blocks={config.student_blocks}: the student has {row.depth} blocks")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        student, line = vits.made(row, config.weights)
        alignment = Alignment(student, row.vit, widths[-1], config.student_blocks)
    where = f" ({given})" if module is None and str(given) not in teacher.name else ""
    lines = [f"teacher: {teacher.name}{where}", f"  licence: {teacher.licence or 'not stated'}"]
    lines.append(f"student: {config.student}, {line}")
    return alignment, teacher, lines


def _run(begin: Begin, device: torch.device) -> Distilled:
    config, plan = begin.config, begin.plan
    precision = machine.precision(config.precision, device)
    step = step_of(begin, device, precision)
    alignment = begin.alignment
    average = Average(alignment, plan.ema, plan.ema_warmup)  # a copy: the paper averages nothing here
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
    optimizer = optim.alignment(alignment, plan, config.optimizer)
    state = RunState(alignment, average, optimizer, scaler, plan, begin.folder, config.to_dict())
    if begin.saved is None:
        state.save()
    else:
        state.load(begin.saved)
        begin.saved = None
    if config.compile:
        alignment.compile()
    batches, kept_out = batches_of(begin, device)
    journal = Journal(begin.folder, (TERM,), (SCORE,), plan.epochs, state.progress.epoch)
    distributed.say(f"results in {begin.folder}; after an interruption go on with resume={begin.folder}")

    def keep(averaged: nn.Module, _best: bool) -> None:
        if distributed.rank() == 0:
            _save(averaged, begin)
        _list_unreadable(batches, begin)

    def score(averaged: nn.Module) -> dict[str, float]:
        return {SCORE: step.explained(averaged, kept_out)}

    with closing(journal):
        fit(step, batches, score, state, journal, watch=SCORE, val_every=config.val_every, keep=keep)
    explained = score(state.average.network)[SCORE]
    backbone = begin.folder / WEIGHTS / vits.BACKBONE
    distributed.say(
        f"{in_words(explained, f'{len(begin.kept_out)} pictures that it has not seen')}\n"
        f"backbone: {backbone}   (edgecrafter train --backbone {begin.folder} ...)"
    )
    return Distilled(begin.folder, backbone, explained, state.progress.epoch)


def step_of(begin: Begin, device: torch.device, precision: str) -> AlignStep:
    """The step of a run; teacher and student move to ``device``."""
    config = begin.config
    begin.teacher.prepare(device, PRECISIONS[precision], config.compile)
    return AlignStep(begin.alignment.to(device), begin.teacher, InputSpec((config.imgsz, config.imgsz)), precision)


def batches_of(begin: Begin, device: torch.device) -> tuple[Loader, list[Batch]]:
    """Random views of the training pictures, and the middle of those kept out, each process' share."""
    config, size = begin.config, (begin.config.imgsz, begin.config.imgsz)
    rank, world = distributed.rank(), distributed.world()
    batches = loader.views(
        begin.train,
        size,
        begin.plan.batch,
        seed=config.seed,
        strength=Strength(mixup=config.mixup),
        workers=machine.workers(config),
        rank=rank,
        world=world,
        pin=device.type == "cuda",
    )
    share = (
        begin.kept_out
        if len(begin.kept_out) < world
        else begin.kept_out.subset(range(rank, len(begin.kept_out), world))
    )
    return batches, list(loader.views(share, size, begin.plan.batch))


def _save(averaged: nn.Module, begin: Begin) -> None:
    student = averaged.get_submodule("student")
    notes = {"teacher": begin.teacher.name, "student": begin.config.student}
    terms = f": {begin.teacher.licence}" if begin.teacher.licence else ""
    licence = f"distilled by you with edgecrafter (Apache-2.0 code) from {begin.teacher.name}{terms}"
    vits.save(student, begin.row, begin.folder / WEIGHTS / vits.BACKBONE, {**notes, "licence": licence})


def _list_unreadable(batches: Loader, begin: Begin) -> None:
    """Write which pictures could not be read so far, also before an interruption; new ones are said once."""
    dataset = batches.dataset
    assert isinstance(dataset, Views)
    found = dict(begin.unreadable)
    for part in distributed.gather(dataset.unreadable):
        found |= part
    path = begin.folder / UNREADABLE
    if distributed.rank() != 0:
        return
    known = path.read_text(encoding="utf-8", errors="surrogateescape").splitlines() if path.exists() else []
    lines = sorted({*known, *(f"{name}\t{why}" for name, why in found.items())})
    if len(lines) > len(known):
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", errors="surrogateescape")
        distributed.say(f"{len(lines)} pictures cannot be read and are skipped, listed in {path}")
