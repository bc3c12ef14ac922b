"""A small grid of distillation and training options over several seeds: mean, spread and paired differences.

Every arm distils a vision transformer (or does not), trains a detector from it and scores the last epoch. Arms of one
seed see the same pictures in the same order, so that differences are taken seed by seed.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from edgecrafter import hub, paired, vits
from edgecrafter.ablate_config import AblateConfig
from edgecrafter.evaluate import FURTHER
from edgecrafter.files import written_beside
from edgecrafter.metrics.coco_count import KINDS
from edgecrafter.tasks import Task
from edgecrafter.train import methods, words
from edgecrafter.train.config import TrainConfig, unknown
from edgecrafter.train.distill_config import DistillConfig
from edgecrafter.train.state import LAST, WEIGHTS

STAGES = ("distill", "train")
RESULT, TABLE, PLOT, SUMMARY = "result.json", "table.md", "plot.png", "results.json"


@dataclass(frozen=True)
class Arm:
    """One row of the comparison."""

    name: str
    train: dict[str, Any]
    distill: dict[str, Any] | None = None
    """None: no distillation"""


def ablate(config: AblateConfig) -> dict[str, dict[int, dict[str, Any]]]:
    """Run what is missing and compare: arm -> seed -> result, also in ``folder`` as JSON, Markdown and a plot.

    A result has the scores of the last epoch, ``explained`` of the distillation (share of the teacher's variance on
    pictures kept out) and ``seconds``. Raises ``ValueError`` for options that no stage knows, before anything runs.
    """
    config, named = _with_file(config)
    arms = _arms(config, named)
    _check(config)
    folder = Path(config.folder)
    for arm, seed in itertools.product(arms, config.seeds):  # every option is checked before the first run
        _configs(config, arm, seed, folder)
    print(f"{len(arms)} arms, {len(config.seeds)} seeds: {', '.join(arm.name for arm in arms)}")
    if config.dry:
        return {}
    results: dict[str, dict[int, dict[str, Any]]] = {arm.name: {} for arm in arms}
    for seed, arm in itertools.product(config.seeds, arms):
        results[arm.name][seed] = _cell(config, arm, seed, folder)
    _write(config, results, folder)
    return results


def _check(config: AblateConfig) -> None:
    """Raises ``ValueError`` for what all arms share and cannot be."""
    if not config.data:
        raise ValueError("no data given: data=FOLDER, or a data.yaml or COCO json file")
    if not isinstance(config.seeds, list) or not config.seeds:
        raise ValueError(f"seeds={config.seeds}: expected one or more numbers, such as seeds=0,1,2")
    known = score_names(hub.parse(config.model).task)
    if config.score not in known:
        raise ValueError(f"score={config.score}: choose one of {', '.join(known)}")


def score_names(task: Task) -> list[str]:
    """What an evaluation of a task gives (``Scores.overall``)."""
    found = []
    for name in task.counts:
        kind, prefix = KINDS[name], "" if name == task.counts[0] else FURTHER[name][0]
        precisions = ["AP", "AP50", "AP75", *(f"AP{area}" for area in kind.areas)]
        recalls = [*kind.recalls, *(f"AR{area}" for area in kind.areas)]
        found += [prefix + score for score in (*precisions, *recalls)]
    return found


def _with_file(config: AblateConfig) -> tuple[AblateConfig, dict[str, Any]]:
    """The options with those of the file below them, and the arms that the file names."""
    if not config.grid:
        return config, {}
    path = Path(config.grid).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"grid={config.grid}: there is no such file (from {Path.cwd()})")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{config.grid}: not a YAML file ({' '.join(str(error).split())})") from None
    if not isinstance(content, dict) or not isinstance(content.get("arms", {}), dict):
        raise ValueError(f"{config.grid}: expected lines such as 'model: ecdet-p' and 'arms:' with a name each")
    arms = content.pop("arms", {})
    unknown(AblateConfig, content)
    defaults = AblateConfig()
    values = {f.name: getattr(config, f.name) for f in fields(config)}
    given = {name for name, value in values.items() if value != getattr(defaults, name)}
    return AblateConfig(**{**values, **{k: v for k, v in content.items() if k not in given}}), arms


def _arms(config: AblateConfig, named: Mapping[str, Any]) -> list[Arm]:
    shared = {stage: words.options(getattr(config, stage)) for stage in STAGES}
    arms = []
    for name, changes in named.items():
        changes = changes or {}
        if set(changes) - set(STAGES):
            raise ValueError(f"arm {name}: expected {' and '.join(STAGES)}, got {', '.join(map(str, changes))}")
        own = {stage: words.options(changes.get(stage) or {}) for stage in STAGES}
        distilled = {**shared["distill"], **own["distill"]} if "distill" in changes else None
        arms.append(Arm(name, {**shared["train"], **own["train"]}, distilled))
    for choice in itertools.product(*(_choices(text) for text in config.vary)) if config.vary else ():
        own = {stage: dict(shared[stage]) for stage in STAGES}
        for stage, option, value in choice:
            own[stage][option] = value
        # without any option of a distillation there is none
        name = ", ".join(f"{option}={_shown(value)}" for _, option, value in choice)
        arms.append(Arm(name, own["train"], own["distill"] or None))
    if config.scratch and not named and any(arm.distill for arm in arms):
        arms.insert(0, Arm("scratch", shared["train"]))
    if not arms:
        raise ValueError("nothing to compare: give `arms` in a grid file, or vary=distill.registers=0|1|2")
    names = [arm.name for arm in arms]
    if config.baseline and config.baseline not in names:
        raise ValueError(f"baseline={config.baseline}: choose one of {', '.join(names)}")
    return arms


def _choices(text: str) -> list[tuple[str, str, Any]]:
    """``distill.registers=0|1`` -> (stage, option, value) of each."""
    place, _, values = text.partition("=")
    stage, _, option = place.partition(".")
    if stage not in STAGES or not option or not values:
        raise ValueError(f"vary={text}: expected distill.OPTION=A|B or train.OPTION=A|B")
    return [(stage, option, words.value_of(value)) for value in values.split("|")]


def _shown(value: Any) -> Any:
    """A value as one would write it."""
    return (",".join(map(str, value)) or "none") if isinstance(value, list) else value


def _configs(config: AblateConfig, arm: Arm, seed: int, folder: Path) -> tuple[DistillConfig | None, TrainConfig]:
    """The options of both stages for one seed; unknown ones are errors here."""
    place = {"exist_ok": True, "seed": seed}
    distilled = None
    if arm.distill is not None:
        options = {"student": f"ecvit-{vits.of(config.model)}", "images": [config.data], **arm.distill, **place}
        key = json.dumps(options, sort_keys=True)
        name = hashlib.sha256(key.encode()).hexdigest()[:12]  # arms that distil alike share one
        options |= {"project": str(folder / "distilled"), "name": name}
        distilled = words.made(DistillConfig, "distill", options)
        if not distilled.teacher:
            raise ValueError(f"arm {arm.name}: no teacher given; distill=teacher=RUN or a name, or leave distill out")
    options = {"model": config.model, "data": config.data, "reload_best": False, "weights": "none"}
    options |= {**arm.train, **place, "project": str(_home(folder, arm, seed)), "name": "detector"}
    trained: TrainConfig = words.made(TrainConfig, "train", options)
    methods.parsed(trained.distill)
    if arm.distill is not None and "backbone" in arm.train:
        raise ValueError(f"arm {arm.name}: has both a distillation and train backbone={arm.train['backbone']}")
    trained.val_every = trained.epochs or 10**6  # the last epoch is scored, and no other
    return distilled, trained


def _home(folder: Path, arm: Arm, seed: int) -> Path:
    plain = "".join(letter if letter.isalnum() or letter in "-_=." else "_" for letter in arm.name)
    return folder / "arms" / plain / f"seed_{seed}"


def _cell(config: AblateConfig, arm: Arm, seed: int, folder: Path) -> dict[str, Any]:
    """The result of one arm and seed: read, or made now. Interrupted runs go on where they were."""
    from edgecrafter.train import distil, run

    home = _home(folder, arm, seed)
    distill_config, train_config = _configs(config, arm, seed, folder)
    wanted = {"arm": arm.name, "distill": arm.distill, "train": arm.train, "model": config.model, "data": config.data}
    if (home / RESULT).is_file():
        result: dict[str, Any] = json.loads((home / RESULT).read_text(encoding="utf-8"))
        if result["options"] != wanted:
            raise ValueError(f"{home}: was made with other options; remove it, or give another folder")
        return result
    home.mkdir(parents=True, exist_ok=True)
    print(f"seed {seed}, {arm.name}: ...", flush=True)
    started = time.perf_counter()
    explained = None
    with (home / "log.txt").open("a", encoding="utf-8") as log, redirect_stdout(log):
        if distill_config is not None:
            explained = _distilled(distill_config, distil.distill)
            train_config.backbone = str(Path(distill_config.project) / distill_config.name)
        scores = run.train(_going_on(train_config)).scores.overall
    seconds = round(time.perf_counter() - started, 1)
    result = {"options": wanted, "seed": seed, "scores": scores, "explained": explained, "seconds": seconds}
    with written_beside(home / RESULT) as beside:
        beside.write_text(json.dumps(result, indent=2), encoding="utf-8")
    shutil.rmtree(home / "detector" / WEIGHTS, ignore_errors=True)  # three files of every cell; its curve stays
    print(f"seed {seed}, {arm.name}: {config.score} {scores[config.score]:.3f}, {seconds:.0f} s", flush=True)
    return result


def _distilled(config: DistillConfig, run: Callable[[DistillConfig], Any]) -> float:
    """Distil unless that is done; how much was learned."""
    done = Path(config.project) / config.name / RESULT
    if not done.is_file():
        explained = float(run(_going_on(config)).explained)
        with written_beside(done) as beside:
            beside.write_text(json.dumps({"explained": explained}), encoding="utf-8")
        (done.parent / WEIGHTS / LAST).unlink()
    return float(json.loads(done.read_text(encoding="utf-8"))["explained"])


def _going_on(config: Any) -> Any:
    """The same run from where it was interrupted, if it was."""
    folder = Path(config.project) / config.name
    if not (folder / WEIGHTS / LAST).is_file():
        return config
    return type(config)(resume=str(folder), device=config.device)


def _write(config: AblateConfig, results: Mapping[str, Mapping[int, Mapping[str, Any]]], folder: Path) -> None:
    """The table on the console and as Markdown, everything as JSON, and a plot if matplotlib is there."""
    text = paired.table(results, config.baseline or next(iter(results)), config.score)
    print("\n" + text)
    with written_beside(folder / TABLE) as beside:
        beside.write_text(text + "\n", encoding="utf-8")
    with written_beside(folder / SUMMARY) as beside:
        beside.write_text(json.dumps(results, indent=2), encoding="utf-8")
    paired.plot(results, config.score, folder / PLOT)
    print(f"\nwritten to {folder}: {TABLE}, {SUMMARY}")
