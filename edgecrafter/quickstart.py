"""The whole journey in a few minutes: data, training, scores, pictures, and what to do next."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from edgecrafter import curves
from edgecrafter.data import check, formats, images, scenes
from edgecrafter.data.annotations import Annotations
from edgecrafter.draw import draw
from edgecrafter.evaluate import Scores
from edgecrafter.model import Model, load, train
from edgecrafter.predict import distinct
from edgecrafter.types import Detections

MODEL = "ecdet-p"
TRAINING = "training"
"""name of the run's folder"""
PICTURES = 6
"""validation pictures that are drawn"""
SEEN = 4320
"""training pictures seen, over all epochs: about three minutes on two cores at 160 x 160"""
RATE = 25
"""training pictures per second on two cores at 160 x 160, roughly; slower by the area of a larger input"""
SIDES = {"scenes": 160, "own": 256}
"""input size in pixels"""
LR = 3e-3
"""at batch 16, three times the recipe's: the run is short"""
QUERIES = 50
"""a scene holds seven things at most"""
GAP = 6
"""pixels between the truth and the prediction"""


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
) -> Outcome:
    """Train ``ecdet-p`` on generated scenes, or on ``data``, score it, draw what it finds, and leave all in ``folder``.

    Args:
        data: a data set in a known layout; empty: scenes are generated.
        folder: where everything goes; files of an earlier quickstart are replaced.
        epochs: passes over the training pictures; None: as many as take about three minutes on two cores, five at least
            unless the data are many, and one however many they are.
        imgsz: input size in pixels, a multiple of 32; None: 160 for the scenes, 256 for ``data``.
        seed: of scenes and training.
        device: empty: a GPU if there is one.

    Raises:
        ValueError, FileNotFoundError: the data cannot be used.
    """
    start = time.perf_counter()
    folder = Path(folder)
    source = Path(data) if data else _scenes(folder, seed)
    known = formats.load(source, "train")
    epochs = epochs or _epochs(len(known))
    side = imgsz or SIDES["own" if data else "scenes"]
    print(_forecast(len(known), epochs, side, folder / TRAINING))
    trained = train(
        model=MODEL,
        data=str(source),
        epochs=epochs,
        imgsz=side,
        queries=None if data else QUERIES,
        lr=LR,
        backbone_lr=LR,
        batch=8,
        augment="light" if data else "none",
        val_every=max(1, epochs // 10),
        seed=seed,
        device=device,
        workers=0,
        project=str(folder),
        name=TRAINING,
        exist_ok=True,
    )
    model = folder / "model.safetensors"
    shutil.copyfile(trained.best, model)
    plot = curves.plot(trained.folder, folder / "curves.png")
    unseen = check.usable(formats.load(source, "val", known.labels))
    pictures = side_by_side(load(model, device), unseen, folder / "pictures")
    outcome = Outcome(folder, model, trained.scores, pictures, plot)
    print(_report(outcome, trained.folder, source, bool(data), time.perf_counter() - start))
    return outcome


def side_by_side(model: Model, annotations: Annotations, folder: Path, count: int = PICTURES) -> list[Path]:
    """Draw truth and prediction of the first ``count`` pictures that have objects beside each other."""
    folder.mkdir(parents=True, exist_ok=True)
    chosen = annotations.counts().nonzero()[0][:count].tolist()
    paths = [annotations.path(index) for index in chosen]
    written = [folder / name for name in distinct(f"{path.stem}.jpg" for path in paths)]
    for index, path, target in zip(chosen, paths, written, strict=True):
        picture = images.read(path)
        true = draw(picture, _truth(annotations, index), annotations.labels.names, scores=False)
        found = model.predict(picture)[0].plot()
        _beside([true, found]).save(target, quality=92)
    return written


def _epochs(count: int) -> int:
    """Passes over ``count`` pictures: about ``SEEN`` in all, but five passes while that is at most twice as many."""
    return max(5 if 5 * count <= 2 * SEEN else 1, SEEN // max(1, count))


def _forecast(count: int, epochs: int, side: int, run: Path) -> str:
    """How long the training will take, and how to go on with it after an interruption."""
    minutes = count * epochs / RATE * (side / SIDES["scenes"]) ** 2 / 60
    time = f"{minutes / 60:.0f} hours" if minutes > 100 else f"{max(1, minutes):.0f} min"
    return (
        f"training on {count} pictures, {epochs} epochs at {side} x {side}: a rough estimate is {time} on two cores\n"
        f"Ctrl-C stops it; edgecrafter train --resume {run} goes on with it"
    )


def _scenes(folder: Path, seed: int) -> Path:
    print("making scenes: balls, crates, stars and kites, in COCO format")
    return scenes.write(folder / "scenes", seed=seed)


def _truth(annotations: Annotations, index: int) -> Detections:
    rows = annotations.objects(index)
    boxes = torch.from_numpy(annotations.boxes[rows].copy())
    return Detections(torch.ones(len(boxes)), torch.from_numpy(annotations.classes[rows].copy()), boxes)


def _beside(pictures: Sequence[Image.Image]) -> Image.Image:
    sheet = Image.new("RGB", (sum(p.width for p in pictures) + GAP * (len(pictures) - 1), pictures[0].height), "white")
    left = 0
    for picture in pictures:
        sheet.paste(picture, (left, 0))
        left += picture.width + GAP
    return sheet


def _report(outcome: Outcome, run: Path, source: Path, own: bool, seconds: float) -> str:
    """The closing words: where everything is, and the next commands."""
    overall, folder = outcome.scores.overall, outcome.folder
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
            f"Done in {seconds / 60:.1f} minutes. On {name}: AP50 {overall['AP50']:.2f}, AP {overall['AP']:.2f}.",
            "",
            *(f"  {label:<9} {place}" for label, place in rows),
            "",
            "Next, with your own pictures (COCO, YOLO or Pascal VOC layout; classes are found by looking):",
            "  edgecrafter train ecdet-n YOUR_DATA       # ecdet-s, -m, -l, -x start from released weights",
            "  edgecrafter val runs/detect/train YOUR_DATA",
            "  edgecrafter predict runs/detect/train YOUR_PICTURES",
            "In Python:",
            f"  import edgecrafter as ec; ec.load({str(outcome.model)!r}).predict('picture.jpg')[0].save('found.jpg')",
        ]
    )
