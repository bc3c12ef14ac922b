"""What distillation between detectors costs a training step: the same detector trained with and without each method.

Every round times a step of each kind in turn, so that a slow minute of the machine hits all of them; medians of the
ratios over the rounds, with the quartiles behind. Peak memory is that of a fresh process which takes three steps, less
that of one which only prepares them. Random weights, which cost the same as others. Use an idle machine.

    python benchmarks/clock.py [--model ecdet-s] [--teacher ecdet-l] [--size 320] [--batch 2] [--write]
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
from injection import Training
from run import resident

from edgecrafter.data import formats, loader, scenes
from edgecrafter.types import Batch

PAGE = Path(__file__).parent
KINDS = {
    "alone": [],
    "LCMD": ["clock", "tcld=false"],
    "TCLD": ["clock", "lcmd=false"],
    "CLoCKDistill": ["clock"],
    "KD-DETR": ["kd-detr"],
    "FitNet": ["fitnet"],
    "FGD": ["fgd"],
    "MGD": ["mgd"],
}
"""what is timed: options of ``--distill``, without the teacher"""


def training(args: argparse.Namespace, data: str, kind: str) -> Training:
    """The steps of one kind."""
    teacher = [f"teacher={args.teacher}", "teacher_weights=none"] if KINDS[kind] else []
    return Training(args, data, [*KINDS[kind], *teacher])


def one_batch(args: argparse.Namespace, data: str, found: Training) -> Batch:
    """A batch of the data."""
    size, plan = found.begin.info.input.size, found.begin.plan
    resize = found.begin.info.input.resize
    pictures = formats.load(data, "train")
    return next(iter(loader.batches(pictures, size, args.batch, augment_of=plan.augment_of, resize=resize)))


def times(args: argparse.Namespace, data: str) -> dict[str, list[float]]:
    """Seconds per step of every round, by kind."""
    kinds = {kind: training(args, data, kind) for kind in KINDS}
    batch = one_batch(args, data, kinds["alone"])
    found: dict[str, list[float]] = {kind: [] for kind in kinds}
    for number in range(args.rounds + 1):
        row = {kind: each.seconds(batch, args.steps) for kind, each in kinds.items()}
        print(", ".join(f"{kind} {value:.3f} s" for kind, value in row.items()), flush=True)
        for kind, value in row.items() if number else ():  # the first round warms up
            found[kind].append(value)
    return found


def memory(args: argparse.Namespace, data: str) -> dict[str, float]:
    """Megabytes that three steps take beyond what holds networks and pictures, by kind; with a teacher, its weights
    count."""
    base = peak(args, data, "alone", 0)
    return {kind: peak(args, data, kind, 3) - base for kind in KINDS}


def peak(args: argparse.Namespace, data: str, kind: str, steps: int) -> float:
    """Peak memory in megabytes of a fresh process after some steps of one kind."""
    words = [sys.executable, __file__, "--alone", data, kind, str(steps), *given(args)]
    return float(subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True).stdout.split()[-1])


def alone(args: argparse.Namespace) -> None:
    """What a process does whose memory is measured: some steps of one kind, if any; prints its peak."""
    data, kind, steps = args.alone
    found = training(args, data, kind)
    if int(steps):
        found.seconds(one_batch(args, data, found), int(steps))
    print(resident("VmHWM"))


def lines(found: dict[str, list[float]], peaks: dict[str, float]) -> list[str]:
    """A table: seconds per step, its ratio to a step without distillation, and the same of memory."""
    rows = ["| | seconds | ratio to alone | quartiles | memory, ratio |", "| --- | --- | --- | --- | --- |"]
    for kind, values in found.items():
        ratios = sorted(value / base for value, base in zip(values, found["alone"], strict=True))
        quartiles = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else [ratios[0]] * 3
        rows.append(
            f"| {kind} | {statistics.median(values):.3f} | {statistics.median(ratios):.2f} | {quartiles[0]:.2f} to "
            f"{quartiles[2]:.2f} | {peaks[kind]:.0f} MB, {peaks[kind] / peaks['alone']:.2f} |"
        )
    return rows


def given(args: argparse.Namespace) -> list[str]:
    """The options as words."""
    kept = {name: value for name, value in vars(args).items() if name not in ("write", "alone") and value}
    return [word for name, value in kept.items() for word in (f"--{name}", str(value))]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="ecdet-s")
    parser.add_argument("--teacher", default="ecdet-l")
    parser.add_argument("--size", type=int, default=320)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--write", action="store_true", help="append to a page beside this script")
    parser.add_argument("--alone", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.alone:
        alone(args)
        return
    with tempfile.TemporaryDirectory() as folder:
        data = str(Path(folder) / "scenes")
        scenes.write(data, 4 * args.batch, 1, size=args.size, seed=0)
        table = lines(times(args, data), memory(args, data))
    print("\n".join(table))
    if args.write:
        head = [
            f"# What distillation between detectors costs a step, {date.today()}",
            "",
            f"`python benchmarks/clock.py {' '.join(given(args))}` on {platform.processor() or platform.machine()}, "
            f"{os.cpu_count()} cores, torch {torch.__version__}; {args.rounds} rounds, medians.",
            "",
        ]
        page = PAGE / f"{date.today()}_clock.md"
        before = page.read_text() + "\n" if page.exists() else ""
        page.write_text(before + "\n".join([*head, *table, ""]))


if __name__ == "__main__":
    main()
