"""What DSI and GAM (RT-DETRv4) cost a training step: the same detector trained with and without them, in turns.

Every round times a few steps without a teacher, with one, with one and GAM, and the teacher alone on the same batch, so
that a slow minute of the machine hits all of them; medians of the ratios over the rounds, with the quartiles behind.
Random weights, which cost the same as others. Use an idle machine.

    python benchmarks/injection.py [--model rtdetrv4-s] [--teacher dinov3-s] [--size 640] [--batch 2] [--write]
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import tempfile
import time
from datetime import date
from pathlib import Path

import torch

from edgecrafter.data import formats, loader, scenes
from edgecrafter.train import machine, run
from edgecrafter.train.begin import Begin, prepared
from edgecrafter.train.config import TrainConfig
from edgecrafter.train.ema import Average
from edgecrafter.train.loop import Update, gradients
from edgecrafter.train.optim import adamw, set_rates
from edgecrafter.train.state import RunState
from edgecrafter.types import Batch

PAGE = Path(__file__).parent


class Training:
    """The steps of one run, as the training loop takes them."""

    def __init__(self, args: argparse.Namespace, data: str, methods: list[str]) -> None:
        self.device = machine.device(args.device)
        precision = machine.precision(args.precision, self.device)
        config = TrainConfig(
            model=args.model, data=data, epochs=10, batch=args.batch, imgsz=args.size, weights="none", distill=methods,
            augment="light",
        )  # fmt: skip
        self.begin: Begin = prepared(config)
        network = self.begin.network.to(self.device)
        self.step = run.step_of(self.begin, precision)
        plan = self.begin.plan
        average, optimizer = Average(network, 0.0, 1), adamw(network, plan, self.step.distillers)
        scaler = torch.amp.GradScaler(self.device.type, enabled=precision == "fp16")
        self.state = RunState(network, average, optimizer, scaler, plan, Path(), {}, self.step.distillers)
        self.update = Update(self.step, self.state)

    def seconds(self, batch: Batch, steps: int) -> float:
        """Mean time of a step."""
        self.wait()
        start = time.perf_counter()
        for _ in range(steps):
            set_rates(self.state.optimizer, self.state.plan, self.state.progress.step)
            self.update(gradients(self.step, [batch], self.state), [batch])
            self.state.progress.step += 1
        self.wait()
        return (time.perf_counter() - start) / steps

    def teacher(self, batch: Batch, steps: int) -> float:
        """Mean time of the teacher alone, its view of the pictures included."""
        dsi = self.begin.distillers[0]
        images = batch.images.to(self.device)
        self.wait()
        start = time.perf_counter()
        for _ in range(steps):
            dsi.teacher(dsi.seen(images))  # type: ignore[operator]
        self.wait()
        return (time.perf_counter() - start) / steps

    def wait(self) -> None:
        """Until the device has done everything."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def measure(args: argparse.Namespace, folder: Path) -> dict[str, list[float]]:
    """Seconds of every round, by name."""
    scenes.write(folder, 4 * args.batch, 1, size=args.size, seed=0)
    teacher = [f"teacher={args.teacher}", "teacher_weights=none"]
    kinds = {
        "without": Training(args, str(folder), []),
        "DSI": Training(args, str(folder), ["dsi", *teacher, "gam=none"]),
        "DSI and GAM": Training(args, str(folder), ["dsi", *teacher, "gam=released", "rho=11"]),
    }
    begin = kinds["without"].begin
    size, plan = begin.info.input.size, begin.plan
    batches = loader.batches(formats.load(folder, "train"), size, args.batch, augment_of=plan.augment_of, workers=0)
    batch = next(iter(batches))
    found: dict[str, list[float]] = {}
    for number in range(args.rounds + 1):
        row = {name: training.seconds(batch, args.steps) for name, training in kinds.items()}
        row["teacher alone"] = kinds["DSI"].teacher(batch, args.steps)
        print(", ".join(f"{name} {value:.3f} s" for name, value in row.items()), flush=True)
        if number:  # the first round warms up
            for name, value in row.items():
                found.setdefault(name, []).append(value)
    return found


def lines(found: dict[str, list[float]]) -> list[str]:
    """A table: seconds per step, and the ratio to a step without a teacher."""
    rows = ["| | seconds | ratio to a step without | quartiles |", "| --- | --- | --- | --- |"]
    for name, values in found.items():
        ratios = sorted(value / base for value, base in zip(values, found["without"], strict=True))
        quartiles = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else [ratios[0]] * 3
        rows.append(
            f"| {name} | {statistics.median(values):.3f} | {statistics.median(ratios):.3f} | "
            f"{quartiles[0]:.3f} to {quartiles[2]:.3f} |"
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="rtdetrv4-s")
    parser.add_argument("--teacher", default="dinov3-s")
    parser.add_argument("--size", type=int, default=640)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--write", action="store_true", help="write a page beside this script")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        table = lines(measure(args, Path(folder) / "scenes"))
    print("\n".join(table))
    if args.write:
        words = " ".join(f"--{name} {value}" for name, value in vars(args).items() if value and name != "write")
        head = [
            f"# What DSI costs a training step, {date.today()}",
            "",
            f"`python benchmarks/injection.py {words}` on {platform.processor() or platform.machine()}, "
            f"{os.cpu_count()} cores, torch {torch.__version__}, {args.model} at {args.size} x {args.size}, "
            f"{args.batch} pictures, teacher {args.teacher}.",
            "",
        ]
        (PAGE / f"{date.today()}_injection.md").write_text("\n".join([*head, *table, ""]))


if __name__ == "__main__":
    main()
