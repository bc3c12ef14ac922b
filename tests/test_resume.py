"""A run killed at any moment ends with the weights of an uninterrupted one, to the bit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import small_training as small
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from edgecrafter.data import scenes
from edgecrafter.train import run
from edgecrafter.train.config import TrainConfig
from edgecrafter.train.log import Journal, read_rows
from edgecrafter.train.loop import fit
from edgecrafter.train.state import BEST, LAST, WEIGHTS, RunState, interrupted, read
from edgecrafter.types import Batch

TRAIN = """
import json, sys, torch
torch.set_num_threads(1)
from edgecrafter.train.config import TrainConfig
from edgecrafter.train.run import train
train(TrainConfig(**json.loads(sys.argv[1])))
"""
PLAN = small.plan(6, 2)
"""2 batches per epoch; the last phase is epochs 4 and 5"""
BATCHES = [small.batch([2, 1], seed=1), small.batch([0, 3], seed=2)]
TIMES = ("seconds", "images_per_second")


class Stopped(Exception):
    """Stands for a kill."""


class Interrupted(small.Batches):
    """Ends with an exception after some batches in all."""

    def __init__(self, batches: list[Batch], after: int) -> None:
        super().__init__(batches)
        self.left = after

    def __iter__(self) -> Iterator[Batch]:
        for batch in self.batches:
            if self.left == 0:
                raise Stopped
            self.left -= 1
            yield batch


def score(network: nn.Module) -> dict[str, float]:
    """Some number of the weights that goes up and down."""
    return {"AP": float(torch.cat([p.flatten() for p in network.parameters()]).double().sum().sin())}


def leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Every entry of a nested state."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from leaves(item, f"{name}/{key}")
    elif isinstance(value, list):
        for i, item in enumerate(value):
            yield from leaves(item, f"{name}/{i}")
    else:
        yield name, value


def assert_same(one: Any, other: Any) -> None:
    ones, others = dict(leaves(one)), dict(leaves(other))
    assert ones.keys() == others.keys()
    for name, value in ones.items():
        equal = torch.equal(value, others[name]) if isinstance(value, Tensor) else value == others[name]
        assert equal, name


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of uninterrupted runs of every case."""
    folder = tmp_path_factory.mktemp("straight")
    for case, options in CASES.items():
        step, state, journal = small.training(folder / case, PLAN, **options)
        fit(step, small.Batches(BATCHES), score, state, journal)  # type: ignore[arg-type]
    return folder


CASES: dict[str, dict[str, str]] = {
    "fp32": {},
    "fp16": {"precision": "fp16"},
    "segment": {"task": "segment"},
    "pose": {"task": "pose"},
}


@pytest.mark.parametrize(
    "after, case", [(1, "fp32"), (5, "fp32"), (8, "fp32"), (9, "fp16"), (11, "fp32"), (5, "segment"), (9, "pose")]
)
def test_interrupted_run_goes_on_to_the_same_state(tmp_path: Path, straight: Path, after: int, case: str) -> None:
    options: dict[str, Any] = CASES[case]
    step, state, journal = small.training(tmp_path, PLAN, **options)
    state.save()
    with pytest.raises(Stopped):
        fit(step, Interrupted(BATCHES, after), score, state, journal)  # type: ignore[arg-type]
    done = after // len(BATCHES)
    step, state, journal = small.training(tmp_path, PLAN, seed=9, done=done, **options)
    state.load(read(tmp_path / WEIGHTS / LAST))
    assert state.progress.epoch == done
    fit(step, small.Batches(BATCHES), score, state, journal)  # type: ignore[arg-type]
    for name in (LAST, BEST):
        assert_same(*(read(folder / WEIGHTS / name) for folder in (straight / case, tmp_path)))
    rows = [read_rows(folder / "results.csv") for folder in (straight / case, tmp_path)]
    assert [row["epoch"] for row in rows[0]] == [row["epoch"] for row in rows[1]] == list("123456")


def test_killed_between_writing_best_and_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first epoch of the last phase has the best score, and the kill comes when only ``best.pt`` is written."""
    plan = small.plan(6, 1)
    batches = small.Batches([small.batch([2, 1])])

    def rising(state: RunState) -> Any:
        return lambda network: {"AP": 0.1 * state.progress.epoch}

    step, straight, journal = small.training(tmp_path / "straight", plan)
    fit(step, batches, rising(straight), straight, journal)  # type: ignore[arg-type]
    step, state, journal = small.training(tmp_path / "broken", plan)
    replace_file = os.replace

    def killed(source: Any, target: Any) -> None:
        if Path(target).name == LAST and state.progress.epoch == plan.plain_from + 1:
            raise Stopped
        replace_file(source, target)

    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(os, "replace", killed)
        fit(step, batches, rising(state), state, journal)  # type: ignore[arg-type]
    last, best = (read(tmp_path / "broken" / WEIGHTS / name)["progress"] for name in (LAST, BEST))
    assert (last["epoch"], best["epoch"]) == (plan.plain_from, plan.plain_from + 1)
    step, state, journal = small.training(tmp_path / "broken", plan, seed=9)
    state.load(read(tmp_path / "broken" / WEIGHTS / LAST))
    fit(step, batches, rising(state), state, journal)  # type: ignore[arg-type]
    assert_same(state.state_dict(), straight.state_dict())


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    scenes.write(folder, train=8, val=2, size=96)
    return folder


def options(data: Path, project: Path, **changes: Any) -> dict[str, Any]:
    small = {"model": "ecdet-p", "epochs": 6, "batch": 2, "imgsz": 64, "workers": 0, "device": "cpu", "queries": 20}
    return {"data": str(data), "project": str(project), **small, **changes}


def started(config: dict[str, Any]) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(run.__file__).parents[2])}
    return subprocess.Popen([sys.executable, "-c", TRAIN, json.dumps(config)], env=environment, stdout=subprocess.PIPE)


@pytest.mark.slow
def test_kill_9(data: Path, tmp_path: Path) -> None:
    """Killed in the middle, at the start of the last phase and within it; each time a new process goes on."""
    config = options(data, tmp_path)
    assert started({**config, "name": "straight"}).wait() == 0
    folder = tmp_path / "broken"
    process = started({**config, "name": "broken"})
    for epochs in (1, 4, 5):
        while len(read_rows(folder / "results.csv")) < epochs:
            assert process.poll() is None
            time.sleep(0.01)
        time.sleep(0.25)
        process.kill()
        assert process.wait() == -9
        process = started({"resume": str(folder), "device": "cpu"})
    out, _ = process.communicate()
    assert process.returncode == 0 and b"going on after epoch" in out
    for name in ("best", "last"):
        one, other = (load_file(tmp_path / each / WEIGHTS / f"{name}.safetensors") for each in ("straight", "broken"))
        assert_same(one, other)
    rows = [read_rows(tmp_path / name / "results.csv") for name in ("straight", "broken")]
    for one, other in zip(*rows, strict=True):
        assert {k: v for k, v in one.items() if k not in TIMES} == {k: v for k, v in other.items() if k not in TIMES}


def test_resume_finds_the_newest_run_and_refuses_other_options(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = run.train(TrainConfig(**options(data, tmp_path, epochs=1)))
    second = run.train(TrainConfig(**options(data, tmp_path, epochs=1)))
    assert [first.folder.name, second.folder.name] == ["train", "train2"]
    assert interrupted(True, tmp_path) == second.folder
    assert interrupted(str(first.folder / WEIGHTS / LAST), "") == first.folder
    with pytest.raises(ValueError, match="epochs=7: the run in .* was started with 1"):
        run.train(TrainConfig(resume=True, project=str(tmp_path), epochs=7))
    again = run.train(TrainConfig(resume=True, project=str(tmp_path), device="cpu"))
    assert again.folder == second.folder and again.scores.overall.keys() == second.scores.overall.keys()
    assert "going on after epoch 1" in capsys.readouterr().out
    with pytest.raises(FileNotFoundError, match="no run with weights/last.pt"):
        interrupted(True, tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError, match=r"resume=.*elsewhere"):
        interrupted(str(tmp_path / "elsewhere"), tmp_path)


class Drawing(nn.Module):
    """A backbone of others that draws random numbers while it is trained."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            self.patches, self.drop = nn.Conv2d(3, 16, 16, 16), nn.Dropout(0.5)

    def forward(self, images: Tensor) -> Tensor:
        return self.drop(self.patches(images))


def test_runs_around_a_backbone_that_draws_are_the_same(data: Path, tmp_path: Path) -> None:
    """Two runs of one seed, and one that was interrupted after the first of two epochs."""
    asked = options(data, tmp_path, epochs=2)
    folders = [run.train(TrainConfig(**asked), Drawing()).folder for _ in range(2)]
    begin = Journal.begin

    def stopping(self: Journal, epoch: int, steps: int) -> None:
        if epoch == 1:
            raise Stopped
        begin(self, epoch, steps)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(Journal, "begin", stopping)
        run.train(TrainConfig(**asked, name="broken"), Drawing())
    torch.rand(5)  # whatever else happens in the process
    folders.append(run.train(TrainConfig(resume=str(tmp_path / "broken"), device="cpu"), Drawing()).folder)
    first, second, resumed = (read(folder / WEIGHTS / LAST) for folder in folders)
    for name in ("network", "average", "optimizer"):
        assert_same(first[name], second[name])
        assert_same(first[name], resumed[name])


def test_other_data_are_refused(data: Path, tmp_path: Path) -> None:
    trained = run.train(TrainConfig(**options(data, tmp_path, epochs=1)))
    scenes.write(tmp_path / "more", train=12, val=2, size=96)
    saved = torch.load(trained.folder / WEIGHTS / LAST, weights_only=True)
    saved["config"]["data"] = str(tmp_path / "more")
    torch.save(saved, trained.folder / WEIGHTS / LAST)
    with pytest.raises(ValueError, match="the same data and number of processes only"):
        run.train(TrainConfig(resume=str(trained.folder), device="cpu"))
