"""A miniature "foundation model" for the distillation experiment: a ViT that learned what is in a picture, not where.

Pretrained DINO weights need a network. In their place a vision transformer of ours learns to name the kinds of things
in generated scenes (one yes or no per kind, from the mean of its tokens). No box is shown to it, so adapting it to
detection afterwards adds something, as in the paper.

    python experiments/plain_teacher.py plain.safetensors
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgecrafter import vits
from edgecrafter.data import scenes
from edgecrafter.data.shapes import POSED, SHAPES
from edgecrafter.models.detector import ecvit
from edgecrafter.types import InputSpec

KINDS = {**SHAPES, **POSED}


def pictures(count: int, side: int, seed: int) -> tuple[Tensor, Tensor]:
    """uint8 [N, 3, side, side], and which kinds are in them, [N, kinds] float."""
    images = torch.empty(count, 3, side, side, dtype=torch.uint8)
    truth = torch.zeros(count, len(KINDS))
    names = list(KINDS)
    for index in range(count):
        found = scenes.scene(np.random.default_rng([seed, 7, index]), side, KINDS)
        images[index] = torch.from_numpy(found.image.copy()).permute(2, 0, 1)
        for thing in found.things:
            truth[index, names.index(thing.shape.name)] = 1
    return images, truth


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", type=Path)
    parser.add_argument("--vit", default="ecvit-n")
    parser.add_argument("--count", type=int, default=4000)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--side", type=int, default=128)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    images, truth = pictures(options.count, options.side, options.seed)
    unseen, wanted = pictures(400, options.side, options.seed + 1)
    _, row = vits.row_of(options.vit)
    vit, head, spec = ecvit(row), nn.Linear(row.vit, len(KINDS)), InputSpec()
    weights = [*vit.parameters(), *head.parameters()]
    steps, batch = options.epochs * (options.count // 32), 32
    optimizer = torch.optim.AdamW(weights, lr=1e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=steps, pct_start=0.1)

    def logits(x: Tensor) -> Tensor:
        maps = vit(spec.normalise(x))
        return head(torch.stack(maps).mean((0, 3, 4)))

    started = time.perf_counter()
    for epoch in range(options.epochs):
        order = torch.randperm(options.count)
        for i in range(options.count // batch):
            chosen = order[i * batch : (i + 1) * batch]
            x = images[chosen]
            x = x.flip(3) if i % 2 else x
            loss = F.binary_cross_entropy_with_logits(logits(x), truth[chosen])
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
            schedule.step()
        vit.eval()
        with torch.no_grad():
            right = ((logits(unseen) > 0) == (wanted > 0.5)).float().mean().item()
        vit.train()
        print(f"epoch {epoch + 1}: loss {loss.item():.3f}, right on unseen scenes {right:.3f} "
              f"(always the more frequent answer: {torch.maximum(wanted.mean(0), 1 - wanted.mean(0)).mean():.3f}), "
              f"{time.perf_counter() - started:.0f} s", flush=True)  # fmt: skip
    vits.save(vit, row, options.target, {"licence": "trained here on generated scenes, Apache-2.0"})


if __name__ == "__main__":
    main()
