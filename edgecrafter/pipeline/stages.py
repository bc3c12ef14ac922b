"""What the stages of a pipeline are: one run each, with its options, in the pipeline's folder."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from edgecrafter import hub, registry, teachers, vits
from edgecrafter.pipeline.config import PipelineConfig
from edgecrafter.start import origin
from edgecrafter.tasks import TASKS
from edgecrafter.train import words
from edgecrafter.train.config import TrainConfig
from edgecrafter.train.distill_config import DistillConfig

TEACHER, DISTILLED, DETECTOR, PLAIN = "teacher", "distilled", "detector", "plain"
"""folders of the stages"""
RANDOM = "none"
"""weights of a network that only has to be as fast"""
OWN = {"p": "ecdet-n", "n": "ecdet-s"}
"""teachers of our own sizes: a larger detector with a ViT of its own"""
COMMON = ("data", "images", "seed", "project", "name", "exist_ok", "resume", "device", "workers", "precision")
OWNED = {
    "teach": (*COMMON, "model", "backbone", "backbone_weights"),
    "distill": (*COMMON, "student", "teacher", "teacher_weights", "advise"),
    "train": (*COMMON, "model", "weights", "backbone", "backbone_weights", "epochs", "imgsz"),
}
"""options of each stage that are the pipeline's"""
FEW_STEPS, BRIEF = 5000, {"optimizer": "adamw", "lr": 0.03}
"""ours: a distillation of fewer steps takes these options where nothing is asked. On generated scenes (480 pictures,
300 steps, one seed) the student then gave 0.89 of the teacher's variance, with LARS at the paper's rate 0.70, at twice
that 0.80; with AdamW at 0.0035 0.78, at 0.012 0.87"""


@dataclass(frozen=True)
class Stage:
    """One run."""

    name: str
    """its folder in the pipeline's"""
    title: str
    config: TrainConfig | DistillConfig
    probe: TrainConfig | DistillConfig
    """a run of the same speed that can begin now, before the stages that this one builds on are done"""


@dataclass(frozen=True)
class Teaching:
    """Who teaches, and how it comes about."""

    config: TrainConfig | None
    """of stage 1; None: nothing is adapted"""
    given: str
    """what stage 2 takes when nothing is adapted"""
    weights: str
    """of that"""
    alike: str
    """a network of the same speed as the adapted teacher"""
    title: str


def chosen(config: PipelineConfig, steps: int) -> dict[str, Any]:
    """Options of a distillation of so many steps that the pipeline chooses: AdamW for few, unless an optimiser or a
    rate is asked for."""
    asked = BRIEF.keys() & _words("distill", config.distill).keys()
    return {} if asked or steps >= FEW_STEPS else dict(BRIEF)


def stages(config: PipelineConfig, folder: Path, choice: Mapping[str, Any] = MappingProxyType({})) -> list[Stage]:
    """The runs of a pipeline in their order. ``choice``: options of the distillation as ``chosen`` gives them. Raises
    ``ValueError`` and ``FileNotFoundError`` for options that no stage knows and for an unknown model or teacher;
    nothing is written, and nothing read but the file of ``model``."""
    if not config.data:
        raise ValueError("no data given: data=FOLDER, or a data.yaml or COCO json file")
    given = origin(config.model)
    size = hub.parse(given.name).size
    if given.task.name != "detect":
        task = given.task.name
        raise ValueError(
            f"model={config.model}: expected a detector, from which others follow: model=ecdet-{size} tasks={task}"
        )
    vit = vits.of(given.name)
    common = {"seed": config.seed, "device": config.device, "workers": config.workers, "precision": config.precision}
    common |= {"project": str(folder), "exist_ok": True}
    sized = {"data": config.data, "imgsz": config.imgsz}
    start = _start(config, given.name, given.file is not None)
    teacher = _teacher(config, vit, sized, common)
    found = []
    if teacher.config is not None:
        found.append(Stage(TEACHER, f"stage 1, {teacher.title}", teacher.config, teacher.config))
    distill, train = _words("distill", config.distill), _words("train", config.train)
    found.append(
        _distillation(config, folder, teacher, f"ecvit-{vit}", start, {**common, **_shaped(train), **choice, **distill})
    )
    train = {**sized, "epochs": config.epochs, **_shaped(distill), **train, **common, "model": config.model}
    plain = words.made(TrainConfig, "train", {**train, "weights": start, "name": PLAIN})
    distilled = replace(plain, name=DETECTOR, backbone=str(folder / DISTILLED))
    found.append(Stage(DETECTOR, f"stage 3, {given.name} from the distilled ecvit-{vit}", distilled, plain))
    if config.compare:
        found.append(Stage(PLAIN, f"to compare, {given.name} without distillation, the same budget", plain, plain))
    for task in config.tasks:
        name = f"{TASKS[task].prefix}-{size}"
        probe = replace(plain, model=name, weights="none", name=task)
        further = replace(probe, weights=str(folder / DETECTOR))
        found.append(Stage(task, f"{name} from the detector", further, probe))
    return found


def _start(config: PipelineConfig, name: str, is_file: bool) -> str:
    """What the detector starts from in both arms, said outright: with a backbone ``auto`` would mean nothing."""
    if config.weights != "auto":
        return config.weights
    if is_file:
        return str(config.model)
    return name if registry.find(name) else "none"


def _distillation(
    config: PipelineConfig, folder: Path, teacher: Teaching, student: str, start: str, options: dict[str, Any]
) -> Stage:
    path = hub.resolve(start)
    options |= {"student": student, "images": [config.data, *config.images], "name": DISTILLED}
    options = {"weights": str(path) if path.is_file() else start, **options}
    if teacher.config is None:
        made = words.made(
            DistillConfig, "distill", {"teacher": teacher.given, "teacher_weights": teacher.weights, **options}
        )
        return Stage(DISTILLED, f"stage 2, {teacher.title} -> {student}", made, made)
    made = words.made(DistillConfig, "distill", {**options, "teacher": str(folder / TEACHER)})
    probe = replace(made, teacher=teacher.alike, teacher_weights=RANDOM, norm=True)
    return Stage(DISTILLED, f"stage 2, the adapted teacher -> {student}", made, probe)


def _teacher(config: PipelineConfig, vit: str, sized: Mapping[str, Any], common: Mapping[str, Any]) -> Teaching:
    """Stage 1 for what ``teacher`` names."""
    named = (registry.PAIRS.get(vit) or OWN[vit]) if config.teacher == "auto" else config.teacher
    model, backbone = named, registry.backbone(named) and named
    if named.lower() in registry.TEACHERS:
        model, backbone = registry.TEACHERS[named.lower()]
    elif backbone:
        model = registry.TEACHERS["ecteacher-s"][0]
    known = backbone is not None or hub.proper(named) in hub.names()
    if known and not config.adapt:
        return Teaching(None, backbone or model, config.backbone_weights, "", f"{backbone or model} as it is")
    if not known:
        _finished(config, named)
        return Teaching(None, named, "pretrained", "", f"the finished teacher {named}")
    options = {**sized, **_words("teach", config.teach), **common, "model": model, "name": TEACHER}
    if backbone:
        options |= {"backbone": backbone, "backbone_weights": config.backbone_weights}
    made = words.made(TrainConfig, "teach", options)
    title = f"{backbone} adapted to the data in {model}" if backbone else f"{model} trained on the data"
    return Teaching(made, "", "", backbone or model, title)


def _finished(config: PipelineConfig, named: str) -> None:
    """Raises unless ``teacher`` is a file or the folder of a run."""
    path = Path(named).expanduser()
    if not ((path / "weights" / vits.BACKBONE).is_file() or hub.resolve(path).is_file() or registry.find(named)):
        raise teachers.missing(named, "auto")
    if config.teach:
        raise ValueError(f"teach={','.join(config.teach)}: {named} is a finished teacher, there is no stage 1")


def _words(stage: str, given: Iterable[str]) -> dict[str, Any]:
    try:
        found = words.options(given)
    except ValueError as error:
        raise ValueError(f"{stage}: {error}") from None
    for name in found:
        if name in OWNED[stage]:
            raise ValueError(f"{stage}={name}=...: the pipeline decides that itself, by its own options (see --help)")
    return found


def _shaped(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options that shape the ViT: student and detector of both arms have the same."""
    return {name: options[name] for name in vits.OPTIONS if name in options}
