"""The report of a pipeline: both arms side by side, in words that do not claim more than one run shows."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from edgecrafter import curves
from edgecrafter.distill.align import in_words
from edgecrafter.files import written_beside
from edgecrafter.pipeline import grid
from edgecrafter.pipeline.config import PipelineConfig
from edgecrafter.pipeline.stages import DETECTOR, DISTILLED, PLAIN, TEACHER
from edgecrafter.train.log import CSV, read_rows

ARGS = "args.yaml"


def arm(run: Path) -> dict[str, Any]:
    """What ``results.csv`` of a finished run says: epochs, their seconds, and the scores of its last epoch (None for
    undefined ones); and the plan beside it: the learning rate of the ViT."""
    rows = read_rows(run / CSV)
    found: dict[str, Any] = {"epochs": len(rows), "seconds": round(sum(float(row["seconds"]) for row in rows), 1)}
    scored = [row for row in rows if row.get("val/AP")]
    if scored:
        best = max(scored, key=lambda row: _number(row["val/AP"]))  # the first of equal ones, as the run keeps it
        found |= {"best_epoch": int(best["epoch"]), "steps": int(rows[-1]["step"])}
        found["backbone_lr"] = yaml.safe_load((run / ARGS).read_text(encoding="utf-8"))["plan"]["backbone_lr"]
        found |= {f"last_{name}": defined(float(scored[-1][f"val/{name}"])) for name in ("AP", "AP50")}
    return found


def defined(score: float) -> float | None:
    """None for nan, which JSON does not have."""
    return None if math.isnan(score) else score


def _number(text: str) -> float:
    return -1.0 if math.isnan(float(text)) else float(text)


@dataclass(frozen=True)
class Report:
    """The outcome of a pipeline. Scores are in 0..1, of the validation pictures."""

    folder: Path
    options: PipelineConfig
    stages: Mapping[str, Mapping[str, Any]]
    """by folder: title, epochs, seconds, ``forecast`` (seconds); of detectors AP and AP50 of the best epoch,
    ``last_AP``, ``last_AP50``, ``best_epoch``, ``backbone_lr``; of the distillation ``explained``"""

    @property
    def difference(self) -> float | None:
        """AP of the last epoch with distillation less without; None when only one arm was trained."""
        if PLAIN not in self.stages:
            return None
        ours, theirs = (self.stages[name]["last_AP"] for name in (DETECTOR, PLAIN))
        return math.nan if ours is None or theirs is None else float(ours - theirs)

    @property
    def better(self) -> Path:
        """The run with the higher AP of its best weights: with distillation, unless it is lower."""
        ours, theirs = (self.stages.get(name, {}).get("AP") or 0.0 for name in (DETECTOR, PLAIN))
        return self.folder / (PLAIN if theirs > ours else DETECTOR)

    def verdict(self) -> list[str]:
        """In plain words, whether distillation helped here, and how sure that is."""
        difference = self.difference
        if difference is None:
            return [
                "Only the distilled detector was trained (compare=false): whether distillation helped is not known."
            ]
        points = f"{abs(100 * difference):.1f} points in this one run (last epoch)"
        if math.isnan(difference):
            said = "The arms cannot be compared: the validation pictures give no AP."
        elif difference > 0:
            said = f"With distillation AP is higher by {points}."
        elif difference == 0:
            said = "Distillation did not help here: the same AP with and without it in this one run (last epoch)."
        else:
            said = f"Distillation did not help here: with it AP is lower by {points}."
        return [
            said,
            *self._failed(),
            f"One seed ({self.options.seed}) cannot tell a couple of points from chance. The same comparison with "
            "three seeds:",
            f"  {grid.command(self.folder)}",
        ]

    def _failed(self) -> list[str]:
        """That stage 2 taught nothing, if so: then the arms do not tell what distillation is worth."""
        explained = self.stages.get(DISTILLED, {}).get("explained", 0.0)
        if not explained < 0:
            return []
        return [f"But stage 2 failed: {in_words(explained)}. The comparison says nothing about distillation."]

    def text(self) -> str:
        """The whole report as Markdown."""
        rows = [self._row(name) for name in self.stages if name not in (TEACHER, DISTILLED)]
        before = sum(float(self.stages[name]["seconds"]) for name in (TEACHER, DISTILLED) if name in self.stages)
        detector = self.stages[DETECTOR]
        equal = f"{counted(detector['epochs'], 'epoch')}, {detector['steps']} steps"
        budget = [
            f"Same budget for both arms: {equal}, the same pictures, "
            f"options and seed. {self._rates()}The distilled arm had {duration(before)} more for what came before "
            "(stages 1 and 2)."
        ]
        table = [
            "| arm | AP | AP50 | best epoch | AP, last epoch | AP50, last epoch | epochs | time |",
            "| --- | --- | --- | --- | --- | --- | --- | --- |",
            *rows,
        ]
        return "\n".join(
            [
                f"# Pipeline: {self.options.model} on {self.options.data}",
                "",
                *table,
                "",
                *(budget if PLAIN in self.stages else []),
                "AP and AP50 are those of the best epoch, which was chosen on the same validation pictures.",
                "",
                *self.verdict(),
                "",
                *self._stages(),
                f"- the better weights: {self.better / 'weights' / 'best.safetensors'}",
            ]
        )

    def _rates(self) -> str:
        """The learning rates of the ViT, if the arms differ in them."""
        ours, theirs = (self.stages.get(name, {}).get("backbone_lr") for name in (DETECTOR, PLAIN))
        if ours == theirs or theirs is None:
            return ""
        return (
            f"They differ in the learning rate of the vision transformer: {ours:.3g} with distillation, {theirs:.3g} "
            "without. What was distilled is preserved by a low rate (the paper's recipe); random weights learn at the "
            "full rate. train=backbone_lr=... sets one for both. "
        )

    def _row(self, name: str) -> str:
        each = self.stages[name]
        title = {DETECTOR: "with distillation", PLAIN: "without distillation"}.get(name, f"{name}, from the detector")
        scores = " | ".join(_score(each[key]) for key in ("AP", "AP50"))
        last = " | ".join(_score(each[key]) for key in ("last_AP", "last_AP50"))
        time = duration(each["seconds"])
        return f"| {title} | {scores} | {each['best_epoch']} | {last} | {each['epochs']} | {time} |"

    def _stages(self) -> list[str]:
        lines = []
        for name, each in self.stages.items():
            text = f"- {each['title']}: {counted(each['epochs'], 'epoch')}, forecast {duration(each['forecast'])}, "
            text += f"took {duration(each['seconds'])}"
            if "explained" in each:
                text += f"; {in_words(each['explained'])}"
            if name == TEACHER:
                text += f"; as a detector AP {_score(each['AP'])}, AP50 {_score(each['AP50'])}"
            lines.append(text)
        return lines

    def to_dict(self) -> dict[str, Any]:
        """What ``report.json`` says."""
        return {
            "options": self.options.to_dict(),
            "stages": {name: dict(each) for name, each in self.stages.items()},
            "difference": None if self.difference is None else defined(self.difference),
            "seeds": 1,
            "verdict": self.verdict()[0],
            "better": str(self.better),
        }


def written(report: Report) -> None:
    """Write ``report.md`` and ``report.json``, and ``curves.png`` where matplotlib is installed."""
    for name, text in (("report.md", report.text()), ("report.json", json.dumps(report.to_dict(), indent=2))):
        with written_beside(report.folder / name) as beside:
            beside.write_text(text + "\n", encoding="utf-8")
    names = {DETECTOR: "with distillation", PLAIN: "without distillation"}
    runs = {title: report.folder / name for name, title in names.items() if name in report.stages}
    curves.compare(runs, report.folder / "curves.png")


def counted(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")


def duration(seconds: float) -> str:
    """``40 s``, ``5 min``, ``3.2 hours`` or ``2.5 days``."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.1f} min" if seconds < 600 else f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} hours" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"


def _score(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.3f}"
