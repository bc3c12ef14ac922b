"""Training at several input sizes: which sizes, how often, the same for all who take part, and never in evaluation."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import small_training as small
import torch
import torch.nn.functional as F
from test_gam import dsi
from torch import nn

from edgecrafter.data import scenes
from edgecrafter.train import run
from edgecrafter.train.begin import prepared
from edgecrafter.train.config import TrainConfig
from edgecrafter.train.loop import fit, gradients, probe
from edgecrafter.train.recipes import recipe_for, resolve
from edgecrafter.train.scales import Scales
from edgecrafter.train.steps import SupervisedStep
from edgecrafter.types import Batch

STEPS = 20_000


def test_sizes_of_the_release() -> None:
    assert Scales((640, 640), 20, 9, 0).sizes() == [(side, side) for side in range(480, 801, 32)]


@pytest.mark.parametrize(
    "size, wanted",
    [
        ((64, 64), [(64, 64)]),
        ((96, 96), [(64, 64), (96, 96), (128, 128)]),
        ((320, 320), [(side, side) for side in range(256, 385, 32)]),  # 240 and 400 are no multiples of 32
        ((480, 640), [(352, 480), (384, 512), (416, 544), (448, 576), (448, 608), (480, 640), (512, 672), (512, 704),
                      (544, 736), (576, 768), (608, 800)]),
        ((32, 128), [(32, 96), (32, 128), (32, 160)]),
    ],
)  # fmt: skip
def test_sizes_follow_the_model(size: tuple[int, int], wanted: list[tuple[int, int]]) -> None:
    found = Scales(size, 1, 9, 0).sizes()
    assert found == wanted and size in found and found == sorted(found)
    assert all(h % 32 == 0 and w % 32 == 0 for h, w in found)


@pytest.mark.parametrize("repeats", [3, 4, 6, 20])
def test_the_own_size_is_so_many_times_as_frequent(repeats: int) -> None:
    scales = Scales((640, 640), repeats, STEPS, 0)
    counts = Counter(scales.of(step) for step in range(STEPS))
    assert set(counts) == set(scales.sizes())
    each = STEPS / (10 + repeats)
    for size, count in counts.items():
        expected = each * (repeats if size == (640, 640) else 1)
        assert abs(count - expected) < 5 * expected**0.5, (size, count, expected)


def test_a_function_of_seed_and_step() -> None:
    one, same, other = (Scales((640, 640), 4, 99, seed) for seed in (1, 1, 2))
    sizes = [one.of(step) for step in range(99)]
    assert [same.of(step) for step in reversed(range(99))] == sizes[::-1], "any order, as after a resume"
    assert [other.of(step) for step in range(99)] != sizes
    assert {one.of(step) for step in range(99, 199)} == {(640, 640)}, "the last epochs"
    assert {Scales((640, 640), 0, 99, 1).of(step) for step in range(99)} == {(640, 640)}


def test_pictures_are_resized_to_the_nearest_pixel() -> None:
    scales, batch = Scales((96, 128), 1, 50, 0), torch.randint(0, 256, (2, 3, 96, 128), dtype=torch.uint8)
    seen = set()
    for step in range(50):
        found, size = scales.apply(batch, step), scales.of(step)
        seen.add(size)
        assert found.dtype == torch.uint8 and tuple(found.shape[2:]) == size
        assert torch.equal(found.float(), F.interpolate(batch.float(), size=size, mode="nearest"))
    assert seen == set(scales.sizes())
    assert scales.apply(batch, 50) is batch, "the last epochs"
    other = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
    assert all(scales.apply(other, step) is other for step in range(50)), "pictures of another size are left alone"


class Watching(nn.Module):
    """Writes down which sizes a network is given, in training and in evaluation."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.sizes: list[tuple[bool, tuple[int, ...]]] = []
        network.register_forward_pre_hook(
            lambda module, given: self.sizes.append((module.training, tuple(given[0].shape[2:])))
        )

    def clear(self) -> list[tuple[int, ...]]:
        found = [size for _, size in self.sizes]
        self.sizes.clear()
        return found


SCALES = Scales((96, 96), 1, 4, 0)


def test_all_parts_of_a_step_have_one_size_and_the_teacher_follows(tmp_path: Path) -> None:
    method = dsi("ecdet-p", (96, 96))
    step, state, _ = small.training(tmp_path, small.plan(), scales=SCALES, distillers=[method])
    watch, shown = Watching(step.network), []
    method.teacher._features = lambda x, _keep: shown.append(tuple(x.shape[2:])) or [torch.zeros(len(x), 96, 2, 2)]
    parts = [small.batch([1, 1], seed, side=96) for seed in range(3)]
    for at in range(5):
        state.progress.step = at
        gradients(step, parts, state)
        size = SCALES.of(at)
        assert watch.clear() == [size] * 3
        assert shown == [(size[0] // 2, size[1] // 2)] * 3, "half of what the student sees"
        shown.clear()
    assert len({SCALES.of(at) for at in range(4)}) > 1


def test_only_training_is_at_several_sizes(tmp_path: Path) -> None:
    """And only the epochs before the last phase: a run of three, one of which is plain."""
    plan = small.plan(3, 2)
    step, state, journal = small.training(tmp_path, plan, scales=Scales((96, 96), 1, plan.plain_from * 2, 3))
    watch = Watching(step.network)
    batches = small.Batches([small.batch([1, 1], seed, side=96) for seed in range(2)])

    def score(network: nn.Module) -> dict[str, float]:
        inside = Watching(network)
        network(torch.zeros(1, 3, 96, 96))
        assert inside.sizes == [(False, (96, 96))]
        return {"AP": 0.5}

    fit(step, batches, score, state, journal)  # type: ignore[arg-type]
    sizes = [size for training, size in watch.sizes if training]
    assert sizes == [step.scales.of(at) for at in range(6)] and plan.plain_from == 2  # type: ignore[union-attr]
    assert len(set(sizes[:4])) > 1 and set(sizes[4:]) == {(96, 96)}
    evaluation = SupervisedStep(step.network, step.task, step.labels, step.spec)
    assert evaluation.scales is None


@pytest.mark.parametrize(
    "model, repeats", [("rtdetrv4-s", 20), ("rtdetrv4-m", 6), ("deim-l", 4), ("rtdetrv4-x", 3), ("ecdet-s", 0)]
)
def test_which_recipes_have_it(model: str, repeats: int) -> None:
    for augment, wanted in (("default", repeats), ("strong", repeats), ("light", 0), ("none", 0)):
        assert resolve(TrainConfig(augment=augment), recipe_for(model), 1000).scales == wanted


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return scenes.write(tmp_path_factory.mktemp("data") / "scenes", 4, 2, size=64)


def test_a_run_and_its_trial_of_the_memory(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The step of a run draws sizes until the last phase, and memory is tried at the largest."""
    pytest.importorskip("timm")
    options: dict[str, Any] = {"epochs": 3, "batch": 2, "workers": 0, "device": "cpu", "weights": "none"}
    monkeypatch.setattr(run, "MOST_OBJECTS", 3)
    begin = prepared(TrainConfig(model="deim-s", data=str(data), imgsz=[96, 160], queries=20, **options))
    step = run.step_of(begin, "fp32")
    assert step.scales == Scales((96, 160), 20, begin.plan.plain_from * begin.plan.steps, 0)
    worst = run._worst(begin, torch.device("cpu"))
    assert tuple(worst.images.shape[2:]) == step.scales.sizes()[-1] == (128, 192)
    watch = Watching(step.network)
    probe(step, step, worst)
    assert watch.clear() == [(128, 192)]
    light = prepared(TrainConfig(model="deim-s", data=str(data), imgsz=96, queries=20, augment="light", **options))
    assert run.step_of(light, "fp32").scales is None
    assert tuple(run._worst(light, torch.device("cpu")).images.shape[2:]) == (96, 96)


def test_targets_are_shares_of_the_picture(tmp_path: Path) -> None:
    """So that they fit at every size: the boxes of a step are those of the batch."""
    step, _, _ = small.training(tmp_path, small.plan(), scales=SCALES)
    seen: list[Batch] = []
    step.loss.register_forward_pre_hook(lambda _, given: seen.append(given[1]))
    batch = small.batch([2, 1], side=96)
    at = next(at for at in range(4) if SCALES.of(at) != (96, 96))
    assert all(value.isfinite() for value in step(batch, at).values())
    for found, given in zip(seen[0], batch.targets, strict=True):  # type: ignore[call-overload]
        assert torch.equal(found.boxes, given.boxes)
