"""Two processes are one: same weights, same statistics, nobody waits for ever."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import small_training as small
import torch
import torch.distributed as dist
from torch import Tensor, nn

from edgecrafter import hub
from edgecrafter.data import formats, scenes
from edgecrafter.evaluate import evaluate
from edgecrafter.train import distributed, optim
from edgecrafter.train.log import read_rows
from edgecrafter.train.loop import Update, fit, gradients
from edgecrafter.train.state import WEIGHTS
from edgecrafter.types import Batch

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="torch without distributed")

Work = Callable[[int, Path], Any]


def together(work: Work, folder: Path) -> list[Any]:
    """What ``work(rank, folder)`` returned in two gloo processes."""
    torch.multiprocessing.spawn(_process, args=(work, folder), nprocs=2)  # type: ignore[no-untyped-call]
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


def _process(rank: int, work: Work, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    try:
        torch.save(work(rank, folder), folder / f"{rank}.pt")
    finally:
        dist.destroy_process_group()


def weights_after(batches: list[list[Batch]], folder: Path, **options: Any) -> dict[str, Tensor]:
    """The weights after one step for each list of accumulated batches."""
    plan = small.plan(1, len(batches))
    step, state, _ = small.training(folder, plan, **options)
    forward, update = distributed.wrap(step), Update(step, state)
    for parts in batches:
        optim.set_rates(state.optimizer, plan, state.progress.step)
        _, taken = update(gradients(forward, parts, state), parts)
        assert taken
        state.progress.step += 1
    return step.network.state_dict()


SHARES = [[small.batch(counts, seed=10 * rank + i) for i, counts in enumerate(rows)] for rank, rows in enumerate(
    [[(3, 0), (1, 2), (2, 2)], [(1, 1), (0, 0), (4, 1)]]
)]  # fmt: skip
"""three batches of either process; the second has one without objects"""
SIMPLE: dict[str, Any] = {"loss": small.PLAIN, "budget": 0, "freeze": ("norm",)}
SIMPLE_POSE: dict[str, Any] = {"task": "pose", "budget": 0, "freeze": ("norm",)}


def _trainings(rank: int, folder: Path) -> dict[str, Any]:
    alone = folder / str(rank)
    return {
        "simple": weights_after([[batch] for batch in SHARES[rank]], alone, **SIMPLE),
        "simple pose": weights_after([[batch] for batch in SHARES[rank]], alone, **SIMPLE_POSE),
        "everything": weights_after([[batch] for batch in SHARES[rank]], alone, budget=100),
        "segment": weights_after([[batch] for batch in SHARES[rank]], alone, task="segment"),
        "pose": weights_after([[batch] for batch in SHARES[rank]], alone, task="pose"),
        "accumulated": weights_after([SHARES[rank]], alone),
        "bad": _one_bad(rank, folder),
    }


def _one_bad(rank: int, folder: Path) -> bool:
    """Whether the weights are unchanged after steps in which one process has no finite loss."""
    step, state, journal = small.training(folder / "bad", small.plan(1, 2))
    step.loss.register_forward_hook(lambda *_: {"mal": sum(_[2].values()) * (float("nan") if rank else 1.0)})
    before = {name: value.clone() for name, value in step.network.state_dict().items()}
    fit(step, small.Batches(SHARES[rank][:2]), lambda _: {"AP": 0.5}, state, journal)  # type: ignore[arg-type]
    return all(torch.equal(value, before[name]) for name, value in step.network.state_dict().items())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("two")


@pytest.fixture(scope="module")
def trainings(folder: Path) -> list[dict[str, Any]]:
    """What the two processes got."""
    return together(_trainings, folder)


@pytest.mark.parametrize("case, options", [("simple", SIMPLE), ("simple pose", SIMPLE_POSE)])
def test_two_processes_equal_one_on_the_joined_batch(
    trainings: list[dict[str, Any]], tmp_path: Path, case: str, options: dict[str, Any]
) -> None:
    first, second = (found[case] for found in trainings)
    joined = [[small.joined(pair)] for pair in zip(*SHARES, strict=True)]
    alone = weights_after(joined, tmp_path, **options)
    largest = max(float((first[name] - value).abs().max()) for name, value in alone.items())
    print(f"largest difference {largest:.1e}")
    assert largest <= 1e-5
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("case", ["everything", "accumulated", "segment", "pose"])
def test_everything_on(trainings: list[dict[str, Any]], case: str) -> None:
    """Denoising, synchronised batch norm, a process without objects: equal and finite weights."""
    first, second = (found[case] for found in trainings)
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
        assert value.isfinite().all(), name


def test_all_processes_skip_a_step_together(trainings: list[dict[str, Any]], folder: Path) -> None:
    assert [found["bad"] for found in trainings] == [True, True]
    assert [row["skipped"] for row in read_rows(folder / "bad" / "results.csv")] == ["2"]


def _normalised(rank: int, folder: Path) -> dict[str, Tensor]:
    torch.manual_seed(0)
    images = torch.randn(4, 3, 5, 5)[2 * rank : 2 * rank + 2].mul(2).add(rank).requires_grad_()
    wrapped = distributed._synchronised(nn.Sequential(nn.BatchNorm2d(3)))
    out = wrapped(images)
    (out**2 * torch.arange(1.0, 4)[:, None, None] + out**3).sum().backward()
    assert images.grad is not None
    return {"out": out.detach(), "grad": images.grad, **wrapped.state_dict()}


def test_batch_norm_over_processes(tmp_path: Path) -> None:
    found = together(_normalised, tmp_path)
    torch.manual_seed(0)
    images = torch.randn(4, 3, 5, 5).mul(2)
    images = torch.cat([images[:2], images[2:] + 1]).requires_grad_()
    norm = nn.Sequential(nn.BatchNorm2d(3))
    out = norm(images)
    (out**2 * torch.arange(1.0, 4)[:, None, None] + out**3).sum().backward()
    assert images.grad is not None
    torch.testing.assert_close(torch.cat([part["out"] for part in found]), out.detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(torch.cat([part["grad"] for part in found]), images.grad, rtol=1e-4, atol=1e-4)
    for part in found:
        for name, value in norm.state_dict().items():
            torch.testing.assert_close(part[name], value, rtol=1e-5, atol=1e-6)


def _talk(rank: int, folder: Path) -> dict[str, Any]:
    with distributed.session(torch.device("cpu")):  # joins the group that exists, and leaves it alone
        pass
    return {
        "world": distributed.world(),
        "mean": distributed.mean(torch.tensor([rank + 1.0])),
        "all": [distributed.all_true(rank < limit, torch.device("cpu")) for limit in (1, 2)],
        "gather": distributed.gather({"rank": rank}),
        "broadcast": distributed.broadcast(f"from {rank}"),
    }


def test_talking(tmp_path: Path) -> None:
    for said in together(_talk, tmp_path):
        assert said == {
            "world": 2,
            "mean": torch.tensor([1.5]),
            "all": [False, True],
            "gather": [{"rank": 0}, {"rank": 1}],
            "broadcast": "from 0",
        }


def test_alone_everything_is_itself() -> None:
    step = nn.Linear(2, 2)
    assert distributed.wrap(step) is step
    assert (distributed.rank(), distributed.world(), distributed.gather(3)) == (0, 1, [3])
    with distributed.session(torch.device("cpu")):
        assert not dist.is_initialized()


@pytest.mark.slow
def test_torchrun(tmp_path: Path) -> None:
    """A whole training by two processes: one set of files, and the scores of a single process."""
    data = scenes.write(tmp_path / "data", train=9, val=5, size=96)
    options = {"model": "ecdet-p", "data": str(tmp_path / "data"), "project": str(tmp_path / "runs"), "epochs": 3,
               "batch": 2, "imgsz": 64, "workers": 0, "device": "cpu", "queries": 20, "accumulate": 2}  # fmt: skip
    script = tmp_path / "script.py"
    script.write_text(
        "import json, sys\nfrom edgecrafter.train.config import TrainConfig\nfrom edgecrafter.train.run import train\n"
        "train(TrainConfig(**json.loads(sys.argv[1])))\n"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(distributed.__file__).parents[2])}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    done = subprocess.run([*command, json.dumps(options)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("best epoch") == 1
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["train"]
    folder = tmp_path / "runs" / "train"
    assert [row["step"] for row in read_rows(folder / "results.csv")] == ["1", "2", "3"]
    network, info = hub.load(folder / WEIGHTS / "best.safetensors")
    alone = evaluate(network, info, formats.load(data, "val", info.labels), batch=2).overall
    written = json.loads((folder / "val" / "metrics.json").read_text())["overall"]
    assert written == pytest.approx({name: None if v != v else v for name, v in alone.items()}, abs=1e-6)
