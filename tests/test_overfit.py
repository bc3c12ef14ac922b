"""It learns: eight generated pictures, learned by heart on the CPU within two minutes."""

from __future__ import annotations

import time

import torch

from edgecrafter import hub
from edgecrafter.data import formats, loader, scenes
from edgecrafter.data.transforms import Augment
from edgecrafter.evaluate import evaluate
from edgecrafter.tasks import TASKS
from edgecrafter.train.steps import SupervisedStep
from edgecrafter.types import InputSpec

SIDE = (128, 128)
STEPS = 100
RATE = 1e-3


def test_eight_pictures_are_learned_by_heart(tmp_path):
    torch.manual_seed(0)
    start = time.perf_counter()
    pictures = formats.load(scenes.write(tmp_path, train=8, val=1, size=192), "train")
    batch = next(iter(loader.batches(pictures, SIDE, len(pictures), augment_of=lambda _: Augment.NONE)))
    network, info = hub.create("ecdet-p", pictures.labels, InputSpec(SIDE))
    step = SupervisedStep(network, TASKS["detect"], pictures.labels, info.input)
    optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], RATE)
    for i in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1, (i + 1) / 20)
        sum(step(batch, i).values()).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    scores = evaluate(network, info, pictures, progress=False).overall
    seconds = time.perf_counter() - start
    print(f"\noverfit: AP50 {scores['AP50']:.3f}, AP {scores['AP']:.3f} after {STEPS} steps and {seconds:.0f} s")
    assert scores["AP50"] > 0.95
    assert seconds < 120
