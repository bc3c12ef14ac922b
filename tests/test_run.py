"""A whole run: what it decides from data and weights, and what it leaves behind."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from edgecrafter import hub
from edgecrafter.data import scenes
from edgecrafter.train import machine
from edgecrafter.train.begin import fresh
from edgecrafter.train.config import TrainConfig
from edgecrafter.train.log import read_rows
from edgecrafter.train.recipes import Plan
from edgecrafter.train.run import train
from edgecrafter.types import InputSpec, Labels


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    scenes.write(folder, train=6, val=3, size=96)
    return folder


def config(data: Path, folder: Path, **changes: Any) -> TrainConfig:
    small = {"model": "ecdet-p", "data": str(data), "project": str(folder), "batch": 2, "epochs": 2, "imgsz": 64}
    return TrainConfig(**{**small, "queries": 20, "workers": 0, "device": "cpu", **changes})  # type: ignore[arg-type]


def test_what_a_run_leaves(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = config(data, tmp_path, imgsz=[64, 96], freeze=["backbone.vit"], accumulate=2)
    trained = train(asked)
    assert trained.folder == tmp_path / "train" and trained.epochs == 2
    assert {p.name for p in (trained.folder / "weights").iterdir()} == {
        "best.pt", "best.safetensors", "last.pt", "last.safetensors",
    }  # fmt: skip
    network, info = hub.load(trained.best)
    assert (info.input.size, info.size.queries, info.labels.names) == ((64, 96), 20, ("ball", "crate", "star", "kite"))
    assert all(value.isfinite().all() for value in network.state_dict().values())
    written = yaml.safe_load((trained.folder / "args.yaml").read_text())
    assert TrainConfig.from_dict(written["options"]) == asked
    plan = Plan.from_dict(written["plan"])
    assert (plan.steps, plan.effective_batch) == (1, 4)
    rows = read_rows(trained.folder / "results.csv")
    assert [row["epoch"] for row in rows] == ["1", "2"] and all(float(row["fgl"]) > 0 for row in rows)
    assert {"metrics.json", "per_class.csv"} <= {p.name for p in (trained.folder / "val").iterdir()}
    said = capsys.readouterr().out
    for text in ("objects of each of 4 classes", "starts from random weights", "plan: 2 epochs", "epoch 2/2: loss"):
        assert text in said
    assert str(trained.best) in said


def test_same_seed_same_run(data: Path, tmp_path: Path) -> None:
    random = torch.get_rng_state()
    runs = [train(config(data, tmp_path, epochs=1, seed=seed, name=f"s{seed}")) for seed in (1, 1, 2)]
    assert torch.equal(random, torch.get_rng_state()), "the caller's random numbers are left alone"
    losses = [read_rows(run.folder / "results.csv")[0]["loss"] for run in runs]
    assert losses[0] == losses[1] != losses[2]


def test_learning_rate_of_the_backbone_follows_its_start(data: Path, tmp_path: Path) -> None:
    """A distilled or trained ViT learns slowly; one from random weights at the full rate."""
    new = fresh(config(data, tmp_path, model="ecdet-s", weights="none"))
    assert new.plan.backbone_lr == new.plan.lr
    assert any("backbone starts from random weights" in note for note in new.plan.notes)
    network, info = hub.create("ecdet-s", Labels(("kite", "other")), InputSpec(size=(96, 96)), queries=20)
    file = hub.save(network, info, tmp_path / "own.safetensors")
    tuned = fresh(config(data, tmp_path, model=str(file), imgsz=None))
    assert tuned.plan.lr / tuned.plan.backbone_lr == pytest.approx(20)
    assert tuned.info.input.size == (96, 96), "the input of the file it starts from"
    vit = [name for name in network.state_dict() if name.startswith("backbone.vit.")]
    assert all(torch.equal(tuned.network.state_dict()[name], network.state_dict()[name]) for name in vit)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"data": ""}, "no data given"),
        ({"data": "nowhere"}, "nowhere"),
        ({"model": "ecdet-q"}, "unknown model 'ecdet-q'"),
        ({"freeze": ["head"]}, "freeze='head'"),
        ({"device": "0,1"}, "torchrun --nproc-per-node=2"),
    ],
)
def test_errors_come_before_training(data: Path, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    options = config(data, tmp_path).to_dict() | changes
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        train(TrainConfig.from_dict(options))


def test_data_without_objects(data: Path, tmp_path: Path) -> None:
    shutil.copytree(data, tmp_path / "empty")
    file = tmp_path / "empty" / "annotations" / "instances_train.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps({**content, "annotations": []}))
    with pytest.raises(ValueError, match="no objects in the train pictures"):
        fresh(config(tmp_path / "empty", tmp_path))


def test_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    assert machine.precision("auto", cpu) == "fp32" and machine.precision("bf16", cpu) == "bf16"
    monkeypatch.setattr("os.cpu_count", lambda: 12)
    assert machine.workers(TrainConfig()) == 8 and machine.workers(TrainConfig(workers=0)) == 0
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert machine.workers(TrainConfig()) == 2
    with machine.deterministic(True):
        assert torch.are_deterministic_algorithms_enabled()
    assert not torch.are_deterministic_algorithms_enabled()
