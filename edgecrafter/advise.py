"""Which teacher for this student? A look at the candidates on a sample of the pictures, before days are spent."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from edgecrafter import vits
from edgecrafter.data import loader, unlabelled
from edgecrafter.distill import advise as numbers
from edgecrafter.distill.teacher import Teacher
from edgecrafter.infer import PRECISIONS
from edgecrafter.models.sizes import Size
from edgecrafter.teachers import teacher as find_teacher
from edgecrafter.train import machine
from edgecrafter.train.distill_config import DistillConfig
from edgecrafter.types import InputSpec

PICTURES, TOKENS, BATCH = 256, 64, 16
"""most pictures looked at, half to fit and half to test; places looked at in each; pictures in one pass"""

WORDS = """\
ceiling: the most that a linear layer on a student of this width could give of the teacher's features, whatever it
learns; ridge: what it gives now, on pictures that the fit has not seen; cka: likeness up to rotation and scale.
A low ceiling, or a ridge value well below that of a teacher of the same family, warns that the teacher is too far away
for this student. Compare within a family only: features that carry little, even those of an untrained network, are
easy to reach and look good here.
None of this predicts AP. In the paper (ECViT-T+, Table 5) DINOv3-L gave 52.6, less than DINOv3-B with 54.3, although it
is the stronger network, and adapting the teacher to detection was worth 0.8, which no number here measures."""


@dataclass(frozen=True)
class Advice:
    """What was found of one candidate; shares are at most 1, and None where ``reason`` says why there is nothing."""

    teacher: str
    width: int = 0
    """channels of its maps"""
    parameters: int = 0
    ceiling: float | None = None
    """share of the variance of its features within the best directions, as many as the student is wide"""
    ridge: float | None = None
    """held-out share that a ridge regression from the student's last block gives"""
    cka: float | None = None
    """linear centred kernel alignment of the two last blocks"""
    images_per_second: float = 0.0
    """of the teacher alone, on this machine"""
    memory: float = 0.0
    """megabytes at the peak: of the GPU, or of this whole process on a CPU (0: not known on this system)"""
    licence: str = ""
    reason: str = ""


@dataclass(frozen=True)
class Sample:
    """What all candidates are shown, and what the student makes of it."""

    batches: list[Tensor]
    """uint8 [B, 3, H, W], on the device"""
    student: list[Tensor]
    """maps [B, D_S, h, w] of its last block, on the CPU"""


def advise(config: DistillConfig) -> list[Advice]:
    """Compare the teachers ``config.advise`` for the student on a sample of the pictures, and print a table.

    A candidate that cannot be had, for want of a network say, becomes a row with the reason. Nothing is trained or
    written. Raises ``ValueError`` and ``FileNotFoundError`` for pictures or student weights that cannot be used.
    """
    device = machine.device(config.device)
    precision = PRECISIONS[machine.precision(config.precision, device)]
    student, row, said = _student(config)
    pictures, lines = _pictures(config, device)
    print("\n".join([*lines, said]), flush=True)
    student = student.to(device).eval()
    spec = InputSpec()
    with torch.inference_mode():
        maps = [student.features(spec.normalise(x), 1)[0].float().cpu() for x in pictures]  # type: ignore[operator]
    del student
    sample, found = Sample(pictures, maps), []
    for name in config.advise:
        try:
            found.append(_look(name, config, row.vit, sample, device, precision))
        except (ValueError, OSError, ImportError, torch.OutOfMemoryError) as error:
            found.append(Advice(name, reason=" ".join(str(error).split())))
        gc.collect()
    print(f"{table(found)}\n\n{WORDS}", flush=True)
    return found


def table(rows: Sequence[Advice]) -> str:
    """The rows as text in columns; reasons follow below."""
    head = ["teacher", "width", "parameters", "ceiling", "ridge", "cka", "images/s", "memory"]
    cells = [head]
    for row in rows:
        shares = [f"{value:.3f}" if value is not None else "-" for value in (row.ceiling, row.ridge, row.cka)]
        costs = [f"{row.images_per_second:.1f}", f"{row.memory:.0f} MB" if row.memory else "?"]
        sizes = [str(row.width), f"{row.parameters / 1e6:.1f} M"]
        cells.append([row.teacher, *(["-"] * 7 if row.reason else [*sizes, *shares, *costs])])
    widths = [max(len(line[i]) for line in cells) for i in range(len(head))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells]
    return "\n".join(lines + [f"{row.teacher}: {row.reason}" for row in rows if row.reason])


def _student(config: DistillConfig) -> tuple[nn.Module, Size, str]:
    _, row = vits.changed(config.student, config.to_dict())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        student, line = vits.made(row, config.weights)
    if config.weights == "none":
        line = (
            f"with random weights of seed {config.seed}; ridge and cka say how much of each teacher plain local "
            "features already give. With weights=FILE they are about a student that has learned"
        )
    return student, row, f"student: {config.student}, {line}"


def _pictures(config: DistillConfig, device: torch.device) -> tuple[list[Tensor], list[str]]:
    """The middles of some pictures, those to fit first, and what to say of them."""
    paths, lines = unlabelled.gather(config.images)
    order = np.random.default_rng([config.seed, len(paths)]).permutation(len(paths))
    chosen, failed = unlabelled.readable(paths, order, PICTURES)
    if len(chosen) < 4:
        raise ValueError(f"images={config.images}: {len(chosen)} pictures that can be read are too few to compare")
    half = len(chosen) // 2
    views: list[Tensor] = []
    for part in (chosen[:half], chosen[half:]):
        batches = loader.views(paths.subset(part), (config.imgsz, config.imgsz), BATCH)
        views += [batch.images.to(device) for batch in batches]
    lines += [f"{len(failed)} pictures that cannot be read are passed over"] if failed else []
    lines.append(f"{len(chosen)} pictures are looked at, {half} to fit and {len(chosen) - half} to test")
    return views, lines


def _look(
    name: str, config: DistillConfig, width: int, sample: Sample, device: torch.device, precision: torch.dtype
) -> Advice:
    """All numbers of one candidate."""
    _reset_peak(device)
    teacher = find_teacher(name, config.teacher_blocks, config.norm, config.teacher_weights, config.seed)
    teacher.widths((config.imgsz, config.imgsz))
    teacher.prepare(device, precision, config.compile)
    targets: list[list[Tensor]] = [[] for _ in range(teacher.blocks)]
    own, seconds = [], []
    teacher(sample.batches[0])  # the first pass of a shape is slower than the others
    for number, (images, student) in enumerate(zip(sample.batches, sample.student, strict=True)):
        maps, took = _timed(teacher, images, device)
        seconds.append(took / len(images))
        grid = (int(maps[-1].shape[2]), int(maps[-1].shape[3]))
        where = numbers.places(len(images), grid, TOKENS, config.seed + number)
        own.append(numbers.tokens(student, grid, where))
        for block, each in zip(targets, maps, strict=True):
            block.append(numbers.tokens(each.cpu(), grid, where))
    pictures = [len(each) for each in sample.batches]
    start = sum(pictures[: _split(pictures)]) * (len(own[0]) // pictures[0])
    x, y = torch.cat(own), [torch.cat(block) for block in targets]
    return Advice(
        teacher=name,
        width=y[-1].shape[1],
        parameters=sum(p.numel() for p in teacher.network.parameters()),
        ceiling=numbers.ceiling(y, width),
        ridge=numbers.ridge(x[:start], [b[:start] for b in y], x[start:], [b[start:] for b in y]),
        cka=numbers.cka(x, y[-1]),
        images_per_second=1 / statistics.median(seconds),
        memory=_peak(device),
        licence=teacher.licence,
    )


def _split(pictures: Sequence[int]) -> int:
    """How many of the batches are to fit: both halves have the same number of them, or the second one more."""
    return len(pictures) // 2


def _timed(teacher: Teacher, images: Tensor, device: torch.device) -> tuple[list[Tensor], float]:
    start = time.perf_counter()
    maps = teacher(images)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return maps, time.perf_counter() - start


def _reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    marks = Path("/proc/self/clear_refs")
    if marks.exists():
        try:
            marks.write_text("5")  # sets VmHWM of this process back (man 5 proc)
        except OSError:
            return


def _peak(device: torch.device) -> float:
    """Megabytes since ``_reset_peak``."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")), 0.0)
