"""It learns: eight pictures by heart, from random weights, on a CPU."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest
import torch

from edgecrafter.data import scenes
from edgecrafter.train.config import TrainConfig
from edgecrafter.train.run import train


@pytest.mark.slow
def test_eight_pictures_by_heart(tmp_path: Path) -> None:
    scenes.write(tmp_path / "data", train=8, val=1, size=128)
    annotations = tmp_path / "data" / "annotations"
    shutil.copyfile(annotations / "instances_train.json", annotations / "instances_val.json")
    start = time.perf_counter()
    trained = train(
        TrainConfig(
            model="ecdet-p",
            data=str(tmp_path / "data"),
            project=str(tmp_path / "runs"),
            epochs=120,
            batch=8,
            imgsz=128,
            queries=30,
            lr=2e-3,
            backbone_lr=2e-3,
            augment="none",
            val_every=120,
            workers=0,
            device="cpu",
        )
    )
    seconds = time.perf_counter() - start
    print(f"AP50 {trained.scores.overall['AP50']:.3f} in {seconds:.0f} s with {torch.get_num_threads()} threads")
    assert trained.scores.overall["AP50"] > 0.95
