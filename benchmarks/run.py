"""Times ECDet against a yardstick: torchvision's ResNet-50 as it comes, same input size, batch and threads.

Everything runs in one process, one after the other; ours and the yardstick take turns, so that a slow minute of the
machine hits both. A ratio is the median over the pairs, with the quartiles behind it. Peak memory is measured in fresh
processes. Use an idle machine.

    python benchmarks/run.py DATASET [--write]
"""

from __future__ import annotations

import argparse
import gc
import importlib
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parent))
import loader as loader_benchmark
import training_step

from edgecrafter import hub
from edgecrafter.data import formats
from edgecrafter.metrics.coco import CocoScorer
from edgecrafter.models.fuse import fuse
from edgecrafter.types import Detections

Seconds = list[tuple[float, float]]
"""pairs of ours and the yardstick"""


def resnet() -> nn.Module:
    """The yardstick, with random weights."""
    from torchvision.models import resnet50

    return resnet50(weights=None)


def clocked(work: Callable[[], Any]) -> float:
    """Seconds that a call takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def pairs(
    ours: Callable[[], Any],
    yardstick: Callable[[], Any],
    rounds: int,
    before: Callable[[], Any] = lambda: None,
    warm: int = 2,
) -> Seconds:
    """Alternating calls, who begins changes every round; ``warm`` rounds and ``before`` each round are not counted."""
    found = []
    for number in range(warm + rounds):
        before()
        if number % 2:
            second = clocked(yardstick)
            found.append((clocked(ours), second))
        else:
            first = clocked(ours)
            found.append((first, clocked(yardstick)))
    return found[warm:]


def ratio(seconds: Seconds) -> str:
    """Median of the ratios, lower and upper quartile."""
    values = sorted(a / b for a, b in seconds)
    low, high = values[len(values) // 4], values[-1 - len(values) // 4]
    return f"{statistics.median(values):.3f} ({low:.3f} .. {high:.3f})"


def milliseconds(seconds: list[float]) -> str:
    """The median in ms."""
    return f"{1000 * statistics.median(seconds):.1f} ms"


def inference(model: str, size: int, rounds: int) -> list[list[str]]:
    """Forward passes at batch 1: eager and fused."""
    network = hub.create(model)[0].eval()
    fused, yardstick, image = fuse(network), resnet().eval(), torch.randn(1, 3, size, size)
    rows = []
    for name, ours in (("eager", network), ("fused", fused)):
        with torch.inference_mode():
            times = pairs(lambda ours=ours: ours(image), lambda: yardstick(image), rounds)
        rows.append([f"forward, batch 1, {name}", *_both(times)])
    return rows


def step(model: str, data: str, size: int, batch: int, rounds: int) -> list[list[str]]:
    """A full training step, and its parts as shares of it; the data are loaded beside the step, in this process."""
    ours = training_step.Step(model, data, size, batch)
    times = pairs(ours, resnet_step(size, batch), rounds, before=ours.prepare)
    rows = [[f"training step, batch {batch}", *_both(times)]]
    whole = statistics.median(a for a, _ in times)
    for part in training_step.PARTS:
        median = statistics.median(ours.seconds[part][-rounds:])
        note = ", not in the step" if part == "data" else ""
        rows.append([f"- {part}", milliseconds([median]), "", f"{100 * median / whole:.1f} % of the step{note}"])
    return rows


def resnet_step(size: int, batch: int) -> Callable[[], None]:
    """A step of ResNet-50: forward, cross entropy, backward, SGD with momentum."""
    network = resnet().train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)
    images, labels = torch.randn(batch, 3, size, size), torch.randint(1000, (batch,))

    def work() -> None:
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(network(images), labels).backward()
        optimizer.step()

    return work


def loading(data: str, size: int, batch: int, rounds: int) -> list[list[str]]:
    """The loader alone against plain decoding and resizing: pictures per second, so more is better."""
    threads = torch.get_num_threads()
    found = loader_benchmark.measure(data, (size, size), batch, rounds)
    torch.set_num_threads(threads)
    spread = f"{found['ratio']:.3f} ({found['ratio_min']:.3f} .. {found['ratio_max']:.3f})"
    ours, plain = f"{found['loader_per_s']} pictures/s", f"{found['yardstick_per_s']} pictures/s (Pillow)"
    return [["training loader, rate", ours, plain, f"{spread}, more is better"]]


def counting(data: str, rounds: int) -> list[list[str]]:
    """Counting COCO's numbers for 300 random detections per picture, without the network."""
    annotations = formats.load(data, "val")
    generator = torch.Generator().manual_seed(0)
    seconds = []
    for _ in range(max(1, rounds // 3)):
        scorer = CocoScorer(annotations)
        for index, image_id in enumerate(annotations.image_ids.tolist()):
            scorer.add(image_id, _random(annotations.sizes[index], len(annotations.labels), generator))
        seconds.append(clocked(scorer.count))
    return [[f"counting, {len(annotations)} pictures", milliseconds(seconds), "", "300 detections per picture"]]


def memory(args: argparse.Namespace) -> list[list[str]]:
    """Peak memory of network, optimiser and training step, each in a fresh process."""
    peaks = {}
    for name in ("ours", "resnet"):
        words = [sys.executable, __file__, args.data, "--peak", name, "--model", args.model, "--threads"]
        words += [str(args.threads), "--size", str(args.size), "--batch", str(args.batch)]
        peaks[name] = float(subprocess.run(words, check=True, capture_output=True, text=True).stdout.split()[-1])
    ours, yardstick = peaks["ours"], peaks["resnet"]
    label = f"peak memory of training, batch {args.batch}"
    return [[label, f"{ours:.0f} MB", f"{yardstick:.0f} MB", f"{ours / yardstick:.3f}"]]


def peak(args: argparse.Namespace) -> float:
    """Megabytes by which building a network and three training steps raise the peak of this process (Linux)."""

    if args.peak == "ours":
        training_step.Step("ecdet-p", args.data, 64, 2)()  # libraries are loaded at their first use
    else:
        importlib.import_module("torchvision.models")
    gc.collect()
    before = resident("VmRSS")
    if args.peak == "ours":
        work: Callable[[], Any] = training_step.Step(args.model, args.data, args.size, args.batch)
    else:
        work = resnet_step(args.size, args.batch)
    for _ in range(3):
        work()
    return resident("VmHWM") - before


def resident(name: str) -> float:
    """Megabytes of this process: VmRSS now, VmHWM at its peak (``ru_maxrss`` would begin at that of the parent)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) / 1024


def _both(times: Seconds) -> list[str]:
    return [milliseconds([a for a, _ in times]), milliseconds([b for _, b in times]), ratio(times)]


def _random(size: Any, classes: int, generator: torch.Generator) -> Detections:
    height, width = (int(side) for side in size)
    corners = torch.rand(300, 2, 2, generator=generator).sort(dim=1).values * torch.tensor([width, height])
    labels = torch.randint(classes, (300,), generator=generator)
    scores = torch.rand(300, generator=generator).sort(descending=True).values
    return Detections(scores, labels, corners.flatten(1), size=(height, width))


def _machine(args: argparse.Namespace) -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    return (
        f"{name}, {os.cpu_count()} cores seen, {args.threads} threads; Python {platform.python_version()}, "
        f"torch {torch.__version__}; {args.rounds} pairs; {args.model} at {args.size} x {args.size}"
    )


def report(rows: list[list[str]], args: argparse.Namespace) -> str:
    """A dated markdown page."""
    command = f"python benchmarks/run.py {Path(args.data).name} --rounds {args.rounds} --size {args.size}"
    head = ["what", "ours", "yardstick", "ratio: median (quartiles)"]
    table = [head, ["---"] * 4, *rows]
    return "\n".join(
        [
            f"# {args.model} against ResNet-50, {date.today().isoformat()}",
            "",
            _machine(args),
            "",
            f"`{command} --batch {args.batch} --threads {args.threads} --model {args.model}`",
            "",
            *("| " + " | ".join(row) + " |" for row in table),
            "",
        ]
    )


def main() -> None:
    """Parse the command line, measure, print, and write if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="data set in any known layout")
    parser.add_argument("--model", default="ecdet-s")
    parser.add_argument("--size", type=int, default=640, help="height and width of the input in pixels")
    parser.add_argument("--batch", type=int, default=4, help="of the training step")
    parser.add_argument("--rounds", type=int, default=15, help="pairs of each kind")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--write", action="store_true", help="write the page beside this file")
    parser.add_argument("--peak", choices=("ours", "resnet"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    if args.peak:
        print(json.dumps(peak(args)))
        return
    rows = inference(args.model, args.size, args.rounds)
    rows += step(args.model, args.data, args.size, args.batch, args.rounds)
    rows += memory(args)
    rows += loading(args.data, args.size, args.batch, max(1, args.rounds // 2))
    rows += counting(args.data, args.rounds)
    text = report(rows, args)
    print(text)
    if args.write:
        target = Path(__file__).parent / f"{date.today().isoformat()}_{args.model}.md"
        target.write_text(text, encoding="utf-8")
        print(f"written to {target}")


if __name__ == "__main__":
    main()
