"""Times the post-processing of masks for a large photo against the dense computation: resize, compare with zero, keep.

From logits of 160 x 160 cells to run lengths of the whole picture, without the network, for masks that each cover half
of the picture: ``disc``, one outline each, and ``noise``, smooth noise with many. Time and peak memory of ours are
those of ``postprocess.decode`` as a whole; the dense computation takes one mask after the other and keeps bits. Each is
measured in a fresh process. Use an idle machine.

    python benchmarks/masks.py [--write]
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import time
from contextlib import suppress
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from edgecrafter.postprocess import decode
from edgecrafter.types import LayerOutput, MaskMap

CELLS, WIDTH = 160, 256
"""side of the logits, and numbers of a query, as in the released models of 640 x 640 pixels"""


def noise(count: int, generator: torch.Generator) -> Tensor:
    """Logits [N, 160, 160] of ragged masks."""
    coarse = torch.randn(count, 1, 24, 24, generator=generator)
    return F.interpolate(coarse, (CELLS, CELLS), mode="bicubic")[:, 0]


def disc(count: int, generator: torch.Generator) -> Tensor:
    """Logits [N, 160, 160] of ellipses."""
    x = torch.linspace(-1, 1, CELLS)
    centre = torch.rand(count, 2, 1, 1, generator=generator) * 0.2 - 0.1
    return 0.64 - (x[:, None] - centre[:, 0]).square() - (x - centre[:, 1]).square()


KINDS = {"disc": disc, "noise": noise}


def answer(kind: str, count: int) -> LayerOutput:
    """What a network could say: ``count`` sure queries of 300, and mask factors whose product has the masks wanted."""
    generator = torch.Generator().manual_seed(0)
    logits = KINDS[kind](count, generator).flatten(1)
    queries, strengths, pixels = torch.linalg.svd(logits, full_matrices=False)
    factors = torch.zeros(1, 300, WIDTH)
    chosen = torch.randperm(300, generator=generator)[:count]
    factors[0, chosen, : len(strengths)] = queries * strengths
    maps = torch.zeros(1, WIDTH, CELLS * CELLS)
    maps[0, : len(strengths)] = pixels
    classes = torch.full((1, 300, 80), -6.0)
    classes[0, chosen, 0] = torch.linspace(3, 1, count)
    boxes = torch.full((1, 300, 4), 0.5)
    return LayerOutput(classes, boxes, masks=MaskMap(factors, maps.unflatten(-1, (CELLS, CELLS)), torch.zeros(1)))


def dense(layer: LayerOutput, size: tuple[int, int], count: int) -> list[Any]:
    """The masks of the best queries by resizing each to the whole picture, as packed bits."""
    assert layer.masks is not None
    best = layer.logits[0, :, 0].topk(count).indices
    found = []
    for logits in layer.masks.of(torch.zeros_like(best), best, [len(best)]):
        values = F.interpolate(logits[None, None], size, mode="bilinear", align_corners=False)
        found.append(np.packbits((values > 0).numpy()))
    return found


def measure(way: str, kind: str, size: tuple[int, int], count: int, rounds: int) -> dict[str, float]:
    """Seconds (the best of ``rounds``) and megabytes by which the first call raises this process's peak (Linux)."""
    layer = answer(kind, count)

    def work() -> Any:
        return decode(layer, [size], conf=0.5) if way == "ours" else dense(layer, size, count)

    decode(answer(kind, 2), [(8, 8)], conf=0.5)  # libraries are loaded at their first use
    with suppress(OSError):  # the peak begins here; where that is forbidden, too much is reported
        Path("/proc/self/clear_refs").write_text("5")
    before, seconds = _resident("VmRSS"), []
    for number in range(rounds):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
        if not number:
            peak = _resident("VmHWM") - before
    return {"seconds": min(seconds), "megabytes": peak}


def compare(kind: str, size: tuple[int, int], count: int) -> dict[str, float]:
    """Pixels in which the two ways differ, of how many, the most in one mask, share that is covered, runs of a mask."""
    layer = answer(kind, count)
    with torch.inference_mode():
        (found,) = decode(layer, [size], conf=0.5)
        assert found.masks is not None and len(found) == count
        pairs = zip(found.masks.counts, dense(layer, size, count), strict=True)
        differ = [_differ(found.masks[[row]].array()[0], bits) for row, (_, bits) in enumerate(pairs)]
    pixels = size[0] * size[1]
    return {
        "differ": sum(differ),
        "most": max(differ),
        "covered": float(found.masks.areas().mean() / pixels),
        "runs": float(np.mean([len(counts) for counts in found.masks.counts])),
    }


def _differ(mask: Any, bits: Any) -> int:
    return int((mask.ravel() != np.unpackbits(bits, count=mask.size).view(bool)).sum())


def _resident(name: str) -> float:
    """Megabytes of this process: VmRSS now, VmHWM at its peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) / 1024


def rows(args: argparse.Namespace) -> list[list[str]]:
    """A row of the table for each way and kind of mask."""
    found = []
    for kind in KINDS:
        told = _fresh(args, kind, "compare")
        for way in ("ours", "dense"):
            numbers = _fresh(args, kind, way)
            note = ""
            if way == "ours":
                note = f"{told['differ']:.0f} pixels differ, {told['most']:.0f} at most in one mask; "
                note += f"{100 * told['covered']:.0f} % covered, {told['runs']:.0f} runs in a mask"
            found.append([kind, way, f"{numbers['seconds']:.2f} s", f"{numbers['megabytes']:.0f} MB", note])
    return found


def _fresh(args: argparse.Namespace, kind: str, what: str) -> dict[str, float]:
    words = [sys.executable, __file__, "--only", what, "--kind", kind, "--size", *map(str, args.size)]
    words += ["--count", str(args.count), "--rounds", str(args.rounds), "--threads", str(args.threads)]
    told = subprocess.run(words, check=True, capture_output=True, text=True).stdout
    numbers: dict[str, float] = json.loads(told.splitlines()[-1])
    return numbers


def report(table: list[list[str]], args: argparse.Namespace) -> str:
    """A dated markdown page."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    height, width = args.size
    head = ["masks", "way", "time", "peak memory", ""]
    command = f"python benchmarks/masks.py --size {height} {width} --count {args.count} --rounds {args.rounds}"
    return "\n".join(
        [
            f"# {args.count} masks of {width} x {height} pixels, {date.today().isoformat()}",
            "",
            f"{name}, {args.threads} threads; Python {platform.python_version()}, torch {torch.__version__}",
            "",
            f"`{command} --threads {args.threads}`",
            "",
            *("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *table]),
            "",
        ]
    )


def main() -> None:
    """Parse the command line, measure, print, and write if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, nargs=2, default=(3000, 4000), help="height and width of the picture")
    parser.add_argument("--count", type=int, default=100, help="masks")
    parser.add_argument("--rounds", type=int, default=5, help="of which the fastest counts")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--write", action="store_true", help="write the page beside this file")
    parser.add_argument("--kind", choices=tuple(KINDS), default="noise", help=argparse.SUPPRESS)
    parser.add_argument("--only", choices=("ours", "dense", "compare"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    size = (args.size[0], args.size[1])
    if args.only == "compare":
        print(json.dumps(compare(args.kind, size, args.count)))
    elif args.only:
        print(json.dumps(measure(args.only, args.kind, size, args.count, args.rounds)))
    else:
        text = report(rows(args), args)
        print(text)
        if args.write:
            target = Path(__file__).parent / f"{date.today().isoformat()}_masks.md"
            target.write_text(text, encoding="utf-8")
            print(f"written to {target}")


if __name__ == "__main__":
    main()
