"""The comparison of a pipeline as a file for ``edgecrafter ablate``, which repeats it with several seeds."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from edgecrafter import hub
from edgecrafter.files import written_beside
from edgecrafter.models.sizes import VITS
from edgecrafter.pipeline.stages import DETECTOR, DISTILLED, Stage
from edgecrafter.tasks import TASKS
from edgecrafter.train import words
from edgecrafter.train.config import TrainConfig
from edgecrafter.train.distill_config import DistillConfig

FILE, FOLDER = "ablate.yaml", "ablation"
WITHOUT, WITH = "without distillation", "with distillation"
PLACE = ("seed", "project", "name", "exist_ok")
"""options that every run of an ablation has of its own"""


def command(folder: Path) -> str:
    """What a user types to repeat the comparison of the pipeline in ``folder``."""
    return f"edgecrafter ablate {shlex.quote(str(folder / FILE))} --seeds 0,1,2"


def content(planned: Iterable[Stage], folder: Path) -> dict[str, Any]:
    """The two arms of a pipeline: the same options as its stages have, from the teacher that is there."""
    configs = {stage.name: stage for stage in planned}
    distilled, plain = configs[DISTILLED].config, configs[DETECTOR].probe
    assert isinstance(distilled, DistillConfig) and isinstance(plain, TrainConfig)
    model = f"{TASKS['detect'].prefix}-{VITS[distilled.student.removeprefix('ecvit-')]}"
    # ``ablate`` has other defaults of these two than ``train``, and scores the last epoch only
    train = {"weights": plain.weights, "reload_best": plain.reload_best, **plain.given()}
    own = {name for name in ("model",) if hub.proper(plain.model) == model}
    return {
        "model": model,
        "data": plain.data,
        "folder": str(folder / FOLDER),
        "train": _without(train, {*PLACE, "data", "val_every", *own}),
        "distill": _without(distilled.given(), set(PLACE)),
        "arms": {WITHOUT: None, WITH: {"distill": {}}},
    }


def write(planned: Iterable[Stage], folder: Path) -> None:
    """Write ``ablate.yaml`` into the folder of a pipeline."""
    head = (
        f"# The comparison of this pipeline, with several seeds: {command(folder)}\n"
        "# The teacher is the one of the pipeline for all of them; the rest is made anew for each.\n"
    )
    text = yaml.safe_dump(content(planned, folder), sort_keys=False, allow_unicode=True)
    with written_beside(folder / FILE) as beside:
        beside.write_text(head + text, encoding="utf-8")


def clear(folder: Path) -> None:
    """Remove what belongs to an earlier pipeline in a folder that is used again: its teacher was another one."""
    (folder / FILE).unlink(missing_ok=True)
    if (folder / FOLDER / "arms").is_dir():
        shutil.rmtree(folder / FOLDER)


def _without(options: dict[str, Any], names: set[str]) -> dict[str, Any]:
    return {name: _text(value) for name, value in options.items() if name not in names}


def _text(value: Any) -> Any:
    """A folder whose name is a number stays a folder (``words.typed`` takes such a text for a number)."""
    if isinstance(value, list):
        return [_text(each) for each in value]
    return f"./{value}" if isinstance(value, str) and not isinstance(words.typed(value), str) else value
