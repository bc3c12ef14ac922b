"""It learns: eight generated pictures, learned by heart on the CPU within two minutes."""

from __future__ import annotations

import time

import pytest
import torch

from edgecrafter import hub
from edgecrafter.data import formats, loader, scenes
from edgecrafter.data.shapes import POSED, SHAPES
from edgecrafter.data.transforms import Augment
from edgecrafter.evaluate import evaluate
from edgecrafter.tasks import TASKS
from edgecrafter.train.steps import SupervisedStep
from edgecrafter.types import InputSpec

SIDE = (128, 128)
RATE = 1e-3
CASES = {"detect": (SHAPES, 100), "segment": (SHAPES, 110), "pose": (POSED, 140)}
"""task -> what the pictures show, and steps"""


@pytest.mark.parametrize("name", ["detect", *(pytest.param(n, marks=pytest.mark.slow) for n in ("segment", "pose"))])
def test_eight_pictures_are_learned_by_heart(tmp_path, name):
    torch.manual_seed(0)
    start = time.perf_counter()
    task, (shapes, steps) = TASKS[name], CASES[name]
    folder = scenes.write(tmp_path, train=8, val=1, size=192, shapes=shapes)
    pictures = formats.load(folder, "train", truth=task.truth)
    batch = next(iter(loader.batches(pictures, SIDE, len(pictures), augment_of=lambda _: Augment.NONE)))
    network, info = hub.create(f"{task.prefix}-p", pictures.labels, InputSpec(SIDE))
    step = SupervisedStep(network, task, pictures.labels, info.input)
    optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], RATE)
    for i in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1, (i + 1) / 20)
        sum(step(batch, i).values()).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    scores = evaluate(network, info, pictures, progress=False).overall
    seconds = time.perf_counter() - start
    print(f"\noverfit {name}: AP50 {scores['AP50']:.3f}, AP {scores['AP']:.3f} after {steps} steps and {seconds:.0f} s")
    assert scores["AP50"] > 0.9
    assert seconds < 120
