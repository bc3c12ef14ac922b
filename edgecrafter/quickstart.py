"""The whole journey in a few minutes: data, training, scores, pictures, and what to do next."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from edgecrafter import curves
from edgecrafter.data import check, formats, images, rasters, scenes
from edgecrafter.data.annotations import Annotations, Masks
from edgecrafter.data.shapes import POSED, SHAPES, Maker
from edgecrafter.draw import draw
from edgecrafter.evaluate import Scores
from edgecrafter.geometry import runs
from edgecrafter.geometry.runs import Runs
from edgecrafter.model import Model, load, train
from edgecrafter.predict import distinct
from edgecrafter.tasks import TASKS
from edgecrafter.types import Detections

TRAINING, DETECTOR = "training", "detector"
"""names of the folders of the run, and of the one before it"""
PICTURES = 6
"""validation pictures that are drawn"""
OWN_SIDE = 256
"""input size in pixels for data that are not generated"""
SIZE = "p"
"""of the model"""
GAP = 6
"""pixels between the truth and the prediction"""


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
    detector: int = 0
    """training pictures that a detector sees first, from which the model then starts; 0: it starts from nothing"""
    pictures: int = 480
    """generated for training"""
    side: int = 160
    """input size in pixels for the scenes"""


COURSES = {
    "detect": Course(SHAPES, scenes.CROWDED, seen=4320, rate=25, queries=50, lr=3e-3, finds="boxes"),
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
        epochs: passes over the training pictures; None: as many as take three to five minutes on two cores, five at
            least unless the data are many, and one however many they are. For masks and keypoints a detector is
            trained before, for about half as long; the model starts from it.
        imgsz: input size in pixels, a multiple of 32; None: 160 for the scenes, 256 for ``data``.
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
    before = max(1, epochs // 2) if epochs else _epochs(len(known), course.detector, least=1)
    epochs = epochs or _epochs(len(known), course.seen)
    options = _options(source, imgsz or (OWN_SIDE if data else course.side), None if data else course.queries)
    options |= {"augment": "light" if data else "none", "seed": seed, "device": device, "project": str(folder)}
    weights = _detector(len(known), before, options) if course.detector else "auto"
    print(_forecast(f"to find {course.finds}", len(known), epochs, options["imgsz"], folder / TRAINING, course))
    trained = train(
        model=f"{TASKS[task].prefix}-{SIZE}",
        weights=weights,
        epochs=epochs,
        lr=course.lr,
        backbone_lr=course.lr,
        val_every=max(1, epochs // 10),
        name=TRAINING,
        **options,
    )
    model = folder / "model.safetensors"
    shutil.copyfile(trained.best, model)
    plot = curves.plot(trained.folder, folder / "curves.png")
    unseen = check.usable(formats.load(source, "val", known.labels, truth=truth))
    pictures = side_by_side(load(model, device), unseen, folder / "pictures")
    outcome = Outcome(folder, model, trained.scores, pictures, plot)
    print(_report(outcome, trained.folder, source, bool(data), time.perf_counter() - start, task))
    return outcome


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


def side_by_side(model: Model, annotations: Annotations, folder: Path, count: int = PICTURES) -> list[Path]:
    """Draw truth and prediction of the first ``count`` pictures that have objects beside each other."""
    folder.mkdir(parents=True, exist_ok=True)
    chosen = annotations.counts().nonzero()[0][:count].tolist()
    paths = [annotations.path(index) for index in chosen]
    written = [folder / name for name in distinct(f"{path.stem}.jpg" for path in paths)]
    for index, path, target in zip(chosen, paths, written, strict=True):
        picture = images.read(path)
        labels = annotations.labels
        true = draw(picture, _truth(annotations, index), labels.names, labels.skeleton, scores=False)
        found = model.predict(picture)[0].plot()
        _beside([true, found]).save(target, quality=92)
    return written


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


def _truth(annotations: Annotations, index: int) -> Detections:
    """The objects of a picture as if they were found, to be drawn."""
    rows = annotations.objects(index)
    boxes = torch.from_numpy(annotations.boxes[rows].copy())
    found = Detections(torch.ones(len(boxes)), torch.from_numpy(annotations.classes[rows].copy()), boxes)
    if annotations.masks is not None:
        found.masks = _masks(annotations.masks, range(rows.start, rows.stop), annotations.sizes[index].tolist())
    if annotations.keypoints is not None:
        found.keypoints = torch.from_numpy(annotations.keypoints[rows] / np.array([1, 1, 2], np.float32))
    return found


def _masks(masks: Masks, rows: Sequence[int], size: Sequence[int]) -> Runs:
    """The masks of some objects of a picture of ``size`` (h, w); empty ones where there are none."""
    height, width = size
    counts: list[NDArray[np.int64]] = []
    for row in rows:
        code, rings = masks.code(row), [ring.astype(np.float64) for ring in masks.polygons(row)]
        pixels = np.zeros((1, height, width), bool)
        if rings:
            x, y, patch = rasters.outline(rings, (0, 0, width, height))
            pixels[0, y : y + patch.shape[0], x : x + patch.shape[1]] = patch
        counts += runs.decode([code]) if code and not rings else runs.from_array(pixels).counts
    return Runs((height, width), tuple(counts))


def _scored(overall: Mapping[str, float], finds: str) -> str:
    """The two best known scores, of the boxes too where they are scored besides."""
    text = f"AP50 {overall['AP50']:.2f}, AP {overall['AP']:.2f} of {finds}"
    return f"{text} (AP50 {overall['box_AP50']:.2f} of boxes)" if "box_AP50" in overall else text


def _beside(pictures: Sequence[Image.Image]) -> Image.Image:
    sheet = Image.new("RGB", (sum(p.width for p in pictures) + GAP * (len(pictures) - 1), pictures[0].height), "white")
    left = 0
    for picture in pictures:
        sheet.paste(picture, (left, 0))
        left += picture.width + GAP
    return sheet


def _report(outcome: Outcome, run: Path, source: Path, own: bool, seconds: float, task: str) -> str:
    """The closing words: where everything is, and the next commands."""
    folder, prefix = outcome.folder, TASKS[task].prefix
    name = "the validation pictures" if own else "scenes it has not seen"
    plot = str(outcome.curves) if outcome.curves else f"{run / 'results.csv'}   ({curves.HINT})"
    rows = [
        ("weights", str(outcome.model)),
        ("pictures", f"{folder / 'pictures'}   (truth on the left, prediction on the right)"),
        ("curves", plot),
        ("scores", f"{run / 'val' / 'metrics.json'}, per_class.csv"),
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
            f"  edgecrafter val runs/{task}/train YOUR_DATA",
            f"  edgecrafter predict runs/{task}/train YOUR_PICTURES",
            "In Python:",
            f"  import edgecrafter as ec; ec.load({str(outcome.model)!r}).predict('picture.jpg')[0].save('found.jpg')",
        ]
    )
