"""A pipeline runs all stages, survives a kill at any moment, and reports what happened, good or bad."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from test_ddp import together

import edgecrafter as ec
from edgecrafter import ablate
from edgecrafter.ablate_config import AblateConfig
from edgecrafter.cli import main
from edgecrafter.data import scenes
from edgecrafter.pipeline import grid, run
from edgecrafter.pipeline.config import PipelineConfig
from edgecrafter.pipeline.report import Report, duration
from edgecrafter.pipeline.stages import Stage, chosen, stages
from edgecrafter.train import timing
from edgecrafter.train.config import TrainConfig
from edgecrafter.train.distill_config import DistillConfig
from edgecrafter.train.recipes import recipe_for, resolve
from edgecrafter.train.state import RunState

SMALL: dict[str, Any] = {
    "model": "ecdet-p",
    "data": "data",
    "teacher": "ecdet-p",
    "epochs": 2,
    "imgsz": 64,
    "workers": 0,
    "device": "cpu",
    "teach": ["epochs=1", "batch=6", "augment=none"],
    "distill": ["epochs=1", "batch=5", "imgsz=64"],
    "train": ["batch=6", "augment=none"],
}
FILES = ("distilled/weights/backbone", "detector/weights/best", "detector/weights/last", "plain/weights/last")


class Stopped(Exception):
    """Stands for a kill."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pipeline")
    scenes.write(folder / "data", train=12, val=4, size=96, shapes=scenes.SHAPES)
    return folder


@pytest.fixture
def here(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(place)
    return place


@pytest.fixture(scope="module")
def whole(place: Path) -> Report:
    """A pipeline that was not interrupted, with the real forecast."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        report = ec.pipeline(**SMALL, name="whole")
    assert report is not None
    return report


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No measurement: the forecast is a made-up one."""
    plan = resolve(TrainConfig(epochs=1), recipe_for("ecdet-p"), 12)
    monkeypatch.setattr(run, "_measure", lambda probe: timing.Timing(plan, 0.1, 1.0, 2))


def test_all_stages_leave_what_they_promise(whole: Report, here: Path) -> None:
    folder = here / "runs/pipeline/whole"
    assert whole.folder.resolve() == folder
    assert list(whole.stages) == ["teacher", "distilled", "detector", "plain"]
    assert [each["epochs"] for each in whole.stages.values()] == [1, 1, 2, 2]
    state = json.loads((folder / "pipeline.json").read_text())
    assert state["stages"] == whole.stages
    assert state["forecast"] == {name: each["forecast"] for name, each in whole.stages.items()}
    assert state["chosen"] == {"optimizer": "adamw", "lr": 0.03}
    asked = yaml.safe_load((folder / "distilled/args.yaml").read_text())["options"]
    assert (asked["optimizer"], asked["lr"]) == ("adamw", 0.03)
    written = json.loads((folder / "report.json").read_text())
    assert written["difference"] == whole.difference and written["seeds"] == 1
    text = (folder / "report.md").read_text()
    for words in (
        "| with distillation |",
        "| without distillation |",
        "2 epochs, 4 steps",
        "One seed (0) cannot tell",
        "edgecrafter ablate runs/pipeline/whole/ablate.yaml --seeds 0,1,2",
        "forecast",
    ):
        assert words in text
    assert (folder / "curves.png").is_file()
    first, other = (load_file(folder / name / "weights/last.safetensors") for name in ("detector", "plain"))
    assert any(not torch.equal(value, other[name]) for name, value in first.items())


def test_the_detector_starts_from_the_distilled_transformer(whole: Report, here: Path) -> None:
    planned = {stage.name: stage.config for stage in stages(PipelineConfig(**SMALL), Path("there"))}
    distilled, detector, plain = planned["distilled"], planned["detector"], planned["plain"]
    assert isinstance(distilled, DistillConfig) and isinstance(detector, TrainConfig) and isinstance(plain, TrainConfig)
    assert distilled.teacher == str(Path("there/teacher")) and distilled.student == "ecvit-p"
    assert detector.backbone == str(Path("there/distilled")) and plain.backbone is None
    different = {name for name, value in detector.to_dict().items() if value != plain.to_dict()[name]}
    assert different == {"backbone", "name"}


@pytest.mark.parametrize(
    "save, before",
    [
        pytest.param(0, True, marks=pytest.mark.slow),  # the teacher had not saved anything
        (1, False),  # the teacher was done, but that was not noted
        pytest.param(2, True, marks=pytest.mark.slow),  # between two stages
        (3, True),  # inside the distillation
        (5, False),  # inside the detector
        pytest.param(7, True, marks=pytest.mark.slow),  # between its arms
        pytest.param(9, True, marks=pytest.mark.slow),  # in the last epoch of the last stage
    ],
)
def test_a_kill_changes_nothing(
    save: int, before: bool, whole: Report, here: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    saves, real = iter(range(100)), RunState.save

    def dying(self: RunState, best: bool = False) -> None:
        last = next(saves) == save
        if not (last and before):
            real(self, best)
        if last:
            raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(RunState, "save", dying)
        with pytest.raises(Stopped):
            ec.pipeline(**SMALL, name="killed", exist_ok=True)
    report = ec.pipeline(resume="runs/pipeline/killed", device="cpu")
    assert report is not None
    for name in FILES:
        ours, theirs = (load_file(folder / f"{name}.safetensors") for folder in (report.folder, whole.folder.resolve()))
        assert ours.keys() == theirs.keys() and all(torch.equal(value, theirs[key]) for key, value in ours.items())
    for ours, theirs in zip(report.stages.values(), whole.stages.values(), strict=True):
        assert {**ours, "seconds": 0, "forecast": 0} == {**theirs, "seconds": 0, "forecast": 0}


def test_a_finished_pipeline_reports_again_and_trains_nothing(
    whole: Report, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run, "_run", lambda *_: pytest.fail("a stage ran"))
    assert main(["pipeline", "--resume", "runs/pipeline/whole"]) == 0
    assert "| with distillation |" in capsys.readouterr().out
    with pytest.raises(ValueError, match="epochs=9: the pipeline in .*whole was started with 2"):
        ec.pipeline(resume="runs/pipeline/whole", epochs=9)


def test_dry_only_says_how_long_it_takes(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["ecdet-p", "data", "--teacher", "ecdet-p", "--imgsz", "64", "--epochs", "2", "--workers", "0"]
    assert main(["pipeline", *words, "--train", "batch=6", "--teach", "epochs=1", "--dry", "--name", "dry"]) == 0
    said = capsys.readouterr().out
    assert "1. stage 1, ecdet-p trained on the data: 1 epochs of 1 steps of 12 pictures, about" in said
    assert "3. stage 3, ecdet-p from the distilled ecvit-p: 2 epochs of 2 steps of 6 pictures, about" in said
    assert "     optimizer=adamw lr=0.03, our choice for fewer than 5000 steps" in said
    assert "together about" in said and not (here / "runs/pipeline/dry").exists()


def test_masks_follow_from_the_detector(here: Path, quick: None) -> None:
    options = {**SMALL, "teacher": "runs/pipeline/whole/teacher", "teach": [], "epochs": 1, "compare": False}
    if not (here / "runs/pipeline/whole").exists():
        pytest.skip("needs the whole pipeline")
    report = ec.pipeline(**options, tasks=["segment"], name="masks")
    assert report is not None and list(report.stages) == ["distilled", "detector", "segment"]
    assert (
        report.difference is None and "not known" in report.text() and "| segment, from the detector |" in report.text()
    )
    assert ec.load(report.folder / "segment").info.name == "ecinsseg-p"


def _report(ours: float | None, theirs: float | None, explained: float = 0.71, lr: float = 5e-4) -> Report:
    row: dict[str, Any] = {"title": "t", "epochs": 2, "seconds": 3.0, "forecast": 4.0, "backbone_lr": 5e-4}
    row |= {"best_epoch": 1, "steps": 4, "last_AP50": 0.5, "AP50": 0.5}
    rows = {name: {**row, "AP": score, "last_AP": score} for name, score in (("detector", ours), ("plain", theirs))}
    rows["detector"]["backbone_lr"] = lr
    before = {"title": "d", "epochs": 1, "seconds": 60.0, "forecast": 300.0, "explained": explained}
    return Report(Path("f"), PipelineConfig(data="data"), {"distilled": before, **rows})


@pytest.mark.parametrize(
    "ours, theirs, said, better",
    [
        (0.50, 0.40, "AP is higher by 10.0 points in this one run", "detector"),
        (0.41, 0.40, "AP is higher by 1.0 points in this one run", "detector"),
        (0.40, 0.40, "did not help here: the same AP", "detector"),
        (0.39, 0.40, "did not help here: with it AP is lower by 1.0 points in this one run", "plain"),
        (0.30, 0.40, "did not help here: with it AP is lower by 10.0 points in this one run", "plain"),
        (None, None, "cannot be compared", "detector"),
    ],
)
def test_the_report_says_what_happened(ours: float | None, theirs: float | None, said: str, better: str) -> None:
    report = _report(ours, theirs)
    assert said in report.text() and said in report.verdict()[0]
    assert report.better == Path("f") / better
    text = report.text()
    for words in ("71.0 % of the variance", "forecast 5.0 min, took 60 s", "had 60 s more", "cannot tell a couple of"):
        assert words in text
    assert "learning rate" not in text and "stage 2 failed" not in text
    json.loads(json.dumps(report.to_dict(), allow_nan=False))


def test_the_report_says_that_stage_2_failed() -> None:
    text = _report(0.5, 0.4, explained=-6.42).text()
    assert "But stage 2 failed: " in text and "says nothing about distillation" in text
    assert text.count("-6.42") == 2 and "0 %" not in text


def test_the_report_says_where_the_arms_differ() -> None:
    assert "2.5e-05 with distillation, 0.0005 without" in _report(0.5, 0.4, lr=2.5e-5).text()


def test_a_distillation_of_few_steps_takes_adamw() -> None:
    plain = PipelineConfig(data="d")
    assert chosen(plain, 4999) == {"optimizer": "adamw", "lr": 0.03} and chosen(plain, 5000) == {}
    for asked in ("optimizer=lars", "lr=8", "optimizer=adamw"):
        assert chosen(replace(plain, distill=[asked]), 10) == {}
    assert chosen(replace(plain, distill=["epochs=3"]), 10)
    options = PipelineConfig(model="ecdet-p", data="d")
    for choice, wanted in (({}, ("lars", None)), (chosen(plain, 10), ("adamw", 0.03))):
        for config in (stages(options, Path("f"), choice)[1].config, stages(options, Path("f"), choice)[1].probe):
            assert isinstance(config, DistillConfig) and (config.optimizer, config.lr) == wanted


ELSEWHERE = ("seed", "project", "name", "exist_ok", "val_every")
"""options of a run that do not belong to the comparison"""


def _same_as_ablate(planned: list[Stage], folder: Path) -> None:
    """What ``ablate`` makes of the file that a pipeline wrote are the options of its stages."""
    given = AblateConfig(grid=str(folder / grid.FILE), seeds=[0, 1], dry=True)
    assert ablate.ablate(given) == {}
    config, named = ablate._with_file(given)
    without, distilled = ablate._arms(config, named)
    assert (without.name, distilled.name) == ("without distillation", "with distillation")
    configs = {stage.name: stage for stage in planned}
    plain, wanted = configs["detector"].probe, configs["distilled"].config
    pairs = [(ablate._configs(config, without, 1, folder)[1], plain)]
    assert ablate._configs(config, without, 1, folder)[0] is None
    stage2, stage3 = ablate._configs(config, distilled, 1, folder)
    assert stage2 is not None
    for ours, theirs in (*pairs, (stage3, plain), (stage2, wanted)):
        assert _compared(ours) == _compared(theirs)
    assert stage3.seed == stage2.seed == 1
    assert Path(config.folder) == folder / grid.FOLDER


def _compared(config: TrainConfig | DistillConfig) -> dict[str, Any]:
    return {name: value for name, value in config.to_dict().items() if name not in ELSEWHERE}


def test_ablate_repeats_what_a_pipeline_did(whole: Report, here: Path) -> None:
    place = Path("runs/pipeline/whole")
    choice = json.loads((place / "pipeline.json").read_text())["chosen"]
    written = yaml.safe_load((place / "ablate.yaml").read_text())
    device = written["train"].get("device", "")  # may differ when a pipeline goes on
    _same_as_ablate(stages(replace(whole.options, device=device), place, choice), place)
    assert written["distill"]["teacher"] == "runs/pipeline/whole/teacher"


@pytest.mark.parametrize(
    "options",
    [
        {"model": "ecdet-p", "adapt": False, "teacher": "dinov2-s", "backbone_weights": "none", "compare": False},
        {"model": "ecdet-s", "images": ["more pictures", "2024"], "epochs": 7, "seed": 5, "device": "cpu"},
        {"model": "ecdet-x", "weights": "none", "imgsz": [320, 640], "precision": "fp32", "workers": 0},
        {"distill": ["teacher_blocks=3", "registers=4", "val_every=5"], "train": ["lr=3e-5", "reload_best=true"]},
        {"model": "FILE", "train": ["queries=30", "freeze=[norm]", "val_every=2", "backbone_lr=1e-4"]},
    ],
)
def test_ablate_takes_any_pipeline(options: dict[str, Any], here: Path, whole: Report, tmp_path: Path) -> None:
    folder = tmp_path / "it's a folder"
    folder.mkdir()
    if options.get("model") == "FILE":
        options = {**options, "model": str(whole.folder / "detector/weights/best.safetensors")}
    config = PipelineConfig(**{"model": "ecdet-p", "data": "my data", **options})
    planned = stages(config, folder, chosen(config, 10))
    grid.write(planned, folder)
    if "2024" in config.images:  # a word that YAML and we would take for a number
        planned = stages(replace(config, images=["more pictures", "./2024"]), folder, chosen(config, 10))
    _same_as_ablate(planned, folder)
    words = grid.command(Path("it's a folder"))
    assert words == """edgecrafter ablate 'it'"'"'s a folder/ablate.yaml' --seeds 0,1,2"""


def test_an_ablation_of_an_earlier_teacher_is_not_kept(tmp_path: Path) -> None:
    for name in ("ablation/arms/x/result.json", "mine/kept.txt", "ablate.yaml"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    grid.clear(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def _of_two(rank: int, folder: Path) -> dict[str, Any]:
    os.chdir(folder)
    options = {**SMALL, "name": "two", "teach": ["epochs=1", "batch=3"], "train": ["batch=3"], "distill": ["epochs=1"]}
    report = ec.pipeline(**{**options, "epochs": 1})
    assert report is not None
    again = ec.pipeline(resume="runs/pipeline/two", device="cpu")
    assert again is not None
    steps = {name: each.get("steps") for name, each in report.stages.items()}
    assert report.stages == run._resumed(PipelineConfig(resume="runs/pipeline/two"))[1]["stages"]
    return {"steps": steps, "same": again.to_dict()["stages"] == report.to_dict()["stages"]}


@pytest.mark.slow
def test_two_processes(tmp_path: Path) -> None:
    """A whole pipeline by two processes: each takes half of the pictures, the first one writes, both know the same."""
    scenes.write(tmp_path / "data", train=12, val=4, size=96, shapes=scenes.SHAPES)
    first, second = together(_of_two, tmp_path)
    assert first == second
    assert first == {"steps": {"teacher": 2, "distilled": None, "detector": 2, "plain": 2}, "same": True}
    assert [path.name for path in (tmp_path / "runs/pipeline").iterdir()] == ["two"]
    assert (tmp_path / "runs/pipeline/two/report.md").is_file()


@pytest.mark.parametrize(
    "model, teacher, adapted, backbone",
    [
        ("ecdet-p", "auto", "ecdet-n", None),
        ("ecdet-n", "auto", "ecdet-s", None),
        ("ecdet-s", "auto", "ecdet-l", "dinov3-s"),
        ("ecdet-m", "auto", "ecdet-x", "dinov3-b"),
        ("ecdet-x", "auto", "ecdet-x", "dinov3-b"),
        ("ecdet-s", "dinov2-s", "ecdet-l", "dinov2-s"),
        ("ecdet-s", "ecteacher-b", "ecdet-x", "dinov3-b"),
        ("ecdet-s", "ecdet-m", "ecdet-m", None),
    ],
)
def test_who_teaches(model: str, teacher: str, adapted: str, backbone: str | None) -> None:
    first = stages(PipelineConfig(model=model, data="d", teacher=teacher, weights="none"), Path("f"))[0].config
    assert isinstance(first, TrainConfig) and (first.model, first.backbone) == (adapted, backbone)
    options = PipelineConfig(model=model, data="d", teacher=teacher, weights="none", adapt=False)
    plain = stages(options, Path("f"))[0].config
    assert isinstance(plain, DistillConfig) and plain.teacher == (backbone or adapted)


def test_both_arms_start_alike_and_have_the_same_shape() -> None:
    options = PipelineConfig(model="ecdet-s", data="d", distill=["registers=4"], train=["fused=1", "stem=vanilla"])
    _, distilled, detector, plain = (stage.config for stage in stages(options, Path("f")))
    assert (distilled.registers, distilled.stem, distilled.weights) == (4, "vanilla", "ecdet-s")
    for arm in (detector, plain):
        assert isinstance(arm, TrainConfig)
        assert (arm.registers, arm.stem, arm.fused, arm.weights) == (4, "vanilla", 1, "ecdet-s")


@pytest.mark.parametrize(
    "options, error, words",
    [
        ({"data": ""}, ValueError, "no data given"),
        ({"data": "nowhere"}, FileNotFoundError, "nowhere"),
        ({"teacher": "professor"}, FileNotFoundError, "teacher=professor: .* not one of auto, ecteacher-s"),
        ({"model": "ecpose-p"}, ValueError, "model=ecdet-p tasks=pose"),
        ({"tasks": ["count"]}, ValueError, "choose one of segment, pose"),
        ({"teach": ["epoch=3"]}, ValueError, "teach: unknown option 'epoch'. Did you mean 'epochs'"),
        ({"distill": ["optimizer=sgd"]}, ValueError, "distill: optimizer='sgd': choose one of lars, adamw"),
        ({"train": ["lr=fast"]}, ValueError, "train: .*edgecrafter train --help"),
        ({"train": ["backbone=x"]}, ValueError, "train=backbone=...: the pipeline decides that itself"),
        ({"distill": ["epochs"]}, ValueError, "distill: 'epochs': expected OPTION=VALUE"),
        ({"resume": "data"}, FileNotFoundError, "resume=data: no pipeline.json there"),
        ({"resume": True, "project": "empty"}, FileNotFoundError, "no pipeline in empty"),
    ],
)
def test_errors_come_before_anything_is_written(
    options: dict[str, Any], error: type[Exception], words: str, here: Path
) -> None:
    given = options if "resume" in options else {**SMALL, "name": "wrong", **options}
    with pytest.raises(error, match=words):
        ec.pipeline(**given)
    assert not (here / "runs/pipeline/wrong").exists()


def test_a_broken_state_is_named(here: Path) -> None:
    (here / "broken").mkdir(exist_ok=True)
    (here / "broken/pipeline.json").write_text('{"options": {"colour": 1}}')
    with pytest.raises(ValueError, match="not the file of a pipeline .*unknown option 'colour'"):
        ec.pipeline(resume="broken")


def test_without_a_network_the_remedy_is_said_first(
    here: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # read when that library is imported
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises((ValueError, FileNotFoundError), match="none"):
        ec.pipeline(**{**SMALL, "teacher": "dinov2-s", "name": "offline"})
    assert not (here / "runs/pipeline/offline").exists()


def test_durations_are_readable() -> None:
    given = (0.2, 40, 150, 3000, 9000, 400_000)
    assert [duration(each) for each in given] == ["1 s", "40 s", "2.5 min", "50 min", "2.5 hours", "4.6 days"]
