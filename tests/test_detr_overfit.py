"""The classic detectors learn: eight generated pictures of two formats, padded to one batch, learned by heart."""

from __future__ import annotations

import json
import time

import pytest
import torch
from detr_oracles import NAMES
from PIL import Image

from edgecrafter import hub
from edgecrafter.data import formats, loader, scenes
from edgecrafter.data.transforms import Augment
from edgecrafter.evaluate import evaluate
from edgecrafter.tasks import TASKS
from edgecrafter.train.steps import SupervisedStep
from edgecrafter.types import InputSpec

SPEC = InputSpec((128, 192), resize="keep")
RATE = 1e-3
SMALL = {
    "width": 64, "enc_ffn": 128, "det_ffn": 128, "enc_layers": 2, "det_layers": 3, "queries": 40, "frozen": False,
    "backbone": "timm:resnet10t", "dropout": 0.0,
}  # fmt: skip
CASES = {"dab": 250, "deformable": 140, "dino": 100}
"""steps"""


def narrowed(folder):
    """Every second picture becomes two thirds as wide, so that a batch has padding."""
    (file,) = folder.rglob("*train*.json")
    tree = json.loads(file.read_text())
    ids = [image["id"] for image in tree["images"][::2]]
    for image in tree["images"][::2]:
        (path,) = folder.rglob(image["file_name"])
        image["width"] = image["width"] * 2 // 3
        with Image.open(path) as opened:
            smaller = opened.resize((image["width"], image["height"]))
        smaller.save(path)
    for row in tree["annotations"]:
        if row["image_id"] in ids:
            x, y, w, h = row["bbox"]
            row["bbox"], row["area"] = [x * 2 / 3, y, w * 2 / 3, h], row["area"] * 2 / 3
    file.write_text(json.dumps(tree))


@pytest.mark.slow
@pytest.mark.parametrize("arch", CASES)
def test_eight_pictures_are_learned_by_heart(tmp_path, arch):
    torch.manual_seed(0)
    start, steps = time.perf_counter(), CASES[arch]
    folder = scenes.write(tmp_path, train=8, val=1, size=192)
    narrowed(folder)
    pictures = formats.load(folder, "train")
    batch = next(
        iter(loader.batches(pictures, SPEC.size, len(pictures), augment_of=lambda _: Augment.NONE, resize=SPEC.resize))
    )
    assert batch.valid is not None and 0.6 < batch.valid.float().mean() < 0.9
    network, info = hub.create(NAMES[arch], pictures.labels, SPEC, **SMALL)
    task = TASKS["detect"]
    step = SupervisedStep(network, task, pictures.labels, SPEC, loss=task.loss(pictures.labels, info.size))
    optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], RATE)
    for i in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1, (i + 1) / 20, 4 * (1 - i / steps))
        sum(step(batch, i).values()).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    scores = evaluate(network, info, pictures, progress=False).overall
    seconds = time.perf_counter() - start
    print(f"\noverfit {arch}: AP50 {scores['AP50']:.3f}, AP {scores['AP']:.3f} after {steps} steps and {seconds:.0f} s")
    assert scores["AP50"] > 0.9
