"""Stage 2: a student learns a teacher's features, the teacher learns nothing, and only the student is kept."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_data
import small_training as small
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from test_ddp import together
from test_resume import assert_same
from torch import Tensor, nn

from edgecrafter import hub, start, teachers, vits
from edgecrafter.data.unlabelled import Paths
from edgecrafter.distill.align import Alignment, Explained, in_words, losses
from edgecrafter.distill.teacher import Teacher
from edgecrafter.models import official
from edgecrafter.models.detector import ecvit
from edgecrafter.models.foreign import adopt
from edgecrafter.models.sizes import SIZES
from edgecrafter.train import distil, distributed, optim
from edgecrafter.train.align import AlignStep
from edgecrafter.train.config import TrainConfig
from edgecrafter.train.distil import Distilled, distill
from edgecrafter.train.distill_config import DistillConfig
from edgecrafter.train.distill_plan import resolve
from edgecrafter.train.ema import Average
from edgecrafter.train.log import Journal, read_rows
from edgecrafter.train.loop import Update, gradients
from edgecrafter.train.run import train
from edgecrafter.train.state import BEST, LAST, WEIGHTS, RunState, read
from edgecrafter.types import Batch, InputSpec, Labels


class Wide(nn.Module):
    """A teacher of several maps of 8 channels; it has everything that could be touched by mistake."""

    def __init__(self, maps: int = 2, patch: int = 16) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, patch, patch)
        self.norm, self.drop = nn.BatchNorm2d(8), nn.Dropout(0.5)
        self.blocks = nn.ModuleList(nn.Conv2d(8, 8, 1) for _ in range(maps))

    def forward(self, images: Tensor) -> list[Tensor]:
        x = self.drop(self.norm(self.patches(images)))
        found = []
        for block in self.blocks:
            x = x + block(x).tanh()
            found.append(x)
        return found


def wide(maps: int = 2, patch: int = 16, blocks: int = 2, **spec: Any) -> Teacher:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        network = Wide(maps, patch)
    return Teacher(adopt(network, blocks, side=16 * patch), InputSpec(**spec), "wide", blocks=blocks)


def small_step(teacher: Teacher, blocks: int = 1, seed: int = 0) -> AlignStep:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        alignment = Alignment(ecvit(SIZES["p"]), 96, 8, blocks)
    return AlignStep(alignment, teacher, InputSpec((64, 64)))


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("student_blocks", [1, 2])
def test_gradients_reach_student_and_adapters_only(student_blocks: int) -> None:
    teacher = wide()
    before = {name: value.clone() for name, value in teacher.network.state_dict().items()}
    step = small_step(teacher, student_blocks)
    optimizer = torch.optim.SGD(step.parameters(), 0.1)
    for _ in range(2):
        step.train()  # as the loop does
        sum(step(small.batch([0, 0])).values()).backward()  # type: ignore[union-attr]
        for name, parameter in step.named_parameters():
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
        optimizer.step()
        optimizer.zero_grad()
    assert not any(module.training for module in teacher.network.modules())
    for parameter in teacher.network.parameters():
        assert parameter.grad is None and not parameter.requires_grad
    assert_same(before, dict(teacher.network.state_dict()))
    owned = {id(p) for p in teacher.network.parameters()}
    assert owned.isdisjoint(map(id, step.parameters()))
    names = {name.split(".")[1] for name in step.state_dict()}
    assert names == {"student", "adapters"} and len(step.alignment.adapters) == student_blocks
    assert not any(map.requires_grad for map in teacher(small.batch([0]).images))


@pytest.mark.parametrize("student_blocks", [1, 2])
@pytest.mark.parametrize("teacher_blocks", [1, 2, 3, 4])
def test_loss_by_hand(student_blocks: int, teacher_blocks: int) -> None:
    """Mean squared error over pictures, tokens and channels for each teacher block, the deepest first; every student
    block has its own layer, and the mean over them is taken."""
    teacher = wide(maps=4, blocks=teacher_blocks)
    step = small_step(teacher, student_blocks).eval()
    batch = small.batch([0, 0, 0])
    found = step(batch)
    assert list(found) == [f"align_{i}" for i in range(teacher_blocks)]
    images = InputSpec().normalise(batch.images)
    maps = [x.detach().numpy() for x in step.alignment.student.features(images, student_blocks)]  # type: ignore[operator]
    targets = [x.numpy() for x in teacher.network(images)]
    for i in range(teacher_blocks):
        target, errors = targets[-1 - i], []
        for adapter, each in zip(step.alignment.adapters, maps, strict=True):
            weight, bias = (p.detach().numpy() for p in adapter.parameters())
            answer = np.einsum("bdhw,td->bthw", each, weight) + bias[:, None, None]
            errors.append(((answer - target) ** 2).sum() / (3 * 4 * 4 * 8))
        assert found[f"align_{i}"].item() == pytest.approx(np.mean(errors), rel=1e-4)


def test_adapters_begin_small() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        adapter = Alignment(nn.Identity(), 200, 300).adapters[0]
    assert isinstance(adapter, nn.Linear) and adapter.weight.shape == (300, 200)
    assert adapter.weight.std().item() == pytest.approx(0.02, rel=0.02) and adapter.bias.abs().max() == 0


def test_both_see_the_same_pixels_each_in_its_own_scale() -> None:
    """Twice the same picture, as ImageNet's statistics and as 0.5 / 0.5 make it."""
    teacher = wide(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    step, images = small_step(teacher).eval(), small.batch([0, 0]).images
    seen: dict[str, Tensor] = {}
    teacher.network.register_forward_pre_hook(lambda _, given: seen.update(teacher=given[0]))
    read_features = teacher.network.features
    teacher._features = lambda x, count: seen.update(teacher=x) or read_features(x, count)  # type: ignore[func-returns-value, operator]
    step.alignment.register_forward_pre_hook(lambda _, given: seen.update(student=given[0]))
    step(small.batch([0, 0]))
    pixels = images.float() / 255
    torch.testing.assert_close(seen["teacher"], (pixels - 0.5) / 0.5)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    torch.testing.assert_close(seen["student"], (pixels - mean) / std)
    assert not torch.allclose(seen["teacher"], seen["student"])


@pytest.mark.parametrize("name, mean", [("timm:test_vit", 0.5), ("timm:test_efficientnet", 0.485)])
def test_statistics_come_from_the_teachers_configuration(name: str, mean: float) -> None:
    timm = pytest.importorskip("timm")
    cfg = timm.get_pretrained_cfg(name.partition(":")[2])
    found = teachers.teacher(name, blocks=1, weights="none")
    assert found.spec.mean == tuple(cfg.mean) and found.spec.std == tuple(cfg.std)


def test_other_grids_are_met_by_the_student(monkeypatch: pytest.MonkeyPatch) -> None:
    """A patch of 14 at 224 pixels: 16 x 16 tokens of the teacher, 14 x 14 of the student."""
    teacher = wide(patch=14)
    images = torch.randint(0, 256, (1, 3, 224, 224), dtype=torch.uint8)
    step = small_step(teacher).eval()
    adapted, targets = step.compare(step.alignment, Batch(images, []))
    assert adapted[0].shape == (1, 8, 14, 14) and [t.shape for t in targets] == [(1, 8, 16, 16)] * 2
    fitted = F.interpolate(adapted[0], size=(16, 16), mode="bilinear", align_corners=False)
    found = losses(adapted, targets)
    assert found["align_0"].item() == pytest.approx(((fitted - targets[1]) ** 2).mean().item())
    assert found["align_1"].item() == pytest.approx(((fitted - targets[0]) ** 2).mean().item())
    total = sum(found.values())
    assert isinstance(total, Tensor)
    total.backward()
    assert step.alignment.adapters[0].weight.grad is not None


@pytest.mark.parametrize("patch, grid", [(16, (4, 6)), (14, (5, 7))])
def test_views_that_are_not_square(patch: int, grid: tuple[int, int]) -> None:
    """64 x 96 pixels; those that are no multiple of 14 are resized to the next one for the teacher."""
    teacher = wide(patch=patch)
    batch = Batch(torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8), [])
    step = small_step(teacher)
    adapted, targets = step.compare(step.alignment, batch)
    assert adapted[0].shape == (2, 8, 4, 6) and targets[0].shape == (2, 8, *grid)
    assert all(value.isfinite() for value in step(batch).values())


@pytest.mark.parametrize("name", ["test_vit", "vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224"])
def test_patch_tokens_only(name: str) -> None:
    """Class, distillation and register tokens of the teacher are not among the targets."""
    timm = pytest.importorskip("timm")
    teacher = teachers.teacher(f"timm:{name}", weights="none")
    network = teacher.network.network
    images = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    maps = teacher(images)
    assert isinstance(network, timm.models.vision_transformer.VisionTransformer)
    tokens = network.forward_features(teacher.spec.normalise(images))  # type: ignore[operator]
    prefix = tokens.shape[1] - 16
    assert prefix == network.num_prefix_tokens > 0 and len(maps) == 2
    wanted = tokens[:, prefix:].transpose(1, 2).reshape(1, -1, 4, 4)
    torch.testing.assert_close(maps[-1], wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("registers", [0, 1, 4])
def test_register_tokens_of_the_student_are_dropped(registers: int) -> None:
    student = ecvit(SIZES["p"].changed(registers=registers)).eval()
    seen: list[Tensor] = []
    student.blocks[-1].register_forward_hook(lambda _, __, out: seen.append(out))
    (found,) = student.features(noise(1, 3, 64, 64), 1)
    assert seen[0].shape == (1, 16 + registers, 96)
    assert torch.equal(found, seen[0][:, registers:].transpose(1, 2).reshape(1, 96, 4, 4))


def test_more_blocks_than_there_are(pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"teacher_blocks=3: .* gives 1 map\(s\) of stride 16; use 1"):
        teachers.teacher("timm:test_resnet", blocks=3, weights="none").widths((64, 64))
    with pytest.raises(ValueError, match="timm:test_vit: gives 6 maps, 7 are asked for; use fewer blocks"):
        teachers.teacher("timm:test_vit", blocks=7, weights="none").widths((64, 64))
    with pytest.raises(ValueError, match="gives 2 maps, 3 are asked for"):
        wide(maps=2, blocks=3).widths((64, 64))
    with pytest.raises(ValueError, match="student_blocks=7: the student has 6 blocks"):
        run(pictures, tmp_path, student_blocks=7)


def explained(adapted: Sequence[Tensor], targets: Sequence[Tensor], cut: int) -> float:
    """In two batches."""
    measure = Explained()
    for part in (slice(0, cut), slice(cut, None)):
        measure.add([x[part] for x in adapted], [t[part] for t in targets])
    return Explained.share(measure.sums())


def test_explained() -> None:
    target = noise(5, 8, 3, 4) * torch.arange(1.0, 9)[:, None, None] + 10
    assert explained([target], [target], 2) == pytest.approx(1)
    means = target.mean((0, 2, 3), keepdim=True).expand_as(target)
    assert explained([means], [target], 2) == pytest.approx(0, abs=1e-6)
    assert explained([torch.zeros_like(target)], [target], 2) < -1
    others = [noise(5, 8, 3, 4, seed=i) for i in range(4)]
    y, x = np.stack([t.numpy() for t in others[:2]]), np.stack([t.numpy() for t in others[2:]])
    variance = ((y - y.mean((1, 3, 4), keepdims=True)) ** 2).sum()
    wanted = 1 - np.mean([((each - y) ** 2).sum() for each in x]) / variance
    assert explained(others[2:], others[:2], 3) == pytest.approx(wanted)
    assert Explained.share(torch.tensor([1.0, 4.0, 4.0, 4.0])) == 0  # a teacher that always says the same


def test_explained_of_features_far_from_zero() -> None:
    """Sums of a batch are float32: a mean that is large beside the spread must not drown it."""
    target = noise(6, 8, 7, 7) + 1000
    near = target + 0.5 * noise(6, 8, 7, 7, seed=1)
    error = ((near - target).double() ** 2).sum()
    variance = ((target.double() - target.double().mean((0, 2, 3), keepdim=True)) ** 2).sum()
    assert explained([near], [target], 2) == pytest.approx(1 - float(error / variance), abs=1e-5)


def test_explained_in_words() -> None:
    assert in_words(0.1234, "9 pictures") == (
        "the student gives 12.3 % of the variance of the teacher's features on 9 pictures"
    )
    assert "further from the teacher than the mean of each channel (explained -6.42): more epochs" in in_words(-6.42)


@pytest.mark.parametrize(
    "pictures, kept", [(2, 1), (9, 1), (12, 2), (50, 10), (80, 16), (799, 16), (1000, 20), (12800, 256), (10**6, 256)]
)
def test_how_many_pictures_are_kept_out(pictures: int, kept: int) -> None:
    assert distil.to_keep_out(pictures) == kept


class Scale(nn.Module):
    """Batch norm as it begins, without statistics: what a picture gives depends on it alone."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width, 1, 1)), nn.Parameter(torch.zeros(width, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight + self.bias


def without_batch_norm(network: nn.Module) -> None:
    """Replaces the batch norms of a network."""
    for name, child in network.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(network, name, Scale(child.num_features))
        else:
            without_batch_norm(child)


def floats(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without the counters of batch norm, which an average leaves alone."""
    return {name: value for name, value in state.items() if value.is_floating_point()}


def weights_after(lists: list[list[Batch]], folder: Path, optimizer: str, frozen: bool = True) -> dict[str, Tensor]:
    """Student and adapters after a step for each list of accumulated batches."""
    step = small_step(wide())
    if frozen:
        without_batch_norm(step.alignment)
    plan = resolve(
        DistillConfig(optimizer=optimizer, epochs=1, batch=2, lr=20.0, warmup=0), "p", 2 * max(1, len(lists))
    )
    state = RunState(
        step.alignment,
        Average(step.alignment, 0.0, 1),
        optim.alignment(step.alignment, plan, optimizer),
        torch.amp.GradScaler("cpu", enabled=False),
        plan,
        folder,
    )
    forward, update = distributed.wrap(step), Update(step, state)
    for parts in lists:
        optim.set_rates(state.optimizer, plan, state.progress.step)
        _, taken = update(gradients(forward, parts, state), parts)
        assert taken
        state.progress.step += 1
    assert_same(floats(state.average.network.state_dict()), floats(step.alignment.state_dict()))  # a plain copy
    return step.alignment.state_dict()


SHARES = [[small.batch([0, 0], seed=10 * rank + i) for i in range(3)] for rank in range(2)]


@pytest.mark.parametrize("optimizer", ["lars", "adamw"])
def test_accumulated_batches_are_one_large_batch(tmp_path: Path, optimizer: str) -> None:
    pairs = [list(pair) for pair in zip(*SHARES, strict=True)]
    parts = weights_after(pairs, tmp_path, optimizer)
    whole = weights_after([[small.joined(pair)] for pair in pairs], tmp_path, optimizer)
    assert_close(whole, parts, weights_after([], tmp_path, optimizer))


def assert_close(wanted: dict[str, Tensor], found: dict[str, Tensor], start: dict[str, Tensor]) -> None:
    """Within a hundredth of how far each tensor has come."""
    moved = 0
    for name, value in wanted.items():
        change = (value - start[name]).double().norm()
        moved += bool(change > 0)
        difference = (value - found[name]).double().norm()
        assert difference <= 0.01 * change + 1e-7, f"{name}: {difference:.1e} of {change:.1e}"
    assert moved > 50


def _processes(rank: int, folder: Path) -> dict[str, Any]:
    lists = [[batch] for batch in SHARES[rank]]
    step = small_step(wide())
    return {
        "frozen": weights_after(lists, folder, "lars"),
        "synchronised": weights_after(lists, folder, "lars", frozen=False),
        "accumulated": weights_after([SHARES[rank][:2], SHARES[rank][1:]], folder, "lars"),
        "explained": step.explained(step.alignment, SHARES[rank]),
        "pictures": [list(map(str, paths)) for paths in _looked_at(rank, folder / str(rank))],
    }


def _looked_at(rank: int, folder: Path) -> tuple[Paths, Paths]:
    """What a process is to use that has more pictures on its disk than the one before it."""
    folder.mkdir(exist_ok=True)
    for i in range(6 + rank):
        small_data.picture((20, 20), i).save(folder / f"{i}.png")
    return distil._pictures(DistillConfig(images=[str(folder)]))[:2]


def test_the_first_process_chooses_the_pictures(processes: list[dict[str, Any]]) -> None:
    first, second = (found["pictures"] for found in processes)
    assert first == second and [len(paths) for paths in first] == [5, 1]
    assert {Path(path).parent.name for paths in second for path in paths} == {"0"}


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What two processes got."""
    return together(_processes, tmp_path_factory.mktemp("two"))


@pytest.mark.parametrize("case", ["frozen", "synchronised", "accumulated"])
def test_two_processes_equal_one_on_the_joined_batch(
    processes: list[dict[str, Any]], tmp_path: Path, case: str
) -> None:
    first, second = (found[case] for found in processes)
    assert all(torch.equal(first[name], second[name]) for name in first)
    joined = [small.joined(pair) for pair in zip(*SHARES, strict=True)]
    lists = [joined[:2], joined[1:]] if case == "accumulated" else [[batch] for batch in joined]
    frozen = case != "synchronised"
    alone = weights_after(lists, tmp_path, "lars", frozen)
    assert_close(alone, first, weights_after([], tmp_path, "lars", frozen))


def test_explained_over_processes_is_that_of_all_pictures(processes: list[dict[str, Any]]) -> None:
    step = small_step(wide())
    alone = step.explained(step.alignment, [batch for share in SHARES for batch in share])
    assert [found["explained"] for found in processes] == [pytest.approx(alone, abs=1e-5)] * 2


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine good pictures and three broken ones."""
    folder = tmp_path_factory.mktemp("pictures")
    for i in range(9):
        small_data.picture((50 + i, 70), i).save(folder / f"é {i}.jpg")
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "text.png").write_bytes(b"no picture")
    (folder / "cut.jpg").write_bytes((folder / "é 0.jpg").read_bytes()[:300])
    return folder


OPTIONS: dict[str, Any] = {"student": "ecvit-p", "imgsz": 32, "batch": 2, "workers": 0, "device": "cpu", "epochs": 3}


def run(pictures: Path, project: Path, teacher: nn.Module | str | None = None, **changes: Any) -> Distilled:
    if isinstance(teacher, str):
        changes["teacher"], teacher = teacher, None
    elif teacher is None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(7)
            teacher = Wide()
    return distill(DistillConfig(images=[str(pictures)], project=str(project), **{**OPTIONS, **changes}), teacher)


@pytest.fixture(scope="module")
def finished(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the runs `lars` and `adamw`, not interrupted."""
    folder = tmp_path_factory.mktemp("finished")
    for name in ("lars", "adamw"):
        done = run(pictures, folder, optimizer=name, name=name, registers=2)
        assert done.folder == folder / name and done.epochs == 3 and np.isfinite(done.explained)
    return folder


def test_what_a_run_leaves_behind(finished: Path) -> None:
    folder = finished / "lars"
    saved = read(folder / WEIGHTS / LAST)
    assert {name.split(".")[0] for name in saved["network"]} == {"student", "adapters"}
    assert saved["network"].keys() == saved["average"]["network"].keys()
    students = {name for name in saved["network"] if name.startswith("student.")}
    tensors = load_file(folder / WEIGHTS / "backbone.safetensors")
    assert len(tensors) == len(students)
    assert not [name for name in tensors if "adapter" in name or "teacher" in name or name.startswith("student")]
    rows = read_rows(folder / "results.csv")
    assert [row["epoch"] for row in rows] == ["1", "2", "3"] and all(float(row["align"]) > 0 for row in rows)
    assert all(row["skipped"] == "0" and -9 < float(row["val/explained"]) <= 1 for row in rows)
    arguments = (folder / "args.yaml").read_text()
    assert "optimizer: lars" in arguments and "teacher: Wide" in arguments
    assert not (folder / WEIGHTS / BEST).exists()  # nothing goes back to it
    # every unreadable picture once, with its reason
    lines = (folder / "unreadable.txt").read_text(encoding="utf-8").splitlines()
    assert [Path(line.split("\t")[0]).name for line in lines] == ["cut.jpg", "empty.jpg", "text.png"]
    assert "the file is empty" in lines[1] and "not a picture in a known format" in lines[2]


def test_the_student_is_the_trained_one_in_the_released_layout(finished: Path) -> None:
    path = finished / "lars" / WEIGHTS / "backbone.safetensors"
    trained = {
        name.removeprefix("student."): value
        for name, value in read(finished / "lars" / WEIGHTS / LAST)["network"].items()
        if name.startswith("student.")
    }
    assert_same(floats(vits.read(path)), floats(trained))
    released = official.to_official({official.VIT + name: value for name, value in trained.items()})
    prefix = official.OFFICIAL_VIT
    bare = {name.removeprefix(prefix): value for name, value in released.items() if name.startswith(prefix)}
    assert load_file(path).keys() == bare.keys()
    assert not any(name.startswith("backbone.") for name in bare)
    assert vits.options(path)["registers"] == 2


def test_a_detector_starts_from_the_student(finished: Path, tmp_path: Path) -> None:
    """From the run's folder, its file, and a file of others with the same keys; with the registers of the file."""
    folder = finished / "lars"
    bare = load_file(folder / WEIGHTS / "backbone.safetensors")
    wanted = vits.read(folder / WEIGHTS / "backbone.safetensors")
    torch.save(bare, tmp_path / "released.pth")
    save_file(bare, tmp_path / "released.safetensors")
    labels = Labels(("a", "b"))
    for given in (folder, folder / WEIGHTS / "backbone.safetensors"):
        found = start.start(start.origin("ecdet-p"), labels, (64, 64), backbone=given)
        assert found.info.size.registers == 2 and not found.random_vit
        assert_same(dict(found.network.get_submodule("backbone.vit").state_dict()), wanted)
    for name in ("released.pth", "released.safetensors"):
        found = start.start(start.origin("ecdet-p"), labels, (64, 64), backbone=tmp_path / name, registers=2)
        assert_same(dict(found.network.get_submodule("backbone.vit").state_dict()), wanted)
    with pytest.raises(ValueError, match="does not fit this model's ViT"):
        start.start(start.origin("ecdet-n"), labels, (64, 64), backbone=folder)


class Stopped(Exception):
    """Stands for a kill."""


@pytest.mark.parametrize("optimizer, after", [("lars", 1), ("lars", 5), ("lars", 10), ("adamw", 7)])
def test_resume_to_the_bit(
    pictures: Path, tmp_path: Path, finished: Path, monkeypatch: pytest.MonkeyPatch, optimizer: str, after: int
) -> None:
    """Stopped in the first, second or third epoch of 4 steps."""
    forward, left = AlignStep.forward, [after]

    def stopping(self: AlignStep, *args: Any) -> Any:
        if left[0] == 0:
            raise Stopped
        left[0] -= 1
        return forward(self, *args)

    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(AlignStep, "forward", stopping)
        run(pictures, tmp_path, optimizer=optimizer, registers=2)
    folder = tmp_path / "distill"
    assert read(folder / WEIGHTS / LAST)["progress"]["epoch"] == after // 4
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        teacher = Wide()
    done = distill(DistillConfig(resume=str(folder), device="cpu"), teacher)
    assert done.folder == folder
    one, other = (read(each / WEIGHTS / LAST) for each in (finished / optimizer, folder))
    for name in ("network", "average", "optimizer", "progress", "plan"):
        assert_same(one[name], other[name])
    assert_same(*(load_file(each / WEIGHTS / "backbone.safetensors") for each in (finished / optimizer, folder)))
    assert _unreadable(folder) == _unreadable(finished / optimizer)
    rows = [read_rows(each / "results.csv") for each in (finished / optimizer, folder)]
    assert [row["loss"] for row in rows[0]] == [row["loss"] for row in rows[1]]


def _unreadable(folder: Path) -> str:
    return (folder / "unreadable.txt").read_text(encoding="utf-8")


def test_a_finished_run_may_be_resumed_and_refuses_other_options(finished: Path, pictures: Path) -> None:
    with pytest.raises(ValueError, match=r"epochs=9: the run in .* was started with 3 .*weights="):
        distill(DistillConfig(resume=str(finished / "lars"), epochs=9), Wide())
    moved = [str(pictures / f"é {i}.jpg") for i in range(2)]
    with pytest.raises(ValueError, match="the same pictures and processes only"):
        distill(
            DistillConfig(resume=str(finished / "lars"), images=moved),
            Wide(),
        )
    again = distill(DistillConfig(resume=str(finished / "lars"), device="cpu"), Wide())
    assert again.epochs == 3


DISTIL = """
import json, sys, torch
torch.set_num_threads(1)
from edgecrafter.train.distil import distill
from edgecrafter.train.distill_config import DistillConfig
distill(DistillConfig(**json.loads(sys.argv[1])))
"""


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["lars", "adamw"])
def test_kill_9(pictures: Path, tmp_path: Path, optimizer: str) -> None:
    """Killed in the middle, twice; each time a new process goes on. The teacher is timm's, with random weights."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(distil.__file__).parents[2])}
    options = {**OPTIONS, "images": [str(pictures)], "project": str(tmp_path), "teacher": "timm:test_vit",
               "teacher_weights": "none", "optimizer": optimizer, "epochs": 6, "workers": 1}  # fmt: skip

    def started(**changes: Any) -> subprocess.Popen[bytes]:
        words = [sys.executable, "-c", DISTIL, json.dumps(changes)]
        return subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL)

    assert started(**options, name="straight").wait() == 0
    process = started(**options, name="broken")
    for epochs in (1, 3):
        while len(read_rows(tmp_path / "broken" / "results.csv")) < epochs:
            assert process.poll() is None
            time.sleep(0.01)
        process.kill()
        assert process.wait() == -9
        process = started(resume=str(tmp_path / "broken"), device="cpu")
    assert process.wait() == 0
    one, other = (read(tmp_path / name / WEIGHTS / LAST) for name in ("straight", "broken"))
    assert_same(one["network"], other["network"])
    assert_same(one["optimizer"], other["optimizer"])


def test_a_teacher_that_was_trained_here(pictures: Path, tmp_path: Path) -> None:
    """A detector's file as the teacher: its own backbone teaches; the distilled student is one for the next."""
    network, info = hub.create("ecdet-p", small.LABELS)
    hub.save(network, info, tmp_path / "detector.safetensors")
    done = run(pictures, tmp_path, teacher=str(tmp_path / "detector.safetensors"), epochs=1)
    assert "detector.safetensors" in vits.about(done.backbone)["teacher"]
    again = run(pictures, tmp_path, teacher=str(done.folder), weights=str(done.folder), epochs=1, lr=0.0)
    # nothing is learned without a rate, but for the statistics of batch norm
    one, other = vits.read(done.backbone), vits.read(again.backbone)
    assert all(torch.equal(one[name], other[name]) for name in one if "running" not in name and "num" not in name)


def test_files_hold_no_folders_of_this_machine(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A teacher is named in the student's file, and so in every detector that starts from it, without its place."""
    network, info = hub.create("ecdet-p", small.LABELS)
    for place in ("run/weights/best.safetensors", "alone.safetensors"):
        hub.save(network, info, tmp_path / place)
    for given, name in (("run", "ecdet-p of run"), ("alone.safetensors", "ecdet-p of alone.safetensors")):
        done = run(pictures, tmp_path, teacher=str(tmp_path / given), epochs=1)
        notes = vits.about(done.backbone)
        assert notes["teacher"] == name and f"from {name}: {info.licence}" in notes["licence"]
        assert str(tmp_path) not in json.dumps(notes)
        assert f"teacher: {name} ({tmp_path / given})" in capsys.readouterr().out
    begun = start.start(start.origin("ecdet-p"), small.LABELS, (64, 64), backbone=done.folder).info
    assert "ecdet-p of alone.safetensors" in begun.licence and str(tmp_path) not in begun.to_json()
    assert teachers.teacher(str(done.folder), blocks=1).name == f"ecvit-p of {done.folder.name}"


def test_a_teacher_without_a_licence(pictures: Path, tmp_path: Path) -> None:
    done = run(pictures, tmp_path, teacher="ecdet-p", teacher_weights="none", epochs=1)
    assert vits.about(done.backbone)["licence"].endswith(" from ecdet-p, random")


def test_the_other_command_started_the_run(finished: Path) -> None:
    with pytest.raises(
        ValueError, match="started with edgecrafter distill; go on with that: edgecrafter distill --res"
    ):
        train(TrainConfig(resume=str(finished / "lars"), device="cpu"))
    path = finished / "detector" / WEIGHTS / LAST
    path.parent.mkdir(parents=True)
    torch.save({"config": TrainConfig().to_dict()}, path)
    with pytest.raises(ValueError, match="was started with edgecrafter train; go on with that"):
        distill(DistillConfig(resume=str(finished / "detector"), device="cpu"))


def test_a_student_learns() -> None:
    """40 steps on four pictures: the loss falls to less than a third."""
    step, batch = small_step(wide()), small.batch([0] * 4, side=32)
    optimizer = torch.optim.AdamW(step.parameters(), 3e-3)
    found = []
    for _ in range(40):
        total = torch.stack([*step(batch).values()]).sum()
        total.backward()
        optimizer.step()
        optimizer.zero_grad()
        found.append(total.item())
    assert found[-1] < 0.3 * found[0]


def test_old_lists_go_when_a_folder_is_used_again(pictures: Path, tmp_path: Path) -> None:
    first = run(pictures, tmp_path, epochs=1, exist_ok=True)
    (first.folder / "unreadable.txt").write_text("/elsewhere.jpg\tof an earlier run\n")
    run(pictures, tmp_path, epochs=1, exist_ok=True)
    assert "elsewhere" not in (first.folder / "unreadable.txt").read_text()


def test_pictures_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no pictures given"):
        distill(DistillConfig(device="cpu"), Wide())
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(ValueError, match="none of 2 pictures can be read, the first: .*the file is empty"):
        run(tmp_path, tmp_path / "runs")
    small_data.picture((20, 20)).save(tmp_path / "c.png")
    small_data.picture((20, 20)).save(tmp_path / "d.png")
    done = run(tmp_path, tmp_path / "runs", epochs=1)  # one to learn from, one to measure with
    assert len((done.folder / "unreadable.txt").read_text().splitlines()) == 2
    with pytest.raises(ValueError, match="1 pictures that can be read are not enough"):
        run(tmp_path / "c.png", tmp_path / "runs")
    with pytest.raises(ValueError, match="unknown vision transformer 'resnet'"):
        run(tmp_path, tmp_path / "runs", student="resnet")
    with pytest.raises(ValueError, match="no teacher given"):
        run(tmp_path, tmp_path / "runs", teacher="")


def test_nothing_is_written_of_a_journal_that_has_no_score(tmp_path: Path) -> None:
    journal = Journal(tmp_path, ("align",), ("explained",), 1)
    journal.begin(0, 1)
    journal.step({"align_0": torch.tensor(2.0), "align_1": torch.tensor(1.0)}, 3.0, 4, True)
    row = journal.end(1, 0.5, None)
    journal.close()
    assert float(row["align"]) == 3 and row["val/explained"] == ""


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision(pictures: Path, tmp_path: Path, finished: Path, precision: str) -> None:
    """Teacher and student compute in half precision, losses and what is kept are float32, and nearly the same."""
    found = run(pictures, tmp_path, precision=precision, registers=2)
    for name, value in read(found.folder / WEIGHTS / LAST)["network"].items():
        assert value.dtype in (torch.float32, torch.int64), name
    one, other = (float(read_rows(each / "results.csv")[0]["loss"]) for each in (finished / "lars", found.folder))
    assert other == pytest.approx(one, rel=0.03)
    teacher = wide().prepare(torch.device("cpu"), torch.bfloat16)
    assert all(each.dtype == torch.float32 for each in teacher(small.batch([0]).images))
