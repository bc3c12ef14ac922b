"""Times stage 2, the distillation: its loader, the teacher, the networks, and the whole step with its loader.

All kinds take turns, so that a slow minute of the machine hits every one of them; medians over the rounds, with the
quartiles behind. The whole step is what ``edgecrafter distill`` does: worker processes decode and augment while the
networks compute. It should reach 85 % of the slower of loader and networks. A loader with worker processes is measured
with as many of them alone, one without in the main process. Random weights, which cost the same as others. Use an idle
machine.

    python benchmarks/distillation.py [IMAGES ...] [--write]
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from typing import Any

import torch

from edgecrafter import teachers, vits
from edgecrafter.data import loader, scenes, unlabelled
from edgecrafter.data.loader import Loader
from edgecrafter.data.unlabelled import Paths
from edgecrafter.data.views import Strength
from edgecrafter.distill.align import Alignment
from edgecrafter.distill.teacher import Teacher
from edgecrafter.infer import PRECISIONS
from edgecrafter.models.detector import ecvit
from edgecrafter.train import machine, optim
from edgecrafter.train.align import AlignStep
from edgecrafter.train.distill_config import DistillConfig
from edgecrafter.train.distill_plan import resolve
from edgecrafter.train.ema import Average
from edgecrafter.train.loop import Update, gradients
from edgecrafter.train.state import RunState
from edgecrafter.types import Batch, InputSpec

SAMPLES = Path(__file__).parents[1].parent / "shared" / "data" / "coco_mini"
"""pictures that are taken when none are named; generated scenes where they are absent"""
LEAST = 0.85
"""share of the slower of loader and networks that the whole step should reach"""


class Networks:
    """Teacher and student with the optimiser; calling it does a full step on a batch, as the training loop does."""

    def __init__(self, args: argparse.Namespace, folder: Path) -> None:
        self.device = machine.device(args.device)
        precision = machine.precision(args.precision, self.device)
        config = DistillConfig(student=args.student, batch=args.batch, imgsz=args.size, epochs=1)
        vit, row = vits.row_of(config.student)
        self.teacher: Teacher = teachers.teacher(args.teacher, weights="none")
        width = self.teacher.widths((args.size, args.size))[-1]
        alignment = Alignment(ecvit(row), row.vit, width).to(self.device)
        self.teacher.prepare(self.device, PRECISIONS[precision], args.compile)
        step = AlignStep(alignment, self.teacher, InputSpec((args.size, args.size)), precision)
        plan = resolve(config, vit, 1000 * args.batch)
        scaler = torch.amp.GradScaler(self.device.type, enabled=precision == "fp16")
        optimizer = optim.alignment(alignment, plan, "lars")
        self.state = RunState(alignment, Average(alignment, 0.0, 1), optimizer, scaler, plan, folder)
        if args.compile:
            alignment.compile()
        self.step, self.update = step, Update(step, self.state)

    def __call__(self, batch: Batch) -> None:
        optim.set_rates(self.state.optimizer, self.state.plan, self.state.progress.step)
        self.update(gradients(self.step, [batch], self.state), [batch])
        self.state.progress.step += 1
        self.wait()

    def teach(self, batch: Batch) -> None:
        """The teacher alone."""
        self.teacher(batch.images.to(self.device))
        self.wait()

    def wait(self) -> None:
        """Until the device has done everything."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def endless(batches: Loader) -> Iterator[Batch]:
    """One epoch after the other."""
    epoch = 0
    while True:
        batches.set_epoch(epoch)
        yield from batches
        epoch += 1


def rate(work: Callable[[], Any], steps: int, batch: int) -> float:
    """Images per second of some steps."""
    start = time.perf_counter()
    for _ in range(steps):
        work()
    return steps * batch / (time.perf_counter() - start)


def loading(paths: Paths, args: argparse.Namespace, workers: int, pin: bool) -> Loader:
    """The loader of a distillation. The list of pictures is repeated, so that no epoch ends while the clock runs."""
    steps = args.warm + args.steps * (args.rounds + 1)
    many = paths.subset(i % len(paths) for i in range(args.batch * steps))
    size = (args.size, args.size)
    return loader.views(many, size, args.batch, strength=Strength(), workers=workers, pin=pin)


def alone(paths: Paths, args: argparse.Namespace, workers: int, pin: bool) -> float:
    """Images per second of the loader with nothing beside it: long enough that filling its queue does not count."""
    stream = iter(endless(loading(paths, args, workers, pin)))
    for _ in range(args.warm):
        next(stream)
    steps = max(2 * args.steps, 4 * workers)
    for _ in range(2 * workers):
        next(stream)  # what was prepared before the clock started
    return rate(lambda: next(stream), steps, args.batch)


def measure(paths: Paths, args: argparse.Namespace, networks: Networks) -> dict[str, list[float]]:
    """Images per second of every round: ``loader N``, ``step N`` for N worker processes, ``teacher``, ``networks``."""
    pin = networks.device.type == "cuda"
    held = next(iter(loading(paths, args, 0, False)))
    found: dict[str, list[float]] = {}
    for number in range(args.rounds + 1):
        row = {f"loader {workers}": alone(paths, args, workers, pin) for workers in args.workers}
        row["teacher"] = rate(lambda: networks.teach(held), args.steps, args.batch)
        row["networks"] = rate(lambda: networks(held), args.steps, args.batch)
        for workers in args.workers:
            stream = iter(endless(loading(paths, args, workers, pin)))
            for _ in range(args.warm):
                networks(next(stream))
            row[f"step {workers}"] = rate(lambda stream=stream: networks(next(stream)), args.steps, args.batch)  # type: ignore[misc]
            del stream
        if number:  # the first round warms up
            for name, value in row.items():
                found.setdefault(name, []).append(value)
        print(", ".join(f"{name} {value:.1f}" for name, value in row.items()), flush=True)
    return found


def ratios(found: dict[str, list[float]], workers: int) -> list[float]:
    """Step / the slower of loader and networks, round by round."""
    columns = (found[f"step {workers}"], found[f"loader {workers}"], found["networks"])
    return [step / min(load, networks) for step, load, networks in zip(*columns, strict=True)]


def spread(values: list[float], digits: int = 1) -> str:
    """Median (quartiles)."""
    ordered = sorted(values)
    low, high = ordered[len(ordered) // 4], ordered[-1 - len(ordered) // 4]
    return f"{statistics.median(ordered):.{digits}f} ({low:.{digits}f} .. {high:.{digits}f})"


def report(found: dict[str, list[float]], args: argparse.Namespace, pictures: int, source: str) -> str:
    """A dated markdown page."""
    words = [f"--{name} {getattr(args, name)}" for name in ("student", "teacher", "size", "batch", "rounds", "steps")]
    words += [f"--threads {args.threads}", "--workers", *map(str, args.workers)]
    rows = [["teacher alone", spread(found["teacher"]), ""], ["networks alone", spread(found["networks"]), ""]]
    for workers in args.workers:
        rows.append([f"loader alone, workers={workers}", spread(found[f"loader {workers}"]), ""])
        share = spread(ratios(found, workers), 3)
        rows.append([f"whole step, workers={workers}", spread(found[f"step {workers}"]), share])
    best = {workers: statistics.median(ratios(found, workers)) for workers in args.workers}
    chosen = args.default if args.default in best else max(best, key=best.__getitem__)
    verdict = "reached" if best[chosen] >= LEAST else "NOT reached"
    table = [["what", "images/s", "step / slower of loader and networks"], ["---"] * 3, *rows]
    return "\n".join(
        [
            f"# Distillation of {args.student} from {args.teacher}, {date.today().isoformat()}",
            "",
            f"{_machine(args)}; {args.rounds} rounds of {args.steps} steps, medians (quartiles); {pictures} pictures "
            f"({source}).",
            "",
            f"`python benchmarks/distillation.py {' '.join(words)}`",
            "",
            *("| " + " | ".join(row) + " |" for row in table),
            "",
            f"The default here is workers={args.default}. {LEAST:.0%} of the slower of loader and networks: {verdict} "
            f"with workers={chosen}: {best[chosen]:.3f}.",
            "",
            "Networks: teacher forward, student forward and backward, LARS, on a batch in memory. Random weights. With "
            "workers=0 the main process loads between steps; a step cannot be faster than both in turn.",
            "",
        ]
    )


def _machine(args: argparse.Namespace) -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    gpu = torch.cuda.get_device_name() if machine.device(args.device).type == "cuda" else "no GPU used"
    precision = machine.precision(args.precision, machine.device(args.device))
    return (
        f"{name}, {os.cpu_count()} cores seen, {args.threads} threads, {gpu}, {precision}; Python "
        f"{platform.python_version()}, torch {torch.__version__}"
    )


def main() -> None:
    """Parse the command line, measure, print, and write if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="*", help="folders or data sets; none: the sample pictures, or scenes")
    parser.add_argument("--student", default="ecvit-t")
    parser.add_argument("--teacher", default="timm:vit_small_patch16_dinov3")
    parser.add_argument("--size", type=int, default=224, help="side of the views in pixels")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2], help="numbers of worker processes to try")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=3, help="per kind and round")
    parser.add_argument("--warm", type=int, default=1, help="steps of every kind before the clock starts")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--device", default="", help="cpu or cuda; empty: a GPU if there is one")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--write", action="store_true", help="write the page beside this file")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    args.default = machine.workers(DistillConfig())
    with tempfile.TemporaryDirectory() as folder:
        sources = args.images or ([SAMPLES] if SAMPLES.is_dir() else [scenes.write(folder, train=64, val=1, size=480)])
        paths, _ = unlabelled.gather(sources)
        names = ", ".join("generated scenes" if str(s).startswith(folder) else Path(s).name for s in sources)
        found = measure(paths, args, Networks(args, Path(folder)))
    text = report(found, args, len(paths), names)
    print(text)
    if args.write:
        target = Path(__file__).parent / f"{date.today().isoformat()}_distillation.md"
        target.write_text(text, encoding="utf-8")
        print(f"written to {target}")


if __name__ == "__main__":
    main()
