"""Stage 1 and what follows from it: a teacher is made, goes on, teaches, and its student becomes a detector."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import edgecrafter as ec
from edgecrafter import hub, registry, teachers, vits
from edgecrafter.around import untrained
from edgecrafter.cli import main
from edgecrafter.data import scenes
from edgecrafter.metrics import speed
from edgecrafter.models import libraries
from edgecrafter.models.detector import ecvit
from edgecrafter.start import origin, start
from edgecrafter.train.config import TrainConfig
from edgecrafter.train.log import Journal
from edgecrafter.train.recipes import recipe_for
from edgecrafter.train.teach import TeachConfig
from edgecrafter.types import InputSpec

TINY = "timm:vit_tiny_patch16_224"
QUICK: dict[str, Any] = {"imgsz": 64, "batch": 4, "workers": 0, "device": "cpu"}
STEP: dict[str, Any] = {**QUICK, "epochs": 1, "warmup": 0, "name": "step"}


# options


@pytest.mark.parametrize(
    "given, wanted",
    [
        ({}, ("ecdet-l", "dinov3-s")),
        ({"model": "ecteacher-b"}, ("ecdet-x", "dinov3-b")),
        ({"model": "ECTeacher-B"}, ("ecdet-x", "dinov3-b")),
        ({"model": "ecdet-x", "backbone": "dinov3-b"}, ("ecdet-x", "dinov3-b")),
        ({"backbone": "dinov2-s"}, ("ecdet-l", "dinov2-s")),
        ({"model": "ecdet-n"}, ("ecdet-n", None)),
    ],
)
def test_a_teacher_is_a_detector_around_a_backbone(given: dict[str, str], wanted: tuple[str, str | None]) -> None:
    config = TeachConfig(**given).training()
    assert type(config) is TrainConfig and (config.model, config.backbone) == wanted
    assert (config.project, config.name) == ("runs/teach", "teach")


def test_a_run_that_goes_on_asks_for_nothing_that_was_not_given() -> None:
    config = TeachConfig(resume=True, epochs=3).training()
    assert config.given() == {"resume": True, "project": "runs/teach", "epochs": 3}
    assert TeachConfig(model="ecteacher-b", resume=True).training().backbone == "dinov3-b"


def test_recipes_are_those_of_table_10() -> None:
    for detector, _ in registry.TEACHERS.values():
        assert recipe_for(detector).epochs == 50 and not recipe_for(detector).ours


# end to end


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with pictures in ``data``, a teacher in ``runs/teach/teach`` and a student in ``runs/distill/student``,
    which has options of its own."""
    folder = tmp_path_factory.mktemp("world")
    scenes.write(folder / "data", train=8, val=2, size=64)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        ec.teach(model="ecdet-p", backbone=TINY, backbone_weights="none", data="data", epochs=2, **QUICK)
        options = {"registers": 0, "stem": "vanilla", "name": "student"}
        ec.distill(student="ecvit-p", teacher="runs/teach/teach", images=["data"], epochs=1, **QUICK, **options)
    return folder


@pytest.fixture
def here(world: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(world)
    return world


def test_a_teacher_is_a_detector_like_any_other(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = ec.load("runs/teach/teach", "cpu")
    assert model.info.size.backbone == TINY and model.info.input.mean == (0.5, 0.5, 0.5)
    assert "apache-2.0" in model.info.licence and "licence of your data" in model.info.licence
    assert main(["predict", "runs/teach/teach", "data/images/val_00000.jpg", "--save", "false", "--conf", "0"]) == 0
    assert main(["val", "runs/teach/teach", "data", "--workers", "0", "--fuse"]) == 0
    assert main(["info", "runs/teach/teach"]) == 0
    assert f"backbone: {TINY}" in capsys.readouterr().out


def test_a_teacher_goes_on_where_it_stopped(here: Path, tmp_path: Path) -> None:
    """To the bit, with ``teach --resume`` as with ``train --resume FOLDER``."""
    asked = {"model": "ecdet-p", "backbone": TINY, "backbone_weights": "none", "data": str(here / "data"), **QUICK}

    begin = Journal.begin

    def stop(self: Journal, epoch: int, steps: int) -> None:
        if epoch == 1:
            raise KeyboardInterrupt
        begin(self, epoch, steps)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Journal, "begin", stop)
        ec.teach(**asked, epochs=2, project=str(tmp_path / "a"))
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    ec.teach(resume=True, project=str(tmp_path / "a"))
    ec.train(resume=str(tmp_path / "b" / "teach"))
    wanted = hub.read(Path("runs/teach/teach/weights/last.safetensors"))[0]
    for project in ("a", "b"):
        found = hub.read(tmp_path / project / "teach" / "weights" / "last.safetensors")[0]
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    with pytest.raises(ValueError, match="model=ecdet-x: the run in .* was started with ecdet-p"):
        ec.teach(resume=str(tmp_path / "a" / "teach"), model="ecteacher-b")


def test_the_student_is_taken_with_its_options(here: Path) -> None:
    file = vits.find("runs/distill/student")
    assert file is not None and vits.options(file) == {"registers": 0, "stem": "vanilla", "dilation": 1}
    assert "ecdet-p of" in vits.about(file)["licence"] and "apache-2.0" in vits.about(file)["licence"]
    student = vits.read(file)
    trained = ec.train(model="ecdet-p", data="data", backbone="runs/distill/student", **STEP)
    state, info = hub.read(trained.best)
    assert (info.size.registers, info.size.stem, info.size.backbone) == (0, "vanilla", "")
    assert {name.removeprefix("backbone.vit.") for name in state if "backbone.vit." in name} == set(student)
    assert "apache-2.0" in info.licence, "the licence of the teacher's backbone travels"
    masks = ec.train(model="ecinsseg-p", data="data", weights=str(trained.best), project="runs/segment", **STEP)
    found, about = hub.read(masks.last)
    assert (about.size.registers, about.size.stem) == (0, "vanilla") and "apache-2.0" in about.licence
    near = [name for name in state if name.startswith("backbone.") and state[name].dim() > 1]
    assert near and all(torch.allclose(found[name], state[name], atol=0.02) for name in near)


def test_the_students_weights_are_there_before_training(here: Path) -> None:
    file = vits.find("runs/distill/student")
    assert file is not None
    given, labels = vits.read(file), ec.load("runs/teach/teach", "cpu").info.labels
    made = start(origin("ecdet-p"), labels, (64, 64), backbone="runs/distill/student")
    own = made.network.get_submodule("backbone.vit").state_dict()
    assert all(torch.equal(own[name], given[name]) for name in given) and not made.random_vit
    with pytest.raises(ValueError, match="does not fit this model's ViT") as caught:
        start(origin("ecdet-n"), labels, (64, 64), backbone="runs/distill/student")
    assert "\n" not in str(caught.value)


def test_a_teacher_gives_its_weights_to_other_tasks_and_none_to_our_vit(here: Path) -> None:
    labels = ec.load("runs/teach/teach", "cpu").info.labels
    state, about = hub.read(hub.resolve("runs/teach/teach"))
    masks = start(origin("ecinsseg-p"), labels, (64, 64), weights="runs/teach/teach")
    assert masks.info.size.backbone == TINY and masks.info.input.mean == about.input.mean and not masks.random_vit
    own = masks.network.state_dict()
    assert all(torch.equal(own[name], state[name]) for name in state if name.startswith(("backbone.", "encoder.")))
    student = start(origin("ecdet-p"), labels, (64, 64), weights="runs/teach/teach", backbone="runs/distill/student")
    assert student.info.size.backbone == "" and student.info.input == InputSpec((64, 64))
    own = student.network.state_dict()
    assert all(torch.equal(own[name], state[name]) for name in state if name.startswith("encoder."))
    with pytest.raises(ValueError, match="no ViT of ours in it. It can be a teacher"):
        start(origin("ecdet-p"), labels, (64, 64), backbone="runs/teach/teach")


def test_a_detector_as_it_is(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["ecdet-p", "data", "epochs=1", "imgsz=64", "batch=8", "workers=0", "device=cpu", "name=own"]
    assert main(["teach", *words]) == 0
    said = capsys.readouterr().out
    assert "of ecdet-p its own ViT is the teacher" in said and "distill --teacher runs/teach/own" in said
    teacher = teachers.teacher("runs/teach/own")
    assert teacher.widths((64, 64)) == [96, 96]


class Patches(nn.Module):
    """Two maps of stride 16, of a module that somebody wrote."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mix = nn.Conv2d(3, 16, 16, 16), nn.Conv2d(16, 16, 1)

    def forward(self, images: Tensor) -> list[Tensor]:
        x = self.embed(images)
        return [x, x + self.mix(x)]


def test_a_module_becomes_a_teacher(here: Path) -> None:
    module = Patches()
    before = module.embed.weight.detach().clone()
    made = ec.teach(model="ecdet-p", backbone=module, data="data", **(STEP | {"name": "module"}))
    assert not torch.equal(module.embed.weight, before), "it is trained itself, no copy"
    model = ec.load(made.folder, "cpu", backbone=Patches())
    assert model.info.size.backbone == "module:Patches" and model.predict("data/images/val_00000.jpg", conf=0)
    found = ec.distill(student="ecvit-p", teacher=module, images=["data"], epochs=1, name="module", **QUICK)
    assert found.backbone.is_file()


# teachers of ours, and what is none


def test_options_of_others_are_refused_by_a_teacher_of_ours(here: Path) -> None:
    for given in ("runs/distill/student", "ecdet-p", "ecvit-p"):
        with pytest.raises(
            ValueError, match=f"teacher_weights=/no/such.pth: a file is for timm.* for {given} expected"
        ):
            teachers.teacher(given, weights="/no/such.pth")
        with pytest.raises(ValueError, match="has a vision transformer of ours, without a final norm"):
            teachers.teacher(given, norm=False, weights="none")
    for options in ({"norm": False}, {"weights": "none"}):
        with pytest.raises(ValueError, match="do not go with a module"):
            teachers.teacher(Patches(), **options)  # type: ignore[arg-type]


def test_a_random_vit_by_name_needs_no_download(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda *_, **__: pytest.fail("downloads"))
    for name, width in (("ecvit-p", 96), ("ECViT-T", 192)):
        first, second = (teachers.teacher(name, weights="none", seed=seed) for seed in (0, 0))
        assert first.widths((64, 64)) == [width] * 2
        values = zip(first.network.parameters(), second.network.parameters(), strict=True)
        assert all(torch.equal(a, b) for a, b in values)
    with pytest.raises(ValueError, match="ecvit-p has no published weights: distil it first"):
        teachers.teacher("ecvit-p")


def test_an_unknown_teacher_is_told_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    for weights in ("pretrained", "none"):
        with pytest.raises(FileNotFoundError, match="teacher=nosuch: .*ecteacher-s, .*dinov2-s, .*ecdet-p, .*hf:OWNER"):
            teachers.teacher("nosuch", weights=weights)
    assert main(["teach", "ecteacher-q", "data"]) == 1
    said = capsys.readouterr()
    assert "own ViT" not in said.out and "ecteacher-s, ecteacher-b" in said.err


def test_a_vit_alone_is_no_model(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from edgecrafter.pipeline.config import PipelineConfig
    from edgecrafter.pipeline.stages import stages

    folder = "runs/distill/student"
    file = f"{folder}/weights/{vits.BACKBONE}"
    for given in (folder, file):
        hint = f"{given} holds a vision transformer alone .*edgecrafter train --backbone {given}"
        words = (["info", given], ["val", given, "data"], ["convert", given, "x.pth"], ["predict", given, "x.jpg"])
        for command in (*words, ["train", "ecdet-p", "data", "--weights", given]):
            assert main(list(command)) == 1
            assert re.search(hint, capsys.readouterr().err)
        plan = stages(PipelineConfig(model="ecdet-p", data="data", teacher=given, weights="none"), Path("f"))
        assert getattr(plan[0].config, "teacher", None) == given, "but it is a teacher"
        assert teachers.teacher(given).widths((64, 64)) == [96, 96]
    with pytest.raises(
        FileNotFoundError, match="weights=foo.pt: .*not one of ecvit-t, ecvit-t[+], ecvit-s, ecvit-s[+]$"
    ):
        ec.distill(student="ecvit-p", teacher="ecvit-p", teacher_weights="none", images=["data"], weights="foo.pt")


# the paper's teachers


def test_teachers_that_are_not_made_yet() -> None:
    with pytest.raises(ValueError, match="make it with edgecrafter teach ecteacher-s DATASET .* as it is: dinov3-s"):
        teachers.teacher("ecteacher-s")
    for use in (ec.load, ec.predict):
        with pytest.raises(ValueError, match="to be made first: edgecrafter teach ecteacher-b"):
            use("ecteacher-b", **({"source": "x.jpg"} if use is ec.predict else {}))
    counted = ec.info("ecteacher-s", 64)
    assert counted.backbone == registry.BACKBONES["dinov3-s"].spec and counted.parts["backbone"] > 21e6
    assert "DINOv3 License" in counted.licence


def test_parameters_of_the_catalogue_are_counted() -> None:
    from edgecrafter import catalogue

    names = [*hub.names(), *vits.names(), *registry.TEACHERS, *registry.BACKBONES]
    assert list(catalogue.PARAMETERS) == names
    for entry in catalogue.models():
        with torch.device("meta"):
            if entry.name in vits.names():
                network: nn.Module = ecvit(vits.row_of(entry.name)[1])
            elif entry.name in registry.BACKBONES:
                network = libraries.build(registry.BACKBONES[entry.name].spec)
            else:
                network = (untrained if entry.task == "teacher" else hub.create)(entry.name)[0]
        assert speed.parameters(network) == entry.parameters, entry.name
        assert entry.name not in hub.names() or hub.parse(entry.name)[0].name == entry.task


def test_models_lists_teachers_and_backbones() -> None:
    from edgecrafter import catalogue

    rows = {entry.name: entry for entry in catalogue.models()}
    assert rows["ecvit-p"].url == "" and rows["dinov2-b"].licence == "Apache-2.0"
    assert rows["dinov2-b"].commercial_use == "yes" and rows["dinov3-b"].commercial_use == "check"
    assert rows["ecteacher-b"].parameters > rows["dinov3-b"].parameters > 85e6
    text = catalogue.table(list(rows.values()))
    assert "dinov3-b in ecdet-x, for ecvit-t+, ecvit-s, ecvit-s+" in text
    assert "timm:vit_small_patch14_dinov2.lvd142m" in text


@pytest.mark.parametrize("teacher", ["dinov3-s", "dinov2-s", "ecteacher-s", "dinov3-b", "dinov2-b", "ecteacher-b"])
def test_teachers_give_one_step(here: Path, teacher: str) -> None:
    options = {**QUICK, "batch": 7, "epochs": 1, "warmup": 0, "name": teacher}
    made = ec.distill(student="ecvit-p", teacher=teacher, teacher_weights="none", images=["data"], **options)
    assert made.backbone.is_file() and made.epochs == 1 and made.explained == made.explained
    licence = vits.about(made.backbone)["licence"]
    assert ("dinov3" if "2" not in teacher else "apache-2.0") in licence.lower()


@pytest.mark.parametrize("name", ["ecteacher-s", pytest.param("ecteacher-b", marks=pytest.mark.slow)])
def test_teachers_of_the_paper_from_end_to_end(here: Path, name: str) -> None:
    """With random weights: stage 1 of one step, and stage 2 from what it leaves."""
    made = ec.teach(model=name, backbone_weights="none", data="data", **(STEP | {"name": name}))
    assert hub.read(made.best)[1].size.backbone == registry.BACKBONES[registry.TEACHERS[name][1]].spec
    found = ec.distill(student="ecvit-p", teacher=str(made.folder), images=["data"], epochs=1, name="x", **QUICK)
    assert found.backbone.is_file()
