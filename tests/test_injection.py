"""DSI: the student's map learns the teacher's, the teacher nothing, and the model that is kept knows nothing of it."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_training as small
import test_golden_losses as golden
import torch
import torch.nn.functional as F
import yaml
from safetensors.torch import load_file
from test_gam import dsi
from torch import Tensor, nn

from edgecrafter import curves, hub, teachers
from edgecrafter.ablate import ablate
from edgecrafter.ablate_config import AblateConfig
from edgecrafter.cli import main
from edgecrafter.cli.parsing import parse
from edgecrafter.data import scenes
from edgecrafter.distill.base import Student
from edgecrafter.distill.injection import DSI, LOSSES, PLACES, PROJECTORS, DSIOptions
from edgecrafter.distill.teacher import Teacher
from edgecrafter.losses.set_loss import criterion
from edgecrafter.models.sizes import DINO, RTDETRV4, SIZES
from edgecrafter.train import methods
from edgecrafter.train.begin import prepared
from edgecrafter.train.config import TrainConfig
from edgecrafter.train.loop import gradients
from edgecrafter.train.run import Trained, train
from edgecrafter.types import IMAGENET_MEAN, Batch, InputSpec, LayerOutput, Outputs

GOLDEN = json.loads((golden.GOLDEN / "losses_distill.json").read_text())
ARRAYS = np.load(golden.GOLDEN / "losses_distill.npz")


def array(name: str) -> Tensor:
    return torch.from_numpy(ARRAYS[name])


class Stored(nn.Module):
    """A network that answers with a given map, and keeps what it was shown."""

    def __init__(self, answer: Tensor) -> None:
        super().__init__()
        self.answer, self.unused = answer, nn.Parameter(torch.zeros(1))

    def features(self, images: Tensor, _keep: int) -> list[Tensor]:
        self.shown = images
        return [self.answer]


def answering(answer: Tensor, width: int = 24, size: tuple[int, int] = (192, 192), **given: Any) -> DSI:
    """DSI with a teacher that gives ``answer``, and a projector that changes nothing where the widths agree."""
    plain = InputSpec(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    student = Student("rtdetrv4-s", SIZES["p"].changed(width=width), size, 99)
    method = DSI(DSIOptions(gam="none", **given), Teacher(Stored(answer), plain, "stored", blocks=1), student)
    for projector in method.projectors.values():
        if isinstance(getattr(projector, "inner", None), nn.Linear) and width == answer.shape[1]:
            nn.init.eye_(projector.inner.weight)
            nn.init.zeros_(projector.inner.bias)
    return method


def outputs(aifi: Tensor, *features: Tensor) -> Outputs:
    return Outputs([LayerOutput(torch.zeros(1))], features=list(features), aifi=aifi)


def pictures(h: int, w: int, count: int = 2) -> Batch:
    random = torch.Generator().manual_seed(0)
    return Batch(torch.randint(0, 256, (count, 3, h, w), dtype=torch.uint8, generator=random), [])


@pytest.mark.parametrize("case", ["same_size", "teacher_larger", "teacher_smaller_rect"])
def test_golden_cosine(case: str) -> None:
    aifi = array(f"cosine/{case}/student").clone().requires_grad_()
    method = answering(array(f"cosine/{case}/teacher"), weight=1)
    found = method(outputs(aifi), pictures(32 * aifi.shape[2], 32 * aifi.shape[3]))
    assert list(found) == ["dsi"]
    assert found["dsi"].item() == pytest.approx(GOLDEN["cosine"][case], rel=1e-5)
    found["dsi"].backward()
    assert aifi.grad is not None
    torch.testing.assert_close(aifi.grad, array(f"cosine/{case}/grad_student"), rtol=1e-5, atol=1e-7)


def test_golden_projector() -> None:
    projector = PROJECTORS["linear"](16, 24)
    projector.load_state_dict({"inner.weight": array("projector/weight"), "inner.bias": array("projector/bias")})
    torch.testing.assert_close(projector(array("projector/input")), array("projector/output"))


def test_golden_complete_criterion() -> None:
    """The losses of RT-DETRv4-S and DSI beside them, as the training step adds it; the auxiliary parts add nothing."""
    arrays = np.load(golden.GOLDEN / "losses_det.npz")
    made, targets, _ = golden.scene(arrays, "det_several")
    made.aifi = array("cosine/same_size/student")
    row = RTDETRV4["s"]
    losses = criterion(row.criterion, row.curvature)(made, targets, golden.stored_draws(arrays, "det_several"))
    losses |= answering(array("cosine/same_size/teacher"), weight=5)(made, pictures(192, 192))
    wanted, seen = GOLDEN["full"]["weighted"], set()
    for name, value in losses.items():
        term = max((term for term in {**golden.TERMS, "dsi": ""} if name.startswith(term)), key=len)
        part = golden.part_of(name.removeprefix(term))
        key = f"loss_{golden.TERMS.get(term, 'distill')}" + ("" if part == "main" else f"_{part}")
        if key not in wanted:  # the last denoising layer's ddf
            assert key == "loss_ddf_dn_2" and value == 0
            continue
        seen.add(key)
        assert value.item() == pytest.approx(wanted[key], rel=2e-5, abs=1e-6), name
    assert all(wanted[key] == 0 and key.startswith("loss_distill_") for key in set(wanted) - seen)


@pytest.mark.parametrize("position, projector, loss", [
    *((position, "linear", "cosine") for position in PLACES),
    *(("f5", projector, loss) for projector in PROJECTORS for loss in LOSSES),
    ("hybrid", "conv1x1", "mse"),
])  # fmt: skip
def test_every_choice_teaches_the_student_only(tmp_path: Path, position: str, projector: str, loss: str) -> None:
    method = dsi(position=position, projector=projector, loss=loss)
    before = {name: value.clone() for name, value in method.teacher.network.state_dict().items()}
    step, state, _ = small.training(tmp_path, small.plan(), distillers=[method])
    found = step(small.batch([2, 1]))["dsi"]
    found.backward()
    assert found.isfinite() and found > 0
    assert set(method.projectors) == set(PLACES[position])
    for name, parameter in method.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
    reached = {name.partition(".")[0] for name, p in step.network.named_parameters() if p.grad is not None}
    assert reached == ({"backbone", "encoder"} if "f5" in PLACES[position] else {"backbone"})
    aifi = [p.grad for p in step.network.encoder.aifi.parameters()]  # type: ignore[union-attr, operator]
    assert all((grad is not None) == ("f5" in PLACES[position]) for grad in aifi)
    gradients(step, [small.batch([2, 1])], state)
    state.optimizer.step()
    assert all(p.grad is None and not p.requires_grad for p in method.teacher.network.parameters())
    assert not any(module.training for module in method.teacher.network.modules())
    for name, value in method.teacher.network.state_dict().items():
        assert torch.equal(value, before[name]), name
    owned = {id(p) for p in method.teacher.network.parameters()}
    assert owned.isdisjoint(map(id, step.parameters())) and not any("teacher" in name for name in step.state_dict())


def test_positions_are_what_the_encoder_receives(tmp_path: Path) -> None:
    """S3 to S5 in the student's own grids, F5 behind the attention; ``all`` is the mean of the three."""
    step, _, _ = small.training(tmp_path, small.plan())
    network = step.network.eval()
    found = network(step.spec.normalise(small.batch([1, 1]).images))
    assert [tuple(each.shape[2:]) for each in (*found.features, found.aifi)] == [(8, 8), (4, 4), (2, 2), (2, 2)]
    _, attended = network.encoder(found.features)  # type: ignore[operator]
    torch.testing.assert_close(attended, found.aifi)
    width, losses = found.aifi.shape[1], {}
    target = torch.randn(2, width, 2, 2, generator=torch.Generator().manual_seed(1))
    for position in PLACES:
        method = answering(target, width, (64, 64), position=position, weight=1)
        losses[position] = method(found, small.batch([1, 1]))["dsi"].item()
    for i, name in enumerate(("s3", "s4", "s5")):
        assert losses[name] == pytest.approx(LOSSES["cosine"](found.features[i], target).item(), rel=1e-5)
    assert losses["f5"] == pytest.approx(LOSSES["cosine"](found.aifi, target).item(), rel=1e-5)
    assert losses["all"] == pytest.approx(np.mean([losses[name] for name in ("s3", "s4", "s5")]), rel=1e-5)
    assert losses["hybrid"] == pytest.approx(np.mean([losses[n] for n in ("s3", "s4", "s5", "f5")]), rel=1e-5)


@pytest.mark.parametrize("loss", LOSSES)
def test_an_equal_student_has_no_loss(loss: str) -> None:
    target = torch.randn(2, 24, 6, 6, generator=torch.Generator().manual_seed(0))
    method = answering(target, loss=loss, weight=3)
    assert method(outputs(target.clone()), pictures(192, 192))["dsi"].item() == pytest.approx(0, abs=1e-5)
    other = method(outputs(2 * target), pictures(192, 192))["dsi"].item()
    wanted = 3 * target.square().mean().item() if loss == "mse" else 0.0
    assert other == pytest.approx(wanted, rel=1e-5, abs=1e-5), "a cosine knows no length"


def test_half_the_size_is_the_mean_of_four_pixels() -> None:
    method, batch = answering(torch.zeros(2, 24, 6, 6)), pictures(192, 256)
    method.teacher(method.seen(batch.images))
    images = batch.images.float().numpy()
    mean = (images[..., ::2, ::2] + images[..., 1::2, ::2] + images[..., ::2, 1::2] + images[..., 1::2, 1::2]) / 4 / 255
    shown = method.teacher.network.shown.numpy()  # type: ignore[union-attr]
    assert shown.shape == (2, 3, 96, 128)
    np.testing.assert_allclose(shown, mean, rtol=0, atol=1e-6)
    whole = answering(torch.zeros(2, 24, 6, 6), pool=False)
    torch.testing.assert_close(whole.seen(batch.images), batch.images / 255)


@pytest.mark.parametrize("model", ["rtdetrv4-p", "ecdet-p"])
def test_the_teacher_sees_the_raw_picture_in_its_own_way(tmp_path: Path, model: str) -> None:
    """In a training step, of a student that takes 0..1 and of one with ImageNet's mean: never what the student sees."""
    spec = InputSpec(mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    stored = Stored(torch.randn(2, 24, 2, 2, generator=torch.Generator().manual_seed(0)))
    student = Student(model, SIZES["p"], (64, 64), 99)
    method = DSI(DSIOptions(gam="none"), Teacher(stored, spec, "stored", blocks=1), student)
    step, _, _ = small.training(tmp_path, small.plan(), model=model, distillers=[method])
    assert step.spec.mean == ((0.0, 0.0, 0.0) if model == "rtdetrv4-p" else IMAGENET_MEAN)
    batch = small.batch([2, 1])
    assert step(batch)["dsi"] > 0
    small_pictures = F.avg_pool2d(batch.images.float() / 255, 2)
    mean, std = (torch.tensor(each)[:, None, None] for each in (spec.mean, spec.std))
    torch.testing.assert_close(stored.shown, (small_pictures - mean) / std)


TEACHERS = {
    "ecvit-p": 16,
    "timm:vit_tiny_patch16_224": 16,
    "timm:vit_small_patch14_dinov2": 14,
    "timm:vit_small_patch32_224": 32,
}


@pytest.mark.parametrize("size", [(64, 64), (64, 128)])
@pytest.mark.parametrize("pool", [True, False])
@pytest.mark.parametrize("name", TEACHERS)
def test_grids_of_teachers(name: str, pool: bool, size: tuple[int, int]) -> None:
    """With ``pool`` the teacher's grid is that of F5 whatever its patches; without it sees all, and is resized."""
    if name != "ecvit-p":
        pytest.importorskip("timm")
    teacher = teachers.teacher(name, 1, weights="none")
    method = DSI(DSIOptions(pool=pool), teacher, Student("ecdet-p", SIZES["p"], size, 9))
    patch = TEACHERS[name]
    batch = pictures(*size)
    seen = method.seen(batch.images)
    assert seen.shape[2:] == ((size[0] // 32 * patch, size[1] // 32 * patch) if pool else size)
    grid = teacher(seen)[-1].shape[2:]
    assert grid == tuple(side // 32 for side in size) if pool else grid == tuple(round(side / patch) for side in size)
    aifi = torch.randn(2, SIZES["p"].width, size[0] // 32, size[1] // 32)
    found = method(outputs(aifi), batch)["dsi"]
    assert found.isfinite() and found.requires_grad
    target = F.interpolate(teacher(seen)[-1], size=aifi.shape[2:], mode="bilinear", align_corners=False)
    projected = method.projectors["f5"](aifi)
    cosine = (projected * target).sum(1) / projected.norm(dim=1) / target.norm(dim=1)
    assert found.item() == pytest.approx(20 * (1 - cosine.mean().item()), rel=1e-4)


def test_models_and_teachers_of_other_kinds() -> None:
    """A hierarchy teaches by its map of stride 16, a detector by its backbone."""
    pytest.importorskip("timm")
    for name in ("timm:resnet18", "ecdet-p", "rtdetrv4-p"):
        teacher = teachers.teacher(name, 1, weights="none")
        method = DSI(DSIOptions(), teacher, Student("ecdet-p", SIZES["p"], (64, 64), 9))
        aifi = torch.randn(2, SIZES["p"].width, 2, 2)
        assert method(outputs(aifi), pictures(64, 64))["dsi"].isfinite(), name


def test_every_option_is_in_the_docs() -> None:
    text = (Path(__file__).parents[1] / "docs" / "distillation.md").read_text()
    section = text.partition("## While training")[2].partition("\n## ")[0]
    assert not [each.name for each in fields(DSIOptions) if f"`{each.name}`" not in section]


# The command line, and other ways to say the same.

GIVEN = "dsi,teacher=hf:facebook/dinov2-small,weight=3"


@pytest.mark.parametrize(
    "words",
    [
        ["--distill", GIVEN],
        [f"--distill={GIVEN}"],
        [f"distill={GIVEN}"],
        ["--distill", "dsi", "--distill", "teacher=hf:facebook/dinov2-small", "--distill", "weight=3"],
        ["--distill", "dsi", "--distill", "teacher=hf:facebook/dinov2-small,weight=3"],
        ["--distill", "[dsi, teacher=hf:facebook/dinov2-small, weight=3]"],
        ["--config", "list.yaml"],
        ["--config", "text.yaml"],
        ["--config", "words.yaml"],
    ],
)
def test_ways_to_write_it(words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("list.yaml").write_text("distill: [dsi, 'teacher=hf:facebook/dinov2-small', weight=3]\n")
    Path("text.yaml").write_text(f"distill: {GIVEN}\n")
    Path("words.yaml").write_text(f"distill: ['{GIVEN}']\n")
    config = parse(TrainConfig, ["ecdet-p", "data", *words], ("model", "data"))
    (found,) = methods.parsed(config.distill)
    assert found == ("dsi", DSIOptions(teacher="hf:facebook/dinov2-small", weight=3))


@pytest.mark.parametrize("given", [GIVEN, [GIVEN], GIVEN.split(",")])
def test_ways_to_write_it_in_python(given: Any) -> None:
    assert methods.parsed(TrainConfig(distill=given).distill) == [
        ("dsi", DSIOptions(teacher="hf:facebook/dinov2-small", weight=3))
    ]
    assert TrainConfig(distill=None).distill == TrainConfig(distill="none").distill == []  # type: ignore[arg-type]


def test_values_of_options() -> None:
    given = "dsi,pool=no,norm=true,weight=3e-1,rho=none,teacher=7e1,teacher_weights=none,gam=none"
    ((_, found),) = methods.parsed([given])
    assert found == DSIOptions(pool=False, weight=0.3, teacher="7e1", teacher_weights="none", gam="none")
    ((_, found),) = methods.parsed(["dsi", "teacher=a,b/weights"])
    assert found.teacher == "a,b/weights"


@pytest.mark.parametrize(
    "given, message",
    [
        ("dis,teacher=x", "distill=dis: unknown method; known: dsi"),
        ("teacher=x", "distill=teacher=x: name a method first, such as distill=dsi,teacher=x"),
        ("dsi,dsi", "distill=dsi,dsi: every method once"),
        ("dsi,teecher=x", "distill=dsi: unknown option 'teecher'. Did you mean 'teacher'?"),
        ("dsi,position=s6", "distill=dsi: position=s6: choose one of s3, s4, s5, all, f5, hybrid"),
        ("dsi,projector=conv", "distill=dsi: projector=conv: choose one of linear, conv1x1, mlp"),
        ("dsi,loss=l1", "distill=dsi: loss=l1: choose one of cosine, mse"),
        ("dsi,gam=yes", "distill=dsi: gam=yes: choose one of auto, released, paper, none"),
        ("dsi,weight=-1", "distill=dsi: weight=-1: expected a number of at least 0"),
        ("dsi,weight=much", "distill=dsi: weight=much: expected a number"),
        ("dsi,rho=true", "distill=dsi: rho=true: expected a number"),
        ("dsi,pool=3", "distill=dsi: pool=3: expected true or false"),
    ],
)
def test_wrong_words(given: str, message: str) -> None:
    with pytest.raises(ValueError) as error:
        methods.parsed([given])
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "model, given, message",
    [
        ("ecdet-p", {"gam": "released"}, "gam=released: no settings are known for ecdet-p; give .* rho=5"),
        ("rtdetrv4-p", {"gam": "paper"}, "gam=paper: no settings are known for rtdetrv4-p"),
        ("ecdet-p", {"delta": 1.0}, "delta=1 is nothing here: the weight is fixed"),
        ("rtdetrv4-s", {"gam": "none", "rho": 4.0}, "rho=4 is nothing here"),
        ("rtdetrv4-s", {"gam": "paper", "default": 4.0}, "default=4 is nothing here: the paper's rule has no"),
        ("ecdet-p", {"rho": 0.0}, "expected a share in percent"),
    ],
)
def test_settings_that_do_not_fit(model: str, given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dsi(model, **given)


# Whole runs.


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return scenes.write(tmp_path_factory.mktemp("data") / "scenes", 6, 2, size=64)


def config(data: Path, folder: Path, model: str = "rtdetrv4-p", **changes: Any) -> TrainConfig:
    plain = {"epochs": 2, "batch": 3, "imgsz": 64, "queries": 20, "workers": 0, "device": "cpu", "weights": "none"}
    return TrainConfig(**{"model": model, "data": str(data), "project": str(folder), **plain, **changes})  # type: ignore[arg-type]


TAUGHT = "dsi,teacher=timm:vit_tiny_patch16_224,teacher_weights=none,gam=released,rho=3,weight=2"


@pytest.fixture(scope="module")
def runs(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Trained, Trained]:
    """A run with DSI and GAM, and one without."""
    pytest.importorskip("timm")
    folder = tmp_path_factory.mktemp("runs")
    return tuple(train(config(data, folder, name=n, distill=d)) for n, d in (("taught", TAUGHT), ("plain", "")))  # type: ignore[return-value]


class Plain(nn.Module):
    """A detector whose answers are tensors."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        layer = self.network(images).layers[-1]
        return layer.logits, layer.boxes


def test_the_deployed_model_is_the_same_model(runs: tuple[Trained, Trained]) -> None:
    """Names, shapes, graph, and for equal weights the outputs."""
    files = [load_file(run.best) for run in runs]
    assert {n: v.shape for n, v in files[0].items()} == {n: v.shape for n, v in files[1].items()}
    loaded = [hub.load(run.best) for run in runs]
    (taught, info), (plain, plain_info) = loaded
    assert info.size == plain_info.size and info.input == plain_info.input and info.labels == plain_info.labels
    for one, other in zip(taught.named_modules(), plain.named_modules(), strict=True):
        assert one[0] == other[0] and type(one[1]) is type(other[1])
    counts = [sum(p.numel() for p in network.parameters()) for network in (taught, plain)]
    assert counts[0] == counts[1]
    images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    graphs = [torch.export.export(Plain(network.eval()), (images,)).graph_module.code for network in (taught, plain)]
    assert graphs[0].count("\n") > 100 and graphs[0] == graphs[1]
    assert not torch.equal(Plain(taught)(images)[1], Plain(plain)(images)[1])
    plain.load_state_dict(taught.state_dict())
    for one, other in zip(Plain(taught)(images), Plain(plain)(images), strict=True):
        assert torch.equal(one, other)


def test_nothing_of_it_is_in_the_model_files_but_the_licence(runs: tuple[Trained, Trained]) -> None:
    for name in ("best", "last"):
        taught, plain = (run.folder / "weights" / f"{name}.safetensors" for run in runs)
        text = taught.read_bytes()
        assert b"projector" not in text and text.count(b"vit_tiny_patch16_224") <= 2 * text.count(b"taught by")
        licence = hub.read(taught)[1].licence
        assert licence.startswith(hub.read(plain)[1].licence)
        assert "; taught by timm:vit_tiny_patch16_224 (DSI): vit_tiny_patch16_224: apache-2.0" in licence


def test_what_a_run_leaves(runs: tuple[Trained, Trained], capsys: pytest.CaptureFixture[str]) -> None:
    taught, plain = (run.folder for run in runs)
    written = yaml.safe_load((taught / "args.yaml").read_text())
    assert written["options"]["distill"] == TAUGHT.split(",")
    found = written["distill"]["dsi"]
    assert set(found) == {each.name for each in fields(DSIOptions)}
    assert (found["gam"], found["rho"], found["delta"], found["weight"], found["default"]) == (
        "released", 3, pytest.approx(0.3), 2, 2,
    )  # fmt: skip
    assert "distill" not in yaml.safe_load((plain / "args.yaml").read_text())
    rows, others = ((folder / "results.csv").read_text().splitlines()[0].split(",") for folder in (taught, plain))
    assert set(rows) - set(others) == {"dsi", "dsi/weight", "dsi/share"}
    pytest.importorskip("matplotlib")
    assert (taught / "dsi.png").stat().st_size > 10_000 and not (plain / "dsi.png").exists()


def test_curves_without_matplotlib(runs: tuple[Trained, Trained], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curves, "_figure", lambda *_: None)
    assert curves.method(runs[0].folder, "dsi", "nowhere.png") is None


def test_the_picture_shows_the_numbers_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runs: tuple[Trained, Trained]
) -> None:
    pytest.importorskip("matplotlib")
    head = "epoch,loss,dsi,dsi/weight,dsi/share,val/AP"
    rows = ["1,9,3,5,nan,0.1", "2,8,3,50,2,", "3,8,3,20,4,0.3"]
    (tmp_path / "results.csv").write_text("\n".join([head, *rows, ""]))
    facts = {"plan": {"plain_from": 2}, "distill": {"dsi": {"rho": 3.0, "delta": 0.5}}}
    (tmp_path / "args.yaml").write_text(yaml.safe_dump(facts))
    made: list[Any] = []
    make = curves._figure
    monkeypatch.setattr(curves, "_figure", lambda *size: made.append(make(*size)) or made[-1])
    curves.method(tmp_path, "dsi", tmp_path / "dsi.png")
    above, weight, share = made[0].axes
    assert list(above.lines[0].get_xdata()) == [1, 3] and list(above.lines[0].get_ydata()) == [0.1, 0.3]
    assert weight.get_yscale() == "log" and list(weight.lines[0].get_ydata()) == [5, 50, 20]
    assert share.patches[0].get_y() == 2.5 and share.patches[0].get_height() == 1
    assert above.lines[1].get_xdata()[0] == 2.5, "the last phase"


@pytest.mark.parametrize("model", ["ecinsseg-p", "ecpose-p"])  # ecdet-p: the ablation below
def test_other_models_learn_with_it(data: Path, tmp_path: Path, model: str) -> None:
    found = train(config(data, tmp_path, model, epochs=1, distill="dsi,teacher=ecvit-p,teacher_weights=none,rho=5"))
    row = (found.folder / "results.csv").read_text().splitlines()
    values = dict(zip(row[0].split(","), row[1].split(","), strict=True))
    assert float(values["dsi"]) > 0 and 0 < float(values["dsi/share"]) < 100 and values["skipped"] == "0"


def test_a_run_goes_on_with_its_methods(data: Path, tmp_path: Path, runs: tuple[Trained, Trained]) -> None:
    """Without saying so again; other ones are refused; the licence is said once."""
    again = train(TrainConfig(resume=str(runs[0].folder), device="cpu"))
    assert hub.read(again.best)[1].licence.count("taught by") == 1
    with pytest.raises(ValueError, match="distill=.*: the run in .* was started with"):
        train(TrainConfig(resume=str(runs[0].folder), device="cpu", distill="dsi,teacher=ecvit-p"))
    further = prepared(config(data, tmp_path, str(again.best), weights="auto", distill=TAUGHT, queries=None))
    assert further.info.licence.count("taught by") == 1


@pytest.mark.parametrize(
    "given, message",
    [
        ("dsi,teacher=nowhere", "teacher=nowhere: no file and no folder"),
        ("dsi,teacher=ecvit-p", "ecvit-p has no published weights: distil it first .* or teacher_weights=none"),
        ("dsi,teacher=ecvit-p,teacher_weights=none,gam=released", "no settings are known for ecdet-p; .* rho"),
        ("other", "distill=other: unknown method; known: dsi"),
    ],
)
def test_errors_come_before_anything_is_written(
    data: Path, tmp_path: Path, given: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", "ecdet-p", str(data), "imgsz=64", "device=cpu", "project=" + str(tmp_path / "runs")]
    assert main([*words, f"distill={given}"]) == 1
    error = capsys.readouterr().err
    assert len(error.strip().splitlines()) == 1
    assert re.search(message, error), error
    assert not (tmp_path / "runs").exists()


ARMS = {
    "plain": None,
    "f5": {"train": {"distill": ["dsi", "teacher=ecvit-p", "teacher_weights=none"]}},
    "s5": {"train": {"distill": "dsi,teacher=ecvit-p,teacher_weights=none,position=s5"}},
}


def test_arms_of_an_ablation(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = {"epochs": 1, "batch": 3, "imgsz": 64, "queries": 20, "workers": 0, "device": "cpu"}
    content = {"data": str(data), "arms": ARMS, "train": options, "seeds": [0], "folder": str(tmp_path / "grid")}
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    found = ablate(AblateConfig(grid=str(tmp_path / "grid.yaml")))
    assert list(found) == list(ARMS) and all(0 <= row[0]["scores"]["AP"] <= 1 for row in found.values())
    for name, has in (("plain", False), ("f5", True), ("s5", True)):
        head = (tmp_path / "grid" / "arms" / name / "seed_0" / "detector" / "results.csv").read_text()
        assert ("dsi/weight" in head) == has
        log = (tmp_path / "grid" / "arms" / name / "seed_0" / "log.txt").read_text()
        assert (f"DSI: {name.upper()} follows ecvit-p" in log) == has


def test_varied_methods(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What one types: a list in brackets, ``none`` for none."""
    vary = "train.distill=none|[dsi,teacher=dinov2-b]|[dsi,teacher=dinov2-b,position=s5]"
    words = ["ablate", "--data", str(data), "--vary", vary, "--dry", "--folder", str(tmp_path)]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "distill=none, distill=dsi,teacher=dinov2-b, distill=dsi,teacher=dinov2-b,position=s5" in said
    assert main([*words[:4], "train.distill=none|[dsi,position=s6]", *words[5:]]) == 1
    assert "position=s6: choose one of" in capsys.readouterr().err
    assert main(["ablate", "--data", str(data), "--vary", "train.fused=1|2", "--dry", "--train",
                 "distill=[dsi,teacher=dinov2-b],epochs=3"]) == 0  # fmt: skip


def test_a_detector_without_aifi_is_refused() -> None:
    student = Student("dino-r18", DINO["r18"], (800, 1333), 9)
    with pytest.raises(ValueError, match="dino-r18 has no attention on its top level"):
        DSI(DSIOptions(), teachers.teacher("ecvit-p", 1, weights="none"), student)
