"""A whole pipeline: says what it will do, runs what is not done yet, and reports."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgecrafter.files import written_beside
from edgecrafter.pipeline import grid
from edgecrafter.pipeline.config import FREE_ON_RESUME, PipelineConfig
from edgecrafter.pipeline.report import Report, arm, defined, duration, written
from edgecrafter.pipeline.stages import DETECTOR, DISTILLED, FEW_STEPS, PLAIN, TEACHER, Stage, chosen, stages
from edgecrafter.train import distil, distributed, machine, run, timing
from edgecrafter.train.begin import clear
from edgecrafter.train.config import TrainConfig
from edgecrafter.train.distill_config import DistillConfig
from edgecrafter.train.state import LAST, WEIGHTS, new_folder

STATE = "pipeline.json"
FOLDERS = (TEACHER, DISTILLED, DETECTOR, PLAIN, "segment", "pose")


def pipeline(config: PipelineConfig) -> Report | None:
    """Run all stages that are not finished yet, each an ordinary run in the folder of the pipeline, and report.

    The folder ``project/name`` holds ``pipeline.json`` (options, forecast, finished stages and what came out), the
    folders ``teacher``, ``distilled``, ``detector`` and ``plain``, and at the end ``report.md``, ``report.json``,
    ``curves.png`` and ``ablate.yaml`` (the comparison, to repeat it with several seeds). An interrupted pipeline goes
    on with ``resume``: finished stages are skipped, the interrupted one goes on from its last epoch, and the result is
    that of an uninterrupted pipeline. None for ``dry``.

    Raises:
        ValueError, FileNotFoundError: options, data or weights that cannot be used; nothing was written then if it is
            found before the first stage begins.
    """
    with distributed.session(machine.device(config.device)):
        folder, state = _resumed(config) if config.resume else (Path(), {"stages": {}, "chosen": None})
        config = _with_options(config, folder, state) if config.resume else config
        place, choice = (folder if config.resume else Path(config.project).expanduser() / config.name), state["chosen"]
        planned = stages(config, place, choice or {})
        distributed.say("measuring a few steps of each stage ...")
        expected = forecast([stage for stage in planned if stage.name not in state["stages"]], config, choice)
        distributed.say("\n".join(["", *(_done_lines(state)), *expected.lines]))
        if config.dry:
            return None
        if not config.resume:
            folder, state = _new(config, expected)
            planned = stages(config, folder, expected.chosen)
        distributed.say(f"all in {folder}; after an interruption: edgecrafter pipeline --resume {folder}")
        _rest(planned, state, folder, config)
        report = Report(folder, config, state["stages"])
        if distributed.rank() == 0:
            written(report)
            grid.write(planned, folder)
        distributed.barrier()
        distributed.say(f"\n{report.text()}")
        return report


def _rest(planned: list[Stage], state: dict[str, Any], folder: Path, config: PipelineConfig) -> None:
    """Run what is not finished yet, and note each stage in ``state`` and ``pipeline.json``."""
    for stage in planned:
        if stage.name not in state["stages"]:
            distributed.say(f"\n== {stage.title} ==")
            found = _run(stage, folder, config)
            result = _result(stage, found, folder) if distributed.rank() == 0 else {}  # from files of that process
            result["forecast"] = state["forecast"][stage.name]
            state["stages"][stage.name] = distributed.broadcast(result)
            _write(state, folder)


@dataclass(frozen=True)
class Forecast:
    """What a pipeline will do, and how long that takes."""

    lines: list[str]
    """in words, a line for each stage"""
    seconds: dict[str, float]
    """of each stage, by its folder"""
    chosen: dict[str, Any]
    """options of the distillation that the pipeline chooses, now that its steps are known"""


def forecast(planned: list[Stage], config: PipelineConfig, choice: dict[str, Any] | None) -> Forecast:
    """Measured on a few steps of each stage (of the same network with random weights, where the right ones are not
    there yet). ``choice``: what was chosen before; None: it is chosen now."""
    lines = ["what will be done, and a rough estimate of the time, measured on a few steps of each stage:"]
    seconds: dict[str, float] = {}
    known: list[tuple[Any, timing.Timing]] = []
    for number, stage in enumerate(planned, 1):
        found = next((found for probe, found in known if probe == stage.probe), None)
        if found is None:
            with distributed.silence():  # the plan of each run is said when it begins
                found = _measure(stage.probe)
            known.append((stage.probe, found))
        seconds[stage.name] = round(found.seconds, 1)
        lines.append(f"  {number}. {stage.title}: {found}, about {duration(found.seconds)}")
        if stage.name == DISTILLED:
            choice = chosen(config, found.plan.total) if choice is None else choice
            lines += _choice_lines(choice, found.plan.total)
    lines.append(f"  together about {duration(sum(seconds.values()))}")
    return Forecast(lines, seconds, choice or {})


def _choice_lines(choice: dict[str, Any], steps: int) -> list[str]:
    if not choice:
        return []
    options = " ".join(f"{name}={value}" for name, value in choice.items())
    return [f"     {options}, our choice for fewer than {FEW_STEPS} steps ({steps}); --distill optimizer=lars wins"]


def _measure(probe: TrainConfig | DistillConfig) -> timing.Timing:
    if isinstance(probe, DistillConfig):
        return timing.distillation(probe)
    return timing.training(probe)


def _run(stage: Stage, folder: Path, config: PipelineConfig) -> run.Trained | distil.Distilled:
    """A stage from its beginning, or from its last saved epoch; a run that was killed before it saved starts anew."""
    place = folder / stage.name
    begun = distributed.broadcast((place / WEIGHTS / LAST).is_file() if distributed.rank() == 0 else False)
    if isinstance(stage.config, DistillConfig):
        if not begun:
            return distil.distill(stage.config)
        teacher = stage.config.teacher
        again = DistillConfig(resume=str(place), teacher=teacher, images=stage.config.images, device=config.device)
        return distil.distill(replace(again, workers=config.workers))
    if not begun:
        return run.train(stage.config)
    return run.train(TrainConfig(resume=str(place), data=config.data, device=config.device, workers=config.workers))


def _result(stage: Stage, found: run.Trained | distil.Distilled, folder: Path) -> dict[str, Any]:
    """What is kept of a finished stage."""
    if isinstance(found, distil.Distilled):
        return {"title": stage.title, **arm(folder / stage.name), "explained": found.explained}
    return {"title": stage.title, **arm(folder / stage.name), **_scores(found)}


def _scores(found: run.Trained) -> dict[str, Any]:
    return {name: defined(found.scores.overall[name]) for name in ("AP", "AP50")}


def _new(config: PipelineConfig, expected: Forecast) -> tuple[Path, dict[str, Any]]:
    """The folder of a new pipeline, with its options; what an earlier one left there is removed first."""
    folder: Path = distributed.broadcast(
        new_folder(config.project, config.name, config.exist_ok) if distributed.rank() == 0 else Path()
    )
    state: dict[str, Any] = {"options": config.to_dict(), "chosen": expected.chosen, "forecast": expected.seconds}
    state["stages"] = {}
    if distributed.rank() == 0:
        (folder / STATE).unlink(missing_ok=True)
        for name in FOLDERS:
            if (folder / name).is_dir():
                clear(folder / name)
        grid.clear(folder)
    _write(state, folder)
    return folder, distributed.broadcast(state)


def _resumed(config: PipelineConfig) -> tuple[Path, dict[str, Any]]:
    """The folder of the pipeline to go on with, and what was done there."""
    folder = distributed.broadcast(_interrupted(config.resume, config.project) if distributed.rank() == 0 else Path())
    text = distributed.broadcast((folder / STATE).read_text(encoding="utf-8") if distributed.rank() == 0 else "")
    try:
        state = json.loads(text)
        PipelineConfig.from_dict(state["options"])
        state |= {name: dict(state[name]) for name in ("stages", "chosen", "forecast")}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder / STATE}: not the file of a pipeline ({error}); start a new pipeline") from None
    return folder, state


def _interrupted(resume: bool | str, project: str) -> Path:
    if isinstance(resume, str):
        folder = Path(resume).expanduser()
        if not (folder / STATE).is_file():
            raise FileNotFoundError(f"resume={resume}: no {STATE} there, this is not the folder of a pipeline")
        return folder
    found = sorted(Path(project).expanduser().glob(f"*/{STATE}"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise FileNotFoundError(f"resume: no pipeline in {project}; give its folder, or project=...")
    return found[-1].parent


def _with_options(asked: PipelineConfig, folder: Path, state: dict[str, Any]) -> PipelineConfig:
    """The options that the pipeline was started with. Raises ``ValueError`` when others are asked for."""
    config, given = PipelineConfig.from_dict(state["options"]), asked.given()
    for name, value in given.items():
        if name not in (*FREE_ON_RESUME, "dry") and value != getattr(config, name):
            raise ValueError(
                f"{name}={value}: the pipeline in {folder} was started with {getattr(config, name)} and goes on with "
                "its own options. Leave it out, or start a new pipeline"
            )
    moved = {name: given[name] for name in ("data", "images", "workers") if name in given}
    return replace(config, **moved, device=asked.device, dry=asked.dry, resume=asked.resume)


def _done_lines(state: dict[str, Any]) -> list[str]:
    return [f"done before: {each['title']} ({duration(each['seconds'])})" for each in state["stages"].values()]


def _write(state: dict[str, Any], folder: Path) -> None:
    """Write ``pipeline.json`` beside its place and rename it, in the first process."""
    if distributed.rank() == 0:
        with written_beside(folder / STATE) as beside:
            beside.write_text(json.dumps(state, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    distributed.barrier()
