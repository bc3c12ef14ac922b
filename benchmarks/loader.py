"""How fast the training loader makes pictures, against plain decoding and resizing of the same pictures with Pillow.

One process, one thread. Passes of the yardstick and of the loader over the whole data set take turns, so that a slow
minute of the machine hits both; the result is the median of the ratios of neighbouring passes.

    python benchmarks/loader.py DATASET [--size 640] [--pairs 9]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from edgecrafter.data import formats, loader
from edgecrafter.data.annotations import Annotations
from edgecrafter.data.transforms import Augment


def yardstick(annotations: Annotations, size: tuple[int, int]) -> float:
    """Seconds per picture to decode as RGB and resize bilinearly."""
    start = time.perf_counter()
    for index in range(len(annotations)):
        with Image.open(annotations.path(index)) as picture:
            picture.convert("RGB").resize((size[1], size[0]), Image.Resampling.BILINEAR)
    return (time.perf_counter() - start) / len(annotations)


def one_epoch(batches: loader.Loader, epoch: int) -> float:
    """Seconds per picture of an epoch of the loader."""
    batches.set_epoch(epoch)
    start = time.perf_counter()
    count = sum(len(batch.targets) for batch in batches)
    return (time.perf_counter() - start) / count


def measure(
    folder: str | Path,
    size: tuple[int, int] = (640, 640),
    batch: int = 4,
    pairs: int = 9,
    augment: Augment | None = None,
) -> dict[str, Any]:
    """Rates of the yardstick and the loader, and their ratio (1: as fast as plain decoding), median with extremes.

    ``augment`` is the paper's augmentation with mosaic and MixUp at 0.75 unless given. Sets torch to one thread.
    """
    torch.set_num_threads(1)
    annotations = formats.load(folder, "train")
    strength = augment or Augment.strong(0.75, 0.75)
    batches = loader.batches(annotations, size, batch, augment_of=lambda _: strength, workers=0)
    yardstick(annotations, size), one_epoch(batches, 0)  # files into the cache of the system
    rows = []
    for epoch in range(1, pairs + 1):
        rows.append((yardstick(annotations, size), one_epoch(batches, epoch)))
    ratios = [plain / ours for plain, ours in rows]
    return {
        "pictures": len(annotations),
        "size": list(size),
        "pairs": pairs,
        "yardstick_per_s": round(1 / statistics.median(plain for plain, _ in rows), 1),
        "loader_per_s": round(1 / statistics.median(ours for _, ours in rows), 1),
        "ratio": round(statistics.median(ratios), 3),
        "ratio_min": round(min(ratios), 3),
        "ratio_max": round(max(ratios), 3),
    }


def main() -> None:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="data set in any known layout")
    parser.add_argument("--size", type=int, default=640, help="height and width of the input in pixels")
    parser.add_argument("--batch", type=int, default=4, help="pictures per batch")
    parser.add_argument("--pairs", type=int, default=9, help="passes of each kind")
    args = parser.parse_args()
    print(json.dumps(measure(args.folder, (args.size, args.size), args.batch, args.pairs), indent=2))


if __name__ == "__main__":
    main()
