"""The whole journey in a few minutes: data, training, scores, pictures, and what to do next."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgecrafter import curves
from edgecrafter.beside import side_by_side
from edgecrafter.data import check, formats, scenes
from edgecrafter.data.shapes import POSED, SHAPES, Maker
from edgecrafter.evaluate import Scores
from edgecrafter.model import load, pipeline, train
from edgecrafter.tasks import TASKS

TRAINING, DETECTOR, STAGES = "training", "detector", "stages"
"""names of the folders of the run, of the one before it, and of the stages of the detector"""
OWN_SIDE = 256
"""input size in pixels for data that are not generated"""
SIZE, TEACHER = "p", "ecdet-p"
"""of the model, and who teaches it"""
VIEW = 128
"""side of the pictures of the distillation, at most"""


@dataclass(frozen=True)
class Course:
    """What is trained and for how long, for one task."""

    shapes: Mapping[str, Maker]
    """what the generated scenes show"""
    kind: scenes.Kind
    """how many of them, and how large"""
    seen: int
    """training pictures seen, over all epochs: a few minutes on two cores"""
    rate: int
    """training pictures per second on two cores, roughly; slower by the area of a larger input"""
    queries: int
    """for the scenes"""
    lr: float
    """at batch 16; above the recipe's, since the run is short"""
    finds: str
    """what the model finds, in words"""
    teacher: int = 0
    """training pictures that a teacher sees in a first stage; 0: there are no stages"""
    views: int = 0
    """views of them from which the detector's vision transformer then learns what the teacher sees"""
    detector: int = 0
    """training pictures that a detector sees first, from which the model then starts; 0: it starts from nothing"""
    pictures: int = 480
    """generated for training"""
    side: int = 160
    """input size in pixels for the scenes"""


COURSES = {
    "detect": Course(
        SHAPES,
        scenes.CROWDED,
        seen=2400,
        rate=36,
        queries=50,
        lr=3e-3,
        finds="boxes",
        teacher=2880,
        views=4800,
        side=128,
    ),
    "segment": Course(SHAPES, scenes.CALM, seen=3360, rate=22, queries=50, lr=1.5e-3, finds="masks", detector=1920),
    "pose": Course(POSED, scenes.CALM, seen=4800, rate=20, queries=30, lr=1.5e-3, finds="keypoints", detector=1920),
}
LAYOUTS = {
    "": "COCO, YOLO or Pascal VOC layout",
    "masks": "COCO layout with polygons or run lengths, or YOLO layout with polygons",
    "keypoints": "COCO or YOLO layout with keypoints",
}
"""data sets that have the truth which a task needs"""


@dataclass(frozen=True)
class Outcome:
    """What the quickstart leaves behind."""

    folder: Path
    model: Path
    """the trained weights"""
    scores: Scores
    pictures: list[Path]
    """truth on the left, prediction on the right"""
    curves: Path | None
    """PNG, when matplotlib is installed"""


def quickstart(
    data: str | Path = "",
    folder: str | Path = "quickstart",
    epochs: int | None = None,
    imgsz: int | None = None,
    seed: int = 0,
    device: str = "",
    task: str = "detect",
) -> Outcome:
    """Train a small model on generated scenes, or on ``data``, score it, draw what it finds, and leave all in
    ``folder``.

    Args:
        data: a data set in a known layout; empty: scenes are generated.
        folder: where everything goes; files of an earlier quickstart are replaced.
        epochs: passes over the training pictures in every stage; None: as many as take about five minutes on two
            cores, five at least unless the data are many, and one however many they are. For boxes these are the three
            stages of EdgeCrafter and a training without them to compare. For masks and keypoints a detector is
            trained before, for about half as long; the model starts from it.
        imgsz: input size in pixels, a multiple of 32; None: 128 or 160 for the scenes, 256 for ``data``.
        seed: of scenes and training.
        device: empty: a GPU if there is one.
        task: ``detect``, ``segment`` (masks) or ``pose`` (keypoints); the model is ``ecdet-p``, ``ecinsseg-p`` or
            ``ecpose-p``.

    Raises:
        ValueError, FileNotFoundError: an unknown task, or the data cannot be used.
    """
    if task not in COURSES:
        raise ValueError(f"task {task!r} is not known: choose one of {', '.join(COURSES)}")
    start = time.perf_counter()
    course, folder, truth = COURSES[task], Path(folder), TASKS[task].truth
    source = Path(data) if data else _scenes(folder, seed, course)
    known = formats.load(source, "train", truth=truth)
    options = _options(source, imgsz or (OWN_SIDE if data else course.side), None if data else course.queries)
    options |= {"augment": "light" if data else "none", "seed": seed, "device": device, "project": str(folder)}
    run = (_staged if course.teacher else _trained)(task, len(known), epochs, options)
    model = folder / "model.safetensors"
    shutil.copyfile(run / "weights" / "best.safetensors", model)
    plot = curves.plot(run, folder / "curves.png")
    unseen = check.usable(formats.load(source, "val", known.labels, truth=truth))
    loaded = load(model, device)
    pictures = side_by_side(loaded, unseen, folder / "pictures")
    outcome = Outcome(folder, model, loaded.val(source, progress=False), pictures, plot)
    print(_report(outcome, run, source, bool(data), time.perf_counter() - start, task))
    return outcome


def _trained(task: str, count: int, epochs: int | None, options: dict[str, Any]) -> Path:
    """Train on ``count`` pictures, from a short detector; the folder of the run."""
    course, run = COURSES[task], Path(options["project"]) / TRAINING
    before = max(1, epochs // 2) if epochs else _epochs(count, course.detector, least=1)
    epochs = epochs or _epochs(count, course.seen)
    weights = _detector(count, before, options)
    print(_forecast(f"to find {course.finds}", count, epochs, options["imgsz"], run, course))
    rate = {"lr": course.lr, "backbone_lr": course.lr, "val_every": max(1, epochs // 10)}
    train(model=f"{TASKS[task].prefix}-{SIZE}", weights=weights, epochs=epochs, name=TRAINING, **rate, **options)
    return run


def _staged(task: str, count: int, epochs: int | None, options: dict[str, Any]) -> Path:
    """The three stages in miniature, and the detector without them; the folder of the better detector."""
    course = COURSES[task]
    plain = {name: options.pop(name) for name in ("batch", "queries", "augment")}
    rates = [f"{name}={value}" for name, value in plain.items() if value is not None]
    rates += [f"lr={course.lr}", f"backbone_lr={course.lr}"]
    first, views, seen = (epochs or _epochs(count, each) for each in (course.teacher, course.views, course.seen))
    print(
        f"the three stages of EdgeCrafter in miniature, to find {course.finds} on {count} pictures\n"
        "no pretrained weights are used: the teacher is trained here, on the same pictures (a real one saw millions)"
    )
    report = pipeline(
        model=f"{TASKS[task].prefix}-{SIZE}",
        teacher=TEACHER,
        epochs=seen,
        teach=[*rates, f"epochs={first}", f"val_every={first}"],
        distill=[f"epochs={views}", "batch=16", f"imgsz={min(VIEW, options['imgsz'])}"],
        train=[*rates, f"val_every={max(1, seen // 10)}"],
        weights="none",
        name=STAGES,
        **options,
    )
    assert report is not None
    return report.better


def _options(source: Path, side: int, queries: int | None) -> dict[str, Any]:
    """What all trainings of a quickstart have in common."""
    plain = {"batch": 8, "workers": 0, "exist_ok": True}
    return {"data": str(source), "imgsz": side, "queries": queries, **plain}


def _detector(count: int, epochs: int, options: dict[str, Any]) -> str:
    """A short training of a detector: its weights, from which masks and poses are learned sooner (paper, 3.4)."""
    first, run = COURSES["detect"], Path(options["project"]) / DETECTOR
    print(_forecast("a detector first, to start from:", count, epochs, options["imgsz"], run, first))
    rate = {"lr": first.lr, "backbone_lr": first.lr, "val_every": epochs}
    return str(train(model=f"{TASKS['detect'].prefix}-{SIZE}", epochs=epochs, name=DETECTOR, **rate, **options).last)


def _epochs(count: int, seen: int, least: int = 5) -> int:
    """Passes over ``count`` pictures: ``seen`` in all, but ``least`` passes while that is at most twice as many."""
    return max(least if least * count <= 2 * seen else 1, seen // max(1, count))


def _forecast(what: str, count: int, epochs: int, side: int, run: Path, course: Course) -> str:
    """How long the training will take, and how to go on with it after an interruption."""
    minutes = count * epochs / course.rate * (side / course.side) ** 2 / 60
    time = f"{minutes / 60:.0f} hours" if minutes > 100 else f"{max(1, minutes):.0f} min"
    return (
        f"training {what} on {count} pictures, {epochs} epochs at {side} x {side}: "
        f"a rough estimate is {time} on two cores\n"
        f"Ctrl-C stops it; edgecrafter train --resume {run} goes on with it"
    )


def _scenes(folder: Path, seed: int, course: Course) -> Path:
    *first, last = (f"{name}s" for name in course.shapes)
    print(f"making scenes: {', '.join(first)} and {last} with their {course.finds}, in COCO format")
    return scenes.write(folder / "scenes", course.pictures, seed=seed, shapes=course.shapes, kind=course.kind)


def _scored(overall: Mapping[str, float], finds: str) -> str:
    """The two best known scores, of the boxes too where they are scored besides."""
    text = f"AP50 {overall['AP50']:.2f}, AP {overall['AP']:.2f} of {finds}"
    return f"{text} (AP50 {overall['box_AP50']:.2f} of boxes)" if "box_AP50" in overall else text


def _report(outcome: Outcome, run: Path, source: Path, own: bool, seconds: float, task: str) -> str:
    """The closing words: where everything is, and the next commands."""
    folder, prefix, staged = outcome.folder, TASKS[task].prefix, COURSES[task].teacher > 0
    name = "the validation pictures" if own else "scenes it has not seen"
    plot = str(outcome.curves) if outcome.curves else f"{run / 'results.csv'}   ({curves.HINT})"
    rows = [
        ("weights", str(outcome.model)),
        ("pictures", f"{folder / 'pictures'}   (truth on the left, prediction on the right)"),
        ("curves", plot),
        ("scores", f"{run / 'val' / 'metrics.json'}, per_class.csv"),
        *([("report", f"{run.parent / 'report.md'}   (with and without distillation)")] if staged else []),
        ("data", str(source)),
    ]
    return "\n".join(
        [
            "",
            f"Done in {seconds / 60:.1f} minutes. On {name}: {_scored(outcome.scores.overall, COURSES[task].finds)}.",
            "",
            *(f"  {label:<9} {place}" for label, place in rows),
            "",
            f"Next, with your own pictures ({LAYOUTS[TASKS[task].truth]}; the layout is found by looking):",
            f"  edgecrafter train {prefix}-n YOUR_DATA       # {prefix}-s, -m, -l, -x start from released weights",
            *(
                ["  edgecrafter pipeline ecdet-s YOUR_DATA   # with a real teacher; --dry says how long"]
                if staged
                else []
            ),
            f"  edgecrafter val runs/{task}/train YOUR_DATA",
            f"  edgecrafter predict runs/{task}/train YOUR_PICTURES",
            "In Python:",
            f"  import edgecrafter as ec; ec.load({str(outcome.model)!r}).predict('picture.jpg')[0].save('found.jpg')",
        ]
    )
